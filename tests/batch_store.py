"""What the tests of ``rmp-fast batch`` share: folders of a store in memory, and workers in this process.

PYTEST_DONT_REWRITE: a plugin of the modules that import it, and without assertions.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
from collections.abc import Callable, Iterator
from typing import Any

import fsspec
import numpy as np
import pyarrow
import pytest
from pyarrow import parquet

from rmp_fast import batch, images
from rmp_fast.batch import cluster

FEW = {"operator": "denoise", "prior": "fashion", "evaluations": 2, "noise_std": 0.1, "device": "cpu"}
SIDE = 16


@dataclasses.dataclass
class Memory:
    """A folder of a store in memory."""

    root: str

    def __truediv__(self, name: str) -> str:
        return f"memory:/{self.root}/{name}"

    def read(self, name: str) -> bytes:
        return fsspec.filesystem("memory").cat_file(f"{self.root}/{name}")

    def write(self, name: str, data: bytes) -> None:
        fsspec.filesystem("memory").pipe_file(f"{self.root}/{name}", data)

    def remove(self, name: str) -> None:
        fsspec.filesystem("memory").rm_file(f"{self.root}/{name}")

    def picture(self, name: str, seed: int = 0, shape: tuple[int, ...] = (1, SIDE, SIDE), depth: int = 8) -> None:
        pixels = np.random.default_rng(seed).random(shape)
        kind = {".png": "png", ".jpg": "jpeg", ".tif": "tiff"}[name[-4:]]
        self.write(name, images.encode(pixels, depth, kind))

    def pictures(self, count: int) -> None:
        """0.png, 1.png and so on, all different."""
        for index in range(count):
            self.picture(f"{index}.png", index)

    def table(self, name: str, **columns: Any) -> str:
        stream = io.BytesIO()
        parquet.write_table(pyarrow.table(columns), stream)
        self.write(name, stream.getvalue())
        return self / name

    def names(self) -> set[str]:
        return {path[len(self.root) + 1 :] for path in fsspec.filesystem("memory").find(self.root)}

    def rows(self) -> dict[str, dict[str, Any]]:
        return {row["name"]: row for row in parquet.read_table(io.BytesIO(self.read("manifest.parquet"))).to_pylist()}

    def record(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.read(f"{name}.json"))
        return found


@pytest.fixture
def source() -> Iterator[Memory]:
    yield Memory("/in")
    fsspec.filesystem("memory").store.clear()


@pytest.fixture
def out(source: Memory) -> Memory:
    return Memory("/out")


@pytest.fixture
def fed(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Workers in this process instead of Ray's; returns the names of every batch that they get."""
    batches: list[list[str]] = []

    @contextlib.contextmanager
    def connect(*_: object) -> Iterator[tuple[int, int]]:
        yield 1, 0

    def feed(kind: Callable[..., Any], job: object, works: list[str], *_: object) -> Iterator[str]:
        pool = kind(job)
        for work in works:
            batches.append([image["name"] for image in json.loads(work)[1]])
            yield from pool({"work": [work]})["result"]

    monkeypatch.setattr(cluster, "connect", connect)
    monkeypatch.setattr(cluster, "feed", feed)
    return batches


def go(source: object, out: object, **options: Any) -> batch.Summary:
    ends = [end.root.replace("/", "memory://", 1) if isinstance(end, Memory) else end for end in (source, out)]
    return batch.restore(*ends, **{**FEW, **options})
