"""The nonlinear tasks by several guidances and baselines: ``python benchmarks/quality/nonlinear_tasks.py``.

Nonlinear blur of three 128x128 photographs (``photo``) and phase retrieval of Fashion-MNIST test images from number
5000 on (``fashion``; eight seeded starts, the one of least residual kept, scored over the shifts and turns that the
measurement does not tell apart). Noise 0.04 and 0.05 in the unit of the measurement. Prints the PSNR of every item.
"""

from __future__ import annotations

import argparse
import pathlib
import time

import torch
from photos import photos, psnr
from torch import Tensor

import rmp_fast as rmp
from rmp_fast import baselines, operators
from rmp_fast.training.data import fashion_images

GUIDANCES = ("gauss_newton", "dps", "jensen")


def noisy(op: operators.Operator, truth: Tensor, noise: float) -> Tensor:
    y = op.A(truth)
    return y + noise * torch.randn(y.shape, generator=torch.Generator().manual_seed(0))


def report(label: str, values: Tensor, seconds: float) -> None:
    cells = " ".join(f"{value:6.2f}" for value in values.tolist())
    print(f"{label:28s} {values.mean():6.2f} dB  {seconds:6.1f} s   {cells}", flush=True)


def nonlinear_deblur(evaluations: int) -> None:
    truth, prior, noise = photos(), rmp.priors.load("photo"), 0.04
    shape = tuple(truth.shape)
    op = operators.for_task("nonlinear_deblur", shape)
    y = noisy(op, truth, noise)
    print("nonlinear_deblur")
    report("the measurement", psnr(y, truth), 0.0)
    settings = rmp.presets.for_task("nonlinear_deblur", prior, evaluations)
    for guidance in GUIDANCES:
        estimate = rmp.Plan(op, prior, shape, noise, **{**settings, "guidance": guidance}).execute(y)
        report(f"{guidance}, {evaluations} evaluations", psnr(estimate.mean, truth), estimate.stats["seconds"])
    for method in ("daps", "dps"):
        started = time.perf_counter()
        own = baselines.paper_settings(method, "nonlinear_deblur")
        estimate = baselines.reconstruct(method, y, op, prior, noise, evaluations=100, shape=shape, **own)
        report(f"{method} baseline, 100", psnr(estimate.mean, truth), time.perf_counter() - started)


def phase_retrieval(evaluations: int, count: int, starts: int, cache: pathlib.Path) -> None:
    prior, noise = rmp.priors.load("fashion"), 0.05
    truth = torch.from_numpy(fashion_images(cache, "test")[5000 : 5000 + count]).float() / 127.5 - 1
    shape = tuple(truth.shape)
    op = operators.PhaseRetrieval()
    y = noisy(op, truth, noise)
    print("phase_retrieval")
    for guidance in GUIDANCES:
        settings = {**rmp.presets.for_task("phase_retrieval", prior, evaluations), "guidance": guidance}
        plan = rmp.Plan(op, prior, shape, noise, **settings)
        started = time.perf_counter()
        best = operators.best_of_starts(op, y, lambda seeds, plan=plan: plan.execute(y, seeds).mean, starts=starts)
        values = psnr(operators.align(best.image, truth).image, truth)
        report(f"{guidance}, {starts} x {evaluations}", values, time.perf_counter() - started)
        print(f"{'':28s} {int((values > 25).sum())} of {count} above 25 dB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--evaluations", type=int, default=20, help="of one chain")
    parser.add_argument("--count", type=int, default=10, help="images for phase retrieval")
    parser.add_argument("--starts", type=int, default=8, help="of phase retrieval")
    parser.add_argument("--data", type=pathlib.Path, default=pathlib.Path.home() / ".cache" / "rmp_fast" / "data")
    arguments = parser.parse_args()
    nonlinear_deblur(arguments.evaluations)
    phase_retrieval(arguments.evaluations, arguments.count, arguments.starts, arguments.data)


if __name__ == "__main__":
    main()
