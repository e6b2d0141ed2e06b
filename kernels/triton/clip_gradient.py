"""Gradients held to a length: sums of squares by tiles, then a scaling that every program finds for itself."""

import triton
import triton.language as tl

from .formulas import gradient_scale


@triton.jit
def sum_of_squares(ptr, start, at, size):
    """The sum over a tile, in double: the square of a float is exact there, and always in range."""
    x = tl.load(ptr + start + at, at < size, other=0.0).to(tl.float64)
    return tl.sum(x * x)


@triton.jit(do_not_specialize=["size", "residual_size", "tiles"])
def squares(
    gradient_ptr,  # (items, size)
    direction_ptr,  # (items, size) or None: the gradient is not needed either
    residual_ptr,  # (items, residual_size) or None
    squares_ptr,  # (items, tiles, 3) float64, of the gradient, the direction and the residual
    size,  # of an item; with ALIGNED a quarter of it
    residual_size,  # of an item; with RESIDUAL_ALIGNED a quarter of it
    tiles,  # of the larger item
    ALIGNED: tl.constexpr,
    RESIDUAL_ALIGNED: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """The sums that ``clip_gradient`` takes its norms from; nothing is written in the place of what is not given."""
    program = tl.program_id(0)
    if ALIGNED:
        size = size * 4
    if RESIDUAL_ALIGNED:
        residual_size = residual_size * 4
    item = (program // tiles).to(tl.int64)
    at = program % tiles * COLUMNS + tl.arange(0, COLUMNS)
    sums_ptr = squares_ptr + program.to(tl.int64) * 3
    if direction_ptr is not None:
        tl.store(sums_ptr, sum_of_squares(gradient_ptr, item * size, at, size))
        tl.store(sums_ptr + 1, sum_of_squares(direction_ptr, item * size, at, size))
    if residual_ptr is not None:
        tl.store(sums_ptr + 2, sum_of_squares(residual_ptr, item * residual_size, at, residual_size))


@triton.jit
def total(squares_ptr, sums, COLUMN: tl.constexpr):
    """The sum over one item's tiles."""
    lane = tl.arange(0, 256)
    added = tl.zeros([256], tl.float64)
    for first in range(0, sums, 256):
        here = first + lane
        added += tl.load(squares_ptr + here * 3 + COLUMN, here < sums, other=0.0)
    return tl.sum(added)


@triton.jit(do_not_specialize=["size", "tiles", "sums"])
def clip_gradient(
    gradient_ptr,  # (items, size)
    limit_ptr,  # (items) or None, as weight_ptr
    weight_ptr,  # (items)
    squares_ptr,  # (items, sums, 3) float64, what `squares` left, or None: nothing is held to a length or divided
    out_ptr,  # (items, size), may be gradient_ptr
    size,  # of an item; with ALIGNED a quarter of it
    tiles,  # of one item
    sums,  # of one item
    ALIGNED: tl.constexpr,
    COLUMNS: tl.constexpr,
    DIVIDED: tl.constexpr,  # by the norm of the residual
):
    """See ``_core.clip_gradient``."""
    program = tl.program_id(0)
    if ALIGNED:
        size = size * 4
    item = (program // tiles).to(tl.int64)
    start = item * size
    at = program % tiles * COLUMNS + tl.arange(0, COLUMNS)
    gradient = tl.load(gradient_ptr + start + at, at < size, other=0.0)
    if squares_ptr is not None:
        squares_ptr += item * sums * 3
        length, most, norm = tl.zeros([], tl.float64), tl.zeros([], tl.float64), tl.zeros([], tl.float64)
        if limit_ptr is not None:
            length = tl.load(weight_ptr + item).to(tl.float64) * tl.sqrt(total(squares_ptr, sums, 0))
            most = tl.load(limit_ptr + item).to(tl.float64) * tl.sqrt(total(squares_ptr, sums, 1))
        if DIVIDED:
            norm = tl.sqrt(total(squares_ptr, sums, 2))
        gradient *= gradient_scale(length, most, norm)
    tl.store(out_ptr + start + at, gradient, at < size)
