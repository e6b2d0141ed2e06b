"""``rmp-fast calibrate``: error bars against errors, on clean images that are degraded first."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import _json, images, operators, priors
from ..plan import Plan
from ..spread import Calibration, calibration
from . import degrade, panel, record
from .inputs import make_output_folder
from .pictures import Picture, batches, prior_and_files, read_pictures
from .prior import preset
from .tasks import TASKS, Settings, choice, derive_seed, resolve
from .usage import UsageError, check_numbers

__all__ = ["run"]


@dataclasses.dataclass(frozen=True)
class Restored:
    """One image (C, H, W) on [-1, 1] with its error bars."""

    name: str
    mean: Tensor
    variance: Tensor
    truth: Tensor


def run(options: argparse.Namespace) -> int:
    """Carry out the command and return its exit code: 0, or 1 when an image failed.

    Raises:
        UsageError: before any work, for anything that cannot be carried out as given.
    """
    known = tuple(name for name, task in TASKS.items() if operators.get(task.operator).linear)
    if options.task is None:
        raise UsageError(f"`--task` must be given, one of {', '.join(known)}")
    choice("--task", options.task, known)
    options.operator, options.simulate = options.task, True
    settings = resolve(options)
    check_numbers(options, ("evaluations", "looks", "batch_size", "threads"))
    prior, files = prior_and_files(options)
    chain = preset(options.presets, settings, prior, options.evaluations, options.noise_std)
    pictures, failures = read_pictures(files, _complain)
    runs = batches(pictures, options.batch_size)
    for batch in runs:
        _check(settings, prior, batch[0], options.seed)
    make_output_folder(options.out)

    found: list[Restored] = []
    for batch in runs:
        for restored in _restore(batch, settings, prior, chain, options):
            if restored is None:
                failures += 1
                continue
            found.append(restored)
            _write_picture(restored, settings, options)
    if found:
        together = _over(found)
        each = {one.name: _over([one]) for one in found}
        _write_table(together, each, settings, options)
        print(_table({**each, f"all {len(found)}": together}))
    return 1 if failures else 0


def _check(settings: Settings, prior: priors.Prior, picture: Picture, seed: int) -> None:
    shape = (1, *picture.pixels.shape)
    try:
        degrade.build(settings, [picture.file.name], shape[1:], seed).measurement_shape(shape)
        prior.check_image_shape(shape)
    except UsageError:
        raise
    except (TypeError, ValueError) as error:
        raise UsageError(f"{picture.file.name}: {error}") from error


def _restore(
    batch: Sequence[Picture],
    settings: Settings,
    prior: priors.Prior,
    chain: dict[str, Any],
    options: argparse.Namespace,
) -> list[Restored | None]:
    """The images of a batch, None for one that failed."""
    names = [picture.file.name for picture in batch]
    pixels = torch.from_numpy(np.stack([picture.pixels for picture in batch]))
    op = degrade.build(settings, names, tuple(pixels.shape[1:]), options.seed)
    y = degrade.to_prior_range(op, degrade.simulate(op, pixels, options.noise_std, names, options.seed), pixels)
    seeds = torch.tensor([derive_seed(options.seed, "chain", name) for name in names], dtype=torch.int64)
    try:
        noise_std = degrade.noise_to_prior_range(op, options.noise_std)
        plan = Plan(op, prior, tuple(pixels.shape), noise_std, spread_looks=options.looks, **chain)
        estimate = plan.execute(y, seeds=seeds)
    except (RuntimeError, ValueError, MemoryError) as cause:
        for picture in batch:
            _complain(f"{picture.file} could not be restored: {cause or type(cause).__name__}")
        return [None] * len(batch)
    assert estimate.variance is not None  # spread_looks asks for it
    results: list[Restored | None] = []
    for index, name in enumerate(names):
        if bool(estimate.ok[index]):
            results.append(Restored(name, estimate.mean[index], estimate.variance[index], 2 * pixels[index] - 1))
        else:
            _complain(f"{batch[index].file} could not be restored: its estimate left the finite range")
            results.append(None)
    return results


def _over(restored: Sequence[Restored]) -> Calibration:
    """Of all pixels of some images."""
    return calibration(
        torch.cat([one.mean.flatten() for one in restored]),
        torch.cat([one.variance.flatten() for one in restored]),
        torch.cat([one.truth.flatten() for one in restored]),
    )


def _write_picture(restored: Restored, settings: Settings, options: argparse.Namespace) -> None:
    mean, truth = (((image + 1) / 2).numpy() for image in (restored.mean, restored.truth))
    # From the square of [-1, 1] to [0, 1].
    deviation = restored.variance.sqrt().mean(0, keepdim=True).numpy() / 2
    error = np.abs(mean - truth).mean(0, keepdims=True)
    factor = panel.error_factor(np.maximum(error, deviation))
    tiles = [
        ("restoration", "", mean),
        (f"standard deviation x {factor}", "", deviation * factor),
        (f"error x {factor}", "mean of |restoration - truth|", error * factor),
        ("truth", "", truth),
    ]
    title = "  ·  ".join((restored.name, settings.name, f"noise {options.noise_std:g}", f"{options.prior} prior"))
    stem = restored.name.rpartition(".")[0]
    images.write_atomically(options.out / f"{stem}_spread.png", panel.sheet(tiles, title))


def _write_table(
    together: Calibration, each: dict[str, Calibration], settings: Settings, options: argparse.Namespace
) -> None:
    document = {
        "settings": {
            "task": settings.name,
            "operator_options": settings.deciding,
            **{key: getattr(options, key) for key in ("prior", "presets", "noise_std", "seed", "evaluations", "looks")},
        },
        "environment": record.environment(),
        "all": dataclasses.asdict(together),
        "images": {name: dataclasses.asdict(one) for name, one in each.items()},
    }
    _json.write(options.out / "calibrate.json", document)


def _table(rows: dict[str, Calibration]) -> str:
    width = max(map(len, rows))
    lines = [f"{'':{width}}{'1 sd':>8}{'2 sd':>8}{'3 sd':>8}{'variance/error':>16}{'correlation':>13}"]
    for name, row in rows.items():
        shares = "".join(f"{100 * share:7.1f}%" for share in row.within)
        lines.append(f"{name:{width}}{shares}{row.ratio:16.2f}{row.correlation:13.2f}")
    return "\n".join(lines)


def _complain(text: str) -> None:
    print(f"rmp-fast calibrate: {text}", file=sys.stderr)
