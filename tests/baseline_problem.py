"""What the tests of the baselines share: a closed-form prior, a stand-in for a network, a nonlinear operator."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

import rmp_fast as rmp
from rmp_fast import operators

DOUBLE = torch.float64
P = 0.6  # variance of the isotropic Gaussian prior
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
