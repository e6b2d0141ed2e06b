"""From the denoised image D(x, s) to the conditionally denoised d_y(x), for the looks of one plan."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from . import ops
from .guidance import GRADIENTS, direction, gradient_limit, gradient_weight
from .operators import Linearised, LinearOperator, Operator
from .operators.forms import Blocks, Form, Iterative, Pointwise, Spectral
from .priors import Prior
from .reference import squared_gain

__all__ = ["Conditioning"]

Backward = Callable[[Tensor], Tensor]


class Conditioning:
    """Buffers and resolved form of one operator and guidance; pointwise and block corrections are left to the step.

    Args:
        op, guidance, scale: operator, name and ``guidance_scale`` of :class:`rmp_fast.Plan`, checked.
        shape, measurement_shape: (B, ...) of images and measurements.
        looks: L, evaluations of the network in one chain.
        copies: 2 for antithetic pairs, the mirrored looks behind the others; else 1.
        backend, device, dtype: of the plan, resolved.
    """

    def __init__(
        self, op: Operator, guidance: str, scale: float | None, shape: tuple[int, ...],
        measurement_shape: tuple[int, ...], looks: int, copies: int, backend: str, device: torch.device,
        dtype: torch.dtype,
    ) -> None:  # fmt: skip
        self.op, self.guidance, self.scale = op, guidance, scale
        self._shape, self._measurement_shape, self._copies = shape, measurement_shape, copies
        self._backend = "auto" if backend == "cpu" else backend
        self.form: Form | None = None
        self._made = (shape, device, dtype)
        if isinstance(op, LinearOperator) and guidance != "exact" and backend != "reference":
            self.form = self._make_form(op)
        self.data = self._prepared(torch.zeros(measurement_shape, dtype=dtype, device=device))
        images = (copies * shape[0], *shape[1:])
        self.gradient = torch.zeros(images, dtype=dtype, device=device) if guidance in GRADIENTS else None
        kept = guidance == "gaussian" and isinstance(self.form, Spectral) and self.form.into is not None
        self._transformed = torch.zeros(images, dtype=dtype, device=device) if kept else None
        self._ratios = torch.zeros(looks, copies * shape[0], dtype=dtype, device=device)
        self._weights, self._limits = torch.zeros_like(self._ratios), torch.zeros_like(self._ratios)
        self.solve_residual = torch.zeros(shape[0], dtype=dtype, device=device)

    def _make_form(self, op: LinearOperator) -> Form:
        form = op.form(*self._made)
        if isinstance(form, Spectral) and self._copies > 1 and form.energy.shape[0] > 1:
            return dataclasses.replace(form, energy=torch.cat([form.energy] * self._copies))
        return form

    def refresh(self) -> None:
        """Follow the operator, whose data have changed in place."""
        if not isinstance(self.op, LinearOperator) or self.form is None:
            return
        form = self._make_form(self.op)
        for name in ("mask", "energy"):
            mine, theirs = getattr(self.form, name, None), getattr(form, name, None)
            if mine is not None and mine is not theirs:
                mine.copy_(theirs)

    @property
    def buffers(self) -> list[Tensor]:
        """What executions write to, of the size of measurements or images."""
        return [buffer for buffer in (self.data, self.gradient, self._transformed) if buffer is not None]

    @property
    def differentiates(self) -> bool:
        """Whether autograd runs in a look, of the network or of the operator."""
        return self.gradient is not None or self.guidance == "gauss_newton"

    @property
    def solves(self) -> bool:
        """Whether looks run conjugate gradients, whose residual is then in ``solve_residual``."""
        iterative = isinstance(self.form, Iterative) and self.guidance in ("gaussian", "pigdm")
        return iterative or self.guidance == "gauss_newton"

    @property
    def step_options(self) -> dict[str, Any]:
        """What the step does with the denoised image, as its keyword arguments."""
        if self.gradient is not None:
            return {"correction": "gradient", "y": self.gradient}
        if isinstance(self.form, Pointwise):
            return {"correction": "mask", "y": self.data, "mask": self.form.mask}
        if isinstance(self.form, Blocks):
            return {"correction": "block_average", "y": self.data, "factor": self.form.factor}
        return {}

    def check_noise(self, noise_std: Tensor) -> None:
        """ValueError where a scale needs noise and an item of ``noise_std`` (B,) has none."""
        if self.guidance == "jensen" and self.scale is not None and not bool((noise_std > 0).all()):
            raise ValueError("`guidance_scale` of 'jensen' needs `noise_std` > 0; without it a default is used")

    def set_noise(self, noise_std: Tensor, levels: Tensor, variance: Tensor) -> Tensor:
        """Keep q = sy^2 / r2 of every look; returns the noise_ratio column of the table of looks, (L, B) float64.

        Args:
            noise_std: (B,) sy in the operator's unit.
            levels, variance: (L,) s and r2.
        """
        ratio = noise_std.double().square()[None, :] / variance[:, None].to(noise_std.device)
        self._ratios.copy_(ratio.repeat(1, self._copies))
        if self.gradient is None:
            return ratio
        numbers = math.prod(self._measurement_shape[1:])
        gain = squared_gain(self.op, *self._made)
        weight = gradient_weight(self.guidance, self.scale, levels, variance, noise_std, numbers, gain)
        self._weights.copy_(weight.repeat(1, self._copies))
        self._limits.copy_(gradient_limit(self.guidance, ratio, gain).repeat(1, self._copies))
        return weight

    def load(self, measured: Tensor) -> None:
        """Take the measurement (B, ...) of the next chain."""
        self.data.copy_(self._prepared(measured))

    def _prepared(self, measured: Tensor) -> Tensor:
        if isinstance(self.form, Spectral) and self.guidance == "gaussian":
            return torch.cat([self.form.project(measured)] * self._copies)
        return measured

    def denoise(self, prior: Prior, inputs: Tensor, levels: Tensor) -> tuple[Tensor, Backward | None]:
        """D at the inputs, and u -> J^T u for the guidances that need it; the graph lives until that is dropped."""
        before = inputs._version, levels._version
        if self.gradient is None:
            denoised = prior.denoise(inputs, levels)
        else:
            with torch.enable_grad():
                x = inputs.detach().requires_grad_()
                denoised = prior.denoise(x, levels)
        if (inputs._version, levels._version) != before:
            raise ValueError(f"the prior {prior.name!r} must not change `x` or `s` in place: they are the plan's own")
        if denoised.shape != inputs.shape or denoised.dtype != inputs.dtype:
            raise ValueError(
                f"the prior {prior.name!r} must return shape {tuple(inputs.shape)} and {inputs.dtype}, "
                f"got {tuple(denoised.shape)} and {denoised.dtype}"
            )
        if denoised.untyped_storage()._cdata == inputs.untyped_storage()._cdata:
            denoised = denoised.clone()  # the step writes the next input while it reads this
        if self.gradient is None:
            return denoised, None
        return denoised.detach(), lambda u: torch.autograd.grad(denoised, x, u)[0]

    def condition(self, denoised: Tensor, look: int, backward: Backward | None) -> Tensor:
        """d_y, or D where the step itself corrects it."""
        if backward is not None:
            direction, residual = self.directions(denoised, look)
            self.take_gradient(backward(direction), direction, residual, look)
            return denoised
        if self.guidance == "gauss_newton":
            return self._each_half(denoised, lambda half: self._gauss_newton(half, look))
        if isinstance(self.form, Spectral):
            return self._spectral(self.form, denoised, look)
        if isinstance(self.form, Iterative):
            op = self.form.operator
            return self._each_half(
                denoised, lambda half: half + op.adjoint(self._gram_solve(self.data - op.A(half), look), self._shape)
            )
        return denoised

    def _ratio(self, look: int) -> Tensor:
        return self._ratios[look, : self._shape[0]]

    def _each_half(self, denoised: Tensor, correct: Callable[[Tensor], Tensor]) -> Tensor:
        """Operators hold masks and maps of B items, so the looks of a pair go through them one after the other."""
        if self._copies == 1:
            return correct(denoised)
        return torch.cat([correct(half) for half in denoised.chunk(self._copies)])

    def directions(self, denoised: Tensor, look: int) -> tuple[Tensor, Tensor | None]:
        """u of J^T u, and the residuals by whose norms it is divided or None, (copies * B, ...)."""
        found = [
            direction(self.guidance, self.op, half, self.data, lambda r: self._gram_solve(r, look))
            for half in denoised.chunk(self._copies)
        ]
        if self._copies == 1:
            return found[0]
        residuals = [r for _, r in found if r is not None]
        return torch.cat([u for u, _ in found]), torch.cat(residuals) if residuals else None

    def take_gradient(self, gradient: Tensor, direction: Tensor, residual: Tensor | None, look: int) -> None:
        """Keep J^T u / ||r|| for the step, held to its length."""
        held: dict[str, Any] = {}
        if self.scale is None:
            held = {"direction": direction, "limit": self._limits[look], "weight": self._weights[look]}
        ops.clip_gradient(gradient, **held, residual=residual, out=self.gradient, backend=self._backend)

    def _spectral(self, form: Spectral, denoised: Tensor, look: int) -> Tensor:
        into, memory = form.into, self._transformed
        coefficients = form.analysis(denoised) if into is None or memory is None else into[0](denoised, memory)
        update = not form.complete
        ops.spectral(
            coefficients, form.energy, self.data, self._ratios[look], update=update, out=coefficients,
            backend=self._backend,
        )  # fmt: skip
        image = form.synthesis(coefficients) if into is None or memory is None else into[1](coefficients, memory)
        return denoised + image if update else image

    def _gauss_newton(self, denoised: Tensor, look: int) -> Tensor:
        tangent = Linearised(self.op, denoised)
        solved = tangent.iterative_solve(self.data - self.op.A(denoised), 1.0, self._ratio(look).sqrt())
        torch.maximum(self.solve_residual, solved.residual.detach(), out=self.solve_residual)
        return denoised + tangent.adjoint(solved.solution)

    def _gram_solve(self, r: Tensor, look: int) -> Tensor:
        """(A A^T + q I)^-1 r."""
        noise = self._ratio(look).sqrt()
        if not isinstance(self.form, Iterative):
            return self.op.gram_solve(r, 1.0, noise, self._shape)
        solved = self.form.operator.iterative_solve(r, 1.0, noise, self._shape, self.form.iterations)
        torch.maximum(self.solve_residual, solved.residual.detach(), out=self.solve_residual)
        return solved.solution
