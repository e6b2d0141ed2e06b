"""The compiled kernels behind the operators against the same functions in plain torch, float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from rmp_fast import _core, backends, cuda_ops, ops
from rmp_fast.operators import Blur, GaussianBlur, Inpainting, SuperResolution, motion_kernel, random_mask

SIZES = [(0, 3, 8, 8), (1, 1, 1, 1), (2, 3, 5, 7), (1, 2, 33, 65), (3, 1, 64, 31)]
sizes = pytest.mark.parametrize("shape", SIZES, ids=lambda s: "x".join(map(str, s)))


def noise(shape: tuple[int, ...], seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def assert_close(result: Tensor, expected: Tensor) -> None:
    """To 1e-6 of the norm: a hundred or so roundings of 6e-8 that do not all point one way."""
    assert result.shape == expected.shape
    assert result.is_contiguous()
    assert torch.isfinite(result).all()
    assert (result.to(expected.dtype) - expected).norm() <= 1e-6 * expected.norm()


@sizes
@pytest.mark.parametrize("shared", [True, False])
def test_mask(shape: tuple[int, ...], shared: bool) -> None:
    x = noise(shape)
    mask = random_mask((1 if shared else shape[0], *shape[1:]), 0.5).to(torch.uint8)
    assert torch.equal(ops.mask(x, mask, backend="cpu"), ops.mask(x, mask, backend="torch"))


def test_mask_drops_what_is_not_finite() -> None:
    x = torch.tensor([[torch.nan, 1.0, torch.inf]])
    mask = torch.tensor([[0, 1, 0]], dtype=torch.uint8)
    for backend in ("cpu", "torch"):
        assert ops.mask(x, mask, backend=backend).tolist() == [[0.0, 1.0, 0.0]]


@sizes
@pytest.mark.parametrize("factor", [2, 3, 4, 8])
def test_block_average_and_its_adjoint(shape: tuple[int, ...], factor: int) -> None:
    x = noise(shape)
    y = ops.block_average(x, factor, backend="cpu")
    assert_close(y, ops.block_average(x.double(), factor, backend="torch"))
    spread = ops.block_average_adjoint(y, factor, shape[-2:], backend="cpu")
    assert_close(spread, ops.block_average_adjoint(y.double(), factor, shape[-2:], backend="torch"))


@sizes
@pytest.mark.parametrize("boundary", ops.BOUNDARIES)
@pytest.mark.parametrize("adjoint", [False, True])
@pytest.mark.parametrize("taps", [(1, 3), (7, 5), (61, 9)])
def test_separable_blur(shape: tuple[int, ...], boundary: str, adjoint: bool, taps: tuple[int, int]) -> None:
    x = noise(shape)
    vertical, horizontal = (torch.rand(n, generator=torch.Generator().manual_seed(n)) / n for n in taps)
    result = ops.separable_blur(x, vertical, horizontal, boundary, adjoint=adjoint, backend="cpu")
    expected = ops.separable_blur(
        x.double(), vertical.double(), horizontal.double(), boundary, adjoint=adjoint, backend="torch"
    )
    assert_close(result, expected)


@sizes
@pytest.mark.parametrize("update", [False, True])
@pytest.mark.parametrize("kind", [torch.float32, torch.complex64], ids=["real", "complex"])
@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("in_place", [True, False])
def test_spectral(shape: tuple[int, ...], update: bool, kind: torch.dtype, shared: bool, in_place: bool) -> None:
    generator = torch.Generator().manual_seed(1)
    c, data = (torch.randn(shape, generator=generator, dtype=kind) for _ in range(2))
    energy = torch.rand((1 if shared else shape[0], *shape[1:]), generator=generator)
    ratio = torch.rand(shape[0], generator=generator) + 0.01
    double = torch.complex128 if kind.is_complex else torch.float64
    expected = ops.spectral(
        c.to(double), energy.double(), data.to(double), ratio.double(), update=update, backend="torch"
    )
    out = c if in_place else None
    result = ops.spectral(c, energy, data, ratio, update=update, out=out, backend="cpu")
    assert_close(result, expected)
    if in_place:
        assert result is c


@pytest.mark.parametrize("backend", ["cpu", "torch"])
def test_spectral_where_there_is_neither_energy_nor_noise(backend: str) -> None:
    c, nothing = noise((2, 5)), torch.zeros(2, 5)
    result = ops.spectral(c, torch.zeros(1, 5), nothing, torch.zeros(2), update=False, backend=backend)
    assert torch.equal(result, c)


@sizes
@pytest.mark.parametrize("held", [True, False])
@pytest.mark.parametrize("divided", [True, False])
@pytest.mark.parametrize("in_place", [True, False])
def test_clip_gradient(shape: tuple[int, ...], held: bool, divided: bool, in_place: bool) -> None:
    gradient = noise(shape)
    u = noise(shape, 1) if held else None
    limit, weight = (torch.linspace(0.5, 1.5, shape[0]), torch.full(shape[:1], 0.9)) if held else (None, None)
    r = noise((shape[0], 11), 2) if divided else None
    given = [None if t is None else t.double() for t in (gradient, u, limit, weight, r)]
    expected = ops.clip_gradient(*given, backend="torch")
    out = gradient if in_place else None
    result = ops.clip_gradient(gradient, u, limit, weight, r, out=out, backend="cpu")
    assert_close(result, expected)
    if in_place:
        assert result is gradient


@pytest.mark.parametrize("backend", ["cpu", "torch"])
def test_clip_gradient_leaves_what_is_zero_and_what_is_no_number(backend: str) -> None:
    g, u, ones = noise((3, 5)), noise((3, 5), 1), torch.ones(3)
    g[0], g[1, 2] = 0, torch.nan
    result = ops.clip_gradient(g, u, ones, ones * 1e3, torch.zeros(3, 2), backend=backend)
    assert (result[0] == 0).all()
    assert torch.equal(result[1].isnan(), g[1].isnan())
    assert result[2].norm().item() == pytest.approx(1e-3 * u[2].norm().item(), rel=1e-6)


@pytest.mark.parametrize("backend", ["cpu", "torch"])
def test_clip_gradient_needs_all_that_makes_a_limit(backend: str) -> None:
    x = noise((2, 5))
    with pytest.raises(ValueError, match="`direction`, `limit` and `weight` must be given together, or none of them"):
        ops.clip_gradient(x, x, torch.ones(2), backend=backend)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_directions_may_be_divided_after_what_is_linear(dtype: torch.dtype) -> None:
    """J^T (u / ||r||), held to the length of u, is J^T u, divided and held to it here."""
    generator = torch.Generator().manual_seed(0)
    u, r = (torch.randn(4, n, generator=generator, dtype=dtype) for n in (6, 9))
    jacobian = torch.randn(6, 6, generator=generator, dtype=dtype)
    limit, weight = torch.full((4,), 0.5, dtype=dtype), torch.tensor([0.1, 1, 3, 10], dtype=dtype)
    before = ops.clip_gradient(u / r.norm(dim=1, keepdim=True) @ jacobian, u, limit, weight)
    after = ops.clip_gradient(u @ jacobian, u, limit, weight, r)
    torch.testing.assert_close(after, before)
    lengths = weight * after.norm(dim=1) / (limit * u.norm(dim=1))
    assert (lengths <= 1 + 1e-5).all()
    assert lengths[0] < 0.5 < lengths[-1]


@pytest.mark.parametrize(
    "function",
    [
        lambda x, b: ops.mask(x, torch.ones(1, 3, 6, 8, dtype=torch.uint8), backend=b),
        lambda x, b: ops.block_average(x, 4, backend=b),
        lambda x, b: ops.block_average_adjoint(x, 4, (23, 29), backend=b),
        lambda x, b: ops.separable_blur(x, torch.ones(3), torch.ones(5), "reflect", backend=b),
        lambda x, b: ops.clip_gradient(x, x.flip(2), torch.ones(2), torch.full((2,), 3.0), x[..., :2], backend=b),
    ],
    ids=["mask", "block_average", "block_average_adjoint", "separable_blur", "clip_gradient"],
)
def test_strided_input(function) -> None:
    x = noise((2, 3, 8, 6)).mT
    assert not x.is_contiguous()
    assert_close(function(x, "cpu"), function(x.double(), "torch"))


def test_auto_takes_the_kernel_exactly_where_it_applies() -> None:
    x = torch.zeros(2)
    assert ops.available()
    assert ops.unavailable_reason() == ""
    assert ops.kernels("auto", x) is ops.kernels("cpu", x) is _core
    assert ops.kernels("torch", x) is None
    assert ops.kernels("auto", x.double()) is None
    assert ops.kernels("auto", x.to("meta")) is None
    followed = x.clone().requires_grad_()
    assert ops.kernels("auto", followed) is None
    with torch.no_grad():
        assert ops.kernels("auto", followed) is _core


@pytest.mark.parametrize(
    "op",
    [Inpainting(random_mask((32, 48), 0.5)), SuperResolution(4), GaussianBlur(2.0), Blur(motion_kernel(7, 20))],
    ids=repr,
)
def test_operators_agree_with_and_without_the_extension(op, monkeypatch: pytest.MonkeyPatch) -> None:
    x = noise((2, 3, 32, 48))
    compiled = op.A(x)
    back = op.adjoint(compiled, x.shape)
    monkeypatch.setattr(ops, "_core", None)
    assert not ops.available()
    assert_close(compiled, op.A(x.double()))
    assert_close(back, op.adjoint(compiled.double(), x.shape))


def test_cuda_is_refused_with_the_reason_where_it_cannot_work(monkeypatch: pytest.MonkeyPatch) -> None:
    x, kept = torch.zeros(1, 2), torch.ones(1, 2, dtype=torch.uint8)
    cuda, cpu = torch.device("cuda"), torch.device("cpu")
    monkeypatch.setattr(cuda_ops, "_problem", lambda: "there is no driver")
    with pytest.raises(RuntimeError, match=r"the CUDA kernels are not available \(there is no driver\)"):
        ops.mask(x, kept, backend="cuda")
    assert backends.status(cuda, torch.float32)["cuda"] == "there is no driver"
    assert backends.preferred(cuda, torch.float32) != "cuda"
    monkeypatch.setattr(cuda_ops, "_problem", lambda: None)
    assert backends.status(cuda, torch.float32)["cuda"] is None
    assert backends.preferred(cuda, torch.float32) == "cuda"
    assert backends.preferred(cuda, torch.float64) == "torch"
    assert "not on cpu; pass device='cuda'" in str(backends.status(cpu, torch.float32)["cuda"])
    assert "float32, not torch.float64" in str(backends.status(cuda, torch.float64)["cuda"])
    with pytest.raises(RuntimeError, match=r"the CUDA kernels are not available .*not on cpu"):
        ops.mask(x, kept, backend="cuda")


def test_what_stands_in_the_way_of_cuda_is_told() -> None:
    problem = cuda_ops.unavailable_reason(torch.device("cuda"))
    if torch.cuda.is_available():
        assert problem is None or "RMP_FAST_CUDA" in problem
    else:
        assert problem is not None
        assert "torch " in problem
