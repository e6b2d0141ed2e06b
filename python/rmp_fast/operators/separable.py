"""Operators that act on rows and columns apart, A = K_v x K_h^T, solved through one SVD per axis."""

from __future__ import annotations

import abc
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .base import LinearOperator, Shape, check_image_shape
from .data import derived
from .forms import Form, Spectral
from .items import pseudo_reciprocal

__all__ = ["AxisFactors", "Separable", "significant"]


class AxisFactors(NamedTuple):
    """K = U diag(s) V^T of one axis in float64: ``u`` (m, m), ``s`` (m,) of either sign, ``v`` (n, m)."""

    u: Tensor
    s: Tensor
    v: Tensor


class _Factors(NamedTuple):
    """Both axes in the working dtype; ``s`` (m_v, m_h) is the outer product, its rounding-level values set to 0."""

    u_v: Tensor
    u_h: Tensor
    v_v: Tensor
    v_h: Tensor
    s: Tensor


class Separable(LinearOperator):
    """Base of operators on (B, C, H, W) given by one matrix per axis, with no more rows than columns.

    With K = U diag(s) V^T per axis, the Gram matrix is diagonal in the basis U_v (x) U_h, with eigenvalues (s_v s_h)^2,
    so the Gram solve and the conditioned image are closed forms at the cost of four matrix products. The factors are
    made in float64, once per image size.
    """

    @abc.abstractmethod
    def _axis_length(self, n: int) -> int:
        """Rows m <= n of the matrix of an axis of n pixels."""

    @abc.abstractmethod
    def _axis_matrix(self, n: int) -> Tensor:
        """The matrix of an axis of n pixels, float64 (m, n)."""

    def _axis_factors(self, n: int) -> AxisFactors:
        u, s, vh = torch.linalg.svd(self._axis_matrix(n), full_matrices=False)
        return AxisFactors(u, s, vh.mT)

    def measurement_shape(self, image_shape: Sequence[int]) -> Shape:
        """(B, C, H, W) -> (B, C, m(H), m(W))."""
        batch, channels, height, width = check_image_shape("image_shape", image_shape)
        return batch, channels, self._axis_length(height), self._axis_length(width)

    def form(self, image_shape: Sequence[int], device: torch.device, dtype: torch.dtype) -> Form:
        """Spectral, with c = V_v^T D V_h (B, C, m_v, m_h)."""
        shape = self.measurement_shape(image_shape)
        factors = self._factors(image_shape[-2], image_shape[-1], device, dtype)

        def analysis(x: Tensor) -> Tensor:
            return factors.v_v.mT @ x @ factors.v_h

        def synthesis(c: Tensor) -> Tensor:
            return factors.v_v @ c @ factors.v_h.mT

        def project(y: Tensor) -> Tensor:
            return factors.s * (factors.u_v.mT @ y @ factors.u_h)

        energy = factors.s.square().expand(1, *shape[1:]).contiguous()
        return Spectral(analysis, synthesis, project, energy, complete=shape[-2:] == tuple(image_shape[-2:]))

    def _apply(self, x: Tensor) -> Tensor:
        vertical, horizontal = (self._matrix(n, x.device, x.dtype) for n in x.shape[-2:])
        return vertical @ x @ horizontal.mT

    def _transpose(self, y: Tensor, image_shape: Shape) -> Tensor:
        vertical, horizontal = (self._matrix(n, y.device, y.dtype) for n in image_shape[-2:])
        return vertical.mT @ y @ horizontal

    def _solve(self, r: Tensor, r2: Tensor, variance: Tensor, image_shape: Shape) -> Tensor:
        factors = self._factors(image_shape[-2], image_shape[-1], r.device, r.dtype)
        inverse = pseudo_reciprocal(r2 * factors.s.square() + variance)
        return factors.u_v @ (inverse * (factors.u_v.mT @ r @ factors.u_h)) @ factors.u_h.mT

    @derived
    def _matrix(self, n: int, device: torch.device, dtype: torch.dtype) -> Tensor:
        return self._axis_matrix(n).to(device, dtype)

    @derived
    def _factors(self, height: int, width: int, device: torch.device, dtype: torch.dtype) -> _Factors:
        vertical, horizontal = self._axis_factors(height), self._axis_factors(width)
        s = significant(torch.outer(vertical.s, horizontal.s), dtype)
        parts = (vertical.u, horizontal.u, vertical.v, horizontal.v, s)
        return _Factors(*(part.to(device=device, dtype=dtype).contiguous() for part in parts))


def significant(s: Tensor, dtype: torch.dtype, size: int = 0) -> Tensor:
    """``s`` with values at the rounding level of ``dtype``, relative to the largest magnitude, set to exactly 0.

    Below 32 epsilon the projection of a measurement held in ``dtype`` is noise, which a noiseless solve would amplify;
    ``size`` is the larger side of a matrix whose values came from a float64 decomposition.
    """
    level = max(32 * torch.finfo(dtype).eps, size * torch.finfo(torch.float64).eps)
    magnitude = s.abs()
    return torch.where(magnitude > level * magnitude.max(), s, 0)
