"""``rmp-fast info``: what is active here, what is not, and why."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
from typing import Any

__all__ = ["gather", "render", "run"]

_PACKAGES = ("rmp_fast", "torch", "numpy", "scikit-image", "pillow", "tifffile", "imagecodecs", "safetensors", "triton")


def run(options: argparse.Namespace) -> int:
    """Print the report; the exit code is 0 whatever is missing."""
    facts = gather()
    print(json.dumps(facts, indent=2, ensure_ascii=False) if options.json else render(facts))
    return 0


def gather() -> dict[str, Any]:
    """All facts, as JSON values."""
    import torch

    from .. import _openmp, backends, priors

    path: dict[str, Any] = {"in_use": None, "available": [], "override": os.environ.get("RMP_FAST_CPU")}
    if backends.core_error is None:
        from .. import _core

        path |= {"in_use": _core.cpu_path(), "available": list(_core.cpu_paths())}
    device = torch.device("cpu")
    runtimes = [str(runtime) for runtime in _openmp.runtimes()]
    return {
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in _PACKAGES}},
        "platform": platform.platform(),
        "backends": backends.status(device, torch.float32),
        "auto": backends.preferred(device, torch.float32),
        "gpu": _gpu() if torch.cuda.is_available() else None,
        "cpu_path": path,
        "threads": torch.get_num_threads(),
        "openmp_runtimes": runtimes,
        "warnings": _warnings(runtimes),
        "priors": {name: _prior(name, priors) for name in priors.BUNDLED},
    }


def render(facts: dict[str, Any]) -> str:
    """The report as text."""
    versions = ", ".join(f"{name} {value}" for name, value in facts["versions"].items() if value is not None)
    absent = [name for name, value in facts["versions"].items() if value is None]
    path = facts["cpu_path"]
    override = path["override"]
    lines = [
        f"versions      {versions}" + (f" (not installed: {', '.join(absent)})" if absent else ""),
        f"platform      {facts['platform']}",
        "backends",
        *_backend_lines(facts),
        *([f"backends on {facts['gpu']['name']}", *_backend_lines(facts["gpu"])] if facts["gpu"] else []),
        f"cpu path      {path['in_use'] or 'none'}; this processor has {', '.join(path['available']) or 'none'}; "
        f"RMP_FAST_CPU {'is not set' if override is None else f'= {override}'}",
        f"threads       {facts['threads']}",
        f"OpenMP        {', '.join(facts['openmp_runtimes']) or 'no runtime loaded'}",
        "priors",
        *(f"  {name:<10}  {_prior_line(prior)}" for name, prior in facts["priors"].items()),
        *(f"warning: {warning}" for warning in facts["warnings"]),
    ]
    return "\n".join(lines)


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _backend_lines(facts: dict[str, Any]) -> list[str]:
    return [
        f"  {name:<10}  {'active' if reason is None else f'not active: {reason}'}"
        + (" (taken by auto)" if name == facts["auto"] else "")
        for name, reason in facts["backends"].items()
    ]


def _gpu() -> dict[str, Any]:
    """What works on the first graphics card, for plans with ``device="cuda"``."""
    import torch

    from .. import backends

    device = torch.device("cuda", 0)
    return {
        "name": torch.cuda.get_device_name(device),
        "backends": backends.status(device, torch.float32),
        "auto": backends.preferred(device, torch.float32),
    }


def _warnings(runtimes: list[str]) -> list[str]:
    if len(runtimes) < 2:
        return []
    return [
        f"{len(runtimes)} OpenMP runtimes are loaded ({', '.join(runtimes)}): threads of one do not know of the "
        "other's, which slows both down and can crash; build rmp_fast against the runtime that torch ships"
    ]


def _prior(name: str, priors: Any) -> dict[str, Any]:
    try:
        return {"available": True, "metadata": {key: _parsed(text) for key, text in priors.metadata(name).items()}}
    except Exception as error:  # a damaged installation is what this command is for
        return {"available": False, "reason": f"its weights cannot be read: {error}"}


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _prior_line(prior: dict[str, Any]) -> str:
    if not prior["available"]:
        return f"not available: {prior['reason']}"
    facts = prior["metadata"]
    data = facts.get("data", [])
    sources = ", ".join(dict.fromkeys(source["package"] for source in data))
    licences = ", ".join(dict.fromkeys(source["licence"] for source in data))
    return f"{facts.get('steps', '?')} training steps on {sources} ({licences}); --json shows the whole record"
