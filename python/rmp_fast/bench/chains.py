"""The tasks' chains, observed: which kernels run between two evaluations of the network, and what else does."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .. import backends, operators, presets, priors
from ..plan import Plan
from . import observe
from .cost import Work

__all__ = ["TASKS", "Chain", "observed", "problem"]

#: Those of :mod:`rmp_fast.presets`; ``mri`` has two channels, real and imaginary part, the others three.
TASKS = presets.TASKS


@dataclasses.dataclass(frozen=True)
class Chain:
    """What one chain does between its network evaluations, observed while it ran with a stand-in for the network.

    Attributes:
        task, evaluations: its name, and network evaluations of the chain.
        channels: of its images.
        look: our kernels between two evaluations, where the next look goes through noise if any does.
        calls: of our kernels in the whole chain, its start included.
        library_calls, library_bytes: torch's own operations between two evaluations, the latter per image.
        waits: times at which the host waits for the device, from the first evaluation to the last.
    """

    task: str
    evaluations: int
    channels: int
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


def problem(
    task: str, images: int, side: int, denoise: Callable[[Tensor, Tensor], Tensor], **settings: Any
) -> tuple[Plan, Tensor]:
    """The chain that a task's name stands for, on square random images, and a measurement for it.

    Args:
        denoise: D(x, s) for x (B, C, H, W).
        settings: of the plan, in place of those of the task.
    """
    shape = (images, 2 if task == "mri" else 3, side, side)
    op = operators.for_task(task, shape)
    # Nonlinear tasks solve at every look: a short chain shows what a look does.
    tuned = presets.for_task(task, "photo", 2 if task in presets.NONLINEAR else 20)
    prior = priors.from_denoiser(denoise, data_variance=0.25)
    plan = Plan(op, prior, shape, 0.05, backend="cpu", **(tuned | settings))
    return plan, op.A(torch.rand(shape, generator=torch.Generator().manual_seed(0)) - 0.5)


def observed(task: str, side: int) -> Chain:
    """Run one chain of a task on two images of ``side`` pixels, watched, with a network that only scales its input.

    Raises:
        ValueError: an unknown task, or a side that its operator cannot take.
        RuntimeError: the compiled extension is missing, whose calls are what is watched.
    """
    if backends.core_error is not None:
        raise RuntimeError(f"the kernels' calls cannot be observed: {backends.core_error}")
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

    plan, y = problem(task, 2, side, denoise)
    with library, observe.kernel_calls(plan, lambda work, seconds: works.append(work)):
        plan.execute(y)
    looks = [seen for seen, *_ in between[1:]]
    calls = sum(len(seen) for seen, *_ in between) + len(works)
    first, last = between[0], between[-1]
    count = len(looks)
    noisiest = max(looks, key=lambda look: sum(work.normals for work in look))
    return Chain(
        task, plan.evaluations, plan.shape[1], tuple(noisiest), calls,
        (last[1] - first[1]) / count, (last[2] - first[2]) / count / 2, last[3] - first[3],
    )  # fmt: skip
