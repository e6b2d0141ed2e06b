"""Pseudoinverse-guided diffusion."""

from __future__ import annotations

import dataclasses
import math
from typing import ClassVar

import torch
from torch import Tensor

from .._checks import check_choice, check_positive
from .base import Baseline, Run, check_share

__all__ = ["PiGDM"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class PiGDM(Baseline):
    r"""PiGDM (Song, Vahdat, Mardani, Kautz, ICLR 2023, algorithm 1): linear A with a Gram solve.

    At the level s, with d = D(x, s), r^2 = s^2 p / (s^2 + p) and the guidance of equation 7 there,

    .. math:: g = \left(\frac{\partial d}{\partial x}\right)^T A^T (r^2 A A^T + \sigma_y^2 I)^{-1} (y - A d),

    the next state at t < s is that of DDIM, with c_1 = eta t sqrt(1 - t^2/s^2) and c_2 = sqrt(t^2 - c_1^2),

    .. math:: x \leftarrow d_y + c_1 e + c_2 \hat\varepsilon .

    Args:
        weight: ``"adaptive"``, the authors': d_y = d + r^2 g, eps = (x - d)/s. ``"score"``: d_y = d + s^2 g,
            eps = (x - d_y)/s, the conditional score itself, which a Gaussian prior of variance p makes exact.
        eta: of DDIM, on [0, 1]; 1 (the paper's choice) draws, 0 is deterministic.
        prior_variance: p > 0 per element; 1 in the paper.
    """

    name: ClassVar[str] = "pigdm"
    evaluations: int = 100
    weight: str = "adaptive"
    eta: float = 1.0
    prior_variance: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("weight", self.weight, ("adaptive", "score"))
        check_share("eta", self.eta)
        check_positive("prior_variance", self.prior_variance)

    def sample(self, run: Run) -> Tensor:
        """One sample; every evaluation is forward and backward."""
        levels = self.levels()
        x = run.start_at(levels[0])
        for s, t in zip(levels, [*levels[1:], 0.0], strict=True):
            r2 = s * s * self.prior_variance / (s * s + self.prior_variance)
            with torch.enable_grad():
                leaf = x.detach().requires_grad_()
                denoised = run.denoise(leaf, s)
            d = denoised.detach()
            solved = run.op.gram_solve(run.y - run.op.A(d), r2, run.noise_std, run.shape)
            back = run.op.adjoint(solved, run.shape)
            with torch.enable_grad():
                gradient = run.gradient((denoised * back).sum(), leaf)
            conditioned = d + (r2 if self.weight == "adaptive" else s * s) * gradient
            direction = (x - (d if self.weight == "adaptive" else conditioned)) / s
            drawn = self.eta * t * math.sqrt(1 - (t / s) ** 2)
            x = conditioned + drawn * run.draw() + math.sqrt(t * t - drawn * drawn) * direction
        return x
