"""The sidecar of a restoration: enough to reproduce it bit for bit on the same machine, and to know that it is done."""

from __future__ import annotations

import datetime
import hashlib
import importlib.metadata
import importlib.resources
import json
import os
import pathlib
import platform
import shlex
from collections.abc import Iterable
from typing import Any

__all__ = [
    "SCHEMA",
    "command",
    "digest",
    "environment",
    "is_finished",
    "now",
    "settings_hash",
    "version",
    "weights_digest",
]

SCHEMA = 1


def digest(data: bytes) -> str:
    """SHA-256 in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def settings_hash(settings: dict[str, Any]) -> str:
    """Hash of everything but the input file that decides the numbers of a restoration."""
    return digest(json.dumps(settings, sort_keys=True).encode())


def weights_digest(prior: str) -> str:
    """SHA-256 of the weights file of a prior, bundled or by its path; of a folder's files with their names."""
    bundled = importlib.resources.files("rmp_fast.priors") / "bundled" / f"{prior}.safetensors"
    path = pathlib.Path(prior)
    if os.sep not in prior and bundled.is_file():
        return digest(bundled.read_bytes())
    if path.is_file():
        return digest(path.read_bytes())
    files = sorted(file for file in path.rglob("*") if file.is_file())
    return digest("\n".join(f"{file.relative_to(path)} {digest(file.read_bytes())}" for file in files).encode())


def is_finished(sidecar: pathlib.Path, hashed_settings: str, input_digest: str, panel: bool) -> bool:
    """Whether an earlier run wrote ``sidecar`` with these settings for this input; pictures are as it left them."""
    try:
        found = json.loads(sidecar.read_text())
        pictures = [found["output"], *([found["panel"]] if panel else [])]
        return (
            found["schema"] == SCHEMA
            and found["settings_hash"] == hashed_settings
            and found["input"]["sha256"] == input_digest
            and all(digest((sidecar.parent / p["file"]).read_bytes()) == p["sha256"] for p in pictures)
        )
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return False


def environment() -> dict[str, Any]:
    """Versions and processor: what the last bits of a result may depend on."""
    import torch

    from .. import backends

    cpu_path = None
    if backends.core_error is None:
        from .. import _core

        cpu_path = _core.cpu_path()
    versions = {name: importlib.metadata.version(name) for name in ("rmp_fast", "torch", "numpy", "pillow")}
    return {
        "versions": {**versions, "python": platform.python_version()},
        "platform": platform.platform(),
        "processor": _processor(),
        "cpu_path": cpu_path,
        "threads": torch.get_num_threads(),
    }


def command(inputs: Iterable[pathlib.Path], decided: dict[str, Any]) -> str:
    """The command line that makes the same files again.

    Args:
        inputs: all files of the batch, because its size may touch the last bits of the network's output.
        decided: names of options to values; True is a flag alone, None and False leave it out.
    """
    words = ["rmp-fast", "reconstruct", *(str(path.resolve()) for path in inputs)]
    if "RMP_FAST_CPU" in os.environ:
        words = ["env", f"RMP_FAST_CPU={os.environ['RMP_FAST_CPU']}", *words]
    for name, value in decided.items():
        flag = "--" + name.replace("_", "-")
        if value is True:
            words.append(flag)
        elif value is not None and value is not False:
            # One word, so that a negative number is not taken for a flag.
            words.append(f"{flag}={value.resolve() if isinstance(value, pathlib.Path) else value}")
    return shlex.join(words)


def version() -> str:
    """The installed version of rmp_fast."""
    return importlib.metadata.version("rmp_fast")


def now() -> str:
    """The time as sidecars state it: UTC, to the second."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def _processor() -> str:
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()
