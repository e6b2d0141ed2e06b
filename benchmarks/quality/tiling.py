"""Tiles against the whole image: ``python benchmarks/quality/tiling.py``.

A photograph of 2048x2048 pixels (of the training data: only whole and tiled estimates are compared, and scikit-image
has none so large), noise 0.04 on [-1, 1], restored by the presets of 20 evaluations with the network looking at all of
it and at tiles. Prints the PSNR of both, of one against the other, and the memory that the network takes for each.
"""

from __future__ import annotations

import argparse
import pathlib

import numpy as np
import torch
from photos import psnr
from PIL import Image
from torch import Tensor

import rmp_fast as rmp
from rmp_fast import memory, operators
from rmp_fast.training.data import unpack

PHOTO = ("lomiri-wallpapers-16.04", "picosdeeuropa_by_Aitzol_Berasategi.jpg")
NOISE = 0.04


def photograph(side: int, cache: pathlib.Path) -> Tensor:
    """(1, 3, side, side) on [-1, 1], from the middle of the photograph."""
    package, name = PHOTO
    (path,) = unpack(package, cache).rglob(name)
    with Image.open(path) as file:
        left, top = (file.width - side) // 2, (file.height - side) // 2
        pixels = np.asarray(file.convert("RGB").crop((left, top, left + side, top + side)))
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].float() / 127.5 - 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=2048, help="of the photograph in pixels (2048)")
    parser.add_argument("--tiles", type=int, nargs="+", default=(256, 512), help="their sides in pixels (256 512)")
    parser.add_argument("--tasks", nargs="+", default=("inpaint_random", "sr4", "motion_deblur"), metavar="NAME")
    parser.add_argument("--data", type=pathlib.Path, default=pathlib.Path.home() / ".cache" / "rmp_fast" / "data")
    arguments = parser.parse_args()
    truth, prior = photograph(arguments.side, arguments.data), rmp.priors.load("photo")
    each = memory.bytes_per_pixel(prior, 3, truth.device, False)
    print(f"{'task':16s} {'tile':>6s} {'PSNR':>8s} {'change':>9s} {'to whole':>9s} {'network':>9s} {'seconds':>8s}")
    for task in arguments.tasks:
        op = operators.for_task(task, tuple(truth.shape))
        y = op.A(truth)
        y += NOISE * torch.randn(y.shape, generator=torch.Generator().manual_seed(0))
        y = op.A(y) if isinstance(op, operators.Inpainting) else y
        chain = rmp.presets.for_task(task, prior, evaluations=20)
        means: list[Tensor] = []
        for tile in (None, *arguments.tiles):
            estimate = rmp.reconstruct(y, op, prior, noise_std=NOISE, tile=tile, **chain)
            means.append(estimate.mean)
            before, after = float(psnr(means[0], truth)), float(psnr(means[-1], truth))
            between = "" if tile is None else f"{float(psnr(means[-1], means[0])):.1f} dB"
            gigabytes = each * (tile or arguments.side) ** 2 / 2**30
            print(
                f"{task:16s} {tile or 'whole':>6} {after:5.2f} dB {after - before:+6.3f} dB {between:>9s} "
                f"{gigabytes:5.2f} GiB {estimate.stats['seconds']:8.1f}", flush=True,
            )  # fmt: skip


if __name__ == "__main__":
    main()
