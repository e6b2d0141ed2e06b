"""The programs under benchmarks/, which are no package, as modules."""

from __future__ import annotations

import importlib.util
import pathlib
from typing import Any

BENCHMARKS = pathlib.Path(__file__).parent.parent / "benchmarks"


def load(name: str) -> Any:
    """The program ``benchmarks/NAME.py``, not run."""
    spec = importlib.util.spec_from_file_location(name, BENCHMARKS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
