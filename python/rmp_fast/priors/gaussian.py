"""Priors whose denoiser, conditional denoiser and posterior mean are closed form: the oracles."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .._checks import check_finite, check_positive, check_shape, check_tensor
from .base import Prior

if TYPE_CHECKING:
    from ..operators import Operator

__all__ = ["Conditioned", "Gaussian", "GaussianMixture"]


class _Components:
    """Gaussian mixtures, one per item: log weights (B|1, K), means (B|1, K, N), covariances U diag(values) U^T."""

    def __init__(self, log_weights: Tensor, means: Tensor, covariances: Tensor) -> None:
        self.log_weights, self.means = log_weights, means
        values, self.vectors = torch.linalg.eigh(covariances)
        self.values = values.clamp_min(0)

    def map(self, function: Callable[[Tensor], Tensor]) -> _Components:
        """Those whose tensors are ``function`` of these."""
        mapped = copy.copy(self)
        vars(mapped).update({name: function(tensor) for name, tensor in vars(self).items()})
        return mapped

    def copy_(self, other: _Components) -> None:
        """Take over the numbers of others of the same shapes."""
        for name, tensor in vars(self).items():
            tensor.copy_(getattr(other, name))

    def _log_terms(self, x: Tensor, s: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        variance = self.values + (s * s)[:, None, None]  # (B, K, N)
        centred = (self.vectors.mT @ (x[:, None, :] - self.means)[..., None])[..., 0]
        quadratic = (centred.square() / variance + variance.log() + math.log(2 * math.pi)).sum(-1)
        return self.log_weights - 0.5 * quadratic, centred, variance

    def log_density(self, x: Tensor, s: Tensor) -> Tensor:
        out: Tensor = torch.logsumexp(self._log_terms(x, s)[0], dim=1)
        return out

    def denoise(self, x: Tensor, s: Tensor) -> Tensor:
        terms, centred, variance = self._log_terms(x, s)
        each = self.means + (self.vectors @ (centred * self.values / variance)[..., None])[..., 0]
        out: Tensor = (terms.softmax(1)[..., None] * each).sum(1)
        return out

    def mean(self) -> Tensor:
        return (self.log_weights.softmax(1)[..., None] * self.means).sum(1)


class Conditioned(Prior):
    """The prior given measurements: D(x, s) = E[x0 | x0 + s z = x, y], one distribution per item."""

    def __init__(self, components: _Components, data_variance: float, name: str) -> None:
        self.components, self.data_variance, self.name = components, data_variance, name

    def denoise(self, x: Tensor, s: Tensor) -> Tensor:
        """E[x0 | x0 + s z = x, y] for x (B, N) and s (B,), computed in float64."""
        return self.components.denoise(x.double(), s.double()).to(x.dtype)

    def repeat(self, copies: int) -> Conditioned:
        """For ``copies`` batches of the measurements, one behind the other."""
        if copies == 1:
            return self
        components = self.components.map(lambda t: t.repeat(copies, *[1] * (t.ndim - 1)))
        return Conditioned(components, self.data_variance, self.name)

    def log_density(self, x: Tensor, s: Tensor) -> Tensor:
        """log p(x | y) (B,) of x = x0 + s z, up to float64 rounding."""
        return self.components.log_density(x.double(), s.double())


class GaussianMixture(Prior):
    r"""p(x0) = sum_k w_k N(x0; mu_k, diag(v_k)), on signals (B, N). Exact D, conditional score and posterior mean.

    .. math:: D(x, s) = \sum_k \rho_k(x) [\mu_k + \tfrac{v_k}{v_k + s^2} (x - \mu_k)], \quad
              \rho_k \propto w_k N(x; \mu_k, v_k + s^2)

    Args:
        weights: (K,), positive; normalised to sum 1.
        means: (K, N).
        variances: (K,) isotropic or (K, N) diagonal; >= 0.

    Raises:
        ValueError: if shapes disagree or a weight or variance is negative or not finite.
    """

    name = "gaussian mixture"

    def __init__(self, weights: Tensor, means: Tensor, variances: Tensor) -> None:
        weights, means, variances = (torch.as_tensor(t, dtype=torch.float64) for t in (weights, means, variances))
        if means.ndim != 2:
            raise ValueError(f"`means` must have shape (K, N), got {tuple(means.shape)}")
        components, elements = means.shape
        check_shape("weights", weights, (components,), ("K",))
        if variances.ndim == 1:
            variances = variances[:, None].expand(-1, elements)
        check_shape("variances", variances, (components, elements), ("K", "N"))
        for name, tensor in (("weights", weights), ("variances", variances)):
            if not bool((torch.isfinite(tensor) & (tensor >= 0)).all()):
                raise ValueError(f"`{name}` must be finite and >= 0, got {tensor.tolist()}")
        if not bool(weights.sum() > 0):
            raise ValueError(f"`weights` must have a positive sum, got {weights.tolist()}")
        self._set(weights / weights.sum(), means, torch.diag_embed(variances))

    def _set(self, weights: Tensor, means: Tensor, covariances: Tensor) -> None:
        check_finite("means", means)
        with torch.inference_mode(False):  # and not the caller's memory
            weights, means, covariances = (t.detach().clone() for t in (weights, means, covariances))
        self.weights, self.means, self.covariances = weights, means, covariances
        self.components = _Components(weights.log()[None], means[None], covariances[None])
        self._on_devices = {means.device: self.components}
        mean = (weights[:, None] * means).sum(0)
        second = covariances.diagonal(dim1=1, dim2=2) + (means - mean).square()
        self.data_variance = float((weights[:, None] * second).sum(0).mean())

    def check_image_shape(self, shape: tuple[int, ...]) -> None:
        """ValueError unless ``shape`` is (B, N)."""
        elements = self.means.shape[1]
        if len(shape) != 2 or shape[1] != elements:
            raise ValueError(f"`shape` must be (B, N) = (B, {elements}) for the prior {self.name!r}, got {shape}")

    def denoise(self, x: Tensor, s: Tensor) -> Tensor:
        """D(x, s) for x (B, N) and s (B,), computed in float64."""
        return self._on(x.device).denoise(x.double(), s.double()).to(x.dtype)

    def log_density(self, x: Tensor, s: Tensor) -> Tensor:
        """log p(x) (B,) of x = x0 + s z for x (B, N) and s (B,), in float64; differentiable."""
        return self._on(x.device).log_density(x.double(), s.double())

    def _on(self, device: torch.device) -> _Components:
        if device not in self._on_devices:
            with torch.inference_mode(False):
                self._on_devices[device] = self.components.map(lambda t: t.to(device))
        return self._on_devices[device]

    def condition(self, y: Tensor, op: Operator, noise_std: float | Tensor) -> Conditioned:
        """The prior given y = A x0 + n, for linear A: again a mixture, with exact weights, means and covariances.

        Args:
            y: (B, M). noise_std: number or (B,), standard deviation of n on the range of ``y``, > 0 unless
                A C A^T is invertible for every component.

        Raises:
            TypeError: if ``y`` is no tensor of floating point numbers.
            ValueError: if ``op`` is not linear, or ``y`` or ``noise_std`` does not fit.
        """
        if not op.linear:
            raise ValueError(f"`op` must be linear for an exact posterior, got {op.name!r}")
        check_tensor("y", y)
        batch, elements = y.shape[0], self.means.shape[1]
        check_shape("y", y, op.measurement_shape((batch, elements)))
        if not isinstance(noise_std, Tensor):
            noise_std = check_positive("noise_std", noise_std, allow_zero=True)
        y = y.double().flatten(1)
        device = y.device
        weights, prior_means, prior_covariances = (t.to(device) for t in (self.weights, self.means, self.covariances))
        matrix = _matrix(op, batch, elements, device)[:, None]  # (B|1, 1, M, N)
        variance = torch.as_tensor(noise_std, dtype=torch.float64, device=device).square().expand(batch)
        cross = prior_covariances @ matrix.mT  # C A^T (B|1, K, N, M)
        eye = torch.eye(matrix.shape[-2], dtype=torch.float64, device=device)
        gram = matrix @ cross + variance[:, None, None, None] * eye  # (B, K, M, M)
        residual = y[:, None, :] - (matrix @ prior_means[..., None])[..., 0]  # (B, K, M)
        try:
            factor = torch.linalg.cholesky(gram)
        except torch.linalg.LinAlgError as error:  # type: ignore[attr-defined]
            raise ValueError(
                f"`noise_std` must be above 0 where A C A^T of {op.name!r} and {self.name!r} is singular"
            ) from error
        solved = torch.cholesky_solve(residual[..., None], factor)[..., 0]
        log_det = 2 * factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        log_weights = weights.log() - 0.5 * ((residual * solved).sum(-1) + log_det)
        means = prior_means + (cross @ solved[..., None])[..., 0]
        covariances = prior_covariances - cross @ torch.cholesky_solve(cross.mT.expand(batch, -1, -1, -1), factor)
        components = _Components(log_weights, means, (covariances + covariances.mT) / 2)
        return Conditioned(components, self.data_variance, f"{self.name} given y")

    def posterior_mean(self, y: Tensor, op: Operator, noise_std: float | Tensor) -> Tensor:
        """E[x0 | y] (B, N) in closed form; arguments and errors as :meth:`condition`."""
        return self.condition(y, op, noise_std).components.mean().to(y.dtype)


class Gaussian(GaussianMixture):
    r"""p(x0) = N(mean, C), on signals (B, N).

    .. math:: D(x, s) = m + C (C + s^2 I)^{-1} (x - m)

    Args:
        mean: (N,).
        covariance: (N, N) symmetric positive semi-definite, or (N,) its diagonal.

    Raises:
        ValueError: if shapes disagree or the covariance is not symmetric positive semi-definite.
    """

    name = "gaussian"

    def __init__(self, mean: Tensor, covariance: Tensor) -> None:
        mean, covariance = (torch.as_tensor(t, dtype=torch.float64) for t in (mean, covariance))
        if mean.ndim != 1:
            raise ValueError(f"`mean` must have shape (N,), got {tuple(mean.shape)}")
        elements = mean.shape[0]
        if covariance.ndim == 1:
            check_shape("covariance", covariance, (elements,), ("N",))
            covariance = torch.diag(covariance)
        check_shape("covariance", covariance, (elements, elements), ("N", "N"))
        values = torch.linalg.eigvalsh(covariance)
        if not torch.allclose(covariance, covariance.mT) or values[0] < -1e-10 * values[-1].abs():
            raise ValueError("`covariance` must be symmetric and positive semi-definite")
        self._set(torch.ones(1, dtype=torch.float64), mean[None], covariance[None])


def _matrix(op: Operator, batch: int, elements: int, device: torch.device) -> Tensor:
    """A, (B, M, N), or (1, M, N) where the operator is the same for all items."""
    eye = torch.eye(elements, dtype=torch.float64, device=device)
    items = [op.select(slice(item, item + 1), (batch, elements)) for item in range(batch)]
    if all(item is op for item in items):
        items = [op]
    return torch.stack([item.A(eye).flatten(1).mT for item in items])
