"""``rmp-fast roofline`` and ``rmp-fast profile``: as processes where their output matters, else through main()."""

from __future__ import annotations

import dataclasses
import json
import math
import pathlib
from collections import Counter
from typing import Any

import pytest
import torch
from test_cli import photo, process, save

from rmp_fast.bench import roofline
from rmp_fast.bench.devices import DEVICES
from rmp_fast.cli import main
from rmp_fast.cli.roofline import render
from rmp_fast.ranges import PHASES, phase


def numbers(value: Any) -> list[float]:
    """All numbers in a JSON value."""
    if isinstance(value, dict):
        return [number for item in value.values() for number in numbers(item)]
    if isinstance(value, list):
        return [number for item in value for number in numbers(item)]
    return [value] if isinstance(value, int | float) else []


def test_on_paper_by_hand() -> None:
    report = roofline.predict("h200", ["inpaint_random"], [1, 16], 256)
    one, sixteen = report["tasks"]
    n = 3 * 256 * 256
    assert sixteen["bytes"] == 16 * n * 25
    assert sixteen["graph_seconds"] == pytest.approx(16 * n * 25 / 4.3e12 + 1.5e-6)
    assert sixteen["bandwidth_share"] == pytest.approx(1 / (1 + 1.5e-6 / (16 * n * 25 / 4.3e12)))
    # One image is moved faster than the host launches the kernel.
    assert one["eager_seconds"] == one["least_eager_seconds"] == 5e-6 > one["graph_seconds"]
    assert one["least_graph_seconds"] == 1.5e-6
    assert one["chain_graph_launches"] == 1
    share, launches, graphs = report["targets"]
    assert share["met"]
    assert share["found"] == sixteen["bandwidth_share"]
    assert (launches["found"], launches["met"]) == (1, True)
    assert (graphs["found"], graphs["met"]) == (1, True)


def test_targets_can_be_missed() -> None:
    """They are computed: a card of ten times the bandwidth would spend most of its time between kernels."""
    DEVICES["tenfold"] = dataclasses.replace(DEVICES["h100"], bandwidth=3e13)
    try:
        share = roofline.predict("tenfold", ["denoise"], [16], 256)["targets"][0]
    finally:
        del DEVICES["tenfold"]
    assert not share["met"]
    assert share["found"] < 0.7


@pytest.mark.parametrize("device", ["a100", "h100", "h200", "b200"])
def test_every_row_is_complete(device: str) -> None:
    report = json.loads(json.dumps(roofline.predict(device, ["sr4", "motion_deblur"], [1, 3], 33)))
    assert report["targets"] == []  # they are for 256 x 256
    assert {row["images"] for row in report["kernels"]} == {1, 3}
    assert {(row["task"], row["images"]) for row in report["tasks"]} == {
        (task, images) for task in ("sr4", "motion_deblur") for images in (1, 3)
    }
    assert all(math.isfinite(number) and number >= 0 for number in numbers(report))
    assert all(0 < row["bandwidth_share"] <= 1 for row in report["kernels"] + report["tasks"])
    assert "data sheet" in report["device"]["bandwidth_source"] or "measured" in report["device"]["bandwidth_source"]
    text = render(report)
    assert report["device"]["bandwidth_source"] in text
    assert "natural_step, block average, noise" in text


def test_beside_measurements(tmp_path: pathlib.Path) -> None:
    out = tmp_path / "cpu.json"
    command = ["roofline", "--device=cpu", "--tasks", "denoise", "motion_deblur", "--images", "1", "2", "--side=32"]
    done = process(*command, "--threads=1", f"--out={out}")
    assert done.returncode == 0, done.stderr
    assert "memory-bound rows" in done.stdout
    report = json.loads(out.read_text())
    found = {row["kernel"] for row in report["kernels"]}
    assert found >= {
        "natural_step, identity, noise", "natural_step, noise", "spectral, complex", "mask", "normals",
        "separable_blur, 17 x 17 taps", "block_average, factor 4", "block_average_adjoint, factor 4",
        "clip_gradient, held, divided",
    }  # fmt: skip
    for row in report["kernels"] + report["tasks"]:
        assert row["predicted_seconds"] > 0
        assert row["seconds"] > 0
        assert row["ratio"] > 0
    assert {(row["task"], row["images"]) for row in report["tasks"]} == {
        (task, images) for task in ("denoise", "motion_deblur") for images in (1, 2)
    }
    assert report["plain_gbps"] > 0
    assert report["gops"] > 0
    within = report["within"]["1"]
    assert 0 <= within["near"] <= within["memory_bound_rows"] <= len(report["kernels"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--device=h10"],
            "`--device` must be one of 'a100', 'h100', 'h200', 'b200', 'cpu', 'cuda', got 'h10'; did you mean",
        ),
        (["--tasks", "sr5"], "'sr5'; did you mean 'sr4'?"),
        (["--images", "4", "0"], "`--images` must be at least 1, got 0"),
        (["--side=0"], "`--side` must be at least 1, got 0"),
        (["--threads=2"], "`--threads` is for --device cpu, which is measured; h100 is on paper"),
        (["--device=cpu", "--threads=0"], "`--threads` must be at least 1, got 0"),
        (["--out=/no/such/folder/file"], "`--out` /no/such/folder/file: the folder does not exist"),
    ],
)
def test_roofline_refuses(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["roofline", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_roofline_replaces_nothing_unasked(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "there.json"
    out.write_text("mine")
    command = ["roofline", "--tasks=denoise", "--images=1", "--side=16", f"--out={out}", "--json"]
    assert main(command) == 2
    assert "add --force" in capsys.readouterr().err
    assert out.read_text() == "mine"
    assert main([*command, "--force"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads(out.read_text())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: roofline.predict("h101"), "h100"),
        (lambda: roofline.predict(tasks=["denoize"]), "denoise"),
        (lambda: roofline.predict(images=[0]), "`images` must be at least 1"),
        (lambda: roofline.predict(side=0), "`side` must be at least 1"),
        (lambda: roofline.predict(tasks=[]), "`tasks` and `images` must name at least one each"),
        (lambda: roofline.measure(threads=[0]), "`threads` must be at least 1"),
    ],
)
def test_functions_refuse(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


# --- Profile ---------------------------------------------------------------------------------------------------------


def test_profile(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "profile"
    command = ["profile", "--prior=fashion", "--task=gaussian_deblur", "--evaluations=4", "--batch=2", "--rounds=2"]
    done = process(*command, "--threads=1", f"--out={out}", "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report == json.loads((out / "profile.json").read_text())
    assert report["settings"]["shape"] == [2, 1, 32, 32]
    assert set(report["phases"]) == {*PHASES, "python"}
    # Nothing is left out or counted twice: of two rounds the median is the mean, and means add up.
    assert sum(report["phases"].values()) == pytest.approx(report["seconds"])
    steps = [row for row in report["kernels"] if row["kernel"].startswith("natural_step")]
    assert sum(row["calls"] for row in steps) == 4
    assert sum(row["bytes"] for row in steps) == 4 * 2 * 32 * 32 * 20
    for row in report["kernels"]:
        assert row["bandwidth_share"] == pytest.approx(row["gbps"] / report["copy_gbps"])
    assert report["network"]["gflop"] > 0.1  # 0.23 for one image of 32 x 32 and a network of 20 million products
    assert any("conv" in row["operation"] for row in report["operations"])
    events = json.loads((out / "trace.json").read_text())["traceEvents"]
    ranges = Counter(event["name"] for event in events if event.get("ph") == "X")
    assert all(ranges[f"rmp_fast::{name}"] == 4 for name in ("network", "operator", "step"))

    assert main([*command, f"--out={out}"]) == 2
    refused = capsys.readouterr().err
    assert "has results already (profile.json, trace.json)" in refused
    assert "add --force" in refused


def test_profile_of_an_image(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = save(tmp_path / "photo.png", photo(40))
    command = ["profile", f"--image={picture}", "--size=16", "--task=denoise", "--evaluations=2", "--rounds=1"]
    assert main(command) == 0
    shown = capsys.readouterr().out
    assert "denoise, photo prior, 1 x 3 x 16 x 16, 2 evaluations" in shown
    assert "natural_step, identity" in shown
    assert "of copy" in shown


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--task=denoisse"], "did you mean 'denoise'"),
        (["--prior=foto"], "did you mean 'photo'?"),
        (["--size=0"], "`--size` must be at least 1, got 0"),
        (["--batch=0"], "`--batch` must be at least 1, got 0"),
        (["--rounds=0"], "`--rounds` must be at least 1, got 0"),
        (["--evaluations=0"], "`--evaluations` must be at least 1, got 0"),
        (["--noise-std=-1"], "`--noise-std` must be a finite number >= 0, got -1"),
        (["--image=nowhere.png"], "`--image` nowhere.png does not exist"),
        (["--backend=gpu"], "`backend` must be one of"),
        (["--backend=reference", "--size=16", "--prior=fashion"], "another backend than 'reference'"),
        (["--factor=2"], "`--factor` does not apply to inpaint_random"),
    ],
)
def test_profile_refuses(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["profile", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_ranges_are_there_only_for_profilers() -> None:
    with phase("step") as nothing:
        assert nothing is None
    assert phase("step") is phase("network")
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler, phase("step"):
        torch.ones(3).sum()
    assert "rmp_fast::step" in {event.key for event in profiler.key_averages()}
