"""The kernels beside the same in eager torch and beside copies, on the device that they run on.

A card is measured with its own events; inside a CUDA graph, too, where no host delays a kernel. The same code measures
the CPU, where tests can run it.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from .. import backends, loop, ops, reference
from ..graph import GraphPool, graph_of
from ..torch_step import TorchStep
from ..triton_step import TritonStep
from . import cost, devices, observe
from .cost import Work
from .harness import CheckError
from .interleave import Timing, interleaved

__all__ = ["SHAPES", "Case", "arms", "calls", "cases", "device_of", "full_float32", "measure", "place_of", "row"]

#: (B, C, H, W) that are measured by default.
SHAPES = ((1, 3, 256, 256), (16, 3, 256, 256), (1, 1, 32, 32))
#: Kernels in one graph, so that its launch is nothing beside them.
GRAPHED = 20
#: Largest difference from torch, of the largest value or of 1: each of the two makes some ten roundings of 2^-24.
CLOSE = 1e-5
FACTOR = 4
#: Rows of :data:`STEPS`: options of :func:`rmp_fast.bench.cost.natural_step`.
STEPS: tuple[dict[str, Any], ...] = (
    {"perturbed": False},
    {"perturbed": True},
    {"perturbed": True, "drawn": True},
    {"perturbed": True, "antithetic": True},
    {"perturbed": True, "precision": "isotropic"},
    {"perturbed": True, "precision": "diagonal"},
    {"perturbed": True, "correction": "identity"},
    {"perturbed": True, "correction": "mask"},
    {"perturbed": True, "correction": "block_average"},
    {"perturbed": True, "correction": "gradient"},
)

#: What the kernels' functions compute, in eager torch.
_EAGER: dict[str, Callable[..., Tensor]] = {
    "mask": lambda x, mask, out: ops.mask(x, mask, backend="torch"),
    "block_average": lambda x, factor, out: ops.block_average(x, factor, backend="torch"),
    "block_average_adjoint": lambda y, factor, out: ops.block_average_adjoint(
        y, factor, out.shape[2:], backend="torch"
    ),
    "separable_blur": lambda x, vertical, horizontal, boundary, adjoint, out: ops.separable_blur(
        x, vertical, horizontal, boundary, adjoint=adjoint, backend="torch"
    ),
    "spectral": lambda c, energy, data, ratio, out, update: ops.spectral(
        c, energy, data, ratio, update=update, backend="torch"
    ),
    "clip_gradient": lambda *given: ops.clip_gradient(*given[:-1], backend="torch"),
    "normals": lambda seeds, evaluation, stream, out: (
        reference.normals(seeds, evaluation, stream, out[0].numel()).float().reshape(out.shape)
    ),
}


@dataclasses.dataclass(frozen=True)
class Case:
    """One kernel on one batch.

    Attributes:
        work: its cost on paper.
        ours, eager: the kernel, and the same in eager torch.
        check: runs both once from the same buffers; CheckError where they do not agree.
    """

    work: Work
    ours: Callable[[], object]
    eager: Callable[[], object]
    check: Callable[[], None]


def place_of(name: str) -> torch.device:
    """The CPU, or a CUDA device with its number.

    Raises:
        ValueError: there is no such device here, with what torch finds.
        RuntimeError: torch knows no such name.
    """
    device = torch.device(name)
    if device.type == "cuda":
        if not torch.cuda.is_available():
            found = "torch was built without it" if torch.version.cuda is None else "torch finds no device or driver"
            raise ValueError(f"`device` {name!r} needs CUDA, but {found}; use 'cpu'")
        if device.index is not None and device.index >= torch.cuda.device_count():
            raise ValueError(f"`device` {name!r} is not there: torch finds {torch.cuda.device_count()} CUDA device(s)")
        return torch.device("cuda", torch.cuda.current_device() if device.index is None else device.index)
    if device.type != "cpu":
        raise ValueError(f"`device` must be 'cpu' or a CUDA device, got {name!r}")
    return torch.device("cpu")


def device_of(name: str, backend: str = "auto") -> tuple[torch.device, str]:
    """The device of that name and the backend whose kernels run on it.

    Raises:
        ValueError: there is no such device here, or no kernels for it, with the reason.
        RuntimeError: torch knows no such name.
    """
    device = place_of(name)
    chosen = backends.resolve(backend, device, torch.float32)
    if chosen in ("torch", "reference"):
        reasons = backends.status(device, torch.float32)
        told = "; ".join(f"{kind}: {reasons[kind]}" for kind in ("cuda", "triton", "cpu") if reasons[kind])
        raise ValueError(f"no kernels to measure on {device} with `backend` {backend!r} ({told})")
    return device, chosen


@contextlib.contextmanager
def full_float32() -> Iterator[None]:
    """Convolutions on a card in float32 from end to end, where torch's default rounds their inputs to 11 bits."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


def calls(shape: Sequence[int], device: torch.device | str = "cpu") -> list[tuple[str, tuple[Any, ...]]]:
    """Kernels that run in starts and gradients, with arguments for images (B, C, H, W)."""
    batch, channels, height, width = shape
    x, out, taps = torch.rand(*shape, device=device), torch.empty(*shape, device=device), torch.full((17,), 1 / 17)
    factor, taps = min(FACTOR, height, width), taps.to(device)
    blocks = torch.rand(batch, channels, -(-height // factor), -(-width // factor), device=device)
    mask = (torch.rand(x.shape, device=device) > 0.5).to(torch.uint8)
    gradient, limit = torch.rand(*shape, device=device), torch.full((batch,), 0.5, device=device)
    return [
        ("mask", (x, mask, out)),
        ("block_average", (x, factor, blocks)),
        ("block_average_adjoint", (blocks, factor, out)),
        ("separable_blur", (x, taps, taps, "reflect", False, out)),
        ("clip_gradient", (x, gradient, limit, limit, blocks, out)),
        ("normals", (torch.arange(batch, device=device), 0, 0, out)),
    ]


def _spectral_calls(shape: Sequence[int], device: torch.device) -> list[tuple[str, tuple[Any, ...]]]:
    """Coefficients of a real and of a complex transform, with one energy for all images."""
    batch, channels, height, width = shape
    made = []
    for numbers, dtype in ((width, torch.float32), (width // 2 + 1, torch.complex64)):
        c, data = (torch.randn(batch, channels * height * numbers, dtype=dtype, device=device) for _ in range(2))
        energy = torch.rand(1, c.shape[1], device=device)
        ratio = torch.full((batch,), 0.1, device=device)
        made.append(("spectral", (c, energy, data, ratio, torch.empty_like(c), True)))
    return made


def cases(shape: Sequence[int], device: torch.device, backend: str) -> Iterator[Case]:
    """All kernels on images (B, C, H, W), one after the other: their buffers are large."""
    for options in STEPS:
        yield _step_case(shape, device, backend, **options)
    for kernel, arguments in (*calls(shape, device), *_spectral_calls(shape, device)):
        yield _call_case(kernel, arguments, backend)


def _agree(made: Tensor, expected: Tensor, name: str, what: str) -> None:
    gap = float((made - expected).abs().max())
    largest = max(1.0, float(expected.abs().max()))
    if not gap <= CLOSE * largest:
        raise CheckError(f"{name}: {what} differs from eager torch by {gap:.2g} at values up to {largest:.2g}")


def _call_case(kernel: str, arguments: tuple[Any, ...], backend: str) -> Case:
    work = cost.call(kernel, arguments)
    out: Tensor = arguments[-2] if kernel == "spectral" else arguments[-1]
    function, eager = getattr(ops.kernels(backend, out), kernel), _EAGER[kernel]

    def ours() -> None:
        function(*arguments)

    def check() -> None:
        out.fill_(float("nan"))  # what the kernel leaves out is found
        ours()
        _agree(out, eager(*arguments), work.name, "the result")

    return Case(work, ours, lambda: eager(*arguments), check)


def _step_case(
    shape: Sequence[int], device: torch.device, backend: str, *, perturbed: bool, correction: str = "none",
    antithetic: bool = False, drawn: bool = False, precision: str = "fixed",
) -> Case:  # fmt: skip
    """A step between looks, whose new mean is a buffer of its own."""
    batch, channels, height, width = shape
    factor = min(FACTOR, height, width)

    def image(*sizes: int) -> Tensor:
        return torch.randn(*(sizes or shape), device=device)

    std = 0.1
    # In the order of rmp_fast.torch_step's columns.
    look = torch.tensor([0.3, 0.5, std * perturbed, 0.2, 0.3, 0.3, std, 0.3], device=device)
    mean = image()
    noise = std * image()
    curvature = {"fixed": None, "isotropic": (batch,), "diagonal": tuple(shape)}[precision]
    settings: dict[str, Any] = {"drawn": drawn, "correction": "mask" if correction == "identity" else correction}
    priced: dict[str, Any] = {}
    if correction == "block_average":
        settings |= {"y": image(batch, channels, -(-height // factor), -(-width // factor)), "factor": factor}
        priced = {"block_numbers": settings["y"][0].numel(), "factor": factor, "width": width}
    elif correction != "none":
        settings["y"] = image()
    if correction == "mask":
        settings["mask"] = (torch.rand(1, *shape[1:], device=device) > 0.5).to(torch.uint8)
        priced = {"shared_mask": batch > 1}
    given = {
        "previous": image(), "mean": mean, "next_mean": torch.empty_like(mean), "input": mean + noise,
        "input_mirror": mean - noise if antithetic else None, "looks": look.expand(1, batch, 8).contiguous(),
        "seeds": torch.arange(batch, device=device), "ok": torch.ones(batch, dtype=torch.uint8, device=device),
        "curvature": None if curvature is None else torch.full(curvature, 0.2, device=device), **settings,
    }  # fmt: skip
    written = ("next_mean", "input", "input_mirror", "curvature", "ok")
    other = {name: v.clone() if name in written and v is not None else v for name, v in given.items()}
    bound: dict[str, Any] = {"torch": TorchStep, "triton": TritonStep}
    ours, theirs = bound.get(backend, loop.CompiledStep)(**given), TorchStep(**other)
    denoised = image(2 * batch if antithetic else batch, *shape[1:])
    work = cost.natural_step(
        mean[0].numel(), perturbed=perturbed, correction=correction, antithetic=antithetic, drawn=drawn,
        precision=precision, **priced,
    ).of(batch)  # fmt: skip

    def check() -> None:
        given["next_mean"].fill_(float("nan"))
        for step in (ours, theirs):
            step(0, denoised, 1)
        for name in written:
            if given[name] is not None:
                _agree(given[name].float(), other[name].float(), work.name, f"`{name}`")

    return Case(work, lambda: ours(0, denoised, 1), lambda: theirs(0, denoised, 1), check)


def arms(case: Case, device: torch.device, graphed: bool) -> dict[str, Callable[[], object]]:
    """The kernel, eager torch and the copy; with ``graphed`` also :data:`GRAPHED` kernels and copies as graphs."""
    copy = observe.copies(case.work, device)
    made: dict[str, Callable[[], object]] = {"ours": case.ours, "torch": case.eager, "copy": copy}
    if graphed:
        pool = GraphPool(device)
        for name, call in (("ours", case.ours), ("copy", copy)):
            call()

            def several(call: Callable[[], object] = call) -> None:
                for _ in range(GRAPHED):
                    call()

            made[f"{name}, graph"] = graph_of(pool, several).replay
    return made


def row(work: Work, shape: Sequence[int], timings: dict[str, Timing], card: devices.Device | None) -> dict[str, Any]:
    """What the seconds of the arms of one kernel say.

    The bandwidths are those inside a graph where there is one.
    """
    ours, torchs, copy = (timings[name] for name in ("ours", "torch", "copy"))
    graphs = [timings[f"{name}, graph"].median / GRAPHED for name in ("ours", "copy") if f"{name}, graph" in timings]
    alone, plain = graphs or (ours.median, copy.median)
    return {
        "kernel": work.name, "shape": list(shape), "bytes": work.bytes, "launches": work.launches,
        "seconds": ours.median, "low": ours.low, "high": ours.high, "torch_seconds": torchs.median,
        "torch_ratio": torchs.median / ours.median, "graph_seconds": graphs[0] if graphs else None,
        "gbps": work.bytes / alone / 1e9, "copy_gbps": work.bytes / plain / 1e9, "bandwidth_share": plain / alone,
        "paper_seconds": None if card is None else card.seconds(work),
    }  # fmt: skip


def measure(
    device: str = "cuda", shapes: Sequence[Sequence[int]] = SHAPES, backend: str = "auto", *, rounds: int = 15,
    sample: float = 0.01,
) -> dict[str, Any]:  # fmt: skip
    """Seconds of every kernel beside eager torch and a copy of as many bytes, each checked before, in turns.

    Args:
        device: ``"cuda"``, ``"cuda:1"``, ... or ``"cpu"``.
        shapes: (B, C, H, W) of the images.
        backend: whose kernels; ``"auto"``: those that a plan would choose.
        rounds, sample: as in :func:`rmp_fast.bench.interleave.interleaved`.

    Returns:
        JSON values: ``device``, ``kernels`` (rows of :func:`row`) and ``refused``, why a kernel has no row.

    Raises:
        ValueError: see :func:`device_of`.
    """
    place, backend = device_of(device, backend)
    on_card = place.type == "cuda"
    name = torch.cuda.get_device_name(place) if on_card else "this machine's CPU"
    card = devices.known(name) if on_card else None
    rows, refused = [], []
    with torch.cuda.device(place) if on_card else contextlib.nullcontext():
        for shape in shapes:
            for case in cases(shape, place, backend):
                try:
                    with full_float32():
                        case.check()
                except CheckError as error:
                    refused.append(f"{' x '.join(map(str, shape))}: {error}")
                    continue
                timings = interleaved(arms(case, place, on_card), rounds=rounds, sample=sample, device=place)
                rows.append(row(case.work, shape, timings, card))
    told = {"id": place.type, "name": name, "backend": backend, "torch": torch.__version__}
    return {"device": told, "kernels": rows, "refused": refused}
