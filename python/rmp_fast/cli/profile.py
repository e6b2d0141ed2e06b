"""``rmp-fast profile``: where the time of one chain goes."""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from skimage.transform import resize

from .. import _json, images, priors
from ..bench.profile import profile
from ..plan import Plan
from . import degrade, record
from .inputs import make_output_folder, refuse_results
from .prior import preset
from .problems import photographs
from .roofline import table
from .tasks import TASKS, Settings, choice, derive_seed, resolve
from .usage import UsageError, check_numbers

__all__ = ["render", "run"]

_FILES = ("profile.json", "trace.json")


def run(options: argparse.Namespace) -> int:
    """Carry out the command and return its exit code.

    Raises:
        UsageError: before any work, for anything that cannot be carried out as given.
    """
    choice("--task", options.task, tuple(TASKS))
    options.operator, options.simulate = options.task, True
    settings = resolve(options)
    check_numbers(options, ("size", "batch", "evaluations", "rounds", "threads"))
    choice("--prior", options.prior, tuple(priors.BUNDLED))
    out = options.out
    if out is not None:
        refuse_results(out, _FILES, options.force)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    prior = priors.load(options.prior)
    grey = prior.network_channels == 1 or settings.operator in ("mri", "phase_retrieval")
    picture = _picture(options, grey)
    try:
        plan, y, seeds = _chain(options, settings, prior, picture)
        if out is not None:
            make_output_folder(out)
        report = profile(plan, y, seeds, rounds=options.rounds, trace=None if out is None else out / "trace.json")
    except UsageError:
        raise
    except (TypeError, ValueError) as error:
        raise UsageError(str(error)) from error
    report = {"task": options.task, **report, "environment": record.environment()}
    if out is not None:
        _json.write(out / "profile.json", report)
    print(_json.dumps(report) if options.json else render(report))
    return 0


def _chain(
    options: argparse.Namespace, settings: Settings, prior: priors.NetworkPrior, picture: NDArray[np.float32]
) -> tuple[Plan, torch.Tensor, torch.Tensor]:
    names = [str(index) for index in range(options.batch)]
    truths = torch.from_numpy(np.stack([picture] * options.batch))
    op = degrade.build(settings, names, picture.shape, options.seed)
    y = degrade.to_prior_range(op, degrade.simulate(op, truths, options.noise_std, names, options.seed), truths)
    noise_std = degrade.noise_to_prior_range(op, options.noise_std)
    chain = preset(None, settings, prior, options.evaluations, options.noise_std)
    plan = Plan(op, prior, tuple(truths.shape), noise_std, backend=options.backend, **chain)
    seeds = [derive_seed(options.seed, "chain", name) for name in names]
    return plan, y, torch.tensor(seeds, dtype=torch.int64)


def _picture(options: argparse.Namespace, grey: bool) -> NDArray[np.float32]:
    """The middle of the image, (C, H, W) on [0, 1]: cut to a square, and scaled where that is not of the size."""
    side = options.size or (32 if options.prior == "fashion" else 256)
    if options.image is None:
        pixels = photographs(1)[0].pixels
    else:
        if not options.image.is_file():
            raise UsageError(f"`--image` {options.image} does not exist")
        try:
            pixels = images.read(options.image).pixels
        except images.ImageError as error:
            raise UsageError(f"`--image` {error}") from error
    if grey:
        pixels = pixels.mean(0, keepdims=True)
    short = min(pixels.shape[1:])
    if options.image is not None and short > side:
        short = side
    top, left = ((length - short) // 2 for length in pixels.shape[1:])
    square = pixels[:, top : top + short, left : left + short]
    if short != side:
        square = resize(square, (square.shape[0], side, side), order=1, anti_aliasing=True)
    return np.ascontiguousarray(square, dtype=np.float32)


def render(report: dict[str, Any]) -> str:
    """The report of :func:`rmp_fast.bench.profile.profile` as text."""
    settings, network = report["settings"], report["network"]
    shape = " x ".join(map(str, settings["shape"]))
    lines = [
        f"{report['task']}, {settings['prior']} prior, {shape}, {report['evaluations']} evaluations, backend "
        f"{settings['backend']} ({settings['cpu_path']}), {settings['threads']} threads: {report['seconds']:.4g} s, "
        f"median of {report['rounds']}",
        f"network: {network['gflop']:.3g} GFLOP and {network['seconds_per_evaluation'] * 1e3:.3g} ms an evaluation, "
        f"{network['gflops']:.3g} GFLOP/s; a copy of 128 MB: {report['copy_gbps']:.1f} GB/s",
        "",
        *table(
            ("phase", "ms", "share"),
            [
                (name, f"{seconds * 1e3:.3f}", f"{seconds / report['seconds']:.2%}")
                for name, seconds in report["phases"].items()
            ],
        ),
        "",
        *table(
            ("kernel", "calls", "ms", "MB", "GB/s", "of copy"),
            [
                (
                    row["kernel"], f"{row['calls']:g}", f"{row['seconds'] * 1e3:.3f}", f"{row['bytes'] / 1e6:.2f}",
                    f"{row['gbps']:.1f}", f"{row['bandwidth_share']:.0%}",
                )
                for row in report["kernels"]
            ],
        ),
        "",
        *table(
            ("operation of torch, under its profiler", "calls", "ms"),
            [(row["operation"], row["calls"], f"{row['seconds'] * 1e3:.3f}") for row in report["operations"]],
        ),
    ]  # fmt: skip
    return "\n".join(lines)
