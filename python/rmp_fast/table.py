"""The table of looks: what every evaluation of the network does to the mean (``Look`` in kernels/params.h).

Columns: to_previous, to_denoised, next_std, noise_ratio, share, next_share, std, rate. The noise ratio depends on the
item and is left at 0 here.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .schedules import Looks

__all__ = ["rows_of_levels", "rows_of_looks"]


def rows_of_looks(looks: Looks, perturbed: bool) -> Tensor:
    """(L + 1, 8) float64; the last row perturbs the start."""
    noise = looks.noise * perturbed
    rows = torch.zeros(len(looks) + 1, 8, dtype=torch.float64)
    rows[:-1, 0] = -looks.momentum  # away from the mean before, which the step is given as `previous`
    rows[:-1, 1] = looks.weight
    rows[:-2, 2], rows[-1, 2] = noise[1:], noise[0]
    return rows


def rows_of_levels(
    levels: Tensor, step_sizes: Sequence[float], rate: float, perturbed: bool, sampled: Sequence[bool]
) -> Tensor:
    """(L + 1, 8) or, with branches, (L + 1 + T, 8) float64: the looks, the start, the starts from samples.

    Args:
        levels: (T + 1,) s_0 < ... < s_T.
        step_sizes: s1 of the inner iterations.
        rate: s2 of a learned precision.
        perturbed: whether looks go through noise.
        sampled: for branches, whether each level, in order of execution, ends in a sample; empty without branches.
    """
    inner, steps = len(step_sizes), len(levels) - 1
    below, above = levels[:-1].flip(0), levels[1:].flip(0)  # s_k and s_{k+1}, in order of execution
    share = (1 - (below / above).square()).repeat_interleave(inner)  # 1 - w = v / s_k^2
    level_std = (above.square() - below.square()).sqrt() * below / above  # sqrt(v) of every level
    std = level_std.repeat_interleave(inner) * perturbed
    s1 = torch.tensor(step_sizes, dtype=torch.float64).repeat(steps)
    zero = torch.zeros(1, dtype=torch.float64)
    columns = [
        s1 * (1 - share), s1 * share, torch.cat([std[1:], zero]), torch.zeros_like(s1),
        share, torch.cat([share[1:], zero]), std, torch.full_like(s1, rate),
    ]  # fmt: skip
    looks = steps * inner
    rows = torch.zeros(looks + 1 + len(sampled), 8, dtype=torch.float64)
    rows[:looks] = torch.stack(columns, -1)
    rows[looks, 2] = std[0]
    if sampled:
        # Behind a sampled level the last look draws the sample, and another row perturbs what follows.
        last = torch.arange(1, steps + 1) * inner - 1
        rows[looks + 1 :, [2, 5]] = rows[last][:, [2, 5]]
        chosen = torch.tensor(list(sampled))
        rows[last[chosen], 2] = level_std[chosen]
        rows[last[chosen], 5] = share[last[chosen]]
    return rows
