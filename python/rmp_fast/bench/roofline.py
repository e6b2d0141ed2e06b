"""What our kernels should take on a device, from bytes and operations; on the CPU beside what they do take.

Two functions for programs, which return what ``rmp-fast roofline --json`` prints: :func:`predict` for a card on paper,
:func:`measure` for this machine's CPU. :func:`render` makes either a table of text.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from .. import backends, operators, presets, priors
from .._checks import check_choice, check_count
from ..plan import Plan
from . import cost, observe
from .cost import Work
from .devices import DEVICES, Device

__all__ = ["IMAGES", "SHARE", "TASKS", "Chain", "chain", "predict", "render"]

#: Those of :mod:`rmp_fast.presets`; ``mri`` has two channels, real and imaginary part, the others three.
TASKS = presets.TASKS
#: Images of a batch, by default.
IMAGES = (1, 16, 64)
#: Of the copy bandwidth, what everything of ours between two evaluations of the network should reach.
SHARE = 0.85
#: Most kernels of ours between two evaluations.
MOST_LAUNCHES = 2
_TARGET_IMAGES, _TARGET_SIDE = 16, 256


@dataclasses.dataclass(frozen=True)
class Chain:
    """What one chain does between its network evaluations, observed while it ran with a stand-in for the network.

    Attributes:
        task, evaluations: its name, and network evaluations of the chain.
        look: our kernels between two evaluations, where the next look goes through noise if any does.
        calls: of our kernels in the whole chain, its start included.
        library_calls, library_bytes: torch's own operations between two evaluations, the latter per image.
        waits: times at which the host waits for the device, from the first evaluation to the last.
    """

    task: str
    evaluations: int
    look: tuple[Work, ...]
    calls: int
    library_calls: float
    library_bytes: float
    waits: int

    @property
    def launches(self) -> int:
        """Of our kernels between two evaluations."""
        return sum(work.launches for work in self.look)

    @property
    def graph_launches(self) -> int:
        """Graphs that the looks of one chain need: another one wherever the host waits."""
        return 1 + self.waits


def operator(task: str, shape: Sequence[int]) -> operators.Operator:
    """The operator of a task for images (B, C, H, W), with the settings that ``rmp-fast compare`` simulates it with."""
    batch, _, height, width = shape
    check_choice("task", task, TASKS)
    if task in ("mri", "phase_retrieval", "nonlinear_deblur"):
        return operators.for_task(task, shape)
    if task == "inpaint_random":
        masks = [operators.random_mask((1, height, width), 0.7, seed) for seed in range(batch)]
        return operators.Inpainting(torch.stack(masks))
    if task == "inpaint_box":
        return operators.Inpainting(operators.box_mask((height, width), max(1, min(height, width) // 4)))
    made: dict[str, Callable[[], operators.Operator]] = {
        "denoise": operators.Denoising,
        "sr4": lambda: operators.SuperResolution(4),
        "gaussian_deblur": lambda: operators.GaussianBlur(2.0),
        "motion_deblur": lambda: operators.Blur(operators.motion_kernel(15.0, 45.0)),
    }
    return made[task]()


def chain(task: str, side: int) -> Chain:
    """Run one chain of a task on two images of ``side`` pixels, watched, with a network that only scales its input.

    Raises:
        ValueError: an unknown task, or a side that its operator cannot take.
        RuntimeError: the compiled extension is missing, whose calls are what is watched.
    """
    if backends.core_error is not None:
        raise RuntimeError(f"the kernels' calls cannot be observed: {backends.core_error}")
    shape = (2, 2 if task == "mri" else 3, side, side)
    op = operator(task, shape)
    between: list[tuple[list[Work], int, int, int]] = []
    works: list[Work] = []
    library = observe.LibraryCalls()

    def denoise(x: Tensor, s: Tensor) -> Tensor:
        library.paused = True
        between.append((works.copy(), library.calls, library.bytes, library.waits))
        works.clear()
        result = 0.9 * x
        library.paused = False
        return result

    prior = priors.from_denoiser(denoise, data_variance=0.25)
    # Nonlinear tasks have no tuned chain and solve at every look: a short one shows what a look does.
    settings = presets.for_task(task, "photo", 2 if task in presets.NONLINEAR else 20)
    plan = Plan(op, prior, shape, 0.05, backend="cpu", **settings)
    generator = torch.Generator().manual_seed(0)
    y = op.A(torch.rand(shape, generator=generator) - 0.5)
    with library, observe.kernel_calls(plan, lambda work, seconds: works.append(work)):
        plan.execute(y)
    looks = [seen for seen, *_ in between[1:]]
    calls = sum(len(seen) for seen, *_ in between) + len(works)
    first, last = between[0], between[-1]
    count = len(looks)
    return Chain(
        task, plan.evaluations, tuple(max(looks, key=lambda look: sum(work.normals for work in look))), calls,
        (last[1] - first[1]) / count, (last[2] - first[2]) / count / shape[0], last[3] - first[3],
    )  # fmt: skip


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
    chains = _chains(tasks, images, side)
    kernels = _distinct(chains, side)
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
    return [chain(task, side) for task in names]


def _distinct(chains: Sequence[Chain], side: int) -> list[Work]:
    """The kernels of all tasks, each once, and those that chains call elsewhere (starts, gradients), for three channels."""
    found = {work.name + f", {work.image_bytes}": work.of(1) for c in chains for work in c.look}
    numbers = 3 * side * side
    found["step"] = cost.natural_step(numbers, perturbed=False)
    x, taps = torch.empty(1, 3, side, side), torch.empty(17)
    factor = min(4, side)
    blocks = torch.empty(1, 3, -(-side // factor), -(-side // factor))
    mask, seeds = torch.empty(1, 3, side, side, dtype=torch.uint8), torch.empty(1)
    others: tuple[tuple[str, tuple[Any, ...]], ...] = (
        ("mask", (x, mask, x)),
        ("block_average", (x, factor, blocks)),
        ("block_average_adjoint", (blocks, factor, x)),
        ("separable_blur", (x, taps, taps, "reflect", False, x)),
        ("normals", (seeds, 0, 0, x)),
    )
    return [*found.values(), *(cost.call(kernel, arguments) for kernel, arguments in others)]


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
    slowest = min(rows, key=lambda row: row["bandwidth_share"])
    most = max(rows, key=lambda row: row["launches"])
    graphs = max(rows, key=lambda row: row["chain_graph_launches"])
    return [
        _target(
            f"between two evaluations at {_TARGET_IMAGES} images, share of the copy bandwidth", SHARE,
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
