"""Options of ``rmp-fast batch``."""

from __future__ import annotations

import argparse

from .options import add_chain, add_network, add_operator, add_problem

__all__ = ["add"]

EPILOG = """\
examples:
  a folder and all folders in it, on this machine:
    rmp-fast batch --input scans --operator gaussian_deblur --blur-std 1.5 --noise-std 0.02 --output restored
  a table of images with a mask and a noise level each, from and to a store, on a cluster:
    rmp-fast batch --input s3://bucket/images.parquet --operator inpainting --output s3://bucket/restored \\
      --address head:6379

--input manifest: a .parquet file, one row per image, with the columns
  path                 of the image; relative ones from the manifest's folder
  seed, noise_std      optional; replace --seed and --noise-std for the row
  mask, kernel         optional; files that replace --mask and --kernel for the row

--output: a/x.png becomes a/x.png (a/x.jpg: a/x.jpg.png) with its record a/x.png.json; manifest.parquet has a row for
every image. The same command started again, whatever stopped it, goes on where it was; failed images are tried again.
On file systems files appear by rename and on object stores by one put, so nobody meets half a file.

--address: of a Ray cluster that runs already, and that this machine is a node of (ray start --address HEAD:PORT; "auto"
finds the one that was started here). All its machines need the same rmp_fast, Ray and Python, and must see --input and
--output under the same names: a shared file system or a store. A machine that is lost costs time, no image. If the head
is lost, Ray ends the command after a minute with exit code 1 and without a word; the same command goes on from there. A
cluster that wants tokens gets them with RAY_AUTH_MODE=token.

exit code: 0 all images restored (or finished before), 1 some could not be, 2 refused before any work.
"""


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``batch`` to the commands."""
    parser = commands.add_parser(
        "batch",
        help="restore many images with Ray, on this machine or a cluster",
        description="Restore a folder or a table of images with one worker per GPU or group of processor cores; "
        "operators, tasks and results are those of rmp-fast reconstruct. Needs pip install 'rmp_fast[ray]'.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--input", metavar="URL", help="folder or .parquet manifest; a path or s3://…, gs://…, file://…"
    )
    parser.add_argument("--output", metavar="URL", help="folder for the results, made if missing; a path or URL")
    parser.add_argument("--operator", metavar="NAME", help="how the images were degraded; see rmp-fast reconstruct")
    add_problem(parser, out=False)
    parser.add_argument("--simulate", action="store_true", help="images are clean: degrade them first, report PSNR")
    add_operator(parser)
    add_chain(parser)

    running = parser.add_argument_group("running and output")
    running.add_argument(
        "--address", metavar="RAY", help="HOST:PORT of a Ray cluster, or auto (default: a Ray of its own)"
    )
    running.add_argument("--device", default="auto", metavar="NAME", help="auto (GPUs if there are any), cpu or cuda")
    running.add_argument("--workers", type=int, metavar="N", help="processes that restore (one per GPU or --threads)")
    running.add_argument("--threads", type=int, metavar="N", help="processor threads of a worker (at most 4)")
    running.add_argument("--batch-size", type=int, metavar="N", help="images of one shape at a time (by their size)")
    add_network(running)
    running.add_argument(
        "--max-pixels", type=int, default=2**26, metavar="N", help="larger images are errors, not work (67,108,864)"
    )
    running.add_argument("--format", default="png", metavar="NAME", help="png (default), tiff, jpeg or webp")
    running.add_argument("--force", action="store_true", help="replace an earlier run's results of other settings")
    running.add_argument("--quiet", action="store_true", help="print errors only")
