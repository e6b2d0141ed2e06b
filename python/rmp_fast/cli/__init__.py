"""The command line, ``rmp-fast``. Only the standard library is imported until a command runs: ``--help`` is instant."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

from .usage import UsageError, silence_stdout

__all__ = ["COMMANDS", "build_parser", "main"]

# Command NAME has its options in parsers/NAME.py and its `run` in NAME.py.
COMMANDS = (
    "reconstruct", "batch", "serve", "compare", "calibrate", "tune", "bench", "latency", "profile", "roofline", "info",
)  # fmt: skip


#: Those that a second run of the same command continues.
RESUMING = ("reconstruct", "batch")


def build_parser() -> argparse.ArgumentParser:
    """The parser of ``rmp-fast`` with all its commands."""
    parser = argparse.ArgumentParser(
        prog="rmp-fast", description="Reverse mean propagation: diffusion posterior means."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name in COMMANDS:
        importlib.import_module(f".parsers.{name}", __name__).add(commands)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run ``rmp-fast`` with ``arguments`` (the process's own by default) and return its exit code."""
    options = build_parser().parse_args(arguments)
    try:
        code: int = importlib.import_module(f".{options.command}", __name__).run(options)
        return code
    except UsageError as error:
        print(f"rmp-fast {options.command}: error: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # as of `| head`
        silence_stdout()
        return 141
    except KeyboardInterrupt:
        done = "what is finished is on disk, and the same command goes on from there"
        print(f"interrupted; {done}" if options.command in RESUMING else "interrupted", file=sys.stderr)
        return 130
