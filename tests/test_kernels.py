"""Every kernel on every code path of this processor against float64 formulas, and the promises made about bits."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import TypeVar

import oracle
import pytest
import scipy.fft
import torch
from kernel_paths import CPU_PATHS, PATHS, kernels, poisoned
from step_problem import CORRECTIONS, MODES, STEP_BOUND, Problem, assert_close
from torch import Tensor

from rmp_fast import reference
from rmp_fast.operators.fourier import rfft2

T = TypeVar("T")


@pytest.fixture(params=PATHS)
def path(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=CPU_PATHS)
def cpu_path(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def cases(path: str, compiled: Sequence[T], interpreted: Sequence[T]) -> Sequence[T]:
    """Those to try on a path: interpreting takes some ten milliseconds per tile of 1024 elements."""
    return interpreted if path == "triton" else compiled


# Item lengths that are no multiple of any vector, and items of more than one chunk of 4096; or of more than one tile,
# with lines that begin at multiples of four and lines that do not.
SHAPES = [(3, 2, 7, 5), (3, 3, 37, 41)]
INTERPRETED_SHAPES = [(3, 1, 7, 5), (3, 1, 37, 28)]


@pytest.mark.parametrize("correction", CORRECTIONS)
@pytest.mark.parametrize("mode", MODES)
def test_step(path: str, mode: str, correction: str) -> None:
    for shape in cases(path, SHAPES, INTERPRETED_SHAPES):
        Problem(shape, **MODES[mode], **CORRECTIONS[correction]).assert_agrees(path)


@pytest.mark.parametrize("mode", MODES)
def test_step_of_every_remainder(path: str, mode: str) -> None:
    for size in cases(path, range(1, 71), (1, 2, 3, 4, 127, 129)):
        Problem((2, size), correction="mask", masks=2, seed=size, **MODES[mode]).assert_agrees(path)


@pytest.mark.parametrize("batch", [0, 1])
@pytest.mark.parametrize("mode", MODES)
def test_step_of_no_and_one_item(path: str, mode: str, batch: int) -> None:
    Problem((batch, 3, 9, 4), correction="block_average", factor=4, **MODES[mode]).assert_agrees(path)


@pytest.mark.parametrize("factor", [1, 5, 8, 16])
def test_step_with_blocks_wider_than_a_vector(path: str, factor: int) -> None:
    for shape in cases(path, [(2, 3, 33, 70)], [(2, 1, 33, 36), (1, 1, 17, 22)]):
        Problem(shape, correction="block_average", factor=factor).assert_agrees(path)


def test_step_takes_the_evaluation_it_is_told(path: str) -> None:
    Problem((3, 50)).assert_agrees(path, look=2, evaluation=4_000_000_000)


def test_previous_may_be_the_mean(path: str) -> None:
    problem = Problem((2, 77))
    problem.previous = problem.mean
    problem.assert_agrees(path)


def test_previous_may_be_the_next_mean(path: str) -> None:
    """As a chain of tuned looks has it: the mean before the last look gives its place to the next one."""
    problem = Problem((2, 77), in_place=False)
    problem.next_mean = problem.previous
    problem.assert_agrees(path)


def test_unperturbed_input_may_be_the_mean(path: str) -> None:
    problem = Problem((2, 77))
    problem.input = problem.mean
    problem.looks[..., oracle.NEXT_STD] = 0
    if path == "cuda":
        pytest.skip("the table lies on the device, so there it is refused for any")
    problem.assert_agrees(path)


def test_perturbed_input_must_not_be_the_mean(cpu_path: str) -> None:
    problem = Problem((2, 77))
    problem.input = problem.mean
    with pytest.raises(ValueError, match="`input` must be another tensor than `mean` and `next_mean`"):
        problem.run(cpu_path)


@pytest.mark.parametrize("column", [oracle.RATE, oracle.STD])
def test_curvature_stays_without_rate_or_perturbation(path: str, column: int) -> None:
    problem = Problem((2, 77), learned=True)
    problem.looks[1, 0, column] = 0
    before = problem.curvature.clone() if problem.curvature is not None else None
    problem.assert_agrees(path)
    assert problem.curvature is not None
    assert before is not None
    assert problem.curvature[0] == before[0]
    assert problem.curvature[1] != before[1]


@pytest.mark.parametrize("curvature", [-50.0, 0.0, 1.9, 5.0])
def test_precision_ratio_keeps_its_bounds(path: str, curvature: float) -> None:
    problem = Problem((2, 77), learned=True)
    problem.curvature = torch.full((2,), curvature)
    problem.assert_agrees(path)


@pytest.mark.parametrize("mode", ["control", "learned", "diagonal", "antithetic"])
def test_perturb_changes_the_input_alone(path: str, mode: str) -> None:
    problem = Problem(cases(path, SHAPES, INTERPRETED_SHAPES)[1], **MODES[mode])
    problem.next_mean = problem.mean.clone()
    kept = [problem.mean.clone(), problem.ok.clone(), problem.next_mean.clone()]
    expected = problem.expected(1, 5)
    # The oracle's step perturbs the new mean; this perturbs the old one, with the curvature of now.
    share, std = problem.looks[1, :, oracle.NEXT_SHARE], problem.looks[1, :, oracle.NEXT_STD]
    scale = std.double()
    if problem.curvature is not None:
        j = problem.curvature.double().reshape(3, -1)
        scale = scale[:, None] * (1 / (1 - share.double()[:, None] * j).clamp(0.25, 4)).sqrt()
    e = reference.normals(problem.seeds, 5, 0, problem.mean[0].numel())
    offset = (scale.reshape(3, -1) * e).reshape(problem.mean.shape)
    kernels(path).NaturalStep(**problem.buffers()).perturb(1, 5)
    assert_close(problem.input, problem.mean + offset, STEP_BOUND)
    if problem.antithetic:
        assert_close(problem.input_mirror, problem.mean - offset, STEP_BOUND)
    assert all(torch.equal(a, b) for a, b in zip(kept, [problem.mean, problem.ok, problem.next_mean], strict=True))
    assert expected.ok.all()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 3e38])
@pytest.mark.parametrize("mode", ["control", "learned", "diagonal", "antithetic"])
def test_what_leaves_the_finite_range_stays_alone(path: str, mode: str, value: float) -> None:
    shape = cases(path, SHAPES, INTERPRETED_SHAPES)[1]
    healthy = Problem(shape, **MODES[mode])
    broken = Problem(shape, **MODES[mode])
    broken.denoised[1, -1, 3, 5] = value
    broken.looks[..., oracle.TO_DENOISED] = healthy.looks[..., oracle.TO_DENOISED] = 4
    before = broken.mean[1, -1, 3, 5].item()
    for problem in (healthy, broken):
        problem.run(path)
    assert broken.ok.tolist() == [1, 0, 1]
    assert broken.next_mean[1, -1, 3, 5].item() == before
    assert broken.input.isfinite().all()
    for name in ("next_mean", "input", "input_mirror", "curvature"):
        ours, theirs = getattr(broken, name), getattr(healthy, name)
        if ours is not None:
            assert torch.equal(ours[[0, 2]], theirs[[0, 2]])
    if broken.curvature is not None:
        assert broken.curvature.isfinite().all()


# --- Bits ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("correction", ["none", "mask", "blocks of 3", "blocks of 4"])
@pytest.mark.parametrize("mode", MODES)
def test_item_alone_and_any_thread_count_give_the_same_bits(
    path: str, mode: str, correction: str, threads: Callable[[int], None]
) -> None:
    # Large enough for several threads, odd enough that items begin anywhere in a vector.
    shape = cases(path, [(3, 3, 67, 131)], [(3, 1, 9, 12)])[0]
    made = {}
    for count in cases(path, (1, 2, 4), (1,)):
        threads(count)
        made[count] = Problem(shape, **MODES[mode], **CORRECTIONS[correction])
        made[count].run(path)
    names = ("next_mean", "input", "input_mirror", "curvature")
    for count, name in itertools.product(made, names):
        if getattr(made[1], name) is not None:
            assert torch.equal(getattr(made[1], name), getattr(made[count], name)), (count, name)
    batch = Problem(shape, **MODES[mode], **CORRECTIONS[correction])
    for index in range(3):
        alone = batch.item(index)
        alone.run(path)
        for name in names:
            if getattr(alone, name) is not None:
                assert torch.equal(getattr(alone, name)[0], getattr(made[1], name)[index]), (index, name)


def test_operators_give_the_same_bits_at_any_thread_count(path: str, threads: Callable[[int], None]) -> None:
    channels, height, width = cases(path, [(3, 67, 131)], [(1, 36, 31)])[0]
    x = torch.randn(3, channels, height, width)
    kept = (torch.rand(x.shape) > 0.5).to(torch.uint8)
    taps = torch.rand(cases(path, [45], [5])[0])
    energy, data = torch.rand_like(x), torch.randn_like(x)
    ratio = torch.rand(3)

    def everything(x: Tensor, kept: Tensor, energy: Tensor, data: Tensor, ratio: Tensor) -> list[Tensor]:
        out = [poisoned(x.shape) for _ in range(7)]
        blocks = poisoned((len(x), channels, -(-height // 4), -(-width // 4)))
        kernels(path).mask(x, kept, out[0])
        kernels(path).block_average(x, 4, blocks)
        kernels(path).block_average_adjoint(blocks, 4, out[1])
        kernels(path).separable_blur(x, taps, taps, "reflect", False, out[2])
        kernels(path).separable_blur(x, taps, taps, "reflect", True, out[3])
        kernels(path).spectral(x, energy, data, ratio, out[4], False)
        kernels(path).normals(torch.arange(3)[: len(x)], 1, 0, out[5])
        kernels(path).clip_gradient(x, data, ratio, ratio + 1, energy, out[6])
        return [*out, blocks]

    results = []
    for count in cases(path, (1, 2, 4), (1,)):
        threads(count)
        results.append(everything(x, kept, energy, data, ratio))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))
    alone = everything(*(t[:1].contiguous() for t in (x, kept, energy, data, ratio)))
    assert all(torch.equal(a[0], b[0]) for a, b in zip(alone, results[0], strict=True))


# --- Normals ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ([0] * 4, [0] * 2, [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
        ([0xFFFFFFFF] * 4, [0xFFFFFFFF] * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            [0xA4093822, 0x299F31D0],
            [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
        ),
    ],
)
def test_philox_known_answers(cpu_path: str, counter: list[int], key: list[int], expected: list[int]) -> None:
    """The vectors published with Random123 (kat_vectors)."""
    assert list(kernels(cpu_path).philox(counter, key)) == expected


def test_normals_against_the_oracle(path: str) -> None:
    seeds = torch.tensor([0, 1, -1, 2**63 - 1, -(2**63)])
    long = cases(path, [20_003], [1030])[0]
    for size, evaluation, stream in [(1, 0, 0), (63, 1, 0), (long // 5, 2**32 - 1, 5), (long, 7, 2**32 - 1)]:
        out = poisoned((5, size))
        kernels(path).normals(seeds, evaluation, stream, out)
        # Angles are rounded to 2^-24 of half a turn and the radius reaches 5.9: at most about 1e-6, mostly 1e-7.
        error = (out.double() - reference.normals(seeds, evaluation, stream, size)).abs()
        assert error.max() < 1e-6
        assert error.square().mean().sqrt() < 1e-7


def test_moments_of_the_normals(cpu_path: str) -> None:
    out = poisoned((4, 500_000))
    kernels(cpu_path).normals(torch.arange(4), 3, 0, out)
    z = out.double().flatten()
    n = z.numel()
    # Five standard errors of each moment's estimate: var(z^k) is 1, 2, 15, 96.
    for power, moment, variance in [(1, 0.0, 1.0), (2, 1.0, 2.0), (3, 0.0, 15.0), (4, 3.0, 96.0)]:
        assert abs((z**power).mean().item() - moment) < 5 * (variance / n) ** 0.5
    lagged = (z[:-1] * z[1:]).mean().item()
    assert abs(lagged) < 5 / n**0.5


# --- Operators ----------------------------------------------------------------------------------------------

IMAGE_SHAPES = [(1, 1, 1, 1), (2, 3, 7, 5), (1, 3, 33, 70), (2, 1, 64, 48), (0, 3, 8, 8)]


@pytest.mark.parametrize("shape", IMAGE_SHAPES, ids=str)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.bool])
def test_mask(path: str, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x = torch.randn(shape)
    for masks in {1, shape[0]}:
        kept = (torch.rand(masks, *shape[1:]) > 0.5).to(dtype) * (1 if dtype is torch.bool else 255)
        out = poisoned(shape)
        kernels(path).mask(x, kept.to(dtype), out)
        assert torch.equal(out, torch.where(kept.bool(), x, 0.0))


@pytest.mark.parametrize("shape", IMAGE_SHAPES, ids=str)
@pytest.mark.parametrize("factor", [1, 2, 3, 4, 8, 16, 33, 99])
def test_block_average(path: str, shape: tuple[int, ...], factor: int) -> None:
    x = torch.randn(shape)
    out = poisoned((*shape[:2], -(-shape[2] // factor), -(-shape[3] // factor)))
    kernels(path).block_average(x, factor, out)
    # Sums of at most 70 and then 64 numbers in pairs or in a row: less than 134 roundings of 2^-24 of their size.
    assert_close(out, oracle.block_average(x, factor), 1e-6)
    y = torch.randn_like(out)
    back = poisoned(shape)
    kernels(path).block_average_adjoint(y, factor, back)
    counts = oracle.block_counts(*shape[2:], factor)
    assert_close(back, oracle.block_repeat(y / counts, factor, *shape[2:]), 1e-7)


@pytest.mark.parametrize("boundary", ["circular", "reflect", "replicate"])
@pytest.mark.parametrize("adjoint", [False, True])
@pytest.mark.parametrize("shape", IMAGE_SHAPES, ids=str)
def test_separable_blur(path: str, shape: tuple[int, ...], boundary: str, adjoint: bool) -> None:
    few = [(3, 5)] if shape[-1] > 10 else [(3, 5), (19, 11)]
    for lengths in cases(path, [(1, 1), (3, 5), (1, 41), (61, 9), (101, 201)], few):
        g = torch.Generator().manual_seed(sum(lengths))
        vertical, horizontal = (torch.rand(n, generator=g) for n in lengths)
        vertical, horizontal = vertical / vertical.sum(), horizontal / horizontal.sum()
        x = torch.randn(shape, generator=g)
        out = poisoned(shape)
        kernels(path).separable_blur(x, vertical, horizontal, boundary, adjoint, out)
        # Taps sum to 1, so at worst 200 roundings of 2^-24 of numbers that shrink with the taps. The adjoint's edges
        # collect up to 200 samples, relative to which the bound is taken.
        expected = oracle.separable_blur(x, vertical, horizontal, boundary, adjoint)
        assert_close(out, expected, 2e-6, str(lengths))
        inplace = x.clone()
        kernels(path).separable_blur(inplace, vertical, horizontal, boundary, adjoint, inplace)
        assert torch.equal(inplace, out)


@pytest.mark.parametrize("boundary", ["circular", "reflect", "replicate"])
@pytest.mark.parametrize("shape", [(1, 1, 5, 6), (2, 3, 67, 45)], ids=str)
@pytest.mark.parametrize("count", [1, 9, 61, 151])
def test_adjoint_of_separable_blur(cpu_path: str, shape: tuple[int, ...], boundary: str, count: int) -> None:
    g = torch.Generator().manual_seed(count)
    x, y = torch.randn(shape, generator=g), torch.randn(shape, generator=g)
    vertical, horizontal = torch.rand(count, generator=g), torch.rand(count, generator=g) - 0.3
    blurred, spread = poisoned(shape), poisoned(shape)
    kernels(cpu_path).separable_blur(x, vertical, horizontal, boundary, False, blurred)
    kernels(cpu_path).separable_blur(y, vertical, horizontal, boundary, True, spread)
    left, right = (blurred.double() * y).sum(), (x * spread.double()).sum()
    # Either result carries the roundings of up to 151 products, most of them of one sample where the image is small.
    scale = blurred.double().norm() * y.double().norm() + x.double().norm() * spread.double().norm()
    assert abs(left - right) <= 1e-6 * scale


def _cosine_turns(n: int) -> Tensor:
    k = torch.arange(n // 2 + 1, dtype=torch.float64)
    return torch.where(k == 0, 1, 2**0.5) * torch.exp(-1j * torch.pi * k / (2 * n))


@pytest.mark.parametrize("shape", [*IMAGE_SHAPES, (1, 2, 31, 36), (1, 1, 1, 300)], ids=str)
def test_cosine_transform(cpu_path: str, shape: tuple[int, ...]) -> None:
    if cpu_path == "cuda":
        pytest.skip("matrices transform there")
    on, x = kernels(cpu_path), torch.randn(shape)
    rows, columns = ([*range(0, n, 2), *reversed(range(1, n, 2))] for n in shape[2:])
    folded, coefficients, back = poisoned(shape), poisoned(shape), poisoned(shape)
    on.cosine_fold(x, folded)
    assert torch.equal(folded, x[..., rows, :][..., columns])

    vertical, horizontal = (_cosine_turns(n) for n in shape[2:])
    turns = [t.to(torch.complex64) for t in (vertical / 2, horizontal)]
    on.cosine_turn(rfft2(folded.double(), "ortho").to(torch.complex64), *turns, coefficients)
    expected = torch.from_numpy(scipy.fft.dctn(x.double().numpy(), axes=(2, 3), norm="ortho")) if x.numel() else x
    # Some ten roundings, of the spectrum and the turns too, of numbers that grow with those of the spectrum.
    assert_close(coefficients, expected, 2e-6)

    hartley = coefficients.clone()
    on.cosine_turn_back(hartley, *(t.to(torch.complex64) for t in (1 / vertical, 1 / horizontal)))
    whole = torch.fft.fft2(folded.double(), norm="ortho") if x.numel() else folded
    assert_close(hartley, whole.real - whole.imag if x.numel() else whole, 2e-6)
    on.cosine_unfold(rfft2(hartley.double(), "ortho").to(torch.complex64), back)
    assert_close(back, x.double(), 2e-6)


def test_cosine_transform_at_any_thread_count_and_alone(cpu_path: str, threads: Callable[[int], None]) -> None:
    if cpu_path == "cuda":
        pytest.skip("matrices transform there")
    on, x = kernels(cpu_path), torch.randn(2, 3, 90, 131, generator=torch.Generator().manual_seed(0))
    turns = [_cosine_turns(n).to(torch.complex64) for n in x.shape[2:]]
    spectrum = rfft2(x, "ortho")

    def everything(x: Tensor, spectrum: Tensor) -> list[Tensor]:
        folded, coefficients, back, hartley = poisoned(x.shape), poisoned(x.shape), poisoned(x.shape), x.clone()
        on.cosine_fold(x, folded)
        on.cosine_turn(spectrum, *turns, coefficients)
        on.cosine_unfold(spectrum, back)
        on.cosine_turn_back(hartley, *turns)
        return [folded, coefficients, back, hartley]

    made = []
    for count in (1, 2, 4):
        threads(count)
        made.append(everything(x, spectrum))
    for other in made[1:]:
        assert all(torch.equal(a, b) for a, b in zip(made[0], other, strict=True))
    alone = everything(x[1:].clone(), spectrum[1:].clone())
    assert all(torch.equal(a[1:], b) for a, b in zip(made[0], alone, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64])
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("update", [False, True])
def test_spectral(path: str, dtype: torch.dtype, shared: bool, update: bool) -> None:
    for size in cases(path, [*range(1, 40), 4096, 5001], [1, 34, 515, 1030]):
        c, data = torch.randn(3, size, dtype=dtype), torch.randn(3, size, dtype=dtype)
        energy = torch.rand(1 if shared else 3, size)
        ratio = torch.rand(3) + 0.1
        out = poisoned(c.shape, c.dtype)
        kernels(path).spectral(c, energy, data, ratio, out, update)
        # Two roundings of numbers of size 4, divided by at least 0.1.
        assert_close(out, oracle.spectral(c, energy, data, ratio, update), 2e-6)
        inplace = c.clone()
        kernels(path).spectral(inplace, energy, data, ratio, inplace, update)
        assert torch.equal(inplace, out)


def test_spectral_without_energy_and_noise_changes_nothing(path: str) -> None:
    c = torch.randn(1, 37)
    out = poisoned(c.shape, c.dtype)
    kernels(path).spectral(c, torch.zeros(1, 37), torch.zeros(1, 37), torch.zeros(1), out, False)
    assert torch.equal(out, c)


#: Which of a limit and a residual are given, and the numbers of a measurement beside those of an image.
CLIPPED = {"held and divided": (True, 0.3), "held": (True, 0), "divided": (False, 2.5), "neither": (False, 0)}
# The norms are rounded from sums in double, and the product once: three roundings of 2^-24.
CLIP_BOUND = 2e-7


def clipping(batch: int, size: int, case: str = "held and divided") -> list[Tensor | None]:
    """The arguments but for ``out``; every second item is longer than it may be."""
    held, share = CLIPPED[case]
    g = torch.Generator().manual_seed(size)
    gradient, direction = torch.randn(batch, size, generator=g), torch.randn(batch, size, generator=g)
    limit = torch.rand(batch, generator=g) + 0.5
    residual = torch.randn(batch, 1 + round(share * size), generator=g) if share else None
    weight = limit * direction.norm(dim=1) / gradient.norm(dim=1) * torch.tensor([3.0, 0.3]).repeat(batch)[:batch]
    weight = weight * (1 if residual is None else residual.norm(dim=1))
    return [gradient, *((direction, limit, weight) if held else (None,) * 3), residual]


@pytest.mark.parametrize("case", CLIPPED)
def test_clip_gradient(path: str, case: str) -> None:
    for size in cases(path, [*range(1, 40), 4096, 5001, 12_300], [1, 34, 515, 1030]):
        arguments = clipping(3, size, case)
        out = poisoned((3, size))
        kernels(path).clip_gradient(*arguments, out)
        expected = oracle.clip_gradient(*arguments)
        assert_close(out, expected, CLIP_BOUND)
        assert ((out - expected).norm(dim=1) <= CLIP_BOUND * expected.norm(dim=1)).all()
        inplace = arguments[0].clone()
        kernels(path).clip_gradient(inplace, *arguments[1:], inplace)
        assert torch.equal(inplace, out)


@pytest.mark.parametrize("case", CLIPPED)
def test_clip_gradient_of_no_and_one_item(path: str, case: str) -> None:
    for batch in (0, 1):
        for size in (0, 35):
            arguments = clipping(batch, size, case)
            out = poisoned((batch, size))
            kernels(path).clip_gradient(*arguments, out)
            assert_close(out, oracle.clip_gradient(*arguments), CLIP_BOUND)


def test_clip_gradient_where_items_begin_anywhere(path: str) -> None:
    arguments = clipping(3, 4101)
    made = []
    for offset in range(4):
        moved = []
        for value in (*arguments, poisoned((3, 4101))):
            room = poisoned((value.numel() + offset,))
            moved.append(room[offset:].view(value.shape).copy_(value))
        kernels(path).clip_gradient(*moved)
        made.append(moved[-1])
    assert all(torch.equal(made[0], other) for other in made[1:])


def test_clip_gradient_at_any_thread_count_and_alone(path: str, threads: Callable[[int], None]) -> None:
    size = cases(path, [50_003], [2_061])[0]
    made = {}
    for count in cases(path, (1, 2, 4), (1,)):
        threads(count)
        made[count] = poisoned((3, size))
        kernels(path).clip_gradient(*clipping(3, size), made[count])
    assert all(torch.equal(made[1], other) for other in made.values())
    for item in range(3):
        alone = [value[item : item + 1].clone() for value in clipping(3, size)]
        out = poisoned((1, size))
        kernels(path).clip_gradient(*alone, out)
        assert torch.equal(out[0], made[1][item])


def test_clip_gradient_where_norms_are_zero_or_nothing_is_finite(path: str) -> None:
    gradient, direction, limit, weight, residual = clipping(6, 1030)
    plain = gradient.clone()
    gradient[0], direction[1], residual[2], weight[3] = 0, 0, 0, 0
    gradient[4, 7], gradient[5] = torch.nan, torch.inf
    out = poisoned(gradient.shape)
    kernels(path).clip_gradient(gradient, direction, limit, weight, residual, out)
    assert (out[:2] == 0).all()
    two = (t[2:4] for t in (gradient, direction, limit, weight, residual))
    assert_close(out[2:4], oracle.clip_gradient(*two), CLIP_BOUND)
    assert out[4].isnan()[7]
    assert not out[5].isfinite().any()
    ones, lost = torch.ones_like(plain), torch.full_like(plain, torch.nan)
    for u, r in ((lost, ones), (ones, lost)):
        kernels(path).clip_gradient(plain, u, limit, weight + 1e3, r, out)
        assert out.isnan().all()
    kernels(path).clip_gradient(plain, None, None, None, torch.zeros(6, 2), out)
    assert torch.equal(out, plain)


@pytest.mark.parametrize("scale", [1e-38, 1e-25, 1e25, 1e36])
def test_clip_gradient_of_very_short_and_very_long_items(path: str, scale: float) -> None:
    """Squares of these leave the range of float32, and the least gradients times 1 / ||r|| must not."""
    arguments = clipping(2, 1030)
    for index in (0, 1, 4):
        arguments[index] = arguments[index] * scale
    out = poisoned((2, 1030))
    kernels(path).clip_gradient(*arguments, out)
    # Where numbers are subnormal they have fewer digits.
    assert_close(out, oracle.clip_gradient(*arguments), 1e-6)
    nothing, least = torch.zeros(1, 5), torch.full((1, 3), 1e-40)
    kernels(path).clip_gradient(nothing, None, None, None, least, nothing)
    assert (nothing == 0).all()
