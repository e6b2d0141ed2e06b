"""One property suite for every registered linear operator: a new one joins by a line in CASES.

The oracle is the matrix of A itself, read off unit vectors in float64.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import physics_cases
import pytest
import torch
from torch import Tensor

from rmp_fast import ops
from rmp_fast.operators import (
    MRI,
    REGISTRY,
    Blur,
    CompressedSensing,
    Denoising,
    GaussianBlur,
    Inpainting,
    Iterative,
    Linearised,
    LinearOperator,
    LinearPhysics,
    NonlinearBlur,
    PhaseRetrieval,
    Spectral,
    SuperResolution,
    as_kernel,
    box_mask,
    camera_shake,
    cartesian_mask,
    coil_maps,
    condition,
    from_callable,
    motion_kernel,
    random_mask,
)

CPU = torch.device("cpu")


def uniform(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def sensing(rows: int, columns: int, rank: int | None = None) -> Tensor:
    if rank is None:
        return uniform(rows, columns, seed=1) - 0.5
    return sensing(rows, rank) @ sensing(rank, columns)


def sharp(height: int, width: int) -> Tensor:
    """A kernel whose spectrum stays away from 0, so that noiseless solves are well posed."""
    kernel = 0.4 * uniform(height, width, seed=2) / (height * width)
    kernel[height // 2, width // 2] += 1
    return kernel


def stacked_maps(batch: int, coils: int, size: tuple[int, int]) -> Tensor:
    """Other sensitivities for every item."""
    scale = torch.linspace(0.5, 1.5, batch * coils).reshape(batch, coils, 1, 1)
    return coil_maps(coils, size) * scale


def gradient_of(x: Tensor) -> Tensor:
    """Weighted differences along the rows: (B, 2, 5, 6) -> (B, 2, 5, 5)."""
    return (x[..., 1:] - 0.5 * x[..., :-1]) * torch.arange(1, 6, dtype=x.dtype)


def gradient_adjoint(y: Tensor) -> Tensor:
    weighted = y * torch.arange(1, 6, dtype=y.dtype)
    return torch.nn.functional.pad(weighted, (1, 0)) - 0.5 * torch.nn.functional.pad(weighted, (0, 1))


def linear_function(adjoint: bool) -> LinearOperator:
    op = from_callable(
        gradient_of, (2, 5, 5), (2, 5, 6), gradient_adjoint if adjoint else None, linear=True, iterations=80
    )
    assert isinstance(op, LinearOperator)
    return op


@dataclass(frozen=True)
class Case:
    make: Callable[[], LinearOperator]
    shape: tuple[int, ...]  # of the images, with the batch
    single: bool = False  # deepinv has it in float32 alone
    name: str = ""

    @property
    def label(self) -> str:
        return self.name or f"{self.make()!r}-{'x'.join(map(str, self.shape))}".replace(" ", "")


CASES = [
    Case(Denoising, (3, 2, 5, 7)),
    Case(Denoising, (3, 11)),
    Case(lambda: Inpainting(random_mask((5, 7), 0.6)), (3, 2, 5, 7)),
    Case(lambda: Inpainting(random_mask((2, 5, 7), 0.6).float()), (3, 2, 5, 7)),
    Case(lambda: Inpainting(random_mask((3, 1, 5, 7), 0.6).to(torch.uint8)), (3, 2, 5, 7)),
    Case(lambda: Inpainting(random_mask((3, 2, 5, 7), 0.6)), (3, 2, 5, 7)),
    Case(lambda: Inpainting(box_mask((8, 8), 4)), (2, 3, 8, 8)),
    Case(lambda: Inpainting(random_mask((11,), 0.5)), (3, 11)),
    Case(lambda: Inpainting(random_mask((3, 1, 11), 0.5)[:, 0]), (3, 11)),
    Case(lambda: SuperResolution(2), (3, 2, 6, 8)),
    Case(lambda: SuperResolution(4), (2, 3, 9, 7)),
    Case(lambda: SuperResolution(8), (2, 1, 17, 3)),
    Case(lambda: SuperResolution(3), (2, 2, 1, 5)),
    Case(lambda: SuperResolution(2, "bicubic"), (3, 2, 6, 8)),
    Case(lambda: SuperResolution(4, "bicubic"), (2, 2, 11, 9)),
    Case(lambda: SuperResolution(8, "bicubic"), (2, 1, 17, 1)),
    Case(lambda: GaussianBlur(0.8), (3, 2, 7, 6)),
    Case(lambda: GaussianBlur(2.5), (2, 1, 5, 9)),
    Case(lambda: GaussianBlur(1.2), (2, 2, 1, 6)),
    Case(lambda: GaussianBlur(0.8, "circular"), (2, 2, 7, 6)),
    Case(lambda: GaussianBlur(2.0, "circular"), (2, 1, 5, 4)),
    Case(lambda: GaussianBlur(0.8, "replicate"), (2, 2, 7, 6)),
    Case(lambda: Blur(motion_kernel(5, 30)), (3, 2, 7, 8)),
    Case(lambda: Blur(sharp(3, 5)), (2, 1, 9, 5)),
    Case(lambda: Blur(sharp(4, 2)), (2, 2, 4, 7)),
    Case(lambda: Blur(sharp(3, 1)), (2, 1, 6, 1)),
    Case(lambda: Blur(motion_kernel(5, 30), "reflect", iterations=80), (3, 2, 7, 8)),
    Case(lambda: Blur(sharp(4, 3), "reflect", iterations=80), (2, 2, 3, 2)),
    Case(lambda: Blur(sharp(4, 2), "replicate", iterations=80), (2, 1, 6, 1)),
    Case(lambda: CompressedSensing(sensing(6, 24), (2, 3, 4)), (3, 2, 3, 4)),
    Case(lambda: CompressedSensing(sensing(15, 8).float()), (3, 8)),
    Case(lambda: CompressedSensing(sensing(9, 9)), (3, 9)),
    Case(lambda: CompressedSensing(sensing(7, 10, rank=4)), (3, 10)),
    Case(lambda: CompressedSensing(sensing(10, 7, rank=4)), (2, 7)),
    Case(lambda: MRI(random_mask((5, 7), 0.6)), (3, 2, 5, 7)),
    Case(lambda: MRI(random_mask((3, 6, 4), 0.5).float()), (3, 2, 6, 4)),
    Case(lambda: MRI(random_mask((5, 8), 0.6)), (3, 1, 5, 8)),
    Case(lambda: MRI(random_mask((2, 4, 7), 0.4)), (2, 1, 4, 7)),
    Case(lambda: MRI(random_mask((1, 9), 0.4)), (2, 2, 1, 9)),
    Case(lambda: MRI(random_mask((5, 6), 0.5), coil_maps(3, (5, 6)), iterations=80), (3, 2, 5, 6)),
    Case(lambda: MRI(random_mask((2, 5, 4), 0.5), stacked_maps(2, 3, (5, 4)), iterations=80), (2, 1, 5, 4)),
    Case(lambda: MRI(cartesian_mask((5, 6), 2), coil_maps(3, (5, 6))), (3, 2, 5, 6)),
    Case(lambda: MRI(cartesian_mask((4, 7), 2).mT, coil_maps(2, (7, 4))), (2, 1, 7, 4)),
    Case(lambda: MRI(cartesian_mask((2, 5, 6), 3), stacked_maps(2, 2, (5, 6))), (2, 2, 5, 6)),
    Case(lambda: linear_function(adjoint=True), (3, 2, 5, 6)),
    Case(lambda: linear_function(adjoint=False), (3, 2, 5, 6)),
    Case(lambda: Linearised(PhaseRetrieval(1.4), uniform(2, 1, 4, 5), 80), (2, 1, 4, 5)),
    Case(lambda: Linearised(NonlinearBlur(camera_shake(0, 2, 1)), uniform(3, 1, 4, 3).float(), 80), (3, 1, 4, 3)),
]

CASES += [Case(*entry) for entry in physics_cases.linear()]

every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.label)
both_dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])

# Relative to the norms: a few roundings of float32 (6e-8) or float64 (1e-16) in sums of at most some hundred terms.
ROUNDING = {torch.float32: 1e-6, torch.float64: 1e-12}
# A solve with noise 0.1 to 0.3 and r2 about 1 has a condition number of at most (1 + 5^2) / 0.1^2 = 2600.
SOLVED = {torch.float32: 2e-4, torch.float64: 1e-9}

# Without noise the condition number is that of A, squared, and conjugate gradients take more steps than pixels.
NOISELESS_ITERATIONS = 250


def noise(shape: tuple[int, ...], seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def pair(case: Case, dtype: torch.dtype) -> tuple[LinearOperator, Tensor, Tensor]:
    """The operator, images x and unrelated y of the measurement's shape."""
    if case.single and dtype == torch.float64:
        pytest.skip("deepinv has this one in float32 alone")
    op = case.make()
    return op, noise(case.shape, 1, dtype), noise(op.measurement_shape(case.shape), 2, dtype)


def scalars(case: Case) -> tuple[Tensor, Tensor]:
    """r2 and noise_std, another one for every item."""
    batch = case.shape[0]
    return torch.linspace(0.3, 1, batch, dtype=torch.float64), torch.linspace(0.1, 0.3, batch, dtype=torch.float64)


def matrices(case: Case) -> Tensor:
    """A of every item as a matrix (B, M, N)."""
    op, batch = case.make(), case.shape[0]
    units = torch.eye(torch.Size(case.shape[1:]).numel(), dtype=torch.float64)
    columns = [op.A(unit.reshape(1, *case.shape[1:]).expand(case.shape)).reshape(batch, -1) for unit in units]
    return torch.stack(columns, 2)


def relative(a: Tensor, b: Tensor) -> float:
    """The worst item's ||a - b|| / ||b||."""
    a, b = a.double().flatten(1), b.double().flatten(1)
    return float(((a - b).norm(dim=1) / b.norm(dim=1).clamp(min=1e-300)).max())


def conditioned(case: Case, d: Tensor, y: Tensor, r2: Tensor, noise_std: Tensor) -> Tensor:
    """The definition with dense matrices in float64."""
    A = matrices(case)
    d_flat, y_flat = d.double().reshape(d.shape[0], -1, 1), y.double().reshape(d.shape[0], -1, 1)
    gram = r2[:, None, None] * A @ A.mT + noise_std.square()[:, None, None] * torch.eye(A.shape[1], dtype=torch.float64)
    # numpy, one item at a time: torch's threaded batched LU now and then hands MKL invalid pivots
    solved = np.stack([np.linalg.solve(g, r) for g, r in zip(gram.numpy(), (y_flat - A @ d_flat).numpy(), strict=True)])
    return (d_flat + r2[:, None, None] * A.mT @ torch.from_numpy(solved)).reshape(d.shape)


def test_every_registered_operator_has_a_case() -> None:
    linear = {name for name, operator in REGISTRY.items() if issubclass(operator, LinearOperator)}
    assert {type(case.make()).name for case in CASES} - {LinearPhysics.name} == linear
    for name, cls in REGISTRY.items():
        assert cls.name == name


@both_dtypes
@every_case
def test_adjoint(case: Case, dtype: torch.dtype) -> None:
    op, x, y = pair(case, dtype)
    forward, backward = op.A(x), op.adjoint(y, case.shape)
    assert forward.dtype == backward.dtype == dtype
    left = (forward.double() * y.double()).flatten(1).sum(1)
    right = (x.double() * backward.double()).flatten(1).sum(1)
    scale = forward.double().flatten(1).norm(dim=1) * y.double().flatten(1).norm(dim=1)
    assert ((left - right).abs() <= ROUNDING[dtype] * scale).all()


@both_dtypes
@every_case
def test_normal_is_the_adjoint_of_the_measurement(case: Case, dtype: torch.dtype) -> None:
    op, x, _ = pair(case, dtype)
    found, expected = op.normal(x), op.adjoint(op.A(x), case.shape)
    scale = expected.abs().max() if expected.numel() else 1
    torch.testing.assert_close(found, expected, rtol=0, atol=float(ROUNDING[dtype] * scale))


@both_dtypes
@every_case
def test_linear(case: Case, dtype: torch.dtype) -> None:
    op, x, y = pair(case, dtype)
    other = noise(case.shape, 3, dtype)
    assert relative(op.A(2 * x - 0.5 * other), 2 * op.A(x) - 0.5 * op.A(other)) <= 4 * ROUNDING[dtype]
    assert not op.A(torch.zeros_like(x)).any()
    assert not op.adjoint(torch.zeros_like(y), case.shape).any()


@every_case
def test_shapes_are_consistent(case: Case) -> None:
    op, x, y = pair(case, torch.float32)
    assert op.A(x).shape == y.shape
    assert op.adjoint(y, case.shape).shape == x.shape
    assert op.adjoint(y, list(case.shape)).shape == x.shape
    default = op.image_shape(y.shape)
    assert op.measurement_shape(default) == tuple(y.shape)
    assert op.adjoint(y).shape == default
    assert op.gram_solve(y, 1.0, 0.1).shape == y.shape


@both_dtypes
@every_case
def test_gram_solve_times_gram_is_the_identity(case: Case, dtype: torch.dtype) -> None:
    op, _, r = pair(case, dtype)
    r2, noise_std = scalars(case)
    solved = op.gram_solve(r, r2, noise_std, case.shape)
    column = (-1, *[1] * (r.ndim - 1))
    image = r2.reshape(column).to(dtype) * op.A(op.adjoint(solved, case.shape))
    image = image + noise_std.square().reshape(column).to(dtype) * solved
    assert relative(image, r) <= SOLVED[dtype]


@every_case
def test_noiseless_gram_solve_reproduces_what_the_operator_can_produce(case: Case) -> None:
    op, x, _ = pair(case, torch.float64)
    op.iterations = NOISELESS_ITERATIONS
    r = op.A(x)
    solved = op.gram_solve(r, 0.5, 0.0, case.shape)
    # The solution is as large as 1e9, the inverse of the smallest singular value seen among the cases.
    bound = 1e-4 if isinstance(op.form(case.shape, CPU, torch.float64), Iterative) else 1e-6
    assert relative(0.5 * op.A(op.adjoint(solved, case.shape)), r) <= bound


@both_dtypes
@every_case
def test_forms_agree_with_the_definition(case: Case, dtype: torch.dtype) -> None:
    op, d, _ = pair(case, dtype)
    y = op.A(noise(case.shape, 4, dtype)) + 0.2 * op.A(noise(case.shape, 5, dtype))
    r2, noise_std = scalars(case)
    expected = conditioned(case, d, y, r2, noise_std)
    form = op.form(case.shape, CPU, dtype)
    result = condition(form, op, d, y, r2, noise_std)
    assert result.dtype == dtype
    # Relative to the image: what the Gram solve amplifies, A^T takes back.
    assert relative(result, expected) <= {torch.float32: 1e-5, torch.float64: 1e-10}[dtype]
    by_definition = d + op.adjoint(op.gram_solve(y - op.A(d), r2, noise_std, case.shape), case.shape) * r2.to(
        dtype
    ).reshape(-1, *[1] * (d.ndim - 1))
    assert relative(by_definition, expected) <= {torch.float32: 1e-4, torch.float64: 1e-10}[dtype]


@every_case
def test_spectral_form_is_what_its_parts_say(case: Case) -> None:
    op, d, y = pair(case, torch.float32)
    form = op.form(case.shape, CPU, torch.float32)
    if not isinstance(form, Spectral):
        return
    c = form.analysis(d)
    assert c.is_contiguous()
    assert form.energy.is_contiguous()
    assert not form.energy.is_complex()
    data = form.project(y)
    assert data.shape == c.shape
    assert data.dtype == c.dtype
    assert form.energy.shape[0] in (1, case.shape[0])
    assert form.energy.shape[1:] == c.shape[1:]
    assert relative(form.synthesis(form.analysis(form.synthesis(c))), form.synthesis(c)) <= 1e-5
    if form.complete:
        assert relative(form.synthesis(c), d) <= 1e-5
    r2, noise_std = scalars(case)
    delta = ops.spectral(c, form.energy, data, noise_std.square() / r2, update=not form.complete)
    result = form.synthesis(delta) if form.complete else d + form.synthesis(delta)
    assert relative(result, condition(form, op, d, y, r2, noise_std)) <= 1e-5


@every_case
def test_certain_images_and_certain_measurements(case: Case) -> None:
    op, d, _ = pair(case, torch.float64)
    op.iterations = NOISELESS_ITERATIONS
    y = op.A(noise(case.shape, 4))
    form = op.form(case.shape, CPU, torch.float64)
    assert relative(condition(form, op, d, y, 0.0, 0.1), d) <= 1e-12
    bound = 1e-4 if isinstance(form, Iterative) else 1e-8
    assert relative(op.A(condition(form, op, d, y, 1.0, 0.0)), y) <= bound


@every_case
def test_gradient_of_A_is_the_adjoint(case: Case) -> None:
    op, x, y = pair(case, torch.float64)
    x.requires_grad_()
    (gradient,) = torch.autograd.grad((op.A(x) * y).sum(), x)
    assert relative(gradient, op.adjoint(y, case.shape)) <= 1e-12
    y.requires_grad_()
    (gradient,) = torch.autograd.grad((op.adjoint(y, case.shape) * x.detach()).sum(), y)
    assert relative(gradient, op.A(x.detach())) <= 1e-12


@every_case
def test_gradient_after_a_call_in_inference_mode(case: Case) -> None:
    op, x, _ = pair(case, torch.float32)
    with torch.inference_mode():
        plain = op.A(x)
        condition(op.form(case.shape, CPU, torch.float32), op, x, plain, 1.0, 0.1)
    followed = op.A(x.requires_grad_())
    followed.sum().backward()
    assert relative(followed.detach(), plain) <= ROUNDING[torch.float32]


@both_dtypes
@every_case
def test_items_are_independent(case: Case, dtype: torch.dtype) -> None:
    op, x, y = pair(case, dtype)
    r2, noise_std = scalars(case)
    shape = case.shape
    together = (
        op.A(x),
        op.adjoint(y, shape),
        op.gram_solve(y, r2, noise_std, shape),
        condition(op.form(shape, CPU, dtype), op, x, y, r2, noise_std),
    )
    # Everything else in the batch becomes NaN: nothing may leak.
    for k in range(shape[0]):
        alone = torch.full((shape[0], *[1] * (x.ndim - 1)), torch.nan, dtype=dtype)
        alone[k] = 0
        lonely_x, lonely_y = x + alone, y + alone.reshape(-1, *[1] * (y.ndim - 1))
        separate = (
            op.A(lonely_x),
            op.adjoint(lonely_y, shape),
            op.gram_solve(lonely_y, r2, noise_std, shape),
            condition(op.form(shape, CPU, dtype), op, lonely_x, lonely_y, r2, noise_std),
        )
        for a, b in zip(separate, together, strict=True):
            assert relative(a[k : k + 1], b[k : k + 1]) <= ROUNDING[dtype]


@every_case
def test_inputs_are_never_modified_and_results_never_share_their_memory(case: Case) -> None:
    op, x, y = pair(case, torch.float32)
    r2, noise_std = scalars(case)
    inputs = (x, y, r2, noise_std)
    before = [t.clone() for t in inputs]
    results = (
        op.A(x),
        op.adjoint(y, case.shape),
        op.gram_solve(y, r2, noise_std, case.shape),
        condition(op.form(case.shape, CPU, torch.float32), op, x, y, r2, noise_std),
    )
    for result in results:
        result.fill_(7)
    for tensor, copy in zip(inputs, before, strict=True):
        assert torch.equal(tensor, copy)


@every_case
def test_strided_input(case: Case) -> None:
    op, x, y = pair(case, torch.float32)

    def strided(t: Tensor) -> Tensor:
        wide = t.new_zeros(*t.shape[:-1], 2 * t.shape[-1] + 1)
        wide[..., 1::2] = t
        return wide[..., 1::2]

    assert relative(op.A(strided(x)), op.A(x)) <= ROUNDING[torch.float32]
    assert relative(op.adjoint(strided(y), case.shape), op.adjoint(y, case.shape)) <= ROUNDING[torch.float32]
    left, right = op.gram_solve(strided(y), 1.0, 0.2, case.shape), op.gram_solve(y, 1.0, 0.2, case.shape)
    assert relative(left, right) <= SOLVED[torch.float32]


@every_case
def test_empty_batch(case: Case) -> None:
    op = case.make()
    shape = (0, *case.shape[1:])
    if isinstance(op, Inpainting) and op.mask.ndim in (2, 4) and op.mask.shape[0] == case.shape[0]:
        op = Inpainting(op.mask[:0])
    if isinstance(op, Linearised):
        op = Linearised(op._op, op._point[:0])
    if isinstance(op, MRI) and op.mask.ndim == 3:
        op = MRI(op.mask[:0], None if op.maps is None else op.maps[:0])
    x = torch.zeros(shape)
    y = op.A(x)
    assert y.shape == op.measurement_shape(shape)
    assert op.adjoint(y, shape).shape == shape
    assert op.gram_solve(y, 1.0, 0.1, shape).shape == y.shape
    assert condition(op.form(shape, CPU, torch.float32), op, x, y, torch.zeros(0), torch.zeros(0)).shape == shape


@every_case
def test_conjugate_gradients_reach_the_same_solution(case: Case) -> None:
    op, _, r = pair(case, torch.float64)
    r2, noise_std = scalars(case)
    solution, residual = op.iterative_solve(r, r2, noise_std, case.shape, iterations=150)
    assert residual.shape == (case.shape[0],)
    assert (residual <= 1e-9).all()
    assert relative(solution, op.gram_solve(r, r2, noise_std, case.shape)) <= 1e-6


def test_conjugate_gradients_report_what_is_left_per_item() -> None:
    op = Blur(as_kernel(uniform(5, 5)), "reflect", iterations=3)
    r = noise((2, 1, 12, 12), 1)
    r[1] = 0
    solution, residual = op.iterative_solve(r, 1.0, torch.tensor([0.05, 0.0]))
    left = r - op.A(op.adjoint(solution)) - 0.05**2 * solution
    assert residual[0] == pytest.approx(float(left[0].norm() / r[0].norm()), rel=1e-6)
    assert residual[0] > 1e-3
    assert residual[1] == 0
    assert not solution[1].any()
