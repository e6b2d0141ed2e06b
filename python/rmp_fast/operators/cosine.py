r"""The cosine transform of images: what diagonalises a symmetric blur whose boundary reflects.

.. math:: c_{kl} = a_k a_l \sum_{ij} x_{ij} \cos\frac{\pi k (2 i + 1)}{2 H} \cos\frac{\pi l (2 j + 1)}{2 W},
          \qquad a_0 = \sqrt{1/n}, \quad a_k = \sqrt{2/n}

orthonormal, by torch's FFT of as many real samples (Makhoul, "A fast cosine transform in one and two dimensions", IEEE
Trans. ASSP 28, 1980), with the compiled kernels in both directions by the forward one, which moves less memory.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from .. import ops
from .fourier import rfft2

__all__ = ["CosineTransform", "is_fast"]

_SMALLEST = 128  # pixels of a side, below which a matrix product is faster on two threads
_PRIMES = (2, 3, 5, 7, 11)  # of which a side must be made, because the FFT is slow for others


def is_fast(height: int, width: int) -> bool:
    """Whether the FFT transforms images of that size on a CPU faster than matrices do."""
    return all(n >= _SMALLEST and _rest(n) == 1 for n in (height, width))


class CosineTransform:
    """The transform of images (..., ``height``, ``width``), float32 or float64 as ``dtype`` says, on one device.

    Autograd follows it; on a CPU it takes the compiled kernels for what lies before and after the FFT.
    """

    def __init__(self, height: int, width: int, device: torch.device, dtype: torch.dtype) -> None:
        with torch.inference_mode(False):
            self._axes = [_Axis(n, device, dtype) for n in (height, width)]
        vertical, horizontal = (axis.turns for axis in self._axes)
        self._turns = 0.5 * vertical, horizontal
        self._turns_back = vertical.conj() / vertical.abs().square(), horizontal.conj() / horizontal.abs().square()

    def analysis(self, x: Tensor, out: Tensor | None = None) -> Tensor:
        """Coefficients (..., H, W) of images (..., H, W); ``out``, contiguous and not ``x``, is where they are left."""
        kernels = _kernels(x)
        if kernels is None:
            vertical, horizontal = self._axes
            return _left(vertical.analysis(horizontal.analysis(x).mT).mT.contiguous(), out)
        given = x.detach().contiguous()
        out = torch.empty_like(given) if out is None else out
        kernels.cosine_fold(given, out)
        kernels.cosine_turn(rfft2(out, "ortho").contiguous(), *self._turns, out)
        return out

    def synthesis(self, c: Tensor, out: Tensor | None = None) -> Tensor:
        """The images (..., H, W) whose coefficients are ``c``, the inverse and adjoint of :meth:`analysis`.

        ``out``, contiguous and possibly ``c``, is where they are left.
        """
        kernels = _kernels(c)
        if kernels is None:
            vertical, horizontal = self._axes
            return _left(horizontal.synthesis(vertical.synthesis(c.mT).mT).contiguous(), out)
        out = torch.empty_like(c, memory_format=torch.contiguous_format) if out is None else out
        if out is not c:
            out.copy_(c.detach())
        kernels.cosine_turn_back(out, *self._turns_back)
        kernels.cosine_unfold(rfft2(out, "ortho").contiguous(), out)
        return out


class _Axis:
    """The transform along the last axis, of n samples, in plain torch.

    The samples are folded to v = (x0 x2 x4 ... x5 x3 x1); with V its spectrum and z = turns V, coefficient k is Re z_k,
    coefficient n - k is -Im z_k.
    """

    def __init__(self, n: int, device: torch.device, dtype: torch.dtype) -> None:
        self.n = n
        self._folded = torch.cat([torch.arange(0, n, 2), torch.arange(1, n, 2).flip(0)]).to(device)
        self._unfolded = self._folded.argsort()
        phase = torch.arange(n // 2 + 1, dtype=torch.float64) * (-math.pi / (2 * n))
        lengths = torch.full_like(phase, math.sqrt(2))
        lengths[0] = 1
        self.turns = torch.polar(lengths, phase).to(device=device, dtype=dtype.to_complex())

    def analysis(self, x: Tensor) -> Tensor:
        if x.numel() == 0:
            return x.clone()
        z = self.turns * torch.fft.rfft(x[..., self._folded], norm="ortho")
        return torch.cat([z.real, -z.imag[..., 1 : (self.n + 1) // 2].flip(-1)], -1)

    def synthesis(self, c: Tensor) -> Tensor:
        if c.numel() == 0:
            return c.clone()
        half = self.n // 2
        opposite = torch.cat([torch.zeros_like(c[..., :1]), c[..., self.n - half :].flip(-1)], -1)
        folded = torch.fft.irfft(torch.complex(c[..., : half + 1], -opposite) / self.turns, self.n, norm="ortho")
        image: Tensor = folded[..., self._unfolded]
        return image


def _left(result: Tensor, out: Tensor | None) -> Tensor:
    return result if out is None else out.copy_(result)


def _kernels(x: Tensor) -> Any:
    return ops.kernels("auto", x) if x.device.type == "cpu" else None


def _rest(n: int) -> int:
    """What is left of n without small primes."""
    for prime in _PRIMES:
        while n % prime == 0:
            n //= prime
    return n
