"""Measurements that are no pictures, as .npy files: Fourier samples and magnitudes."""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..images import ImageError
from .tasks import check_single, load_array
from .usage import UsageError

__all__ = ["ArrayFile", "as_measurement", "read_array"]


@dataclasses.dataclass(frozen=True)
class ArrayFile:
    """A measurement and how its restoration is written: 16 bit, without a colour profile."""

    pixels: NDArray[np.float32]
    depth: int = 16
    notes: tuple[str, ...] = ()
    icc_profile: bytes | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the measurement."""
        return self.pixels.shape


def read_array(path: pathlib.Path, operator: str) -> ArrayFile:
    """Read what an operator measures; see :func:`as_measurement`.

    Raises:
        ImageError: no array of numbers, or not of those that the operator measures.
    """
    try:
        return ArrayFile(as_measurement(load_array(path, "INPUT"), operator, f"{path}:"))
    except UsageError as error:
        raise ImageError(str(error)) from error


def as_measurement(values: NDArray[Any], operator: str, label: str) -> NDArray[np.float32]:
    """What an operator whose measurements are no pictures works on, from the numbers of a file.

    Of ``mri`` they are complex samples (H, W), or (N, H, W) of N coils, and become (2, H, W) or (2, N, H, W), real part
    first, as :class:`rmp_fast.operators.MRI` measures. Of ``phase_retrieval`` they are magnitudes (C, H, W), or (H, W)
    for one channel, and become (C, H, W).

    Args:
        values: of any type of numbers.
        operator: registered name.
        label: what messages call the file.

    Raises:
        UsageError: another type or number of axes, or numbers that float32 does not have.
    """
    samples = operator == "mri"
    if np.iscomplexobj(values) != samples or values.ndim not in (2, 3) or values.size == 0:
        expected = "complex samples (H, W), or (coils, H, W)" if samples else "real magnitudes (H, W)"
        raise UsageError(f"{label} must hold {expected}, got {values.dtype} {values.shape}")
    if samples:
        values = np.stack((values.real, values.imag))
    elif values.ndim == 2:
        values = values[None]
    check_single(values, label)
    return values.astype(np.float32)
