"""The arithmetic of the operators: the compiled kernel where it applies, else the same in plain torch.

Every function takes ``backend``: ``"auto"`` uses the kernel for float32 tensors in CPU memory that autograd does not
follow, ``"cpu"`` insists on it, ``"torch"`` never uses it. The torch forms are complete: any device, float32 and
float64, differentiable.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from types import ModuleType

import torch
from torch import Tensor, nn

from ._checks import check_choice, shape_text

__all__ = [
    "BACKENDS",
    "BOUNDARIES",
    "available",
    "block_average",
    "block_average_adjoint",
    "block_counts",
    "block_repeat",
    "boundary_index",
    "fold",
    "mask",
    "pad",
    "separable_blur",
    "spectral",
    "unavailable_reason",
    "uses_core",
]

BACKENDS = ("auto", "cpu", "torch")
BOUNDARIES = ("circular", "reflect", "replicate")


def _load() -> tuple[ModuleType | None, str]:
    try:
        return importlib.import_module("rmp_fast._core"), ""
    except ImportError as error:
        return None, str(error)


_core, _reason = _load()


def available() -> bool:
    """Whether the compiled extension could be imported."""
    return _core is not None


def unavailable_reason() -> str:
    """Why the compiled extension could not be imported; empty if it was."""
    return _reason


def uses_core(backend: str, *tensors: Tensor) -> bool:
    """Whether the kernel computes on these tensors.

    Raises:
        ValueError: an unknown ``backend``.
        RuntimeError: ``backend`` is "cpu" and the extension is missing or cannot take these tensors.
    """
    check_choice("backend", backend, BACKENDS)
    if backend == "torch":
        return False
    if _core is None:
        if backend == "cpu":
            raise RuntimeError(f"the compiled extension is not available ({_reason}); use backend='torch'")
        return False
    followed = torch.is_grad_enabled() and any(t.requires_grad for t in tensors)
    suits = all(t.device.type == "cpu" and t.dtype in (torch.float32, torch.complex64) for t in tensors)
    if suits and not followed and not torch.compiler.is_compiling():
        return True
    if backend == "cpu":
        kinds = ", ".join(f"{t.dtype} on {t.device}{' with grad' if t.requires_grad else ''}" for t in tensors)
        raise RuntimeError(f"backend 'cpu' computes float32 tensors in CPU memory without autograd, got {kinds}")
    return False


def _extension() -> ModuleType:
    assert _core is not None
    return _core


def mask(x: Tensor, mask: Tensor, *, backend: str = "auto") -> Tensor:
    """``x`` where ``mask`` is nonzero, else 0 (also where ``x`` is not finite).

    Args:
        x: (B, *item).
        mask: uint8 or bool (1 or B, *item).
    """
    if mask.shape[1:] != x.shape[1:] or mask.shape[0] not in (1, x.shape[0]):
        expected, got = shape_text(("1 or B", *x.shape[1:])), shape_text(mask.shape)
        raise ValueError(f"`mask` must have shape {expected} for images {shape_text(x.shape)}, got {got}")
    if uses_core(backend, x):
        out = torch.empty_like(x, memory_format=torch.contiguous_format)
        _extension().mask(x.detach().contiguous(), mask.to(torch.uint8).contiguous(), out)
        return out
    return torch.where(mask.bool(), x, 0)


def block_counts(size: Sequence[int], factor: int, device: torch.device | None = None) -> Tensor:
    """Pixels per block, (ceil(H / factor), ceil(W / factor)), of images of ``size`` = (H, W); float32."""
    rows, columns = (
        (n - torch.arange(0, n, factor, dtype=torch.float32, device=device)).clamp(max=factor) for n in size
    )
    return rows[:, None] * columns


def block_repeat(blocks: Tensor, factor: int, size: Sequence[int]) -> Tensor:
    """Every block's value (B, C, ceil(H / factor), ceil(W / factor)) on all its pixels: (B, C, H, W)."""
    batch, channels, rows, columns = blocks.shape
    spread = blocks[:, :, :, None, :, None].expand(-1, -1, -1, factor, -1, factor)
    image = spread.reshape(batch, channels, rows * factor, columns * factor)
    return image[:, :, : size[0], : size[1]].contiguous()


def block_average(x: Tensor, factor: int, *, backend: str = "auto") -> Tensor:
    """Means over blocks of ``factor`` x ``factor`` cut from the top left, the last ones smaller where needed.

    (B, C, H, W) -> (B, C, ceil(H / factor), ceil(W / factor)).
    """
    if uses_core(backend, x):
        batch, channels, height, width = x.shape
        out = x.new_empty(batch, channels, -(-height // factor), -(-width // factor))
        _extension().block_average(x.detach().contiguous(), factor, out)
        return out
    return nn.functional.avg_pool2d(x, factor, ceil_mode=True, count_include_pad=False)


def block_average_adjoint(y: Tensor, factor: int, size: Sequence[int], *, backend: str = "auto") -> Tensor:
    """The adjoint of :func:`block_average` on images of ``size`` = (H, W): every pixel gets its block's value / n."""
    if uses_core(backend, y):
        out = y.new_empty(*y.shape[:2], *size)
        _extension().block_average_adjoint(y.detach().contiguous(), factor, out)
        return out
    return block_repeat(y / block_counts(size, factor, y.device).to(y.dtype), factor, size)


def boundary_index(start: int, stop: int, n: int, boundary: str, device: torch.device | None = None) -> Tensor:
    """Which of n samples stands at positions start .. stop - 1, however far outside.

    circular: ... b c | a b c | a b ...; reflect: ... b a | a b c | c b ... (the edge is repeated); replicate:
    ... a a | a b c | c c ...
    """
    position = torch.arange(start, stop, device=device)
    if boundary == "circular":
        return position.remainder(n)
    if boundary == "replicate":
        return position.clamp(0, n - 1)
    position = position.remainder(2 * n)
    return torch.minimum(position, 2 * n - 1 - position)


def pad(x: Tensor, dim: int, before: int, after: int, boundary: str) -> Tensor:
    """``x`` continued along ``dim`` by any number of samples."""
    n = x.shape[dim]
    return x.index_select(dim, boundary_index(-before, n + after, n, boundary, x.device))


def fold(x: Tensor, dim: int, before: int, after: int, boundary: str) -> Tensor:
    """The adjoint of :func:`pad`: every continued sample is added to the one it was copied from."""
    n = x.shape[dim] - before - after
    shape = list(x.shape)
    shape[dim] = n
    return x.new_zeros(shape).index_add(dim, boundary_index(-before, n + after, n, boundary, x.device), x)


def separable_blur(
    x: Tensor,
    taps_vertical: Tensor,
    taps_horizontal: Tensor,
    boundary: str,
    *,
    adjoint: bool = False,
    backend: str = "auto",
) -> Tensor:
    """Convolution along both axes, out[i] = sum_k taps[k] x[i + r - k] with r = len // 2, or its exact adjoint.

    Args:
        x: (B, C, H, W).
        taps_vertical, taps_horizontal: 1-D, any odd length, also longer than the image.
        boundary: as in :func:`boundary_index`.
    """
    check_choice("boundary", boundary, BOUNDARIES)
    if uses_core(backend, x):
        out = torch.empty_like(x, memory_format=torch.contiguous_format)
        vertical, horizontal = (t.to(torch.float32).contiguous() for t in (taps_vertical, taps_horizontal))
        _extension().separable_blur(x.detach().contiguous(), vertical, horizontal, boundary, adjoint, out)
        return out
    planes = x.reshape(-1, 1, *x.shape[-2:])
    for taps, dim in ((taps_vertical, 2), (taps_horizontal, 3)):
        planes = _blur_axis(planes, taps.to(x), dim, boundary, adjoint)
    return planes.reshape(x.shape)


def _blur_axis(planes: Tensor, taps: Tensor, dim: int, boundary: str, adjoint: bool) -> Tensor:
    radius = taps.numel() // 2
    weight = taps.flip(0).reshape((1, 1, -1, 1) if dim == 2 else (1, 1, 1, -1))
    if adjoint:
        return fold(nn.functional.conv_transpose2d(planes, weight), dim, radius, radius, boundary)
    return nn.functional.conv2d(pad(planes, dim, radius, radius, boundary), weight)


def spectral(
    c: Tensor,
    energy: Tensor,
    data: Tensor,
    noise_ratio: Tensor,
    *,
    update: bool,
    out: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """delta = (data - energy c) / max(energy + noise_ratio, tiny), the pointwise part of a spectral form.

    Args:
        c: coefficients (B, ...), real or complex.
        energy: S^2, real (1 or B, ...).
        data: S U^H y, like ``c``.
        noise_ratio: q = noise_std^2 / r2 per item (B,).
        update: return delta; else c + delta.
        out: where to write the result, contiguous, like ``c`` and possibly ``c`` itself.
    """
    if uses_core(backend, c, data, energy):
        out = torch.empty_like(c, memory_format=torch.contiguous_format) if out is None else out
        flat = [t.detach().contiguous().flatten(1) for t in (c, energy, data)]
        ratio = noise_ratio.to(torch.float32).contiguous()
        _extension().spectral(*flat, ratio, out.flatten(1), update)
        return out
    total = energy + noise_ratio.to(energy).reshape(-1, *[1] * (c.ndim - 1))
    delta = (data - energy * c) / total.clamp(min=torch.finfo(energy.dtype).tiny)
    result = delta if update else c + delta
    return result if out is None else out.copy_(result)
