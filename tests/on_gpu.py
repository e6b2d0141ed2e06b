"""Kernels of a device for the tests' tensors in CPU memory: they work on copies there, which are then copied back."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

__all__ = ["OnGpu"]


class _Copies:
    """Copies on a device, one for all that is the same memory here."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._known: dict[tuple[int, torch.Size, torch.dtype], tuple[Tensor, Tensor]] = {}

    def __call__(self, value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        key = (value.data_ptr(), value.shape, value.dtype)
        if key not in self._known:
            self._known[key] = value, value.to(self._device, copy=True)
        return self._known[key][1]

    def back(self) -> None:
        """What the kernels have left there; a copy to the CPU waits for them."""
        for original, copy in self._known.values():
            original.copy_(copy)


class _Step:
    def __init__(self, bind: Callable[..., Any], device: torch.device, buffers: dict[str, Any]) -> None:
        self._copies, self._device, self._shape = _Copies(device), device, buffers["mean"].shape
        self._bound = bind(**{name: self._copies(value) for name, value in buffers.items()})

    def _image(self, address: int) -> Tensor:
        numbers = (ctypes.c_float * math.prod(self._shape)).from_address(address)
        return torch.frombuffer(numbers, dtype=torch.float32).reshape(self._shape).to(self._device, copy=True)

    def step(self, look: int, denoised: int, mirror: int = 0, evaluation: int | None = None) -> None:
        """As the bound step, with addresses in CPU memory."""
        if math.prod(self._shape) == 0:
            self._bound.step(look, denoised, mirror, evaluation)
            return
        images = [self._image(address) for address in (denoised, mirror) if address]
        self._bound.step(look, *(image.data_ptr() for image in images), *[0] * (2 - len(images)), evaluation)
        self._copies.back()

    def perturb(self, look: int, evaluation: int) -> None:
        """As the bound step."""
        self._bound.perturb(look, evaluation)
        self._copies.back()


class OnGpu:
    """Kernels of tensors in CPU memory, done on ``device``.

    Args:
        functions: a module with the kernels that take tensors; ``philox`` is the extension's.
        core: the extension.
    """

    def __init__(self, functions: Any, core: Any, device: torch.device) -> None:
        self._functions, self._core, self._device = functions, core, device

    def NaturalStep(self, *, path: str, **buffers: Any) -> _Step:
        """The bound step."""
        return _Step(self._core.NaturalStep, self._device, buffers)

    def philox(self, *arguments: Any, path: str) -> Any:
        """The words of the normals, from the host's half of the same source."""
        return self._core.philox(*arguments, path=path)

    def __getattr__(self, name: str) -> Callable[..., None]:
        function = getattr(self._functions, name)

        def call(*arguments: Any, path: str) -> None:
            copies = _Copies(self._device)
            function(*map(copies, arguments))
            copies.back()

        return call
