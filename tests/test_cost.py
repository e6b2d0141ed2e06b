"""The cost of kernels on paper: its tables against what is counted, its sums against ones made by hand."""

from __future__ import annotations

import argparse
import json
import pathlib
import shutil
import subprocess

import pytest
import torch

import rmp_fast as rmp
from rmp_fast import operators, presets
from rmp_fast.bench import chains, cost, observe, roofline
from rmp_fast.bench.devices import DEVICES, Device
from rmp_fast.cli import degrade
from rmp_fast.cli.tasks import OPTIONS, resolve

ROOT = pathlib.Path(__file__).parents[1]
TRAFFIC = json.loads((ROOT / "kernels" / "traffic.json").read_text())
OPERATIONS = json.loads((ROOT / "kernels" / "operations.json").read_text())
N = 3 * 256 * 256


@pytest.mark.skipif(shutil.which("g++") is None, reason="there is no g++ here to count with")
def test_operations_are_those_that_the_formulas_take(tmp_path: pathlib.Path) -> None:
    counter = tmp_path / "counted"
    command = ["g++", "-std=c++17", "-Wall", "-Wextra", "-Werror", f"-I{ROOT}", "-o", str(counter)]
    subprocess.run([*command, str(ROOT / "tests/counted/counted.cpp")], check=True)
    counted = json.loads(subprocess.run([counter], check=True, capture_output=True, text=True).stdout)
    assert counted == OPERATIONS["formulas"]


def test_the_tables_name_the_same_kernels_and_known_formulas() -> None:
    kernels = set(TRAFFIC) - {"unit"}
    assert set(OPERATIONS["kernels"]) == set(OPERATIONS["launches"]) == kernels
    for parts in OPERATIONS["kernels"].values():
        for formulas in parts.values():
            assert set(formulas) <= set(OPERATIONS["formulas"])


def test_a_step_with_a_mask() -> None:
    own = cost.natural_step(N, perturbed=True, correction="mask", shared_mask=False).of(16)
    # previous, mean, denoised, next mean, input and y as floats, and a byte of mask
    assert own.bytes == 16 * N * 25
    shared = cost.natural_step(N, perturbed=True, correction="mask", shared_mask=True).of(16)
    assert shared.bytes == 16 * N * 24 + N
    # stepped 4, conditioned 2, scaled and added 1; half of a pair's 28, and a quarter of the 60 and half of the 15
    assert own.operations == {
        "floating": 16 * N * (4 + 2 + 1 + 14), "integer": 16 * N * (15 + 7.5), "special": 16 * N * 2,
    }  # fmt: skip
    assert own.operations_beside_normals == {"floating": 16 * N * 7, "integer": 0, "special": 0}
    assert own.normals == 16 * N
    assert own.launches == 1
    # Two arrays are only written, or one of them where the new mean overwrites the old one.
    assert (own.fresh_bytes, own.overwritten_bytes) == (N * 8, 0)
    in_place = cost.natural_step(N, perturbed=True, in_place=True)
    assert (in_place.fresh_bytes, in_place.overwritten_bytes) == (N * 4, N * 4)


@pytest.mark.parametrize(
    ("options", "bytes_per_number", "launches"),
    [
        ({}, 20, 1),
        ({"correction": "identity"}, 24, 1),
        ({"drawn": True}, 24, 1),
        ({"antithetic": True}, 28, 1),
        ({"correction": "gradient", "antithetic": True}, 36, 1),
        # the input is read too, and the new mean once more by the second kernel, which perturbs it
        ({"precision": "isotropic"}, 28, 2),
        # the input, and the curvature both ways
        ({"precision": "diagonal"}, 32, 1),
        ({"correction": "block_average", "block_numbers": N // 16, "factor": 4, "width": 256}, 20.25, 1),
        ({"correction": "block_average", "block_numbers": N // 64, "factor": 8, "width": 256}, 20 + 4 / 64, 2),
    ],
)
def test_steps_of_every_kind(options: dict[str, object], bytes_per_number: float, launches: int) -> None:
    work = cost.natural_step(N, perturbed=False, **options)
    assert work.bytes == pytest.approx(N * bytes_per_number, rel=1e-12)
    assert (work.launches, work.normals) == (launches, 0)


def test_operators() -> None:
    x, blocks, taps = torch.empty(4, 3, 8, 8), torch.empty(4, 3, 2, 2), torch.empty(9)
    n = 4 * 192
    assert cost.call("mask", (x, torch.empty(1, 3, 8, 8), x)).bytes == n * 8 + 192
    assert cost.call("block_average", (x, 4, blocks)).bytes == n * 4 + 48 * 4
    assert cost.call("block_average_adjoint", (blocks, 4, x)).bytes == n * 4 + 48 * 4
    blur = cost.call("separable_blur", (x, taps, taps, "circular", False, x))
    assert (blur.bytes, blur.operations["floating"], blur.launches) == (n * 16, n * 18, 2)
    c, energy, out = torch.empty(4, 40, dtype=torch.complex64), torch.empty(1, 40), torch.empty(4, 40)
    assert cost.call("spectral", (c, energy, c, None, c, True)).bytes == 4 * 40 * 24 + 40 * 4
    assert cost.call("spectral", (c, energy, c, None, c, True)).fresh_bytes == 0
    real = cost.call("spectral", (c.real, torch.empty(4, 40), c.real, None, out, False))
    assert (real.bytes, real.fresh_bytes) == (4 * 40 * 16, 40 * 4)
    half = torch.empty(4, 3, 8, 5, dtype=torch.complex64)
    fold, unfold = cost.call("cosine_fold", (x, x)), cost.call("cosine_unfold", (half, x))
    turn, back = cost.call("cosine_turn", (half, None, None, x)), cost.call("cosine_turn_back", (x, None, None))
    assert [work.bytes for work in (fold, unfold, turn, back)] == [n * 8, n * 4 + 3840, n * 4 + 3840, n * 8]
    assert [4 * work.fresh_bytes for work in (fold, unfold, turn, back)] == [n * 4, n * 4, n * 4, 0]
    assert [4 * work.overwritten_bytes for work in (fold, unfold, turn, back)] == [0, 0, 0, n * 4]
    assert [work.operations["floating"] for work in (fold, unfold, turn, back)] == [0, n, n * 5, n * 6]
    step = cost.call("conjugate_step", (x, x, x, x, None, None, None))
    assert (step.bytes, 4 * step.overwritten_bytes, step.fresh_bytes) == (n * 32, n * 8, 0)
    other = torch.empty_like(x)
    turns = [cost.call("conjugate_turn", (x, towards, x, None, None)) for towards in (x, other)]
    assert [(turn.name, turn.bytes) for turn in turns] == [
        ("conjugate_turn", n * 12), ("conjugate_turn, preconditioned", n * 20)
    ]  # fmt: skip
    smooth = [cost.call("biharmonic", (x, 0.02, plus, other)) for plus in (x, other)]
    assert [(work.bytes, 4 * work.fresh_bytes, 4 * work.overwritten_bytes) for work in smooth] == [
        (n * 12, n * 4, 0), (n * 12, 0, n * 4)
    ]  # fmt: skip
    one = torch.ones(4)
    clipped = cost.call("clip_gradient", (x, x, one, one, blocks, torch.empty_like(x)))
    assert (clipped.name, clipped.launches) == ("clip_gradient, held, divided", 2)
    assert (clipped.bytes, clipped.fresh_bytes) == (n * 16 + 48 * 4, 192 * 4)
    assert clipped.operations == {"floating": n * 3 + 48, "integer": 0, "special": n * 2 + 48}
    divided = cost.call("clip_gradient", (x, None, None, None, blocks, x))
    assert (divided.bytes, divided.fresh_bytes, divided.launches) == (n * 8 + 48 * 4, 0, 2)
    alone = cost.call("clip_gradient", (x, None, None, None, None, x))
    assert (alone.name, alone.bytes, alone.launches) == ("clip_gradient", n * 8, 1)
    normals = cost.call("normals", (torch.empty(4), 0, 0, x))
    assert (normals.bytes, normals.normals) == (n * 4, n)


def test_seconds_on_a_card_by_hand() -> None:
    card = DEVICES["h100"]
    step = cost.natural_step(N, perturbed=True).of(16)
    # 62.9 MB at 3 TB/s; arithmetic would take a fifth of that
    assert card.memory_seconds(step) == pytest.approx(16 * N * 20 / 3e12)
    floating = 19 * 16 * N / 33.5e12
    integer = 22.5 * 16 * N / 16.75e12
    every = (19 + 22.5 + 2) * 16 * N / 33.5e12
    assert card.arithmetic_seconds(step) == pytest.approx(max(floating, integer, every))
    assert card.seconds(step) == pytest.approx(1.5e-6 + 16 * N * 20 / 3e12)
    assert 0.9 < card.memory_seconds(step) / card.seconds(step) < 1


def test_on_a_processor_normals_hide_behind_reads() -> None:
    cpu = processor(bandwidth=20e9, fused=40e9, normal=1e-9)
    step = cost.natural_step(N, perturbed=True, in_place=True)
    memory = N * 20 / 20e9
    assert step.read_share == pytest.approx(12 / 20)
    assert cpu.seconds(step) == pytest.approx(memory + N * 1e-9 - 0.6 * memory)
    slow = processor(bandwidth=2e9, fused=40e9, normal=1e-9)
    assert slow.seconds(step) == pytest.approx(10 * memory)
    blur = cost.call("separable_blur", (torch.empty(1, N), torch.empty(5), torch.empty(5), "reflect", False, None))
    assert cpu.seconds(blur) == pytest.approx(N * 16 / 20e9 + N * 10 / 40e9)


def processor(bandwidth: float, fused: float, normal: float) -> Device:
    return Device("cpu", bandwidth, "", {"floating": fused}, "", 0.0, 0.0, "", True, normal)


# --- What is observed -----------------------------------------------------------------------------------------------


def test_cards_are_not_asked_for_what_a_processor_alone_does() -> None:
    found = chains.observed("gaussian_deblur", 128)
    assert [work.kernel for work in found.look] == [
        "cosine_fold", "cosine_turn", "spectral", "cosine_turn_back", "cosine_unfold", "natural_step",
    ]  # fmt: skip
    kernels = roofline.predict("h100", ["gaussian_deblur"], [1], 128)["tasks"][0]["kernels"]
    assert kernels == ["spectral, real", "natural_step, noise"]


@pytest.mark.parametrize("task", presets.TASKS)
def test_the_operator_of_a_task_is_the_one_that_the_command_line_simulates(task: str) -> None:
    shape = (2, 1, 32, 40)
    op = operators.for_task(task, shape)
    given = argparse.Namespace(**dict.fromkeys(OPTIONS), operator=task, simulate=True)
    theirs = degrade.build(resolve(given), ["a", "b"], shape[1:], 0)
    if task == "inpaint_random":  # masks by the files' names there, by numbers here
        known = 1280 - round(0.7 * 1280)
        assert isinstance(op, operators.Inpainting)
        assert isinstance(theirs, operators.Inpainting)
        assert op.mask.flatten(1).sum(1).tolist() == theirs.mask.flatten(1).sum(1).tolist() == [known, known]
        assert not torch.equal(op.mask[0], op.mask[1])
        return
    x = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    assert torch.equal(op.A(x), theirs.A(x))


@pytest.mark.parametrize(
    ("task", "expected"),
    [
        ("denoise", [("natural_step, identity, noise", 24)]),
        ("inpaint_random", [("natural_step, mask, noise", 25)]),
        ("sr4", [("natural_step, block average, noise", 20.25)]),
        ("gaussian_deblur", [("spectral, real", 12), ("natural_step, noise", 20)]),
        ("motion_deblur", [("spectral, complex", 24 * 32 * 17 / 32**2), ("natural_step, noise", 20)]),
        ("mri", [("spectral, complex", 12), ("natural_step, noise", 20)]),
    ],
)
def test_kernels_between_two_evaluations(task: str, expected: list[tuple[str, float]]) -> None:
    found = chains.observed(task, 32)
    numbers = found.channels * 32 * 32
    assert [(work.name, work.image_bytes / numbers) for work in found.look] == [
        (name, pytest.approx(each)) for name, each in expected
    ]
    assert found.launches == len(expected)
    assert found.evaluations == 20
    assert found.calls >= found.evaluations * len(expected) + 1  # and the first perturbation
    assert (found.waits, found.graph_launches) == (0, 1)
    assert (found.library_calls > 0) == (task not in ("denoise", "inpaint_random", "sr4"))


@pytest.mark.parametrize(
    ("guidance", "options", "each"), [("dps", ", held, divided", 16 + 4 / 16), ("jensen", ", held", 16)]
)
def test_kernels_of_a_look_with_gradients(guidance: str, options: str, each: float) -> None:
    """A and A^T before the network's backward pass, what clips its result and the step after it."""
    shape = (2, 3, 16, 16)
    prior = rmp.priors.from_denoiser(lambda x, s: 0.9 * x, data_variance=0.25)
    plan = rmp.Plan(operators.SuperResolution(4), prior, shape, 0.05, guidance=guidance, backend="cpu")
    works: list[cost.Work] = []
    with observe.kernel_calls(plan, lambda work, seconds: works.append(work)):
        plan.execute(torch.zeros(2, 3, 4, 4))
    look = [work.name for work in works[-4:]]
    step = next(name for name in look if name.startswith("natural_step"))
    assert look == ["block_average, factor 4", "block_average_adjoint, factor 4", f"clip_gradient{options}", step]
    assert "gradient" in step
    clipped = [work for work in works if work.kernel == "clip_gradient"]
    assert len(clipped) == plan.evaluations
    assert clipped[0].image_bytes == 3 * 16 * 16 * each


def test_library_calls_are_counted_with_their_bytes_and_views_are_not() -> None:
    a, b = torch.rand(5, 8), torch.rand(8)
    with observe.LibraryCalls() as seen:
        made = a + b  # 40 and 8 numbers read, 40 written
        made.view(8, 5).t()
        torch.empty(100)
        assert (seen.calls, seen.bytes, seen.waits) == (1, 4 * 88, 0)
        made.copy_(a)
        assert (seen.calls, seen.bytes) == (2, 4 * (88 + 80))
        made.sum().item()
        assert seen.waits == 1


PLAIN = {
    "copies and additions": (cost.natural_step(N, perturbed=True, in_place=True), {"copy_", "add_"}),
    "sums": (cost.natural_step(N, perturbed=True), {"copy_", "sum"}),
    "fills": (cost.call("normals", (torch.empty(1), 0, 0, torch.empty(1, N))), {"fill_"}),
    "more written than read": (cost.perturb(N, antithetic=True), {"copy_", "fill_"}),
    "as much read as overwritten": (
        cost.Work("made up", (), 1, 12.0 * N, 0.0, {}, 1, overwritten_bytes=5.0 * N), {"add_", "mul_"},
    ),
}  # fmt: skip


@pytest.mark.parametrize(("work", "names"), PLAIN.values(), ids=PLAIN)
def test_plain_passes_move_as_many_bytes(work: cost.Work, names: set[str]) -> None:
    run = observe.plain_passes(work)
    with observe.LibraryCalls() as seen, torch.profiler.profile() as profiler:
        run()
    assert seen.bytes == pytest.approx(work.bytes, abs=64)
    assert {event.key.removeprefix("aten::") for event in profiler.key_averages()} >= names


def test_watching_a_plan_changes_nothing_and_ends() -> None:
    plan, y = chains.problem("gaussian_deblur", 2, 16, lambda x, s: 0.9 * x)
    steps = plan.steps
    mean = plan.execute(y).mean
    works: list[cost.Work] = []
    with observe.kernel_calls(plan, lambda work, seconds: works.append(work)):
        assert torch.equal(plan.execute(y).mean, mean)
    assert plan.steps is steps
    count = len(works)
    assert count > 40
    assert torch.equal(plan.execute(y).mean, mean)
    assert len(works) == count
