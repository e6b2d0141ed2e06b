"""Captured chains on a CUDA device: graph against eager, changed inputs, streams and threads at once."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
from capture_cases import CHAINS, SHAPE, arguments, measured, named
from torch import Tensor

import rmp_fast as rmp
from rmp_fast import operators
from rmp_fast.graph import GraphPool

GPU = torch.device("cuda", 0)
pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device")

# Continued samples are added back with atomic additions, whose order changes from run to run, captured or not.
_UNORDERED = ("reflected blur", "nonlinear blur")


def plan_on(name: str, **options: Any) -> rmp.Plan:
    return rmp.Plan(**arguments(name, device=GPU, **options))


def given(name: str, options: dict[str, Any], seed: int) -> dict[str, Any]:
    scale = 127.5 if "data_range" in options else 1.0
    noise = scale * torch.tensor([0.1 + 0.2 * seed, 0.3])
    y = scale * measured(name, seed)
    return {"y": y.to(GPU), "seeds": torch.tensor([seed, 7 - seed], device=GPU), "noise_std": noise.to(GPU)}


def assert_same(made: rmp.Estimate, expected: rmp.Estimate, atol: float = 0.0) -> None:
    assert made.ok.tolist() == expected.ok.tolist()
    for mine, theirs in ((made.mean, expected.mean), (made.variance, expected.variance)):
        assert (mine is None) == (theirs is None)
        if mine is not None and theirs is not None:
            torch.testing.assert_close(mine, theirs, rtol=0, atol=atol)


@pytest.mark.parametrize("backend", ["auto", "torch"])
@pytest.mark.parametrize("chain", CHAINS, ids=named)
def test_replays_are_executions_to_the_bit(chain: tuple[str, dict[str, Any]], backend: str) -> None:
    name, options = chain
    eager, plan = (plan_on(name, backend=backend, **options) for _ in range(2))
    recording = plan.capture()
    assert recording.whole, recording.prevented_by
    for seed in (0, 1, 0):
        inputs = given(name, options, seed)
        made = plan.execute(**inputs)
        assert made.stats["graph_launches"] == 1
        # Rounding of single additions, passed on by the few looks of the chain.
        assert_same(made, eager.execute(**inputs), atol=1e-4 if name in _UNORDERED else 0.0)


@pytest.mark.parametrize("backend", ["auto", "torch"])
def test_a_device_computes_what_the_cpu_does(backend: str) -> None:
    made = plan_on("inpainting", backend=backend).execute(**given("inpainting", {}, 1)).mean.cpu()
    on_cpu = rmp.Plan(**arguments("inpainting", backend="reference"))
    expected = on_cpu.execute(**{k: v.cpu() for k, v in given("inpainting", {}, 1).items()}).mean
    torch.testing.assert_close(made, expected, rtol=0, atol=1e-5)


def test_new_seeds_are_new_noise() -> None:
    plan, y = plan_on("inpainting"), measured("inpainting").to(GPU)
    plan.capture()
    first, second = (plan.execute(y, torch.tensor([k, 3], device=GPU)).mean for k in (1, 2))
    assert not torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])


@pytest.mark.parametrize("guidance", ["gaussian", "pigdm"])
def test_new_masks_reach_the_graph(guidance: str) -> None:
    plan = plan_on("inpainting", guidance=guidance)
    plan.capture()
    for seed in (1, 2):
        other = operators.Inpainting(torch.rand(2, 1, 6, 8, generator=torch.Generator().manual_seed(seed)) < 0.5)
        y = other.A(torch.rand(SHAPE, generator=torch.Generator().manual_seed(0))).to(GPU)
        fresh = rmp.Plan(**{**arguments("inpainting", device=GPU, guidance=guidance), "op": other})
        assert_same(plan.execute(y, op=other), fresh.execute(y))


@pytest.mark.parametrize("guidance", ["gaussian", "dps"])
def test_a_bundled_network_is_captured_forward_and_backward(guidance: str) -> None:
    prior = rmp.priors.load("fashion").to(GPU)
    op = operators.Inpainting(operators.random_mask((32, 32), 0.5))
    y = op.A(torch.rand(2, 1, 32, 32, generator=torch.Generator().manual_seed(0))).to(GPU)
    eager, plan = (rmp.Plan(op, prior, (2, 1, 32, 32), 0.05, guidance=guidance, device=GPU) for _ in range(2))
    recording = plan.capture()
    assert recording.whole, recording.prevented_by
    for seeds in ([0, 1], [2, 3]):
        made = plan.execute(y, torch.tensor(seeds, device=GPU))
        # Convolutions may choose another algorithm in a capture, with less room to work in.
        assert_same(made, eager.execute(y, torch.tensor(seeds, device=GPU)), atol=2e-3)


@pytest.mark.parametrize("shared", [False, True], ids=["pools apart", "one pool"])
def test_two_streams_at_once_do_not_meet(shared: bool) -> None:
    pool = GraphPool(GPU) if shared else None
    names = ("inpainting", "gaussian blur")
    plans = [plan_on(name) for name in names]
    for plan in plans:
        plan.capture(pool)
    inputs = [[given(name, {}, seed) for seed in range(8)] for name in names]
    expected = [[plan_on(name).execute(**one).mean for one in row] for name, row in zip(names, inputs, strict=True)]
    streams = [torch.cuda.Stream(GPU) for _ in names]
    torch.cuda.synchronize(GPU)
    made: list[list[Tensor]] = [[], []]
    for k in range(8):
        for which, stream in enumerate(streams):
            with torch.cuda.stream(stream):
                made[which].append(plans[which].execute(**inputs[which][k]).mean)
    torch.cuda.synchronize(GPU)
    for mine, theirs in zip(made, expected, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(mine, theirs, strict=True))


def test_one_plan_may_move_from_stream_to_stream() -> None:
    plan = plan_on("inpainting")
    plan.capture()
    inputs = [given("inpainting", {}, seed) for seed in range(8)]
    expected = [plan_on("inpainting").execute(**one).mean for one in inputs]
    streams = [torch.cuda.Stream(GPU) for _ in range(2)]
    torch.cuda.synchronize(GPU)
    made = []
    for k, one in enumerate(inputs):
        with torch.cuda.stream(streams[k % 2]):
            made.append(plan.execute(**one).mean)
    torch.cuda.synchronize(GPU)
    assert all(torch.equal(a, b) for a, b in zip(made, expected, strict=True))


def test_threads_with_streams_of_their_own_share_a_cache() -> None:
    settings = arguments("inpainting", device=GPU)
    del settings["shape"]
    cache = rmp.PlanCache(**settings)
    assert all(recording.whole for recording in cache.warm(SHAPE, plans=2))
    assert cache.bytes > 0
    inputs = [given("inpainting", {}, seed) for seed in range(4)]
    expected = [plan_on("inpainting").execute(**one).mean for one in inputs]
    torch.cuda.synchronize(GPU)
    wrong: list[int] = []

    def work(k: int) -> None:
        stream = torch.cuda.Stream(GPU)
        with torch.cuda.stream(stream):
            for _ in range(10):
                made = cache.execute(SHAPE, **inputs[k]).mean
                stream.synchronize()
                if not torch.equal(made, expected[k]):
                    wrong.append(k)

    threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def waits_for_the_host(x: Tensor, s: Tensor) -> Tensor:
    return torch.tanh(x / (1 + float(s.max())))


def waits_where_torch_does_not_see_it(x: Tensor, s: Tensor) -> Tensor:
    torch.cuda.current_stream(x.device).synchronize()
    return torch.tanh(x / (1 + s.reshape(-1, 1, 1, 1)))


@pytest.mark.parametrize("guidance", ["gaussian", "jensen"])
@pytest.mark.parametrize("network", [waits_for_the_host, waits_where_torch_does_not_see_it])
def test_a_network_that_cannot_be_captured_runs_between_graphs(network: Any, guidance: str) -> None:
    prior = rmp.priors.from_denoiser(network, 0.5)
    eager, plan = (plan_on("inpainting", prior=prior, guidance=guidance) for _ in range(2))
    with pytest.warns(RuntimeWarning, match="cannot be captured as a whole"):
        recording = plan.capture()
    assert not recording.whole
    assert recording.prevented_by is not None
    assert network.__name__ in recording.prevented_by
    for seed in (0, 1):
        inputs = given("inpainting", {}, seed)
        made = plan.execute(**inputs)
        assert made.stats["graph_launches"] == recording.graphs
        assert_same(made, eager.execute(**inputs))
    # What was tried and failed leaves the device usable, for other captures too.
    other = plan_on("inpainting")
    assert other.capture().whole
    inputs = given("inpainting", {}, 2)
    assert_same(other.execute(**inputs), plan_on("inpainting").execute(**inputs))


def test_a_plan_gives_its_memory_back() -> None:
    y = measured("inpainting").to(GPU)

    def once() -> None:
        plan = plan_on("inpainting")
        plan.capture()
        plan.execute(y)

    once()
    torch.cuda.synchronize(GPU)
    torch.cuda.empty_cache()
    before = torch.cuda.memory_reserved(GPU)
    for _ in range(5):
        once()
    torch.cuda.synchronize(GPU)
    torch.cuda.empty_cache()
    assert torch.cuda.memory_reserved(GPU) <= before
