"""JSON as every command writes it: indented, complete at any time, null where a number is not finite."""

from __future__ import annotations

import json
import math
import pathlib
from typing import Any

from .images import write_atomically

__all__ = ["dumps", "encode", "write"]


def dumps(value: Any) -> str:
    """``value`` as text; what JSON has no words for as ``str`` has it."""
    return json.dumps(_finite(value), indent=2, ensure_ascii=False, allow_nan=False, default=str)


def encode(value: Any) -> bytes:
    """The bytes of a file of ``value``."""
    return (dumps(value) + "\n").encode()


def write(path: pathlib.Path, value: Any) -> None:
    """Write such a file, so that no reader ever meets half of it."""
    write_atomically(path, encode(value))


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(held) for key, held in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(held) for held in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
