"""Which implementations of the chain's arithmetic work here, which do not, and why."""

from __future__ import annotations

import torch

from . import cuda_ops, ops, triton_ops
from ._checks import check_choice

__all__ = ["BACKENDS", "core_error", "preferred", "resolve", "status"]

#: In the order in which ``auto`` prefers them; ``reference`` is float64 and only taken when asked for.
BACKENDS = ("cuda", "triton", "cpu", "torch", "reference")

#: Why the compiled extension cannot be loaded, or None.
core_error = None if ops.available() else f"the compiled extension cannot be loaded: {ops.unavailable_reason()}"


def status(device: torch.device, dtype: torch.dtype) -> dict[str, str | None]:
    """For every backend None if it can run a chain of this device and dtype, else the reason why not."""
    cpu = core_error
    if cpu is None and device.type != "cpu":
        cpu = f"its kernels run on the CPU, not on {device}"
    if cpu is None and dtype != torch.float32:
        cpu = f"its kernels are float32, not {dtype}"
    gpu = {"cuda": cuda_ops.unavailable_reason(device), "triton": triton_ops.unavailable_reason(device)}
    if dtype != torch.float32:
        gpu = {name: reason or f"its kernels are float32, not {dtype}" for name, reason in gpu.items()}
    plain = None if dtype in (torch.float32, torch.float64) else f"the chain's state is float32 or float64, not {dtype}"
    return {**gpu, "cpu": cpu, "torch": plain, "reference": None}


def preferred(device: torch.device, dtype: torch.dtype) -> str:
    """What ``auto`` stands for: the first backend that works; never kernels that are interpreted on the CPU."""
    reasons = status(device, dtype)
    works = (name for name in BACKENDS if reasons[name] is None and (name, device.type) != ("triton", "cpu"))
    return next(works, "torch")


def resolve(backend: str, device: torch.device, dtype: torch.dtype) -> str:
    """The backend to use: ``backend`` itself, or for ``auto`` the fastest that works.

    Raises:
        ValueError: for an unknown name, or a backend that cannot work here, with the reason; for ``auto`` too if
            RMP_FAST_CPU names no code path of this processor, since a wrong wish is no reason to fall back.
    """
    check_choice("backend", backend, ("auto", *BACKENDS))
    if backend == "auto":
        if core_error is not None and "RMP_FAST_CPU" in core_error:
            raise ValueError(core_error)
        backend = preferred(device, dtype)
    reason = status(device, dtype)[backend]
    if reason is not None:
        raise ValueError(f"`backend` {backend!r} cannot be used: {reason}; use backend='auto'")
    return backend
