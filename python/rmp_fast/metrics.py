"""How close a restoration is to the truth, as the literature measures it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

__all__ = ["psnr", "ssim"]


def psnr(image: NDArray[Any], truth: NDArray[Any]) -> float:
    """Peak signal-to-noise ratio 10 log10(1 / mean((image - truth)²)) in dB; infinite for equal images.

    Args:
        image, truth: (C, H, W) on [0, 1].

    Raises:
        ValueError: the shapes differ.
    """
    _check_pair(image, truth)
    if np.array_equal(image, truth):
        return math.inf
    return float(peak_signal_noise_ratio(truth.astype(np.float64), image.astype(np.float64), data_range=1.0))


def ssim(image: NDArray[Any], truth: NDArray[Any]) -> float | None:
    """Structural similarity, mean over pixels and channels; None for images under 11 pixels in height or width.

    Gaussian window of 1.5 pixels (11 x 11) and population covariances, as Wang et al. (2004, IEEE TIP 13(4)) define it.

    Args:
        image, truth: (C, H, W) on [0, 1].

    Raises:
        ValueError: the shapes differ.
    """
    _check_pair(image, truth)
    if min(image.shape[1:]) < 11:
        return None
    value = structural_similarity(
        truth.astype(np.float64),
        image.astype(np.float64),
        data_range=1.0,
        channel_axis=0,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
    )
    return float(value)


def _check_pair(image: NDArray[Any], truth: NDArray[Any]) -> None:
    if image.ndim != 3 or image.shape != truth.shape:
        raise ValueError(f"`image` must have shape (C, H, W) = {truth.shape}, the truth's, got {image.shape}")
