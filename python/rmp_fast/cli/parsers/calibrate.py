"""Options of ``rmp-fast calibrate``."""

from __future__ import annotations

import argparse
import pathlib

from .options import add_operator, add_presets, add_problem

__all__ = ["add"]


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``calibrate`` to the commands."""
    parser = commands.add_parser(
        "calibrate",
        help="how honest the error bars are on clean images",
        description="Degrade clean images, restore them with a variance per pixel, and report the share of pixels "
        "whose error is within 1, 2 and 3 standard deviations (68, 95 and 99.7 % where Gaussian), the mean variance "
        "over the mean squared error, and the correlation of the two. Writes calibrate.json and NAME_spread.png.",
    )
    parser.add_argument("--task", metavar="NAME", help="how the images are degraded; see rmp-fast reconstruct --help")
    parser.add_argument("--images", nargs="+", type=pathlib.Path, metavar="FILE", help="clean image files, or folders")
    add_problem(parser)
    add_presets(parser)
    parser.add_argument("--evaluations", type=int, default=20, metavar="N", help="of the chain (20)")
    parser.add_argument("--looks", type=int, default=8, metavar="N", help="pairs of evaluations for the variance (8)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="every image derives its own from it (0)")
    parser.add_argument("--batch-size", type=int, metavar="N", help="images of one shape at a time (by their size)")
    parser.add_argument("--threads", type=int, metavar="N", help="processor threads (all)")
    add_operator(parser)
