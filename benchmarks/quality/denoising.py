"""How well the bundled priors denoise: ``python benchmarks/quality/denoising.py``.

``fashion``: PSNR on Fashion-MNIST test images, which its training never saw. ``photo``: PSNR on scikit-image's
photographs (central crops), beside CBM3D (package bm3d, which is told the same noise level), on the same noise.
"""

from __future__ import annotations

import argparse
import math
import pathlib

import numpy as np
import torch
from skimage import data

import rmp_fast as rmp
from rmp_fast.training.data import fashion_images

PHOTOS = ("astronaut", "chelsea", "coffee", "rocket", "immunohistochemistry", "stereo_motorcycle")


def psnr(a: torch.Tensor, b: torch.Tensor) -> float:
    """In dB, for images on [-1, 1]."""
    return 10 * math.log10(4 / float((a - b).square().mean()))


def fashion(cache: pathlib.Path, count: int) -> None:
    prior = rmp.priors.load("fashion")
    clean = torch.from_numpy(fashion_images(cache, "test")[5000 : 5000 + count]).float() / 127.5 - 1
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))
    print(f"fashion: {count} test images, mean PSNR in dB, and E||D - x0||^2 / (N s^2)")
    for s in (0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 20.0):
        with torch.inference_mode():
            out = prior.denoise(clean + s * noise, torch.full((count,), s))
        each = (out - clean).square().mean(dim=(1, 2, 3))
        print(f"  s = {s:<5g} {float((10 * (4 / each).log10()).mean()):6.2f} dB   {float(each.mean()) / s**2:.4f}")


def photograph(name: str, size: int) -> np.ndarray:
    image = getattr(data, name)()
    image = image[0] if isinstance(image, tuple) else image
    top, left = (image.shape[0] - size) // 2, (image.shape[1] - size) // 2
    return np.asarray(image[top : top + size, left : left + size], np.float32)


def photo(size: int) -> None:
    import bm3d

    prior = rmp.priors.load("photo")
    print(f"photo: central {size}x{size} crops, PSNR in dB of photo / CBM3D at sigma (of 255)")
    print("  " + "".join(f"{f'sigma {sigma}':>24}" for sigma in (15, 25, 50)))
    differences = []
    for name in PHOTOS:
        clean = photograph(name, size)
        noise = np.random.default_rng(0).standard_normal(clean.shape).astype(np.float32)
        row = []
        for sigma in (15, 25, 50):
            noisy = clean + sigma * noise
            tensor = torch.from_numpy(noisy).permute(2, 0, 1)[None] / 127.5 - 1
            with torch.inference_mode():
                ours = prior.denoise(tensor.contiguous(), torch.tensor([sigma / 127.5]))
            theirs = bm3d.bm3d_rgb(noisy / 255, sigma / 255)
            truth = torch.from_numpy(clean).permute(2, 0, 1)[None] / 127.5 - 1
            other = torch.from_numpy(theirs).float().permute(2, 0, 1)[None] * 2 - 1
            row.append((psnr(ours, truth), psnr(other, truth)))
        differences.append([a - b for a, b in row])
        print("  " + "".join(f"{a:15.2f} / {b:5.2f} " for a, b in row) + f"  {name}", flush=True)
    mean = np.mean(differences, axis=0)
    print("  " + "".join(f"{d:+23.2f} " for d in mean) + "  mean difference")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prior", choices=["fashion", "photo"], help="default: both")
    parser.add_argument("--data", type=pathlib.Path, default=pathlib.Path.home() / ".cache" / "rmp_fast" / "data")
    parser.add_argument("--count", type=int, default=256, help="Fashion-MNIST images")
    parser.add_argument("--size", type=int, default=256, help="side of the photographs' crops")
    args = parser.parse_args()
    if args.prior != "photo":
        fashion(args.data, args.count)
    if args.prior != "fashion":
        photo(args.size)


if __name__ == "__main__":
    main()
