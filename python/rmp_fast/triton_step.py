"""The natural-gradient step in Triton: CUDA devices where the extension was built without CUDA, and ROCm devices."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ._checks import check_buffer, check_choice, check_denoised, shape_text
from .triton_ops import (
    Launch,
    as_bytes,
    averages,
    check_shared,
    check_size,
    item_size,
    kernels,
    power_of_two,
    signed,
    tile_of,
    tiles_of,
)  # fmt: skip

__all__ = ["TritonStep"]

FIXED, ISOTROPIC, DIAGONAL = range(3)  # what the kernels call the precisions

_FLOAT = torch.float32


class TritonStep:
    """One inner iteration, bound to the buffers of a plan.

    Args: those of :class:`rmp_fast.torch_step.TorchStep`, contiguous float32 on one device, and no two of them one
    buffer but ``previous``, ``mean`` and ``next_mean``.

    The kernels are compiled here and not at the first step. A step is one launch; one more with a precision learned per
    item; and one more for block averages by a factor that is no power of two or above 16, or on widths that are no
    multiple of four.

    Raises:
        TypeError, ValueError: as ``_core.NaturalStep``.
    """

    def __init__(
        self, *, previous: Tensor, mean: Tensor, next_mean: Tensor, input: Tensor, looks: Tensor, seeds: Tensor,
        ok: Tensor, input_mirror: Tensor | None = None, curvature: Tensor | None = None, drawn: bool = False,
        correction: str = "none", y: Tensor | None = None, mask: Tensor | None = None, factor: int = 1, stream: int = 0,
    ) -> None:  # fmt: skip
        check_buffer("mean", mean, _FLOAT)
        if mean.ndim == 0:
            raise ValueError("`mean` must have shape (B, ...), got ()")
        self._device, self._shape = mean.device, mean.shape
        self._items, self._size = mean.shape[0], item_size(mean)
        check_size("mean", self._size)
        images = {"previous": previous, "next_mean": next_mean, "input": input, "input_mirror": input_mirror}
        for name, image in images.items():
            if image is not None:
                self._check_image(name, image)
        if input_mirror is not None and drawn:
            raise ValueError("`drawn` and `antithetic` exclude each other: the average of a pair is the mean")
        if input_mirror is not None and input_mirror.data_ptr() == input.data_ptr() and mean.numel():
            raise ValueError("`input_mirror` must be another tensor than `input`")
        check_buffer("looks", looks, _FLOAT, device=self._device)
        if looks.ndim != 3 or tuple(looks.shape[1:]) != (self._items, 8):
            raise ValueError(
                f"`looks` must have shape (L, B, 8) = (L, {self._items}, 8), got {shape_text(looks.shape)}"
            )
        check_buffer("seeds", seeds, torch.int64, shape=(self._items,), axes="(B,)", device=self._device)
        check_buffer("ok", ok, torch.uint8, torch.bool, shape=(self._items,), axes="(B,)", device=self._device)
        precision = self._precision(curvature)
        self._rows = looks.unbind(0)
        self._input, self._mirror = input, input_mirror
        self._denoised_shape = mean.shape if input_mirror is None else (2 * self._items, *mean.shape[1:])
        self._correct(correction, y, mask, factor)
        self._bind(previous, mean, next_mean, seeds, as_bytes(ok), curvature, precision, drawn, signed(stream))
        self._compile(looks)

    def _check_image(self, name: str, image: Tensor) -> None:
        check_buffer(name, image, _FLOAT, shape=self._shape, axes="(B, ...)", device=self._device)

    def _precision(self, curvature: Tensor | None) -> int:
        if curvature is None:
            return FIXED
        check_buffer("curvature", curvature, _FLOAT, device=self._device)
        if tuple(curvature.shape) not in ((self._items,), tuple(self._shape)):
            shape, got = shape_text(self._shape), shape_text(curvature.shape)
            raise ValueError(f"`curvature` must have shape (B,) or (B, ...) = {shape}, got {got}")
        return ISOTROPIC if curvature.ndim == 1 else DIAGONAL

    def _correct(self, correction: str, y: Tensor | None, mask: Tensor | None, factor: int) -> None:
        """What the step is told about the measurement and its tiles."""
        self._tiles, self._warps, tiling = tiles_of(self._size, self._device)
        self._averages: Launch | None = None
        self._given: dict[str, Any] = {
            "y_ptr": None, "gradient_mirror_ptr": None, "mask_ptr": None, "averages_ptr": None,
            "averages_mirror_ptr": None, "height": 1, "width": 1, "factor": 1, "GRADIENT": False, "SHARED_MASK": False,
            "ROWS": 1, **tiling,
        }  # fmt: skip
        check_choice("correction", correction, ("none", "mask", "block_average", "gradient"))
        if correction == "none":
            return
        if y is None:
            raise ValueError(f"`y` must be given when `correction` is {correction!r}")
        self._given["y_ptr"] = y
        if correction == "gradient":
            axes = "(B, ...)" if self._mirror is None else "(2 B, ...)"
            check_buffer("y", y, _FLOAT, shape=self._denoised_shape, axes=axes, device=self._device)
            self._given.update(y_ptr=y[: self._items], GRADIENT=True)
            if self._mirror is not None:
                self._given.update(gradient_mirror_ptr=y[self._items :])
            return
        if correction == "mask":
            self._check_image("y", y)
            if mask is not None:
                check_shared("mask", mask, self._items, self._size, torch.uint8, torch.bool, device=self._device)
                self._given.update(mask_ptr=as_bytes(mask), SHARED_MASK=len(mask) == 1)
            return
        if len(self._shape) != 4:
            raise ValueError(
                "`mean` must have shape (B, C, H, W) when `correction` is 'block_average', "
                f"got {shape_text(self._shape)}"
            )
        if factor < 1:
            raise ValueError(f"`factor` must be at least 1, got {factor}")
        _, channels, height, width = self._shape
        expected = (self._items, channels, -(-height // factor), -(-width // factor))
        axes = "(B, C, ceil(H / factor), ceil(W / factor))"
        check_buffer("y", y, _FLOAT, shape=expected, axes=axes, device=self._device)
        factor = min(factor, max(height, width))
        if factor in (2, 4, 8, 16) and width % 4 == 0:
            elements, self._warps = tile_of(factor * power_of_two(width), self._device)
            columns = elements // factor
            self._tiles = channels * expected[2] * -(-width // columns)
            tiling = {"tiles": self._tiles, "ALIGNED": True, "ROWS": factor, "COLUMNS": columns}
            self._given.update(size=self._size // 4, height=height, width=width // 4, **tiling)
        elif factor > 1:
            # Blocks that lie across tiles are averaged by a kernel of their own.
            made = y.new_empty((self._denoised_shape[0], *expected[1:]))
            self._averages = averages(self._denoised_shape, factor, made)
            self._given.update(averages_ptr=made[: self._items], height=height, width=width, factor=factor)
            if self._mirror is not None:
                self._given.update(averages_mirror_ptr=made[self._items :])

    def _bind(
        self, previous: Tensor, mean: Tensor, next_mean: Tensor, seeds: Tensor, ok: Tensor, curvature: Tensor | None,
        precision: int, drawn: bool, stream: int,
    ) -> None:  # fmt: skip
        before = partial = None
        if curvature is not None and precision == ISOTROPIC:
            before, partial = torch.empty_like(curvature), mean.new_empty(self._items * self._tiles)
        shared = {
            "input_ptr": self._input, "input_mirror_ptr": self._mirror, "seeds_ptr": seeds, "stream": stream,
            "curvature_ptr": curvature, "curvature_before_ptr": before, "partial_ptr": partial,
            "PRECISION": precision,
        }  # fmt: skip
        file = kernels("natural_step")
        images = {"previous_ptr": previous, "mean_ptr": mean, "next_mean_ptr": next_mean, "ok_ptr": ok}
        arguments = {**shared, **self._given, **images, "DRAWN": drawn}
        # A curvature per element takes so many registers that a thread has four elements instead of eight.
        elements = self._given["ROWS"] * self._given["COLUMNS"]
        warps = tile_of(elements, self._device, each=4)[1] if precision == DIAGONAL else self._warps
        self._step = Launch(file.natural_step, self._items * self._tiles, warps, self._device, arguments)
        tiles, warps, tiling = tiles_of(self._size, self._device)
        first = {**shared, **tiling, "mean_ptr": mean, "sums": 0, "curvature_before_ptr": None, "partial_ptr": None}
        self._perturb = Launch(file.perturb, self._items * tiles, warps, self._device, first)
        self._learn: Launch | None = None
        if precision == ISOTROPIC:
            second = {**shared, **tiling, "mean_ptr": next_mean, "sums": self._tiles}
            self._learn = Launch(file.perturb, self._items * tiles, warps, self._device, second)

    def _compile(self, looks: Tensor) -> None:
        """Compile all kernels now, for buffers that lie in memory like those to come."""
        row = {"looks_ptr": looks[0], "evaluation": 0}
        if self._averages is not None:
            self._averages.compile(x_ptr=self._input)
        self._step.compile(denoised_ptr=self._input, denoised_mirror_ptr=self._mirror, **row)
        self._perturb.compile(**row)
        if self._learn is not None:
            self._learn.compile(**row)

    def _row(self, look: int, evaluation: int) -> dict[str, Any]:
        if not 0 <= look < len(self._rows):
            raise ValueError(f"`look` must be in [0, {len(self._rows)}), got {look}")
        return {"looks_ptr": self._rows[look], "evaluation": signed(evaluation)}

    def perturb(self, look: int, evaluation: int) -> None:
        """Write the first perturbed input, mean + std e with the standard deviation of row ``look``."""
        self._perturb.run(**self._row(look, evaluation))

    def __call__(self, look: int, denoised: Tensor, evaluation: int) -> None:
        """``denoised``: (B, ...), or (2B, ...) with the mirrored looks behind the others.

        Raises:
            ValueError: where ``denoised`` is not what the buffers were bound for, or there is no such look.
        """
        row = self._row(look, evaluation)
        check_denoised(denoised, self._denoised_shape, self._device)
        if self._averages is not None:
            self._averages.run(x_ptr=denoised)
        mirrored = None if self._mirror is None else denoised[self._items :]
        self._step.run(denoised_ptr=denoised, denoised_mirror_ptr=mirrored, **row)
        if self._learn is not None:
            self._learn.run(**row)
