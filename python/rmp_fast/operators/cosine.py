r"""The cosine transform of images: what diagonalises a symmetric blur whose boundary reflects.

.. math:: c_{kl} = a_k a_l \sum_{ij} x_{ij} \cos\frac{\pi k (2 i + 1)}{2 H} \cos\frac{\pi l (2 j + 1)}{2 W},
          \qquad a_0 = \sqrt{1/n}, \quad a_k = \sqrt{2/n}

orthonormal, by scipy's FFT, which is for processors alone.
"""

from __future__ import annotations

import scipy.fft
import torch
from torch import Tensor

from .function import linear_map

__all__ = ["analysis", "analysis_in_place", "is_fast", "synthesis", "synthesis_in_place"]

_SMALLEST = 128  # pixels of a side, below which a matrix product is faster on two threads
_PRIMES = (2, 3, 5, 7, 11)  # of which a side must be made, because the FFT is slow for others
# Numbers that make a thread of scipy's worth waking: it starts beside those of OpenMP, which still wait for torch.
_PER_THREAD = 2**19


def is_fast(height: int, width: int) -> bool:
    """Whether the FFT transforms images of that size faster than matrices do."""
    return all(n >= _SMALLEST and _rest(n) == 1 for n in (height, width))


def analysis(x: Tensor) -> Tensor:
    """Coefficients (..., H, W) of images (..., H, W) in main memory, float32 or float64.

    Autograd follows it any number of times; torch.func, fake tensors and torch.export do not.
    """
    return linear_map(x, _forward, _backward)


def synthesis(c: Tensor) -> Tensor:
    """The images whose coefficients are ``c``: the inverse and adjoint of :func:`analysis`."""
    return linear_map(c, _backward, _forward)


def analysis_in_place(x: Tensor) -> Tensor:
    """As :func:`analysis`, in the memory of contiguous images that are not needed any more."""
    return _forward(x, overwrite=True)


def synthesis_in_place(c: Tensor) -> Tensor:
    """As :func:`synthesis`, in the memory of contiguous coefficients that are not needed any more."""
    return _backward(c, overwrite=True)


def _forward(x: Tensor, overwrite: bool = False) -> Tensor:
    return x.clone() if x.numel() == 0 else torch.from_numpy(scipy.fft.dctn(**_arguments(x, overwrite)))


def _backward(c: Tensor, overwrite: bool = False) -> Tensor:
    return c.clone() if c.numel() == 0 else torch.from_numpy(scipy.fft.idctn(**_arguments(c, overwrite)))


def _arguments(x: Tensor, overwrite: bool) -> dict[str, object]:
    workers = min(torch.get_num_threads(), 1 + x.numel() // _PER_THREAD)
    return {"x": x.detach().numpy(), "axes": (-2, -1), "norm": "ortho", "overwrite_x": overwrite, "workers": workers}


def _rest(n: int) -> int:
    """What is left of n without small primes."""
    for prime in _PRIMES:
        while n % prime == 0:
            n //= prime
    return n
