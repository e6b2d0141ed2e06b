"""Likelihood scores: how a denoised image D(x, s) becomes the conditionally denoised d_y(x) = D + s^2 l(x)."""

from __future__ import annotations

from torch import Tensor

from ._checks import check_choice
from .operators import Operator
from .priors import GaussianMixture, Prior

__all__ = ["GUIDANCES", "check_guidance", "noise_ratio", "usable"]

#: ``gaussian``: d_y = D + r2 A^T (r2 A A^T + sy^2 I)^-1 (y - A D), no gradients; ``exact``: E[x0 | x, y].
GUIDANCES = ("gaussian", "exact")


def usable(op: Operator, prior: Prior) -> list[str]:
    """The guidances that can serve this operator and prior."""
    names = []
    if op.linear:
        names.append("gaussian")
        if isinstance(prior, GaussianMixture):
            names.append("exact")
    return names


def check_guidance(guidance: str, op: Operator, prior: Prior) -> None:
    """ValueError unless ``guidance`` is known and serves ``op`` and ``prior``, naming those that do."""
    check_choice("guidance", guidance, GUIDANCES)
    works = usable(op, prior)
    if guidance not in works:
        raise ValueError(
            f"`guidance` {guidance!r} cannot serve the operator {op.name!r} with the prior {prior.name!r}; "
            f"those that can: {', '.join(map(repr, works)) or 'none'}"
        )


def noise_ratio(levels: Tensor, data_variance: float, noise_std: Tensor) -> Tensor:
    """q = sy^2 / r2 with r2 = s^2 p / (s^2 + p), the variance of x0 given x for a Gaussian prior of variance p.

    With it d_y = D + A^T (A A^T + q I)^-1 (y - A D).

    Args:
        levels: (L,) noise levels s.
        data_variance: p.
        noise_std: (B,) standard deviations sy.

    Returns:
        (L, B) float64.
    """
    squared = levels.double().square()
    r2 = squared * data_variance / (squared + data_variance)
    return noise_std.double().square()[None, :] / r2[:, None].to(noise_std.device)
