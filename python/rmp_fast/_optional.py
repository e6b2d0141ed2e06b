"""Packages that only some functions need."""

from __future__ import annotations

import importlib
from typing import Any

__all__ = ["optional"]


def optional(package: str, extra: str, needed_by: str) -> Any:
    """The imported package, or ImportError that says what needs it and how to install it."""
    try:
        return importlib.import_module(package)
    except (ImportError, RuntimeError) as cause:  # a torchvision for another torch raises the latter
        name = package.partition(".")[0]
        raise ImportError(f"{needed_by} needs {name}: pip install 'rmp_fast[{extra}]' ({cause})") from cause
