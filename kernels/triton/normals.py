"""The standard normals that a step makes."""

import triton
import triton.language as tl

from .formulas import group_normals


@triton.jit(do_not_specialize=["size", "tiles", "evaluation", "stream"])
def normals(
    seeds_ptr,  # (items)
    out_ptr,  # (items, size)
    size,  # with ALIGNED a quarter of it
    tiles,  # of one item
    evaluation,
    stream,
    ALIGNED: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """See ``_core.normals``."""
    program = tl.program_id(0)
    if ALIGNED:
        size = size * 4
    item = program // tiles
    tile = program % tiles
    at = tile * COLUMNS + tl.arange(0, COLUMNS)
    groups = tile * (COLUMNS // 4) + tl.arange(0, COLUMNS // 4)
    e = group_normals(tl.load(seeds_ptr + item), groups, evaluation, stream)
    tl.store(out_ptr + item.to(tl.int64) * size + at, e, at < size)
