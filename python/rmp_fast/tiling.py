"""Large images: the network sees overlapping tiles, the operator and the step the whole image."""

from __future__ import annotations

import dataclasses
import itertools

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ._checks import check_count
from .priors import Prior

__all__ = ["GRID", "OVERLAP", "Tiled", "check_sizes"]

#: Tiles begin at multiples of this, so that what a network pools lies on the same grid as in the whole image.
GRID = 64

#: Pixels that neighbouring tiles share by default. At s = 20, where the bundled ``photo`` network looks furthest, tiles
#: of 256 that share so many differ from the whole image by 56 dB (PSNR), those that share half as many by 45 dB.
OVERLAP = 128


@dataclasses.dataclass(frozen=True)
class _Span:
    """A tile along one axis: pixels begin … end - 1."""

    begin: int
    end: int


def check_sizes(tile: int, overlap: int | None = None) -> tuple[int, int]:
    """Side and overlap of tiles in pixels, the default of the latter filled in; TypeError or ValueError."""
    check_count("tile", tile, least=2 * GRID)
    overlap = min(OVERLAP, tile // 2 // GRID * GRID) if overlap is None else check_count("overlap", overlap)
    for name, value in (("tile", tile), ("overlap", overlap)):
        if value % GRID:
            raise ValueError(f"`{name}` must be a multiple of {GRID} pixels, got {value}")
    if overlap > tile // 2:
        raise ValueError(f"`overlap` must be at most half a tile, {tile // 2} pixels, got {overlap}")
    return tile, overlap


class Tiled(Prior):
    r"""A prior whose denoiser looks at overlapping tiles of an image.

    .. math:: D(x, s) = \sum_t w_t\, D_t(x_t, s), \quad \sum_t w_t = 1

    Only the network is tiled. A chain's conditioning on y and its steps work on the whole image, so data consistency is
    that of the untiled chain for every operator, with no seam. The weights w_t are 0 over the outer quarter of an
    overlap, where a tile's network misses most of what it would see in the whole image, and rise linearly over the
    middle half.

    Gradients with respect to x recompute each tile in the backward pass, so that they too need one tile's memory.

    Args:
        prior: the prior of one tile; its network must not depend on where in an image it looks.
        tile: side of the tiles, a multiple of 64. Images that are no larger along an axis are not cut along it.
        overlap: pixels that neighbours share, a multiple of 64, at most half a tile.

    Raises:
        TypeError, ValueError: for sizes that do not fit.
    """

    def __init__(self, prior: Prior, tile: int, overlap: int | None = None) -> None:
        self.tile, self.overlap = check_sizes(tile, overlap)
        self.prior = prior
        self.name, self.data_variance, self.channels = prior.name, prior.data_variance, prior.channels
        self.evaluations = prior.evaluations
        self._cuts: dict[tuple[int, torch.dtype, torch.device], list[tuple[_Span, Tensor]]] = {}

    def around(self, prior: Prior) -> Tiled:
        """The same tiles for another prior."""
        return Tiled(prior, self.tile, self.overlap)

    def check_image_shape(self, shape: tuple[int, ...]) -> None:
        """ValueError unless ``shape`` is (B, C, H, W) and the prior can denoise its tiles."""
        if len(shape) != 4:
            raise ValueError(f"`tile` is for images (B, C, H, W), got `shape` {shape}")
        self.prior.check_image_shape(shape)

    def shapes(self, shape: tuple[int, ...]) -> list[tuple[int, ...]]:
        """Shapes of the inputs that the prior gets for images ``shape``, each once."""
        rows, columns = (self._spans(size) for size in shape[-2:])
        sizes = {(r.end - r.begin, c.end - c.begin) for r, c in itertools.product(rows, columns)}
        return [(*shape[:-2], *size) for size in sorted(sizes)]

    def denoise(self, x: Tensor, s: Tensor) -> Tensor:
        """D(x, s) for x (B, C, H, W) and s (B,)."""
        rows, columns = (self._cut(size, x) for size in x.shape[-2:])
        if len(rows) == len(columns) == 1:
            return self.prior.denoise(x, s)
        out = torch.zeros_like(x)
        for (row, height), (column, width) in itertools.product(rows, columns):
            part = (..., slice(row.begin, row.end), slice(column.begin, column.end))
            # Compiled networks compile once more for the strides of a view and for tensors of the inference mode.
            with torch.inference_mode(False):
                inputs = x[part].clone(memory_format=torch.contiguous_format)
            if torch.is_grad_enabled() and x.requires_grad:
                # Networks draw no random numbers; to keep the state of a device's generator waits for the device.
                tile = checkpoint(self.prior.denoise, inputs, s, use_reentrant=False, preserve_rng_state=False)
            else:
                tile = self.prior.denoise(inputs, s)
            out[part] += tile * height[:, None] * width
        return out

    def _cut(self, size: int, like: Tensor) -> list[tuple[_Span, Tensor]]:
        """Tiles along an axis with their weights, made for the first look at images of that size."""
        key = (size, like.dtype, like.device)
        if key not in self._cuts:
            # Autograd cannot keep tensors that were made in inference mode.
            with torch.inference_mode(False):
                spans = self._spans(size)
                self._cuts[key] = list(zip(spans, self._weights(spans, like), strict=True))
        return self._cuts[key]

    def _spans(self, size: int) -> list[_Span]:
        """Tiles along an axis, every one but the last of the full side; the last one ends with the image."""
        if size <= self.tile:
            return [_Span(0, size)]
        count = -(-(size - self.overlap) // (self.tile - self.overlap))
        # Spread evenly, then moved back onto the grid.
        last = -(-(size - self.tile) // GRID) * GRID
        begins = [last * i // (count - 1) // GRID * GRID for i in range(count)]
        return [_Span(begin, min(begin + self.tile, size)) for begin in begins]

    def _weights(self, spans: list[_Span], like: Tensor) -> list[Tensor]:
        """Of every tile along an axis, (length,): linear across the middle half of each overlap, with sum 1."""
        total = torch.zeros(spans[-1].end, dtype=like.dtype, device=like.device)
        weights = [torch.ones(span.end - span.begin, dtype=like.dtype, device=like.device) for span in spans]
        for (a, before), (b, after) in itertools.pairwise(zip(spans, weights, strict=True)):
            shared = a.end - b.begin
            place = (torch.arange(shared, dtype=like.dtype, device=like.device) + 0.5) / shared
            rise = (2 * place - 0.5).clamp(0, 1)
            after[:shared] *= rise
            before[-shared:] *= 1 - rise
        for span, weight in zip(spans, weights, strict=True):
            total[span.begin : span.end] += weight
        # Only where three tiles meet is the sum not 1 yet.
        return [weight / total[span.begin : span.end] for span, weight in zip(spans, weights, strict=True)]
