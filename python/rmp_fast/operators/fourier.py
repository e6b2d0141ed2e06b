"""Fourier transforms over the last two axes, which also take empty batches (MKL refuses them)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["centred_fft2", "centred_ifft2", "fft2", "ifft2", "irfft2", "mirrored", "rfft2"]

_AXES = (-2, -1)


def rfft2(x: Tensor, norm: str = "backward") -> Tensor:
    """Half spectrum (..., H, W // 2 + 1) of real images."""
    if x.numel() == 0:
        return x[..., : x.shape[-1] // 2 + 1].to(x.dtype.to_complex())
    spectrum: Tensor = torch.fft.rfft2(x, norm=norm)
    return spectrum


def irfft2(spectrum: Tensor, size: Sequence[int], norm: str = "backward") -> Tensor:
    """Real images of ``size`` = (H, W) from their half spectrum."""
    if spectrum.numel() == 0:
        return spectrum.real[..., :1].expand(*spectrum.shape[:-2], *size).clone()
    image: Tensor = torch.fft.irfft2(spectrum, s=tuple(size), norm=norm)
    return image


def fft2(x: Tensor) -> Tensor:
    """Orthonormal transform of complex images."""
    spectrum: Tensor = x.clone() if x.numel() == 0 else torch.fft.fft2(x, norm="ortho")
    return spectrum


def ifft2(spectrum: Tensor) -> Tensor:
    """The inverse and adjoint of :func:`fft2`."""
    image: Tensor = spectrum.clone() if spectrum.numel() == 0 else torch.fft.ifft2(spectrum, norm="ortho")
    return image


def centred_fft2(x: Tensor) -> Tensor:
    """:func:`fft2` with image origin and zero frequency at (H // 2, W // 2)."""
    spectrum: Tensor = torch.fft.fftshift(fft2(torch.fft.ifftshift(x, _AXES)), _AXES)
    return spectrum


def centred_ifft2(spectrum: Tensor) -> Tensor:
    """The inverse and adjoint of :func:`centred_fft2`."""
    image: Tensor = torch.fft.fftshift(ifft2(torch.fft.ifftshift(spectrum, _AXES)), _AXES)
    return image


def mirrored(spectrum: Tensor) -> Tensor:
    """The values at the opposite frequencies, zero frequency at (H // 2, W // 2)."""
    even = tuple((n + 1) % 2 for n in spectrum.shape[-2:])
    return spectrum.flip(_AXES).roll(even, _AXES)
