"""Reverse mean propagation as one would write it in plain torch, to know what a compiled one is worth.

No buffer is kept, no kernel is ours, and the operators are written with what torch has: masks as products, blocks as
``avg_pool2d``, blurs as fast Fourier transforms.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from ..operators import Blur, Denoising, GaussianBlur, Inpainting, LinearOperator, SuperResolution

__all__ = ["chain", "corrector"]

Correct = Callable[[Tensor, float], Tensor]


def chain(
    denoise: Callable[[Tensor, Tensor], Tensor],
    correct: Correct,
    shape: tuple[int, ...],
    levels: list[float],
    step_sizes: list[float],
    data_variance: float,
    draw: Callable[[int], Tensor],
    device: torch.device | str = "cpu",
) -> Tensor:
    """The mean (B, C, H, W) that the untuned chain with ``control`` noise and ``gaussian`` guidance ends at.

    Args:
        denoise: D(x, s), s (B,).
        correct: moves D towards the measurement, for a prior variance r2.
        levels: s_0 < ... < s_T.
        step_sizes: s1 of the inner iterations of every level.
        data_variance: p of r2 = s^2 p / (s^2 + p).
        draw: standard normals of the shape for look number n.
        device: where they lie.
    """
    mean = torch.zeros(shape, device=device)
    look = 0
    for s, above in zip(reversed(levels[:-1]), reversed(levels[1:]), strict=True):
        w = (s / above) ** 2
        std = ((above**2 - s**2) ** 0.5) * s / above
        r2 = s**2 * data_variance / (s**2 + data_variance)
        level = torch.full((shape[0],), s, device=device)
        mu = mean
        for s1 in step_sizes:
            d = correct(denoise(mu + std * draw(look), level), r2)
            mu = mu + s1 * (w * (mean - mu) + (1 - w) * (d - mu))
            look += 1
        mean = mu
    return mean


def corrector(op: LinearOperator, y: Tensor, noise_std: float, shape: tuple[int, ...]) -> Correct | None:
    """D + r2 A^T (r2 A A^T + sy^2 I)^-1 (y - A D) in plain torch, or None where that takes more than a few lines."""
    variance = noise_std**2
    if isinstance(op, Denoising):
        return lambda d, r2: d + r2 / (r2 + variance) * (y - d)
    if isinstance(op, Inpainting):
        mask = op.mask.to(y)
        return lambda d, r2: d + r2 / (r2 + variance) * mask * (y - d)
    height, width = shape[-2:]
    if isinstance(op, SuperResolution) and op.filter == "average" and height % op.factor == width % op.factor == 0:
        return _blocks(y, op.factor, variance)
    if isinstance(op, Blur) and op.boundary == "circular":
        return _fourier(y, _response(op.kernel, height, width).to(y.device), variance)
    if isinstance(op, GaussianBlur) and op.boundary == "reflect":
        # A symmetric blur of an image reflected at its edges is a circular one of the image beside its mirror images.
        response = _response(torch.outer(op.taps, op.taps), 2 * height, 2 * width).to(y.device)
        mirrored = _fourier(_mirrored(y), response, variance)
        return lambda d, r2: mirrored(_mirrored(d), r2)[..., :height, :width]
    return None


def _blocks(y: Tensor, factor: int, variance: float) -> Correct:
    def correct(d: Tensor, r2: float) -> Tensor:
        r = (y - F.avg_pool2d(d, factor)) / (r2 / factor**2 + variance)
        change: Tensor = F.interpolate(r, scale_factor=factor, mode="nearest")
        return d + r2 / factor**2 * change

    return correct


def _fourier(y: Tensor, response: Tensor, variance: float) -> Correct:
    measured, energy = torch.fft.rfft2(y), response.abs().square()

    def correct(d: Tensor, r2: float) -> Tensor:
        r = (measured - response * torch.fft.rfft2(d)) / (r2 * energy + variance)
        change: Tensor = torch.fft.irfft2(r2 * response.conj() * r, s=y.shape[-2:])
        return d + change

    return correct


def _response(kernel: Tensor, height: int, width: int) -> Tensor:
    """The transfer function of a kernel whose middle is at (kh // 2, kw // 2), wrapped around (height, width)."""
    wrapped = torch.zeros(height, width, dtype=kernel.dtype)
    rows = (torch.arange(kernel.shape[0]) - kernel.shape[0] // 2) % height
    columns = (torch.arange(kernel.shape[1]) - kernel.shape[1] // 2) % width
    wrapped.index_put_((rows[:, None], columns[None, :]), kernel, accumulate=True)
    response: Tensor = torch.fft.rfft2(wrapped)
    return response.to(torch.complex64)


def _mirrored(x: Tensor) -> Tensor:
    wide = torch.cat([x, x.flip(-1)], -1)
    return torch.cat([wide, wide.flip(-2)], -2)
