"""Modes of torch that are the caller's and must not change what is computed here."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextlib import AbstractContextManager

import torch

__all__ = ["no_gradients", "own_precision"]


def own_precision(device: torch.device) -> AbstractContextManager[object]:
    """Without the caller's ``torch.autocast``: operators keep the dtype of their input, ``precision`` is the plan's."""
    kind = device.type
    if kind == "meta" or not torch.is_autocast_enabled(kind):
        return contextlib.nullcontext()
    return torch.autocast(kind, enabled=False)


@contextlib.contextmanager
def no_gradients() -> Iterator[None]:
    """``torch.no_grad`` outside inference mode, whose tensors no prior could keep or differentiate."""
    with torch.inference_mode(False), torch.no_grad():
        yield
