"""Plans of several shapes, lent to threads."""

from __future__ import annotations

import threading

import pytest
import torch
from capture_cases import SHAPE, arguments
from simulated_graphs import Driver
from test_plan import PRIOR, measure

import rmp_fast as rmp
from rmp_fast import operators

OTHER = (1, 1, 9, 7)
THIRD = (1, 3, 4, 4)


def cache_of(**options: object) -> rmp.PlanCache:
    settings = {"op": operators.Denoising(), "prior": PRIOR, "noise_std": 0.1, **options}
    return rmp.PlanCache(schedule=rmp.schedules.log(2, 0.05, 10.0), **settings)


def expected(shape: tuple[int, ...], y: torch.Tensor) -> torch.Tensor:
    schedule = rmp.schedules.log(2, 0.05, 10.0)
    return rmp.Plan(operators.Denoising(), PRIOR, shape, 0.1, schedule=schedule).execute(y).mean


def test_warm_shapes_are_served_and_others_refused_by_name() -> None:
    cache = cache_of()
    assert cache.shapes == []
    assert cache.warm(SHAPE, OTHER) == []  # nothing is captured on the CPU
    for shape in (SHAPE, OTHER):
        y = measure(operators.Denoising(), shape)
        made = cache.execute(shape, y, torch.arange(shape[0]), noise_std=0.1)
        assert torch.equal(made.mean, expected(shape, y))
    assert cache.shapes == [SHAPE, OTHER]
    with pytest.raises(
        ValueError, match=r"no plan is warm for the shape \(1, 3, 4, 4\); warm are \(2, 2, 6, 8\), \(1, 1, 9, 7\)"
    ):
        cache.execute(THIRD, torch.zeros(THIRD))
    with pytest.raises(ValueError, match="warm are none"), cache_of().lend(SHAPE):
        pass


def test_plans_may_come_from_a_function() -> None:
    made = []

    def make(shape: tuple[int, ...]) -> rmp.Plan:
        made.append(shape)
        return rmp.Plan(operators.Denoising(), PRIOR, shape, 0.1)

    cache = rmp.PlanCache(make)
    cache.warm(SHAPE)
    with cache.lend(SHAPE) as plan:
        assert plan.shape == SHAPE
    assert made == [SHAPE]
    wrong = rmp.PlanCache(lambda shape: rmp.Plan(operators.Denoising(), PRIOR, OTHER, 0.1))
    with pytest.raises(ValueError, match=r"`make` must return a plan for \(2, 2, 6, 8\), got one for \(1, 1, 9, 7\)"):
        wrong.warm(SHAPE)
    with pytest.raises(TypeError, match=r"`make` must return an rmp_fast\.Plan, got str"):
        rmp.PlanCache(lambda shape: "plan").warm(SHAPE)


def test_a_plan_is_lent_to_one_thread_at_a_time() -> None:
    cache = cache_of()
    cache.warm(SHAPE)
    with cache.lend(SHAPE):
        with pytest.raises(TimeoutError, match=r"all 1 plans for \(2, 2, 6, 8\) stayed lent for 0.01 s; warm more"):
            cache.execute(SHAPE, torch.zeros(SHAPE), timeout=0.01)
        cache.warm(SHAPE)  # another one
        cache.execute(SHAPE, torch.zeros(SHAPE), timeout=0.01)
    assert cache.plans == 2


def test_threads_share_the_plans() -> None:
    cache = cache_of()
    cache.warm(SHAPE, plans=2)
    ys = [measure(operators.Denoising(), SHAPE, seed=k) for k in range(5)]
    results: dict[int, list[torch.Tensor]] = {k: [] for k in range(5)}

    def work(k: int) -> None:
        results[k].extend(cache.execute(SHAPE, ys[k]).mean for _ in range(10))

    threads = [threading.Thread(target=work, args=(k,)) for k in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    for k in range(5):
        assert len(results[k]) == 10
        assert all(torch.equal(r, expected(SHAPE, ys[k])) for r in results[k])
    assert cache.plans == 2


def test_a_failed_execution_gives_its_plan_back() -> None:
    cache = cache_of()
    cache.warm(SHAPE)
    for _ in range(2):
        with pytest.raises(ValueError, match="`y` must have shape"):
            cache.execute(SHAPE, torch.zeros(OTHER))
    assert cache.execute(SHAPE, torch.zeros(SHAPE), timeout=0.01).ok.all()


def test_plans_are_bounded_in_number() -> None:
    cache = cache_of(max_plans=2)
    cache.warm(SHAPE, OTHER)
    with pytest.raises(ValueError, match=r"a plan for \(1, 3, 4, 4\) is too much: `max_plans` is 2, and so many are"):
        cache.warm(THIRD)
    assert cache.shapes == [SHAPE, OTHER]


def test_plans_are_bounded_in_bytes() -> None:
    cache = cache_of()
    cache.warm(SHAPE)
    one = cache.bytes
    # Four images of state, the table of 4 looks and the start, seeds and marks.
    assert one == 4 * 4 * 2 * 2 * 6 * 8 + 5 * 2 * 8 * 4 + 2 * 9
    cache.warm(SHAPE)
    assert cache.bytes == 2 * one
    small = cache_of(max_bytes=2 * one - 1)
    small.warm(SHAPE)
    with pytest.raises(ValueError, match=rf"`max_bytes` is {2 * one - 1}, and it would make {2 * one}"):
        small.warm(SHAPE)
    assert small.plans == 1


def test_unknown_shapes_run_without_a_graph_if_asked_and_make_room_for_each_other() -> None:
    cache = cache_of(max_plans=2, uncaptured="run")
    cache.warm(SHAPE)
    for shape in (OTHER, THIRD, OTHER):
        y = measure(operators.Denoising(), shape)
        assert torch.equal(cache.execute(shape, y).mean, expected(shape, y))
        assert cache.plans == 2
    assert cache.shapes == [SHAPE]
    with cache.lend(OTHER), pytest.raises(ValueError, match="`max_plans` is 2"), cache.lend(THIRD):
        pass


def test_making_a_plan_for_an_unknown_shape_holds_up_nobody() -> None:
    making, released = threading.Event(), threading.Event()

    def make(shape: tuple[int, ...]) -> rmp.Plan:
        if shape == OTHER:
            making.set()
            assert released.wait(60)
        return rmp.Plan(operators.Denoising(), PRIOR, shape, 0.1)

    cache = rmp.PlanCache(make, uncaptured="run")
    cache.warm(SHAPE)
    served = []

    def serve(shape: tuple[int, ...]) -> None:
        with cache.lend(shape) as plan:
            served.append(plan.shape)

    threads = [threading.Thread(target=serve, args=(shape,), daemon=True) for shape in (OTHER, SHAPE)]
    threads[0].start()
    assert making.wait(60)
    threads[1].start()
    threads[1].join(60)
    assert served == [SHAPE]
    released.set()
    threads[0].join(60)
    assert served == [SHAPE, OTHER]


def test_captured_plans_share_one_pool_and_serving_captures_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = Driver(monkeypatch)
    given = arguments("inpainting", backend="torch")
    del given["shape"]
    cache = rmp.PlanCache(capture=True, uncaptured="run", **given)
    recordings = cache.warm(SHAPE, plans=2)
    assert [r.whole for r in recordings] == [True, True]
    assert len(driver.pools) == 1
    captures = [call for call in driver.calls if call[0] == "capture"]
    assert len(captures) == 2
    y = measure(given["op"], SHAPE)
    eager = rmp.Plan(shape=SHAPE, **given).execute(y).mean
    with cache.lend(SHAPE) as first, cache.lend(SHAPE) as second:
        assert first is not second
        # Each replay poisons the memory that the other's left in the pool.
        for plan in (first, second, first):
            assert torch.equal(plan.execute(y).mean, eager)
    bigger = (4, *SHAPE[1:])
    with pytest.raises(ValueError, match="`mask` must have shape"):
        cache.execute(bigger, torch.zeros(bigger))
    assert [call for call in driver.calls if call[0] == "capture"] == captures
    # the graphs' buffers, and the one pool that both use
    pool = sum(s["total_size"] for s in torch.cuda.memory_snapshot())
    with cache.lend(SHAPE) as plan:
        owned = plan.buffer_bytes + plan.operator_bytes
    assert pool > 0
    assert cache.bytes == 2 * (owned + recordings[0].bytes) + pool


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({}, ValueError, "give `make`, a function of the image shape, or the arguments of rmp_fast.Plan, not both"),
        ({"make": lambda shape: None, "op": 1}, ValueError, "not both"),
        ({"make": 3}, TypeError, "`make` must be a function of the image shape, got int"),
        ({"op": 1, "shape": SHAPE}, ValueError, "`shape` must not be given"),
        ({"op": 1, "max_plans": 0}, ValueError, "`max_plans` must be at least 1, got 0"),
        ({"op": 1, "max_bytes": -1}, ValueError, "`max_bytes` must be a finite number > 0, got -1"),
        ({"op": 1, "uncaptured": "rum"}, ValueError, "did you mean 'run'"),
    ],
    ids=str,
)
def test_caches_refuse(options: dict[str, object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        rmp.PlanCache(**options)


def test_capture_on_the_cpu_is_refused_with_the_reason() -> None:
    with pytest.raises(ValueError, match=r"the plan cannot be captured: CUDA graphs .* the plan's device is cpu"):
        cache_of(capture=True).warm(SHAPE)
