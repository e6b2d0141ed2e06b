"""The extension's CUDA kernels as functions of tensors on one device, queued on torch's current stream there."""

from __future__ import annotations

import functools
import importlib
from types import ModuleType

import torch
from torch import Tensor

__all__ = [
    "block_average",
    "block_average_adjoint",
    "clip_gradient",
    "mask",
    "normals",
    "separable_blur",
    "spectral",
    "squares_of",
    "stream",
    "unavailable_reason",
]

_CHUNK = 4096  # kChunk of kernels/params.h


@functools.cache
def _extension() -> ModuleType:
    return importlib.import_module("rmp_fast._core")


@functools.cache
def _problem() -> str | None:
    try:
        problem: str | None = _extension().cuda_problem()
    except ImportError as error:
        return f"the compiled extension cannot be loaded: {error}"
    if torch.cuda.is_available():
        return problem
    found = "torch was built without CUDA" if torch.version.cuda is None else "torch finds no CUDA device or driver"
    return found if problem is None else f"{problem}; {found}"


def unavailable_reason(device: torch.device) -> str | None:
    """Why the CUDA kernels cannot work on tensors of that device, or None if they can."""
    problem = _problem()
    if problem is None and device.type != "cuda":
        problem = f"they run on a CUDA device, not on {device}; pass device='cuda'"
    return problem


def stream(device: torch.device) -> int:
    """The raw pointer of torch's current stream on a CUDA device; 0 for others."""
    return torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else 0


def mask(x: Tensor, mask: Tensor, out: Tensor) -> None:
    """See ``_core``, here and below."""
    _extension().mask(x, mask, out, cuda_stream=stream(x.device))


def block_average(x: Tensor, factor: int, out: Tensor) -> None:
    """Means of factor x factor blocks."""
    _extension().block_average(x, factor, out, cuda_stream=stream(x.device))


def block_average_adjoint(y: Tensor, factor: int, out: Tensor) -> None:
    """Every value over its block, divided by the block's pixels."""
    _extension().block_average_adjoint(y, factor, out, cuda_stream=stream(y.device))


def separable_blur(x: Tensor, taps_v: Tensor, taps_h: Tensor, boundary: str, adjoint: bool, out: Tensor) -> None:
    """Blur along columns and rows; torch's allocator lends the memory between the two passes."""
    scratch = torch.empty_like(out)
    _extension().separable_blur(
        x, taps_v, taps_h, boundary, adjoint, out, scratch=scratch, cuda_stream=stream(x.device)
    )


def spectral(c: Tensor, energy: Tensor, data: Tensor, noise_ratio: Tensor, out: Tensor, update: bool) -> None:
    """The pointwise part of a spectral form."""
    _extension().spectral(c, energy, data, noise_ratio, out, update, cuda_stream=stream(c.device))


def squares_of(gradient: Tensor, direction: Tensor | None, residual: Tensor | None) -> Tensor:
    """The memory that a :func:`clip_gradient` of these needs, (B, chunks, 3) float64."""
    sizes = [t.shape[1:].numel() for t in (direction, residual) if t is not None]
    chunks = -(-max(sizes, default=0) // _CHUNK)
    return torch.empty(gradient.shape[0], chunks, 3, dtype=torch.float64, device=gradient.device)


def clip_gradient(
    gradient: Tensor, direction: Tensor | None, limit: Tensor | None, weight: Tensor | None, residual: Tensor | None,
    out: Tensor,
) -> None:  # fmt: skip
    """A gradient held to a length; torch's allocator lends the memory of the sums between the two passes."""
    scratch = squares_of(gradient, direction, residual)
    _extension().clip_gradient(
        gradient, direction, limit, weight, residual, out, scratch=scratch, cuda_stream=stream(gradient.device)
    )


def normals(seeds: Tensor, evaluation: int, stream_index: int, out: Tensor) -> None:
    """The standard normals that a step makes."""
    _extension().normals(seeds, evaluation, stream_index, out, cuda_stream=stream(out.device))
