"""Averages over blocks of pixels, and their adjoint."""

import triton
import triton.language as tl

from .blocks import block_length, block_sums


@triton.jit(do_not_specialize=["height", "width", "tiles"])
def block_average(
    x_ptr,  # (planes, height, width)
    out_ptr,  # (planes, bands, blocks of a band)
    height,
    width,  # with ALIGNED a quarter of it
    tiles,  # of one band
    FACTOR: tl.constexpr,  # at most the larger of height and width
    LANES: tl.constexpr,  # a power of two >= FACTOR: columns that are read at once for one block
    BLOCKS: tl.constexpr,  # of a tile
    ALIGNED: tl.constexpr,
):
    """See ``_core.block_average``. A program makes BLOCKS neighbouring averages of one band."""
    program = tl.program_id(0)
    if ALIGNED:
        width = width * 4
    band = program // tiles  # counted through the planes
    first = program % tiles * BLOCKS
    bands = tl.cdiv(height, FACTOR)
    blocks = tl.cdiv(width, FACTOR)
    rows = block_length(band % bands, FACTOR, height)
    row_ptr = x_ptr + ((band // bands).to(tl.int64) * height + band % bands * FACTOR) * width
    lane = tl.arange(0, BLOCKS * LANES)
    if LANES == FACTOR:
        column = first * FACTOR + lane
        inside = column < width
    else:
        column = (first + lane // LANES) * FACTOR + lane % LANES
        inside = (column < width) & (lane % LANES < FACTOR)
    total = tl.zeros([BLOCKS * LANES], tl.float32)
    if FACTOR <= 16:
        for row in tl.static_range(FACTOR):
            total += tl.load(row_ptr + row * width + column, inside & (rows > row), other=0.0)
    else:
        for row in range(0, rows):
            total += tl.load(row_ptr + row * width + column, inside, other=0.0)
    block = first + tl.arange(0, BLOCKS)
    pixels = tl.maximum(rows * block_length(block, FACTOR, width), 1).to(tl.float32)
    tl.store(out_ptr + band.to(tl.int64) * blocks + block, block_sums(total, LANES) / pixels, block < blocks)


@triton.jit(do_not_specialize=["height", "width", "factor", "tiles"])
def block_average_adjoint(
    y_ptr,  # (planes, bands, blocks of a band)
    out_ptr,  # (planes, height, width)
    height,
    width,
    factor,
    tiles,  # of one plane
    ALIGNED: tl.constexpr,  # planes begin at multiples of four elements
    COLUMNS: tl.constexpr,
):
    """See ``_core.block_average_adjoint``."""
    program = tl.program_id(0)
    plane = (program // tiles).to(tl.int64)
    at = program % tiles * COLUMNS + tl.arange(0, COLUMNS)
    size = height * width
    if ALIGNED:
        size = size // 4 * 4
    inside = at < size
    line = at // width // factor
    block = at % width // factor
    pixels = block_length(line, factor, height) * block_length(block, factor, width)
    blocks = tl.cdiv(width, factor)
    y = tl.load(y_ptr + plane * (tl.cdiv(height, factor) * blocks) + line * blocks + block, inside, other=0.0)
    tl.store(out_ptr + plane * size + at, y / tl.maximum(pixels, 1).to(tl.float32), inside)
