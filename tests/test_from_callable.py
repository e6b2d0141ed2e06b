"""Operators made of functions: what they inherit, and what is refused when they are made or used."""

from __future__ import annotations

import math
import re
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from rmp_fast.operators import Function, Iterative, LinearFunction, condition, from_callable

MATRIX = torch.randn(4, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def forward(x: Tensor) -> Tensor:
    return x @ MATRIX.T.to(x)


def backward(y: Tensor) -> Tensor:
    return y @ MATRIX.to(y)


def test_a_nonlinear_function() -> None:
    op = from_callable(lambda x: forward(x).square(), (4,), (6,))
    assert isinstance(op, Function)
    x = torch.ones(3, 6, dtype=torch.float64)
    assert torch.equal(op.A(x), forward(x).square())
    assert op.measurement_shape((5, 6)) == (5, 4)
    assert op.image_shape((5, 4)) == (5, 6)


@pytest.mark.parametrize("adjoint", [None, backward], ids=["derived", "given"])
def test_a_linear_function_has_the_adjoint_and_gram_solve_of_its_matrix(adjoint: Callable[[Tensor], Tensor]) -> None:
    op = from_callable(forward, (4,), (6,), adjoint, linear=True)
    assert isinstance(op, LinearFunction)
    y = torch.randn(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(op.adjoint(y), y @ MATRIX)
    gram = 0.5 * MATRIX @ MATRIX.T + 0.01 * torch.eye(4, dtype=torch.float64)
    torch.testing.assert_close(op.gram_solve(y, 0.5, 0.1), torch.linalg.solve(gram, y.T).T)


def test_the_derived_adjoint_works_in_inference_mode_and_leaves_no_graph() -> None:
    op = from_callable(forward, (4,), (6,), linear=True)
    with torch.inference_mode():
        y = torch.ones(2, 4)
        torch.testing.assert_close(op.adjoint(y), backward(y))
        form = op.form((2, 6), y.device, y.dtype)
        assert isinstance(form, Iterative)
        condition(form, op, torch.zeros(2, 6), y, 1.0, 0.1)
    with torch.no_grad():
        assert not op.adjoint(torch.ones(2, 4)).requires_grad
    assert not op.adjoint(torch.ones(2, 4)).requires_grad


def test_functions_outside_autograd_get_gradients_from_their_adjoint() -> None:
    matrix = MATRIX.numpy()

    def there(x: Tensor) -> Tensor:
        return torch.from_numpy(x.numpy() @ matrix.T).to(x.dtype)

    def back(y: Tensor) -> Tensor:
        return torch.from_numpy(y.numpy() @ matrix).to(y.dtype)

    op = from_callable(there, (4,), (6,), back, linear=True)
    x = torch.randn(2, 6, dtype=torch.float64, requires_grad=True)
    y = torch.randn(2, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(op.A, x)
    assert torch.autograd.gradcheck(op.adjoint, y)
    assert torch.autograd.gradgradcheck(op.A, x)


def test_items_of_a_stateful_module_are_followed() -> None:
    layer = torch.nn.Conv2d(2, 1, 3, padding=1)
    op = from_callable(lambda x: torch.tanh(layer(x)), (1, 5, 6), (2, 5, 6))
    x = torch.zeros(2, 2, 5, 6, requires_grad=True)
    op.A(x).sum().backward()
    assert x.grad is not None
    assert x.grad.abs().sum() > 0
    assert layer.weight.grad is not None


class Jumping:
    """Another result every time."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x * self.calls


ERRORS: list[tuple[type[Exception], str, Callable[[], object]]] = [
    (TypeError, "`fn` must be a function of a batch of tensors, got Tensor", lambda: from_callable(MATRIX, (4,), (6,))),
    (
        TypeError,
        "`adjoint` must be a function of a batch of tensors, got str",
        lambda: from_callable(forward, (4,), (6,), "transpose", linear=True),
    ),
    (
        ValueError,
        "`adjoint` must be given for linear functions only; if `fn` is linear, say linear=True",
        lambda: from_callable(forward, (4,), (6,), backward),
    ),
    (
        TypeError,
        "`dtype` must be torch.float32 or torch.float64, got torch.float16",
        lambda: from_callable(forward, (4,), (6,), dtype=torch.float16),
    ),
    (
        ValueError,
        "`image_shape` must be the shape of one item, such as (C, H, W), each >= 1, got (0,)",
        lambda: from_callable(forward, (4,), (0,)),
    ),
    (
        ValueError,
        "`measurement_shape` must be the shape of one item, such as (C, H, W), each >= 1, got ()",
        lambda: from_callable(forward, (), (6,)),
    ),
    (
        ValueError,
        "`iterations` must be >= 1, got 0",
        lambda: from_callable(forward, (4,), (6,), linear=True, iterations=0),
    ),
    (ValueError, "`fn` must return shape (2, 5) for (2, 6), got (2, 4)", lambda: from_callable(forward, (5,), (6,))),
    (
        ValueError,
        "`adjoint` must return shape (2, 6) for (2, 4), got (2, 4)",
        lambda: from_callable(forward, (4,), (6,), lambda y: y, linear=True),
    ),
    (TypeError, "`fn` must return a torch.Tensor, got list", lambda: from_callable(lambda x: x.tolist(), (6,), (6,))),
    (
        TypeError,
        "`fn` must return torch.float32 on cpu as it got, got torch.float64 on cpu",
        lambda: from_callable(lambda x: x.double(), (6,), (6,)),
    ),
    (
        ValueError,
        "`fn(x)` must be finite, got NaN or infinity in item 0, 1",
        lambda: from_callable(lambda x: (x - 2).log(), (6,), (6,)),
    ),
    (
        ValueError,
        "`the gradient of fn` must be finite",
        lambda: from_callable(lambda x: (x - x).sqrt() + x, (6,), (6,)),
    ),
    (
        ValueError,
        "`fn` must be differentiable by autograd, got a result cut off from x; give its `adjoint` too",
        lambda: from_callable(lambda x: forward(x.detach()), (4,), (6,)),
    ),
    (
        ValueError,
        "`fn` must treat every item of a batch alone and the same way every time, got results that differ by",
        lambda: from_callable(lambda x: x / x.norm(), (6,), (6,)),
    ),
    (ValueError, "the same way every time", lambda: from_callable(Jumping(), (6,), (6,))),
    (
        ValueError,
        "`fn` must be linear, got results that differ by",
        lambda: from_callable(lambda x: x + 1, (6,), (6,), linear=True),
    ),
    (
        ValueError,
        "`fn` must be linear, got results that differ by nan",
        lambda: from_callable(lambda x: x + 0 * x.acos(), (6,), (6,), linear=True),  # the trial reaches beyond 1
    ),
    (
        ValueError,
        "`adjoint` must be that of `fn`, <fn(x), y> = <x, adjoint(y)>, got",
        lambda: from_callable(forward, (4,), (6,), lambda y: 1.01 * backward(y), linear=True),
    ),
    (
        ValueError,
        "`image_shape` must be (B, 6) for this function, got (2, 5)",
        lambda: from_callable(forward, (4,), (6,)).A(torch.zeros(2, 5)),
    ),
    (
        ValueError,
        "`measurement_shape` must be (B, 4) for this function, got (2, 6)",
        lambda: from_callable(forward, (4,), (6,), linear=True).adjoint(torch.zeros(2, 6)),
    ),
]


@pytest.mark.parametrize(("error", "message", "call"), ERRORS, ids=[message[:60] for _, message, _ in ERRORS])
def test_message(error: type[Exception], message: str, call: Callable[[], object]) -> None:
    with pytest.raises(error, match=re.escape(message)):
        call()


def test_the_mismatch_of_an_adjoint_is_measured() -> None:
    with pytest.raises(ValueError, match=r"of the norms apart") as caught:
        from_callable(lambda x: x, (9,), (9,), lambda y: 1.5 * y, linear=True, dtype=torch.float64)
    left, right, apart = map(float, re.findall(r"-?\d[\d.]*(?:e[+-]\d+)?", str(caught.value).split("got")[1]))
    assert right == pytest.approx(1.5 * left, rel=1e-4)
    assert 1e-8 < apart < 1


def test_later_nan_is_left_to_the_chain() -> None:
    op = from_callable(lambda x: (x + 2).log(), (3,), (3,))
    y = op.A(torch.tensor([[0.0, 0, 0], [-3, 0, 0]]))
    assert torch.isfinite(y[0]).all()
    assert math.isnan(y[1, 0])
    assert np.isfinite(y[1, 1:].numpy()).all()
