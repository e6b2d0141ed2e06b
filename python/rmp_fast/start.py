"""Where a chain starts: the smoothest image that explains the measurement."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .operators import Operator
from .operators.conjugate_gradients import conjugate_gradients

__all__ = ["smooth_start"]


def smooth_start(
    y: Tensor, op: Operator, image_shape: tuple[int, ...], weight: float = 0.02, iterations: int = 60
) -> Tensor:
    r"""argmin_x ||A x - y||^2 + weight ||Laplacian x||^2, close to it: conjugate gradients from 0.

    For a mask this is nearly biharmonic interpolation, for blocks a smooth enlargement, for a blur a regularised
    inverse.

    Args:
        y: measurements (B, ...) of a linear ``op``, from images on [-1, 1].
        image_shape: (B, C, H, W) of the result.
        weight: of the smoothness, whose Laplacian repeats the edge pixels.
        iterations: steps of the conjugate gradients, each one A, one adjoint and two Laplacians.

    Returns:
        (B, C, H, W) on the range of the images.

    Raises:
        ValueError: if ``op`` is not linear, or ``y`` is no measurement of such images.
    """

    def hessian(x: Tensor) -> Tensor:
        return op.adjoint(op.A(x), image_shape) + weight * _laplacian(_laplacian(x))

    return conjugate_gradients(hessian, op.adjoint(y, image_shape), iterations).solution


def _laplacian(x: Tensor) -> Tensor:
    """4 x minus its four neighbours; symmetric, since the repeated edge cancels."""
    stencil = torch.tensor([[0, -1, 0], [-1, 4, -1], [0, -1, 0]], dtype=x.dtype, device=x.device)
    planes = nn.functional.pad(x.reshape(-1, 1, *x.shape[-2:]), (1, 1, 1, 1), mode="replicate")
    return nn.functional.conv2d(planes, stencil[None, None]).reshape(x.shape)
