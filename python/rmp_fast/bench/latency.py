"""How long single executions take: percentiles, a histogram, and the share of Python and dispatch."""

from __future__ import annotations

import dataclasses
import gc
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..plan import Plan
from ..priors import Prior, from_denoiser
from .problem import Problem

__all__ = ["PERCENTILES", "Overhead", "histogram", "overhead", "percentiles", "repeated"]

#: Percentile -> executions below which it would be an extreme value of few samples.
PERCENTILES = {"p50": (50.0, 1), "p95": (95.0, 20), "p99": (99.0, 100), "p99.9": (99.9, 1000)}
WARM_UP = 3
#: Operations of torch that only describe memory anew, and do no arithmetic.
VIEWS = (
    "view", "reshape", "as_strided", "chunk", "split", "slice", "select", "expand", "unsqueeze", "squeeze", "narrow",
    "transpose", "permute", "t", "alias", "detach", "empty", "empty_strided", "empty_like", "resize_",
    "resolve_conj", "resolve_neg", "_unsafe_view", "lift_fresh", "result_type", "unbind", "to",
)  # fmt: skip


def repeated(call: Callable[[], Any], runs: int, seconds: float) -> list[float]:
    """Seconds of every execution after three that do not count, at most ``runs`` or so many ``seconds`` of them."""
    for _ in range(WARM_UP):
        call()
    gc.collect()
    found: list[float] = []
    end = time.perf_counter() + seconds
    while len(found) < runs and (not found or time.perf_counter() < end):
        started = time.perf_counter()
        call()
        found.append(time.perf_counter() - started)
    return found


def percentiles(values: Sequence[float]) -> dict[str, float | None]:
    """Those of :data:`PERCENTILES`; None where there are too few executions to tell."""
    return {
        name: float(np.percentile(values, share)) if len(values) >= least else None
        for name, (share, least) in PERCENTILES.items()
    }


def histogram(values: Sequence[float], bins: int = 12, width: int = 50) -> str:
    """Bars of text over equal parts of the range up to the 99th percentile; the last line counts what lies above."""
    milliseconds = 1e3 * np.asarray(values)
    top = float(np.percentile(milliseconds, 99))
    low = float(milliseconds.min())
    if not top > low:
        return f"  all {len(values)} at {low:.3g} ms"
    counts, edges = np.histogram(milliseconds, bins=bins, range=(low, top))
    most = max(1, int(counts.max()))
    lines = [
        f"  {a:9.3f} to {b:9.3f} ms {count:6d} {'█' * round(width * count / most)}"
        for a, b, count in zip(edges[:-1], edges[1:], counts, strict=True)
    ]
    above = int((milliseconds > top).sum())
    return "\n".join([*lines, f"  {'above':>25} {above:6d} up to {milliseconds.max():.3f} ms"])


@dataclasses.dataclass(frozen=True)
class Overhead:
    """What a chain spends outside the network's arithmetic, in seconds of one execution.

    Attributes:
        chain: the same chain with a prior that answers at once: our Python, dispatch and kernels, the start with them.
        network_arithmetic: within torch's leaf operations of the network, under a profiler.
        network_dispatch: the network's evaluations without a profiler, less that.
    """

    chain: float
    network_arithmetic: float
    network_dispatch: float


def overhead(problem: Problem, options: dict[str, Any], repeats: int = 5) -> Overhead:
    """Measure a chain's overhead, medians of ``repeats``.

    Args:
        options: of :class:`rmp_fast.Plan`.
    """
    answer = torch.zeros(problem.shape)
    at_once = from_denoiser(lambda x, s: answer, problem.prior.data_variance)
    plan = Plan(problem.op, at_once, problem.shape, problem.noise_std, **options)
    chain = repeated(lambda: plan.execute(problem.y, seeds=problem.seeds), 4 * repeats, 60.0)
    x, s = torch.randn(problem.shape), torch.ones(problem.shape[0])
    evaluation, arithmetic = [], []
    with torch.inference_mode():
        for _ in range(WARM_UP):
            problem.prior.denoise(x, s)
        for _ in range(4 * repeats):
            started = time.perf_counter()
            problem.prior.denoise(x, s)
            evaluation.append(time.perf_counter() - started)
            arithmetic.append(_arithmetic(problem.prior, x, s))
    once = statistics.median(arithmetic)
    looks = plan.evaluations
    return Overhead(
        chain=statistics.median(chain),
        network_arithmetic=looks * once,
        network_dispatch=looks * max(0.0, statistics.median(evaluation) - once),
    )


def _arithmetic(prior: Prior, x: Tensor, s: Tensor) -> float:
    """Seconds within the operations of one evaluation that call no other and do more than describe memory."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        prior.denoise(x, s)
    total = 0.0
    for event in profiler.events() or ():
        name = event.name.removeprefix("aten::")
        if event.name.startswith("aten::") and name not in VIEWS and not _computing_children(event):
            total += event.self_cpu_time_total
    return total / 1e6


def _computing_children(event: Any) -> bool:
    return any(child.name.removeprefix("aten::") not in VIEWS for child in event.cpu_children)
