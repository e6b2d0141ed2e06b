"""The one error grammar: what was expected, what came, what to do about it."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

__all__ = [
    "check_buffer",
    "check_choice",
    "check_count",
    "check_denoised",
    "check_finite",
    "check_noise_std",
    "check_positive",
    "check_seeds",
    "check_shape",
    "check_tensor",
    "shape_text",
]


def shape_text(shape: Sequence[int | str]) -> str:
    """(4, 3, 64, 64), also for symbolic entries."""
    return "(" + ", ".join(str(n) for n in shape) + ("," if len(shape) == 1 else "") + ")"


def check_choice(name: str, value: object, choices: Iterable[str]) -> str:
    """Return ``value`` if it is one of ``choices``; else ValueError with the nearest names."""
    known = list(choices)
    if isinstance(value, str) and value in known:
        return value
    near = difflib.get_close_matches(str(value), known, n=3, cutoff=0.5)
    hint = f"; did you mean {' or '.join(repr(n) for n in near)}?" if near else ""
    raise ValueError(f"`{name}` must be one of {', '.join(repr(k) for k in known)}, got {value!r}{hint}")


def check_tensor(name: str, value: object, *, floating: bool = True, device: torch.device | None = None) -> Tensor:
    """Return ``value`` if it is a (floating-point) tensor on ``device``; else TypeError."""
    if not isinstance(value, Tensor):
        raise TypeError(f"`{name}` must be a torch.Tensor, got {type(value).__name__}; convert it with torch.as_tensor")
    if floating and not value.is_floating_point():
        raise TypeError(f"`{name}` must be a floating-point tensor, got {value.dtype}; convert it with .float()")
    if device is not None and value.device != device:
        raise ValueError(f"`{name}` must be on device {device}, got {value.device}; move it with .to({str(device)!r})")
    return value


def check_shape(name: str, value: Tensor, expected: Sequence[int], axes: Sequence[str] | None = None) -> None:
    """ValueError unless ``value`` has the shape ``expected``, whose axes are named ``axes``."""
    if tuple(value.shape) == tuple(expected):
        return
    symbolic = f"{shape_text(axes)} = " if axes is not None else ""
    raise ValueError(f"`{name}` must have shape {symbolic}{shape_text(expected)}, got {shape_text(value.shape)}")


def check_finite(name: str, value: Tensor) -> None:
    """ValueError naming the first items that hold NaN or infinity."""
    if value.numel() == 0 or bool(torch.isfinite(value).all()):
        return
    if value.ndim < 2:
        raise ValueError(f"`{name}` must be finite, got NaN or infinity")
    bad = (~torch.isfinite(value)).flatten(1).any(1).nonzero().flatten().tolist()
    raise ValueError(f"`{name}` must be finite, got NaN or infinity in item {', '.join(map(str, bad[:5]))}")


def check_positive(name: str, value: float, *, allow_zero: bool = False) -> float:
    """Return ``value`` as a float if it is finite and positive (or zero where allowed), else raise."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"`{name}` must be a number, got {type(value).__name__}")
    number = float(value)
    if not math.isfinite(number) or number < 0 or (number == 0 and not allow_zero):
        raise ValueError(f"`{name}` must be a finite number {'>= 0' if allow_zero else '> 0'}, got {value!r}")
    return number


def check_count(name: str, value: object, least: int = 1) -> int:
    """Return ``value`` if it is a whole number of at least ``least``, else raise."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"`{name}` must be an integer, got {type(value).__name__}")
    if value < least:
        raise ValueError(f"`{name}` must be at least {least}, got {value}")
    return value


def check_seeds(seeds: Tensor | None, batch: int, device: torch.device) -> Tensor:
    """Seeds of the items (B,) int64 on ``device``; None stands for 0 … B - 1."""
    if seeds is None:
        return torch.arange(batch, device=device)
    check_tensor("seeds", seeds, floating=False, device=device)
    if seeds.dtype != torch.int64:
        raise TypeError(f"`seeds` must be int64, got {seeds.dtype}; convert them with .long()")
    check_shape("seeds", seeds, (batch,), ("B",))
    return seeds


def check_noise_std(value: object, batch: int, device: torch.device | None = None) -> Tensor:
    """Noise standard deviations as a float64 tensor (B,).

    Args:
        value: one number for all items, or a tensor (B,) or () of standard deviations (not variances), >= 0.
    """
    if value is None:
        raise ValueError(
            "`noise_std` must be given: the standard deviation of the measurement noise, in the range of `y`"
        )
    if isinstance(value, Tensor):
        tensor = value.detach().to(device=device, dtype=torch.float64)
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        tensor = torch.tensor(float(value), dtype=torch.float64, device=device)
    else:
        raise TypeError(f"`noise_std` must be a number or a tensor (B,), got {type(value).__name__}")
    if tensor.ndim > 1 or (tensor.ndim == 1 and tensor.shape[0] != batch):
        raise ValueError(
            f"`noise_std` must be a number or have shape (B,) = ({batch},), got {shape_text(tensor.shape)}"
        )
    if tensor.numel() and not bool((torch.isfinite(tensor) & (tensor >= 0)).all()):
        raise ValueError(f"`noise_std` must be finite and >= 0, got {value!r}")
    return tensor.expand(batch).clone()


def check_buffer(
    name: str,
    value: object,
    *dtypes: torch.dtype,
    shape: Sequence[int] | None = None,
    axes: str = "",
    device: torch.device | None = None,
) -> Tensor:
    """Return ``value`` if a kernel can work on its memory as it is, else raise.

    Args:
        dtypes: those that are taken.
        shape: what it must be, described by ``axes``.
        device: where it must be.
    """
    tensor = check_tensor(name, value, floating=False, device=device)
    if tensor.requires_grad:
        raise ValueError(f"`{name}` must not require grad; call .detach()")
    if tensor.is_conj() or tensor.is_neg():
        raise ValueError(
            f"`{name}` must not be a lazily conjugated or negated view; call .resolve_conj() and .resolve_neg()"
        )
    if not tensor.is_contiguous():
        strides, got = shape_text(tensor.stride()), shape_text(tensor.shape)
        raise ValueError(f"`{name}` must be contiguous, got strides {strides} for shape {got}; call .contiguous()")
    if tensor.dtype not in dtypes:
        wanted = " or ".join(map(str, dtypes))
        raise TypeError(f"`{name}` must be {wanted}, got {tensor.dtype}; convert it with .to({dtypes[0]})")
    if shape is not None and tuple(tensor.shape) != tuple(shape):
        raise ValueError(f"`{name}` must have shape {axes} = {shape_text(shape)}, got {shape_text(tensor.shape)}")
    return tensor


def check_denoised(denoised: Tensor, shape: Sequence[int], device: torch.device | None = None) -> None:
    """ValueError unless kernels can read what a prior returned: its memory is taken as it is."""
    wrong = denoised.shape != shape or denoised.dtype != torch.float32 or not denoised.is_contiguous()
    if wrong or (device is not None and denoised.device != device):
        where = "" if device is None else f" on {device}"
        raise ValueError(
            f"the prior must return a contiguous float32 tensor{where} of shape {tuple(shape)}, got {denoised.dtype} "
            f"on {denoised.device} of shape {tuple(denoised.shape)} with strides {denoised.stride()}"
        )
