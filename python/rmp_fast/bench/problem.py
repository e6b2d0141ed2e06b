"""One restoration problem that every method solves: the same measurements, noise, prior and seeds."""

from __future__ import annotations

import copy
import dataclasses
import itertools

import torch
from torch import Tensor

from .. import metrics
from ..operators import GaussianBlur, LinearOperator
from ..priors import Prior
from ..priors.network import NetworkPrior

__all__ = ["Problem", "network_rounding", "quality"]


@dataclasses.dataclass(frozen=True)
class Problem:
    """Measurements of known images.

    Attributes:
        task: its name.
        op, prior: operator, which computes on the device of what it is given, and prior, on that of ``truth``.
        truth: (B, C, H, W) on [-1, 1]. Its device is that of the problem, and of ``y`` and ``seeds``.
        y: (B, ...) measurements of ``truth``.
        noise_std: standard deviation of the noise in ``y``, where images are on [-1, 1].
        seeds: (B,) int64.
        rounding: root mean square of what float32 does to one evaluation of the network.
    """

    task: str
    op: LinearOperator
    prior: Prior
    truth: Tensor
    y: Tensor
    noise_std: float
    seeds: Tensor
    rounding: float

    @property
    def shape(self) -> tuple[int, ...]:
        """(B, C, H, W) of the images."""
        return tuple(self.truth.shape)

    @property
    def strength(self) -> dict[str, float]:
        """As :func:`rmp_fast.presets.for_task` takes it."""
        blur = {"blur_std": self.op.std} if isinstance(self.op, GaussianBlur) else {}
        return {"noise_std": self.noise_std, **blur}

    def tolerance(self, evaluations: int) -> float:
        """Root mean square by which two float32 implementations of a chain on [-1, 1] may differ.

        Every evaluation adds its own rounding, and a denoiser, whose Jacobian has eigenvalues of about one at most,
        carries it on without enlarging it: ``evaluations`` roundings in all, aligned at worst. Two implementations make
        two such errors, and steps of up to twice the correction (over-relaxation) double them.
        """
        return 4 * evaluations * self.rounding


def network_rounding(prior: Prior, shape: tuple[int, ...], seed: int = 0) -> float:
    """Root mean square of D in float32 less D in float64, the worst of noise levels 0.1, 1, 10 and batches of 1 and 2.

    Convolutions of one image and of several are other algorithms, which round differently. For a prior that is no
    network, float32's own.
    """
    if not isinstance(prior, NetworkPrior):
        return float(torch.finfo(torch.float32).eps)
    generator = torch.Generator().manual_seed(seed)
    network = copy.deepcopy(prior.network).double()
    device = next(network.parameters(), torch.empty(0)).device
    worst = 0.0
    channels = shape[1] if prior.network_channels is None else prior.network_channels
    for batch, level in itertools.product((1, 2), (0.1, 1.0, 10.0)):
        x = level * torch.randn(batch, channels, *shape[2:], generator=generator).to(device)
        s = torch.full((batch,), level, device=device)
        with torch.inference_mode():
            gap = prior.network(x, s).double() - network(x.double(), s.double())
        worst = max(worst, float(gap.square().mean().sqrt()))
    return worst


def quality(mean: Tensor, truth: Tensor) -> tuple[list[float], list[float | None]]:
    """PSNR in dB and SSIM of every image of (B, C, H, W) on [-1, 1], clamped to that range; computed on the CPU."""
    pairs = [((a.clamp(-1, 1) + 1) / 2, (b + 1) / 2) for a, b in zip(mean.cpu(), truth.cpu(), strict=True)]
    arrays = [(a.float().numpy(), b.float().numpy()) for a, b in pairs]
    return [metrics.psnr(a, b) for a, b in arrays], [metrics.ssim(a, b) for a, b in arrays]
