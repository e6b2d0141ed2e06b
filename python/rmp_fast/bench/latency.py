"""How long single executions take: percentiles, a histogram, and the share of Python and dispatch."""

from __future__ import annotations

import dataclasses
import functools
import gc
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from ..plan import Plan
from ..priors import Prior, from_denoiser
from .analysis import line
from .problem import Problem

__all__ = ["PERCENTILES", "Overhead", "histogram", "overhead", "percentiles", "repeated"]

#: Percentile -> executions below which it would be an extreme value of few samples.
PERCENTILES = {"p50": (50.0, 1), "p95": (95.0, 20), "p99": (99.0, 100), "p99.9": (99.9, 1000)}
WARM_UP = 3


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
    """What one execution costs the calling thread, in seconds of its own processor time, others' load aside.

    Attributes:
        total: the execution.
        chain: the same with a prior that answers at once: our Python, dispatch and kernels, the start with them.
        network_fixed: of the network's evaluations, what does not depend on the number of pixels: Python and dispatch,
            and reading the weights. A straight line through three sizes of images, at none.
    """

    total: float
    chain: float
    network_fixed: float


def overhead(problem: Problem, options: dict[str, Any], repeats: int = 20) -> Overhead:
    """Measure an execution's overhead; medians.

    Args:
        options: of :class:`rmp_fast.Plan`.
    """
    answer = torch.zeros(problem.shape)
    at_once = from_denoiser(lambda x, s: answer, problem.prior.data_variance)

    def seconds(prior: Prior) -> float:
        plan = Plan(problem.op, prior, problem.shape, problem.noise_std, **options)
        return _thread_seconds(lambda: plan.execute(problem.y, seeds=problem.seeds), repeats)

    batch, channels, height, width = problem.shape
    sizes = [(height // part, width // part) for part in (4, 2, 1)]
    s = torch.ones(batch)
    fixed = 0.0
    with torch.inference_mode():
        images = [torch.randn(batch, channels, *size) for size in sizes]
        times = [_thread_seconds(functools.partial(problem.prior.denoise, x, s), 2 * repeats) for x in images]
        fixed = max(0.0, line([h * w for h, w in sizes], times).intercept)
    looks = Plan(problem.op, at_once, problem.shape, problem.noise_std, **options).evaluations
    return Overhead(total=seconds(problem.prior), chain=seconds(at_once), network_fixed=looks * fixed)


def _thread_seconds(call: Callable[[], Any], repeats: int) -> float:
    found = []
    for turn in range(WARM_UP + repeats):
        started = time.thread_time()
        call()
        if turn >= WARM_UP:
            found.append(time.thread_time() - started)
    return statistics.median(found)
