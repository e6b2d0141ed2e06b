"""Blocks of pixels: `factor` x `factor`, cut from the top left of every plane, the last ones smaller."""

import triton
import triton.language as tl


@triton.jit
def block_length(index, factor, length):
    """Pixels of block ``index`` along an axis of ``length`` pixels."""
    return tl.minimum(factor, length - index * factor)


@triton.jit
def block_sums(row, FACTOR: tl.constexpr):
    """(N FACTOR) -> (N): sums of FACTOR neighbours, a power of two."""
    return tl.sum(tl.reshape(row, [row.shape[0] // FACTOR, FACTOR]), 1)


@triton.jit
def block_repeat(values, FACTOR: tl.constexpr):
    """(N) -> (N FACTOR)."""
    return tl.reshape(tl.broadcast_to(values[:, None], [values.shape[0], FACTOR]), [values.shape[0] * FACTOR])
