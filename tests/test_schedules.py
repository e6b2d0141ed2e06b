import math
from collections.abc import Callable

import pytest
import torch

from rmp_fast import presets, schedules


def test_log_has_equal_ratios_between_its_ends() -> None:
    levels = schedules.log(10, 0.05, 20.0).levels
    assert levels.dtype == torch.float64
    assert levels.shape == (11,)
    torch.testing.assert_close(levels[1:] / levels[:-1], torch.full((10,), 400**0.1, dtype=torch.float64))
    assert math.isclose(levels[0], 0.05)
    assert math.isclose(levels[-1], 20)


def test_vp_is_the_ddpm_grid_in_noise_level_coordinates() -> None:
    levels = schedules.vp(999).levels
    abar = (1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)).cumprod(0)
    torch.testing.assert_close(levels, ((1 - abar) / abar).sqrt())
    assert schedules.vp(400).steps == 400


def test_karras_is_linear_in_the_root() -> None:
    root = schedules.karras(8, 0.1, 10.0, rho=3.0).levels ** (1 / 3)
    torch.testing.assert_close(root.diff(), root.diff()[:1].expand(8))


@pytest.mark.parametrize("make", [schedules.log, schedules.ve, schedules.vp, schedules.karras])
def test_one_step_is_enough(make: Callable[..., schedules.Schedule]) -> None:
    assert make(1).steps == 1


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: schedules.log(0), "`steps` must be at least 1, got 0"),
        (lambda: schedules.log(5, 2.0, 1.0), "`low` must be below `high`, got low=2.0 and high=1.0"),
        (lambda: schedules.log(5, -1.0), "`low` must be a finite number > 0, got -1.0"),
        (lambda: schedules.annealed(0), "`looks` must be at least 1, got 0"),
        (lambda: schedules.annealed(3, data_variance=0.0), "`data_variance` must be a finite number > 0, got 0.0"),
        (lambda: schedules.vp(1000), "`steps` must be below `timesteps` = 1000, got 1000"),
        (lambda: schedules.Schedule(torch.tensor([1.0, 1.0])), "strictly increasing"),
        (lambda: schedules.Schedule(torch.tensor([0.0, 1.0])), "positive"),
        (lambda: schedules.Schedule(torch.tensor([1.0])), "at least 2 noise levels, got 1"),
    ],
)
def test_refusals(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


COLUMNS = {
    "level": [2.0, 0.5],
    "noise": [1.0, 0.0],
    "weight": [1.0, 0.5],
    "momentum": [0.0, 0.3],
    "variance": [0.5, 0.1],
}


def test_looks_are_float64_columns() -> None:
    looks = schedules.Looks(**COLUMNS)
    assert len(looks) == 2
    assert looks.weight.dtype == torch.float64
    assert looks.momentum.tolist() == [0.0, 0.3]


def test_annealed_looks_see_the_whole_noise_of_their_level() -> None:
    looks = schedules.annealed(4, 0.05, 5.0, data_variance=0.6)
    torch.testing.assert_close(looks.level[:-1] / looks.level[1:], torch.full((3,), 100 ** (1 / 3)).double())
    assert (looks.level[0].item(), looks.level[-1].item()) == pytest.approx((5.0, 0.05))
    torch.testing.assert_close(looks.noise, looks.level)
    torch.testing.assert_close(1 / looks.variance, 1 / looks.level**2 + 1 / 0.6)
    assert looks.weight.tolist() == [1.0] * 4
    assert looks.momentum.tolist() == [0.0] * 4
    assert schedules.annealed(1).level.tolist() == [0.05]


@pytest.mark.parametrize(
    ("column", "values", "message"),
    [
        ("level", [0.0, 1.0], "`level` must be positive"),
        ("variance", [0.1, -1.0], "`variance` must be positive"),
        ("noise", [-0.1, 1.0], "`noise` must not be negative"),
        ("weight", [float("nan"), 1.0], "`weight` must hold finite numbers"),
        ("momentum", [], "`momentum` must hold finite numbers"),
        ("momentum", [0.1], "the columns must have one length"),
    ],
)
def test_looks_refuse(column: str, values: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        schedules.Looks(**{**COLUMNS, column: values})


def test_vp_is_interpolated_in_log_s() -> None:
    whole = schedules.vp(999).levels
    torch.testing.assert_close(schedules.vp(2).levels[1], (whole[499] * whole[500]).sqrt(), rtol=1e-12, atol=0)


def test_the_published_grid_is_that_of_ve() -> None:
    levels = presets.paper_ve()["schedule"].levels
    assert (levels[0].item(), levels[-1].item(), len(levels)) == (pytest.approx(0.01), pytest.approx(50.0), 31)
