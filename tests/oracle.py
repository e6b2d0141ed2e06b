"""The step and the operators of the kernels in plain float64, written from their formulas and not from their code."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from rmp_fast.reference import normals

TO_PREVIOUS, TO_DENOISED, NEXT_STD, NOISE_RATIO, SHARE, NEXT_SHARE, STD, RATE = range(8)


@dataclass
class Step:
    """What one natural step leaves behind."""

    mean: Tensor
    input: Tensor
    input_mirror: Tensor
    ok: Tensor
    curvature: Tensor


def block_counts(height: int, width: int, factor: int) -> Tensor:
    """Pixels of every block, (ceil(H / f), ceil(W / f))."""
    rows = torch.tensor([min(factor, height - i) for i in range(0, height, factor)])
    columns = torch.tensor([min(factor, width - i) for i in range(0, width, factor)])
    return (rows[:, None] * columns[None, :]).double()


def block_repeat(blocks: Tensor, factor: int, height: int, width: int) -> Tensor:
    return blocks.repeat_interleave(factor, -2).repeat_interleave(factor, -1)[..., :height, :width]


def block_average(x: Tensor, factor: int) -> Tensor:
    height, width = x.shape[-2:]
    rows, columns = -(-height // factor), -(-width // factor)
    padded = torch.zeros(*x.shape[:-2], rows * factor, columns * factor, dtype=torch.float64)
    padded[..., :height, :width] = x.double()
    sums = padded.unflatten(-2, (rows, factor)).unflatten(-1, (columns, factor)).sum((-3, -1))
    return sums / block_counts(height, width, factor)


def corrected(
    denoised: Tensor, correction: str, y: Tensor | None, mask: Tensor | None, factor: int, ratio: Tensor
) -> Tensor:
    """d + r2 A^T (r2 A A^T + sy^2)^-1 (y - A d), q = sy^2 / r2, for masks and block averages."""
    d = denoised.double()
    if correction == "none" or y is None:
        return d
    if correction == "gradient":
        return d + ratio * y.double()
    if correction == "mask":
        moved = d + (y.double() - d) / (1 + ratio)
        return moved if mask is None else torch.where(mask.bool(), moved, d)
    height, width = d.shape[-2:]
    change = (y.double() - block_average(d, factor)) / (1 + block_counts(height, width, factor) * ratio)
    return d + block_repeat(change, factor, height, width)


def natural_step(
    *,
    previous: Tensor,
    mean: Tensor,
    input: Tensor,
    denoised: Tensor,
    denoised_mirror: Tensor | None = None,
    looks: Tensor,
    seeds: Tensor,
    evaluation: int,
    stream: int = 0,
    drawn: bool = False,
    curvature: Tensor | None = None,
    correction: str = "none",
    y: Tensor | None = None,
    mask: Tensor | None = None,
    factor: int = 1,
) -> Step:
    """One step for every item; ``looks`` is (B, 8)."""
    batch, elements = mean.shape[0], math.prod(mean.shape[1:])

    def column(values: Tensor) -> Tensor:
        return values.double().reshape(batch, *[1] * (mean.ndim - 1))

    look = [column(looks[:, i]) for i in range(8)]
    m, x, p = mean.double(), input.double(), previous.double()
    halves = (y[:batch], y[batch:]) if correction == "gradient" and y is not None else (y, y)
    d = corrected(denoised, correction, halves[0], mask, factor, look[NOISE_RATIO])
    probe = d - m
    if denoised_mirror is not None:
        mirrored = corrected(denoised_mirror, correction, halves[1], mask, factor, look[NOISE_RATIO])
        probe, d = (d - mirrored) / 2, (d + mirrored) / 2

    diagonal = curvature is not None and curvature.ndim > 1
    j = column(torch.zeros(batch)) if curvature is None else curvature.double() if diagonal else column(curvature)

    def rho(share: Tensor) -> Tensor:
        return 1 / (1 - share * j).clamp(0.25, 4) if curvature is not None else torch.ones_like(share)

    before = rho(look[SHARE])
    point = x if drawn else m
    new = m + before * (look[TO_PREVIOUS] * (p - point) + look[TO_DENOISED] * (d - point))
    finite = new.isfinite()
    new = torch.where(finite, new, m)
    if curvature is not None:
        product = (x - m) * probe
        mean_product = product if diagonal else column(product.flatten(1).mean(1))
        seen = mean_product / (before * look[STD] ** 2).clamp_min(1e-300)
        rate = look[RATE] * (look[STD] > 0) * seen.isfinite()
        j = j + rate * (torch.where(seen.isfinite(), seen, 0.0) - j)
    e = normals(seeds, evaluation, stream, elements).reshape(m.shape)
    offset = rho(look[NEXT_SHARE]).sqrt() * look[NEXT_STD] * e
    return Step(
        new, new + offset, new - offset, finite.flatten(1).all(1).to(torch.uint8), j if diagonal else j.flatten()
    )


def extended_index(i: int, n: int, boundary: str) -> int:
    """Which of the n samples continues the line at i, stepping over one boundary at a time."""
    while not 0 <= i < n:
        if boundary == "circular":
            i += n if i < 0 else -n
        elif boundary == "replicate":
            i = 0 if i < 0 else n - 1
        else:
            i = -1 - i if i < 0 else 2 * n - 1 - i
    return i


@functools.cache
def _sources(n: int, count: int, boundary: str) -> Tensor:
    radius = count // 2
    line = torch.tensor([extended_index(i, n, boundary) for i in range(-radius, n + radius)])
    return torch.stack([line[i : i + count].flip(0) for i in range(n)])


def blur_matrix(taps: Tensor, n: int, boundary: str) -> Tensor:
    """(n, n) matrix of out[i] = sum_k taps[k] x[i + r - k] with x continued by ``boundary``."""
    matrix = torch.zeros(n, n, dtype=torch.float64)
    return matrix.scatter_add(1, _sources(n, len(taps), boundary), taps.double().expand(n, -1))


def separable_blur(x: Tensor, vertical: Tensor, horizontal: Tensor, boundary: str, adjoint: bool) -> Tensor:
    rows = blur_matrix(vertical, x.shape[-2], boundary)
    columns = blur_matrix(horizontal, x.shape[-1], boundary)
    if adjoint:
        rows, columns = rows.T, columns.T
    return rows @ x.double() @ columns.T


def spectral(c: Tensor, energy: Tensor, data: Tensor, ratio: Tensor, update: bool) -> Tensor:
    wide = torch.complex128 if c.is_complex() else torch.float64
    total = energy.double() + ratio.double().reshape(-1, *[1] * (c.ndim - 1))
    change = (data.to(wide) - energy.double() * c.to(wide)) / total.clamp_min(1e-30)
    return change if update else c.to(wide) + change


def clip_gradient(
    gradient: Tensor, direction: Tensor | None, limit: Tensor | None, weight: Tensor | None, residual: Tensor | None
) -> Tensor:
    def norm(x: Tensor) -> float:
        return math.sqrt(math.fsum(v * v for v in x.flatten().tolist()))

    items = []
    for k, g in enumerate(gradient.double()):
        if residual is not None:
            g = g / (norm(residual[k]) or 1.0)
        if direction is not None and limit is not None and weight is not None and g.any():
            most, length = limit[k].item() * norm(direction[k]), weight[k].item() * norm(g)
            g = g * min(1.0, most / length) if length else g
        items.append(g)
    return torch.stack(items) if items else gradient.double()
