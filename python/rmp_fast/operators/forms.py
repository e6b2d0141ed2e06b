r"""How a denoised image is conditioned on a linear measurement, in the shapes that kernels can compute.

With D the denoised image, r2 its variance and q = noise_std^2 / r2, every form computes the Gaussian posterior mean

    d_y = D + r2 A^T (r2 A A^T + noise_std^2 I)^-1 (y - A D)

and where noise_std = 0 meets a singular A A^T, its limit: directions that A never sees keep D.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import torch
from torch import Tensor

from ..ops import block_counts, block_repeat
from .items import per_item, pseudo_reciprocal

if TYPE_CHECKING:
    from .base import LinearOperator

__all__ = ["Blocks", "Form", "Iterative", "Pointwise", "Spectral", "condition"]


@dataclass(frozen=True)
class Pointwise:
    """d_y = D + (y - D) / (1 + q) where observed, D elsewhere.

    ``mask``: uint8 (1 or B, *item) with nonzero where observed, expanded over channels; None observes everything. The
    measurement has the shape of the image, with zeros where nothing was observed.
    """

    mask: Tensor | None


@dataclass(frozen=True)
class Blocks:
    """d_y = D + (y_block - mean of D over the block) / (1 + n q), n the number of pixels of the block.

    Blocks of ``factor`` x ``factor`` are cut from the top left; the last ones are smaller where ``factor`` does not
    divide the size. Images (B, C, H, W), measurements (B, C, ceil(H / factor), ceil(W / factor)).
    """

    factor: int


@dataclass(frozen=True)
class Spectral:
    """A = U S V^H with a fast V^H: with c = V^H D, delta = (b - S^2 c) / (S^2 + q), where b = S U^H y.

    Args:
        analysis: images (B, ...) -> c = V^H x, real or complex, contiguous, first axis the item.
        synthesis: c -> V c.
        project: measurements -> b, of the shape and dtype of c; constant over a chain.
        energy: S^2, real, (1 or B, *item shape of c), contiguous. Singular values at rounding level are exactly 0 here
            and in ``project``, so that q = 0 gives the pseudo-inverse.
        complete: V is square, so D = V V^H D and d_y = synthesis(c + delta); else d_y = D + synthesis(delta).
        laplacian: where V diagonalises the Laplacian of images too, its values, (*item shape of c) or what broadcasts
            to that; else None.
        into: where V is real and square, analysis and synthesis with a second argument, where their result is left:
            another image, which plans use again and again, and for the synthesis possibly the coefficients; else None.
    """

    analysis: Callable[[Tensor], Tensor]
    synthesis: Callable[[Tensor], Tensor]
    project: Callable[[Tensor], Tensor]
    energy: Tensor
    complete: bool
    laplacian: Tensor | None = None
    into: tuple[Callable[[Tensor, Tensor], Tensor], Callable[[Tensor, Tensor], Tensor]] | None = None


@dataclass(frozen=True)
class Iterative:
    """The definition itself, the Gram solve by ``iterations`` conjugate gradient steps of ``operator``."""

    operator: LinearOperator
    iterations: int


Form: TypeAlias = Pointwise | Blocks | Spectral | Iterative


def condition(
    form: Form, op: LinearOperator, d: Tensor, y: Tensor, r2: float | Tensor, noise_std: float | Tensor
) -> Tensor:
    """d_y of the module's equation in plain torch, differentiable in ``d`` and ``y``, for any form.

    Args:
        form: what ``op.form(d.shape, d.device, d.dtype)`` returned.
        op: the operator.
        d: denoised images (B, ...).
        y: measurements, of shape ``op.measurement_shape(d.shape)``.
        r2: variance of the image given ``d``, >= 0; a number or (B,). With r2 = 0 the result is ``d``.
        noise_std: standard deviation of the measurement noise, >= 0, in the range of ``y``; a number or (B,).
    """
    gain, variance = per_item("r2", r2, d), per_item("noise_std", noise_std, d).square()
    if isinstance(form, Pointwise):
        # r2 / (r2 + sy^2) is 1 / (1 + q) without the infinite q of r2 = 0.
        step = (y - d) * (gain * pseudo_reciprocal(gain + variance)).to(d.dtype)
        return d + (step if form.mask is None else torch.where(form.mask.bool(), step, 0))
    if isinstance(form, Blocks):
        pixels = block_counts(d.shape[-2:], form.factor, d.device)
        step = (y - op.A(d)) * (gain * pseudo_reciprocal(gain + variance * pixels)).to(d.dtype)
        return d + block_repeat(step, form.factor, d.shape[-2:])
    if isinstance(form, Spectral):
        c = form.analysis(d)
        shape = (-1, *[1] * (c.ndim - 1))
        gain, variance = gain.reshape(shape), variance.reshape(shape)
        inverse = (gain * pseudo_reciprocal(gain * form.energy + variance)).to(form.energy.dtype)
        delta = (form.project(y) - form.energy * c) * inverse
        return form.synthesis(c + delta) if form.complete else d + form.synthesis(delta)
    solved = op.iterative_solve(y - op.A(d), r2, noise_std, tuple(d.shape), form.iterations).solution
    return d + gain.to(d.dtype) * op.adjoint(solved, tuple(d.shape))
