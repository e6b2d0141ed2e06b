"""The mask operator: x where observed, else 0."""

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["size", "tiles"])
def mask(
    x_ptr,  # (items, size)
    mask_ptr,  # (1 or items, size) uint8
    out_ptr,  # (items, size)
    size,  # with ALIGNED a quarter of it
    tiles,  # of one item
    SHARED_MASK: tl.constexpr,
    ALIGNED: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """See ``_core.mask``."""
    program = tl.program_id(0)
    if ALIGNED:
        size = size * 4
    start = (program // tiles).to(tl.int64) * size
    at = program % tiles * COLUMNS + tl.arange(0, COLUMNS)
    inside = at < size
    seen = tl.load(mask_ptr + (at if SHARED_MASK else start + at), inside, other=0)
    x = tl.load(x_ptr + start + at, inside, other=0.0)
    tl.store(out_ptr + start + at, tl.where(seen != 0, x, 0.0), inside)
