"""The comparison picture: measurement | restoration | truth | error, labelled."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from ..images import quantise

__all__ = ["error_factor", "render", "sheet"]

_SMALLEST, _LARGEST = 256, 1024  # longer side of a tile in pixels: small images are enlarged, large ones reduced
_MARGIN = 8
_INK, _PAPER, _FAINT = (20, 20, 20), (255, 255, 255), (110, 110, 110)


def render(
    measurement: NDArray[Any],
    restoration: NDArray[Any],
    truth: NDArray[Any] | None,
    title: str,
    captions: tuple[str, str],
) -> bytes:
    """A PNG with the pictures side by side.

    Args:
        measurement, restoration, truth: (C, H, W) on [0, 1], C = 1 or 3; the measurement may be smaller and is shown
            with enlarged pixels. Without truth there are two pictures.
        title: one line over the pictures.
        captions: second label line of measurement and restoration.
    """
    tiles = [
        ("measurement", captions[0], measurement),
        ("restoration", captions[1], restoration),
    ]
    if truth is not None:
        error = np.abs(np.clip(restoration, 0, 1) - truth).mean(0, keepdims=True)
        factor = error_factor(error)
        tiles += [("truth", "", truth), (f"error x {factor}", "mean of |restoration - truth|", error * factor)]
    return sheet(tiles, title)


def sheet(tiles: Sequence[tuple[str, str, NDArray[Any]]], title: str) -> bytes:
    """A PNG of labelled pictures of one size, side by side under one line.

    Args:
        tiles: two lines of text and the picture (C, H, W) on [0, 1] of each; the last one decides the size, and a
            smaller one is shown with enlarged pixels.
        title: one line over the pictures.
    """
    height, width = tiles[-1][2].shape[1:]
    side = max(height, width)
    scale = max(1, round(_SMALLEST / side)) if side < _SMALLEST else min(1.0, _LARGEST / side)
    tile_size = max(1, round(width * scale)), max(1, round(height * scale))
    column = max(tile_size[0], 200)
    font, small = ImageFont.load_default(16), ImageFont.load_default(13)
    top = 78
    sheet_size = _MARGIN + len(tiles) * (column + _MARGIN), top + tile_size[1] + _MARGIN
    canvas = Image.new("RGB", sheet_size, _PAPER)
    draw = ImageDraw.Draw(canvas)
    draw.text((_MARGIN, 8), _fitting(title, small, sheet_size[0] - 2 * _MARGIN), fill=_FAINT, font=small)
    for index, (label, caption, pixels) in enumerate(tiles):
        left = _MARGIN + index * (column + _MARGIN)
        draw.text((left, 32), label, fill=_INK, font=font)
        draw.text((left, 55), _fitting(caption, small, column), fill=_FAINT, font=small)
        resampling = Image.Resampling.NEAREST if scale >= 1 else Image.Resampling.LANCZOS
        pixels = _enlarged(pixels, height, width)
        canvas.paste(_picture(pixels).resize(tile_size, resampling), (left, top))
    stream = io.BytesIO()
    canvas.save(stream, format="png")
    return stream.getvalue()


def error_factor(error: NDArray[Any]) -> int:
    """The largest of 1, 2, 5, 10, 20, 50 that leaves at most one percent of the errors above white."""
    high = float(np.quantile(error, 0.99))
    return max((f for f in (1, 2, 5, 10, 20, 50) if f * high <= 1), default=1)


def _picture(pixels: NDArray[Any]) -> Image.Image:
    levels = quantise(pixels, 8)
    return Image.fromarray(levels[0] if levels.shape[0] == 1 else np.moveaxis(levels, 0, -1)).convert("RGB")


def _enlarged(measurement: NDArray[Any], height: int, width: int) -> NDArray[Any]:
    rows, columns = measurement.shape[1:]
    if (rows, columns) == (height, width):
        return measurement
    factor = -(-height // rows), -(-width // columns)
    return np.repeat(np.repeat(measurement, factor[0], 1), factor[1], 2)[:, :height, :width]


def _fitting(text: str, font: Any, width: int) -> str:
    """``text``, cut with an ellipsis where it is wider than ``width`` pixels."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text + "…"
