"""Preconditioned conjugate gradients for a batch of symmetric positive semi-definite systems."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Solution", "conjugate_gradients"]


class Solution(NamedTuple):
    """``solution`` (B, ...) and ``residual`` (B,), the recomputed ||rhs - G solution|| / ||rhs|| (0 where rhs is 0)."""

    solution: Tensor
    residual: Tensor


def conjugate_gradients(
    gram: Callable[[Tensor], Tensor],
    rhs: Tensor,
    iterations: int,
    preconditioner: Callable[[Tensor], Tensor] | None = None,
) -> Solution:
    """Solve G z = rhs for every item on its own, from z = 0.

    The number of iterations is fixed and every scalar stays on the device as (B, 1, ...), so nothing waits for the host
    and an item does not feel its neighbours. An item that has converged to rounding level, or whose curvature is zero,
    stays where it is. On a singular consistent system without preconditioner the limit is the pseudo-inverse solution.

    Args:
        gram: v (B, ...) -> G v, one symmetric positive semi-definite G per item.
        rhs: right-hand sides (B, ...).
        iterations: steps, each with one ``gram`` and one ``preconditioner``.
        preconditioner: v (B, ...) -> M^-1 v, symmetric positive, close to G^-1.

    Source: Saad, Iterative Methods for Sparse Linear Systems, 2nd ed., algorithm 9.1.
    """
    if iterations < 1:
        raise ValueError(f"`iterations` must be >= 1, got {iterations}")
    solution = torch.zeros_like(rhs)
    residual = rhs
    direction = residual if preconditioner is None else preconditioner(residual)
    size = start = _dot(residual, residual)
    product = size if preconditioner is None else _dot(residual, direction)
    # Below it the residual of a singular system is rounding outside the range, which further steps would blow up.
    reached = (8 * torch.finfo(rhs.dtype).eps) ** 2 * start
    for _ in range(iterations):
        image = gram(direction)
        step = _ratio(product, _dot(direction, image)) * (size > reached)
        solution = torch.addcmul(solution, step, direction)
        residual = torch.addcmul(residual, step, image, value=-1)
        towards = residual if preconditioner is None else preconditioner(residual)
        size, previous = _dot(residual, residual), product
        product = size if preconditioner is None else _dot(residual, towards)
        direction = torch.addcmul(towards, _ratio(product, previous), direction)
    left = rhs - gram(solution)
    norms = _ratio(_dot(left, left), start).sqrt()
    return Solution(solution, norms.flatten())


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).flatten(1).sum(1).reshape(-1, *[1] * (a.ndim - 1))


def _ratio(numerator: Tensor, denominator: Tensor) -> Tensor:
    positive = denominator > 0
    return torch.where(positive, numerator / torch.where(positive, denominator, 1), 0)
