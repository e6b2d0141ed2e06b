"""Denoising diffusion restoration models."""

from __future__ import annotations

import dataclasses
import math
from typing import ClassVar

import torch
from torch import Tensor

from .. import ops
from .._checks import check_positive
from ..operators import Blocks, Operator, Pointwise, Spectral
from ..operators.items import pseudo_reciprocal
from .base import TIMESTEPS, Baseline, Run, check_share, ddpm_levels

__all__ = ["DDRM", "singular_basis"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class DDRM(Baseline):
    r"""DDRM (Kawar, Elad, Ermon, Song, NeurIPS 2022, arXiv 2201.11793, equations 7 and 8): linear A with an SVD.

    In the basis of the right singular vectors, with c = V^T x, d = V^T D(x, s), yb = Sigma^+ U^T y and
    q = sy / sigma_i, one step from the level s to t < s draws every coefficient from

    .. math:: N(d + \sqrt{1 - \eta^2}\, t\, (c - d)/s,\ \eta^2 t^2) \quad \sigma_i = 0
    .. math:: N(d + \sqrt{1 - \eta^2}\, t\, (yb - d)/q,\ \eta^2 t^2) \quad t < q
    .. math:: N((1 - \eta_b) d + \eta_b yb,\ t^2 - \eta_b^2 q^2) \quad t \ge q

    and the start from N(yb, s^2 - q^2) where s >= q, N(0, s^2) elsewhere.

    Args:
        eta: on [0, 1]; 0.85 in the paper.
        eta_b: on [0, 1]; 1 in the paper.
        noise_scale: >= 0, multiplies every draw; 1 in the paper. Below 1 the sample is no longer one of the posterior
            but lies closer to its mean; deepinv 0.5.0 inpaints with 1 / sqrt(2).
    """

    name: ClassVar[str] = "ddrm"
    evaluations: int = 20
    eta: float = 0.85
    eta_b: float = 1.0
    noise_scale: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_share("eta", self.eta)
        check_share("eta_b", self.eta_b)
        check_positive("noise_scale", self.noise_scale, allow_zero=True)

    def paper_levels(self) -> list[float]:
        """Every (1000 / n)-th timestep from 0 on, so that the first level lies below that of timestep 999."""
        return ddpm_levels(torch.arange(self.evaluations - 1, -1, -1) * TIMESTEPS // self.evaluations)

    def check(self, op: Operator, shape: tuple[int, ...], device: torch.device, dtype: torch.dtype) -> str | None:
        """None where the operator's form shows its singular values."""
        reason = super().check(op, shape, device, dtype)
        if reason is None and singular_basis(op, shape, device, dtype) is None:
            reason = "it needs the singular value decomposition, which that operator does not have in closed form"
        return reason

    def sample(self, run: Run) -> Tensor:
        """One sample."""
        basis = singular_basis(run.op, run.shape, run.y.device, run.y.dtype)
        assert basis is not None  # check() saw to it
        levels = self.levels()
        observed = basis.energy > 0
        inverse = pseudo_reciprocal(basis.energy)
        target = basis.project(run.y) * inverse
        noise = run.noise_std.reshape(-1, *[1] * (basis.energy.ndim - 1)).to(basis.energy.dtype)
        spread = noise * inverse.sqrt()  # q

        def place(free: Tensor, mean: Tensor, std: Tensor, e: Tensor, where: Tensor) -> Tensor:
            """``free`` with the coefficients ``where`` drawn anew; the random numbers are those of the image."""
            drawn = mean + std * basis.analysis(e)
            return free + basis.synthesis(torch.where(where, drawn - basis.analysis(free), 0))

        e, s = self.noise_scale * run.draw(), levels[0]
        seen = observed & (spread <= s)
        x = place(s * e, target, (s * s - spread.square()).clamp(min=0).sqrt(), e, seen)
        kept = math.sqrt(1 - self.eta**2)
        for s, t in zip(levels, [*levels[1:], 0.0], strict=True):
            denoised = run.denoise(x, s)
            if t == 0:
                return denoised
            e = self.noise_scale * run.draw()
            free = denoised + kept * t / s * (x - denoised) + self.eta * t * e
            d = basis.analysis(denoised)
            above = spread <= t
            towards = d + kept * t * (target - d) * pseudo_reciprocal(spread)
            mean = torch.where(above, (1 - self.eta_b) * d + self.eta_b * target, towards)
            variance = torch.where(above, t * t - (self.eta_b * spread).square(), (self.eta * t) ** 2)
            x = place(free, mean, variance.clamp(min=0).sqrt(), e, observed)
        return x


def singular_basis(op: Operator, shape: tuple[int, ...], device: torch.device, dtype: torch.dtype) -> Spectral | None:
    """The operator's form as V^T, V, S U^T y and S^2, or None where it has no closed form.

    The directions that A never sees need no basis: they are what V V^T leaves of an image.
    """
    form = op.form(shape, device, dtype)
    if isinstance(form, Spectral):
        return form
    if isinstance(form, Pointwise):
        mask = torch.ones((1, *shape[1:]), device=device) if form.mask is None else form.mask
        return Spectral(
            analysis=lambda x: x, synthesis=lambda c: c, project=op.adjoint, energy=mask.to(dtype), complete=True
        )
    if isinstance(form, Blocks):
        factor, size = form.factor, shape[-2:]
        root = ops.block_counts(size, factor, device).to(dtype).sqrt()
        return Spectral(
            analysis=lambda x: root * ops.block_average(x, factor),
            synthesis=lambda c: ops.block_repeat(c / root, factor, size),
            project=lambda y: y / root,
            energy=(1 / root.square()).expand(1, shape[1], -1, -1),
            complete=False,
        )
    return None
