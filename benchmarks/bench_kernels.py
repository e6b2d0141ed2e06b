"""The CPU kernels against eager torch, torch.compile and plain copies of as many bytes, on one thread.

Run ``pytest benchmarks/bench_kernels.py``. Arms are checked to agree, then timed in turns; the printed ratios are
those of the medians. Nothing is asserted about time. pytest-benchmark's own figure is that of our arm alone.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from rmp_fast import _core
from rmp_fast.bench.interleave import interleaved, table

Arms = dict[str, Callable[[], object]]
Report = Callable[..., None]

SHAPES = [(1, 1, 32, 32), (1, 3, 256, 256), (16, 3, 256, 256)]
TO_PREVIOUS, TO_DENOISED, STD = 0.3, 0.5, 0.1


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def report(benchmark: Any, capsys: pytest.CaptureFixture[str], request: pytest.FixtureRequest) -> Report:
    def run(arms: Arms, ours: str = "rmp_fast", ruler: tuple[int, ...] = (1, 3, 256, 256), **settings: Any) -> None:
        if ours == "rmp_fast":
            # What compare_stored.py measures the kernel with: a copy of images of the size it works on.
            arms = {**arms, "copy": _copies(2, ruler)}
            settings["clock"] = time.thread_time
        benchmark.extra_info["cpu_path"] = _core.cpu_path()
        timings = interleaved(arms, **settings)
        for name, timing in timings.items():
            benchmark.extra_info[name] = {"median": timing.median, "low": timing.low, "high": timing.high}
            benchmark.extra_info[f"{name} / {ours}"] = timing.median / timings[ours].median
        with capsys.disabled():
            print("\n" + table(f"{request.node.name}  ({_core.cpu_path()})", timings, ours))
        benchmark.pedantic(arms[ours], rounds=5, iterations=3, warmup_rounds=1)

    return run


def _close(a: Tensor, b: Tensor, bound: float = 1e-5) -> None:
    assert (a - b).abs().max() <= bound * b.abs().max().clamp_min(1)


def _copies(images: int, shape: tuple[int, ...]) -> Callable[[], None]:
    """Plain copies that read and write as much as ``images`` images, of different buffers, as in the step."""
    elements = torch.Size(shape).numel()
    lengths = [elements] * (images // 2) + [elements // 2] * (images % 2)
    pairs = [(torch.randn(length), torch.empty(length)) for length in lengths]

    def run() -> None:
        for source, target in pairs:
            target.copy_(source)

    return run


def _native(
    shape: tuple[int, ...], images: list[Tensor], std: float, **settings: Any
) -> tuple[Callable[[], None], Tensor, Tensor]:
    mean, previous, point, denoised = images
    batch = shape[0]
    looks = torch.tensor([TO_PREVIOUS, TO_DENOISED, std, 0.2, 0, 0, 0, 0]).expand(1, batch, 8).contiguous()
    next_mean, perturbed = torch.empty(shape), point.clone()
    step = _core.NaturalStep(
        previous=previous,
        mean=mean,
        next_mean=next_mean,
        input=perturbed,
        looks=looks,
        seeds=torch.arange(batch),
        ok=torch.ones(batch, dtype=torch.uint8),
        **settings,
    )
    return lambda: step.step(0, denoised.data_ptr()), next_mean, perturbed


def _eager(mean: Tensor, previous: Tensor, point: Tensor, denoised: Tensor) -> tuple[Tensor, Tensor]:
    new = mean + TO_PREVIOUS * (previous - point) + TO_DENOISED * (denoised - point)
    return new, new + STD * torch.randn_like(new)


def _eager_plain(mean: Tensor, previous: Tensor, point: Tensor, denoised: Tensor) -> tuple[Tensor, Tensor]:
    new = mean + TO_PREVIOUS * (previous - point) + TO_DENOISED * (denoised - point)
    return new, new.clone()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def bench_step_with_noise(report: Report, shape: tuple[int, ...]) -> None:
    images = [torch.randn(shape) for _ in range(4)]
    ours, next_mean, perturbed = _native(shape, images, STD, drawn=True)
    compiled = torch.compile(_eager, fullgraph=True)
    expected, _ = _eager(*images)
    _close(compiled(*images)[0], expected)
    ours()
    _close(next_mean, expected)
    assert abs((perturbed - next_mean).std().item() / STD - 1) < 0.15
    report({
        "rmp_fast": ours,
        "eager": lambda: _eager(*images),
        "torch.compile": lambda: compiled(*images),
        "copies (4 read, 2 written)": _copies(6, shape),
    }, ruler=shape)  # fmt: skip


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def bench_step_without_noise(report: Report, shape: tuple[int, ...]) -> None:
    images = [torch.randn(shape) for _ in range(4)]
    # Not `drawn`: there the step reads what it wrote, and could not be repeated on the same input.
    images[2] = images[0]
    ours, next_mean, perturbed = _native(shape, images, 0.0)
    compiled = torch.compile(_eager_plain, fullgraph=True)
    expected, _ = _eager_plain(*images)
    _close(compiled(*images)[0], expected)
    ours()
    _close(next_mean, expected)
    assert torch.equal(perturbed, next_mean)
    report({
        "rmp_fast": ours,
        "eager": lambda: _eager_plain(*images),
        "torch.compile": lambda: compiled(*images),
        "copies (3 read, 2 written)": _copies(5, shape),
    }, ruler=shape)  # fmt: skip


@pytest.mark.parametrize("correction", ["mask", "block_average"])
def bench_step_with_correction(report: Report, correction: str) -> None:
    shape, ratio, factor = (1, 3, 256, 256), 0.2, 4
    images = [torch.randn(shape) for _ in range(4)]
    images[2] = images[0]
    mean, previous, point, denoised = images
    y = torch.randn(shape) if correction == "mask" else torch.randn(1, 3, 64, 64)
    seen = torch.rand(shape) > 0.5

    def eager() -> tuple[Tensor, Tensor]:
        if correction == "mask":
            d = torch.where(seen, denoised + (y - denoised) / (1 + ratio), denoised)
        else:
            change = (y - F.avg_pool2d(denoised, factor)) / (1 + factor**2 * ratio)
            d = denoised + change.repeat_interleave(factor, 2).repeat_interleave(factor, 3)
        return _eager_plain(mean, previous, point, d)

    mask = seen.to(torch.uint8) if correction == "mask" else None
    ours, next_mean, _ = _native(shape, images, 0.0, correction=correction, y=y, mask=mask, factor=factor)
    ours()
    _close(next_mean, eager()[0])
    report({"rmp_fast": ours, "eager": eager})


def bench_call_overhead(report: Report) -> None:
    """A call on one element does no arithmetic to speak of; what is left is the way there and back."""
    arms: Arms = {}
    for name, shape in {"rmp_fast": (1, 1, 1, 1), "1 x 32 x 32": (1, 1, 32, 32)}.items():
        arms[name] = _native(shape, [torch.randn(shape) for _ in range(4)], 0.0)[0]
    report(arms)


def bench_two_threads(report: Report) -> None:
    shape = (1, 3, 256, 256)
    ours, _, perturbed = _native(shape, [torch.randn(shape) for _ in range(4)], STD)
    results = []

    def on(threads: int) -> Callable[[], None]:
        def run() -> None:
            torch.set_num_threads(threads)
            for _ in range(20):
                ours()

        return run

    for threads in (1, 2):
        on(threads)()
        results.append(perturbed.clone())
    assert torch.equal(*results)
    report({"two threads, 20 steps": on(2), "one thread, 20 steps": on(1)}, ours="two threads, 20 steps")


def bench_two_threads_blur(report: Report) -> None:
    x, out, taps = torch.randn(1, 3, 256, 256), torch.empty(1, 3, 256, 256), _gaussian(61)

    def on(threads: int) -> Callable[[], None]:
        def run() -> None:
            torch.set_num_threads(threads)
            for _ in range(10):
                _core.separable_blur(x, taps, taps, "circular", False, out)

        return run

    report({"two threads, 10 blurs": on(2), "one thread, 10 blurs": on(1)}, ours="two threads, 10 blurs")


def _gaussian(count: int) -> Tensor:
    taps = torch.exp(-0.5 * ((torch.arange(count) - count // 2) / (count / 6)) ** 2)
    return taps / taps.sum()


@pytest.mark.parametrize("count", [9, 25, 61])
def bench_separable_blur(report: Report, count: int) -> None:
    x = torch.randn(1, 3, 256, 256)
    taps, radius = _gaussian(count), count // 2
    out = torch.empty_like(x)
    vertical, horizontal = taps.reshape(1, 1, -1, 1).repeat(3, 1, 1, 1), taps.reshape(1, 1, 1, -1).repeat(3, 1, 1, 1)
    kernel = torch.zeros(256, 256)
    kernel[:count, :count] = taps[:, None] * taps[None, :]
    transfer = torch.fft.rfft2(kernel.roll((-radius, -radius), (0, 1)))

    def convolution() -> Tensor:
        padded = F.pad(x, (radius,) * 4, mode="circular")
        return F.conv2d(F.conv2d(padded, vertical, groups=3), horizontal, groups=3)

    def fourier() -> Tensor:
        return torch.fft.irfft2(torch.fft.rfft2(x) * transfer, s=(256, 256))

    def ours() -> None:
        _core.separable_blur(x, taps, taps, "circular", False, out)

    ours()
    _close(convolution(), out)
    _close(fourier(), out)
    report({"rmp_fast": ours, "conv2d": convolution, "FFT": fourier})


@pytest.mark.parametrize("shape", SHAPES[1:], ids=str)
def bench_mask(report: Report, shape: tuple[int, ...]) -> None:
    x, out = torch.randn(shape), torch.empty(shape)
    kept = (torch.rand(shape) > 0.5).to(torch.uint8)
    seen, factor = kept.bool(), kept.float()

    def ours() -> None:
        _core.mask(x, kept, out)

    ours()
    assert torch.equal(torch.where(seen, x, 0.0), out)
    report({
        "rmp_fast": ours,
        "where(bool)": lambda: torch.where(seen, x, 0.0),
        "x * uint8": lambda: x * kept,
        "x * float": lambda: x * factor,
    }, ruler=shape)  # fmt: skip


@pytest.mark.parametrize("factor", [2, 4, 8])
def bench_block_average(report: Report, factor: int) -> None:
    x = torch.randn(1, 3, 256, 256)
    out = torch.empty(1, 3, 256 // factor, 256 // factor)

    def ours() -> None:
        _core.block_average(x, factor, out)

    ours()
    _close(F.avg_pool2d(x, factor, ceil_mode=True), out)
    report({
        "rmp_fast": ours,
        "avg_pool2d": lambda: F.avg_pool2d(x, factor, ceil_mode=True),
        "reshape and mean": lambda: x.unflatten(2, (-1, factor)).unflatten(4, (-1, factor)).mean((3, 5)),
    })  # fmt: skip


@pytest.mark.parametrize("factor", [2, 4, 8])
def bench_block_average_adjoint(report: Report, factor: int) -> None:
    y = torch.randn(1, 3, 256 // factor, 256 // factor)
    out = torch.empty(1, 3, 256, 256)

    def ours() -> None:
        _core.block_average_adjoint(y, factor, out)

    def repeated() -> Tensor:
        return (y / factor**2).repeat_interleave(factor, 2).repeat_interleave(factor, 3)

    ours()
    _close(repeated(), out)
    report({
        "rmp_fast": ours,
        "repeat_interleave": repeated,
        "interpolate": lambda: F.interpolate(y / factor**2, scale_factor=factor, mode="nearest"),
    })  # fmt: skip
