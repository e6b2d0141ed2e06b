"""Every reader of files, given real files with some bytes changed.

A reader may return or raise its own refusal; what it returns is checked for shape and finiteness.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import io
import json
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np
import safetensors.torch
import tifffile
import torch
from choices import Choices, pick
from PIL import Image

from rmp_fast import images, schedules
from rmp_fast.cli import arrays, record, tasks, tune
from rmp_fast.cli.usage import UsageError
from rmp_fast.priors.files import read_state
from rmp_fast.serving import decode
from rmp_fast.serving.refusals import RequestError

#: UsageError and ImageError among them.
REFUSALS = (ValueError,)


def _image(path: pathlib.Path) -> None:
    found, header = images.read(path), images.probe(path)
    assert (found.pixels.ndim, found.pixels.dtype) == (3, np.float32)
    assert found.pixels.shape[0] in (1, 3)
    assert found.depth in (8, 16)
    assert bool(((found.pixels >= 0) & (found.pixels <= 1)).all())
    assert (header.shape, header.depth) == (found.pixels.shape, found.depth), header


def _mask(path: pathlib.Path) -> None:
    known = tasks._read_mask(path, False)
    assert (known.ndim, known.dtype) == (3, bool)
    assert known.any()


def _kernel(path: pathlib.Path) -> None:
    kernel = tasks._read_kernel(path, varies=True)
    assert kernel.ndim in (2, 4)
    assert kernel.size
    assert np.isfinite(kernel).all()


def _maps(path: pathlib.Path) -> None:
    assert tasks._read_maps(path).ndim == 3


def _weights(path: pathlib.Path) -> None:
    state = read_state(path)
    assert all(isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in state.items())


def _upload(path: pathlib.Path) -> None:
    """What the service decodes, names the field and never the file."""
    data = path.read_bytes()
    try:
        if decode.is_array("image", data):
            allowed = decode.Numbers((4, "coils"), axes=4, complex=True)
            values = decode.array("image", data, 10_000, allowed)
            assert values.ndim in (1, 2, 3, 4)
            assert values.size <= 4 * 10_000
            for operator in ("mri", "phase_retrieval"):
                with contextlib.suppress(UsageError):
                    assert np.isfinite(arrays.as_measurement(values, operator, "image")).all()
            assert decode.array("image", data, 10_000).ndim in (1, 2, 3)
        else:
            assert decode.picture("image", data, 10_000).pixels.size <= 3 * 10_000
    except RequestError as error:
        if not 400 <= error.status < 500:
            raise
        raise UsageError(f"{path}: {error}") from error


def _presets(path: pathlib.Path) -> None:
    options = argparse.Namespace(out=path, append=True, force=False, evaluations=20, task="sr4")
    assert isinstance(tune._read_presets(options), dict)


def _sidecar(path: pathlib.Path) -> None:
    assert record.is_finished(path, "a", "b", True) in (False, True)


def _pictures() -> dict[str, bytes]:
    rng = np.random.default_rng(0)
    grey, colour = rng.integers(0, 256, (9, 7), np.uint8), rng.integers(0, 256, (9, 7, 3), np.uint8)
    deep = rng.integers(0, 65536, (9, 7, 3), np.uint16)
    exif = Image.Exif()
    exif[0x0112] = 6
    files: dict[str, bytes] = {}

    def save(name: str, picture: Image.Image, **options: Any) -> None:
        stream = io.BytesIO()
        picture.save(
            stream, format={"jpg": "JPEG", "tif": "TIFF"}.get(name.split(".")[-1], name.split(".")[-1]), **options
        )
        files[name] = stream.getvalue()

    save("grey.png", Image.fromarray(grey))
    save("palette.png", Image.fromarray(colour).quantize(8), transparency=1)
    save("alpha.png", Image.fromarray(colour).convert("RGBA"), exif=exif)
    save("colour.jpg", Image.fromarray(colour), exif=exif)
    save("progressive.jpg", Image.fromarray(grey), progressive=True)
    save("lossy.webp", Image.fromarray(colour))
    save("lossless.webp", Image.fromarray(colour), lossless=True)
    save("shallow.tif", Image.fromarray(colour), compression="tiff_lzw")
    files["deep.png"] = images.encode(np.moveaxis(deep, -1, 0) / 65535, 16, "png", b"profile")
    files["deep grey.png"] = images.encode(grey[None] / 255, 16, "png")
    for name, options in {
        "deep.tif": {"compression": "zlib"}, "planes.tif": {"planarconfig": "separate"},
        "tiles.tif": {"tile": (16, 16)},
    }.items():  # fmt: skip
        stream = io.BytesIO()
        array = np.moveaxis(deep, -1, 0) if name == "planes.tif" else deep
        tifffile.imwrite(stream, array, photometric="rgb", metadata=None, **options)
        files[name] = stream.getvalue()
    return files


def _arrays() -> dict[str, bytes]:
    files: dict[str, bytes] = {}
    made = {
        "mask.npy": np.eye(5) > 0,
        "kernel.npy": np.ones((3, 5)),
        "cube.npy": np.ones((3, 4, 4), "f4"),
        "maps.npy": np.ones((2, 4, 4), "c8"),
        "order.npy": np.asfortranarray(np.ones((4, 3), np.int16)),
    }
    for name, array in made.items():
        stream = io.BytesIO()
        np.save(stream, array)
        files[name] = stream.getvalue()
    stream = io.BytesIO()
    np.savez(stream, a=np.ones(3))
    return {**files, "zip.npy": stream.getvalue()}


def _states() -> dict[str, bytes]:
    state = {"weight": torch.ones(2, 3), "bias": torch.zeros(3)}
    stream = io.BytesIO()
    torch.save(state, stream)
    return {"state.safetensors": safetensors.torch.save(state), "state.pt": stream.getvalue()}


@functools.cache
def corpus() -> dict[Callable[[pathlib.Path], None], dict[str, bytes]]:
    """The real files of every reader, by name."""
    pictures, numbers = _pictures(), _arrays()
    presets = (pathlib.Path(images.__file__).parent / "presets" / "fashion.json").read_bytes()
    looks = {field.name: [1.0] for field in dataclasses.fields(schedules.Looks)}
    # Mostly text that says where it comes from, so that some of its mutations are presets still.
    small = {"sr4": {"1": {"start": "zero", "looks": looks, "command": 100 * "rmp-fast tune "}}}
    sidecar = {"schema": record.SCHEMA, "settings_hash": "a", "input": {"sha256": "b"}, "output": {"file": "x.png"}}
    uploads = {name: data for name, data in (pictures | numbers).items() if name.endswith(("png", "jpg", "npy"))}
    return {
        _image: pictures,
        _mask: pictures | numbers,
        _kernel: pictures | numbers,
        _maps: {"maps.npy": numbers["maps.npy"]},
        _upload: uploads,
        _weights: _states(),
        _presets: {"presets.json": presets, "small.json": json.dumps(small).encode()},
        _sidecar: {"x.json": json.dumps(sidecar).encode()},
    }


def mutated(choices: Choices, data: bytes) -> bytes:
    """Some bytes replaced, inserted, removed, repeated or cut off."""
    changed = bytearray(data)
    for _ in range(choices.integer(0, 6)):
        at = choices.integer(0, len(changed))
        length = choices.integer(0, 8)
        kind = choices.integer(0, 5)
        if kind == 0:
            changed[at : at + 1] = bytes([choices.integer(0, 255)])
        elif kind == 1:
            changed[at:at] = choices.binary(16)
        elif kind == 2:
            del changed[at : at + length]
        elif kind == 3:
            changed[at : at + length] = pick(choices, (b"\0", b"\xff", b"\x7f", b"[", b"{", b"9")) * length
        elif kind == 4:
            del changed[at:]
        else:
            changed[at:at] = bytes(changed[at : at + length]) * pick(choices, (1, 2, 200, 2000))
    return bytes(changed)


def call(choices: Choices, folder: pathlib.Path) -> str:
    """One mutated file through its reader; returns the reader, the file and whether it was taken."""
    reader = pick(choices, tuple(corpus()))
    name = pick(choices, tuple(corpus()[reader]))
    path = folder / name
    path.write_bytes(mutated(choices, corpus()[reader][name]))
    try:
        reader(path)
        outcome = "read"
    except REFUSALS as error:
        outcome = "refused" if str(path) in str(error) else f"refused without the file's name: {error}"
    assert "without" not in outcome, outcome
    return f"{reader.__name__[1:]} {name} {outcome}"
