"""The timing table of a GPU, on the CPU: all but its clock."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import scripts
import torch
from simulated_graphs import Driver
from torch import Tensor

import rmp_fast as rmp
from rmp_fast import graph
from rmp_fast.bench import cost, eager, interleave, kernels
from rmp_fast.bench.devices import DEVICES, known
from rmp_fast.bench.interleave import Timing
from rmp_fast.cli import main
from rmp_fast.cli.roofline import render
from rmp_fast.torch_step import TorchStep

CPU = torch.device("cpu")
KERNELS = [
    "natural_step", "natural_step, noise", "natural_step, drawn, noise", "natural_step, antithetic, noise",
    "natural_step, isotropic precision, noise", "natural_step, diagonal precision, noise",
    "natural_step, identity, noise", "natural_step, mask, noise", "natural_step, block average, noise",
    "natural_step, gradient, noise", "mask", "block_average, factor 4", "block_average_adjoint, factor 4",
    "separable_blur, 17 x 17 taps", "clip_gradient, held, divided", "normals", "spectral, real", "spectral, complex",
]  # fmt: skip


@pytest.fixture(scope="module")
def script() -> Any:
    return scripts.load("bench_gpu")


def given_times(arms: dict[str, Callable[[], object]], **_: Any) -> dict[str, Timing]:
    """Ours in 1 ms, and the others in 2, 3, ... ms; all arms can be called."""
    for call in arms.values():
        call()
    order = sorted(arms, key=lambda name: name not in ("ours", "plan"))
    seconds = {name: 1e-3 * place for place, name in enumerate(order, 1)}
    return {name: Timing(seconds[name], 0.9 * seconds[name], 1.1 * seconds[name]) for name in arms}


@pytest.mark.parametrize("shape", [(2, 3, 9, 7), (1, 1, 16, 12)], ids=str)
def test_every_kernel_has_its_row(shape: tuple[int, ...]) -> None:
    report = kernels.measure("cpu", [shape], rounds=5, sample=1e-5)
    assert report["refused"] == []
    assert [row["kernel"] for row in report["kernels"]] == KERNELS
    for row in report["kernels"]:
        assert row["shape"] == list(shape)
        assert 0 < row["low"] <= row["seconds"] <= row["high"]
        assert row["torch_ratio"] == pytest.approx(row["torch_seconds"] / row["seconds"])
        assert row["bandwidth_share"] == pytest.approx(row["gbps"] / row["copy_gbps"])
    step = report["kernels"][1]
    assert step["bytes"] == torch.Size(shape).numel() * 20
    text = render({**report, "device": {**report["device"], "id": "cuda"}})
    assert all(sum(line.startswith(f"{name}  ") for line in text.splitlines()) == 1 for name in KERNELS)


def test_ratios_of_given_times() -> None:
    work = cost.natural_step(3 * 256 * 256, perturbed=True).of(16)
    times = {"ours": 40e-6, "torch": 400e-6, "copy": 30e-6}
    timings = {name: Timing(t, 0.9 * t, 1.1 * t) for name, t in times.items()}
    row = kernels.row(work, (16, 3, 256, 256), timings, None)
    assert row["bytes"] == 16 * 3 * 256 * 256 * 20
    assert (row["torch_ratio"], row["bandwidth_share"]) == (pytest.approx(10), pytest.approx(0.75))
    assert row["gbps"] == pytest.approx(row["bytes"] / 40e-6 / 1e9)
    assert row["graph_seconds"] is row["paper_seconds"] is None
    # Inside a graph no host delays either.
    timings |= {
        name: Timing(t * kernels.GRAPHED, 0, 1) for name, t in {"ours, graph": 25e-6, "copy, graph": 20e-6}.items()
    }
    row = kernels.row(work, (16, 3, 256, 256), timings, known("NVIDIA H100 80GB HBM3"))
    assert row["graph_seconds"] == pytest.approx(25e-6)
    assert row["bandwidth_share"] == pytest.approx(0.8)
    assert row["copy_gbps"] == pytest.approx(row["bytes"] / 20e-6 / 1e9)
    assert row["torch_ratio"] == pytest.approx(10)
    assert row["paper_seconds"] == DEVICES["h100"].seconds(work)
    assert known("NVIDIA H100 PCIe") is None


def test_the_whole_table(script: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for module in (kernels, script):
        monkeypatch.setattr(module, "interleaved", given_times)
    monkeypatch.setattr(script, "EVALUATIONS", 4)
    assert script.main(["--device=cpu", "--images", "1", "2", "--side=16"]) == 0
    text = capsys.readouterr().out
    lines = text.splitlines()
    for size in ("1 x 3 x 16 x 16", "2 x 3 x 16 x 16", "1 x 1 x 32 x 32"):
        assert sum(size in line and line.startswith(tuple(KERNELS)) for line in lines) == len(KERNELS)
    # 2 ms against 1 ms, of one image and of two.
    for chain in ("fashion, 1 x 1 x 32 x 32", "photo, 1 x 3 x 16 x 16"):
        eager_row, plan_row = (line for line in lines if line.startswith(chain))
        assert "2.000  1.800-2.200    500.00          1.00" in eager_row
        assert "1.000  0.900-1.100   1000.00          2.00" in plan_row
    (plan_row,) = (line for line in lines if line.startswith("fashion, 2 x 1 x 32 x 32") and " plan " in line)
    assert "0.500  0.450-0.550   2000.00          2.00" in plan_row
    assert "NO ROW" not in text


def test_what_does_not_agree_has_no_row(monkeypatch: pytest.MonkeyPatch) -> None:
    class Shifted(TorchStep):
        def __call__(self, look: int, denoised: Tensor, evaluation: int) -> None:
            super().__call__(look, denoised, evaluation)
            if self.correction == "gradient":
                self.next_mean[..., -1].add_(1e-3)

    monkeypatch.setattr(kernels, "TorchStep", Shifted)
    monkeypatch.setitem(kernels._EAGER, "mask", lambda x, mask, out: x)
    monkeypatch.setattr(kernels, "interleaved", given_times)
    report = kernels.measure("cpu", [(1, 1, 8, 8)])
    assert [row["kernel"] for row in report["kernels"]] == [
        name for name in KERNELS if name not in ("mask", "natural_step, gradient, noise")
    ]
    step, mask = report["refused"]
    assert step.startswith(
        "1 x 1 x 8 x 8: natural_step, gradient, noise: `next_mean` differs from eager torch by 0.001"
    )
    assert "mask: the result differs" in mask
    assert f"NO ROW: {mask}" in render({**report, "device": {**report["device"], "id": "cuda"}})


def test_what_a_kernel_leaves_out_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels.ops, "kernels", lambda backend, *tensors: type("Idle", (), {"mask": lambda *_: None}))
    case = kernels._call_case("mask", kernels.calls((1, 1, 4, 4))[0][1], "cpu")
    with pytest.raises(kernels.CheckError, match="differs from eager torch by nan"):
        case.check()


def small(script: Any) -> Any:
    return script.inpainting(rmp.priors.load("fashion"), (2, 1, 16, 16), CPU)


def test_a_chain_that_does_not_agree_has_no_row(script: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    correct = eager.corrector
    monkeypatch.setattr(eager, "corrector", lambda op, y, noise, shape: correct(op, y + 0.01, noise, shape))
    rows, (reason,) = script.chain_rows(small(script), "auto", False, 4)
    assert rows == []
    assert "eager torch and the plan differ by" in reason


def test_graphs_of_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = Driver(monkeypatch)
    monkeypatch.setattr(kernels, "GRAPHED", 3)
    case = kernels._step_case((2, 1, 4, 4), CPU, "torch", perturbed=True)
    made = kernels.arms(case, CPU, graphed=True)
    assert list(made) == ["ours", "torch", "copy", "ours, graph", "copy, graph"]
    for call in made.values():
        call()
    assert [what for what, _ in driver.calls] == ["capture", "capture", "replay", "replay"]
    (pool,) = driver.pools.values()
    of_steps, of_copies = ([str(function) for function, *_ in one.calls] for one in pool)
    assert of_copies == ["aten.copy_.default"] * 3  # of as many bytes as the step's
    assert of_steps == of_steps[: len(of_steps) // 3] * 3


def test_a_captured_chain(script: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    Driver(monkeypatch)
    monkeypatch.setattr(script, "interleaved", given_times)
    rows, refused = script.chain_rows(small(script), "torch", True, 4)
    assert refused == []
    assert [row["arm"] for row in rows] == ["eager torch", "plan", "plan, captured"]
    assert rows[2]["checked"] == "to the bit"
    assert rows[2]["eager_ratio"] == pytest.approx(2 / 3)
    assert "plan, captured" in script.chain_table(rows)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda self, plan, tally: (self.buffers.variance, 1), "the captured plan differs from the same without"),
        (None, "the chain is not one graph: item at x.py:1"),
    ],
)
def test_a_captured_chain_that_does_not_agree(
    script: Any, monkeypatch: pytest.MonkeyPatch, wrong: Any, message: str
) -> None:
    Driver(monkeypatch)
    monkeypatch.setattr(script, "interleaved", given_times)
    if wrong is None:
        pieces = graph.Recording(False, 9, "item at x.py:1", 0)
        monkeypatch.setattr(rmp.Plan, "capture", lambda self: pieces)
    else:
        monkeypatch.setattr(graph._Whole, "_replay", wrong)
    rows, (reason,) = script.chain_rows(small(script), "torch", True, 4)
    assert [row["arm"] for row in rows] == ["eager torch", "plan"]
    assert message in reason


def test_events_tell_the_time_of_a_card(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    told: list[str] = []

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            self.at = now[0]
            told.append("record")

        def synchronize(self) -> None:
            told.append("synchronize")

        def elapsed_time(self, end: Event) -> float:
            assert told[-1] == "synchronize"
            return end.at - self.at

    def takes(milliseconds: float) -> Callable[[], None]:
        def call() -> None:
            now[0] += milliseconds

        return call

    monkeypatch.setattr(torch.cuda, "Event", Event)
    found = interleave.interleaved({"a": takes(2.0), "b": takes(0.5)}, rounds=5, device="cuda")
    assert (found["a"].median, found["b"].median) == (pytest.approx(2e-3), pytest.approx(5e-4))


@pytest.mark.parametrize(
    ("device", "backend", "message"),
    [
        ("cuda", "auto", "`device` 'cuda' needs CUDA, but torch"),
        ("meta", "auto", "`device` must be 'cpu' or a CUDA device, got 'meta'"),
        ("cpu", "torch", "no kernels to measure on cpu with `backend` 'torch'"),
        ("cpu", "cudda", "did you mean 'cuda'"),
    ],
)
def test_devices_are_refused(device: str, backend: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match=message):
        kernels.device_of(device, backend)


def test_a_card_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ValueError, match=r"`device` 'cuda:1' is not there: torch finds 1 CUDA device\(s\)"):
        kernels.device_of("cuda:1")


def test_without_a_card_nothing_is_done(
    script: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(kernels, "cases", lambda *_: pytest.fail("work was done"))
    for arguments in ([], ["--device=nothing"], ["--device=cpu", "--images", "0"]):
        with pytest.raises(SystemExit, match="2"):
            script.main(arguments)
    told = capsys.readouterr().err
    assert "needs CUDA, but torch" in told
    assert "nothing" in told
    assert "must be at least 1" in told
    assert main(["roofline", "--device=cuda"]) == 2
    assert "needs CUDA, but torch" in capsys.readouterr().err
    assert main(["roofline", "--device=cuda", "--tasks", "sr4"]) == 2
    assert "`--tasks` does not go with --device cuda" in capsys.readouterr().err
    assert main(["roofline", "--device=cuda", "--threads=2"]) == 2
    assert "cuda works on its own" in capsys.readouterr().err
