"""The pointwise part of a spectral form."""

import triton
import triton.language as tl

from .formulas import spectral_change


@triton.jit(do_not_specialize=["size", "tiles"])
def spectral(
    coefficients_ptr,  # (items, size), complex ones as pairs
    energy_ptr,  # (1 or items, size), one number per pair
    data_ptr,  # (items, size)
    noise_ratio_ptr,  # (items)
    out_ptr,  # (items, size), may be coefficients_ptr
    size,  # of an item, in floats; with ALIGNED a quarter of it
    tiles,  # of one item
    COMPLEX: tl.constexpr,
    UPDATE: tl.constexpr,  # write the change alone
    SHARED_ENERGY: tl.constexpr,
    ALIGNED: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """See ``_core.spectral``."""
    program = tl.program_id(0)
    if ALIGNED:
        size = size * 4
    item = program // tiles
    left = program % tiles * COLUMNS
    start = item.to(tl.int64) * size
    at = left + tl.arange(0, COLUMNS)
    inside = at < size
    PARTS: tl.constexpr = 2 if COMPLEX else 1
    numbers = size // PARTS
    here = left // PARTS + tl.arange(0, COLUMNS // PARTS)
    first = 0 if SHARED_ENERGY else item.to(tl.int64) * numbers
    energy = tl.load(energy_ptr + first + here, here < numbers, other=0.0)
    if COMPLEX:
        energy = tl.interleave(energy, energy)
    c = tl.load(coefficients_ptr + start + at, inside, other=0.0)
    data = tl.load(data_ptr + start + at, inside, other=0.0)
    change = spectral_change(c, energy, data, tl.load(noise_ratio_ptr + item))
    tl.store(out_ptr + start + at, change if UPDATE else c + change, inside)
