"""The clean images that ``rmp-fast compare`` and ``rmp-fast calibrate`` degrade and restore."""

from __future__ import annotations

import argparse
import dataclasses
import pathlib
from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from .. import images, priors
from .inputs import check_name, collect_inputs, refuse_input_folder
from .prior import open_prior
from .reconstruct import default_batch
from .usage import UsageError

__all__ = ["Picture", "batches", "prior_and_files", "read_pictures"]


@dataclasses.dataclass(frozen=True)
class Picture:
    """A clean image that could be read."""

    file: pathlib.Path
    pixels: NDArray[np.float32]  # (C, H, W) on [0, 1]


def prior_and_files(options: argparse.Namespace) -> tuple[priors.NetworkPrior, list[pathlib.Path]]:
    """The prior and the clean image files of a run; sets the number of threads.

    Raises:
        UsageError: no images or output folder given, or what :func:`collect_inputs` and :func:`open_prior` refuse.
    """
    if not options.images:
        raise UsageError("`--images` must be given: clean image files, or folders with such files")
    if options.out is None:
        raise UsageError("`--out` must be given: the folder for the results")
    files = collect_inputs(options.images, "--images")
    refuse_input_folder(options.images, options.out)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    return open_prior(options.prior), files


def read_pictures(files: Sequence[pathlib.Path], complain: Callable[[str], None]) -> tuple[list[Picture], int]:
    """The images that can be read, those of one shape together, and the number of the others.

    Args:
        files: to read.
        complain: is told what is wrong with each of the others.

    Raises:
        UsageError: two files of one name, whose results would overwrite each other.
    """
    pictures, failures = [], 0
    for file in files:
        try:
            check_name(file)
            pictures.append(Picture(file, images.read(file).pixels))
        except images.ImageError as error:
            complain(f"skipped {error}")
            failures += 1
    names = [picture.file.stem for picture in pictures]
    for name in names:
        if names.count(name) > 1:
            raise UsageError(f"`--images` has several files called {name}; their pictures would overwrite each other")
    return sorted(pictures, key=lambda picture: (picture.pixels.shape, picture.file.name)), failures


def batches(pictures: Sequence[Picture], batch_size: int | None) -> list[list[Picture]]:
    """Runs of pictures of one shape, at most ``batch_size`` long (default: by their size)."""
    found: list[list[Picture]] = []
    for picture in pictures:
        shape = picture.pixels.shape
        room = batch_size or default_batch(shape)
        if not found or found[-1][0].pixels.shape != shape or len(found[-1]) == room:
            found.append([])
        found[-1].append(picture)
    return found
