"""Options of ``rmp-fast latency``."""

from __future__ import annotations

import argparse
import pathlib

from .options import add_operator, add_problem

__all__ = ["add"]


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``latency`` to the commands."""
    parser = commands.add_parser(
        "latency",
        help="how long one execution of a plan takes: percentiles and a histogram",
        description="Execute plans again and again and print the percentiles of their time, a histogram, and how "
        "much of it is Python and dispatch.",
    )
    path = pathlib.Path
    parser.add_argument(
        "--task", default="inpaint_random", metavar="NAME", help="how images are degraded (inpaint_random)"
    )
    add_problem(parser)
    parser.add_argument(
        "--images", nargs="+", type=path, metavar="FILE", help="clean image files, as in rmp-fast bench"
    )
    parser.add_argument("--size", type=int, metavar="PIXELS", help="cut a square of that side from each image's middle")
    parser.add_argument("--batch", nargs="+", type=int, default=[1, 4, 16], metavar="N", help="batches (1 4 16)")
    parser.add_argument("--evaluations", type=int, default=20, metavar="N", help="network evaluations of a chain (20)")
    parser.add_argument("--runs", type=int, default=1000, metavar="N", help="executions of each batch (1000)")
    parser.add_argument(
        "--seconds", type=float, default=60.0, metavar="S", help="or so many seconds of each batch (60)"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of noise, masks and chains (0)")
    parser.add_argument("--threads", type=int, metavar="N", help="processor threads (all)")
    parser.add_argument(
        "--data", type=path, metavar="DIR", help="where the training data are kept (~/.cache/rmp_fast/data)"
    )
    parser.add_argument("--force", action="store_true", help="replace the results in --out")
    add_operator(parser)
