"""Options of ``rmp-fast serve``."""

from __future__ import annotations

import argparse
import pathlib

__all__ = ["add"]

EPILOG = """\
A request is a form (multipart/form-data) with the file `image`, the fields `operator` and `noise_std`, and the options
of the operator by their names in rmp-fast reconstruct, `mask`, `kernel` and `maps` as files. `seed`, `evaluations`,
`prior`, `format` (png, jpeg, npy), `deadline` in seconds and `alone` (true: a batch of its own, so that the same
request gives the same bits) are optional. Of mri and phase_retrieval `image` is a .npy file, as there:

  curl -F image=@small.png -F operator=sr4 -F noise_std=0.02 http://127.0.0.1:8000/v1/reconstruct -o large.png
  curl -F image=@scan.npy -F mask=@sampled.png -F operator=mri -F noise_std=0.02 http://… -o scan.png

GET /v1/info, /healthz, /readyz, /metrics. SIGTERM or Ctrl-C: new requests are refused, accepted ones finished.
There is no password and no encryption: put a proxy that has them in front before listening beyond this machine.
"""


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``serve`` to the commands."""
    parser = commands.add_parser(
        "serve",
        help="a service over HTTP, on a local Ray",
        description="Restore images over HTTP; requests that share a plan run as one batch.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--host", default="127.0.0.1", metavar="ADDRESS", help="to listen on (127.0.0.1)")
    parser.add_argument("--port", type=int, default=8000, metavar="N", help="to listen on (8000)")
    parser.add_argument(
        "--prior",
        nargs="+",
        default=["photo"],
        metavar="NAME[=PATH]",
        help="photo, fashion, or a name for weights of your own: faces=ffhq.pt; first = default (photo)",
    )
    parser.add_argument(
        "--presets",
        nargs="+",
        default=[],
        metavar="NAME=FILE",
        help="what rmp-fast tune wrote for a prior: faces=tuned.json",
    )
    parser.add_argument(
        "--evaluations", nargs="+", type=int, default=[20, 40], metavar="N", help="that requests may ask for (20 40)"
    )
    parser.add_argument(
        "--warm",
        nargs="+",
        default=[],
        metavar="PLAN",
        help="plans made and run once before the start, OPERATOR:CxHxW[:NAME=VALUE,...]: sr4:3x256x256:prior=photo",
    )
    limits = parser.add_argument_group("limits")
    limits.add_argument("--batch", type=int, default=8, metavar="N", help="requests of one batch (8)")
    limits.add_argument("--queue", type=int, default=64, metavar="N", help="requests of a replica that wait (64)")
    limits.add_argument("--max-bytes", type=int, default=2**25, metavar="N", help="of a request (33554432)")
    limits.add_argument("--max-pixels", type=int, default=2**22, metavar="N", help="of an image (4194304)")
    limits.add_argument("--deadline", type=float, default=60.0, metavar="S", help="of a request that names none (60)")
    limits.add_argument("--longest-deadline", type=float, default=600.0, metavar="S", help="that one may name (600)")
    limits.add_argument("--drain", type=float, default=120.0, metavar="S", help="to finish what was accepted (120)")

    running = parser.add_argument_group("running")
    running.add_argument("--replicas", type=int, default=1, metavar="N", help="processes that share the requests (1)")
    running.add_argument("--threads", type=int, metavar="N", help="processor threads of each (all, shared out)")
    running.add_argument("--backend", default="auto", metavar="NAME", help="auto (default), cpu, torch, …; see info")
    running.add_argument("--device", default="cpu", metavar="NAME", help="cpu (default) or cuda")
    running.add_argument(
        "--proxy",
        action="store_true",
        help="Ray's proxy deals out every request; else the kernel deals out connections, in less time",
    )
    running.add_argument("--direct", action="store_true", help="one process without Ray, not replaced if it dies")
    running.add_argument(
        "--temp-dir", type=pathlib.Path, metavar="DIR", help="for Ray's files, a short path (a temporary one, removed)"
    )
