"""The chain's phases by name, for torch's profiler, and NVIDIA's under ``torch.autograd.profiler.emit_nvtx``."""

from __future__ import annotations

import contextlib
from contextlib import AbstractContextManager
from typing import Any

from torch._C._autograd import _profiler_enabled
from torch.profiler import record_function

__all__ = ["PHASES", "phase"]

#: As ranges they are called ``rmp_fast::start`` and so on.
PHASES = ("start", "network", "operator", "step")

_NOTHING = contextlib.nullcontext()


def phase(name: str) -> AbstractContextManager[Any]:
    """A range of one of :data:`PHASES` while a profiler runs; else nothing, for a quarter of a microsecond."""
    # An idle record_function costs twenty times that.
    return record_function(f"rmp_fast::{name}") if _profiler_enabled() else _NOTHING
