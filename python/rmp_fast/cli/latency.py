"""``rmp-fast latency``: how long one execution of a plan takes, again and again."""

from __future__ import annotations

import argparse
import dataclasses
import functools
from typing import Any

import torch

from .. import _json, images, presets, priors
from ..bench import figures
from ..bench.latency import histogram, overhead, percentiles, repeated
from ..plan import Plan
from . import record
from .inputs import make_output_folder, refuse_results
from .problems import NOISE_STD, clean_images, problem, settings_of, tiled
from .tasks import choice
from .usage import UsageError, check_numbers

__all__ = ["run"]

OUTPUTS = ("latency.json", "latency.svg")


def run(options: argparse.Namespace) -> int:
    """Carry out the command and return its exit code.

    Raises:
        UsageError: before any work, for anything that cannot be carried out as given.
    """
    choice("--prior", options.prior, tuple(priors.BUNDLED))
    options.noise_std = NOISE_STD[options.prior] if options.noise_std is None else options.noise_std
    check_numbers(options, ("size", "evaluations", "runs", "threads"))
    if not 0 < options.seconds < float("inf"):
        raise UsageError(f"`--seconds` must be a finite number > 0, got {options.seconds}")
    if min(options.batch) < 1:
        raise UsageError(f"`--batch` must be whole numbers of at least 1, got {min(options.batch)}")
    settings = settings_of(options, options.task)
    if options.out is not None:
        refuse_results(options.out, OUTPUTS, options.force)
    clean = clean_images(options, max(options.batch), options.size)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    prior = priors.load(options.prior)
    problems = {
        batch: problem(settings, prior, tiled(clean, batch), options.noise_std, options.seed, 0.0)
        for batch in sorted(set(options.batch))
    }
    if options.out is not None:
        make_output_folder(options.out)
    strength = problems[min(problems)].strength
    chain = presets.for_task(options.task, prior, options.evaluations, strength=strength)
    environment = record.environment()
    print(
        f"{options.task}, {options.prior} prior, {'x'.join(map(str, clean[0].pixels.shape))} pixels, "
        f"{environment['threads']} threads, {environment['processor']}"
    )
    found: list[dict[str, Any]] = []
    for batch, given in problems.items():
        plan = Plan(given.op, given.prior, given.shape, given.noise_std, **chain)
        seconds = repeated(functools.partial(plan.execute, given.y, seeds=given.seeds), options.runs, options.seconds)
        shares = overhead(given, chain) if batch == min(problems) else None
        found.append(_entry(batch, plan.evaluations, seconds, shares))
        print(_text(found[-1]))
        if options.out is not None:
            document = {"environment": environment, "settings": settings.options, "batches": found}
            _json.write(options.out / "latency.json", document)
    if options.out is not None:
        missing = figures.missing()
        if missing is None:
            svg = figures.latency([(entry["batch"], entry["seconds"]) for entry in found])
            images.write_atomically(options.out / "latency.svg", svg.encode())
        else:
            print(f"no latency.svg: {missing}")
    return 0


def _entry(batch: int, evaluations: int, seconds: list[float], shares: Any) -> dict[str, Any]:
    entry: dict[str, Any] = {"batch": batch, "evaluations": evaluations, "runs": len(seconds)}
    entry |= percentiles(seconds)
    entry["overhead"] = None if shares is None else dataclasses.asdict(shares)
    return entry | {"seconds": seconds}


def _text(entry: dict[str, Any]) -> str:
    lines = [f"\nbatch {entry['batch']}, {entry['evaluations']} evaluations, {entry['runs']} executions after warm-up"]
    shown = []
    for name in ("p50", "p95", "p99", "p99.9"):
        value = entry[name]
        shown.append(f"{name} " + ("needs more executions" if value is None else f"{1e3 * value:.3f} ms"))
    if entry["p99"] is not None:
        shown.append(f"p99 / p50 {entry['p99'] / entry['p50']:.2f}")
    lines += ["  " + ", ".join(shown), histogram(entry["seconds"])]
    if entry["overhead"] is not None:
        cost = entry["overhead"]
        lines.append(
            f"  of the processor time of an execution ({1e3 * cost['total']:.3g} ms): everything of the chain but the "
            f"network {cost['chain'] / cost['total']:.2%}; of the network, what does not grow with the pixels (Python, "
            f"dispatch, weights) {cost['network_fixed'] / cost['total']:.1%}"
        )
    return "\n".join(lines)
