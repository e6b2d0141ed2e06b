"""What a CUDA graph cannot hold: operations that wait for the device, copy from the host or shape by data."""

from __future__ import annotations

import pathlib
import traceback
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["Observer", "Watch", "forbidden", "place_of"]

_ANYWAY = {
    "aten::_linalg_check_errors": "waits for the device to check a decomposition",
    "aten::bincount": "waits for the device to know its output's size",
    "aten::histc": "waits for the device to know its range",
}
_INDEXING = ("aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_", "aten::_unsafe_index")
_OURS = str(pathlib.Path(__file__).parent)
_TORCHS = str(pathlib.Path(torch.__file__).parent)


def forbidden(function: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> str | None:
    """Why a torch operator cannot be captured with these arguments, or None if nothing is known against it."""
    name = function._schema.name
    if name in _INDEXING:
        masks = [t for t in args[1] if isinstance(t, Tensor) and t.dtype in (torch.bool, torch.uint8)]
        return "indexes with a mask, whose count shapes the result" if masks else None
    if torch.Tag.data_dependent_output in function.tags:
        return "reads a value on the host"
    if torch.Tag.dynamic_output_shape in function.tags:
        return "shapes its result by values"
    if name in ("aten::_to_copy", "aten::copy_", "aten::copy", "aten::set_"):
        devices = {t.device.type for t in _tensors(args)}
        wanted = kwargs.get("device")
        if wanted is not None:
            devices.add(torch.device(wanted).type)
        return f"copies between {' and '.join(sorted(devices))}" if len(devices) > 1 else None
    if name == "aten::lift_fresh" and args[0].device.type != "cpu":
        return f"copies numbers from the host to {args[0].device}; torch.full fills them there"
    return _ANYWAY.get(name)


def _tensors(values: Sequence[Any]) -> Iterator[Tensor]:
    return (v for v in values if isinstance(v, Tensor))


class Observer(TorchDispatchMode):
    """While active, :meth:`see` stands between a program and every torch operator that it runs."""

    def __init__(self) -> None:
        TorchDispatchMode.__init__(self)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Take composite operators apart, which come whole in inference mode."""
        if func.namespace == "aten" and func._can_decompose():
            with self:
                out = func.decompose(*args, **(kwargs or {}))
            if out is not NotImplemented:
                return out
        return self.see(func, args, kwargs or {})

    def see(self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run one operator."""
        return function(*args, **kwargs)


class Watch(Observer):
    """Notes operations that a capture would trip over.

    Attributes:
        found: descriptions in order of appearance, with the line of Python that asked for it, each once.
    """

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def see(self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Note, then run."""
        reason = forbidden(function, args, kwargs)
        if reason is not None:
            described = f"{function} {reason}{place_of(traceback.extract_stack()[:-1])}"
            if described not in self.found:
                self.found.append(described)
        return super().see(function, args, kwargs)


def place_of(stack: Sequence[traceback.FrameSummary]) -> str:
    """The innermost line of ``stack`` outside torch, and where a network was called that of the network."""
    lines = [f for f in stack if f.filename != __file__ and not f.filename.startswith((_TORCHS, "<"))]
    ours = [i for i, f in enumerate(lines) if f.filename.startswith(_OURS)]
    # What this package calls stands behind its first line, who calls it before.
    called = [f for f in lines[ours[0] :] if not f.filename.startswith(_OURS)] if ours else lines
    chosen = called[-1] if called else lines[ours[-1]] if ours else None
    return "" if chosen is None else f", at {chosen.filename}:{chosen.lineno} in {chosen.name}"
