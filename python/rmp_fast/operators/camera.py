"""A camera that shakes, responds nonlinearly and saturates: blur that varies over the frame, in linear light."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .. import ops
from .._checks import check_choice, check_positive, check_tensor, shape_text
from .base import Operator, Shape, check_image_shape, owned
from .blur import margins
from .data import derived
from .fourier import irfft2, rfft2

__all__ = ["NonlinearBlur", "camera_shake"]

# The darkest light that the response still curves for, in units of white: without it e^(1/gamma) would have an infinite
# slope in the dark. The slope at 0 is then about that of sRGB's straight part.
_TOE = 0.004


class NonlinearBlur(Operator):
    r"""y = 2 R(S(t \sum_k w_k (h_k * R^{-1}((x + 1) / 2)))) - 1 + n: a photograph taken by a moving camera.

    The image on [0, 1] is turned into linear light by the inverse R^-1 of the camera's response. The light is blurred
    by kernels h_k, each of which holds around its place in the frame, with weights w_k that pass bilinearly from place
    to place and sum to one. The exposure t scales it, the sensor saturates smoothly at 1, and the response encodes it:

        S(e) = d [L(1 / d) - L((1 - e) / d)],  L(u) = log(1 + exp(u))
        R(e) = [(e + a)^(1/gamma) - a^(1/gamma)] / [(1 + a)^(1/gamma) - a^(1/gamma)],  a = 0.004

    Both keep black. Below 0, where estimates can lie, R goes on along its tangent, so that every finite image has a
    finite gradient. Images and measurements are (B, C, H, W) of any size, on [-1, 1].

    Args:
        kernels: (rows, columns, kh, kw): one kernel per place of a grid over the frame whose outer places lie on its
            edges; (kh, kw) for one blur everywhere. Used as they are; kernels of sum 1 keep the brightness. See
            :func:`camera_shake`.
        exposure: t, in units in which white, x = 1, just reaches saturation at 1.
        gamma: of the response, > 0; 1 is a linear camera.
        softness: d, the width of the passage into saturation in units of white, > 0.
        boundary: of the frame: ``"reflect"`` (the edge pixel repeated), ``"replicate"`` or ``"circular"``.

    Raises:
        TypeError: kernels that are no floating-point tensor, numbers that are none.
        ValueError: kernels of another shape or not finite, numbers out of range, an unknown boundary.

    Sources: Hirsch, Sra, Schölkopf, Harmeling, "Efficient filter flow for space-variant multiframe blind
    deconvolution", 2010 (the blended kernels); Debevec, Malik, "Recovering high dynamic range radiance maps from
    photographs", 1997 (the response).
    """

    name = "nonlinear_blur"

    def __init__(
        self,
        kernels: Tensor,
        exposure: float = 1.25,
        gamma: float = 2.2,
        softness: float = 0.05,
        boundary: str = "reflect",
    ) -> None:
        check_tensor("kernels", kernels)
        if kernels.ndim not in (2, 4) or kernels.numel() == 0:
            raise ValueError(
                f"`kernels` must have shape (rows, columns, kh, kw) or (kh, kw), got {shape_text(kernels.shape)}"
            )
        if not bool(torch.isfinite(kernels).all()):
            raise ValueError("`kernels` must be finite, got NaN or infinity")
        self.kernels = owned(kernels).to(device="cpu", dtype=torch.float64)
        if kernels.ndim == 2:
            self.kernels = self.kernels[None, None]
        self.exposure = check_positive("exposure", exposure)
        self.gamma = check_positive("gamma", gamma)
        self.softness = check_positive("softness", softness)
        self.boundary = check_choice("boundary", boundary, ops.BOUNDARIES)

    def __repr__(self) -> str:
        return (
            f"NonlinearBlur(kernels={shape_text(self.kernels.shape)}, exposure={self.exposure:g}, "
            f"gamma={self.gamma:g}, softness={self.softness:g}, boundary={self.boundary!r})"
        )

    def measurement_shape(self, image_shape: Sequence[int]) -> Shape:
        """The shape of the image."""
        return check_image_shape("image_shape", image_shape)

    def image_shape(self, measurement_shape: Sequence[int]) -> Shape:
        """The shape of the measurement."""
        return check_image_shape("measurement_shape", measurement_shape)

    def _apply(self, x: Tensor) -> Tensor:
        light = self.exposure * self._blur(self._light((x + 1) / 2))
        softness = self.softness
        room = torch.nn.functional.softplus((1 - light) / softness)
        kept = softness * (math.log1p(math.exp(-1 / softness)) + 1 / softness - room)
        return 2 * self._response(kept) - 1

    def _response(self, light: Tensor) -> Tensor:
        """R."""
        floor, scale, slope = self._curve()
        bright = ((light.clamp(min=0) + _TOE) ** (1 / self.gamma) - floor) / scale
        return torch.where(light >= 0, bright, slope * light)

    def _light(self, value: Tensor) -> Tensor:
        """The inverse of R."""
        floor, scale, slope = self._curve()
        bright = (value.clamp(min=0) * scale + floor) ** self.gamma - _TOE
        return torch.where(value >= 0, bright, value / slope)

    def _curve(self) -> tuple[float, float, float]:
        """a^(1/gamma), the denominator of R, and the slope of R at 0."""
        power = 1 / self.gamma
        floor = _TOE**power
        scale = (1 + _TOE) ** power - floor
        return floor, scale, power * floor / _TOE / scale

    def _blur(self, light: Tensor) -> Tensor:
        (top, bottom), (left, right) = margins(self.kernels.shape[-2:])
        padded = ops.pad(ops.pad(light, 2, top, bottom, self.boundary), 3, left, right, self.boundary)
        size = padded.shape[-2:]
        spectrum = rfft2(padded)
        blurred = torch.zeros_like(light)
        fades = self._weights(tuple(light.shape[-2:]), light.device, light.dtype)
        responses = self._spectra(tuple(size), light.device, light.dtype)
        for weights, response in zip(fades, responses, strict=True):
            blurred = blurred + weights * irfft2(spectrum * response, size)[..., top + bottom :, left + right :]
        return blurred

    @derived
    def _weights(self, size: Shape, device: torch.device, dtype: torch.dtype) -> Tensor:
        """(K, H, W), bilinear between the places of the grid."""
        rows, columns = (_hats(count, n) for count, n in zip(self.kernels.shape[:2], size, strict=True))
        return (rows[:, None, :, None] * columns[None, :, None, :]).flatten(0, 1).to(device, dtype)

    @derived
    def _spectra(self, size: Shape, device: torch.device, dtype: torch.dtype) -> Tensor:
        """(K, H', W' // 2 + 1), of the continued size."""
        spectra: Tensor = torch.fft.rfft2(self.kernels.flatten(0, 1), s=size)
        return spectra.to(device=device, dtype=dtype.to_complex())


def _hats(count: int, n: int) -> Tensor:
    """Weights (count, n) of places spread evenly from the first to the last of n pixels, linear in between."""
    if count == 1:
        return torch.ones(1, n, dtype=torch.float64)
    # A single pixel stands in the middle.
    position = (torch.arange(n, dtype=torch.float64) + (n == 1) / 2) * ((count - 1) / max(n - 1, 1))
    return (1 - (position[None, :] - torch.arange(count, dtype=torch.float64)[:, None]).abs()).clamp(min=0)


def camera_shake(seed: int = 0, length: float = 12.0, rotation: float = 4.0, grid: tuple[int, int] = (2, 2)) -> Tensor:
    """Kernels (rows, columns, n, n) of one random camera movement for :class:`NonlinearBlur`, each of sum 1, float64.

    During the exposure the view shifts along a smooth random path and turns about the centre of the frame, so that the
    kernels differ smoothly over the frame; each is centred on its mean, so that nothing moves. The movement is sampled
    evenly in time, 16 times per pixel on average; every sample is shared bilinearly among its four pixels.

    Args:
        seed: of the movement.
        length: of the path of the frame's centre in pixels, >= 0.
        rotation: how far the turn moves the middle of an edge from one end of its range to the other, in pixels, >= 0.
        grid: places per axis; the outer ones lie on the frame's edges.

    Raises:
        TypeError, ValueError: numbers out of range, or a grid that is not two positive integers.
    """
    check_positive("length", length, allow_zero=True)
    check_positive("rotation", rotation, allow_zero=True)
    if len(grid) != 2 or min(grid) < 1:
        raise ValueError(f"`grid` must be (rows, columns), each >= 1, got {grid!r}")
    path, turn = _movement(seed, length, rotation)
    rows, columns = (torch.linspace(-1, 1, n, dtype=torch.float64) if n > 1 else torch.zeros(1).double() for n in grid)
    # Turning by an angle moves what lies right of the centre down and what lies below it left.
    down = path[None, None, :, 0] + columns[None, :, None] * turn
    right = path[None, None, :, 1] - rows[:, None, None] * turn
    down, right = down - down.mean(-1, keepdim=True), right - right.mean(-1, keepdim=True)
    reach = math.ceil(float(torch.maximum(down.abs().max(), right.abs().max())))
    pixel = torch.arange(-reach, reach + 1, dtype=torch.float64)
    near = [(1 - (p.expand(*grid, -1)[..., None] - pixel).abs()).clamp(min=0) for p in (down, right)]
    kernels = near[0].mT @ near[1]
    return kernels / kernels.sum((-2, -1), keepdim=True)


def _movement(seed: int, length: float, rotation: float) -> tuple[Tensor, Tensor]:
    """A smooth random path (n, 2) of ``length`` in pixels, and a turn (n,) that ranges over ``rotation`` pixels."""
    generator = torch.Generator().manual_seed(seed)
    waves = 4
    time = torch.linspace(0, 1, 16 * math.ceil(length + rotation) + 1, dtype=torch.float64)
    order = torch.arange(1, waves + 1, dtype=torch.float64)
    # Slow waves carry most of a hand's movement.
    drawn = torch.randn(3, 2, waves, generator=generator, dtype=torch.float64) / order
    angle = math.pi * torch.outer(order, time)
    down, right, turn = drawn[:, 0] @ angle.sin() + drawn[:, 1] @ angle.cos()
    path = torch.stack((down, right), 1)
    steps = path.diff(dim=0).norm(dim=1).sum()
    span = turn.max() - turn.min()
    path = path * (length / steps) if steps > 0 else path
    return path, turn * (rotation / span) if span > 0 else turn
