"""Regularisation by denoising diffusion."""

from __future__ import annotations

import dataclasses
import math
from typing import ClassVar

import torch
from torch import Tensor

from .._checks import check_positive
from ..operators import Pointwise
from .base import Baseline, Run

__all__ = ["REDDiff"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class REDDiff(Baseline):
    r"""RED-diff (Mardani, Song, Kautz, Vahdat, ICLR 2024, arXiv 2305.04391, algorithm 1): any differentiable A.

    Adam on mu, one noise level s per step from the highest DDPM level down, with e ~ N(0, I) and the gradient

    .. math:: \frac{1}{M} A^T (A \mu - y) + \frac{\lambda s}{N} (\hat\varepsilon - e)
              = \frac{1}{M} A^T (A \mu - y) + \frac{\lambda}{N} (\mu - D(\mu + s e, s))

    of M measurements and N pixels; the factor s is the paper's weight 1 / SNR^(1/2). It starts from
    A^T (A A^T + sy^2 I)^-1 y, the pseudo-inverse where there is no noise; with nonlinear A from a draw of N(0, 1/4).

    Args:
        weight: lambda >= 0; 0.25 in the paper.
        learning_rate: of Adam, 0.1 in the paper, with its decay rates 0.9 and 0.99.
    """

    name: ClassVar[str] = "reddiff"
    linear_only: ClassVar[bool] = False
    evaluations: int = 1000
    weight: float = 0.25
    learning_rate: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive("weight", self.weight, allow_zero=True)
        check_positive("learning_rate", self.learning_rate)

    def sample(self, run: Run) -> Tensor:
        """The optimum that one sequence of random numbers leads to."""
        if run.op.linear:
            mu = run.op.adjoint(run.op.gram_solve(run.y, 1.0, run.noise_std, run.shape), run.shape)
        else:
            mu = run.draw() / 2
        mu = mu.clone()
        ratio = _pixels_per_measurement(run)
        # Elementwise, so that items do not feel each other.
        adam = torch.optim.Adam([mu], lr=self.learning_rate, betas=(0.9, 0.99))
        for s in self.levels():
            d = run.denoise(mu + s * run.draw(), s)
            mu.grad = self.weight * (mu - d) + ratio * run.residual_gradient(mu)
            adam.step()
        return mu


def _pixels_per_measurement(run: Run) -> Tensor:
    """N / M per item (B, 1, ...); a pixel that a mask hides is no measurement."""
    pixels = math.prod(run.shape[1:])
    counts = torch.full((run.shape[0],), run.y[0].numel(), dtype=torch.float64, device=run.y.device)
    if run.op.linear:
        form = run.op.form(run.shape, run.y.device, run.y.dtype)
        if isinstance(form, Pointwise) and form.mask is not None:
            counts = form.mask.flatten(1).double().sum(1).expand(run.shape[0]).clamp(min=1)
    return run.column(pixels / counts)
