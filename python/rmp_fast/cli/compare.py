"""``rmp-fast compare``: methods side by side on the same simulated measurements, with the same noise and seeds."""

from __future__ import annotations

import argparse
import csv
import dataclasses
import io
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .. import _json, baselines, images, metrics, priors
from ..operators import Operator
from ..plan import Estimate, Plan
from . import degrade, panel, record
from .chain import from_starts
from .inputs import make_output_folder
from .pictures import Picture, batches, prior_and_files, read_pictures
from .prior import preset
from .tasks import TASKS, Settings, choice, derive_seed, resolve
from .usage import UsageError, check_numbers

__all__ = ["run"]

RMP = "rmp"
EVALUATIONS_OF_RMP = 20
COLUMNS = ("image", "method", "psnr", "ssim", "evaluations", "backward_evaluations", "seconds", "ok")


@dataclasses.dataclass(frozen=True)
class Row:
    """One image restored by one method; ``restoration`` (C, H, W) on [0, 1]."""

    image: str
    method: str
    psnr: float
    ssim: float | None
    evaluations: int
    backward_evaluations: int
    seconds: float
    ok: bool
    restoration: NDArray[np.float32]

    def entry(self) -> dict[str, Any]:
        """What the files say of it."""
        return {name: getattr(self, name) for name in COLUMNS}


def run(options: argparse.Namespace) -> int:
    """Carry out the command and return its exit code: 0, or 1 when an image or a method failed.

    Raises:
        UsageError: before any work, for anything that cannot be carried out as given.
    """
    if options.task is None:
        raise UsageError(f"`--task` must be given, one of {', '.join(TASKS)}")
    choice("--task", options.task, tuple(TASKS))
    options.operator, options.simulate = options.task, True
    settings = resolve(options)
    check_numbers(options, ("samples", "batch_size", "threads"))
    evaluations = _evaluations(options)
    prior, files = prior_and_files(options)
    comparison = Comparison(options, settings, prior, evaluations)
    pictures, failures = read_pictures(files, _complain)
    for shape in dict.fromkeys(picture.pixels.shape for picture in pictures):
        comparison.check(shape, next(p.file.name for p in pictures if p.pixels.shape == shape))
    make_output_folder(options.out)

    rows: list[Row] = []
    for batch in batches(pictures, options.batch_size):
        found, failed = comparison.restore(batch)
        rows += found
        failures += failed
        _write_pictures(comparison, batch, found, options)
    _write_tables(comparison, rows, options)
    if rows:
        print(_table(rows))
    return 1 if failures else 0


class Comparison:
    """The task, the prior and the methods of a run."""

    def __init__(
        self, options: argparse.Namespace, settings: Settings, prior: priors.NetworkPrior, evaluations: dict[str, int]
    ) -> None:
        self.options, self.settings, self.prior = options, settings, prior
        self.methods: dict[str, baselines.Baseline | None] = {}
        self.evaluations: dict[str, int] = {}
        for name in dict.fromkeys(options.methods):
            if name == RMP:
                self.methods[name] = None
                self.evaluations[name] = evaluations.get(name, EVALUATIONS_OF_RMP)
                continue
            try:
                method = baselines.make(
                    name, evaluations=evaluations.get(name), **baselines.paper_settings(name, settings.name)
                )
            except ValueError as error:
                raise UsageError(f"`--methods` {name}: {error}") from error
            self.methods[name], self.evaluations[name] = method, method.evaluations
        if RMP in self.methods:
            self.chain = preset(options.presets, settings, prior, self.evaluations[RMP], options.noise_std)

    def check(self, shape: tuple[int, ...], name: str) -> None:
        """Refuse, before any work, images (C, H, W) that the task, the prior or a method cannot take."""
        try:
            op = degrade.build(self.settings, [name], shape, self.options.seed)
            op.measurement_shape((1, *shape))
            self.prior.check_image_shape((1, *shape))
        except UsageError:
            raise
        except (TypeError, ValueError) as error:
            raise UsageError(f"{name}: {error}") from error
        where = ((1, *shape), torch.device("cpu"), torch.float32)
        for label, method in self.methods.items():
            reason = None if method is None else method.check(op, *where)
            if reason is not None:
                others = ", ".join([RMP, *baselines.usable(op, *where)])
                raise UsageError(
                    f"`--methods` {label} cannot serve {self.settings.name}: {reason}; those that can: {others}"
                )

    def restore(self, batch: Sequence[Picture]) -> tuple[list[Row], int]:
        """The rows of a batch of images of one shape, and how many restorations failed."""
        options, names = self.options, [picture.file.name for picture in batch]
        truths = torch.from_numpy(np.stack([picture.pixels for picture in batch]))
        op = degrade.build(self.settings, names, batch[0].pixels.shape, options.seed)
        measured = degrade.simulate(op, truths, options.noise_std, names, options.seed)
        seeds = torch.tensor([derive_seed(options.seed, "chain", name) for name in names], dtype=torch.int64)
        y = degrade.to_prior_range(op, measured, truths)
        rows = [self._without_prior(op, picture, y01) for picture, y01 in zip(batch, measured.numpy(), strict=True)]
        failures = 0
        for label, method in self.methods.items():
            try:
                estimate = self._best(method, op, y, tuple(truths.shape), seeds)
            except (RuntimeError, ValueError, MemoryError) as cause:
                for picture in batch:
                    _complain(f"{label} could not restore {picture.file}: {cause or type(cause).__name__}")
                failures += len(batch)
                continue
            for index, picture in enumerate(batch):
                rows.append(self._row(label, op, estimate, index, picture))
                if not rows[-1].ok:
                    _complain(f"{label} left the finite range on {picture.file}")
                    failures += 1
        return rows, failures

    def _best(
        self, method: baselines.Baseline | None, op: Operator, y: Tensor, shape: tuple[int, ...], seeds: Tensor
    ) -> Estimate:
        starts = self.settings.options.get("starts", 1)
        return from_starts(op, y, lambda own: self._estimate(method, op, y, shape, own), starts, seeds)

    def _estimate(
        self, method: baselines.Baseline | None, op: Operator, y: Tensor, shape: tuple[int, ...], seeds: Tensor
    ) -> Estimate:
        noise = degrade.noise_to_prior_range(op, self.options.noise_std)
        if method is None:
            return Plan(op, self.prior, shape, noise, **self.chain).execute(y, seeds=seeds)
        samples = self.options.samples
        return baselines.reconstruct_with(method, y, op, self.prior, noise, seeds=seeds, samples=samples, shape=shape)

    def _row(self, label: str, op: Operator, estimate: Estimate, index: int, picture: Picture) -> Row:
        stats, ok = estimate.stats, bool(estimate.ok[index])
        restoration = np.zeros_like(picture.pixels)
        if ok:
            restoration = np.clip((estimate.mean[index].numpy() + 1) / 2, 0, 1).astype(np.float32)
            restoration = degrade.aligned(op, restoration, picture.pixels)
        return Row(
            image=picture.file.name,
            method=label,
            psnr=metrics.psnr(restoration, picture.pixels),
            ssim=metrics.ssim(restoration, picture.pixels),
            evaluations=int(stats["evaluations"]),
            backward_evaluations=int(stats["backward_evaluations"]),
            seconds=stats["seconds"] / estimate.mean.shape[0],
            ok=ok,
            restoration=restoration,
        )

    def _without_prior(self, op: Operator, picture: Picture, measured: NDArray[Any]) -> Row:
        mask = None
        if self.settings.operator == "inpainting":
            mask = degrade.mask_of(self.settings, picture.file.name, picture.pixels.shape, self.options.seed)
        label, image = degrade.baseline(op, measured, picture.pixels.shape, mask)
        image = np.clip(image, 0, 1).astype(np.float32)
        psnr, ssim = metrics.psnr(image, picture.pixels), metrics.ssim(image, picture.pixels)
        return Row(picture.file.name, label, psnr, ssim, 0, 0, 0.0, True, image)


def _evaluations(options: argparse.Namespace) -> dict[str, int]:
    """Evaluations by method, of those that were given any."""
    known = (RMP, *baselines.REGISTRY)
    for name in options.methods:
        choice("--methods", name, known)
    found: dict[str, int] = {}
    own: dict[str, int] = {}
    for word in options.evaluations:
        name, separator, number = word.rpartition("=")
        if not number.isdecimal() or int(number) < 1:
            raise UsageError(f"`--evaluations` must be a whole number >= 1, or METHOD=N, got {word!r}")
        if not separator:
            found = dict.fromkeys(options.methods, int(number))
        elif choice("--evaluations", name, known) not in options.methods:
            raise UsageError(f"`--evaluations` {word} is for a method that `--methods` leaves out")
        else:
            own[name] = int(number)
    return {**found, **own}


def _write_pictures(
    comparison: Comparison, batch: Sequence[Picture], rows: Sequence[Row], options: argparse.Namespace
) -> None:
    for picture in batch:
        tiles = []
        for row in rows:
            if row.image == picture.file.name:
                caption = f"{row.psnr:.2f} dB" + ("" if row.ssim is None else f", SSIM {row.ssim:.3f}")
                budget = f" ({row.evaluations})" if row.evaluations else ""
                tiles.append((row.method + budget, caption, row.restoration))
        parts = (picture.file.name, comparison.settings.name, f"noise {options.noise_std:g}", f"{options.prior} prior")
        title = "  ·  ".join(parts)
        data = panel.sheet([*tiles, ("truth", "", picture.pixels)], title)
        images.write_atomically(options.out / f"{picture.file.stem}_compare.png", data)


def _write_tables(comparison: Comparison, rows: Sequence[Row], options: argparse.Namespace) -> None:
    stream = io.StringIO()
    writer = csv.DictWriter(stream, COLUMNS)
    writer.writeheader()
    writer.writerows(row.entry() for row in rows)
    images.write_atomically(options.out / "compare.csv", stream.getvalue().encode())
    settings = comparison.settings
    document = {
        "settings": {
            "task": settings.name,
            "operator_options": settings.deciding,
            "prior": options.prior,
            "presets": options.presets,
            "noise_std": options.noise_std,
            "seed": options.seed,
            "samples": options.samples,
            "evaluations": comparison.evaluations,
        },
        "environment": record.environment(),
        "means": _means(rows),
        "rows": [row.entry() for row in rows],
    }
    _json.write(options.out / "compare.json", document)


def _means(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Per method, over the images where it stayed finite."""
    found = []
    for method in dict.fromkeys(row.method for row in rows):
        own = [row for row in rows if row.method == method and row.ok]
        if own:
            ssim = [row.ssim for row in own if row.ssim is not None]
            found.append(
                {
                    "method": method,
                    "images": len(own),
                    "psnr": float(np.mean([row.psnr for row in own])),
                    "ssim": float(np.mean(ssim)) if ssim else None,
                    "evaluations": own[0].evaluations,
                    "backward_evaluations": own[0].backward_evaluations,
                    "seconds": float(np.mean([row.seconds for row in own])),
                }
            )
    return found


def _table(rows: Sequence[Row]) -> str:
    lines = [f"{'method':22}{'images':>7}{'PSNR':>8}{'SSIM':>8}{'forward':>9}{'backward':>10}{'s/image':>9}"]
    for mean in _means(rows):
        ssim = "" if mean["ssim"] is None else f"{mean['ssim']:.3f}"
        lines.append(
            f"{mean['method']:22}{mean['images']:7}{mean['psnr']:8.2f}{ssim:>8}{mean['evaluations']:9}"
            f"{mean['backward_evaluations']:10}{mean['seconds']:9.2f}"
        )
    return "\n".join(lines)


def _complain(text: str) -> None:
    print(f"rmp-fast compare: {text}", file=sys.stderr)
