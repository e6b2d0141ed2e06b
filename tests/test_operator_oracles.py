"""Operators against independent statements of the same thing: scipy, torch's resampler, explicit sums."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.ndimage
import scipy.signal
import torch
from torch import Tensor

from rmp_fast import ops
from rmp_fast.operators import (
    REGISTRY,
    Blur,
    CompressedSensing,
    GaussianBlur,
    SuperResolution,
    as_kernel,
    box_mask,
    get,
    motion_kernel,
    random_mask,
)
from rmp_fast.operators.cosine import CosineTransform, is_fast
from rmp_fast.operators.forms import condition
from rmp_fast.operators.resampling import bicubic_matrix
from rmp_fast.operators.separable import Separable

NUMPY_MODES = {"circular": "wrap", "reflect": "symmetric", "replicate": "edge"}
SCIPY_MODES = {"circular": "wrap", "reflect": "reflect", "replicate": "nearest"}


def noise(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def relative(a: Tensor, b: Tensor) -> float:
    return float((a.double() - b.double()).norm() / b.double().norm())


@pytest.mark.parametrize("boundary", ops.BOUNDARIES)
@pytest.mark.parametrize("std", [0.6, 1.5, 3.0])
@pytest.mark.parametrize("size", [(9, 14), (5, 33), (1, 8)])
def test_gaussian_blur_is_scipys(boundary: str, std: float, size: tuple[int, int]) -> None:
    x = noise(1, 1, *size)
    expected = scipy.ndimage.gaussian_filter(x[0, 0].numpy(), std, mode=SCIPY_MODES[boundary], truncate=4)
    assert relative(GaussianBlur(std, boundary).A(x)[0, 0], torch.from_numpy(expected)) <= 1e-13


@pytest.mark.parametrize("boundary", ops.BOUNDARIES)
@pytest.mark.parametrize("kernel_size", [(3, 5), (4, 2), (1, 6), (7, 7)])
def test_blur_is_a_convolution_of_the_continued_image(boundary: str, kernel_size: tuple[int, int]) -> None:
    kernel, x = noise(*kernel_size, seed=1), noise(1, 1, 9, 8)
    margins = [(n - 1 - n // 2, n // 2) for n in kernel_size]
    padded = np.pad(x[0, 0].numpy(), margins, mode=NUMPY_MODES[boundary])
    expected = scipy.signal.convolve2d(padded, kernel.numpy(), mode="valid")
    assert relative(Blur(kernel, boundary).A(x)[0, 0], torch.from_numpy(expected)) <= 1e-13


@pytest.mark.parametrize("boundary", ["reflect", "replicate"])
def test_a_kernel_may_be_larger_than_the_image_unless_circular(boundary: str) -> None:
    kernel, x = noise(9, 7, seed=1), noise(1, 1, 3, 2)
    padded = np.pad(x[0, 0].numpy(), [(4, 4), (3, 3)], mode=NUMPY_MODES[boundary])
    expected = scipy.signal.convolve2d(padded, kernel.numpy(), mode="valid")
    assert relative(Blur(kernel, boundary).A(x)[0, 0], torch.from_numpy(expected)) <= 1e-13


@pytest.mark.parametrize("boundary", ops.BOUNDARIES)
def test_gaussian_blur_equals_blur_with_its_outer_product(boundary: str) -> None:
    separable = GaussianBlur(1.1, boundary)
    dense = Blur(torch.outer(separable.taps, separable.taps), boundary, iterations=200)
    x = noise(2, 3, 12, 15)
    assert relative(separable.A(x), dense.A(x)) <= 1e-13
    assert relative(separable.adjoint(x), dense.adjoint(x)) <= 1e-13
    assert relative(separable.gram_solve(x, 1.0, 0.2), dense.gram_solve(x, 1.0, 0.2)) <= 1e-9


@pytest.mark.parametrize("size", [(8, 8), (9, 7), (3, 10), (1, 1)])
def test_super_resolution_takes_means_over_blocks(size: tuple[int, int]) -> None:
    x, y = noise(2, 3, *size), SuperResolution(4).A(noise(2, 3, *size))
    for i in range(y.shape[2]):
        for j in range(y.shape[3]):
            block = x[:, :, 4 * i : 4 * i + 4, 4 * j : 4 * j + 4]
            torch.testing.assert_close(y[:, :, i, j], block.mean((2, 3)), rtol=0, atol=1e-14)


@pytest.mark.parametrize("factor", [2, 4, 8])
def test_bicubic_is_torchs_antialiased_resampler_away_from_the_edges(factor: int) -> None:
    x = noise(1, 2, 8 * factor, 9 * factor)
    y = SuperResolution(factor, "bicubic").A(x)
    expected = torch.nn.functional.interpolate(x, size=(8, 9), mode="bicubic", antialias=True, align_corners=False)
    inside = (..., slice(2, -2), slice(2, -2))
    assert relative(y[inside], expected[inside]) <= 1e-12


@pytest.mark.parametrize(("n", "m"), [(1, 1), (2, 1), (7, 2), (9, 3), (64, 8), (65, 17)])
def test_bicubic_rows_keep_constants_and_are_symmetric(n: int, m: int) -> None:
    matrix = bicubic_matrix(n, m)
    torch.testing.assert_close(matrix.sum(1), torch.ones(m, dtype=torch.float64))
    torch.testing.assert_close(matrix, matrix.flip(0, 1), rtol=0, atol=1e-14)


def test_random_mask_hides_the_fraction_asked_for_and_repeats_with_its_seed() -> None:
    mask = random_mask((4, 1, 20, 30), 0.7, seed=5)
    assert mask.dtype == torch.bool
    assert (~mask).flatten(1).sum(1).tolist() == [420] * 4
    assert not torch.equal(mask[0], mask[1])
    assert torch.equal(mask, random_mask((4, 1, 20, 30), 0.7, seed=5))
    assert not torch.equal(mask, random_mask((4, 1, 20, 30), 0.7, seed=0))
    assert random_mask((7,), 1.0).sum() == 0
    assert random_mask((7,), 0.0).all()


def test_box_mask() -> None:
    mask = box_mask((6, 8), (2, 4))
    assert (~mask).nonzero().min(0).values.tolist() == [2, 2]
    assert (~mask).nonzero().max(0).values.tolist() == [3, 5]
    corner = box_mask((6, 8), 3, position=(0, 5))
    assert int((~corner).sum()) == 9
    assert not corner[0, 5]
    assert not corner[2, 7]


@pytest.mark.parametrize("angle", [0.0, 30.0, 90.0, 135.0])
def test_motion_kernel_has_its_length_and_direction(angle: float) -> None:
    kernel = motion_kernel(15, angle)
    assert kernel.shape[0] == kernel.shape[1] == 15
    assert float(kernel.sum()) == pytest.approx(1)
    torch.testing.assert_close(kernel, kernel.flip(0, 1))
    position = torch.arange(-7, 8, dtype=torch.float64)
    right, up = (kernel.sum(0) @ position.square()), (kernel.sum(1) @ position.square())
    mixed = -(position @ kernel @ position)
    # A path of 14 pixels between its ends has a variance of 14^2 / 12; bilinear sharing adds up to 1/4 per axis.
    assert float(right + up) == pytest.approx(14**2 / 12, abs=0.6)
    assert math.degrees(0.5 * math.atan2(2 * float(mixed), float(right - up))) % 180 == pytest.approx(angle, abs=2)


def test_motion_kernel_of_one_pixel_is_no_blur() -> None:
    assert torch.equal(motion_kernel(1, 77), torch.ones(1, 1, dtype=torch.float64))


def test_as_kernel_takes_arrays_lists_and_pictures() -> None:
    expected = torch.tensor([[0.0, 0.5], [0.25, 0.25]], dtype=torch.float64)
    for values in ([[0, 2], [1, 1]], np.array([[0, 2], [1, 1]], dtype=np.uint8), expected.float() * 3):
        torch.testing.assert_close(as_kernel(values), expected)
    assert torch.equal(as_kernel([[2.0]], normalise=False), torch.full((1, 1), 2.0, dtype=torch.float64))


def test_operators_keep_their_own_copy() -> None:
    matrix, kernel = noise(3, 5), noise(3, 3)
    sensing, blur = CompressedSensing(matrix), Blur(kernel)
    x, image = noise(2, 5), noise(1, 1, 6, 6)
    before = sensing.A(x), blur.A(image)
    matrix.zero_()
    kernel.zero_()
    assert torch.equal(sensing.A(x), before[0])
    assert torch.equal(blur.A(image), before[1])


def test_compressed_sensing_is_the_matrix() -> None:
    matrix, x = noise(4, 12), noise(3, 1, 3, 4, seed=1)
    expected = x.reshape(3, 12) @ matrix.T
    assert relative(CompressedSensing(matrix, (1, 3, 4)).A(x), expected) <= 1e-14


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_singular_noiseless_solve_is_the_pseudo_inverse(dtype: torch.dtype) -> None:
    matrix = noise(8, 3) @ noise(3, 6, seed=1)
    r = noise(2, 8, seed=2, dtype=dtype)
    expected = r.double() @ torch.linalg.pinv(0.5 * matrix @ matrix.T, rtol=1e-10)
    assert relative(CompressedSensing(matrix).gram_solve(r, 0.5, 0.0), expected) <= {4: 1e-4, 8: 1e-10}[dtype.itemsize]


def test_a_gaussian_blur_that_erases_frequencies_stays_finite_without_noise() -> None:
    op, x = GaussianBlur(4.0), noise(1, 1, 48, 48, dtype=torch.float32)
    solved = op.gram_solve(op.A(x), 1.0, 0.0)
    assert torch.isfinite(solved).all()
    # Singular values down to 4e-6 count as seen; inverting them in float32 costs about 1e-7 / 4e-6.
    assert relative(op.A(op.adjoint(solved)), op.A(x)) <= 0.05


def test_memos_stay_small() -> None:
    op = GaussianBlur(1.0)
    for width in range(4, 40):
        op.gram_solve(torch.zeros(1, 1, 4, width), 1.0, 0.1)
    assert len(vars(op)["_derived"]["_factors"]) == 8


def test_the_registry() -> None:
    assert list(REGISTRY) == [
        "denoising", "inpainting", "super_resolution", "gaussian_blur", "blur", "compressed_sensing", "mri",
        "phase_retrieval", "nonlinear_blur", "linear_function", "function", "linearised",
    ]  # fmt: skip
    assert get("blur") is Blur


@pytest.mark.parametrize("shape", [(2, 3, 128, 160), (1, 1, 135, 128), (0, 1, 128, 128)], ids=str)
def test_the_cosine_transform_by_fft_is_that_by_matrices(shape: tuple[int, ...]) -> None:
    op, where = GaussianBlur(1.5), (torch.device("cpu"), torch.float64)
    fast, dense = op.form(shape, *where), Separable.form(op, shape, *where)
    d, y = (torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(k)) for k in range(2))
    coefficients = fast.analysis(d)
    assert isinstance(fast.analysis.__self__, CosineTransform)
    torch.testing.assert_close(coefficients, dense.analysis(d), rtol=0, atol=1e-13)
    torch.testing.assert_close(fast.synthesis(coefficients), d, rtol=0, atol=1e-13)
    (gradient,) = torch.autograd.grad((fast.analysis(d.requires_grad_()) * y).sum(), d)
    torch.testing.assert_close(gradient, fast.synthesis(y), rtol=0, atol=1e-13)
    single = op.form(shape, where[0], torch.float32)
    compiled = single.analysis(d.detach().float())
    # Coefficients and images of size 4, some twenty roundings of 2^-24.
    torch.testing.assert_close(compiled, coefficients.detach().float(), rtol=0, atol=5e-6)
    torch.testing.assert_close(single.synthesis(compiled), d.detach().float(), rtol=0, atol=5e-6)
    assert fast.energy.sum() > 0
    for noise_std in (0.01, 1.0):
        found, expected = (condition(form, op, d, y, 0.3, noise_std) for form in (fast, dense))
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    ("size", "fast"), [((128, 250), True), ((135, 165), True), ((128, 67 * 2), False), ((96, 128), False)]
)
def test_the_fft_is_taken_for_sizes_of_small_primes(size: tuple[int, int], fast: bool) -> None:
    assert is_fast(*size) == fast
