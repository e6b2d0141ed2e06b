"""What the baselines share: one run's data, counters and random numbers, and the levels of DDPM."""

from __future__ import annotations

import abc
import dataclasses
import math
import time
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from .. import ops
from .._checks import check_count, check_finite, check_noise_std, check_seeds, check_shape, check_tensor
from .._modes import no_gradients, own_precision
from ..operators import Operator
from ..plan import Estimate
from ..priors import Prior
from ..reference import normals
from ..schedules import Schedule

__all__ = ["Baseline", "Denoiser", "Run", "ancestral", "ddpm_levels", "reconstruct_with", "uniform_timesteps"]

TIMESTEPS = 1000  # of the DDPM process that the papers' networks were trained on
_STREAM = 1 << 16  # of the random numbers of sample 0; chains of the plan use low streams


class Denoiser(Protocol):
    """Anything with D(x, s) = E[x0 | x0 + s z = x]; s (B,)."""

    def denoise(self, x: Tensor, s: Tensor) -> Tensor:
        """D(x, s), of the shape of ``x``."""


class Run:
    """One sample being drawn for every item of a batch: the problem, the counters, the random numbers.

    Attributes:
        y: measurements (B, ...). op, prior: the operator and the prior.
        noise_std: (B,) standard deviations of the noise in ``y``.
        shape: (B, ...) of the images.
        forward, backward: network evaluations and vector-Jacobian products so far, per item.
    """

    def __init__(
        self, y: Tensor, op: Operator, prior: Denoiser, noise_std: Tensor, shape: tuple[int, ...], seeds: Tensor
    ) -> None:
        self.y, self.op, self.prior, self.shape = y, op, prior, shape
        self.noise_std = noise_std
        self.forward = self.backward = 0
        self._each = getattr(prior, "evaluations", 1)
        self.network_seconds = 0.0
        self._seeds = seeds
        self._stream = _STREAM
        self._draws = 0

    def start(self, sample: int) -> None:
        """Begin sample number ``sample``: its random numbers depend on it and on the item's seed alone."""
        self._stream, self._draws = _STREAM + sample, 0

    def column(self, values: Tensor) -> Tensor:
        """(B,) as (B, 1, ...), to broadcast against images."""
        return values.reshape(-1, *[1] * (len(self.shape) - 1)).to(self.y.dtype)

    def draw(self) -> Tensor:
        """The next standard normals, shaped like the images."""
        kernels = ops.kernels("auto", self.y)
        if kernels is not None:
            out = torch.empty(self.shape, dtype=torch.float32, device=self.y.device)
            kernels.normals(self._seeds, self._draws, self._stream, out)
        else:
            drawn = normals(self._seeds, self._draws, self._stream, math.prod(self.shape[1:]))
            out = drawn.reshape(self.shape).to(self.y.dtype)
        self._draws += 1
        return out

    def start_at(self, s: float) -> Tensor:
        """The state of a variance-preserving process that starts from N(0, I), in noise-level coordinates."""
        return math.sqrt(1 + s * s) * self.draw()

    def denoise(self, x: Tensor, s: float) -> Tensor:
        """D(x, s), counted; differentiable where autograd follows ``x``."""
        started = time.perf_counter()
        out = self.prior.denoise(x, torch.full((x.shape[0],), s, dtype=x.dtype, device=x.device))
        self.network_seconds += time.perf_counter() - started
        self.forward += self._each
        return out

    def gradient(self, total: Tensor, x: Tensor) -> Tensor:
        """d total / dx through the network, counted."""
        started = time.perf_counter()
        gradient: Tensor = torch.autograd.grad(total, x)[0]
        self.network_seconds += time.perf_counter() - started
        self.backward += self._each
        return gradient

    def residual_gradient(self, x: Tensor) -> Tensor:
        """The gradient of ||A(x) - y||^2 / 2: A^T (A x - y) for linear A, by autograd otherwise. No network."""
        if self.op.linear:
            return self.op.adjoint(self.op.A(x) - self.y, self.shape)
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            loss = (self.op.A(leaf) - self.y).square().sum() / 2
        gradient: Tensor = torch.autograd.grad(loss, leaf)[0]
        return gradient


@dataclasses.dataclass(frozen=True, kw_only=True)
class Baseline(abc.ABC):
    """A method with its settings; the fields of a subclass are what ``reconstruct`` takes as keyword arguments.

    Attributes:
        evaluations: network evaluations of one sample.
        schedule: noise levels in place of the authors' grid, one per evaluation; few evaluations of small images want
            another than those made for hundreds of steps and 256 x 256 pixels.
    """

    name: ClassVar[str]
    linear_only: ClassVar[bool] = True
    on_timesteps: ClassVar[bool] = True  # the authors' grid is taken from the DDPM timesteps
    evaluations: int = 100
    schedule: Schedule | None = None

    def __post_init__(self) -> None:
        check_count("evaluations", self.evaluations)
        if self.schedule is None:
            if self.on_timesteps and self.evaluations > TIMESTEPS:
                raise ValueError(
                    f"`evaluations` must be at most {TIMESTEPS}, one per DDPM timestep, got {self.evaluations}; "
                    "give a `schedule` for more"
                )
            return
        if not isinstance(self.schedule, Schedule):
            raise TypeError(
                f"`schedule` must be an rmp_fast.schedules.Schedule or None, got {type(self.schedule).__name__}"
            )
        if self.schedule.levels.numel() != self.schedule_size:
            raise ValueError(
                f"`schedule` must hold {self.schedule_size} levels for {self.evaluations} evaluations of "
                f"{self.name!r}, got {self.schedule.levels.numel()}"
            )

    @property
    def schedule_size(self) -> int:
        """Levels of a schedule."""
        return self.evaluations

    def levels(self) -> list[float]:
        """The levels of the chain, descending: those of ``schedule``, or else the authors'."""
        if self.schedule is not None:
            given: list[float] = self.schedule.levels.flip(0).tolist()
            return given
        return self.paper_levels()

    def paper_levels(self) -> list[float]:
        """The authors' grid, descending; equal steps over the DDPM timesteps unless a method says otherwise."""
        return ddpm_levels(uniform_timesteps(self.evaluations))

    @classmethod
    def paper_settings(cls, task: str) -> dict[str, Any]:
        """The settings of the authors for a task, where they differ from the defaults."""
        return {}

    def check(self, op: Operator, shape: tuple[int, ...], device: torch.device, dtype: torch.dtype) -> str | None:
        """Why the method cannot serve images (B, ...) of ``shape`` under ``op``, or None."""
        if self.linear_only and not op.linear:
            return "it needs a linear operator"
        return None

    @abc.abstractmethod
    def sample(self, run: Run) -> Tensor:
        """One sample (B, ...) for every item."""


def check_share(name: str, value: float) -> float:
    """``value`` if it is a number on [0, 1]."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"`{name}` must be a number, got {type(value).__name__}")
    if not 0 <= value <= 1:
        raise ValueError(f"`{name}` must lie on [0, 1], got {value!r}")
    return float(value)


def ddpm_levels(timesteps: Tensor) -> list[float]:
    """s_t = sqrt((1 - abar_t) / abar_t) of the linear DDPM process (Ho et al. 2020, arXiv 2006.11239, section 4).

    Args:
        timesteps: int64, on 0 … 999.
    """
    alphas = (1 - torch.linspace(1e-4, 0.02, TIMESTEPS, dtype=torch.float64)).cumprod(0)
    levels: list[float] = ((1 - alphas) / alphas).sqrt()[timesteps].tolist()
    return levels


def uniform_timesteps(count: int) -> Tensor:
    """``count`` timesteps from 999 down to 0 in equal steps, as DDPM's respacing rounds them; one alone is 999."""
    return torch.linspace(TIMESTEPS - 1, 0, count, dtype=torch.float64).round().long()


def ancestral(x: Tensor, denoised: Tensor, s: float, t: float, noise: Tensor) -> Tensor:
    """A draw of p(x_t | x_s, x0 = denoised), t < s: DDPM's reverse step with the small variance, t^2 (1 - t^2/s^2)."""
    w = (t / s) ** 2
    return w * x + (1 - w) * denoised + t * math.sqrt(1 - w) * noise


def clipped(denoised: Tensor, clip: bool | None) -> Tensor:
    """``denoised`` on [-1, 1]: the range of images (B, C, H, W), which None stands for; signals have none."""
    wanted = denoised.ndim == 4 if clip is None else clip
    # What is not finite stays so: a clamped infinity would pass for an image.
    return torch.where(denoised.isfinite(), denoised.clamp(-1, 1), denoised) if wanted else denoised


def reconstruct_with(
    method: Baseline,
    y: Tensor,
    op: Operator,
    prior: Denoiser,
    noise_std: float | Tensor,
    *,
    seeds: Tensor | None = None,
    samples: int = 1,
    shape: tuple[int, ...] | None = None,
) -> Estimate:
    """What :func:`rmp_fast.baselines.reconstruct` does, for a method that has its settings."""
    check_tensor("y", y)
    if y.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"`y` must be float32 or float64, got {y.dtype}; convert it with .float()")
    if not isinstance(op, Operator):
        raise TypeError(f"`op` must be an rmp_fast operator, got {type(op).__name__}; see rmp_fast.operators")
    if not callable(getattr(prior, "denoise", None)):
        raise TypeError(f"`prior` must have a method denoise(x, s), got {type(prior).__name__}; see rmp_fast.priors")
    check_count("samples", samples)
    shape = tuple(op.image_shape(tuple(y.shape))) if shape is None else tuple(shape)
    if isinstance(prior, Prior):
        prior.check_image_shape(shape)
    check_shape("y", y, op.measurement_shape(shape))
    check_finite("y", y)
    batch = y.shape[0]
    std = check_noise_std(noise_std, batch, y.device)
    seeds = check_seeds(seeds, batch, y.device)
    reason = method.check(op, shape, y.device, y.dtype)
    if reason is not None:
        from .registry import usable

        others = ", ".join(map(repr, usable(op, shape, y.device, y.dtype))) or "none"
        raise ValueError(f"{method.name!r} cannot serve the operator {op.name!r}: {reason}; methods that can: {others}")
    stats = {"evaluations": 0, "backward_evaluations": 0, "seconds": 0.0, "network_seconds": 0.0}
    if batch == 0:
        empty = y.new_zeros(shape)
        spread = empty.clone() if samples > 1 else None
        return Estimate(empty, spread, torch.ones(0, dtype=torch.bool, device=y.device), stats)
    started = time.perf_counter()
    # Copies, because a tensor of the caller's inference mode could not serve the methods that need autograd.
    with no_gradients(), own_precision(y.device):
        run = Run(y.clone(), op, prior, std, shape, seeds.clone())
        mean = deviation = y.new_zeros(shape)
        for index in range(samples):
            run.start(index)
            sample = method.sample(run).detach()
            change = sample - mean
            mean = mean + change / (index + 1)
            deviation = deviation + change * (sample - mean)
    ok = torch.isfinite(mean).flatten(1).all(1)
    stats.update(
        evaluations=run.forward, backward_evaluations=run.backward, seconds=time.perf_counter() - started,
        network_seconds=run.network_seconds,
    )  # fmt: skip
    return Estimate(mean, deviation / (samples - 1) if samples > 1 else None, ok, stats)
