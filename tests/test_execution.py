"""What changes from one execution of a plan to the next: the operator's data, and how far the caller lets it go."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from test_plan import FAST, LOOKS, PRIOR, denoiser, mask, measure
from torch import Tensor

import rmp_fast as rmp
from rmp_fast import operators
from rmp_fast.operators.data import data_bytes

SHAPE = (2, 2, 8, 10)


def kernel(seed: int) -> Tensor:
    return torch.rand(3, 5, generator=torch.Generator().manual_seed(seed)) / 15


def maps(seed: int, *items: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*items, 3, 8, 10, generator=generator, dtype=torch.complex64)


def columns(seed: int) -> Tensor:
    return operators.cartesian_mask((8, 10), 2.0, 0.2, seed=seed)


def scattered(seed: int, *items: int) -> Tensor:
    return torch.rand((*items, 8, 10), generator=torch.Generator().manual_seed(seed)) < 0.5


def sensing(seed: int) -> Tensor:
    return torch.randn(60, 160, generator=torch.Generator().manual_seed(seed))


# Of every kind of data an operator for a seed, and the guidance that serves it.
EXCHANGES: dict[str, tuple[Callable[[int], operators.Operator], str]] = {
    "mask": (lambda k: operators.Inpainting(scattered(k)), "gaussian"),
    "mask per item": (lambda k: operators.Inpainting(scattered(k, 2, 1)), "gaussian"),
    "mask, jensen": (lambda k: operators.Inpainting(scattered(k)), "jensen"),
    "circular kernel": (lambda k: operators.Blur(kernel(k)), "gaussian"),
    "reflected kernel": (lambda k: operators.Blur(kernel(k), boundary="reflect", iterations=5), "gaussian"),
    "reflected kernel, pigdm": (lambda k: operators.Blur(kernel(k), boundary="reflect", iterations=5), "pigdm"),
    "matrix": (lambda k: operators.CompressedSensing(sensing(k), (2, 8, 10)), "gaussian"),
    "fourier mask": (lambda k: operators.MRI(scattered(k)), "gaussian"),
    "fourier mask per item": (lambda k: operators.MRI(scattered(k, 2)), "gaussian"),
    "lines and maps": (lambda k: operators.MRI(columns(k), maps(k)), "gaussian"),
    "maps per item": (lambda k: operators.MRI(scattered(k), maps(k, 2), iterations=4), "gaussian"),
    "camera": (lambda k: operators.NonlinearBlur(kernel(k)), "dps"),
}  # fmt: skip


def plan_for(op: operators.Operator, **options: object) -> rmp.Plan:
    settings = {"schedule": rmp.schedules.log(2, 0.05, 10.0), "noise_std": 0.1, **options}
    return rmp.Plan(op, PRIOR, SHAPE, **settings)


PAIRS = {"noise": "antithetic", "data_range": (0, 255)}
SETTINGS = [
    *((name, {}) for name in EXCHANGES),
    *((name, PAIRS) for name in ("mask per item", "circular kernel", "fourier mask per item")),
    *((name, {"backend": "torch"}) for name in ("mask", "matrix")),
]


@pytest.mark.parametrize(("name", "options"), SETTINGS, ids=str)
def test_an_exchanged_operator_is_that_of_a_new_plan(name: str, options: dict[str, object]) -> None:
    make, guidance = EXCHANGES[name]
    plan = plan_for(make(0), guidance=guidance, **options)
    for seed in (1, 0, 2):
        op = make(seed)
        y = measure(op, SHAPE)
        expected = plan_for(op, guidance=guidance, **options).execute(y).mean
        assert torch.equal(plan.execute(y, op=op).mean, expected)
        assert torch.equal(plan.execute(y).mean, expected)  # from here on


def test_an_exchange_reaches_the_start_and_the_spread() -> None:
    other = operators.Inpainting(scattered(1))
    plan, fresh = (plan_for(op, start="smooth", spread_looks=2) for op in (operators.Inpainting(scattered(0)), other))
    y = measure(other, SHAPE)
    made, expected = plan.execute(y, op=other), fresh.execute(y)
    assert torch.equal(made.mean, expected.mean)
    assert made.variance is not None
    assert torch.equal(made.variance, expected.variance)


def test_an_exchange_reaches_the_exact_posterior() -> None:
    prior = rmp.priors.Gaussian(torch.zeros(6), torch.eye(6))
    first, second = (operators.CompressedSensing(torch.randn(3, 6, generator=torch.Generator().manual_seed(k)))
                     for k in (0, 1))  # fmt: skip
    y = torch.ones(2, 3)
    options = {"guidance": "exact", "noise": "antithetic"}
    plan = rmp.Plan(first, prior, (2, 6), 0.1, **options)
    assert torch.equal(plan.execute(y, op=second).mean, rmp.Plan(second, prior, (2, 6), 0.1, **options).execute(y).mean)


def test_a_mask_for_all_items_may_replace_one_per_item() -> None:
    plan = plan_for(operators.Inpainting(scattered(0, 2, 1)))
    shared = operators.Inpainting(scattered(1))
    y = measure(shared, SHAPE)
    assert torch.equal(plan.execute(y, op=shared).mean, plan_for(shared).execute(y).mean)


@pytest.mark.parametrize("name", EXCHANGES)
def test_plans_share_no_memory_with_the_callers_operator(name: str) -> None:
    make, guidance = EXCHANGES[name]
    op, other = make(0), make(1)
    y = measure(op, SHAPE)
    plan = plan_for(op, guidance=guidance)
    before = plan.execute(y).mean
    plan.execute(y, op=other)
    assert torch.equal(plan_for(op, guidance=guidance).execute(y).mean, before)
    assert torch.equal(plan_for(other, guidance=guidance).execute(y).mean, plan.execute(y).mean)
    for value in vars(other).values():
        if isinstance(value, Tensor):
            value.zero_()
    vars(other).pop("_derived", None)
    assert torch.equal(plan.execute(y, op=op).mean, before)


def test_an_operators_bytes_are_counted() -> None:
    plan = plan_for(operators.Inpainting(scattered(0)))
    assert data_bytes(plan.op) == 8 * 10 + 2 * 8 * 10  # the mask, and the one expanded over channels
    assert plan.operator_bytes == data_bytes(plan.op)


@pytest.mark.parametrize(
    ("mine", "other", "error", "message"),
    [
        (operators.Denoising(), "mask", TypeError, "`op` must be an rmp_fast operator, got str"),
        (
            operators.Denoising(),
            operators.Inpainting(scattered(0)),
            TypeError,
            r"`op` must be of the plan's kind, Denoising\(\), got Inpainting\(mask=\(8, 10\)\); make a plan for it",
        ),
        (
            operators.SuperResolution(2),
            operators.SuperResolution(4),
            ValueError,
            r"`factor` is 2 in SuperResolution\(factor=2, filter='average'\), got 4 in SuperResolution\(factor=4",
        ),
        (
            operators.GaussianBlur(1.0),
            operators.GaussianBlur(2.0),
            ValueError,
            r"`std` is 1.0 in GaussianBlur\(std=1, .*, got 2.0 in GaussianBlur\(std=2",
        ),
        (
            operators.Inpainting(scattered(0)),
            operators.Inpainting(scattered(0, 2, 1)),
            ValueError,
            r"`mask` \(data\) has \(8, 10\), got \(2, 1, 8, 10\) in Inpainting\(mask=\(2, 1, 8, 10\)\)",
        ),
        (
            operators.Inpainting(scattered(0)),
            operators.Inpainting(mask((9, 11))),
            ValueError,
            r"`mask` must have shape \(H, W\).* for images \(2, 2, 8, 10\), got \(9, 11\)",
        ),
        (
            operators.MRI(columns(0), maps(0)),
            operators.MRI(scattered(0), maps(0)),
            ValueError,
            r"`across` is -1 in MRI\(.*, got None in MRI\(",
        ),
        (
            operators.Blur(kernel(0)),
            operators.Blur(torch.ones(3, 3)),
            ValueError,
            r"`kernel` \(data\) has \(3, 5\), got \(3, 3\)",
        ),
        (
            operators.from_callable(torch.clone, SHAPE[1:], SHAPE[1:], linear=True),
            operators.from_callable(lambda x: 2 * x, SHAPE[1:], SHAPE[1:], linear=True),
            ValueError,
            "`op` may differ from the plan's in its data alone: `shapes` is",
        ),
    ],
    ids=str,
)
def test_operators_that_do_not_fit_are_refused(mine, other, error: type[Exception], message: str) -> None:
    plan = plan_for(mine)
    y = measure(mine, SHAPE)
    before = plan.execute(y).mean
    with pytest.raises(error, match=message):
        plan.execute(y, op=other, noise_std=0.3)
    assert torch.equal(plan.execute(y).mean, before)


# Progress.

CHAINS = {
    "control": {},
    "antithetic": {"noise": "antithetic"},
    "looks": {"looks": LOOKS, "schedule": None},
    "spread": {"spread_looks": 2},
    "branches": {"branches": 2},
    "dps": {"guidance": "dps"},
}


@pytest.mark.parametrize("backend", [*FAST, "reference"])
@pytest.mark.parametrize("chain", CHAINS)
def test_progress_counts_evaluations(chain: str, backend: str) -> None:
    plan = plan_for(operators.Denoising(), backend=backend, **CHAINS[chain])
    y, seen = torch.zeros(SHAPE), []
    expected = plan.execute(y)
    made = plan.execute(y, progress=lambda *counts: seen.append(counts))
    assert torch.equal(made.mean, expected.mean)
    assert [total for _, total in seen] == [plan.evaluations] * len(seen)
    done = [count for count, _ in seen]
    each = 2 if chain == "antithetic" else 1
    chain_end = plan.evaluations - 2 * plan.spread_looks
    assert done == [*range(each, chain_end + 1, each), *range(chain_end + 2, plan.evaluations + 1, 2)]
    assert made.stats["finished"] is expected.stats["finished"] is True
    assert made.stats["evaluations"] == plan.evaluations


@pytest.mark.parametrize("backend", [*FAST, "reference"])
def test_a_stopped_chain_gives_the_mean_that_there_is(backend: str) -> None:
    """That of the chain whose schedule ends there: the first level of two, after both of its looks."""
    op = operators.Denoising()
    y = measure(op, SHAPE)
    levels = rmp.schedules.log(2, 0.05, 10.0).levels
    plan = plan_for(op, backend=backend)
    made = plan.execute(y, progress=lambda done, total: done < 2)
    shorter = plan_for(op, backend=backend, schedule=rmp.schedules.Schedule(levels[1:]))
    assert torch.equal(made.mean, shorter.execute(y).mean)
    assert made.stats["finished"] is False
    assert made.stats["evaluations"] == 2
    assert made.variance is None
    again = plan.execute(y)
    assert again.stats["finished"] is True
    assert torch.equal(again.mean, plan_for(op, backend=backend).execute(y).mean)


@pytest.mark.parametrize("stop", [3, 4, 5, 8, 10])
def test_stopped_branches_give_the_mean_of_those_that_were_finished(stop: int) -> None:
    op = operators.Inpainting(scattered(0))
    y = measure(op, SHAPE)
    options = {"switch_level": 100.0}  # above every level: branches are chains of means
    made = plan_for(op, branches=3, **options).execute(y, progress=lambda done, total: done < stop)
    assert made.stats["evaluations"] == stop
    finished = stop // 4
    if finished == 0:
        assert torch.equal(made.mean, plan_for(op).execute(y, progress=lambda done, total: done < stop).mean)
    elif finished == 1:
        torch.testing.assert_close(made.mean, plan_for(op).execute(y).mean, rtol=0, atol=1e-6)
    else:
        both = plan_for(op, branches=2, **options).execute(y)
        torch.testing.assert_close(made.mean, both.mean, rtol=0, atol=0)
        assert made.variance is not None
        torch.testing.assert_close(made.variance, both.variance, rtol=0, atol=0)
    assert (made.variance is None) == (finished < 2)


def test_a_spread_stopped_early_is_that_of_fewer_looks() -> None:
    op = operators.Denoising()
    y = measure(op, SHAPE)
    made = plan_for(op, spread_looks=3).execute(y, progress=lambda done, total: done < 6)
    expected = plan_for(op, spread_looks=1).execute(y)
    assert torch.equal(made.mean, expected.mean)
    assert made.variance is not None
    assert torch.equal(made.variance, expected.variance)
    assert made.stats["finished"] is False


def test_only_false_stops_and_not_after_the_last_look() -> None:
    plan = plan_for(operators.Denoising())
    y = torch.zeros(SHAPE)
    for answer in (None, 0, True):
        assert plan.execute(y, progress=lambda done, total, answer=answer: answer).stats["finished"] is True
    assert plan.execute(y, progress=lambda done, total: done < total).stats["finished"] is True


def test_an_exception_in_progress_leaves_the_plan_usable() -> None:
    plan = plan_for(operators.Inpainting(scattered(0)), covariance="learned")
    y = torch.zeros(SHAPE)
    expected = plan.execute(y).mean

    def fails(done: int, total: int) -> None:
        if done == 3:
            raise KeyError("the caller's own")

    with pytest.raises(KeyError, match="the caller's own"):
        plan.execute(y, progress=fails)
    assert torch.equal(plan.execute(y).mean, expected)
    with pytest.raises(TypeError, match=r"`progress` must be a function of \(done, total\), got int"):
        plan.execute(y, progress=1)


def test_a_plan_refuses_to_run_from_its_own_progress() -> None:
    plan = plan_for(operators.Denoising())
    with pytest.raises(RuntimeError, match="this plan is executing"):
        plan.execute(torch.zeros(SHAPE), progress=lambda done, total: plan.execute(torch.zeros(SHAPE)))


def test_a_network_that_fails_leaves_the_plan_usable() -> None:
    fail = [False]

    def network(x: Tensor, s: Tensor) -> Tensor:
        if fail[0]:
            raise ZeroDivisionError
        return denoiser(x, s)

    plan = rmp.Plan(operators.Denoising(), rmp.priors.from_denoiser(network, 0.5), SHAPE, 0.1)
    expected = plan.execute(torch.ones(SHAPE)).mean
    fail[0] = True
    with pytest.raises(ZeroDivisionError):
        plan.execute(torch.ones(SHAPE))
    fail[0] = False
    assert torch.equal(plan.execute(torch.ones(SHAPE)).mean, expected)
