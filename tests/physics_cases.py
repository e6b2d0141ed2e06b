"""Physics of deepinv for the property suites: how to make them, and the images they take."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any

import field
import torch
from torch import Tensor

from rmp_fast.operators import LinearOperator, LinearPhysics, from_deepinv

__all__ = ["PHYSICS", "linear", "nonlinear"]

Make = Callable[[Any], Any]  # from the module deepinv.physics


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def kernel() -> Tensor:
    """Not symmetric, so that convolution and correlation differ, and without zeros in its spectrum."""
    weights = 0.4 * drawn(1, 1, 3, 3) / 9
    weights[..., 1, 1] += 1
    return weights


def mask(*shape: int) -> Tensor:
    return (drawn(*shape, seed=1) > 0.4).float()


def maps(coils: int, *size: int) -> Tensor:
    return torch.complex(drawn(1, coils, *size, seed=2) - 0.3, drawn(1, coils, *size, seed=3) - 0.6)


def own(x: Tensor, **_: Any) -> Tensor:
    return x[..., 1:] - 0.5 * x[..., :-1]


# Name: how to make it, one image, whether it only works in float32.
PHYSICS: dict[str, tuple[Make, tuple[int, ...], bool]] = {
    "denoising": (lambda p: p.Denoising(), (2, 5, 7), False),
    "inpainting": (lambda p: p.Inpainting((2, 5, 7), mask=0.6, rng=generator()), (2, 5, 7), False),
    "demosaicing": (lambda p: p.Demosaicing((3, 6, 5)), (3, 6, 5), False),
    "blur, circular": (lambda p: p.Blur(filter=kernel(), padding="circular"), (2, 7, 6), False),
    "blur, reflected": (lambda p: p.Blur(filter=kernel(), padding="reflect"), (2, 7, 6), False),
    "blur, valid": (lambda p: p.Blur(filter=kernel(), padding="valid"), (2, 7, 6), False),
    "blur by FFT": (lambda p: p.BlurFFT((2, 7, 6), filter=kernel()), (2, 7, 6), False),
    "blur by FFT, odd": (lambda p: p.BlurFFT((2, 6, 7), filter=kernel()), (2, 6, 7), False),
    "blur, varying": (
        lambda p: p.SpaceVaryingBlur(filters=drawn(1, 1, 2, 3, 3), multipliers=drawn(1, 1, 2, 7, 6), padding="valid"),
        (2, 7, 6), False,
    ),
    "downsampling": (lambda p: p.Downsampling((1, 8, 12), kernel(), 2, padding="circular"), (1, 8, 12), False),
    "upsampling": (lambda p: p.Upsampling((1, 8, 8), "bilinear", 2, padding="circular"), (1, 4, 4), False),
    "MRI": (lambda p: p.MRI(mask=mask(1, 1, 6, 5), img_size=(2, 6, 5)), (2, 6, 5), False),
    "dynamic MRI": (lambda p: p.DynamicMRI(mask=mask(1, 1, 3, 5, 4), img_size=(2, 3, 5, 4)), (2, 3, 5, 4), False),
    "multi-coil MRI": (
        lambda p: p.MultiCoilMRI(mask=mask(1, 1, 5, 6), coil_maps=maps(3, 5, 6), img_size=(2, 5, 6)), (2, 5, 6), False
    ),
    "tomography": (lambda p: p.Tomography(angles=6, img_width=7, normalize=False), (1, 7, 7), True),
    "compressed sensing": (lambda p: p.CompressedSensing(m=12, img_size=(1, 4, 5), rng=generator()), (1, 4, 5), True),
    "structured random": (lambda p: p.StructuredRandom((1, 5, 5), (1, 4, 4), rng=generator()), (1, 5, 5), False),
    "single-pixel camera": (lambda p: p.SinglePixelCamera(10, (1, 8, 4), fast=True, rng=generator()), (1, 8, 4), False),
    "single-pixel camera, dense": (lambda p: p.SinglePixelCamera(9, (1, 4, 4), rng=generator()), (1, 4, 4), False),
    "decolorize": (lambda p: p.Decolorize(), (3, 4, 5), False),
    "unmixing": (lambda p: p.HyperSpectralUnmixing(drawn(2, 4, seed=4)), (2, 4, 3), False),
    "pansharpen": (lambda p: p.Pansharpen((3, 8, 8), "bilinear", 2, use_brovey=False), (3, 8, 8), False),
    "composed": (
        lambda p: p.Inpainting((1, 6, 7), mask=0.6, rng=generator()) * p.BlurFFT((1, 6, 7), filter=kernel()),
        (1, 6, 7), False,
    ),
    "own, adjoint derived": (lambda p: p.LinearPhysics(A=own, img_size=(1, 4, 6)), (1, 4, 6), True),
}  # fmt: skip


def haze(p: Any) -> Any:
    """With known depth and light, so that the image alone is unknown."""
    model, depth, light = p.Haze(beta=0.5), 3 * drawn(1, 1, 5, 6, seed=5), torch.tensor([0.9])
    return p.Physics(A=lambda x, **_: model.A((x, depth.to(x), light.to(x))))


NONLINEAR: dict[str, tuple[Make, tuple[int, ...]]] = {
    "phase retrieval": (lambda p: p.RandomPhaseRetrieval(40, (1, 4, 4), rng=generator()), (1, 4, 4)),
    "haze": (haze, (3, 5, 6)),
    "unwrapping": (lambda p: p.SpatialUnwrapping(threshold=1.0, mode="round"), (1, 5, 6)),
}


@functools.cache
def operator(name: str) -> LinearPhysics:
    make, item, _ = PHYSICS[name]
    op = from_deepinv(make(field.deepinv().physics), item, iterations=80)
    assert isinstance(op, LinearPhysics)
    return op


def linear() -> list[tuple[Callable[[], LinearOperator], tuple[int, ...], bool, str]]:
    """Operators, shapes of images with the batch, whether they work in float32 alone, names; none without deepinv.

    Operators are made once, and copied, because tests set their number of iterations.
    """
    if not field.installed("deepinv"):
        return []
    return [
        (functools.partial(lambda name: copy.copy(operator(name)), name), (2, *item), single, f"deepinv {name}")
        for name, (_, item, single) in PHYSICS.items()
    ]


def nonlinear(name: str) -> Any:
    """One of the physics in NONLINEAR."""
    return NONLINEAR[name][0](field.deepinv().physics)
