"""Options of ``rmp-fast compare``."""

from __future__ import annotations

import argparse
import pathlib

from .options import add_operator, add_presets, add_problem

__all__ = ["add"]


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``compare`` to the commands."""
    parser = commands.add_parser(
        "compare",
        help="RMP and published samplers side by side on clean images",
        description="Degrade clean images and restore them with several methods: the same measurements, noise, seeds. "
        "Prints PSNR, SSIM, network evaluations and seconds; writes compare.csv, compare.json and NAME_compare.png.",
    )
    path = pathlib.Path
    parser.add_argument("--task", metavar="NAME", help="how the images are degraded; see rmp-fast reconstruct --help")
    parser.add_argument("--images", nargs="+", type=path, metavar="FILE", help="clean image files, or folders")
    add_problem(parser)
    add_presets(parser)
    parser.add_argument(
        "--methods",
        nargs="+",
        default=["rmp", "ddrm", "diffpir", "pigdm"],
        metavar="NAME",
        help="rmp, dps, pigdm, ddrm, diffpir, daps, reddiff (rmp ddrm diffpir pigdm)",
    )
    parser.add_argument(
        "--evaluations",
        nargs="+",
        default=[],
        metavar="N",
        help="network evaluations of a sample: 40 for all methods, ddrm=100 for one (rmp 20, others as their authors)",
    )
    parser.add_argument("--samples", type=int, default=1, metavar="K", help="samples that the others average (1)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="every image derives its own from it (0)")
    parser.add_argument("--batch-size", type=int, metavar="N", help="images of one shape at a time (by their size)")
    parser.add_argument("--threads", type=int, metavar="N", help="processor threads (all)")
    add_operator(parser)
