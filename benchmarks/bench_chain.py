"""Whole chains of the ``photo`` prior at 256x256: what is not the network, and what a plan owns.

``pytest benchmarks/bench_chain.py``; each row's ``extra_info`` holds the shares, which are also printed with ``-s``.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from skimage import data

import rmp_fast as rmp
from rmp_fast import operators

NOISE_STD = 0.05
OPERATORS = {
    "denoising": lambda: operators.Denoising(),
    "inpainting": lambda: operators.Inpainting(operators.random_mask((256, 256), 0.7, 0)),
    "super-resolution": lambda: operators.SuperResolution(4),
    "gaussian blur": lambda: operators.GaussianBlur(2.0),
    "circular motion blur": lambda: operators.Blur(operators.motion_kernel(15, 45.0)),
}
PRESETS = {
    "inpainting": "inpaint_random",
    "super-resolution": "sr4",
    "gaussian blur": "gaussian_deblur",
    "circular motion blur": "motion_deblur",
}


@pytest.mark.parametrize("name", OPERATORS)
def bench_photo_chain(benchmark: Any, name: str) -> None:
    run(benchmark, name, {})


@pytest.mark.parametrize("name", PRESETS)
def bench_photo_preset(benchmark: Any, name: str) -> None:
    run(benchmark, name, rmp.presets.for_task(PRESETS[name], "photo", 20))


def run(benchmark: Any, name: str, settings: dict[str, Any]) -> None:
    op = OPERATORS[name]()
    photo = torch.from_numpy(data.astronaut()[:256, 96:352].copy()).permute(2, 0, 1)[None].float() / 127.5 - 1
    generator = torch.Generator().manual_seed(0)
    measured = op.A(photo)
    measured = measured + NOISE_STD * torch.randn(measured.shape, generator=generator)
    if name == "inpainting":
        measured = op.A(measured)
    prior = rmp.priors.load("photo")
    plan = rmp.Plan(op, prior, tuple(photo.shape), NOISE_STD, **settings)
    plain = rmp.Plan(op, prior, tuple(photo.shape), NOISE_STD, backend="torch", **settings).execute(measured).mean
    mean = plan.execute(measured).mean
    # float32 network evaluations of inputs that differ by rounding: 60 dB is far below what a picture shows
    assert 10 * torch.log10(4 / (mean - plain).square().mean()) > 60
    psnr = 10 * torch.log10(4 / (mean - photo).square().mean())

    stats: list[dict[str, float]] = []
    benchmark.pedantic(lambda: stats.append(plan.execute(measured).stats), rounds=3, warmup_rounds=1)
    total = sum(s["seconds"] for s in stats)
    parts = ("network", "operator", "step", "start")
    shares = {key: sum(s[f"{key}_seconds"] for s in stats) / total for key in parts}
    images = plan.buffer_bytes / (photo.numel() * 4)
    benchmark.extra_info.update(
        shares, psnr=float(psnr), threads=torch.get_num_threads(), plan_images=images, torch=torch.__version__
    )
    print(
        f"\n{name}{', preset' if settings else ''}: {psnr:.2f} dB, {total / len(stats):.2f} s, "
        f"network {shares['network']:.1%}, operator {shares['operator']:.2%}, step {shares['step']:.2%}, "
        f"start {shares['start']:.2%}, plan owns {images:.1f} images"
    )
