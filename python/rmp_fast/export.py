"""``python -m rmp_fast.export PRIOR FILE.onnx``: a bundled prior, and a tuned chain, for programs without Python.

The ONNX file maps ``x`` (B, C, H, W) and ``s`` (B,), float32, to ``denoised`` D(x, s) of the shape of ``x``, for any
batch and one size of image; the embedding of the noise level is inside. The chain is a CSV of its looks, the numbers of
:class:`rmp_fast.schedules.Looks`, which ``rmp_fast_look`` of ``rmp_fast.h`` takes.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import logging
import pathlib
import sys
import tempfile
import warnings
from collections.abc import Iterator

import numpy as np
import torch

from . import presets, priors, schedules
from ._checks import check_count
from ._optional import optional
from .priors import NetworkPrior

__all__ = ["main", "to_csv", "to_onnx"]

#: What the exported network may differ from torch by, relative: float32 sums of some hundred terms in another order.
AGREEMENT = 1e-4


def to_onnx(prior: NetworkPrior, path: pathlib.Path | str, size: tuple[int, int]) -> float:
    """Write D(x, s) of a prior as an ONNX file and compare it with torch.

    Args:
        prior: whose network is exported, on the CPU, for images of all its channels.
        path: of the file.
        size: (H, W) of the images.

    Returns:
        the largest relative difference to torch that ONNX Runtime showed, over noise levels from 0.02 to 50.

    Raises:
        ImportError: a package of the extra ``onnx`` is missing.
        ValueError: an empty size, or a prior for any number of channels.
        RuntimeError: the two differ by more than float32 rounding, or are not finite; nothing is written then.
    """
    runtime, _ = (optional(package, "onnx", "the export") for package in ("onnxruntime", "onnxscript"))
    if prior.network_channels is None:
        raise ValueError(f"`prior` {prior.name!r} must say how many channels its images have")
    height, width = (check_count("size", n) for n in size)
    path = pathlib.Path(path)
    generator = torch.Generator().manual_seed(0)
    s = torch.logspace(-1.7, 1.7, 3)
    x = torch.randn(3, prior.network_channels, height, width, generator=generator) * s[:, None, None, None]
    batch = torch.export.Dim("batch")
    with _without_warnings():
        program = torch.onnx.export(
            prior.network, (x, s), dynamo=True, input_names=["x", "s"], output_names=["denoised"],
            dynamic_shapes={"x": {0: batch}, "s": {0: batch}}, verbose=False,
        )  # fmt: skip
    assert program is not None  # what torch.onnx.export promises with dynamo=True
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".rmp-fast.") as folder:
        written = pathlib.Path(folder) / path.name
        program.save(str(written), external_data=False)
        session = runtime.InferenceSession(str(written), providers=["CPUExecutionProvider"])
        differences = []
        for items in (3, 1):
            (found,) = session.run(None, {"x": x[:items].numpy(), "s": s[:items].numpy()})
            expected = prior.denoise(x[:items], s[:items]).numpy()
            for mine, theirs in zip(found, expected, strict=True):
                differences.append(np.linalg.norm(mine - theirs) / np.linalg.norm(theirs))
        worst = float(np.max(differences))  # NaN if any is
        if not worst <= AGREEMENT:
            raise RuntimeError(f"the exported network differs from torch by {worst:.1e}, more than {AGREEMENT:.0e}")
        written.replace(path)
    return worst


@contextlib.contextmanager
def _without_warnings() -> Iterator[None]:
    """Those of the exporter are about parts of its own, and what it makes is compared with torch."""
    log = logging.getLogger("torch.onnx")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)


def to_csv(looks: schedules.Looks, path: pathlib.Path | str) -> None:
    """Write the looks of a chain, one line each under the names of their columns; every float64 is kept exactly."""
    names = [field.name for field in dataclasses.fields(looks)]
    rows = zip(*(getattr(looks, name).tolist() for name in names), strict=True)
    lines = [",".join(names), *(",".join(map(repr, row)) for row in rows)]
    pathlib.Path(path).write_text("\n".join(lines) + "\n")


def main(arguments: list[str] | None = None) -> int:
    """The command; returns its exit code, or exits with 2 where an argument cannot be served."""
    parser = argparse.ArgumentParser(prog="python -m rmp_fast.export", description=__doc__.partition(":")[2].strip())
    parser.add_argument("prior", choices=priors.BUNDLED)
    parser.add_argument("output", type=pathlib.Path, help="the ONNX file to write")
    parser.add_argument("--size", type=int, nargs=2, metavar=("H", "W"), help="of the images; default 32 32 or 256 256")
    parser.add_argument("--looks", type=pathlib.Path, help="CSV to write the tuned chain of --task to")
    parser.add_argument("--task", choices=presets.TASKS, default="sr4")
    parser.add_argument("--evaluations", type=int, default=20, help="budget of the chain")
    options = parser.parse_args(arguments)
    size = tuple(options.size or ((32, 32) if options.prior == "fashion" else (256, 256)))
    try:
        settings = presets.for_task(options.task, options.prior, options.evaluations)
        if options.looks and "looks" not in settings:
            raise ValueError(
                f"no chain was tuned for {options.task} with {options.prior} and {options.evaluations} evaluations"
            )
        worst = to_onnx(priors.load(options.prior), options.output, size)
    except (ImportError, OSError, ValueError) as cause:
        parser.error(str(cause))
    print(f"{options.output}: {options.prior} for {size[0]}x{size[1]}, differs from torch by {worst:.1e}")
    if options.looks:
        to_csv(settings["looks"], options.looks)
        print(f"{options.looks}: {len(settings['looks'])} looks for {options.task}, start={settings['start']!r}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
