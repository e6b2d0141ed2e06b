"""The chain. One screen, in the symbols of the algorithm; all that it needs was prepared by the plan."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor

from . import cuda_ops
from ._checks import check_denoised
from .priors import Prior
from .ranges import phase

if TYPE_CHECKING:
    from .execution import Tally
    from .plan import Plan

__all__ = ["CompiledStep", "Step", "run"]


class Step(Protocol):
    """mean <- mean + s1 v g(x), and the next perturbed input, bound to the plan's buffers."""

    def perturb(self, look: int, evaluation: int) -> None:
        """Write the first perturbed input."""

    def __call__(self, look: int, denoised: Tensor, evaluation: int) -> None:
        """Take the step of row ``look`` and write the input of the next, with the normals of ``evaluation``."""


def run(plan: Plan, prior: Prior, stats: dict[str, float], tally: Tally) -> Tensor:
    """From the first mean, which ``plan`` holds, to the mean at level 0, or where ``tally`` stops it."""
    clock = time.perf_counter
    started = clock()
    plan.steps[0][0].perturb(plan.looks_per_chain, 0)
    network = operator = 0.0
    look = 0
    for level in range(plan.levels):
        first, others = plan.steps[level % 2]
        for inner in range(plan.looks_per_level):
            t0 = clock()
            with phase("network"):
                d, backward = plan.conditioning.denoise(prior, plan.inputs, plan.network_levels[look])
            t1 = clock()
            with phase("operator"):
                d = plan.conditioning.condition(d, look, backward)
            t2 = clock()
            step = first if inner == 0 else others
            with phase("step"):
                step(look, d, look + 1)
            look += 1
            network += t1 - t0
            operator += t2 - t1
            if not tally.count(plan.copies * plan.prior.evaluations):
                break
        if tally.stopped:
            break
        if plan.sampled[level]:
            plan.sample(level)
    total = clock() - started
    spent = {"seconds": total, "network_seconds": network, "operator_seconds": operator}
    spent["step_seconds"] = total - network - operator
    for name, seconds in spent.items():
        stats[name] += seconds
    return plan.means[(level + 1) % 2]


class CompiledStep:
    """The compiled step. It takes addresses, so what the prior returned is checked here, every time."""

    def __init__(self, **buffers: Any) -> None:
        from . import _core

        inputs: Tensor = buffers["input"]
        mirror: Tensor | None = buffers.get("input_mirror")
        self._bound = _core.NaturalStep(antithetic=mirror is not None, **buffers)
        self._device = inputs.device
        self._shape = inputs.shape if mirror is None else (2 * inputs.shape[0], *inputs.shape[1:])
        self._mirror_offset = 0 if mirror is None else inputs.numel() * inputs.element_size()

    def perturb(self, look: int, evaluation: int) -> None:
        """See :class:`Step`."""
        self._bound.perturb(look, evaluation, cuda_ops.stream(self._device))

    def __call__(self, look: int, denoised: Tensor, evaluation: int) -> None:
        """See :class:`Step`; ValueError where ``denoised`` is not what the buffers were bound for."""
        check_denoised(denoised, self._shape, self._device)
        address = denoised.data_ptr()
        mirror = address + self._mirror_offset if self._mirror_offset else 0
        self._bound.step(look, address, mirror, evaluation, cuda_ops.stream(self._device))
