"""One pass over the images: condition the denoised image on the measurement, move the mean, perturb it for the next.

A program handles a tile of ROWS x COLUMNS elements of one item. Where blocks of ROWS x ROWS are averaged these are a
part of one band of blocks; otherwise ROWS is 1 and the item counts as one long row. An isotropic learned precision
needs a sum over the whole item before it can perturb, so there the perturbation is a second kernel.
"""

import triton
import triton.language as tl

from .blocks import block_length, block_repeat, block_sums
from .formulas import conditioned, group_normals, is_finite, learned, precision_ratio, stepped

# Columns of `looks` (kernels/params.h).
TO_PREVIOUS = tl.constexpr(0)
TO_DENOISED = tl.constexpr(1)
NEXT_STD = tl.constexpr(2)
NOISE_RATIO = tl.constexpr(3)
SHARE = tl.constexpr(4)
NEXT_SHARE = tl.constexpr(5)
STD = tl.constexpr(6)
RATE = tl.constexpr(7)


@triton.jit
def coefficient(looks_ptr, item, COLUMN: tl.constexpr):
    """An item's coefficient of this look."""
    return tl.load(looks_ptr + item * 8 + COLUMN)


@triton.jit
def write_input(mean, scale, e, input_ptr, mirror_ptr, start, at, inside):
    """Write mean + scale e, and its mirror image."""
    tl.store(input_ptr + start + at, tl.fma(scale, e, mean), inside)
    if mirror_ptr is not None:
        tl.store(mirror_ptr + start + at, tl.fma(-scale, e, mean), inside)


@triton.jit
def change_of_tile(denoised, y, pixels, noise_ratio):
    """(y - mean of the block) / (1 + n q) on every column of a tile that is one band of blocks."""
    FACTOR: tl.constexpr = denoised.shape[0]
    change = (y - block_sums(tl.sum(denoised, 0), FACTOR) / pixels) / (1.0 + pixels * noise_ratio)
    return block_repeat(change, FACTOR)[None, :]


# What the precision is.
FIXED = tl.constexpr(0)
ISOTROPIC = tl.constexpr(1)
DIAGONAL = tl.constexpr(2)

# Values that change from look to look, or from plan to plan, must not make another kernel.
_VALUES = ["size", "height", "width", "factor", "tiles", "evaluation", "stream"]


@triton.jit(do_not_specialize=_VALUES)
def natural_step(
    previous_ptr,  # (B, N)
    mean_ptr,  # (B, N)
    next_mean_ptr,  # (B, N), may be mean_ptr
    input_ptr,  # (B, N)
    input_mirror_ptr,  # (B, N) or None
    denoised_ptr,  # (B, N)
    denoised_mirror_ptr,  # (B, N) or None: not antithetic
    looks_ptr,  # (B, 8)
    seeds_ptr,  # (B)
    ok_ptr,  # (B) uint8
    curvature_ptr,  # None, (B) or (B, N) as PRECISION is fixed, isotropic or diagonal
    curvature_before_ptr,  # (B), written where it is isotropic
    partial_ptr,  # (B, tiles of an item), likewise
    y_ptr,  # (B, N), for blocks (B, planes, bands, blocks of a band), for gradients g, or None
    gradient_mirror_ptr,  # (B, N), the gradients of `denoised_mirror`, or None
    mask_ptr,  # (1 or B, N) uint8, or None
    averages_ptr,  # block averages of `denoised`, like y, where ROWS is 1; else None
    averages_mirror_ptr,  # of the mirrored ones
    size,  # N; with ALIGNED a quarter of it
    height,  # of a plane, for blocks
    width,  # of a plane, for blocks; with ALIGNED and ROWS > 1 a quarter of it
    factor,  # of these blocks, where `averages` are given
    tiles,  # of one item
    evaluation,
    stream,
    DRAWN: tl.constexpr,
    GRADIENT: tl.constexpr,  # d + q g instead of d + gain A^T (y - A d)
    PRECISION: tl.constexpr,
    SHARED_MASK: tl.constexpr,
    ALIGNED: tl.constexpr,  # every row begins at a multiple of four elements
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """A look; see ``_core.NaturalStep``."""
    program = tl.program_id(0)
    item = program // tiles
    tile = program % tiles
    if ALIGNED:
        size = size * 4
    if ROWS == 1:
        left = tile * COLUMNS
        at = (left + tl.arange(0, COLUMNS))[None, :]
        inside = at < size
        groups = (left // 4 + tl.arange(0, COLUMNS // 4))[None, :]
    else:
        if ALIGNED:
            width = width * 4
        across = tl.cdiv(width, COLUMNS)
        band = tile // across  # counted through the planes
        left = tile % across * COLUMNS
        column = left + tl.arange(0, COLUMNS)
        bands = tl.cdiv(height, ROWS)
        line = band % bands * ROWS + tl.arange(0, ROWS)
        row = (band // bands * height + line)[:, None]
        at = row * width + column[None, :]
        inside = (line < height)[:, None] & (column < width)[None, :]
        groups = row * (width // 4) + (left // 4 + tl.arange(0, COLUMNS // 4))[None, :]
    start = item.to(tl.int64) * size

    d = tl.load(denoised_ptr + start + at, inside, other=0.0)
    if denoised_mirror_ptr is not None:
        down = tl.load(denoised_mirror_ptr + start + at, inside, other=0.0)
    if y_ptr is not None:
        noise_ratio = coefficient(looks_ptr, item, NOISE_RATIO)
        if ROWS > 1:
            blocks = tl.cdiv(width, ROWS)
            block = left // ROWS + tl.arange(0, COLUMNS // ROWS)
            first = (item.to(tl.int64) * (tiles // across) + band) * blocks
            y = tl.load(y_ptr + first + block, block < blocks, other=0.0)
            pixels = block_length(band % bands, ROWS, height) * block_length(block, ROWS, width)
            pixels = tl.maximum(pixels, 1).to(tl.float32)
            d += change_of_tile(d, y, pixels, noise_ratio)
            if denoised_mirror_ptr is not None:
                down += change_of_tile(down, y, pixels, noise_ratio)
        elif averages_ptr is not None:
            line = at // width  # counted through the planes
            plane = line // height
            line = line % height // factor
            block = at % width // factor
            pixels = block_length(line, factor, height) * block_length(block, factor, width)
            bands = tl.cdiv(height, factor)
            blocks = tl.cdiv(width, factor)
            place = (plane * bands + line) * blocks + block
            place += item.to(tl.int64) * (size // (height * width)) * bands * blocks
            y = tl.load(y_ptr + place, inside, other=0.0)
            gain = 1.0 / (1.0 + pixels.to(tl.float32) * noise_ratio)
            d += (y - tl.load(averages_ptr + place, inside, other=0.0)) * gain
            if denoised_mirror_ptr is not None:
                down += (y - tl.load(averages_mirror_ptr + place, inside, other=0.0)) * gain
        elif GRADIENT:
            d = tl.fma(noise_ratio, tl.load(y_ptr + start + at, inside, other=0.0), d)
            if denoised_mirror_ptr is not None:
                down = tl.fma(noise_ratio, tl.load(gradient_mirror_ptr + start + at, inside, other=0.0), down)
        else:
            y = tl.load(y_ptr + start + at, inside, other=0.0)
            gain = 1.0 / (1.0 + noise_ratio)
            if mask_ptr is not None:
                seen = tl.load(mask_ptr + (at if SHARED_MASK else start + at), inside, other=0) != 0
                d = tl.where(seen, conditioned(d, y, gain), d)
                if denoised_mirror_ptr is not None:
                    down = tl.where(seen, conditioned(down, y, gain), down)
            else:
                d = conditioned(d, y, gain)
                if denoised_mirror_ptr is not None:
                    down = conditioned(down, y, gain)

    mean = tl.load(mean_ptr + start + at, inside, other=0.0)
    probe = d - mean
    if denoised_mirror_ptr is not None:
        probe = (d - down) * 0.5
        d = (d + down) * 0.5
    point = mean
    if DRAWN or PRECISION != FIXED:
        x = tl.load(input_ptr + start + at, inside, other=0.0)
        if DRAWN:
            point = x
    to_previous = coefficient(looks_ptr, item, TO_PREVIOUS)
    to_denoised = coefficient(looks_ptr, item, TO_DENOISED)
    scale = coefficient(looks_ptr, item, NEXT_STD)
    if PRECISION != FIXED:
        if PRECISION == DIAGONAL:
            curvature = tl.load(curvature_ptr + start + at, inside, other=0.0)
        else:
            curvature = tl.load(curvature_ptr + item)
        ratio = precision_ratio(coefficient(looks_ptr, item, SHARE), curvature)
        to_previous *= ratio
        to_denoised *= ratio
    previous = tl.load(previous_ptr + start + at, inside, other=0.0)
    new = stepped(mean, previous, point, d, to_previous, to_denoised)
    fine = is_finite(new)
    new = tl.where(fine, new, mean)
    tl.store(next_mean_ptr + start + at, new, inside)
    # One thread holds four neighbours, so that this is done in its registers.
    lost = tl.max(tl.reshape((inside & (fine == 0)).to(tl.int32), [ROWS, COLUMNS // 4, 4]), 2)
    tl.store(ok_ptr + item + lost * 0, 0, lost != 0)
    if PRECISION == ISOTROPIC:
        tl.store(partial_ptr + program, tl.sum(tl.where(inside, (x - mean) * probe, 0.0)))
        # `perturb` overwrites the curvature while others of its programs still need this one.
        if tile == 0:
            tl.store(curvature_before_ptr + item, curvature)
    else:
        if PRECISION == DIAGONAL:
            std = coefficient(looks_ptr, item, STD)
            rate = coefficient(looks_ptr, item, RATE)
            new_curvature = learned(curvature, (x - mean) * probe / (ratio * std * std), rate)
            curvature = tl.where((rate != 0.0) & (std != 0.0), new_curvature, curvature)
            tl.store(curvature_ptr + start + at, curvature, inside)
            scale *= tl.sqrt_rn(precision_ratio(coefficient(looks_ptr, item, NEXT_SHARE), curvature))
        e = group_normals(tl.load(seeds_ptr + item), groups, evaluation, stream)
        write_input(new, scale, e, input_ptr, input_mirror_ptr, start, at, inside)


@triton.jit(do_not_specialize=["size", "tiles", "sums", "evaluation", "stream"])
def perturb(
    mean_ptr,  # (B, N)
    input_ptr,  # (B, N)
    input_mirror_ptr,  # (B, N) or None
    looks_ptr,  # (B, 8)
    seeds_ptr,  # (B)
    curvature_ptr,  # None, (B) or (B, N) as PRECISION is fixed, isotropic or diagonal
    curvature_before_ptr,  # (B), what `natural_step` left, or None: nothing is learned
    partial_ptr,  # (B, sums), likewise
    size,  # N; with ALIGNED a quarter of it
    tiles,  # of one item
    sums,  # of one item
    evaluation,
    stream,
    PRECISION: tl.constexpr,
    ALIGNED: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Learn the curvature from the sums of a step, where there are any, and perturb the mean with it.

    j <- (1 - rate) j + rate * sum / (ratio std^2 N). A look that left the finite range teaches nothing.
    """
    program = tl.program_id(0)
    item = program // tiles
    tile = program % tiles
    if ALIGNED:
        size = size * 4
    start = item.to(tl.int64) * size
    at = tile * COLUMNS + tl.arange(0, COLUMNS)
    scale = coefficient(looks_ptr, item, NEXT_STD)
    if PRECISION != FIXED:
        if PRECISION == DIAGONAL:
            curvature = tl.load(curvature_ptr + start + at, at < size, other=0.0)
        elif partial_ptr is None:
            curvature = tl.load(curvature_ptr + item)
        else:
            curvature = tl.load(curvature_before_ptr + item)
            std = coefficient(looks_ptr, item, STD)
            rate = coefficient(looks_ptr, item, RATE)
            lane = tl.arange(0, 256)
            total = tl.zeros([256], tl.float64)
            for first in range(0, sums, 256):
                here = first + lane
                total += tl.load(partial_ptr + item.to(tl.int64) * sums + here, here < sums, other=0.0).to(tl.float64)
            ratio = precision_ratio(coefficient(looks_ptr, item, SHARE), curvature)
            seen = tl.sum(total).to(tl.float32) / (ratio * std * std * size.to(tl.float32))
            curvature = tl.where((rate != 0.0) & (std != 0.0), learned(curvature, seen, rate), curvature)
            if tile == 0:
                tl.store(curvature_ptr + item, curvature)
        scale *= tl.sqrt_rn(precision_ratio(coefficient(looks_ptr, item, NEXT_SHARE), curvature))
    groups = tile * (COLUMNS // 4) + tl.arange(0, COLUMNS // 4)
    e = group_normals(tl.load(seeds_ptr + item), groups, evaluation, stream)
    mean = tl.load(mean_ptr + start + at, at < size, other=0.0)
    write_input(mean, scale, e, input_ptr, input_mirror_ptr, start, at, at < size)
