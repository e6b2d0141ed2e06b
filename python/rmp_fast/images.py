"""Image files in and out: PNG, JPEG, TIFF and WebP, 8 and 16 bit, grey and colour.

Inside, an image is a float32 array (C, H, W) on [0, 1] with C = 1 or 3. A file of depth d holds the levels
0 … 2^d - 1; reading divides by 2^d - 1 and writing multiplies and rounds, so that what was read is written unchanged.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import math
import os
import pathlib
import struct
import tempfile
import zlib
from collections.abc import Iterator
from typing import Any, BinaryIO

import imagecodecs
import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

__all__ = [
    "EXTENSIONS",
    "FORMATS",
    "ImageError",
    "ImageFile",
    "ImageHeader",
    "encode",
    "probe",
    "quantise",
    "read",
    "write",
    "write_atomically",
]

FORMATS = {"png": ".png", "tiff": ".tif", "jpeg": ".jpg", "webp": ".webp"}
EXTENSIONS = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".webp")
DEEP_FORMATS = ("png", "tiff")  # JPEG and WebP hold 8 bits per channel only

_ORIENTATION = 0x0112
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_GREY_MODES = ("1", "L", "LA", "La")
_COLOUR_MODES = ("P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "LAB", "HSV")
_ALPHA_MODES = ("LA", "La", "PA", "RGBA", "RGBa")


class ImageError(ValueError):
    """A file that cannot be read as an image; the message names the file and the cause."""


@dataclasses.dataclass(frozen=True)
class ImageHeader:
    """What is known of an image before its pixels are decoded."""

    shape: tuple[int, int, int]  # (C, H, W), after the EXIF orientation
    depth: int  # bits per channel, 8 or 16


@dataclasses.dataclass(frozen=True)
class ImageFile:
    """A decoded image."""

    pixels: NDArray[np.float32]  # (C, H, W) on [0, 1]
    depth: int
    notes: tuple[str, ...]  # what was left out or converted, for the user
    icc_profile: bytes | None


def probe(source: pathlib.Path | bytes | BinaryIO) -> ImageHeader:
    """Shape and depth of the image that :func:`read` will return, without decoding it.

    Args:
        source: a file, what one holds, or an open one that can seek, which stays open.

    Raises:
        ImageError: the file is no image, or of a kind that :func:`read` refuses.
    """
    with _opened(source) as file:
        return _header(file)


def read(source: pathlib.Path | bytes | BinaryIO) -> ImageFile:
    """Decode an image file, what one holds, or an open one that can seek, which stays open.

    The EXIF orientation is applied, a palette is looked up, an alpha channel is dropped (without blending) and of a
    sequence the first image is taken; the last two are said in ``notes``.

    Raises:
        ImageError: the file is unreadable, truncated, or neither 8 nor 16 bit.
    """
    with _opened(source) as file:
        found, promised = _decoded_file(file), _header(file)
        # Damage can leave a header that two decoders understand differently.
        if (found.pixels.shape, found.depth) != (promised.shape, promised.depth):
            raise ValueError(
                f"its header promises {promised.shape} with {promised.depth} bits, its pixels are {found.pixels.shape} "
                f"with {found.depth} bits"
            )
        return found


def quantise(pixels: NDArray[Any], depth: int) -> NDArray[Any]:
    """Levels of ``pixels`` on [0, 1] at ``depth`` bits (uint8 or uint16), values outside clipped; same shape."""
    top = 2**depth - 1
    levels: NDArray[Any] = np.rint(np.clip(pixels.astype(np.float64), 0.0, 1.0) * top)
    return levels.astype(np.uint16 if depth == 16 else np.uint8)


def encode(pixels: NDArray[Any], depth: int, file_format: str, icc_profile: bytes | None = None) -> bytes:
    """The bytes of an image file that holds ``pixels`` (C, H, W), C = 1 or 3, on [0, 1].

    Lossless except JPEG (quality 95, no chroma subsampling).

    Raises:
        ValueError: the format cannot hold ``depth`` bits.
    """
    if depth == 16 and file_format not in DEEP_FORMATS:
        raise ValueError(
            f"`format` must be one of {', '.join(map(repr, DEEP_FORMATS))} for 16 bit, got {file_format!r}"
        )
    levels = np.ascontiguousarray(np.moveaxis(quantise(pixels, depth), 0, -1))
    if levels.shape[-1] == 1:
        levels = levels[..., 0]
    stream = io.BytesIO()
    if file_format == "tiff":
        photometric = "minisblack" if levels.ndim == 2 else "rgb"
        tifffile.imwrite(
            stream, levels, photometric=photometric, compression="zlib", iccprofile=icc_profile, metadata=None
        )
        return stream.getvalue()
    if file_format == "png" and depth == 16:
        # Zlib level 4 takes a third of the default level's time for about one percent more bytes.
        return _with_icc(bytes(imagecodecs.png_encode(levels, level=4)), icc_profile)
    options: dict[str, dict[str, Any]] = {
        "png": {},
        "jpeg": {"quality": 95, "subsampling": 0},
        "webp": {"lossless": True},
    }
    Image.fromarray(levels).save(stream, format=file_format, icc_profile=icc_profile, **options[file_format])
    return stream.getvalue()


def write(
    path: pathlib.Path, pixels: NDArray[Any], depth: int, file_format: str, icc_profile: bytes | None = None
) -> bytes:
    """Write an image file in one atomic step and return its bytes; see :func:`encode`."""
    data = encode(pixels, depth, file_format, icc_profile)
    write_atomically(path, data)
    return data


def write_atomically(path: pathlib.Path, data: bytes) -> None:
    """Write ``data`` to ``path`` so that a reader, or a run that is cut off, never meets half a file."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    temporary = pathlib.Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        mask = os.umask(0)
        os.umask(mask)
        temporary.chmod(0o666 & ~mask)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _header(file: BinaryIO) -> ImageHeader:
    head = _head(file)
    if _is_deep_png(head):
        with Image.open(file) as image:
            colour = head[25] in (2, 3, 6)
            return ImageHeader(_shape(image.size, colour, _orientation(image)), 16)
    if _is_tiff(head):
        with tifffile.TiffFile(file) as tiff:
            page = _first_page(tiff)
            if page.bitspersample == 16:
                size = page.imagewidth, page.imagelength
                return ImageHeader(_shape(size, page.samplesperpixel >= 3, _tiff_orientation(page)), 16)
        file.seek(0)
    with Image.open(file) as image:
        return ImageHeader(_shape(image.size, _is_colour(image), _orientation(image)), 8)


def _decoded_file(file: BinaryIO) -> ImageFile:
    head = _head(file)
    if _is_deep_png(head):
        return _read_deep_png(file)
    if _is_tiff(head):
        with tifffile.TiffFile(file) as tiff:
            if _first_page(tiff).bitspersample == 16:
                return _read_deep_tiff(tiff)
        file.seek(0)
    return _read_shallow(file)


def _read_shallow(file: BinaryIO) -> ImageFile:
    with Image.open(file) as image:
        notes = _sequence_note(getattr(image, "n_frames", 1))
        colour, alpha = _is_colour(image), image.mode in _ALPHA_MODES or "transparency" in image.info
        image.load()
        upright = ImageOps.exif_transpose(image)
        if upright.mode == "P" and alpha:
            upright = upright.convert("RGBA")
        levels = np.asarray(upright.convert("RGB" if colour else "L"))
        icc_profile = image.info.get("icc_profile") if image.mode in ("L", "LA", "RGB", "RGBA") else None
    return _decoded(levels, 8, alpha, notes, icc_profile)


def _read_deep_png(file: BinaryIO) -> ImageFile:
    with Image.open(file) as image:
        orientation, icc_profile = _orientation(image), image.info.get("icc_profile")
        file.seek(0)
        levels = np.asarray(imagecodecs.png_decode(file.read()))
    channels = 1 if levels.ndim == 2 else levels.shape[-1]
    levels = levels.reshape(*levels.shape[:2], channels)
    alpha = channels in (2, 4)
    return _decoded(_upright(levels[..., : channels - alpha], orientation), 16, alpha, (), icc_profile)


def _read_deep_tiff(file: tifffile.TiffFile) -> ImageFile:
    page = _first_page(file)
    # Missing ones would be filled with zeros, one by one, millions of them where a damaged header says so.
    promised = math.prod(page.chunked)
    if len(page.dataoffsets) < promised:
        raise ValueError(f"it is truncated: it holds {len(page.dataoffsets)} of {promised} strips or tiles")
    levels = np.asarray(page.asarray())
    if levels.ndim == 2:
        levels = levels[..., None]
    elif page.planarconfig == tifffile.PLANARCONFIG.SEPARATE:
        levels = np.moveaxis(levels, 0, -1)
    if page.photometric == tifffile.PHOTOMETRIC.MINISWHITE:
        levels = 65535 - levels
    kept = 3 if page.samplesperpixel >= 3 else 1
    alpha = page.samplesperpixel > kept
    profile = page.iccprofile
    notes = _sequence_note(len(file.pages))
    return _decoded(_upright(levels[..., :kept], _tiff_orientation(page)), 16, alpha, notes, profile)


def _decoded(
    levels: NDArray[Any], depth: int, alpha: bool, notes: tuple[str, ...], icc_profile: bytes | None
) -> ImageFile:
    if alpha:
        notes = (*notes, "the alpha channel was dropped")
    channels_last = levels.reshape(*levels.shape[:2], -1)
    pixels = np.ascontiguousarray(np.moveaxis(channels_last, -1, 0), dtype=np.float32) / np.float32(2**depth - 1)
    return ImageFile(pixels, depth, notes, icc_profile)


def _sequence_note(frames: int) -> tuple[str, ...]:
    return () if frames == 1 else (f"the first of {frames} images in the file was taken",)


def _is_colour(image: Image.Image) -> bool:
    if image.mode in _GREY_MODES:
        return False
    if image.mode in _COLOUR_MODES:
        return True
    raise ValueError(f"only 8 and 16 bit grey and colour images are supported, this one has mode {image.mode!r}")


def _head(file: BinaryIO) -> bytes:
    """Enough of the file to know its kind and, of a PNG, bit depth (byte 24) and colour type (byte 25)."""
    file.seek(0)
    head = file.read(26)
    file.seek(0)
    return head


def _is_tiff(head: bytes) -> bool:
    return head[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def _is_deep_png(head: bytes) -> bool:
    return len(head) == 26 and head.startswith(_PNG_SIGNATURE) and head[24] == 16


def _first_page(file: tifffile.TiffFile) -> tifffile.TiffPage:
    page = file.pages[0]
    if not isinstance(page, tifffile.TiffPage):
        raise tifffile.TiffFileError("the first image of the file has no header of its own")
    sample = str(page.dtype)
    if page.bitspersample > 16 or (page.bitspersample == 16 and sample != "uint16"):
        raise ValueError(f"only 8 and 16 bit unsigned images are supported, this one holds {sample}")
    # As Pillow does for the other formats: a few bytes can promise more pixels than memory holds.
    most = 2 * (Image.MAX_IMAGE_PIXELS or 2**62)
    if page.imagewidth * page.imagelength > most:
        raise ValueError(f"it has {page.imagewidth} x {page.imagelength} pixels, more than {most}")
    return page


def _orientation(image: Image.Image) -> int:
    data = image.info.get("exif")
    if not data:
        return 1
    exif = Image.Exif()
    exif.load(data)
    return int(exif.get(_ORIENTATION, 1))


def _tiff_orientation(page: tifffile.TiffPage) -> int:
    tag = page.tags.get(_ORIENTATION)
    return 1 if tag is None else int(tag.value)


def _shape(size: tuple[int, int], colour: bool, orientation: int) -> tuple[int, int, int]:
    width, height = size
    if orientation >= 5:
        width, height = height, width
    return (3 if colour else 1, height, width)


def _upright(levels: NDArray[Any], orientation: int) -> NDArray[Any]:
    """Undo an EXIF orientation 1 … 8 of an array (H, W, C)."""
    if orientation >= 5:
        levels = levels.swapaxes(0, 1)
    # Of what is stored (after the swap of axes), which axes run backwards.
    flip_rows, flip_columns = {
        2: (False, True), 3: (True, True), 4: (True, False), 6: (False, True), 7: (True, True), 8: (True, False),
    }.get(orientation, (False, False))  # fmt: skip
    return levels[:: -1 if flip_rows else 1, :: -1 if flip_columns else 1]


def _with_icc(png: bytes, icc_profile: bytes | None) -> bytes:
    """A PNG with an iCCP chunk right after its header, where the format wants it."""
    if icc_profile is None:
        return png
    body = b"iCCPicc\0\0" + zlib.compress(icc_profile)
    chunk = struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
    after_header = len(_PNG_SIGNATURE) + 25
    return png[:after_header] + chunk + png[after_header:]


@contextlib.contextmanager
def _opened(source: pathlib.Path | bytes | BinaryIO) -> Iterator[BinaryIO]:
    """The file to read; whatever a decoder raises, and each has exceptions of its own, becomes an ImageError."""
    name = str(source) if isinstance(source, pathlib.Path) else "the file"
    try:
        if isinstance(source, pathlib.Path):
            with source.open("rb") as file:
                yield file
        else:
            yield io.BytesIO(source) if isinstance(source, bytes) else source
    except ImageError:
        raise
    except UnidentifiedImageError as cause:
        raise ImageError(f"{name}: cannot be read as an image: its kind is not recognised") from cause
    except Exception as cause:
        raise ImageError(f"{name}: cannot be read as an image: {cause}") from cause
