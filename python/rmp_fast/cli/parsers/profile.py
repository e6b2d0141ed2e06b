"""Options of ``rmp-fast profile``."""

from __future__ import annotations

import argparse
import pathlib

from .options import add_operator, add_problem

__all__ = ["add"]


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``profile`` to the commands."""
    parser = commands.add_parser(
        "profile",
        help="where the time of one chain goes",
        description="Time of one chain by phase and by kernel, with the bandwidth that each reaches beside that of a "
        "plain copy in the same run. With --out also profile.json and trace.json, a Chrome trace.",
    )
    parser.add_argument("--task", default="inpaint_random", metavar="NAME", help="how the image is degraded")
    add_problem(parser)
    parser.set_defaults(noise_std=0.05)
    parser.add_argument("--image", type=pathlib.Path, metavar="FILE", help="a clean image (a photograph)")
    parser.add_argument("--size", type=int, metavar="PIXELS", help="side of the square cut from it (256; fashion: 32)")
    parser.add_argument("--batch", type=int, default=1, metavar="N", help="so many times the image (1)")
    parser.add_argument("--evaluations", type=int, default=20, metavar="N", help="network evaluations per image (20)")
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="timed executions, after a warm-up (5)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of masks and noise (0)")
    parser.add_argument("--backend", default="auto", metavar="NAME", help="auto (default), cpu, torch; see info")
    parser.add_argument("--threads", type=int, metavar="N", help="processor threads (all)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--force", action="store_true", help="replace existing files")
    add_operator(parser)
