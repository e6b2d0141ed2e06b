"""Closed-form priors against automatic differentiation and brute force; the network prior's promises."""

import math

import pytest
import torch

import rmp_fast as rmp
from rmp_fast.priors.unet import DenoiserUNet, UNetConfig

DOUBLE = torch.float64


def mixture(diagonal: bool, elements: int = 5, components: int = 3) -> rmp.priors.GaussianMixture:
    generator = torch.Generator().manual_seed(3)
    weights = torch.rand(components, generator=generator, dtype=DOUBLE) + 0.1
    means = torch.randn(components, elements, generator=generator, dtype=DOUBLE)
    shape = (components, elements) if diagonal else (components,)
    return rmp.priors.GaussianMixture(weights, means, 0.05 + torch.rand(shape, generator=generator, dtype=DOUBLE))


def sensing(rows: int = 3, elements: int = 5) -> rmp.operators.CompressedSensing:
    generator = torch.Generator().manual_seed(4)
    return rmp.operators.CompressedSensing(torch.randn(rows, elements, generator=generator, dtype=DOUBLE))


@pytest.mark.parametrize("diagonal", [False, True])
def test_mixture_denoiser_is_tweedie_of_the_exact_density(diagonal: bool) -> None:
    prior = mixture(diagonal)
    x = torch.randn(6, 5, dtype=DOUBLE, requires_grad=True)
    s = torch.tensor([0.05, 0.2, 0.5, 1.0, 5.0, 50.0], dtype=DOUBLE)
    (score,) = torch.autograd.grad(prior.log_density(x, s).sum(), x)
    expected = x + s[:, None] ** 2 * score
    torch.testing.assert_close(prior.denoise(x, s), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("diagonal", [False, True])
def test_conditional_score_is_the_gradient_of_the_exact_conditional_density(diagonal: bool) -> None:
    prior, op = mixture(diagonal), sensing()
    y = torch.randn(4, 3, dtype=DOUBLE)
    conditioned = prior.condition(y, op, 0.3)
    x = torch.randn(4, 5, dtype=DOUBLE, requires_grad=True)
    s = torch.tensor([0.1, 0.4, 1.0, 10.0], dtype=DOUBLE)
    (score,) = torch.autograd.grad(conditioned.log_density(x, s).sum(), x)
    torch.testing.assert_close((conditioned.denoise(x, s) - x) / s[:, None] ** 2, score, rtol=1e-9, atol=1e-9)


def test_mixture_posterior_mean_agrees_with_importance_sampling() -> None:
    # 2e6 prior samples weighted by their likelihood: the effective sample size here is about 1e5, hence 1e-2
    prior, op = mixture(True), sensing(rows=2)
    generator = torch.Generator().manual_seed(0)
    count = 2_000_000
    which = torch.multinomial(prior.weights, count, replacement=True, generator=generator)
    std = prior.covariances.diagonal(dim1=1, dim2=2).sqrt()
    x0 = prior.means[which] + std[which] * torch.randn(count, 5, generator=generator, dtype=DOUBLE)
    y = torch.tensor([[0.7, -0.4]], dtype=DOUBLE)
    log_likelihood = -0.5 * ((op.A(x0) - y) / 0.5).square().sum(1)
    expected = (log_likelihood.softmax(0)[:, None] * x0).sum(0)
    torch.testing.assert_close(prior.posterior_mean(y, op, 0.5)[0], expected, rtol=0, atol=1e-2)


def test_gaussian_posterior_mean_is_the_textbook_formula() -> None:
    generator = torch.Generator().manual_seed(1)
    root = torch.randn(5, 5, generator=generator, dtype=DOUBLE)
    mean, covariance = torch.randn(5, generator=generator, dtype=DOUBLE), root @ root.T
    prior, op = rmp.priors.Gaussian(mean, covariance), sensing()
    y, noise = torch.randn(3, 3, dtype=DOUBLE), torch.tensor([0.1, 0.5, 2.0], dtype=DOUBLE)
    a = op.A(torch.eye(5, dtype=DOUBLE)).T
    for k in range(3):
        precision = torch.linalg.inv(covariance) + a.T @ a / noise[k] ** 2
        expected = torch.linalg.solve(precision, torch.linalg.solve(covariance, mean) + a.T @ y[k] / noise[k] ** 2)
        torch.testing.assert_close(prior.posterior_mean(y, op, noise)[k], expected, rtol=1e-7, atol=1e-7)


def test_data_variance_is_the_variance_per_element() -> None:
    assert math.isclose(rmp.priors.Gaussian(torch.zeros(4), torch.tensor([1.0, 2.0, 3.0, 4.0])).data_variance, 2.5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.ones(2), torch.zeros(3, 4), torch.ones(3)), r"`weights` must have shape \(K,\) = \(3,\), got \(2,\)"),
        ((torch.ones(3), torch.zeros(3, 4), torch.ones(3, 5)), r"`variances` must have shape \(K, N\) = \(3, 4\)"),
        ((torch.ones(3), torch.zeros(4), torch.ones(3)), r"`means` must have shape \(K, N\)"),
        ((torch.ones(3), torch.zeros(3, 4), -torch.ones(3)), r"`variances` must be finite and >= 0"),
    ],
)
def test_mixture_refuses(arguments: tuple[torch.Tensor, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rmp.priors.GaussianMixture(*arguments)


def test_gaussian_refuses_an_asymmetric_covariance() -> None:
    with pytest.raises(ValueError, match="`covariance` must be symmetric and positive semi-definite"):
        rmp.priors.Gaussian(torch.zeros(2), torch.tensor([[1.0, 0.5], [0.0, 1.0]]))


def test_unknown_bundled_prior_names_the_nearest() -> None:
    with pytest.raises(
        ValueError, match=r"`name` must be one of 'fashion', 'photo', got 'fotos'; did you mean 'photo'\?"
    ):
        rmp.priors.load("fotos")


def test_denoiser_with_a_wrong_result_is_named() -> None:
    prior = rmp.priors.from_denoiser(lambda x, s: x[:, :1], data_variance=0.3)
    with pytest.raises(ValueError, match=r"the denoiser must return shape \(2, 3, 4, 4\)"):
        prior.denoise(torch.zeros(2, 3, 4, 4), torch.ones(2))


@pytest.mark.parametrize("size", [(1, 1), (7, 33), (32, 32), (17, 50)])
def test_network_takes_any_size_and_keeps_items_apart(size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    network = DenoiserUNet(UNetConfig(channels=3, widths=(8, 8, 8)))
    for parameter in network.parameters():
        parameter.data.normal_(0, 0.1)
    prior = rmp.priors.NetworkPrior(network, channels=3, data_variance=0.25)
    x, s = torch.randn(3, 3, *size), torch.tensor([0.1, 1.0, 30.0])
    out = prior.denoise(x, s)
    assert out.shape == x.shape
    assert out.is_contiguous()
    # float32 convolutions choose their order of summation by the shape: equal to rounding, not to the bit
    torch.testing.assert_close(prior.denoise(x[1:2], s[1:2]), out[1:2], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("flips", [2, 4, 8])
def test_self_ensemble_is_the_mean_over_mirror_images(flips: int) -> None:
    prior = rmp.priors.load("photo")
    x, s = torch.randn(2, 1, 24, 40, generator=torch.Generator().manual_seed(0)), torch.tensor([0.2, 1.0])
    axes = [(), (-1,), (-2,), (-2, -1)][:flips]
    expected = torch.stack([prior.denoise(x.flip(a).contiguous(), s).flip(a) for a in axes]).mean(0)
    if flips == 8:
        transposed = [prior.denoise(x.mT.flip(a).contiguous(), s).flip(a).mT for a in axes]
        expected = (expected + torch.stack(transposed).mean(0)) / 2
    ensemble = rmp.priors.self_ensemble(prior, flips)
    # A network of float32 rounds a batch of all flips differently from one flip after the other.
    torch.testing.assert_close(ensemble.denoise(x, s), expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(ensemble.denoise(x.flip(-1).contiguous(), s), expected.flip(-1), rtol=0, atol=1e-5)
    assert (ensemble.name, ensemble.evaluations, prior.evaluations) == ("photo", flips, 1)
    assert rmp.priors.self_ensemble(prior, 1) is prior
    op = rmp.operators.Denoising()
    plan = rmp.Plan(op, ensemble, tuple(x.shape), 0.1, schedule=rmp.schedules.log(2, 0.1, 1.0), inner_steps=1)
    assert plan.evaluations == plan.execute(x).stats["evaluations"] == 2 * flips
    found = rmp.baselines.reconstruct("ddrm", x, op, ensemble, 0.1, evaluations=3)
    assert found.stats["evaluations"] == 3 * flips


def test_self_ensemble_refuses() -> None:
    with pytest.raises(ValueError, match="`flips` must be 1, 2, 4 or 8, got 3"):
        rmp.priors.self_ensemble(rmp.priors.load("fashion"), 3)
    with pytest.raises(TypeError, match="`prior` must be a NetworkPrior, got Gaussian"):
        rmp.priors.self_ensemble(rmp.priors.Gaussian(torch.zeros(4), torch.eye(4)), 2)


def test_colour_network_takes_grey_images() -> None:
    torch.manual_seed(0)
    network = DenoiserUNet(UNetConfig(channels=3, widths=(8, 8)))
    for parameter in network.parameters():
        parameter.data.normal_(0, 0.1)
    prior = rmp.priors.NetworkPrior(network, channels=3, data_variance=0.25)
    grey, s = torch.randn(2, 1, 16, 16), torch.tensor([0.2, 0.4])
    expected = prior.denoise(grey.expand(-1, 3, -1, -1), s).mean(1, keepdim=True)
    torch.testing.assert_close(prior.denoise(grey, s), expected)
    with pytest.raises(ValueError, match="with C = 1 or 3 for the prior"):
        prior.check_image_shape((1, 4, 16, 16))


@pytest.mark.parametrize("name", rmp.priors.BUNDLED)
def test_bundled_prior_denoises_and_credits_its_data(name: str) -> None:
    prior, info = rmp.priors.load(name), rmp.priors.metadata(name)
    assert info["command"].startswith(f"python -m rmp_fast.training {name}")
    assert "licence" in info["data"]
    channels = prior.network_channels
    ramp = torch.linspace(-0.8, 0.8, 32)
    clean = ((ramp[:, None] + ramp[None, :]) / 2).expand(1, channels, 32, 32)
    for level in (0.01, 0.2, 1.0, 50.0):
        noisy = clean + level * torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))
        error = (prior.denoise(noisy, torch.tensor([level])) - clean).square().mean()
        # better than leaving the image as it is, and never worse than a blank image is by more than a factor 2
        assert error < level**2
        assert error < 2 * clean.square().mean() + 0.5
