"""Super-resolution: images observed at a lower resolution."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .. import ops
from .._checks import check_choice
from .base import Shape, check_image_shape
from .forms import Blocks, Form
from .items import pseudo_reciprocal
from .separable import Separable

__all__ = ["SuperResolution", "bicubic_matrix"]


class SuperResolution(Separable):
    """y = x at 1 / factor of its resolution + n: (B, C, H, W) -> (B, C, ceil(H / factor), ceil(W / factor)).

    Args:
        factor: integer >= 2.
        filter: ``"average"``: means over blocks cut from the top left, the last ones smaller where the factor does not
            divide, so A A^T = diag(1 / n) with n the pixels of a block. ``"bicubic"``: see :func:`bicubic_matrix`.

    Images of several sizes have measurements of one shape; :meth:`image_shape` means the largest, ``factor`` times it.

    Raises:
        TypeError: ``factor`` is no integer.
        ValueError: it is below 2, or an unknown filter.
    """

    name = "super_resolution"

    def __init__(self, factor: int, filter: str = "average") -> None:
        if isinstance(factor, bool) or not isinstance(factor, int):
            raise TypeError(f"`factor` must be an integer, got {type(factor).__name__}")
        if factor < 2:
            raise ValueError(f"`factor` must be >= 2, got {factor}")
        self.factor = factor
        self.filter = check_choice("filter", filter, ("average", "bicubic"))

    def __repr__(self) -> str:
        return f"SuperResolution(factor={self.factor}, filter={self.filter!r})"

    def image_shape(self, measurement_shape: Sequence[int]) -> Shape:
        """The largest that fits: ``factor`` times the size of the measurement."""
        batch, channels, height, width = check_image_shape("measurement_shape", measurement_shape)
        return batch, channels, height * self.factor, width * self.factor

    def form(self, image_shape: Sequence[int], device: torch.device, dtype: torch.dtype) -> Form:
        """Blocks for averages, spectral for bicubic."""
        if self.filter == "bicubic":
            return super().form(image_shape, device, dtype)
        self.measurement_shape(image_shape)
        return Blocks(self.factor)

    def _apply(self, x: Tensor) -> Tensor:
        return super()._apply(x) if self.filter == "bicubic" else ops.block_average(x, self.factor)

    def _transpose(self, y: Tensor, image_shape: Shape) -> Tensor:
        if self.filter == "bicubic":
            return super()._transpose(y, image_shape)
        return ops.block_average_adjoint(y, self.factor, image_shape[-2:])

    def _solve(self, r: Tensor, r2: Tensor, variance: Tensor, image_shape: Shape) -> Tensor:
        if self.filter == "bicubic":
            return super()._solve(r, r2, variance, image_shape)
        pixels = ops.block_counts(image_shape[-2:], self.factor, r.device)
        return r * pseudo_reciprocal(r2 / pixels.to(r.dtype) + variance)

    def _axis_length(self, n: int) -> int:
        return -(-n // self.factor)

    def _axis_matrix(self, n: int) -> Tensor:
        if self.filter == "bicubic":
            return bicubic_matrix(n, self._axis_length(n))
        block = torch.arange(n) // self.factor
        matrix = torch.nn.functional.one_hot(block).to(torch.float64).mT
        return matrix / matrix.sum(1, keepdim=True)


def bicubic_matrix(n: int, m: int) -> Tensor:
    """Antialiased bicubic reduction of n samples to m <= n, float64 (m, n).

    Row i weighs sample j by the cubic kernel (a = -1/2) at (j - centre_i) / scale, where scale = n / m and
    centre_i = (i + 1/2) scale - 1/2, normalised to sum one; beyond the edges the samples are reflected, the edge
    repeated.

    Source: Keys, Cubic convolution interpolation for digital image processing, IEEE TASSP 29 (1981), equation 15.
    """
    scale = n / m
    reach = int(2 * scale) + 2
    centre = (torch.arange(m, dtype=torch.float64) + 0.5) * scale - 0.5
    column = torch.arange(-reach, n + reach)
    t = ((column - centre[:, None]) / scale).abs()
    near = (1.5 * t - 2.5) * t * t + 1
    far = ((-0.5 * t + 2.5) * t - 4) * t + 2
    weights = torch.where(t <= 1, near, torch.where(t < 2, far, 0))
    index = ops.boundary_index(-reach, n + reach, n, "reflect")
    matrix = torch.zeros(m, n, dtype=torch.float64).index_add(1, index, weights)
    return matrix / matrix.sum(1, keepdim=True)
