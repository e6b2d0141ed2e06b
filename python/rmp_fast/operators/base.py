"""What every measurement operator offers: A, and where it is linear an adjoint, a Gram solve and a form for plans."""

from __future__ import annotations

import abc
import math
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from .._checks import check_tensor, shape_text
from .._modes import own_precision
from .conjugate_gradients import Solution, conjugate_gradients
from .data import Memo
from .forms import Form, Iterative
from .items import per_item

__all__ = ["LinearOperator", "Memo", "Operator", "Shape", "check_float", "check_image_shape", "owned"]

Shape = tuple[int, ...]

_DTYPES = (torch.float32, torch.float64)


class Operator(abc.ABC):
    """A measurement y = A(x) + n, n ~ N(0, noise_std^2 I), on batches whose first axis is the item.

    A new one states its two shapes and ``_apply``, differentiable by autograd; a linear one derives from
    :class:`LinearOperator` instead. Items never influence each other.

    Images lie on [-1, 1] and ``noise_std`` is a standard deviation in the units of y. Linear operators do not depend on
    that range; nonlinear ones say what they make of it. Tensors are float32 or float64 on any device; none is ever
    modified.
    """

    name: ClassVar[str] = "operator"
    linear: ClassVar[bool] = False

    @abc.abstractmethod
    def measurement_shape(self, image_shape: Sequence[int]) -> Shape:
        """Shape of y for images (B, ...), or ValueError where the operator cannot take that shape."""

    @abc.abstractmethod
    def image_shape(self, measurement_shape: Sequence[int]) -> Shape:
        """Shape of the images behind a measurement (B, ...); the usual one where several fit."""

    @abc.abstractmethod
    def _apply(self, x: Tensor) -> Tensor:
        """A(x), differentiable by autograd; ``x`` has been checked."""

    def A(self, x: Tensor) -> Tensor:
        """Noiseless measurement of a batch of images.

        Args:
            x: images (B, ...), float32 or float64; differentiable by autograd.

        Returns:
            y of shape ``measurement_shape(x.shape)``, on the device and of the dtype of ``x``.

        Raises:
            TypeError: ``x`` is not a float32 or float64 tensor.
            ValueError: the operator cannot take that shape.
        """
        check_float("x", x)
        expected = self.measurement_shape(x.shape)
        with own_precision(x.device):
            y = self._apply(x)
        self._check_own("_apply", y, expected, x.dtype)
        return y

    def _check_own(self, method: str, result: Tensor, shape: Sequence[int], dtype: torch.dtype) -> None:
        """ValueError where the operator breaks its own word."""
        if tuple(result.shape) != tuple(shape) or result.dtype != dtype:
            raise ValueError(
                f"`{method}` of the operator {self.name!r} must return shape {shape_text(shape)} and {dtype}, "
                f"got {shape_text(result.shape)} and {result.dtype}"
            )

    def select(self, items: slice, image_shape: Sequence[int]) -> Operator:
        """The operator of some items of a batch of images (B, ...): itself where all share its data."""
        return self

    def adjoint(self, *args: Any, **kwargs: Any) -> Tensor:
        """Of linear operators only: ValueError."""
        raise self._refused("adjoint")

    def gram_solve(self, *args: Any, **kwargs: Any) -> Tensor:
        """Of linear operators only: ValueError."""
        raise self._refused("Gram solve")

    def iterative_solve(self, *args: Any, **kwargs: Any) -> Solution:
        """Of linear operators only: ValueError."""
        raise self._refused("Gram solve")

    def form(self, *args: Any, **kwargs: Any) -> Form:
        """Of linear operators only: ValueError."""
        raise self._refused("form")

    def _refused(self, what: str) -> ValueError:
        return ValueError(
            f"the operator {self.name!r} is not linear and has no {what}; use the guidance 'gauss_newton', 'dps' or "
            "'jensen', which need A and its gradient alone"
        )


class LinearOperator(Operator):
    """A linear measurement y = A x + n: its adjoint, Gram solve, and form for plans.

    A new one states its two shapes, ``_apply`` and ``_transpose``; conjugate gradients then do the Gram solve. One with
    a closed form also states ``_solve`` and ``form``.
    """

    linear = True
    iterations: int = 50
    start_iterations: int = 20  # conjugate gradients of a smooth start, rmp_fast.start
    smooth_form = False  # whether the form may diagonalise the Laplacian too, which makes a closed form of that start

    def start_guess(self, back: Tensor) -> Tensor | None:
        """Where the conjugate gradients of a smooth start begin; None: at 0.

        Args:
            back: A^T y of checked measurements, (B, C, H, W) on the range of the images.

        Returns:
            An image of that shape that explains y roughly.
        """
        return None

    @abc.abstractmethod
    def _transpose(self, y: Tensor, image_shape: Shape) -> Tensor:
        """A^T y, differentiable by autograd; ``y`` and ``image_shape`` have been checked."""

    def adjoint(self, y: Tensor, image_shape: Sequence[int] | None = None) -> Tensor:
        """A^T y: <A x, y> = <x, A^T y> per item.

        Args:
            y: measurements (B, ...).
            image_shape: shape (B, ...) of the images; needed only where several sizes give the shape of ``y``.

        Raises:
            TypeError: ``y`` is not a float32 or float64 tensor.
            ValueError: ``y`` is no measurement of images of that shape.
        """
        shape = self._check_measurement("y", y, image_shape)
        with own_precision(y.device):
            x = self._transpose(y, shape)
        self._check_own("_transpose", x, shape, y.dtype)
        return x

    def normal(self, x: Tensor) -> Tensor:
        """A^T A x of images (B, ...), with the errors of :meth:`A`."""
        return self.adjoint(self.A(x), x.shape)

    def gram_solve(
        self, r: Tensor, r2: float | Tensor, noise_std: float | Tensor, image_shape: Sequence[int] | None = None
    ) -> Tensor:
        """(r2 A A^T + noise_std^2 I)^-1 r.

        With ``noise_std`` = 0 where A A^T is singular this is the pseudo-inverse: directions that A never produces are
        dropped, so the solution is zero there.

        Args:
            r: residuals (B, ...), shaped like measurements.
            r2: variance of the image given its denoised version, >= 0; a number or (B,).
            noise_std: standard deviation of the measurement noise, >= 0; a number or (B,).
            image_shape: as in :meth:`adjoint`.

        Raises:
            TypeError: ``r`` is not a float32 or float64 tensor.
            ValueError: a negative number, or a shape that does not fit.
        """
        shape = self._check_measurement("r", r, image_shape)
        gain = per_item("r2", r2, r)
        variance = per_item("noise_std", noise_std, r).square().to(r.dtype)
        with own_precision(r.device):
            return self._solve(r, gain.to(r.dtype), variance, shape)

    def iterative_solve(
        self,
        r: Tensor,
        r2: float | Tensor,
        noise_std: float | Tensor,
        image_shape: Sequence[int] | None = None,
        iterations: int | None = None,
    ) -> Solution:
        """The Gram solve by preconditioned conjugate gradients, with the relative residual of every item (B,).

        Runs a fixed number of iterations (``self.iterations`` unless given) and never synchronises with the host.
        """
        shape = self._check_measurement("r", r, image_shape)
        gain = per_item("r2", r2, r).to(r.dtype)
        variance = per_item("noise_std", noise_std, r).square().to(r.dtype)
        with own_precision(r.device):
            return self._iterate(r, gain, variance, shape, self.iterations if iterations is None else iterations)

    def form(self, image_shape: Sequence[int], device: torch.device, dtype: torch.dtype) -> Form:
        """How a plan conditions denoised images of that shape on y; see :mod:`rmp_fast.operators.forms`."""
        self.measurement_shape(image_shape)
        return Iterative(self, self.iterations)

    def _solve(self, r: Tensor, r2: Tensor, variance: Tensor, image_shape: Shape) -> Tensor:
        """The Gram solve; ``r2`` and ``variance`` = noise_std^2 broadcast against ``r``."""
        return self._iterate(r, r2, variance, image_shape, self.iterations).solution

    def _iterate(self, r: Tensor, r2: Tensor, variance: Tensor, image_shape: Shape, iterations: int) -> Solution:
        def gram(v: Tensor) -> Tensor:
            return r2 * self._apply(self._transpose(v, image_shape)) + variance * v

        return conjugate_gradients(gram, r, iterations, self._preconditioner(r, r2, variance, image_shape))

    def _preconditioner(
        self, r: Tensor, r2: Tensor, variance: Tensor, image_shape: Shape
    ) -> Callable[[Tensor], Tensor] | None:
        """A cheap symmetric positive approximation of the Gram inverse, or None."""
        return None

    def _check_measurement(self, name: str, value: Tensor, image_shape: Sequence[int] | None) -> Shape:
        check_float(name, value)
        if image_shape is None:
            return self.image_shape(value.shape)
        shape = tuple(image_shape)
        expected = tuple(self.measurement_shape(shape))
        if tuple(value.shape) != expected:
            raise ValueError(
                f"`{name}` must have shape {shape_text(expected)} for images {shape_text(shape)}, "
                f"got {shape_text(value.shape)}"
            )
        return shape


def owned(tensor: Tensor) -> Tensor:
    """A copy that the caller cannot change later and that autograd does not follow."""
    with torch.inference_mode(False):
        return tensor.detach().clone()


def check_image_shape(name: str, shape: Sequence[int]) -> tuple[int, int, int, int]:
    """``shape`` as (B, C, H, W), or ValueError where it is none or has empty items."""
    if len(shape) != 4 or math.prod(shape[1:]) == 0:
        raise ValueError(f"`{name}` must have shape (B, C, H, W) with C, H, W >= 1, got {shape_text(shape)}")
    return shape[0], shape[1], shape[2], shape[3]


def check_float(name: str, value: Tensor) -> None:
    """TypeError unless ``value`` is a float32 or float64 tensor."""
    if check_tensor(name, value).dtype not in _DTYPES:
        raise TypeError(f"`{name}` must be float32 or float64, got {value.dtype}; convert it with .float()")
