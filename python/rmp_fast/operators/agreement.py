"""How far maps are from being linear, each other's adjoint, and blind to their neighbours in a batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["AGREEMENT", "Products", "adjoint_mismatch", "alone", "mismatch"]

#: Relative to the norms of what is compared: rounding in sums of many terms, with room for a function's own tables.
AGREEMENT = {torch.float32: 1e-4, torch.float64: 1e-8}


class Products(NamedTuple):
    """<A x, y> and <x, A^T y> (B,), and the largest difference of any item in units of ||A x|| ||y||."""

    measured: Tensor
    imaged: Tensor
    mismatch: float


def mismatch(actual: Tensor, expected: Tensor, scale: Tensor) -> float:
    """The worst item's ||actual - expected|| / ||scale||; 0 for an empty batch."""
    norms = scale.flatten(1).norm(dim=1).clamp(min=torch.finfo(scale.dtype).tiny)
    return float(((actual - expected).flatten(1).norm(dim=1) / norms).max()) if len(scale) else 0.0


def adjoint_mismatch(measured: Tensor, y: Tensor, x: Tensor, image: Tensor) -> Products:
    """The dot test of ``measured`` = A x and ``image`` = A^T y."""
    left, right = (measured * y).flatten(1).sum(1), (x * image).flatten(1).sum(1)
    scale = measured.flatten(1).norm(dim=1) * y.flatten(1).norm(dim=1)
    apart = (left - right).abs() / scale.clamp(min=torch.finfo(y.dtype).tiny)
    return Products(left, right, float(apart.max()))


def alone(fn: Callable[[Tensor], Tensor], x: Tensor, others: Tensor | None = None) -> Tensor:
    """fn of every item without the others: on its own, or with ``others`` (B, ...) in all the other places."""
    if others is None:
        return torch.cat([fn(item[None]) for item in x])
    results = []
    for k in range(len(x)):
        company = others.clone()
        company[k] = x[k]
        results.append(fn(company)[k])
    return torch.stack(results)
