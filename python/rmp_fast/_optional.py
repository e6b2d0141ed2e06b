"""Packages that only some functions need."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Sequence
from typing import Any

__all__ = ["optional", "require"]


def optional(package: str, extra: str, needed_by: str) -> Any:
    """The imported package, or ImportError that says what needs it and how to install it."""
    try:
        return importlib.import_module(package)
    except (ImportError, RuntimeError) as cause:  # a torchvision for another torch raises the latter
        name = package.partition(".")[0]
        raise ImportError(f"{needed_by} needs {name}: pip install 'rmp_fast[{extra}]' ({cause})") from cause


def require(packages: Sequence[str], extra: str, needed_by: str) -> None:
    """ImportError where packages are absent, with what needs them and how to install them; imports none of them."""
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        raise ImportError(f"{needed_by} needs {' and '.join(missing)}: pip install 'rmp_fast[{extra}]'")
