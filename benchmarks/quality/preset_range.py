"""How far presets carry: ``python benchmarks/quality/preset_range.py``.

Presets of the ``photo`` prior were tuned for one strength of each degradation and one noise level. This restores
three photographs with others, by the preset and by the untuned chain of as many evaluations, and prints the mean PSNR
of both.
"""

from __future__ import annotations

import torch
from photos import photos, psnr

import rmp_fast as rmp
from rmp_fast import operators

NOISE = 0.04
SIZE = (128, 128)


def main() -> None:
    truth, prior = photos(), rmp.priors.load("photo")

    def compare(label: str, task: str, op: operators.LinearOperator, noise: float) -> None:
        y = op.A(truth)
        y = y + noise * torch.randn(y.shape, generator=torch.Generator().manual_seed(0))
        if isinstance(op, operators.Inpainting):
            y = op.A(y)
        means = []
        for settings in ({}, rmp.presets.for_task(task, prior, 20)):
            estimate = rmp.Plan(op, prior, tuple(truth.shape), noise, **settings).execute(y)
            means.append(psnr(estimate.mean, truth).mean().item())
        print(f"{task:16s} {label:22s} {means[0]:8.2f} {means[1]:8.2f} {means[1] - means[0]:+8.2f}", flush=True)

    tuned = {
        "inpaint_random": operators.Inpainting(operators.random_mask(SIZE, 0.7, seed=1)),
        "sr4": operators.SuperResolution(4),
        "gaussian_deblur": operators.GaussianBlur(2),
        "motion_deblur": operators.Blur(operators.motion_kernel(15, 45)),
    }
    print(f"{'task':16s} {'':22s} {'untuned':>8s} {'preset':>8s} {'gain':>8s}")
    for missing in (0.3, 0.5, 0.9, 0.97):
        op = operators.Inpainting(operators.random_mask(SIZE, missing, seed=1))
        compare(f"{missing:.0%} missing", "inpaint_random", op, NOISE)
    for std in (0.5, 1.0, 1.5, 4.0, 6.0):
        compare(f"{std} pixels", "gaussian_deblur", operators.GaussianBlur(std), NOISE)
    for length in (5, 25, 35):
        op = operators.Blur(operators.motion_kernel(length, 45))
        compare(f"{length} pixels", "motion_deblur", op, NOISE)
    for task, op in tuned.items():
        for noise in (0.005, 0.02, NOISE, 0.1, 0.3):
            compare(f"noise {noise}", task, op, noise)


if __name__ == "__main__":
    main()
