"""Operators that observe pixels as they are: denoising and inpainting."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from .. import ops
from .._checks import shape_text
from .base import LinearOperator, Shape, owned
from .data import derived
from .forms import Pointwise
from .items import pseudo_reciprocal

__all__ = ["Denoising", "Inpainting", "as_mask", "box_mask", "random_mask"]


class Denoising(LinearOperator):
    """y = x + n, on batches of any shape (B, ...)."""

    name = "denoising"

    def __repr__(self) -> str:
        return "Denoising()"

    def measurement_shape(self, image_shape: Sequence[int]) -> Shape:
        """The shape of the image."""
        if len(image_shape) < 2:
            raise ValueError(f"`image_shape` must be (B, ...) with at least two axes, got {shape_text(image_shape)}")
        return tuple(image_shape)

    def image_shape(self, measurement_shape: Sequence[int]) -> Shape:
        """The shape of the measurement."""
        return self.measurement_shape(measurement_shape)

    def form(self, image_shape: Sequence[int], device: torch.device, dtype: torch.dtype) -> Pointwise:
        """Pointwise."""
        self.measurement_shape(image_shape)
        return Pointwise(None)

    def _apply(self, x: Tensor) -> Tensor:
        return x.clone()

    def _transpose(self, y: Tensor, image_shape: Shape) -> Tensor:
        return y.clone()

    def _solve(self, r: Tensor, r2: Tensor, variance: Tensor, image_shape: Shape) -> Tensor:
        return r * pseudo_reciprocal(r2 + variance)


class Inpainting(LinearOperator):
    """y = m x + n: pixels where the mask m is 1 are observed; elsewhere y is 0.

    Args:
        mask: bool, or numbers that are 0 or 1, True or 1 where observed. For images (B, C, H, W): (H, W) or
            (C or 1, H, W) shared by all items, or (B or 1, C or 1, H, W) per item. For signals (B, N): (N,) or
            (B or 1, N).

    The measurement has the shape of the image. The Gram matrix is the mask itself: (r2 m + noise_std^2)^-1 per pixel.

    Raises:
        TypeError: the mask is no tensor, or complex.
        ValueError: it holds something else than 0 and 1, has no or more than four axes, or, when used, does not fit the
            images.
    """

    name = "inpainting"
    start_iterations = 15  # from the guess; 70 % missing: 45 dB from the minimiser, where more gain nothing

    def __init__(self, mask: Tensor) -> None:
        self.mask = as_mask(mask)
        if not 1 <= mask.ndim <= 4:
            raise ValueError(
                "`mask` must have shape (H, W), (C, H, W), (B, C, H, W) or, for signals, (N,) or (B, N), "
                f"got {shape_text(mask.shape)}"
            )

    def __repr__(self) -> str:
        return f"Inpainting(mask={shape_text(self.mask.shape)})"

    def measurement_shape(self, image_shape: Sequence[int]) -> Shape:
        """The shape of the image."""
        shape, mask = tuple(image_shape), tuple(self.mask.shape)
        if len(shape) not in (2, 4) or math.prod(shape[1:]) == 0:
            raise ValueError(
                f"`image_shape` must be (B, C, H, W) or (B, N) without empty items, got {shape_text(shape)}"
            )
        exact = 2 if len(shape) == 4 else 1
        free = shape[-len(mask) : -exact] if len(mask) > exact else ()
        fits = (
            exact <= len(mask) <= len(shape)
            and mask[-exact:] == shape[-exact:]
            and all(m in (1, n) for m, n in zip(mask[:-exact], free, strict=True))
        )
        if not fits:
            legal = "(H, W), (C or 1, H, W) or (B or 1, C or 1, H, W)" if exact == 2 else "(N,) or (B or 1, N)"
            raise ValueError(f"`mask` must have shape {legal} for images {shape_text(shape)}, got {shape_text(mask)}")
        return shape

    def image_shape(self, measurement_shape: Sequence[int]) -> Shape:
        """The shape of the measurement."""
        return self.measurement_shape(measurement_shape)

    def select(self, items: slice, image_shape: Sequence[int]) -> Inpainting:
        """See :meth:`Operator.select`."""
        shared = self.mask.ndim < len(image_shape) or self.mask.shape[0] == 1
        return self if shared else Inpainting(self.mask[items])

    def form(self, image_shape: Sequence[int], device: torch.device, dtype: torch.dtype) -> Pointwise:
        """Pointwise."""
        self.measurement_shape(image_shape)
        return Pointwise(self._mask_for(tuple(image_shape[1:]), device))

    def start_guess(self, back: Tensor) -> Tensor:
        """Hidden pixels from ever coarser averages of those that are seen; see :meth:`LinearOperator.start_guess`."""
        return _filled(back, self._mask_for(tuple(back.shape[1:]), back.device).to(back.dtype))

    def _apply(self, x: Tensor) -> Tensor:
        return ops.mask(x, self._mask_for(tuple(x.shape[1:]), x.device))

    def _transpose(self, y: Tensor, image_shape: Shape) -> Tensor:
        return ops.mask(y, self._mask_for(image_shape[1:], y.device))

    def normal(self, x: Tensor) -> Tensor:
        """A^T A x, which is A x."""
        return self.A(x)

    def _solve(self, r: Tensor, r2: Tensor, variance: Tensor, image_shape: Shape) -> Tensor:
        return r * pseudo_reciprocal(r2 * self._mask_for(image_shape[1:], r.device) + variance)

    @derived
    def _mask_for(self, item: Shape, device: torch.device) -> Tensor:
        """uint8 (1 or B, *item), contiguous."""
        missing = 1 + len(item) - self.mask.ndim
        mask = self.mask.reshape(*[1] * missing, *self.mask.shape)
        return mask.expand(mask.shape[0], *item).to(device=device, dtype=torch.uint8).contiguous()


def as_mask(mask: Tensor) -> Tensor:
    """An own bool copy of ``mask``, bool or numbers that are 0 or 1; TypeError or ValueError for anything else."""
    if not isinstance(mask, Tensor):
        raise TypeError(f"`mask` must be a torch.Tensor, got {type(mask).__name__}; convert it with torch.as_tensor")
    if mask.is_complex():
        raise TypeError(f"`mask` must be bool or hold 0 and 1, got {mask.dtype}")
    other = mask[(mask != 0) & (mask != 1)]
    if other.numel():
        raise ValueError(f"`mask` must hold 0 and 1 only, got {other[0].item():g}; threshold it, e.g. mask > 0.5")
    return owned(mask.bool())


def _filled(y: Tensor, weight: Tensor) -> Tensor:
    """Push and pull (Gortler, Grzeszczuk, Szeliski, Cohen, "The Lumigraph", 1996): holes filled from half the size.

    Args:
        y: (B, C, H, W) values times their weights.
        weight: (B or 1, C, H, W) on [0, 1], 0 in holes. Sums above 1 count as 1.
    """
    height, width = y.shape[-2:]
    if height == width == 1:
        return y / weight.clamp_min(torch.finfo(y.dtype).tiny)
    coarse, known = _halved(y), _halved(weight)
    over = known.clamp_min(1)
    below = _doubled(_doubled(_filled(coarse / over, known / over), -2), -1)
    return y + (1 - weight) * below[..., :height, :width]


def _halved(x: Tensor) -> Tensor:
    """Sums over blocks of 2x2; beyond the edge there is nothing."""
    x = functional.pad(x, (0, x.shape[-1] % 2, 0, x.shape[-2] % 2))
    rows = x[..., ::2, :] + x[..., 1::2, :]
    return rows[..., ::2] + rows[..., 1::2]


def _doubled(x: Tensor, dim: int) -> Tensor:
    """Linear interpolation at quarters between the samples along ``dim``, -2 or -1.

    As torch.nn.functional.interpolate does it, whose last bit depends on how its input lies in memory.
    """
    count, after_dim = x.shape[dim], x.ndim + dim + 1
    before = torch.cat([x.narrow(dim, 0, 1), x.narrow(dim, 0, count - 1)], dim)
    after = torch.cat([x.narrow(dim, 1, count - 1), x.narrow(dim, count - 1, 1)], dim)
    near = 0.75 * x
    both = torch.stack([near + 0.25 * before, near + 0.25 * after], after_dim)
    return both.flatten(after_dim - 1, after_dim)


def random_mask(shape: Sequence[int], missing: float, seed: int = 0) -> Tensor:
    """A bool mask that hides a fraction of the pixels, drawn without replacement, the same for the same seed.

    Args:
        shape: (H, W), or with leading axes, over each of which another pattern is drawn; (N,) for a signal.
        missing: hidden fraction in [0, 1]; round(missing * H * W) pixels are hidden.
        seed: of the generator; lies on the CPU, so that every device sees the same mask.
    """
    if not 0 <= missing <= 1:
        raise ValueError(f"`missing` must be a fraction in [0, 1], got {missing!r}")
    pixels = math.prod(shape[-2:])
    generator = torch.Generator().manual_seed(seed)
    mask = torch.ones(math.prod(shape[:-2]), pixels, dtype=torch.bool)
    hidden = round(missing * pixels)
    for pattern in mask:
        pattern[torch.randperm(pixels, generator=generator)[:hidden]] = False
    return mask.reshape(tuple(shape))


def box_mask(shape: tuple[int, int], size: int | tuple[int, int], position: tuple[int, int] | None = None) -> Tensor:
    """A bool mask (H, W) that hides one box.

    Args:
        shape: (H, W).
        size: height and width of the hidden box, in pixels.
        position: (top, left) of the box; centred unless given.
    """
    height, width = (size, size) if isinstance(size, int) else size
    if not (0 <= height <= shape[0] and 0 <= width <= shape[1]):
        raise ValueError(f"`size` must fit into the image {shape_text(shape)}, got {shape_text((height, width))}")
    top, left = position if position is not None else ((shape[0] - height) // 2, (shape[1] - width) // 2)
    if not (0 <= top <= shape[0] - height and 0 <= left <= shape[1] - width):
        raise ValueError(
            f"`position` must keep the box {shape_text((height, width))} inside the image {shape_text(shape)}, "
            f"got {shape_text((top, left))}"
        )
    mask = torch.ones(shape, dtype=torch.bool)
    mask[top : top + height, left : left + width] = False
    return mask
