"""Train a bundled prior: ``python -m rmp_fast.training fashion`` or ``python -m rmp_fast.training photo``.

Resumable: a checkpoint is written every few minutes and the same command goes on from it. The learning rate stays
constant and falls to zero over the last fifth of ``--steps``, so a run can be lengthened or shortened when resumed.
The data are Debian packages (``rmp_fast/training/data.py`` lists them) and scikit-learn's sample images; they are
downloaded with ``apt-get download`` where they are not in ``--data`` yet.
"""

from __future__ import annotations

import argparse
import pathlib

import torch

from rmp_fast.training.train import RECIPES, FashionBatches, PhotoBatches, train


def main() -> None:
    """Parse the command line and train."""
    home = pathlib.Path.home() / ".cache" / "rmp_fast"
    parser = argparse.ArgumentParser(prog="python -m rmp_fast.training", description=__doc__)
    parser.add_argument("prior", choices=sorted(RECIPES))
    parser.add_argument("--steps", type=int, help="optimiser steps (default: the recipe's)")
    parser.add_argument(
        "--data", type=pathlib.Path, default=home / "data", help="where packages are downloaded and unpacked"
    )
    parser.add_argument("--work", type=pathlib.Path, default=home / "training", help="where checkpoints are kept")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("."), help="where NAME.safetensors is written")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    steps = args.steps or RECIPES[args.prior].steps
    batches = FashionBatches(args.data) if args.prior == "fashion" else PhotoBatches(args.data)
    command = f"python -m rmp_fast.training {args.prior} --steps {steps}"
    train(args.prior, RECIPES[args.prior], batches, steps, args.work, args.out, command)


if __name__ == "__main__":
    main()
