"""Which OpenMP runtimes this process has loaded: more than one means threads that do not know of each other."""

from __future__ import annotations

import pathlib
import re

__all__ = ["runtimes"]

_LIBRARY = re.compile(r"lib(gomp|iomp5|omp)\b[^/]*\.(so|dylib)")


def runtimes() -> list[str]:
    """Paths of the loaded OpenMP libraries, sorted; empty where the system does not list them (only Linux does)."""
    try:
        lines = pathlib.Path("/proc/self/maps").read_text().splitlines()
    except OSError:
        return []
    paths = {line.split(maxsplit=5)[5] for line in lines if len(line.split(maxsplit=5)) == 6}
    return sorted(path for path in paths if _LIBRARY.match(pathlib.Path(path).name))
