"""Options that several commands share."""

from __future__ import annotations

import argparse
import pathlib

__all__ = ["add_chain", "add_network", "add_operator", "add_presets", "add_problem"]


def add_problem(parser: argparse.ArgumentParser, out: bool = True) -> None:
    """Prior, noise and, with ``out``, the output folder."""
    parser.add_argument(
        "--prior", default="photo", metavar="NAME", help="photo (default), fashion, or the path of weights or a network"
    )
    parser.add_argument(
        "--noise-std",
        type=float,
        metavar="S",
        help="standard deviation of the measurement noise where black is 0 and white is 1",
    )
    if out:
        parser.add_argument("--out", type=pathlib.Path, metavar="DIR", help="folder for the results, made if missing")


def add_presets(group: argparse._ActionsContainer) -> None:
    """What was tuned for a prior of the user's own."""
    group.add_argument(
        "--presets", type=pathlib.Path, metavar="FILE", help="what rmp-fast tune wrote (the bundled priors': built in)"
    )


def add_operator(parser: argparse.ArgumentParser) -> None:
    """What an operator is made from."""
    path = pathlib.Path
    operator = parser.add_argument_group("operator options")
    operator.add_argument("--mask", type=path, metavar="FILE", help="image or .npy; white (not 0) = known, or sampled")
    operator.add_argument("--invert-mask", action="store_true", help="black (0) = known instead")
    operator.add_argument("--missing", type=float, metavar="SHARE", help="share of pixels to remove at random (0.7)")
    operator.add_argument("--box", type=int, metavar="PIXELS", help="side of the central hole (a quarter of the image)")
    operator.add_argument("--factor", type=int, metavar="N", help="how many times larger the restoration is: 2, 4, 8")
    operator.add_argument(
        "--filter", metavar="NAME", help="how it was made smaller: average of blocks (default), or bicubic"
    )
    operator.add_argument("--blur-std", type=float, metavar="PIXELS", help="Gaussian blur (2 with --simulate)")
    operator.add_argument("--kernel", type=path, metavar="FILE", help="blur kernel, image or .npy; scaled to sum 1")
    operator.add_argument("--motion-length", type=float, metavar="PIXELS", help="motion blur (15 with --simulate)")
    operator.add_argument(
        "--motion-angle", type=float, metavar="DEGREES", help="counter-clockwise (45 with --simulate)"
    )
    operator.add_argument(
        "--boundary",
        metavar="NAME",
        help="blur beyond the edge: reflect, replicate or circular (reflect; circular for simulated kernels)",
    )
    operator.add_argument("--acceleration", type=float, metavar="N", help="one in N lines of MRI is sampled (4)")
    operator.add_argument("--maps", type=path, metavar="FILE", help="complex .npy (coils, H, W): what MRI coils see")
    operator.add_argument(
        "--oversampling", type=float, metavar="X", help="of Fourier magnitudes: padded over original size (2)"
    )
    operator.add_argument("--starts", type=int, metavar="N", help="runs of which the best explains the magnitudes (8)")
    operator.add_argument("--exposure", type=float, metavar="X", help="of the camera; above 1 white saturates (1.25)")
    operator.add_argument("--gamma", type=float, metavar="X", help="of the camera's response (2.2)")


def add_chain(parser: argparse.ArgumentParser) -> None:
    """What the chain is made from."""
    chain = parser.add_argument_group("chain options")
    chain.add_argument(
        "--evaluations", type=int, default=20, metavar="N", help="at most so many network evaluations per image (20)"
    )
    chain.add_argument(
        "--flips",
        type=int,
        default=1,
        metavar="N",
        help="mirror images that every look is averaged over, each an evaluation: 1 (default), 2, 4 or 8",
    )
    add_presets(chain)
    chain.add_argument("--inner-steps", type=int, metavar="N", help="evaluations per noise level (2)")
    chain.add_argument("--relaxation", type=float, metavar="X", help="over-relaxation of the steps (1.4)")
    chain.add_argument("--guidance", metavar="NAME", help="likelihood score (gaussian)")
    chain.add_argument("--noise", metavar="NAME", help="noise of the gradient (control)")
    chain.add_argument("--low", type=float, metavar="S", help="lowest noise level, on [-1, 1] (0.05)")
    chain.add_argument("--high", type=float, metavar="S", help="highest noise level, on [-1, 1] (20)")
    chain.add_argument("--seed", type=int, default=0, metavar="N", help="every image derives its own from it (0)")
    chain.add_argument("--backend", default="auto", metavar="NAME", help="auto (default), cpu, torch, …; see info")


def add_network(group: argparse._ArgumentGroup) -> None:
    """How the prior's network is run."""
    group.add_argument(
        "--tile",
        default="auto",
        metavar="PIXELS",
        help="side of the network's tiles, a multiple of 64; none, or auto: where memory asks for it (auto)",
    )
    group.add_argument(
        "--compile", action="store_true", help="compile the network first: seconds to minutes, once for each image size"
    )
    group.add_argument(
        "--precision",
        default="float32",
        metavar="NAME",
        help="of the network: float32 (default), or bfloat16, checked against it",
    )
