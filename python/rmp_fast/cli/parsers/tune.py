"""Options of ``rmp-fast tune``."""

from __future__ import annotations

import argparse
import pathlib

from .options import add_operator

__all__ = ["add"]


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``tune`` to the commands."""
    parser = commands.add_parser(
        "tune",
        help="tune a chain for a task on example images",
        description="Tune every look of a chain on clean example images, degraded afresh in every step, and report the "
        "gain on held-out ones. The file is what rmp_fast.presets reads.",
    )
    path = pathlib.Path
    parser.add_argument("--task", required=True, metavar="NAME", help="inpaint_random, sr4, gaussian_deblur, ...")
    parser.add_argument(
        "--prior", default="photo", metavar="NAME", help="photo (default), fashion, or the path of weights or a network"
    )
    parser.add_argument(
        "--images", required=True, metavar="SOURCE", help="a folder, or fashion-train or photo-train (what priors saw)"
    )
    parser.add_argument("--out", required=True, type=path, metavar="FILE", help="JSON file of presets")
    parser.add_argument("--append", action="store_true", help="keep the other presets of an existing file")
    parser.add_argument("--force", action="store_true", help="replace an existing file, or with --append one preset")
    parser.add_argument("--evaluations", type=int, default=20, metavar="N", help="network evaluations per image (20)")
    parser.add_argument(
        "--noise-std", type=float, default=0.02, metavar="S", help="of the measurement, on [0, 1] (0.02)"
    )
    parser.add_argument(
        "--vary", nargs=3, action="append", metavar=("OPTION", "LOW", "HIGH"),
        help="tune for a range of noise-std, missing, box, blur-std, motion-length, acceleration, exposure or gamma: "
        "every step draws it, uniform in logarithm; may be given for several",
    )  # fmt: skip
    parser.add_argument("--start", metavar="NAME", help="smooth (default; not for nonlinear tasks) or zero")
    add_operator(parser)

    search = parser.add_argument_group("search options")
    search.add_argument("--steps", type=int, default=200, metavar="N", help="steps of Adam, or chains to try (200)")
    search.add_argument("--batch", type=int, default=8, metavar="N", help="images per step (8)")
    search.add_argument("--side", type=int, default=64, metavar="PIXELS", help="of the crops from larger images (64)")
    search.add_argument("--learning-rate", type=float, default=0.05, metavar="X", help="of Adam (0.05)")
    search.add_argument(
        "--highest-level", type=float, metavar="S",
        help="of the table to begin with, on [-1, 1] (20; 1.2 with a smooth start); boxes of photographs gain from 60",
    )  # fmt: skip
    search.add_argument("--init", type=path, metavar="FILE", help="begin with this file's preset for the task")
    search.add_argument(
        "--method", default="auto", metavar="NAME", help="gradient, search (optuna), or auto: gradient where possible"
    )
    search.add_argument("--seed", type=int, default=0, metavar="N", help="decides images, masks and noise (0)")
    search.add_argument("--bfloat16", action="store_true", help="run the network in bfloat16 while tuning")
    search.add_argument("--recompute", action="store_true", help="less memory: compute every look twice")
    search.add_argument("--threads", type=int, metavar="N", help="processor threads (all)")
    search.add_argument("--no-sensitivity", action="store_true", help="do not measure what each column matters")
    search.add_argument(
        "--data", type=path, default=path.home() / ".cache" / "rmp_fast" / "data", metavar="DIR",
        help="where the training data are kept",
    )  # fmt: skip
    search.add_argument("--quiet", action="store_true", help="print errors only")
