"""From the options of ``bench`` and ``latency`` to the problems that they measure."""

from __future__ import annotations

import argparse
import copy
import dataclasses
import pathlib
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from .. import images, priors
from ..bench.problem import Problem
from ..operators import LinearOperator
from . import degrade
from .inputs import collect_inputs
from .tasks import Settings, choice, derive_seed, resolve
from .usage import UsageError

__all__ = ["CROPS", "LINEAR_TASKS", "NOISE_STD", "Clean", "clean_images", "photographs", "problem", "settings_of",
           "tiled"]  # fmt: skip

LINEAR_TASKS = ("denoise", "inpaint_random", "inpaint_box", "sr4", "gaussian_deblur", "motion_deblur")
#: Of the measurement noise of each prior, where black is 0 and white 1.
NOISE_STD = {"photo": 0.02, "fashion": 0.025}
#: The strength of each degradation that the presets of a prior were tuned for, where it is not the task's own.
STRENGTHS: dict[str, dict[str, dict[str, float]]] = {
    "fashion": {
        "inpaint_box": {"box": 12},
        "gaussian_deblur": {"blur_std": 1.5},
        "motion_deblur": {"motion_length": 9.0},
    },
}
#: Photographs that come with scikit-image, and the top left corners of their crops of 256 x 256 pixels.
CROPS = {"astronaut": (0, 96), "chelsea": (20, 100), "coffee": (110, 130)}
FASHION_FIRST = 5000  # of the test images; presets and baselines were tuned on others


@dataclasses.dataclass(frozen=True)
class Clean:
    """A clean image (C, H, W) on [0, 1] and its name."""

    name: str
    pixels: NDArray[np.float32]


def settings_of(options: argparse.Namespace, task: str) -> Settings:
    """The task with the options that were given and, for the others, the strength that presets were tuned for."""
    given = copy.copy(options)
    given.operator, given.simulate = choice("--task", task, LINEAR_TASKS), True
    for name, value in STRENGTHS.get(options.prior, {}).get(task, {}).items():
        excluded = given.mask is not None or given.kernel is not None
        if getattr(given, name) is None and not excluded:
            setattr(given, name, value)
    return resolve(given)


def clean_images(options: argparse.Namespace, count: int, size: int | None) -> list[Clean]:
    """Images of one shape: the files of ``--images``, or those that need no download.

    Args:
        options: of the command: images, prior, data.
        count: at most so many.
        size: side of a square to cut from each image's middle; None: whole images.

    Raises:
        UsageError: none can be read, they are too small, or their shapes differ.
    """
    if options.images:
        found = []
        for file in collect_inputs(options.images, "--images")[:count]:
            try:
                found.append(Clean(file.name, images.read(file).pixels))
            except images.ImageError as error:
                raise UsageError(f"`--images` {error}") from error
    elif options.prior == "fashion":
        found = _fashion(options.data, count)
    else:
        found = photographs(count)
    if size is not None:
        found = [_cut(image, size) for image in found]
    for image in found[1:]:
        if image.pixels.shape != found[0].pixels.shape:
            raise UsageError(
                f"`--images` must have one shape, got {found[0].name} {found[0].pixels.shape} and {image.name} "
                f"{image.pixels.shape}; --size PIXELS cuts squares of one size"
            )
    return found


def photographs(count: int) -> list[Clean]:
    """At most so many of :data:`CROPS`."""
    from skimage import data

    found = []
    for name, (top, left) in list(CROPS.items())[:count]:
        crop = getattr(data, name)()[top : top + 256, left : left + 256]
        found.append(Clean(name, np.ascontiguousarray(np.moveaxis(crop, -1, 0)).astype(np.float32) / np.float32(255)))
    return found


def _fashion(cache: pathlib.Path | None, count: int) -> list[Clean]:
    from ..training.data import FASHION_PACKAGE, fashion_images

    folder = pathlib.Path.home() / ".cache" / "rmp_fast" / "data" if cache is None else cache
    if not (folder / FASHION_PACKAGE).is_dir() and not list(folder.glob(f"{FASHION_PACKAGE}_*.deb")):
        raise UsageError(
            f"Fashion-MNIST is not in {folder}: give --images FILE ..., or on Debian run "
            f"(mkdir -p {folder} && cd {folder} && apt-get download {FASHION_PACKAGE})"
        )
    test = fashion_images(folder, "test")[FASHION_FIRST : FASHION_FIRST + count].astype(np.float32) / np.float32(255)
    return [Clean(f"fashion-{FASHION_FIRST + k}", image) for k, image in enumerate(test)]


def _cut(image: Clean, size: int) -> Clean:
    height, width = image.pixels.shape[1:]
    if size > min(height, width):
        raise UsageError(f"`--size` must be at most the size of {image.name}, (H, W) = {(height, width)}, got {size}")
    top, left = (height - size) // 2, (width - size) // 2
    return Clean(image.name, np.ascontiguousarray(image.pixels[:, top : top + size, left : left + size]))


def tiled(clean: Sequence[Clean], count: int, side: int | None = None) -> list[Clean]:
    """``count`` images from those there are, again and again, cut or mirrored to squares of ``side`` pixels."""
    found = []
    for index in range(count):
        image = clean[index % len(clean)]
        pixels = image.pixels
        if side is not None:
            _, height, width = pixels.shape
            margins = [(0, 0), (0, max(0, side - height)), (0, max(0, side - width))]
            pixels = np.ascontiguousarray(np.pad(pixels, margins, mode="symmetric")[:, :side, :side])
        found.append(Clean(image.name if index < len(clean) else f"{image.name} ({index})", pixels))
    return found


def problem(
    settings: Settings, prior: priors.Prior, clean: Sequence[Clean], noise_std: float, seed: int, rounding: float,
    device: torch.device | str = "cpu",
) -> Problem:  # fmt: skip
    """The images degraded: noise and seeds are each image's own, a random mask is the same for all.

    Args:
        noise_std: where black is 0 and white 1.
        rounding: of one evaluation of the network, see :class:`rmp_fast.bench.problem.Problem`.
        device: of the problem, and of the prior. The images are degraded on the CPU, the same for every device.

    Raises:
        UsageError: operator or prior cannot take such images.
    """
    names = [image.name for image in clean]
    truths = torch.from_numpy(np.stack([image.pixels for image in clean]))
    shape = tuple(truths.shape)
    try:
        # One mask, since deepinv's DDRM takes no other.
        op = degrade.build(settings, names[:1], shape[1:], seed)
        op.measurement_shape(shape)
        prior.check_image_shape(shape)
    except UsageError:
        raise
    except (TypeError, ValueError) as error:
        raise UsageError(f"{settings.name}: {error}") from error
    assert isinstance(op, LinearOperator)  # all of LINEAR_TASKS are
    y = degrade.to_prior_range(op, degrade.simulate(op, truths, noise_std, names, seed), truths)
    seeds = torch.tensor([derive_seed(seed, "chain", name) for name in names])
    truths, y, seeds = (2 * truths - 1).to(device), y.to(device), seeds.to(device)
    return Problem(settings.name, op, prior, truths, y, 2 * noise_std, seeds, rounding)
