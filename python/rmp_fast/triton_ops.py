"""The Triton kernels on torch tensors: the functions of ``_core`` under the same names, with the same arguments.

Tensors are contiguous float32 on one CUDA or ROCm device; or on the CPU where TRITON_INTERPRET=1 was set before Python
started, which interprets the kernels for tests, slowly. Importing this module does not import triton.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import math
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ._checks import check_buffer, check_choice, shape_text

__all__ = [
    "COMPILE_OPTIONS",
    "Launch",
    "as_bytes",
    "averages",
    "block_average",
    "block_average_adjoint",
    "check_shared",
    "check_size",
    "clip_gradient",
    "interpreted",
    "item_size",
    "kernels",
    "mask",
    "normals",
    "power_of_two",
    "quarter",
    "separable_blur",
    "signed",
    "spectral",
    "tile_of",
    "tiles_of",
    "unavailable_reason",
    "warp_size",
]

BOUNDARIES = ("circular", "reflect", "replicate")  # in the order of their numbers in the kernels

#: As on the CPU, products and sums are fused where the formulas ask for it and nowhere else.
COMPILE_OPTIONS = {"enable_fp_fusion": False}

_FLOAT = torch.float32
_LARGEST = 2**31 - 2048  # elements of one item or plane, which the kernels count in 32 bits


def interpreted() -> bool:
    """Whether triton interprets its kernels here, on the CPU."""
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "yes", "on", "y")


@functools.cache
def _missing() -> str | None:
    if importlib.util.find_spec("triton") is None:
        return "the package triton is not installed"
    if not (os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")):
        return "triton needs a C compiler at run time: install gcc or clang, or set CC"
    return None


def unavailable_reason(device: torch.device) -> str | None:
    """Why the kernels cannot run on ``device``, or None."""
    missing = _missing()
    if missing is not None:
        return missing
    if device.type == "cpu":
        if interpreted():
            return None
        return "its kernels run on CUDA and ROCm devices, not on the CPU (unless TRITON_INTERPRET=1 interprets them)"
    return None if device.type == "cuda" else f"its kernels run on CUDA and ROCm devices, not on {device}"


@functools.cache
def kernels(file: str) -> Any:
    """The module of kernels/triton of that name."""
    return importlib.import_module(f"rmp_fast._kernels.triton.{file}")


@dataclass(frozen=True)
class Launch:
    """A kernel with most of its arguments, to run on the current stream: ``programs`` programs of ``warps`` warps."""

    kernel: Any
    programs: int
    warps: int
    device: torch.device
    arguments: dict[str, Any]

    def run(self, **others: Any) -> None:
        """Run it, with the arguments that were left open."""
        if self.programs == 0:
            return
        options = {"num_warps": self.warps, **COMPILE_OPTIONS}
        if self.device.type == "cuda" and self.device.index not in (None, torch.cuda.current_device()):
            with torch.cuda.device(self.device):
                self.kernel[(self.programs,)](**self.arguments, **others, **options)
        else:
            self.kernel[(self.programs,)](**self.arguments, **others, **options)

    def compile(self, **others: Any) -> None:
        """Compile what :meth:`run` would run."""
        if self.programs and self.device.type == "cuda":
            with torch.cuda.device(self.device):
                options = {"num_warps": self.warps, **COMPILE_OPTIONS}
                self.kernel.warmup(grid=(self.programs,), **self.arguments, **others, **options)


def power_of_two(n: int) -> int:
    """The smallest power of two >= n, at least 1."""
    return 1 << max(0, n - 1).bit_length()


def warp_size(device: torch.device) -> int:
    """Threads of a warp: 32, or 64 on some of AMD's."""
    return torch.cuda.get_device_properties(device).warp_size if device.type == "cuda" else 32


def tile_of(size: int, device: torch.device, each: int = 8) -> tuple[int, int]:
    """Elements that one program takes of a row of ``size``, and its warps, for ``each`` elements per thread.

    Eight make two accesses of 128 bits per tensor, so that enough bytes are under way with half of the threads that fit
    on a multiprocessor.
    """
    threads = warp_size(device)
    elements = max(4 * threads, min(1024, power_of_two(size)))
    return elements, max(1, elements // (each * threads))


def quarter(n: int) -> tuple[int, bool]:
    """A length as the kernels take it: n / 4 and True where rows of n begin at multiples of four elements.

    Triton sees then that accesses may be 128 bits wide, without a new kernel for every length.
    """
    return (n // 4, True) if n % 4 == 0 else (n, False)


def tiles_of(size: int, device: torch.device) -> tuple[int, int, dict[str, Any]]:
    """Tiles of an item of ``size`` that counts as one row, their warps, and what a kernel is told about them."""
    columns, warps = tile_of(size, device)
    length, aligned = quarter(size)
    tiles = -(-size // columns)
    return tiles, warps, {"size": length, "tiles": tiles, "ALIGNED": aligned, "COLUMNS": columns}


def as_bytes(mask: Tensor) -> Tensor:
    """A uint8 view."""
    return mask.view(torch.uint8) if mask.dtype == torch.bool else mask


def item_size(tensor: Tensor) -> int:
    """Elements per item."""
    return math.prod(tensor.shape[1:])


def check_size(name: str, elements: int) -> None:
    """ValueError where the kernels cannot count the elements of an item or plane."""
    if elements > _LARGEST:
        raise ValueError(f"`{name}` must have at most {_LARGEST} elements per item, got {elements}")


def check_shared(name: str, value: object, items: int, size: int, *dtypes: torch.dtype, device: torch.device) -> Tensor:
    """A tensor (1 or B, ...) of ``size`` elements per item."""
    tensor = check_buffer(name, value, *dtypes, device=device)
    if tensor.ndim == 0 or tensor.shape[0] not in (1, items) or item_size(tensor) != size:
        raise ValueError(
            f"`{name}` must have shape (1 or B, ...) = (1 or {items}, ...) with {size} elements per item, "
            f"got {shape_text(tensor.shape)}"
        )
    return tensor


def _axes(name: str, tensor: Tensor, least: int, axes: str) -> Tensor:
    if tensor.ndim < least:
        raise ValueError(f"`{name}` must have shape {axes}, got {shape_text(tensor.shape)}")
    return tensor


def _items(name: str, value: object, *dtypes: torch.dtype) -> tuple[Tensor, int, int]:
    tensor = _axes(name, check_buffer(name, value, *dtypes), 1, "(B, ...)")
    check_size(name, item_size(tensor))
    return tensor, tensor.shape[0], item_size(tensor)


def mask(x: Tensor, mask: Tensor, out: Tensor) -> None:
    """See ``_core.mask``."""
    _, items, size = _items("x", x, _FLOAT)
    check_buffer("out", out, _FLOAT, shape=x.shape, axes="(B, ...)", device=x.device)
    check_shared("mask", mask, items, size, torch.uint8, torch.bool, device=x.device)
    tiles, warps, tiling = tiles_of(size, x.device)
    arguments = {"x_ptr": x, "mask_ptr": as_bytes(mask), "out_ptr": out, "SHARED_MASK": len(mask) == 1, **tiling}
    Launch(kernels("mask").mask, items * tiles, warps, x.device, arguments).run()


def _check_blocks(image: Tensor, image_name: str, averages: Tensor, name: str, factor: int) -> tuple[int, int, int]:
    _axes(image_name, check_buffer(image_name, image, _FLOAT), 2, "(..., H, W)")
    check_buffer(name, averages, _FLOAT, device=image.device)
    if factor < 1:
        raise ValueError(f"`factor` must be at least 1, got {factor}")
    height, width = image.shape[-2:]
    expected = (*image.shape[:-2], -(-height // factor), -(-width // factor))
    check_buffer(name, averages, _FLOAT, shape=expected, axes="(..., ceil(H / factor), ceil(W / factor))")
    check_size(image_name, height * width)
    return height, width, min(factor, max(height, width))


def averages(shape: Sequence[int], factor: int, out: Tensor) -> Launch:
    """The launch of :func:`block_average`, without ``x_ptr``, for images (..., H, W) of this shape."""
    height, width = shape[-2:]
    lanes = power_of_two(factor)
    blocks = max(1, min(1024, power_of_two(width)) // lanes)
    length, aligned = quarter(width)
    tiles = -(-width // (factor * blocks))
    arguments = {
        "out_ptr": out, "height": height, "width": length, "tiles": tiles, "FACTOR": factor, "LANES": lanes,
        "BLOCKS": blocks, "ALIGNED": aligned,
    }  # fmt: skip
    bands = out.shape[-2] * math.prod(shape[:-2])
    warps = max(1, min(128, blocks * lanes // 4) // warp_size(out.device))
    return Launch(kernels("block_average").block_average, bands * tiles, warps, out.device, arguments)


def block_average(x: Tensor, factor: int, out: Tensor) -> None:
    """See ``_core.block_average``."""
    _, _, factor = _check_blocks(x, "x", out, "out", factor)
    averages(x.shape, factor, out).run(x_ptr=x)


def block_average_adjoint(y: Tensor, factor: int, out: Tensor) -> None:
    """See ``_core.block_average_adjoint``."""
    height, width, factor = _check_blocks(out, "out", y, "y", factor)
    size = height * width
    columns, warps = tile_of(size, y.device, each=4)  # the places of the blocks take many registers
    tiles = -(-size // columns)
    arguments = {
        "y_ptr": y, "out_ptr": out, "height": height, "width": width, "factor": factor, "tiles": tiles,
        "ALIGNED": size % 4 == 0, "COLUMNS": columns,
    }  # fmt: skip
    programs = math.prod(out.shape[:-2]) * tiles
    Launch(kernels("block_average").block_average_adjoint, programs, warps, y.device, arguments).run()


def separable_blur(x: Tensor, taps_v: Tensor, taps_h: Tensor, boundary: str, adjoint: bool, out: Tensor) -> None:
    """See ``_core.separable_blur``; allocates one image for what the first pass leaves to the second."""
    _axes("x", check_buffer("x", x, _FLOAT), 2, "(..., H, W)")
    check_buffer("out", out, _FLOAT, shape=x.shape, axes="(..., H, W)", device=x.device)
    for name, taps in (("taps_v", taps_v), ("taps_h", taps_h)):
        check_buffer(name, taps, _FLOAT, device=x.device)
        if taps.ndim != 1 or taps.numel() % 2 == 0:
            raise ValueError(f"`{name}` must have shape (K,) with odd K, got {shape_text(taps.shape)}")
    check_choice("boundary", boundary, BOUNDARIES)
    height, width = x.shape[-2:]
    check_size("x", height * width)
    if x.numel() == 0:
        return
    lines = x.numel() // width
    columns = max(32, min(128, power_of_two(width)))
    # Four elements per thread: the adjoint keeps many positions in registers.
    rows, warps = 512 // columns, 128 // warp_size(x.device)
    tiles = -(-width // columns)
    length, aligned = quarter(width)
    between = torch.empty_like(x)
    passes = (
        (False, x, taps_h, between, -(-lines // rows), width),
        (True, between, taps_v, out, lines // height * -(-height // rows), height),
    )
    for vertical, source, taps, target, bands, axis in passes:
        radius = taps.numel() // 2
        arguments = {
            "x_ptr": source, "taps_ptr": taps, "out_ptr": target, "lines": lines, "height": height, "width": length,
            "radius": radius, "tiles": tiles, "VERTICAL": vertical, "BOUNDARY": BOUNDARIES.index(boundary),
            "ADJOINT": adjoint, "NEAR": radius <= axis, "ALIGNED": aligned, "ROWS": rows, "COLUMNS": columns,
        }  # fmt: skip
        Launch(kernels("separable_blur").blur_axis, bands * tiles, warps, x.device, arguments).run()


def spectral(c: Tensor, energy: Tensor, data: Tensor, noise_ratio: Tensor, out: Tensor, update: bool) -> None:
    """See ``_core.spectral``."""
    _, items, size = _items("c", c, _FLOAT, torch.complex64)
    for name, tensor in (("data", data), ("out", out)):
        check_buffer(name, tensor, c.dtype, shape=c.shape, axes="(B, ...)", device=c.device)
    check_shared("energy", energy, items, size, _FLOAT, device=c.device)
    check_buffer("noise_ratio", noise_ratio, _FLOAT, shape=(items,), axes="(B,)", device=c.device)
    if c.is_complex():
        c, data, out = (torch.view_as_real(t) for t in (c, data, out))
    floats = item_size(c)
    check_size("c", floats)
    tiles, warps, tiling = tiles_of(floats, c.device)
    arguments = {
        "coefficients_ptr": c, "energy_ptr": energy, "data_ptr": data, "noise_ratio_ptr": noise_ratio, "out_ptr": out,
        "COMPLEX": floats != size, "UPDATE": update, "SHARED_ENERGY": len(energy) == 1, **tiling,
    }  # fmt: skip
    Launch(kernels("spectral").spectral, items * tiles, warps, c.device, arguments).run()


def clip_gradient(
    gradient: Tensor, direction: Tensor | None, limit: Tensor | None, weight: Tensor | None, residual: Tensor | None,
    out: Tensor,
) -> None:  # fmt: skip
    """See ``_core.clip_gradient``; allocates the sums that the first kernel leaves to the second."""
    _, items, size = _items("gradient", gradient, _FLOAT)
    device = gradient.device
    check_buffer("out", out, _FLOAT, shape=gradient.shape, axes="(B, ...)", device=device)
    if len({direction is None, limit is None, weight is None}) > 1:
        raise ValueError("`direction`, `limit` and `weight` must be given together, or none of them")
    if direction is not None:
        check_buffer("direction", direction, _FLOAT, shape=gradient.shape, axes="(B, ...)", device=device)
        for name, numbers in (("limit", limit), ("weight", weight)):
            check_buffer(name, numbers, _FLOAT, shape=(items,), axes="(B,)", device=device)
    others = 0
    if residual is not None:
        check_buffer("residual", residual, _FLOAT, device=device)
        if residual.ndim == 0 or residual.shape[0] != items:
            raise ValueError(f"`residual` must have shape (B, ...) = ({items}, ...), got {shape_text(residual.shape)}")
        others = item_size(residual)
        check_size("residual", others)
    largest = max(size if direction is not None else 0, others)
    sums, squares = 0, None
    if largest:
        columns, warps = tile_of(largest, device)
        sums = -(-largest // columns)
        squares = torch.empty(items, sums, 3, dtype=torch.float64, device=device)
        lengths = [quarter(n) for n in (size, others)]
        arguments = {
            "gradient_ptr": gradient, "direction_ptr": direction, "residual_ptr": residual, "squares_ptr": squares,
            "size": lengths[0][0], "residual_size": lengths[1][0], "tiles": sums, "ALIGNED": lengths[0][1],
            "RESIDUAL_ALIGNED": lengths[1][1], "COLUMNS": columns,
        }  # fmt: skip
        Launch(kernels("clip_gradient").squares, items * sums, warps, device, arguments).run()
    tiles, warps, tiling = tiles_of(size, device)
    arguments = {
        "gradient_ptr": gradient, "limit_ptr": limit, "weight_ptr": weight, "squares_ptr": squares, "out_ptr": out,
        "sums": sums, "DIVIDED": residual is not None, **tiling,
    }  # fmt: skip
    Launch(kernels("clip_gradient").clip_gradient, items * tiles, warps, device, arguments).run()


def signed(counter: int) -> int:
    """A 32-bit counter as the signed number of the same bits: triton gives larger values another type."""
    return counter - 2**32 if counter >= 2**31 else counter


def normals(seeds: Tensor, evaluation: int, stream: int, out: Tensor) -> None:
    """See ``_core.normals``."""
    _, items, size = _items("out", out, _FLOAT)
    check_buffer("seeds", seeds, torch.int64, shape=(items,), axes="(B,)", device=out.device)
    tiles, warps, tiling = tiles_of(size, out.device)
    counters = {"evaluation": signed(evaluation), "stream": signed(stream)}
    arguments = {"seeds_ptr": seeds, "out_ptr": out, **counters, **tiling}
    Launch(kernels("normals").normals, items * tiles, warps, out.device, arguments).run()
