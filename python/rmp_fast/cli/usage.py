"""Refusals of the command line, and its stdout when nobody reads it."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Sequence

__all__ = ["UsageError", "check_numbers", "silence_stdout"]


class UsageError(ValueError):
    """The command cannot be carried out as given; nothing was done."""


def check_numbers(options: argparse.Namespace, counts: Sequence[str]) -> None:
    """Refuse a missing or negative ``--noise-std``, and any of ``counts`` that is given and below 1."""
    if options.noise_std is None:
        raise UsageError(
            "`--noise-std` must be given: the standard deviation of the measurement noise, where black is 0 and white 1"
        )
    if not 0 <= options.noise_std < float("inf"):
        raise UsageError(f"`--noise-std` must be a finite number >= 0, got {options.noise_std}")
    for name in counts:
        value = getattr(options, name)
        if value is not None and value < 1:
            raise UsageError(f"`--{name.replace('_', '-')}` must be at least 1, got {value}")


def silence_stdout() -> None:
    """Let what is still to be printed go nowhere: the reader is gone, and the last flush would end in a traceback."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
