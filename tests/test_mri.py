"""MRI against dense matrices of the centred Fourier transform, its sampling patterns and coils."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

import rmp_fast as rmp
from rmp_fast.operators import MRI, Iterative, Spectral, cartesian_mask, coil_maps, for_task, random_mask


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def centred_matrix(n: int) -> np.ndarray:
    """F[k, x] = exp(-2 pi i (k - n // 2) (x - n // 2) / n) / sqrt(n)."""
    position = np.arange(n) - n // 2
    return np.exp(-2j * np.pi * np.outer(position, position) / n) / math.sqrt(n)


def relative(a: Tensor, b: Tensor) -> float:
    return float((a.double() - b.double()).norm() / b.double().norm())


@pytest.mark.parametrize("size", [(4, 6), (5, 7), (1, 8), (6, 1), (3, 4)])
@pytest.mark.parametrize("coils", [0, 3])
@pytest.mark.parametrize("channels", [1, 2])
def test_mri_is_the_centred_transform_of_every_coil(size: tuple[int, int], coils: int, channels: int) -> None:
    mask = random_mask(size, 0.4, seed=3)
    maps = coil_maps(coils, size) if coils else None
    x = noise(2, channels, *size)
    y = MRI(mask, maps).A(x)
    rows, columns = (centred_matrix(n) for n in size)
    for item in range(2):
        image = x[item, 0].numpy() + (1j * x[item, 1].numpy() if channels == 2 else 0)
        for coil in range(max(coils, 1)):
            weighted = image if maps is None else maps[coil].numpy() * image
            expected = np.where(mask.numpy(), rows @ weighted @ columns.T, 0)
            got = y[item] if maps is None else y[item, :, coil]
            np.testing.assert_allclose(got[0].numpy() + 1j * got[1].numpy(), expected, atol=1e-13)


def test_a_real_image_is_a_complex_one_without_imaginary_part() -> None:
    op, x = MRI(random_mask((5, 8), 0.5)), noise(2, 1, 5, 8)
    assert relative(op.A(x), op.A(torch.cat([x, torch.zeros_like(x)], 1))) <= 1e-14
    y = noise(2, 2, 5, 8, seed=1)
    assert torch.equal(op.adjoint(y, x.shape), op.adjoint(y)[:, :1])


def test_samples_tell_where_an_item_has_its_own_mask_and_maps() -> None:
    masks = random_mask((3, 5, 6), 0.5)
    maps = coil_maps(2, (5, 6)) * torch.arange(1, 4).reshape(3, 1, 1, 1)
    x = noise(3, 2, 5, 6)
    together = MRI(masks, maps).A(x)
    for k in range(3):
        assert relative(together[k : k + 1], MRI(masks[k], maps[k]).A(x[k : k + 1])) <= 1e-14
    assert relative(MRI(masks[:1], maps[:1]).A(x), MRI(masks[0], maps[0]).A(x)) <= 1e-14


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_real_image_is_found_from_a_little_more_than_half_of_its_frequencies(dtype: torch.dtype) -> None:
    size = (6, 7)
    mask = torch.zeros(size, dtype=torch.bool)
    mask[:, : 7 // 2 + 1] = True
    op, x = MRI(mask), noise(2, 1, *size).to(dtype)
    solved = op.gram_solve(op.A(x), 1.0, 0.0, x.shape)
    assert relative(op.adjoint(solved, x.shape), x) <= {torch.float32: 1e-6, torch.float64: 1e-14}[dtype]


def test_what_was_not_sampled_does_not_matter() -> None:
    op = MRI(random_mask((5, 6), 0.5))
    y = noise(1, 2, 5, 6)
    with_rubbish = torch.where(op.mask, y, torch.nan)
    assert torch.equal(op.adjoint(with_rubbish), op.adjoint(y))


def test_mri_keeps_its_own_copies() -> None:
    mask, maps, x = random_mask((4, 5), 0.5), coil_maps(2, (4, 5)), noise(1, 2, 4, 5)
    op = MRI(mask, maps)
    before = op.A(x)
    mask.zero_()
    maps.zero_()
    assert torch.equal(op.A(x), before)


@pytest.mark.parametrize("pattern", ["random", "equispaced"])
@pytest.mark.parametrize(
    ("width", "acceleration", "fraction"), [(64, 4, 0.08), (37, 3, 0.1), (10, 1, 0.2), (7, 7, 0.0)]
)
def test_cartesian_mask_samples_whole_columns_as_many_as_asked(
    pattern: str, width: int, acceleration: float, fraction: float
) -> None:
    mask = cartesian_mask((5, width), acceleration, fraction, pattern, seed=4)
    assert mask.dtype == torch.bool
    assert mask.shape == (5, width)
    assert (mask == mask[:1]).all()
    assert int(mask[0].sum()) == round(width / acceleration)
    middle = max(1, round(width * fraction))
    assert mask[0, width // 2]
    first = width // 2 - middle // 2
    assert mask[0, first : first + middle].all()
    assert torch.equal(mask, cartesian_mask((5, width), acceleration, fraction, pattern, seed=4))


def test_cartesian_masks_differ_by_item_and_seed() -> None:
    masks = cartesian_mask((3, 4, 64))
    assert masks.shape == (3, 4, 64)
    assert not torch.equal(masks[0], masks[1])
    assert torch.equal(masks[0], cartesian_mask((4, 64)))
    assert not torch.equal(masks[0], cartesian_mask((4, 64), seed=1))


def test_equispaced_columns_are_even() -> None:
    mask = cartesian_mask((1, 256), 4, 0.08, "equispaced")[0]
    sampled = mask[: 256 // 2 - 10].nonzero().flatten()
    gaps = sampled.diff()
    # 44 of the 236 columns outside the middle: 5.4 apart, in whole columns.
    assert set(gaps.tolist()) <= {5, 6}


def test_coil_maps_are_smooth_and_share_the_image() -> None:
    maps = coil_maps(6, (33, 48))
    torch.testing.assert_close(maps.abs().square().sum(0), torch.ones(33, 48, dtype=torch.float64))
    # The nearest coil is half the field's half-width outside: over a pixel, 1/23 or 1/16 of that half-width, phase and
    # magnitude change little.
    assert (maps.diff(dim=2).abs().amax((1, 2)) < 0.2).all()
    assert (maps.diff(dim=1).abs().amax((1, 2)) < 0.3).all()
    assert len({tuple(np.unravel_index(int(m.abs().argmax()), m.shape)) for m in maps}) == 6
    assert coil_maps(1, (1, 1)).shape == (1, 1, 1)


def test_more_coils_find_what_fewer_leave_aliased() -> None:
    x = noise(1, 2, 16, 24)
    mask = cartesian_mask((16, 24), 3, 0.1, "equispaced")
    single, several = MRI(mask), MRI(mask, coil_maps(8, (16, 24)), iterations=200)
    errors = [relative(op.adjoint(op.gram_solve(op.A(x), 1.0, 1e-3)), x) for op in (single, several)]
    assert errors[0] > 0.5
    assert errors[1] < 0.2


@pytest.mark.parametrize(
    ("mask", "iterations", "closed"),
    [
        (cartesian_mask((6, 8), 2), None, True),
        (cartesian_mask((8, 6), 2).mT, None, True),
        (torch.ones(6, 8), None, True),
        (random_mask((6, 8), 0.5), None, False),
        (cartesian_mask((6, 8), 2), 12, False),
    ],
)
def test_coils_have_a_closed_form_where_whole_lines_are_sampled(
    mask: Tensor, iterations: int | None, closed: bool
) -> None:
    form = MRI(mask, coil_maps(2, (6, 8)), iterations).form((1, 2, 6, 8), torch.device("cpu"), torch.float32)
    assert isinstance(form, Spectral) == closed
    if isinstance(form, Iterative):
        assert form.iterations == (iterations or 30)


def test_coils_of_a_large_image_are_not_decomposed() -> None:
    # 513 lines of 513 pixels would be matrices of 2^27 numbers.
    op = MRI(cartesian_mask((513, 513)), coil_maps(1, (513, 513)))
    assert isinstance(op.form((1, 2, 513, 513), torch.device("cpu"), torch.float32), Iterative)


def test_the_task_has_a_quarter_of_the_columns() -> None:
    op = for_task("mri", (2, 1, 16, 64), seed=3)
    assert isinstance(op, MRI)
    assert int(op.mask.sum()) == 16 * 16
    assert torch.equal(op.mask, cartesian_mask((16, 64), seed=3))


def denoiser(x: Tensor, s: Tensor) -> Tensor:
    """Smooth, nonlinear, per item, any dtype."""
    s = s.reshape(-1, 1, 1, 1)
    return torch.tanh((x + s * (x + x.roll(1, -1)) / 2) / (1 + s + s * s))


@pytest.mark.parametrize("backend", ["cpu", "torch"])
@pytest.mark.parametrize("noise_mode", ["control", "antithetic"])
@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("coils", [0, 3])
@pytest.mark.parametrize(
    "mask",
    [
        random_mask((9, 10), 0.5),
        cartesian_mask((9, 10), 2),
        random_mask((2, 9, 10), 0.5),
        cartesian_mask((2, 9, 10), 2),
    ],
    ids=["points", "lines", "points per item", "lines per item"],
)
def test_chain_follows_the_reference(backend: str, noise_mode: str, channels: int, coils: int, mask: Tensor) -> None:
    shape = (2, channels, 9, 10)
    op = MRI(mask, coil_maps(coils, (9, 10)) if coils else None)
    y = op.A(noise(*shape)) + 0.1 * noise(*op.measurement_shape(shape), seed=1)
    prior = rmp.priors.from_denoiser(denoiser, data_variance=0.5)

    def run(which: str) -> Tensor:
        schedule = rmp.schedules.log(4, 0.05, 10.0)
        plan = rmp.Plan(op, prior, shape, 0.1, schedule=schedule, noise=noise_mode, backend=which)
        return plan.execute(y.float()).mean

    # Rounding of a chain of some hundred float32 operations of contraction 1, and of solves of condition about 50.
    assert relative(run(backend), run("reference")) <= 1e-4
