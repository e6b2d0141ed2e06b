"""What an operator derives from its data, kept for reuse, and how a plan's copy takes over the data of another."""

from __future__ import annotations

import copy
import dataclasses
import functools
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from .._checks import shape_text

__all__ = ["Memo", "data_bytes", "derived", "private_copy", "take_over"]

T = TypeVar("T")
Build = Callable[..., T]

_CACHE = "_derived"


def _kept(values: dict[Any, T], key: Hashable, build: Callable[[], T], capacity: int) -> T:
    """``values[key]``, or else what ``build`` makes, kept there in place of the oldest of ``capacity``.

    Built outside inference mode, because a tensor born inside it could never serve autograd later.
    """
    value = values.get(key)
    if value is None:
        with torch.inference_mode(False), torch.no_grad():
            value = build()
        # Another thread may evict meanwhile, hence the copies and the defaults.
        for old in list(values)[: max(0, len(values) + 1 - capacity)]:
            values.pop(old, None)
        values[key] = value
    return value


class Memo(Generic[T]):
    """The last few values of a function, where they belong to the object that keeps them: a plan's copy has none."""

    def __init__(self, capacity: int = 8) -> None:
        self._capacity = capacity
        self._values: dict[Hashable, T] = {}

    def __copy__(self) -> Memo[T]:
        """Another one, empty."""
        return Memo(self._capacity)

    def get(self, key: Hashable, build: Callable[[], T]) -> T:
        """The value kept under ``key``, or else what ``build`` makes."""
        return _kept(self._values, key, build, self._capacity)


def derived(build: Build[T]) -> Build[T]:
    """A method whose value is kept per arguments: tensors made of the operator's data for one size, device and dtype.

    The arguments must be hashable, the value a tensor or a tuple or dataclass of them. What an operator uses on a
    device must come from such methods, not from tensors copied there in passing: a plan then exchanges the data in
    place, and a captured graph sees it. The last eight values are kept.
    """

    @functools.wraps(build)
    def get(self: Any, *key: Hashable) -> T:
        values: dict[tuple[Hashable, ...], T] = vars(self).setdefault(_CACHE, {}).setdefault(build.__name__, {})
        return _kept(values, key, lambda: build(self, *key), 8)

    return get


def private_copy(op: T) -> T:
    """A copy of an operator that shares no tensor of its data with it, nor what was derived from that."""
    own = copy.copy(op)
    cache = {name: {key: _cloned(v) for key, v in values.items()} for name, values in _cache_of(op).items()}
    memos = {name: copy.copy(v) for name, v in _attributes(op).items() if isinstance(v, Memo)}
    vars(own).update(memos | {name: v.clone() for name, v in _data(op).items()} | {_CACHE: cache})
    return own


def take_over(own: Any, other: Any, image_shape: Sequence[int]) -> Callable[[], None]:
    """Check that the data of ``other`` can replace that of ``own``, a private copy; the result does it, in place.

    Data may be given more coarsely than ``own`` holds them: a mask for all items where ``own`` has one per item.

    Raises:
        TypeError: another kind of operator.
        ValueError: the two differ in anything else than data, or the data's shapes do not fit.
    """
    if type(own) is not type(other):
        raise TypeError(f"`op` must be of the plan's kind, {own!r}, got {other!r}; make a plan for it")
    pairs = [("data", mine, _data(other).get(name), name) for name, mine in _data(own).items()]
    for name, mine in _settings(own).items():
        theirs = _settings(other).get(name)
        if not _same(mine, theirs):
            raise ValueError(
                f"`op` may differ from the plan's in its data alone: `{name.lstrip('_')}` is {mine!r} in {own!r}, got "
                f"{theirs!r} in {other!r}; make a plan for it"
            )
    other.measurement_shape(image_shape)
    for name, values in _cache_of(own).items():
        for key, mine in values.items():
            theirs = getattr(other, name)(*key)
            pairs += [("what it derives", a, b, name) for a, b in zip(_tensors(mine), _tensors(theirs), strict=True)]
    for what, mine, theirs, name in pairs:
        if theirs is None or not _fits(theirs, mine):
            got = "none" if theirs is None else shape_text(theirs.shape)
            raise ValueError(
                f"`op` must have data of the shapes of the plan's {own!r}: `{name.lstrip('_')}` ({what}) has "
                f"{shape_text(mine.shape)}, got {got} in {other!r}; make a plan for it"
            )

    def copy_all() -> None:
        for _, mine, theirs, _ in pairs:
            assert theirs is not None
            mine.copy_(theirs)

    return copy_all


def data_bytes(own: Any) -> int:
    """Bytes of an operator's data and of what it derived from them."""
    kept = (t for values in _cache_of(own).values() for value in values.values() for t in _tensors(value))
    return sum(t.numel() * t.element_size() for t in (*_data(own).values(), *kept))


def _cache_of(op: object) -> dict[str, dict[tuple[Hashable, ...], Any]]:
    """What was derived, as it is now: another thread may add to it meanwhile, and ``dict()`` copies in one step."""
    cache: dict[str, dict[tuple[Hashable, ...], Any]] = dict(vars(op).get(_CACHE, {}))
    return {name: dict(values) for name, values in cache.items()}


def _attributes(op: object) -> dict[str, Any]:
    """Those of an operator, as they are now: another thread's first use of it adds the cache."""
    return dict(vars(op))


def _data(op: object) -> dict[str, Tensor]:
    return {name: value for name, value in _attributes(op).items() if isinstance(value, Tensor)}


def _settings(op: object) -> dict[str, Any]:
    return {name: v for name, v in _attributes(op).items() if name != _CACHE and not isinstance(v, (Tensor, Memo))}


def _same(a: Any, b: Any) -> bool:
    return a is b or (type(a) is type(b) and (a == b) is True)


def _fits(source: Tensor, target: Tensor) -> bool:
    missing = target.ndim - source.ndim
    return (
        missing >= 0
        and source.is_complex() == target.is_complex()
        and all(m in (1, n) for m, n in zip(source.shape, target.shape[missing:], strict=True))
    )


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif dataclasses.is_dataclass(value):
        yield from _tensors(tuple(getattr(value, field.name) for field in dataclasses.fields(value)))
    elif isinstance(value, tuple):
        for part in value:
            yield from _tensors(part)


def _cloned(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.clone()
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = dataclasses.fields(value)
        return dataclasses.replace(value, **{field.name: _cloned(getattr(value, field.name)) for field in fields})
    if isinstance(value, tuple):
        parts = [_cloned(part) for part in value]
        return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)
    return value
