"""Denoising diffusion models for plug-and-play image restoration."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, ClassVar

import torch
from torch import Tensor

from .._checks import check_positive
from ..operators import LinearOperator, condition
from .base import TIMESTEPS, Baseline, Run, check_share, clipped, ddpm_levels

__all__ = ["DiffPIR"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class DiffPIR(Baseline):
    r"""DiffPIR (Zhu, Zhang, Liang, Cao, Wen, Timofte, Van Gool, CVPRW 2023, arXiv 2305.08995, algorithm 1): linear A.

    At the level s, with d = D(x, s) and rho = lambda sy^2 / s^2,

    .. math:: d_y = \arg\min_z \|y - A z\|^2 + \rho \|z - d\|^2
              = d + A^T (A A^T + \rho I)^{-1} (y - A d)

    and the next state is d_y + t (sqrt(1 - zeta) (x - d_y)/s + sqrt(zeta) e). The last evaluation is taken as it is,
    without the data.

    Args:
        strength: lambda > 0 with all quantities on one range. The authors' program puts sy on [0, 1] and s on [-1, 1],
            so that its lambda is four times this one.
        zeta: share of fresh noise, on [0, 1].
        clip: clamp d to [-1, 1]; None: for images, not for signals (B, N).
    """

    name: ClassVar[str] = "diffpir"
    evaluations: int = 100
    strength: float = 1.75
    zeta: float = 0.3
    clip: bool | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive("strength", self.strength)
        check_share("zeta", self.zeta)

    @classmethod
    def paper_settings(cls, task: str) -> dict[str, Any]:
        """Of the authors' programs: lambda = 7 and zeta = 0.3 for deblurring; zeta = 1 for inpainting."""
        return {"zeta": 1.0} if task in ("inpaint_random", "inpaint_box") else {}

    def paper_levels(self) -> list[float]:
        """Dense at low noise: timesteps 999 - floor(1000 sqrt(j / (n - 1)))."""
        index = torch.linspace(0, TIMESTEPS**2, self.evaluations, dtype=torch.float64).sqrt().long()
        return ddpm_levels((TIMESTEPS - 1 - index).clamp(min=0))

    def sample(self, run: Run) -> Tensor:
        """One sample."""
        levels = self.levels()
        assert isinstance(run.op, LinearOperator)  # `linear_only` saw to it
        form = run.op.form(run.shape, run.y.device, run.y.dtype)
        x = run.start_at(levels[0])
        for s, t in zip(levels, [*levels[1:], None], strict=True):
            d = clipped(run.denoise(x, s), self.clip)
            if t is None:
                return d
            conditioned = condition(form, run.op, d, run.y, s * s / self.strength, run.noise_std)
            direction = (x - conditioned) / s
            x = conditioned + t * (math.sqrt(1 - self.zeta) * direction + math.sqrt(self.zeta) * run.draw())
        return x
