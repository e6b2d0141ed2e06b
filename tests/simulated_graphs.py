"""torch.cuda's streams, events and graphs on the CPU: graphs record torch operators and replay them in their memory.

A capture refuses what a device would refuse. A replay first poisons all that graphs of its pool have ever computed, as
other graphs may write there: numbers that survive only in a graph's memory are lost, and a replay that reads one fails.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from rmp_fast import graph, ops
from rmp_fast.watch import Observer, forbidden

__all__ = ["Driver"]


class _Stream:
    def __init__(self, driver: Driver, name: str) -> None:
        self.driver, self.name = driver, name

    def synchronize(self) -> None:
        self.driver.log("synchronize", self.name)


class _Recorder(Observer):
    """Runs operators and keeps what replays need."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, tuple[Any, ...], dict[str, Any], list[Tensor]]] = []

    def see(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if forbidden(func, args, kwargs):
            raise RuntimeError("CUDA error: operation not permitted when stream is capturing")
        out = super().see(func, args, kwargs)
        given = {t.untyped_storage().data_ptr() for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        made = [t for t in tree_leaves(out) if isinstance(t, Tensor)]
        new = [t for t in made if t.untyped_storage().data_ptr() not in given]
        writes = any(a.alias_info is not None and a.alias_info.is_write for a in func._schema.arguments)
        if writes:
            self.calls.append((func, args, kwargs, []))
        elif new:
            self.calls.append((func, args, kwargs, made))
        return out


class _Graph:
    def __init__(self, driver: Driver) -> None:
        self.driver, self.pool, self.calls = driver, None, []

    def replay(self) -> None:
        self.driver.log("replay", self.driver.current.name)
        self.driver.before_replay()
        with torch.inference_mode():
            for one in self.driver.pools[self.pool]:
                for *_, made in one.calls:
                    for t in made:
                        t.fill_(float("nan") if t.is_floating_point() or t.is_complex() else 77)
            for func, args, kwargs, made in self.calls:
                out = func(*args, **kwargs)
                for old, new in zip(made, (t for t in tree_leaves(out) if isinstance(t, Tensor)), strict=bool(made)):
                    old.copy_(new)


class Driver:
    """What stands in for torch.cuda in :mod:`rmp_fast.graph`; ``calls`` tells what was asked of it, in order."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.calls: list[tuple[str, Any]] = []
        self.pools: dict[Any, list[_Graph]] = {}
        self.capturing = False
        self.before_replay: Callable[[], None] = lambda: None
        self.current = _Stream(self, "callers")
        numbers = itertools.count()
        stand_ins = {
            "Stream": lambda device=None: _Stream(self, f"side {next(numbers)}"),
            "CUDAGraph": lambda: _Graph(self),
            "graph": self._capture,
            "graph_pool_handle": lambda: (0, next(numbers)),
            "current_stream": lambda device=None: self.current,
            "stream": self._use,
            "set_stream": self._set,
            "synchronize": lambda device=None: self.log("synchronize", "device"),
            "device": lambda device: contextlib.nullcontext(),
            "memory_snapshot": self._segments,
        }
        for name, stand_in in stand_ins.items():
            patch.setattr(torch.cuda, name, stand_in)
        refusal = graph.refusal
        patch.setattr(graph, "refusal", lambda plan: None if plan.device.type == "cpu" else refusal(plan))
        # Compiled kernels are not torch operators, which alone are recorded.
        patch.setattr(ops, "_core", None)

    def log(self, what: str, on: Any) -> None:
        """Note a call."""
        self.calls.append((what, on))

    def _segments(self) -> list[dict[str, Any]]:
        """As much memory as the graphs of a pool ever used."""
        sizes = {p: sum(t.nbytes for g in gs for *_, made in g.calls for t in made) for p, gs in self.pools.items()}
        return [{"segment_pool_id": pool, "total_size": size} for pool, size in sizes.items()]

    def _set(self, stream: _Stream) -> None:
        self.current = stream

    @contextlib.contextmanager
    def _use(self, stream: _Stream) -> Iterator[None]:
        before, self.current = self.current, stream
        self.log("use", stream.name)
        try:
            yield
        finally:
            self.current = before

    @contextlib.contextmanager
    def _capture(self, one: _Graph, pool: Any, stream: _Stream, capture_error_mode: str) -> Iterator[None]:
        assert capture_error_mode == "thread_local"
        self.log("capture", stream.name)
        before, self.current, self.capturing = self.current, stream, True
        recorder = _Recorder()
        try:
            with recorder:
                yield
        except RuntimeError:
            # As torch does: its stream is left behind, and ending the capture fails too.
            raise RuntimeError("CUDA error: operation failed due to a previous error during capture")  # noqa: B904
        finally:
            self.capturing = False
        self.current = before
        one.pool, one.calls = pool, recorder.calls
        self.pools.setdefault(pool, []).append(one)
