"""What only the simulation of the CUDA kernels can show; tests/test_simt.py runs this in a process made for it."""

from __future__ import annotations

import ctypes
import itertools
import os

import pytest
import torch
from kernel_paths import poisoned
from kernel_paths import simulated as core
from simulated import OnDevice
from step_problem import CORRECTIONS, MODES, Problem
from torch import Tensor

from rmp_fast import _core
from rmp_fast.bench import cost

LARGE = (3, 3, 37, 44)  # several blocks and chunks, rows of whole groups of four
ODD = (3, 2, 19, 23)

#: Faults of tests/simt/faulty.cu that make the launch fail, with words of the message.
LAUNCH_FAULTS = {
    6: "barrier in line",
    7: "exchange in line",
}


def _results(problem: Problem) -> list[Tensor]:
    made = [problem.next_mean, problem.input, problem.ok]
    made += [problem.input_mirror] if problem.antithetic else []
    return made if problem.curvature is None else [*made, problem.curvature]


@pytest.mark.parametrize("shape", [LARGE, ODD], ids=str)
@pytest.mark.parametrize("correction", CORRECTIONS)
@pytest.mark.parametrize("mode", MODES)
def test_step_depends_on_no_order(shape: tuple[int, ...], mode: str, correction: str) -> None:
    """Other orders of blocks and threads and other grids give the same bits, and what is not read may be NaN."""
    made = []
    for seed, processors in [(1, 1), (2, 1), (3, 132)]:
        core.set_up(seed, processors)
        problem = Problem(shape, **MODES[mode], **CORRECTIONS[correction])
        if "drawn" not in mode and "learned" not in mode:
            problem.input = poisoned(shape)
        problem.input_mirror = poisoned(shape)
        problem.run("cuda")
        made.append(_results(problem))
        assert problem.input.isfinite().all()
        assert not problem.antithetic or problem.input_mirror.isfinite().all()
    for one, other in itertools.pairwise(made):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_operators_depend_on_no_order() -> None:
    g = torch.Generator().manual_seed(0)
    made = []
    for seed, processors in [(1, 1), (2, 1), (3, 132)]:
        core.set_up(seed, processors)
        results = []
        for shape, factor in itertools.product([LARGE, ODD], [1, 2, 3, 4, 7]):
            g.manual_seed(factor)
            x, kept = torch.randn(shape, generator=g), (torch.rand(shape, generator=g) > 0.5).to(torch.uint8)
            taps, ratio = torch.rand(2 * factor + 1, generator=g), torch.rand(3, generator=g)
            blocks = poisoned((*shape[:2], -(-shape[2] // factor), -(-shape[3] // factor)))
            out = [poisoned(shape) for _ in range(9)]
            core.block_average(x, factor, blocks)
            core.block_average_adjoint(blocks, factor, out[0])
            core.mask(x, kept, out[1])
            core.separable_blur(x, taps, taps, "reflect", False, out[2])
            core.separable_blur(x, taps, taps, "replicate", True, out[3])
            core.spectral(x, kept.float(), x, ratio, out[4], False)
            core.normals(torch.arange(3), factor, 0, out[5])
            core.clip_gradient(x, out[0], ratio, ratio + 1, blocks, out[6])
            core.clip_gradient(x, out[0], ratio, ratio + 1, None, out[7])
            core.clip_gradient(x, None, None, None, blocks, out[8])
            results += [blocks, *out]
        assert all(result.isfinite().all() for result in results)
        made.append(results)
    for one, other in itertools.pairwise(made):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("offset", [1, 2, 3])
@pytest.mark.parametrize("correction", ["none", "mask", "blocks of 2", "blocks of 3", "blocks of 4"])
@pytest.mark.parametrize("mode", MODES)
def test_unaligned_buffers_give_the_same_bits(mode: str, correction: str, offset: int) -> None:
    aligned, moved = (Problem(LARGE, **MODES[mode], **CORRECTIONS[correction]) for _ in range(2))
    for name in ("previous", "mean", "denoised", "denoised_mirror", "input", "input_mirror", "curvature"):
        value = getattr(moved, name)
        if value is None or (name == "curvature" and value.ndim == 1):
            continue
        room = poisoned((value.numel() + offset,))
        view = room[offset:].view(value.shape)
        view.copy_(value)
        if name == "mean" and moved.next_mean is moved.mean:
            moved.next_mean = view
        setattr(moved, name, view)
    aligned.run("cuda")
    moved.run("cuda")
    assert all(torch.equal(a, b) for a, b in zip(_results(aligned), _results(moved), strict=True))


@pytest.mark.skipif("avx2" not in _core.cpu_paths(), reason="this processor has no fused multiply-add")
def test_normals_are_those_of_the_cpu_to_the_bit() -> None:
    """Both round the same operations, so the same seeds give the same noise on either device."""
    seeds = torch.tensor([0, 1, -1, 2**63 - 1, -(2**63)])
    ours, theirs = poisoned((5, 20_003)), poisoned((5, 20_003))
    core.normals(seeds, 7, 2**32 - 1, ours)
    _core.normals(seeds, 7, 2**32 - 1, theirs, path="avx2")
    assert torch.equal(ours, theirs)


# --- What the host layer makes of tensors on a device ---------------------------------------------------------------


def test_tensors_must_lie_on_one_device() -> None:
    x, kept = torch.zeros(2, 5), torch.ones(1, 5, dtype=torch.uint8)
    with pytest.raises(ValueError, match=r"`mask` must be on device cuda:0, got cpu; move it with .to\('cuda:0'\)"):
        core.module.mask(OnDevice(x), kept, OnDevice(x.clone()))
    with pytest.raises(ValueError, match="`out` must be on device cpu, got cuda:0"):
        core.module.mask(x, kept, OnDevice(x.clone()))
    buffers = Problem((2, 9)).buffers()
    with pytest.raises(ValueError, match="`looks` must be on device cuda:0, got cuda:1"):
        core.NaturalStep(**{**buffers, "looks": OnDevice(buffers["looks"], 1)})


def test_paths_belong_to_devices() -> None:
    x, kept = torch.zeros(2, 5), torch.ones(1, 5, dtype=torch.uint8)
    with pytest.raises(ValueError, match="`path` must be one for tensors on cuda:0, got 'baseline'; leave it out"):
        core.mask(x, kept, x.clone(), path="baseline")
    with pytest.raises(ValueError, match="`path` must be one for tensors on cpu, got 'cuda'; leave it out"):
        core.module.mask(x, kept, x.clone(), path="cuda")
    assert core.module.cuda_problem() is None


def test_errors_of_cuda_name_the_kernel() -> None:
    x, kept = torch.zeros(2, 5), torch.ones(1, 5, dtype=torch.uint8)
    core.inject(9)
    message = r"CUDA: kernel `mask` failed: invalid configuration argument \(cudaErrorInvalidConfiguration\)"
    with pytest.raises(RuntimeError, match=message):
        core.mask(x, kept, x.clone())
    core.mask(x, kept, x.clone())
    problem = Problem((2, 9))
    step = core.NaturalStep(**problem.buffers())
    core.inject(9)
    with pytest.raises(RuntimeError, match="CUDA: kernel `natural_step` failed"):
        step.step(1, problem.denoised.data_ptr())
    step.step(1, problem.denoised.data_ptr())
    with pytest.raises(RuntimeError, match="CUDA: asking for the multiprocessors of device 3 failed: invalid device"):
        core.mask(*(OnDevice(tensor, 3) for tensor in (x, kept, x.clone())))


def test_blur_needs_scratch_memory_of_the_device() -> None:
    x, taps = torch.zeros(1, 1, 4, 4), torch.ones(3)

    def blur(scratch: Tensor | None) -> None:
        core.separable_blur(x, taps, taps, "circular", False, x.clone(), scratch=scratch)

    with pytest.raises(ValueError, match="`scratch` must be given for tensors on a CUDA device"):
        blur(None)
    with pytest.raises(ValueError, match="`scratch` must be another tensor than `x` and `out`"):
        blur(x)
    with pytest.raises(ValueError, match=r"`scratch` must have shape \(..., H, W\) = \(1, 1, 4, 4\), got \(4, 4\)"):
        blur(torch.zeros(4, 4))


def test_clipping_needs_memory_of_the_device_for_its_sums() -> None:
    x = torch.zeros(2, 5000)

    def clip(scratch: Tensor | None, residual: Tensor | None = x) -> None:
        core.clip_gradient(x, None, None, None, residual, x.clone(), scratch=scratch)

    with pytest.raises(ValueError, match="`scratch` must be given for tensors on a CUDA device"):
        clip(None)
    with pytest.raises(ValueError, match=r"`scratch` must have shape \(B, chunks, 3\) = \(2, 2, 3\), got \(2, 1, 3\)"):
        clip(torch.zeros(2, 1, 3, dtype=torch.float64))
    with pytest.raises(TypeError, match=r"`scratch` must be torch\.float64, got torch\.float32"):
        clip(torch.zeros(2, 2, 3))
    clip(None, residual=None)


# --- The simulation itself: faults that it must find -----------------------------------------------------------------


def faulty(fault: int) -> tuple[str, Tensor]:
    """The message of the launch, and what it wrote; 0 is the kernel without a fault."""
    library = ctypes.CDLL(os.environ["RMP_FAST_SIMULATED"])
    library.simt_faulty.restype = ctypes.c_char_p
    out = poisoned((64,)) if fault != 8 else torch.zeros(64)
    return library.simt_faulty(ctypes.c_void_p(out.data_ptr()), ctypes.c_int(fault)).decode(), out


EXPECTED = (torch.arange(64) + 33) % 64 + 32.0


def test_sound_kernel_passes() -> None:
    for seed in range(5):
        core.set_up(seed)
        message, out = faulty(0)
        assert message == ""
        assert torch.equal(out, EXPECTED)


@pytest.mark.parametrize("fault", LAUNCH_FAULTS)
def test_waiting_in_vain_is_found(fault: int) -> None:
    message, _ = faulty(fault)
    assert "threads of a block wait for each other in vain" in message
    assert LAUNCH_FAULTS[fault] in message
    assert faulty(0)[0] == ""


def test_unwritten_shared_memory_shows() -> None:
    message, out = faulty(2)
    assert message == ""
    assert out.isnan().sum() == 1


def test_missing_barrier_shows_as_a_race_or_in_the_result() -> None:
    """The watch over races names it; without the watch, the shuffled order still spoils the result."""
    message, out = faulty(1)
    if "races" in os.environ["RMP_FAST_SIMULATED"]:
        assert "data race on 4 bytes of shared memory" in message
    else:
        assert not torch.equal(out, EXPECTED)


@pytest.mark.skipif("races" not in os.environ["RMP_FAST_SIMULATED"], reason="only the build `races` watches for them")
def test_blocks_that_share_a_number_are_found() -> None:
    message, _ = faulty(8)
    assert "data race on 4 bytes of global memory" in message


@pytest.mark.parametrize("correction", CORRECTIONS)
@pytest.mark.parametrize("mode", MODES)
def test_a_step_launches_as_many_kernels_as_the_cost_model_says(mode: str, correction: str) -> None:
    shape, settings = (3, 2, 12, 16), {**MODES[mode], **CORRECTIONS[correction]}
    learned = settings.get("learned", False)
    work = cost.natural_step(
        2 * 12 * 16, perturbed=True, correction=settings.get("correction", "none"),
        antithetic=settings.get("antithetic", False), drawn=settings.get("drawn", False),
        precision="diagonal" if learned == "diagonal" else "isotropic" if learned else "fixed",
        factor=settings.get("factor", 1), width=16,
    )  # fmt: skip
    before = core.launches()
    Problem(shape, **settings).run("cuda")
    assert core.launches() - before == work.launches


def test_operators_launch_as_many_kernels_as_the_cost_model_says() -> None:
    x, out, taps = torch.rand(2, 3, 12, 16), torch.empty(2, 3, 12, 16), torch.rand(5)
    blocks, mask = torch.rand(2, 3, 3, 4), torch.ones(1, 3, 12, 16, dtype=torch.uint8)
    one = torch.ones(2)
    calls = {
        "mask": (x, mask, out),
        "block_average": (x, 4, blocks),
        "block_average_adjoint": (blocks, 4, out),
        "separable_blur": (x, taps, taps, "reflect", False, out),
        "spectral": (x.flatten(1), x[:1].flatten(1), x.flatten(1), torch.ones(2), out.flatten(1), True),
        "normals": (torch.arange(2), 0, 0, out.flatten(1)),
        "clip_gradient": (x, x, one, one, blocks, out),
        "clip_gradient, held": (x, x, one, one, None, out),
        "clip_gradient, divided": (x, None, None, None, blocks, out),
        "clip_gradient, neither": (x, None, None, None, None, out),
    }
    for case, arguments in calls.items():
        before, name = core.launches(), case.split(",")[0]
        getattr(core, name)(*arguments)
        assert core.launches() - before == cost.call(name, arguments).launches, case
