"""CUDA graphs: a plan's whole chain, network included, recorded once and replayed with one launch.

What changes between executions is copied into buffers that the plan or the graph owns before the replay. Where the
network cannot be recorded, the parts of the chain between its calls are.
"""

from __future__ import annotations

import abc
import contextlib
import dataclasses
import functools
import threading
import time
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from . import engine, execution
from ._modes import no_gradients
from .execution import Estimate, Progress, Stats, Tally, Turns
from .priors.gaussian import Conditioned
from .watch import Watch, place_of

if TYPE_CHECKING:
    from .plan import Plan

__all__ = ["Captured", "GraphPool", "Recording", "capture", "check", "graph_of", "refusal"]

#: torch allows one capture at a time in a process.
_capturing = threading.Lock()


@dataclass(frozen=True)
class Recording:
    """What :meth:`rmp_fast.Plan.capture` recorded.

    Attributes:
        whole: the chain is one graph; else the parts between the calls of the network are graphs.
        graphs: launches of a graph per execution, of one branch where not whole.
        prevented_by: the operation for which the chain could not be recorded as a whole, and where it stands; None.
        bytes: of buffers that the graph keeps beside the plan's.
    """

    whole: bool
    graphs: int
    prevented_by: str | None
    bytes: int


class GraphPool:
    """Device memory that the graphs of several plans share.

    What one graph writes is memory of the others too, so replays take turns: each waits on the device, not on the host,
    for the one before, whatever stream that was on. What an execution returns lies outside.

    Args:
        device: a CUDA device.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.handle: Any = torch.cuda.graph_pool_handle()
        self.stream = torch.cuda.Stream(device)  # of all captures: memory is reused on the stream that it was used on
        self.turns = Turns(device)

    @property
    def bytes(self) -> int:
        """Device memory that the pool holds."""
        segments = torch.cuda.memory_snapshot()
        return sum(s["total_size"] for s in segments if tuple(s["segment_pool_id"]) == tuple(self.handle))


def refusal(plan: Plan) -> str | None:
    """Why a plan cannot be captured, or None."""
    if plan.device.type != "cuda":
        return f"CUDA graphs record the work of a CUDA device, and the plan's device is {plan.device}"
    if plan.backend == "reference":
        return "the backend 'reference' computes step by step on the host; use backend='auto'"
    if plan.shape[0] == 0:
        return "an empty batch has no work to record"
    if not engine.is_settled(plan.network):
        return "its first execution in bfloat16, which float32 judges, is still to come; execute it once before"
    return None


def check(plan: Plan) -> None:
    """ValueError where the plan cannot be captured, with the reason."""
    reason = refusal(plan)
    if reason is not None:
        raise ValueError(f"the plan cannot be captured: {reason}")


def capture(plan: Plan, pool: GraphPool | None) -> Captured:
    """Record the chain of ``plan``; see :meth:`rmp_fast.Plan.capture`."""
    check(plan)
    if pool is not None and pool.device != plan.device:
        raise ValueError(f"`pool` must be on the plan's device {plan.device}, got {pool.device}")
    with _capturing, torch.cuda.device(plan.device), torch.no_grad():
        pool = GraphPool(plan.device) if pool is None else pool
        buffers = _Buffers(plan)
        before = torch.cuda.current_stream(plan.device)
        # What made the plan, and replays in the pool, must be over before others write there.
        torch.cuda.synchronize(plan.device)
        try:
            with torch.cuda.stream(pool.stream):
                made = _record_whole(plan, pool, buffers)
                return made if isinstance(made, Captured) else _record_pieces(plan, pool, buffers, made)
        finally:
            # A capture that failed leaves its stream the current one.
            torch.cuda.set_stream(before)
            torch.cuda.synchronize(plan.device)


class _Buffers:
    """What is copied in before a replay, and where the result lies after it."""

    def __init__(self, plan: Plan) -> None:
        made: dict[str, Any] = {"dtype": plan.dtype, "device": plan.device}
        self.y = torch.zeros(plan.measurement_shape, **made)
        self.seeds = torch.zeros(plan.shape[0], dtype=torch.int64, device=plan.device)
        self.mean = torch.zeros(plan.shape, **made)
        self.variance = torch.zeros(plan.shape, **made) if plan.spread_looks or plan.branches > 1 else None
        self.conditioned: Conditioned | None = None
        if plan.guidance == "exact":
            first = execution.condition_prior(plan, self.y)
            self.conditioned = Conditioned(first.components.map(torch.clone), first.data_variance, first.name)

    def load(self, plan: Plan, y: Tensor, seeds: Tensor) -> None:
        """Take the arguments of an execution."""
        self.y.copy_(y)
        self.seeds.copy_(seeds)
        if self.conditioned is not None:
            # Decompositions wait for the host, so they are no part of the graph.
            self.conditioned.components.copy_(execution.condition_prior(plan, self.y).components)

    def keep(self, result: Tensor, variance: Tensor | None) -> None:
        """Copy the result out of the memory that graphs share."""
        self.mean.copy_(result)
        if variance is not None and self.variance is not None:
            self.variance.copy_(variance)

    @property
    def bytes(self) -> int:
        """Of all of them."""
        parts = [] if self.conditioned is None else list(vars(self.conditioned.components).values())
        own = [self.y, self.seeds, self.mean, *parts, *([] if self.variance is None else [self.variance])]
        return sum(t.numel() * t.element_size() for t in own)


class Captured(abc.ABC):
    """A recorded chain: :meth:`execute` copies the arguments in, replays, and copies the result out.

    It is given the plan every time and keeps none: the two would keep each other and the graph's memory alive.
    """

    def __init__(self, pool: GraphPool, buffers: _Buffers, recording: Recording) -> None:
        self.pool, self.buffers, self.recording = pool, buffers, recording

    def execute(self, plan: Plan, y: Tensor, seeds: Tensor, mean: Tensor, progress: Progress | None) -> Estimate:
        """As :func:`rmp_fast.execution.run`, to the bit."""
        started, tally = time.perf_counter(), Tally(plan.evaluations, progress)
        with self.pool.turns.take():
            self.buffers.load(plan, y, seeds)
            variance, launches = self._replay(plan, tally)
            mean.copy_(self.buffers.mean)
            variance = None if variance is None else variance.clone()
        stats: Stats = {"seconds": time.perf_counter() - started, "buffer_bytes": plan.buffer_bytes}
        stats |= engine.stats_of(plan.network) | execution.counts(plan, tally) | {"graph_launches": launches}
        if plan.conditioning.solves:
            stats["solve_residual"] = float(plan.conditioning.solve_residual.max())
        return Estimate(mean, variance, plan.ok.bool(), stats)

    @abc.abstractmethod
    def _replay(self, plan: Plan, tally: Tally) -> tuple[Tensor | None, int]:
        """Run from the buffers into the buffers; the variance and the graphs launched."""


def graph_of(pool: GraphPool, work: Callable[[], object]) -> torch.cuda.CUDAGraph:
    """Record what ``work`` queues; it must have run before, so that nothing is loaded or chosen meanwhile."""
    graph = torch.cuda.CUDAGraph()
    # Other threads may go on allocating: their memory is none of this graph's.
    with torch.cuda.graph(graph, pool=pool.handle, stream=pool.stream, capture_error_mode="thread_local"):
        work()
    return graph


def _recover(pool: GraphPool) -> None:
    """End what some versions of torch leave begun when a capture fails: allocations go to the pool, none is freed."""
    end = getattr(torch._C, "_cuda_endAllocateToPool", None)
    if end is not None and pool.device.type == "cuda":
        # Other versions have ended it, and say so.
        with contextlib.suppress(RuntimeError):
            end(pool.device.index, pool.handle)


def _obstacle(pool: GraphPool, work: Callable[[], object]) -> str | None:
    """Run twice, so that libraries choose and load what they need; the first thing that a capture would trip over."""
    with Watch() as watch:
        work()
    work()
    pool.stream.synchronize()
    return watch.found[0] if watch.found else None


class _Whole(Captured):
    graph: torch.cuda.CUDAGraph

    def _replay(self, plan: Plan, tally: Tally) -> tuple[Tensor | None, int]:
        self.graph.replay()
        tally.done = tally.total
        return self.buffers.variance, 1


def _record_whole(plan: Plan, pool: GraphPool, buffers: _Buffers) -> Captured | str:
    """The chain as one graph, or what prevents that."""

    def work() -> None:
        stats, tally = execution.no_stats(), Tally(plan.evaluations)
        buffers.keep(*execution.chains(plan, buffers.y, buffers.seeds, buffers.conditioned, stats, tally))

    obstacle = _obstacle(pool, work)
    if obstacle is not None:
        return obstacle
    made = _Whole(pool, buffers, Recording(True, 1, None, buffers.bytes))
    try:
        made.graph = graph_of(pool, work)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        _recover(pool)
        # Ending a capture that went wrong fails too; what went wrong is the context of that.
        first = error.__context__ if isinstance(error.__context__, RuntimeError) else error
        place = place_of(traceback.extract_tb(first.__traceback__))
        return f"{str(first).strip().splitlines()[0]}{place}"
    return made


class _Pieces(Captured):
    """Graphs of what lies between the calls of the network, which runs from them and into them.

    ``start``; for every look ``advance``, before it ``direct`` where gradients go back through the network, and
    ``sample`` by the level that is followed by one.
    """

    measured: Tensor
    denoised: Tensor
    direction: Tensor
    residual: Tensor | None
    returned: Tensor
    start: torch.cuda.CUDAGraph
    advance: list[torch.cuda.CUDAGraph]
    direct: list[torch.cuda.CUDAGraph]
    sample: dict[int, torch.cuda.CUDAGraph]

    def _replay(self, plan: Plan, tally: Tally) -> tuple[Tensor | None, int]:
        self.launches = 0
        buffers = self.buffers
        result, variance = execution.chains(
            plan, buffers.y, buffers.seeds, buffers.conditioned, execution.no_stats(), tally, self._chain
        )
        buffers.mean.copy_(result)
        return variance, self.launches

    def _launch(self, graph: torch.cuda.CUDAGraph) -> None:
        graph.replay()
        self.launches += 1

    def _chain(
        self, plan: Plan, measured: Tensor, conditioned: Conditioned | None, stats: Stats, tally: Tally
    ) -> Tensor:
        """See :data:`rmp_fast.execution.Chain`."""
        prior = execution.chain_prior(plan, conditioned)
        self.measured.copy_(measured)
        self._launch(self.start)
        with no_gradients():
            for look, advance in enumerate(self.advance):
                level = look // plan.looks_per_level
                if look == level * plan.looks_per_level and level - 1 in self.sample:
                    self._launch(self.sample[level - 1])
                d, backward = plan.conditioning.denoise(prior, plan.inputs, plan.network_levels[look])
                self.denoised.copy_(d)
                if backward is not None:
                    self._launch(self.direct[look])
                    self.returned.copy_(backward(self.direction))
                self._launch(advance)
                if not tally.count(plan.copies * plan.prior.evaluations):
                    return plan.means[(level + 1) % 2]
        if plan.levels - 1 in self.sample:
            self._launch(self.sample[plan.levels - 1])
        return plan.means[plan.levels % 2]


def _record_pieces(plan: Plan, pool: GraphPool, buffers: _Buffers, prevented: str) -> Captured:
    """The chain as graphs between the calls of its network; RuntimeError where those cannot be captured either."""
    conditioning, gradients = plan.conditioning, plan.conditioning.gradient is not None
    sampled = [level for level, is_sampled in enumerate(plan.sampled) if is_sampled]
    looks = range(plan.looks_per_chain)
    graphs = 1 + len(looks) * (1 + gradients) + len(sampled)
    images = [torch.zeros_like(plan.inputs) for _ in range(3 if gradients else 1)]
    made = _Pieces(pool, buffers, Recording(False, graphs, prevented, 0))
    made.measured, made.denoised = torch.zeros_like(buffers.y), images[0]
    if gradients:
        made.direction, made.returned = images[1:]
    residuals = (plan.inputs.shape[0], *buffers.y.shape[1:])
    made.residual = buffers.y.new_zeros(residuals) if plan.guidance == "dps" else None
    own = [made.measured, *images, *([] if made.residual is None else [made.residual])]
    bytes_of_pieces = sum(t.numel() * t.element_size() for t in own)
    made.recording = dataclasses.replace(made.recording, bytes=buffers.bytes + bytes_of_pieces)

    def start() -> None:
        execution.prepare(plan, made.measured)
        plan.steps[0][0].perturb(plan.looks_per_chain, 0)

    def direct(look: int) -> None:
        direction, residual = conditioning.directions(made.denoised, look)
        made.direction.copy_(direction)
        if made.residual is not None and residual is not None:
            made.residual.copy_(residual)

    def advance(look: int) -> None:
        level, inner = divmod(look, plan.looks_per_level)
        d = made.denoised
        if gradients:
            conditioning.take_gradient(made.returned, made.direction, made.residual, look)
        else:
            d = conditioning.condition(d, look, None)
        plan.steps[level % 2][min(inner, 1)](look, d, look + 1)

    def everything() -> None:
        start()
        for look in looks:
            if gradients:
                direct(look)
            advance(look)
        for level in sampled:
            plan.sample(level)

    with no_gradients():
        obstacle = _obstacle(pool, everything)
        if obstacle is not None:
            raise RuntimeError(
                f"the plan cannot be captured: {prevented}; nor between the calls of its network: {obstacle}; it still "
                "executes, without a graph"
            )
        made.start = graph_of(pool, start)
        made.direct = [graph_of(pool, functools.partial(direct, look)) for look in looks] if gradients else []
        made.advance = [graph_of(pool, functools.partial(advance, look)) for look in looks]
        made.sample = {level: graph_of(pool, functools.partial(plan.sample, level)) for level in sampled}
    warnings.warn(
        f"the chain cannot be captured as a whole: {prevented}; the parts between the calls of the network "
        f"{plan.prior.name!r} are, as {graphs} graphs",
        RuntimeWarning,
        stacklevel=4,
    )
    return made
