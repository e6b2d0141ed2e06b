"""What operators say about bad input: what was expected, what came, what to do."""

from __future__ import annotations

import math
import re
from collections.abc import Callable

import pytest
import torch

from rmp_fast import ops
from rmp_fast.operators import (
    MRI,
    Blur,
    CompressedSensing,
    Denoising,
    GaussianBlur,
    Inpainting,
    Linearised,
    NonlinearBlur,
    PhaseRetrieval,
    SuperResolution,
    align,
    as_kernel,
    best_of_starts,
    box_mask,
    camera_shake,
    cartesian_mask,
    coil_maps,
    for_task,
    get,
    motion_kernel,
    random_mask,
)

image = torch.zeros(2, 3, 8, 9)
signal = torch.zeros(2, 5)

CASES: list[tuple[type[Exception], str, Callable[[], object]]] = [
    # types and dtypes
    (TypeError, "`x` must be a torch.Tensor, got list", lambda: Denoising().A([[1.0]])),
    (TypeError, "`x` must be a floating-point tensor, got torch.uint8", lambda: Denoising().A(image.byte())),
    (TypeError, "`x` must be float32 or float64, got torch.float16", lambda: Denoising().A(image.half())),
    (TypeError, "`y` must be a floating-point tensor, got torch.int64", lambda: Denoising().adjoint(image.long())),
    (
        TypeError,
        "`r` must be float32 or float64, got torch.bfloat16",
        lambda: Denoising().gram_solve(image.bfloat16(), 1, 1),
    ),
    # shapes of images
    (ValueError, "`image_shape` must be (B, ...) with at least two axes, got (5,)", lambda: Denoising().A(signal[0])),
    (
        ValueError,
        "`image_shape` must have shape (B, C, H, W) with C, H, W >= 1, got (2, 5)",
        lambda: GaussianBlur(1.0).A(signal),
    ),
    (ValueError, "C, H, W >= 1, got (2, 3, 0, 9)", lambda: SuperResolution(2).A(image[:, :, :0])),
    (ValueError, "(B, C, H, W) with C, H, W >= 1, got (3, 8, 9)", lambda: Blur(torch.ones(3, 3)).A(image[0])),
    (
        ValueError,
        "must be (B, C, H, W) or (B, N) without empty items, got (3, 8, 9)",
        lambda: Inpainting(torch.ones(8, 9)).A(image[0]),
    ),
    # measurements
    (
        ValueError,
        "`y` must have shape (2, 3, 4, 5) for images (2, 3, 8, 9), got (2, 3, 4, 4)",
        lambda: SuperResolution(2).adjoint(torch.zeros(2, 3, 4, 4), image.shape),
    ),
    (
        ValueError,
        "`r` must have shape (2, 3, 8, 9) for images (2, 3, 8, 9), got (1, 3, 8, 9)",
        lambda: GaussianBlur(1.0).gram_solve(image[:1], 1, 1, image.shape),
    ),
    (
        ValueError,
        "`measurement_shape` must have shape (B, C, H, W) with C, H, W >= 1, got (2, 5)",
        lambda: SuperResolution(2).adjoint(signal),
    ),
    (
        ValueError,
        "`measurement_shape` must be (B, 4), got (2, 5)",
        lambda: CompressedSensing(torch.ones(4, 6)).adjoint(signal),
    ),
    # numbers of the Gram solve
    (ValueError, "`r2` must be a finite number >= 0, got -1", lambda: Denoising().gram_solve(image, -1, 1)),
    (
        ValueError,
        "`noise_std` must be a finite number >= 0, got nan",
        lambda: Denoising().gram_solve(image, 1, math.nan),
    ),
    (TypeError, "`noise_std` must be a number, got str", lambda: Denoising().gram_solve(image, 1, "a")),
    (
        ValueError,
        "`r2` must be a number or have shape (B,) = (2,), got (3,)",
        lambda: Denoising().gram_solve(image, torch.ones(3), 1),
    ),
    (ValueError, "`iterations` must be >= 1, got 0", lambda: Denoising().iterative_solve(image, 1, 1, iterations=0)),
    (ValueError, "`iterations` must be >= 1, got 0", lambda: Blur(torch.ones(1, 1), iterations=0)),
    # masks
    (TypeError, "`mask` must be a torch.Tensor, got list", lambda: Inpainting([[1]])),
    (
        TypeError,
        "`mask` must be bool or hold 0 and 1, got torch.complex64",
        lambda: Inpainting(torch.ones(2, 2, dtype=torch.complex64)),
    ),
    (ValueError, "`mask` must hold 0 and 1 only, got 0.5; threshold it", lambda: Inpainting(torch.full((2, 2), 0.5))),
    (
        ValueError,
        "`mask` must hold 0 and 1 only, got 255",
        lambda: Inpainting(torch.full((2, 2), 255, dtype=torch.uint8)),
    ),
    (ValueError, "`mask` must hold 0 and 1 only, got nan", lambda: Inpainting(torch.full((2, 2), math.nan))),
    (ValueError, "for signals, (N,) or (B, N), got ()", lambda: Inpainting(torch.tensor(1))),
    (ValueError, "for images (2, 3, 8, 9), got (8, 8)", lambda: Inpainting(torch.ones(8, 8)).A(image)),
    (
        ValueError,
        "(H, W), (C or 1, H, W) or (B or 1, C or 1, H, W) for images (2, 3, 8, 9), got (2, 8, 9)",
        lambda: Inpainting(torch.ones(2, 8, 9)).A(image),
    ),
    (ValueError, "for images (2, 3, 8, 9), got (3, 1, 8, 9)", lambda: Inpainting(torch.ones(3, 1, 8, 9)).A(image)),
    (ValueError, "for images (2, 3, 8, 9), got (9,)", lambda: Inpainting(torch.ones(9)).A(image)),
    (
        ValueError,
        "`mask` must have shape (N,) or (B or 1, N) for images (2, 5), got (4,)",
        lambda: Inpainting(torch.ones(4)).A(signal),
    ),
    (
        ValueError,
        "for images (2, 5), got (3, 5)",
        lambda: Inpainting(torch.ones(3, 5)).form(signal.shape, image.device, image.dtype),
    ),
    (ValueError, "for images (2, 5), got (1, 2, 5)", lambda: Inpainting(torch.ones(1, 2, 5)).A(signal)),
    (ValueError, "`missing` must be a fraction in [0, 1], got 70", lambda: random_mask((4, 4), 70)),
    (ValueError, "`size` must fit into the image (4, 4), got (5, 2)", lambda: box_mask((4, 4), (5, 2))),
    (ValueError, "inside the image (4, 4), got (3, 0)", lambda: box_mask((4, 4), 2, (3, 0))),
    (
        ValueError,
        "`mask` must have shape (1 or B, 3, 8, 9) for images (2, 3, 8, 9), got (8, 9)",
        lambda: ops.mask(image, torch.ones(8, 9)),
    ),
    # super-resolution
    (TypeError, "`factor` must be an integer, got float", lambda: SuperResolution(2.0)),
    (ValueError, "`factor` must be >= 2, got 1", lambda: SuperResolution(1)),
    (ValueError, "got 'bicubik'; did you mean 'bicubic'?", lambda: SuperResolution(2, "bicubik")),
    # blurs
    (ValueError, "`std` must be a finite number > 0, got 0", lambda: GaussianBlur(0)),
    (TypeError, "`std` must be a number, got Tensor", lambda: GaussianBlur(torch.tensor(1.0))),
    (ValueError, "got 'reflekt'; did you mean 'reflect' or 'replicate'?", lambda: GaussianBlur(1.0, "reflekt")),
    (ValueError, "got 'circle'; did you mean 'circular'?", lambda: Blur(torch.ones(3, 3), "circle")),
    (TypeError, "`kernel` must be a torch.Tensor (kh, kw), got list; convert it with as_kernel", lambda: Blur([[1.0]])),
    (ValueError, "`kernel` must have shape (kh, kw) with kh, kw >= 1, got (3,)", lambda: Blur(torch.ones(3))),
    (ValueError, "kh, kw >= 1, got (0, 3)", lambda: as_kernel(torch.ones(0, 3))),
    (ValueError, "`kernel` must be finite", lambda: as_kernel([[1.0, math.nan]])),
    (ValueError, "`kernel` must not be all zero", lambda: as_kernel([[0.0, 0.0]])),
    (ValueError, "must have a positive sum to be normalised, got 0", lambda: as_kernel([[1.0, -1.0]])),
    (
        TypeError,
        "`kernel` must be real, got torch.complex64",
        lambda: as_kernel(torch.ones(2, 2, dtype=torch.complex64)),
    ),
    (
        ValueError,
        "larger than the image (H, W) = (8, 9) with a circular boundary, got (9, 9)",
        lambda: Blur(torch.ones(9, 9)).A(image),
    ),
    (
        ValueError,
        "(H, W) = (8, 9) with a circular boundary, got (1, 10)",
        lambda: Blur(torch.ones(1, 10)).adjoint(image),
    ),
    (ValueError, "`length` must be >= 1 pixel, got 0.5", lambda: motion_kernel(0.5)),
    (ValueError, "`length` must be a finite number > 0, got -3", lambda: motion_kernel(-3)),
    (ValueError, "`angle` must be a finite number of degrees, got inf", lambda: motion_kernel(3, math.inf)),
    # matrices
    (
        TypeError,
        "`matrix` must be a floating-point tensor, got torch.int64",
        lambda: CompressedSensing(torch.ones(2, 2).long()),
    ),
    (
        ValueError,
        "`matrix` must have shape (M, N) with M, N >= 1, got (2, 2, 2)",
        lambda: CompressedSensing(torch.ones(2, 2, 2)),
    ),
    (ValueError, "`matrix` must be finite", lambda: CompressedSensing(torch.full((2, 2), math.inf))),
    (
        ValueError,
        "must have N = 6 elements, one per column of the matrix (4, 6), got (1, 2, 4)",
        lambda: CompressedSensing(torch.ones(4, 6), (1, 2, 4)),
    ),
    (
        ValueError,
        "`image_shape` must be (B, 6) for this matrix, got (2, 5)",
        lambda: CompressedSensing(torch.ones(4, 6)).A(signal),
    ),
    (
        ValueError,
        "`image_shape` must be (B, 1, 2, 3) for this matrix, got (2, 6)",
        lambda: CompressedSensing(torch.ones(4, 6), (1, 2, 3)).A(torch.ones(2, 6)),
    ),
    # MRI
    (TypeError, "`mask` must be a torch.Tensor, got list", lambda: MRI([[1]])),
    (ValueError, "`mask` must hold 0 and 1 only, got 2", lambda: MRI(torch.full((2, 2), 2))),
    (ValueError, "`mask` must have shape (H, W) or (B, H, W), got (9,)", lambda: MRI(torch.ones(9))),
    (ValueError, "`mask` must have shape (H, W) or (B, H, W), got (2, 0, 9)", lambda: MRI(torch.ones(2, 0, 9))),
    (TypeError, "`maps` must be a torch.Tensor, got list", lambda: MRI(torch.ones(8, 9), [1.0])),
    (
        TypeError,
        "`maps` must be complex, got torch.float32; make them with torch.complex(real, imaginary)",
        lambda: MRI(torch.ones(8, 9), torch.ones(2, 8, 9)),
    ),
    (
        ValueError,
        "`maps` must have shape (N, H, W) or (B, N, H, W), got (8, 9)",
        lambda: MRI(torch.ones(8, 9), torch.ones(8, 9) + 0j),
    ),
    (
        ValueError,
        "`maps` must have the size (H, W) = (8, 9) of the mask, got (2, 9, 8)",
        lambda: MRI(torch.ones(8, 9), torch.ones(2, 9, 8) + 0j),
    ),
    (ValueError, "`maps` must be finite", lambda: MRI(torch.ones(8, 9), torch.full((2, 8, 9), math.nan) + 0j)),
    (ValueError, "`iterations` must be >= 1, got 0", lambda: MRI(torch.ones(8, 9), iterations=0)),
    (
        ValueError,
        "2 channels, real and imaginary part, or 1 for a real image, got (2, 3, 8, 9)",
        lambda: MRI(torch.ones(8, 9)).A(image),
    ),
    (
        ValueError,
        "`mask` must have shape (H, W) or (B or 1, H, W) for images (2, 2, 8, 9), got (9, 8)",
        lambda: MRI(torch.ones(9, 8)).A(image[:, :2]),
    ),
    (ValueError, "for images (2, 2, 8, 9), got (3, 8, 9)", lambda: MRI(torch.ones(3, 8, 9)).A(image[:, :2])),
    (
        ValueError,
        "`maps` must have shape (N, H, W) or (B or 1, N, H, W) for images (2, 1, 8, 9), got (3, 4, 8, 9)",
        lambda: MRI(torch.ones(8, 9), torch.ones(3, 4, 8, 9) + 0j).A(image[:, :1]),
    ),
    (
        ValueError,
        "`measurement_shape` must be (B, 2, 4, 8, 9), got (2, 2, 8, 9)",
        lambda: MRI(torch.ones(8, 9), coil_maps(4, (8, 9))).adjoint(image[:, :2]),
    ),
    (ValueError, "`shape` must be (H, W) or (B, H, W), got (8,)", lambda: cartesian_mask((8,))),
    (ValueError, "`acceleration` must be >= 1, got 0.5", lambda: cartesian_mask((8, 9), 0.5)),
    (ValueError, "`acceleration` must be a finite number > 0, got -2", lambda: cartesian_mask((8, 9), -2)),
    (
        ValueError,
        "must leave at least the 4 middle columns of 9, got 3, which leaves 3; lower it or `center_fraction`",
        lambda: cartesian_mask((8, 9), 3, 0.5),
    ),
    (ValueError, "`center_fraction` must be a fraction in [0, 1], got 8", lambda: cartesian_mask((8, 9), 3, 8)),
    (ValueError, "got 'equispace'; did you mean 'equispaced'?", lambda: cartesian_mask((8, 9), pattern="equispace")),
    (ValueError, "`coils` must be >= 1, got 0", lambda: coil_maps(0, (8, 9))),
    # phase retrieval
    (ValueError, "`oversampling` must be >= 1, got 0.5", lambda: PhaseRetrieval(0.5)),
    (ValueError, "`oversampling` must be a finite number > 0, got inf", lambda: PhaseRetrieval(math.inf)),
    (ValueError, "must have shape (B, C, H, W) with C, H, W >= 1, got (2, 5)", lambda: PhaseRetrieval().A(signal)),
    (
        ValueError,
        "`measurement_shape` must be that of an image padded 2 times, got (2, 3, 8, 9)",
        lambda: PhaseRetrieval().image_shape(image.shape),
    ),
    (
        ValueError,
        "`estimate` must have shape (B, C, H, W) = (2, 3, 8, 9), got (1, 3, 8, 9)",
        lambda: align(image[:1], image),
    ),
    (ValueError, "`truth` must have shape (B, C, H, W)", lambda: align(signal, signal)),
    (TypeError, "`estimate` must be float32 or float64, got torch.float16", lambda: align(image.half(), image)),
    (ValueError, "`starts` must be >= 1, got 0", lambda: best_of_starts(Denoising(), image, lambda s: image, 0)),
    (TypeError, "`starts` must be an integer, got float", lambda: best_of_starts(Denoising(), image, list, 2.0)),
    (
        TypeError,
        "`seeds` must be int64, got torch.float32; convert them with .long()",
        lambda: best_of_starts(Denoising(), image, list, seeds=torch.zeros(2)),
    ),
    (
        ValueError,
        "`seeds` must have shape (B,) = (2,), got (3,)",
        lambda: best_of_starts(Denoising(), image, list, seeds=torch.arange(3)),
    ),
    (
        ValueError,
        "`A(estimate)` must have shape (2, 3, 8, 9), got (1, 3, 8, 9)",
        lambda: best_of_starts(Denoising(), image, lambda s: image[:1]),
    ),
    # the camera
    (TypeError, "`kernels` must be a torch.Tensor, got list", lambda: NonlinearBlur([[1.0]])),
    (
        ValueError,
        "`kernels` must have shape (rows, columns, kh, kw) or (kh, kw), got (2, 3, 3)",
        lambda: NonlinearBlur(torch.ones(2, 3, 3)),
    ),
    (ValueError, "`kernels` must be finite", lambda: NonlinearBlur(torch.full((2, 2), math.nan))),
    (ValueError, "`exposure` must be a finite number > 0, got 0", lambda: NonlinearBlur(torch.ones(1, 1), 0)),
    (TypeError, "`gamma` must be a number, got str", lambda: NonlinearBlur(torch.ones(1, 1), gamma="2.2")),
    (ValueError, "`softness` must be a finite number > 0", lambda: NonlinearBlur(torch.ones(1, 1), softness=0)),
    (ValueError, "got 'zero'", lambda: NonlinearBlur(torch.ones(1, 1), boundary="zero")),
    (ValueError, "`length` must be a finite number >= 0, got -1", lambda: camera_shake(0, -1)),
    (ValueError, "`rotation` must be a finite number >= 0, got nan", lambda: camera_shake(0, 1, math.nan)),
    (ValueError, "`grid` must be (rows, columns), each >= 1, got (0, 2)", lambda: camera_shake(grid=(0, 2))),
    # linearised
    (TypeError, "`op` must be an rmp_fast operator, got list", lambda: Linearised([], image)),
    (TypeError, "`point` must be float32 or float64", lambda: Linearised(PhaseRetrieval(), image.half())),
    (ValueError, "`iterations` must be >= 1, got 0", lambda: Linearised(PhaseRetrieval(), image, 0)),
    (
        ValueError,
        "`image_shape` must be that of the point, (2, 3, 8, 9), got (1, 3, 8, 9)",
        lambda: Linearised(PhaseRetrieval(), image).A(image[:1]),
    ),
    (
        ValueError,
        "`measurement_shape` must be (2, 3, 16, 18), got (2, 3, 8, 9)",
        lambda: Linearised(PhaseRetrieval(), image).adjoint(image),
    ),
    # tasks
    (ValueError, "got 'phase_retrival'; did you mean 'phase_retrieval'?", lambda: for_task("phase_retrival", (1, 1))),
    (ValueError, "or 1 for a real image, got (2, 3, 8, 9)", lambda: for_task("mri", image.shape)),
    # names
    (ValueError, "got 'inpaintng'; did you mean 'inpainting'", lambda: get("inpaintng")),
    (
        ValueError,
        "`boundary` must be one of 'circular', 'reflect', 'replicate', got 'zero'",
        lambda: ops.separable_blur(image, torch.ones(1), torch.ones(1), "zero"),
    ),
    (
        ValueError,
        "`backend` must be one of 'auto', 'cpu', 'cuda', 'triton', 'torch', got 'gpu'; did you mean 'cpu'?",
        lambda: ops.block_average(image, 2, backend="gpu"),
    ),
    (
        RuntimeError,
        "backend 'cpu' computes float32 tensors",
        lambda: ops.block_average(image.double(), 2, backend="cpu"),
    ),
]


@pytest.mark.parametrize(("error", "message", "call"), CASES, ids=[message[:60] for _, message, _ in CASES])
def test_message(error: type[Exception], message: str, call: Callable[[], object]) -> None:
    with pytest.raises(error, match=re.escape(message)):
        call()
