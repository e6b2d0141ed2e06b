"""Blurs: a separable Gaussian, and any kernel such as that of a moving camera."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from numpy.typing import ArrayLike
from torch import Tensor

from .. import ops
from .._checks import check_choice, check_finite, check_positive, shape_text
from .base import LinearOperator, Shape, check_image_shape, owned
from .cosine import CosineTransform, is_fast
from .data import derived
from .forms import Form, Spectral
from .fourier import irfft2, rfft2
from .items import pseudo_reciprocal
from .separable import AxisFactors, Separable, significant

__all__ = ["Blur", "GaussianBlur", "as_kernel", "gaussian_taps", "margins", "motion_kernel"]


class GaussianBlur(Separable):
    """y = g * x + n with a Gaussian g of ``std`` pixels, on (B, C, H, W) of any size.

    Args:
        std: standard deviation of the Gaussian in pixels, > 0; its taps end at 4 std and sum to one.
        boundary: ``"reflect"`` (the edge pixel repeated), ``"circular"`` or ``"replicate"``.

    The Gram solve is closed: in the cosine basis (reflect), the Hartley basis (circular) or through an SVD per axis
    (replicate). Frequencies that the blur reduces to rounding level count as unseen.
    """

    name = "gaussian_blur"
    smooth_form = True

    def __init__(self, std: float, boundary: str = "reflect") -> None:
        self.std = check_positive("std", std)
        self.boundary = check_choice("boundary", boundary, ops.BOUNDARIES)
        self.taps = gaussian_taps(self.std)

    def __repr__(self) -> str:
        return f"GaussianBlur(std={self.std:g}, boundary={self.boundary!r})"

    def image_shape(self, measurement_shape: Sequence[int]) -> Shape:
        """(B, C, H, W), as the measurement."""
        return check_image_shape("measurement_shape", measurement_shape)

    def form(self, image_shape: Sequence[int], device: torch.device, dtype: torch.dtype) -> Form:
        """Spectral; by :class:`CosineTransform` where that serves the boundary and beats matrices, on processors."""
        _, channels, height, width = self.measurement_shape(image_shape)
        known = self.boundary in ("reflect", "circular")
        laplacian = _laplacian(height, width, self.boundary).to(device, dtype) if known else None
        if self.boundary != "reflect" or device.type != "cpu" or not is_fast(height, width):
            form = super().form(image_shape, device, dtype)
            assert isinstance(form, Spectral)
            return dataclasses.replace(form, laplacian=laplacian)
        s, transform = self._cosine_values(height, width, dtype), CosineTransform(height, width, device, dtype)

        def project(y: Tensor) -> Tensor:
            return s * transform.analysis(y)

        energy = s.square().expand(1, channels, height, width).contiguous()
        maps = transform.analysis, transform.synthesis
        return Spectral(*maps, project, energy, True, laplacian, into=maps)

    @derived
    def _cosine_values(self, height: int, width: int, dtype: torch.dtype) -> Tensor:
        vertical, horizontal = (self._axis_factors(n).s for n in (height, width))
        return significant(torch.outer(vertical, horizontal), dtype).to(dtype)

    def _apply(self, x: Tensor) -> Tensor:
        taps = self._taps_on(x.device, x.dtype)
        return ops.separable_blur(x, taps, taps, self.boundary)

    def _transpose(self, y: Tensor, image_shape: Shape) -> Tensor:
        taps = self._taps_on(y.device, y.dtype)
        return ops.separable_blur(y, taps, taps, self.boundary, adjoint=True)

    @derived
    def _taps_on(self, device: torch.device, dtype: torch.dtype) -> Tensor:
        return self.taps.to(device, dtype)

    def _axis_length(self, n: int) -> int:
        return n

    def _axis_matrix(self, n: int) -> Tensor:
        unit = torch.ones(1, dtype=torch.float64)
        images = torch.eye(n, dtype=torch.float64).reshape(n, 1, n, 1)
        return ops.separable_blur(images, self.taps, unit, self.boundary, backend="torch").reshape(n, n).mT

    def _axis_factors(self, n: int) -> AxisFactors:
        # A symmetric kernel is diagonal in a known basis, which spares large images an SVD of cubic cost.
        index = torch.arange(n, dtype=torch.float64)
        shift = torch.arange(self.taps.numel(), dtype=torch.float64) - self.taps.numel() // 2
        if self.boundary == "reflect":
            basis = (math.pi / n * torch.outer(index + 0.5, index)).cos() * math.sqrt(2 / n)
            basis[:, 0] = math.sqrt(1 / n)
            return AxisFactors(basis, (math.pi / n * torch.outer(index, shift)).cos() @ self.taps, basis)
        if self.boundary == "circular":
            angle = 2 * math.pi / n * torch.outer(index, index).remainder(n)
            basis = (angle.cos() + angle.sin()) / math.sqrt(n)
            return AxisFactors(basis, (2 * math.pi / n * torch.outer(index, shift)).cos() @ self.taps, basis)
        return super()._axis_factors(n)


class _Circulant(NamedTuple):
    """Circular convolution of one image size: the spectrum and, rounding-level values set to 0, its use in solves."""

    spectrum: Tensor
    seen: Tensor
    energy: Tensor


class Blur(LinearOperator):
    """y = k * x + n, convolution of every channel of (B, C, H, W) with one kernel.

    y[i] = sum_j kernel[j] x[i + c - j], centre c = (kh // 2, kw // 2): the middle for odd sizes, the pixel after the
    middle for even ones.

    Args:
        kernel: (kh, kw), real, used as it is; :func:`as_kernel` makes one of an array and normalises it.
        boundary: ``"circular"``: exact by FFT, the Gram solve too; the kernel must fit into the image.
            ``"reflect"`` (the edge pixel repeated) or ``"replicate"``: the image is continued, convolved and cropped;
            the adjoint folds the continuation back exactly and the Gram solve runs conjugate gradients, preconditioned
            with the circular blur, and is the less accurate the larger r2 (gain of the kernel)^2 / noise_std^2.
        iterations: conjugate gradient steps; :meth:`iterative_solve` reports the residual that they leave.

    Raises:
        TypeError, ValueError: as :func:`as_kernel`; when used, a circular kernel larger than the image.
    """

    name = "blur"
    smooth_form = True

    def __init__(self, kernel: Tensor, boundary: str = "circular", iterations: int = 30) -> None:
        if not isinstance(kernel, Tensor):
            raise TypeError(
                f"`kernel` must be a torch.Tensor (kh, kw), got {type(kernel).__name__}; convert it with as_kernel"
            )
        self.kernel = as_kernel(kernel, normalise=False)
        self.boundary = check_choice("boundary", boundary, ops.BOUNDARIES)
        if iterations < 1:
            raise ValueError(f"`iterations` must be >= 1, got {iterations}")
        self.iterations = iterations

    def __repr__(self) -> str:
        return f"Blur(kernel={shape_text(self.kernel.shape)}, boundary={self.boundary!r})"

    def measurement_shape(self, image_shape: Sequence[int]) -> Shape:
        """(B, C, H, W), as the image, which a circular kernel must fit into."""
        shape = check_image_shape("image_shape", image_shape)
        height, width = self.kernel.shape
        if self.boundary == "circular" and (height > shape[2] or width > shape[3]):
            raise ValueError(
                f"`kernel` must not be larger than the image (H, W) = {shape_text(shape[2:])} with a circular "
                f"boundary, got {shape_text(self.kernel.shape)}; crop it or use boundary='reflect'"
            )
        return shape

    def image_shape(self, measurement_shape: Sequence[int]) -> Shape:
        """(B, C, H, W), as the measurement."""
        return self.measurement_shape(measurement_shape)

    def form(self, image_shape: Sequence[int], device: torch.device, dtype: torch.dtype) -> Form:
        """Circular: spectral on the orthonormal half spectrum, c = rfft2(D) complex (B, C, H, W // 2 + 1)."""
        if self.boundary != "circular":
            return super().form(image_shape, device, dtype)
        _, channels, height, width = self.measurement_shape(image_shape)
        circulant = self._circulant(height, width, device, dtype)

        def analysis(x: Tensor) -> Tensor:
            return rfft2(x, "ortho").contiguous()

        def synthesis(c: Tensor) -> Tensor:
            return irfft2(c, (height, width), "ortho")

        def project(y: Tensor) -> Tensor:
            return circulant.seen.conj() * analysis(y)

        energy = circulant.energy.expand(1, channels, -1, -1).contiguous()
        laplacian = _laplacian(height, width, "circular")[:, : width // 2 + 1].to(device, dtype)
        return Spectral(analysis, synthesis, project, energy, True, laplacian)

    def _apply(self, x: Tensor) -> Tensor:
        if self.boundary == "circular":
            return _filter(x, self._circulant_for(x).spectrum)
        (top, bottom), (left, right) = margins(self.kernel.shape)
        padded = ops.pad(ops.pad(x, 2, top, bottom, self.boundary), 3, left, right, self.boundary)
        blurred = _filter(padded, self._padded_for(padded))
        return blurred[..., top + bottom :, left + right :].contiguous()

    def _transpose(self, y: Tensor, image_shape: Shape) -> Tensor:
        if self.boundary == "circular":
            return _filter(y, self._circulant_for(y).spectrum.conj())
        (top, bottom), (left, right) = margins(self.kernel.shape)
        embedded = torch.nn.functional.pad(y, (left + right, 0, top + bottom, 0))
        spread = _filter(embedded, self._padded_for(embedded).conj())
        return ops.fold(ops.fold(spread, 3, left, right, self.boundary), 2, top, bottom, self.boundary)

    def normal(self, x: Tensor) -> Tensor:
        """A^T A x; circular: with one transform there and back instead of two."""
        if self.boundary != "circular":
            return super().normal(x)
        self.measurement_shape(x.shape)
        return _filter(x, self._circulant_for(x).energy)

    def _solve(self, r: Tensor, r2: Tensor, variance: Tensor, image_shape: Shape) -> Tensor:
        if self.boundary != "circular":
            return super()._solve(r, r2, variance, image_shape)
        energy = self._circulant_for(r).energy
        return _filter(r, pseudo_reciprocal(r2 * energy + variance))

    def _preconditioner(
        self, r: Tensor, r2: Tensor, variance: Tensor, image_shape: Shape
    ) -> Callable[[Tensor], Tensor]:
        energy = self._circulant_for(r).energy
        # The floor keeps frequencies that only the boundary sees within reach when there is no noise.
        gain = r2 * energy + variance
        inverse = pseudo_reciprocal(gain.clamp(min=0) + 1e-3 * r2 * energy.max())
        return lambda v: _filter(v, inverse)

    def _circulant_for(self, like: Tensor) -> _Circulant:
        return self._circulant(like.shape[-2], like.shape[-1], like.device, like.dtype)

    @derived
    def _circulant(self, height: int, width: int, device: torch.device, dtype: torch.dtype) -> _Circulant:
        wrapped = self.kernel
        for dim, n in ((0, height), (1, width)):
            centre = wrapped.shape[dim] // 2
            index = ops.boundary_index(-centre, wrapped.shape[dim] - centre, n, "circular")
            shape = (n, wrapped.shape[1]) if dim == 0 else (wrapped.shape[0], n)
            wrapped = wrapped.new_zeros(shape).index_add(dim, index, wrapped)
        spectrum = torch.fft.rfft2(wrapped)
        seen = spectrum * (significant(spectrum.abs(), dtype) > 0)
        values = (spectrum.to(dtype.to_complex()), seen.to(dtype.to_complex()), seen.abs().square().to(dtype))
        return _Circulant(*(value.to(device) for value in values))

    def _padded_for(self, padded: Tensor) -> Tensor:
        return self._padded_spectrum(tuple(padded.shape[-2:]), padded.device, padded.dtype)

    @derived
    def _padded_spectrum(self, size: Shape, device: torch.device, dtype: torch.dtype) -> Tensor:
        spectrum: Tensor = torch.fft.rfft2(self.kernel, s=size)
        return spectrum.to(device=device, dtype=dtype.to_complex())


def margins(kernel_size: Sequence[int]) -> tuple[tuple[int, int], tuple[int, int]]:
    """Samples that a convolution needs before and after each axis, for kernels of (kh, kw)."""
    height, width = kernel_size
    return ((height - 1 - height // 2, height // 2), (width - 1 - width // 2, width // 2))


def _laplacian(height: int, width: int, boundary: str) -> Tensor:
    """2 cos(w) - 2 summed over both axes, float64 (H, W): w = pi k / n where the boundary reflects, 2 pi k / n else."""
    period = 1 if boundary == "reflect" else 2
    vertical, horizontal = (2 * (period * math.pi / n * torch.arange(n).double()).cos() - 2 for n in (height, width))
    return vertical[:, None] + horizontal


def _filter(x: Tensor, response: Tensor) -> Tensor:
    return irfft2(rfft2(x) * response, x.shape[-2:])


def gaussian_taps(std: float) -> Tensor:
    """exp(-k^2 / (2 std^2)) for |k| <= 4 std rounded, normalised to sum one, float64."""
    radius = int(4 * std + 0.5)
    position = torch.arange(-radius, radius + 1, dtype=torch.float64)
    return torch.softmax(-0.5 * (position / std).square(), 0)


def as_kernel(values: ArrayLike | Tensor, normalise: bool = True) -> Tensor:
    """A kernel (kh, kw) in float64 from a tensor, an array or nested lists.

    Args:
        values: two axes, finite, not all zero; a grey picture of a point seen through the blur will do.
        normalise: divide by the sum, so that the blur keeps the brightness.

    Raises:
        TypeError: complex values.
        ValueError: another number of axes, an empty or all-zero kernel, NaN or infinity, or a sum <= 0 to normalise by.
    """
    kernel = owned(values if isinstance(values, Tensor) else torch.as_tensor(values))
    if kernel.is_complex():
        raise TypeError(f"`kernel` must be real, got {kernel.dtype}")
    kernel = kernel.to(device="cpu", dtype=torch.float64)
    if kernel.ndim != 2 or kernel.numel() == 0:
        raise ValueError(f"`kernel` must have shape (kh, kw) with kh, kw >= 1, got {shape_text(kernel.shape)}")
    check_finite("kernel", kernel)
    if not bool(kernel.any()):
        raise ValueError("`kernel` must not be all zero")
    if not normalise:
        return kernel
    total = kernel.sum()
    if float(total) <= 0:
        raise ValueError(
            f"`kernel` must have a positive sum to be normalised, got {float(total):g}; use normalise=False"
        )
    return kernel / total


def motion_kernel(length: float, angle: float = 0.0) -> Tensor:
    """The kernel of a straight, even motion, summing to one, float64 (n, n) with n odd.

    Args:
        length: of the path in pixels, >= 1 (1: no blur).
        angle: direction in degrees, counter-clockwise from the horizontal; 0 and 180 are the same path.

    The path is sampled 16 times per pixel and every sample shared bilinearly among its four pixels.
    """
    check_positive("length", length)
    if length < 1:
        raise ValueError(f"`length` must be >= 1 pixel, got {length!r}")
    if not math.isfinite(angle):
        raise ValueError(f"`angle` must be a finite number of degrees, got {angle!r}")
    reach = (length - 1) / 2
    centre = math.ceil(reach)
    along = torch.linspace(-reach, reach, 16 * math.ceil(length) + 1, dtype=torch.float64)
    path = (centre - along * math.sin(math.radians(angle)), centre + along * math.cos(math.radians(angle)))
    pixel = torch.arange(2 * centre + 1, dtype=torch.float64)
    rows, columns = ((1 - (p[:, None] - pixel).abs()).clamp(min=0) for p in path)
    kernel = rows.mT @ columns
    return kernel / kernel.sum()
