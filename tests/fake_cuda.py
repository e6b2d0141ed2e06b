"""Runs every chain on tensors of a CUDA device that have no memory, and prints what goes wrong, as JSON by chain.

A program of its own, because it registers a guard of CUDA devices that does nothing, without which a torch that was
built for the CPU does not even let tensors without memory claim to lie on one.
"""

from __future__ import annotations

import ctypes
import json
import pathlib
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable
from typing import Any
from unittest import mock

import torch
from capture_cases import CHAINS, arguments, named
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily

import rmp_fast as rmp
from rmp_fast import execution, plan, table
from rmp_fast.watch import Watch

_GUARD = """
#include <c10/core/impl/DeviceGuardImplInterface.h>
C10_REGISTER_GUARD_IMPL(CUDA, c10::impl::NoOpDeviceGuardImpl<c10::DeviceType::CUDA>)
"""


def register_guard() -> None:
    """Let torch's bookkeeping of devices accept CUDA's."""
    torchs = pathlib.Path(torch.__file__).parent
    with tempfile.TemporaryDirectory() as folder:
        source, library = pathlib.Path(folder, "guard.cpp"), pathlib.Path(folder, "guard.so")
        source.write_text(_GUARD)
        subprocess.run(
            ["g++", "-std=c++20", "-shared", "-fPIC", f"-I{torchs}/include", str(source), "-o", str(library),
             f"-L{torchs}/lib", "-lc10", f"-Wl,-rpath,{torchs}/lib"],
            check=True,
        )  # fmt: skip
        ctypes.CDLL(str(library))


def _with_values(function: Callable[..., Any]) -> Callable[..., Any]:
    """The tables that a plan computes on the host keep their numbers."""

    def call(*values: Any, **others: Any) -> Any:
        with unset_fake_temporarily():
            return function(*values, **others)

    return call


def problems(name: str, options: dict[str, Any]) -> list[str]:
    """What is wrong with one chain: an exception, results elsewhere, or operations that no graph can hold."""
    short = {"schedule": rmp.schedules.log(1, 0.05, 10.0)}  # every level does the same
    given = arguments(name, device="cuda", backend="torch", **{**short, **options})
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        made = rmp.Plan(**given)
        y = torch.zeros(made.measurement_shape, device="cuda")
        seeds = torch.zeros(made.shape[0], dtype=torch.int64, device="cuda")
        conditioned = execution.condition_prior(made, y) if made.guidance == "exact" else None

        def chain() -> tuple[torch.Tensor, torch.Tensor | None]:
            tally = execution.Tally(made.evaluations)
            return execution.chains(made, y, seeds, conditioned, execution.no_stats(), tally)

        chain()  # derives what the operator keeps for every later one
        with Watch() as watch:
            mean, variance = chain()
    found = list(watch.found)
    for what, tensor in (("mean", mean), ("variance", variance)):
        if tensor is not None and (tensor.device.type, tuple(tensor.shape)) != ("cuda", made.shape):
            found.append(f"the {what} is {tuple(tensor.shape)} on {tensor.device}")
    return found


def main() -> None:
    """Print {chain: problems}, and for the check's own sake those of a prior that waits for the host."""
    register_guard()

    def noise(value: float, batch: int, device: torch.device) -> torch.Tensor:
        return torch.full((batch,), value, dtype=torch.float64, device=device)

    def waits(x: torch.Tensor, s: torch.Tensor) -> torch.Tensor:
        return x.cpu().to(x.device)

    def gradients(
        outputs: torch.Tensor, inputs: torch.Tensor, *_: Any, create_graph: bool = False, **__: Any
    ) -> tuple[torch.Tensor]:
        # Autograd's engine asks for a real device; what it runs lies where the forward pass lay.
        return (torch.zeros_like(inputs).requires_grad_(create_graph),)

    results = {}
    chains = [*CHAINS, ("denoising", {"prior": rmp.priors.from_denoiser(waits, 0.5, "waits")})]
    with (
        mock.patch.object(torch.autograd, "grad", gradients),
        mock.patch.object(plan, "check_noise_std", noise),
        mock.patch.object(table, "rows_of_levels", _with_values(table.rows_of_levels)),
        mock.patch.object(table, "rows_of_looks", _with_values(table.rows_of_looks)),
        mock.patch.object(rmp.schedules, "log", _with_values(rmp.schedules.log)),
    ):
        for chain in chains:
            key = "waits" if "prior" in chain[1] else named(chain)
            try:
                results[key] = problems(*chain)
            except Exception as error:
                frames = [f"{f.filename}:{f.lineno}" for f in traceback.extract_tb(error.__traceback__)]
                ours = [frame for frame in frames if "rmp_fast" in frame]
                results[key] = [f"{type(error).__name__}: {str(error)[:300]} at {ours[-1] if ours else frames[-1]}"]
    json.dump(results, sys.stdout)


if __name__ == "__main__":
    main()
