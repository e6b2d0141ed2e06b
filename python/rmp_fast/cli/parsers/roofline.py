"""Options of ``rmp-fast roofline``."""

from __future__ import annotations

import argparse
import pathlib

__all__ = ["add"]


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``roofline`` to the commands."""
    parser = commands.add_parser(
        "roofline",
        help="what the kernels should take on a device, and on this machine what they do take",
        description="Bytes, operations, launches and seconds of every kernel, and of everything of ours between two "
        "evaluations of the network, from the tables that the machine code is tested against. On cpu, beside "
        "measurements; on cuda, the card that is here, every kernel measured beside torch and a copy.",
    )
    parser.add_argument(
        "--device", default="h100", metavar="NAME", help="a100, h100 (default), h200, b200; cpu, cuda or cuda:1"
    )
    parser.add_argument(
        "--tasks", nargs="+", metavar="NAME", help="denoise, sr4, mri, ... (all; on cpu the linear ones)"
    )
    parser.add_argument("--images", nargs="+", type=int, default=[1, 16, 64], metavar="N", help="of a batch (1 16 64)")
    parser.add_argument("--side", type=int, default=256, metavar="PIXELS", help="of the square images (256)")
    parser.add_argument(
        "--threads", nargs="+", type=int, metavar="N", help="on cpu, how many (one, and as many as torch uses)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--out", type=pathlib.Path, metavar="FILE", help="write the JSON there as well")
    parser.add_argument("--force", action="store_true", help="replace an existing file")
