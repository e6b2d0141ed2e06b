"""Compressed sensing: a dense matrix applied to flattened images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .._checks import check_finite, check_tensor, shape_text
from .base import LinearOperator, Shape, owned
from .data import derived
from .forms import Spectral
from .items import pseudo_reciprocal
from .separable import significant

__all__ = ["CompressedSensing"]


class _Factors(NamedTuple):
    """The thin SVD in the working dtype, K = min(M, N): ``u`` (M, K), ``s`` (K,), ``v`` (N, K)."""

    u: Tensor
    s: Tensor
    v: Tensor


class CompressedSensing(LinearOperator):
    """y = matrix x + n, x the row-major flattened item: (B, *item) -> (B, M).

    Args:
        matrix: (M, N), float32 or float64, of any rank, M below, at or above N.
        image_shape: shape of one item with N elements, such as (C, H, W); (N,) unless given.

    The Gram solve goes through the SVD of the matrix in float64, made once.

    Raises:
        TypeError: the matrix is no floating-point tensor.
        ValueError: it is not (M, N), not finite, or ``image_shape`` has not N elements.
    """

    name = "compressed_sensing"

    def __init__(self, matrix: Tensor, image_shape: Sequence[int] | None = None) -> None:
        check_tensor("matrix", matrix)
        if matrix.ndim != 2 or matrix.numel() == 0:
            raise ValueError(f"`matrix` must have shape (M, N) with M, N >= 1, got {shape_text(matrix.shape)}")
        check_finite("matrix", matrix)
        self.matrix = owned(matrix)
        self.item_shape = (matrix.shape[1],) if image_shape is None else tuple(image_shape)
        if math.prod(self.item_shape) != matrix.shape[1]:
            raise ValueError(
                f"`image_shape` must have N = {matrix.shape[1]} elements, one per column of the matrix "
                f"{shape_text(matrix.shape)}, got {shape_text(self.item_shape)}"
            )

    def __repr__(self) -> str:
        return f"CompressedSensing(matrix={shape_text(self.matrix.shape)}, image_shape={shape_text(self.item_shape)})"

    def measurement_shape(self, image_shape: Sequence[int]) -> Shape:
        """(B, *item) -> (B, M)."""
        if tuple(image_shape[1:]) != self.item_shape:
            expected = shape_text(("B", *self.item_shape))
            raise ValueError(f"`image_shape` must be {expected} for this matrix, got {shape_text(image_shape)}")
        return image_shape[0], self.matrix.shape[0]

    def image_shape(self, measurement_shape: Sequence[int]) -> Shape:
        """(B, M) -> (B, *item)."""
        if len(measurement_shape) != 2 or measurement_shape[1] != self.matrix.shape[0]:
            expected = shape_text(("B", self.matrix.shape[0]))
            raise ValueError(f"`measurement_shape` must be {expected}, got {shape_text(measurement_shape)}")
        return measurement_shape[0], *self.item_shape

    def form(self, image_shape: Sequence[int], device: torch.device, dtype: torch.dtype) -> Spectral:
        """Spectral, with c = V^T D (B, min(M, N))."""
        self.measurement_shape(image_shape)
        u, s, v = self._factors(device, dtype)

        def synthesis(c: Tensor) -> Tensor:
            return (c @ v.mT).reshape(-1, *self.item_shape)

        return Spectral(
            analysis=lambda x: x.flatten(1) @ v,
            synthesis=synthesis,
            project=lambda y: s * (y @ u),
            energy=s.square()[None],
            complete=v.shape[0] == v.shape[1],
        )

    def _apply(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ self._matrix(x.device, x.dtype).mT

    def _transpose(self, y: Tensor, image_shape: Shape) -> Tensor:
        return (y @ self._matrix(y.device, y.dtype)).reshape(image_shape)

    def _solve(self, r: Tensor, r2: Tensor, variance: Tensor, image_shape: Shape) -> Tensor:
        u, s, _ = self._factors(r.device, r.dtype)
        c = r @ u
        inside = (c * pseudo_reciprocal(r2 * s.square() + variance)) @ u.mT
        if u.shape[0] == u.shape[1]:
            return inside
        # What no image can produce is noise alone.
        return inside + (r - c @ u.mT) * pseudo_reciprocal(variance)

    @derived
    def _matrix(self, device: torch.device, dtype: torch.dtype) -> Tensor:
        return self.matrix.to(device, dtype)

    @derived
    def _factors(self, device: torch.device, dtype: torch.dtype) -> _Factors:
        u, s, vh = torch.linalg.svd(self.matrix.to(torch.float64), full_matrices=False)
        parts = (u, significant(s, dtype, max(self.matrix.shape)), vh.mT)
        return _Factors(*(part.to(device=device, dtype=dtype).contiguous() for part in parts))
