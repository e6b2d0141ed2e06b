"""One run of a plan: the measurement in, the chains of all branches, the estimate out."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import threading
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor

from . import engine, loop, reference
from ._modes import no_gradients
from .guidance import GRADIENTS
from .operators import LinearOperator
from .operators.forms import condition
from .priors import GaussianMixture, Prior
from .priors.gaussian import Conditioned
from .spread import posterior_variance
from .start import smooth_start

if TYPE_CHECKING:
    from .plan import Plan

__all__ = [
    "Chain",
    "Estimate",
    "Progress",
    "Stats",
    "Tally",
    "Turns",
    "chain_prior",
    "chains",
    "condition_prior",
    "counts",
    "empty",
    "no_stats",
    "prepare",
    "run",
]

Stats = engine.Stats
Progress = Callable[[int, int], object]

#: A chain from its first mean: plan, measurement on [-1, 1], prior given y, seconds, evaluations -> mean.
Chain: TypeAlias = "Callable[[Plan, Tensor, Conditioned | None, Stats, Tally], Tensor]"


@dataclasses.dataclass(frozen=True)
class Estimate:
    """What an execution returns.

    Attributes:
        mean: (B, ...) estimate of E[x0 | y], in the caller's range.
        variance: (B, ...) of x0 given y per element, in the square of the caller's unit: with ``spread_looks`` as
            :func:`rmp_fast.spread.posterior_variance` has it, with ``branches`` the unbiased variance between them,
            else None.
        ok: (B,) bool; False: the item left the finite range and its mean is the last finite one (the ``reference``
            backend returns what it got).
        stats: network evaluations per item, of all branches together (``evaluations`` forward,
            ``backward_evaluations``), those that were done; ``finished``, False where ``progress`` stopped the chain
            before its end; ``seconds`` in all and ``start_seconds``, ``network_seconds``, ``operator_seconds``,
            ``step_seconds`` of them; ``spread_seconds`` after the chain; ``buffer_bytes`` that the plan owns;
            ``solve_residual``, the largest relative residual of the Gram solves where iterative; ``graph_launches``,
            0 without a CUDA graph. For priors made of a network, ``compiled`` and ``bfloat16``, whether it ran so;
            ``compile_seconds`` of the plan, and ``guard_seconds`` in which float32 judged bfloat16, besides
            ``seconds``. Seconds are the host's, which on a device is the time to queue the work. Of a
            captured chain the parts are not known, and ``seconds`` are those of copies and launches.
    """

    mean: Tensor
    variance: Tensor | None
    ok: Tensor
    stats: Stats


class Turns:
    """Work on the same buffers, queued on any streams of a device: each waits there for the one before.

    Args:
        device: nothing needs to wait on the CPU, where work is done when its call returns.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._lock = threading.Lock()
        self._done = torch.cuda.Event() if device.type == "cuda" and torch.cuda.is_available() else None

    @contextlib.contextmanager
    def take(self) -> Iterator[None]:
        """Queue work on the current stream, behind that of the turn before."""
        if self._done is None:
            yield
            return
        with self._lock, torch.cuda.device(self._device):
            current = torch.cuda.current_stream(self._device)
            current.wait_event(self._done)
            try:
                yield
            finally:
                self._done.record(current)


class Tally:
    """Evaluations done, of ``total``, and whether the caller lets the chain go on."""

    def __init__(self, total: int, progress: Progress | None = None) -> None:
        self.done, self.total = 0, total
        self.stopped = False
        self._progress = progress

    def count(self, evaluations: int) -> bool:
        """Add the evaluations of a look; False where the chain is to stop."""
        self.done += evaluations
        if self._progress is not None and self._progress(self.done, self.total) is False:
            self.stopped = self.done < self.total
        return not self.stopped


def empty(plan: Plan, mean: Tensor) -> Estimate:
    """The estimate of an empty batch."""
    ok = torch.ones(0, dtype=torch.bool, device=plan.device)
    tally = Tally(plan.evaluations)
    tally.done = plan.evaluations
    variance = torch.empty_like(mean) if plan.spread_looks or plan.branches > 1 else None
    return Estimate(mean, variance, ok, _stats(plan) | counts(plan, tally))


def run(plan: Plan, y: Tensor, seeds: Tensor, mean: Tensor, progress: Progress | None) -> Estimate:
    """Run the chain on checked arguments; ``mean`` receives the result, in the caller's range."""
    stats, tally = _stats(plan), Tally(plan.evaluations, progress)
    conditioned = condition_prior(plan, y) if plan.guidance == "exact" else None

    def result(told: Stats, counted: Tally) -> engine.Result:
        estimate, variance = chains(plan, y, seeds, conditioned, told, counted)
        return estimate, variance, plan.ok.bool()

    found = result(stats, tally)
    if not tally.stopped:
        found = engine.settle(
            plan.network, found, lambda: result(no_stats(), Tally(plan.evaluations)), 2 * plan.half, stats
        )
    mean.copy_(found[0])
    if plan.conditioning.solves and plan.backend != "reference":
        stats["solve_residual"] = float(plan.conditioning.solve_residual.max())
    return Estimate(mean, found[1], found[2], stats | counts(plan, tally))


def no_stats() -> Stats:
    """Seconds, none spent yet."""
    parts = ("seconds", "start_seconds", "network_seconds", "operator_seconds", "step_seconds")
    return dict.fromkeys(parts, 0.0)


def _stats(plan: Plan) -> Stats:
    return no_stats() | engine.stats_of(plan.network) | {"buffer_bytes": plan.buffer_bytes, "graph_launches": 0}


def counts(plan: Plan, tally: Tally) -> Stats:
    """What a run adds to its stats when it is over."""
    backward = tally.done if plan.guidance in GRADIENTS else 0
    return {"evaluations": tally.done, "backward_evaluations": backward, "finished": not tally.stopped}


def inside(plan: Plan, y: Tensor) -> Tensor:
    """A measurement of images on [-1, 1], from one in the caller's range."""
    measured = y.to(plan.dtype)
    return measured if plan.offset is None else (measured - plan.offset) / plan.half


def condition_prior(plan: Plan, y: Tensor) -> Conditioned:
    """The prior given the measurement, for the guidance ``exact``."""
    assert isinstance(plan.prior, GaussianMixture)  # check_guidance saw to it
    return plan.prior.condition(inside(plan, y), plan.op, plan.noise_std)


def chains(
    plan: Plan, y: Tensor, seeds: Tensor, conditioned: Conditioned | None, stats: Stats, tally: Tally,
    chain: Chain | None = None,
) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    """Mean and variance in the caller's range, on the device from end to end: nothing here waits for the host.

    Args:
        y, seeds: (B, ...) in the caller's range, and (B,).
        conditioned: the prior given y, for the guidance ``exact``.
        stats: receives the seconds.
        tally: counts the evaluations.
        chain: how one chain is run; default look by look.
    """
    chain = _chain if chain is None else chain
    measured = inside(plan, y)
    plan.ok.fill_(1)
    plan.conditioning.solve_residual.zero_()
    if plan.branches == 1:
        plan.seeds.copy_(seeds)
        result, variance = chain(plan, measured, conditioned, stats, tally), None
        if plan.spread_looks and not tally.stopped:
            variance = _spread(plan, result, measured, conditioned, stats, tally)
    else:
        result, variance = _branches(plan, measured, seeds, conditioned, stats, tally, chain)
    if not plan.converts:
        return result, variance
    result = result * plan.half + (plan.low + plan.half)
    return result, None if variance is None else variance * plan.half**2


def _branches(
    plan: Plan, measured: Tensor, seeds: Tensor, conditioned: Conditioned | None, stats: Stats, tally: Tally,
    chain: Chain,
) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    """Mean of the branches and their unbiased variance (Welford's update); those that were finished, if any was."""
    mean, squares = (t.zero_() for t in plan.moments)
    each = plan.looks_per_chain * plan.copies * plan.prior.evaluations
    for branch in range(plan.branches):
        plan.seeds.copy_(reference.branch_seeds(seeds, branch))
        result = chain(plan, measured, conditioned, stats, tally).to(plan.dtype)
        cut = tally.done < (branch + 1) * each or (tally.stopped and plan.sampled[-1])
        if cut and branch == 0:
            return result, None
        finished = branch if cut else branch + 1
        if not cut:
            difference = result - mean
            mean.add_(difference, alpha=1 / finished)
            squares.add_(difference * (result - mean))
        if tally.stopped:
            break
    return mean, squares / (finished - 1) if finished > 1 else None


def _chain(plan: Plan, measured: Tensor, conditioned: Conditioned | None, stats: Stats, tally: Tally) -> Tensor:
    if plan.backend == "reference":
        return _reference_chain(plan, measured, stats, tally)
    started = time.perf_counter()
    prepare(plan, measured)
    spent = time.perf_counter() - started
    stats["start_seconds"] += spent
    stats["seconds"] += spent
    with no_gradients():
        return loop.run(plan, chain_prior(plan, conditioned), stats, tally)


def prepare(plan: Plan, measured: Tensor) -> None:
    """Take the measurement and set the first mean and the curvature."""
    if plan.guidance != "exact":
        plan.conditioning.load(measured)
    plan.means[0].copy_(_first_mean(plan, measured))
    plan.means[1].copy_(plan.means[0])
    if plan.curvature is not None:
        plan.curvature.zero_()


def chain_prior(plan: Plan, conditioned: Conditioned | None) -> Prior:
    """Whose D the looks of the chain see."""
    return plan.network if conditioned is None else conditioned.repeat(plan.copies)


def _first_mean(plan: Plan, measured: Tensor) -> Tensor:
    if plan.start == "zero":
        return torch.zeros((), dtype=measured.dtype, device=plan.device)
    assert isinstance(plan.op, LinearOperator)  # Plan saw to it
    return smooth_start(measured, plan.op, plan.shape)


def _spread(
    plan: Plan, mean: Tensor, measured: Tensor, conditioned: Conditioned | None, stats: Stats, tally: Tally
) -> Tensor:
    started = time.perf_counter()
    levels = torch.full((plan.shape[0],), plan.spread_level, dtype=mean.dtype, device=plan.device)
    prior = plan.network if conditioned is None else conditioned

    def conditioned_image(d: Tensor, r2: Tensor) -> Tensor:
        if conditioned is not None:
            return d
        assert isinstance(plan.op, LinearOperator)  # check_guidance saw to it
        form = plan.op.form(plan.shape, plan.device, d.dtype)
        return condition(form, plan.op, d, measured.to(d.dtype), r2, plan.noise_std)

    with no_gradients():
        variance = posterior_variance(
            lambda x: prior.denoise(x, levels), conditioned_image, mean, plan.seeds, plan.spread_level,
            plan.spread_looks, lambda: tally.count(2 * plan.prior.evaluations),
        )  # fmt: skip
    plan.ok.logical_and_(torch.isfinite(variance).flatten(1).all(1))
    stats["spread_seconds"] = time.perf_counter() - started
    return variance


def _reference_chain(plan: Plan, measured: Tensor, stats: Stats, tally: Tally) -> Tensor:
    names = ("guidance", "guidance_scale", "noise", "inner_steps", "step_size", "relaxation", "anchor")
    options: dict[str, Any] = {name: getattr(plan, name) for name in (*names, "covariance", "precision_rate")}
    options["switch_level"] = plan.switch_level if plan.branches > 1 else math.inf
    started = time.perf_counter()
    measured = measured.double()
    start = _first_mean(plan, measured).double().expand(plan.shape)

    def watch() -> bool:
        return tally.count(plan.copies * plan.prior.evaluations)

    if plan.looks is not None:
        columns = [getattr(plan.looks, field.name) for field in dataclasses.fields(plan.looks)]
        columns[1] = columns[1] * (plan.noise != "none")
        rows = [tuple(row) for row in torch.stack(columns, 1).tolist()]
        mean = reference.chain_of_looks(
            measured, plan.op, plan.prior, plan.noise_std, rows, plan.seeds, start, plan.noise == "antithetic", watch,
            plan.guidance,
        )  # fmt: skip
    else:
        mean = reference.reverse_mean_propagation(
            measured, plan.op, plan.prior, plan.noise_std, plan.schedule.levels, plan.seeds, plan.shape, start=start,
            watch=watch, **options,
        )  # fmt: skip
    stats["seconds"] += time.perf_counter() - started
    plan.ok.logical_and_(torch.isfinite(mean).flatten(1).all(1))
    return mean
