"""The kernels of conjugate gradients and of smooth starts, which processors alone have, against float64 formulas."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from kernel_paths import kernels, poisoned
from step_problem import assert_close
from test_kernels import CPU_PATHS, IMAGE_SHAPES
from torch import Tensor, nn

from rmp_fast import ops
from rmp_fast.operators import conjugate_gradients

PROCESSOR_PATHS = [parameter for parameter in CPU_PATHS if parameter.values[0] != "cuda"]


@pytest.fixture(params=PROCESSOR_PATHS)
def path(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a.double() * b.double()).flatten(1).sum(1)


def _like(x: Tensor, per_item: Tensor) -> Tensor:
    return per_item.reshape(-1, *[1] * (x.ndim - 1))


@pytest.mark.parametrize("shape", [(3, 1), (2, 37), (3, 3, 37, 41), (1, 9000), (0, 5), (2, 0)], ids=str)
def test_conjugate_step(path: str, shape: tuple[int, ...]) -> None:
    direction, solution, residual = (torch.randn(shape) for _ in range(3))
    image = 0.5 * direction + 0.1 * torch.randn(shape)
    product, squares, least = _dot(residual, direction).abs(), _dot(residual, residual), torch.zeros(shape[0]).double()
    curvature = _dot(direction, image)
    step = _like(residual, torch.where(curvature > 0, product / curvature, 0))
    expected = solution + step * direction, residual - step * image
    made = [t.clone() for t in (solution, residual, squares)]
    kernels(path).conjugate_step(direction, image, *made, product, least)
    # A rounded quotient times a number, and one sum more.
    for found, wanted in zip(made, expected, strict=False):
        assert_close(found, wanted, 3e-7)
    # Sums in double of at most some thousand squares, in another order.
    torch.testing.assert_close(made[2], _dot(made[1], made[1]), rtol=1e-12, atol=0)


@pytest.mark.parametrize("preconditioned", [False, True])
def test_conjugate_turn(path: str, preconditioned: bool) -> None:
    direction, residual = torch.randn(3, 2, 67, 41), torch.randn(3, 2, 67, 41)
    towards = residual + 0.1 * torch.randn(residual.shape) if preconditioned else residual
    before = torch.tensor([2.0, 0.0, 300.0], dtype=torch.float64)
    product, squares = before.clone(), _dot(residual, residual)
    share = torch.where(before > 0, _dot(residual, towards) / before, 0)
    expected = towards + _like(residual, share) * direction
    kernels(path).conjugate_turn(direction, towards, residual, squares, product)
    # As for the step: a rounded quotient times a number, and one sum more; and sums in double.
    assert_close(direction, expected, 3e-7)
    torch.testing.assert_close(product, _dot(residual, towards), rtol=1e-12, atol=0)


def test_items_at_rest_and_without_curvature_stay_and_what_is_no_number_shows(path: str) -> None:
    direction, image, residual = torch.ones(4, 20), torch.ones(4, 20), torch.ones(4, 20)
    image[1] = 0
    image[3, 7] = torch.nan
    solution, squares = torch.full((4, 20), 5.0), _dot(residual, residual)
    least = torch.tensor([20.0, 0.0, 0.0, 0.0], dtype=torch.float64)
    kernels(path).conjugate_step(direction, image, solution, residual, squares, squares.clone(), least)
    assert torch.equal(solution[:2], torch.full((2, 20), 5.0))
    assert torch.equal(residual[:2], torch.ones(2, 20))
    assert torch.equal(solution[2], torch.full((20,), 6.0))
    assert bool(solution[3].isnan().all())


@pytest.mark.parametrize("shape", [*IMAGE_SHAPES, (1, 1, 1, 300), (2, 1, 70, 1), (1, 2, 97, 33)], ids=str)
def test_biharmonic(path: str, shape: tuple[int, ...]) -> None:
    x, plus, out = torch.randn(shape), torch.randn(shape), poisoned(shape)

    def laplacian(x: Tensor) -> Tensor:
        if not x.numel():
            return x
        weights = torch.tensor([[0.0, 1, 0], [1, -4, 1], [0, 1, 0]], dtype=torch.float64)
        planes = nn.functional.pad(x.reshape(-1, 1, *x.shape[2:]), (1, 1, 1, 1), mode="replicate")
        return nn.functional.conv2d(planes, weights[None, None]).reshape(x.shape)

    expected = plus.double() + 0.02 * laplacian(laplacian(x.double()))
    kernels(path).biharmonic(x, 0.02, plus, out)
    # Some ten roundings of numbers that are at most 64 * 0.02 times as large as those of x.
    assert_close(out, expected, 1e-6)
    kernels(path).biharmonic(x, 0.02, plus, plus)
    assert torch.equal(plus, out)
    assert_close(
        ops.biharmonic(x.double(), 0.02, torch.zeros(shape).double()), 0.02 * laplacian(laplacian(x.double())), 1e-12
    )


def test_any_number_of_threads_and_an_item_alone(path: str, threads: Callable[[int], None]) -> None:
    on, x = kernels(path), torch.randn(4, 2, 3, 90, 131, generator=torch.Generator().manual_seed(0))

    def everything(x: Tensor) -> list[Tensor]:
        direction, image, solution, residual = (t.clone() for t in x)
        squares, product = _dot(residual, residual), _dot(residual, direction).abs()
        on.conjugate_step(direction, image, solution, residual, squares, product, torch.zeros_like(squares))
        on.conjugate_turn(direction, image, residual, squares, product)
        out = poisoned(image.shape)
        on.biharmonic(image, 0.02, residual, out)
        return [direction, solution, residual, squares, product, out]

    made = []
    for count in (1, 2, 4):
        threads(count)
        made.append(everything(x))
    for other in made[1:]:
        assert all(torch.equal(a, b) for a, b in zip(made[0], other, strict=True))
    assert all(torch.equal(a[1:], b) for a, b in zip(made[0], everything(x[:, 1:]), strict=True))


@pytest.mark.parametrize("preconditioned", [False, True])
@torch.no_grad()
def test_solves_as_in_plain_torch(preconditioned: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    factors = torch.randn(3, 40, 40, generator=generator, dtype=torch.float64)
    scale = torch.logspace(0, 1, 40, dtype=torch.float64)
    matrices = scale[:, None] * (factors @ factors.mT / 40 + torch.eye(40)) * scale
    rhs = torch.randn(3, 5, 8, generator=generator, dtype=torch.float64)
    rhs[1] = 0

    def solve(dtype: torch.dtype, right: Tensor) -> Tensor:
        g, diagonal = matrices.to(dtype), matrices.diagonal(dim1=1, dim2=2).to(dtype)
        precondition = (lambda v: (v.flatten(1) / diagonal).reshape(v.shape)) if preconditioned else None

        def gram(v: Tensor) -> Tensor:
            return torch.einsum("bij,bj->bi", g, v.flatten(1)).reshape(v.shape)

        return conjugate_gradients(gram, right.to(dtype), 12, precondition).solution

    expected = solve(torch.float64, rhs)
    # Twelve steps grow a rounding by at most the condition number, some 1e3.
    assert_close(solve(torch.float32, rhs), expected, 1e-4)
    strided = rhs.float().mT.contiguous().mT
    assert torch.equal(solve(torch.float32, strided), solve(torch.float32, rhs))
    assert torch.equal(solve(torch.float32, rhs)[1], torch.zeros(5, 8))
