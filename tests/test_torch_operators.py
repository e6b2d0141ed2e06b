"""``torch.ops.rmp_fast``: schemas, fake kernels and out variants as torch wants them, and compiled programs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from step_problem import CORRECTIONS, MODES, Problem
from torch import Tensor

from rmp_fast import ops

X = torch.randn(2, 3, 9, 12, generator=torch.Generator().manual_seed(0))
BLOCKS = X[:, :, :3, :3].contiguous()
KEPT = X[:1] > 0
TAPS = (torch.tensor([0.2, 0.5, 0.3]), torch.tensor([1.0]))
SPECTRUM = torch.fft.rfft2(X)
ENERGY = SPECTRUM[:1].abs()
RATIO = torch.tensor([0.1, 0.2])

CASES: dict[str, tuple[str, tuple[Any, ...], Tensor]] = {
    "mask": ("mask", (X, KEPT), ops.mask(X, KEPT)),
    "blocks": ("block_average", (X, 4), ops.block_average(X, 4)),
    "blocks adjoint": ("block_average_adjoint", (BLOCKS, 4, [9, 12]), ops.block_average_adjoint(BLOCKS, 4, (9, 12))),
    "blur": ("separable_blur", (X, *TAPS, "reflect", False), ops.separable_blur(X, *TAPS, "reflect")),
    "blur adjoint": (
        "separable_blur",
        (X, *TAPS, "replicate", True),
        ops.separable_blur(X, *TAPS, "replicate", adjoint=True),
    ),
    "spectral": (
        "spectral",
        (SPECTRUM, ENERGY, SPECTRUM.conj().resolve_conj(), RATIO, True),
        ops.spectral(SPECTRUM, ENERGY, SPECTRUM.conj().resolve_conj(), RATIO, update=True),
    ),
    "gradient": (
        "clip_gradient",
        (X, X.flip(2), RATIO, RATIO + 1, BLOCKS),
        ops.clip_gradient(X, X.flip(2), RATIO, RATIO + 1, BLOCKS),
    ),
    "gradient, divided": ("clip_gradient", (X, None, None, None, BLOCKS), ops.clip_gradient(X, residual=BLOCKS)),
    "gradient as it is": ("clip_gradient", (X, None, None, None, None), ops.clip_gradient(X)),
}


def packet(name: str) -> Any:
    return getattr(torch.ops.rmp_fast, name)


def in_double(value: Any) -> Any:
    if not isinstance(value, Tensor) or value.dtype == torch.bool:
        return value
    return value.to(torch.complex128 if value.is_complex() else torch.float64)


@pytest.mark.parametrize("case", CASES)
def test_operators_are_what_torch_wants(case: str) -> None:
    name, arguments, expected = CASES[case]
    torch.library.opcheck(packet(name).default, arguments)
    torch.library.opcheck(packet(name).out, arguments, {"out": torch.empty_like(expected)})


@pytest.mark.parametrize("case", CASES)
def test_operators_compute_what_the_functions_do(case: str) -> None:
    name, arguments, expected = CASES[case]
    out = torch.full_like(expected, 7)
    assert packet(name).out(*arguments, out=out) is None
    assert torch.equal(out, expected)
    assert torch.equal(packet(name)(*arguments), expected)
    # float64 has no kernels, and takes the same names.
    double = packet(name)(*map(in_double, arguments))
    assert double.dtype == in_double(expected).dtype
    torch.testing.assert_close(double, in_double(expected), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("case", CASES)
def test_outputs_of_another_shape_are_refused(case: str) -> None:
    name, arguments, expected = CASES[case]
    with pytest.raises(ValueError, match="`out` must have shape"):
        packet(name).out(*arguments, out=expected.new_empty(1, 2, 3, 4))


def step_arguments(problem: Problem, look: int) -> tuple[tuple[Any, ...], dict[str, Any]]:
    pair = problem.antithetic
    inputs = torch.cat([problem.input, problem.input_mirror]) if pair else problem.input
    denoised = torch.cat([problem.denoised, problem.denoised_mirror]) if pair else problem.denoised
    images = (problem.previous, problem.mean, inputs, denoised)
    settings = {**problem.settings, "curvature": problem.curvature}
    return (*images, problem.looks[look], problem.seeds, problem.ok, look + 1), settings


@pytest.mark.parametrize("correction", ["none", "mask", "blocks of 4"])
@pytest.mark.parametrize("mode", MODES)
def test_natural_step_is_a_function(mode: str, correction: str) -> None:
    problem = Problem((3, 2, 8, 12), **{**MODES[mode], "in_place": False}, **CORRECTIONS[correction])
    arguments, settings = step_arguments(problem, 1)
    before = [a.clone() for a in arguments if isinstance(a, Tensor)]
    results = packet("natural_step")(*arguments, **settings)
    assert all(torch.equal(a, b) for a, b in zip(before, (a for a in arguments if isinstance(a, Tensor)), strict=True))
    out = tuple(torch.full_like(result, 3) for result in results)
    names = ("next_mean", "next_input", "next_ok", "next_curvature")
    packet("natural_step").out(*arguments, **settings, **dict(zip(names, out, strict=True)))
    problem.run("baseline", 1)
    inputs = torch.cat([problem.input, problem.input_mirror]) if problem.antithetic else problem.input
    learned = torch.empty(0) if problem.curvature is None else problem.curvature
    for mine, again, bound in zip(results, out, (problem.next_mean, inputs, problem.ok, learned), strict=True):
        torch.testing.assert_close(mine, bound, rtol=1e-6, atol=1e-6)  # the fastest path of this processor
        assert torch.equal(mine, again)


@pytest.mark.parametrize("mode", ["control", "learned antithetic"])
def test_natural_step_is_what_torch_wants(mode: str) -> None:
    arguments, settings = step_arguments(Problem((3, 2, 8, 12), correction="mask", masks=1, **MODES[mode]), 1)
    torch.library.opcheck(packet("natural_step").default, arguments, settings)
    out = packet("natural_step")(*arguments, **settings)
    names = ("next_mean", "next_input", "next_ok", "next_curvature")
    torch.library.opcheck(
        packet("natural_step").out, arguments, {**settings, **dict(zip(names, map(torch.empty_like, out), strict=True))}
    )


def test_a_chain_compiles_as_one_graph() -> None:
    """Two looks with a network and a blur between them, written with the operators alone."""
    problem = Problem((2, 3, 8, 12), correction="mask", masks=1)

    def chain(mean: Tensor, inputs: Tensor) -> Tensor:
        for look in range(2):
            denoised = torch.ops.rmp_fast.separable_blur(inputs.tanh(), *TAPS, "reflect", False)
            mean, inputs, _, _ = torch.ops.rmp_fast.natural_step(
                problem.previous, mean, inputs, denoised, problem.looks[look], problem.seeds, problem.ok, look + 1,
                y=problem.y, mask=problem.mask, correction="mask",
            )  # fmt: skip
        return mean + torch.ops.rmp_fast.mask(inputs, problem.mask)

    expected = chain(problem.mean, problem.input)
    compiled = torch.compile(chain, fullgraph=True)(problem.mean, problem.input)
    torch.testing.assert_close(compiled, expected, rtol=1e-5, atol=1e-5)
