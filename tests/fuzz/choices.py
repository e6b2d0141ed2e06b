"""Where a fuzzed call takes its choices from: hypothesis, which shrinks them, or atheris, which follows coverage."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, TypeVar

T = TypeVar("T")


class Choices(Protocol):
    """A stream of decisions."""

    def integer(self, low: int, high: int) -> int:
        """low ... high, both included."""

    def binary(self, most: int) -> bytes:
        """At most so many bytes."""


def pick(choices: Choices, values: Sequence[T]) -> T:
    """One of ``values``."""
    return values[choices.integer(0, len(values) - 1)]


class Drawn:
    """Choices of hypothesis."""

    def __init__(self, draw: Any) -> None:
        from hypothesis import strategies

        self._draw, self._strategies = draw, strategies

    def integer(self, low: int, high: int) -> int:
        """See :class:`Choices`."""
        return int(self._draw(self._strategies.integers(low, high)))

    def binary(self, most: int) -> bytes:
        """See :class:`Choices`."""
        return bytes(self._draw(self._strategies.binary(max_size=most)))


class Guided:
    """Choices of atheris, out of the bytes that it mutates."""

    def __init__(self, data: bytes) -> None:
        import atheris

        self._provider = atheris.FuzzedDataProvider(data)

    def integer(self, low: int, high: int) -> int:
        """See :class:`Choices`."""
        return int(self._provider.ConsumeIntInRange(low, high))

    def binary(self, most: int) -> bytes:
        """See :class:`Choices`."""
        return bytes(self._provider.ConsumeBytes(most))
