"""Measurements that are no pictures, as .npy files: Fourier samples and magnitudes."""

from __future__ import annotations

import dataclasses
import pathlib

import numpy as np
from numpy.typing import NDArray

from ..images import ImageError
from .tasks import load_array
from .usage import UsageError

__all__ = ["ArrayFile", "read_array"]


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


def read_array(path: pathlib.Path) -> ArrayFile:
    """Read (C, H, W) magnitudes or (H, W) for one channel; complex samples (H, W), or (N, H, W) of N coils.

    Complex numbers become (2, H, W) or (2, N, H, W), real part first, as :class:`rmp_fast.operators.MRI` measures.

    Raises:
        ImageError: no array of numbers, one of another number of axes, or numbers that float32 does not have.
    """
    try:
        values = load_array(path, "INPUT")
    except UsageError as error:
        raise ImageError(str(error)) from error
    given = values.shape
    if np.iscomplexobj(values):
        values = np.stack((values.real, values.imag))
    elif values.ndim == 2:
        values = values[None]
    if values.ndim not in (3, 4) or values.size == 0:
        raise ImageError(f"{path}: must have two to four axes, of complex numbers two or three, got shape {given}")
    with np.errstate(over="ignore"):
        single = values.astype(np.float32)
    if not np.isfinite(single).all():
        raise ImageError(f"{path}: must hold numbers of float32, got up to {np.abs(values).max():g}")
    return ArrayFile(single)
