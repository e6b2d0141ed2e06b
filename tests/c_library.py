"""librmp_fast as Python sees it: built once per checkout, loaded with ctypes, its structs spelled out."""

from __future__ import annotations

import ctypes
import functools
import os
import pathlib
import shutil
import subprocess
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

ROOT = pathlib.Path(__file__).parents[1]
#: Kept between runs, so that only what changed is compiled.
BUILDS = ROOT / "build" / "library-tests"

OK, INVALID_ARGUMENT, OUT_OF_MEMORY, BUSY, CALLBACK_FAILED = range(5)
KINDS = ("identity", "mask", "block_average", "gaussian_blur", "linear", "correction")
NOISES = ("control", "drawn", "antithetic", "none")
ANCHORS = ("current", "next")
COVARIANCES = ("fixed", "learned", "diagonal")

_float_p, _int64, _void_p = ctypes.POINTER(ctypes.c_float), ctypes.c_int64, ctypes.c_void_p
Denoiser = ctypes.CFUNCTYPE(ctypes.c_int, _void_p, _float_p, _float_p, _float_p, _int64, _int64, _void_p)
Map = ctypes.CFUNCTYPE(ctypes.c_int, _void_p, _float_p, _float_p, _int64, _int64, _int64, _void_p)
Correction = ctypes.CFUNCTYPE(ctypes.c_int, _void_p, _float_p, _float_p, _float_p, _int64, _int64, _int64, _void_p)


class Look(ctypes.Structure):
    _fields_ = tuple((name, ctypes.c_double) for name in ("level", "noise", "weight", "momentum", "variance"))


class Operator(ctypes.Structure):
    _fields_ = (
        ("kind", ctypes.c_int32),
        ("boundary", ctypes.c_int32),
        ("mask", ctypes.POINTER(ctypes.c_uint8)),
        ("mask_items", _int64),
        ("factor", _int64),
        ("blur_std", ctypes.c_double),
        ("measurement_numel", _int64),
        ("iterations", _int64),
        ("apply", Map),
        ("adjoint", Map),
        ("correct", Correction),
        ("user", _void_p),
    )


class Options(ctypes.Structure):
    _fields_ = (
        ("size", ctypes.c_size_t),
        ("batch", _int64),
        ("channels", _int64),
        ("height", _int64),
        ("width", _int64),
        ("levels", ctypes.POINTER(ctypes.c_double)),
        ("level_count", _int64),
        ("looks", ctypes.POINTER(Look)),
        ("look_count", _int64),
        ("op", Operator),
        ("noise_std", ctypes.POINTER(ctypes.c_double)),
        ("noise_std_count", _int64),
        ("data_variance", ctypes.c_double),
        ("denoiser", Denoiser),
        ("user", _void_p),
        ("noise", ctypes.c_int32),
        ("anchor", ctypes.c_int32),
        ("covariance", ctypes.c_int32),
        ("start", ctypes.c_int32),
        ("inner_steps", _int64),
        ("step_size", ctypes.c_double),
        ("relaxation", ctypes.c_double),
        ("precision_rate", ctypes.c_double),
        ("threads", ctypes.c_int32),
    )


def run(*command: object, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a command; its output is the message of the failure."""
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, **options)
    assert done.returncode == 0, f"{' '.join(map(str, command))}\n{done.stdout}\n{done.stderr}"
    return done


def built(name: str, source: pathlib.Path, **definitions: str) -> pathlib.Path:
    """The build folder of a CMake project; a test without cmake is skipped."""
    if shutil.which("cmake") is None:
        pytest.skip("cmake is not installed: librmp_fast cannot be built")
    folder = BUILDS / name
    generator = ["-G", "Ninja"] if shutil.which("ninja") else []
    run("cmake", "-S", source, "-B", folder, *generator, *(f"-D{key}={value}" for key, value in definitions.items()))
    run("cmake", "--build", folder, "--parallel", os.cpu_count() or 1)
    return folder


@functools.cache
def checks() -> pathlib.Path:
    """The build folder of the library as it is shipped, but for one code path, and of its checks in C++."""
    return built("plain", ROOT / "tests" / "library", CMAKE_BUILD_TYPE="Release")


@functools.cache
def installed() -> pathlib.Path:
    """The prefix of ``cmake --install``."""
    prefix = BUILDS / "installed"
    shutil.rmtree(prefix, ignore_errors=True)
    run("cmake", "--install", checks(), "--prefix", prefix)
    return prefix


@functools.cache
def library() -> ctypes.CDLL:
    loaded = ctypes.CDLL(str(checks() / "rmp_fast" / "librmp_fast.so"))
    loaded.rmp_fast_last_error.restype = loaded.rmp_fast_version.restype = ctypes.c_char_p
    for name in ("looks", "measurement_numel", "buffer_bytes"):
        function = getattr(loaded, f"rmp_fast_plan_{name}")
        function.restype, function.argtypes = _int64, (_void_p,)
    loaded.rmp_fast_plan_execute.argtypes = (_void_p,) * 7
    loaded.rmp_fast_plan_set_noise_std.argtypes = (_void_p, ctypes.POINTER(ctypes.c_double), _int64)
    loaded.rmp_fast_plan_coefficients.argtypes = (_void_p, _void_p, _int64)
    loaded.rmp_fast_log_levels.argtypes = (_int64, ctypes.c_double, ctypes.c_double, _void_p)
    loaded.rmp_fast_plan_destroy.argtypes = (_void_p,)
    loaded.rmp_fast_options_init.argtypes = (_void_p, ctypes.c_size_t)
    return loaded


def last_error() -> str:
    return library().rmp_fast_last_error().decode()


def doubles(values: Sequence[float]) -> Any:
    return (ctypes.c_double * len(values))(*values)


def tensor(pointer: Any, *shape: int) -> Tensor:
    return torch.from_numpy(np.ctypeslib.as_array(pointer, shape))


def options(shape: tuple[int, ...], kind: str = "identity", **fields: Any) -> Options:
    """Options of a small chain; ``fields`` replace its, those that begin with ``op_`` the operator's."""
    made = Options()
    assert library().rmp_fast_options_init(ctypes.byref(made), ctypes.sizeof(made)) == OK
    made.batch, made.channels, made.height, made.width = shape
    made.levels, made.level_count = doubles([0.05, 0.3, 1.5, 8.0]), 4
    made.noise_std, made.noise_std_count = doubles([0.1]), 1
    made.data_variance = 0.4
    made.op.kind = KINDS.index(kind)
    made.denoiser = Denoiser(lambda *_: 1)
    for name, value in fields.items():
        owner = made.op if name.startswith("op_") else made
        setattr(owner, name.removeprefix("op_"), value)
    return made


def denoiser(denoise: Callable[[Tensor, Tensor], Tensor], shape: tuple[int, ...]) -> Any:
    """D(x, s) of torch as a C function."""

    def call(_: Any, x: Any, s: Any, out: Any, batch: int, numel: int, stream: Any) -> int:
        image = tensor(x, batch, *shape[1:])
        tensor(out, batch, *shape[1:]).copy_(denoise(image, tensor(s, batch)))
        return 0

    return Denoiser(call)


class Plan:
    """A plan of the library; its arguments outlive it."""

    def __init__(self, given: Options) -> None:
        self.options = given
        self.shape = (given.batch, given.channels, given.height, given.width)
        self.handle = _void_p()
        status = library().rmp_fast_plan_create(ctypes.byref(given), ctypes.byref(self.handle))
        if status != OK:
            raise ValueError(f"{status}: {last_error()}")

    def __del__(self) -> None:
        library().rmp_fast_plan_destroy(self.handle)

    def coefficients(self) -> Tensor:
        rows = torch.zeros(library().rmp_fast_plan_looks(self.handle) + 1, self.shape[0], 8)
        assert library().rmp_fast_plan_coefficients(self.handle, rows.data_ptr(), rows.numel()) == OK
        return rows

    def execute(self, y: Tensor, seeds: Tensor | None = None, start: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Mean (B, C, H, W) and ok (B,); ValueError with status and message."""
        out, ok = torch.full(self.shape, 7.0), torch.full(self.shape[:1], 7, dtype=torch.uint8)
        y = y.contiguous()
        pointers = [None if t is None else t.contiguous().data_ptr() for t in (seeds, start)]
        status = library().rmp_fast_plan_execute(
            self.handle, y.data_ptr(), *pointers, out.data_ptr(), ok.data_ptr(), None
        )
        if status != OK:
            raise ValueError(f"{status}: {last_error()}")
        return out, ok.bool()
