"""Watches the kernels and library calls of a plan while it runs; what is not watched is not slowed down."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from .. import ops
from ..plan import Plan
from . import cost
from .cost import Work

__all__ = ["LibraryCalls", "copies", "kernel_calls", "plain_passes"]

Seen = Callable[[Work, float], None]
Clock = Callable[[], float]
_KERNELS = (
    "mask", "block_average", "block_average_adjoint", "separable_blur", "spectral", "cosine_fold", "cosine_unfold",
    "cosine_turn", "cosine_turn_back", "conjugate_step", "conjugate_turn", "biharmonic", "clip_gradient", "normals",
)  # fmt: skip


class _Module:
    """Kernels as functions, each call told to ``seen``."""

    def __init__(self, module: Any, seen: Seen, clock: Clock) -> None:
        self._module, self._seen, self._clock = module, seen, clock

    def __getattr__(self, name: str) -> Any:
        function = getattr(self._module, name)
        if name not in _KERNELS:
            return function

        def timed(*arguments: Any, **options: Any) -> Any:
            started = self._clock()
            result = function(*arguments, **options)
            spent = self._clock() - started
            self._seen(cost.call(name, arguments), spent)
            return result

        return timed


class _Step:
    """A step of the plan, each call told to ``seen``; ``in_place``: its new mean overwrites one that it read."""

    def __init__(self, step: Any, plan: Plan, in_place: bool, seen: Seen, clock: Clock) -> None:
        self._step, self._seen, self._clock = step, seen, clock
        self._perturbs = (plan._looks[:, :, 2] > 0).any(1).tolist()
        numbers = plan.inputs[0].numel()
        options = plan.conditioning.step_options
        antithetic = plan.noise == "antithetic"
        precision = {"fixed": "fixed", "learned": "isotropic", "diagonal": "diagonal"}[plan.covariance]
        correction, mask = options.get("correction", "none"), options.get("mask")
        if correction == "mask" and mask is None:
            correction = "identity"
        blocks = {}
        if correction == "block_average":
            blocks = {"block_numbers": options["y"][0].numel(), "factor": options["factor"], "width": plan.shape[-1]}
        self._works = [
            cost.natural_step(
                numbers, perturbed=perturbed, correction=correction, antithetic=antithetic,
                drawn=plan.noise == "drawn", precision=precision, in_place=in_place,
                shared_mask=None if mask is None else mask.shape[0] == 1 < plan.shape[0], **blocks,
            ).of(plan.shape[0])
            for perturbed in (False, True)
        ]  # fmt: skip
        self._start = cost.perturb(numbers, antithetic=antithetic, diagonal=precision == "diagonal").of(plan.shape[0])

    def perturb(self, look: int, evaluation: int) -> None:
        started = self._clock()
        self._step.perturb(look, evaluation)
        self._seen(self._start, self._clock() - started)

    def __call__(self, look: int, denoised: Tensor, evaluation: int) -> None:
        started = self._clock()
        self._step(look, denoised, evaluation)
        self._seen(self._works[self._perturbs[look]], self._clock() - started)


@contextlib.contextmanager
def kernel_calls(plan: Plan, seen: Seen, clock: Clock = time.perf_counter) -> Iterator[None]:
    """While this is open, ``seen(work, seconds)`` hears of every call of our kernels that ``plan`` makes.

    The seconds are those of ``clock`` on the host: of the kernel on the CPU, of its launch on a graphics card. It
    replaces functions of this process, so nothing else should run a chain meanwhile.
    """
    steps, kernels = plan.steps, ops.kernels

    def watched(backend: str, *tensors: Tensor) -> Any:
        module = kernels(backend, *tensors)
        return None if module is None else _Module(module, seen, clock)

    try:
        # The first look of a level writes a new mean, unless looks remember the mean before and write over that.
        plan.steps = [
            [_Step(first, plan, plan.looks is not None, seen, clock), _Step(others, plan, True, seen, clock)]
            for first, others in steps
        ]
        ops.kernels = watched
        yield
    finally:
        plan.steps, ops.kernels = steps, kernels


class LibraryCalls(TorchDispatchMode):
    """Counts torch's own operations that compute: calls, bytes of their arguments and results, and how many of them
    make the host wait for the device.

    Attributes:
        calls, bytes, waits: since it was made.
        paused: True while operations are not to be counted.
    """

    def __init__(self) -> None:
        TorchDispatchMode.__init__(self)
        self.calls, self.bytes, self.waits = 0, 0, 0
        self.paused = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        aliases = any(r.alias_info is not None and not r.alias_info.is_write for r in func._schema.returns)
        if self.paused or aliases or name.startswith(("empty", "new_empty", "detach")):
            return result
        self.waits += name in ("_local_scalar_dense", "nonzero", "masked_select", "equal", "_unique2")
        self.calls += 1
        overwrites = name in ("copy_", "fill_", "zero_")  # all but the others' arguments are read
        read = tree_leaves((args[1:] if overwrites else args, kwargs or {}))
        tensors = [t for t in (*read, *tree_leaves(result)) if isinstance(t, Tensor)]
        self.bytes += sum(min(t.numel() * t.element_size(), t.untyped_storage().nbytes()) for t in tensors)
        return result


def copies(work: Work, device: torch.device) -> Callable[[], None]:
    """One plain copy that reads and writes as many bytes as a kernel."""
    source = torch.rand(max(1, round(work.bytes / 8)), device=device)
    target = torch.empty_like(source)

    def run() -> None:
        target.copy_(source)

    return run


def plain_passes(work: Work) -> Callable[[], None]:
    """Passes of torch over main memory that read, overwrite and write afresh as many bytes as a kernel.

    A CPU fetches what it writes afresh and must find room for it, so that reads and both kinds of writes take their
    own times, which also differ from processor to processor.
    """
    fresh, overwritten = work.images * work.fresh_bytes, work.images * work.overwritten_bytes
    read = work.bytes - fresh - overwritten
    # An addition reads twice what it overwrites, a multiplication as much; a copy reads what it writes.
    copied = min(fresh, max(0.0, read - overwritten))
    added = min(overwritten, max(0.0, read - copied - overwritten))
    rest = max(0.0, read - copied - overwritten - added)
    sizes = (copied, fresh - copied, added, overwritten - added, rest)
    lengths = [round(size / 4) for size in sizes]
    copied_from, copied_to, filled, added_to, added_from, scaled, summed = (
        torch.rand(lengths[index]) for index in (0, 0, 1, 2, 2, 3, 4)
    )
    passes: list[tuple[Tensor, Callable[[], object]]] = [
        (copied_to, lambda: copied_to.copy_(copied_from)),
        (filled, lambda: filled.fill_(0.5)),
        (added_to, lambda: added_to.add_(added_from, alpha=0.001)),
        (scaled, lambda: scaled.mul_(0.999)),
        (summed, summed.sum),
    ]
    wanted = [run for tensor, run in passes if tensor.numel()]

    def all_of_them() -> None:
        for run in wanted:
            run()

    return all_of_them
