"""Where the truth is closed form: Gaussian priors, exact identities, expectations of the noise modes."""

import math

import pytest
import torch

import rmp_fast as rmp
from rmp_fast import reference
from rmp_fast.spread import posterior_variance

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


@pytest.mark.parametrize("batch", [6, 3])  # as many items as numbers, and not
def test_a_posterior_given_a_mask_per_item_is_that_of_every_item_alone(batch: int) -> None:
    prior, _, _, _ = gaussian_problem()
    generator = torch.Generator().manual_seed(1)
    mask = torch.rand(batch, 6, generator=generator) < 0.6
    op = rmp.operators.Inpainting(mask)
    y = op.A(torch.randn(batch, 6, generator=generator, dtype=DOUBLE))
    alone = [prior.posterior_mean(y[k : k + 1], rmp.operators.Inpainting(mask[k]), 0.1) for k in range(batch)]
    expected = torch.cat(alone)
    torch.testing.assert_close(prior.posterior_mean(y, op, 0.1), expected)
    plan = rmp.Plan(
        op, prior, (batch, 6), 0.1, schedule=rmp.schedules.log(3, 0.01, 1e4), guidance="exact", noise="none",
        inner_steps=1, step_size=1.0, anchor="next", backend="torch", dtype=DOUBLE,
    )  # fmt: skip
    torch.testing.assert_close(plan.execute(y).mean, expected, rtol=0, atol=1e-7)


def test_closed_form_priors_refuse_and_own_what_they_hold() -> None:
    means, ones = torch.zeros(2, 4, dtype=DOUBLE), torch.ones(2, dtype=DOUBLE)
    prior = rmp.priors.GaussianMixture(ones, means, ones)
    before = prior.denoise(torch.ones(1, 4), torch.ones(1))
    means += 5
    assert torch.equal(prior.denoise(torch.ones(1, 4), torch.ones(1)), before)
    with pytest.raises(ValueError, match="`weights` must have a positive sum"):
        rmp.priors.GaussianMixture(torch.zeros(2), means, ones)
    with pytest.raises(ValueError, match="`means` must be finite"):
        rmp.priors.GaussianMixture(ones, means * math.nan, ones)
    hidden = rmp.operators.Inpainting(torch.tensor([True, True, False, False]))
    for arguments, error, message in [
        ((torch.zeros(1, 4), hidden, 0.0), ValueError, "`noise_std` must be above 0 where A C A\\^T of 'inpainting'"),
        ((torch.zeros(1, 4), hidden, -0.1), ValueError, "`noise_std` must be a finite number >= 0"),
        ((torch.zeros(1, 3), hidden, 0.1), ValueError, "`y` must have shape"),
        ((torch.zeros(1, 4, dtype=torch.int64), hidden, 0.1), TypeError, "`y` must be a floating-point tensor"),
    ]:
        with pytest.raises(error, match=message):
            prior.posterior_mean(*arguments)


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


@pytest.mark.parametrize("guidance", ["gaussian", "pigdm"])
def test_guidance_through_the_gradient_is_exact_too(guidance: str) -> None:
    """J = r2 / s^2 I for this prior, which is what ``gaussian`` takes it to be."""
    prior = rmp.priors.Gaussian(torch.zeros(6), torch.full((6,), 0.7))
    _, op, y, noise = gaussian_problem()
    x = torch.randn(3, 6, dtype=DOUBLE)
    for level in (0.05, 0.5, 5.0):
        exact = prior.condition(y, op, noise).denoise(x, torch.full((3,), level, dtype=DOUBLE))
        made = reference.conditional_mean(x, level, y, op, prior, noise, guidance)
        torch.testing.assert_close(made, exact, rtol=1e-9, atol=1e-9)


def test_jensen_with_its_default_scale_is_exact_where_a_is_orthogonal() -> None:
    prior = rmp.priors.Gaussian(torch.zeros(6), torch.full((6,), 0.7))
    op = rmp.operators.Denoising()
    y, x = torch.randn(3, 6, dtype=DOUBLE), torch.randn(3, 6, dtype=DOUBLE)
    noise = torch.tensor([0.05, 0.3, 1.0], dtype=DOUBLE)
    exact = prior.condition(y, op, noise).denoise(x, torch.full((3,), 0.5, dtype=DOUBLE))
    torch.testing.assert_close(reference.conditional_mean(x, 0.5, y, op, prior, noise, "jensen"), exact)


def test_dps_is_the_normalised_gradient() -> None:
    prior, op, y, noise = gaussian_problem()
    x = torch.randn(3, 6, dtype=DOUBLE)
    level = torch.full((3,), 0.5, dtype=DOUBLE)
    step = 1e-6 * torch.eye(6, dtype=DOUBLE)

    def norms(x: torch.Tensor) -> torch.Tensor:
        return (y - op.A(prior.denoise(x, level))).norm(dim=1)

    slope = torch.stack([(norms(x + h) - norms(x - h)) / 2e-6 for h in step], dim=1)
    expected = prior.denoise(x, level) - 0.5**2 * 0.3 * slope
    made = reference.conditional_mean(x, 0.5, y, op, prior, noise, "dps", 0.3)
    torch.testing.assert_close(made, expected, rtol=1e-7, atol=1e-7)


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


def test_diagonal_curvature_is_the_diagonal_of_the_conditional_denoiser() -> None:
    prior, op, y, _ = gaussian_problem()
    count = 20000
    plan = rmp.Plan(
        op, prior, (count, 6), 0.3, guidance="exact", covariance="diagonal", precision_rate=1.0, noise="antithetic",
        inner_steps=1, schedule=rmp.schedules.Schedule(torch.tensor([0.5, 1.0])), backend="torch", dtype=DOUBLE,
    )  # fmt: skip
    plan.execute(y[:1].expand(count, -1))
    conditioned = prior.condition(y[:1].expand(7, -1), op, 0.3)
    points = torch.cat([torch.zeros(1, 6, dtype=DOUBLE), torch.eye(6, dtype=DOUBLE)])
    values = conditioned.denoise(points, torch.full((7,), 0.5, dtype=DOUBLE))
    diagonal = (values[1:] - values[0]).diagonal()
    assert plan.curvature is not None
    standard_error = plan.curvature.std(0) / math.sqrt(count)
    assert ((plan.curvature.mean(0) - diagonal).abs() < 5 * standard_error).all()


def test_branches_come_closer_to_the_mean_of_a_mixture_than_one_chain() -> None:
    """Four separated modes, of which y tells two apart: one chain ends near a mode, branches average both."""
    means = torch.tensor([[2.0, 2.0], [2.0, -2.0], [-2.0, 2.0], [-2.0, -2.0]], dtype=DOUBLE)
    prior = rmp.priors.GaussianMixture(torch.full((4,), 0.25), means, torch.full((4,), 0.05))
    op = rmp.operators.CompressedSensing(torch.tensor([[1.0, 0.0]], dtype=DOUBLE))
    count, y = 64, torch.full((64, 1), 1.9, dtype=DOUBLE)
    expected = prior.posterior_mean(y, op, 0.3)
    options = {"guidance": "exact", "schedule": rmp.schedules.log(30, 0.02, 30.0), "inner_steps": 1, "dtype": DOUBLE}
    options |= {"noise": "none", "anchor": "next", "step_size": 1.0, "backend": "torch"}
    estimate = rmp.Plan(op, prior, (count, 2), 0.3, branches=16, switch_level=1.0, **options).execute(y)
    assert estimate.variance is not None
    # The unseen coordinate is +2 or -2, a variance of 4 whose average over 16 branches has a standard error of 1/2;
    # the average over all 64 items one of 1/16, of which five are allowed.
    assert (estimate.mean[:, 1].mean() - expected[0, 1]).abs() < 5 / 16
    assert estimate.mean[:, 1].square().mean() < 0.5
    assert (estimate.variance[:, 1].mean() - 4).abs() < 0.5
    assert (estimate.mean[:, 0] - expected[:, 0]).abs().max() < 0.1


def test_spread_is_the_posterior_variance_of_an_isotropic_gaussian() -> None:
    """d_y is linear here, so pairs at any level see Cov[x0 | x, y] exactly but for the randomness of e."""
    p, noise, level, count, elements = 0.7, 0.3, 3.0, 40, 200
    prior = rmp.priors.Gaussian(torch.zeros(elements), torch.full((elements,), p))
    seen = torch.arange(elements) < elements // 2
    op = rmp.operators.Inpainting(seen)
    y = torch.full((count, elements), 0.4, dtype=DOUBLE) * seen
    blind = 1 / p + 1 / level**2
    expected = 1 / (blind + seen / noise**2)
    for guidance in ("gaussian", "exact"):
        estimate = rmp.Plan(
            op, prior, (count, elements), noise, guidance=guidance, spread_looks=4, spread_level=level,
            backend="torch", dtype=DOUBLE,
        ).execute(y)  # fmt: skip
        assert estimate.variance is not None
        # e^2 averages to 1 over all items to 1 %; with `gaussian` r2 is
        # a mean of e^2 over 200 numbers, 10 % from 1, and that of an unseen element does not depend on it.
        ratio = estimate.variance / expected
        assert abs(ratio[:, ~seen].mean() - 1) < 0.02
        assert abs(ratio[:, seen].mean() - 1) < 0.04
        assert (ratio.mean(0) - 1).abs().max() < 5 * (2 / (4 * count)) ** 0.5
        assert estimate.stats["evaluations"] == 20 + 8


def test_spread_of_images_tells_seen_pixels_from_unseen() -> None:
    prior = rmp.priors.from_denoiser(lambda x, s: x * 0.5 / (0.5 + s.reshape(-1, 1, 1, 1) ** 2), data_variance=0.5)
    mask = torch.zeros(24, 24, dtype=torch.bool)
    mask[:, :12] = True
    op = rmp.operators.Inpainting(mask)
    plan = rmp.Plan(op, prior, (2, 1, 24, 24), 0.1, spread_looks=8, data_range=(0, 255))
    estimate = plan.execute(op.A(torch.full((2, 1, 24, 24), 100.0)))
    assert estimate.variance is not None
    sigma = estimate.variance.sqrt() / 127.5
    # 1 / (1 / 0.5 + 1 / 0.8^2) where nothing is seen; noise_std 0.1 / 127.5 where something is, blurred at the border.
    assert abs(sigma[..., 16:].square().mean() / (1 / (2 + 1 / 0.64)) - 1) < 0.1
    assert sigma[..., :6].mean() < 0.1 * sigma[..., 16:].mean()
    again = plan.execute(op.A(torch.full((2, 1, 24, 24), 100.0)))
    assert torch.equal(again.variance, estimate.variance)
    alone = rmp.Plan(op, prior, (1, 1, 24, 24), 0.1, spread_looks=8, data_range=(0, 255))
    one = alone.execute(op.A(torch.full((1, 1, 24, 24), 100.0)), torch.tensor([1]))
    torch.testing.assert_close(one.variance[0], estimate.variance[1], rtol=1e-5, atol=0)


def test_branches_of_neighbours_share_no_seed() -> None:
    seeds = torch.arange(50)
    assert len(torch.cat([reference.branch_seeds(seeds, k) for k in range(8)]).unique()) == 8 * 50


def test_step_sizes_average() -> None:
    assert list(reference.step_sizes("averaging", 1.4, 3)) == pytest.approx([1.4, 2.8 / 3, 0.7])


def test_no_pixel_is_known_better_than_a_hundredth_of_the_mean_variance() -> None:
    seen = torch.tensor([True, True, True, False])
    found = posterior_variance(
        lambda x: x / 2, lambda d, r2: torch.where(seen, 0, d), torch.zeros(2, 4), torch.arange(2), 0.8, 8
    )
    assert (found[:, 3] > 0).all()
    torch.testing.assert_close(found[:, :3], (0.01 * found[:, 3:] / 4).expand(2, 3))


def test_the_spread_of_means_counts_in_the_variance_of_a_mixture() -> None:
    means = torch.tensor([[-1.0, 0.0], [1.0, 0.0]])
    mixture = rmp.priors.GaussianMixture(torch.ones(2), means, torch.full((2,), 0.5))
    assert mixture.data_variance == pytest.approx(0.5 + 1 / 2)  # of two numbers, one varies by 1 between the means
