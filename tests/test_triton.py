"""When the Triton backend is taken, when it is refused and why; the kernels themselves are in test_kernels.py."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch
from kernel_paths import needs_triton

import rmp_fast as rmp
from rmp_fast import backends, ops, triton_ops

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)
PRIOR = rmp.priors.from_denoiser(lambda x, s: x, data_variance=0.5)


def python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    plain = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-c", code]
    return subprocess.run(command, env={**plain, **environment}, capture_output=True, text=True, check=False)


def test_importing_everything_leaves_triton_alone() -> None:
    everything = "import rmp_fast.plan, rmp_fast.ops, rmp_fast.triton_step, rmp_fast.cli.info, sys"
    assert python(f"{everything}; print('triton' in sys.modules)").stdout == "False\n"


def test_a_machine_without_triton_says_so_and_works() -> None:
    done = python(
        "import sys; sys.modules['triton'] = None\n"
        "import torch, rmp_fast as rmp\n"
        "from rmp_fast import backends\n"
        "print(backends.status(torch.device('cuda', 0), torch.float32)['triton'])\n"
        "print(backends.preferred(torch.device('cuda', 0), torch.float32))\n"
        "prior = rmp.priors.from_denoiser(lambda x, s: x, data_variance=0.5)\n"
        "estimate = rmp.reconstruct(torch.zeros(1, 1, 4, 4), rmp.operators.Denoising(), prior, noise_std=0.1)\n"
        "print(estimate.ok.all().item())"
    )
    assert done.stdout == "the package triton is not installed\ntorch\nTrue\n", done.stderr


@needs_triton
def test_info_says_why_triton_is_not_taken_on_the_cpu() -> None:
    done = python("from rmp_fast.cli import main; import sys; sys.exit(main(['info', '--json']))")
    facts = json.loads(done.stdout)
    assert facts["auto"] == "cpu"
    assert facts["backends"]["triton"] == (
        "its kernels run on CUDA and ROCm devices, not on the CPU (unless TRITON_INTERPRET=1 interprets them)"
    )


@needs_triton
def test_the_order_of_preference() -> None:
    """On a graphics card before plain torch; on the CPU never, even where it is interpreted."""
    assert backends.status(CUDA, torch.float32)["triton"] is None
    assert backends.preferred(CUDA, torch.float32) == "triton"
    assert backends.status(CPU, torch.float32)["triton"] is None
    assert backends.preferred(CPU, torch.float32) == "cpu"
    assert ops.kernels("auto", torch.zeros(2)) is not triton_ops


@needs_triton
def test_a_forced_backend_that_cannot_work_is_refused_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    op = rmp.operators.Denoising()
    with pytest.raises(ValueError, match="`backend` 'triton' cannot be used: its kernels are float32, not torch"):
        rmp.Plan(op, PRIOR, (1, 1, 4, 4), 0.1, backend="triton", dtype=torch.float64)
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    with pytest.raises(ValueError, match="`backend` 'triton' cannot be used: its kernels run on CUDA and ROCm devices"):
        rmp.Plan(op, PRIOR, (1, 1, 4, 4), 0.1, backend="triton")
    with pytest.raises(RuntimeError, match=r"the Triton kernels are not available .*; use backend='torch'"):
        ops.block_average(torch.zeros(1, 1, 4, 4), 2, backend="triton")


@needs_triton
def test_functions_refuse_what_the_kernels_cannot_compute() -> None:
    x = torch.zeros(1, 1, 4, 4)
    with pytest.raises(
        RuntimeError, match=r"backend 'triton' computes float32 tensors on one device .*got torch.float64"
    ):
        ops.block_average(x.double(), 2, backend="triton")
    assert ops.block_average(x.double(), 2).dtype == torch.float64


def test_a_missing_compiler_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    triton_ops._missing.cache_clear()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    monkeypatch.setattr("shutil.which", lambda name: None)
    monkeypatch.delenv("CC", raising=False)
    try:
        assert triton_ops.unavailable_reason(CUDA) == (
            "triton needs a C compiler at run time: install gcc or clang, or set CC"
        )
    finally:
        triton_ops._missing.cache_clear()


def test_other_devices_are_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_ops, "_missing", lambda: None)
    assert triton_ops.unavailable_reason(torch.device("mps")) == "its kernels run on CUDA and ROCm devices, not on mps"
