"""How much memory a network needs and the machine has, and how many images at once are worth their memory."""

from __future__ import annotations

import os
import pathlib
import time
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from .priors import Prior

__all__ = ["SHARE", "available", "bytes_per_pixel", "fastest_batch", "is_exhaustion"]

#: The share of the available memory that a chain may plan with; the rest is for whoever else runs here.
SHARE = 0.5

#: Batches grow as long as an image gets faster by at least this factor.
LEAST_GAIN = 1.05

# What a chain holds besides its network, in images: the plan's buffers and the operator's intermediate results.
_IMAGES = 16
_UNKNOWN = 4 * 2**30


class _Peak(TorchDispatchMode):
    """The most bytes that the results of torch's operations took at one time while this mode was active."""

    def __init__(self) -> None:
        TorchDispatchMode.__init__(self)
        self.now = self.most = 0
        self._live: set[int] = set()

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        results = function(*args, **(kwargs or {}))
        for result in tree_leaves(results):
            if isinstance(result, Tensor):
                self._add(result.untyped_storage())
        return results

    def _add(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._live:
            return
        self._live.add(key)
        self.now += size
        self.most = max(self.most, self.now)
        weakref.finalize(storage, self._remove, key, size)

    def _remove(self, key: int, size: int) -> None:
        self._live.discard(key)
        self.now -= size


def available(device: torch.device) -> int:
    """Bytes that can still be taken on ``device``: of the machine, or of the container's limit where that is less."""
    if device.type == "cuda":
        free = torch.cuda.mem_get_info(device)[0]
        return int(free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device))
    room = [_UNKNOWN]
    try:
        lines = pathlib.Path("/proc/meminfo").read_text().splitlines()
        room = [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable")]
    except OSError:
        if hasattr(os, "sysconf") and "SC_AVPHYS_PAGES" in os.sysconf_names:
            room = [os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    group = pathlib.Path("/sys/fs/cgroup")
    for limit, used in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        try:
            room.append(int((group / limit).read_text()) - int((group / used).read_text()))
        except (OSError, ValueError):
            continue  # no such group, or "max": no limit
    return max(0, min(room))


_measured: weakref.WeakKeyDictionary[Prior, dict[Any, Any]] = weakref.WeakKeyDictionary()


def _once(prior: Prior, key: Any, measure: Callable[[], Any]) -> Any:
    known = _measured.setdefault(prior, {})
    if key not in known:
        known[key] = measure()
    return known[key]


def _look(prior: Prior, shape: tuple[int, ...], device: torch.device, gradients: bool) -> Callable[[], None]:
    x = torch.zeros(shape, device=device, requires_grad=gradients)
    s = torch.ones(shape[0], device=device)

    def look() -> None:
        with torch.set_grad_enabled(gradients):
            out = prior.denoise(x, s)
            if gradients:
                torch.autograd.grad(out, x, out.detach())

    return look


def bytes_per_pixel(prior: Prior, channels: int, device: torch.device, gradients: bool) -> float:
    """Bytes that a chain with this prior takes per pixel of its images, measured once on one of 128x128 pixels.

    Exact for networks whose memory grows with the pixels, as convolutions' does.

    Args:
        channels: C of the images.
        gradients: whether the guidance needs u -> J^T u.
    """

    def measure() -> float:
        side = 128
        with torch.inference_mode(False), _Peak() as peak:
            _look(prior, (1, channels, side, side), device, gradients)()
        return float(peak.most) / side**2 + 4 * channels * _IMAGES

    result: float = _once(prior, ("bytes", channels, device, gradients), measure)
    return result


def fastest_batch(
    prior: Prior, item: tuple[int, ...], limit: int, most_bytes: float, bytes_per_item: float, device: torch.device,
    gradients: bool,
) -> int:  # fmt: skip
    """How many images to denoise at once: doubled from 1 while that makes an image faster, in at most ``most_bytes``.

    Measured once for each prior and shape; a size for which memory runs out ends the doubling.

    Args:
        item: (C, H, W) or (N,).
        limit: images that there are.
        bytes_per_item: what one image needs.
    """
    threads = torch.get_num_threads()

    def seconds(size: int) -> float:
        def measure() -> float:
            look = _look(prior, (size, *item), device, gradients)
            best = float("inf")
            for _ in range(3):  # the first one warms up
                if device.type == "cuda":
                    torch.cuda.synchronize(device)
                started = time.perf_counter()
                look()
                if device.type == "cuda":
                    torch.cuda.synchronize(device)
                best = min(best, time.perf_counter() - started)
            return best / size

        result: float = _once(prior, ("seconds", size, item, device, gradients, threads), measure)
        return result

    size = 1
    with torch.inference_mode(False):
        while 2 * size <= limit and 2 * size * bytes_per_item <= most_bytes:
            try:
                if seconds(size) < LEAST_GAIN * seconds(2 * size):
                    break
            except (RuntimeError, MemoryError) as error:
                if not is_exhaustion(error):
                    raise
                break
            size *= 2
    return size


def is_exhaustion(error: BaseException) -> bool:
    """Whether an exception says that memory ran out."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    words = ("DefaultCPUAllocator", "not enough memory", "out of memory")
    return isinstance(error, RuntimeError) and any(word in str(error) for word in words)
