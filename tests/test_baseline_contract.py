"""What the baselines promise to callers, and what they refuse."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from baseline_problem import BENT, DOUBLE, KERNEL, Squared, bent, mask
from torch import Tensor

import rmp_fast as rmp
from rmp_fast import baselines, operators

FEW = {"dps": 4, "pigdm": 4, "ddrm": 4, "diffpir": 4, "daps": 6, "reddiff": 5}
SETTINGS: dict[str, dict[str, Any]] = {"daps": {"ode_steps": 2, "langevin_steps": 3}}


def problem(dtype: torch.dtype = DOUBLE) -> tuple[operators.Operator, Tensor, Tensor]:
    """Three items of odd size, each with its own mask and noise."""
    op = operators.Inpainting(mask((3, 1, 5, 7)))
    y = op.A(torch.rand(3, 2, 5, 7, generator=torch.Generator().manual_seed(2), dtype=dtype) * 2 - 1)
    return op, y, torch.tensor([0.05, 0.1, 0.3])


def few(name: str, y: Tensor, op: operators.Operator, noise: float | Tensor, **options: Any) -> rmp.Estimate:
    settings = {"evaluations": FEW[name], **SETTINGS.get(name, {}), **options}
    return baselines.reconstruct(name, y, op, settings.pop("prior", BENT), noise, **settings)


@pytest.mark.parametrize("name", baselines.REGISTRY)
def test_an_item_alone_is_the_item_in_a_batch(name: str) -> None:
    op, y, noise = problem()
    seeds = torch.tensor([11, 0, -5])
    whole = few(name, y, op, noise, seeds=seeds, samples=2)
    assert whole.ok.all()
    assert whole.variance is not None
    for k in range(3):
        own = operators.Inpainting(mask((3, 1, 5, 7))[k])
        alone = few(name, y[k : k + 1], own, noise[k : k + 1], seeds=seeds[k : k + 1], samples=2)
        torch.testing.assert_close(alone.mean[0], whole.mean[k], rtol=1e-11, atol=1e-11)
        assert alone.variance is not None
        torch.testing.assert_close(alone.variance[0], whole.variance[k], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", baselines.REGISTRY)
def test_a_diverging_item_is_marked_and_leaves_its_neighbours_alone(name: str) -> None:
    op, y, noise = problem()

    def broken(x: Tensor, s: Tensor) -> Tensor:
        bad = torch.tensor([1.0, math.inf, 1.0], dtype=x.dtype).reshape(3, 1, 1, 1)
        return bent(x, s) * bad

    found = few(name, y, op, noise, prior=rmp.priors.from_denoiser(broken, 0.5))
    assert found.ok.tolist() == [True, False, True]
    torch.testing.assert_close(found.mean[[0, 2]], few(name, y, op, noise).mean[[0, 2]], rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("name", baselines.REGISTRY)
def test_seeds_decide(name: str) -> None:
    op, y, noise = problem(torch.float32)
    before = y.clone()
    first = few(name, y, op, noise)
    assert torch.equal(first.mean, few(name, y, op, noise, seeds=torch.arange(3)).mean)
    other = few(name, y, op, noise, seeds=torch.tensor([0, 7, 2])).mean
    assert torch.equal(other[[0, 2]], first.mean[[0, 2]])
    assert not torch.equal(other[1], first.mean[1])
    assert torch.equal(y, before)
    assert first.mean.dtype == torch.float32
    assert first.variance is None


@pytest.mark.parametrize("name", baselines.REGISTRY)
def test_kernel_and_reference_random_numbers_give_the_same_sample(name: str) -> None:
    op, y, noise = problem(torch.float32)
    double = few(name, y.double(), op, noise).mean
    error = (few(name, y, op, noise).mean - double).norm() / double.norm()
    # at the top level, s = 157, rounding of float32 is 2e-5 of an image, and a step or two carry it down
    assert error < 1e-3


@pytest.mark.parametrize("name", baselines.REGISTRY)
def test_samples_are_averaged(name: str) -> None:
    op, y, noise = problem()
    count = 4
    estimate = few(name, y, op, noise, samples=count)
    method = baselines.make(name, evaluations=FEW[name], **SETTINGS.get(name, {}))
    run = baselines.Run(y, op, BENT, noise, tuple(y.shape), torch.arange(3))
    each = []
    for index in range(count):
        run.start(index)
        each.append(method.sample(run).detach())
    stacked = torch.stack(each)
    torch.testing.assert_close(estimate.mean, stacked.mean(0))
    assert estimate.variance is not None
    torch.testing.assert_close(estimate.variance, stacked.var(0))
    assert not torch.equal(each[0], each[1])


@pytest.mark.parametrize("name", baselines.REGISTRY)
@pytest.mark.parametrize("samples", [1, 3])
def test_evaluations_are_counted_exactly(name: str, samples: int) -> None:
    calls = {"forward": 0, "backward": 0}

    class Counted(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            calls["forward"] += 1
            return x / 2

        @staticmethod
        def backward(ctx: Any, gradient: Tensor) -> Tensor:
            calls["backward"] += 1
            return gradient / 2

    op, y, noise = problem()
    prior = rmp.priors.from_denoiser(lambda x, s: Counted.apply(x), 0.5)
    stats = few(name, y, op, noise, samples=samples, prior=prior).stats
    assert stats["evaluations"] == calls["forward"] == samples * FEW[name]
    assert stats["backward_evaluations"] == calls["backward"]
    assert calls["backward"] == (calls["forward"] if name in ("dps", "pigdm") else 0)
    assert 0 < stats["network_seconds"] < stats["seconds"]


@pytest.mark.parametrize("name", baselines.REGISTRY)
def test_default_evaluations_are_the_authors(name: str) -> None:
    assert (
        baselines.get(name)().evaluations
        == ({"dps": 1000, "pigdm": 100, "ddrm": 20, "diffpir": 100, "daps": 1000, "reddiff": 1000}[name])
    )


@pytest.mark.parametrize("name", baselines.REGISTRY)
def test_every_setting_of_the_authors_is_one_of_the_method(name: str) -> None:
    tasks = (
        "inpaint_random",
        "inpaint_box",
        "sr4",
        "gaussian_deblur",
        "motion_deblur",
        "phase_retrieval",
        "nonlinear_deblur",
    )
    for task in tasks:
        baselines.make(name, **baselines.paper_settings(name, task))
    assert baselines.paper_settings(name, "no such task") == {}


@pytest.mark.parametrize("name", baselines.REGISTRY)
@pytest.mark.parametrize("samples", [1, 2])
def test_empty_batch(name: str, samples: int) -> None:
    estimate = few(name, torch.zeros(0, 2, 5, 7), operators.Denoising(), 0.1, samples=samples)
    assert estimate.mean.shape == (0, 2, 5, 7)
    assert estimate.ok.shape == (0,)
    assert (estimate.variance is None) == (samples == 1)


@pytest.mark.parametrize("name", baselines.REGISTRY)
def test_inference_mode_and_strided_measurements(name: str) -> None:
    op, y, noise = problem()
    expected = few(name, y, op, noise).mean
    strided = torch.empty(3, 2, 7, 5, dtype=DOUBLE).mT.copy_(y)
    assert not strided.is_contiguous()
    torch.testing.assert_close(few(name, strided, op, noise).mean, expected, rtol=1e-11, atol=1e-11)
    with torch.inference_mode():
        torch.testing.assert_close(few(name, y.clone(), op, noise).mean, expected, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("name", baselines.REGISTRY)
def test_a_schedule_replaces_the_authors_levels(name: str) -> None:
    op, y, noise = problem()
    seen: list[float] = []

    def watch(x: Tensor, s: Tensor) -> Tensor:
        seen.append(float(s[0]))
        return bent(x, s)

    prior = rmp.priors.from_denoiser(watch, 0.5)
    levels = rmp.schedules.log(2, 0.1, 5.0)
    settings = {"ode_steps": 1, "evaluations": 3} if name == "daps" else {"evaluations": 3}
    assert few(name, y, op, noise, prior=prior, schedule=levels, **settings).ok.all()
    assert seen == pytest.approx(levels.levels.flip(0).tolist())


@pytest.mark.parametrize("name", ["dps", "daps", "reddiff"])
def test_nonlinear_operators(name: str) -> None:
    estimate = few(name, torch.rand(2, 1, 3, 3), Squared(), 0.1)
    assert estimate.ok.all()
    assert estimate.mean.shape == (2, 1, 3, 3)


# What is refused.


@pytest.mark.parametrize("name", ["pigdm", "ddrm", "diffpir"])
def test_methods_for_linear_operators_refuse_others(name: str) -> None:
    text = f"'{name}' cannot serve the operator 'squared': it needs a linear operator; methods that can: "
    with pytest.raises(ValueError, match=text + "'dps', 'daps', 'reddiff'"):
        few(name, torch.rand(2, 1, 3, 3), Squared(), 0.1)


def test_ddrm_refuses_an_operator_without_singular_values() -> None:
    op = operators.Blur(KERNEL, boundary="reflect")
    with pytest.raises(ValueError, match=r"singular value decomposition.*'dps', 'pigdm', 'diffpir', 'daps', 'reddiff'"):
        few("ddrm", torch.rand(1, 1, 5, 5), op, 0.1)
    assert few("pigdm", torch.rand(1, 1, 5, 5), op, 0.1).ok.all()


@pytest.mark.parametrize(
    ("name", "settings", "error", "text"),
    [
        ("drrm", {}, ValueError, "`name` must be one of .*did you mean 'ddrm'"),
        ("ddrm", {"etab": 1.0}, ValueError, "`setting of 'ddrm'` must be one of .*did you mean 'eta_b'"),
        ("ddrm", {"eta": 1.5}, ValueError, r"`eta` must lie on \[0, 1\], got 1.5"),
        ("ddrm", {"noise_scale": -1.0}, ValueError, "`noise_scale` must be a finite number >= 0"),
        ("ddrm", {"eta": "1"}, TypeError, "`eta` must be a number, got str"),
        ("ddrm", {"evaluations": 0}, ValueError, "`evaluations` must be at least 1, got 0"),
        ("ddrm", {"evaluations": 2.0}, TypeError, "`evaluations` must be an integer, got float"),
        ("dps", {"evaluations": 1001}, ValueError, "`evaluations` must be at most 1000, .* got 1001"),
        ("dps", {"step_size": -1.0}, ValueError, "`step_size` must be a finite number >= 0"),
        ("pigdm", {"weight": "scores"}, ValueError, "`weight` must be one of .*did you mean 'score'"),
        ("pigdm", {"prior_variance": 0.0}, ValueError, "`prior_variance` must be a finite number > 0"),
        ("diffpir", {"strength": 0.0}, ValueError, "`strength` must be a finite number > 0"),
        ("daps", {"evaluations": 12}, ValueError, "`evaluations` must be a multiple of `ode_steps` = 5 .*got 12"),
        ("daps", {"evaluations": 5}, ValueError, "at least 10, got 5"),
        ("daps", {"langevin_steps": 1.0}, TypeError, "`langevin_steps` must be an integer, got float"),
        ("daps", {"ode_steps": 0}, ValueError, "`ode_steps` must be at least 1, got 0"),
        ("daps", {"high": 0.05}, ValueError, "`low` must be below `high`"),
        ("reddiff", {"learning_rate": 0.0}, ValueError, "`learning_rate` must be a finite number > 0"),
        ("ddrm", {"schedule": [1.0, 2.0]}, TypeError, "`schedule` must be an rmp_fast.schedules.Schedule or None"),
        ("ddrm", {"schedule": rmp.schedules.log(3)}, ValueError, "`schedule` must hold 20 levels for 20 .*got 4"),
    ],
)
def test_settings_are_checked(name: str, settings: dict[str, Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        baselines.reconstruct(name, torch.zeros(1, 1, 2, 2), operators.Denoising(), BENT, 0.1, **settings)


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"y": [1.0]}, TypeError, "`y` must be a torch.Tensor, got list"),
        ({"y": torch.zeros(1, 1, 2, 2).half()}, TypeError, "`y` must be float32 or float64"),
        ({"y": torch.full((2, 1, 2, 2), math.nan)}, ValueError, "`y` must be finite, got NaN or infinity in item 0, 1"),
        ({"op": "sr4"}, TypeError, "`op` must be an rmp_fast operator, got str"),
        ({"prior": 3}, TypeError, r"`prior` must have a method denoise\(x, s\), got int"),
        ({"noise_std": None}, ValueError, "`noise_std` must be given"),
        ({"noise_std": -0.1}, ValueError, "`noise_std` must be finite and >= 0"),
        ({"samples": 0}, ValueError, "`samples` must be at least 1, got 0"),
        ({"samples": 1.0}, TypeError, "`samples` must be an integer, got float"),
        ({"seeds": torch.zeros(2)}, TypeError, "`seeds` must be int64"),
        (
            {"seeds": torch.zeros(3, dtype=torch.int64)},
            ValueError,
            r"`seeds` must have shape \(B,\) = \(2,\), got \(3,\)",
        ),
        ({"shape": (2, 1, 3, 3)}, ValueError, r"`y` must have shape \(2, 1, 3, 3\), got \(2, 1, 2, 2\)"),
    ],
)
def test_arguments_are_checked(options: dict[str, Any], error: type[Exception], text: str) -> None:
    arguments = {"y": torch.zeros(2, 1, 2, 2), "op": operators.Denoising(), "prior": BENT, "noise_std": 0.1, **options}
    with pytest.raises(error, match=text):
        baselines.reconstruct("ddrm", **arguments)
