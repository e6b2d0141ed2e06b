"""Priors from denoising modules: EDM's calling convention and deepinv's."""

from __future__ import annotations

import field
import pytest
import torch
from torch import Tensor, nn

import rmp_fast as rmp


class Preconditioned(nn.Module):
    """D(x, sigma) as NVlabs write it: sigma and one-hot classes by position, float32 inside."""

    img_channels = 2
    sigma_data = 0.6

    def __init__(self, label_dim: int) -> None:
        super().__init__()
        self.label_dim = label_dim
        self.shift = nn.Parameter(torch.arange(1.0, label_dim + 1)) if label_dim else None

    def forward(self, x: Tensor, sigma: Tensor, class_labels: Tensor | None = None, force_fp32: bool = False) -> Tensor:
        sigma = sigma.to(torch.float32).reshape(-1, 1, 1, 1)
        skip = self.sigma_data**2 / (sigma**2 + self.sigma_data**2)
        if self.shift is None:
            return skip * x
        if class_labels is None:
            class_labels = torch.zeros([1, self.label_dim], device=x.device)
        return skip * x + (class_labels.reshape(-1, self.label_dim) @ self.shift).reshape(-1, 1, 1, 1)


def test_edm_modules_are_called_as_nvlabs_do() -> None:
    x, s = torch.randn(3, 2, 5, 4), torch.tensor([0.1, 1.0, 30.0])
    skip = (0.36 / (0.36 + s**2)).reshape(-1, 1, 1, 1)
    prior = rmp.priors.from_edm(Preconditioned(0))
    assert (prior.channels, prior.data_variance) == ((2,), pytest.approx(0.36))
    torch.testing.assert_close(prior.denoise(x, s), skip * x)
    labelled = rmp.priors.from_edm(Preconditioned(4), label=2, data_variance=0.2, name="mine")
    assert (labelled.name, labelled.data_variance) == ("mine", 0.2)
    torch.testing.assert_close(labelled.denoise(x, s), skip * x + 3)
    torch.testing.assert_close(rmp.priors.from_edm(Preconditioned(4)).denoise(x, s), skip * x)
    assert not any(p.requires_grad for p in labelled.network.parameters())
    with pytest.raises(ValueError, match="one of the network's 4 classes, got 4"):
        rmp.priors.from_edm(Preconditioned(4), label=4)
    with pytest.raises(ValueError, match="this one has no classes, got 0"):
        rmp.priors.from_edm(Preconditioned(0), label=0)
    with pytest.raises(TypeError, match=r"`module` must be a torch.nn.Module, got function"):
        rmp.priors.from_edm(lambda x, s: x)


def test_edm_of_a_real_network() -> None:
    models = field.deepinv().models
    torch.manual_seed(0)
    inner = models.ADMUNet(
        8, 1, 1, label_dim=3, model_channels=32, channel_mult=(1, 2), num_blocks=1, attn_resolutions=(),
        pretrained=None, pixel_std=0.5,
    )  # fmt: skip

    class Conditional(nn.Module):
        label_dim = 3

        def __init__(self) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x: Tensor, sigma: Tensor, class_labels: Tensor | None = None) -> Tensor:
            denoised: Tensor = self.inner(x, sigma, class_labels=class_labels)
            return denoised

    x, s = torch.randn(2, 1, 8, 8), torch.tensor([0.2, 5.0])
    prior = rmp.priors.from_edm(Conditional(), label=1)
    with torch.no_grad():
        expected = inner(x, s, class_labels=torch.tensor([[0.0, 1, 0]]).expand(2, -1))
    assert torch.equal(prior.denoise(x, s), expected)


DENOISERS = {
    "DRUNet": {"in_channels": 1, "out_channels": 1, "nc": (4, 4, 8, 8), "nb": 1, "pretrained": None},
    "DnCNN": {"in_channels": 1, "out_channels": 1, "depth": 3, "nf": 4, "pretrained": None},
    "TVDenoiser": {"n_it_max": 20},
    "TGVDenoiser": {"n_it_max": 20},
    "BilateralFilter": {},
    "MedianFilter": {},
}


@pytest.mark.parametrize("kind", DENOISERS)
def test_deepinv_denoisers_see_their_own_range(kind: str) -> None:
    torch.manual_seed(0)
    denoiser = getattr(field.deepinv().models, kind)(**DENOISERS[kind])
    prior = rmp.priors.from_deepinv(denoiser, channels=1)
    assert prior.name == kind
    x, s = 0.4 * torch.randn(2, 1, 16, 16), torch.tensor([0.1, 0.4])
    out = prior.denoise(x, s)
    with torch.no_grad():
        denoiser.restart = True  # of those that would go on from the last call
        expected = 2 * denoiser((x + 1) / 2, s / 2) - 1
        denoiser.restart = True
        torch.testing.assert_close(out, expected, rtol=0, atol=0)
        alone = 2 * denoiser((x[1:] + 1) / 2, 0.2) - 1  # a number for one item
    # Total variation stops when all items have converged, so an item takes a few steps more in company.
    torch.testing.assert_close(out[1:], alone, rtol=0, atol=2e-3 if kind.startswith("T") else 1e-5)


def test_a_deepinv_denoiser_denoises_as_a_prior() -> None:
    prior = rmp.priors.from_deepinv(field.deepinv().models.TVDenoiser(n_it_max=100), channels=1)
    square = torch.full((1, 1, 24, 24), -0.5)
    square[..., 6:18, 6:18] = 0.5
    noisy = square + 0.2 * torch.randn(square.shape, generator=torch.Generator().manual_seed(0))
    error = (prior.denoise(noisy, torch.tensor([0.2])) - square).square().mean()
    assert error < 0.4 * (noisy - square).square().mean()
    with pytest.raises(TypeError, match=r"`denoiser` must be a torch.nn.Module, got str"):
        rmp.priors.from_deepinv("drunet")
