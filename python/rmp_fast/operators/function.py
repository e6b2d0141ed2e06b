"""Operators made of any differentiable function, linear or not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

from .._checks import check_finite, shape_text
from .agreement import AGREEMENT, adjoint_mismatch, alone, mismatch
from .base import LinearOperator, Operator, Shape

__all__ = ["Function", "LinearFunction", "from_callable", "linear_map", "try_out"]

Map: TypeAlias = Callable[[Tensor], Tensor]


class Function(Operator):
    """y = f(x) + n for a differentiable f on images of one shape; made by :func:`from_callable`."""

    name = "function"

    def __init__(
        self, fn: Map, measurement_shape: Sequence[int], image_shape: Sequence[int], batch: int | None = None
    ) -> None:
        self._shapes = _Shapes(measurement_shape, image_shape, batch)
        self._fn = fn

    def __repr__(self) -> str:
        return f"Function({_name(self._fn)}, {self._shapes})"

    def measurement_shape(self, image_shape: Sequence[int]) -> Shape:
        """(B, *image) -> (B, *measurement)."""
        return self._shapes.of_measurement(image_shape)

    def image_shape(self, measurement_shape: Sequence[int]) -> Shape:
        """(B, *measurement) -> (B, *image)."""
        return self._shapes.of_image(measurement_shape)

    def _apply(self, x: Tensor) -> Tensor:
        return _checked("fn", self._fn, x, self._shapes.measurement)


class LinearFunction(LinearOperator):
    """y = f(x) + n for a linear f on images of one shape; made by :func:`from_callable`.

    Without an adjoint of its own, A^T y is the gradient of <f(x), y>, taken by autograd. With one, f and its adjoint
    serve as each other's gradients, so that neither needs to be differentiable by autograd. The Gram solve is by
    conjugate gradients.
    """

    name = "linear_function"

    def __init__(
        self,
        fn: Map,
        measurement_shape: Sequence[int],
        image_shape: Sequence[int],
        adjoint: Map | None = None,
        iterations: int = 50,
        batch: int | None = None,
    ) -> None:
        if iterations < 1:
            raise ValueError(f"`iterations` must be >= 1, got {iterations}")
        self._shapes = _Shapes(measurement_shape, image_shape, batch)
        self._fn, self._adjoint = fn, adjoint
        self.iterations = iterations

    def __repr__(self) -> str:
        adjoint = "" if self._adjoint is None else f", adjoint={_name(self._adjoint)}"
        return f"LinearFunction({_name(self._fn)}, {self._shapes}{adjoint})"

    def measurement_shape(self, image_shape: Sequence[int]) -> Shape:
        """(B, *image) -> (B, *measurement)."""
        return self._shapes.of_measurement(image_shape)

    def image_shape(self, measurement_shape: Sequence[int]) -> Shape:
        """(B, *measurement) -> (B, *image)."""
        return self._shapes.of_image(measurement_shape)

    def _apply(self, x: Tensor) -> Tensor:
        if self._adjoint is None:
            return self._forward(x)
        return linear_map(x, self._forward, self._backward)

    def _transpose(self, y: Tensor, image_shape: Shape) -> Tensor:
        if self._adjoint is not None:
            return linear_map(y, self._backward, self._forward)
        followed = torch.is_grad_enabled() and y.requires_grad
        with torch.inference_mode(False), torch.enable_grad():
            x = torch.zeros(image_shape, dtype=y.dtype, device=y.device, requires_grad=True)
            cotangent = y.clone() if y.is_inference() else y
            (image,) = torch.autograd.grad(self._forward(x), x, cotangent, create_graph=followed)
        return image if followed else image.detach()

    def _forward(self, x: Tensor) -> Tensor:
        return _checked("fn", self._fn, x, self._shapes.measurement)

    def _backward(self, y: Tensor) -> Tensor:
        assert self._adjoint is not None
        return _checked("adjoint", self._adjoint, y, self._shapes.image)


class _Pair(torch.autograd.Function):
    """A linear map whose gradient is another one, and the other way round."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, there: Map, back: Map) -> Tensor:
        ctx.maps = there, back
        with torch.no_grad():
            out = there(x)
        return out.clone() if out is x else out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        there, back = ctx.maps
        return linear_map(gradients[0], back, there), None, None


def linear_map(x: Tensor, there: Map, back: Map) -> Tensor:
    """``there(x)``, a linear map, differentiable any number of times through its adjoint ``back``."""
    apply: Callable[..., Tensor] = _Pair.apply
    return apply(x, there, back)


class _Shapes:
    """The shapes of one measurement and of one image, and how many items a batch must have; None: any number."""

    def __init__(self, measurement: Sequence[int], image: Sequence[int], batch: int | None = None) -> None:
        self.measurement = _item_shape("measurement_shape", measurement)
        self.image = _item_shape("image_shape", image)
        self.batch = batch

    def __str__(self) -> str:
        return f"measurement_shape={shape_text(self.measurement)}, image_shape={shape_text(self.image)}"

    def of_measurement(self, image_shape: Sequence[int]) -> Shape:
        return self._exchanged("image_shape", image_shape, self.image, self.measurement)

    def of_image(self, measurement_shape: Sequence[int]) -> Shape:
        return self._exchanged("measurement_shape", measurement_shape, self.measurement, self.image)

    def _exchanged(self, name: str, shape: Sequence[int], expected: Shape, other: Shape) -> Shape:
        # No items at all are a batch that every function takes.
        fits = len(shape) > 0 and (self.batch is None or shape[0] in (0, self.batch))
        if not fits or tuple(shape[1:]) != expected:
            items = "B" if self.batch is None else self.batch
            raise ValueError(
                f"`{name}` must be {shape_text((items, *expected))} for this function, got {shape_text(shape)}"
            )
        return shape[0], *other


def from_callable(
    fn: Map,
    measurement_shape: Sequence[int],
    image_shape: Sequence[int],
    adjoint: Map | None = None,
    linear: bool = False,
    iterations: int = 50,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
) -> Operator:
    """An operator from a function of batches, tried once on random images before it is accepted.

    Args:
        fn: images (B, *image_shape) -> measurements (B, *measurement_shape) of the same dtype, on the same device;
            items independent of each other, the same result every time, and differentiable by autograd unless
            ``adjoint`` is given.
        measurement_shape, image_shape: of one item, without the batch, such as (C, H, W).
        adjoint: of a linear ``fn``: (B, *measurement_shape) -> (B, *image_shape); derived by autograd unless given.
        linear: whether ``fn`` is linear; a :class:`LinearFunction` then, with adjoint and Gram solve, else a
            :class:`Function`.
        iterations: conjugate gradient steps of the Gram solve.
        device, dtype: of the images of the trial.

    Raises:
        TypeError: ``fn`` or ``adjoint`` cannot be called, or returns no tensor or one of another dtype.
        ValueError: an adjoint of a function that is not said to be linear; and where the trial shows a wrong shape, NaN
            or infinity, an item that depends on its neighbours, a result that autograd does not follow, a function that
            is not linear, or an adjoint that is not its own, with the mismatch found. Later calls check types and
            shapes alone: a chain marks the items that become NaN instead of stopping.
    """
    for what, value in (("fn", fn), ("adjoint", adjoint)):
        if not callable(value) and not (what == "adjoint" and value is None):
            raise TypeError(f"`{what}` must be a function of a batch of tensors, got {type(value).__name__}")
    if adjoint is not None and not linear:
        raise ValueError("`adjoint` must be given for linear functions only; if `fn` is linear, say linear=True")
    if dtype not in AGREEMENT:
        raise TypeError(f"`dtype` must be torch.float32 or torch.float64, got {dtype}")
    op: Function | LinearFunction
    if linear:
        op = LinearFunction(fn, measurement_shape, image_shape, adjoint, iterations)
    else:
        op = Function(fn, measurement_shape, image_shape)
    with torch.inference_mode(False), torch.enable_grad():
        try_out(op, adjoint is None, torch.device("cpu" if device is None else device), dtype)
    return op


def try_out(
    op: Function | LinearFunction,
    needs_autograd: bool,
    device: torch.device,
    dtype: torch.dtype,
) -> None:
    """Raise, as :func:`from_callable` does, unless ``op`` behaves on random images."""
    generator = torch.Generator().manual_seed(0)

    def drawn(shape: Shape) -> Tensor:
        return torch.rand(shape, generator=generator, dtype=torch.float64).mul(2).sub(1).to(device, dtype)

    batch = op._shapes.batch
    x = drawn(op.image_shape((2 if batch is None else batch, *op._shapes.measurement))).requires_grad_()
    y = op.A(x)
    check_finite("fn(x)", y.detach())
    if needs_autograd and not y.requires_grad:
        raise ValueError("`fn` must be differentiable by autograd, got a result cut off from x; give its `adjoint` too")
    weights = drawn(tuple(y.shape))
    (gradient,) = torch.autograd.grad((y * weights).sum(), x)
    check_finite("the gradient of fn", gradient)
    x, y = x.detach(), y.detach()
    other = drawn(tuple(x.shape))
    with torch.no_grad():
        separate = alone(op.A, x, None if batch is None else other)
        _agree("`fn` must treat every item of a batch alone and the same way every time", separate, y, y, dtype)
        if not isinstance(op, LinearOperator):
            return
        combined = op.A(2 * x - 0.5 * other)
        _agree("`fn` must be linear", combined, 2 * y - 0.5 * op.A(other), y, dtype)
    image = op.adjoint(weights).detach()
    check_finite("adjoint(y)", image)
    left, right, apart = adjoint_mismatch(y, weights, x, image)
    if not apart <= AGREEMENT[dtype]:  # so that NaN is refused
        raise ValueError(
            "`adjoint` must be that of `fn`, <fn(x), y> = <x, adjoint(y)>, got "
            f"{float(left[0]):g} and {float(right[0]):g}, {apart:.1e} of the norms apart"
        )


def _agree(rule: str, actual: Tensor, expected: Tensor, scale: Tensor, dtype: torch.dtype) -> None:
    apart = mismatch(actual, expected, scale)
    if not apart <= AGREEMENT[dtype]:  # so that NaN is refused
        raise ValueError(f"{rule}, got results that differ by {apart:.1e} of their norm")


def _checked(name: str, fn: Map, x: Tensor, item: Shape) -> Tensor:
    out = fn(x)
    if not isinstance(out, Tensor):
        raise TypeError(f"`{name}` must return a torch.Tensor, got {type(out).__name__}")
    expected = (x.shape[0], *item)
    if tuple(out.shape) != expected:
        raise ValueError(
            f"`{name}` must return shape {shape_text(expected)} for {shape_text(x.shape)}, got {shape_text(out.shape)}"
        )
    if out.dtype != x.dtype or out.device != x.device:
        raise TypeError(f"`{name}` must return {x.dtype} on {x.device} as it got, got {out.dtype} on {out.device}")
    return out


def _item_shape(name: str, shape: Sequence[int]) -> Shape:
    item = tuple(shape)
    if not item or not all(isinstance(n, int) and n >= 1 for n in item):
        raise ValueError(f"`{name}` must be the shape of one item, such as (C, H, W), each >= 1, got {shape!r}")
    return item


def _name(fn: Map) -> str:
    return getattr(fn, "__name__", type(fn).__name__)
