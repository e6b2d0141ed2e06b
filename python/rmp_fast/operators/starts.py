"""Several runs of a nonlinear problem from different seeds, the best kept per item."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from .._checks import check_shape, check_tensor
from .base import Operator, check_float

__all__ = ["BestOfStarts", "best_of_starts"]


class BestOfStarts(NamedTuple):
    """The kept estimates.

    Attributes:
        image: (B, ...).
        residual: (B,) ||y - A(image)||, infinite where no start stayed finite.
        start: (B,) int64, which start was kept.
        residuals: (starts, B) of all of them.
    """

    image: Tensor
    residual: Tensor
    start: Tensor
    residuals: Tensor


def best_of_starts(
    op: Operator,
    y: Tensor,
    estimate: Callable[[Tensor], Tensor],
    starts: int = 4,
    seeds: Tensor | None = None,
) -> BestOfStarts:
    """Run ``estimate`` from ``starts`` sets of seeds and keep, item by item, the image of least residual ||y - A(x)||.

    With a plan: ``best_of_starts(op, y, lambda seeds: plan.execute(y, seeds).mean)``.

    Args:
        op: the operator.
        y: measurements (B, ...).
        estimate: seeds (B,) int64 -> images (B, ...); start k gets the seeds plus k * 2^32, so that an item's starts
            depend on its own seed alone and the first start is the plain run.
        starts: how many, >= 1.
        seeds: (B,) int64; default 0 ... B - 1.

    Raises:
        TypeError, ValueError: arguments of a wrong type or shape, or images whose measurement is not shaped as ``y``.
    """
    check_float("y", y)
    if isinstance(starts, bool) or not isinstance(starts, int):
        raise TypeError(f"`starts` must be an integer, got {type(starts).__name__}")
    if starts < 1:
        raise ValueError(f"`starts` must be >= 1, got {starts}")
    batch = y.shape[0]
    if seeds is None:
        seeds = torch.arange(batch, device=y.device)
    elif check_tensor("seeds", seeds, floating=False).dtype != torch.int64:
        raise TypeError(f"`seeds` must be int64, got {seeds.dtype}; convert them with .long()")
    check_shape("seeds", seeds, (batch,), ("B",))
    image: Tensor | None = None
    start = torch.zeros_like(seeds)
    least = torch.full((batch,), torch.inf, dtype=torch.float64, device=y.device)
    residuals = []
    for k in range(starts):
        candidate = estimate(seeds + (k << 32))
        with torch.no_grad():
            measured = op.A(candidate)
            check_shape("A(estimate)", measured, y.shape)
            residual = (measured.double() - y.double()).flatten(1).norm(dim=1)
        residual = torch.where(residual.isfinite(), residual, torch.inf)
        residuals.append(residual)
        better = residual < least
        least, start = torch.where(better, residual, least), torch.where(better, k, start)
        # A copy, because an estimator may hand out the same buffer every time.
        kept = candidate.clone() if image is None else image
        image = torch.where(better.reshape(-1, *[1] * (candidate.ndim - 1)), candidate, kept)
    assert image is not None
    return BestOfStarts(image, least, start, torch.stack(residuals))
