"""Tuning: its looks by gradient descent through the unrolled chain, or a few numbers by search.

A chain of :class:`rmp_fast.schedules.Looks` is differentiable in every number of its table as long as the prior is, so
that the mean PSNR over images is maximised by Adam, with fresh measurements and fresh noise in every step.
"""

from __future__ import annotations

import dataclasses
import importlib
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from . import schedules
from ._checks import check_choice, check_count, check_positive, check_tensor
from .operators import Linearised, LinearOperator, Operator
from .operators.forms import condition
from .plan import Plan
from .priors import Prior
from .reference import normals, step_sizes
from .schedules import Looks
from .start import smooth_start

__all__ = [
    "COLUMNS",
    "Problem",
    "Tuned",
    "first_looks",
    "is_differentiable",
    "looks_of",
    "measure",
    "psnr",
    "resample",
    "restore",
    "search_looks",
    "tune_looks",
    "unrolled_chain",
]

#: The columns of a table of looks.
COLUMNS = tuple(field.name for field in dataclasses.fields(Looks))
_POSITIVE = ("level", "noise", "variance")  # tuned as logarithms


@dataclasses.dataclass(frozen=True)
class Problem:
    """Clean images and what was measured of them.

    Attributes:
        images: (B, C, H, W) on [-1, 1].
        op: the operator.
        y: measurements of the images.
        noise_std: standard deviation of their noise, in the unit of ``y``.
    """

    images: Tensor
    op: Operator
    y: Tensor
    noise_std: float


@dataclasses.dataclass(frozen=True)
class Tuned:
    """What a tuner found.

    Attributes:
        looks: the best table.
        start: the start that it was tuned for.
        history: mean PSNR in dB of every step (gradient) or the best so far (search).
    """

    looks: Looks
    start: str
    history: list[float]


def measure(images: Tensor, op: Operator, noise_std: float, seed: int) -> Problem:
    """The problem y = A(x) + noise_std n, the noise decided by ``seed``, zero where a mask hides it.

    Args:
        images: (B, C, H, W) on [-1, 1], float32.
        op: an operator.
        noise_std: a standard deviation in the unit of its measurements.
    """
    clean = op.A(check_tensor("images", images))
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(seed), dtype=clean.dtype)
    # A mask is its own projection; for every other operator the noise stays as it is.
    noise = op.A(noise) if op.name == "inpainting" else noise
    return Problem(images, op, clean + check_positive("noise_std", noise_std, allow_zero=True) * noise, noise_std)


def psnr(images: Tensor, estimates: Tensor) -> Tensor:
    """(B,) 10 log10(4 / MSE) in dB: the range [-1, 1] is 2 wide."""
    error: Tensor = (estimates - images).square().flatten(1).mean(1)
    return 10 * torch.log10(4 / error.clamp_min(1e-12))


def looks_of(
    schedule: schedules.Schedule, data_variance: float, inner_steps: int = 2, relaxation: float = 1.4
) -> Looks:
    """The looks that a plan with these settings takes; exact where a level has one or two looks.

    The second look of a level goes back towards the mean of the level above by s1 w (m - mu), and m is then the mean
    before the first look: a negative momentum.

    Args:
        schedule: the levels.
        data_variance: p of the variance s^2 p / (s^2 + p).
        inner_steps: 1 or 2.
        relaxation: factor of the step sizes 1 and 2/3.
    """
    if check_count("inner_steps", inner_steps) > 2:
        raise ValueError(f"`inner_steps` must be 1 or 2: looks remember one mean, got {inner_steps}")
    s = schedule.levels.flip(0)
    share = (1 - (s[1:] / s[:-1]).square()).repeat_interleave(inner_steps)
    level = s[1:].repeat_interleave(inner_steps)
    size = torch.tensor(step_sizes("averaging", relaxation, inner_steps), dtype=torch.float64).repeat(schedule.steps)
    back = (torch.arange(len(level)) % inner_steps != 0).double()
    variance = level.square() * data_variance / (level.square() + data_variance)
    return Looks(level, share.sqrt() * level, size * share, -back * size * (1 - share), variance)


def first_looks(
    evaluations: int, data_variance: float, start: str = "zero", highest_level: float | None = None
) -> Looks:  # fmt: skip
    """A table to begin tuning with: levels in equal ratios, and the trends that tuned tables of any task show.

    They perturb ever less than the level that the network is told (from 0.85 to 0.15 of it), step ever further, and
    trust the measurement more than s^2 p / (s^2 + p) does.

    Args:
        evaluations: looks of the table.
        data_variance: p of the prior.
        start: ``"zero"`` or ``"smooth"``.
        highest_level: of the first look; default 20, after a smooth start 1.2. What is hidden in one large piece needs
            more: nothing near it says what it is.
    """
    check_choice("start", start, ("zero", "smooth"))
    high, low = (20.0, 0.06) if start == "zero" else (1.2, 0.04)
    high = high if highest_level is None else check_positive("highest_level", highest_level)
    along = torch.linspace(0, 1, check_count("evaluations", evaluations), dtype=torch.float64)
    level = high * (low / high) ** along
    noise = level * 0.85 * (0.15 / 0.85) ** along
    weight = (0.6 + 0.9 * along) if start == "zero" else (0.25 + 0.95 * along)
    trust = (1 + 2 * along) if start == "zero" else torch.full_like(along, 4)
    variance = trust * level.square() * data_variance / (level.square() + data_variance)
    return Looks(level, noise, weight, torch.full_like(along, 0.2 if start == "zero" else 0.0), variance)


def resample(looks: Looks, evaluations: int) -> Looks:
    """The table at another length: every column interpolated linearly, positive ones in logarithm."""
    count, old = check_count("evaluations", evaluations), len(looks)
    position = torch.linspace(0, old - 1, count, dtype=torch.float64)
    below = position.floor().long().clamp(max=max(old - 2, 0))
    above, fraction = (below + 1).clamp(max=old - 1), position - below
    columns = {}
    for name in COLUMNS:
        values = getattr(looks, name)
        values = values.log() if name in _POSITIVE else values
        mixed = (1 - fraction) * values[below] + fraction * values[above]
        columns[name] = mixed.exp() if name in _POSITIVE else mixed
    return Looks(**columns)


def unrolled_chain(
    problem: Problem, prior: Prior, columns: Mapping[str, Tensor], start: str, seeds: Tensor, *,
    recompute: bool = False, autocast: bool = False,
) -> Tensor:  # fmt: skip
    """The estimate of a plan with these looks (equation of :class:`rmp_fast.schedules.Looks`), differentiable in them.

    Of a nonlinear operator the derivative leaves out how its Jacobian changes with the image.

    Args:
        problem: images, only for their shape, and measurements.
        prior: a prior whose denoiser autograd can follow.
        columns: the table, one (L,) tensor per name of :data:`COLUMNS`.
        start: ``"zero"`` or ``"smooth"``.
        seeds: (B,) int64, as of :meth:`rmp_fast.Plan.execute`.
        recompute: keep no network activations; every look is computed again in the backward pass.
        autocast: run the network in bfloat16.

    Raises:
        ValueError: a smooth start for an operator that is not linear.
    """
    shape, dtype = tuple(problem.images.shape), problem.images.dtype
    op, y, sy = problem.op, problem.y, problem.noise_std
    form = op.form(shape, y.device, dtype) if isinstance(op, LinearOperator) else None
    mean = torch.zeros(shape, dtype=dtype, device=y.device)
    if start == "smooth":
        if not isinstance(op, LinearOperator):
            raise ValueError(f"`start` must be 'zero' for {op.name!r}: only linear operators have a smooth one")
        mean = smooth_start(y, op, shape)
    before = mean

    def conditioned(mean: Tensor, e: Tensor, level: Tensor, noise: Tensor, variance: Tensor) -> Tensor:
        with torch.autocast(mean.device.type, torch.bfloat16, enabled=autocast):
            denoised = prior.denoise(mean + noise * e, level.expand(shape[0]))
        if isinstance(op, LinearOperator):
            assert form is not None
            return condition(form, op, denoised, y, variance.expand(shape[0]), sy)
        tangent = Linearised(op, denoised)
        ratio = (sy / variance.sqrt()).expand(shape[0])
        return denoised + tangent.adjoint(tangent.iterative_solve(y - op.A(denoised), 1.0, ratio).solution)

    for look in range(len(columns["level"])):
        row = {name: columns[name][look].to(dtype) for name in COLUMNS}
        e = normals(seeds, look, 0, math.prod(shape[1:])).reshape(shape).to(dtype)
        arguments = (mean, e, row["level"], row["noise"], row["variance"])
        target: Tensor = (
            checkpoint(conditioned, *arguments, use_reentrant=False) if recompute else conditioned(*arguments)
        )
        step = row["weight"] * (target - mean) + row["momentum"] * (mean - before)
        before, mean = mean, mean + step
    return mean


def restore(problem: Problem, prior: Prior, **options: Any) -> Tensor:
    """The estimate of a :class:`rmp_fast.Plan` with ``options``, seeds 0, 1, …, for the problem's measurements.

    A nonlinear operator takes the guidance ``gauss_newton`` unless ``options`` name another.
    """
    if not problem.op.linear:
        options = {"guidance": "gauss_newton"} | options
    return Plan(problem.op, prior, tuple(problem.images.shape), problem.noise_std, **options).execute(problem.y).mean


def is_differentiable(prior: Prior, shape: tuple[int, ...]) -> bool:
    """Whether autograd can follow ``prior.denoise`` on images of ``shape``, by trying."""
    x = torch.zeros((1, *shape[1:]), requires_grad=True)
    try:
        with torch.enable_grad():
            denoised = prior.denoise(x, torch.ones(1))
            (gradient,) = torch.autograd.grad(denoised.sum(), x, allow_unused=True)
    except RuntimeError:
        return False
    return gradient is not None


def tune_looks(
    problems: Callable[[int], Problem],
    prior: Prior,
    looks: Looks,
    *,
    start: str = "zero",
    steps: int = 200,
    learning_rate: float = 0.05,
    seed: int = 0,
    recompute: bool = False,
    autocast: bool = False,
    progress: Callable[[int, float], None] | None = None,
) -> Tuned:
    """Adam on every number of the table, for the mean PSNR; the learning rate falls to a twentieth along a cosine.

    Args:
        problems: step -> the problem of that step, with images and measurements of its own.
        prior: one that :func:`is_differentiable`.
        looks: the table to begin with.
        start: ``"zero"`` or ``"smooth"``.
        steps: of Adam.
        learning_rate: of log level, log noise, log variance, weight and momentum alike.
        seed: of the noise in the looks; the same arguments give the same table.
        recompute: as :func:`unrolled_chain`.
        autocast: run the network in bfloat16.
        progress: called with every step's number and mean PSNR in dB.

    Raises:
        ValueError: the prior cannot be differentiated, or the chain left the finite range.
    """
    check_choice("start", start, ("zero", "smooth"))
    check_positive("learning_rate", learning_rate)
    free = {}
    for name in COLUMNS:
        column: Tensor = getattr(looks, name)
        column = column.clamp_min(1e-6).log() if name in _POSITIVE else column.clone()
        free[name] = column.requires_grad_()
    optimiser = torch.optim.Adam(free.values(), lr=learning_rate, betas=(0.9, 0.95))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, check_count("steps", steps), learning_rate / 20)
    history: list[float] = []
    for step in range(steps):
        problem = problems(step)
        batch = problem.images.shape[0]
        if step == 0 and not is_differentiable(prior, tuple(problem.images.shape)):
            raise ValueError(f"the prior {prior.name!r} cannot be differentiated: tune it with search_looks")
        seeds = torch.arange(batch) + (seed * steps + step) * batch
        columns = {name: value.exp() if name in _POSITIVE else value for name, value in free.items()}
        estimate = unrolled_chain(problem, prior, columns, start, seeds, recompute=recompute, autocast=autocast)
        loss = -psnr(problem.images, estimate).mean()
        if not bool(torch.isfinite(loss)):
            raise ValueError(
                f"the chain left the finite range in step {step}: lower `learning_rate`, {learning_rate:g}"
            )
        optimiser.zero_grad()
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(free.values(), 2.0)
        optimiser.step()
        schedule.step()
        history.append(-loss.item())
        if progress is not None:
            progress(step + 1, history[-1])
    best = {name: value.detach() for name, value in free.items()}
    return Tuned(Looks(**{n: v.exp() if n in _POSITIVE else v for n, v in best.items()}), start, history)


def search_looks(
    problem: Problem,
    prior: Prior,
    evaluations: int,
    *,
    start: str = "zero",
    trials: int = 60,
    seed: int = 0,
    progress: Callable[[int, float], None] | None = None,
) -> Tuned:
    """Search by optuna for priors without gradients: top and bottom level, looks per level, relaxation and p.

    Args:
        problem: images and measurements that every trial restores.
        prior: any.
        evaluations: L, looks of the chain.
        start: ``"zero"`` or ``"smooth"``.
        trials: chains to try; the first is the default one.
        seed: of the search.
        progress: called with every trial's number and the best mean PSNR so far.

    Raises:
        RuntimeError: optuna is not installed.
    """
    try:
        optuna = importlib.import_module("optuna")
    except ImportError as error:
        raise RuntimeError("the search needs optuna: pip install 'rmp_fast[tune]'") from error
    check_count("trials", trials)
    counts = [n for n in (1, 2) if check_count("evaluations", evaluations) % n == 0]
    history: list[float] = []

    def table(values: Mapping[str, Any]) -> Looks:
        grid = schedules.log(evaluations // values["inner_steps"], values["low"], values["high"])
        return looks_of(grid, values["data_variance"], values["inner_steps"], values["relaxation"])

    def objective(trial: Any) -> float:
        values = {
            "high": trial.suggest_float("high", 1.0, 80.0, log=True),
            "low": trial.suggest_float("low", 0.01, 0.2, log=True),
            "inner_steps": trial.suggest_categorical("inner_steps", counts),
            "relaxation": trial.suggest_float("relaxation", 0.6, 2.0),
            "data_variance": trial.suggest_float("data_variance", 0.02, 4.0, log=True),
        }
        estimate = restore(problem, prior, looks=table(values), start=start)
        result = float(psnr(problem.images, estimate.to(problem.images.dtype)).mean())
        history.append(max([result, *history[-1:]]))
        if progress is not None:
            progress(len(history), history[-1])
        return result

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=seed))
    p = min(max(prior.data_variance, 0.02), 4.0)
    study.enqueue_trial({"high": 20.0, "low": 0.05, "inner_steps": counts[-1], "relaxation": 1.4, "data_variance": p})
    study.optimize(objective, n_trials=trials)
    return Tuned(table(study.best_params), start, history)
