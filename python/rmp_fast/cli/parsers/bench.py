"""Options of ``rmp-fast bench``."""

from __future__ import annotations

import argparse
import pathlib

from .options import add_operator, add_problem

__all__ = ["SECTIONS", "add"]

SECTIONS = ("quality", "batch", "scaling", "roofline")


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``bench`` to the commands."""
    parser = commands.add_parser(
        "bench",
        help="speed and quality of every method, as a table and a report to look at",
        description="Restore the same measurements with RMP and with published samplers, in turns, each result checked "
        "before it is timed. Prints a table; writes bench.csv, bench.json and bench.html, which needs no network.",
    )
    path = pathlib.Path
    parser.add_argument("--task", nargs="+", metavar="NAME", help="how images are degraded (inpaint_random)")
    add_problem(parser)
    parser.add_argument(
        "--images", nargs="+", type=path, metavar="FILE",
        help="clean image files, or folders (photographs that come with scikit-image, or Fashion-MNIST test images)",
    )  # fmt: skip
    parser.add_argument("--methods", nargs="+", metavar="NAME", help="all by default; a wrong name lists them")
    parser.add_argument(
        "--quick", action="store_true", help="two minutes on two idle cores: few images, no long chains"
    )
    parser.add_argument("--batch", nargs="+", type=int, metavar="N", help="batches of the throughput curve")
    parser.add_argument("--count", type=int, metavar="N", help="images whose quality is measured")
    parser.add_argument("--size", type=int, metavar="PIXELS", help="cut a square of that side from each image's middle")
    parser.add_argument("--evaluations", type=int, metavar="N", help="of a sample, for every method (each its own)")
    parser.add_argument(
        "--sections", nargs="+", default=list(SECTIONS), metavar="NAME", help="of quality, batch, scaling, roofline"
    )
    parser.add_argument("--budget", type=float, metavar="SECONDS", help="of timed calls for each row")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of noise, masks and chains (0)")
    parser.add_argument("--device", metavar="NAME", help="that computes: cpu (default), cuda or cuda:1")
    parser.add_argument("--threads", type=int, metavar="N", help="processor threads (all)")
    parser.add_argument(
        "--data", type=path, metavar="DIR", help="where the training data are kept (~/.cache/rmp_fast/data)"
    )
    parser.add_argument("--force", action="store_true", help="replace the results in --out")
    parser.add_argument("--report-only", action="store_true", help="write bench.html anew from the bench.json in --out")
    add_operator(parser)
