"""Chains that a CUDA graph is claimed to hold: every operator, guidance, noise mode and option of a plan."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor

import rmp_fast as rmp
from rmp_fast import guidance, operators

__all__ = ["CHAINS", "OPERATORS", "SHAPE", "arguments", "make_plan", "measured", "named"]

SHAPE = (2, 2, 6, 8)
NOISES = ("control", "drawn", "antithetic", "none")


def _uniform(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def _maps() -> Tensor:
    return torch.complex(_uniform(3, 6, 8), _uniform(3, 6, 8, seed=1))


OPERATORS: dict[str, Any] = {
    "denoising": lambda: operators.Denoising(),
    "inpainting": lambda: operators.Inpainting(_uniform(2, 1, 6, 8) < 0.5),
    "super-resolution": lambda: operators.SuperResolution(4),
    "bicubic": lambda: operators.SuperResolution(2, filter="bicubic"),
    "gaussian blur": lambda: operators.GaussianBlur(1.0),
    "circular blur": lambda: operators.Blur(_uniform(3, 3) / 9),
    "reflected blur": lambda: operators.Blur(_uniform(3, 3) / 9, boundary="reflect", iterations=2),
    "compressed sensing": lambda: operators.CompressedSensing(_uniform(20, 96) - 0.5, SHAPE[1:]),
    "mri": lambda: operators.MRI(_uniform(2, 6, 8) < 0.5),
    "mri, coils by line": lambda: operators.MRI(operators.cartesian_mask((6, 8), 2.0, 0.2), _maps()),
    "mri, coils": lambda: operators.MRI(_uniform(6, 8) < 0.5, _maps(), iterations=2),
    "phase retrieval": lambda: operators.PhaseRetrieval(),
    "nonlinear blur": lambda: operators.NonlinearBlur(_uniform(3, 3) / 9),
    "linear function": lambda: operators.LinearFunction(lambda x: x.flip(-1) + x, SHAPE[1:], SHAPE[1:], iterations=2),
    "function": lambda: operators.Function(torch.tanh, SHAPE[1:], SHAPE[1:]),
}  # fmt: skip


def _denoiser(x: Tensor, s: Tensor) -> Tensor:
    s = s.reshape(-1, *[1] * (x.ndim - 1))
    return torch.tanh((x + s * (x + x.roll(1, -1)) / 2) / (1 + s + s * s))


_NETWORK = rmp.priors.from_denoiser(_denoiser, 0.5)

#: Operators with every guidance that serves them.
GUIDED = [(name, guide) for name, make in OPERATORS.items() for guide in guidance.usable(make(), _NETWORK)]

_LOOKS = rmp.schedules.Looks(
    level=[5.0, 0.3], noise=[4.0, 0.1], weight=[0.9, 0.8], momentum=[0.3, 0.1], variance=[0.6, 0.05]
)
OPTIONS: dict[str, dict[str, Any]] = {
    "learned": {"covariance": "learned"},
    "learned, drawn": {"covariance": "learned", "noise": "drawn"},
    "diagonal": {"covariance": "diagonal"},
    "next": {"anchor": "next"},
    "smooth start": {"start": "smooth"},
    "looks": {"looks": _LOOKS, "schedule": None},
    "range": {"data_range": (0, 255), "noise_std": 12.0},
    "spread": {"spread_looks": 2},
    "branches": {"branches": 3},
    "scale": {"guidance": "dps", "guidance_scale": 0.1},
}

#: (operator, options): every operator with every guidance, noise mode by guidance, and every option.
CHAINS: list[tuple[str, dict[str, Any]]] = [
    *((name, {"guidance": guide}) for name, guide in GUIDED),
    *(("inpainting", {"guidance": guide, "noise": noise})
      for guide, noise in itertools.product(("gaussian", *guidance.GRADIENTS), NOISES[1:])),
    *(("phase retrieval", {"guidance": guide, "noise": "antithetic"}) for guide in ("gauss_newton", "dps")),
    *(("reflected blur", {"noise": noise}) for noise in NOISES[1:]),
    *(("circular blur", {"noise": noise}) for noise in NOISES[1:]),
    *(("inpainting", options) for options in OPTIONS.values()),
    *(("signals", {"guidance": "exact", "noise": noise}) for noise in NOISES),
    ("signals", {"guidance": "exact", "spread_looks": 1}),
]  # fmt: skip


def named(chain: tuple[str, dict[str, Any]]) -> str:
    """Its name among the tests."""
    options = (str(v) if isinstance(v, str) else k for k, v in chain[1].items())
    return " ".join([chain[0], *options])


def prior_for(name: str) -> rmp.priors.Prior:
    """A smooth denoiser, or for "signals" a mixture."""
    if name != "signals":
        return _NETWORK
    means = _uniform(2, 5) - 0.5
    return rmp.priors.GaussianMixture(torch.ones(2), means, torch.full((2,), 0.2))


def operator_for(name: str) -> operators.Operator:
    """One of OPERATORS, or for "signals" a matrix."""
    return operators.CompressedSensing(_uniform(3, 5) - 0.5) if name == "signals" else OPERATORS[name]()


def shape_for(name: str) -> tuple[int, ...]:
    """Of the images."""
    return (2, 5) if name == "signals" else SHAPE


def arguments(name: str, **options: Any) -> dict[str, Any]:
    """Of a short plan."""
    op = operator_for(name)
    made = {"op": op, "prior": prior_for(name), "shape": shape_for(name), "noise_std": 0.1}
    first = guidance.usable(op, _NETWORK)[0]
    return {**made, "schedule": rmp.schedules.log(2, 0.05, 10.0), "guidance": first, **options}


def make_plan(name: str, **options: Any) -> rmp.Plan:
    """A short plan."""
    return rmp.Plan(**arguments(name, **options))


def measured(name: str, seed: int = 0) -> Tensor:
    """A measurement of :func:`operator_for`, on the CPU."""
    y = operator_for(name).A(_uniform(*shape_for(name), seed=seed) * 2 - 1)
    return y + 0.1 * _uniform(*y.shape, seed=seed + 1)
