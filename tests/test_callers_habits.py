"""What callers and their priors do that must not change a number: torch's modes, threads, memory used again."""

import threading
from collections.abc import Callable

import pytest
import torch
from test_plan import KERNEL, OPERATORS, PRIOR, SHAPE, denoiser, measure
from torch import Tensor, nn

import rmp_fast as rmp
from rmp_fast import operators
from rmp_fast.operators.data import private_copy


def prior_of(function: Callable[[Tensor, Tensor], Tensor]) -> rmp.priors.Prior:
    """Of a function whose result nothing checks on the way."""

    class Own(rmp.priors.Prior):
        name, data_variance = "own", 0.5

        def denoise(self, x: Tensor, s: Tensor) -> Tensor:
            return function(x, s)

    return Own()


@pytest.mark.parametrize("name", OPERATORS)
def test_autocast_is_not_for_the_chain(name: str) -> None:
    op = OPERATORS[name]()
    y = measure(op)
    expected = rmp.reconstruct(y, op, PRIOR, noise_std=0.1, start="smooth").mean
    with torch.autocast("cpu", torch.bfloat16):
        assert op.A(torch.zeros(SHAPE)).dtype == op.adjoint(y, SHAPE).dtype == torch.float32
        found = rmp.reconstruct(y, op, PRIOR, noise_std=0.1, start="smooth").mean
    assert torch.equal(found, expected)


def test_autocast_is_not_for_networks_that_were_asked_for_in_float32() -> None:
    prior, y, op = rmp.priors.load("fashion"), torch.zeros(1, 1, 32, 32), operators.Denoising()
    schedule = rmp.schedules.log(2, 0.1, 1.0)
    runs: dict[str, Callable[[], Tensor]] = {
        "rmp": lambda: rmp.reconstruct(y, op, prior, noise_std=0.1, schedule=schedule).mean,
        "ddrm": lambda: rmp.baselines.reconstruct("ddrm", y, op, prior, 0.1, evaluations=3).mean,
    }
    for run in runs.values():
        expected = run()
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(run(), expected)


def test_networks_are_float32_whatever_the_default() -> None:
    before = torch.get_default_dtype()
    expected = rmp.priors.load("fashion").denoise(torch.zeros(1, 1, 32, 32), torch.ones(1))
    try:
        torch.set_default_dtype(torch.float64)
        prior = rmp.priors.load("fashion")
    finally:
        torch.set_default_dtype(before)
    assert torch.equal(prior.denoise(torch.zeros(1, 1, 32, 32), torch.ones(1)), expected)


def test_a_denoiser_may_differentiate_inside() -> None:
    """D = x + s^2 grad log p, of a network of the energy."""

    def of_energy(x: Tensor, s: Tensor) -> Tensor:
        column = s.reshape(-1, 1, 1, 1)
        with torch.enable_grad():
            point = x.detach().requires_grad_()
            energy = (point.square() / (2 * (1 + column**2))).sum()
            (slope,) = torch.autograd.grad(energy, point)
        return x - column**2 * slope

    def closed(x: Tensor, s: Tensor) -> Tensor:
        return x / (1 + s.reshape(-1, 1, 1, 1) ** 2)

    y, op = measure(operators.Denoising()), operators.Denoising()
    found, expected = (rmp.reconstruct(y, op, prior_of(f), noise_std=0.1, spread_looks=2) for f in (of_energy, closed))
    torch.testing.assert_close(found.mean, expected.mean, rtol=0, atol=1e-5)
    torch.testing.assert_close(found.variance, expected.variance, rtol=1e-3, atol=1e-5)


def test_what_a_denoiser_keeps_serves_gradients_later() -> None:
    kept: list[Tensor] = []

    def lazy(x: Tensor, s: Tensor) -> Tensor:
        if not kept:
            kept.append(torch.full((), 0.5))
        return denoiser(x * kept[0] * 2, s)

    op = operators.Denoising()
    y = measure(op)
    rmp.reconstruct(y, op, prior_of(lazy), noise_std=0.1)
    found = rmp.reconstruct(y, op, prior_of(lazy), noise_std=0.1, guidance="dps").mean
    assert torch.equal(found, rmp.reconstruct(y, op, PRIOR, noise_std=0.1, guidance="dps").mean)


def test_weights_that_can_be_trained_are_not_followed() -> None:
    net = nn.Conv2d(2, 2, 3, padding=1)
    op = operators.NonlinearBlur(torch.ones(3, 3) / 9)
    y = op.A(torch.zeros(SHAPE))
    graphs = []

    def watched(x: Tensor, s: Tensor) -> Tensor:
        out = torch.tanh(net(x))
        graphs.append(out.requires_grad)
        return out

    assert rmp.reconstruct(y, op, prior_of(watched), noise_std=0.1, guidance="gauss_newton").ok.all()
    assert not any(graphs)


@pytest.mark.parametrize("change", [lambda x, s: x.clamp_(-1, 1), lambda x, s: s.square_()], ids=["x", "s"])
@pytest.mark.parametrize("guidance", ["gaussian", "dps"])
def test_a_prior_that_writes_into_its_inputs_is_refused(
    change: Callable[[Tensor, Tensor], Tensor], guidance: str
) -> None:
    def writing(x: Tensor, s: Tensor) -> Tensor:
        with torch.no_grad():
            change(x, s)
        return denoiser(x, s)

    with pytest.raises(ValueError, match="the prior 'own' must not change `x` or `s` in place"):
        rmp.reconstruct(torch.zeros(SHAPE), operators.Denoising(), prior_of(writing), noise_std=0.1, guidance=guidance)


def test_a_prior_may_return_the_same_memory_every_time() -> None:
    memory = torch.empty(SHAPE)
    op = OPERATORS["inpainting"]()
    y = measure(op)
    found = rmp.reconstruct(y, op, prior_of(lambda x, s: memory.copy_(denoiser(x, s))), noise_std=0.1, spread_looks=2)
    expected = rmp.reconstruct(y, op, PRIOR, noise_std=0.1, spread_looks=2)
    assert torch.equal(found.mean, expected.mean)
    assert torch.equal(found.variance, expected.variance)


@pytest.mark.parametrize("backend", ["cpu", "torch"])
@pytest.mark.parametrize("name", ["denoising", "gaussian blur", "reflected blur"])
def test_a_prior_of_another_shape_is_refused_by_name(backend: str, name: str) -> None:
    op = OPERATORS[name]()
    for wrong in (lambda x, s: x[:1], lambda x, s: x[:, :1], lambda x, s: x.double()):
        with pytest.raises(ValueError, match=r"the prior 'own' must return shape \(3, 2, 9, 11\) and torch.float32"):
            rmp.Plan(op, prior_of(wrong), SHAPE, 0.1, backend=backend).execute(torch.zeros(SHAPE))


def test_an_operator_that_breaks_its_word_is_named() -> None:
    class Short(operators.LinearOperator):
        def measurement_shape(self, image_shape: tuple[int, ...]) -> tuple[int, ...]:
            return tuple(image_shape)

        image_shape = measurement_shape

        def _apply(self, x: Tensor) -> Tensor:
            return x[:, :1]

        def _transpose(self, y: Tensor, image_shape: tuple[int, ...]) -> Tensor:
            return y.double()

    with pytest.raises(ValueError, match=r"`_apply` of the operator 'operator' must return shape \(3, 2, 9, 11\)"):
        Short().A(torch.zeros(SHAPE))
    with pytest.raises(ValueError, match=r"`_transpose` .* and torch.float32, got .* torch.float64"):
        Short().adjoint(torch.zeros(SHAPE))


def test_an_operator_in_use_can_be_copied() -> None:
    op = operators.Blur(KERNEL)
    stop, failed = threading.Event(), []

    def use() -> None:
        size = 0
        while not stop.is_set():
            size = (size + 1) % 40
            op.A(torch.ones(1, 1, 8 + size, 8 + size))

    def copy() -> None:
        try:
            for _ in range(400):
                private_copy(op)
        except RuntimeError as error:
            failed.append(error)
        stop.set()

    threads = [threading.Thread(target=f) for f in (use, copy)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed


def test_transforms_of_torch_see_operators() -> None:
    """Kernels compute what torch cannot follow: under its transforms the operators are torch's."""
    op = operators.GaussianBlur(1.0)
    x, direction = torch.randn(1, 1, 8, 9), torch.randn(1, 1, 8, 9)
    expected = op.A(direction)
    with torch.autograd.forward_ad.dual_level():
        dual = op.A(torch.autograd.forward_ad.make_dual(x, direction))
        tangent = torch.autograd.forward_ad.unpack_dual(dual).tangent
    torch.testing.assert_close(tangent, expected)
    torch.testing.assert_close(torch.func.jvp(op.A, (x,), (direction,))[1], expected)
    traced = torch.jit.trace(op.A, x)
    torch.testing.assert_close(traced(direction), expected)


def test_a_prior_that_returns_its_input_is_the_same_at_any_number_of_threads(threads: Callable[[int], None]) -> None:
    shape = (1, 1, 250, 250)
    op = operators.SuperResolution(2)
    y = torch.rand(op.measurement_shape(shape), generator=torch.Generator().manual_seed(0))

    def estimate(function: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        return rmp.reconstruct(y, op, prior_of(function), noise_std=0.05, shape=shape).mean

    threads(1)
    expected = estimate(lambda x, s: x.clone())
    for count in (1, 2, 4):
        threads(count)
        assert torch.equal(estimate(lambda x, s: x), expected)
