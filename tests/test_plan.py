"""The chain on every backend against the float64 reference, its promises to callers, and what it refuses."""

import gc
import itertools
import threading

import pytest
import torch
from kernel_paths import needs_triton

import rmp_fast as rmp
from rmp_fast import backends, operators, reference
from rmp_fast.guidance import GRADIENTS
from rmp_fast.plan import NOISES

FAST = ("cpu", "torch")


def denoiser(x: torch.Tensor, s: torch.Tensor) -> torch.Tensor:
    """Smooth, non-linear, per item, any dtype: a stand-in whose chain can be followed in float64."""
    s = s.reshape(-1, *[1] * (x.ndim - 1))
    blurred = (x + x.roll(1, -1) + x.roll(1, -2)) / 3
    return torch.tanh((x + s * blurred) / (1 + s + s * s))


PRIOR = rmp.priors.from_denoiser(denoiser, data_variance=0.5)


def mask(shape: tuple[int, ...]) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(1)) < 0.4


LOOKS = rmp.schedules.Looks(
    level=[5.0, 1.0, 0.3], noise=[4.0, 0.3, 0.1], weight=[0.9, 1.2, 0.8], momentum=[0.3, 0.4, 0.1],
    variance=[0.6, 0.3, 0.05],
)  # fmt: skip
KERNEL = torch.tensor([[0.0, 0.1, 0.2, 0.1, 0.0], [0.1, 0.2, 0.1, 0.1, 0.1], [0.0, 0.0, 0.0, 0.0, 0.0]])
OPERATORS = {
    "denoising": lambda: operators.Denoising(),
    "inpainting": lambda: operators.Inpainting(mask((9, 11))),
    "inpainting per item": lambda: operators.Inpainting(mask((3, 1, 9, 11))),
    "super-resolution": lambda: operators.SuperResolution(4),
    "bicubic": lambda: operators.SuperResolution(2, filter="bicubic"),
    "gaussian blur": lambda: operators.GaussianBlur(1.2),
    "circular blur": lambda: operators.Blur(KERNEL, boundary="circular"),
    "reflected blur": lambda: operators.Blur(KERNEL, boundary="reflect", iterations=60),
}
SHAPE = (3, 2, 9, 11)


def measure(op: operators.Operator, shape: tuple[int, ...] = SHAPE, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    y = op.A(torch.rand(shape, generator=generator) * 2 - 1)
    return y + 0.1 * torch.randn(y.shape, generator=generator)


def run(op: operators.Operator, y: torch.Tensor, shape: tuple[int, ...] = SHAPE, **options: object) -> torch.Tensor:
    seeds = torch.tensor([7, -3, 2**40])[: shape[0]]
    settings = {"noise_std": torch.tensor([0.05, 0.1, 0.2])[: shape[0]], "schedule": rmp.schedules.log(4, 0.05, 10.0)}
    return rmp.Plan(op, PRIOR, shape, **{**settings, **options}).execute(y, seeds).mean


def assert_chains_agree(actual: torch.Tensor, expected: torch.Tensor) -> None:
    # a chain is a few hundred float32 operations of contraction 1: rounding errors add up to a few 1e-6 of the size,
    # and the Gram solves of nearly singular systems lose another factor of 10
    error = (actual.double() - expected).norm() / expected.norm()
    assert error < 1e-4
    assert abs(float((actual.double() - expected).mean())) < 1e-5


# Interpreting is slow: every form and every noise mode once.
TRITON_CHAINS = [("inpainting per item", "control"), ("super-resolution", "antithetic"), ("gaussian blur", "drawn"),
                 ("reflected blur", "none")]  # fmt: skip
TRITON = pytest.param("triton", marks=needs_triton)
CHAINS = [
    *itertools.product(FAST, OPERATORS, NOISES),
    *(pytest.param("triton", *chain, marks=needs_triton) for chain in TRITON_CHAINS),
]


@pytest.mark.parametrize(("backend", "name", "noise"), CHAINS)
def test_chain_follows_the_reference(backend: str, name: str, noise: str) -> None:
    op = OPERATORS[name]()
    y = measure(op)
    assert_chains_agree(run(op, y, noise=noise, backend=backend), run(op, y, noise=noise, backend="reference"))


@pytest.mark.parametrize("backend", [*FAST, TRITON])
@pytest.mark.parametrize(
    "options",
    [
        {"schedule": rmp.schedules.ve(3)},
        {"schedule": rmp.schedules.vp(5), "inner_steps": 1},
        {"anchor": "next", "inner_steps": 3},
        {"step_size": 0.2, "noise": "drawn", "inner_steps": 5},
        {"covariance": "learned", "noise": "control"},
        {"covariance": "learned", "noise": "drawn", "inner_steps": 4},
        {"covariance": "learned", "noise": "antithetic"},
        {"covariance": "diagonal", "noise": "control", "precision_rate": 0.05},
        {"covariance": "diagonal", "noise": "drawn", "inner_steps": 4, "precision_rate": 0.05},
        {"covariance": "diagonal", "noise": "antithetic", "precision_rate": 0.05},
        {"branches": 3},
        {"start": "smooth"},
        {"looks": LOOKS},
        {"looks": LOOKS, "noise": "antithetic", "start": "smooth"},
        {"looks": LOOKS, "noise": "none"},
        {"branches": 2, "covariance": "learned", "noise": "antithetic", "switch_level": 0.04},
        {"branches": 2, "covariance": "diagonal", "precision_rate": 0.05, "noise": "drawn"},
        {"branches": 2, "noise": "none", "anchor": "next", "inner_steps": 1, "step_size": 1.0},
    ],
    ids=str,
)
def test_options_follow_the_reference(backend: str, options: dict[str, object]) -> None:
    op = OPERATORS["inpainting"]()
    y = measure(op)
    if "looks" in options:
        options = {"schedule": None, **options}
    assert_chains_agree(run(op, y, backend=backend, **options), run(op, y, backend="reference", **options))


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("noise", ["control", "antithetic"])
@pytest.mark.parametrize("scale", [None, 0.01])
@pytest.mark.parametrize("guidance", GRADIENTS)
@pytest.mark.parametrize("name", ["inpainting per item", "super-resolution", "circular blur", "reflected blur"])
def test_gradient_guidances_follow_the_reference(
    backend: str, name: str, guidance: str, scale: float | None, noise: str
) -> None:
    op = OPERATORS[name]()
    y = measure(op)
    options = {"guidance": guidance, "guidance_scale": scale, "noise": noise}
    assert_chains_agree(run(op, y, backend=backend, **options), run(op, y, backend="reference", **options))


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("noise", ["control", "antithetic"])
@pytest.mark.parametrize("guidance", ["gauss_newton", "dps", "jensen"])
@pytest.mark.parametrize("task", ["phase_retrieval", "nonlinear_deblur"])
def test_nonlinear_operators_follow_the_reference(backend: str, task: str, guidance: str, noise: str) -> None:
    shape = (2, 1, 5, 6)
    op = operators.for_task(task, shape)
    y = measure(op, shape)
    options = {"guidance": guidance, "noise": noise, "noise_std": torch.tensor([0.2, 0.3])}
    made, expected = (run(op, y, shape, backend=name, **options) for name in (backend, "reference"))
    # Ten conjugate gradient steps against a direct solve of a system of condition up to r2 / sy^2, about 12.
    bound = 2e-2 if guidance == "gauss_newton" else 1e-3
    assert (made.double() - expected).norm() / expected.norm() < bound


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("noise", ["control", "antithetic"])
def test_looks_at_nonlinear_operators_follow_the_reference(backend: str, noise: str) -> None:
    shape = (2, 1, 5, 6)
    op = operators.for_task("phase_retrieval", shape)
    y = measure(op, shape)
    options = {"schedule": None, "noise": noise, "noise_std": torch.tensor([0.2, 0.3])}
    options |= rmp.presets.for_task("phase_retrieval", PRIOR, 4)
    made, expected = (run(op, y, shape, backend=name, **options) for name in (backend, "reference"))
    # As above: ten conjugate gradient steps against a direct solve.
    assert (made.double() - expected).norm() / expected.norm() < 2e-2


def test_measurements_of_a_nonlinear_operator_stay_in_its_unit() -> None:
    shape = (2, 1, 8, 8)
    op = operators.for_task("nonlinear_deblur", shape)
    y = measure(op, shape)
    inside = rmp.Plan(op, PRIOR, shape, 0.1, guidance="gauss_newton").execute(y).mean
    outside = rmp.Plan(op, PRIOR, shape, 0.1, guidance="gauss_newton", data_range=(0, 1)).execute(y).mean
    torch.testing.assert_close(outside * 2 - 1, inside, rtol=0, atol=1e-6)


@pytest.mark.parametrize("guidance", GRADIENTS)
def test_gradient_guidances_do_not_diverge_where_one_direction_varies_more_than_the_others(guidance: str) -> None:
    """An image that varies mostly in its mean: r2 says 0.1 per pixel, the mean's variance is 100 times that."""
    pixels = 100
    covariance = 0.01 * torch.eye(pixels) + 0.09 * torch.ones(pixels, pixels)
    prior = rmp.priors.Gaussian(torch.zeros(pixels), covariance)
    op, truth = operators.Denoising(), torch.full((1, pixels), 0.5)
    estimate = rmp.Plan(op, prior, (1, pixels), 0.05, guidance=guidance).execute(truth)
    assert estimate.ok.all()
    assert (estimate.mean - truth).abs().max() < 0.1


@pytest.mark.parametrize("backend", ["reference", *FAST])
@pytest.mark.parametrize("guidance", GRADIENTS)
def test_gradient_guidances_do_not_diverge_where_the_operator_amplifies(guidance: str, backend: str) -> None:
    prior = rmp.priors.from_denoiser(lambda x, s: x / (1 + s.reshape(-1, 1, 1, 1) ** 2), data_variance=1.0)
    truth = torch.rand(SHAPE, generator=torch.Generator().manual_seed(0)) * 2 - 1
    for gain in (1.0, 3.0, 10.0):
        op = operators.from_callable(lambda x, gain=gain: gain * x, (2, 9, 11), (2, 9, 11), linear=True)
        estimate = rmp.Plan(op, prior, SHAPE, 0.05, guidance=guidance, backend=backend).execute(gain * truth)
        assert (estimate.mean - truth).square().mean().sqrt() < 0.05


def test_the_gain_of_an_operator_is_that_of_each_item_and_follows_its_data() -> None:
    matrices = [torch.eye(4), 3 * torch.eye(4)]
    gains = [reference.squared_gain(operators.CompressedSensing(m), (2, 4), torch.device("cpu"), torch.float32)
             for m in matrices]  # fmt: skip
    assert [g.tolist() for g in gains] == [pytest.approx([1.0, 1.0]), pytest.approx([9.0, 9.0])]
    small = reference.squared_gain(operators.SuperResolution(4), (1, 1, 8, 8), torch.device("cpu"), torch.float64)
    assert small.tolist() == [1.0]
    prior = rmp.priors.Gaussian(torch.zeros(4), torch.eye(4))
    y = 3 * torch.ones(2, 4)
    plan = rmp.Plan(operators.CompressedSensing(matrices[0]), prior, (2, 4), 0.05, guidance="jensen")
    found = plan.execute(y, op=operators.CompressedSensing(matrices[1])).mean
    fresh = rmp.Plan(operators.CompressedSensing(matrices[1]), prior, (2, 4), 0.05, guidance="jensen")
    assert torch.equal(found, fresh.execute(y).mean)


@pytest.mark.parametrize("backend", ["reference", *FAST])
def test_branches_average_chains_of_hashed_seeds(backend: str) -> None:
    op = OPERATORS["inpainting"]()
    y = measure(op)
    seeds = torch.tensor([7, -3, 2**40])
    # Above every level nothing is sampled, so that every branch is a chain of means.
    options = {"noise_std": 0.1, "backend": backend, "schedule": rmp.schedules.log(3, 0.05, 10.0)}
    chain = rmp.Plan(op, PRIOR, SHAPE, **options)
    branches = torch.stack([chain.execute(y, reference.branch_seeds(seeds, k)).mean for k in range(3)]).double()
    plan = rmp.Plan(op, PRIOR, SHAPE, branches=3, switch_level=100.0, **options)
    estimate = plan.execute(y, seeds)
    torch.testing.assert_close(estimate.mean.double(), branches.mean(0), rtol=0, atol=1e-6)
    assert estimate.variance is not None
    torch.testing.assert_close(estimate.variance.double(), branches.var(0), rtol=1e-4, atol=1e-8)
    assert estimate.stats["evaluations"] == plan.evaluations == 3 * chain.evaluations


def test_the_variance_is_in_the_square_of_the_callers_unit() -> None:
    op = OPERATORS["super-resolution"]()
    y = measure(op)
    inside = rmp.Plan(op, PRIOR, SHAPE, 0.1, branches=2).execute(y).variance
    outside = rmp.Plan(op, PRIOR, SHAPE, 0.1 * 127.5, data_range=(0, 255), branches=2).execute((y + 1) * 127.5).variance
    assert inside is not None
    assert outside is not None
    torch.testing.assert_close(outside / 127.5**2, inside, rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize("backend", FAST)
def test_gradient_guidances_count_their_backward_evaluations_and_touch_no_weights(backend: str) -> None:
    class Network(torch.nn.Conv2d):
        def forward(self, x: torch.Tensor, s: torch.Tensor) -> torch.Tensor:
            return super().forward(x / (1 + s.reshape(-1, 1, 1, 1)))

    network = Network(1, 1, 3, padding=1)
    prior = rmp.priors.NetworkPrior(network, channels=1, data_variance=0.5)
    op = OPERATORS["inpainting"]()
    estimate = rmp.Plan(op, prior, (2, 1, 9, 11), 0.1, guidance="dps", backend=backend).execute(
        torch.zeros(2, 1, 9, 11)
    )
    assert estimate.stats["evaluations"] == estimate.stats["backward_evaluations"] == 20
    assert all(weight.grad is None and not weight.requires_grad for weight in network.parameters())
    assert not estimate.mean.requires_grad


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("name", ["inpainting per item", "super-resolution"])
def test_an_item_alone_is_the_item_in_a_batch_to_the_bit(backend: str, name: str) -> None:
    op = OPERATORS[name]()
    y = measure(op)
    noise, seeds = torch.tensor([0.05, 0.1, 0.2]), torch.tensor([5, 6, 7])
    together = rmp.Plan(op, PRIOR, SHAPE, noise, backend=backend).execute(y, seeds).mean
    if name == "inpainting per item":
        op = operators.Inpainting(mask((3, 1, 9, 11))[1:2])
    alone = rmp.Plan(op, PRIOR, (1, *SHAPE[1:]), noise[1:2], backend=backend).execute(y[1:2], seeds[1:2]).mean
    assert torch.equal(alone[0], together[1])


@pytest.mark.parametrize("backend", FAST)
def test_the_same_seeds_give_the_same_bits_and_others_do_not(backend: str) -> None:
    op = OPERATORS["gaussian blur"]()
    y = measure(op)
    plan = rmp.Plan(op, PRIOR, SHAPE, 0.1, backend=backend)
    first = plan.execute(y, torch.tensor([0, 1, 2])).mean
    other = plan.execute(y, torch.tensor([3, 4, 5])).mean
    again = plan.execute(y).mean  # the default seeds are 0, 1, 2
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_caller_range_is_converted_at_the_edge() -> None:
    op = OPERATORS["super-resolution"]()
    y = measure(op)
    inside = rmp.Plan(op, PRIOR, SHAPE, 0.1).execute(y).mean
    outside = rmp.Plan(op, PRIOR, SHAPE, 0.1 * 127.5, data_range=(0, 255)).execute((y + 1) * 127.5).mean
    torch.testing.assert_close(outside / 127.5 - 1, inside, rtol=0, atol=2e-5)  # 255 in float32 has steps of 1.5e-5


def test_noise_std_is_the_standard_deviation_in_the_callers_range() -> None:
    """Denoising with D = prior mean, known: E[x0 | y] = p / (p + sy^2) y, in units of the caller."""
    flat = rmp.priors.from_denoiser(lambda x, s: x * 0.5 / (0.5 + s.reshape(-1, 1, 1, 1) ** 2), data_variance=0.5)
    y = torch.rand(1, 1, 8, 8)
    plan = rmp.Plan(
        operators.Denoising(), flat, y.shape, 0.25, data_range=(0, 1), noise="none", anchor="next", step_size=1.0,
        inner_steps=1, schedule=rmp.schedules.log(5, 0.001, 1e4),
    )  # fmt: skip
    expected = 0.5 + (y - 0.5) * 0.5 / (0.5 + 0.5**2)  # 0.25 on [0, 1] is 0.5 on [-1, 1]
    torch.testing.assert_close(plan.execute(y).mean, expected, rtol=0, atol=1e-4)


def test_an_empty_batch_has_an_empty_variance_where_there_would_be_one() -> None:
    shape = (0, 2, 9, 11)
    for options in ({"spread_looks": 2}, {"branches": 2}):
        variance = rmp.Plan(operators.Denoising(), PRIOR, shape, 0.1, **options).execute(torch.zeros(shape)).variance
        assert variance is not None
        assert variance.shape == shape
    assert rmp.Plan(operators.Denoising(), PRIOR, shape, 0.1).execute(torch.zeros(shape)).variance is None


@pytest.mark.parametrize("noise", NOISES)
def test_empty_batch_gives_an_empty_estimate(noise: str) -> None:
    plan = rmp.Plan(operators.Denoising(), PRIOR, (0, 3, 8, 8), 0.1, noise=noise)
    estimate = plan.execute(torch.zeros(0, 3, 8, 8))
    assert estimate.mean.shape == (0, 3, 8, 8)
    assert estimate.ok.shape == (0,)


@pytest.mark.parametrize("backend", [*FAST, TRITON])
def test_a_diverging_item_is_marked_and_its_neighbours_are_unharmed(backend: str) -> None:
    def breaks(x: torch.Tensor, s: torch.Tensor) -> torch.Tensor:
        out = denoiser(x, s)
        if s[0] < 1 and len(out) == 3:
            out[1, 0, 0, 0] = float("nan")
        return out

    op = operators.Denoising()
    y = measure(op)
    healthy = rmp.Plan(op, PRIOR, SHAPE, 0.1, backend=backend).execute(y).mean
    sick = rmp.priors.from_denoiser(breaks, data_variance=0.5)
    estimate = rmp.Plan(op, sick, SHAPE, 0.1, backend=backend).execute(y)
    assert estimate.ok.tolist() == [True, False, True]
    assert torch.isfinite(estimate.mean).all()
    assert torch.equal(estimate.mean[[0, 2]], healthy[[0, 2]])


def test_strided_measurements_and_out_are_taken_and_nothing_of_the_callers_changes() -> None:
    op = operators.Denoising()
    y = measure(op)
    strided = y.permute(0, 1, 3, 2).contiguous().permute(0, 1, 3, 2)
    before, seeds = strided.clone(), torch.tensor([1, 2, 3])
    out = torch.empty(3, 9, 11, 2).permute(0, 3, 1, 2)
    plan = rmp.Plan(op, PRIOR, SHAPE, 0.1)
    estimate = plan.execute(strided, seeds, out=out)
    assert estimate.mean is out
    assert torch.equal(out, plan.execute(y, seeds).mean)
    assert torch.equal(strided, before)
    assert seeds.tolist() == [1, 2, 3]


def test_reconstruct_finds_the_image_shape() -> None:
    y = measure(OPERATORS["super-resolution"](), (1, 1, 8, 12))
    estimate = rmp.reconstruct(y, operators.SuperResolution(4), PRIOR, noise_std=0.1)
    assert estimate.mean.shape == (1, 1, 8, 12)
    assert estimate.stats["evaluations"] == 20
    assert estimate.stats["backward_evaluations"] == 0


@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("name", OPERATORS)
def test_a_plan_owns_at_most_six_images_whatever_its_steps(name: str, noise: str) -> None:
    shape = (1, 1, 64, 64)
    op = operators.Inpainting(mask((64, 64))) if name.startswith("inpainting") else OPERATORS[name]()
    image = 64 * 64 * 4
    sizes = [
        rmp.Plan(op, PRIOR, shape, 0.1, noise=noise, schedule=rmp.schedules.log(steps)).buffer_bytes
        for steps in (2, 50)
    ]
    per_look = 48 * 2 * 8 * 4  # the coefficient table
    assert sizes[1] - sizes[0] == per_look
    assert sizes[0] <= 6.2 * image  # half-spectra are (W / 2 + 1) / (W / 2) images


def test_a_plan_refuses_a_second_thread() -> None:
    entered, leave = threading.Event(), threading.Event()

    def waits(x: torch.Tensor, s: torch.Tensor) -> torch.Tensor:
        entered.set()
        leave.wait(10)
        return denoiser(x, s)

    op = operators.Denoising()
    y = measure(op)
    plan = rmp.Plan(op, rmp.priors.from_denoiser(waits, data_variance=0.5), SHAPE, 0.1)
    worker = threading.Thread(target=plan.execute, args=(y,))
    worker.start()
    entered.wait(10)
    try:
        with pytest.raises(RuntimeError, match="executing in another thread; make one plan per thread"):
            plan.execute(y)
    finally:
        leave.set()
        worker.join()
    assert plan.execute(y).ok.all()


def test_threads_execute_different_plans_at_once() -> None:
    op = OPERATORS["inpainting"]()
    ys = [measure(op, seed=k) for k in range(4)]
    plans = [rmp.Plan(op, PRIOR, SHAPE, 0.1) for _ in ys]
    expected = [plan.execute(y).mean for plan, y in zip(plans, ys, strict=True)]
    results: list[list[torch.Tensor]] = [[] for _ in ys]

    def work(k: int) -> None:
        results[k].extend(plans[k].execute(ys[k]).mean for _ in range(20))

    workers = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    for k in range(4):
        assert len(results[k]) == 20
        assert all(torch.equal(r, expected[k]) for r in results[k])


@pytest.mark.parametrize("guidance", ["gaussian", "pigdm"])
def test_ten_thousand_executions_leave_nothing_behind(guidance: str) -> None:
    op = operators.Inpainting(torch.ones(4, 4, dtype=torch.bool))
    half = rmp.priors.from_denoiser(lambda x, s: x / 2, data_variance=0.5)
    plan = rmp.Plan(op, half, (1, 1, 4, 4), 0.1, schedule=rmp.schedules.log(1), inner_steps=1, guidance=guidance)
    y = torch.zeros(1, 1, 4, 4)

    def resident() -> int:
        gc.collect()
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1])

    for _ in range(500):
        plan.execute(y)
    objects, pages = len(gc.get_objects()), [resident()]
    for _ in range(4):
        for _ in range(2_500):
            plan.execute(y)
        pages.append(resident())
    # 2,500 leaked 64-byte images would be 39 pages of 4 kB every time; an allocator that once asks for more is no leak.
    assert min(after - before for before, after in itertools.pairwise(pages)) < 20
    assert pages[-1] < 1.01 * pages[0]
    assert len(gc.get_objects()) - objects < 50


def test_gradients_of_the_callers_do_not_enter_the_plan() -> None:
    plan = rmp.Plan(operators.GaussianBlur(1.0), PRIOR, SHAPE, 0.1)
    y = measure(operators.GaussianBlur(1.0))
    expected = plan.execute(y).mean
    estimate = plan.execute(y.clone().requires_grad_())
    assert not estimate.mean.requires_grad
    assert not plan.conditioning.data.requires_grad
    assert torch.equal(estimate.mean, expected)


@pytest.mark.parametrize("name", OPERATORS)
def test_a_plan_made_in_inference_mode_works_outside_it(name: str) -> None:
    op = OPERATORS[name]()
    y = measure(op)
    with torch.inference_mode():
        plan = rmp.Plan(op, PRIOR, SHAPE, 0.1)
    assert torch.equal(plan.execute(y).mean, rmp.Plan(op, PRIOR, SHAPE, 0.1).execute(y).mean)


def test_the_reference_marks_what_is_not_finite() -> None:
    lost = rmp.priors.from_denoiser(lambda x, s: x * torch.tensor([1, float("nan"), 1]).reshape(3, 1, 1, 1).to(x), 0.5)
    estimate = rmp.Plan(operators.Denoising(), lost, SHAPE, 0.1, backend="reference").execute(torch.zeros(SHAPE))
    assert estimate.ok.tolist() == [True, False, True]


@pytest.mark.parametrize("backend", FAST)
def test_a_look_that_left_the_finite_range_teaches_nothing(backend: str) -> None:
    inputs_finite = []

    def breaks_once(x: torch.Tensor, s: torch.Tensor) -> torch.Tensor:
        inputs_finite.append(bool(torch.isfinite(x).all()))
        return torch.full_like(x, float("nan")) if len(inputs_finite) == 3 else denoiser(x, s)

    prior = rmp.priors.from_denoiser(breaks_once, data_variance=0.5)
    plan = rmp.Plan(operators.Denoising(), prior, SHAPE, 0.1, covariance="learned", backend=backend)
    estimate = plan.execute(torch.zeros(SHAPE))
    assert not estimate.ok.any()
    assert all(inputs_finite)
    assert plan.curvature is not None
    assert torch.isfinite(plan.curvature).all()


def test_a_new_noise_level_is_a_new_plan_without_making_one() -> None:
    op = OPERATORS["gaussian blur"]()
    y, levels = measure(op), torch.tensor([0.3, 0.05, 0.1])
    plan = rmp.Plan(op, PRIOR, SHAPE, 0.1)
    assert torch.equal(plan.execute(y, noise_std=levels).mean, rmp.Plan(op, PRIOR, SHAPE, levels).execute(y).mean)


def plan_with(**changes: object) -> rmp.Plan:
    arguments = {"op": operators.Denoising(), "prior": PRIOR, "shape": SHAPE, "noise_std": 0.1, **changes}
    return rmp.Plan(**arguments)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"shape": (3, 9, 11)}, ValueError, r"`shape` must be \(B, C, H, W\) or \(B, N\)"),
        ({"shape": (3, 0, 9, 11)}, ValueError, "positive sizes"),
        ({"noise_std": -0.1}, ValueError, "`noise_std` must be finite and >= 0"),
        ({"noise_std": None}, ValueError, "`noise_std` must be given"),
        ({"noise_std": "0.1"}, TypeError, "`noise_std` must be a number or a tensor"),
        (
            {"noise_std": torch.ones(2)},
            ValueError,
            r"`noise_std` must be a number or have shape \(B,\) = \(3,\), got \(2,\)",
        ),
        ({"guidance": "gausian"}, ValueError, "did you mean 'gaussian'"),
        ({"guidance": "exact"}, ValueError, "`guidance` 'exact' cannot serve .* those that can: 'gaussian'"),
        ({"noise": "drown"}, ValueError, "did you mean 'drawn'"),
        ({"inner_steps": 0}, ValueError, "`inner_steps` must be at least 1, got 0"),
        ({"inner_steps": 2.0}, TypeError, "`inner_steps` must be an integer"),
        ({"relaxation": 2.5}, ValueError, "`relaxation` must be at most 2"),
        ({"step_size": -1.0}, ValueError, "`step_size` must be a finite number > 0"),
        ({"step_size": "averagin"}, ValueError, "did you mean 'averaging'"),
        ({"anchor": "last"}, ValueError, "`anchor` must be one of 'current', 'next'"),
        ({"covariance": "learned", "noise": "none"}, ValueError, "`covariance` 'learned' needs perturbed looks"),
        ({"covariance": "diagonal", "noise": "none"}, ValueError, "`covariance` 'diagonal' needs perturbed looks"),
        ({"start": "warm"}, ValueError, "`start` must be one of 'zero', 'smooth'"),
        ({"looks": 3}, TypeError, "`looks` must be an rmp_fast.schedules.Looks, got int"),
        ({"looks": LOOKS, "schedule": rmp.schedules.log()}, ValueError, "`looks` and `schedule` exclude each other"),
        ({"looks": LOOKS, "noise": "drawn"}, ValueError, "`looks` need `noise` 'control' or 'antithetic' or 'none'"),
        ({"looks": LOOKS, "covariance": "learned"}, ValueError, "`looks` need `covariance` 'fixed', got 'learned'"),
        ({"looks": LOOKS, "guidance": "dps"}, ValueError, "`looks` need `guidance` 'gaussian' or 'gauss_newton'"),
        ({"looks": LOOKS, "branches": 2}, ValueError, "`looks` have no levels to sample at"),
        ({"spread_looks": -1}, ValueError, "`spread_looks` must be at least 0, got -1"),
        (
            {"spread_looks": 2, "op": operators.PhaseRetrieval(), "guidance": "gauss_newton"},
            ValueError,
            "`spread_looks` need `guidance` 'gaussian' or 'exact'",
        ),
        ({"precision_rate": 5.0}, ValueError, "`precision_rate` is a share, above 0 and at most 1, got 5.0"),
        ({"dtype": torch.float16}, TypeError, "`dtype` must be torch.float32 or torch.float64, got torch.float16"),
        ({"dtype": "float32"}, TypeError, "`dtype` must be torch.float32 or torch.float64, got 'float32'"),
        ({"spread_looks": 2, "branches": 2}, ValueError, "`spread_looks` need `guidance` 'gaussian' or 'exact'"),
        ({"branches": 0}, ValueError, "`branches` must be at least 1, got 0"),
        ({"branches": 1.5}, TypeError, "`branches` must be an integer, got float"),
        ({"switch_level": -1.0}, ValueError, "`switch_level` must be a finite number > 0, got -1.0"),
        ({"guidance_scale": 1.0}, ValueError, "`guidance_scale` is for dps, jensen, pigdm; 'gaussian' has no scale"),
        (
            {"guidance": "jensen", "guidance_scale": 1.0, "noise_std": 0.0},
            ValueError,
            "`guidance_scale` of 'jensen' needs `noise_std` > 0",
        ),
        ({"backend": "rocm"}, ValueError, "`backend` must be one of"),
        ({"backend": "cuda"}, ValueError, "`backend` 'cuda' cannot be used: .*; use backend='auto'"),
        ({"backend": "cpu", "dtype": torch.float64}, ValueError, "`backend` 'cpu' cannot be used"),
        ({"data_range": (1, 1)}, ValueError, r"`data_range` must be \(low, high\) with low < high"),
        ({"op": torch.nn.Identity()}, TypeError, "`op` must be an rmp_fast operator, got Identity"),
        ({"prior": denoiser}, TypeError, "`prior` must be an rmp_fast prior, got function"),
        ({"schedule": [1.0, 2.0]}, TypeError, "`schedule` must be"),
        ({"op": operators.Inpainting(torch.ones(5, 5, dtype=torch.bool))}, ValueError, r"\(5, 5\)"),
    ],
    ids=str,
)
def test_plans_refuse(changes: dict[str, object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        plan_with(**changes)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (
            {"y": torch.zeros(3, 2, 9, 10)},
            ValueError,
            r"`y` must have shape \(B, C, H, W\) = \(3, 2, 9, 11\), got \(3, 2, 9, 10\)",
        ),
        ({"y": torch.zeros(SHAPE, dtype=torch.uint8)}, TypeError, "`y` must be a floating-point tensor"),
        ({"y": [[0.0]]}, TypeError, "`y` must be a torch.Tensor, got list"),
        ({"y": torch.zeros(SHAPE, device="meta")}, ValueError, "`y` must be on device cpu, got meta"),
        ({"y": torch.full(SHAPE, float("nan"))}, ValueError, "`y` must be finite, got NaN or infinity in item 0, 1, 2"),
        ({"seeds": torch.zeros(3)}, TypeError, "`seeds` must be int64, got torch.float32"),
        ({"seeds": torch.zeros(2, dtype=torch.int64)}, ValueError, r"`seeds` must have shape \(B,\) = \(3,\), got"),
        ({"out": torch.zeros(3, 2, 9, 12)}, ValueError, "`out` must have shape"),
        ({"noise_std": torch.tensor([0.1, -0.1, 0.1])}, ValueError, "`noise_std` must be finite and >= 0"),
    ],
    ids=str,
)
def test_executions_refuse(arguments: dict[str, object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        plan_with().execute(**{"y": torch.zeros(SHAPE), **arguments})


def test_a_wrong_code_path_is_no_silent_fallback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "core_error", "`RMP_FAST_CPU` must be one of 'avx2', 'baseline', got 'mmx'")
    with pytest.raises(ValueError, match="`RMP_FAST_CPU` must be one of"):
        plan_with()


@pytest.mark.parametrize("backend", ["cpu", TRITON])
def test_a_prior_that_returns_something_else_is_refused_before_its_memory_is_read(backend: str) -> None:
    class Transposed(rmp.priors.Prior):
        name, data_variance = "transposed", 0.5

        def denoise(self, x: torch.Tensor, s: torch.Tensor) -> torch.Tensor:
            return x.permute(0, 1, 3, 2).contiguous().permute(0, 1, 3, 2)

    plan = plan_with(prior=Transposed(), backend=backend)
    with pytest.raises(ValueError, match="the prior must return a contiguous float32 tensor"):
        plan.execute(torch.zeros(SHAPE))
