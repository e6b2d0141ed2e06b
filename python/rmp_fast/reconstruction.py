"""One call from measurements to estimates: a plan made, executed and dropped; in parts where memory asks for it."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from . import engine, memory
from ._checks import (
    check_choice,
    check_count,
    check_finite,
    check_noise_std,
    check_seeds,
    check_shape,
    check_tensor,
)
from .guidance import GRADIENTS
from .operators import Operator
from .plan import Estimate, Plan
from .priors import GaussianMixture, Prior
from .tiling import GRID, OVERLAP, Tiled, check_sizes

__all__ = ["automatic_tile", "reconstruct"]

# Below so many pixels nobody's memory asks for tiles, and none is measured.
_SMALL = 2**18

# The smallest that the default overlap allows.
_LEAST_TILE = 2 * OVERLAP


def reconstruct(
    y: Tensor, op: Operator, prior: Prior, *, noise_std: float | Tensor, seeds: Tensor | None = None,
    shape: tuple[int, ...] | None = None, batch_size: int | str | None = None, tile: int | str | None = "auto",
    overlap: int | None = None, **options: Any,
) -> Estimate:  # fmt: skip
    """Estimate E[x0 | y] in one call.

    Where memory runs out, the batch goes on in halves, and a single image (``tile`` "auto") in tiles half as wide. An
    item's estimate does not depend on the parts, up to the rounding of the network, because its seed is its own.

    Args:
        y, noise_std: as :meth:`Plan.execute` and :class:`Plan`.
        seeds: (B,) int64, one per item; default 0 … B - 1.
        shape: (B, ...) of the images; default: what the operator makes of the shape of ``y``.
        batch_size: items at a time; None: all, or one where memory asks for tiles; ``"auto"``: as many as make an item
            faster and fit into half of the available memory, measured once for each prior and image size. With
            ``compile``, the network is compiled for the first part's size; parts that are smaller run eagerly.
        tile: side in pixels of the tiles in which the network sees an image (:class:`rmp_fast.tiling.Tiled`), a
            multiple of 64; None: no tiles; ``"auto"``: none, unless an image needs more than half of the available
            memory.
        overlap: pixels that neighbouring tiles share, a multiple of 64; default 128.
        **options: of :class:`Plan`.

    Returns:
        the :class:`Estimate`; of several parts, the sums of their times and the largest of their other ``stats``.

    Raises:
        TypeError, ValueError: for anything that does not fit, before the first chain runs.
    """
    check_tensor("y", y)
    if not isinstance(op, Operator):
        raise TypeError(f"`op` must be an rmp_fast operator, got {type(op).__name__}; see rmp_fast.operators")
    if not isinstance(prior, Prior):
        raise TypeError(f"`prior` must be an rmp_fast prior, got {type(prior).__name__}; see rmp_fast.priors")
    if "device" in options:
        raise ValueError("`device` is that of `y`; move `y` there instead")
    shape = tuple(op.image_shape(tuple(y.shape))) if shape is None else tuple(shape)
    check_shape("y", y, op.measurement_shape(shape))
    check_finite("y", y)  # of all parts, before the first one runs
    batch = shape[0]
    noise = check_noise_std(noise_std, batch, y.device)
    seeds = check_seeds(seeds, batch, y.device)
    _check_parts(batch_size, tile, overlap)
    size = batch
    if isinstance(tile, int):
        prior = Tiled(prior, tile, overlap)
    elif tile == "auto":
        side = automatic_tile(prior, shape, y.device, options.get("guidance"))
        if side is not None:
            prior, size = Tiled(prior, side, overlap), 1  # one image's tile fills the memory that there is
    if isinstance(batch_size, int):
        size = batch_size
    elif batch_size == "auto" and batch > 1:
        size = _automatic_batch(prior, shape, y.device, options.get("guidance"))
    run = _Run(y, op, prior, noise, seeds, shape, options, tile == "auto", overlap)
    return _joined(run.all(size)) if batch else run.part(0, 0)


def automatic_tile(
    prior: Prior, shape: tuple[int, ...], device: torch.device, guidance: str | None = None
) -> int | None:
    """The side of the tiles that keep one image of ``shape`` (B, C, H, W) within half of the available memory.

    None where the whole image does, or where there is nothing to cut: closed-form priors, signals.
    """
    if isinstance(prior, (GaussianMixture, Tiled)) or len(shape) != 4 or math.prod(shape[-2:]) < _SMALL:
        return None
    prior.check_image_shape(shape)
    room = memory.SHARE * memory.available(device)
    try:
        each = memory.bytes_per_pixel(prior, shape[1], device, guidance in GRADIENTS)
    except Exception:  # whatever a network raises that takes one size of images alone: no tile could be of that size
        return None
    if each * math.prod(shape[-2:]) <= room:
        return None
    # Buffers of the whole image stay; they are a small part of what a pixel takes.
    return max(_LEAST_TILE, int(math.sqrt(room / each)) // GRID * GRID)


def _automatic_batch(prior: Prior, shape: tuple[int, ...], device: torch.device, guidance: str | None) -> int:
    prior.check_image_shape(shape)
    if isinstance(prior, GaussianMixture):
        return shape[0]
    gradients, room, item = guidance in GRADIENTS, memory.SHARE * memory.available(device), shape[1:]
    each = 0.0
    if len(item) == 3:
        seen = prior.tile**2 if isinstance(prior, Tiled) else math.prod(item[1:])
        inner = prior.prior if isinstance(prior, Tiled) else prior
        each = memory.bytes_per_pixel(inner, item[0], device, gradients) * min(seen, math.prod(item[1:]))
    return memory.fastest_batch(prior, item, shape[0], room, each, device, gradients)


def _check_parts(batch_size: object, tile: object, overlap: int | None) -> None:
    for name, value in (("batch_size", batch_size), ("tile", tile)):
        if isinstance(value, str):
            check_choice(name, value, ("auto",))
        elif value is not None:
            check_count(name, value)
    if isinstance(tile, int):
        check_sizes(tile, overlap)
    elif overlap is not None:
        if tile is None:
            raise ValueError("`overlap` is that of tiles: give `tile` too, or leave it out")
        check_sizes(max(_LEAST_TILE, 2 * check_count("overlap", overlap)), overlap)


class _Run:
    """The parts of one call: consecutive items, each part a plan of its own that shares the network's compilation."""

    def __init__(
        self, y: Tensor, op: Operator, prior: Prior, noise_std: Tensor, seeds: Tensor, shape: tuple[int, ...],
        options: dict[str, Any], may_tile: bool, overlap: int | None,
    ) -> None:  # fmt: skip
        self.y, self.op, self.prior, self.noise_std, self.seeds = y, op, prior, noise_std, seeds
        self.shape, self.options, self.overlap = shape, options, overlap
        self.may_tile = may_tile and len(shape) == 4 and not isinstance(prior, GaussianMixture)
        self._network: Prior | None = None

    def all(self, size: int) -> list[Estimate]:
        first, batch = 0, self.shape[0]
        done = []
        while first < batch:
            last = min(first + size, batch)
            estimate = self._attempt(first, last)
            if estimate is not None:
                done.append(estimate)
                first = last
            elif last - first > 1:
                size = (last - first) // 2
            else:
                self.prior, self._network = self._smaller_tiles(), None
        return done

    def _attempt(self, first: int, last: int) -> Estimate | None:
        """The estimate of some items, or None where memory ran out and a smaller part can be tried."""
        try:
            return self.part(first, last)
        except (RuntimeError, MemoryError) as error:
            if not memory.is_exhaustion(error) or not (last - first > 1 or self._can_tile()):
                raise
        # Only here, without the exception, are the failed plan's buffers free again.
        return None

    def part(self, first: int, last: int) -> Estimate:
        """The estimate of items ``first`` … ``last`` - 1."""
        items = slice(first, last)
        op, prior, options = self.op.select(items, self.shape), self.prior, self.options
        if self._network is not None:  # which has its own
            prior = self._network
            options = {name: value for name, value in options.items() if name not in engine.OPTIONS}
        plan = Plan(op, prior, (last - first, *self.shape[1:]), self.noise_std[items], device=self.y.device,
                    **options)  # fmt: skip
        estimate = plan.execute(self.y[items], self.seeds[items])
        self._network = plan.network  # compiled for a size that fits
        return estimate

    def _side(self) -> int:
        return self.prior.tile if isinstance(self.prior, Tiled) else max(self.shape[-2:])

    def _can_tile(self) -> bool:
        return self.may_tile and self._side() > _LEAST_TILE

    def _smaller_tiles(self) -> Tiled:
        inner = self.prior.prior if isinstance(self.prior, Tiled) else self.prior
        return Tiled(inner, max(_LEAST_TILE, self._side() // 2 // GRID * GRID), self.overlap)


def _joined(parts: list[Estimate]) -> Estimate:
    if len(parts) == 1:
        return parts[0]
    variances = [part.variance for part in parts if part.variance is not None]
    stats: dict[str, float] = {}
    for part in parts:
        for key, value in part.stats.items():
            added = key.endswith("seconds") and key != "compile_seconds"  # compiled once, for all parts
            stats[key] = stats.get(key, 0.0) + value if added else max(stats.get(key, value), value)
    return Estimate(
        torch.cat([part.mean for part in parts]),
        torch.cat(variances) if variances else None,
        torch.cat([part.ok for part in parts]),
        stats,
    )
