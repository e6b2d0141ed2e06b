"""The derivative of any operator at given images: what Gauss-Newton steps on a nonlinear measurement need."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .._checks import shape_text
from .base import LinearOperator, Memo, Operator, Shape, check_float, owned
from .function import linear_map

__all__ = ["Linearised"]


class _Graph(NamedTuple):
    """A(x) and its transposed derivative applied to u, both followed by autograd; the latter is linear in u."""

    x: Tensor
    y: Tensor
    u: Tensor
    transposed: Tensor


class Linearised(LinearOperator):
    r"""J = dA/dx at the images ``point``: A(x) is about A(point) + J (x - point).

    At point = D, the conditioned image of a linear operator, D + r2 J^T (r2 J J^T + noise_std^2 I)^-1 (y - A(D)), is
    one Gauss-Newton step from D towards the most probable image of x ~ N(D, r2 I) given y, and needs no gradient of a
    network:

        step = Linearised(op, D)
        D + r2 * step.adjoint(step.gram_solve(y - op.A(D), r2, noise_std))

    J^T y is a backward pass through A, and J x one through that pass. The graph of A at ``point`` is kept, and
    conjugate gradients run on it.

    Args:
        op: the operator.
        point: images (B, ...), float32 or float64.
        iterations: conjugate gradient steps of the Gram solve.

    Raises:
        TypeError: ``op`` is no operator, or ``point`` no float32 or float64 tensor.
        ValueError: ``op`` cannot take that shape; when used, images of another one.
    """

    name = "linearised"

    def __init__(self, op: Operator, point: Tensor, iterations: int = 10) -> None:
        if not isinstance(op, Operator):
            raise TypeError(f"`op` must be an rmp_fast operator, got {type(op).__name__}; see rmp_fast.operators")
        check_float("point", point)
        if iterations < 1:
            raise ValueError(f"`iterations` must be >= 1, got {iterations}")
        self._op, self._point = op, owned(point)
        self._shape = op.measurement_shape(point.shape)
        self.iterations = iterations
        self._graphs: Memo[_Graph] = Memo(2)

    def __repr__(self) -> str:
        return f"Linearised({self._op!r}, point={shape_text(self._point.shape)})"

    def measurement_shape(self, image_shape: Sequence[int]) -> Shape:
        """That of the operator; the images must have the shape of the point."""
        if tuple(image_shape) != tuple(self._point.shape):
            raise ValueError(
                f"`image_shape` must be that of the point, {shape_text(self._point.shape)}, "
                f"got {shape_text(image_shape)}"
            )
        return self._shape

    def image_shape(self, measurement_shape: Sequence[int]) -> Shape:
        """The shape of the point."""
        if tuple(measurement_shape) != self._shape:
            raise ValueError(
                f"`measurement_shape` must be {shape_text(self._shape)}, got {shape_text(measurement_shape)}"
            )
        return tuple(self._point.shape)

    def _apply(self, x: Tensor) -> Tensor:
        return linear_map(x, self._forward, self._backward)

    def _transpose(self, y: Tensor, image_shape: Shape) -> Tensor:
        return linear_map(y, self._backward, self._forward)

    def _forward(self, v: Tensor) -> Tensor:
        graph = self._graph(v)
        return _gradient(graph.transposed, graph.u, v)

    def _backward(self, w: Tensor) -> Tensor:
        graph = self._graph(w)
        return _gradient(graph.y, graph.x, w)

    def _graph(self, like: Tensor) -> _Graph:
        def build() -> _Graph:
            with torch.enable_grad():
                x = self._point.to(like).requires_grad_()
                y = self._op.A(x)
                u = torch.zeros_like(y, requires_grad=True)
                (transposed,) = torch.autograd.grad(y, x, u, create_graph=True)
                return _Graph(x, y, u, transposed)

        return self._graphs.get((like.device, like.dtype), build)


def _gradient(of: Tensor, at: Tensor, weights: Tensor) -> Tensor:
    with torch.inference_mode(False), torch.enable_grad():
        cotangent = weights.clone() if weights.is_inference() else weights.detach()
        (gradient,) = torch.autograd.grad(of, at, cotangent, retain_graph=True)
    return gradient
