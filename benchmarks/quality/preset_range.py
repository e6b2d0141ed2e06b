"""How far presets carry: ``python benchmarks/quality/preset_range.py``.

Presets were tuned for a range of noise and for one strength of each degradation, or a few. This restores images with
others, by the preset and by the untuned chain of as many evaluations, and prints the mean PSNR of both: three
photographs for the ``photo`` prior (grey ones for MRI), Fashion-MNIST test images from number 5000 on for ``fashion``.
Presets are taken whatever their ``holds_for`` says, and the places where they lose are listed at the end.
"""

from __future__ import annotations

import argparse
import dataclasses
import pathlib
from collections.abc import Callable

import torch
from photos import photos, psnr
from torch import Tensor

import rmp_fast as rmp
from rmp_fast import operators
from rmp_fast.training.data import fashion_images

Make = Callable[[float], operators.Operator]


@dataclasses.dataclass(frozen=True)
class Range:
    """The strengths to try of one task; the first is what its preset was tuned for."""

    task: str
    unit: str
    make: Make
    strengths: tuple[float, ...]


def ranges(name: str, size: tuple[int, int]) -> list[Range]:
    def missing(percent: float) -> operators.Operator:
        return operators.Inpainting(operators.random_mask(size, percent / 100, seed=1))

    def box(side: float) -> operators.Operator:
        return operators.Inpainting(operators.box_mask(size, int(side)))

    def motion(length: float) -> operators.Operator:
        return operators.Blur(operators.motion_kernel(length, 45))

    def shake(length: float) -> operators.Operator:
        return operators.NonlinearBlur(operators.camera_shake(1, length, length / 3))

    def scan(acceleration: float) -> operators.Operator:
        return operators.MRI(operators.cartesian_mask(size, acceleration, seed=1))

    def shared(boxes: tuple[float, ...], stds: tuple[float, ...], lengths: tuple[float, ...]) -> list[Range]:
        return [
            Range("inpaint_random", "% missing", missing, (70, 30, 50, 90, 97)),
            Range("inpaint_box", "pixels", box, boxes),
            Range("sr4", "times", lambda factor: operators.SuperResolution(int(factor)), (4,)),
            Range("gaussian_deblur", "pixels", operators.GaussianBlur, stds),
            Range("motion_deblur", "pixels", motion, lengths),
        ]

    if name == "fashion":
        return [
            *shared((12, 6, 9, 16, 20), (1.5, 0.5, 1.0, 2.0, 3.0), (9, 3, 5, 13, 17)),
            Range("mri", "times", scan, (4, 2, 8)),
            Range("nonlinear_deblur", "pixels", shake, (1.6, 0.8, 2.5, 4)),
        ]
    return [
        *shared((48, 16, 32, 64), (2.0, 0.5, 1.0, 1.5, 4.0, 6.0), (15, 5, 25, 35)),
        Range("mri", "times", scan, (4, 2, 8)),
        Range("nonlinear_deblur", "pixels", shake, (4.8, 2.4, 8, 12)),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prior", choices=("photo", "fashion"), default="photo", help="and its images (photo)")
    parser.add_argument("--tasks", nargs="+", metavar="NAME", help="only these (all)")
    parser.add_argument("--evaluations", type=int, default=20, help="of the preset and of the untuned chain (20)")
    parser.add_argument("--count", type=int, default=32, help="images of Fashion-MNIST (32)")
    parser.add_argument("--data", type=pathlib.Path, default=pathlib.Path.home() / ".cache" / "rmp_fast" / "data")
    arguments = parser.parse_args()
    prior, name = rmp.priors.load(arguments.prior), arguments.prior
    if name == "photo":
        given, tuned_noise = photos(), 0.04
    else:
        images = fashion_images(arguments.data, "test")[5000 : 5000 + arguments.count]
        given, tuned_noise = torch.from_numpy(images).float() / 127.5 - 1, 0.05
    grey = given.mean(1, keepdim=True)

    def gain(task: str, op: operators.Operator, noise: float) -> tuple[Tensor, Tensor]:
        """PSNR per image of the untuned chain, and what the preset adds."""
        truth = grey if task == "mri" else given
        y = op.A(truth)
        y = y + noise * torch.randn(y.shape, generator=torch.Generator().manual_seed(0))
        if isinstance(op, operators.Inpainting):
            y = op.A(y)
        if isinstance(op, operators.MRI):
            y = y * op.mask.to(y)
        untuned, preset = (
            psnr(rmp.Plan(op, prior, tuple(truth.shape), noise, **settings).execute(y).mean, truth)
            for settings in (
                rmp.presets.for_task(task, tuned_for, arguments.evaluations) for tuned_for in ("none", prior)
            )
        )
        return untuned, preset - untuned

    losses = []
    print(f"{'task':16s} {'':14s} {'noise':>8s} {'untuned':>8s} {'preset':>8s} {'gain':>8s}")
    for each in ranges(name, (int(given.shape[2]), int(given.shape[3]))):
        if arguments.tasks and each.task not in arguments.tasks:
            continue
        at = [(strength, tuned_noise) for strength in each.strengths]
        at += [(each.strengths[0], noise) for noise in (0.005, 0.02, 0.1, 0.2, 0.3, 0.5)]
        for strength, noise in at:
            untuned, more = gain(each.task, each.make(strength), noise)
            label = f"{strength:g} {each.unit}"
            print(
                f"{each.task:16s} {label:14s} {noise:8g} {untuned.mean():8.2f} {(untuned + more).mean():8.2f} "
                f"{more.mean():+8.2f}", flush=True,
            )  # fmt: skip
            if more.mean() < 0:
                losses.append(f"{each.task}, {label}, noise {noise:g}: {more.mean():+.2f} dB")
    print("\nthe preset loses at: " + ("; ".join(losses) or "none of these"))


if __name__ == "__main__":
    main()
