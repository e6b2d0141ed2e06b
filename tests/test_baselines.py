"""The baselines against closed forms where the prior is Gaussian, and their promises to callers."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

import rmp_fast as rmp
from rmp_fast import baselines, operators
from rmp_fast.baselines.base import ddpm_levels, uniform_timesteps
from rmp_fast.reference import normals

DOUBLE = torch.float64
P = 0.6  # variance of the isotropic Gaussian prior
FEW = {"dps": 4, "pigdm": 4, "ddrm": 4, "diffpir": 4, "daps": 6, "reddiff": 5}
SETTINGS: dict[str, dict[str, Any]] = {"daps": {"ode_steps": 2, "langevin_steps": 3}}
STREAM = 1 << 16  # of the first sample's random numbers


def shrink(s: float) -> float:
    """D(x, s) = shrink(s) x for a prior N(0, P I)."""
    return P / (P + s * s)


ISOTROPIC = rmp.priors.from_denoiser(lambda x, s: x * (P / (P + s * s)).reshape(-1, *[1] * (x.ndim - 1)), P)


def bent(x: Tensor, s: Tensor) -> Tensor:
    """Smooth, nonlinear, mixing pixels: a stand-in for a network."""
    s = s.reshape(-1, *[1] * (x.ndim - 1))
    return torch.tanh((x + s * (x + x.roll(1, -1)) / 2) / (1 + s + s * s))


BENT = rmp.priors.from_denoiser(bent, 0.5)


class Squared(operators.Operator):
    """y = x^2, no adjoint: what a nonlinear operator offers."""

    name = "squared"
    linear = False

    def measurement_shape(self, image_shape: Sequence[int]) -> tuple[int, ...]:
        return tuple(image_shape)

    def image_shape(self, measurement_shape: Sequence[int]) -> tuple[int, ...]:
        return tuple(measurement_shape)

    def _apply(self, x: Tensor) -> Tensor:
        return x.square()

    def _transpose(self, y: Tensor, image_shape: tuple[int, ...]) -> Tensor:
        raise AssertionError("a nonlinear operator has no adjoint")


def mask(shape: tuple[int, ...]) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(1)) < 0.4


KERNEL = torch.tensor([[0.0, 0.1, 0.2], [0.1, 0.2, 0.1], [0.0, 0.2, 0.1]])
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
@pytest.mark.parametrize(("eta", "eta_b", "noise"), [(0.85, 1.0, 0.2), (0.6, 0.4, 0.05), (0.85, 1.0, 0.0)])
def test_ddrm_follows_its_equations_in_the_basis_of_a_dense_svd(
    name: str, eta: float, eta_b: float, noise: float
) -> None:
    op, count, evaluations = OPERATORS[name](), 3000, 7
    y = one_measurement(op, noise)
    estimate = baselines.reconstruct(
        "ddrm", y.expand(count, *y.shape[1:]), op, ISOTROPIC, noise, evaluations=evaluations, eta=eta, eta_b=eta_b,
        shape=(count, *IMAGE),
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
    assert_mean_and_variance(estimate.mean.flatten(1) @ vh.mT, k * mean, k * k * variance)


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


# What callers are promised.


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
