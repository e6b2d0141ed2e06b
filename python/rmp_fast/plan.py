"""A plan: everything that can be decided, checked and allocated before the first measurement comes."""

from __future__ import annotations

import dataclasses
import math
import threading
import time
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from . import loop, ops, reference, schedules
from ._checks import check_choice, check_finite, check_noise_std, check_positive, check_shape, check_tensor, shape_text
from .backends import resolve
from .guidance import check_guidance, noise_ratio
from .operators import Operator
from .operators.forms import Blocks, Form, Iterative, Pointwise, Spectral
from .priors import GaussianMixture, Prior
from .torch_step import TorchStep

__all__ = ["NOISES", "Estimate", "Plan", "reconstruct"]

NOISES = ("control", "drawn", "antithetic", "none")
_AXES = ("B", "C", "H", "W")

Stats = dict[str, float]


@dataclasses.dataclass(frozen=True)
class Estimate:
    """What an execution returns.

    Attributes:
        mean: (B, ...) estimate of E[x0 | y], in the caller's range.
        variance: (B, ...) of the estimate where the plan makes one, else None.
        ok: (B,) bool; False: the item left the finite range and its mean is the last finite one (the ``reference``
            backend returns what it got).
        stats: network evaluations per item (``evaluations`` forward, ``backward_evaluations``), ``seconds`` in all and
            ``network_seconds``, ``operator_seconds``, ``step_seconds``; ``buffer_bytes`` that the plan owns;
            ``solve_residual``, the largest relative residual of the Gram solves where they are iterative.
    """

    mean: Tensor
    variance: Tensor | None
    ok: Tensor
    stats: Stats


class Plan:
    r"""A chain of reverse mean propagation for one operator, prior and shape; :meth:`execute` runs it.

    At level k, from the mean m of level k + 1, with v = b^2 s_k^2 / s_{k+1}^2 and b^2 = s_{k+1}^2 - s_k^2, each of
    ``inner_steps`` inner iterations is

    .. math:: \mu \leftarrow \mu + s_1 v\, [(m - x)/b^2 + (d_y(x) - x)/s_k^2], \quad x = \mu + \sqrt{v}\, e

    (Xue, Cai, Yuan, Gao, arXiv 2410.05646), where d_y is the denoised image corrected towards the measurement.

    Args:
        op: the operator A of y = A(x0) + n.
        prior: the prior; its range is [-1, 1] for images.
        shape: (B, C, H, W) of the images, or (B, N) of signals.
        noise_std: standard deviation of n, in the caller's range: a number or a tensor (B,).
        schedule: noise levels; default ``schedules.log(10, 0.05, 20)``.
        guidance: ``"gaussian"``, or ``"exact"`` for Gaussian and mixture priors.
        noise: ``"control"`` (noise only inside the network), ``"drawn"`` (the paper), ``"antithetic"`` (pairs, two
            evaluations), ``"none"``.
        inner_steps: T_in, looks per level.
        step_size: ``"averaging"``: s1 = relaxation * 2 / (2 + j) at inner iteration j; or a number s1 > 0.
        relaxation: factor of the averaging step sizes, above 0 and at most 2, where a full step overshoots as far as it
            was off.
        anchor: level at which the first look of a step is taken: ``"current"`` (s_k) or ``"next"`` (s_{k+1}).
        covariance: ``"fixed"`` v, or ``"learned"``: 1/v = 1/b^2 + (1 - j)/s_k^2 with j = tr(dd_y/dx)/N by Stein's
            identity, v kept within a factor 4 of the fixed one.
        precision_rate: s2, the share of each new estimate of j.
        backend: ``"auto"``, ``"cpu"``, ``"torch"`` or ``"reference"`` (float64).
        device, dtype: of the state; float32 for ``cpu``.
        data_range: (low, high) of the caller's images; (-1, 1) means no conversion.

    Raises:
        TypeError, ValueError: for anything that does not fit, before any work is done.
    """

    def __init__(
        self, op: Operator, prior: Prior, shape: tuple[int, ...], noise_std: float | Tensor, *,
        schedule: schedules.Schedule | None = None, guidance: str = "gaussian", noise: str = "control",
        inner_steps: int = 2, step_size: Literal["averaging"] | float = "averaging", relaxation: float = 1.4,
        anchor: str = "current", covariance: str = "fixed", precision_rate: float = 0.3, backend: str = "auto",
        device: torch.device | str | None = None, dtype: torch.dtype = torch.float32,
        data_range: tuple[float, float] = (-1.0, 1.0),
    ) -> None:  # fmt: skip
        if not isinstance(op, Operator):
            raise TypeError(f"`op` must be an rmp_fast operator, got {type(op).__name__}; see rmp_fast.operators")
        if not isinstance(prior, Prior):
            raise TypeError(f"`prior` must be an rmp_fast prior, got {type(prior).__name__}; see rmp_fast.priors")
        self.op, self.prior = op, prior
        self.shape = _check_image_shape(shape)
        prior.check_image_shape(self.shape)
        self.measurement_shape = op.measurement_shape(self.shape)
        self.schedule = schedules.log() if schedule is None else schedule
        if not isinstance(self.schedule, schedules.Schedule):
            raise TypeError(f"`schedule` must be an rmp_fast.schedules.Schedule, got {type(schedule).__name__}")
        check_guidance(guidance, op, prior)
        self.guidance = guidance
        self.noise = check_choice("noise", noise, NOISES)
        self.anchor = check_choice("anchor", anchor, ("current", "next"))
        self.covariance = check_choice("covariance", covariance, ("fixed", "learned"))
        if self.covariance == "learned" and noise == "none":
            raise ValueError("`covariance` 'learned' needs perturbed looks: `noise` must not be 'none'")
        if isinstance(inner_steps, bool) or not isinstance(inner_steps, int):
            raise TypeError(f"`inner_steps` must be an integer, got {type(inner_steps).__name__}")
        if inner_steps < 1:
            raise ValueError(f"`inner_steps` must be at least 1, got {inner_steps}")
        self.inner_steps = inner_steps
        if isinstance(step_size, str):
            check_choice("step_size", step_size, ("averaging",))
        else:
            step_size = check_positive("step_size", step_size)
        self.step_size = step_size
        self.relaxation = check_positive("relaxation", relaxation)
        if self.relaxation > 2:
            raise ValueError(f"`relaxation` must be at most 2, where the chain stops converging, got {relaxation}")
        self.precision_rate = check_positive("precision_rate", precision_rate)
        self.device = torch.device("cpu" if device is None else device)
        self.dtype = dtype
        self.backend = resolve(backend, self.device, dtype)
        self._low, self._half = _check_data_range(data_range)
        self._lock = threading.Lock()
        # Buffers born in inference mode could not be written outside it.
        with torch.inference_mode(False), torch.no_grad():
            self._allocate()
            self._set_noise_std(noise_std)

    # What is derived from the arguments, once.

    @property
    def evaluations(self) -> int:
        """Network evaluations per item."""
        return self.looks_per_chain * (2 if self.noise == "antithetic" else 1)

    @property
    def buffer_bytes(self) -> int:
        """Bytes of the buffers that the plan owns and executions write to."""
        return sum(t.numel() * t.element_size() for t in self._buffers())

    def _buffers(self) -> list[Tensor]:
        owned = [*self._means, self.inputs, self._seeds, self._ok, self._looks, self.data]
        return [t for t in (*owned, self.curvature) if t is not None]

    def _allocate(self) -> None:
        batch, device, dtype = self.shape[0], self.device, self.dtype
        steps, inner = self.schedule.steps, self.inner_steps
        self.looks_per_chain = steps * inner
        copies = self._copies = 2 if self.noise == "antithetic" else 1
        self._means = [torch.zeros(self.shape, dtype=dtype, device=device) for _ in range(2)]
        self.inputs = torch.zeros((copies * batch, *self.shape[1:]), dtype=dtype, device=device)
        self._seeds = torch.zeros(batch, dtype=torch.int64, device=device)
        self._ok = torch.ones(batch, dtype=torch.uint8, device=device)
        self.curvature = torch.zeros(batch, dtype=dtype, device=device) if self.covariance == "learned" else None
        self._looks = torch.zeros(self.looks_per_chain + 1, batch, 8, dtype=dtype, device=device)
        s = self.schedule.levels
        first = s[1:] if self.anchor == "next" else s[:-1]
        levels = torch.stack([first] + [s[:-1]] * (inner - 1), dim=1).flip(0).flatten()
        self.look_levels = levels  # (L,) level at which the network is called, in order of execution
        rows = levels.to(device, dtype)[:, None].expand(-1, copies * batch).contiguous()
        self.network_levels = rows.unbind(0)  # one (copies * B,) per look
        self.form: Form | None = None
        if self.guidance == "gaussian" and self.backend != "reference":
            self.form = self.op.form(self.shape, device, dtype)
        self.data = self._form_data(torch.zeros(self.measurement_shape, dtype=dtype, device=device))
        self._ratios = torch.zeros(self.looks_per_chain, copies * batch, dtype=dtype, device=device)
        self.noise_ratios = self._ratios.unbind(0)  # q of every look
        self.solve_residual = torch.zeros(copies * batch, dtype=dtype, device=device)
        self._offset = None
        if (self._low, self._half) != (-1.0, 1.0):
            middle = torch.full(self.shape, self._low + self._half, dtype=dtype, device=device)
            self._offset = self.op.A(middle)
        self._bind()

    def _bind(self) -> None:
        """One step object for the first look of a level and one for the others, for either order of the two means."""
        if self.backend == "reference":
            return
        batch = self.shape[0]
        options: dict[str, Any] = {
            "input": self.inputs[:batch],
            "looks": self._looks,
            "seeds": self._seeds,
            "ok": self._ok,
            "curvature": self.curvature,
            "drawn": self.noise == "drawn",
        }
        if self.noise == "antithetic":
            options["input_mirror"] = self.inputs[batch:]
        if isinstance(self.form, Pointwise):
            options.update(correction="mask", y=self.data, mask=self.form.mask)
        elif isinstance(self.form, Blocks):
            options.update(correction="block_average", y=self.data, factor=self.form.factor)
        a, b = self._means
        bound: Callable[..., loop.Step] = loop.CompiledStep if self.backend == "cpu" else TorchStep
        self.steps = [
            [bound(previous=m, mean=m, next_mean=mu, **options), bound(previous=m, mean=mu, next_mean=mu, **options)]
            for m, mu in ((a, b), (b, a))
        ]
        self.result = self._means[self.schedule.steps % 2]

    def _set_noise_std(self, noise_std: float | Tensor) -> None:
        """Fill the table of coefficients for a noise level in the caller's range."""
        batch = self.shape[0]
        self.noise_std = check_noise_std(noise_std, batch, self.device) / self._half
        s = self.schedule.levels
        inner = self.inner_steps
        below, above = s[:-1].flip(0), s[1:].flip(0)  # s_k and s_{k+1}, in order of execution
        share = (1 - (below / above).square()).repeat_interleave(inner)  # 1 - w = v / s_k^2
        std = ((above.square() - below.square()).sqrt() * below / above).repeat_interleave(inner)
        if self.noise == "none":
            std = torch.zeros_like(std)
        s1 = torch.tensor(reference.step_sizes(self.step_size, self.relaxation, inner), dtype=torch.float64)
        s1 = s1.repeat(self.schedule.steps)
        zero = torch.zeros(1, dtype=torch.float64)
        columns = [
            s1 * (1 - share), s1 * share, torch.cat([std[1:], zero]), torch.zeros_like(s1),
            share, torch.cat([share[1:], zero]), std, torch.full_like(s1, self.precision_rate),
        ]  # fmt: skip
        table = torch.stack(columns, -1)[:, None, :].repeat(1, batch, 1)
        ratio = noise_ratio(self.look_levels, self.prior.data_variance, self.noise_std)
        table[:, :, 3] = ratio.cpu()
        self._looks[:-1].copy_(table)
        self._looks[-1, :, 2] = std[0]  # the last row only perturbs the start
        self._ratios.copy_(self._looks[:-1, :, 3].repeat(1, self._copies))

    # Execution.

    def execute(
        self, y: Tensor, seeds: Tensor | None = None, out: Tensor | None = None, noise_std: float | Tensor | None = None
    ) -> Estimate:
        """Run the chain.

        Args:
            y: measurements, of the operator's measurement shape for the plan's images, in the caller's range.
            seeds: (B,) int64, one per item, default 0 … B - 1; the same seeds give the same estimate.
            out: (B, ...) tensor that receives the mean; default a new one.
            noise_std: a number or (B,), replaces the plan's noise level from here on.

        Returns:
            the :class:`Estimate`; an empty one for an empty batch.

        Raises:
            TypeError, ValueError: where an argument does not fit the plan, naming both shapes.
            RuntimeError: if the plan is executing in another thread.
        """
        check_tensor("y", y, device=self.device)
        axes = _AXES if len(self.measurement_shape) == 4 else None
        check_shape("y", y, self.measurement_shape, axes)
        check_finite("y", y)
        batch = self.shape[0]
        if seeds is not None:
            check_tensor("seeds", seeds, floating=False, device=self.device)
            if seeds.dtype != torch.int64:
                raise TypeError(f"`seeds` must be int64, got {seeds.dtype}; convert them with .long()")
            check_shape("seeds", seeds, (batch,), ("B",))
        if out is not None:
            check_tensor("out", out, device=self.device)
            check_shape("out", out, self.shape, _AXES if len(self.shape) == 4 else None)
        if not self._lock.acquire(blocking=False):
            raise RuntimeError("this plan is executing in another thread; make one plan per thread")
        try:
            with torch.no_grad():
                return self._execute(y, seeds, out, noise_std)
        finally:
            self._lock.release()

    def _execute(
        self, y: Tensor, seeds: Tensor | None, out: Tensor | None, noise_std: float | Tensor | None
    ) -> Estimate:
        batch = self.shape[0]
        if noise_std is not None:
            self._set_noise_std(noise_std)
        mean = torch.empty(self.shape, dtype=self.dtype, device=self.device) if out is None else out
        if batch == 0:
            return Estimate(mean, None, torch.ones(0, dtype=torch.bool, device=self.device), self._stats())
        self._seeds.copy_(torch.arange(batch) if seeds is None else seeds)
        self._ok.fill_(1)
        stats = self._stats()
        if self._offset is None:
            mean.copy_(self._run(y.to(self.dtype), stats))
        else:
            measured = (y.to(self.dtype) - self._offset) / self._half
            mean.copy_(self._run(measured, stats) * self._half + (self._low + self._half))
        return Estimate(mean, None, self._ok.bool(), stats)

    def _run(self, measured: Tensor, stats: Stats) -> Tensor:
        if self.backend == "reference":
            return self._run_reference(measured, stats)
        conditioned: Prior | None = None
        if self.guidance == "exact":
            looks = torch.cat([measured] * self._copies)
            assert isinstance(self.prior, GaussianMixture)  # check_guidance saw to it
            conditioned = self.prior.condition(looks, self.op, self.noise_std.repeat(self._copies))
        else:
            self.data.copy_(self._form_data(measured))
        self.solve_residual.zero_()
        self._means[0].zero_()
        if self.curvature is not None:
            self.curvature.zero_()
        with torch.inference_mode():
            loop.run(self, conditioned or self.prior, stats)
        if isinstance(self.form, Iterative):
            stats["solve_residual"] = float(self.solve_residual.max())
        return self.result

    def _form_data(self, measured: Tensor) -> Tensor:
        """The measurement as the form needs it, once per look of an antithetic pair."""
        if isinstance(self.form, Spectral):
            return torch.cat([self.form.project(measured)] * self._copies)
        return torch.cat([measured] * self._copies) if isinstance(self.form, Iterative) else measured

    def condition(self, denoised: Tensor, look: int) -> Tensor:
        """The denoised image corrected towards the measurement, where the step itself does not do it."""
        if isinstance(self.form, Spectral):
            coefficients = self.form.analysis(denoised)
            backend = "auto" if self.backend == "cpu" else "torch"
            update = not self.form.complete
            ratio = self.noise_ratios[look]
            ops.spectral(
                coefficients, self.form.energy, self.data, ratio, update=update, out=coefficients, backend=backend
            )
            image = self.form.synthesis(coefficients)
            return denoised + image if update else image
        if isinstance(self.form, Iterative):
            shape, op = tuple(denoised.shape), self.form.operator
            noise = self.noise_ratios[look].sqrt()  # of the system (A A^T + q I) z = y - A D
            solved = op.iterative_solve(self.data - op.A(denoised), 1.0, noise, shape, self.form.iterations)
            torch.maximum(self.solve_residual, solved.residual, out=self.solve_residual)
            return denoised + op.adjoint(solved.solution, shape)
        return denoised

    def _run_reference(self, measured: Tensor, stats: Stats) -> Tensor:
        names = ("guidance", "noise", "inner_steps", "step_size", "relaxation", "anchor", "covariance")
        options: dict[str, Any] = {name: getattr(self, name) for name in (*names, "precision_rate")}
        started = time.perf_counter()
        mean = reference.reverse_mean_propagation(
            measured, self.op, self.prior, self.noise_std, self.schedule.levels, self._seeds, self.shape, **options
        )
        stats["seconds"] = time.perf_counter() - started
        self._ok.logical_and_(torch.isfinite(mean).flatten(1).all(1))
        return mean

    def _stats(self) -> Stats:
        stats: Stats = {"evaluations": self.evaluations, "backward_evaluations": 0, "buffer_bytes": self.buffer_bytes}
        return stats | dict.fromkeys(("seconds", "network_seconds", "operator_seconds", "step_seconds"), 0.0)


def reconstruct(
    y: Tensor, op: Operator, prior: Prior, *, noise_std: float | Tensor, seeds: Tensor | None = None,
    shape: tuple[int, ...] | None = None, **options: Any,
) -> Estimate:  # fmt: skip
    """Estimate E[x0 | y] in one call: a :class:`Plan` made, executed once and dropped.

    Args:
        y, noise_std, seeds: as :meth:`Plan.execute` and :class:`Plan`.
        shape: (B, ...) of the images; default: what the operator makes of the shape of ``y``.
        **options: of :class:`Plan`.
    """
    check_tensor("y", y)
    shape = tuple(op.image_shape(tuple(y.shape))) if shape is None else shape
    return Plan(op, prior, shape, noise_std, device=y.device, **options).execute(y, seeds)


def _check_image_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    shape = tuple(shape)
    if len(shape) not in (2, 4) or not all(isinstance(n, int) for n in shape):
        raise ValueError(f"`shape` must be (B, C, H, W) or (B, N) in whole numbers, got {shape_text(shape)}")
    if shape[0] < 0 or min(shape[1:]) < 1:
        raise ValueError(f"`shape` must have a batch >= 0 and positive sizes, got {shape_text(shape)}")
    return shape


def _check_data_range(data_range: tuple[float, float]) -> tuple[float, float]:
    low, high = (float(v) for v in data_range)
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ValueError(f"`data_range` must be (low, high) with low < high, got {data_range!r}")
    return low, (high - low) / 2
