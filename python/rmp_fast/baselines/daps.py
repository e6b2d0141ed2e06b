"""Decoupled annealing posterior sampling."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, ClassVar

from torch import Tensor

from .. import schedules
from .._checks import check_count, check_positive
from .base import Baseline, Run, check_share

__all__ = ["DAPS"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class DAPS(Baseline):
    r"""DAPS (Zhang, Chu, Berner, Meng, Anandkumar, Song, arXiv 2407.01521, algorithm 1): any differentiable A.

    At every level s of an annealing grid: x0 by ``ode_steps`` Euler steps of the probability flow from (x, s), then
    ``langevin_steps`` steps

    .. math:: x_0^{j+1} = x_0^j + \eta \left[ \frac{x_0 - x_0^j}{s^2} + \frac{A^T (y - A x_0^j)}{\tau^2} \right]
              + \sqrt{2 \eta}\, e

    and x <- x0 + t e at the next level t. The last level returns the x0 of its flow. Both grids are those of EDM with
    rho = 7. With nonlinear A the data term is the gradient of ||y - A(x0)||^2 / 2.

    Args:
        evaluations: of the network; a multiple of ``ode_steps``. 1000 is the authors' DAPS-1K.
        ode_steps: evaluations per level.
        high, low: first and last level of the annealing grid.
        langevin_steps: per level; they evaluate A, not the network.
        langevin_rate: eta at the first level, falling linearly with the level's number to ``rate_share`` of it.
        tau: standard deviation of the data term; the authors keep 0.01, also where sy = 0.05. Above
            eta ||A||^2 / tau^2 = 2 the iteration diverges.
        rate_share: on [0, 1].
    """

    name: ClassVar[str] = "daps"
    linear_only: ClassVar[bool] = False
    on_timesteps: ClassVar[bool] = False
    evaluations: int = 1000
    ode_steps: int = 5
    high: float = 100.0
    low: float = 0.1
    langevin_steps: int = 100
    langevin_rate: float = 1e-4
    tau: float = 0.01
    rate_share: float = 0.01

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("ode_steps", self.ode_steps)
        check_count("langevin_steps", self.langevin_steps)
        if self.evaluations % self.ode_steps or self.evaluations < 2 * self.ode_steps:
            raise ValueError(
                f"`evaluations` must be a multiple of `ode_steps` = {self.ode_steps} and at least "
                f"{2 * self.ode_steps}, got {self.evaluations}"
            )
        for name in ("langevin_rate", "tau"):
            check_positive(name, getattr(self, name))
        check_share("rate_share", self.rate_share)
        schedules.karras(1, self.low, self.high)  # refuses a range that is none

    @property
    def schedule_size(self) -> int:
        """Levels of the annealing grid."""
        return self.evaluations // self.ode_steps

    def paper_levels(self) -> list[float]:
        """The annealing grid."""
        levels: list[float] = schedules.karras(self.schedule_size - 1, self.low, self.high).levels.flip(0).tolist()
        return levels

    @classmethod
    def paper_settings(cls, task: str) -> dict[str, Any]:
        """Of the authors' configurations for pixel space, FFHQ at 256 x 256."""
        rates = {"inpaint_box": 5e-5, "motion_deblur": 5e-5, "phase_retrieval": 5e-5}
        if task == "nonlinear_deblur":
            return {"langevin_rate": 1e-5, "langevin_steps": 200}
        return {"langevin_rate": rates[task]} if task in rates else {}

    def sample(self, run: Run) -> Tensor:
        """One sample."""
        levels = self.levels()
        count = len(levels)
        x = levels[0] * run.draw()
        for k, s in enumerate(levels):
            start = self._flow(run, x, s)
            if k == count - 1:
                return start
            rate = self.langevin_rate * (1 + k / count * (self.rate_share - 1))
            clean = start
            for _ in range(self.langevin_steps):
                force = (start - clean) / (s * s) - run.residual_gradient(clean) / self.tau**2
                clean = clean + rate * force + math.sqrt(2 * rate) * run.draw()
            x = clean + levels[k + 1] * run.draw()
        return x

    def _flow(self, run: Run, x: Tensor, s: float) -> Tensor:
        """The end, at level 0, of the probability flow dx/ds = (x - D(x, s)) / s."""
        if self.ode_steps == 1:
            return run.denoise(x, s)
        levels = schedules.karras(self.ode_steps - 1, min(0.01, s / 2), s).levels.flip(0).tolist()
        for a, b in zip(levels, [*levels[1:], 0.0], strict=True):
            d = run.denoise(x, a)
            x = d + b / a * (x - d)
        return x
