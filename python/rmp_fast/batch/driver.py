"""A batch from its options to its manifest: what is there, what is missing, and workers for that."""

from __future__ import annotations

import argparse
import contextlib
import copy
import dataclasses
import itertools
import json
import os
import pathlib
import shlex
import sys
import tempfile
import time
import uuid
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from PIL.Image import DecompressionBombWarning

from .. import __version__, images
from .._checks import check_choice
from ..cli import record
from ..cli.reconstruct import default_batch
from ..cli.tasks import FILES, TASKS, choice, resolve
from ..cli.usage import UsageError, check_numbers
from ..priors import BUNDLED
from . import cluster
from .inputs import Image, collect
from .manifest import MANIFEST, Records, Row, SupersededError, claim, fingerprint
from .store import PARALLEL, Store, open_file, output_name

if TYPE_CHECKING:
    from .worker import Job, Shape

__all__ = ["Summary", "restore", "run"]

T = TypeVar("T")

PATHS = (*FILES, "presets")  # options that name files
SECONDS_BETWEEN_MANIFESTS = 60.0
SAMPLE = 256  # images that are looked at for the settings of the run,
CANDIDATES = 16  # and how many different ones of them are tried
RETRIES = 2  # of a batch whose worker died: a machine may go away, but an image that kills workers must not stop all


@dataclasses.dataclass(frozen=True)
class Summary:
    """What a run did.

    Attributes:
        images: in the input.
        restored: of them by this run.
        finished_before: by earlier ones.
        failed: name and error of each that could not be restored.
        psnr: mean over the restored images before and after, in dB, if they were simulated.
        manifest: where the table of all images is.
    """

    images: int
    restored: int
    finished_before: int
    failed: dict[str, str]
    psnr: tuple[float, float] | None
    manifest: str

    def __str__(self) -> str:
        parts = [f"{self.restored + self.finished_before} restored"]
        if self.finished_before:
            parts[0] += f" ({self.finished_before} before)"
        if self.failed:
            parts.append(f"{len(self.failed)} failed")
        text = f"{self.images} images: {', '.join(parts)}"
        if self.psnr is not None:
            text += f"; mean PSNR {self.psnr[0]:.2f} → {self.psnr[1]:.2f} dB"
        return f"{text}; {self.manifest}"


class Watcher:
    """Hears of a run's progress; this one says nothing."""

    def begin(self, total: int, finished: int) -> None:
        """Of ``total`` images so many were finished before."""

    def row(self, row: Row) -> None:
        """An image is restored or has failed."""

    def note(self, text: str) -> None:
        """Something that a user may want to know."""


def restore(input: str | os.PathLike[str], output: str | os.PathLike[str], **options: Any) -> Summary:
    """Restore a folder or a manifest of images with Ray: ``rmp-fast batch`` as a function.

    Args:
        input: folder or .parquet manifest, a path or any URL that fsspec knows.
        output: folder for the results.
        **options: of the command, by their names with underscores: ``operator="sr4"``, ``noise_std=0.05``.

    Raises:
        TypeError: for an unknown option, with the nearest names.
        ValueError: before any work, for anything that cannot be carried out as given.
    """
    ends = {"input": os.fspath(input), "output": os.fspath(output)}
    return run(options_of({**options, **ends}), Watcher())


def options_of(values: Mapping[str, Any]) -> argparse.Namespace:
    """The options of the command, those in ``values`` replaced; TypeError for a name that is none of them."""
    from ..cli import build_parser

    given = build_parser().parse_args(["batch"])
    for name, value in values.items():
        try:
            check_choice("option", name, sorted(vars(given).keys() - {"command"}))
        except ValueError as error:
            raise TypeError(str(error)) from error
        if name in PATHS and value is not None:
            value = pathlib.Path(value)
        elif isinstance(getattr(given, name), str):
            value = "none" if value is None else str(value)  # as the command line has it: --tile 256, --tile none
        setattr(given, name, value)
    return given


def run(options: argparse.Namespace, watcher: Watcher) -> Summary:
    """Carry out ``rmp-fast batch``.

    Args:
        options: of its parser.
        watcher: hears of progress.

    Raises:
        UsageError: before any work, for anything that cannot be carried out as given.
    """
    _check(options)
    cluster.check_installed()
    output = Store(options.output, "--output")
    collected = collect(options.input, options.seed, options.noise_std, output)
    _check_operator(options, collected)
    files = output.files()
    records = Records(output, files)
    cpus = _processors(options)
    with contextlib.ExitStack() as stack:
        if options.address is not None:
            cpus, gpus = stack.enter_context(cluster.connect(options.address, cpus))
            stack.enter_context(cluster.watch_head(watcher.note))
        else:
            gpus = _gpus() if options.device != "cpu" else 0
        device = cluster.devices(options.device, gpus)
        pool = cluster.Pool(device, cpus, gpus, options.workers, options.threads)
        if options.address is not None:
            cluster.check_threads(pool)
            cluster.check_versions(__version__)
        options = _absolute(options, output, pool.threads)
        if options.address is not None:
            _check_shared(output, options.input)
        job = _job(options, device, collected, records, files)
        wanted = {image.name: fingerprint(image, job.settings_hash) for image in collected}
        todo = [image for image in collected if not records.is_finished(image.name, wanted[image.name])]
        # Where an input is gone, what was made of it may be all that there is.
        kept = {image.name for image in todo if image.version is None and records.is_restored(image.name)}
        todo = [image for image in todo if image.name not in kept]
        watcher.begin(len(collected), len(collected) - len(todo))
        output.sweep()
        suffix = images.FORMATS[options.format]
        records.forget({image.name: output_name(image.name, suffix) for image in todo})
        clerk = _Clerk(job, output, records, watcher, {image.name: image for image in todo}, kept)
        works = _works(options, _readable(clerk, todo, options.max_pixels))
        if works and options.address is None:
            stack.enter_context(cluster.connect(None, cpus))
        _work(clerk, works, pool, wanted)
    job.claim.check(output)
    records.write()
    if works:
        output.sweep()  # what a worker that died was writing
    return clerk.summary(collected)


def _check_shared(output: Store, source: str) -> None:
    """Refuse an output folder that cannot be written, or folders that are not the same on all machines."""
    name, text = f".{uuid.uuid4().hex}.part", uuid.uuid4().hex  # which a later run sweeps, should this one be killed
    try:
        output.write(name, text.encode())
    except OSError as cause:
        raise UsageError(f"`--output` {output.url} cannot be written: {cause.strerror or cause}") from cause
    try:
        cluster.check_folders(f"{output.absolute}/{name}", text, source)
    finally:
        output.remove(name)


class _Clerk:
    """Keeps the rows of a run as they come in."""

    def __init__(
        self, job: Job, output: Store, records: Records, watcher: Watcher, todo: dict[str, Image], kept: Set[str]
    ) -> None:  # fmt: skip
        self.job, self.output, self.records, self.watcher, self.kept = job, output, records, watcher, kept
        self.open = dict(todo)
        self._todo = len(todo)
        self._written = time.monotonic()

    def add(self, rows: Iterable[Row]) -> None:
        """Enter rows, and now and then replace the manifest."""
        for row in rows:
            if self.open.pop(row["name"], None) is None:
                continue  # a batch that was tried twice and finished twice
            self.records.rows[row["name"]] = row
            self.watcher.row(row)
        if time.monotonic() - self._written > SECONDS_BETWEEN_MANIFESTS:
            self.job.claim.check(self.output)
            self.records.write()
            self._written = time.monotonic()

    def fail(self, image: Image, error: str) -> None:
        """Enter that an image cannot be restored."""
        from .worker import failure

        self.add([failure(self.output, self.job, image, error)])

    def summary(self, collected: Sequence[Image]) -> Summary:
        """Of the images of the input."""
        rows = [self.records.rows[image.name] for image in collected]
        failed = {row["name"]: row["error"] for row in rows if row["status"] == "failed"}
        scored = [(row["psnr_before"], row["psnr"]) for row in rows if row["psnr"] is not None]
        psnr = (float(np.mean([a for a, _ in scored])), float(np.mean([b for _, b in scored]))) if scored else None
        restored = self._todo - len(failed)
        before = len(collected) - self._todo - len(self.kept)
        failed |= dict.fromkeys(self.kept, "does not exist; its earlier restoration is kept")
        return Summary(len(collected), restored, before, failed, psnr, self.output.path(MANIFEST))


def _check(options: argparse.Namespace) -> None:
    """What can be refused before anything is opened."""
    for name in ("input", "output"):
        if not getattr(options, name):
            raise UsageError(
                f"`--{name}` must be given: the folder {'to restore' if name == 'input' else 'of results'}"
            )
    choice("--device", options.device, ("auto", "cpu", "cuda"))
    choice("--format", options.format, tuple(images.FORMATS))
    numbers = copy.copy(options)
    if numbers.noise_std is None:
        numbers.noise_std = 0.0  # the images may have their own; collect() sees to it
    if not -(2**63) <= options.seed < 2**63:
        raise UsageError(f"`--seed` must be on [-2^63, 2^63), which the manifest can hold, got {options.seed}")
    check_numbers(numbers, ("evaluations", "inner_steps", "batch_size", "threads", "workers", "max_pixels"))


def _check_operator(options: argparse.Namespace, collected: Sequence[Image]) -> None:
    """Refuse options of the operator that do not fit it, or the files that rows bring, which are not read here."""
    patterns = dict.fromkeys((image.mask is not None, image.kernel is not None) for image in collected)
    with tempfile.TemporaryDirectory(prefix="rmp-fast-") as name:
        some_file = pathlib.Path(name) / "some.npy"
        np.save(some_file, np.ones((1, 1)))
        for has_mask, has_kernel in patterns:
            own = copy.copy(options)
            own.mask = some_file if has_mask else options.mask
            own.kernel = some_file if has_kernel else options.kernel
            task = resolve(own)
    if TASKS[task.name].arrays and not options.simulate:
        raise UsageError(
            f"`--operator` {task.name} takes measurements that are .npy arrays, and `rmp-fast batch` reads pictures; "
            "use `rmp-fast reconstruct`, or --simulate"
        )


def _processors(options: argparse.Namespace) -> int:
    """Processors of this machine that this process may use, or as many as the user asks for."""
    return max(len(os.sched_getaffinity(0)), (options.workers or 1) * (options.threads or 1))


def _gpus() -> int:
    import torch

    return torch.cuda.device_count()


def _absolute(options: argparse.Namespace, output: Store, threads: int) -> argparse.Namespace:
    """The options as workers elsewhere can use them."""
    options = copy.copy(options)
    # The folder knows its input by this name: the same relative path is another input elsewhere.
    options.input = Store(options.input, "--input").absolute
    options.output = output.absolute
    options.threads = threads
    for key in PATHS:
        if getattr(options, key) is not None:
            setattr(options, key, getattr(options, key).resolve())
    if options.prior not in BUNDLED and pathlib.Path(options.prior).exists():
        options.prior = str(pathlib.Path(options.prior).resolve())
    return options


def _job(
    options: argparse.Namespace, device: str, collected: Sequence[Image], records: Records, files: Mapping[str, str]
) -> Job:
    """Decide the run's settings by a few of its images, and take the output folder for it."""
    from . import worker

    sample = collected[:: -(-len(collected) // SAMPLE)]
    candidates: dict[object, tuple[Shape, Image]] = {}
    errors = []
    for image, header in _headers(sample):
        if isinstance(header, str):
            errors.append(f"{image.name}: {header}")
        else:
            candidates.setdefault((header.shape, image.mask, image.kernel), (header.shape, image))
    if not candidates:
        raise UsageError(f"no image of {len(sample)} can be read; {errors[0]}")
    tried = list(candidates.values())[:CANDIDATES]
    if options.address is None:
        found = worker.decide(options, device, tried)
    else:
        found = cluster.run_once(worker.decide, int(device == "cuda"), options, device, tried)
    settings = worker.run_settings(found, options, collected)
    decided = copy.copy(options)
    decided.backend = settings["backend"]
    command = shlex.join(["rmp-fast", *sys.argv[1:]])
    held = claim(records.store, files, options.input, settings, command, options.force)
    return worker.Job(decided, settings, record.settings_hash(settings), device, held, command)


def _headers(listed: Iterable[Image]) -> Iterator[tuple[Image, images.ImageHeader | str]]:
    """For each image what its header says, or what is wrong with it."""

    def header(image: Image) -> images.ImageHeader | str:
        if image.version is None:
            return "does not exist"
        try:
            with open_file(image.url) as file:
                return images.probe(file)
        except (images.ImageError, OSError) as error:
            return str(error)

    with ThreadPoolExecutor(PARALLEL) as pool:
        for part in _parts(listed, 1024):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DecompressionBombWarning)  # --max-pixels decides
                found = list(pool.map(header, part))
            yield from zip(part, found, strict=True)


def _readable(clerk: _Clerk, todo: Iterable[Image], max_pixels: int) -> Iterator[tuple[Image, Shape]]:
    """The images whose header promises pixels, and their shapes; the others are entered as failed."""
    for image, header in _headers(todo):
        if isinstance(header, str):
            clerk.fail(image, header)
        elif header.shape[1] * header.shape[2] > max_pixels:
            size = f"{header.shape[2]} x {header.shape[1]}"
            clerk.fail(image, f"its {size} pixels are more than `--max-pixels` {max_pixels}")
        else:
            yield image, header.shape


def _works(options: argparse.Namespace, readable: Iterable[tuple[Image, Shape]]) -> list[str]:
    """Batches of images that share a plan, as text for the workers."""

    def plan_of(item: tuple[Image, Shape]) -> tuple[object, ...]:
        image, shape = item
        own = (image.seed, image.noise_std) if options.simulate else ()
        return shape, image.mask or "", image.kernel or "", own

    works = []
    ordered = sorted(readable, key=lambda item: (*plan_of(item), item[0].name))
    for _, group in itertools.groupby(ordered, key=plan_of):
        alike = list(group)
        shape = alike[0][1]
        for part in _parts(alike, options.batch_size or default_batch(shape)):
            works.append(_work_text(shape, [image for image, _ in part]))
    return works


def _parts(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Lists of ``size`` items, the last one shorter."""
    iterator = iter(items)
    while part := list(itertools.islice(iterator, size)):
        yield part


def _work_text(shape: object, listed: Iterable[Image]) -> str:
    return json.dumps([shape, [dataclasses.asdict(image) for image in listed]])


def _work(clerk: _Clerk, works: list[str], pool: cluster.Pool, wanted: Mapping[str, str]) -> None:
    """Have all batches restored; what a dead worker held is tried again image by image: one costs only itself."""
    if not works:
        return
    _gather(clerk, works, pool, RETRIES)
    rows = clerk.records.reread(clerk.open)
    clerk.add(row for row in rows if row["fingerprint"] == wanted[row["name"]])
    if clerk.open:
        alone = [
            _work_text(shape, [Image(**fields)])
            for shape, listed in map(json.loads, works)
            for fields in listed
            if fields["name"] in clerk.open
        ]
        clerk.watcher.note(f"a worker process died; its {len(alone)} images are tried one by one")
        _gather(clerk, alone, pool, 0)
    for image in list(clerk.open.values()):
        clerk.fail(
            image, "its worker process died, perhaps for want of memory; try a smaller --batch-size or --workers"
        )


def _gather(clerk: _Clerk, works: Sequence[str], pool: cluster.Pool, retries: int) -> None:
    from .worker import Worker

    for text in cluster.feed(Worker, clerk.job, works, pool, retries):
        result = json.loads(text)
        if "superseded" in result:
            raise SupersededError(result["superseded"])
        clerk.add(result.get("rows", ()))
        for name, error in result.get("lost", {}).items():
            if name in clerk.open:
                clerk.fail(clerk.open[name], error)
