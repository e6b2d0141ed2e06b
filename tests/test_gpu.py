"""What only a CUDA device shows; the kernels' own tests run there too, as path "cuda" (kernel_paths.py)."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from kernel_paths import poisoned
from on_gpu import OnGpu
from step_problem import CORRECTIONS, MODES, Problem
from torch import Tensor

from rmp_fast import _core, cuda_ops, ops, reference

GPU = torch.device("cuda", 0)
_reason = cuda_ops.unavailable_reason(GPU)
on_device = pytest.mark.skipif(_reason is not None, reason=str(_reason))


@pytest.mark.parametrize("correction", ["gradient", "mask", "blocks of 4"])
@pytest.mark.parametrize("mode", ["control", "antithetic", "learned drawn", "apart"])
def test_copies_there_and_back_change_nothing(mode: str, correction: str) -> None:
    """What carries the tests to a device is sound: with the CPU for a device, results are those of the direct way."""
    carried = OnGpu(_core, _core, torch.device("cpu"))
    here, there = (Problem((3, 2, 9, 8), **MODES[mode], **CORRECTIONS[correction]) for _ in range(2))
    here.run("baseline")
    bound = carried.NaturalStep(path="baseline", **there.buffers())
    bound.step(1, there.denoised.data_ptr(), there.denoised_mirror.data_ptr() if there.antithetic else 0)
    for name in ("next_mean", "input", "curvature", "ok"):
        ours, theirs = getattr(here, name), getattr(there, name)
        # The other path of this processor may round otherwise.
        assert ours is None or torch.allclose(ours.float(), theirs.float(), rtol=0, atol=1e-5)
    x, kept, out = torch.randn(2, 5), torch.tensor([[0, 1, 1, 0, 1]], dtype=torch.uint8), poisoned((2, 5))
    carried.mask(x, kept, out, path="baseline")
    assert torch.equal(out, torch.where(kept.bool(), x, 0.0))


def _step(seed: int) -> tuple[_core.NaturalStep, Tensor, Tensor]:
    problem = Problem((4, 3, 256, 256), correction="mask", masks=1, seed=seed)
    buffers = {name: v.to(GPU) if isinstance(v, Tensor) else v for name, v in problem.buffers().items()}
    buffers["mean"] = buffers["next_mean"] = problem.mean.to(GPU)
    return _core.NaturalStep(**buffers), problem.denoised.to(GPU), buffers["input"]


@on_device
def test_two_streams_at_once_do_not_meet() -> None:
    alone, together = [], []
    for streams, results in ((1, alone), (2, together)):
        queues = [torch.cuda.Stream(GPU) for _ in range(streams)]
        steps = [_step(seed) for seed in range(2)]
        torch.cuda.synchronize(GPU)
        for repeat, (index, (step, denoised, _)) in itertools.product(range(20), enumerate(steps)):
            step.step(1, denoised.data_ptr(), 0, repeat, queues[index % streams].cuda_stream)
        torch.cuda.synchronize(GPU)
        results += [made for _, _, made in steps]
    assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))


@on_device
def test_a_captured_step_replays_with_new_seeds() -> None:
    seeds, out = torch.arange(4, device=GPU), torch.empty(4, 5000, device=GPU)
    graph = torch.cuda.CUDAGraph()
    cuda_ops.normals(seeds, 3, 0, out)
    torch.cuda.synchronize(GPU)
    with torch.cuda.graph(graph):
        cuda_ops.normals(seeds, 3, 0, out)
    for first in (0, 100):
        seeds.copy_(torch.arange(first, first + 4))
        graph.replay()
        expected = reference.normals(torch.arange(first, first + 4), 3, 0, 5000)
        assert (out.cpu().double() - expected).abs().max() < 1e-6


FUNCTIONS: dict[str, Callable[[Tensor, str], Tensor]] = {
    "mask": lambda x, b: ops.mask(x, torch.ones(1, *x.shape[1:], dtype=torch.uint8, device=x.device), backend=b),
    "block_average": lambda x, b: ops.block_average(x, 4, backend=b),
    "block_average_adjoint": lambda x, b: ops.block_average_adjoint(x, 4, (255, 254), backend=b),
    "separable_blur": lambda x, b: ops.separable_blur(
        x, torch.ones(9, device=x.device), torch.ones(5, device=x.device), "reflect", backend=b
    ),
}


@on_device
@pytest.mark.parametrize("name", FUNCTIONS)
def test_operators_on_the_device_agree_with_torch(name: str) -> None:
    x = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    expected = FUNCTIONS[name](x.double(), "torch")
    made = FUNCTIONS[name](x.to(GPU), "cuda").cpu().double()
    assert (made - expected).norm() <= 1e-6 * expected.norm()


@on_device
def test_memory_of_another_device_is_refused() -> None:
    with pytest.raises(ValueError, match="`out` must be on device cuda:0, got cpu"):
        cuda_ops.mask(torch.zeros(1, 4, device=GPU), torch.ones(1, 4, dtype=torch.uint8, device=GPU), torch.zeros(1, 4))
