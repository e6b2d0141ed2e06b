"""Several coils and Fourier samples in whole lines: the lines of the image decouple, one small matrix for each."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["LineFactors", "factorise_lines", "sampled_lines"]


@dataclass(frozen=True)
class LineFactors:
    """A^T A = V diag(energy) V^H for every line of the image.

    Attributes:
        vectors: V (G, R, L, L), real or complex, of R lines of L pixels; G = 1 shared or one per item.
        energy: (G, R, L), rounding-level values set to 0.
    """

    vectors: Tensor
    energy: Tensor

    def analysis(self, image: Tensor) -> Tensor:
        """V^H x: (B, R, L) -> (B, R, L), contiguous; B any multiple of G, items in the same order in every G."""
        return self._multiply(self.vectors.mH, image)

    def synthesis(self, c: Tensor) -> Tensor:
        """V c, the inverse of :meth:`analysis`."""
        return self._multiply(self.vectors, c)

    def _multiply(self, matrices: Tensor, x: Tensor) -> Tensor:
        items, rows, length = matrices.shape[:3]
        if x.shape[0] == 0:
            return x.clone()
        columns = x.reshape(-1, items, rows, length).permute(1, 2, 3, 0)
        return (matrices @ columns).permute(3, 0, 1, 2).reshape(x.shape).contiguous()


def sampled_lines(mask: Tensor) -> int | None:
    """-1 where ``mask`` (..., H, W) consists of whole columns, -2 where of whole rows, else None."""
    if bool((mask == mask[..., :1, :]).all()):
        return -1
    return -2 if bool((mask == mask[..., :1]).all()) else None


def factorise_lines(sampled: Tensor, maps: Tensor, real: bool, dtype: torch.dtype) -> LineFactors:
    """The factors of A^T A, in float64 on the CPU and then in ``dtype``.

    With F the centred transform of one line and m its samples, a line has the matrix sum_i s_i^* F^H m F s_i, of which
    a real image sees the real part.

    Args:
        sampled: bool (G or 1, L).
        maps: complex (G or 1, N, R, L).
        real: whether the images are.
        dtype: real working type.
    """
    length = sampled.shape[-1]
    position = torch.arange(length, dtype=torch.float64) - length // 2
    angle = -2 * math.pi / length * torch.outer(position, position)
    fourier = torch.polar(torch.full_like(angle, 1 / math.sqrt(length)), angle)
    point_spread = fourier.mH @ (sampled[:, :, None] * fourier)  # (G, L, L)
    maps = maps.to(device="cpu", dtype=torch.complex128)
    vectors, energy = [], []
    for line in maps.unbind(2):  # one after the other, because all matrices in float64 can be large
        gram = point_spread * (line.mH @ line)
        values, basis = torch.linalg.eigh(gram.real if real else gram)
        energy.append(values)
        vectors.append(basis.to(dtype if real else dtype.to_complex()))
    values = torch.stack(energy, 1)
    level = max(32 * torch.finfo(dtype).eps, length * torch.finfo(torch.float64).eps)
    values = torch.where(values > level * values.amax((1, 2), keepdim=True), values, 0)
    return LineFactors(torch.stack(vectors, 1), values.to(dtype))
