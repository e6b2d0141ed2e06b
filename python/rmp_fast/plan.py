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

from . import loop, reference, schedules, table
from ._checks import (
    check_choice,
    check_count,
    check_finite,
    check_noise_std,
    check_positive,
    check_seeds,
    check_shape,
    check_tensor,
    shape_text,
)
from .backends import resolve
from .conditioning import Conditioning
from .guidance import GRADIENTS, check_guidance, denoised_variance
from .operators import LinearOperator, Operator
from .operators.forms import Form, condition
from .priors import GaussianMixture, Prior
from .spread import posterior_variance
from .start import smooth_start
from .torch_step import TorchStep
from .triton_step import TritonStep

__all__ = ["NOISES", "Estimate", "Plan", "reconstruct"]

NOISES = ("control", "drawn", "antithetic", "none")
_AXES = ("B", "C", "H", "W")

Stats = dict[str, float]


@dataclasses.dataclass(frozen=True)
class Estimate:
    """What an execution returns.

    Attributes:
        mean: (B, ...) estimate of E[x0 | y], in the caller's range.
        variance: (B, ...) of x0 given y per element, in the square of the caller's unit: with ``spread_looks`` as
            :func:`rmp_fast.spread.posterior_variance` has it, with ``branches`` the unbiased variance between them,
            else None.
        ok: (B,) bool; False: the item left the finite range and its mean is the last finite one (the ``reference``
            backend returns what it got).
        stats: network evaluations per item, of all branches together (``evaluations`` forward,
            ``backward_evaluations``); ``seconds`` in all and ``start_seconds``, ``network_seconds``,
            ``operator_seconds``, ``step_seconds`` of them; ``spread_seconds`` after the chain; ``buffer_bytes`` that
            the plan owns; ``solve_residual``, the largest relative residual of the Gram solves where iterative.
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
        looks: a chain given look by look, as tuned presets are. It overrides ``inner_steps``, ``step_size``,
            ``relaxation`` and ``anchor``, and excludes ``schedule``.
        start: the first mean: ``"zero"``, or ``"smooth"``, the smoothest image that explains y (linear operators on
            images; :func:`rmp_fast.start.smooth_start`).
        guidance: ``"gaussian"`` (no gradients, linear operators) or ``"gauss_newton"`` (its like for nonlinear ones);
            ``"dps"``, ``"jensen"`` (any operator) or ``"pigdm"`` (linear ones), through the gradient of the denoiser
            with respect to its input; ``"exact"`` for Gaussian and mixture priors. See :mod:`rmp_fast.guidance`.
        guidance_scale: for ``dps`` z of -z grad ||y - A(D)||, for ``jensen`` gamma of gamma J^T A^T (y - A(D)) / sy^2,
            for ``pigdm`` a factor. Default: sqrt(M / (r2 + sy^2)) with M numbers in y, sy^2 / (r2 + sy^2), and 1, and
            a step held to a length that cannot diverge.
        noise: ``"control"`` (noise only inside the network), ``"drawn"`` (the paper), ``"antithetic"`` (pairs, two
            evaluations), ``"none"``.
        inner_steps: T_in, looks per level.
        step_size: ``"averaging"``: s1 = relaxation * 2 / (2 + j) at inner iteration j; or a number s1 > 0.
        relaxation: factor of the averaging step sizes, above 0 and at most 2, where a full step overshoots as far as it
            was off.
        anchor: level at which the first look of a step is taken: ``"current"`` (s_k) or ``"next"`` (s_{k+1}).
        covariance: ``"fixed"`` v, or ``"learned"``: 1/v = 1/b^2 + (1 - j)/s_k^2 with j = tr(dd_y/dx)/N by Stein's
            identity, v kept within a factor 4 of the fixed one; or ``"diagonal"``: the same with j per element.
        precision_rate: s2, the share of each new estimate of j.
        branches: K chains whose means are averaged, one after the other, each a sample while s_k > ``switch_level``
            and a mean below; their variance becomes :attr:`Estimate.variance`. 1: one chain of means.
        switch_level: s below which branches follow the mean.
        spread_looks: pairs of looks spent on :attr:`Estimate.variance` after the chain, two evaluations each; 8 are
            enough for images. 0: none. For the guidances ``gaussian`` and ``exact``.
        spread_level: s of these looks, about as wide as the images' own spread.
        backend: ``"auto"``, ``"cuda"``, ``"triton"``, ``"cpu"``, ``"torch"`` or ``"reference"`` (float64).
        device, dtype: of the state; float32 for ``cuda``, ``triton`` and ``cpu``.
        data_range: (low, high) of the caller's images; (-1, 1) means no conversion. The measurements of a nonlinear
            operator, and ``noise_std``, stay in the operator's own unit.

    Raises:
        TypeError, ValueError: for anything that does not fit, before any work is done.
    """

    def __init__(
        self, op: Operator, prior: Prior, shape: tuple[int, ...], noise_std: float | Tensor, *,
        schedule: schedules.Schedule | None = None, looks: schedules.Looks | None = None, start: str = "zero",
        guidance: str = "gaussian", guidance_scale: float | None = None, noise: str = "control",
        inner_steps: int = 2, step_size: Literal["averaging"] | float = "averaging", relaxation: float = 1.4,
        anchor: str = "current", covariance: str = "fixed", precision_rate: float = 0.3, branches: int = 1,
        switch_level: float = 1.0, spread_looks: int = 0, spread_level: float = 0.8, backend: str = "auto",
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
        self.looks = looks
        if not isinstance(self.schedule, schedules.Schedule):
            raise TypeError(f"`schedule` must be an rmp_fast.schedules.Schedule, got {type(schedule).__name__}")
        self.start = check_choice("start", start, ("zero", "smooth"))
        if start == "smooth" and (not op.linear or len(self.shape) != 4):
            raise ValueError("`start` 'smooth' is for linear operators on images (B, C, H, W); use 'zero'")
        check_guidance(guidance, op, prior)
        self.guidance = guidance
        self.guidance_scale = None if guidance_scale is None else check_positive("guidance_scale", guidance_scale)
        if guidance_scale is not None and guidance not in GRADIENTS:
            raise ValueError(f"`guidance_scale` is for {', '.join(GRADIENTS)}; {guidance!r} has no scale")
        self.noise = check_choice("noise", noise, NOISES)
        self.anchor = check_choice("anchor", anchor, ("current", "next"))
        self.covariance = check_choice("covariance", covariance, ("fixed", "learned", "diagonal"))
        if covariance != "fixed" and noise == "none":
            raise ValueError(f"`covariance` {covariance!r} needs perturbed looks: `noise` must not be 'none'")
        self.inner_steps = check_count("inner_steps", inner_steps)
        self.branches = check_count("branches", branches)
        self.switch_level = check_positive("switch_level", switch_level)
        self.spread_looks = check_count("spread_looks", spread_looks, least=0)
        self.spread_level = check_positive("spread_level", spread_level)
        if spread_looks and (guidance in GRADIENTS or branches > 1):
            raise ValueError("`spread_looks` need `guidance` 'gaussian' or 'exact' and one branch, else use 0")
        if isinstance(step_size, str):
            check_choice("step_size", step_size, ("averaging",))
        else:
            step_size = check_positive("step_size", step_size)
        self.step_size = step_size
        self.relaxation = check_positive("relaxation", relaxation)
        if self.relaxation > 2:
            raise ValueError(f"`relaxation` must be at most 2, where the chain stops converging, got {relaxation}")
        self.precision_rate = check_positive("precision_rate", precision_rate)
        if looks is not None:
            self._check_looks(looks, schedule)
        self.device = torch.device("cpu" if device is None else device)
        self.dtype = dtype
        self.backend = resolve(backend, self.device, dtype)
        self._low, self._half = _check_data_range(data_range)
        self._lock = threading.Lock()
        # Buffers born in inference mode could not be written outside it.
        with torch.inference_mode(False), torch.no_grad():
            self._allocate()
            self._set_noise_std(noise_std)

    def _check_looks(self, looks: schedules.Looks, schedule: schedules.Schedule | None) -> None:
        if not isinstance(looks, schedules.Looks):
            raise TypeError(f"`looks` must be an rmp_fast.schedules.Looks, got {type(looks).__name__}")
        if schedule is not None:
            raise ValueError("`looks` and `schedule` exclude each other: looks say all that a schedule says")
        needed = {"noise": ("control", "antithetic", "none"), "covariance": ("fixed",), "guidance": ("gaussian",)}
        for name, values in needed.items():
            if getattr(self, name) not in values:
                raise ValueError(f"`looks` need `{name}` {' or '.join(map(repr, values))}, got {getattr(self, name)!r}")
        if self.branches > 1:
            raise ValueError("`looks` have no levels to sample at: `branches` must be 1")

    # What is derived from the arguments, once.

    @property
    def evaluations(self) -> int:
        """Network evaluations per item, of all branches together."""
        chain = self.looks_per_chain * (2 if self.noise == "antithetic" else 1)
        return self.branches * chain + 2 * self.spread_looks

    @property
    def buffer_bytes(self) -> int:
        """Bytes of the buffers that the plan owns and executions write to."""
        return sum(t.numel() * t.element_size() for t in self._buffers())

    def _buffers(self) -> list[Tensor]:
        owned = [*self._means, self.inputs, self._seeds, self._ok, self._looks, *self._moments]
        return [*owned, *self.conditioning.buffers, *([] if self.curvature is None else [self.curvature])]

    def _allocate(self) -> None:
        batch, device, dtype = self.shape[0], self.device, self.dtype
        steps, inner = (self.schedule.steps, self.inner_steps) if self.looks is None else (len(self.looks), 1)
        self.levels, self.looks_per_level = steps, inner
        self.looks_per_chain = steps * inner
        copies = self._copies = 2 if self.noise == "antithetic" else 1
        self._means = [torch.zeros(self.shape, dtype=dtype, device=device) for _ in range(2)]
        self.inputs = torch.zeros((copies * batch, *self.shape[1:]), dtype=dtype, device=device)
        self._seeds = torch.zeros(batch, dtype=torch.int64, device=device)
        self._ok = torch.ones(batch, dtype=torch.uint8, device=device)
        self.curvature = None
        if self.covariance != "fixed":
            sizes = self.shape if self.covariance == "diagonal" else (batch,)
            self.curvature = torch.zeros(sizes, dtype=dtype, device=device)
        # Mean and sum of squared differences of the branches.
        self._moments = [torch.zeros(self.shape, dtype=dtype, device=device) for _ in range(2 * (self.branches > 1))]
        # One row per look, one for the start and, with branches, one per level for the start from a sample.
        rows = self.looks_per_chain + 1 + steps * (self.branches > 1)
        self._looks = torch.zeros(rows, batch, 8, dtype=dtype, device=device)
        if self.looks is None:
            s = self.schedule.levels
            first = s[1:] if self.anchor == "next" else s[:-1]
            levels = torch.stack([first] + [s[:-1]] * (inner - 1), dim=1).flip(0).flatten()
            self.sampled = [self.branches > 1 and level > self.switch_level for level in s[:-1].flip(0).tolist()]
        else:
            levels = self.looks.level
            self.sampled = [False] * steps
        self.look_levels = levels  # (L,) level at which the network is called, in order of execution
        told = levels.to(device, dtype)[:, None].expand(-1, copies * batch).contiguous()
        self.network_levels = told.unbind(0)  # one (copies * B,) per look
        self.conditioning = Conditioning(
            self.op, self.guidance, self.guidance_scale, self.shape, self.measurement_shape, self.looks_per_chain,
            copies, self.backend, device, dtype,
        )  # fmt: skip
        self._offset = None
        self._converts = (self._low, self._half) != (-1.0, 1.0)
        if self._converts and self.op.linear:
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
        options |= self.conditioning.step_options
        a, b = self._means
        # A level's first look starts from the level above; tuned looks remember the mean before the last look instead.
        remembers = self.looks is not None
        steps: dict[str, Callable[..., loop.Step]] = {
            "cpu": loop.CompiledStep,
            "cuda": loop.CompiledStep,
            "triton": TritonStep,
        }
        bound = steps.get(self.backend, TorchStep)
        self.steps = [
            [
                bound(previous=mu if remembers else m, mean=m, next_mean=mu, **options),
                bound(previous=m, mean=mu, next_mean=mu, **options),
            ]
            for m, mu in ((a, b), (b, a))
        ]
        self.result = self._means[self.levels % 2]

    def _set_noise_std(self, noise_std: float | Tensor) -> None:
        """Fill the table of coefficients for a noise level in the caller's range."""
        batch, looks = self.shape[0], self.looks_per_chain
        given = check_noise_std(noise_std, batch, self.device) / (self._half if self.op.linear else 1.0)
        self.conditioning.check_noise(given)
        self.noise_std = given
        variance = self.looks.variance if self.looks else denoised_variance(self.look_levels, self.prior.data_variance)
        ratio = self.conditioning.set_noise(given, self.look_levels, variance)
        if self.looks is not None:
            columns = table.rows_of_looks(self.looks, self.noise != "none")
        else:
            columns = table.rows_of_levels(
                self.schedule.levels, reference.step_sizes(self.step_size, self.relaxation, self.inner_steps),
                self.precision_rate, self.noise != "none", self.sampled if self.branches > 1 else [],
            )  # fmt: skip
        self._looks.copy_(columns[:, None, :])
        self._looks[:looks, :, 3] = ratio.to(self._looks)

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
        seeds = check_seeds(seeds, self.shape[0], self.device)
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

    def _execute(self, y: Tensor, seeds: Tensor, out: Tensor | None, noise_std: float | Tensor | None) -> Estimate:
        batch = self.shape[0]
        if noise_std is not None:
            self._set_noise_std(noise_std)
        mean = torch.empty(self.shape, dtype=self.dtype, device=self.device) if out is None else out
        if batch == 0:
            return Estimate(mean, None, torch.ones(0, dtype=torch.bool, device=self.device), self._stats())
        self._ok.fill_(1)
        stats = self._stats()
        measured = y.to(self.dtype)
        if self._offset is not None:
            measured = (measured - self._offset) / self._half
        result, variance = self._run_branches(measured, seeds, stats)
        if self._converts:
            result = result * self._half + (self._low + self._half)
            variance = None if variance is None else variance * self._half**2
        return Estimate(mean.copy_(result), variance, self._ok.bool(), stats)

    def _run_branches(self, measured: Tensor, seeds: Tensor, stats: Stats) -> tuple[Tensor, Tensor | None]:
        """Mean of the branches and their unbiased variance (Welford's update)."""
        if self.branches == 1:
            self._seeds.copy_(seeds)
            result = self._run(measured, stats)
            return result, self._spread(result, measured, stats) if self.spread_looks else None
        mean, squares = (t.zero_() for t in self._moments)
        for branch in range(self.branches):
            self._seeds.copy_(reference.branch_seeds(seeds, branch))
            result = self._run(measured, stats).to(self.dtype)
            difference = result - mean
            mean.add_(difference, alpha=1 / (branch + 1))
            squares.add_(difference * (result - mean))
        return mean, squares / (self.branches - 1)

    def _spread(self, mean: Tensor, measured: Tensor, stats: Stats) -> Tensor:
        started = time.perf_counter()
        levels = torch.full((self.shape[0],), self.spread_level, dtype=mean.dtype, device=self.device)
        prior: Prior = self.prior
        form: Form | None = None
        if self.guidance == "exact":
            assert isinstance(self.prior, GaussianMixture)  # check_guidance saw to it
            prior = self.prior.condition(measured, self.op, self.noise_std)
        else:
            form = self.op.form(self.shape, self.device, mean.dtype)

        def conditioned(d: Tensor, r2: Tensor) -> Tensor:
            if form is None:
                return d
            assert isinstance(self.op, LinearOperator)  # check_guidance saw to it
            return condition(form, self.op, d, measured.to(d.dtype), r2, self.noise_std)

        variance = posterior_variance(
            lambda x: prior.denoise(x, levels), conditioned, mean, self._seeds, self.spread_level, self.spread_looks
        )
        self._ok.logical_and_(torch.isfinite(variance).flatten(1).all(1))
        stats["spread_seconds"] = time.perf_counter() - started
        return variance

    def _first_mean(self, measured: Tensor) -> Tensor:
        if self.start == "zero":
            return torch.zeros((), dtype=measured.dtype, device=self.device)
        assert isinstance(self.op, LinearOperator)  # __init__ saw to it
        return smooth_start(measured, self.op, self.shape)

    def _run(self, measured: Tensor, stats: Stats) -> Tensor:
        if self.backend == "reference":
            return self._run_reference(measured, stats)
        conditioned: Prior | None = None
        if self.guidance == "exact":
            looks = torch.cat([measured] * self._copies)
            assert isinstance(self.prior, GaussianMixture)  # check_guidance saw to it
            conditioned = self.prior.condition(looks, self.op, self.noise_std.repeat(self._copies))
        else:
            self.conditioning.load(measured)
        started = time.perf_counter()
        self._means[0].copy_(self._first_mean(measured))
        self._means[1].copy_(self._means[0])
        spent = time.perf_counter() - started
        stats["start_seconds"] += spent
        stats["seconds"] += spent
        if self.curvature is not None:
            self.curvature.zero_()
        with torch.inference_mode(not self.conditioning.differentiates):
            loop.run(self, conditioned or self.prior, stats)
        if self.conditioning.solves:
            residual = float(self.conditioning.solve_residual.max())
            stats["solve_residual"] = max(stats.get("solve_residual", 0.0), residual)
        return self.result

    def sample(self, level: int) -> None:
        """Make the perturbed input of the level's last look the mean that the next level starts from."""
        row = self.looks_per_chain + 1 + level
        after = (level + 1) % 2
        self._means[after].copy_(self.inputs[: self.shape[0]])
        self.steps[after][0].perturb(row, row)

    def _run_reference(self, measured: Tensor, stats: Stats) -> Tensor:
        names = ("guidance", "guidance_scale", "noise", "inner_steps", "step_size", "relaxation", "anchor")
        options: dict[str, Any] = {name: getattr(self, name) for name in (*names, "covariance", "precision_rate")}
        options["switch_level"] = self.switch_level if self.branches > 1 else math.inf
        started = time.perf_counter()
        measured, noise_std = measured.double(), self.noise_std
        start = self._first_mean(measured).double().expand(self.shape)
        if self.looks is not None:
            columns = [getattr(self.looks, field.name) for field in dataclasses.fields(self.looks)]
            columns[1] = columns[1] * (self.noise != "none")
            rows = [tuple(row) for row in torch.stack(columns, 1).tolist()]
            mean = reference.chain_of_looks(
                measured, self.op, self.prior, noise_std, rows, self._seeds, start, self.noise == "antithetic"
            )
        else:
            mean = reference.reverse_mean_propagation(
                measured, self.op, self.prior, noise_std, self.schedule.levels, self._seeds, self.shape, start=start,
                **options,
            )  # fmt: skip
        stats["seconds"] += time.perf_counter() - started
        self._ok.logical_and_(torch.isfinite(mean).flatten(1).all(1))
        return mean

    def _stats(self) -> Stats:
        backward = self.evaluations if self.guidance in GRADIENTS else 0
        stats: Stats = {"evaluations": self.evaluations, "backward_evaluations": backward}
        stats["buffer_bytes"] = self.buffer_bytes
        return stats | dict.fromkeys(
            ("seconds", "start_seconds", "network_seconds", "operator_seconds", "step_seconds"), 0.0
        )


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
