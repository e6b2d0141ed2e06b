r"""The cosine transform of images by FFT: what diagonalises a symmetric blur whose boundary reflects.

Of n samples (n even) the even ones ascending, then the odd ones descending, have a spectrum V_k with

.. math:: w_k V_k = c_k - i\,c_{n-k}, \qquad w_k = \sqrt{2/n}\, e^{-i \pi k / 2n}, \quad w_0 = \sqrt{1/n}

where c are the orthonormal cosine coefficients (Makhoul 1980). Nothing is gained by sorting them: an image becomes
(W // 2 + 1, 2, H // 2 + 1, 2) numbers, as the transforms leave them in memory; some are twice there and some zero.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Twiddles", "analysis", "is_fast", "synthesis", "twiddles", "values"]

_SMALLEST = 128  # pixels of a side, below which a matrix product is faster
_PRIMES = (2, 3, 5, 7)  # of which a side must be made, because the FFT is slow for others


class Twiddles(NamedTuple):
    """The order of the rows, and w of both axes and their inverses, complex, shaped for the transforms."""

    rows: Tensor
    vertical: Tensor
    horizontal: Tensor
    vertical_inverse: Tensor
    horizontal_inverse: Tensor


def is_fast(height: int, width: int) -> bool:
    """Whether images of that size can be transformed here, and faster than by matrices."""
    return all(n >= _SMALLEST and n % 2 == 0 and _rest(n) == 1 for n in (height, width))


def twiddles(height: int, width: int, dtype: torch.dtype) -> Twiddles:
    """In a complex dtype, for images of even height and width."""
    rows = _sorted(torch.arange(height).reshape(1, 1, height, 1), 2).flatten()
    vertical, horizontal = _twiddle(height)[:, None, None], _twiddle(width)
    return Twiddles(rows, *(w.to(dtype) for w in (vertical, horizontal, 1 / vertical, 1 / horizontal)))


def values(vertical: Tensor, horizontal: Tensor) -> Tensor:
    """The products of one number per frequency and axis, (H,) and (W,), where :func:`analysis` has their coefficients.

    Returns:
        (W // 2 + 1, 2, H // 2 + 1, 2); 0 where no coefficient is.
    """
    return _pairs(horizontal)[:, :, None, None] * _pairs(vertical)


def analysis(x: Tensor, w: Twiddles) -> Tensor:
    """Coefficients (B, C, W // 2 + 1, 2, H // 2 + 1, 2) of images (B, C, H, W)."""
    if x.numel() == 0:
        return x.new_zeros(*x.shape[:2], x.shape[3] // 2 + 1, 2, x.shape[2] // 2 + 1, 2)
    if x.shape[0] > 1:  # one after the other they stay in the cache
        return torch.cat([analysis(item, w) for item in x.chunk(x.shape[0])])
    across = torch.view_as_real(torch.fft.rfft(_sorted(x, 3), dim=3).mul_(w.horizontal))
    both = torch.fft.rfft(across.index_select(2, w.rows), dim=2).mul_(w.vertical)
    return torch.view_as_real(both.movedim(2, 4)).contiguous()


def synthesis(c: Tensor, w: Twiddles) -> Tensor:
    """The images whose coefficients are ``c``."""
    height, width = 2 * (c.shape[4] - 1), 2 * (c.shape[2] - 1)
    if c.numel() == 0:
        return c.new_zeros(*c.shape[:2], height, width)
    if c.shape[0] > 1:
        return torch.cat([synthesis(item, w) for item in c.chunk(c.shape[0])])
    both = torch.view_as_complex(c).movedim(4, 2) * w.vertical_inverse
    across = torch.view_as_complex(_unsorted(torch.fft.irfft(both, height, dim=2), 2)).mul(w.horizontal_inverse)
    return _unsorted(torch.fft.irfft(across, width, dim=3), 3)


def _rest(n: int) -> int:
    """What is left of n without small primes."""
    for prime in _PRIMES:
        while n % prime == 0:
            n //= prime
    return n


def _twiddle(n: int) -> Tensor:
    frequency = torch.arange(n // 2 + 1, dtype=torch.float64)
    size = torch.full_like(frequency, math.sqrt(2 / n))
    size[0] = math.sqrt(1 / n)
    return torch.polar(size, -math.pi / (2 * n) * frequency)


def _pairs(numbers: Tensor) -> Tensor:
    """Those of the frequencies k and n - k, (n // 2 + 1, 2)."""
    half = numbers.numel() // 2
    return torch.stack([numbers[: half + 1], torch.cat([numbers.new_zeros(1), numbers.flip(0)[:half]])], 1)


def _sorted(x: Tensor, axis: int) -> Tensor:
    """Even samples ascending, then odd ones descending."""
    even, odd = x.reshape(*x.shape[:axis], -1, 2, *x.shape[axis + 1 :]).unbind(axis + 1)
    return torch.cat([even, odd.flip(axis)], axis)


def _unsorted(x: Tensor, axis: int) -> Tensor:
    even, odd = x.chunk(2, axis)
    return torch.stack([even, odd.flip(axis)], axis + 1).flatten(axis, axis + 1)
