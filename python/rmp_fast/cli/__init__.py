"""The command line, ``rmp-fast``. Only the standard library is imported until a command runs: ``--help`` is instant."""

from __future__ import annotations

import argparse
import pathlib
import sys
from collections.abc import Sequence

from .usage import UsageError

__all__ = ["build_parser", "main"]

EPILOG = """\
examples:
  a photograph with holes, given with its mask (white = known):
    rmp-fast reconstruct damaged.png --operator inpainting --mask mask.png --noise-std 0.02 --out restored
  a folder of blurred pictures and their blur kernel:
    rmp-fast reconstruct pictures --operator blur --kernel kernel.npy --noise-std 0.01 --out restored
  degrade clean photographs first, then report PSNR and SSIM:
    rmp-fast reconstruct photos --operator sr4 --simulate --noise-std 0.05 --out sr4

operators and tasks:
  denoising (denoise)                  noise only
  inpainting                           --mask
  inpaint_random, inpaint_box          --mask; with --simulate made from --missing or --box
  super_resolution                     --factor, --filter
  sr4                                  super_resolution with --factor 4
  gaussian_blur (gaussian_deblur)      --blur-std, --boundary
  blur                                 --kernel, --boundary
  motion_deblur                        --kernel, or --motion-length and --motion-angle; --boundary

exit code: 0 all images restored (or finished before), 1 some could not be, 2 refused before any work.
"""


def build_parser() -> argparse.ArgumentParser:
    """The parser of ``rmp-fast`` with all its commands."""
    parser = argparse.ArgumentParser(
        prog="rmp-fast", description="Reverse mean propagation: diffusion posterior means."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_reconstruct(commands)
    _add_compare(commands)
    _add_tune(commands)
    info = commands.add_parser("info", help="what is active here, what is not, and why")
    info.add_argument("--json", action="store_true", help="print JSON")
    return parser


def _add_reconstruct(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "reconstruct",
        help="restore image files",
        description="Restore image files: measurements as they are, or clean images degraded first (--simulate).",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    path = pathlib.Path
    parser.add_argument(
        "inputs", nargs="+", type=path, metavar="INPUT", help="PNG, JPEG, TIFF or WebP files, or folders"
    )
    parser.add_argument("--operator", metavar="NAME", help="how the images were degraded; see below")
    _add_problem_options(parser)
    parser.add_argument(
        "--simulate", action="store_true", help="INPUT is clean: degrade it first, and report PSNR and SSIM"
    )

    _add_operator_options(parser)

    chain = parser.add_argument_group("chain options")
    chain.add_argument(
        "--evaluations", type=int, default=20, metavar="N", help="at most so many network evaluations per image (20)"
    )
    chain.add_argument("--inner-steps", type=int, metavar="N", help="evaluations per noise level (2)")
    chain.add_argument("--relaxation", type=float, metavar="X", help="over-relaxation of the steps (1.4)")
    chain.add_argument("--guidance", metavar="NAME", help="likelihood score (gaussian)")
    chain.add_argument("--noise", metavar="NAME", help="noise of the gradient (control)")
    chain.add_argument("--low", type=float, metavar="S", help="lowest noise level, on [-1, 1] (0.05)")
    chain.add_argument("--high", type=float, metavar="S", help="highest noise level, on [-1, 1] (20)")
    chain.add_argument("--seed", type=int, default=0, metavar="N", help="every image derives its own from it (0)")
    chain.add_argument("--backend", default="auto", metavar="NAME", help="auto (default), cpu, torch, …; see info")

    running = parser.add_argument_group("running and output")
    running.add_argument("--batch-size", type=int, metavar="N", help="images of one shape at a time (by their size)")
    running.add_argument("--threads", type=int, metavar="N", help="processor threads (all)")
    running.add_argument("--format", default="png", metavar="NAME", help="png (default), tiff, jpeg or webp")
    running.add_argument("--no-panel", action="store_true", help="write no comparison picture")
    running.add_argument("--force", "--overwrite", action="store_true", help="redo what is finished")
    running.add_argument("--quiet", action="store_true", help="print errors only")


def _add_compare(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "compare",
        help="RMP and published samplers side by side on clean images",
        description="Degrade clean images and restore them with several methods: the same measurements, noise, seeds. "
        "Prints PSNR, SSIM, network evaluations and seconds; writes compare.csv, compare.json and NAME_compare.png.",
    )
    path = pathlib.Path
    parser.add_argument("--task", metavar="NAME", help="how the images are degraded; see rmp-fast reconstruct --help")
    parser.add_argument("--images", nargs="+", type=path, metavar="FILE", help="clean image files, or folders")
    _add_problem_options(parser)
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
    _add_operator_options(parser)


def _add_problem_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--prior", default="photo", metavar="NAME", help="photo (default) or fashion")
    parser.add_argument(
        "--noise-std",
        type=float,
        metavar="S",
        help="standard deviation of the measurement noise where black is 0 and white is 1",
    )
    parser.add_argument("--out", type=pathlib.Path, metavar="DIR", help="folder for the results, made if missing")


def _add_operator_options(parser: argparse.ArgumentParser) -> None:
    path = pathlib.Path
    operator = parser.add_argument_group("operator options")
    operator.add_argument("--mask", type=path, metavar="FILE", help="image or .npy; white (not 0) = known")
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


def _add_tune(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "tune",
        help="tune a chain for a task on example images",
        description="Tune every look of a chain on clean example images, degraded afresh in every step, and report the "
        "gain on held-out ones. The file is what rmp_fast.presets reads.",
    )
    path = pathlib.Path
    parser.add_argument("--task", required=True, metavar="NAME", help="inpaint_random, sr4, gaussian_deblur, ...")
    parser.add_argument("--prior", default="photo", metavar="NAME", help="photo (default) or fashion")
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
    parser.add_argument("--start", default="smooth", metavar="NAME", help="smooth (default) or zero")
    _add_operator_options(parser)

    search = parser.add_argument_group("search options")
    search.add_argument("--steps", type=int, default=200, metavar="N", help="steps of Adam, or chains to try (200)")
    search.add_argument("--batch", type=int, default=8, metavar="N", help="images per step (8)")
    search.add_argument("--side", type=int, default=64, metavar="PIXELS", help="of the crops from larger images (64)")
    search.add_argument("--learning-rate", type=float, default=0.05, metavar="X", help="of Adam (0.05)")
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


def main(arguments: Sequence[str] | None = None) -> int:
    """Run ``rmp-fast`` with ``arguments`` (the process's own by default) and return its exit code."""
    options = build_parser().parse_args(arguments)
    try:
        if options.command == "info":
            from .info import run as run_info

            return run_info(as_json=options.json)
        if options.command == "compare":
            from .compare import run as run_compare

            return run_compare(options)
        if options.command == "tune":
            from .tune import run as run_tune

            return run_tune(options)
        from .reconstruct import run as run_reconstruct

        return run_reconstruct(options)
    except UsageError as error:
        print(f"rmp-fast {options.command}: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; what is finished is on disk, and the same command goes on from there", file=sys.stderr)
        return 130
