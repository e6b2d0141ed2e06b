"""``rmp-fast batch``: what a terminal sees of :mod:`rmp_fast.batch`."""

from __future__ import annotations

import argparse
import sys

from tqdm import tqdm

from .. import batch
from ..batch.driver import Watcher
from ..batch.manifest import Row

__all__ = ["run"]


class Terminal(Watcher):
    """Failures on stderr as they come, and a progress bar if that is a terminal."""

    def __init__(self, quiet: bool) -> None:
        self._quiet = quiet
        self._bar = tqdm(total=0, unit="image", disable=True)

    def begin(self, total: int, finished: int) -> None:
        """Start the bar."""
        self._bar = tqdm(
            total=total, initial=finished, unit="image", disable=True if self._quiet else None, file=sys.stderr
        )

    def row(self, row: Row) -> None:
        """Move the bar; say a failure."""
        if row["status"] == "failed":
            self._bar.write(f"rmp-fast batch: {row['name']} could not be restored: {row['error']}", file=sys.stderr)
        self._bar.update()

    def note(self, text: str) -> None:
        """Say it, unless quiet."""
        if not self._quiet:
            self._bar.write(f"rmp-fast batch: {text}", file=sys.stderr)

    def close(self) -> None:
        """Finish the bar's line."""
        self._bar.close()


def run(options: argparse.Namespace) -> int:
    """Carry out the command and return its exit code: 0, or 1 when an image could not be restored.

    Raises:
        UsageError: before any work, for anything that cannot be carried out as given.
    """
    terminal = Terminal(options.quiet)
    try:
        summary = batch.run(options, terminal)
    except (RuntimeError, OSError) as error:
        print(f"rmp-fast batch: stopped: {error}; the same command goes on from there", file=sys.stderr)
        return 1
    finally:
        terminal.close()
    if not options.quiet:
        print(summary)
    return 1 if summary.failed else 0
