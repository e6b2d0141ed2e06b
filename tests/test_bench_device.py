"""``rmp-fast bench --device cuda`` without a card: what it asks of one, and in which order."""

from __future__ import annotations

import contextlib
import json
import pathlib
import types
from collections.abc import Callable
from typing import Any

import pytest
import torch
from simulated_graphs import Driver
from test_bench import FEW, OPERATORS, make, rows
from test_cli import photo, save
from torch.overrides import TorchFunctionMode

import rmp_fast as rmp
from rmp_fast import backends, graph
from rmp_fast.bench import harness, kernels, methods
from rmp_fast.bench.harness import AbsentError, Arm, Measured, Result
from rmp_fast.bench.results import row
from rmp_fast.cli import main

CARD = torch.device("cuda", 0)
HELD, PEAK = 100, 5_000_100  # bytes of the stand-in for a card's allocator


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A grey crop of 32 x 32 pixels."""
    path = tmp_path_factory.mktemp("pictures") / "face.png"
    save(path, photo(40)[:32, :32, 1])
    return path


def stand_in(patch: pytest.MonkeyPatch, synchronize: Callable[..., object]) -> None:
    """What the harness asks of torch.cuda."""
    answers: dict[str, Callable[..., object]] = {
        "synchronize": synchronize,
        "reset_peak_memory_stats": lambda device: None,
        "memory_allocated": lambda device: HELD,
        "max_memory_allocated": lambda device: PEAK,
    }
    for name, answer in answers.items():
        patch.setattr(torch.cuda, name, answer)


@pytest.mark.parametrize("device", [CARD, torch.device("cpu")], ids=str)
def test_a_card_is_idle_when_the_clock_is_read(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []

    def say(word: str, answer: Any = None) -> Any:
        told.append(word)
        return answer

    def prepare() -> Callable[[], Result]:
        told.append("make")
        return lambda: say("call", Result(torch.zeros(1, 1, 2, 2), 3, 0, {"network": 0.1}, kept_bytes=1_000_000))

    def synchronize(given: torch.device) -> None:
        assert given == device
        told.append("sync")

    stand_in(monkeypatch, synchronize)
    monkeypatch.setattr(harness, "time", types.SimpleNamespace(perf_counter=lambda: say("clock", float(len(told)))))
    monkeypatch.setattr(harness, "SHORT", 100.0)
    arm = Arm("rmp-graph", "rmp-graph-3", "preset", 3, prepare, lambda result: say("check", "looked at"), 0.1)
    (measured,) = harness.measure([arm], budget=0, device=device)
    waits = ["sync"] if device.type == "cuda" else []
    first = ["clock", "make", *waits, "clock", "call", *waits, "clock", "check", "call", *waits]
    assert told == first + 3 * [*waits, "clock", "call", *waits, "clock"]
    if device.type == "cuda":
        assert measured.peak_bytes == PEAK - HELD
        where = {"prior": "fashion", "device": "a card", "threads": 1, "versions": "", "commit": None}
        found = row(measured, torch.zeros(1, 1, 2, 2), "quality", "denoise", where)
        assert found.peak_memory_mb == 6  # with what a graph keeps


def test_parts_are_told_on_the_cpu_alone() -> None:
    """They are of the host's clock, which does not wait: ``meta`` stands for any device that is not the host."""
    never: Any = None
    arm = Arm("rmp", "rmp-3", "preset", 3, make=never, check=never, tolerance=0.1)
    for device, told in (("cpu", 0.1), ("meta", None)):
        result = Result(torch.zeros(1, device=device), 3, 0, {"network": 0.1})
        assert Measured(arm, result, "", None, None, [1.0], [result.seconds]).part("network") == told


@pytest.mark.parametrize(
    ("device", "cards", "message"),
    [
        ("cuda", 0, "`device` 'cuda' needs CUDA, but torch"),
        ("cuda:1", 1, "`device` 'cuda:1' is not there: torch finds 1 CUDA device(s)"),
        ("meta", 0, "`device` must be 'cpu' or a CUDA device, got 'meta'"),
        ("nothing", 0, "nothing"),
    ],
)
def test_a_device_that_is_not_there_is_refused_before_any_work(
    device: str, cards: int, message: str, picture: pathlib.Path, tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch, capsys: Any,
) -> None:  # fmt: skip
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cards > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: cards)
    monkeypatch.setattr(rmp.priors, "load", lambda name: pytest.fail("work was done"))
    out = tmp_path / "out"
    assert main(["bench", f"--images={picture}", "--prior=fashion", f"--device={device}", f"--out={out}"]) == 2
    assert message in capsys.readouterr().err
    assert not out.exists()


def test_the_cpu_by_its_name(picture: pathlib.Path, tmp_path: pathlib.Path) -> None:
    chosen = ["--task=denoise", "--methods", "rmp-untuned", "rmp-graph", "--sections=quality"]
    for name, device in (("named", ["--device=cpu"]), ("default", [])):
        out = tmp_path / name
        assert main(["bench", f"--images={picture}", *FEW, *chosen, *device, f"--out={out}"]) == 0
    named, default = (json.loads((tmp_path / name / "bench.json").read_text()) for name in ("named", "default"))
    assert [r["label"] for r in named["rows"]] == ["rmp-untuned-4"]
    for same in ("psnr", "ssim", "check", "device"):
        assert named["rows"][0][same] == default["rows"][0][same]
    assert named["left_out"] == default["left_out"]
    (absent,) = named["left_out"]
    assert absent["what"] == "rmp-graph"
    assert absent["why"] == "CUDA graphs record the work of a CUDA device, and the device is cpu"
    assert set(named["environment"]) == set(default["environment"])
    assert "device" not in named["environment"]


class _OnTheCpu(TorchFunctionMode):
    """Tensors that are to lie on the card lie on the CPU."""

    asked = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        def swapped(value: Any) -> Any:
            if not isinstance(value, torch.device) or value.type != "cuda":
                return value
            self.asked += 1
            return torch.device("cpu")

        return func(*map(swapped, args), **{name: swapped(value) for name, value in (kwargs or {}).items()})


def test_a_whole_run_as_on_a_card(
    picture: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """Every line of the command but what the card itself does."""
    rounded: list[bool] = []
    stand_in(monkeypatch, lambda device: rounded.append(torch.backends.cudnn.allow_tf32))
    monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Some Card")
    monkeypatch.setattr(kernels, "place_of", lambda name: CARD)
    monkeypatch.setattr(backends, "status", lambda device, dtype: dict.fromkeys(backends.BACKENDS))
    before = torch.backends.cudnn.allow_tf32
    out = tmp_path / "out"
    chosen = ["--methods", "rmp-untuned", "eager", "ddrm", "--task", "inpaint_random", "--device=cuda", "--batch=1"]
    monkeypatch.setattr(methods, "Plan", lambda *args, **options: rmp.Plan(*args, **{"backend": "torch", **options}))
    with _OnTheCpu() as mode:
        assert main(["bench", f"--images={picture}", *FEW, *chosen, f"--out={out}"]) == 0
    assert mode.asked > 3  # the truth, the measurement, the seeds and the network
    assert len(rounded) > 0
    assert not any(rounded)
    assert torch.backends.cudnn.allow_tf32 == before
    document = json.loads((out / "bench.json").read_text())
    assert document["finished"]
    assert "--device cuda" in document["command"]
    environment = document["environment"]
    assert (environment["device"], environment["kernels"]) == ("Some Card", "cuda")
    assert {r["section"] for r in document["rows"]} == {"quality", "batch", "images", "pixels", "evaluations"}
    assert {(r["device"], r["peak_memory_mb"]) for r in document["rows"]} == {("Some Card", 5.0)}
    assert len(rows(out)) == len(document["rows"])
    reasons = {entry["what"]: entry["why"] for entry in document["left_out"]}
    assert "rmp-fast roofline --device cuda:0" in reasons["the kernels' roofline"]
    assert "does not wait for a card" in reasons["where the time goes"]
    assert "roofline" not in document["extras"]
    page = (out / "bench.html").read_text()
    assert page.count("Some Card") >= 2  # at the head and in the environment
    assert "without TF32" in page
    assert (out / "pictures_inpaint_random.png").is_file()
    assert "left out where the time goes" in capsys.readouterr().err


@pytest.mark.parametrize("name", methods.GRAPHS)
def test_a_captured_arm(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    driver = Driver(monkeypatch)
    monkeypatch.setattr(backends, "preferred", lambda device, dtype: "torch")
    given = make(rmp.priors.load("fashion"), "denoise", OPERATORS["denoise"]())
    arm = methods._rmp(given, name, 4)
    call = arm.make()
    driver.calls.clear()
    first = call()
    assert [what for what, _ in driver.calls] == ["replay"]
    assert "equals the chain in plain torch" in arm.check(first)
    assert torch.equal(call().mean, first.mean)
    assert (first.evaluations, first.seconds) == (4, {})
    assert first.kept_bytes > first.mean.nbytes
    pieces = graph.Recording(False, 9, "item at x.py:1", 0)
    monkeypatch.setattr(rmp.Plan, "capture", lambda self, pool: pieces)
    with pytest.raises(AbsentError, match=r"the chain is not one graph: item at x\.py:1"):
        arm.make()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device")
def test_a_whole_run_on_a_gpu(picture: pathlib.Path, tmp_path: pathlib.Path) -> None:
    out = tmp_path / "out"
    chosen = ["rmp-untuned", "rmp-untuned-graph", "eager", "ddrm", "pigdm"]
    arguments = ["--device=cuda", "--batch=2", "--methods", *chosen]
    assert main(["bench", f"--images={picture}", *FEW, *arguments, f"--out={out}"]) == 0
    document = json.loads((out / "bench.json").read_text())
    quality = {r["method"]: r for r in document["rows"] if r["section"] == "quality"}
    assert set(quality) == set(chosen)
    for found in quality.values():
        assert found["device"] == torch.cuda.get_device_name()
        assert found["peak_memory_mb"] > 0
        assert found["network_seconds"] is None
