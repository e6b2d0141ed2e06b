"""Plans for several image shapes, made and captured before they are needed, lent to one thread at a time."""

from __future__ import annotations

import contextlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from . import graph
from ._checks import check_choice, check_count, check_positive, shape_text
from .execution import Estimate
from .plan import Plan

__all__ = ["PlanCache"]

Shape = tuple[int, ...]


@dataclass
class _Shelf:
    """The plans of one shape, those that are not lent, and whether :meth:`PlanCache.warm` made one of them."""

    warm: bool
    plans: list[Plan] = field(default_factory=list)
    idle: list[Plan] = field(default_factory=list)


class PlanCache:
    """Plans by image shape, for programs that serve measurements of several sizes from several threads.

    :meth:`warm` makes plans and, on a CUDA device, captures them; their graphs share one memory pool. Serving, by
    :meth:`execute` or :meth:`lend`, never captures: it would stop every stream of the device for seconds.

        cache = rmp.PlanCache(op=op, prior=prior, noise_std=0.05, device="cuda")
        cache.warm((8, 3, 256, 256))
        estimate = cache.execute((8, 3, 256, 256), y, seeds)

    Args:
        make: image shape (B, ...) -> :class:`rmp_fast.Plan`. None: plans are made of ``arguments``.
        max_plans: plans kept, over all shapes.
        max_bytes: most bytes of :attr:`bytes`; None: no limit but that of the device.
        uncaptured: what happens to a shape that is not warm: ``"error"``, or ``"run"``: a plan is made for it and runs
            without a graph. Of such plans the least recently used ones are dropped where there are too many; warm ones
            never are.
        capture: whether :meth:`warm` captures; None: on CUDA devices. A plan in bfloat16 is captured after its first
            execution, so for such plans ``make`` executes them once.
        **arguments: of :class:`rmp_fast.Plan`, without ``shape``.

    Raises:
        TypeError, ValueError: both or neither of ``make`` and ``arguments``, numbers out of range.
    """

    def __init__(
        self, make: Callable[[Shape], Plan] | None = None, *, max_plans: int = 8, max_bytes: int | None = None,
        uncaptured: str = "error", capture: bool | None = None, **arguments: Any,
    ) -> None:  # fmt: skip
        if (make is None) == (not arguments):
            raise ValueError("give `make`, a function of the image shape, or the arguments of rmp_fast.Plan, not both")
        if make is not None and not callable(make):
            raise TypeError(f"`make` must be a function of the image shape, got {type(make).__name__}")
        if "shape" in arguments:
            raise ValueError("`shape` must not be given: a cache holds plans of several; name them in warm()")
        self._make = (lambda shape: Plan(shape=shape, **arguments)) if make is None else make
        self._max_plans = check_count("max_plans", max_plans)
        self._max_bytes = None if max_bytes is None else check_positive("max_bytes", max_bytes)
        self._runs = check_choice("uncaptured", uncaptured, ("error", "run")) == "run"
        self._captures = capture
        self._shelves: OrderedDict[Shape, _Shelf] = OrderedDict()
        self._pools: dict[torch.device, graph.GraphPool] = {}
        self._returned = threading.Condition()
        self._warming = threading.Lock()

    @property
    def shapes(self) -> list[Shape]:
        """The warm shapes."""
        with self._returned:
            return [shape for shape, shelf in self._shelves.items() if shelf.warm]

    @property
    def plans(self) -> int:
        """How many plans there are, of all shapes."""
        with self._returned:
            return self._count()

    @property
    def bytes(self) -> int:
        """Bytes of the plans' buffers and operator data, of their graphs' buffers and of the memory graphs share."""
        with self._returned:
            return self._total()

    def warm(self, *shapes: Shape, plans: int = 1) -> list[graph.Recording]:
        """Make, and on a CUDA device capture, ``plans`` plans for every shape, besides those that are there.

        Args:
            shapes: of images, (B, C, H, W) or (B, N).
            plans: of one shape, as many as threads are to execute it at once.

        Returns:
            what was recorded, one per plan; nothing where nothing is captured.

        Raises:
            TypeError, ValueError: of :class:`rmp_fast.Plan`; more plans than ``max_plans`` or more bytes than
                ``max_bytes``: the plan that was too much is dropped, those before it stay.
        """
        check_count("plans", plans)
        recordings = []
        for shape in shapes:
            for _ in range(plans):
                with self._warming:
                    recordings += self._add(tuple(shape))
        return recordings

    @contextlib.contextmanager
    def lend(self, shape: Shape, timeout: float | None = None) -> Iterator[Plan]:
        """A plan for images of ``shape`` that no other thread has; it goes back when the block ends.

        Args:
            shape: of the images.
            timeout: seconds to wait where all plans of that shape are lent; None: as long as it takes.

        Raises:
            ValueError: a shape that is not warm, naming those that are.
            TimeoutError: all plans of that shape stayed lent.
        """
        shape = tuple(shape)
        plan = self._borrow(shape, timeout)
        try:
            yield plan
        finally:
            with self._returned:
                self._shelves[shape].idle.append(plan)
                self._returned.notify_all()

    def execute(self, shape: Shape, y: Tensor, *arguments: Any, timeout: float | None = None, **named: Any) -> Estimate:
        """:meth:`rmp_fast.Plan.execute` of a plan for images of ``shape``; arguments as there, errors also of lend.

        ``noise_std`` and ``op`` stay with the plan that was lent, and which one the next call gets is open: where one
        call gives them, all must.
        """
        with self.lend(shape, timeout) as plan:
            return plan.execute(y, *arguments, **named)

    def _count(self) -> int:
        return sum(len(shelf.plans) for shelf in self._shelves.values())

    def _total(self) -> int:
        """Bytes in all; operators derive some of theirs when they are first used."""
        plans = sum(_bytes_of(plan) for shelf in self._shelves.values() for plan in shelf.plans)
        return plans + sum(pool.bytes for pool in self._pools.values())

    def _add(self, shape: Shape) -> list[graph.Recording]:
        with self._returned:
            self._make_room(shape)
        plan = self._made(shape)
        captures = plan.device.type == "cuda" if self._captures is None else self._captures
        recordings = []
        if captures:
            graph.check(plan)
            recordings.append(plan.capture(self._pool(plan.device)))
        with self._returned:
            self._make_room(shape, plan)
            self._put(shape, plan, warm=True)
            self._shelves[shape].idle.append(plan)
            self._returned.notify_all()
        return recordings

    def _made(self, shape: Shape) -> Plan:
        plan = self._make(shape)
        if not isinstance(plan, Plan):
            raise TypeError(f"`make` must return an rmp_fast.Plan, got {type(plan).__name__}")
        if plan.shape != shape:
            raise ValueError(f"`make` must return a plan for {shape_text(shape)}, got one for {shape_text(plan.shape)}")
        return plan

    def _pool(self, device: torch.device) -> graph.GraphPool:
        if device not in self._pools:
            self._pools[device] = graph.GraphPool(device)
        return self._pools[device]

    def _put(self, shape: Shape, plan: Plan, warm: bool) -> None:
        shelf = self._shelves.setdefault(shape, _Shelf(warm))
        shelf.warm = shelf.warm or warm
        shelf.plans.append(plan)
        self._shelves.move_to_end(shape)

    def _make_room(self, shape: Shape, plan: Plan | None = None) -> None:
        """Drop idle plans that are not warm until another, ``plan`` if it is made, fits; ValueError where none does."""
        needed = 0 if plan is None else _bytes_of(plan)
        while True:
            many = self._count() >= self._max_plans
            much = self._max_bytes is not None and self._total() + needed > self._max_bytes
            if not many and not much:
                return
            if not self._drop():
                break
        if many:
            limit = f"`max_plans` is {self._max_plans}, and so many are there"
        else:
            limit = f"`max_bytes` is {self._max_bytes:.0f}, and it would make {self._total() + needed}"
        raise ValueError(
            f"a plan for {shape_text(shape)} is too much: {limit}; warm are {self._warm_text()}; warm fewer, or allow "
            "more"
        )

    def _drop(self) -> bool:
        """Drop the least recently used idle plan that is not warm; whether there was one."""
        for shape, shelf in self._shelves.items():
            if not shelf.warm and shelf.idle:
                shelf.plans.remove(shelf.idle.pop())
                if not shelf.plans:
                    del self._shelves[shape]
                return True
        return False

    def _warm_text(self) -> str:
        warm = [shape_text(shape) for shape, shelf in self._shelves.items() if shelf.warm]
        return ", ".join(warm) if warm else "none"

    def _borrow(self, shape: Shape, timeout: float | None) -> Plan:
        with self._returned:
            shelf = self._shelves.get(shape)
            # Plans that are not warm may be dropped, so nobody waits for one.
            if shelf is not None and (shelf.warm or shelf.idle):
                if not self._returned.wait_for(lambda: shelf.idle, timeout):
                    raise TimeoutError(
                        f"all {len(shelf.plans)} plans for {shape_text(shape)} stayed lent for {timeout:g} s; warm more"
                    )
                self._shelves.move_to_end(shape)
                return shelf.idle.pop()
            if not self._runs:
                raise ValueError(
                    f"no plan is warm for the shape {shape_text(shape)}; warm are {self._warm_text()}; warm it before "
                    "serving, or make the cache with uncaptured='run'"
                )
            self._make_room(shape)
        # Making one may take seconds, in which other threads lend and give back theirs.
        plan = self._made(shape)
        with self._returned:
            self._make_room(shape, plan)
            self._put(shape, plan, warm=False)
        return plan


def _bytes_of(plan: Plan) -> int:
    recorded = 0 if plan.captured is None else plan.captured.bytes
    return plan.buffer_bytes + plan.operator_bytes + recorded
