"""Times several ways of doing the same thing in turns, so that what disturbs one disturbs all."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

__all__ = ["Timing", "interleaved", "table"]


@dataclass(frozen=True)
class Timing:
    """Seconds of one call: the median, and the band that holds the middle 80 % of the samples."""

    median: float
    low: float
    high: float


Clock = Callable[[], float]


def _seconds(call: Callable[[], object], repeats: int, clock: Clock, device: torch.device) -> float:
    if device.type == "cuda":
        started, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        started.record()
        for _ in range(repeats):
            call()
        ended.record()
        ended.synchronize()
        milliseconds: float = started.elapsed_time(ended)
        return milliseconds / 1e3 / repeats
    start = clock()
    for _ in range(repeats):
        call()
    return (clock() - start) / repeats


def interleaved(
    arms: dict[str, Callable[[], object]],
    *,
    rounds: int = 41,
    sample: float = 2e-3,
    budget: float = 20.0,
    clock: Clock = time.perf_counter,
    device: torch.device | str = "cpu",
) -> dict[str, Timing]:
    """Seconds per call of every arm.

    Args:
        rounds: samples of each arm, at least 5, fewer where ``budget`` seconds are not enough.
        sample: least seconds of one sample; short calls are repeated within it.
        clock: in seconds; ``time.thread_time`` leaves out what other processes take from arms of one thread.
        device: where the arms compute. On a CUDA device, which must be the current one, its events around the calls
            tell the time instead of ``clock``: that of the device, waits for the host included.
    """
    device = torch.device(device)
    repeats, cost = {}, 0.0
    for name, call in arms.items():
        for _ in range(3):
            call()
        once = min(_seconds(call, 1, clock, device) for _ in range(3))
        repeats[name] = max(1, round(sample / max(once, 1e-7)))
        cost += once * repeats[name]
    rounds = max(5, min(rounds, int(budget / cost)))
    samples: dict[str, list[float]] = {name: [] for name in arms}
    names = list(arms)
    for turn in range(rounds):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            samples[name].append(_seconds(arms[name], repeats[name], clock, device))
    result = {}
    for name, values in samples.items():
        deciles = statistics.quantiles(values, n=10, method="inclusive")
        result[name] = Timing(statistics.median(values), deciles[0], deciles[-1])
    return result


def table(title: str, timings: dict[str, Timing], ours: str) -> str:
    """One line per arm: median, band and how many times the time of ``ours``."""
    lines = [title]
    for name, t in timings.items():
        ratio = t.median / timings[ours].median
        lines.append(f"  {name:28s} {t.median * 1e6:10.1f} us  [{t.low * 1e6:.1f}, {t.high * 1e6:.1f}]  {ratio:7.2f} x")
    return "\n".join(lines)
