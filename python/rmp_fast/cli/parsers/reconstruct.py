"""Options of ``rmp-fast reconstruct``."""

from __future__ import annotations

import argparse
import pathlib

from .options import add_chain, add_network, add_operator, add_problem

__all__ = ["add"]

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
  nonlinear_deblur                     --kernel (one, or .npy of a grid), --exposure, --gamma
  mri                                  --mask, with --simulate made from --acceleration; --maps
  phase_retrieval                      --oversampling, --starts
the last two restore grey pictures; without --simulate their INPUT is .npy: samples (H, W), or (coils, H, W), complex,
zero frequency at (H // 2, W // 2); or Fourier magnitudes (h, w).

exit code: 0 all images restored (or finished before), 1 some could not be, 2 refused before any work.
"""


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``reconstruct`` to the commands."""
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
    add_problem(parser)
    parser.add_argument(
        "--simulate", action="store_true", help="INPUT is clean: degrade it first, and report PSNR and SSIM"
    )

    add_operator(parser)
    add_chain(parser)

    running = parser.add_argument_group("running and output")
    running.add_argument("--batch-size", type=int, metavar="N", help="images of one shape at a time (by their size)")
    add_network(running)
    running.add_argument("--threads", type=int, metavar="N", help="processor threads (all)")
    running.add_argument("--format", default="png", metavar="NAME", help="png (default), tiff, jpeg or webp")
    running.add_argument("--no-panel", action="store_true", help="write no comparison picture")
    running.add_argument("--force", "--overwrite", action="store_true", help="redo what is finished")
    running.add_argument("--quiet", action="store_true", help="print errors only")
