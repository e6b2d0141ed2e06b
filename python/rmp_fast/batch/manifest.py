"""The memory of a batch: one record per image beside its restoration, and the manifest that gathers them.

A record (JSON) is written after its picture and says that it is whole, or why there is none. ``manifest.parquet`` has a
row for every record. It is replaced as a whole now and then; before any image is done again its row leaves the
manifest, so that a row never vouches for a picture that may have changed since.
"""

from __future__ import annotations

import dataclasses
import io
import json
import uuid
from collections.abc import Iterable, Mapping
from typing import Any

from .. import _json
from ..cli import record
from ..cli.usage import UsageError
from .inputs import Image
from .store import Store, is_image, sidecar_name

__all__ = ["Records", "SupersededError", "claim", "fingerprint", "row_of"]

MANIFEST = "manifest.parquet"
RUN = "batch.json"
SCHEMA = 1
LONGEST_SHOWN = 120  # characters of a value in a message; a URL should fit

#: Columns of the manifest and their types in Arrow.
ROW = {
    "name": "string",
    "input": "string",
    "status": "string",  # "restored" or "failed"
    "error": "string",
    "output": "string",
    "seed": "int64",
    "noise_std": "float64",
    "settings_hash": "string",
    "fingerprint": "string",
    "input_sha256": "string",
    "output_sha256": "string",
    "channels": "int64",
    "height": "int64",
    "width": "int64",
    "psnr_before": "float64",
    "psnr": "float64",
    "ssim": "float64",
    "seconds": "float64",
    "evaluations": "int64",
    "batch_size": "int64",
    "started": "string",
    "worker": "string",
}
Row = dict[str, Any]


class SupersededError(RuntimeError):
    """Another run has taken the output folder over."""


def fingerprint(image: Image, settings_hash: str) -> str:
    """Hash of all that decides an image's result, as far as it is known before any file is opened."""
    own = [image.version, image.seed, image.noise_std, image.mask, image.kernel, *image.own_versions]
    return record.digest(json.dumps([settings_hash, *own]).encode())


def row_of(entry: Mapping[str, Any]) -> Row:
    """The manifest's row for a record."""
    quality, output = entry["quality"] or {}, entry["output"] or {}
    restoration, timing = quality.get("restoration", {}), entry["timing"]
    shape = output.get("shape") or [None] * 3
    return {
        "name": entry["name"],
        "input": entry["input"]["file"],
        "status": entry["status"],
        "error": entry["error"],
        "output": output.get("file"),
        "seed": entry["settings"]["seed"],
        "noise_std": entry["settings"]["noise_std"],
        "settings_hash": entry["settings_hash"],
        "fingerprint": entry["fingerprint"],
        "input_sha256": entry["input"]["sha256"],
        "output_sha256": output.get("sha256"),
        **dict(zip(("channels", "height", "width"), shape, strict=True)),
        "psnr_before": quality.get("baseline", {}).get("psnr"),
        "psnr": restoration.get("psnr"),
        "ssim": restoration.get("ssim"),
        "seconds": timing.get("seconds_per_image"),
        "evaluations": timing.get("evaluations"),
        "batch_size": (entry["batch"] or {}).get("size"),
        "started": timing["started"],
        "worker": entry["worker"],
    }


class Records:
    """The rows of an output folder.

    Args:
        store: the folder.
        files: what lies in it, by :meth:`Store.files`.
    """

    def __init__(self, store: Store, files: Mapping[str, str]) -> None:
        self.store = store
        self._files = files
        self.rows: dict[str, Row] = self._read_manifest() if MANIFEST in files else {}
        unknown = [
            name
            for name in files
            if name.endswith(".json") and is_image(name[: -len(".json")]) and name[: -len(".json")] not in self.rows
        ]
        for data in store.read_all(unknown).values():
            row = _parsed(data)
            if row is not None:
                self.rows[row["name"]] = row

    def is_finished(self, name: str, wanted: str) -> bool:
        """Whether the image was restored as wanted (by :func:`fingerprint`), and its files are there."""
        return self.is_restored(name) and self.rows[name]["fingerprint"] == wanted

    def is_restored(self, name: str) -> bool:
        """Whether the image was restored, in whatever way, and its files are there."""
        row = self.rows.get(name)
        return (
            row is not None
            and row["status"] == "restored"
            and row["output"] in self._files
            and sidecar_name(name) in self._files
        )

    def reread(self, names: Iterable[str]) -> list[Row]:
        """Rows of the records that are in the folder now."""
        data = self.store.read_all(map(sidecar_name, names))
        return [row for text in data.values() if (row := _parsed(text)) is not None]

    def forget(self, names: Mapping[str, str]) -> None:
        """Drop the rows of images that are done again, in the manifest too, and pictures that are not replaced.

        Args:
            names: of the images, to those of the pictures that they get.
        """
        dropped = {name: self.rows.pop(name) for name in names if name in self.rows}
        self.write()
        for name, row in dropped.items():
            if row["output"] not in (None, names[name]):  # another format's
                self.store.remove(sidecar_name(name))
                self.store.remove(row["output"])

    def write(self) -> None:
        """Replace the manifest."""
        import pyarrow
        from pyarrow import parquet

        rows = [self.rows[name] for name in sorted(self.rows)]
        schema = pyarrow.schema([(name, getattr(pyarrow, kind)()) for name, kind in ROW.items()])
        stream = io.BytesIO()
        parquet.write_table(pyarrow.Table.from_pylist(rows, schema=schema), stream)
        self.store.write(MANIFEST, stream.getvalue())

    def _read_manifest(self) -> dict[str, Row]:
        import pyarrow
        from pyarrow import parquet

        try:
            table = parquet.read_table(io.BytesIO(self.store.read(MANIFEST)))
        except (OSError, pyarrow.ArrowException) as cause:
            raise UsageError(
                f"`--output` {self.store.url}: its {MANIFEST} cannot be read: {cause}; remove it and start again, "
                "it is made anew from the records"
            ) from cause
        return {row["name"]: row for row in table.to_pylist() if row.keys() == ROW.keys()}


def _parsed(data: bytes) -> Row | None:
    """The row of a record, or None for a file that is none."""
    try:
        entry = json.loads(data)
        return row_of(entry) if entry["schema"] == record.SCHEMA else None
    except (ValueError, KeyError, TypeError):
        return None


@dataclasses.dataclass(frozen=True)
class Claim:
    """A run's hold on an output folder, which ends when another run starts there."""

    url: str
    run: str

    def check(self, store: Store) -> None:
        """Raise :class:`SupersededError` unless the folder is still this run's.

        What a killed run left behind on another machine may still be at work when the next run starts.
        """
        try:
            held = json.loads(store.read(RUN))["run"]
        except (OSError, ValueError, KeyError):
            held = None
        if held != self.run:
            raise SupersededError(f"another run has started in {self.url}; this one stops")


def claim(store: Store, files: Mapping[str, str], source: str, settings: Row, command: str, force: bool) -> Claim:
    """Take the output folder for a run.

    Args:
        store: the folder.
        files: what lies in it.
        source: the input.
        settings: of the run, which decide its numbers.
        command: that started it.
        force: take it whatever it holds.

    Raises:
        UsageError: it holds results of another input or of other settings, with each difference, or other files.
    """
    settings = json.loads(json.dumps(settings))  # as they will be read again
    wanted = {"input": source, **settings}
    if RUN in files and not force:
        try:
            held = json.loads(store.read(RUN))
            found = {"input": held["input"], **held["settings"]}
        except (ValueError, KeyError, TypeError) as cause:
            raise UsageError(f"`--output` {store.url}: its {RUN} cannot be read; use --force to replace it") from cause
        differences = [
            f"{key} was {_shown(found.get(key))}, now {_shown(wanted.get(key))}"
            for key in sorted(found.keys() | wanted.keys())
            if found.get(key) != wanted.get(key)
        ]
        if differences:
            raise UsageError(
                f"`--output` {store.url} holds results of another run: {'; '.join(differences)}; "
                "use another folder, or --force to replace them"
            )
    if RUN not in files and files and not force:
        raise UsageError(
            f"`--output` {store.url} holds files that are no batch's, like {min(files)}; use another folder, or --force"
        )
    run = uuid.uuid4().hex
    state = {"schema": SCHEMA, "run": run, "command": command, "input": source, "settings": settings}
    try:
        store.write(RUN, _json.encode(state))
    except OSError as cause:
        raise UsageError(f"`--output` {store.url} cannot be written: {cause.strerror or cause}") from cause
    return Claim(store.url, run)


def _shown(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= LONGEST_SHOWN else text[: LONGEST_SHOWN - 1] + "…"
