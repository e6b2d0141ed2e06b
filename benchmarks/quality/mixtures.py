"""Where the truth is known: ``python benchmarks/quality/mixtures.py``.

Gaussian mixtures of 8 to 16 dimensions and 3 to 10 components, exact guidance, 300 measurements each. Prints the mean
squared distance of estimates to the exact posterior mean as a share of the prior's variance: of one chain of means of
20 evaluations, of K branches that are sampled above the level 1 and follow the mean below, and of the average of K
ancestral samples, 30 evaluations each. The first setting has one mode, the others may have several.
"""

from __future__ import annotations

import torch
from torch import Tensor

import rmp_fast as rmp

MEASUREMENTS = 300
BRANCHES = (4, 16)
SAMPLED = 1e-6  # a switch level below all others: every level is sampled


def setting(seed: int) -> tuple[rmp.priors.GaussianMixture, rmp.operators.LinearOperator, Tensor, float, str]:
    """Prior, operator, measurements, noise and what it is; drawn from ``seed``."""
    g = torch.Generator().manual_seed(seed)
    size = int(torch.randint(8, 17, (1,), generator=g))
    components = 1 if seed == 0 else int(torch.randint(3, 11, (1,), generator=g))
    rows = int(torch.randint(2, size // 2 + 1, (1,), generator=g))
    noise = float(0.05 + 0.25 * torch.rand(1, generator=g))
    weights = torch.rand(components, generator=g, dtype=torch.float64) + 0.2
    means = torch.randn(components, size, generator=g, dtype=torch.float64)
    variances = 0.02 + 0.1 * torch.rand(components, size, generator=g, dtype=torch.float64)
    prior = rmp.priors.GaussianMixture(weights / weights.sum(), means, variances)
    op = rmp.operators.CompressedSensing(torch.randn(rows, size, generator=g, dtype=torch.float64) / size**0.5)
    chosen = torch.multinomial(weights, MEASUREMENTS, replacement=True, generator=g)
    e = torch.randn(MEASUREMENTS, size, generator=g, dtype=torch.float64)
    truth = means[chosen] + variances[chosen].sqrt() * e
    y = op.A(truth)
    y = y + noise * torch.randn(y.shape, generator=g, dtype=torch.float64)
    return prior, op, y, noise, f"N={size:2d} K={components:2d} M={rows} noise {noise:.2f}"


def distance(
    prior: rmp.priors.GaussianMixture, op: rmp.operators.LinearOperator, y: Tensor, noise: float, steps: int,
    branches: int = 1, switch_level: float = 1.0,
) -> float:  # fmt: skip
    """Mean squared distance of the estimate to the exact mean, as a share of the prior's variance."""
    exact = prior.posterior_mean(y, op, noise)
    plan = rmp.Plan(
        op, prior, tuple(exact.shape), noise, schedule=rmp.schedules.log(steps, 0.02, 30.0), guidance="exact",
        noise="none", anchor="next", inner_steps=1, step_size=1.0, branches=branches, switch_level=switch_level,
        dtype=torch.float64, backend="torch",
    )  # fmt: skip
    error = (plan.execute(y).mean - exact).square().sum(1).mean()
    return float(error / (prior.data_variance * exact.shape[1]))


def main() -> None:
    heads = "".join(f"{f'{k} branches':>14s}{f'{k} samples':>14s}" for k in BRANCHES)
    print(f"{'setting':30s}{'one chain':>12s}{heads}")
    for seed in range(14):
        *problem, label = setting(seed)
        cells = [distance(*problem, 20)]
        for k in BRANCHES:
            cells += [distance(*problem, 30, k, level) for level in (1.0, SAMPLED)]
        print(f"{label:30s}{cells[0]:12.5f}" + "".join(f"{cell:14.5f}" for cell in cells[1:]), flush=True)


if __name__ == "__main__":
    main()
