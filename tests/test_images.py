"""Image files: what is read is what was stored, and is written back unchanged."""

from __future__ import annotations

import pathlib

import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image

from rmp_fast import images

RNG = np.random.default_rng(1)
SHALLOW = {
    1: RNG.integers(0, 256, (13, 20), dtype=np.uint8),
    3: RNG.integers(0, 256, (13, 20, 3), dtype=np.uint8),
}
DEEP = {
    1: RNG.integers(0, 65536, (13, 20), dtype=np.uint16),
    3: RNG.integers(0, 65536, (13, 20, 3), dtype=np.uint16),
}


def channels_first(levels: np.ndarray) -> np.ndarray:
    return np.moveaxis(levels.reshape(*levels.shape[:2], -1), -1, 0)


def assert_reads(path: pathlib.Path, levels: np.ndarray, depth: int) -> images.ImageFile:
    image = images.read(path)
    expected = channels_first(levels)
    np.testing.assert_array_equal(images.quantise(image.pixels, depth), expected)
    assert image.pixels.dtype == np.float32
    assert image.depth == depth
    assert images.probe(path) == images.ImageHeader(expected.shape, depth)
    with path.open("rb") as file:
        file.seek(9)
        again = images.read(file)
        assert images.probe(file) == images.ImageHeader(expected.shape, depth)
    np.testing.assert_array_equal(again.pixels, image.pixels)
    return image


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("depth", "file_format"), [(8, "png"), (8, "tiff"), (8, "webp"), (16, "png"), (16, "tiff")])
def test_round_trip_is_exact(tmp_path: pathlib.Path, channels: int, depth: int, file_format: str) -> None:
    levels = (SHALLOW if depth == 8 else DEEP)[channels]
    pixels = channels_first(levels).astype(np.float32) / np.float32(2**depth - 1)
    path = tmp_path / f"image{images.FORMATS[file_format]}"
    assert images.write(path, pixels, depth, file_format) == path.read_bytes()
    if file_format == "webp" and channels == 1:  # WebP has no grey: three equal channels come back
        levels = np.repeat(levels[..., None], 3, -1)
    assert_reads(path, levels, depth)


@pytest.mark.parametrize("depth", [8, 16])
def test_every_level_survives(depth: int) -> None:
    levels = np.arange(2**depth)
    np.testing.assert_array_equal(images.quantise(levels.astype(np.float32) / np.float32(2**depth - 1), depth), levels)


def test_quantise_clips_and_rounds() -> None:
    assert images.quantise(np.array([-1.0, 0.0, 0.499 / 255, 0.501 / 255, 1.0, 2.0]), 8).tolist() == [
        0,
        0,
        0,
        1,
        255,
        255,
    ]


def test_jpeg_is_close(tmp_path: pathlib.Path) -> None:
    ramp = np.linspace(0, 1, 32, dtype=np.float32) * np.ones((3, 32, 1), dtype=np.float32)
    images.write(tmp_path / "image.jpg", ramp, 8, "jpeg")
    # Quality 95 keeps a smooth ramp within a few levels.
    assert np.abs(images.read(tmp_path / "image.jpg").pixels - ramp).max() < 5 / 255


@pytest.mark.parametrize("file_format", ["jpeg", "webp"])
def test_shallow_formats_refuse_16_bit(file_format: str) -> None:
    with pytest.raises(ValueError, match=rf"`format` must be one of 'png', 'tiff' for 16 bit, got '{file_format}'"):
        images.encode(np.zeros((3, 4, 4)), 16, file_format)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["png", "tif", "deep png", "deep tif"])
def test_exif_orientation_is_applied(tmp_path: pathlib.Path, orientation: int, kind: str) -> None:
    stored = DEEP[3] if "deep" in kind else SHALLOW[3]
    # What a viewer shows, written with numpy alone.
    shown = {
        1: stored, 2: stored[:, ::-1], 3: stored[::-1, ::-1], 4: stored[::-1], 5: stored.swapaxes(0, 1),
        6: np.rot90(stored, -1), 7: stored[::-1, ::-1].swapaxes(0, 1), 8: np.rot90(stored, 1),
    }[orientation]  # fmt: skip
    path = tmp_path / f"image.{kind[-3:]}"
    exif = Image.Exif()
    exif[0x0112] = orientation
    if kind == "deep tif":
        tifffile.imwrite(path, stored, photometric="rgb", extratags=[(0x0112, 3, 1, orientation, True)])
    elif kind == "deep png":
        Image.fromarray(SHALLOW[3]).save(path, exif=exif)
        shallow = path.read_bytes()
        start = shallow.index(b"eXIf") - 4
        chunk = shallow[start : start + 12 + int.from_bytes(shallow[start : start + 4], "big")]
        deep = imagecodecs.png_encode(stored)
        path.write_bytes(deep[:33] + chunk + deep[33:])
    else:
        Image.fromarray(stored).save(path, exif=exif)
    assert_reads(path, shown, 16 if "deep" in kind else 8)


def test_palette_and_bilevel(tmp_path: pathlib.Path) -> None:
    palette = Image.fromarray(SHALLOW[3]).quantize(16)
    palette.save(tmp_path / "palette.png")
    assert_reads(tmp_path / "palette.png", np.asarray(palette.convert("RGB")), 8)
    bilevel = Image.fromarray(SHALLOW[1]).convert("1")
    bilevel.save(tmp_path / "bilevel.png")
    assert_reads(tmp_path / "bilevel.png", np.asarray(bilevel).astype(np.uint8) * 255, 8)


@pytest.mark.parametrize("kind", ["grey png", "colour png", "deep grey png", "deep colour png", "deep colour tif"])
def test_alpha_is_dropped_with_a_note(tmp_path: pathlib.Path, kind: str) -> None:
    levels = (DEEP if "deep" in kind else SHALLOW)[3 if "colour" in kind else 1]
    levels = levels.reshape(*levels.shape[:2], -1)
    stored = np.concatenate([levels, levels[..., :1] // 2], -1)
    path = tmp_path / f"image.{kind[-3:]}"
    if kind.endswith("tif"):
        tifffile.imwrite(path, stored, photometric="rgb", extrasamples=["unassalpha"])
    elif "deep" in kind:
        path.write_bytes(imagecodecs.png_encode(stored))
    else:
        Image.fromarray(stored).save(path)
    image = assert_reads(path, levels, 16 if "deep" in kind else 8)
    assert image.notes == ("the alpha channel was dropped",)


@pytest.mark.parametrize("compression", ["lzw", "zlib", "packbits"])
def test_compressed_deep_tiff(tmp_path: pathlib.Path, compression: str) -> None:
    tifffile.imwrite(tmp_path / "image.tif", DEEP[3], photometric="rgb", compression=compression)
    assert_reads(tmp_path / "image.tif", DEEP[3], 16)


def test_planar_and_inverted_deep_tiff(tmp_path: pathlib.Path) -> None:
    planes = np.ascontiguousarray(np.moveaxis(DEEP[3], -1, 0))
    tifffile.imwrite(tmp_path / "planar.tif", planes, photometric="rgb", planarconfig="separate")
    assert_reads(tmp_path / "planar.tif", DEEP[3], 16)
    tifffile.imwrite(tmp_path / "inverted.tif", DEEP[1], photometric="miniswhite")
    assert_reads(tmp_path / "inverted.tif", 65535 - DEEP[1], 16)


def test_first_of_a_sequence_with_a_note(tmp_path: pathlib.Path) -> None:
    frames = [Image.fromarray(SHALLOW[3]), Image.fromarray(255 - SHALLOW[3])]
    frames[0].save(tmp_path / "pages.tif", save_all=True, append_images=frames[1:])
    assert assert_reads(tmp_path / "pages.tif", SHALLOW[3], 8).notes == ("the first of 2 images in the file was taken",)


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp", "tiff", "deep png", "deep tiff"])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.6])
def test_truncated_files_are_named(tmp_path: pathlib.Path, kind: str, share: float) -> None:
    depth = 16 if "deep" in kind else 8
    file_format = kind.removeprefix("deep ")
    path = tmp_path / f"cut{images.FORMATS[file_format]}"
    data = images.encode(RNG.random((3, 64, 64)), depth, file_format)
    path.write_bytes(data[: int(share * len(data))])
    with pytest.raises(images.ImageError, match=rf"cut{images.FORMATS[file_format]}: cannot be read as an image: "):
        images.read(path)


@pytest.mark.parametrize("dtype", [np.float32, np.uint32, np.int16])
def test_other_depths_are_refused(tmp_path: pathlib.Path, dtype: type) -> None:
    tifffile.imwrite(tmp_path / "image.tif", SHALLOW[1].astype(dtype))
    for function in (images.read, images.probe):
        with pytest.raises(images.ImageError, match=f"only 8 and 16 bit unsigned.*{np.dtype(dtype)}"):
            function(tmp_path / "image.tif")


@pytest.mark.parametrize(("depth", "file_format"), [(8, "png"), (16, "png"), (8, "tiff"), (16, "tiff"), (8, "jpeg")])
def test_colour_profile_is_kept(tmp_path: pathlib.Path, depth: int, file_format: str) -> None:
    from PIL import ImageCms

    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    path = tmp_path / f"image{images.FORMATS[file_format]}"
    images.write(path, RNG.random((3, 16, 16)), depth, file_format, profile)
    assert images.read(path).icc_profile == profile


def test_a_failed_write_leaves_nothing(tmp_path: pathlib.Path) -> None:
    target = tmp_path / "folder"
    target.mkdir()
    with pytest.raises(OSError, match="folder"):
        images.write_atomically(target, b"data")
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]
