"""The baselines against closed forms where the prior is Gaussian."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from baseline_problem import BENT, DOUBLE, ISOTROPIC, KERNEL, STREAM, P, Squared, mask, shrink
from torch import Tensor

import rmp_fast as rmp
from rmp_fast import baselines, operators
from rmp_fast.baselines.base import ddpm_levels, uniform_timesteps
from rmp_fast.reference import normals

OPERATORS = {
    "denoising": lambda: operators.Denoising(),
    "inpainting": lambda: operators.Inpainting(mask((5, 7))),
    "super-resolution": lambda: operators.SuperResolution(2),  # blocks of 4, 2 and 1 pixels
    "bicubic": lambda: operators.SuperResolution(2, filter="bicubic"),
    "reflected blur": lambda: operators.GaussianBlur(0.8),
    "circular blur": lambda: operators.Blur(KERNEL),
}
IMAGE = (1, 5, 7)


def matrix_of(op: operators.Operator, item: tuple[int, ...] = IMAGE) -> Tensor:
    """A as (M, N) in float64."""
    pixels = math.prod(item)
    return op.A(torch.eye(pixels, dtype=DOUBLE).reshape(pixels, *item)).flatten(1).mT


def one_measurement(op: operators.Operator, noise: float) -> Tensor:
    """(1, ...) in float64."""
    generator = torch.Generator().manual_seed(3)
    y = op.A(math.sqrt(P) * torch.randn(1, *IMAGE, generator=generator, dtype=DOUBLE))
    y = y + noise * torch.randn(y.shape, generator=generator, dtype=DOUBLE)
    return op.A(y) if isinstance(op, operators.Inpainting) else y


def draws(seeds: Tensor, number: int, shape: tuple[int, ...]) -> Tensor:
    """The random numbers of a run's draw, as documented: item's seed, number of the draw, stream of the sample."""
    return normals(seeds, number, STREAM, math.prod(shape[1:])).reshape(shape)


def assert_mean_and_variance(samples: Tensor, mean: Tensor, variance: Tensor) -> None:
    """Of independent Gaussian ``samples`` (B, N): within five standard errors of the truth, everywhere."""
    count = samples.shape[0]
    assert ((samples.mean(0) - mean).abs() <= 5 * (variance / count).sqrt() + 1e-9).all()
    assert ((samples.var(0) / variance - 1).abs() <= 5 * math.sqrt(2 / count)).all()


# Against closed forms.


def test_levels_of_ddpm() -> None:
    betas = [1e-4 + (0.02 - 1e-4) * t / 999 for t in range(1000)]
    expected = []
    for t in (0, 1, 500, 999):
        alpha = math.prod(1 - beta for beta in betas[: t + 1])
        expected.append(math.sqrt((1 - alpha) / alpha))
    assert ddpm_levels(torch.tensor([0, 1, 500, 999])) == pytest.approx(expected, rel=1e-12)
    assert uniform_timesteps(4).tolist() == [999, 666, 333, 0]
    assert uniform_timesteps(1).tolist() == [999]


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_pigdm_with_the_exact_score_samples_the_posterior_of_a_gaussian(eta: float) -> None:
    op = operators.CompressedSensing(torch.randn(3, 5, generator=torch.Generator().manual_seed(0), dtype=DOUBLE))
    prior = rmp.priors.Gaussian(torch.zeros(5, dtype=DOUBLE), torch.full((5,), P, dtype=DOUBLE))
    noise, count = 0.3, 4000
    y = torch.tensor([[0.5, -1.0, 0.8]], dtype=DOUBLE)
    estimate = baselines.reconstruct(
        "pigdm", y.expand(count, -1), op, prior, noise, weight="score", eta=eta, prior_variance=P
    )
    matrix = op.matrix
    covariance = torch.linalg.inv(torch.eye(5, dtype=DOUBLE) / P + matrix.mT @ matrix / noise**2)
    posterior = covariance @ matrix.mT @ y[0] / noise**2
    values, vectors = torch.linalg.eigh(covariance)
    # With the exact score every step is linear around the posterior mean m: x - m <- f (x - m) + c1 e, per eigenvector.
    levels = ddpm_levels(uniform_timesteps(100))
    away = torch.ones(5, dtype=DOUBLE)
    variance = torch.full((5,), 1 + levels[0] ** 2, dtype=DOUBLE)
    for s, t in zip(levels, [*levels[1:], 0.0], strict=True):
        c1 = eta * t * math.sqrt(1 - t * t / (s * s))
        factor = (values + math.sqrt(t * t - c1 * c1) * s) / (values + s * s)
        away = away * factor
        variance = factor.square() * variance + c1 * c1
    start = -(vectors.mT @ posterior) * away  # what the start at zero mean leaves
    found = (estimate.mean - posterior) @ vectors
    assert_mean_and_variance(found, start, variance)
    # the chain is close to the posterior itself: the start has decayed, and 100 steps narrow the smallest variance most
    assert start.norm() < 0.02 * posterior.norm()
    assert ((variance / values - 1).abs() < 0.5).all()
    torch.testing.assert_close(prior.posterior_mean(y, op, noise)[0], posterior)


@pytest.mark.parametrize("name", OPERATORS)
@pytest.mark.parametrize(
    ("eta", "eta_b", "noise", "scale"), [(0.85, 1.0, 0.2, 1.0), (0.6, 0.4, 0.05, 0.5), (0.85, 1.0, 0.0, 1.0)]
)
def test_ddrm_follows_its_equations_in_the_basis_of_a_dense_svd(
    name: str, eta: float, eta_b: float, noise: float, scale: float
) -> None:
    op, count, evaluations = OPERATORS[name](), 3000, 7
    y = one_measurement(op, noise)
    estimate = baselines.reconstruct(
        "ddrm", y.expand(count, *y.shape[1:]), op, ISOTROPIC, noise, evaluations=evaluations, eta=eta, eta_b=eta_b,
        noise_scale=scale, shape=(count, *IMAGE),
    )  # fmt: skip
    u, values, vh = torch.linalg.svd(matrix_of(op))
    seen = values > 1e-12
    values, u, pixels = values[seen], u[:, : len(values)][:, seen], vh.shape[0]
    target = torch.zeros(pixels, dtype=DOUBLE)
    q = torch.full((pixels,), math.inf, dtype=DOUBLE)
    where = torch.zeros(pixels, dtype=torch.bool)
    where[: len(seen)] = seen
    target[where], q[where] = u.mT @ y.flatten() / values, noise / values

    levels = ddpm_levels(torch.arange(evaluations).flip(0) * 1000 // evaluations)
    seen_at_start = q <= levels[0]
    mean = torch.where(seen_at_start, target, 0)
    variance = torch.where(seen_at_start, levels[0] ** 2 - q.square(), levels[0] ** 2)
    keep = math.sqrt(1 - eta * eta)
    for s, t in itertools.pairwise(levels):
        k = shrink(s)
        free = k + keep * t / s * (1 - k)  # of the coefficient itself
        towards = k * (1 - keep * t / q)
        above = where & (q <= t)
        below = where & ~above
        factor = torch.where(above, (1 - eta_b) * k, torch.where(below, towards, free))
        shift = torch.where(above, eta_b * target, torch.where(below, keep * t * target / q, 0))
        mean = factor * mean + shift
        own = torch.where(above, t * t - (eta_b * q).square(), (eta * t) ** 2)
        variance = factor.square() * variance + own
    k = shrink(levels[-1])
    assert_mean_and_variance(estimate.mean.flatten(1) @ vh.mT, k * mean, (scale * k) ** 2 * variance)


@pytest.mark.parametrize("name", OPERATORS)
def test_diffpir_without_fresh_noise_is_its_recursion(name: str) -> None:
    op, noise = OPERATORS[name](), torch.tensor([0.05, 0.2, 0.0], dtype=DOUBLE)
    y = one_measurement(op, 0.1).expand(3, -1, -1, -1)
    seeds = torch.tensor([5, -1, 2**40])
    strength, evaluations = 1.5, 6
    estimate = baselines.reconstruct(
        "diffpir", y, op, ISOTROPIC, noise, seeds=seeds, evaluations=evaluations, strength=strength, zeta=0.0,
        clip=False, shape=(3, *IMAGE),
    )  # fmt: skip
    matrix, eye = matrix_of(op), torch.eye(math.prod(IMAGE), dtype=DOUBLE)
    timesteps = [999 - min(999, int(math.sqrt(j / 5) * 1000)) for j in range(evaluations)]
    levels = ddpm_levels(torch.tensor(timesteps))
    for item in range(3):
        x = math.sqrt(1 + levels[0] ** 2) * draws(seeds, 0, (3, *IMAGE))[item].flatten()
        for s, t in itertools.pairwise(levels):
            d = shrink(s) * x
            rho = strength * float(noise[item]) ** 2 / s**2
            system = matrix.mT @ matrix + rho * eye
            if rho == 0:  # the limit: data where they are, the denoised image elsewhere
                conditioned = d + torch.linalg.pinv(matrix, rtol=1e-10) @ (y[item].flatten() - matrix @ d)
            else:
                conditioned = torch.linalg.solve(system, matrix.mT @ y[item].flatten() + rho * d)
            x = conditioned + t / s * (x - conditioned)
        expected = shrink(levels[-1]) * x
        # float64 solves of systems with condition up to 1e6
        torch.testing.assert_close(estimate.mean[item].flatten(), expected, rtol=1e-7, atol=1e-7)


def test_diffpir_draws_fresh_noise_with_the_variance_of_the_level() -> None:
    count, zeta, evaluations = 20000, 0.4, 5
    y = torch.full((count, 2), 0.7, dtype=DOUBLE)
    estimate = baselines.reconstruct(
        "diffpir", y, operators.Denoising(), ISOTROPIC, 0.3, evaluations=evaluations, strength=1.0, zeta=zeta
    )
    timesteps = [999 - min(999, int(math.sqrt(j / 4) * 1000)) for j in range(evaluations)]
    levels = ddpm_levels(torch.tensor(timesteps))
    mean, variance = 0.0, 1 + levels[0] ** 2
    for s, t in itertools.pairwise(levels):
        share = s * s / (s * s + 0.3**2)  # of the data in the conditioned image
        factor = (1 - share) * shrink(s)
        kept = t / s * math.sqrt(1 - zeta)
        whole = factor + kept * (1 - factor)
        mean = whole * mean + share * 0.7 * (1 - kept)
        variance = whole**2 * variance + zeta * t * t
    k = shrink(levels[-1])
    expected = torch.full((2,), k * mean, dtype=DOUBLE), torch.full((2,), k * k * variance, dtype=DOUBLE)
    assert_mean_and_variance(estimate.mean, *expected)


@pytest.mark.parametrize("name", OPERATORS)
def test_dps_takes_its_step_along_the_gradient_of_each_items_norm(name: str) -> None:
    op = OPERATORS[name]()
    y = one_measurement(op, 0.1).expand(2, -1, -1, -1) * torch.tensor([1.0, 3.0], dtype=DOUBLE).reshape(2, 1, 1, 1)
    seeds, step = torch.tensor([4, 9]), 0.25
    estimate = baselines.reconstruct(
        "dps", y, op, ISOTROPIC, 0.1, seeds=seeds, evaluations=2, step_size=step, clip=False, shape=(2, *IMAGE)
    )
    s, t = ddpm_levels(torch.tensor([999, 0]))
    matrix = matrix_of(op)
    for item in range(2):
        first, second = (draws(seeds, number, (2, *IMAGE))[item].flatten() for number in (0, 1))
        x = math.sqrt(1 + s * s) * first
        for a, b, e in ((s, t, second), (t, 0.0, None)):
            k, w = shrink(a), (b / a) ** 2
            residual = y[item].flatten() - matrix @ (k * x)
            gradient = -k * matrix.mT @ residual / residual.norm()
            drawn = 0 if e is None else b * math.sqrt(1 - w) * e
            x = w * x + (1 - w) * k * x + drawn - step * math.sqrt((1 + a * a) * (1 + b * b)) * gradient
        torch.testing.assert_close(estimate.mean[item].flatten(), x, rtol=1e-9, atol=1e-9)


def test_dps_clips_images_and_not_signals() -> None:
    far = rmp.priors.from_denoiser(lambda x, s: 0 * x + 3.0, 1.0)
    one = {"evaluations": 1, "step_size": 0.0}
    for y, expected in ((torch.zeros(1, 1, 2, 2), 1.0), (torch.zeros(1, 4), 3.0)):
        assert baselines.reconstruct("dps", y, operators.Denoising(), far, 0.1, **one).mean.unique().item() == expected
    free = baselines.reconstruct("dps", torch.zeros(1, 1, 2, 2), operators.Denoising(), far, 0.1, clip=False, **one)
    assert free.mean.unique().item() == 3.0


@pytest.mark.parametrize("op", [operators.Denoising(), operators.Inpainting(torch.tensor([True, False, True]))])
def test_daps_flows_and_shakes_as_its_equations_say(op: operators.Operator) -> None:
    count, target = 20000, 0.8
    y = op.A(torch.full((count, 3), target, dtype=DOUBLE))
    options = {"langevin_steps": 4, "langevin_rate": 2e-3, "tau": 0.08, "rate_share": 0.5, "high": 2.0, "low": 0.5}
    estimate = baselines.reconstruct("daps", y, op, ISOTROPIC, 0.1, evaluations=4, ode_steps=2, **options)
    seen = op.A(torch.ones(1, 3, dtype=DOUBLE))[0]

    def flow(s: float) -> float:
        """What two Euler steps, from s over 0.01 to 0, make of x."""
        k = shrink(s) + 0.01 / s * (1 - shrink(s))
        return k * shrink(0.01)

    mean, variance = torch.zeros(3, dtype=DOUBLE), torch.full((3,), 2.0**2, dtype=DOUBLE)
    # one annealing level with its Langevin steps; x_j = a_j x_0 + b_j + noise of variance c_j
    rate = 2e-3
    a, b, c = torch.ones(3, dtype=DOUBLE), torch.zeros(3, dtype=DOUBLE), torch.zeros(3, dtype=DOUBLE)
    for _ in range(4):
        pull = 1 - rate * (1 / 2.0**2 + seen / 0.08**2)
        a, b = pull * a + rate / 2.0**2, pull * b + rate * seen * target / 0.08**2
        c = pull.square() * c + 2 * rate
    mean = flow(2.0) * mean * a + b
    variance = (flow(2.0) * a).square() * variance + c + 0.5**2
    k = flow(0.5)
    assert_mean_and_variance(estimate.mean, k * mean, k * k * variance)


def test_nonlinear_residuals_have_the_gradient_of_half_their_square() -> None:
    y = torch.tensor([[0.3, 0.9]], dtype=DOUBLE)
    run = baselines.Run(y, Squared(), BENT, torch.ones(1), (1, 2), torch.zeros(1, dtype=torch.int64))
    x = torch.tensor([[0.5, -0.4]], dtype=DOUBLE)
    torch.testing.assert_close(run.residual_gradient(x), 2 * x * (x.square() - y))
    assert run.forward == run.backward == 0


@pytest.mark.parametrize("op", [operators.Denoising(), operators.Inpainting(torch.tensor([True, False, True, False]))])
def test_reddiff_settles_between_the_data_and_the_denoiser(op: operators.Operator) -> None:
    zero = rmp.priors.from_denoiser(lambda x, s: 0 * x, 1.0)
    y = op.A(torch.tensor([[0.8, -0.5, 0.3, 0.1]], dtype=DOUBLE))
    rate, weight = 0.005, 0.5
    estimate = baselines.reconstruct("reddiff", y, op, zero, 0.1, weight=weight, learning_rate=rate)
    seen = op.A(torch.ones(1, 4, dtype=DOUBLE))
    ratio = 4 / float(seen.sum())  # the data are a mean over measurements, the prior one over pixels
    expected = ratio * y / (ratio + weight) * seen
    # Adam stays within its learning rate of the minimum of a quadratic
    torch.testing.assert_close(estimate.mean, expected, rtol=0, atol=rate)


def test_the_average_of_samples_approaches_the_posterior_mean() -> None:
    prior = rmp.priors.Gaussian(torch.zeros(4, dtype=DOUBLE), torch.full((4,), P, dtype=DOUBLE))
    op = operators.Inpainting(torch.tensor([True, True, False, True]))
    y, noise, items, samples = op.A(torch.tensor([[0.9, -0.6, 0.0, 0.2]], dtype=DOUBLE)), 0.4, 50, 12
    exact = prior.posterior_mean(y, op, noise)
    estimate = baselines.reconstruct(
        "pigdm", y.expand(items, -1), op, ISOTROPIC, noise, samples=samples, evaluations=60, weight="score",
        prior_variance=P,
    )  # fmt: skip
    assert estimate.variance is not None
    variance, count = estimate.variance.mean(0), items * samples
    spread = torch.where(op.mask, P * noise**2 / (P + noise**2), P)
    # five standard errors, and the hundredth of the mean that the start at zero leaves
    assert ((estimate.mean.mean(0) - exact).abs() <= 5 * (spread / count).sqrt() + 0.01).all()
    # five standard errors, and what 60 steps narrow a variance by
    assert (variance / spread - 1).abs().max() < 5 * math.sqrt(2 / count) + 0.3
    # one item alone is the average of few
    assert ((estimate.mean - exact).abs() <= 5 * (spread / samples).sqrt() + 0.01).all()


def test_reddiff_starts_at_the_pseudo_inverse() -> None:
    op, y = operators.SuperResolution(2), torch.rand(1, 1, 3, 3, dtype=DOUBLE)
    found = baselines.reconstruct("reddiff", y, op, ISOTROPIC, 0.1, evaluations=1, learning_rate=1e-12)
    # A A^T = I / 4, and 0.1^2 for the noise
    torch.testing.assert_close(found.mean, op.adjoint(y / (1 / 4 + 0.01), (1, 1, 6, 6)), rtol=0, atol=1e-9)
