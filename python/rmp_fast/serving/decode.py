"""Uploaded bytes to arrays. Sizes are read and limited before anything is decoded; nothing is unpickled."""

from __future__ import annotations

import dataclasses
import io
import math
from typing import Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray
from PIL import Image

from .. import images
from .refusals import invalid, not_acceptable, too_large

__all__ = ["PLANES", "Numbers", "array", "array_bytes", "is_array", "picture"]


@dataclasses.dataclass(frozen=True)
class Numbers:
    """What a .npy file may hold.

    Attributes:
        planes: most pictures (H, W) in all, and what they are called; None: channels, 1 or 3.
        axes: at most.
        complex: whether complex numbers are taken too.
    """

    planes: tuple[int, str] | None = None
    axes: int = 3
    complex: bool = False


PLANES = Numbers()  # (H, W) or (C, H, W)

_PNG, _JPEG, _NPY = b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"\x93NUMPY"
_START_OF_SCAN = b"\xff\xda"
_MOST_SCANS = 100  # progressive files have about ten; each costs a pass over the whole picture for a few bytes


def is_array(name: str, data: bytes, pictures: bool = True) -> bool:
    """Whether an upload is a .npy file; RequestError where it is neither that nor, with ``pictures``, PNG or JPEG."""
    if data.startswith(_NPY):
        return True
    picture = data.startswith((_PNG, _JPEG))
    if not (picture and pictures):
        what = "a picture" if picture else f"a file that begins with {data[:4].hex(' ')}" if data else "an empty file"
        kinds = "PNG, JPEG or .npy" if pictures else ".npy"
        raise not_acceptable(f"`{name}` must be a {kinds} file, got {what}")
    return False


def picture(name: str, data: bytes, max_pixels: int) -> images.ImageFile:
    """A PNG or JPEG file as float32 (C, H, W) on [0, 1].

    Raises:
        RequestError: larger than ``max_pixels``, truncated, damaged.
    """
    try:
        header = images.probe(data)
        _check_size(name, header.shape, max_pixels)
        if data.startswith(_JPEG) and data.count(_START_OF_SCAN) > _MOST_SCANS:
            raise invalid(f"`{name}` must have at most {_MOST_SCANS} scans; save it as a baseline JPEG", 400)
        return images.read(data)
    except images.ImageError as error:
        cause = str(error).removeprefix("the file: ")
        if isinstance(error.__cause__, Image.DecompressionBombError):
            raise too_large(f"`{name}` must have at most {max_pixels} pixels; {cause}") from error
        raise invalid(f"`{name}` {cause}", 400) from error


def array(name: str, data: bytes, max_pixels: int, allowed: Numbers = PLANES) -> NDArray[Any]:
    """A .npy file as it is, its numbers finite.

    Raises:
        RequestError: objects, text, structures; more than ``max_pixels`` in a plane, more planes or axes than are
            allowed, or not as many bytes as they need; NaN.
    """
    file = io.BytesIO(data)
    try:
        version = npy.read_magic(file)
        read = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}[version]
        shape, _, dtype = read(file)
    except Exception as cause:  # the header is a Python literal, and its reader raises whatever that brings
        raise invalid(f"`{name}` must be a .npy file of format 1.0 or 2.0, its header cannot be read", 400) from cause
    if dtype.kind not in ("fiubc" if allowed.complex else "fiub") or dtype.hasobject:
        kind = "" if allowed.complex else "real "
        raise invalid(f"`{name}` must hold {kind}numbers, got {_dtype_text(dtype)}", 400)
    if not 1 <= len(shape) <= allowed.axes or min(shape) < 1:
        most = {3: "three", 4: "four"}[allowed.axes]
        raise invalid(f"`{name}` must have one to {most} axes without an empty one, got shape {shape}", 400)
    _check_size(name, shape, max_pixels, allowed.planes)
    expected, got = math.prod(shape) * dtype.itemsize, len(data) - file.tell()
    if got != expected:
        raise invalid(f"`{name}` must hold {expected} bytes after its header, got {got}", 400)
    file.seek(0)
    values: NDArray[Any] = np.load(file, allow_pickle=False)
    if values.dtype.kind in "fc" and not np.isfinite(values).all():
        raise invalid(f"`{name}` must be finite, got NaN or infinity")
    return values


def array_bytes(values: NDArray[Any]) -> bytes:
    """A .npy file."""
    file = io.BytesIO()
    np.save(file, values, allow_pickle=False)
    return file.getvalue()


def _dtype_text(dtype: np.dtype[Any]) -> str:
    return "objects, which only a pickle can hold" if dtype.hasobject else str(dtype)


def _check_size(
    name: str, shape: tuple[int, ...], max_pixels: int, planes: tuple[int, str] | None = None
) -> None:  # fmt: skip
    count, pixels = math.prod(shape[:-2]), math.prod(shape[-2:])
    if planes is not None and count > planes[0]:
        raise too_large(f"`{name}` must have at most {planes[0]} {planes[1]}, got {count} in shape {shape}")
    if planes is None and count > 3:
        raise invalid(f"`{name}` must have shape (H, W) or (C, H, W) with C = 1 or 3, got {shape}")
    if pixels > max_pixels:
        raise too_large(f"`{name}` must have at most {max_pixels} pixels, got {pixels} in shape {shape}")
