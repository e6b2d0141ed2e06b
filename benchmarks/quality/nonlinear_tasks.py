"""The nonlinear tasks by several guidances and baselines: ``python benchmarks/quality/nonlinear_tasks.py``.

Nonlinear blur and phase retrieval of three 128x128 photographs (``photo``) and of Fashion-MNIST test images from number
5000 on (``fashion``). Phase retrieval runs from eight seeded starts, the one of least residual is kept and scored over
the shifts and turns that the measurement does not tell apart. Noise in the unit of the measurement: 0.04 for the blur;
for phase retrieval 0.025, which is 0.05 on [-1, 1], and the 0.05 of DPS and DAPS. Prints the PSNR of every item.
"""

from __future__ import annotations

import argparse
import pathlib
import time
from collections.abc import Callable

import torch
from photos import photos, psnr
from torch import Tensor

import rmp_fast as rmp
from rmp_fast import baselines, operators
from rmp_fast.training.data import fashion_images

TASKS = ("nonlinear_deblur", "phase_retrieval")
GUIDANCES = ("gauss_newton", "dps", "jensen")


def noisy(op: operators.Operator, truth: Tensor, noise: float) -> Tensor:
    y = op.A(truth)
    return y + noise * torch.randn(y.shape, generator=torch.Generator().manual_seed(0))


def report(label: str, values: Tensor, seconds: float) -> None:
    cells = " ".join(f"{value:6.2f}" for value in values.tolist())
    print(f"{label:28s} {values.mean():6.2f} dB  {seconds:6.1f} s   {cells}", flush=True)


def nonlinear_deblur(truth: Tensor, prior: rmp.priors.Prior, evaluations: int) -> None:
    shape, noise = tuple(truth.shape), 0.04
    op = operators.for_task("nonlinear_deblur", shape)
    y = noisy(op, truth, noise)
    print(f"nonlinear_deblur, {prior.name}")
    report("the measurement", psnr(y, truth), 0.0)
    preset = rmp.presets.for_task("nonlinear_deblur", prior, evaluations)
    chains = {"preset": preset} if "looks" in preset else {}
    chains |= {
        f"{guidance} untuned": rmp.presets.untuned(evaluations) | {"guidance": guidance} for guidance in GUIDANCES
    }
    for label, chain in chains.items():
        estimate = rmp.Plan(op, prior, shape, noise, **chain).execute(y)
        report(f"{label}, {evaluations}", psnr(estimate.mean, truth), estimate.stats["seconds"])
    for method in ("daps", "dps"):
        started = time.perf_counter()
        own = baselines.paper_settings(method, "nonlinear_deblur")
        estimate = baselines.reconstruct(method, y, op, prior, noise, evaluations=100, shape=shape, **own)
        report(f"{method} baseline, 100", psnr(estimate.mean, truth), time.perf_counter() - started)


def phase_retrieval(truth: Tensor, prior: rmp.priors.Prior, starts: int, noise: float) -> None:
    shape = tuple(truth.shape)
    op = operators.PhaseRetrieval()
    y = noisy(op, truth, noise)

    def best(label: str, estimate: Callable[[Tensor], Tensor]) -> None:
        started = time.perf_counter()
        image = operators.best_of_starts(op, y, estimate, starts=starts).image
        values = psnr(operators.align(image, truth).image, truth)
        report(f"{label} x {starts} starts", values, time.perf_counter() - started)
        print(f"{'':28s} {int((values > 25).sum())} of {len(values)} above 25 dB", flush=True)

    print(f"phase_retrieval, {prior.name}, noise {noise:g}")
    for evaluations in (20, 40, 100):
        plan = rmp.Plan(op, prior, shape, noise, **rmp.presets.for_task("phase_retrieval", prior, evaluations))
        best(f"gauss_newton, {evaluations}", lambda seeds, plan=plan: plan.execute(y, seeds).mean)
    for guidance in ("dps", "jensen"):
        plan = rmp.Plan(op, prior, shape, noise, guidance=guidance, **rmp.presets.untuned(100))
        best(f"{guidance}, 100", lambda seeds, plan=plan: plan.execute(y, seeds).mean)
    for method in ("daps", "dps"):
        own = baselines.paper_settings(method, "phase_retrieval") | {"evaluations": 100, "shape": shape}
        best(
            f"{method} baseline, 100",
            lambda seeds, method=method, own=own: (
                baselines.reconstruct(method, y, op, prior, noise, seeds=seeds, **own).mean
            ),
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--prior", nargs="+", choices=("photo", "fashion"), default=("photo", "fashion"), help="and its images (both)"
    )
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=TASKS, help="which (both)")
    parser.add_argument("--evaluations", type=int, default=20, help="of one chain of nonlinear blur")
    parser.add_argument("--count", type=int, default=10, help="images of Fashion-MNIST (10)")
    parser.add_argument("--starts", type=int, default=8, help="of phase retrieval")
    parser.add_argument("--data", type=pathlib.Path, default=pathlib.Path.home() / ".cache" / "rmp_fast" / "data")
    arguments = parser.parse_args()
    images = fashion_images(arguments.data, "test")[5000 : 5000 + arguments.count]
    truths = {"photo": photos(), "fashion": torch.from_numpy(images).float() / 127.5 - 1}
    for name in arguments.prior:
        prior, truth = rmp.priors.load(name), truths[name]
        if "nonlinear_deblur" in arguments.tasks:
            nonlinear_deblur(truth, prior, arguments.evaluations)
        for noise in (0.025, 0.05) if "phase_retrieval" in arguments.tasks else ():
            phase_retrieval(truth, prior, arguments.starts, noise)


if __name__ == "__main__":
    main()
