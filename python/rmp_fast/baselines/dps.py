"""Diffusion posterior sampling."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, ClassVar

import torch
from torch import Tensor

from .._checks import check_positive
from .base import Baseline, Run, ancestral, clipped

__all__ = ["DPS"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class DPS(Baseline):
    r"""DPS (Chung, Kim, Mccann, Klasky, Ye, ICLR 2023, arXiv 2209.14687, algorithm 1): any differentiable A.

    From the level s to the level t < s, with d = D(x, s), w = t^2/s^2 and e ~ N(0, I),

    .. math:: x \leftarrow w x + (1 - w) d + t \sqrt{1 - w}\, e
              - \zeta' \sqrt{(1 + s^2)(1 + t^2)}\, \nabla_x \|y - A(d)\|

    over the DDPM levels. The paper's algorithm weighs the gradient of the squared norm by zeta' / norm; the authors'
    program, whose step sizes are those below, takes the gradient of the norm, half as much, as here. The square root
    turns the gradient and the step of the variance-preserving state into those of x.

    The norm is that of one item: the authors' program takes it over the whole batch, so that an image's result depends
    on its neighbours (their issue 12).

    Args:
        step_size: zeta' >= 0 of the authors' program, on images of 3 x 256 x 256. The gradient of a norm has length one
            whatever the number of measurements, so that it weighs an error per pixel by its number's square root:
            images of 1 x 32 x 32 may want a step up to 14 times smaller.
        clip: clamp d to [-1, 1]; None: for images, not for signals (B, N).
    """

    name: ClassVar[str] = "dps"
    linear_only: ClassVar[bool] = False
    evaluations: int = 1000
    step_size: float = 0.3
    clip: bool | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive("step_size", self.step_size, allow_zero=True)

    @classmethod
    def paper_settings(cls, task: str) -> dict[str, Any]:
        """Of the configurations in the authors' repository, for FFHQ at 256 x 256 and noise 0.05."""
        scales = {"inpaint_random": 0.5, "inpaint_box": 0.5, "phase_retrieval": 1.0}
        return {"step_size": scales[task]} if task in scales else {}

    def sample(self, run: Run) -> Tensor:
        """One sample; every evaluation is forward and backward."""
        levels = self.levels()
        x = run.start_at(levels[0])
        for s, t in zip(levels, [*levels[1:], 0.0], strict=True):
            with torch.enable_grad():
                leaf = x.detach().requires_grad_()
                d = clipped(run.denoise(leaf, s), self.clip)
                norms = torch.linalg.vector_norm((run.y - run.op.A(d)).flatten(1), dim=1)
                gradient = run.gradient(norms.sum(), leaf)
            x = ancestral(x, d.detach(), s, t, run.draw())
            x = x - self.step_size * math.sqrt((1 + s * s) * (1 + t * t)) * gradient
        return x
