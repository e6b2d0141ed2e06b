"""A plan: everything that can be decided, checked and allocated before the first measurement comes."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from . import engine, execution, graph, loop, reference, schedules, table
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
from ._modes import no_gradients, own_precision
from .backends import resolve
from .conditioning import Conditioning
from .execution import Estimate, Progress
from .guidance import GAUSSIAN, GRADIENTS, check_guidance, denoised_variance
from .operators import Operator
from .operators.data import data_bytes, private_copy, take_over
from .priors import Prior
from .torch_step import TorchStep
from .triton_step import TritonStep

__all__ = ["NOISES", "Estimate", "Plan"]

NOISES = ("control", "drawn", "antithetic", "none")
_AXES = ("B", "C", "H", "W")


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
            for ``pigdm`` a factor. Default: sqrt(M / (r2 + sy^2)) with M numbers in y, sy^2 / (g r2 + sy^2) with g =
            max(1, ||A||^2), and 1, and a step held to a length that cannot diverge.
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
        compile, precision, channels_last: how the network is run; see :func:`rmp_fast.engine.prepare`. Compiling takes
            seconds, here. ``"bfloat16"`` is compared with float32 at the first execution and given up below 45 dB. A
            ``prior`` that is the :attr:`network` of another plan runs as it does there, and goes with none of them.

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
        data_range: tuple[float, float] = (-1.0, 1.0), compile: bool = False, precision: str = "float32",
        channels_last: bool | None = None,
    ) -> None:  # fmt: skip
        if not isinstance(op, Operator):
            raise TypeError(f"`op` must be an rmp_fast operator, got {type(op).__name__}; see rmp_fast.operators")
        if not isinstance(prior, Prior):
            raise TypeError(f"`prior` must be an rmp_fast prior, got {type(prior).__name__}; see rmp_fast.priors")
        self.prior = prior
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
        if spread_looks and (guidance not in ("gaussian", "exact") or branches > 1):
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
        if self.precision_rate > 1:
            raise ValueError(f"`precision_rate` is a share, above 0 and at most 1, got {precision_rate}")
        if looks is not None:
            self._check_looks(looks, schedule)
        self.device = _check_device(device)
        if dtype not in (torch.float32, torch.float64):
            raise TypeError(f"`dtype` must be torch.float32 or torch.float64, got {dtype!r}")
        self.dtype = dtype
        self.backend = resolve(backend, self.device, dtype)
        engine.check(prior, compile, precision, channels_last, self.backend)
        self.low, self.half = _check_data_range(data_range)
        self._lock = threading.Lock()
        self._turns = execution.Turns(self.device)
        self._captured: graph.Captured | None = None
        # Buffers born in inference mode could not be written outside it.
        with no_gradients(), own_precision(self.device), self._turns.take():
            self.op = private_copy(op)
            self._allocate()
            self._set_noise_std(self._check_noise_std(noise_std))
        seen = {tuple(self.inputs.shape)} | ({self.shape} if spread_looks else set())
        #: The prior as this plan runs it, which other plans may take for theirs, compilations included.
        with own_precision(self.device):
            self.network = engine.prepare(
                prior, seen, compile=compile, precision=precision, channels_last=channels_last,
                gradients=self.conditioning.gradient is not None, backend=self.backend, device=self.device, dtype=dtype,
            )  # fmt: skip

    def _check_looks(self, looks: schedules.Looks, schedule: schedules.Schedule | None) -> None:
        if not isinstance(looks, schedules.Looks):
            raise TypeError(f"`looks` must be an rmp_fast.schedules.Looks, got {type(looks).__name__}")
        if schedule is not None:
            raise ValueError("`looks` and `schedule` exclude each other: looks say all that a schedule says")
        needed = {"noise": ("control", "antithetic", "none"), "covariance": ("fixed",), "guidance": GAUSSIAN}
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
        return (self.branches * chain + 2 * self.spread_looks) * self.prior.evaluations

    @property
    def buffer_bytes(self) -> int:
        """Bytes of the buffers that the plan owns and executions write to."""
        return sum(t.numel() * t.element_size() for t in self._buffers())

    @property
    def operator_bytes(self) -> int:
        """Bytes of the plan's copy of the operator's data, and of what was derived from them."""
        return data_bytes(self.op)

    def _buffers(self) -> list[Tensor]:
        owned = [*self.means, self.inputs, self.seeds, self.ok, self._looks, *self.moments]
        return [*owned, *self.conditioning.buffers, *([] if self.curvature is None else [self.curvature])]

    def _allocate(self) -> None:
        batch, device, dtype = self.shape[0], self.device, self.dtype
        steps, inner = (self.schedule.steps, self.inner_steps) if self.looks is None else (len(self.looks), 1)
        self.levels, self.looks_per_level = steps, inner
        self.looks_per_chain = steps * inner
        copies = self.copies = 2 if self.noise == "antithetic" else 1
        self.means = [torch.zeros(self.shape, dtype=dtype, device=device) for _ in range(2)]
        self.inputs = torch.zeros((copies * batch, *self.shape[1:]), dtype=dtype, device=device)
        self.seeds = torch.zeros(batch, dtype=torch.int64, device=device)
        self.ok = torch.ones(batch, dtype=torch.uint8, device=device)
        self.curvature = None
        if self.covariance != "fixed":
            sizes = self.shape if self.covariance == "diagonal" else (batch,)
            self.curvature = torch.zeros(sizes, dtype=dtype, device=device)
        # Mean and sum of squared differences of the branches.
        self.moments = [torch.zeros(self.shape, dtype=dtype, device=device) for _ in range(2 * (self.branches > 1))]
        # One row per look, one for the start and, with branches, one per level for the start from a sample.
        rows = self.looks_per_chain + 1 + steps * (self.branches > 1)
        self._looks = torch.zeros(rows, batch, 8, dtype=dtype, device=device)
        if self.looks is None:
            s = self.schedule.levels
            first = s[1:] if self.anchor == "next" else s[:-1]
            levels = torch.stack([first] + [s[:-1]] * (inner - 1), dim=1).flip(0).flatten()
            self.sampled = [self.branches > 1 and level > self.switch_level for level in s.tolist()[-2::-1]]
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
        self.converts = (self.low, self.half) != (-1.0, 1.0)
        self.offset: Tensor | None = None
        if self.converts and self.op.linear:
            self.offset = torch.zeros(self.measurement_shape, dtype=dtype, device=device)
        self._set_offset()
        self.noise_std = torch.zeros(batch, dtype=torch.float64, device=device)
        self._bind()

    def _set_offset(self) -> None:
        """What a linear operator makes of the middle of the caller's range."""
        if self.offset is not None:
            middle = torch.full(self.shape, self.low + self.half, dtype=self.dtype, device=self.device)
            self.offset.copy_(self.op.A(middle))

    def _bind(self) -> None:
        """One step object for the first look of a level and one for the others, for either order of the two means."""
        if self.backend == "reference":
            return
        batch = self.shape[0]
        options: dict[str, Any] = {
            "input": self.inputs[:batch],
            "looks": self._looks,
            "seeds": self.seeds,
            "ok": self.ok,
            "curvature": self.curvature,
            "drawn": self.noise == "drawn",
        }
        if self.noise == "antithetic":
            options["input_mirror"] = self.inputs[batch:]
        options |= self.conditioning.step_options
        a, b = self.means
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

    def _check_noise_std(self, noise_std: float | Tensor) -> Tensor:
        """(B,) float64 on images of [-1, 1], from one in the caller's range."""
        given = check_noise_std(noise_std, self.shape[0], self.device) / (self.half if self.op.linear else 1.0)
        self.conditioning.check_noise(given)
        return given

    def _set_noise_std(self, given: Tensor) -> None:
        """Fill the table of coefficients for a noise level (B,)."""
        looks = self.looks_per_chain
        self.noise_std.copy_(given)
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
        self, y: Tensor, seeds: Tensor | None = None, out: Tensor | None = None,
        noise_std: float | Tensor | None = None, *, op: Operator | None = None, progress: Progress | None = None,
    ) -> Estimate:  # fmt: skip
        """Run the chain.

        Args:
            y: measurements, of the operator's measurement shape for the plan's images, in the caller's range. That they
                are finite is checked first, which on a device waits for them; the chain itself does not wait.
            seeds: (B,) int64, one per item, default 0 … B - 1; the same seeds give the same estimate.
            out: (B, ...) tensor that receives the mean; default a new one.
            noise_std: a number or (B,), replaces the plan's noise level from here on.
            op: another operator of the plan's kind, settings and shapes, whose data (mask, kernel, maps, matrix) are
                copied and replace the plan's from here on. Data for all items may replace data per item, not the other
                way round: for a mask per execution and item, make the plan with a mask per item.
            progress: called as progress(done, total) after each look, in evaluations of the network per item. If it
                returns False (None is not False) the chain stops: ``mean`` is the mean that there is, of the finished
                branches where there are any, and ``stats["finished"]`` is False. On a device, looks are queued then,
                not done.

        Returns:
            the :class:`Estimate`; an empty one for an empty batch.

        Raises:
            TypeError, ValueError: where an argument does not fit the plan, naming both; before any work is done.
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
        if progress is not None and not callable(progress):
            raise TypeError(f"`progress` must be a function of (done, total), got {type(progress).__name__}")
        if not self._lock.acquire(blocking=False):
            raise RuntimeError("this plan is executing in another thread; make one plan per thread")
        try:
            with torch.no_grad(), own_precision(self.device), self._turns.take():
                self._take(op, noise_std)
                mean = torch.empty(self.shape, dtype=self.dtype, device=self.device) if out is None else out
                if self.shape[0] == 0:
                    return execution.empty(self, mean)
                # Within one graph there is nobody to report progress.
                if self._captured is None or (progress is not None and self._captured.recording.whole):
                    return execution.run(self, y, seeds, mean, progress)
                return self._captured.execute(self, y, seeds, mean, progress)
        finally:
            self._lock.release()

    def capture(self, pool: graph.GraphPool | None = None) -> graph.Recording:
        """Record the chain, network included, as one CUDA graph that later executions replay with one launch.

        The chain runs twice on a side stream for that. Afterwards :meth:`execute` copies its arguments in and replays:
        the same numbers as before to the bit, for any measurement, seeds, noise levels and operator data. Executions
        with ``progress`` run without the graph, where that is one.

        A network that waits for the host, or whose shapes depend on data, cannot be recorded. A RuntimeWarning then
        names the operation and its line, and the parts of the chain between the calls of the network are recorded.
        Weights of the network may change in place between executions, not be replaced; those of copies
        (:func:`rmp_fast.engine.prepare`) do not follow.

        Args:
            pool: memory to share with other captured plans, whose replays then take turns; default one of its own.

        Returns:
            what was recorded; :attr:`captured` from here on.

        Raises:
            ValueError: the plan is not on a CUDA device, its batch is empty, its backend ``"reference"``, or its first
                execution in bfloat16 still to come.
            RuntimeError: not even the parts can be recorded, or the plan is executing in another thread.
        """
        if not self._lock.acquire(blocking=False):
            raise RuntimeError("this plan is executing in another thread; capture it before it is used")
        try:
            with torch.inference_mode(False), own_precision(self.device):
                self._captured = graph.capture(self, pool)
        finally:
            self._lock.release()
        return self._captured.recording

    @property
    def captured(self) -> graph.Recording | None:
        """What :meth:`capture` recorded, or None."""
        return None if self._captured is None else self._captured.recording

    def _take(self, op: Operator | None, noise_std: float | Tensor | None) -> None:
        """Check the operator and the noise level that replace the plan's, then take them over."""
        given = None if noise_std is None else self._check_noise_std(noise_std)
        if op is not None:
            if not isinstance(op, Operator):
                raise TypeError(f"`op` must be an rmp_fast operator, got {type(op).__name__}; see rmp_fast.operators")
            take_over(self.op, op, self.shape)()
            self.conditioning.refresh()
            self._set_offset()
            if given is None and self.guidance in GRADIENTS:
                given = self.noise_std.clone()  # the weights of a gradient depend on the gain of A
        if given is not None:
            self._set_noise_std(given)

    def sample(self, level: int) -> None:
        """Make the perturbed input of the level's last look the mean that the next level starts from."""
        row = self.looks_per_chain + 1 + level
        after = (level + 1) % 2
        self.means[after].copy_(self.inputs[: self.shape[0]])
        self.steps[after][0].perturb(row, row)


def _check_image_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    shape = tuple(shape)
    if len(shape) not in (2, 4) or not all(isinstance(n, int) for n in shape):
        raise ValueError(f"`shape` must be (B, C, H, W) or (B, N) in whole numbers, got {shape_text(shape)}")
    if shape[0] < 0 or min(shape[1:]) < 1:
        raise ValueError(f"`shape` must have a batch >= 0 and positive sizes, got {shape_text(shape)}")
    return shape


def _check_device(device: torch.device | str | None) -> torch.device:
    """The device, with its number: "cuda" is the current one, as it is for tensors."""
    given = torch.device("cpu" if device is None else device)
    if given.type == "cuda" and given.index is None:
        return torch.device("cuda", torch.cuda.current_device() if torch.cuda.is_available() else 0)
    return given


def _check_data_range(data_range: tuple[float, float]) -> tuple[float, float]:
    low, high = (float(v) for v in data_range)
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ValueError(f"`data_range` must be (low, high) with low < high, got {data_range!r}")
    return low, (high - low) / 2
