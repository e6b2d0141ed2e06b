"""Phase retrieval: the magnitudes of an oversampled Fourier transform, and the alignment of what they leave open."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .._checks import check_positive, check_shape, shape_text
from .base import Operator, Shape, check_float, check_image_shape
from .fourier import fft2, irfft2, rfft2

__all__ = ["Alignment", "PhaseRetrieval", "align"]


class PhaseRetrieval(Operator):
    """y = |F P (x + 1) / 2| + n, per channel: Fourier magnitudes of the image on [0, 1], zero-padded by P.

    Images (B, C, H, W) on [-1, 1] have measurements (B, C, H', W') with H' = round(oversampling H), and so for W'. F is
    orthonormal, so that ||y|| = ||(x + 1) / 2||, with the zero frequency in the centre (H' // 2, W' // 2).
    ``noise_std`` is that of y, on the scale of the image on [0, 1]. Where a magnitude is 0 its gradient is 0.

    Args:
        oversampling: padded over original size, per axis, >= 1. At 2 the magnitudes hold the whole autocorrelation of
            the image. The ``oversample = 2.0`` of DPS and DAPS pads by a quarter of the size on either side, which is
            1.5 here, and takes the same range.

    The magnitudes do not tell an image from itself turned by 180 degrees, nor, where its border is black, from a
    shifted one, nor (x + 1) / 2 from its negative, which the range excludes: see :func:`align` for scoring and
    :func:`~rmp_fast.operators.best_of_starts` for choosing among several runs.

    Source: Chung, Kim, Mccann, Klasky, Ye, "Diffusion posterior sampling for general noisy inverse problems", 2023.
    """

    name = "phase_retrieval"

    def __init__(self, oversampling: float = 2.0) -> None:
        self.oversampling = check_positive("oversampling", oversampling)
        if self.oversampling < 1:
            raise ValueError(f"`oversampling` must be >= 1, got {oversampling!r}")

    def __repr__(self) -> str:
        return f"PhaseRetrieval(oversampling={self.oversampling:g})"

    def measurement_shape(self, image_shape: Sequence[int]) -> Shape:
        """(B, C, round(oversampling H), round(oversampling W))."""
        batch, channels, height, width = check_image_shape("image_shape", image_shape)
        return batch, channels, self._padded(height), self._padded(width)

    def image_shape(self, measurement_shape: Sequence[int]) -> Shape:
        """(B, C, H, W); ValueError where no size is padded to that of the measurement."""
        batch, channels, *padded = check_image_shape("measurement_shape", measurement_shape)
        height, width = (round(n / self.oversampling) for n in padded)
        if [self._padded(height), self._padded(width)] != padded:
            raise ValueError(
                f"`measurement_shape` must be that of an image padded {self.oversampling:g} times, "
                f"got {shape_text(measurement_shape)}"
            )
        return batch, channels, height, width

    def _apply(self, x: Tensor) -> Tensor:
        height, width = self._padded(x.shape[2]), self._padded(x.shape[3])
        padded = torch.nn.functional.pad((x + 1) / 2, (0, width - x.shape[3], 0, height - x.shape[2]))
        # Where the image lies in the padded frame changes phases alone.
        magnitudes: Tensor = torch.fft.fftshift(fft2(padded).abs(), (2, 3))
        return magnitudes

    def _padded(self, n: int) -> int:
        return round(self.oversampling * n)


class Alignment(NamedTuple):
    """An aligned estimate.

    Attributes:
        image: (B, C, H, W), what moved in from outside the frame is -1.
        shift: (B, 2) int64, rows down and columns right, after turning.
        turned: (B,) bool, by 180 degrees.
        negated: (B,) bool, (x + 1) / 2 by its negative.
    """

    image: Tensor
    shift: Tensor
    turned: Tensor
    negated: Tensor


def align(estimate: Tensor, truth: Tensor, sign: bool = False) -> Alignment:
    """Of all that :class:`PhaseRetrieval` cannot tell from ``estimate``, what is closest to ``truth``; for scoring.

    Tried are all shifts by whole pixels and the turn by 180 degrees, of every item with all its channels; the smallest
    squared error wins, an unmoved estimate where it is among the best.

    Args:
        estimate, truth: (B, C, H, W) on [-1, 1].
        sign: also try the negative of (x + 1) / 2, which magnitudes alone leave open and the range [-1, 1] excludes.

    Raises:
        TypeError: no float32 or float64 tensors.
        ValueError: shapes that differ or are not (B, C, H, W).
    """
    check_float("estimate", estimate)
    check_float("truth", truth)
    check_image_shape("truth", truth.shape)
    check_shape("estimate", estimate, truth.shape, ("B", "C", "H", "W"))
    light, target = (estimate.double() + 1) / 2, (truth.double() + 1) / 2
    height, width = light.shape[-2:]
    candidates = torch.stack([s * v for s in ((1, -1) if sign else (1,)) for v in (light, light.flip((2, 3)))])
    errors = _shift_errors(candidates, target)  # (K, B, 2 H, 2 W)
    # Ties, and what rounding makes of them, go to the first candidate and the zero shift, which stands first.
    flat = errors.movedim(0, 1).flatten(1)
    scale = target.square().sum((1, 2, 3)) + light.square().sum((1, 2, 3))
    best = (flat <= flat.amin(1, keepdim=True) + 1e-12 * scale[:, None]).int().argmax(1)
    kind, position = best // (4 * height * width), best % (4 * height * width)
    shift = torch.stack((position // (2 * width), position % (2 * width)), 1)
    size = shift.new_tensor([height, width])
    shift = torch.where(shift >= size, shift - 2 * size, shift)
    moved = [_shifted(candidates[k, b], s) for b, (k, s) in enumerate(zip(kind.tolist(), shift.tolist(), strict=True))]
    image = torch.stack(moved) if moved else light
    return Alignment((2 * image - 1).to(estimate.dtype), shift, kind % 2 == 1, kind >= 2)


def _shift_errors(images: Tensor, target: Tensor) -> Tensor:
    """||target - image moved by (i, j) and cropped||^2 over channels, for images (K, B, C, H, W): (K, B, 2 H, 2 W).

    Indices above H and W mean shifts up and left by what is missing to 2 H and 2 W.
    """
    height, width = target.shape[-2:]
    frame = (0, width, 0, height)

    def correlation(a: Tensor, b: Tensor) -> Tensor:
        product = rfft2(torch.nn.functional.pad(a, frame)).conj() * rfft2(torch.nn.functional.pad(b, frame))
        return irfft2(product, (2 * height, 2 * width)).sum(-3)

    kept = correlation(images.square(), torch.ones_like(target))
    return target.square().sum((1, 2, 3))[:, None, None] - 2 * correlation(images, target) + kept


def _shifted(image: Tensor, shift: Sequence[int]) -> Tensor:
    """(C, H, W) moved down and right, zeros moving in."""
    down, right = shift
    height, width = image.shape[-2:]
    out = torch.zeros_like(image)
    out[:, max(down, 0) : height + min(down, 0), max(right, 0) : width + min(right, 0)] = image[
        :, max(-down, 0) : height - max(down, 0), max(-right, 0) : width - max(right, 0)
    ]
    return out
