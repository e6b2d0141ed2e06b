"""Where a chain starts: the smoothest image that explains the measurement."""

from __future__ import annotations

from torch import Tensor

from . import ops
from ._checks import check_shape
from .operators import LinearOperator
from .operators.conjugate_gradients import conjugate_gradients
from .operators.forms import Spectral
from .operators.items import pseudo_reciprocal
from .ranges import phase

__all__ = ["smooth_start"]


def smooth_start(
    y: Tensor, op: LinearOperator, image_shape: tuple[int, ...], weight: float = 0.02, iterations: int | None = None
) -> Tensor:
    r"""argmin_x ||A x - y||^2 + weight ||Laplacian x||^2.

    For a mask this is nearly biharmonic interpolation, for blocks a smooth enlargement, for a blur a regularised
    inverse. Beyond the edge the image goes on flat; for a circular blur it wraps around.

    Where the basis of the operator's form diagonalises the Laplacian too, this is the closed form; else close to it,
    conjugate gradients from ``op.start_guess``.

    Args:
        y: measurements (B, ...) of a linear ``op``, from images on [-1, 1].
        image_shape: (B, C, H, W) of the result.
        weight: of the smoothness.
        iterations: steps of the conjugate gradients, each one A, one adjoint and two Laplacians; default
            ``op.start_iterations``.

    Returns:
        (B, C, H, W) on the range of the images.

    Raises:
        ValueError: if ``y`` is no measurement of such images.
    """

    def hessian(x: Tensor) -> Tensor:
        return ops.biharmonic(x, weight, op.normal(x))

    check_shape("y", y, op.measurement_shape(image_shape))
    with phase("start"):
        # Others may decompose a matrix for every line before they have a form.
        form = op.form(image_shape, y.device, y.dtype) if op.smooth_form else None
        if isinstance(form, Spectral) and form.laplacian is not None and form.complete:
            inverse = pseudo_reciprocal(form.energy + weight * form.laplacian.square())
            return form.synthesis(form.project(y) * inverse)
        steps = op.start_iterations if iterations is None else iterations
        gradient = op.adjoint(y, image_shape)
        guess = op.start_guess(gradient)
        if guess is None:
            return conjugate_gradients(hessian, gradient, steps).solution
        return guess + conjugate_gradients(hessian, gradient - hessian(guess), steps).solution
