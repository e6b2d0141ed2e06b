"""Fuzzing in short: the same examples every time, in a process whose death fails the test; and what it once found.

Longer, and guided by coverage: ``python tests/fuzz/run.py files --guided 600``.
"""

from __future__ import annotations

import argparse
import pathlib
import re
import struct
import subprocess
import sys

import numpy as np
import pytest
import tifffile
import torch

from rmp_fast import _core, images
from rmp_fast.cli import record, tasks, tune
from rmp_fast.cli.usage import UsageError
from rmp_fast.priors.files import read_state

RUN = pathlib.Path(__file__).parent / "fuzz" / "run.py"


@pytest.mark.parametrize(("target", "examples"), [("core", 800), ("files", 800)])
def test_nothing_crashes(target, examples):
    pytest.importorskip("hypothesis")
    done = subprocess.run(
        [sys.executable, RUN, target, "--examples", str(examples)], capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    outcomes = {line.split(maxsplit=1)[1]: int(line.split()[0]) for line in done.stdout.splitlines()}
    assert sum(outcomes.values()) >= examples
    # It asks for things that fit, too, of every entry and reader.
    names = {name.split()[0] for name in outcomes}
    fitting = {name.split()[0] for name in outcomes if name.endswith(("worked", "read"))}
    assert fitting == names
    assert len(names) == {"core": 11, "files": 8}[target]


@pytest.mark.parametrize("header", [b"{'descr': '<f8', 'shape': (3,", b"\0" * 20, b"(" * 300, b"{'descr': '<f8'}"])
def test_a_broken_array_header_is_refused_with_the_files_name(tmp_path, header):
    path = tmp_path / "kernel.npy"
    path.write_bytes(b"\x93NUMPY\x01\0" + struct.pack("<H", len(header)) + header)
    with pytest.raises(UsageError, match=re.escape(f"`--kernel` {path}: cannot be read as an array of numbers")):
        tasks._read_kernel(path, False)


def test_an_archive_is_no_array(tmp_path):
    path = tmp_path / "mask.npy"
    with path.open("wb") as file:
        np.savez(file, a=np.ones(3))
    with pytest.raises(UsageError, match="cannot be read as an array of numbers"):
        tasks._read_mask(path, False)
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(UsageError, match="cannot be read as an array of numbers"):
        tasks._read_mask(path, False)


@pytest.mark.parametrize("damage", [b"", b"q", b"\x80\x02q", b"\x80\x02K"])
def test_a_damaged_torch_file_is_refused_with_its_name(tmp_path, damage):
    path = tmp_path / "weights.pt"
    path.write_bytes(damage)
    with pytest.raises(ValueError, match=re.escape(f"`path` {path}")):
        read_state(path)


def test_json_without_end_is_refused(tmp_path):
    path = tmp_path / "presets.json"
    path.write_text('{"sr4": ' + "[" * 100_000)
    options = argparse.Namespace(out=path, append=True, force=False, evaluations=20, task="sr4")
    with pytest.raises(UsageError, match="cannot be read as presets"):
        tune._read_presets(options)
    assert not record.is_finished(path, "a", "b", True)


def test_a_tiff_that_promises_gigapixels_is_refused_before_it_is_decoded(tmp_path):
    path = tmp_path / "bomb.tif"
    tifffile.imwrite(path, np.zeros((4, 4), np.uint16), metadata=None)
    data = path.read_bytes()
    for tag in (256, 257):  # ImageWidth and ImageLength, one SHORT or LONG each
        at = data.index(struct.pack("<H", tag), 8)
        data = data[: at + 2] + struct.pack("<HII", 4, 1, 2**20) + data[at + 12 :]
    path.write_bytes(data)
    for reader in (images.probe, images.read):
        with pytest.raises(images.ImageError, match="it has 1048576 x 1048576 pixels, more than"):
            reader(path)


def test_a_tiff_that_promises_millions_of_strips_is_refused_before_they_are_filled(tmp_path):
    path = tmp_path / "strips.tif"
    tifffile.imwrite(path, np.zeros((4, 4), np.uint16), rowsperstrip=1, metadata=None)
    assert images.read(path).pixels.shape == (1, 4, 4)
    data = path.read_bytes()
    at = data.index(struct.pack("<H", 257), 8)  # ImageLength
    path.write_bytes(data[: at + 2] + struct.pack("<HII", 4, 1, 5_000_000) + data[at + 12 :])
    with pytest.raises(images.ImageError, match="it is truncated: it holds 4 of 5000000 strips or tiles"):
        images.read(path)


def test_a_header_that_disagrees_with_the_pixels_is_refused(tmp_path, monkeypatch):
    """As in a damaged TIFF whose planes are told to lie otherwise than they do."""
    path = tmp_path / "deep.tif"
    tifffile.imwrite(path, np.zeros((3, 5, 4), np.uint16), photometric="rgb", planarconfig="separate", metadata=None)
    assert images.read(path).pixels.shape == images.probe(path).shape == (3, 5, 4)
    monkeypatch.setattr(images, "_header", lambda _: images.ImageHeader((1, 5, 4), 16))
    with pytest.raises(images.ImageError, match=re.escape("its header promises (1, 5, 4) with 16 bits")):
        images.read(path)


@pytest.mark.parametrize("factor", [2**63 - 1, 2**62])
def test_a_factor_at_the_end_of_its_range_is_one_block(factor):
    image, average = torch.arange(12.0).reshape(1, 1, 3, 4), torch.zeros(1, 1, 1, 1)
    _core.block_average(image, factor, average)
    assert average.item() == pytest.approx(5.5)
    back = torch.zeros_like(image)
    _core.block_average_adjoint(average, factor, back)
    assert torch.allclose(back, torch.full_like(back, 5.5 / 12))
