"""Magnetic resonance imaging: Fourier samples of a complex image, seen by one or several coils."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .. import ops
from .._checks import check_choice, check_finite, check_positive, shape_text
from .base import LinearOperator, Shape, check_image_shape, owned
from .data import derived
from .forms import Form, Spectral
from .fourier import centred_fft2, centred_ifft2, fft2, ifft2, irfft2, mirrored, rfft2
from .items import pseudo_reciprocal
from .lines import LineFactors, factorise_lines, sampled_lines
from .masks import as_mask

__all__ = ["MRI", "cartesian_mask", "coil_maps"]


class MRI(LinearOperator):
    """y_i = M F (s_i x) + n for every coil i: samples of the Fourier transform of an image ("k-space").

    F is the orthonormal transform with image origin and zero frequency in the centre, (H // 2, W // 2), of any size, as
    in fastMRI and deepinv. Complex values are two channels, real part first.

    Images are (B, 2, H, W) or, for objects known to be real, (B, 1, H, W). Measurements are (B, 2, H, W) with one coil
    and (B, 2, N, H, W) with N coils, zero where nothing was sampled; ``noise_std`` is that of the real and of the
    imaginary part of a sample. Where an image of a measurement is asked for without its shape, it is the complex one.

    Args:
        mask: (H, W) shared by all items, or (B or 1, H, W) per item; bool, or numbers that are 0 or 1, True or 1 where
            sampled, zero frequency at (H // 2, W // 2); see :func:`cartesian_mask`.
        maps: complex sensitivities s_i, (N, H, W) shared or (B or 1, N, H, W) per item; None: one coil, s = 1.
        iterations: conjugate gradient steps of the Gram solve with coils. None: 30 where it has no closed form.

    With one coil the Gram solve is closed: diagonal for complex images, and for real ones a matrix per pair of opposite
    frequencies. With coils it is closed where the mask consists of whole columns or whole rows, because the lines of
    the image across them decouple: one matrix per line is decomposed when a plan is made, unless all of them hold more
    than 2^26 numbers. Elsewhere conjugate gradients run; their condition number is at most
    1 + r2 max(sum_i |s_i|^2) / noise_std^2, and :meth:`iterative_solve` reports the residual.

    Raises:
        TypeError: a mask that is no tensor or complex, maps that are not complex.
        ValueError: mask values other than 0 and 1, NaN or infinity in the maps, and, when used, sizes that do not fit.

    Source: Pruessmann, Weiger, Scheidegger, Boesiger, "SENSE: sensitivity encoding for fast MRI", 1999.
    """

    name = "mri"

    def __init__(self, mask: Tensor, maps: Tensor | None = None, iterations: int | None = None) -> None:
        self.mask = as_mask(mask)
        if mask.ndim not in (2, 3) or 0 in mask.shape[-2:]:
            raise ValueError(f"`mask` must have shape (H, W) or (B, H, W), got {shape_text(mask.shape)}")
        self.maps = None if maps is None else _check_maps(maps)
        if self.maps is not None and self.maps.shape[-2:] != mask.shape[-2:]:
            raise ValueError(
                f"`maps` must have the size (H, W) = {shape_text(mask.shape[-2:])} of the mask, "
                f"got {shape_text(self.maps.shape)}"
            )
        if iterations is not None and iterations < 1:
            raise ValueError(f"`iterations` must be >= 1, got {iterations}")
        self._given_iterations = iterations
        self.iterations = 30 if iterations is None else iterations
        self._across = sampled_lines(self.mask) if self.maps is not None and iterations is None else None

    def __repr__(self) -> str:
        maps = "" if self.maps is None else f", maps={shape_text(self.maps.shape)}"
        return f"MRI(mask={shape_text(self.mask.shape)}{maps})"

    def measurement_shape(self, image_shape: Sequence[int]) -> Shape:
        """(B, 2, H, W), or (B, 2, N, H, W) with N coils."""
        batch, channels, height, width = check_image_shape("image_shape", image_shape)
        if channels not in (1, 2):
            raise ValueError(
                "`image_shape` must have 2 channels, real and imaginary part, or 1 for a real image, "
                f"got {shape_text(image_shape)}"
            )
        size = (height, width)
        if self.mask.shape[-2:] != size or (self.mask.ndim == 3 and self.mask.shape[0] not in (1, batch)):
            raise ValueError(
                f"`mask` must have shape (H, W) or (B or 1, H, W) for images {shape_text(image_shape)}, "
                f"got {shape_text(self.mask.shape)}"
            )
        if self.maps is None:
            return batch, 2, height, width
        if self.maps.ndim == 4 and self.maps.shape[0] not in (1, batch):
            raise ValueError(
                f"`maps` must have shape (N, H, W) or (B or 1, N, H, W) for images {shape_text(image_shape)}, "
                f"got {shape_text(self.maps.shape)}"
            )
        return batch, 2, self.maps.shape[-3], height, width

    def image_shape(self, measurement_shape: Sequence[int]) -> Shape:
        """(B, 2, H, W): the complex image."""
        shape = tuple(measurement_shape)
        coils = () if self.maps is None else (self.maps.shape[-3],)
        size = tuple(self.mask.shape[-2:])
        if len(shape) != 4 + len(coils) or shape[1:] != (2, *coils, *size):
            expected = shape_text(("B", 2, *coils, *size))
            raise ValueError(f"`measurement_shape` must be {expected}, got {shape_text(shape)}")
        image = (shape[0], 2, *size)
        self.measurement_shape(image)
        return image

    def select(self, items: slice, image_shape: Sequence[int]) -> MRI:
        """See :meth:`Operator.select`."""
        masks, maps = self.mask.ndim == 3 and self.mask.shape[0] > 1, self.maps
        several = maps is not None and maps.ndim == 4 and maps.shape[0] > 1
        if not (masks or several):
            return self
        part = maps[items] if several and maps is not None else maps
        return MRI(self.mask[items] if masks else self.mask, part, self._given_iterations)

    def form(self, image_shape: Sequence[int], device: torch.device, dtype: torch.dtype) -> Form:
        """Spectral where the class says closed.

        One coil: on the Fourier transform c = F D, (B, H, W) complex, half of it for real images. Several: on the
        eigenvectors of every line.
        """
        self.measurement_shape(image_shape)
        shape = tuple(image_shape)
        if self.maps is not None:
            factors = self._line_factors(shape, device, dtype)
            if factors is None:
                return super().form(image_shape, device, dtype)
            return Spectral(
                analysis=lambda x: factors.analysis(self._as_lines(x)),
                synthesis=lambda c: self._as_image(factors.synthesis(c)),
                project=lambda y: self._line_coefficients(y, shape, factors) * (factors.energy > 0),
                energy=factors.energy,
                complete=True,
            )
        size, real = shape[2:], shape[1] == 1
        energy = self._energy(real, device, dtype)

        def analysis(x: Tensor) -> Tensor:
            return (rfft2(x[:, 0], "ortho") if real else fft2(_as_complex(x))).contiguous()

        def synthesis(c: Tensor) -> Tensor:
            return irfft2(c, size, "ortho")[:, None].contiguous() if real else _as_channels(ifft2(c))

        def project(y: Tensor) -> Tensor:
            return analysis(self._transpose(y, (y.shape[0], *shape[1:]))) * (energy > 0)

        return Spectral(analysis, synthesis, project, energy, complete=True)

    @derived
    def _energy(self, real: bool, device: torch.device, dtype: torch.dtype) -> Tensor:
        """S^2 of one coil, (1 or B, H, W) or half of it for real images, zero frequency first."""
        sampled = self.mask.reshape(-1, *self.mask.shape[-2:]).to(dtype)
        if real:
            # A sample of a real image also tells the opposite frequency.
            sampled = (sampled + mirrored(sampled)) / 2
        energy: Tensor = torch.fft.ifftshift(sampled, (1, 2))
        width = energy.shape[-1]
        return energy[..., : width // 2 + 1 if real else width].to(device).contiguous()

    def _apply(self, x: Tensor) -> Tensor:
        image = _as_complex(x)
        if self.maps is not None:
            image = self._maps_on(image.device, image.dtype) * image[:, None]
        return self._sampled(_as_channels(centred_fft2(image)))

    def _transpose(self, y: Tensor, image_shape: Shape) -> Tensor:
        image = centred_ifft2(_as_complex(self._sampled(y)))
        if self.maps is not None:
            image = (self._maps_on(image.device, image.dtype).conj() * image).sum(1)
        return _as_channels(image) if image_shape[1] == 2 else image.real[:, None].contiguous()

    def _solve(self, r: Tensor, r2: Tensor, variance: Tensor, image_shape: Shape) -> Tensor:
        if self.maps is not None:
            factors = self._line_factors(image_shape, r.device, r.dtype)
            if factors is None:
                return super()._solve(r, r2, variance, image_shape)
            # (r2 A A^T + v)^-1 = (1 - r2 A (r2 A^T A + v)^-1 A^T) / v, and without noise A (A^T A)^-2 A^T / r2.
            gain, noise, energy = r2.reshape(-1, 1, 1), variance.reshape(-1, 1, 1), factors.energy
            inverse = pseudo_reciprocal(gain * energy + noise)
            weight = torch.where(noise > 0, -gain * pseudo_reciprocal(noise), pseudo_reciprocal(energy)) * inverse
            c = self._line_coefficients(r, image_shape, factors)
            return r * pseudo_reciprocal(variance) + self._apply(self._as_image(factors.synthesis(weight * c)))
        mask = self._mask_for(tuple(r.shape[1:]), r.device).bool()
        if image_shape[1] == 2:
            return r * pseudo_reciprocal(r2 * mask + variance)
        # The Gram matrix halves a frequency whose opposite was not sampled, and of a sampled pair keeps what is
        # conjugate symmetric, as the transform of any real image is.
        pair = mask & mirrored(mask)
        symmetric = _as_channels(torch.complex(r[:, 0], r[:, 1]) + mirrored(torch.complex(r[:, 0], -r[:, 1]))) / 2
        paired = symmetric * pseudo_reciprocal(r2 + variance) + (r - symmetric) * pseudo_reciprocal(variance)
        return torch.where(pair, paired, r * pseudo_reciprocal(r2 / 2 * mask + variance))

    def _line_factors(self, image_shape: Shape, device: torch.device, dtype: torch.dtype) -> LineFactors | None:
        """The decomposition for these images, or None where conjugate gradients must do."""
        if self._across is None:
            return None
        sampled, maps = self._sampled_lines()
        items, lines, length = max(sampled.shape[0], maps.shape[0]), maps.shape[2], maps.shape[3]
        if items * lines * length * length > 2**26:
            return None
        return self._factors(image_shape[1] == 1, device, dtype)

    def _sampled_lines(self) -> tuple[Tensor, Tensor]:
        """Samples (B or 1, L) of the lines, and maps (B or 1, N, lines, L)."""
        assert self.maps is not None
        mask, maps = self.mask, self.maps if self.maps.ndim == 4 else self.maps[None]
        mask = mask.mT if self._across == -2 else mask
        maps = maps.mT if self._across == -2 else maps
        return mask.reshape(-1, *mask.shape[-2:])[:, 0], maps

    @derived
    def _factors(self, real: bool, device: torch.device, dtype: torch.dtype) -> LineFactors:
        sampled, maps = self._sampled_lines()
        factors = factorise_lines(sampled.cpu(), maps, real, dtype)
        return LineFactors(factors.vectors.to(device), factors.energy.to(device).contiguous())

    def _line_coefficients(self, y: Tensor, image_shape: Shape, factors: LineFactors) -> Tensor:
        """V^H A^T y."""
        return factors.analysis(self._as_lines(self._transpose(y, (y.shape[0], *image_shape[1:]))))

    def _as_lines(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, lines, pixels), real or complex."""
        image = x[:, 0] if x.shape[1] == 1 else _as_complex(x)
        return image.mT if self._across == -2 else image

    def _as_image(self, lines: Tensor) -> Tensor:
        """The inverse of :meth:`_as_lines`."""
        image = lines.mT if self._across == -2 else lines
        return _as_channels(image) if image.is_complex() else image[:, None].contiguous()

    def _sampled(self, y: Tensor) -> Tensor:
        return ops.mask(y, self._mask_for(tuple(y.shape[1:]), y.device))

    @derived
    def _mask_for(self, item: Shape, device: torch.device) -> Tensor:
        """uint8 (1 or B, 2, H, W) or (1 or B, 2, N, H, W), contiguous."""
        mask = self.mask.reshape(-1, *[1] * (len(item) - 2), *item[-2:])
        return mask.expand(-1, *item).to(device=device, dtype=torch.uint8).contiguous()

    @derived
    def _maps_on(self, device: torch.device, dtype: torch.dtype) -> Tensor:
        assert self.maps is not None
        maps = self.maps.to(device=device, dtype=dtype)
        return maps if maps.ndim == 4 else maps[None]


def _check_maps(maps: Tensor) -> Tensor:
    if not isinstance(maps, Tensor):
        raise TypeError(f"`maps` must be a torch.Tensor, got {type(maps).__name__}; convert it with torch.as_tensor")
    if not maps.is_complex():
        raise TypeError(f"`maps` must be complex, got {maps.dtype}; make them with torch.complex(real, imaginary)")
    if maps.ndim not in (3, 4) or 0 in maps.shape[-3:]:
        raise ValueError(f"`maps` must have shape (N, H, W) or (B, N, H, W), got {shape_text(maps.shape)}")
    check_finite("maps", maps)
    return owned(maps)


def _as_complex(x: Tensor) -> Tensor:
    """(B, 2 or 1, ...) -> (B, ...)."""
    return torch.complex(x[:, 0], x[:, 1] if x.shape[1] == 2 else torch.zeros_like(x[:, 0]))


def _as_channels(z: Tensor) -> Tensor:
    """(B, ...) complex -> (B, 2, ...), contiguous."""
    return torch.stack((z.real, z.imag), 1)


def cartesian_mask(
    shape: Sequence[int],
    acceleration: float = 4.0,
    center_fraction: float = 0.08,
    pattern: str = "random",
    seed: int = 0,
) -> Tensor:
    """A bool mask of whole columns (phase encoding lines), the middle ones always among them.

    Args:
        shape: (H, W), or (B, H, W) for another pattern per item.
        acceleration: W over the number of sampled columns, >= 1; round(W / acceleration) columns are sampled.
        center_fraction: share of the W columns that are sampled around the zero frequency W // 2, at least one of them.
        pattern: of the others: ``"random"``, drawn without replacement, or ``"equispaced"``, as evenly as whole columns
            allow from a random start.
        seed: of the generator; lies on the CPU, so that every device sees the same mask.

    Raises:
        ValueError: numbers out of range, or fewer columns in all than in the middle.

    Source: Zbontar et al., "fastMRI: An open dataset and benchmarks for accelerated MRI", arXiv 1811.08839; there the
    number of columns is met on average, here exactly.
    """
    check_choice("pattern", pattern, ("random", "equispaced"))
    if len(shape) not in (2, 3) or min(shape[-2:]) < 1:
        raise ValueError(f"`shape` must be (H, W) or (B, H, W), got {shape_text(shape)}")
    if check_positive("acceleration", acceleration) < 1:
        raise ValueError(f"`acceleration` must be >= 1, got {acceleration!r}")
    if not 0 <= center_fraction <= 1:
        raise ValueError(f"`center_fraction` must be a fraction in [0, 1], got {center_fraction!r}")
    width = shape[-1]
    total, middle = round(width / acceleration), max(1, round(width * center_fraction))
    if total < middle:
        raise ValueError(
            f"`acceleration` must leave at least the {middle} middle columns of {width}, got {acceleration!r}, "
            f"which leaves {total}; lower it or `center_fraction`"
        )
    generator = torch.Generator().manual_seed(seed)
    first = width // 2 - middle // 2
    columns = torch.arange(width)
    outside = columns[(columns < first) | (columns >= first + middle)]
    count = total - middle
    masks = torch.zeros(math.prod(shape[:-2]), width, dtype=torch.bool)
    masks[:, first : first + middle] = True
    for mask in masks:
        if pattern == "random":
            chosen = torch.randperm(len(outside), generator=generator)[:count]
        else:
            start = torch.rand((), generator=generator, dtype=torch.float64)
            chosen = ((torch.arange(count) + start) * (len(outside) / max(count, 1))).long()
        mask[outside[chosen]] = True
    return masks[:, None, :].expand(-1, shape[-2], -1).reshape(tuple(shape)).contiguous()


def coil_maps(coils: int, size: tuple[int, int]) -> Tensor:
    """Smooth sensitivities of ``coils`` coils evenly around the field of view, complex128 (coils, H, W).

    Every coil's magnitude falls with the distance to it and its phase turns around it; sum_i |s_i|^2 = 1 everywhere, so
    that the noise of a fully sampled image is the same everywhere.

    Args:
        coils: >= 1.
        size: (H, W).
    """
    if coils < 1:
        raise ValueError(f"`coils` must be >= 1, got {coils}")
    rows, columns = (torch.linspace(-1, 1, n, dtype=torch.float64) if n > 1 else torch.zeros(1).double() for n in size)
    angle = 2 * math.pi * torch.arange(coils, dtype=torch.float64) / coils
    # The ring is wider than the field of view, so that no coil sits on a pixel.
    down = rows[None, :, None] - 1.5 * angle.sin()[:, None, None]
    right = columns[None, None, :] - 1.5 * angle.cos()[:, None, None]
    maps = torch.polar(1 / (down.square() + right.square()), torch.atan2(right, -down))
    return maps / maps.abs().square().sum(0).sqrt()
