"""Where the time of one chain goes: by phase, by kernel, by torch's operations, and as a Chrome trace."""

from __future__ import annotations

import dataclasses
import pathlib
import statistics
import time
from collections import Counter
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from .. import backends, ranges
from ..plan import Plan
from . import observe
from .cost import Work

__all__ = ["PHASES", "profile"]

#: Of the wall's time of an execution; ``python``: what is left, checks and copies of the edge included.
PHASES = (*ranges.PHASES, "python")
_MOST_OPERATIONS = 12
#: Numbers of a plain copy, 128 MB read and written: more than caches hold.
_COPIED = 1 << 24


@dataclasses.dataclass
class _Kernel:
    """Seconds of every call of one kernel, and its calls in every execution."""

    work: Work
    seconds: list[float] = dataclasses.field(default_factory=list)
    calls: list[int] = dataclasses.field(default_factory=list)


def profile(
    plan: Plan, y: Tensor, seeds: Tensor | None = None, *, rounds: int = 5, trace: pathlib.Path | None = None
) -> dict[str, Any]:
    """Run a chain and say where its time goes.

    After a warm-up come ``rounds`` executions, each followed by plain copies of 128 MB, so that both see the same
    machine; then one under torch's profiler, whose own cost is in no other number. Kernels whose images stay in a cache
    can be faster than a copy from memory.

    Args:
        plan: on the CPU, not of the ``reference`` backend, where nothing is ours.
        y, seeds: as :meth:`rmp_fast.Plan.execute` takes them.
        rounds: executions that are timed, at least 1.
        trace: where to write the Chrome trace, which chrome://tracing and Perfetto show; None: nowhere.

    Returns:
        JSON values, seconds of one execution, medians: ``seconds`` and ``phases``; ``copy_gbps``; ``kernels`` (rows
        with calls, seconds, bytes, ``gbps`` and their ``bandwidth_share`` of the copy); ``operations``, torch's own, by
        their time under the profiler; ``network`` (``gflop`` of one evaluation of the batch, ``gflops``); ``stats`` of
        the last.

    Raises:
        ValueError: for other devices and backends, and what execute refuses.
    """
    if plan.device.type != "cpu" or plan.backend == "reference":
        where = f"backend {plan.backend!r} on {plan.device}"
        raise ValueError(
            f"`plan` must be on the CPU with another backend than 'reference', got {where}; for a graphics card, run "
            "it under torch.profiler or Nsight with torch.autograd.profiler.emit_nvtx, where the phases have ranges"
        )
    if rounds < 1:
        raise ValueError(f"`rounds` must be at least 1, got {rounds}")
    kernels: dict[tuple[str, float], _Kernel] = {}
    calls: list[tuple[Work, float]] = []
    spent: list[dict[str, float]] = []
    copies: list[float] = []
    source, target = torch.rand(_COPIED), torch.rand(_COPIED)
    plan.execute(y, seeds)
    with observe.kernel_calls(plan, lambda work, seconds: calls.append((work, seconds))):
        for _ in range(rounds):
            calls.clear()
            started = time.perf_counter()
            stats = plan.execute(y, seeds).stats
            spent.append(_phases(time.perf_counter() - started, stats, calls))
            _tally(calls, kernels)
            for _ in range(3):
                started = time.perf_counter()
                target.copy_(source)
                copies.append(time.perf_counter() - started)
    copy = 8 * _COPIED / statistics.median(copies)
    operations = _traced(plan, y, seeds, trace)
    gflop = _network_gflop(plan)
    seconds = {name: statistics.median(one[name] for one in spent) for name in spent[0]}
    each = seconds["network"] / plan.looks_per_chain / plan.branches
    return {
        "seconds": seconds.pop("all"), "phases": seconds, "evaluations": plan.evaluations, "rounds": rounds,
        "copy_gbps": copy / 1e9,
        "kernels": sorted((_row(kernel, copy) for kernel in kernels.values()), key=lambda row: -row["seconds"]),
        "operations": operations, "stats": stats,
        "network": {"gflop": gflop, "gflops": gflop / each if each else 0.0, "seconds_per_evaluation": each},
        "settings": {
            "operator": plan.op.name, "prior": plan.prior.name, "shape": list(plan.shape), "backend": plan.backend,
            "guidance": plan.guidance, "noise": plan.noise, "threads": torch.get_num_threads(),
            "cpu_path": _path(), "torch": torch.__version__,
        },
    }  # fmt: skip


def _path() -> str | None:
    if backends.core_error is not None:
        return None
    from .. import _core

    return _core.cpu_path()


def _phases(whole: float, stats: dict[str, float], calls: list[tuple[Work, float]]) -> dict[str, float]:
    steps = sum(seconds for work, seconds in calls if work.kernel in ("natural_step", "perturb"))
    parts = {name: stats[f"{name}_seconds"] for name in ("start", "network", "operator")} | {"step": steps}
    return {"all": whole, **parts, "python": max(0.0, whole - sum(parts.values()))}


def _tally(calls: list[tuple[Work, float]], kernels: dict[tuple[str, float], _Kernel]) -> None:
    """Add the calls of one execution."""
    counts: Counter[tuple[str, float]] = Counter()
    for work, seconds in calls:
        key = (work.name, work.bytes)
        kernels.setdefault(key, _Kernel(work)).seconds.append(seconds)
        counts[key] += 1
    for key, count in counts.items():
        kernels[key].calls.append(count)


def _row(kernel: _Kernel, copy: float) -> dict[str, Any]:
    calls, each = statistics.median(kernel.calls), statistics.median(kernel.seconds)
    speed = kernel.work.bytes / each
    return {
        "kernel": kernel.work.name, "calls": calls, "seconds": each * calls, "bytes": kernel.work.bytes * calls,
        "gbps": speed / 1e9, "bandwidth_share": speed / copy,
    }  # fmt: skip


def _traced(plan: Plan, y: Tensor, seeds: Tensor | None, trace: pathlib.Path | None) -> list[dict[str, Any]]:
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        plan.execute(y, seeds)
    if trace is not None:
        profiler.export_chrome_trace(str(trace))
    rows = [
        {"operation": event.key, "calls": event.count, "seconds": event.self_cpu_time_total * 1e-6}
        for event in profiler.key_averages()
        if not event.key.startswith("rmp_fast::")
    ]
    return sorted(rows, key=lambda row: -row["seconds"])[:_MOST_OPERATIONS]


def _network_gflop(plan: Plan) -> float:
    """Of one evaluation of the batch: convolutions and matrix products, a fused multiply-add as two."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        plan.prior.denoise(torch.zeros_like(plan.inputs), plan.network_levels[0])
    return float(counter.get_total_flops()) / 1e9
