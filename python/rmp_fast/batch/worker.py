"""The process that restores: batches of images in, files and records out, whatever a single image does."""

from __future__ import annotations

import argparse
import copy
import dataclasses
import json
import os
import pathlib
import socket
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from .. import _json, images
from ..cli import record
from ..cli.chain import Chain, Outcome
from ..cli.tasks import Settings, resolve
from ..cli.usage import UsageError
from .cluster import Attempts
from .inputs import Image
from .manifest import SCHEMA, Claim, Row, SupersededError, fingerprint, row_of
from .store import Store, output_name, read_file, sidecar_name

__all__ = ["Job", "Worker", "decide", "failure", "run_settings"]

Shape = tuple[int, int, int]
#: Options that name files of the operator, and with which a row of a manifest may replace them.
OWN_FILES = ("mask", "kernel")


@dataclasses.dataclass(frozen=True)
class Job:
    """What all workers of a run know.

    Attributes:
        options: of the command line, with the backend decided.
        settings: of the run, by :func:`run_settings`.
        settings_hash: theirs.
        device: where plans live.
        claim: on the output folder.
        command: that started the run.
    """

    options: argparse.Namespace
    settings: dict[str, Any]
    settings_hash: str
    device: str
    claim: Claim
    command: str


def own_options(options: argparse.Namespace, image: Image, folder: pathlib.Path) -> argparse.Namespace:
    """The options of one image: those of the run, with the files of its own row in ``folder``.

    Of simulated measurements, seed and noise level are the image's too; others get them when they are restored.
    """
    own = copy.copy(options)
    for key in OWN_FILES:
        url = getattr(image, key)
        if url is not None:
            setattr(own, key, _local(key, url, folder))
    if options.simulate:
        own.seed = image.seed
    if options.simulate or options.noise_std is None:
        own.noise_std = image.noise_std
    return own


def run_settings(settings: Mapping[str, Any], options: argparse.Namespace, collected: Sequence[Image]) -> Row:
    """What all images of a run share of the settings of one of them."""
    operator_options = dict(settings["operator_options"])
    for key in OWN_FILES:
        if any(getattr(image, key) is not None for image in collected):
            operator_options[key] = "of the manifest"
    own = {"operator_options": operator_options, "seed": options.seed, "noise_std": options.noise_std}
    return {**settings, **own}


def decide(options: argparse.Namespace, device: str, candidates: Sequence[tuple[Shape, Image]]) -> dict[str, Any]:
    """Settle what decides the numbers of a run.

    Args:
        options: of the command line.
        device: where plans will live.
        candidates: images and their shapes, of which one is enough that can be restored.

    Returns:
        the settings of the first of them that can be.

    Raises:
        UsageError: none can be; why not the first.
    """
    errors: list[UsageError] = []
    with tempfile.TemporaryDirectory(prefix="rmp-fast-") as name:
        for shape, image in candidates:
            try:
                own = own_options(options, image, pathlib.Path(name))
                chain = Chain(own, resolve(own), device)
                chain.check(shape, image.name)
                return chain.settings
            except UsageError as error:
                errors.append(error)
    raise errors[0]


class Worker:
    """Restores batches; Ray Data makes one in every process of the pool.

    Args:
        job: of the run.
        attempts: that a batch has, because an image may kill the process; None: no limit.
    """

    def __init__(self, job: Job, attempts: Attempts | None = None) -> None:
        self._job, self._attempts = job, attempts
        self._store = Store(job.options.output, "--output")
        self._suffix = images.FORMATS[job.options.format]
        self._chains: dict[tuple[object, ...], tuple[Chain, Settings]] = {}
        self._prior: Any = None
        self._name = f"{socket.gethostname()}/{os.getpid()}"
        self._environment = record.environment()

    def __call__(self, table: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
        """Ray Data's call: for each batch of ``work`` its shape and images, to its rows or what stopped it, in JSON."""
        results = []
        for work in table["work"]:
            shape, listed = json.loads(str(work))
            if self._attempts is not None and not self._attempts.allowed(str(work)):
                results.append(json.dumps({"died": True}))
                continue
            try:
                result: dict[str, Any] = {"rows": self.restore(tuple(shape), [Image(**fields) for fields in listed])}
            except SupersededError as error:
                result = {"superseded": str(error)}
            except Exception as error:  # as a result, because Ray Data drops what raises without saying why
                result = {"lost": {fields["name"]: _text(error) for fields in listed}}
            results.append(json.dumps(result))
        return {"result": results}

    def restore(self, shape: Shape, batch: Sequence[Image]) -> list[Row]:
        """Restore images of one shape that share an operator, and write their files and records.

        Returns:
            a row of the manifest for each image.

        Raises:
            SupersededError: another run has started in the output folder.
            OSError: it cannot be written.
        """
        self._job.claim.check(self._store)
        started = record.now()
        rows, readable = [], []
        for image in batch:
            digest = None
            try:
                data = read_file(image.url)
                digest = record.digest(data)
                picture = images.read(data)
                if picture.pixels.shape != shape:
                    raise images.ImageError(f"its shape changed from {shape} to {picture.pixels.shape} during the run")
                if picture.depth == 16 and self._job.options.format not in images.DEEP_FORMATS:
                    raise images.ImageError(
                        f"`--format` {self._job.options.format} cannot hold its 16 bit; use png or tiff"
                    )
                readable.append((image, picture, digest))
            except Exception as error:  # file systems, too, have exceptions of their own
                rows.append(self._fail(image, digest, _text(error), started))
        return rows + (self._attempt(readable, started) if readable else [])

    def _attempt(self, batch: list[tuple[Image, images.ImageFile, str]], started: str) -> list[Row]:
        """Restore a batch; one that fails is halved, so that only the image that is to blame is lost."""
        listed = [image for image, _, _ in batch]
        names = [image.file_name for image in listed]
        try:
            chain, task = self._chain(listed[0])
            own: dict[str, Any] = {}
            if not self._job.options.simulate:
                own = {"seeds": [i.seed for i in listed], "noise_std": [i.noise_std for i in listed]}
            outcomes = chain.restore([picture for _, picture, _ in batch], names, **own)
        except torch.AcceleratorError:
            os._exit(1)  # the device fails this process from now on; Ray starts another, and counts the attempts
        except Exception as error:
            if len(batch) > 1:
                middle = len(batch) // 2
                return self._attempt(batch[:middle], started) + self._attempt(batch[middle:], started)
            image, _, digest = batch[0]
            return [self._fail(image, digest, _text(error), started)]
        return [self._write(index, batch, outcome, task, started) for index, outcome in enumerate(outcomes)]

    def _chain(self, image: Image) -> tuple[Chain, Settings]:
        """The chain for an image's operator: the last one, if it fits."""
        options = self._job.options
        key: tuple[object, ...] = (image.mask, image.kernel)
        if options.simulate:
            key += image.seed, image.noise_std
        if key not in self._chains:
            # For the moment of reading: Ray ends its workers without giving them one to clean up.
            with tempfile.TemporaryDirectory(prefix="rmp-fast-") as name:
                own = own_options(options, image, pathlib.Path(name))
                task = resolve(own)
            self._chains.clear()  # frees its plan before the next takes memory
            chain = Chain(own, task, self._job.device, self._prior)
            self._prior = chain.prior
            self._chains[key] = chain, task
        return self._chains[key]

    def _write(
        self,
        index: int,
        batch: Sequence[tuple[Image, images.ImageFile, str]],
        outcome: Outcome,
        task: Settings,
        started: str,
    ) -> Row:
        image, picture, digest = batch[index]
        if not outcome.ok:
            return self._fail(image, digest, "its estimate left the finite range", started)
        options = self._job.options
        try:
            data = images.encode(outcome.restoration, picture.depth, options.format, picture.icc_profile)
        except Exception as error:  # a colour profile, say, that the format has no room for
            return self._fail(image, digest, _text(error), started)
        target = output_name(image.name, self._suffix)
        entry = _entry(self._job, image, digest, started, self._name)
        settings = entry["settings"] | {"operator_options": task.deciding}
        entry |= {
            "status": "restored",
            "settings": settings,
            "settings_hash": record.settings_hash(settings),
            "option_files": {
                key: {"file": getattr(image, key) or str(task.options[key]), "sha256": value}
                for key, value in task.digests.items()
            },
            "seeds": outcome.seeds,
            "batch": {"size": len(batch), "index": index, "inputs": [other.url for other, _, _ in batch]},
            "quality": outcome.quality,
            "environment": self._environment,
            "output": {"file": target, "sha256": record.digest(data), "shape": outcome.restoration.shape,
                       "depth": picture.depth, "format": options.format},
        }  # fmt: skip
        entry["input"] |= {"shape": picture.pixels.shape, "depth": picture.depth, "notes": picture.notes}
        entry["timing"] |= outcome.stats
        self._job.claim.check(self._store)
        # A record of an earlier content must not vouch for a picture that is being replaced.
        self._store.remove(sidecar_name(image.name))
        self._store.write(target, data)
        return _record(self._store, entry)

    def _fail(self, image: Image, digest: str | None, error: str, started: str) -> Row:
        return failure(self._store, self._job, image, error, digest, started, self._name)


def failure(
    store: Store,
    job: Job,
    image: Image,
    error: str,
    digest: str | None = None,
    started: str | None = None,
    worker: str | None = None,
) -> Row:
    """Record that an image could not be restored, and remove what an earlier run may have made of it.

    Returns:
        its row of the manifest.
    """
    job.claim.check(store)
    entry = _entry(job, image, digest, started or record.now(), worker) | {"status": "failed", "error": error}
    store.remove(sidecar_name(image.name))
    store.remove(output_name(image.name, images.FORMATS[job.options.format]))
    return _record(store, entry)


def _entry(job: Job, image: Image, digest: str | None, started: str, worker: str | None) -> dict[str, Any]:
    """A record with all its keys, for an image of which nothing else is known."""
    settings = {**job.settings, "seed": image.seed, "noise_std": image.noise_std}
    return {
        "schema": record.SCHEMA,
        "batch_schema": SCHEMA,
        "name": image.name,
        "status": None,
        "error": None,
        "fingerprint": fingerprint(image, job.settings_hash),
        "command": job.command,
        "settings": settings,
        "settings_hash": record.settings_hash(settings),
        "option_files": {},
        "input": {"file": image.url, "sha256": digest},
        "seeds": None,
        "batch": None,
        "quality": None,
        "timing": {"started": started},
        "worker": worker,
        "environment": None,
        "output": None,
    }


def _text(error: Exception) -> str:
    """What a row says of an error: its message, with its kind where that alone says little."""
    told = isinstance(error, images.ImageError | UsageError | OSError | RuntimeError | TypeError | ValueError)
    return str(error) if told and str(error) else f"{type(error).__name__}: {error}".removesuffix(": ")


def _record(store: Store, entry: dict[str, Any]) -> Row:
    store.write(sidecar_name(entry["name"]), _json.encode(entry))
    return row_of(entry)


def _local(key: str, url: str, folder: pathlib.Path) -> pathlib.Path:
    """A file of any file system as one of this machine."""
    source = Store(url, f"--{key}")
    if source.local:
        return pathlib.Path(source.root)
    target = folder / f"{record.digest(url.encode())}{pathlib.PurePosixPath(source.root).suffix}"
    if not target.exists():
        try:
            images.write_atomically(target, read_file(url))
        except OSError as cause:
            raise UsageError(f"`--{key}` {url} cannot be read: {cause.strerror or cause}") from cause
    return target
