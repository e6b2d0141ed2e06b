"""The extension with its CUDA kernels compiled for the CPU (tests/simt/cuda_runtime.h), and its tensors "on" a device.

Two builds: ``addresses`` under AddressSanitizer and UndefinedBehaviorSanitizer, whose runtime a process must have from
its start (:func:`environment`); ``races`` with every access to memory announced to tests/simt/races.cpp.
"""

from __future__ import annotations

import concurrent.futures
import ctypes
import fcntl
import importlib.util
import os
import pathlib
import shlex
import shutil
import subprocess
import sysconfig
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from rmp_fast import cuda_ops

__all__ = ["BUILDS", "OnDevice", "Simulated", "build", "environment", "unavailable"]

ROOT = pathlib.Path(__file__).parents[1]
BUILDS = {
    "addresses": ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"],
    "races": ["-fsanitize=thread", "-DSIMT_RACES"],
}
# Fused operations are asked for by name (fmaf); contraction elsewhere would differ from nvcc's, which is off.
_FLAGS = "-std=c++17 -g1 -fPIC -fvisibility=hidden -ffp-contract=off -Wall -Wextra -Wno-unknown-pragmas -Wno-psabi"


def _compiler() -> list[str]:
    return shlex.split(os.environ.get("CXX", "g++"))


def unavailable() -> str | None:
    """Why this machine cannot build it, or None."""
    if shutil.which(_compiler()[0]) is None:
        return f"there is no C++ compiler {_compiler()[0]!r} here"
    if importlib.util.find_spec("pybind11") is None:
        return "the package pybind11 is not installed"
    return None


def _includes() -> list[str]:
    import pybind11

    return [f"-I{path}" for path in (ROOT, pybind11.get_include(), sysconfig.get_paths()["include"])]


def _objects(name: str) -> list[tuple[pathlib.Path, str, list[str]]]:
    """(source, folder of the object, flags) of one build; what no sanitizer watches is shared by both."""
    host = ["-O1", "-fopenmp", "-DRMP_CUDA"]
    cpu = ["-O1", "-fopenmp", "-DRMP_PATH=baseline", "-DRMP_LANES=4"]
    cuda = ["-Og", "-DRMP_PATH=cuda", f"-I{ROOT}/tests/simt"]
    simt = ["-O1", f"-I{ROOT}/tests/simt", *(["-DSIMT_RACES"] if name == "races" else BUILDS[name])]
    return [
        *((path, "host", host) for path in sorted((ROOT / "csrc").glob("*.cpp"))),
        *((path, "cpu", cpu) for path in sorted((ROOT / "kernels/cpu").glob("*.cpp"))),
        (ROOT / "kernels/launchers.cpp", "cpu", cpu),
        (ROOT / "kernels/launchers.cpp", "cuda", cuda),
        *((path, name, [*cuda, *BUILDS[name]]) for path in sorted((ROOT / "kernels/cuda").glob("*.cu"))),
        *((path, name, [*cuda, *BUILDS[name]]) for path in sorted((ROOT / "tests/simt").glob("*.cu"))),
        *((path, name, simt) for path in sorted((ROOT / "tests/simt").glob("*.cpp"))),
    ]


def _compile(source: pathlib.Path, folder: pathlib.Path, flags: list[str]) -> pathlib.Path:
    """The object of one source file, made anew where the file, what it includes or the command has changed."""
    folder.mkdir(parents=True, exist_ok=True)
    made, listed, stamp = (folder / f"{source.name}{end}" for end in (".o", ".d", ".command"))
    command = [*_compiler(), *_FLAGS.split(), *flags, *_includes(), "-MMD", "-MF", str(listed)]
    command += ["-x", "c++", "-c", str(source), "-o", str(made)]
    if stamp.exists() and stamp.read_text() == shlex.join(command):
        used = listed.read_text().replace("\\\n", " ").split(":", 1)[1].split()
        if all(os.path.exists(path) and os.stat(path).st_mtime < made.stat().st_mtime for path in used):
            return made
    _run(command)
    stamp.write_text(shlex.join(command))
    return made


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{shlex.join(command)}\n{done.stdout}{done.stderr}")


def build(name: str) -> pathlib.Path:
    """The module of a build, compiled where it is out of date."""
    folder = ROOT / "build" / "simulated"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock, concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        fcntl.flock(lock, fcntl.LOCK_EX)
        tasks = [pool.submit(_compile, source, folder / where, flags) for source, where, flags in _objects(name)]
        objects = [task.result() for task in tasks]
        module = folder / name / "_core.so"
        newest = max(path.stat().st_mtime for path in objects)
        if not module.exists() or module.stat().st_mtime <= newest:
            # The watch over races answers the sanitizer's calls itself: its runtime stays out.
            sanitizer = BUILDS[name] if name == "addresses" else []
            _run([*_compiler(), "-shared", "-fopenmp", *sanitizer, *map(str, objects), "-o", str(module)])
    return module


def environment(name: str) -> dict[str, str]:
    """What a process needs that loads the build."""
    variables = {**os.environ, "RMP_FAST_SIMULATED": str(build(name))}
    if name == "addresses":
        libraries = ["libasan.so", "libubsan.so", "libstdc++.so"]
        paths = [
            subprocess.run([*_compiler(), f"-print-file-name={library}"], capture_output=True, text=True, check=True)
            for library in libraries
        ]
        variables["LD_PRELOAD"] = ":".join(path.stdout.strip() for path in paths)
        # Python keeps much of what it allocates until it ends.
        variables["ASAN_OPTIONS"] = "detect_leaks=0"
        variables["UBSAN_OPTIONS"] = "print_stacktrace=1"
    return variables


class OnDevice:
    """A tensor in CPU memory that says through DLPack that it lies on CUDA device 0."""

    _pointer = ctypes.pythonapi.PyCapsule_GetPointer
    _pointer.restype = ctypes.c_void_p
    _pointer.argtypes = (ctypes.py_object, ctypes.c_char_p)

    def __init__(self, tensor: Tensor, device: int = 0) -> None:
        self.tensor, self.device = tensor, device

    def __dlpack__(self) -> object:
        capsule = torch.utils.dlpack.to_dlpack(self.tensor)
        address = self._pointer(capsule, b"dltensor")
        # struct DLTensor: the data's address, then the device's type (2: CUDA) and number, 32 bits each.
        (ctypes.c_int32 * 2).from_address(address + 8)[:] = [2, self.device]
        return capsule


def _on_device(value: Any) -> Any:
    return OnDevice(value) if isinstance(value, Tensor) else value


class Simulated:
    """A build's module, taking tensors in CPU memory for the path "cuda"."""

    def __init__(self, path: str) -> None:
        specification = importlib.util.spec_from_file_location("_core", path)
        assert specification is not None
        assert specification.loader is not None
        self.module: ModuleType = importlib.util.module_from_spec(specification)
        specification.loader.exec_module(self.module)
        self._library = ctypes.CDLL(path)
        self.set_up()

    def set_up(self, seed: int = 0, processors: int = 1) -> None:
        """How blocks and threads are shuffled, and the size of the device, few processors so that blocks take turns."""
        self._library.simt_setup(ctypes.c_uint64(seed), ctypes.c_uint(processors))

    def launches(self) -> int:
        """How many kernels were launched so far."""
        return int(self._library.simt_launches())

    def inject(self, error: int) -> None:
        """Make the next launch fail with a ``cudaError_t``."""
        self._library.simt_inject(ctypes.c_int(error))

    def __getattr__(self, name: str) -> Callable[..., Any]:
        function = getattr(self.module, name)

        def call(*arguments: Any, **options: Any) -> Any:
            if name == "separable_blur" and "scratch" not in options:
                options["scratch"] = torch.full_like(arguments[5], torch.nan)
            if name == "clip_gradient" and "scratch" not in options:
                options["scratch"] = cuda_ops.squares_of(arguments[0], arguments[1], arguments[4]).fill_(torch.nan)
            made = {key: _on_device(value) for key, value in options.items()}
            return function(*map(_on_device, arguments), **made)

        return call
