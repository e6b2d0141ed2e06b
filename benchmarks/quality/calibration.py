"""How honest the spread of an estimate is: ``python benchmarks/quality/calibration.py``.

For the five linear tasks on Fashion-MNIST test images that nothing was tuned on: the share of pixels whose error is
within 1, 2 and 3 of the standard deviations that ``Plan(spread_looks=...)`` gives (68, 95 and 99.7 % if errors were
Gaussian and the variance exact), the mean variance as a share of the mean squared error, and the correlation of the
variance with the squared error.
"""

from __future__ import annotations

import argparse
import pathlib

from linear_tasks import NOISE, TASKS, problem

import rmp_fast as rmp
from rmp_fast.spread import calibration


def main() -> None:
    home = pathlib.Path.home() / ".cache" / "rmp_fast"
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=64, help="images")
    parser.add_argument("--looks", type=int, default=8, help="pairs of looks spent on the variance")
    parser.add_argument("--data", type=pathlib.Path, default=home / "data", help="where the test set is kept")
    arguments = parser.parse_args()
    prior = rmp.priors.load("fashion")
    print(f"{'task':16s} {'1 sd':>6s} {'2 sd':>6s} {'3 sd':>6s} {'variance/error':>15s} {'correlation':>12s}")
    for task in TASKS:
        images, op, y = problem(task, arguments.count, arguments.data)
        settings = rmp.presets.for_task(task, prior, 20)
        plan = rmp.Plan(op, prior, tuple(images.shape), NOISE, spread_looks=arguments.looks, **settings)
        estimate = plan.execute(y)
        assert estimate.variance is not None
        found = calibration(estimate.mean, estimate.variance, images)
        shares = " ".join(f"{100 * value:5.1f}%" for value in found.within)
        print(f"{task:16s} {shares} {found.ratio:15.2f} {found.correlation:12.2f}", flush=True)


if __name__ == "__main__":
    main()
