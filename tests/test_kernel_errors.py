"""What the kernels refuse, and what the compiled ones keep: lifetimes, threads, the code path that was asked for."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

import numpy
import pytest
import torch
from kernel_paths import kernels, needs_triton
from simulated import OnDevice
from step_problem import STEP_BOUND, Problem, assert_close

from rmp_fast import _core, triton_ops

KINDS = {"core": _core, "triton": triton_ops}


def _step(kind: str = "core", **changes: Any) -> Any:
    buffers = Problem((2, 3, 8, 6), correction="mask", masks=2).buffers()
    made = _core.NaturalStep if kind == "core" else kernels(kind).NaturalStep
    return made(**{**buffers, **changes})


IMAGE = (2, 3, 8, 6)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"previous": torch.zeros(2, 3, 8, 5)}, ValueError,
         r"`previous` must have shape (B, ...) = (2, 3, 8, 6), got (2, 3, 8, 5)"),
        ({"input": torch.zeros(IMAGE, dtype=torch.float64)}, TypeError,
         "`input` must be torch.float32, got torch.float64; convert it with .to(torch.float32)"),
        ({"mean": [1.0]}, TypeError, "`mean` must be a torch.Tensor, got list; convert it with torch.as_tensor"),
        ({"mean": torch.zeros(())}, ValueError, "`mean` must have shape (B, ...), got ()"),
        ({"input": torch.zeros(2, 3, 6, 8).transpose(2, 3)}, ValueError,
         "`input` must be contiguous, got strides (144, 48, 1, 8) for shape (2, 3, 8, 6); call .contiguous()"),
        ({"input": torch.zeros(IMAGE, requires_grad=True)}, ValueError,
         "`input` must not require grad; call .detach()"),
        ({"looks": torch.zeros(4, 2, 7)}, ValueError, "`looks` must have shape (L, B, 8) = (L, 2, 8), got (4, 2, 7)"),
        ({"looks": torch.zeros(4, 3, 8)}, ValueError, "`looks` must have shape (L, B, 8) = (L, 2, 8), got (4, 3, 8)"),
        ({"seeds": torch.zeros(2)}, TypeError, "`seeds` must be torch.int64, got torch.float32"),
        ({"seeds": torch.zeros(3, dtype=torch.int64)}, ValueError, "`seeds` must have shape (B,) = (2,), got (3,)"),
        ({"ok": torch.zeros(2)}, TypeError, "`ok` must be torch.uint8 or torch.bool, got torch.float32"),
        ({"curvature": torch.zeros(3)}, ValueError, "`curvature` must have shape (B,) or (B, ...) = "),
        ({"correction": "blur"}, ValueError,
         "`correction` must be one of 'none', 'mask', 'block_average', 'gradient', got 'blur'"),
        ({"y": None}, ValueError, "`y` must be given when `correction` is 'mask'"),
        ({"mask": torch.zeros(2, 3, 8, 7, dtype=torch.uint8)}, ValueError,
         "`mask` must have shape (1 or B, ...) = (1 or 2, ...) with 144 elements per item, got (2, 3, 8, 7)"),
        ({"mask": torch.zeros(IMAGE)}, TypeError, "`mask` must be torch.uint8 or torch.bool, got torch.float32"),
        ({"correction": "block_average", "factor": 0}, ValueError, "`factor` must be at least 1, got 0"),
        ({"correction": "block_average", "factor": 4}, ValueError,
         "`y` must have shape (B, C, ceil(H / factor), ceil(W / factor)) = (2, 3, 2, 2), got (2, 3, 8, 6)"),
        ({"antithetic": True, "drawn": True, "input_mirror": torch.zeros(IMAGE)}, ValueError,
         "`drawn` and `antithetic` exclude each other"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("kind", KINDS)
def test_step_errors(kind: str, changes: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error) as raised:
        _step(kind, **changes)
    assert message in str(raised.value)


def test_errors_of_the_compiled_step_alone() -> None:
    with pytest.raises(ValueError, match="`input_mirror` must be given when `antithetic` is set"):
        _step(antithetic=True)
    with pytest.raises(ValueError, match="`path` must be one of 'av"):
        _step(path="avx1")


@pytest.mark.parametrize("kind", KINDS)
def test_block_average_needs_images(kind: str) -> None:
    problem = Problem((2, 10))
    settings = {**problem.buffers(), "correction": "block_average", "y": torch.zeros(2, 5), "factor": 2}
    with pytest.raises(ValueError, match=r"`mean` must have shape \(B, C, H, W\) when `correction` is 'block_average'"):
        _step(kind, **settings)


@pytest.mark.parametrize("kind", KINDS)
def test_input_and_its_mirror_must_differ(kind: str) -> None:
    image = torch.zeros(IMAGE)
    with pytest.raises(ValueError, match="`input_mirror` must be another tensor than `input`"):
        _step(kind, input=image, input_mirror=image)


def test_call_errors() -> None:
    step, image = _step(), torch.zeros(IMAGE)
    with pytest.raises(ValueError, match=r"`look` must be in \[0, 3\), got 3"):
        step.step(3, image.data_ptr())
    with pytest.raises(ValueError, match=r"`look` must be in \[0, 3\), got -1"):
        step.perturb(-1, 0)
    with pytest.raises(ValueError, match="`denoised` must be the address of a tensor, got 0"):
        step.step(0, 0)
    with pytest.raises(ValueError, match="`denoised_mirror` must not be given"):
        step.step(0, image.data_ptr(), image.data_ptr())
    pair = _step(input_mirror=torch.zeros(IMAGE), antithetic=True)
    with pytest.raises(ValueError, match="`denoised_mirror` must be given to an antithetic step"):
        pair.step(0, image.data_ptr())


X = torch.zeros(2, 3, 8, 6)
C = X.to(torch.complex64)
TAPS = torch.ones(3)
TURNS = [torch.ones(n // 2 + 1, dtype=torch.complex64) for n in X.shape[2:]]


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda k: k.mask(X, torch.zeros(3, 3, 8, 6, dtype=torch.uint8), X.clone()), ValueError,
         "`mask` must have shape (1 or B, ...) = (1 or 2, ...) with 144 elements per item, got (3, 3, 8, 6)"),
        (lambda k: k.mask(X, X.to(torch.uint8), torch.zeros(2, 3)), ValueError,
         "`out` must have shape (B, ...) = (2, 3, 8, 6), got (2, 3)"),
        (lambda k: k.block_average(X, 4, X.clone()), ValueError,
         "`out` must have shape (..., ceil(H / factor), ceil(W / factor)) = (2, 3, 2, 2), got (2, 3, 8, 6)"),
        (lambda k: k.block_average(X, 0, X.clone()), ValueError, "`factor` must be at least 1, got 0"),
        (lambda k: k.block_average(TAPS, 2, TAPS.clone()), ValueError, "`x` must have shape (..., H, W), got (3,)"),
        (lambda k: k.block_average_adjoint(X, 4, X.clone()), ValueError, "`y` must have shape"),
        (lambda k: k.separable_blur(X, TAPS, torch.ones(4), "circular", False, X.clone()), ValueError,
         "`taps_h` must have shape (K,) with odd K, got (4,)"),
        (lambda k: k.separable_blur(X, X, TAPS, "circular", False, X.clone()), ValueError,
         "`taps_v` must have shape (K,) with odd K, got (2, 3, 8, 6)"),
        (lambda k: k.separable_blur(X, TAPS, TAPS, "zero", False, X.clone()), ValueError,
         "`boundary` must be one of 'circular', 'reflect', 'replicate', got 'zero'"),
        (lambda k: k.spectral(X, X, C, torch.ones(2), X.clone(), False), TypeError,
         "`data` must be torch.float32, got torch.complex64"),
        (lambda k: k.spectral(X, torch.zeros(3, 4), X, torch.ones(2), X.clone(), False), ValueError,
         "`energy` must have shape (1 or B, ...) = (1 or 2, ...) with 144 elements per item, got (3, 4)"),
        (lambda k: k.spectral(X, X, X, torch.ones(3), X.clone(), False), ValueError,
         "`noise_ratio` must have shape (B,) = (2,), got (3,)"),
        (lambda k: k.clip_gradient(X, None, None, None, None, torch.zeros(2, 3)), ValueError,
         "`out` must have shape (B, ...) = (2, 3, 8, 6), got (2, 3)"),
        (lambda k: k.clip_gradient(torch.zeros(()), None, None, None, None, X.clone()), ValueError,
         "`gradient` must have shape (B, ...), got ()"),
        (lambda k: k.clip_gradient(X, X, torch.ones(2), None, None, X.clone()), ValueError,
         "`direction`, `limit` and `weight` must be given together, or none of them"),
        (lambda k: k.clip_gradient(X, None, torch.ones(2), torch.ones(2), None, X.clone()), ValueError,
         "`direction`, `limit` and `weight` must be given together, or none of them"),
        (lambda k: k.clip_gradient(X, X[:1].clone(), torch.ones(2), torch.ones(2), None, X.clone()), ValueError,
         "`direction` must have shape (B, ...) = (2, 3, 8, 6), got (1, 3, 8, 6)"),
        (lambda k: k.clip_gradient(X, X, torch.ones(2), torch.ones(1), None, X.clone()), ValueError,
         "`weight` must have shape (B,) = (2,), got (1,)"),
        (lambda k: k.clip_gradient(X, X, torch.ones(2).double(), torch.ones(2), None, X.clone()), TypeError,
         "`limit` must be torch.float32, got torch.float64"),
        (lambda k: k.clip_gradient(X, None, None, None, torch.ones(3, 4), X.clone()), ValueError,
         "`residual` must have shape (B, ...) = (2, ...), got (3, 4)"),
        (lambda k: k.clip_gradient(X, None, None, None, C, X.clone()), TypeError,
         "`residual` must be torch.float32, got torch.complex64"),
        (lambda k: k.normals(torch.zeros(3, dtype=torch.int64), 0, 0, X.clone()), ValueError,
         "`seeds` must have shape (B,) = (2,), got (3,)"),
        (lambda k: k.spectral(C.conj(), X, C, torch.ones(2), C.clone(), False), ValueError,
         "`c` must not be a lazily conjugated or negated view; call .resolve_conj() and .resolve_neg()"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("kind", KINDS)
def test_operator_errors(kind: str, call: Callable[[Any], None], error: type[Exception], message: str) -> None:
    with pytest.raises(error) as raised:
        call(KINDS[kind])
    assert message in str(raised.value)


def test_operator_errors_of_one_kind() -> None:
    kept = X.to(torch.uint8)
    with pytest.raises(ValueError, match="`x` cannot be read through DLPack"):
        _core.mask(X.to("meta"), kept, X.clone())
    with pytest.raises(ValueError, match="`path` must be one of"):
        _core.mask(X, kept, X.clone(), path="sse9")
    with pytest.raises(ValueError, match="`out` must be on device meta, got cpu"):
        triton_ops.mask(X.to("meta"), kept, X.clone())
    long = torch.zeros(1).expand(1, 2**31)
    with pytest.raises(ValueError, match="`x` must be contiguous"):
        triton_ops.mask(long, long, long)
    with pytest.raises(ValueError, match="`x` must have at most 2147481600 elements per item, got 2147483648"):
        triton_ops.check_size("x", 2**31)


@needs_triton
def test_calls_of_the_triton_step() -> None:
    step = _step("triton")
    with pytest.raises(ValueError, match=r"`look` must be in \[0, 3\), got 3"):
        step(3, torch.zeros(IMAGE), 1)
    with pytest.raises(ValueError, match=r"`look` must be in \[0, 3\), got -1"):
        step.perturb(-1, 0)
    with pytest.raises(ValueError, match="the prior must return a contiguous float32 tensor on cpu of shape"):
        step(0, torch.zeros(2, 3, 8, 5), 1)
    with pytest.raises(ValueError, match="`curvature` must have shape"):
        _step("triton", curvature=torch.zeros(2, 3))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: _core.cosine_fold(X, X), ValueError, "`out` must be another tensor than `x`"),
        (lambda: _core.cosine_fold(X, TAPS), ValueError,
         "`out` must have shape (..., H, W) = (2, 3, 8, 6), got (3,)"),
        (lambda: _core.cosine_fold(TAPS, TAPS), ValueError, "`x` must have shape (..., H, W), got (3,)"),
        (lambda: _core.cosine_unfold(C, X), ValueError,
         "`spectrum` must have shape (..., H, W // 2 + 1) = (2, 3, 8, 4), got (2, 3, 8, 6)"),
        (lambda: _core.cosine_turn(X[..., :4].contiguous(), *TURNS, X), TypeError,
         "`spectrum` must be torch.complex64, got torch.float32"),
        (lambda: _core.cosine_turn(C[..., :4].contiguous(), TURNS[0], TURNS[0], X), ValueError,
         "`turns_h` must have shape (n // 2 + 1,) = (4,), got (5,)"),
        (lambda: _core.cosine_turn_back(X, TURNS[1], TURNS[1]), ValueError,
         "`turns_v` must have shape (n // 2 + 1,) = (5,), got (4,)"),
        (lambda: _core.cosine_turn_back(C, *TURNS), TypeError,
         "`coefficients` must be torch.float32, got torch.complex64"),
    ],
)  # fmt: skip
def test_cosine_transform_errors(call: Callable[[], None], error: type[Exception], message: str) -> None:
    with pytest.raises(error) as raised:
        call()
    assert message in str(raised.value)


NUMBERS = torch.zeros(2, dtype=torch.float64)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: _core.conjugate_step(X, X, X, TAPS, NUMBERS, NUMBERS, NUMBERS), ValueError,
         "`residual` must have shape (B, ...) = (2, 3, 8, 6), got (3,)"),
        (lambda: _core.conjugate_step(X, X, X, X, NUMBERS, NUMBERS, NUMBERS.float()), TypeError,
         "`least` must be torch.float64, got torch.float32"),
        (lambda: _core.conjugate_turn(X, X, X, NUMBERS[:1], NUMBERS), ValueError,
         "`squares` must have shape (B,) = (2,), got (1,)"),
        (lambda: _core.conjugate_turn(torch.tensor(1.0), X, X, NUMBERS, NUMBERS), ValueError,
         "`direction` must have shape (B, ...), got ()"),
        (lambda: _core.biharmonic(X, 0.1, X, X), ValueError, "`out` must be another tensor than `x`"),
        (lambda: _core.biharmonic(X, 0.1, TAPS, X.clone()), ValueError,
         "`plus` must have shape (..., H, W) = (2, 3, 8, 6), got (3,)"),
    ],
)  # fmt: skip
def test_conjugate_gradient_errors(call: Callable[[], None], error: type[Exception], message: str) -> None:
    with pytest.raises(error) as raised:
        call()
    assert message in str(raised.value)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a device here")
def test_tensors_on_a_device_are_refused_with_the_reason() -> None:
    x, kept, out = (OnDevice(tensor) for tensor in (X, X.to(torch.uint8), X.clone()))
    with pytest.raises((ValueError, RuntimeError)) as raised:
        _core.mask(x, kept, out)
    problem = str(_core.cuda_problem())
    if "built without CUDA" in problem:
        assert str(raised.value) == f"`x` must be on device cpu, got cuda:0: {problem}; move it with .cpu()"
    else:
        assert str(raised.value).startswith("CUDA: asking for the multiprocessors of device 0 failed: ")


def test_numpy_arrays_are_taken_too() -> None:
    x, out = numpy.ones((2, 5), numpy.float32), numpy.zeros((2, 5), numpy.float32)
    _core.mask(x, numpy.array([[1, 0, 1, 0, 1]], numpy.uint8), out)
    assert out.tolist() == [[1, 0, 1, 0, 1]] * 2


def test_views_keep_their_tensors_alive() -> None:
    problem = Problem((1, 20_000))
    step = _core.NaturalStep(**problem.buffers())
    denoised = problem.denoised.clone()
    expected = problem.expected(0, 1)
    mean = problem.mean
    problem.looks, problem.seeds, problem.previous = torch.empty(0), torch.empty(0), torch.empty(0)
    torch.full((1, 20_000), 9.0)
    step.step(0, denoised.data_ptr())
    assert_close(mean, expected.mean, STEP_BOUND)


def test_one_step_refuses_two_threads() -> None:
    problem = Problem((8, 1_000_000))
    step = _core.NaturalStep(**problem.buffers())
    refused: list[str] = []

    def work() -> None:
        for _ in range(5):
            try:
                step.step(0, problem.denoised.data_ptr())
            except RuntimeError as error:
                refused.append(str(error))

    workers = [threading.Thread(target=work) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert refused
    assert set(refused) == {"this step is executing in another thread; make one plan per thread"}


def _import_with(value: str) -> subprocess.CompletedProcess[str]:
    code = "import rmp_fast._core as c; print(c.cpu_path())"
    environment = {**os.environ, "RMP_FAST_CPU": value}
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)


def test_path_from_the_environment() -> None:
    assert _import_with("baseline").stdout.strip() == "baseline"
    assert _import_with("").stdout.strip() == _core.cpu_paths()[0]
    wrong = _import_with("mmx")
    assert wrong.returncode != 0
    assert "`RMP_FAST_CPU` must be one of " in wrong.stderr
    assert "'baseline' on this processor, got 'mmx'" in wrong.stderr
