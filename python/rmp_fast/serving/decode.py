"""Uploaded bytes to arrays. Sizes are read and limited before anything is decoded; nothing is unpickled."""

from __future__ import annotations

import io
import math
from typing import Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray
from PIL import Image

from .. import images
from .refusals import invalid, not_acceptable, too_large

__all__ = ["array", "array_bytes", "is_array", "picture"]

_PNG, _JPEG, _NPY = b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"\x93NUMPY"
_START_OF_SCAN = b"\xff\xda"
_MOST_SCANS = 100  # progressive files have about ten; each costs a pass over the whole picture for a few bytes


def is_array(name: str, data: bytes) -> bool:
    """Whether an upload is a .npy file; RequestError where it is neither that nor PNG nor JPEG."""
    if data.startswith(_NPY):
        return True
    if not data.startswith((_PNG, _JPEG)):
        what = "an empty file" if not data else f"a file that begins with {data[:4].hex(' ')}"
        raise not_acceptable(f"`{name}` must be a PNG, JPEG or .npy file, got {what}")
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


def array(name: str, data: bytes, max_pixels: int) -> NDArray[Any]:
    """A .npy file of at most three axes as it is, its numbers finite.

    Raises:
        RequestError: objects, text, structures; more than ``max_pixels``, or not as many bytes as they need; NaN.
    """
    file = io.BytesIO(data)
    try:
        version = npy.read_magic(file)
        read = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}[version]
        shape, _, dtype = read(file)
    except Exception as cause:  # the header is a Python literal, and its reader raises whatever that brings
        raise invalid(f"`{name}` must be a .npy file of format 1.0 or 2.0, its header cannot be read", 400) from cause
    if dtype.kind not in "fiub" or dtype.hasobject:
        raise invalid(f"`{name}` must hold real numbers, got {_dtype_text(dtype)}", 400)
    if not 1 <= len(shape) <= 3 or min(shape) < 1:
        raise invalid(f"`{name}` must have one to three axes without an empty one, got shape {shape}", 400)
    _check_size(name, shape, max_pixels)
    expected, got = math.prod(shape) * dtype.itemsize, len(data) - file.tell()
    if got != expected:
        raise invalid(f"`{name}` must hold {expected} bytes after its header, got {got}", 400)
    file.seek(0)
    values: NDArray[Any] = np.load(file, allow_pickle=False)
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise invalid(f"`{name}` must be finite, got NaN or infinity")
    return values


def array_bytes(values: NDArray[Any]) -> bytes:
    """A .npy file."""
    file = io.BytesIO()
    np.save(file, values, allow_pickle=False)
    return file.getvalue()


def _dtype_text(dtype: np.dtype[Any]) -> str:
    return "objects, which only a pickle can hold" if dtype.hasobject else str(dtype)


def _check_size(name: str, shape: tuple[int, ...], max_pixels: int) -> None:
    channels = shape[0] if len(shape) == 3 else 1
    pixels = math.prod(shape[-2:])
    if channels > 3:
        raise invalid(f"`{name}` must have shape (H, W) or (C, H, W) with C = 1 or 3, got {shape}")
    if pixels > max_pixels:
        raise too_large(f"`{name}` must have at most {max_pixels} pixels, got {pixels} in shape {shape}")
