"""One property suite for every registered nonlinear operator: a new one joins by a line in CASES."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

import rmp_fast as rmp
from rmp_fast.operators import (
    REGISTRY,
    Linearised,
    LinearOperator,
    NonlinearBlur,
    Operator,
    PhaseRetrieval,
    camera_shake,
    from_callable,
)


def saturated(x: Tensor) -> Tensor:
    """(B, 2, 5, 6) -> (B, 5, 6)."""
    return torch.tanh(2 * x).prod(1) + 0.1 * x.sum(1)


@dataclass(frozen=True)
class Case:
    make: Callable[[], Operator]
    shape: tuple[int, ...]  # of the images, with the batch

    @property
    def label(self) -> str:
        return f"{self.make()!r}-{'x'.join(map(str, self.shape))}".replace(" ", "")


CASES = [
    Case(PhaseRetrieval, (3, 2, 4, 5)),
    Case(lambda: PhaseRetrieval(1.5), (2, 1, 5, 3)),
    Case(lambda: PhaseRetrieval(1), (2, 1, 1, 4)),
    Case(lambda: NonlinearBlur(camera_shake(1, 3, 2)), (3, 2, 6, 7)),
    Case(lambda: NonlinearBlur(camera_shake(2, 6, 3, (1, 3)), 2.0, 1.0, 0.2, "replicate"), (2, 1, 3, 4)),
    Case(lambda: NonlinearBlur(torch.ones(2, 3) / 6, gamma=1.8, boundary="circular"), (2, 1, 1, 5)),
    Case(lambda: from_callable(saturated, (5, 6), (2, 5, 6)), (3, 2, 5, 6)),
]

every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.label)
both_dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])

# Relative to the norms: some tens of roundings, and for the camera those of powers of numbers near 0.
ROUNDING = {torch.float32: 1e-5, torch.float64: 1e-13}


def images(case: Case, dtype: torch.dtype = torch.float64, seed: int = 1) -> Tensor:
    """On [-1.2, 1.2], beyond the range on both sides, as estimates are."""
    generator = torch.Generator().manual_seed(seed)
    return (2.4 * torch.rand(case.shape, generator=generator, dtype=torch.float64) - 1.2).to(dtype)


def relative(a: Tensor, b: Tensor) -> float:
    """The worst item's ||a - b|| / ||b||."""
    a, b = a.detach().double().flatten(1), b.detach().double().flatten(1)
    return float(((a - b).norm(dim=1) / b.norm(dim=1).clamp(min=1e-300)).max())


def test_every_registered_nonlinear_operator_has_a_case() -> None:
    nonlinear = {name for name, operator in REGISTRY.items() if not issubclass(operator, LinearOperator)}
    assert {type(case.make()).name for case in CASES} == nonlinear


@both_dtypes
@every_case
def test_shapes_and_dtypes(case: Case, dtype: torch.dtype) -> None:
    op, x = case.make(), images(case, dtype)
    y = op.A(x)
    assert y.dtype == dtype
    assert tuple(y.shape) == op.measurement_shape(case.shape)
    assert op.image_shape(y.shape) == case.shape
    assert relative(y, op.A(x.double())) <= ROUNDING[dtype]


@every_case
def test_it_is_not_linear(case: Case) -> None:
    op, x, other = case.make(), images(case), images(case, seed=2)
    assert not op.linear
    assert relative(op.A(x + other) + op.A(torch.zeros_like(x)), op.A(x) + op.A(other)) > 1e-2


@every_case
def test_gradient_is_that_of_finite_differences(case: Case) -> None:
    op = case.make()
    assert torch.autograd.gradcheck(op.A, images(case).requires_grad_())


@both_dtypes
@every_case
def test_gradients_are_finite_where_they_are_delicate(case: Case, dtype: torch.dtype) -> None:
    op = case.make()
    for value in (-1.0, 0.0, 1.0, -1.0 + 1e-7, 3.0, -40.0, 40.0):
        x = torch.full(case.shape, value, dtype=dtype, requires_grad=True)
        y = op.A(x)
        (gradient,) = torch.autograd.grad(y.square().sum() + y.sum(), x)
        assert torch.isfinite(y).all()
        assert torch.isfinite(gradient).all()


@both_dtypes
@every_case
def test_items_are_independent(case: Case, dtype: torch.dtype) -> None:
    op, x = case.make(), images(case, dtype).requires_grad_()
    together = op.A(x)
    (gradient,) = torch.autograd.grad(together.square().sum(), x)
    for k in range(case.shape[0]):
        lonely = torch.full(case.shape, torch.nan, dtype=dtype)
        lonely[k] = x.detach()[k]
        lonely.requires_grad_()
        alone = op.A(lonely)
        assert relative(alone[k : k + 1], together[k : k + 1]) <= ROUNDING[dtype]
        (alone_gradient,) = torch.autograd.grad(alone[k].square().sum(), lonely)
        assert relative(alone_gradient[k : k + 1], gradient[k : k + 1]) <= ROUNDING[dtype]


@every_case
def test_input_is_never_modified_and_results_never_share_its_memory(case: Case) -> None:
    op, x = case.make(), images(case, torch.float32)
    before = x.clone()
    op.A(x).fill_(7)
    assert torch.equal(x, before)


@every_case
def test_strided_input(case: Case) -> None:
    op, x = case.make(), images(case, torch.float32)
    wide = x.new_zeros(*x.shape[:-1], 2 * x.shape[-1] + 1)
    wide[..., 1::2] = x
    assert relative(op.A(wide[..., 1::2]), op.A(x)) <= ROUNDING[torch.float32]


@every_case
def test_empty_batch(case: Case) -> None:
    op, shape = case.make(), (0, *case.shape[1:])
    x = torch.zeros(shape, requires_grad=True)
    y = op.A(x)
    assert y.shape == op.measurement_shape(shape)
    (gradient,) = torch.autograd.grad(y.sum(), x)
    assert gradient.shape == shape


@every_case
def test_gradient_after_a_call_in_inference_mode(case: Case) -> None:
    op, x = case.make(), images(case, torch.float32)
    with torch.inference_mode():
        plain = op.A(x)
    followed = op.A(x.requires_grad_())
    followed.sum().backward()
    assert relative(followed.detach(), plain) <= ROUNDING[torch.float32]


@both_dtypes
@every_case
def test_its_linearisation_is_its_derivative(case: Case, dtype: torch.dtype) -> None:
    op, x, v = case.make(), images(case, dtype), images(case, dtype, seed=2)
    expected = (op.A(x.double() + 1e-6 * v) - op.A(x.double() - 1e-6 * v)) / 2e-6
    with torch.inference_mode():
        # Central differences are wrong by the third derivative times 1e-12 and by rounding over 1e-6.
        assert relative(Linearised(op, x).A(v), expected) <= max(ROUNDING[dtype], 1e-8)
    assert not Linearised(op, x).A(v).requires_grad


@every_case
def test_gauss_newton_steps_explain_the_measurement(case: Case) -> None:
    op, truth = case.make(), 0.6 * images(case)
    y, start = op.A(truth), truth + 0.02 * images(case, seed=3)
    x = start
    for _ in range(6):
        step = Linearised(op, x, iterations=100)
        x = x + step.adjoint(step.gram_solve(y - op.A(x), 1.0, 1e-3))
    # Not to zero: the blur hides what is below the noise that the solve was told of.
    assert relative(op.A(x), y) <= 0.02 * relative(op.A(start), y)


@every_case
def test_what_needs_linearity_is_refused(case: Case) -> None:
    op = case.make()
    y = torch.zeros(op.measurement_shape(case.shape))
    for call in (
        lambda: op.adjoint(y),
        lambda: op.gram_solve(y, 1.0, 0.1),
        lambda: op.iterative_solve(y, 1.0, 0.1, iterations=3),
        lambda: op.form(case.shape, y.device, y.dtype),
    ):
        with pytest.raises(
            ValueError, match=f"'{op.name}' is not linear .* use the guidance 'gauss_newton', 'dps' or 'jensen'"
        ):
            call()


def test_plans_refuse_guidances_that_need_linearity() -> None:
    prior = rmp.priors.from_denoiser(lambda x, s: x, data_variance=0.5)
    for guidance in ("gaussian", "exact"):
        expected = f"'{guidance}' cannot serve the operator 'phase_retrieval' .*: 'gauss_newton', 'dps', 'jensen'"
        with pytest.raises(ValueError, match=expected):
            rmp.Plan(PhaseRetrieval(), prior, (1, 1, 4, 4), 0.1, guidance=guidance)
