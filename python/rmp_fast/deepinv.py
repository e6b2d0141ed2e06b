"""RMP as a reconstructor of deepinv; importing this module needs deepinv."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ._optional import optional
from .operators import from_deepinv
from .plan import Estimate
from .priors import Prior
from .priors import from_deepinv as prior_from_deepinv
from .reconstruction import reconstruct

__all__ = ["RMP"]

if TYPE_CHECKING:
    Reconstructor = nn.Module  # what deepinv's is, which has no types
else:
    Reconstructor = optional("deepinv.models", "deepinv", "rmp_fast.deepinv").Reconstructor


class RMP(Reconstructor):
    """``model(y, physics)``: the estimated posterior mean by reverse mean propagation.

        model = rmp_fast.deepinv.RMP(rmp_fast.priors.load("photo"))
        x = model(y, physics)

    Every call makes the operator (:func:`rmp_fast.operators.from_deepinv`) and a plan anew, because a physics may have
    changed. Estimates are not differentiable.

    Args:
        prior: a prior of rmp_fast, or a denoiser of deepinv.
        noise_std: standard deviation of the measurement noise in the unit of y, a number or a tensor (B,); default: the
            ``sigma`` of the physics's noise model.
        image_shape: of one image, (C, H, W); default: that of A_adjoint(y), for a nonlinear physics its ``img_size``.
        data_range: (low, high) of the images, as deepinv has them.
        **options: of :class:`rmp_fast.Plan`. The guidance of a nonlinear physics is ``"gauss_newton"`` unless given.

    Raises:
        TypeError: ``prior`` is neither.
    """

    def __init__(
        self,
        prior: Prior | nn.Module,
        noise_std: float | Tensor | None = None,
        *,
        image_shape: Sequence[int] | None = None,
        data_range: tuple[float, float] = (0.0, 1.0),
        **options: Any,
    ) -> None:
        super().__init__()
        if isinstance(prior, nn.Module):
            prior = prior_from_deepinv(prior)
        elif not isinstance(prior, Prior):
            raise TypeError(f"`prior` must be an rmp_fast prior or a deepinv denoiser, got {type(prior).__name__}")
        self.prior = prior
        self.network = getattr(prior, "network", None)  # so that .to(device) moves it
        self.noise_std, self.data_range, self.options = noise_std, data_range, options
        self.image_shape = None if image_shape is None else tuple(image_shape)

    def forward(self, y: Any, physics: Any, seeds: Tensor | None = None, **_: Any) -> Tensor:
        """The estimate (B, C, H, W) on ``data_range``.

        Args:
            y: what ``physics`` measured, with the batch first.
            physics: the physics.
            seeds: (B,) int64; default 0 … B - 1.

        Raises:
            ValueError: no noise level or image shape is known, or what :func:`rmp_fast.operators.from_deepinv` and
                :class:`rmp_fast.Plan` refuse.
        """
        mean: Tensor = self.estimate(y, physics, seeds).mean
        return mean

    def estimate(self, y: Any, physics: Any, seeds: Tensor | None = None) -> Estimate:
        """As :meth:`forward`, with everything that :class:`rmp_fast.Estimate` says."""
        batch = len(y[0]) if not isinstance(y, Tensor) else len(y)
        op = from_deepinv(physics, self._item(y, physics), batch=batch, data_range=self.data_range)
        options = self.options if op.linear else {"guidance": "gauss_newton"} | self.options
        return reconstruct(
            op.pack(y).float(), op, self.prior, noise_std=self._noise(physics, batch), seeds=seeds,
            data_range=self.data_range, **options,
        )  # fmt: skip

    def _item(self, y: Any, physics: Any) -> tuple[int, ...]:
        if self.image_shape is not None:
            return self.image_shape
        linear = optional("deepinv.physics", "deepinv", "rmp_fast.deepinv").LinearPhysics
        if isinstance(physics, linear):
            with torch.no_grad():
                return tuple(physics.A_adjoint(y).shape[1:])
        size = getattr(physics, "img_size", None)
        if size is None:
            raise ValueError(
                f"`image_shape` must be given: {type(physics).__name__} does not say which images it takes"
            )
        return tuple(size)

    def _noise(self, physics: Any, batch: int) -> float | Tensor:
        if self.noise_std is not None:
            return self.noise_std
        sigma = getattr(getattr(physics, "noise_model", None), "sigma", None)
        if sigma is None:
            raise ValueError(
                f"`noise_std` must be given: the noise model of {type(physics).__name__} has no standard deviation"
            )
        level = torch.as_tensor(sigma).detach().flatten()
        return level.expand(batch) if level.numel() == 1 else level
