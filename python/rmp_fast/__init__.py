"""Reverse mean propagation: the posterior mean of an imaging inverse problem from one chain of a diffusion prior.

The public names are imported when they are first used, so that a command line's ``--help`` does not wait for torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from . import baselines, operators, presets, priors, schedules
    from .cache import PlanCache
    from .plan import Estimate, Plan
    from .reconstruction import reconstruct

__version__ = "0.1.0"
__all__ = ["Estimate", "Plan", "PlanCache", "baselines", "operators", "presets", "priors", "reconstruct", "schedules"]

_MODULES = {"Estimate": "execution", "Plan": "plan", "PlanCache": "cache", "reconstruct": "reconstruction"}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(importlib.import_module(f".{_MODULES[name]}", __name__), name)
    if name == "_core":
        # First, so that the extension finds torch's OpenMP runtime and shares its threads.
        importlib.import_module("torch")
    elif name not in (*__all__, "deepinv"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return importlib.import_module(f".{name}", __name__)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
