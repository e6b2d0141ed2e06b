"""Phase retrieval against a dense transform; what it cannot tell; alignment; several starts."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from rmp_fast.operators import PhaseRetrieval, align, best_of_starts, for_task


def uniform(*shape: int, seed: int = 0) -> Tensor:
    """On [-1, 1]."""
    return 2 * torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) - 1


def on_black(size: tuple[int, int], top: int, left: int, seed: int = 0) -> Tensor:
    """(1, 2, H, W): a 3x4 patch on black."""
    image = torch.full((1, 2, *size), -1.0, dtype=torch.float64)
    image[:, :, top : top + 3, left : left + 4] = uniform(1, 2, 3, 4, seed=seed)
    return image


@pytest.mark.parametrize(("size", "oversampling", "padded"), [
    ((4, 5), 2.0, (8, 10)), ((4, 5), 1.5, (6, 8)), ((3, 7), 1.3, (4, 9)), ((1, 6), 1, (1, 6)),
])  # fmt: skip
def test_it_is_the_magnitude_of_a_padded_orthonormal_transform(
    size: tuple[int, int], oversampling: float, padded: tuple[int, int]
) -> None:
    x, op = uniform(2, 2, *size), PhaseRetrieval(oversampling)
    y = op.A(x)
    assert y.shape == (2, 2, *padded)
    rows, columns = (
        np.exp(-2j * np.pi * np.outer(np.arange(n) - n // 2, np.arange(m)) / n) / np.sqrt(n)
        for n, m in zip(padded, size, strict=True)
    )
    expected = np.abs(rows @ ((x.numpy() + 1) / 2) @ columns.T)
    np.testing.assert_allclose(y.numpy(), expected, atol=1e-14)
    assert float(y.norm()) == pytest.approx(float(((x + 1) / 2).norm()))


@pytest.mark.parametrize("oversampling", [1.0, 1.3, 1.5, 2.0, 3.7])
def test_the_image_is_found_from_the_size_of_its_measurement(oversampling: float) -> None:
    op = PhaseRetrieval(oversampling)
    for n in range(1, 40):
        assert op.image_shape(op.measurement_shape((2, 3, n, 41 - n))) == (2, 3, n, 41 - n)


def test_what_magnitudes_cannot_tell() -> None:
    op, x = PhaseRetrieval(), on_black((9, 10), 2, 3)
    for other in (x.flip((2, 3)), on_black((9, 10), 5, 0), -x - 2):
        torch.testing.assert_close(op.A(other), op.A(x))
    assert float((op.A(x.flip(2)) - op.A(x)).norm()) > 0.1


def test_the_gradient_of_black_is_zero() -> None:
    x = torch.full((1, 1, 4, 4), -1.0, requires_grad=True)
    PhaseRetrieval().A(x).sum().backward()
    assert x.grad is not None
    assert not x.grad.any()


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("shift", [(0, 0), (3, -2), (-4, 5), (-8, 0), (0, 9)])
def test_align_recovers_shift_and_turn(shift: tuple[int, int], turned: bool) -> None:
    truth = on_black((20, 23), 9, 9, seed=1)
    moved = on_black((20, 23), 9 - shift[0], 9 - shift[1], seed=1)
    estimate = moved.flip((2, 3)) if turned else moved
    image, found, was_turned, negated = align(estimate, truth)
    torch.testing.assert_close(image, truth)
    assert bool(was_turned) == turned
    assert not negated
    if not turned:
        assert found.tolist() == [list(shift)]


def test_align_finds_the_least_error_of_all_candidates() -> None:
    truth, estimate = uniform(2, 2, 4, 5), uniform(2, 2, 4, 5, seed=1)
    image, shift, turned, negated = align(estimate, truth, sign=True)
    for item in range(2):
        errors = {}
        for sign in (1, -1):
            for flip in (False, True):
                light = sign * (estimate[item] + 1) / 2
                light = light.flip((1, 2)) if flip else light
                for down in range(-4, 4):
                    for right in range(-5, 5):
                        moved = torch.zeros_like(light)
                        for i in range(4):
                            for j in range(5):
                                if 0 <= i - down < 4 and 0 <= j - right < 5:
                                    moved[:, i, j] = light[:, i - down, j - right]
                        errors[sign < 0, flip, down, right] = float((2 * moved - 1 - truth[item]).square().sum())
        best = min(errors, key=lambda key: errors[key])
        assert best == (bool(negated[item]), bool(turned[item]), *shift[item].tolist())
        assert float((image[item] - truth[item]).square().sum()) == pytest.approx(errors[best])


def test_align_turns_the_sign_only_where_asked() -> None:
    truth = on_black((8, 9), 2, 3)
    assert align(-truth - 2, truth, sign=True).negated.all()
    torch.testing.assert_close(align(-truth - 2, truth, sign=True).image, truth)
    assert not align(-truth - 2, truth).negated.any()


def test_align_leaves_what_needs_nothing_and_treats_items_alone() -> None:
    truth = torch.cat([uniform(1, 2, 6, 7), on_black((6, 7), 1, 1), torch.full((1, 2, 6, 7), -1.0).double()])
    estimate = truth.clone()
    estimate[0] = torch.nan
    image, shift, turned, _ = align(estimate.float(), truth.float())
    assert image.dtype == torch.float32
    assert torch.isnan(image[0]).all()
    torch.testing.assert_close(image[1:], truth[1:].float())
    assert not shift.any()
    assert not turned.any()
    assert align(estimate[:0], truth[:0]).image.shape == (0, 2, 6, 7)


def test_best_of_starts_keeps_the_least_residual_of_every_item() -> None:
    op, truth = PhaseRetrieval(), uniform(3, 1, 5, 5)
    y = op.A(truth)
    error = torch.tensor([[0.3, 0.1, 0.2], [0.1, 0.3, 0.4], [0.2, 0.2, 0.05]])  # of start k and item b
    seen = []
    buffer = torch.empty_like(truth)

    def estimate(seeds: Tensor) -> Tensor:
        k = len(seen)
        seen.append(seeds.clone())
        return buffer.copy_(truth + error[k].reshape(3, 1, 1, 1) * uniform(3, 1, 5, 5, seed=9))

    best = best_of_starts(op, y, estimate, starts=3, seeds=torch.tensor([5, 0, -2]))
    assert best.start.tolist() == [1, 0, 2]
    expected = truth + torch.tensor([0.1, 0.1, 0.05]).reshape(3, 1, 1, 1) * uniform(3, 1, 5, 5, seed=9)
    torch.testing.assert_close(best.image, expected)
    residual = (op.A(best.image) - y).flatten(1).norm(dim=1)
    torch.testing.assert_close(best.residual, residual)
    torch.testing.assert_close(best.residuals.amin(0), residual)
    assert seen[0].tolist() == [5, 0, -2]
    assert all(len({int(seeds[b]) for seeds in seen}) == 3 for b in range(3))


def test_best_of_starts_prefers_any_finite_image() -> None:
    op, truth = PhaseRetrieval(), uniform(2, 1, 4, 4)
    starts = iter([torch.full_like(truth, torch.nan), torch.cat([torch.zeros(1, 1, 4, 4), truth[1:] * torch.inf])])
    best = best_of_starts(op, op.A(truth), lambda seeds: next(starts).to(truth), starts=2)
    assert best.start.tolist() == [1, 0]
    assert torch.equal(best.image[0], torch.zeros(1, 4, 4, dtype=torch.float64))
    assert torch.isnan(best.image[1]).all()
    assert torch.isinf(best.residual).tolist() == [False, True]


def test_an_items_starts_depend_on_its_own_seed_alone() -> None:
    op, y = PhaseRetrieval(), uniform(3, 1, 8, 8).abs()

    def estimate(seeds: Tensor) -> Tensor:
        return torch.stack([uniform(1, 4, 4, seed=int(s) % 1009) for s in seeds])

    together = best_of_starts(op, y, estimate, seeds=torch.tensor([3, 4, 5]))
    alone = best_of_starts(op, y[1:2], estimate, seeds=torch.tensor([4]))
    assert torch.equal(alone.image[0], together.image[1])


def test_the_task_pads_to_twice_the_size() -> None:
    assert for_task("phase_retrieval", (1, 3, 32, 30)).measurement_shape((1, 3, 32, 30)) == (1, 3, 64, 60)
