"""The camera model against explicit sums, its response, its saturation and its random movements."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.signal
import torch
from torch import Tensor

from rmp_fast.operators import Blur, NonlinearBlur, camera_shake, for_task

NUMPY_MODES = {"circular": "wrap", "reflect": "symmetric", "replicate": "edge"}


def uniform(*shape: int, seed: int = 0) -> Tensor:
    """On [-1, 1]."""
    return 2 * torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) - 1


def response(light: float, gamma: float) -> float:
    power, toe = 1 / gamma, 0.004
    return ((light + toe) ** power - toe**power) / ((1 + toe) ** power - toe**power)


def light_of(value: float, gamma: float) -> float:
    """The inverse of ``response``, by bisection."""
    low, high = 0.0, 2.0
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if response(middle, gamma) < value else (low, middle)
    return low


@pytest.mark.parametrize("boundary", ["circular", "reflect", "replicate"])
def test_it_is_the_camera_of_its_definition(boundary: str) -> None:
    kernels, x = uniform(2, 3, 3, 4, seed=1).abs() / 6, uniform(1, 1, 5, 7)
    exposure, gamma, softness = 1.4, 2.0, 0.1
    y = NonlinearBlur(kernels, exposure, gamma, softness, boundary).A(x)[0, 0]
    light = np.vectorize(lambda v: light_of((v + 1) / 2, gamma))(x[0, 0].numpy())
    padded = np.pad(light, [(1, 1), (1, 2)], mode=NUMPY_MODES[boundary])
    blurred = [[scipy.signal.convolve2d(padded, k.numpy(), mode="valid") for k in row] for row in kernels]
    for i in range(5):
        for j in range(7):
            down, right = i / 4 * 1, j / 6 * 2  # in places of the grid
            total = 0.0
            for a in range(2):
                for b in range(3):
                    weight = max(0, 1 - abs(down - a)) * max(0, 1 - abs(right - b))
                    total += weight * blurred[a][b][i, j]
            e = exposure * total
            kept = softness * (math.log1p(math.exp(1 / softness)) - math.log1p(math.exp((1 - e) / softness)))
            assert float(y[i, j]) == pytest.approx(2 * response(kept, gamma) - 1, abs=1e-9)


def test_a_linear_camera_below_saturation_is_a_blur() -> None:
    kernel, x = uniform(3, 3, seed=1).abs() / 9, uniform(2, 3, 8, 9)
    y = NonlinearBlur(kernel, exposure=0.4, gamma=1, softness=0.01).A(x)
    expected = 2 * 0.4 * Blur(kernel, "reflect").A((x + 1) / 2) - 1
    # What saturation still takes at 0.4 of white is 0.01 exp(-60).
    torch.testing.assert_close(y, expected, rtol=0, atol=1e-12)


def test_equal_kernels_in_every_place_are_one_blur() -> None:
    kernel, x = camera_shake(1, 5, 0, (1, 1)), uniform(1, 2, 9, 11)
    torch.testing.assert_close(
        NonlinearBlur(kernel.expand(3, 2, -1, -1)).A(x), NonlinearBlur(kernel[0, 0]).A(x), rtol=0, atol=1e-13
    )


@pytest.mark.parametrize("gamma", [1.0, 1.8, 2.2, 3.0])
def test_without_blur_black_stays_black_and_light_only_rises(gamma: float) -> None:
    op = NonlinearBlur(torch.ones(1, 1), gamma=gamma)
    y = op.A(torch.linspace(-1.2, 1, 56, dtype=torch.float64).reshape(1, 1, 1, -1)).flatten()
    assert float(op.A(torch.full((1, 1, 1, 1), -1.0, dtype=torch.float64))) == pytest.approx(-1, abs=1e-12)
    assert (y.diff() > 0).all()
    assert y[-1] < 1


def test_saturation_ends_at_white_and_its_softness_is_its_width() -> None:
    bright = torch.ones(1, 1, 1, 1, dtype=torch.float64)
    # S ends at 1 + d exp(-1 / d), here 1e-10 above.
    assert float(NonlinearBlur(torch.ones(1, 1), exposure=50).A(bright)) == pytest.approx(1, abs=1e-8)
    # At e = 1, S = 1 - d log 2 but for exp(-1 / d).
    assert float(NonlinearBlur(torch.ones(1, 1), 1.0, 1.0, 0.05).A(bright)) == pytest.approx(
        1 - 2 * 0.05 * math.log(2), abs=1e-8
    )


def test_highlights_lose_what_shadows_keep() -> None:
    x = torch.linspace(-0.9, 0.9, 8, dtype=torch.float64).reshape(1, 1, 1, 8).requires_grad_()
    NonlinearBlur(torch.ones(1, 1), exposure=2.0).A(x).sum().backward()
    assert x.grad is not None
    slopes = x.grad.flatten()
    assert (slopes[:4] > 0.8).all()
    assert (slopes[-2:] < 0.05).all()


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("grid", [(1, 1), (2, 2), (1, 3)])
def test_camera_shake(seed: int, grid: tuple[int, int]) -> None:
    kernels = camera_shake(seed, length=9, rotation=3, grid=grid)
    assert kernels.shape[:2] == grid
    assert kernels.shape[2] == kernels.shape[3]
    assert kernels.shape[2] % 2 == 1
    torch.testing.assert_close(kernels.sum((2, 3)), torch.ones(grid, dtype=torch.float64))
    assert (kernels >= 0).all()
    assert torch.equal(kernels, camera_shake(seed, 9, 3, grid))
    assert not torch.equal(kernels, camera_shake(seed + 1, 9, 3, grid)) or kernels.shape[2] == 1
    position = torch.arange(kernels.shape[2], dtype=torch.float64) - kernels.shape[2] // 2
    # Nothing moves as a whole, and the path of 9 pixels reaches no farther than that, and the turn 3 at an edge.
    assert (kernels.sum(3) @ position).abs().max() < 1e-9
    assert (kernels.sum(2) @ position).abs().max() < 1e-9
    assert kernels.shape[2] <= 2 * (9 + 3) + 1


def test_no_movement_is_no_blur() -> None:
    kernels = camera_shake(3, length=0, rotation=0)
    assert kernels.tolist() == [[[[1.0]], [[1.0]]], [[[1.0]], [[1.0]]]]


def test_a_shift_is_the_same_everywhere_and_a_turn_leaves_the_centre() -> None:
    shifted = camera_shake(2, length=8, rotation=0, grid=(3, 3))
    assert all(torch.equal(shifted[0, 0], k) for row in shifted for k in row)
    turned = camera_shake(2, length=0, rotation=8, grid=(3, 3))
    n = turned.shape[2]
    assert turned[1, 1, n // 2, n // 2] == pytest.approx(1)
    # To the right of the centre a turn moves down or up, below it sideways.
    assert turned[1, 2].sum(0)[n // 2] == pytest.approx(1)
    assert turned[2, 1].sum(1)[n // 2] == pytest.approx(1)
    position = torch.arange(n, dtype=torch.float64)
    spread = (turned[1, 2].sum(1) > 1e-12).double() * position
    assert spread.max() - spread[spread > 0].min() == pytest.approx(8, abs=2)


def test_it_keeps_its_own_kernels() -> None:
    kernels, x = camera_shake(0, 4, 1), uniform(1, 1, 6, 6)
    op = NonlinearBlur(kernels)
    before = op.A(x)
    kernels.zero_()
    assert torch.equal(op.A(x), before)


def test_the_task_shakes_by_a_twentieth_of_the_shorter_side() -> None:
    op = for_task("nonlinear_deblur", (1, 3, 240, 300), seed=2)
    assert isinstance(op, NonlinearBlur)
    assert torch.equal(op.kernels, camera_shake(2, 12, 4))
