"""Kernels and whole chains on a CUDA device, beside eager torch: ``python benchmarks/bench_gpu.py``.

All sides take turns in one process, after their results have agreed; what does not agree has no row, and the exit code
is 1. ``--device cpu`` runs the same there, without graphs.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import rmp_fast as rmp
from rmp_fast import operators
from rmp_fast.bench import kernels, methods
from rmp_fast.bench.harness import CheckError
from rmp_fast.bench.interleave import Timing, interleaved
from rmp_fast.bench.problem import Problem, network_rounding
from rmp_fast.cli.roofline import beside_torch, table

EVALUATIONS = 20
NOISE_STD = 0.05
HIDDEN = 0.7  # of the pixels


def inpainting(prior: rmp.priors.Prior, shape: tuple[int, ...], device: torch.device) -> Problem:
    """Smooth random images behind a mask."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(*shape[:2], 8, 8, generator=generator) * 2 - 1
    truth = F.interpolate(coarse, shape[2:], mode="bilinear", align_corners=True)
    op = operators.Inpainting(operators.random_mask(shape[2:], HIDDEN, 0))
    y = op.A(truth + NOISE_STD * torch.randn(shape, generator=generator))
    with kernels.full_float32():
        rounding = network_rounding(prior, (1, *shape[1:]))
    seeds = torch.arange(shape[0], device=device)
    return Problem("inpaint_random", op, prior, truth.to(device), y.to(device), NOISE_STD, seeds, rounding)


def _gap(made: Tensor, expected: Tensor, tolerance: float, what: str) -> str:
    gap = float((made - expected).double().square().mean().sqrt())
    if not gap <= tolerance:
        raise CheckError(f"{what} by {gap:.2g} (root mean square), more than rounding can, {tolerance:.2g}")
    return "to the bit" if torch.equal(made, expected) else f"{gap:.1e} <= {tolerance:.1e}"


def chain_rows(
    problem: Problem, backend: str, graphed: bool, evaluations: int, **timing: Any
) -> tuple[list[dict[str, Any]], list[str]]:
    """Rows of one chain: eager torch, our plan, and with ``graphed`` our plan captured; and why others have none.

    Eager torch is compared with the plan on its normals, in float32 from end to end; the captured plan with the plan
    as both are timed. Convolutions may choose another algorithm in a capture, so that more than the last bit may
    differ: the row says by how much.
    """
    device = problem.truth.device
    options = {"device": device, "backend": backend, **methods.untuned(evaluations)}

    def plan(prior: rmp.priors.Prior) -> rmp.Plan:
        return rmp.Plan(problem.op, prior, problem.shape, problem.noise_std, **options)

    plain, eager = plan(problem.prior), methods.eager_chain(problem, evaluations)
    generator, out = torch.Generator(device).manual_seed(0), torch.empty_like(problem.truth)
    denoise = problem.prior.denoise
    arms: dict[str, Any] = {
        "eager torch": lambda: eager(
            denoise, lambda look: torch.randn(problem.shape, generator=generator, device=device)
        ),
        "plan": lambda: plain.execute(problem.y, problem.seeds, out),
    }
    try:
        with kernels.full_float32():
            theirs = eager(denoise, methods.plan_normals(problem))
            mine = plain.execute(problem.y, problem.seeds).mean
        told = _gap(theirs, mine, problem.tolerance(evaluations), "eager torch and the plan differ")
    except CheckError as error:
        return [], [str(error)]
    checked, refused = dict.fromkeys(arms, told), []
    if graphed:
        replayed = plan(plain.network)
        try:
            recording = replayed.capture()
            if not recording.whole:
                raise CheckError(f"the chain is not one graph: {recording.prevented_by}")
            rounding = network_rounding(problem.prior, (1, *problem.shape[1:]))
            made, expected = (p.execute(problem.y, problem.seeds).mean for p in (replayed, plain))
            told = _gap(
                made, expected, 4 * evaluations * rounding, "the captured plan differs from the same without a graph"
            )
            arms["plan, captured"] = lambda: replayed.execute(problem.y, problem.seeds, out)
            checked["plan, captured"] = told
        except (CheckError, RuntimeError) as error:
            refused.append(str(error).partition("\n")[0])
    timings = interleaved(arms, device=device, **{"rounds": 15, "sample": 0.05, "budget": 60.0, **timing})
    return rows_of(problem, timings, checked), refused


def rows_of(problem: Problem, timings: dict[str, Timing], checked: dict[str, str]) -> list[dict[str, Any]]:
    """What the seconds of a batch say, each arm beside eager torch."""
    images, eager = problem.shape[0], timings["eager torch"].median
    return [
        {
            "chain": f"{problem.prior.name}, {' x '.join(map(str, problem.shape))}", "arm": arm,
            "milliseconds": t.median / images * 1e3, "low": t.low / images * 1e3, "high": t.high / images * 1e3,
            "images_per_second": images / t.median, "eager_ratio": eager / t.median, "checked": checked[arm],
        }
        for arm, t in timings.items()
    ]  # fmt: skip


def chain_table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as text."""
    head = ("chain", "run as", "ms per image", "band", "images/s", "eager / this", "agrees")
    return "\n".join(table(head, [
        (
            row["chain"], row["arm"], f"{row['milliseconds']:.3f}", f"{row['low']:.3f}-{row['high']:.3f}",
            f"{row['images_per_second']:.2f}", f"{row['eager_ratio']:.2f}", row["checked"],
        )
        for row in rows
    ]))  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0, 1 where something does not agree, 2 where the device is not there."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--device", default="cuda", metavar="NAME", help="cuda (default), cuda:1 or cpu")
    parser.add_argument("--backend", default="auto", metavar="NAME", help="kernels: auto (default), cuda, triton, cpu")
    parser.add_argument("--images", nargs="+", type=int, default=[1, 16], metavar="N", help="of a batch (1 16)")
    parser.add_argument("--side", type=int, default=256, metavar="PIXELS", help="of the photographs (256)")
    options = parser.parse_args(arguments)
    if min(*options.images, options.side) < 1:
        parser.error("`--images` and `--side` must be at least 1")
    try:
        device, backend = kernels.device_of(options.device, options.backend)
    except (ValueError, RuntimeError) as error:
        parser.error(str(error))
    on_card = device.type == "cuda"
    photos = [(n, 3, options.side, options.side) for n in options.images]
    report = kernels.measure(str(device), [*photos, (1, 1, 32, 32)], backend)
    print(beside_torch(report), flush=True)
    refused = list(report["refused"])
    print(
        f"\nInpainting, {EVALUATIONS} evaluations of the network in float32, with torch's defaults for convolutions"
        + (f" (TF32: {'on' if torch.backends.cudnn.allow_tf32 else 'off'})" if on_card else "")
    )
    rows: list[dict[str, Any]] = []
    with torch.cuda.device(device) if on_card else contextlib.nullcontext():
        for name, shapes in (("fashion", [(n, 1, 32, 32) for n in options.images]), ("photo", photos)):
            prior = rmp.priors.load(name).to(device)
            for shape in shapes:
                made, why = chain_rows(inpainting(prior, shape, device), backend, on_card, EVALUATIONS)
                rows += made
                refused += [f"{name}, {' x '.join(map(str, shape))}: {reason}" for reason in why]
    print(chain_table(rows))
    for reason in refused[len(report["refused"]) :]:
        print(f"NO ROW: {reason}")
    return 1 if refused else 0


if __name__ == "__main__":
    sys.exit(main())
