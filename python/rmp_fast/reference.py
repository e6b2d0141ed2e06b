"""Reverse mean propagation in float64 and plain torch: the oracle that every backend is compared with.

Written to be read beside the algorithm (Xue, Cai, Yuan, Gao: "Score-Based Variational Inference for Inverse Problems",
arXiv 2410.05646). Never imports the compiled extension and is never optimised.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

__all__ = [
    "branch_seeds",
    "chain_of_looks",
    "conditional_mean",
    "normals",
    "philox",
    "reverse_mean_propagation",
    "squared_gain",
    "step_sizes",
]

_LOW = 0xFFFFFFFF


class _Prior(Protocol):
    data_variance: float

    def denoise(self, x: Tensor, s: Tensor) -> Tensor: ...


@runtime_checkable
class _ExactPrior(_Prior, Protocol):
    def condition(self, y: Tensor, op: Any, noise_std: float | Tensor) -> _Prior: ...


class _Operator(Protocol):
    linear: ClassVar[bool]

    def A(self, x: Tensor) -> Tensor: ...
    def adjoint(self, y: Tensor, image_shape: tuple[int, ...] | None = None) -> Tensor: ...
    def gram_solve(
        self, r: Tensor, r2: float | Tensor, noise_std: float | Tensor, image_shape: tuple[int, ...] | None = None
    ) -> Tensor: ...


def _multiply(a: Tensor, constant: int) -> tuple[Tensor, Tensor]:
    """High and low 32 bits of the product of 32-bit values held in int64."""
    low, high = a & 0xFFFF, a >> 16
    partial = low * constant
    upper = high * constant + (partial >> 16)
    return upper >> 16, ((upper << 16) | (partial & 0xFFFF)) & _LOW


def philox(counter: Tensor, key: Tensor) -> Tensor:
    """Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011).

    Args:
        counter: (..., 4) int64 holding 32-bit words.
        key: (..., 2) int64 holding 32-bit words.

    Returns:
        (..., 4) int64 holding 32-bit words.
    """
    c0, c1, c2, c3 = counter.unbind(-1)
    k0, k1 = key.unbind(-1)
    for _ in range(10):
        high0, low0 = _multiply(c0, 0xD2511F53)
        high1, low1 = _multiply(c2, 0xCD9E8D57)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + 0x9E3779B9) & _LOW, (k1 + 0xBB67AE85) & _LOW
    return torch.stack([c0, c1, c2, c3], -1)


def normals(seeds: Tensor, evaluation: int, stream: int, count: int) -> Tensor:
    """Standard normal numbers (B, count) in float64, by Philox and Box-Muller.

    Key: the item's 64-bit seed; counter: (element // 4, evaluation, stream, 0); u = (bits >> 8) 2^-24 + 2^-25;
    z0 = sqrt(-2 ln u0) cos(2 pi u1), z1 = sqrt(-2 ln u0) sin(2 pi u1) on lanes (0, 1) and (2, 3).

    Args:
        seeds: (B,) int64, read as 64 bits.
        evaluation, stream: 32-bit counters.
        count: numbers per item.
    """
    groups = -(-count // 4)
    counter = torch.zeros(seeds.shape[0], groups, 4, dtype=torch.int64, device=seeds.device)
    counter[..., 0] = torch.arange(groups, device=seeds.device)
    counter[..., 1] = evaluation
    counter[..., 2] = stream
    key = torch.stack([seeds & _LOW, (seeds >> 32) & _LOW], -1)[:, None, :]
    u = (philox(counter, key) >> 8).double() * 2.0**-24 + 2.0**-25
    radius = (-2 * u[..., 0::2].log()).sqrt()
    angle = 2 * math.pi * u[..., 1::2]
    z = torch.stack([radius * angle.cos(), radius * angle.sin()], -1)
    return z.reshape(seeds.shape[0], 4 * groups)[:, :count]


def step_sizes(step_size: Literal["averaging"] | float, relaxation: float, inner_steps: int) -> list[float]:
    """s1 of every inner iteration: ``relaxation`` * 2 / (2 + j), or the constant ``step_size``."""
    if step_size == "averaging":
        return [relaxation * 2 / (2 + j) for j in range(inner_steps)]
    return [float(step_size)] * inner_steps


def conditional_mean(
    x: Tensor,
    s: float,
    y: Tensor,
    op: _Operator,
    prior: _Prior,
    noise_std: Tensor,
    guidance: str = "gaussian",
    scale: float | None = None,
    r2: float | None = None,
) -> Tensor:
    r"""d_y(x) = D(x, s) + s^2 l(x), with r_2 = s^2 p / (s^2 + p) by default, r = y - A(D), J = dD/dx, M numbers in y:

    .. math::
        \text{gaussian}: \quad & s^2 l = r_2 A^T (r_2 A A^T + \sigma_y^2 I)^{-1} r \\
        \text{pigdm}: \quad & l = \text{scale}\, J^T A^T (r_2 A A^T + \sigma_y^2 I)^{-1} r, \quad \text{scale} = 1 \\
        \text{jensen}: \quad & l = \text{scale}\, J^T A^T r / \sigma_y^2, \quad
            \text{scale} = \sigma_y^2 / (g r_2 + \sigma_y^2) \\
        \text{dps}: \quad & l = -\text{scale}\, \nabla_x \lVert r \rVert, \quad
            \text{scale} = \sqrt{M / (r_2 + \sigma_y^2)}

    with those scales where none is given, g = max(1, ||A||^2), and then s^2 l no longer than what ``gaussian`` would
    add at J = r_2/s^2 I and A A^T = g I: the true J may be far larger for some directions than r_2 allows for.
    ``gauss_newton`` is ``gaussian`` with the Jacobian of A at D in place of A.
    """
    if r2 is None:
        r2 = s * s * prior.data_variance / (s * s + prior.data_variance)
    shape = tuple(x.shape)
    levels = torch.full((x.shape[0],), s, dtype=x.dtype, device=x.device)
    if guidance == "gaussian":
        d = prior.denoise(x, levels)
        return d + r2 * op.adjoint(op.gram_solve(y - op.A(d), r2, noise_std, shape), shape)
    if guidance == "gauss_newton":
        d = prior.denoise(x, levels)
        return d + _gauss_newton_step(d, y, op, r2, noise_std.square())
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        d = prior.denoise(x, levels)
        r = y - op.A(d)
    wanted = op.gram_solve(r.detach(), r2, noise_std, shape) if guidance == "pigdm" else r.detach()
    (u,) = torch.autograd.grad(r, d, -wanted, retain_graph=True)  # A^T wanted
    column = (-1,) + (1,) * (x.ndim - 1)
    noise = noise_std.square().reshape(column)
    gain = squared_gain(op, shape, x.device, x.dtype).reshape(column)
    if guidance == "pigdm":
        weight = torch.full_like(noise, 1.0 if scale is None else scale)
        bound = torch.full_like(noise, r2)
    elif guidance == "jensen":
        weight = 1 / (r2 * gain + noise) if scale is None else scale / noise
        bound = r2 / (r2 * gain + noise)
    else:
        weight = (y[0].numel() / (r2 + noise)).sqrt() if scale is None else torch.full_like(noise, scale)
        weight = weight / r.detach().flatten(1).norm(dim=1).clamp_min(1e-300).reshape(column)
        bound = r2 / (r2 * gain + noise)
    (score,) = torch.autograd.grad(d, x, weight * u)
    change = s * s * score
    if scale is None:
        norms = [t.flatten(1).norm(dim=1).reshape(column) for t in (u, change)]
        change = change * (bound * norms[0] / norms[1].clamp_min(1e-300)).clamp(max=1)
    return d.detach() + change


def squared_gain(op: _Operator, image_shape: Sequence[int], device: torch.device, dtype: torch.dtype) -> Tensor:
    """max(1, ||A||^2) (B,) in float64, by 16 steps of the power method from a fixed start; nonlinear: 1."""
    shape = tuple(image_shape)
    gain = torch.ones(shape[0], dtype=torch.float64, device=device)
    if not op.linear or shape[0] == 0:
        return gain
    column = (-1,) + (1,) * (len(shape) - 1)
    start = torch.randn(shape[1:], generator=torch.Generator().manual_seed(0), dtype=torch.float64, device="cpu")
    v = start.to(device, dtype).expand(shape).contiguous()
    for _ in range(16):
        v = v / v.flatten(1).norm(dim=1).clamp_min(1e-30).reshape(column)
        v = op.adjoint(op.A(v), shape)
    return torch.maximum(gain, v.flatten(1).double().norm(dim=1))


def _gauss_newton_step(d: Tensor, y: Tensor, op: _Operator, r2: float, variance: Tensor) -> Tensor:
    """r2 J^T (r2 J J^T + sy^2 I)^-1 (y - A(d)) with the dense Jacobian J of every item."""
    slopes: Tensor = torch.func.jacrev(lambda x: op.A(x).flatten(1))(d.detach())
    steps = []
    for item in range(d.shape[0]):
        slope = slopes[item, :, item].flatten(1)  # (M, N)
        gram = r2 * slope @ slope.T + variance[item] * torch.eye(slope.shape[0], dtype=d.dtype, device=d.device)
        r = (y - op.A(d))[item].flatten()
        steps.append(r2 * slope.T @ torch.linalg.solve(gram, r))
    return torch.stack(steps).reshape(d.shape)


def reverse_mean_propagation(
    y: Tensor,
    op: _Operator,
    prior: _Prior,
    noise_std: Tensor,
    levels: Tensor,
    seeds: Tensor,
    image_shape: tuple[int, ...],
    *,
    guidance: str = "gaussian",
    guidance_scale: float | None = None,
    noise: Literal["drawn", "antithetic", "control", "none"] = "control",
    inner_steps: int = 2,
    step_size: Literal["averaging"] | float = "averaging",
    relaxation: float = 1.4,
    anchor: Literal["current", "next"] = "current",
    covariance: Literal["fixed", "learned", "diagonal"] = "fixed",
    precision_rate: float = 0.3,
    switch_level: float = math.inf,
    start: Tensor | None = None,
    watch: Callable[[], bool] | None = None,
) -> Tensor:
    """The estimate of E[x0 | y]: the mean at level 0 of the chain.

    Args:
        y: measurements (B, ...), from images on [-1, 1].
        noise_std: (B,) standard deviations of the measurement noise, on the range of ``y``.
        levels: (T + 1,) noise levels s_0 < ... < s_T.
        seeds: (B,) int64.
        image_shape: (B, ...) of the result.
        switch_level: above this level the chain goes on from a sample of N(mean, v) instead of the mean.
        start: (B, ...) the first mean, default 0.
        watch: called after every look; False ends the chain at the mean that there is.

    Returns:
        float64 tensor of shape ``image_shape``.
    """
    y, noise_std = y.double(), noise_std.double()
    s = levels.tolist()
    batch = image_shape[0]
    column = (batch,) + (1,) * (len(image_shape) - 1)
    elements = math.prod(image_shape[1:])
    conditioned = None
    if guidance == "exact":
        assert isinstance(prior, _ExactPrior), "only Gaussian and mixture priors know E[x0 | x, y]"
        conditioned = prior.condition(y, op, noise_std)

    def d_y(x: Tensor, level: float) -> Tensor:
        if conditioned is None:
            return conditional_mean(x, level, y, op, prior, noise_std, guidance, guidance_scale)
        denoised: Tensor = conditioned.denoise(x, torch.full((batch,), level, dtype=torch.float64, device=x.device))
        return denoised

    m = torch.zeros(image_shape, dtype=torch.float64, device=y.device) if start is None else start.double()
    # Of dd_y/dx the mean of the diagonal, or the diagonal, for learned precision.
    j = torch.zeros(image_shape if covariance == "diagonal" else column, dtype=torch.float64, device=y.device)
    draw, evaluation = 0, 0
    for k in reversed(range(len(s) - 1)):
        b2 = s[k + 1] ** 2 - s[k] ** 2
        mu: Tensor = m
        for i, s1 in enumerate(step_sizes(step_size, relaxation, inner_steps)):
            level = s[k + 1] if anchor == "next" and i == 0 else s[k]
            v = variance_of_step(j, b2, s[k], covariance)
            e = normals(seeds, draw, 0, elements).reshape(image_shape) if noise != "none" else torch.zeros_like(m)
            x = mu + v.sqrt() * e
            d = d_y(x, level)
            probe = d - mu
            if noise == "antithetic":
                mirrored = d_y(mu - v.sqrt() * e, level)
                probe = (d - mirrored) / 2
                d = (d + mirrored) / 2
            point = x if noise == "drawn" else mu
            g = (m - point) / b2 + (d - point) / s[k] ** 2
            mu = mu + s1 * v * g
            if covariance != "fixed" and noise != "none":
                estimate = e * probe
                if covariance == "learned":
                    estimate = estimate.flatten(1).mean(1).reshape(column)
                j = (1 - precision_rate) * j + precision_rate * estimate / v.sqrt()
            evaluation += 1
            draw = evaluation
            if watch is not None and not watch():
                return mu
        m = mu
        if s[k] > switch_level:
            e = normals(seeds, draw, 0, elements).reshape(image_shape)
            m = mu + variance_of_step(j, b2, s[k], covariance).sqrt() * e
            # Numbers that no look has used: those behind the last look's.
            draw = (len(s) - 1) * inner_steps + 1 + (len(s) - 2 - k)
    return m


def variance_of_step(j: Tensor, b2: float, s: float, covariance: str) -> Tensor:
    """v at level s: b^2 s^2 / (b^2 + s^2), or the learned 1 / (1/b^2 + (1 - j)/s^2) within a factor 4 of that."""
    fixed = b2 * s * s / (b2 + s * s)
    if covariance == "fixed":
        return torch.full_like(j, fixed)
    return 1 / (1 / b2 + (1 - j) / s**2).clamp(1 / (4 * fixed), 4 / fixed)


def chain_of_looks(
    y: Tensor,
    op: _Operator,
    prior: _Prior,
    noise_std: Tensor,
    looks: Sequence[tuple[float, float, float, float, float]],
    seeds: Tensor,
    start: Tensor,
    antithetic: bool = False,
    watch: Callable[[], bool] | None = None,
    guidance: str = "gaussian",
) -> Tensor:
    """The chain of :class:`rmp_fast.schedules.Looks`, by its equation.

    Args:
        y, noise_std, seeds: as :func:`reverse_mean_propagation`.
        looks: rows of level, noise, weight, momentum and variance.
        start: (B, ...) the first mean.
        antithetic: d_y is averaged over the noise and its mirror image.
        watch: as there.
        guidance: ``"gaussian"`` or ``"gauss_newton"``.
    """
    y, noise_std, mu = y.double(), noise_std.double(), start.double()
    before = mu
    for t, (level, noise, weight, momentum, variance) in enumerate(looks):
        e = noise * normals(seeds, t, 0, mu[0].numel()).reshape(mu.shape)
        signs = (1, -1) if antithetic else (1,)
        views = [
            conditional_mean(mu + sign * e, level, y, op, prior, noise_std, guidance=guidance, r2=variance)
            for sign in signs
        ]
        mu, before = mu + weight * (sum(views) / len(views) - mu) + momentum * (mu - before), mu
        if watch is not None and not watch():
            break
    return mu


def branch_seeds(seeds: Tensor, branch: int) -> Tensor:
    """Seeds (B,) of one branch: those of the caller for branch 0, and hashes of them by Philox for the others."""
    if branch == 0:
        return seeds
    counter = torch.zeros(seeds.shape[0], 4, dtype=torch.int64, device=seeds.device)
    counter[:, 0], counter[:, 3] = branch, 1
    words = philox(counter, torch.stack([seeds & _LOW, (seeds >> 32) & _LOW], -1))
    return words[:, 0] | (words[:, 1] << 32)
