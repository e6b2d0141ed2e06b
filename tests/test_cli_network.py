"""How the command line runs the network: tiles, precision, compilation."""

from __future__ import annotations

import json
import pathlib
import shlex
from typing import Any

import numpy as np
import pytest
import skimage.data

from rmp_fast import engine, images, memory, reconstruction
from rmp_fast.cli import main

FEW = ["--operator=denoising", "--noise-std=0.05", "--evaluations=2", "--no-panel", "--quiet"]


def save(folder: pathlib.Path, height: int, width: int) -> pathlib.Path:
    pixels = np.moveaxis(skimage.data.astronaut()[:height, 100 : 100 + width], -1, 0) / 255
    images.write(folder / "face.png", pixels, 8, "png")
    return folder / "face.png"


def restore(face: pathlib.Path, out: pathlib.Path, *options: str) -> tuple[dict[str, Any], np.ndarray]:
    assert main(["reconstruct", str(face), f"--out={out}", *FEW, *options]) == 0
    entry: dict[str, Any] = json.loads((out / "face.json").read_text())
    return entry, images.read(out / "face.png").pixels


def test_tiles_and_bfloat16_are_recorded_and_repeated(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "_without_bfloat16", lambda device: None)
    face = save(tmp_path, 150, 140)
    plain, whole = restore(face, tmp_path / "whole")
    entry, tiled = restore(face, tmp_path / "tiled", "--tile=128", "--precision=bfloat16")
    assert (plain["settings"]["tile"], plain["settings"]["precision"]) == (None, "float32")
    assert (entry["settings"]["tile"], entry["settings"]["precision"]) == (128, "bfloat16")
    assert entry["settings_hash"] != plain["settings_hash"]
    assert entry["timing"]["bfloat16"] == 1
    # 45 dB is what bfloat16 must reach; tiles of a chain at low noise change less
    assert 0 < np.square(tiled - whole).mean() < 10**-4.5
    (tmp_path / "tiled" / "face.png").unlink()
    assert main(shlex.split(entry["command"])[1:]) == 0
    assert np.array_equal(images.read(tmp_path / "tiled" / "face.png").pixels, tiled)


def test_an_image_too_large_for_memory_is_tiled_and_its_command_says_how(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reconstruction, "_SMALL", 1)
    monkeypatch.setattr(memory, "available", lambda device: 2**20)
    face = save(tmp_path, 300, 120)
    entry, _ = restore(face, tmp_path / "out")
    assert "--tile=256" in entry["command"]
    entry, _ = restore(face, tmp_path / "whole", "--tile=none")
    assert "--tile=none" in entry["command"]


def test_compile_reaches_the_plan(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = []
    monkeypatch.setattr(engine.Network, "compile", lambda self, shapes, *_: compiled.extend(shapes))
    entry, _ = restore(save(tmp_path, 40, 50), tmp_path / "out", "--compile")
    assert compiled == [(1, 3, 40, 50)]
    assert entry["settings"]["compile"] is True
    assert "--compile" in shlex.split(entry["command"])


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--tile=100", "`tile` must be at least 128, got 100"),
        ("--tile=200", "`tile` must be a multiple of 64 pixels, got 200"),
        ("--tile=all", "`--tile` must be a number of pixels, none or auto, got 'all'"),
        ("--precision=bfloat", "`--precision` must be one of 'float32', 'bfloat16', got 'bfloat'; did you mean"),
    ],
)
def test_refusals(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str], option: str, message: str) -> None:
    face = save(tmp_path, 20, 20)
    assert main(["reconstruct", str(face), f"--out={tmp_path / 'out'}", *FEW, option]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
