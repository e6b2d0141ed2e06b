"""Convolution along one axis, out[i] = sum_k taps[k] x[i + r - k], and its exact adjoint.

A program blurs a tile of ROWS x COLUMNS pixels. Beyond the ends an axis is continued as the boundary says. The adjoint
takes the pixels outside as zero, convolves with the taps reversed, and adds to every pixel what fell on its images
beyond the ends: its reflections, or for replicated edges all that lies beyond the first and the last pixel.
"""

import triton
import triton.language as tl

CIRCULAR = tl.constexpr(0)
REFLECT = tl.constexpr(1)
REPLICATE = tl.constexpr(2)


@triton.jit
def source(i, n, BOUNDARY: tl.constexpr, NEAR: tl.constexpr):
    """Which of the n samples continues the axis at i; NEAR: |i| overshoots by at most n."""
    if BOUNDARY == REPLICATE:
        return tl.minimum(tl.maximum(i, 0), n - 1)
    if BOUNDARY == CIRCULAR:
        if NEAR:
            return tl.where(i < 0, i + n, tl.where(i >= n, i - n, i))
        i = i % n
        return tl.where(i < 0, i + n, i)
    if not NEAR:
        i = i % (2 * n)
        i = tl.where(i < 0, i + 2 * n, i)
    i = tl.where(i < 0, -1 - i, i)
    return tl.where(i >= n, 2 * n - 1 - i, i)


@triton.jit
def spread_to(x_ptr, taps_ptr, to, n, radius, stride, inside):
    """What the adjoint spreads to position ``to``, inside the axis or beyond: sum_k taps[k] x[to - r + k]."""
    total = tl.zeros(inside.shape, tl.float32)
    for k in range(0, 2 * radius + 1):
        i = to - radius + k
        x = tl.load(x_ptr + i * stride, inside & (i >= 0) & (i < n), other=0.0)
        total = tl.fma(tl.load(taps_ptr + k), x, total)
    return total


@triton.jit
def beyond_edges(x_ptr, taps_ptr, i, n, radius, stride, inside):
    """What the adjoint spreads beyond the first and the last pixel, which replicated edges return to these."""
    total = tl.zeros(inside.shape, tl.float32)
    first = 0.0
    last = 0.0
    for d in range(0, radius):
        first += tl.load(taps_ptr + 2 * radius - d)
        from_first = radius - 1 - d  # the pixel whose taps 2 r - d, ..., 2 r lie before the axis
        x = tl.load(x_ptr + (from_first + i * 0) * stride, inside & (i == 0) & (from_first < n), other=0.0)
        total = tl.fma(first, x, total)
        last += tl.load(taps_ptr + d)
        from_last = n - radius + d
        x = tl.load(x_ptr + (from_last + i * 0) * stride, inside & (i == n - 1) & (from_last >= 0), other=0.0)
        total = tl.fma(last, x, total)
    return total


@triton.jit(do_not_specialize=["lines", "height", "width", "radius", "tiles"])
def blur_axis(
    x_ptr,  # (planes, height, width)
    taps_ptr,  # (2 radius + 1)
    out_ptr,  # (planes, height, width), another tensor
    lines,  # rows of all planes
    height,  # of a plane
    width,  # with ALIGNED a quarter of it
    radius,
    tiles,  # across the width
    VERTICAL: tl.constexpr,
    BOUNDARY: tl.constexpr,
    ADJOINT: tl.constexpr,
    NEAR: tl.constexpr,  # the radius is at most the length of the axis
    ALIGNED: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """One of the two passes of ``_core.separable_blur``. Where VERTICAL, tiles do not cross planes."""
    program = tl.program_id(0)
    if ALIGNED:
        width = width * 4
    column = (program % tiles * COLUMNS + tl.arange(0, COLUMNS))[None, :]
    band = program // tiles
    if VERTICAL:
        bands = tl.cdiv(height, ROWS)
        row = (band % bands * ROWS + tl.arange(0, ROWS))[:, None]
        plane = (band // bands).to(tl.int64) * height * width
        inside = (row < height) & (column < width)
        x_ptr += plane + column
        i = row
        n = height
        stride = width
    else:
        row = (band * ROWS + tl.arange(0, ROWS))[:, None]
        plane = 0
        inside = (row < lines) & (column < width)
        x_ptr += row.to(tl.int64) * width
        i = column
        n = width
        stride = 1
    if ADJOINT and BOUNDARY != CIRCULAR:
        total = spread_to(x_ptr, taps_ptr, i, n, radius, stride, inside)
        if BOUNDARY == REPLICATE:
            total += beyond_edges(x_ptr, taps_ptr, i, n, radius, stride, inside)
        else:
            most = 1 if NEAR else tl.cdiv(radius, n)
            for image in range(-most, most + 1):
                # Image q of pixel i lies at n q + i, or n q + n - 1 - i where q is odd.
                to = n * image + (i if image % 2 == 0 else n - 1 - i)
                reached = inside & (to >= -radius) & (to < n + radius) & (image != 0)
                if NEAR:
                    if tl.max(reached.to(tl.int32)) > 0:  # few tiles lie at an edge
                        total += spread_to(x_ptr, taps_ptr, to, n, radius, stride, reached)
                else:
                    total += spread_to(x_ptr, taps_ptr, to, n, radius, stride, reached)
    else:
        total = tl.zeros([ROWS, COLUMNS], tl.float32)
        for k in range(0, 2 * radius + 1):
            # A circular adjoint is the circular convolution with the taps reversed.
            shift = k - radius if ADJOINT else radius - k
            x = tl.load(x_ptr + source(i + shift, n, BOUNDARY, NEAR) * stride, inside, other=0.0)
            total = tl.fma(tl.load(taps_ptr + k), x, total)
    tl.store(out_ptr + plane + row.to(tl.int64) * width + column, total, inside)
