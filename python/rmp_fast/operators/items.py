"""Scalars of a batch: one number for all items or one per item."""

from __future__ import annotations

import torch
from torch import Tensor

from .._checks import check_positive, shape_text

__all__ = ["per_item", "pseudo_reciprocal"]


def per_item(name: str, value: float | Tensor, like: Tensor) -> Tensor:
    """A number >= 0 or a tensor (B,) as float64 (1 or B, 1, ...), to broadcast against ``like`` (B, ...).

    Tensors are not searched for negative values, which would wait for the device.
    """
    batch = like.shape[0]
    if isinstance(value, Tensor):
        if value.ndim > 1 or (value.ndim == 1 and value.shape[0] != batch):
            raise ValueError(
                f"`{name}` must be a number or have shape (B,) = ({batch},), got {shape_text(value.shape)}"
            )
        tensor = value.to(device=like.device, dtype=torch.float64)
    else:
        number = check_positive(name, value, allow_zero=True)
        # Filled there: a number that is copied from the host would make it wait.
        tensor = torch.full((), number, dtype=torch.float64, device=like.device)
    return tensor.reshape(-1, *[1] * (like.ndim - 1))


def pseudo_reciprocal(x: Tensor) -> Tensor:
    """1 / x where x > 0, and 0 where x is 0."""
    positive = x > 0
    return torch.where(positive, 1 / torch.where(positive, x, 1), 0)
