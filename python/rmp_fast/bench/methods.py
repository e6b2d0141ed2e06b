"""The methods that a benchmark knows by name, and the arms that each of them makes of a problem."""

from __future__ import annotations

import dataclasses
import functools
import json
import pathlib
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .. import baselines, engine, presets, reference, schedules
from ..graph import GraphPool
from ..plan import Estimate, Plan
from ..priors import NetworkPrior, Prior, self_ensemble
from . import deepinv_arms, eager
from .harness import SAMPLER_TOLERANCE, AbsentError, Arm, CheckError, Result
from .problem import Problem

__all__ = [
    "AVERAGES",
    "BACKWARD",
    "BFLOAT16",
    "COMPILED",
    "EAGER",
    "GRAPHS",
    "METHODS",
    "OURS",
    "SAMPLES",
    "TUNED",
    "arms",
    "as_settings",
    "chain_of",
    "eager_chain",
    "plan_normals",
    "tuned_settings",
    "untuned",
]

Denoise = Callable[[Tensor, Tensor], Tensor]
#: Standard normals of the images' shape for a look of the chain.
Draw = Callable[[int], Tensor]

#: What every name of ``--methods`` stands for.
METHODS = {
    "rmp": "RMP, tuned preset",
    "rmp-compiled": "RMP, tuned preset, network compiled",
    "rmp-bfloat16": "RMP, tuned preset, network compiled and in bfloat16",
    "rmp-flips-bfloat16": "RMP, tuned preset, mean of four mirror images, network compiled and in bfloat16",
    "rmp-graph": "RMP, tuned preset, captured as a CUDA graph",
    "rmp-untuned": "RMP, untuned levels",
    "rmp-untuned-compiled": "RMP, untuned levels, network compiled",
    "rmp-untuned-bfloat16": "RMP, untuned levels, network compiled and in bfloat16",
    "rmp-untuned-graph": "RMP, untuned levels, captured as a CUDA graph",
    "eager": "RMP, untuned levels, in plain eager torch",
    "eager-compiled": "the same, network compiled",
    "eager-bfloat16": "the same, network compiled and in bfloat16",
    "ddrm": "DDRM",
    "diffpir": "DiffPIR",
    "pigdm": "PiGDM",
    "dps": "DPS",
    "reddiff": "RED-diff",
    "daps": "DAPS",
    "average": "average of DDRM samples",
    "deepinv-ddrm": "deepinv's DDRM",
    "deepinv-diffpir": "deepinv's DiffPIR",
    "deepinv-dps": "deepinv's DPS",
    "deepinv-average": "deepinv's DiffusionSampler, mean of DDRM samples",
}
OURS = tuple(name for name in METHODS if name.startswith("rmp"))
EAGER = tuple(name for name in METHODS if name.startswith("eager"))
BACKWARD = ("pigdm", "dps", "deepinv-dps")
AVERAGES = ("average", "deepinv-average")
BFLOAT16 = tuple(name for name in METHODS if name.endswith("-bfloat16"))
COMPILED = (*(name for name in METHODS if name.endswith("-compiled")), *BFLOAT16)
GRAPHS = tuple(name for name in METHODS if name.endswith("-graph"))
SAMPLES = 16
RELAXATION = 1.4  # of the untuned chain

#: Methods with a row for every budget that a preset was tuned for.
EVERY_PRESET = ("rmp", "rmp-bfloat16", "rmp-graph")
#: Mirror images of every look of a method that takes the mean of them.
FLIPS = {"rmp-flips-bfloat16": 4}
#: Budgets of the others: evaluations of one sample.
BUDGETS = {
    "ddrm": (20, 100),
    "diffpir": (20, 100),
    "pigdm": (100,),
    "dps": (1000,),
    "reddiff": (1000,),
    "daps": (1000,),
    "average": (100,),
    "deepinv-ddrm": (20, 100),
    "deepinv-diffpir": (20, 100),
    "deepinv-dps": (1000,),
    "deepinv-average": (100,),
}
EQUAL = 20  # evaluations of the methods without a budget of their own
#: Evaluations, a backward pass counted as two, up to which a chain is run once more to check it.
CHECKED_TWICE = 400


#: What ``benchmarks/quality/tune_baselines.py`` found: prior -> method -> evaluations -> task -> settings.
TUNED = pathlib.Path(__file__).parent / "tuned.json"


def as_settings(name: str, evaluations: int, found: dict[str, Any]) -> dict[str, Any]:
    """Settings of a method from those of a search, which has ``low`` and ``high`` in place of a schedule.

    An empty search found nothing better than the authors' settings.
    """
    settings = dict(found)
    if settings and baselines.get(name).on_timesteps:
        settings["schedule"] = schedules.log(evaluations - 1, settings.pop("low"), settings.pop("high"))
    return settings


def tuned_settings(name: str, evaluations: int, task: str = "", prior: str = "") -> dict[str, Any] | None:
    """The best settings of a baseline that were found, or None where none were sought or the authors' are the best.

    ``benchmarks/quality/tune_baselines.py`` says on which images they were sought, for a prior and a task; for others
    they are the best for all tasks of Fashion-MNIST together. The authors' grids are made for 256 x 256 photographs;
    what helps is the grid of levels that RMP starts from.
    """
    found = _tuned().get(prior, {}).get(name, {}).get(str(evaluations), {}).get(task)
    if found is not None:
        return as_settings(name, evaluations, found) or None
    shared: dict[str, dict[str, Any]] = {
        "ddrm": {"eta": 1.0},
        "diffpir": {"strength": 1.0, "zeta": 1.0},
    }
    if name not in shared or evaluations < 2:
        return None
    return {**shared[name], "schedule": schedules.log(evaluations - 1, 0.05, 20.0)}


@functools.cache
def _tuned() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(TUNED.read_text()) if TUNED.exists() else {}
    return found


def chain_of(name: str) -> str:
    """What the chain of a method is called: methods share it that run its network, or the rest of it, in other ways."""
    for suffix in ("-compiled", "-bfloat16", "-graph"):
        name = name.removesuffix(suffix)
    return "rmp-untuned" if name == "eager" else name


def arms(problem: Problem, methods: Sequence[str], evaluations: int | None = None) -> tuple[list[Arm], dict[str, str]]:
    """The arms of the methods, cheapest first, and why a method has none.

    Args:
        problem: what they solve.
        methods: of :data:`METHODS`.
        evaluations: of every sample, in place of each method's own budgets.
    """
    found: list[Arm] = []
    left_out: dict[str, str] = {}
    missing = deepinv_arms.unavailable_reason()
    for name in methods:
        if name.startswith("deepinv-") and missing is not None:
            left_out[name] = missing
            continue
        budgets = [evaluations] if evaluations is not None else _budgets(problem, name)
        try:
            made = [arm for budget in budgets for arm in _arms_of(problem, name, budget)]
        except (ValueError, CheckError) as cause:
            left_out[name] = str(cause)
            continue
        found += list({arm.label: arm for arm in made}.values())
    return sorted(found, key=lambda arm: arm.evaluations), left_out


def _budgets(problem: Problem, name: str) -> Sequence[int]:
    if name in FLIPS:
        return (FLIPS[name] * EQUAL,)
    tuned = presets.budgets(problem.task, problem.prior, strength=problem.strength) if name in EVERY_PRESET else []
    return tuned or BUDGETS.get(name, (EQUAL,))


def _arms_of(problem: Problem, name: str, budget: int) -> list[Arm]:
    device = problem.truth.device
    if name in GRAPHS and device.type != "cuda":
        raise ValueError(f"CUDA graphs record the work of a CUDA device, and the device is {device}")
    if name in OURS:
        return [_rmp(problem, name, budget)]
    if name in EAGER:
        return [_eager(problem, name, budget)]
    if name.startswith("deepinv-"):
        return [deepinv_arms.arm(problem, name, budget, SAMPLES)]
    if name == "average":
        return [_baseline(problem, name, "ddrm", budget, "authors", samples=SAMPLES)]
    found = [_baseline(problem, name, name, budget, "authors")]
    settings = tuned_settings(name, budget, problem.task, problem.prior.name)
    if settings is not None:
        found.append(_baseline(problem, name, name, budget, "tuned", settings))
    return found


# RMP, ours.


def untuned(evaluations: int) -> dict[str, Any]:
    """Options of the chain that nobody tuned, with at most so many evaluations."""
    return presets.untuned(evaluations) | {"relaxation": RELAXATION}


def network_options(name: str) -> dict[str, Any]:
    """How a method of ours, or the eager one, runs the network: options of a plan."""
    return {"compile": name in COMPILED, "precision": "bfloat16" if name in BFLOAT16 else "float32"}


def compiled(problem: Problem, name: str) -> Prior:
    """The problem's prior with its network compiled as a plan of the method compiles it, so that both run the same."""
    return _surely(name, engine.prepare(
        problem.prior, [problem.shape], **network_options(name), channels_last=None, gradients=False, backend="torch",
        device=problem.truth.device, dtype=problem.truth.dtype,
    ))  # fmt: skip


def _surely(name: str, prior: Prior) -> Prior:
    """``prior``, or AbsentError where its network runs otherwise than the name says: its row would tell another's time.

    Plans go back to float32 where bfloat16 changes an estimate too much.
    """
    stats = engine.stats_of(prior)
    if name in COMPILED and not stats.get("compiled"):
        raise AbsentError("the network could not be compiled")
    if name in BFLOAT16 and not stats.get("bfloat16"):
        raise AbsentError("the network does not run in bfloat16 here, or not well enough")
    return prior


def _tolerance(problem: Problem, name: str, evaluations: int) -> float:
    """Of the problem; in bfloat16 what plans allow it."""
    if name in BFLOAT16:
        return float(2 * 10 ** (-engine.LEAST_PSNR / 20))
    return problem.tolerance(evaluations)


def _rmp(problem: Problem, name: str, budget: int) -> Arm:
    preset, flips = not name.startswith("rmp-untuned"), FLIPS.get(name, 1)
    options, prior = untuned(budget // flips), problem.prior
    if preset:
        options = presets.for_task(problem.task, prior, budget // flips, strength=problem.strength)
    if flips > 1:
        if not isinstance(prior, NetworkPrior):
            raise ValueError(f"mirror images are of priors made of a network, and {prior.name!r} is none")
        prior = self_ensemble(prior, flips)
    looks = len(options["looks"]) if "looks" in options else options["inner_steps"] * options["schedule"].steps
    evaluations = flips * looks
    tolerance = _tolerance(problem, name, evaluations)

    def plan(**more: Any) -> Plan:
        device = problem.truth.device
        return Plan(problem.op, prior, problem.shape, problem.noise_std, device=device, **options, **more)

    def make() -> Callable[[], Result]:
        made = plan(**network_options(name))
        _surely(name, made.network)
        kept = captured(made) if name in GRAPHS else 0

        def call() -> Result:
            result = _result(made.execute(problem.y, seeds=problem.seeds), kept)
            _surely(name, made.network)
            return result

        return call

    def check(result: Result) -> str:
        plain = plan(backend="torch").execute(problem.y, seeds=problem.seeds)
        return _equal(result, plain.mean, tolerance, "the chain in plain torch (backend='torch')", evaluations)

    settings = "preset" if "looks" in options else "untuned"
    compiles = name in COMPILED
    return Arm(name, f"{name}-{evaluations}", settings, evaluations, make, check, tolerance, compiles=compiles)


def captured(plan: Plan) -> int:
    """Record the plan's chain as one CUDA graph; the bytes that the graph keeps for what its chain allocates."""
    pool = GraphPool(plan.device)
    recording = plan.capture(pool)
    if not recording.whole:
        raise AbsentError(f"the chain is not one graph: {recording.prevented_by}")
    return pool.bytes


def _result(estimate: Estimate, kept_bytes: int = 0) -> Result:
    if not bool(estimate.ok.all()):
        raise CheckError("an image left the finite range")
    stats = estimate.stats
    parts = {
        key: stats[f"{key}_seconds"] for key in ("network", "operator", "step", "start") if f"{key}_seconds" in stats
    }
    return Result(estimate.mean, int(stats["evaluations"]), int(stats["backward_evaluations"]), parts, kept_bytes)


def _equal(result: Result, other: Tensor, tolerance: float, what: str, evaluations: int) -> str:
    gap = float((result.mean - other).double().square().mean().sqrt())
    if not gap <= tolerance:
        raise CheckError(
            f"differs from {what} by {gap:.2g} (root mean square), more than rounding can, {tolerance:.2g}"
        )
    if result.evaluations != evaluations:
        raise CheckError(f"took {result.evaluations} evaluations of the network, not {evaluations}")
    return f"equals {what}: {gap:.1e} <= {tolerance:.1e}"


# RMP as a user would write it.


def eager_chain(problem: Problem, budget: int) -> Callable[[Denoise, Draw], Tensor]:
    """The untuned chain in plain torch, as a function of D(x, s) and of the normals of look number n.

    Raises:
        ValueError: the operator takes more than a few lines of torch.
    """
    options = untuned(budget)
    levels = options["schedule"].levels.tolist()
    sizes = reference.step_sizes("averaging", RELAXATION, options["inner_steps"])
    correct = eager.corrector(problem.op, problem.y, problem.noise_std, problem.shape)
    if correct is None:
        raise ValueError(f"the operator {problem.op.name!r} of {problem.task} has no few lines of plain torch")

    def run(denoise: Denoise, draw: Draw) -> Tensor:
        variance, device = problem.prior.data_variance, problem.truth.device
        with torch.inference_mode():
            return eager.chain(denoise, correct, problem.shape, levels, sizes, variance, draw, device)

    return run


def plan_normals(problem: Problem) -> Draw:
    """The normals that a plan makes for the problem's seeds."""
    elements = problem.truth[0].numel()
    return lambda look: reference.normals(problem.seeds, look, 0, elements).reshape(problem.shape).float()


def _eager(problem: Problem, name: str, budget: int) -> Arm:
    options = untuned(budget)
    evaluations = options["inner_steps"] * options["schedule"].steps
    tolerance = _tolerance(problem, name, evaluations)
    chain, device = eager_chain(problem, budget), problem.truth.device

    def run(prior: Prior, draw: Draw) -> Result:
        timed = Timed(prior)
        mean = chain(timed.denoise, draw)
        return Result(mean, timed.evaluations, 0, {"network": timed.seconds})

    def draw() -> Draw:
        generator = torch.Generator(device).manual_seed(0)
        return lambda look: torch.randn(problem.shape, generator=generator, device=device)

    def make() -> Callable[[], Result]:
        prior = compiled(problem, name) if name in COMPILED else problem.prior
        return lambda: run(prior, draw())

    def check(result: Result) -> str:
        ours = Plan(problem.op, problem.prior, problem.shape, problem.noise_std, device=device, **options)
        mean = ours.execute(problem.y, seeds=problem.seeds).mean
        told = _equal(
            run(problem.prior, plan_normals(problem)), mean, problem.tolerance(evaluations),
            "rmp_fast's chain on the same random numbers", evaluations,
        )  # fmt: skip
        if name not in COMPILED:
            return told
        plain = run(problem.prior, draw()).mean
        return f"{told}; {_equal(result, plain, tolerance, 'itself with the eager network', evaluations)}"

    compiles = name in COMPILED
    return Arm(name, f"{name}-{evaluations}", "untuned", evaluations, make, check, tolerance, compiles=compiles)


@dataclasses.dataclass
class Timed:
    """A prior that counts its evaluations and their seconds."""

    prior: Prior
    evaluations: int = 0
    seconds: float = 0.0

    def denoise(self, x: Tensor, s: Tensor) -> Tensor:
        """D(x, s)."""
        started = time.perf_counter()
        out = self.prior.denoise(x, s)
        self.seconds += time.perf_counter() - started
        self.evaluations += 1
        return out


# Published samplers.


def _baseline(
    problem: Problem, name: str, method: str, budget: int, whose: str, settings: dict[str, Any] | None = None,
    samples: int = 1,
) -> Arm:  # fmt: skip
    if settings is None:
        settings = baselines.paper_settings(method, problem.task)
    made = baselines.make(method, evaluations=budget, **settings)
    reason = made.check(problem.op, problem.shape, problem.y.device, problem.y.dtype)
    if reason is not None:
        raise ValueError(f"{method} cannot serve {problem.task}: {reason}")
    forward = budget * samples
    cost = forward * (3 if method in BACKWARD else 1)

    def call(items: slice = slice(None)) -> Result:
        y, seeds = problem.y[items], problem.seeds[items]
        shape = (y.shape[0], *problem.shape[1:])
        estimate = baselines.reconstruct_with(
            made, y, problem.op, problem.prior, problem.noise_std, seeds=seeds, samples=samples, shape=shape
        )
        return _result(estimate)

    def check(result: Result) -> str:
        if result.evaluations != forward:
            raise CheckError(f"took {result.evaluations} evaluations of the network, not {forward}")
        if cost > CHECKED_TWICE:
            return "finite, evaluations counted"
        alone = call(slice(0, 1))
        gap = float((alone.mean - result.mean[:1]).double().square().mean().sqrt())
        if not gap <= SAMPLER_TOLERANCE:
            raise CheckError(
                f"the first image alone differs from the same in the batch by {gap:.2g} (root mean square)"
            )
        return f"finite, evaluations counted, an image alone as in the batch: {gap:.1e} <= {SAMPLER_TOLERANCE:g}"

    label = f"{samples} x {method}-{budget}" if samples > 1 else f"{name}-{budget}"
    label += " tuned" if whose == "tuned" else ""
    return Arm(name, label, whose, cost, lambda: call, check, SAMPLER_TOLERANCE, samples)
