"""The code that the kernel tests run, by the name of its path.

Names of ``_core.cpu_paths()``, and "triton", interpreted. In the processes that tests/test_simt.py starts there is
"cuda" alone: the CUDA kernels, simulated on the CPU. Elsewhere "cuda" is there where a device is, and runs on that.
"""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from on_gpu import OnGpu
from torch import Tensor

from rmp_fast import _core, cuda_ops, triton_ops
from rmp_fast.triton_step import TritonStep

__all__ = ["CPU_PATHS", "PATHS", "kernels", "needs_triton", "poisoned", "simulated"]

_NAMES = (
    "mask", "block_average", "block_average_adjoint", "separable_blur", "spectral", "clip_gradient", "normals",
    "NaturalStep",
)  # fmt: skip

# Not in Triton.
_COMPILED = (
    "philox", "cosine_fold", "cosine_unfold", "cosine_turn", "cosine_turn_back", "conjugate_step", "conjugate_turn",
    "biharmonic",
)  # fmt: skip


def _simulation() -> Any:
    module = os.environ.get("RMP_FAST_SIMULATED")
    if not module:
        return None
    from simulated import Simulated

    return Simulated(module)


#: The simulated extension, or None.
simulated = _simulation()


def _cpu_parameter(path: str) -> Any:
    reason = f"this processor, or this build, has no {path} path"
    return pytest.param(path, marks=pytest.mark.skipif(path not in _core.cpu_paths(), reason=reason))


_no_triton = triton_ops.unavailable_reason(torch.device("cpu"))
needs_triton = pytest.mark.skipif(_no_triton is not None, reason=_no_triton or "it runs here")

_GPU = torch.device("cuda", 0)
_gpu = OnGpu(cuda_ops, _core, _GPU) if cuda_ops.unavailable_reason(_GPU) is None else None

#: Parameters: the paths of compiled code, and all of them.
CPU_PATHS = ["cuda"] if simulated else [_cpu_parameter(path) for path in ("avx512", "avx2", "wide", "baseline")]
CPU_PATHS += ["cuda"] if _gpu and not simulated else []
PATHS = CPU_PATHS if simulated else [*CPU_PATHS, pytest.param("triton", marks=needs_triton)]


def kernels(path: str) -> SimpleNamespace:
    """The kernels on one path."""
    if path == "triton":
        functions = {name: getattr(triton_ops, name) for name in _NAMES[:-1]}
        return SimpleNamespace(**functions, NaturalStep=lambda antithetic=False, **buffers: TritonStep(**buffers))
    module = (simulated or _gpu) if path == "cuda" else _core
    return SimpleNamespace(
        **{name: functools.partial(getattr(module, name), path=path) for name in (*_NAMES, *_COMPILED)}
    )


def poisoned(shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
    """A tensor of NaN, for results: an element that was not written, or was read before, shows."""
    return torch.full(tuple(shape), math.nan, dtype=dtype)
