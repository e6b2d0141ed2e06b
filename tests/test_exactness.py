"""Where the truth is closed form: Gaussian priors, exact identities, expectations of the noise modes."""

import math

import pytest
import torch

import rmp_fast as rmp
from rmp_fast import reference

DOUBLE = torch.float64


def gaussian_problem() -> tuple[rmp.priors.Gaussian, rmp.operators.Operator, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    root = torch.randn(6, 6, generator=generator, dtype=DOUBLE)
    prior = rmp.priors.Gaussian(torch.randn(6, generator=generator, dtype=DOUBLE), root @ root.T / 6)
    op = rmp.operators.CompressedSensing(torch.randn(4, 6, generator=generator, dtype=DOUBLE))
    y = torch.randn(3, 4, generator=generator, dtype=DOUBLE)
    return prior, op, y, torch.tensor([0.05, 0.3, 1.0], dtype=DOUBLE)


@pytest.mark.parametrize("steps", [1, 3, 50])
@pytest.mark.parametrize("backend", ["reference", "torch"])
def test_explicit_steps_end_at_the_exact_posterior_mean(steps: int, backend: str) -> None:
    prior, op, y, noise = gaussian_problem()
    plan = rmp.Plan(
        op, prior, (3, 6), noise, schedule=rmp.schedules.log(steps, 0.01, 1e4), guidance="exact", noise="none",
        inner_steps=1, step_size=1.0, anchor="next", backend=backend, dtype=DOUBLE,
    )  # fmt: skip
    expected = prior.posterior_mean(y, op, noise)
    # the start decays as p / (p + s_T^2), about 1e-8
    torch.testing.assert_close(plan.execute(y).mean, expected, rtol=0, atol=1e-7)


def test_natural_gradient_converges_to_the_mean_of_the_reverse_step() -> None:
    prior, op, y, noise = gaussian_problem()
    levels = torch.tensor([1.0, 2.0], dtype=DOUBLE)
    conditioned = prior.condition(y, op, noise)
    result = reference.reverse_mean_propagation(
        y,
        op,
        prior,
        noise,
        levels,
        torch.arange(3),
        (3, 6),
        guidance="exact",
        noise="none",
        inner_steps=400,
        step_size=1.0,
    )
    m = torch.zeros(3, 6, dtype=DOUBLE)
    w = 0.25
    exact = w * m + (1 - w) * conditioned.denoise(m, torch.full((3,), 2.0, dtype=DOUBLE))
    torch.testing.assert_close(result, exact, rtol=1e-9, atol=1e-9)


def test_one_unguided_step_is_the_closed_form() -> None:
    prior = gaussian_problem()[0]
    op = rmp.operators.Denoising()
    levels = torch.tensor([0.5, 2.0], dtype=DOUBLE)
    m = torch.zeros(1, 6, dtype=DOUBLE)
    expected = m + (2.0**2 - 0.5**2) / 2.0**2 * (prior.denoise(m, torch.tensor([0.5], dtype=DOUBLE)) - m)
    # measurement noise of 1e9 removes the likelihood to 1e-18
    result = reference.reverse_mean_propagation(
        torch.ones(1, 6), op, prior, torch.tensor([1e9]), levels, torch.zeros(1, dtype=torch.int64), (1, 6),
        noise="none", inner_steps=1, step_size=1.0,
    )  # fmt: skip
    torch.testing.assert_close(result, expected, rtol=1e-12, atol=1e-12)


def test_gaussian_guidance_is_exact_for_an_isotropic_gaussian_prior() -> None:
    prior = rmp.priors.Gaussian(torch.zeros(6), torch.full((6,), 0.7))
    _, op, y, noise = gaussian_problem()
    x = torch.randn(3, 6, dtype=DOUBLE)
    for level in (0.05, 0.5, 5.0):
        exact = prior.condition(y, op, noise).denoise(x, torch.full((3,), level, dtype=DOUBLE))
        torch.testing.assert_close(
            reference.conditional_mean(x, level, y, op, prior, noise), exact, rtol=1e-9, atol=1e-9
        )


@pytest.mark.parametrize("noise", ["drawn", "antithetic", "control"])
def test_noise_modes_agree_with_the_noiseless_chain_in_expectation(noise: str) -> None:
    # for a Gaussian prior d_y is linear, so every mode has the same mean
    prior, op, y, _ = gaussian_problem()
    count = 4000
    schedule = rmp.schedules.log(4, 0.1, 10.0)
    options = {"guidance": "exact", "inner_steps": 2, "schedule": schedule, "backend": "torch", "dtype": DOUBLE}
    still = rmp.Plan(op, prior, (1, 6), 0.3, noise="none", **options).execute(y[:1]).mean
    chains = rmp.Plan(op, prior, (count, 6), 0.3, noise=noise, **options).execute(y[:1].expand(count, -1)).mean
    error = (chains.mean(0) - still[0]).abs()
    # five standard errors; the antithetic chain has none beyond rounding
    assert (error <= 5 * chains.std(0) / math.sqrt(count) + 1e-9).all()


def test_stein_curvature_is_the_trace_of_the_conditional_denoiser() -> None:
    prior, op, y, _ = gaussian_problem()
    count = 20000
    s_k, s_next = 0.5, 1.0
    plan = rmp.Plan(
        op, prior, (count, 6), 0.3, guidance="exact", covariance="learned", precision_rate=1.0, noise="antithetic",
        inner_steps=1, schedule=rmp.schedules.Schedule(torch.tensor([s_k, s_next])), backend="torch", dtype=DOUBLE,
    )  # fmt: skip
    plan.execute(y[:1].expand(count, -1))
    conditioned = prior.condition(y[:1], op, 0.3)
    basis = torch.eye(6, dtype=DOUBLE)
    level = torch.tensor([s_k], dtype=DOUBLE)
    zero = conditioned.denoise(torch.zeros(1, 6, dtype=DOUBLE), level)
    trace = sum((conditioned.denoise(basis[i : i + 1], level) - zero)[0, i] for i in range(6)) / 6
    estimates = plan.curvature
    assert estimates is not None
    assert abs(estimates.mean() - trace) < 5 * estimates.std() / math.sqrt(count)
