"""What our kernels should take on a device, from bytes and operations; on the CPU beside what they do take.

Two functions for programs, which return what ``rmp-fast roofline --json`` prints: :func:`predict` for a card on paper,
:func:`measure` for this machine's CPU. ``rmp_fast.cli.roofline.render`` makes text of either.
"""

from __future__ import annotations

import dataclasses
import os
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from .. import ops, presets
from .._checks import check_choice, check_count
from . import cost, observe
from .chains import TASKS, Chain, observed, problem
from .cost import Work
from .devices import DEVICES, Device
from .kernels import calls

__all__ = ["IMAGES", "MEASURED", "SHARE", "TASKS", "measure", "predict"]

#: Those whose looks need no iterative solve beside the kernels.
MEASURED = tuple(name for name in TASKS if name not in presets.NONLINEAR)
#: Images of a batch, by default.
IMAGES = (1, 16, 64)
#: Of the copy bandwidth, what everything of ours between two evaluations of the network should reach.
SHARE = 0.85
#: Most kernels of ours between two evaluations.
MOST_LAUNCHES = 2
#: How far a measurement on the CPU may be from the prediction where memory decides.
NEAR = 0.25
_TARGET_IMAGES, _TARGET_SIDE, _TARGET_CHANNELS = 16, 256, 3


def predict(
    device: str = "h100", tasks: Iterable[str] = TASKS, images: Sequence[int] = IMAGES, side: int = 256
) -> dict[str, Any]:
    """Bytes, operations, launches and seconds of every kernel and task on a card, on paper.

    Args:
        device: a name of :data:`rmp_fast.bench.devices.DEVICES`.
        tasks: of :data:`TASKS`.
        images: batch sizes.
        side: pixels of the square images.

    Returns:
        JSON values: ``device`` (its numbers with their sources), ``kernels`` and ``tasks`` (rows), ``targets``.

    Raises:
        TypeError, ValueError: an unknown name, with the nearest ones, or a number below 1.
        RuntimeError: without the compiled extension.
    """
    card = DEVICES[check_choice("device", device, DEVICES)]
    chains = [_on_card(found) for found in _chains(tasks, images, side)]
    kernels = [*_of_looks(chains), cost.natural_step(3 * side * side, perturbed=False)]
    kernels += [cost.call(kernel, arguments) for kernel, arguments in calls((1, 3, side, side))]
    return {
        "device": {"id": device, **dataclasses.asdict(card)},
        "side": side,
        "kernels": [_kernel_row(work.of(count), card) for work in kernels for count in images],
        "tasks": [_task_row(found, card, count) for found in chains for count in images],
        "targets": _targets(chains, card) if side == _TARGET_SIDE else [],
    }


def _chains(tasks: Iterable[str], images: Sequence[int], side: int) -> list[Chain]:
    check_count("side", side)
    for count in images:
        check_count("images", count)
    names = [check_choice("task", task, TASKS) for task in tasks]
    if not names or not images:
        raise ValueError("`tasks` and `images` must name at least one each")
    return [observed(task, side) for task in names]


def _on_card(found: Chain) -> Chain:
    """What was observed on the CPU, without the kernels that a card does not need."""
    return dataclasses.replace(
        found, look=tuple(work for work in found.look if work.kernel not in cost.PROCESSOR_KERNELS)
    )


def _of_looks(chains: Sequence[Chain]) -> list[Work]:
    """The kernels between the evaluations of all tasks, each once."""
    return list({(work.name, work.image_bytes): work.of(1) for found in chains for work in found.look}.values())


def _kernel_row(work: Work, device: Device) -> dict[str, Any]:
    memory, arithmetic, seconds = device.memory_seconds(work), device.arithmetic_seconds(work), device.seconds(work)
    return {
        "kernel": work.name, "images": work.images, "bytes": work.bytes, "operations": work.operations,
        "launches": work.launches, "memory_seconds": memory, "arithmetic_seconds": arithmetic, "seconds": seconds,
        "bound": _bound(memory, arithmetic, device.start * work.launches), "bandwidth_share": memory / seconds,
    }  # fmt: skip


def _bound(memory: float, arithmetic: float, start: float) -> str:
    limits = {"memory": memory, "arithmetic": arithmetic, "launch": start}
    return max(limits, key=lambda name: limits[name])


def _task_row(found: Chain, device: Device, images: int) -> dict[str, Any]:
    """Everything of ours between two evaluations of the network."""
    works = [work.of(images) for work in found.look]
    seconds = sum(device.seconds(work) for work in works)
    memory = sum(device.memory_seconds(work) for work in works)
    totals = [work.operations for work in works]
    return {
        "task": found.task, "images": images, "kernels": [work.name for work in works],
        "bytes": sum(work.bytes for work in works),
        "operations": {kind: sum(total[kind] for total in totals) for kind in cost.KINDS},
        "launches": found.launches, "graph_seconds": seconds,
        # The host launches while the device works: the slower of the two decides.
        "eager_seconds": max(seconds, found.launches * device.host_launch),
        "least_graph_seconds": found.launches * device.start,
        "least_eager_seconds": found.launches * max(device.start, device.host_launch),
        "bandwidth_share": memory / seconds,
        "library_calls": found.library_calls, "library_bytes": found.library_bytes * images,
        "evaluations": found.evaluations, "chain_calls": found.calls, "chain_graph_launches": found.graph_launches,
    }  # fmt: skip


def _targets(chains: Sequence[Chain], device: Device) -> list[dict[str, Any]]:
    """What was promised on paper, and the task that is furthest from it."""
    rows = [_task_row(found, device, _TARGET_IMAGES) for found in chains]
    colour = [row for row, found in zip(rows, chains, strict=True) if found.channels == _TARGET_CHANNELS] or rows
    slowest = min(colour, key=lambda row: row["bandwidth_share"])
    most = max(rows, key=lambda row: row["launches"])
    graphs = max(rows, key=lambda row: row["chain_graph_launches"])
    return [
        _target(
            "between two evaluations of 16 x 3 x 256 x 256, share of the copy bandwidth", SHARE,
            slowest["bandwidth_share"], slowest["task"], slowest["bandwidth_share"] >= SHARE,
        ),
        _target(
            "launches of ours between two evaluations", MOST_LAUNCHES, most["launches"], most["task"],
            most["launches"] <= MOST_LAUNCHES,
        ),
        _target(
            "launches of a chain's looks as a graph", 1, graphs["chain_graph_launches"], graphs["task"],
            graphs["chain_graph_launches"] == 1,
        ),
    ]  # fmt: skip


def _target(what: str, wanted: float, found: float, worst: str, met: bool) -> dict[str, Any]:
    return {"target": what, "wanted": wanted, "found": found, "worst_task": worst, "met": met}


def measure(
    tasks: Iterable[str] = MEASURED,
    images: Sequence[int] = IMAGES,
    side: int = 256,
    threads: Sequence[int] | None = None,
) -> dict[str, Any]:
    """Predicted and measured seconds of the kernels on this machine's CPU.

    Every kernel runs in the chains of the tasks, with a stand-in for the network. Between two looks run plain passes of
    torch that read, overwrite and write afresh as many bytes as the kernel, in buffers of their own; their ratio is
    what is told, since what disturbs one disturbs the other. Normals are compute-bound: their rate is measured in a
    cache, and what reading does not hide of them comes on top.

    Args:
        tasks: of :data:`TASKS`; those that solve at every look run the kernels of the others.
        images, side: as in :func:`predict`.
        threads: numbers of threads; default one, and as many as torch uses.

    Returns:
        JSON values: ``device``, ``side``, ``kernels`` and ``tasks`` (rows with ``predicted_seconds``, ``seconds`` and
        ``ratio``, measured over predicted), ``within`` (by threads, the memory-bound rows and how many of
        them are near), and for a roofline figure ``plain_gbps``, ``gops`` and rows with ``intensity`` (operations per
        byte) and ``gops``.

    Raises:
        TypeError, ValueError, RuntimeError: as :func:`predict`.
    """
    before = torch.get_num_threads()
    threads = sorted({1, before}) if threads is None else threads
    for count in threads:
        check_count("threads", count)
    names, images = list(tasks), list(images)
    _chains(names, images, min(side, 32))  # refuses what cannot be, before any work
    kernels: list[dict[str, Any]] = []
    rows: list[dict[str, Any]] = []
    machine: dict[str, Any] = {}
    try:
        for count in threads:
            torch.set_num_threads(count)
            limits = _limits()
            machine[str(count)] = limits
            for batch in images:
                for task in names:
                    found = _measured_chain(task, batch, side, count, limits)
                    rows.append(_measured_task(task, batch, count, found))
                    kernels += [row for row in found if not _known(row, kernels)]
                kernels += [_measured_call(*other, count, limits) for other in calls((batch, 3, side, side))]
    finally:
        torch.set_num_threads(before)
    processors, load = os.cpu_count() or 1, os.getloadavg()[0]
    largest = [row for row in kernels if row["threads"] == max(threads) and row["images"] == max(images)]
    return {
        "device": {
            "id": "cpu", "name": "this machine's CPU", "threads": machine, "processors": processors, "load": load,
            # More wants to run than can: a team of threads waits for its last one.
            "busy": load > processors + 0.5,
        },
        "side": side,
        "kernels": kernels, "tasks": rows,
        "within": {str(count): _within([row for row in kernels if row["threads"] == count]) for count in threads},
        "plain_gbps": statistics.median(row["plain_gbps"] for row in largest),
        "gops": machine[str(max(threads))]["rates"]["floating"] / 1e9,
    }  # fmt: skip


def _within(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    bound = [row["ratio"] for row in rows if row["bound"] == "memory"]
    near = sum(1 / (1 + NEAR) <= ratio <= 1 + NEAR for ratio in bound)
    return {"bound": NEAR, "memory_bound_rows": len(bound), "near": near}


def _known(row: dict[str, Any], rows: Sequence[dict[str, Any]]) -> bool:
    key = ("kernel", "images", "threads", "bytes")
    return any(all(row[name] == other[name] for name in key) for other in rows)


def _clock() -> Callable[[], float]:
    """One thread's own time, in which others that the processor serves meanwhile do not count; else the wall's."""
    return time.thread_time if torch.get_num_threads() == 1 else time.perf_counter


def _least_seconds(run: Callable[[], object], repeats: int, rounds: int = 7) -> float:
    """Of one call, undisturbed."""
    clock, spent = _clock(), []
    for _ in range(rounds):
        started = clock()
        for _ in range(repeats):
            run()
        spent.append((clock() - started) / repeats)
    return min(spent)


def _limits() -> dict[str, Any]:
    """What arithmetic this machine can do with torch's present threads: a matrix product, and normals in a cache."""
    core = ops.kernels("cpu", torch.empty(1))
    assert core is not None  # the chains were observed with it
    a, b = torch.rand(512, 512), torch.rand(512, 512)
    product = _least_seconds(lambda: a @ b, 2)
    # 256 KiB per thread: in the second-level cache, and enough for the calls to be nothing beside it.
    out, seeds = torch.empty(torch.get_num_threads(), 65536), torch.arange(torch.get_num_threads())
    normal = _least_seconds(lambda: core.normals(seeds, 0, 0, out), 3) / out.numel()
    tiny = torch.empty(1, 1)
    start = _least_seconds(lambda: core.mask(tiny, tiny.to(torch.uint8), tiny), 200)
    return {"rates": {"floating": 512**3 / product}, "normal": normal, "start": start}


def _row(work: Work, threads: int, pairs: Sequence[tuple[float, float]], limits: dict[str, Any]) -> dict[str, Any]:
    """Prediction beside measurement, from pairs of the seconds of a kernel and of the passes like it."""

    def expected(plain: float) -> tuple[Device, float]:
        device = Device(
            "cpu", work.bytes / plain, "plain passes of as many bytes", limits["rates"], "a matrix product",
            limits["start"], limits["start"], "a call on one number", True, limits["normal"],
        )  # fmt: skip
        return device, device.seconds(work)

    alone = statistics.median(pair[1] for pair in pairs)
    device, predicted = expected(alone)
    seconds = statistics.median(pair[0] for pair in pairs)
    memory, arithmetic = device.memory_seconds(work), device.arithmetic_seconds(work)
    return {
        "kernel": work.name, "images": work.images, "threads": threads, "bytes": work.bytes,
        "operations": work.operations, "predicted_seconds": predicted, "seconds": seconds,
        "ratio": statistics.median(kernel / expected(plain)[1] for kernel, plain in pairs),
        "bound": _bound(memory, arithmetic, device.start), "plain_gbps": device.bandwidth / 1e9,
        "gbps": work.bytes / seconds / 1e9, "bandwidth_share": alone / seconds, "samples": len(pairs),
        "intensity": sum(work.operations.values()) / work.bytes,
        "gops": sum(work.operations.values()) / seconds / 1e9,
    }  # fmt: skip


def _measured_chain(task: str, images: int, side: int, threads: int, limits: dict[str, Any]) -> list[dict[str, Any]]:
    """The kernels between two evaluations of a task, in its chain."""
    clock = _clock()
    looks: list[list[tuple[Work, float]]] = [[]]
    passes: dict[str, Callable[[], None]] = {}
    pairs: dict[str, list[tuple[float, float]]] = {}

    def denoise(x: Tensor, s: Tensor) -> Tensor:
        for work, seconds in looks[-1] if len(looks) > 1 else ():  # not of the start
            name = work.name
            if name not in passes:
                passes[name] = observe.plain_passes(work)
                passes[name]()  # the first time there is no memory behind the pages
                pairs[name] = []
            started = clock()
            passes[name]()
            pairs[name].append((seconds, clock() - started))
        looks.append([])
        return 0.9 * x

    plan, y = problem(task, images, side, denoise, start="zero")
    with observe.kernel_calls(plan, lambda work, seconds: looks[-1].append((work, seconds)), clock):
        plan.execute(y)
    works = {work.name: work for look in looks[1:-1] for work, _ in look}
    # The first look finds pages without memory.
    return [_row(work, threads, pairs[name][1:] or pairs[name], limits) for name, work in works.items()]


def _measured_task(task: str, images: int, threads: int, kernels: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Everything of ours between two evaluations, where the next look goes through noise if any does."""
    noisy = [row for row in kernels if "noise" in row["kernel"]]
    steps = noisy or [row for row in kernels if row["kernel"].startswith("natural_step")]
    rows = [row for row in kernels if not row["kernel"].startswith("natural_step")] + steps[:1]
    predicted, seconds = (sum(row[name] for row in rows) for name in ("predicted_seconds", "seconds"))
    return {
        "task": task, "images": images, "threads": threads, "kernels": [row["kernel"] for row in rows],
        "bytes": sum(row["bytes"] for row in rows), "predicted_seconds": predicted, "seconds": seconds,
        "ratio": seconds / predicted,
    }  # fmt: skip


def _measured_call(kernel: str, arguments: tuple[Any, ...], threads: int, limits: dict[str, Any]) -> dict[str, Any]:
    core = ops.kernels("cpu", torch.empty(1))
    work = cost.call(kernel, arguments)
    plain, function, clock = observe.plain_passes(work), getattr(core, kernel), _clock()
    pairs = []
    for _ in range(12):
        started = clock()
        function(*arguments)
        between = clock()
        plain()
        pairs.append((between - started, clock() - between))
    return _row(work, threads, pairs[2:], limits)
