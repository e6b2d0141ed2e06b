"""The CUDA kernels, compiled for the CPU under sanitizers (simulated.py), against the tests of all kernels."""

from __future__ import annotations

import pathlib
import subprocess
import sys

import pytest
import simulated

TESTS = pathlib.Path(__file__).parent

pytestmark = pytest.mark.skipif(simulated.unavailable() is not None, reason=str(simulated.unavailable()))


def _run(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *arguments]
    environment = simulated.environment(name)
    return subprocess.run(command, cwd=TESTS, env=environment, capture_output=True, text=True, check=False)


def _assert_passed(done: subprocess.CompletedProcess[str]) -> None:
    assert done.returncode == 0, f"{done.stdout[-10_000:]}\n{done.stderr[-10_000:]}"
    assert " passed" in done.stdout


PYTEST = ("-m", "pytest", "-q", "-x", "-s", "-p", "no:cacheprovider")


@pytest.mark.parametrize("name", simulated.BUILDS)
def test_kernels(name: str) -> None:
    # The order of accesses is the same at any number of threads of the CPU, and the watch over races is slow.
    few = ("-k", "not same_bits and not moments") if name == "races" else ()
    _assert_passed(_run(name, *PYTEST, "test_kernels.py", "simt_cases.py", *few))


#: Faults of simt/faulty.cu at which a sanitizer ends the process.
FATAL = {
    3: "heap-buffer-overflow",
    4: "heap-buffer-overflow",
    5: "misaligned address",
    9: "shift exponent 40 is too large",
}


@pytest.mark.parametrize("fault", FATAL)
def test_sanitizers_see_into_the_kernels(fault: int) -> None:
    done = _run("addresses", "-c", f"import simt_cases; simt_cases.faulty({fault})")
    assert done.returncode != 0
    assert FATAL[fault] in done.stderr
    assert "faulty.cu" in done.stderr
