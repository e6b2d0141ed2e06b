"""deepinv's operators beyond the property suite of the linear ones, and RMP as a reconstructor of deepinv."""

from __future__ import annotations

from typing import Any

import field
import physics_cases
import pytest
import torch
from torch import Tensor, nn

import rmp_fast as rmp
from rmp_fast.operators import Iterative, Physics, Spectral, from_deepinv

deepinv = field.deepinv()
p = deepinv.physics
CPU = torch.device("cpu")


def images(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", physics_cases.NONLINEAR)
def test_nonlinear_physics_see_images_on_their_own_range(name: str) -> None:
    physics, item = physics_cases.nonlinear(name), physics_cases.NONLINEAR[name][1]
    op = from_deepinv(physics, item)
    assert isinstance(op, Physics)
    assert not op.linear
    x = 2 * images(2, *item) - 1
    unit = (x + 1) / 2
    expected = physics.A(unit.to(torch.complex64) if name == "phase retrieval" else unit)
    torch.testing.assert_close(op.A(x), expected, rtol=1e-5, atol=1e-5)
    wide = from_deepinv(physics, item, data_range=(-3.0, 5.0))
    unit = 1 + 4 * x
    expected = physics.A(unit.to(torch.complex64) if name == "phase retrieval" else unit)
    torch.testing.assert_close(wide.A(x), expected, rtol=1e-5, atol=1e-5)
    x.requires_grad_()
    (gradient,) = torch.autograd.grad(op.A(x).sum(), x)
    assert gradient.isfinite().all()
    assert op.A(x[:0].detach()).shape == (0, *op.measurement_shape((1, *item))[1:])


def test_decomposable_physics_need_no_iterations() -> None:
    for name, spectral in (("MRI", True), ("blur by FFT", True), ("multi-coil MRI", False), ("tomography", False)):
        op, item = physics_cases.operator(name), physics_cases.PHYSICS[name][1]
        form = op.form((2, *item), CPU, torch.float32)
        assert isinstance(form, Spectral if spectral else Iterative)


def test_a_closed_form_that_is_wrong_is_not_used() -> None:
    class Wrong(p.DecomposablePhysics):
        """A is twice what its singular values say."""

        def A(self, x: Tensor, **_: Any) -> Tensor:
            return 2 * x

        def A_adjoint(self, y: Tensor, **_: Any) -> Tensor:
            return 2 * y

    op = from_deepinv(Wrong(mask=1.0), (1, 3, 4))
    assert isinstance(op.form((2, 1, 3, 4), CPU, torch.float32), Iterative)
    r = images(2, 1, 3, 4)
    torch.testing.assert_close(op.gram_solve(r, 1.0, 0.5), r / 4.25)
    # A filter wider than the image breaks deepinv's proximal operator, and it is left out.
    wide = from_deepinv(p.Downsampling((1, 8, 8), "gaussian", 2, padding="circular"), (1, 8, 8), iterations=30)
    assert wide.iterations == 30
    assert (wide.iterative_solve(images(2, 1, 4, 4), 1.0, 0.3).residual < 1e-4).all()
    assert physics_cases.operator("downsampling").iterations == 2


def test_complex_and_listed_measurements_become_real_tensors() -> None:
    matrix = torch.randn(5, 6, dtype=torch.complex64, generator=torch.Generator().manual_seed(0))

    def forward(x: Tensor, **_: Any) -> Tensor:
        return x.flatten(1).to(matrix) @ matrix.T

    def backward(y: Tensor, **_: Any) -> Tensor:
        return (y @ matrix.conj()).real.reshape(-1, 1, 2, 3)

    physics = p.LinearPhysics(A=forward, A_adjoint=backward)
    op = from_deepinv(physics, (1, 2, 3))
    x = images(2, 1, 2, 3)
    measured = physics.A(x)
    assert op.measurement_shape(x.shape) == (2, 5, 2)
    torch.testing.assert_close(op.A(x), torch.view_as_real(measured))
    assert torch.equal(op.unpack(op.pack(measured)), measured)
    both = from_deepinv(p.stack(physics, p.Denoising()), (1, 2, 3))
    listed = both.unpack(both.A(x))
    assert both.measurement_shape(x.shape) == (2, 16)
    torch.testing.assert_close(listed[0], measured)
    torch.testing.assert_close(listed[1], x)


def test_parameters_of_each_item_fix_the_batch() -> None:
    masks = (images(3, 1, 4, 5) > 0.5).float()
    physics = p.Inpainting((1, 4, 5), mask=masks)
    with pytest.raises(
        ValueError, match=r"Inpainting must take images .*; if it has parameters for each item, give `batch`"
    ):
        from_deepinv(physics, (1, 4, 5))
    op = from_deepinv(physics, (1, 4, 5), batch=3)
    x = images(3, 1, 4, 5, seed=1)
    torch.testing.assert_close(op.A(x), masks * x)
    form = op.form(tuple(x.shape), CPU, torch.float32)
    assert isinstance(form, Spectral)
    assert form.energy.shape[0] == 3
    with pytest.raises(ValueError, match=r"`image_shape` must be \(3, 1, 4, 5\) for this function, got \(2, 1, 4, 5\)"):
        op.A(x[:2])
    plan = rmp.Plan(op, rmp.priors.from_denoiser(lambda x, s: 0.9 * x, 0.25), tuple(x.shape), 0.1, noise="antithetic")
    assert plan.execute(op.A(x)).ok.all()


def test_the_adjoint_of_a_physics_can_be_derived_instead() -> None:
    def off(y: Tensor, **_: Any) -> Tensor:
        return 1.01 * torch.nn.functional.pad(y, (1, 0))

    physics = p.LinearPhysics(A=lambda x, **_: x[..., 1:], A_adjoint=off)
    with pytest.raises(ValueError, match=r"LinearPhysics: `adjoint` must be .*adjoint='autograd' takes the gradient"):
        from_deepinv(physics, (1, 3, 4))
    op = from_deepinv(physics, (1, 3, 4), adjoint="autograd")
    y = images(2, 1, 3, 3)
    torch.testing.assert_close(op.adjoint(y), torch.nn.functional.pad(y, (1, 0)))


class Mixing(p.Physics):
    def A(self, x: Tensor, **_: Any) -> Tensor:
        return x / x.norm()


class Choosy(p.Physics):
    def A(self, x: Tensor, **_: Any) -> Tensor:
        raise TypeError("no complex images" if x.is_complex() else "no real images")


REFUSED: list[tuple[type[Exception], str, Any, dict[str, Any]]] = [
    (TypeError, "`physics` must be a deepinv physics, got str", lambda: "blur", {}),
    (ValueError, "`physics` Decolorize must take images (B, 4, 3, 3), got", p.Decolorize, {"image_shape": (4, 3, 3)}),
    (ValueError, "got RuntimeError: no real images; and of complex ones TypeError: no complex images", Choosy, {}),
    (ValueError, "`image_shape` must be the shape of one item", p.Denoising, {"image_shape": (1, 0, 3)}),
    (ValueError, "`adjoint` must be one of 'physics', 'autograd', got 'auto'", p.Denoising, {"adjoint": "auto"}),
    (ValueError, "`batch` must be at least 1, got 0", p.Denoising, {"batch": 0}),
    (ValueError, "`data_range` must be (low, high)", p.Denoising, {"data_range": (1.0, 0.0)}),
    (ValueError, "`iterations` must be >= 1, got 0", p.Denoising, {"iterations": 0}),
    (ValueError, "Mixing: `fn` must treat every item of a batch alone", Mixing, {}),
    (ValueError, "Mixing: `fn` must treat every item of a batch alone", Mixing, {"batch": 2}),
    (
        ValueError,
        "LinearPhysics: `fn` must be linear",
        lambda: p.LinearPhysics(A=lambda x, **_: x + 1, A_adjoint=lambda y, **_: y),
        {},
    ),
]


@pytest.mark.parametrize(("error", "message", "make", "options"), REFUSED, ids=[row[1] for row in REFUSED])
def test_refusals(error: type[Exception], message: str, make: Any, options: dict[str, Any]) -> None:
    with pytest.raises(error) as caught:
        from_deepinv(make(), **{"image_shape": (1, 3, 4)} | options)
    assert message in str(caught.value)


GAUSSIAN = rmp.priors.from_denoiser(lambda x, s: x * (0.25 / (0.25 + s**2)).reshape(-1, 1, 1, 1), 0.25, "gaussian")


def test_a_reconstructor_agrees_with_the_posterior_mean() -> None:
    sigma = 0.05
    physics = p.BlurFFT((1, 7, 6), filter=physics_cases.kernel(), noise_model=p.GaussianNoise(sigma))
    y = physics(images(3, 1, 7, 6))
    model = rmp.deepinv.RMP(GAUSSIAN, schedule=rmp.schedules.log(60, 0.002, 1000.0), noise="none", anchor="next")
    assert isinstance(model, deepinv.models.Reconstructor)
    mean = model(y, physics)
    # x0 on [0, 1] has mean 1/2 and variance 1/16, so E[x0 | y] = m + (A^T A + 16 sigma^2)^-1 A^T (y - A m); the chain
    # forgets its start as p / s_T^2 and stops at s = 0.002, whose own share of the posterior is below 1e-3.
    units = torch.eye(42).reshape(42, 1, 7, 6)
    A = physics.A(units).reshape(42, 42).T.double()
    middle = torch.full((42,), 0.5, dtype=torch.float64)
    gram = A.T @ A + 16 * sigma**2 * torch.eye(42, dtype=torch.float64)
    expected = middle + torch.linalg.solve(gram, A.T @ (y.double().reshape(3, 42) - A @ middle).T).T
    torch.testing.assert_close(mean.double().reshape(3, 42), expected, rtol=0, atol=2e-3)
    told = rmp.deepinv.RMP(GAUSSIAN, torch.full((3,), sigma), schedule=rmp.schedules.log(60, 0.002, 1000.0),
                           noise="none", anchor="next")  # fmt: skip
    assert torch.equal(told(y, physics), mean)


@pytest.mark.parametrize("name", ["pansharpen", "multi-coil MRI", "demosaicing", "single-pixel camera"])
def test_a_reconstructor_takes_every_measurement(name: str) -> None:
    make, item, _ = physics_cases.PHYSICS[name]
    physics = make(p)
    y = physics.A(images(2, *item))
    seeds = torch.tensor([5, 9])
    model = rmp.deepinv.RMP(GAUSSIAN, 0.05)
    estimate = model.estimate(y, physics, seeds)
    assert estimate.ok.all()
    assert torch.equal(model(y, physics, seeds=seeds), estimate.mean)

    def unexplained(image: Tensor) -> float:
        measured = physics.A(image)
        pairs = [(measured, y)] if isinstance(y, Tensor) else zip(measured, y, strict=True)
        return float(torch.cat([(a - b).flatten() for a, b in pairs]).norm())

    # Of what the prior's mean leaves unexplained, a posterior mean leaves sigma^2 / (g^2 / 16 + sigma^2) in a direction
    # of gain g: 0.04 where g = 1, and more in weak ones, which hold little of the measurement.
    assert unexplained(estimate.mean) < 0.3 * unexplained(torch.full_like(estimate.mean, 0.5))


def test_a_reconstructor_with_a_deepinv_denoiser_and_a_nonlinear_physics() -> None:
    physics = physics_cases.nonlinear("haze")
    y = physics.A(images(2, 3, 5, 6))
    model = rmp.deepinv.RMP(deepinv.models.MedianFilter(), 0.05, image_shape=(3, 5, 6))
    assert any(module is model.network for module in model.modules())
    assert model(y, physics).shape == (2, 3, 5, 6)
    with pytest.raises(ValueError, match="`image_shape` must be given: Physics does not say"):
        rmp.deepinv.RMP(GAUSSIAN, 0.05)(y, physics)
    with pytest.raises(ValueError, match="`noise_std` must be given: the noise model of Physics has no standard"):
        rmp.deepinv.RMP(GAUSSIAN, image_shape=(3, 5, 6))(y, physics)
    with pytest.raises(TypeError, match="must be an rmp_fast prior or a deepinv denoiser, got str"):
        rmp.deepinv.RMP("photo")


def test_a_prior_that_is_a_module_moves_with_the_reconstructor() -> None:
    prior = rmp.priors.from_edm(nn.Identity())
    model = rmp.deepinv.RMP(prior)
    assert model.network is prior.network
