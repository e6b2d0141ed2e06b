"""``rmp-fast reconstruct``: from image files to image files, in batches, each on disk as soon as it is finished."""

from __future__ import annotations

import argparse
import dataclasses
import functools
import itertools
import os
import pathlib
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from .. import _json, images
from . import record
from .arrays import ArrayFile, read_array
from .inputs import (
    ARRAYS,
    PICTURES,
    check_name,
    check_outputs,
    collect_inputs,
    make_output_folder,
    output_names,
    refuse_strangers,
)
from .tasks import TASKS, choice, resolve
from .usage import UsageError, check_numbers, silence_stdout

if TYPE_CHECKING:
    from .chain import Chain, Outcome

__all__ = ["default_batch", "run"]

LARGEST_BATCH = 16
PIXELS_PER_BATCH = 2**17  # larger batches gain nothing on a processor, and delay the first finished image


@dataclasses.dataclass(frozen=True)
class Job:
    """An image to restore."""

    file: pathlib.Path
    sha256: str
    shape: tuple[int, ...]  # (C, H, W) of the file, or that of an array
    depth: int


class Reporter:
    """What the user sees: results on stdout, everything else on stderr; the progress bar only on a terminal."""

    def __init__(self, total: int, quiet: bool) -> None:
        self.quiet = quiet
        self.failures = 0
        self._heard = sys.stdout is not None
        self.bar = tqdm(total=total, unit="image", disable=True if quiet else None, file=sys.stderr)

    def result(self, text: str) -> None:
        if not self.quiet and self._heard:
            try:
                self.bar.write(text, file=sys.stdout)
                sys.stdout.flush()
            except OSError:  # nobody listens any more; the results are files
                self._heard = False
                silence_stdout()

    def note(self, text: str) -> None:
        if not self.quiet:
            self.bar.write(text, file=sys.stderr)

    def failure(self, text: str) -> None:
        self.failures += 1
        self.bar.write(f"rmp-fast reconstruct: {text}", file=sys.stderr)
        self.bar.update()


def run(options: argparse.Namespace) -> int:
    """Carry out the command and return its exit code: 0, or 1 when an image could not be restored.

    Raises:
        UsageError: before any work, for anything that cannot be carried out as given.
    """
    settings = resolve(options)
    check_numbers(options, ("evaluations", "inner_steps", "batch_size", "threads"))
    suffix = images.FORMATS[choice("--format", options.format, tuple(images.FORMATS))]
    arrays = TASKS[settings.name].arrays and not options.simulate
    probe: Callable[[pathlib.Path], images.ImageHeader | ArrayFile] = images.probe
    read: Callable[[pathlib.Path], images.ImageFile | ArrayFile] = images.read
    if arrays:
        probe = read = functools.partial(read_array, operator=settings.operator)
    files = collect_inputs(options.inputs, kinds=ARRAYS if arrays else PICTURES)
    if options.out is None:
        raise UsageError("`--out` must be given: the folder for the results")
    check_outputs(files, options.inputs, options.out, suffix)
    refuse_strangers(files, options.out, suffix, options.force)
    jobs, unreadable = _probe(files, probe)
    if options.format not in images.DEEP_FORMATS:
        for job in jobs:
            if job.depth == 16:
                raise UsageError(f"`--format` {options.format} cannot hold the 16 bit of {job.file}; use png or tiff")

    # torch is imported here, after everything that can be refused without it.
    from .chain import Chain

    chain = Chain(options, settings)
    for shape, group in itertools.groupby(jobs, key=lambda job: job.shape):
        chain.check(shape, next(group).file.name)
    make_output_folder(options.out)

    reporter = Reporter(len(files), options.quiet)
    for error in unreadable:
        reporter.failure(f"skipped {error}")
    gains: list[tuple[float, float]] = []
    for batch in _batches(_unfinished(jobs, chain, options, suffix, reporter, read), options.batch_size):
        gains += _restore(batch, chain, options, suffix, reporter)
    reporter.bar.close()
    if len(gains) > 1:
        before, after = (sum(values) / len(gains) for values in zip(*gains, strict=True))
        reporter.result(f"mean of {len(gains)} images: {before:.2f} → {after:.2f} dB")
    return 1 if reporter.failures else 0


def _probe(
    files: Sequence[pathlib.Path], probe: Callable[[pathlib.Path], images.ImageHeader | ArrayFile]
) -> tuple[list[Job], list[images.ImageError]]:
    """The readable files as jobs, those of one shape together, and what is wrong with the others."""
    jobs, errors = [], []
    for file in files:
        try:
            check_name(file)
            header = probe(file)
            jobs.append(Job(file, record.digest(file.read_bytes()), header.shape, header.depth))
        except images.ImageError as error:
            errors.append(error)
        except OSError as cause:
            errors.append(images.ImageError(f"{file}: cannot be read: {cause.strerror or cause}"))
    return sorted(jobs, key=lambda job: (job.shape, job.file.name)), errors


def _unfinished(
    jobs: Sequence[Job], chain: Chain, options: argparse.Namespace, suffix: str, reporter: Reporter,
    read: Callable[[pathlib.Path], images.ImageFile | ArrayFile],
) -> Iterator[tuple[Job, images.ImageFile | ArrayFile]]:  # fmt: skip
    """Decode what is not on disk yet; a file that turns out to be damaged is reported and left out."""
    skipped = 0
    for job in jobs:
        sidecar = options.out / output_names(job.file, suffix)[2]
        if not options.force and record.is_finished(sidecar, chain.settings_hash, job.sha256, not options.no_panel):
            skipped += 1
            reporter.bar.update()
            continue
        try:
            image = read(job.file)
        except images.ImageError as error:
            reporter.failure(f"skipped {error}")
            continue
        for note in image.notes:
            reporter.note(f"{job.file}: {note}")
        yield dataclasses.replace(job, shape=image.pixels.shape), image
    if skipped:
        reporter.note(f"{skipped} finished before and skipped; --force does them again")


def default_batch(shape: Sequence[int]) -> int:
    """How many images (C, H, W) are restored at a time where nobody says."""
    return max(1, min(LARGEST_BATCH, PIXELS_PER_BATCH // (shape[-2] * shape[-1])))


def _batches(
    decoded: Iterator[tuple[Job, images.ImageFile | ArrayFile]], batch_size: int | None
) -> Iterator[list[tuple[Job, images.ImageFile | ArrayFile]]]:
    """Runs of images of one shape, at most ``batch_size`` long (by default as many as fit in PIXELS_PER_BATCH)."""
    batch: list[tuple[Job, images.ImageFile | ArrayFile]] = []
    for job, image in decoded:
        if batch and job.shape != batch[0][0].shape:
            yield batch
            batch = []
        batch.append((job, image))
        if len(batch) >= (batch_size or default_batch(job.shape)):
            yield batch
            batch = []
    if batch:
        yield batch


def _restore(
    batch: list[tuple[Job, images.ImageFile | ArrayFile]],
    chain: Chain,
    options: argparse.Namespace,
    suffix: str,
    reporter: Reporter,
) -> list[tuple[float, float]]:
    """Restore a batch and write its files; returns PSNR of baseline and restoration of those with a truth."""
    started = record.now()
    jobs = [job for job, _ in batch]
    try:
        outcomes = chain.restore([image for _, image in batch], [job.file.name for job in jobs])
    except (RuntimeError, ValueError, MemoryError) as cause:
        for job in jobs:
            reporter.failure(f"{job.file} could not be restored: {cause or type(cause).__name__}")
        return []
    command = record.command([job.file for job in jobs], chain.decided(len(jobs)))
    environment = record.environment()
    gains = []
    for index, (job, outcome) in enumerate(zip(jobs, outcomes, strict=True)):
        if not outcome.ok:
            reporter.failure(
                f"{job.file} could not be restored: its estimate left the finite range; nothing was written"
            )
            continue
        membership = {"size": len(jobs), "index": index, "inputs": [str(other.file) for other in jobs]}
        entry = {
            "schema": record.SCHEMA,
            "command": command,
            "working_directory": os.getcwd(),
            "settings": chain.settings,
            "settings_hash": chain.settings_hash,
            "option_files": chain.option_files,
            "input": {"file": str(job.file), "sha256": job.sha256, "shape": job.shape, "depth": job.depth,
                      "notes": batch[index][1].notes},
            "seeds": outcome.seeds,
            "batch": membership,
            "quality": outcome.quality,
            "timing": {"started": started, **outcome.stats},
            "environment": environment,
        }  # fmt: skip
        try:
            _write(job, batch[index][1], outcome, entry, options, suffix, chain.title)
        except (OSError, ValueError) as cause:  # the latter of a format that has no room for such an image
            reporter.failure(f"{job.file}: its results cannot be written: {getattr(cause, 'strerror', None) or cause}")
            continue
        reporter.bar.update()
        reporter.result(f"{job.file.name}: {_summary(outcome)}")
        if outcome.quality is not None:
            gains.append((outcome.quality["baseline"]["psnr"], outcome.quality["restoration"]["psnr"]))
    return gains


def _write(
    job: Job,
    image: images.ImageFile | ArrayFile,
    outcome: Outcome,
    entry: dict[str, Any],
    options: argparse.Namespace,
    suffix: str,
    title: str,
) -> None:
    picture, panel, sidecar = (options.out / name for name in output_names(job.file, suffix))
    # A sidecar of other settings must not vouch for a half-replaced set of files; this one says whose they are.
    _json.write(sidecar, entry | {"output": None, "panel": None})
    data = images.write(picture, outcome.restoration, job.depth, options.format, image.icc_profile)
    entry["output"] = {"file": picture.name, "sha256": record.digest(data), "shape": outcome.restoration.shape,
                       "depth": job.depth, "format": options.format}  # fmt: skip
    entry["panel"] = None
    if not options.no_panel:
        from .panel import render

        title = f"{job.file.name}  ·  {title}"
        data = render(outcome.measurement, outcome.scored, outcome.truth, title, outcome.captions)
        images.write_atomically(panel, data)
        entry["panel"] = {"file": panel.name, "sha256": record.digest(data)}
    _json.write(sidecar, entry)


def _summary(outcome: Outcome) -> str:
    seconds = f"{outcome.stats['seconds_per_image']:.1f} s"
    if outcome.quality is None:
        return f"restored in {seconds}"
    before, after = outcome.quality["baseline"], outcome.quality["restoration"]
    text = f"PSNR {before['psnr']:.2f} → {after['psnr']:.2f} dB"
    if after["ssim"] is not None:
        text += f", SSIM {before['ssim']:.3f} → {after['ssim']:.3f}"
    return f"{text} ({seconds}; before: {before['name']})"
