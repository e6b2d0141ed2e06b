"""Options of ``rmp-fast info``."""

from __future__ import annotations

import argparse

__all__ = ["add"]


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``info`` to the commands."""
    parser = commands.add_parser("info", help="what is active here, what is not, and why")
    parser.add_argument("--json", action="store_true", help="print JSON")
