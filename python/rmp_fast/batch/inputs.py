"""What is to be restored: a folder's images, or the rows of a manifest, with their own seed, noise level and files."""

from __future__ import annotations

import dataclasses
import io
import math
import os
import posixpath
from collections.abc import Callable, Sequence
from typing import Any

from ..cli.usage import UsageError
from .store import Store, check_apart, is_image, join, read_file, versions

__all__ = ["COLUMNS", "Image", "collect"]

#: Columns of an input manifest; all but the first may be missing, and any of their values empty.
COLUMNS = ("path", "seed", "noise_std", "mask", "kernel")
KINDS = "PNG, JPEG, TIFF or WebP"


@dataclasses.dataclass(frozen=True, slots=True)
class Image:
    """An image to restore.

    Attributes:
        name: relative path that decides where its results go.
        url: where it lies.
        version: what changes with its content; None if there is no such file.
        seed, noise_std: of the row, else of the run.
        mask, kernel: URLs of the row's own files, if any.
        own_versions: of these two files.
    """

    name: str
    url: str
    version: str | None
    seed: int
    noise_std: float
    mask: str | None = None
    kernel: str | None = None
    own_versions: tuple[str | None, ...] = ()

    @property
    def file_name(self) -> str:
        """The last part of the name, which decides the random numbers, as in ``rmp-fast reconstruct``."""
        return posixpath.basename(self.name)


def collect(url: str, seed: int, noise_std: float | None, output: Store) -> list[Image]:
    """The images of a folder and all folders in it, or of a manifest, by name.

    Args:
        url: the folder, or a .parquet file.
        seed, noise_std: of the run, for images without their own.
        output: the folder of the results.

    Raises:
        UsageError: there is nothing to restore, or the manifest does not hold what it must, with the first wrong row.
    """
    source = Store(url, "--input")
    if url.lower().endswith(".parquet"):
        return _of_manifest(source, seed, noise_std, output)
    check_apart(source, output)
    if noise_std is None:
        raise UsageError(
            "`--noise-std` must be given: the standard deviation of the measurement noise, where black is 0 and white 1"
        )
    found = source.files()
    for name in found:
        try:
            name.encode()
        except UnicodeEncodeError:
            raise UsageError(f"`--input` holds a name that is not UTF-8, {os.fsencode(name)!r}; rename it") from None
    images = [
        Image(name, source.fs.unstrip_protocol(source.path(name)), version, seed, noise_std)
        for name, version in sorted(found.items())
        if is_image(name)
    ]
    if not images:
        what = f"holds no {KINDS} files" if found or source.fs.exists(source.root) else "does not exist"
        raise UsageError(f"`--input` {url} {what}")
    return images


def _of_manifest(source: Store, seed: int, noise_std: float | None, output: Store) -> list[Image]:
    columns, count = _read_columns(source)
    folder = source.root.rpartition("/")[0]
    base = source.fs.unstrip_protocol(folder)
    names = [_name(value, row, folder) for row, value in enumerate(columns["path"])]
    first: dict[str, int] = {}
    for row, name in enumerate(names):
        if first.setdefault(name, row) != row:
            raise UsageError(f"`--input`: rows {first[name]} and {row} of the manifest are both {name}; name each once")
    own = {
        key: [None if value is None else join(base, _text(key, value, row)) for row, value in enumerate(values)]
        for key, values in columns.items()
        if key in ("path", "mask", "kernel")
    }
    for key, urls in own.items():
        for row, url in enumerate(urls):
            if url is not None and output.holds(url):
                raise UsageError(f"`--output` must not hold what is restored: the {key} of row {row} is {url}")
    seeds = _numbers(columns, "seed", _whole, seed, count)
    noises = _numbers(columns, "noise_std", _deviation, noise_std, count)
    for row, value in enumerate(noises):
        if value is None:
            raise UsageError(f"`--noise-std` must be given: row {row} of the manifest has no noise_std")
    known = versions(url for values in own.values() for url in values if url is not None)
    none: list[str | None] = [None] * count
    masks, kernels = own.get("mask", none), own.get("kernel", none)
    return [
        Image(
            names[row], str(url), known[str(url)], int(seeds[row]), float(noises[row]), masks[row], kernels[row],
            tuple(known[file] for file in (masks[row], kernels[row]) if file is not None),
        )
        for row, url in enumerate(own["path"])
    ]  # fmt: skip


def _read_columns(source: Store) -> tuple[dict[str, list[Any]], int]:
    """The known columns of a manifest as lists, and how many rows it has."""
    import pyarrow
    from pyarrow import parquet

    try:
        file = parquet.ParquetFile(io.BytesIO(read_file(source.url)))
        held = file.schema_arrow.names
        table = file.read(columns=[name for name in COLUMNS if name in held])
    except FileNotFoundError:
        raise UsageError(f"`--input` {source.url} does not exist") from None
    except (OSError, pyarrow.ArrowException) as cause:
        raise UsageError(f"`--input` {source.url} cannot be read as a Parquet table: {cause}") from cause
    if "path" not in held:
        raise UsageError(
            f"`--input` {source.url} must have the column 'path', and may have "
            f"{', '.join(map(repr, COLUMNS[1:]))}; it has {', '.join(map(repr, held)) or 'none'}"
        )
    if not table.num_rows:
        raise UsageError(f"`--input` {source.url} has no rows")
    return {name: table.column(name).to_pylist() for name in table.column_names}, table.num_rows


def _name(value: object, row: int, folder: str) -> str:
    """The relative path that a row's results get: seen from the manifest's folder, or whole without its protocol."""
    path = _text("path", value, row)
    if not is_image(path):
        raise UsageError(f"`--input`: row {row} of the manifest must name a {KINDS} file, got {path!r}")
    bare = posixpath.normpath(path.partition("://")[2] if "://" in path else path)
    inside = posixpath.join(folder, "")
    name = bare.removeprefix(inside).lstrip("/")
    if name.startswith("../"):
        raise UsageError(f"`--input`: row {row} of the manifest must not leave the manifest's folder by '..': {path!r}")
    return name


def _text(column: str, value: object, row: int) -> str:
    if not isinstance(value, str) or not value:
        raise UsageError(f"`--input`: row {row} of the manifest must have a path in column {column!r}, got {value!r}")
    return value


def _numbers(
    columns: dict[str, list[Any]], name: str, checked: Callable[[object], Any], default: Any, count: int
) -> Sequence[Any]:
    """A column's values, the default where a row has none."""
    values = []
    for row, value in enumerate(columns.get(name, [None] * count)):
        # A column of whole numbers with gaps comes from pandas as floats with NaN.
        missing = value is None or (isinstance(value, float) and math.isnan(value))
        try:
            values.append(default if missing else checked(value))
        except ValueError as error:
            raise UsageError(f"`--input`: row {row} of the manifest: {name} must be {error}, got {value!r}") from None
    return values


def _whole(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int | float) or not float(value).is_integer():
        raise ValueError("a whole number")
    if not -(2**63) <= value < 2**63:
        raise ValueError("on [-2^63, 2^63)")
    return int(value)


def _deviation(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
        raise ValueError("a finite number >= 0")
    return float(value)
