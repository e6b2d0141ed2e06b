"""Tuning: the unrolled chain is the plan's, what it learns helps, and the command line keeps it as a preset."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import os
import pathlib
import re
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from rmp_fast import Plan, images, operators, priors, schedules, tuning
from rmp_fast.cli import main
from rmp_fast.schedules import Looks

P = 0.3  # variance of the white toy images
SHAPE = (3, 1, 9, 7)


def white(x: Tensor, s: Tensor) -> Tensor:
    """The exact denoiser of independent N(0, P) pixels."""
    return x * (P / (P + s.square())).reshape(-1, *[1] * (x.ndim - 1))


def bent(x: Tensor, s: Tensor) -> Tensor:
    """A denoiser that is not linear and mixes neighbours."""
    return white(torch.tanh(x + 0.3 * x.roll(1, -1)), s)


def table(length: int = 5) -> Looks:
    """Looks without any regularity, negative momentum among them."""
    g = torch.Generator().manual_seed(3)
    level, noise, weight, momentum, variance = torch.rand(5, length, generator=g, dtype=torch.float64)
    return Looks(0.2 + level, noise, 0.4 + weight, momentum - 0.5, 0.1 + variance)


def columns(looks: Looks) -> dict[str, Tensor]:
    return {name: getattr(looks, name) for name in tuning.COLUMNS}


def toy(step: int, batch: int = 8, shape: tuple[int, ...] = (1, 8, 8), noise_std: float = 0.1) -> tuning.Problem:
    """White images with half of their pixels missing."""
    g = torch.Generator().manual_seed(1000 + step)
    clean = math.sqrt(P) * torch.randn((batch, *shape), generator=g)
    mask = torch.stack([operators.random_mask(shape, 0.5, seed=100 * step + item) for item in range(batch)])
    return tuning.measure(clean, operators.Inpainting(mask), noise_std, seed=step)


OPERATORS = {
    "inpainting": operators.Inpainting(operators.random_mask((1, 9, 7), 0.6, seed=1)[None]),
    "blocks": operators.SuperResolution(2),
    "spectral": operators.GaussianBlur(0.8),
    "iterative": operators.Blur(operators.motion_kernel(3, 30), boundary="reflect"),
}


@pytest.mark.parametrize(("name", "start"), [*itertools.product(OPERATORS, ("zero", "smooth")), ("nonlinear", "zero")])
def test_unrolled_chain_is_the_plans(name: str, start: str) -> None:
    op = OPERATORS.get(name) or operators.for_task("nonlinear_deblur", SHAPE)
    guidance = "gaussian" if op.linear else "gauss_newton"
    prior, looks = priors.from_denoiser(bent, P), table()
    clean = torch.rand(SHAPE, generator=torch.Generator().manual_seed(5)) * 2 - 1
    problem = tuning.measure(clean, op, 0.1, seed=2)
    seeds = torch.tensor([4, 0, 2**40])
    plan = Plan(op, prior, SHAPE, 0.1, looks=looks, start=start, guidance=guidance, backend="torch")
    expected = plan.execute(problem.y, seeds=seeds).mean
    got = tuning.unrolled_chain(problem, prior, columns(looks), start, seeds)
    # Both in float32: five looks of a few roundings each; the iterative solve stops at the same step.
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


def test_gradient_is_the_difference_quotient() -> None:
    prior, looks, seeds = priors.from_denoiser(bent, P), columns(table(3)), torch.arange(3)
    problem = tuning.measure(torch.rand(SHAPE, dtype=torch.float64), OPERATORS["spectral"], 0.1, seed=2)
    for name in tuning.COLUMNS:

        def quality(column: Tensor, name: str = name) -> Tensor:
            estimate = tuning.unrolled_chain(problem, prior, {**looks, name: column}, "zero", seeds)
            return tuning.psnr(problem.images, estimate)

        assert torch.autograd.gradcheck(quality, (looks[name].clone().requires_grad_(),))


@pytest.mark.parametrize(("inner", "relaxation"), [(1, 0.9), (2, 1.4)])
def test_looks_of_levels_are_the_same_chain(inner: int, relaxation: float) -> None:
    prior, op = priors.from_denoiser(bent, P), OPERATORS["blocks"]
    grid = schedules.log(4, 0.05, 5.0)
    y = op.A(torch.rand(SHAPE) * 2 - 1)
    by_levels = Plan(op, prior, SHAPE, 0.1, schedule=grid, inner_steps=inner, relaxation=relaxation, backend="torch")
    by_looks = Plan(op, prior, SHAPE, 0.1, looks=tuning.looks_of(grid, P, inner, relaxation), backend="torch")
    # The same sums in another order, in float32.
    torch.testing.assert_close(by_looks.execute(y).mean, by_levels.execute(y).mean, rtol=1e-4, atol=1e-4)


def test_three_looks_per_level_are_no_table() -> None:
    with pytest.raises(ValueError, match="`inner_steps` must be 1 or 2: looks remember one mean, got 3"):
        tuning.looks_of(schedules.log(4), P, 3)


@pytest.mark.parametrize(("start", "usual"), [("zero", 20.0), ("smooth", 1.2)])
def test_the_first_table_begins_at_the_highest_level(start: str, usual: float) -> None:
    for asked, found in ((None, usual), (60.0, 60.0)):
        looks = tuning.first_looks(5, P, start, asked)
        assert float(looks.level[0]) == found
        assert bool((looks.level.diff() < 0).all())
    with pytest.raises(ValueError, match="`highest_level` must be"):
        tuning.first_looks(5, P, start, 0.0)


def test_tuning_approaches_the_posterior_mean() -> None:
    prior = priors.from_denoiser(white, P)
    first = tuning.first_looks(3, P)
    first = dataclasses.replace(first, weight=0.3 * first.weight)  # far from there
    tuned = tuning.tune_looks(toy, prior, first, steps=40, learning_rate=0.1)
    unseen = toy(10_000, batch=64)
    # The posterior mean of a white image, known in closed form: the prior's mean 0 where nothing was seen.
    best = tuning.psnr(unseen.images, unseen.y * P / (P + 0.1**2)).mean()
    before, after = (
        tuning.psnr(unseen.images, tuning.restore(unseen, prior, looks=looks)).mean() for looks in (first, tuned.looks)
    )
    assert len(tuned.history) == 40
    assert before < best - 0.3  # else there is nothing to learn
    assert best - 0.1 < after < best + 1e-3


@pytest.mark.parametrize("option", [{}, {"recompute": True}])
def test_tuning_is_decided_by_its_seed(option: dict[str, Any]) -> None:
    prior, first = priors.from_denoiser(bent, P), tuning.first_looks(3, P, "smooth")
    run = lambda **more: tuning.tune_looks(toy, prior, first, start="smooth", steps=3, **more).looks  # noqa: E731
    one, again, other = run(), run(**option), run(seed=1)
    for name in tuning.COLUMNS:
        assert torch.equal(getattr(one, name), getattr(again, name))
    assert not torch.equal(one.weight, other.weight)


def test_resampling_keeps_the_course() -> None:
    looks = table(5)
    for name in tuning.COLUMNS:
        column = getattr(looks, name)
        torch.testing.assert_close(getattr(tuning.resample(looks, 5), name), column)
        longer = getattr(tuning.resample(looks, 9), name)
        torch.testing.assert_close(longer[::2], column)
        middle = (column[0] * column[1]).sqrt() if name in ("level", "noise", "variance") else column[:2].mean()
        torch.testing.assert_close(longer[1], middle)
    assert len(tuning.resample(table(1), 3)) == 3


def test_measuring_is_as_noisy_as_said() -> None:
    clean = torch.zeros(4, 1, 64, 64)
    mask = operators.random_mask((1, 64, 64), 0.7, seed=1)[None]
    hidden = tuning.measure(clean, operators.Inpainting(mask), 0.1, seed=1).y
    assert bool((hidden[:, ~mask[0].bool()] == 0).all())
    seen = hidden[:, mask[0].bool()]
    # The spread of a standard deviation from n numbers is 1 / sqrt(2 n): five of them.
    assert seen.std().item() == pytest.approx(0.1, rel=5 / math.sqrt(2 * seen.numel()))
    assert torch.equal(hidden, tuning.measure(clean, operators.Inpainting(mask), 0.1, seed=1).y)


def stubborn() -> priors.Prior:
    """A prior without gradients, whose variance is not what it says."""
    return priors.from_denoiser(lambda x, s: white(x, s).detach(), 4 * P, "stubborn")


def test_priors_without_gradients_are_known_and_refused() -> None:
    assert tuning.is_differentiable(priors.from_denoiser(white, P), SHAPE)
    assert not tuning.is_differentiable(stubborn(), SHAPE)
    through_numpy = priors.from_denoiser(lambda x, s: torch.from_numpy(x.numpy() * 0.5), P)
    assert not tuning.is_differentiable(through_numpy, SHAPE)
    with pytest.raises(ValueError, match="the prior 'stubborn' cannot be differentiated: tune it with search_looks"):
        tuning.tune_looks(toy, stubborn(), table(), steps=1)


def test_a_chain_that_is_not_finite_stops() -> None:
    broken = priors.from_denoiser(lambda x, s: x * math.inf, P)
    with pytest.raises(ValueError, match=r"left the finite range in step 0: lower `learning_rate`, 0.05"):
        tuning.tune_looks(toy, broken, table(), steps=1)


def test_search_beats_the_default_chain() -> None:
    pytest.importorskip("optuna")
    tuned = tuning.search_looks(toy(0), stubborn(), 4, trials=15)
    assert len(tuned.looks) == 4
    assert tuned.history == sorted(tuned.history)
    assert tuned.history[-1] > tuned.history[0]  # the first trial is the default chain
    again = tuning.search_looks(toy(0), stubborn(), 4, trials=15)
    assert torch.equal(tuned.looks.level, again.looks.level)


def test_search_without_optuna_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(RuntimeError, match=r"the search needs optuna: pip install 'rmp_fast\[tune\]'"):
        tuning.search_looks(toy(0), stubborn(), 4, trials=1)


# The command line.


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Eight grey images of 32 x 32: discs of several sizes."""
    target = tmp_path_factory.mktemp("discs")
    grid = np.mgrid[:32, :32] - 15.5
    for index in range(8):
        disc = (np.hypot(*grid) < 5 + index).astype(np.float32)[None]
        images.write(target / f"{index}.png", disc, 8, "png")
    return target


def arguments(folder: pathlib.Path, out: pathlib.Path, *more: str) -> list[str]:
    few = ["--evaluations=2", "--steps=2", "--batch=2", "--side=32"]
    return ["tune", "--task=sr4", "--prior=fashion", f"--images={folder}", f"--out={out}", *few, *more]


def test_command_writes_a_preset(folder: pathlib.Path, tmp_path: pathlib.Path) -> None:
    out = tmp_path / "new" / "fashion.json"
    command = [sys.executable, "-m", "rmp_fast.cli", *arguments(folder, out)]
    result = subprocess.run(command, capture_output=True, text=True, env=dict(os.environ), timeout=300)
    assert result.returncode == 0, result.stderr
    assert "gain" in result.stdout
    for name in tuning.COLUMNS:  # the sensitivity to every column
        assert f"\n{name}" in result.stdout
    entry = json.loads(out.read_text())["sr4"]["2"]
    looks = Looks(**entry["looks"])
    assert len(looks) == 2
    assert entry["start"] == "smooth"
    assert entry["gain_db"][2] == 2
    assert "rmp-fast tune" in entry["command"]
    assert str(tmp_path) not in entry["tuned_on"]

    # What was printed and kept is what a plan does with the table, on images that it was not tuned on.
    again = tmp_path / "again.json"
    assert main(arguments(folder, again, "--quiet", "--no-sensitivity")) == 0
    assert json.loads(again.read_text())["sr4"]["2"]["looks"] == entry["looks"]


def test_command_tunes_for_a_range_of_strengths(
    folder: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[tuple[float, int]] = []  # noise on [-1, 1], and pixels of the box

    def measure(clean: Tensor, op: operators.Inpainting, noise_std: float, seed: int) -> tuning.Problem:
        seen.append((noise_std, int((op.mask == 0).sum())))
        return measured(clean, op, noise_std, seed)

    measured = tuning.measure
    monkeypatch.setattr(tuning, "measure", measure)
    out = tmp_path / "fashion.json"
    wide = ["--vary", "noise-std", "0.01", "0.1", "--vary", "box", "4", "16", "--box=10", "--noise-std=0.03"]
    assert main(arguments(folder, out, "--task=inpaint_box", *wide, "--steps=6", "--no-sensitivity")) == 0
    trials, steps, reports = seen[:5], seen[5:11], seen[11:]
    assert len({noise for noise, _ in steps}) == 6
    assert len({pixels for _, pixels in steps}) > 2
    for noise, pixels in steps:
        assert 0.02 <= noise <= 0.2
        assert 4 <= math.isqrt(pixels) == math.sqrt(pixels) <= 16
    at_ends = [(0.02, 100), (0.2, 100), (0.06, 16), (0.06, 256), (0.06, 100)]
    assert [pixels for _, pixels in trials] == [pixels for _, pixels in at_ends]
    assert [noise for noise, _ in trials] == pytest.approx([noise for noise, _ in at_ends])
    assert reports[::2] == reports[1::2] == trials  # the default and the tuned chain
    reported = re.findall(r"(.*): default .* gain (\S+)", capsys.readouterr().out)
    assert [where for where, _ in reported] == ["noise-std 0.01", "noise-std 0.1", "box 4", "box 16", "as asked"]
    entry = json.loads(out.read_text())["inpaint_box"]["2"]
    assert entry["gain_db"][0] == pytest.approx(float(reported[-1][1]), abs=0.006)
    assert "box=4 to 16, noise_std=0.01 to 0.1 on [0, 1]" in entry["tuned_on"]
    assert "--vary noise-std 0.01 0.1 --vary box 4 16" in entry["command"]


def test_presets_are_collected_in_one_file(
    folder: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "fashion.json"
    quick = ["--quiet", "--no-sensitivity", "--steps=1"]
    assert main(arguments(folder, out, *quick)) == 0
    assert main(arguments(folder, out, *quick)) == 2
    assert "exists: add --append to keep its other presets, or --force to replace it" in capsys.readouterr().err
    assert main(arguments(folder, out, "--append", *quick)) == 2
    assert "has sr4 with 2 evaluations: add --force to replace it" in capsys.readouterr().err
    more = ["--append", f"--init={out}", "--evaluations=3", "--start=zero", *quick]
    assert main(arguments(folder, out, *more)) == 0
    assert set(json.loads(out.read_text())["sr4"]) == {"2", "3"}
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--task=sr5"], "`--task` must be one of .* got 'sr5'; did you mean 'sr4'"),
        (["--prior=fashin"], "`--prior` must be one of .* did you mean 'fashion'"),
        (["--start=smoth"], "`--start` must be one of .* did you mean 'smooth'"),
        (["--images=fashion-trian"], "`--images` must be one of .* did you mean 'fashion-train'"),
        (["--steps=0"], "`--steps` must be at least 1, got 0"),
        (["--learning-rate=-1"], "`--learning-rate` must be a number > 0, got -1.0"),
        (["--noise-std=-1"], "`--noise-std` must be a number >= 0, got -1.0"),
        (["--vary", "noise-std", "0.1", "0.01"], "`--vary` noise-std must be from LOW to HIGH with 0 < LOW < HIGH"),
        (["--vary", "noise-std", "0", "0.1"], "`--vary` noise-std must be from LOW to HIGH .* got 0 0.1"),
        (["--vary", "noise-std", "0.1", "much"], "`--vary` noise-std must be followed by two numbers, got 0.1 much"),
        (["--vary", "noise-sdt", "0.1", "0.2"], "`--vary` must be one of .* did you mean 'noise-std'"),
        (["--vary", "blur-std", "1", "2"], "`--vary` must be one of 'noise-std', got 'blur-std'"),
        (["--task=inpaint_random", "--vary", "missing", "0.5", "1.5"], r"`--missing` must be a share on \[0, 1\)"),
        (["--task=inpaint_box", "--vary", "box", "4", "40"], "`--box` must be smaller than"),
        (["--vary", "noise-std", "0.01", "0.1", "--method=search"], "`--vary` needs the gradient of the prior"),
        (["--side=33"], r"`--side` must be at most the size of .*, \(H, W\) = \(32, 32\), got 33"),
        (["--blur-std=1"], "`--blur-std` does not apply to sr4"),
        (["--task=inpaint_box", "--box=40"], "`--box` must be smaller than"),
        (["--out={folder}"], "`--out` must be a file, got the folder"),
        (["--out={folder}/0.png/x.json"], "`--out` .* cannot be written"),
        (["--out={folder}/0.png", "--append"], "`--out` .* cannot be read as presets"),
        (["--init={folder}/none.json"], "`--init` .* cannot be read as presets"),
        (["--highest-level=0"], "`--highest-level` must be a number > 0, got 0.0"),
        (["--highest-level=9", "--init={folder}/none.json"], "`--highest-level` is of the first table, which `--init`"),
    ],
)
def test_command_refuses(
    folder: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str], more: list[str], message: str
) -> None:
    out = tmp_path / "x.json"
    assert main(arguments(folder, out, *(word.format(folder=folder) for word in more))) == 2
    error = capsys.readouterr().err
    assert error.startswith("rmp-fast tune: error: ")
    assert re.search(message, error), error
    assert not out.exists()


@pytest.mark.parametrize(
    ("presets", "message"),
    [
        ([1], "must hold presets: a JSON object of tasks"),
        ({"denoise": {}}, "has no preset for sr4"),
        ({"sr4": {"20": {"looks": {"level": [1.0]}}}}, "the preset of sr4 with 20 evaluations is damaged"),
        ({"sr4": {"many": {}}}, "the preset of sr4 with many evaluations is damaged"),
    ],
)
def test_command_refuses_damaged_presets(
    folder: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str], presets: object, message: str
) -> None:
    damaged = tmp_path / "damaged.json"
    damaged.write_text(json.dumps(presets))
    assert main(arguments(folder, tmp_path / "x.json", f"--init={damaged}")) == 2
    assert message in capsys.readouterr().err


def test_command_needs_enough_images_of_one_kind(
    folder: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    few = tmp_path / "few"
    few.mkdir()
    for name in ("0.png", "1.png", "2.png"):
        (few / name).write_bytes((folder / name).read_bytes())
    out = tmp_path / "x.json"
    assert main(arguments(few, out)) == 2
    assert "must hold at least 8 images, to tune and to hold out, got 3" in capsys.readouterr().err
    images.write(few / "colour.png", np.zeros((3, 32, 32), np.float32), 8, "png")
    assert main(arguments(few, out)) == 2
    assert "must be all grey or all in colour" in capsys.readouterr().err


def test_tuning_serves_nonlinear_operators_from_zero() -> None:
    op = operators.for_task("nonlinear_deblur", (1, 1, 8, 8))
    prior, clean = priors.from_denoiser(bent, P), torch.rand(1, 1, 8, 8, generator=torch.Generator().manual_seed(5))
    problem = tuning.measure(clean, op, 0.1, seed=2)
    tuned = tuning.tune_looks(lambda step: problem, prior, table(), steps=30, learning_rate=0.05)
    assert tuned.history[-1] > tuned.history[0] + 1
    with pytest.raises(ValueError, match="`start` must be 'zero' for 'nonlinear_blur'"):
        tuning.unrolled_chain(problem, prior, columns(table()), "smooth", torch.zeros(1, dtype=torch.int64))
