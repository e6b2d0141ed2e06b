"""Grids of noise levels 0 < s_0 < s_1 < ... < s_T, in float64, for images on [-1, 1]."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from ._checks import check_count, check_positive

__all__ = ["Looks", "Schedule", "annealed", "karras", "log", "ve", "vp"]


@dataclasses.dataclass(frozen=True, eq=False)
class Schedule:
    """Noise levels of a chain.

    Attributes:
        levels: (T + 1,) float64, ascending standard deviations of the noise on images in [-1, 1].
        name: how the grid was made.

    Raises:
        ValueError: if there are fewer than two levels, or they do not increase, or one is not positive and finite.
    """

    levels: Tensor
    name: str = "custom"

    def __post_init__(self) -> None:
        levels = torch.as_tensor(self.levels, dtype=torch.float64).flatten().cpu()
        if levels.numel() < 2:
            raise ValueError(f"`levels` must hold at least 2 noise levels, got {levels.numel()}")
        if not bool(torch.isfinite(levels).all()) or levels[0] <= 0 or not bool((levels.diff() > 0).all()):
            raise ValueError(f"`levels` must be positive, finite and strictly increasing, got {levels.tolist()}")
        object.__setattr__(self, "levels", levels)

    @property
    def steps(self) -> int:
        """T, the number of reverse steps."""
        return self.levels.numel() - 1


@dataclasses.dataclass(frozen=True, eq=False)
class Looks:
    r"""A chain given look by look, as a tuner finds it; it generalises grids, step sizes and relaxation.

    .. math:: \mu_{t+1} = \mu_t + a_t (d_y(\mu_t + n_t e) - \mu_t) + m_t (\mu_t - \mu_{t-1})

    where d_y is the denoised image, the network told level s_t, corrected towards y with variance r2_t.

    Attributes:
        level: (L,) s_t > 0, the noise level that the network is told.
        noise: (L,) n_t >= 0, the standard deviation of the noise that it sees.
        weight: (L,) a_t, how far the mean goes towards d_y.
        momentum: (L,) m_t, the share of the last movement that goes on (Polyak's heavy ball).
        variance: (L,) r2_t > 0, variance per element of x0 given the denoised image.

    Raises:
        ValueError: if the columns differ in length, are empty or not finite, or a sign is wrong.
    """

    level: Tensor
    noise: Tensor
    weight: Tensor
    momentum: Tensor
    variance: Tensor

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            column = torch.as_tensor(getattr(self, field.name), dtype=torch.float64).flatten().cpu()
            if column.numel() == 0 or not bool(torch.isfinite(column).all()):
                raise ValueError(f"`{field.name}` must hold finite numbers, got {column.tolist()}")
            if field.name in ("level", "variance") and not bool((column > 0).all()):
                raise ValueError(f"`{field.name}` must be positive, got {column.tolist()}")
            object.__setattr__(self, field.name, column)
        if not bool((self.noise >= 0).all()):
            raise ValueError(f"`noise` must not be negative, got {self.noise.tolist()}")
        lengths = {field.name: len(getattr(self, field.name)) for field in dataclasses.fields(self)}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"the columns must have one length, got {lengths}")

    def __len__(self) -> int:
        return self.level.numel()


def _check_range(steps: int, low: float, high: float) -> None:
    if isinstance(steps, bool) or not isinstance(steps, int):
        raise TypeError(f"`steps` must be an integer, got {type(steps).__name__}")
    if steps < 1:
        raise ValueError(f"`steps` must be at least 1, got {steps}")
    check_positive("low", low)
    check_positive("high", high)
    if low >= high:
        raise ValueError(f"`low` must be below `high`, got low={low} and high={high}")


def log(steps: int = 10, low: float = 0.05, high: float = 20.0) -> Schedule:
    """Equal ratios: s_k = low (high / low)^(k / T).

    Args:
        steps: T >= 1.
        low, high: s_0 and s_T, standard deviations on [-1, 1].
    """
    _check_range(steps, low, high)
    exponent = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
    return Schedule(low * (high / low) ** exponent, f"log({steps}, {low:g}, {high:g})")


def annealed(looks: int = 100, low: float = 0.05, high: float = 5.0, data_variance: float = 0.25) -> Looks:
    """Looks that forget where the mean was: a_t = 1, m_t = 0 and n_t = s_t, on equal ratios from ``high`` to ``low``.

    Every look sees the last d_y through fresh noise of its whole level, as decoupled annealing does (Zhang, Chu,
    Berner, Meng, Anandkumar, Song, "Improving diffusion inverse problem solving with decoupled noise annealing", 2025,
    arXiv 2407.01521). Slower than a chain whose mean remembers, but it leaves the wrong basins of a nonlinear operator.

    Args:
        looks: L >= 1; a single one is at ``low``.
        low, high: the last and the first level, standard deviations on [-1, 1].
        data_variance: p of the correction's variance r2_t = s_t^2 p / (s_t^2 + p), per element on [-1, 1].

    Raises:
        TypeError: ``looks`` is no integer.
        ValueError: ``looks`` is below 1, the levels are not 0 < ``low`` < ``high``, or ``data_variance`` is not > 0.
    """
    check_count("looks", looks)
    check_positive("data_variance", data_variance)
    level = torch.tensor([low], dtype=torch.float64) if looks == 1 else log(looks - 1, low, high).levels.flip(0)
    ones, square = torch.ones_like(level), level.square()
    return Looks(level, level, ones, 0 * ones, square * data_variance / (square + data_variance))


def ve(steps: int = 30, low: float = 0.01, high: float = 50.0) -> Schedule:
    """The geometric grid of variance-exploding processes (Song and Ermon 2019, arXiv 1907.05600), with their range."""
    _check_range(steps, low, high)
    return Schedule(log(steps, low, high).levels, f"ve({steps}, {low:g}, {high:g})")


def vp(steps: int = 400, beta_min: float = 1e-4, beta_max: float = 0.02, timesteps: int = 1000) -> Schedule:
    """The grid of variance-preserving processes (Ho et al. 2020, arXiv 2006.11239) in noise-level coordinates.

    s(t) = sqrt((1 - abar_t) / abar_t) with the linear betas from ``beta_min`` to ``beta_max`` over ``timesteps``; the
    levels are taken at ``steps`` + 1 equally spaced timesteps from the first to the last, interpolated in log s.
    """
    _check_range(steps, beta_min, beta_max)
    if steps >= timesteps:
        raise ValueError(f"`steps` must be below `timesteps` = {timesteps}, got {steps}")
    alphas = (1 - torch.linspace(beta_min, beta_max, timesteps, dtype=torch.float64)).cumprod(0)
    log_s = 0.5 * ((1 - alphas) / alphas).log()
    position = torch.linspace(0, timesteps - 1, steps + 1, dtype=torch.float64)
    below = position.floor().long().clamp(max=timesteps - 2)
    fraction = position - below
    return Schedule(((1 - fraction) * log_s[below] + fraction * log_s[below + 1]).exp(), f"vp({steps})")


def karras(steps: int = 20, low: float = 0.05, high: float = 20.0, rho: float = 7.0) -> Schedule:
    """s_k = (low^(1/rho) + k/T (high^(1/rho) - low^(1/rho)))^rho (Karras et al. 2022, arXiv 2206.00364, eq. 5)."""
    _check_range(steps, low, high)
    check_positive("rho", rho)
    ramp = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
    levels = (low ** (1 / rho) + ramp * (high ** (1 / rho) - low ** (1 / rho))) ** rho
    return Schedule(levels, f"karras({steps}, {low:g}, {high:g})")
