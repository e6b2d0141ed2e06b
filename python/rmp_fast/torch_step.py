"""The natural-gradient step in plain torch: the backend that is always there, on any device.

Takes the same arguments as the compiled ``_core.NaturalStep`` and makes the same numbers to rounding.
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import ops
from .reference import normals

__all__ = ["TorchStep"]

# Columns of the table `looks` (L, B, 8): what one evaluation of the network does to one item (kernels/params.h).
TO_PREVIOUS, TO_DENOISED, NEXT_STD, NOISE_RATIO, SHARE, NEXT_SHARE, STD, RATE = range(8)


class TorchStep:
    """One inner iteration, bound to the buffers of a plan.

    Args:
        previous, mean, next_mean: (B, ...) mean of the level above; mean before and after the step (may be one buffer).
        input, input_mirror: (B, ...) where the next perturbed means are written, mu + sqrt(v) e and mu - sqrt(v) e.
        looks: (L, B, 8) coefficients. seeds: (B,) int64. ok: (B,) uint8.
        curvature: (B,) j of the learned isotropic precision, (B, ...) of the diagonal one, or None for the fixed one.
        drawn: the gradient is taken at ``input`` instead of ``mean``.
        correction: ``"none"``, ``"mask"``, ``"block_average"`` or ``"gradient"``, with ``y``, ``mask`` (uint8) and
            ``factor``.
    """

    def __init__(
        self, *, previous: Tensor, mean: Tensor, next_mean: Tensor, input: Tensor, looks: Tensor, seeds: Tensor,
        ok: Tensor, input_mirror: Tensor | None = None, curvature: Tensor | None = None, drawn: bool = False,
        correction: str = "none", y: Tensor | None = None, mask: Tensor | None = None, factor: int = 1, stream: int = 0,
    ) -> None:  # fmt: skip
        self.previous, self.mean, self.next_mean = previous, mean, next_mean
        self.input, self.input_mirror = input, input_mirror
        self.looks, self.seeds, self.ok, self.curvature = looks, seeds, ok, curvature
        self.drawn, self.correction, self.stream = drawn, correction, stream
        self.y, self.mask, self.factor = y, mask, factor

    def _column(self, values: Tensor) -> Tensor:
        return values.reshape(-1, *[1] * (self.mean.ndim - 1)).to(self.mean.dtype)

    def _corrected(self, denoised: Tensor, ratio: Tensor, mirrored: bool = False) -> Tensor:
        if self.y is None:
            return denoised
        if self.correction == "gradient":
            batch = self.mean.shape[0]
            return denoised + ratio * (self.y[batch:] if mirrored else self.y[:batch])
        if self.correction == "mask":
            moved = denoised + (self.y - denoised) / (1 + ratio)
            return moved if self.mask is None else torch.where(self.mask.bool(), moved, denoised)
        counts = ops.block_counts(denoised.shape[-2:], self.factor, denoised.device).to(denoised)
        blocks = (self.y - ops.block_average(denoised, self.factor, backend="torch")) / (1 + counts * ratio)
        return denoised + ops.block_repeat(blocks, self.factor, denoised.shape[-2:])

    def _spread(self, curvature: Tensor) -> Tensor:
        return curvature if curvature.ndim > 1 else self._column(curvature)

    def _rho(self, share: Tensor) -> Tensor:
        if self.curvature is None:
            return torch.ones_like(self._column(share))
        return 1 / (1 - self._column(share) * self._spread(self.curvature)).clamp(0.25, 4)

    def _write_input(self, centre: Tensor, std: Tensor, evaluation: int) -> None:
        e = normals(self.seeds, evaluation, self.stream, self.mean[0].numel()) if self.mean.numel() else self.mean
        offset = std * e.reshape(self.mean.shape).to(self.mean.dtype)
        self.input.copy_(centre + offset)
        if self.input_mirror is not None:
            self.input_mirror.copy_(centre - offset)

    def _next_std(self, row: Tensor) -> Tensor:
        return self._column(row[:, NEXT_STD]) * self._rho(row[:, NEXT_SHARE]).sqrt()

    def perturb(self, look: int, evaluation: int) -> None:
        """Write the first perturbed input, mean + std e with the standard deviation of row ``look``."""
        self._write_input(self.mean, self._next_std(self.looks[look]), evaluation)

    def __call__(self, look: int, denoised: Tensor, evaluation: int) -> None:
        """``denoised``: (B, ...), or (2B, ...) with the mirrored looks behind the others."""
        row = self.looks[look]
        batch = self.mean.shape[0]
        ratio = self._column(row[:, NOISE_RATIO])
        d = self._corrected(denoised[:batch], ratio)
        probe = d - self.mean
        if self.input_mirror is not None:
            mirrored = self._corrected(denoised[batch:], ratio, mirrored=True)
            probe, d = (d - mirrored) / 2, (d + mirrored) / 2
        rho = self._rho(row[:, SHARE])
        point = self.input if self.drawn else self.mean
        pull = self._column(row[:, TO_PREVIOUS]) * (self.previous - point)
        pull = pull + self._column(row[:, TO_DENOISED]) * (d - point)
        new = self.mean + rho * pull
        if self.curvature is not None and self.mean.numel():
            before = self._spread(self.curvature)
            product = (self.input - self.mean) * probe
            if self.curvature.ndim == 1:
                product = self._column(product.flatten(1).mean(1, dtype=torch.float64))
            variance = rho * self._column(row[:, STD]).square()
            seen = torch.where(variance > 0, product / variance.clamp_min(1e-30), before)
            learned = before + self._column(row[:, RATE]) * (seen.to(before.dtype) - before)
            # A look that left the finite range teaches nothing.
            self.curvature.copy_(torch.where(torch.isfinite(learned), learned, before).reshape(self.curvature.shape))
        finite = torch.isfinite(new)
        self.ok.logical_and_(finite.flatten(1).all(1))
        self.next_mean.copy_(torch.where(finite, new, self.mean))  # which may be `previous`
        self._write_input(self.next_mean, self._next_std(row), evaluation)
