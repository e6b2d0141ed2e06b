"""CUDA graphs without a device: what chains ask of torch, the order of calls, and replays on a simulated driver.

See simulated_graphs.py for what the simulation can tell, and test_gpu.py for a device.
"""

from __future__ import annotations

import gc
import json
import pathlib
import subprocess
import sys
import threading
import weakref
from typing import Any

import pytest
import torch
from capture_cases import CHAINS, SHAPE, arguments, make_plan, measured, named
from simulated_graphs import Driver
from torch import Tensor

import rmp_fast as rmp
from rmp_fast import execution, operators
from rmp_fast.graph import GraphPool
from rmp_fast.watch import Observer, Watch, forbidden

chains = pytest.mark.parametrize("chain", CHAINS, ids=named)


class Refusing(Observer):
    """Raises at what no graph can hold, and at the global random generator, on which a chain must not depend."""

    def see(self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        reason = forbidden(function, args, kwargs)
        if torch.Tag.nondeterministic_seeded in function.tags:
            reason = "draws from the global random generator"
        assert reason is None, f"{function} {reason}"
        return super().see(function, args, kwargs)


class RefusingEverything(Observer):
    """Raises at any operator of torch, allocations among them."""

    def see(self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        raise AssertionError(f"{function} within a step")


class _Watched:
    """A step that may not use torch, and so allocates nothing of torch's."""

    def __init__(self, step: Any) -> None:
        self._step = step

    def perturb(self, *arguments: Any) -> None:
        with RefusingEverything():
            self._step.perturb(*arguments)

    def __call__(self, *arguments: Any) -> None:
        with RefusingEverything():
            self._step(*arguments)


def run_chain(plan: rmp.Plan, y: Tensor, conditioned: Any) -> Tensor:
    seeds, tally = torch.arange(plan.shape[0]), execution.Tally(plan.evaluations)
    return execution.chains(plan, y, seeds, conditioned, execution.no_stats(), tally)[0]


@chains
def test_a_chain_never_waits_for_the_host_and_its_step_allocates_nothing(chain: tuple[str, dict[str, Any]]) -> None:
    name, options = chain
    plan = make_plan(name, backend="cpu", **options)
    plan.steps = [[_Watched(step) for step in steps] for steps in plan.steps]
    y = measured(name)
    with torch.no_grad():
        conditioned = execution.condition_prior(plan, y) if plan.guidance == "exact" else None
        before = run_chain(plan, y, conditioned).clone()  # derives what the operator keeps
        with Refusing():
            after = run_chain(plan, y, conditioned)
    assert torch.equal(after, before)


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        (lambda x: float(x.sum()), "reads a value on the host"),
        (lambda x: x.nonzero(), "shapes its result by values"),
        (lambda x: x[x > 0], "indexes with a mask"),
        (lambda x: x.masked_select(x > 0), "shapes its result by values"),
        (lambda x: torch.equal(x, x), "reads a value on the host"),
        (lambda x: x.to("meta"), "copies between cpu and meta"),
        (lambda x: torch.linalg.cholesky(torch.eye(2)), "waits for the device to check a decomposition"),
        (lambda x: x.unique(), "shapes its result by values"),
    ],
    ids=str,
)
@pytest.mark.parametrize("inference", [False, True])
def test_what_no_graph_can_hold_is_noticed(program: Any, reason: str, inference: bool) -> None:
    with torch.inference_mode(inference), Watch() as watch:
        program(torch.ones(3))
    assert any(reason in found and f"{__file__}:" in found for found in watch.found), watch.found


def test_what_a_graph_can_hold_is_not() -> None:
    x = torch.ones(3, 3)
    with torch.inference_mode(), Watch() as watch:
        torch.where(x > 0, x, 0) @ x.to(torch.float64).float()
        x[:, torch.tensor([0, 2])].clone()[0] = torch.ones(2)
        x.new_empty(2).copy_(x[0, :2])
    assert watch.found == []


# On tensors of a CUDA device without memory.


@pytest.fixture(scope="module")
def on_fake_cuda() -> dict[str, list[str]]:
    program = pathlib.Path(__file__).with_name("fake_cuda.py")
    done = subprocess.run([sys.executable, str(program)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


@chains
def test_a_chain_stays_on_its_device(chain: tuple[str, dict[str, Any]], on_fake_cuda: dict[str, list[str]]) -> None:
    assert on_fake_cuda[named(chain)] == []


def test_a_network_that_leaves_the_device_is_seen_to(on_fake_cuda: dict[str, list[str]]) -> None:
    (found,) = on_fake_cuda["waits"]
    assert found.startswith("aten._to_copy.default copies between cpu and cuda, at ")
    assert found.endswith(" in waits")


# On a simulated driver.


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Driver:
    return Driver(monkeypatch)


def assert_same(made: rmp.Estimate, expected: rmp.Estimate) -> None:
    assert torch.equal(made.mean, expected.mean)
    assert torch.equal(made.ok, expected.ok)
    assert (made.variance is None) == (expected.variance is None)
    assert made.variance is None or torch.equal(made.variance, expected.variance)
    for name in ("evaluations", "backward_evaluations", "buffer_bytes", "finished"):
        assert made.stats[name] == expected.stats[name]
    assert made.stats.get("solve_residual") == expected.stats.get("solve_residual")


def inputs(name: str, options: dict[str, Any], seed: int) -> dict[str, Any]:
    scale = 127.5 if "data_range" in options else 1.0
    noise = scale * torch.tensor([0.1 + 0.2 * seed, 0.3])
    return {"y": scale * measured(name, seed), "seeds": torch.tensor([seed, 7 - seed]), "noise_std": noise}


@chains
def test_replays_are_executions_to_the_bit(chain: tuple[str, dict[str, Any]], driver: Driver) -> None:
    name, options = chain
    eager, plan = (make_plan(name, backend="torch", **options) for _ in range(2))
    recording = plan.capture()
    assert recording.whole
    assert recording.prevented_by is None
    assert plan.captured is recording
    means = []
    for seed in (0, 1):
        given = inputs(name, options, seed)
        made = plan.execute(**given)
        assert_same(made, eager.execute(**given))
        assert made.ok.all()
        assert made.stats["graph_launches"] == 1
        assert "network_seconds" not in made.stats
        means.append(made.mean)
    assert not torch.equal(*means)


def test_new_seeds_are_new_noise_in_a_replay(driver: Driver) -> None:
    plan, y = make_plan("inpainting", backend="torch"), measured("inpainting")
    plan.capture()
    first, second = (plan.execute(y, torch.tensor([k, 3])).mean for k in (1, 2))
    assert not torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])


@pytest.mark.parametrize("guidance", ["gaussian", "jensen"])
def test_replays_see_new_operator_data(guidance: str, driver: Driver) -> None:
    plan = make_plan("inpainting", backend="torch", guidance=guidance)
    plan.capture()
    for seed in (1, 2):
        other = operators.Inpainting(torch.rand(2, 1, 6, 8, generator=torch.Generator().manual_seed(seed)) < 0.5)
        y = other.A(torch.rand(SHAPE, generator=torch.Generator().manual_seed(0)))
        fresh = rmp.Plan(**{**arguments("inpainting", backend="torch", guidance=guidance), "op": other})
        assert_same(plan.execute(y, op=other), fresh.execute(y))


@pytest.mark.parametrize("name", ["circular blur", "reflected blur", "mri", "mri, coils by line", "compressed sensing"])
def test_replays_see_new_spectra(name: str, driver: Driver) -> None:
    plan = make_plan(name, backend="torch")
    plan.capture()
    other = arguments(name)["op"]
    for field in ("kernel", "maps", "matrix"):
        if getattr(other, field, None) is not None:
            setattr(other, field, getattr(other, field) * 0.5)
    if name == "mri":
        other = operators.MRI(~other.mask)
    y = measured(name)
    fresh = rmp.Plan(**{**arguments(name, backend="torch"), "op": other})
    made = plan.execute(y, op=other)
    assert_same(made, fresh.execute(y))
    assert not torch.equal(made.mean, make_plan(name, backend="torch").execute(y).mean)


def test_the_order_of_calls(driver: Driver) -> None:
    plan, y = make_plan("inpainting", backend="torch"), measured("inpainting")
    plan.capture()
    side = driver.calls[1][1]
    assert driver.calls == [
        ("synchronize", "device"),  # what made the plan is done
        ("use", side),  # warm-up, not on the caller's stream
        ("synchronize", side),
        ("capture", side),
        ("synchronize", "device"),
    ]
    assert driver.current.name == "callers"
    driver.calls.clear()
    seen = {}

    def at_replay() -> None:
        captured = plan._captured
        assert captured is not None
        seen.update(y=captured.buffers.y.clone(), seeds=captured.buffers.seeds.clone(), noise=plan.noise_std.clone())

    driver.before_replay = at_replay
    plan.execute(y, torch.tensor([4, 5]), noise_std=0.7)
    assert driver.calls == [("replay", "callers")]
    assert torch.equal(seen["y"], y)
    assert seen["seeds"].tolist() == [4, 5]
    assert seen["noise"].tolist() == [0.7, 0.7]


def test_plans_that_share_a_pool_keep_their_results_apart(driver: Driver) -> None:
    """Every replay poisons what the other graph has in the pool."""
    pool = GraphPool(torch.device("cpu"))
    names = ("inpainting", "gaussian blur")
    plans = [make_plan(name, backend="torch", spread_looks=1) for name in names]
    for plan in plans:
        plan.capture(pool)
    assert [len(graphs) for graphs in driver.pools.values()] == [2]
    expected = [make_plan(name, backend="torch", spread_looks=1).execute(measured(name)) for name in names]
    made = [plans[k].execute(measured(names[k])) for k in (0, 1, 0)]
    for result, k in zip(made, (0, 1, 0), strict=True):
        assert_same(result, expected[k])
    assert pool.bytes > 0


def test_turns_queue_one_behind_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []

    class Event:
        def record(self, stream: Any) -> None:
            calls.append(("record", stream))

    class Stream(str):
        def wait_event(self, event: Any) -> None:
            calls.append(("wait", self))

    stream = [Stream("a")]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: stream[0])
    monkeypatch.setattr(torch.cuda, "device", lambda device: threading.Lock())
    turns = execution.Turns(torch.device("cuda", 0))
    with turns.take():
        calls.append("first")
    stream[0] = Stream("b")
    with pytest.raises(KeyError), turns.take():
        raise KeyError
    assert calls == [("wait", "a"), "first", ("record", "a"), ("wait", "b"), ("record", "b")]


# Networks that cannot be captured.


def waits_for_the_host(x: Tensor, s: Tensor) -> Tensor:
    scale = float(s.max())
    return torch.tanh(x / (1 + scale))


class HidesFromTorch:
    """A network whose kernels do what only the driver can refuse."""

    def __init__(self, driver: Driver) -> None:
        self.driver = driver

    def __call__(self, x: Tensor, s: Tensor) -> Tensor:
        if self.driver.capturing:
            raise RuntimeError("CUDA error: operation not permitted when stream is capturing\nmore lines")
        return torch.tanh(x / (1 + s.reshape(-1, 1, 1, 1)))


PIECES = [
    ("inpainting", {}),
    ("inpainting", {"guidance": "jensen", "noise": "antithetic"}),
    ("inpainting", {"guidance": "pigdm", "guidance_scale": 0.5}),
    ("inpainting", {"branches": 3, "noise": "drawn"}),
    ("inpainting", {"branches": 2, "switch_level": 0.01}),
    ("inpainting", {"spread_looks": 1, "start": "smooth"}),
    ("reflected blur", {"noise": "antithetic"}),
    ("super-resolution", {"covariance": "learned"}),
    ("phase retrieval", {"guidance": "dps"}),
    ("nonlinear blur", {}),
]


@pytest.mark.parametrize("chain", PIECES, ids=named)
def test_parts_between_the_networks_calls_are_captured_where_it_cannot_be(
    chain: tuple[str, dict[str, Any]], driver: Driver
) -> None:
    name, options = chain
    prior = rmp.priors.from_denoiser(waits_for_the_host, 0.5, "one that waits")
    eager, plan = (make_plan(name, backend="torch", prior=prior, **options) for _ in range(2))
    with pytest.warns(RuntimeWarning, match="the parts between the calls of the network 'one that waits' are, as"):
        recording = plan.capture()
    assert not recording.whole
    assert recording.prevented_by is not None
    assert recording.prevented_by.startswith("aten._local_scalar_dense.default reads a value on the host, at ")
    assert recording.prevented_by.endswith(" in waits_for_the_host")
    sampled = sum(plan.sampled)
    per_look = 2 if options.get("guidance") in ("jensen", "pigdm", "dps") else 1
    assert recording.graphs == 1 + per_look * plan.looks_per_chain + sampled
    for seed in (0, 1):
        given = inputs(name, options, seed)
        made = plan.execute(**given)
        assert_same(made, eager.execute(**given))
        assert made.stats["graph_launches"] == plan.branches * recording.graphs


def test_what_the_driver_refuses_is_told_as_it_tells_it(driver: Driver) -> None:
    prior = rmp.priors.from_denoiser(HidesFromTorch(driver), 0.5)
    plan, eager = (make_plan("inpainting", backend="torch", prior=prior) for _ in range(2))
    with pytest.warns(RuntimeWarning):
        recording = plan.capture()
    assert recording.prevented_by is not None
    assert recording.prevented_by.startswith("CUDA error: operation not permitted when stream is capturing, at ")
    assert recording.prevented_by.endswith(" in __call__")
    assert driver.current.name == "callers"
    given = inputs("inpainting", {}, 1)
    assert_same(plan.execute(**given), eager.execute(**given))


def test_an_operator_that_cannot_be_captured_is_named_and_the_plan_goes_on_without(driver: Driver) -> None:
    def measure(x: Tensor) -> Tensor:
        return x * float(x.abs().max() > 0)

    op = operators.LinearFunction(measure, SHAPE[1:], SHAPE[1:], iterations=2)
    plan = rmp.Plan(**{**arguments("linear function", backend="torch"), "op": op})
    y = measured("denoising")
    expected = plan.execute(y).mean
    with pytest.raises(RuntimeError, match=r"nor between the calls of its network: aten._local.* in measure; it still"):
        plan.capture()
    assert plan.captured is None
    assert torch.equal(plan.execute(y).mean, expected)


def test_progress_runs_without_the_graph_where_it_is_one_and_with_its_parts(driver: Driver) -> None:
    y, seen = measured("inpainting"), []
    whole = make_plan("inpainting", backend="torch")
    whole.capture()
    expected = whole.execute(y)
    made = whole.execute(y, progress=lambda *counts: seen.append(counts))
    assert seen == [(done, 4) for done in (1, 2, 3, 4)]
    assert made.stats["graph_launches"] == 0
    assert torch.equal(made.mean, expected.mean)
    prior = rmp.priors.from_denoiser(waits_for_the_host, 0.5)
    eager, pieces = (make_plan("inpainting", backend="torch", prior=prior, branches=2) for _ in range(2))
    with pytest.warns(RuntimeWarning):
        pieces.capture()
    for stop in (1, 2, 3, 5, 8):
        stopped = pieces.execute(y, progress=lambda done, total, stop=stop: done < stop)
        assert_same(stopped, eager.execute(y, progress=lambda done, total, stop=stop: done < stop))


def test_a_capture_may_be_repeated_and_ends_with_its_plan(driver: Driver) -> None:
    plan = make_plan("inpainting", backend="torch")
    first = plan.capture()
    assert plan.capture() is not first
    kept = weakref.ref(plan._captured)
    gc.disable()  # no cycle keeps the graph's memory
    try:
        del plan
        assert kept() is None
    finally:
        gc.enable()


def test_captures_are_refused_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = make_plan("inpainting")
    with pytest.raises(ValueError, match="the plan cannot be captured: CUDA graphs record the work of a CUDA device"):
        plan.capture()
    assert plan.captured is None
    monkeypatch.setattr(plan, "device", torch.device("cuda", 0))
    monkeypatch.setattr(plan, "backend", "reference")
    with pytest.raises(ValueError, match="the backend 'reference' computes step by step on the host"):
        plan.capture()
    monkeypatch.setattr(plan, "backend", "cuda")
    monkeypatch.setattr(plan, "shape", (0, 1, 2, 3))
    with pytest.raises(ValueError, match="an empty batch has no work to record"):
        plan.capture()


def test_a_pool_of_another_device_is_refused(driver: Driver) -> None:
    plan, pool = make_plan("inpainting", backend="torch"), GraphPool(torch.device("cpu"))
    pool.device = torch.device("cuda", 1)
    with pytest.raises(ValueError, match="`pool` must be on the plan's device cpu, got cuda:1"):
        plan.capture(pool)


def test_a_plan_that_executes_is_not_captured(driver: Driver) -> None:
    plan = make_plan("inpainting", backend="torch")
    with pytest.raises(RuntimeError, match="executing in another thread; capture it before it is used"):
        plan.execute(measured("inpainting"), progress=lambda done, total: plan.capture())


def test_the_simulation_loses_what_a_device_would_lose(driver: Driver) -> None:
    """A number that only a graph's own memory holds does not survive the next replay in the pool."""
    pool, stream = torch.cuda.graph_pool_handle(), torch.cuda.Stream()
    source, graphs, results = torch.ones(3), [], []
    for factor in (2, 3):
        graphs.append(torch.cuda.CUDAGraph())
        with torch.cuda.graph(graphs[-1], pool=pool, stream=stream, capture_error_mode="thread_local"):
            results.append(source * factor)
    graphs[0].replay()
    assert results[0].tolist() == [2, 2, 2]
    source.fill_(5)
    graphs[1].replay()
    assert results[1].tolist() == [15, 15, 15]
    assert results[0].isnan().all()
