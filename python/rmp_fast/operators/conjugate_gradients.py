"""Preconditioned conjugate gradients for a batch of symmetric positive semi-definite systems."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import ops

__all__ = ["Solution", "conjugate_gradients"]

_Map = Callable[[Tensor], Tensor]


class Solution(NamedTuple):
    """``solution`` (B, ...) and ``residual`` (B,), the recomputed ||rhs - G solution|| / ||rhs|| (0 where rhs is 0)."""

    solution: Tensor
    residual: Tensor


def conjugate_gradients(
    gram: _Map,
    rhs: Tensor,
    iterations: int,
    preconditioner: _Map | None = None,
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
    if rhs.device.type == "cpu" and not torch.is_grad_enabled():
        compiled = ops.kernels("auto", rhs) if rhs.dtype == torch.float32 else None
        if compiled is not None:
            return _compiled(compiled, gram, rhs, iterations, preconditioner)
    solution = torch.zeros_like(rhs)
    residual = rhs
    direction = residual if preconditioner is None else preconditioner(residual)
    size = _dot(residual, residual)
    product = size if preconditioner is None else _dot(residual, direction)
    reached = _least(rhs.dtype) * size
    for _ in range(iterations):
        image = gram(direction)
        step = _ratio(product, _dot(direction, image)) * (size > reached)
        solution = torch.addcmul(solution, step, direction)
        residual = torch.addcmul(residual, step, image, value=-1)
        towards = residual if preconditioner is None else preconditioner(residual)
        size, previous = _dot(residual, residual), product
        product = size if preconditioner is None else _dot(residual, towards)
        direction = torch.addcmul(towards, _ratio(product, previous), direction)
    return _solution(gram, rhs, solution)


def _compiled(kernels: Any, gram: _Map, rhs: Tensor, iterations: int, preconditioner: _Map | None) -> Solution:
    """The same by the kernels of a CPU."""
    residual = rhs.clone(memory_format=torch.contiguous_format)
    solution, direction = torch.zeros_like(residual), torch.zeros_like(residual)
    squares, product, least = torch.zeros(3, len(rhs), dtype=torch.float64)
    # The first step has no direction yet, and leaves the squares of the residual.
    for step in range(iterations + 1):
        image = gram(direction).contiguous() if step else direction
        kernels.conjugate_step(direction, image, solution, residual, squares, product, least)
        if step == 0:
            least = _least(rhs.dtype) * squares
        if step < iterations:
            towards = residual if preconditioner is None else preconditioner(residual).contiguous()
            kernels.conjugate_turn(direction, towards, residual, squares, product)
    return _solution(gram, rhs, solution)


def _least(dtype: torch.dtype) -> float:
    """The share of ||rhs||^2 below which the residual of a singular system is rounding outside the range.

    Further steps would blow it up.
    """
    return float((8 * torch.finfo(dtype).eps) ** 2)


def _solution(gram: _Map, rhs: Tensor, solution: Tensor) -> Solution:
    left = rhs - gram(solution)
    return Solution(solution, _ratio(_dot(left, left), _dot(rhs, rhs)).sqrt().flatten())


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).flatten(1).sum(1).reshape(-1, *[1] * (a.ndim - 1))


def _ratio(numerator: Tensor, denominator: Tensor) -> Tensor:
    positive = denominator > 0
    return torch.where(positive, numerator / torch.where(positive, denominator, 1), 0)
