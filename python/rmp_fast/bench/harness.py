"""Times several ways of solving one problem on one device in turns, after their results have been checked."""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import gc
import os
import pathlib
import statistics
import time
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

__all__ = ["AbsentError", "Arm", "CheckError", "Measured", "Result", "band", "cores", "measure", "peak_memory"]

CPU = torch.device("cpu")
#: Calls longer than this, in seconds, are their own warm-up: what a first call does besides is nothing beside them.
LONG = 20.0
#: A first call up to this long is repeated for its peak of memory, without what only a first call takes.
SHORT = 2.0
#: Root mean square by which a sampler of others may differ from itself. Its steps may enlarge rounding, so no bound can
#: be derived; other random numbers, or an image that depends on its neighbours, move it by tenths.
SAMPLER_TOLERANCE = 0.01
#: Most samples of an arm.
MOST_ROUNDS = 25
#: What an arm may raise and is dropped for; everything else is an error of the benchmark.
FAILURES = (RuntimeError, ValueError, TypeError, MemoryError)


class CheckError(RuntimeError):
    """A result that failed its check; the message says which and how."""


class AbsentError(RuntimeError):
    """An arm that cannot run here as its name says, which is no mistake; the message says why."""


@dataclasses.dataclass(frozen=True)
class Result:
    """What one call of an arm returned.

    Attributes:
        mean: (B, C, H, W) on [-1, 1].
        evaluations, backward_evaluations: of the network, per image.
        seconds: by part of the chain, as far as the method tells: network, operator, step, start. By the host's clock.
        kept_bytes: of a device's memory that the method keeps between calls for what others allocate in a call.
    """

    mean: Tensor
    evaluations: int
    backward_evaluations: int
    seconds: dict[str, float]
    kept_bytes: int = 0


@dataclasses.dataclass(frozen=True)
class Arm:
    """One way of solving the problem.

    Attributes:
        method, label: its name among the methods, and with its budget and settings.
        settings: whose they are: authors, tuned, preset, untuned, default.
        evaluations: of the network that one call takes per image, a backward pass counted as two; decides the order
            and what ``--quick`` leaves out.
        samples: how many samples are averaged.
        compiles: its first call may compile, and is no sample however long it took.
        make: prepares a call, once; its time is warm-up.
        check: raises :class:`CheckError` where a result is not what the method must return.
        tolerance: root mean square by which two calls of the arm may differ.
    """

    method: str
    label: str
    settings: str
    evaluations: int
    make: Callable[[], Callable[[], Result]]
    check: Callable[[Result], str]
    tolerance: float
    samples: int = 1
    compiles: bool = False


@dataclasses.dataclass
class Measured:
    """Samples of one arm.

    Attributes:
        seconds: of every timed call.
        parts: the same, by part.
        warm_up_seconds: preparation and first call, compilation included; None where the first call is the sample.
        peak_bytes: most memory above what was held before the call, see :func:`peak_memory`; None where not known.
        checked: what was checked.
    """

    arm: Arm
    result: Result
    checked: str
    warm_up_seconds: float | None
    peak_bytes: int | None
    seconds: list[float] = dataclasses.field(default_factory=list)
    parts: list[dict[str, float]] = dataclasses.field(default_factory=list)

    def part(self, name: str) -> float | None:
        """Median seconds of a part; None where the method does not tell it apart, and off the CPU.

        The clock of the parts does not wait for a device: it tells how long their work took to queue.
        """
        if self.result.mean.device.type != "cpu":
            return None
        values = [parts[name] for parts in self.parts if name in parts]
        return statistics.median(values) if values else None


def band(values: Sequence[float]) -> tuple[float, float, float]:
    """The median, and the deciles that enclose the middle 80 % of the samples (their range for fewer than five)."""
    if len(values) < 5:
        return statistics.median(values), min(values), max(values)
    deciles = statistics.quantiles(values, n=10, method="inclusive")
    return statistics.median(values), deciles[0], deciles[-1]


def measure(
    arms: Sequence[Arm],
    *,
    budget: float,
    device: torch.device = CPU,
    least_rounds: int = 3,
    on_sample: Callable[[Measured], None] = lambda measured: None,
    on_wrong: Callable[[Arm, str], None] = lambda arm, reason: None,
    on_absent: Callable[[Arm, str], None] = lambda arm, reason: None,
    on_start: Callable[[Arm], None] = lambda arm: None,
) -> list[Measured]:
    """Check every arm, then time all of them in turns, so that what disturbs one disturbs all.

    An arm whose check fails, that raises, or whose timed calls do not return what its first call returned is dropped.

    Args:
        arms: in the order of their first calls.
        budget: seconds of timed calls for each arm, above ``least_rounds`` samples; a call of more than 20 seconds
            is timed once and is its own warm-up.
        device: where the arms compute. A call of a CUDA device starts when nothing is queued there and ends when all
            that it queued is done.
        least_rounds: samples of the arms of shorter calls.
        on_sample: called after every timed call, with all of the arm's samples so far.
        on_wrong: called with the reason where an arm is dropped.
        on_absent: called instead where it raises :class:`AbsentError`.
        on_start: called before an arm's first call.
    """
    ready: list[tuple[Measured, Callable[[], Result]]] = []
    for arm in arms:
        on_start(arm)
        try:
            measured, call = _first_calls(arm, device)
        except AbsentError as cause:
            on_absent(arm, str(cause))
            continue
        except FAILURES as cause:
            on_wrong(arm, _told(cause))
            continue
        if measured.seconds:
            on_sample(measured)
        ready.append((measured, call))
    for turn in range(MOST_ROUNDS):
        open_arms = [(m, call) for m, call in ready if _wants_more(m, turn, budget, least_rounds)]
        if not open_arms:
            break
        shift = turn % len(open_arms)
        for measured, call in open_arms[shift:] + open_arms[:shift]:
            try:
                _sample(measured, call, device)
            except FAILURES as cause:
                on_wrong(measured.arm, _told(cause))
                ready = [(m, c) for m, c in ready if m is not measured]
                continue
            on_sample(measured)
    return [measured for measured, _ in ready]


def _told(cause: Exception) -> str:
    first = str(cause).strip().partition("\n")[0]
    if isinstance(cause, CheckError):
        return first
    return f"{type(cause).__name__}: {first}" if first else type(cause).__name__


def _wants_more(measured: Measured, turn: int, budget: float, least_rounds: int) -> bool:
    if measured.warm_up_seconds is None:
        return False
    return turn < least_rounds or sum(measured.seconds) + measured.seconds[-1] <= budget


def _finished(call: Callable[[], Result], device: torch.device) -> Callable[[], Result]:
    """``call``, or on a CUDA device the same that returns when its work is done, not when it is queued."""
    if device.type != "cuda":
        return call
    torch.cuda.synchronize(device)  # what preparing the call queued is none of its time

    def finished() -> Result:
        result = call()
        torch.cuda.synchronize(device)
        return result

    return finished


def _first_calls(arm: Arm, device: torch.device) -> tuple[Measured, Callable[[], Result]]:
    started = time.perf_counter()
    call = _finished(arm.make(), device)
    made = time.perf_counter()
    with peak_memory(device) as peak:
        result = call()
    first = time.perf_counter() - made
    checked = arm.check(result)
    if first > LONG and not arm.compiles:
        return Measured(arm, result, checked, None, peak.bytes, [first], [result.seconds]), call
    measured = Measured(arm, result, checked, made - started + first, peak.bytes)
    if first > SHORT:
        return measured, call
    with peak_memory(device) as peak:
        call()
    measured.peak_bytes = peak.bytes
    return measured, call


def _sample(measured: Measured, call: Callable[[], Result], device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    started = time.perf_counter()
    result = call()
    seconds = time.perf_counter() - started
    gap = float((result.mean - measured.result.mean).double().square().mean().sqrt())
    if not gap <= measured.arm.tolerance:
        raise CheckError(f"a timed call differs from the first by {gap:.2g} (root mean square), got the same input")
    measured.seconds.append(seconds)
    measured.parts.append(result.seconds)


@dataclasses.dataclass
class Peak:
    """Filled when the block of :func:`peak_memory` ends."""

    bytes: int | None = None


@contextlib.contextmanager
def peak_memory(device: torch.device = CPU) -> Iterator[Peak]:
    """Most memory that the block holds beyond what was held before.

    On the CPU resident memory, None but on Linux; on a CUDA device what torch's allocator has given out there.
    """
    peak = Peak()
    if device.type == "cuda":
        gc.collect()
        torch.cuda.reset_peak_memory_stats(device)
        held = torch.cuda.memory_allocated(device)
        yield peak
        peak.bytes = torch.cuda.max_memory_allocated(device) - held
        return
    known = _reset_resident_peak()
    resident = _status("VmRSS") if known else None
    yield peak
    highest = _status("VmHWM") if known else None
    if resident is not None and highest is not None:
        peak.bytes = max(0, highest - resident) * 1024


def _reset_resident_peak() -> bool:
    """Whether the peak of the resident memory now counts from here on (Linux)."""
    gc.collect()
    # Freed memory that the allocator keeps would be used again unseen.
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
    try:
        pathlib.Path("/proc/self/clear_refs").write_text("5")  # proc(5): 5 resets VmHWM
    except OSError:
        return False
    return True


def _status(key: str) -> int | None:
    """Kilobytes of a line of /proc/self/status."""
    for line in pathlib.Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1])
    return None


def cores() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
