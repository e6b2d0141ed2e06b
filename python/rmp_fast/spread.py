"""How far the truth may lie from the estimate: the posterior variance per element, from a few looks through noise."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch
from torch import Tensor

from ._checks import check_shape
from .operators import GaussianBlur
from .reference import normals

__all__ = ["Calibration", "calibration", "posterior_variance"]

#: Pixels over which the estimates of single elements, each noisy, are averaged.
SMOOTHING_STD = 1.5

_SMOOTHING = GaussianBlur(SMOOTHING_STD)

_STREAM = 1  # the chain's own normals are those of stream 0


def posterior_variance(
    denoise: Callable[[Tensor], Tensor],
    condition: Callable[[Tensor, Tensor], Tensor],
    mean: Tensor,
    seeds: Tensor,
    level: float,
    looks: int,
    watch: Callable[[], bool] | None = None,
) -> Tensor:
    r"""Diagonal of Cov[x0 | y], near the mean of a posterior narrower than the noise level s.

    .. math:: s^2 \operatorname{diag}(\partial d_y / \partial x), \quad
        (\partial d_y / \partial x)_{ii} = E[e_i (d_y(\mu + s e) - d_y(\mu - s e))_i] / (2 s)

    by Stein's identity, as Cov[x0 | x, y] = s^2 dd_y/dx (Tweedie) and x adds little to y where s is large. Averaged
    over ``looks`` antithetic pairs, and for images over a Gaussian window of 1.5 pixels. d_y takes its variance r2 from
    the denoiser itself, s^2 tr(dD/dx)/N at the first pair, since a wrong one would be the answer wherever y is exact.

    Args:
        denoise: x -> D(x, s).
        condition: (D, r2 (B,)) -> d_y.
        mean: (B, ...) the estimate.
        seeds: (B,) int64; the noise differs from the chain's.
        level: s, a noise level of about the spread of the images.
        looks: antithetic pairs, two evaluations each.
        watch: called after every pair; False ends the estimate with the pairs that there are.

    Returns:
        (B, ...) variances >= 0 on the range of ``mean``.
    """
    column = (-1,) + (1,) * (mean.ndim - 1)
    total = torch.zeros_like(mean)
    r2: Tensor | None = None
    for look in range(looks):
        e = normals(seeds, look, _STREAM, mean[0].numel()).reshape(mean.shape).to(mean.dtype)
        up = denoise(mean + level * e).clone()  # of a prior that returns the same memory every time
        down = denoise(mean - level * e)
        if r2 is None:
            trace = (e * (up - down)).flatten(1).mean(1) / (2 * level)
            r2 = level**2 * trace.clamp(1e-4, 1)
        total += e * (condition(up, r2) - condition(down, r2))
        if watch is not None and not watch():
            looks = look + 1
            break
    variance = total * (level / (2 * looks))
    if mean.ndim == 4:
        variance = _SMOOTHING.A(variance)
    # An estimate near or below zero is noise: nothing is known to less than a hundredth of the mean variance.
    floor = (variance.flatten(1).mean(1).clamp_min(0) * 1e-2).reshape(column)
    return torch.maximum(variance, floor)


@dataclasses.dataclass(frozen=True)
class Calibration:
    """How honest variances are.

    Attributes:
        within: shares of the elements whose error is within 1, 2 and 3 standard deviations; 0.683, 0.954 and 0.997 for
            Gaussian errors of exactly these variances.
        ratio: mean variance over mean squared error; 1 where the size of the error bars is right on average.
        correlation: of variance and squared error over the elements; 0 where error bars do not tell hard from easy.
    """

    within: tuple[float, float, float]
    ratio: float
    correlation: float


def calibration(estimate: Tensor, variance: Tensor, truth: Tensor) -> Calibration:
    """Compare ``variance`` with the squared error of ``estimate``, over all elements of three tensors of one shape.

    Raises:
        ValueError: tensors of different shapes, or without elements.
    """
    check_shape("variance", variance, tuple(truth.shape))
    check_shape("estimate", estimate, tuple(truth.shape))
    if not truth.numel():
        raise ValueError("`truth` must have elements, got none")
    error = (estimate.double() - truth.double()).square().flatten()
    spread = variance.double().flatten()
    one, two, three = (float((error <= n * n * spread).double().mean()) for n in (1, 2, 3))
    ratio = float(spread.mean() / error.mean())
    return Calibration((one, two, three), ratio, float(torch.corrcoef(torch.stack([spread, error]))[0, 1]))
