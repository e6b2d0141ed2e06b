"""Likelihood scores: how a denoised image D(x, s) becomes the conditionally denoised d_y(x) = D + s^2 l(x)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ._checks import check_choice
from .operators import LinearOperator, Operator
from .priors import GaussianMixture, Prior

__all__ = [
    "GAUSSIAN",
    "GRADIENTS",
    "GUIDANCES",
    "check_guidance",
    "denoised_variance",
    "direction",
    "gradient_limit",
    "gradient_weight",
    "usable",
]

#: Those that differentiate the denoiser, d_y = D + c J^T u with J = dD/dx; see :func:`direction`.
GRADIENTS = ("dps", "jensen", "pigdm")

#: ``gaussian``: d_y = D + r2 A^T (r2 A A^T + sy^2 I)^-1 (y - A D), no gradients; ``gauss_newton``: the same with the
#: Jacobian of a nonlinear A at D, gradients of A alone.
GAUSSIAN = ("gaussian", "gauss_newton")

#: All; ``exact``: E[x0 | x, y].
GUIDANCES = (*GAUSSIAN, *GRADIENTS, "exact")


def usable(op: Operator, prior: Prior) -> list[str]:
    """The guidances that can serve this operator and prior."""
    if not op.linear:
        return ["gauss_newton", "dps", "jensen"]
    return ["gaussian", *GRADIENTS, *(["exact"] if isinstance(prior, GaussianMixture) else [])]


def check_guidance(guidance: str, op: Operator, prior: Prior) -> None:
    """ValueError unless ``guidance`` is known and serves ``op`` and ``prior``, naming those that do."""
    check_choice("guidance", guidance, GUIDANCES)
    works = usable(op, prior)
    if guidance not in works:
        raise ValueError(
            f"`guidance` {guidance!r} cannot serve the operator {op.name!r} with the prior {prior.name!r}; "
            f"those that can: {', '.join(map(repr, works)) or 'none'}"
        )


def denoised_variance(levels: Tensor, data_variance: float) -> Tensor:
    """r2 = s^2 p / (s^2 + p) in float64: the variance of x0 given x for a Gaussian prior of variance p."""
    squared = levels.double().square()
    return squared * data_variance / (squared + data_variance)


def gradient_weight(
    guidance: str,
    scale: float | None,
    levels: Tensor,
    variance: Tensor,
    noise_std: Tensor,
    measurements: int,
    gain: Tensor,
) -> Tensor:
    """c (L, B) of d_y = D + c J^T u, in float64.

    Args:
        guidance: one of :data:`GRADIENTS`.
        scale: factor of the score, as ``guidance_scale`` of :class:`rmp_fast.Plan`; None: the default of every level.
        levels: (L,) noise levels s.
        variance: (L,) r2.
        noise_std: (B,) standard deviations sy.
        measurements: numbers per item of y.
        gain: (B,) of :func:`rmp_fast.reference.squared_gain`.
    """
    squared = levels.double().square()[:, None].to(noise_std.device)
    r2 = variance.double()[:, None].to(noise_std.device)
    noise = noise_std.double().square()[None, :]
    if guidance == "pigdm":
        score = (1.0 if scale is None else scale) / r2 + 0 * noise
    elif guidance == "jensen":
        score = 1 / (r2 * gain + noise) if scale is None else scale / noise + 0 * r2
    else:
        score = (measurements / (r2 + noise)).sqrt() if scale is None else scale + 0 * (r2 + noise)
    return squared * score


def gradient_limit(guidance: str, noise_ratio: Tensor, gain: Tensor) -> Tensor:
    """The norm beyond which c J^T u / ||r|| is not to be trusted, per norm of u, for every q = sy^2 / r2.

    Some directions of an image vary far more than r2 has it, J is as much larger there, and the full step overshoots by
    that factor and diverges. So (**ours**) it is held to the length of the step that J = r2/s^2 I would take. For u =
    A^T r that is shorter by g = max(1, ||A||^2), ``gain`` (B,) of :func:`rmp_fast.reference.squared_gain`.
    """
    return torch.ones_like(noise_ratio) if guidance == "pigdm" else 1 / (gain + noise_ratio)


def direction(
    guidance: str, op: Operator, denoised: Tensor, y: Tensor, solve: Callable[[Tensor], Tensor]
) -> tuple[Tensor, Tensor | None]:
    """u and r = y - A(D) of d_y = D + c J^T u / ||r||, with norms of items; None where nothing is divided.

    dps: A^T r, divided by ||r|| (Chung et al., "Diffusion posterior sampling", arXiv 2209.14687, eq. 16); jensen: A^T r
    (the same, eq. 11); pigdm: A^T (A A^T + q I)^-1 r (Song et al., "Pseudoinverse-guided diffusion models", ICLR 2023).
    For a nonlinear A, A^T is the transpose of its Jacobian at D.

    Args:
        guidance: one of :data:`GRADIENTS`.
        denoised, y: D (B, ...) and the measurement (B, ...).
        solve: r -> (A A^T + q I)^-1 r with q = sy^2 / r2, for pigdm.
    """
    if isinstance(op, LinearOperator):
        r = y - op.A(denoised)
        u = op.adjoint(solve(r) if guidance == "pigdm" else r, tuple(denoised.shape))
    else:
        with torch.enable_grad():
            point = denoised.detach().requires_grad_()
            r = y - op.A(point)
            (u,) = torch.autograd.grad(-0.5 * r.square().sum(), point)
    return u.detach(), r.detach() if guidance == "dps" else None
