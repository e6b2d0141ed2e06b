"""The best settings of the baselines, task by task: ``python benchmarks/quality/tune_baselines.py``.

Optuna searches the settings of a method and the range of its levels for the mean PSNR of a few images, beginning with
the best for all tasks together. Of what it found, those and the authors' settings, the best on other images is kept in
``rmp_fast/bench/tuned.json`` after every task, and is what ``rmp-fast bench`` and ``linear_tasks.py`` call tuned; tasks
that are there already are left alone unless ``--force``.

The images are Fashion-MNIST test images (from 0 and 64 on; report on others), noise 0.05 on [-1, 1], with the
``fashion`` prior; with ``--prior photo`` 128x128 crops of training photographs, for the samplers without gradients.
"""

from __future__ import annotations

import argparse
import json
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np
import optuna
from linear_tasks import NOISE, TASKS, measured, problem
from photos import psnr
from torch import Tensor

import rmp_fast as rmp
from rmp_fast import _json, baselines, operators
from rmp_fast.bench.methods import TUNED, as_settings, tuned_settings
from rmp_fast.training.train import PhotoBatches, to_float

Suggest = Callable[[optuna.Trial], dict[str, Any]]


def levels(trial: optuna.Trial) -> dict[str, Any]:
    return {
        "low": trial.suggest_float("low", 0.01, 0.2, log=True),
        "high": trial.suggest_float("high", 2, 100, log=True),
    }


def ddrm(trial: optuna.Trial) -> dict[str, Any]:
    return {"eta": trial.suggest_float("eta", 0, 1), "eta_b": trial.suggest_float("eta_b", 0, 1), **levels(trial)}


def diffpir(trial: optuna.Trial) -> dict[str, Any]:
    strength = trial.suggest_float("strength", 0.05, 20, log=True)
    return {"strength": strength, "zeta": trial.suggest_float("zeta", 0, 1), **levels(trial)}


def pigdm(trial: optuna.Trial) -> dict[str, Any]:
    weight = trial.suggest_categorical("weight", ["adaptive", "score"])
    variance = trial.suggest_float("prior_variance", 0.03, 3, log=True)
    return {"weight": weight, "prior_variance": variance, "eta": trial.suggest_float("eta", 0, 1), **levels(trial)}


def reddiff(trial: optuna.Trial) -> dict[str, Any]:
    weight = trial.suggest_float("weight", 0.01, 3, log=True)
    return {"weight": weight, "learning_rate": trial.suggest_float("learning_rate", 0.01, 0.5, log=True)} | levels(
        trial
    )


def daps(trial: optuna.Trial) -> dict[str, Any]:
    rate = trial.suggest_float("langevin_rate", 1e-6, 1e-3, log=True)
    steps = trial.suggest_categorical("ode_steps", [1, 2, 5])
    tau = trial.suggest_float("tau", 0.01, 0.2, log=True)
    return {"langevin_rate": rate, "tau": tau, "ode_steps": steps, **levels(trial)}


def dps(trial: optuna.Trial) -> dict[str, Any]:
    return {"step_size": trial.suggest_float("step_size", 0.01, 2, log=True), **levels(trial)}


#: Of a prior: method, evaluations, trials per task.
SEARCHES: dict[str, list[tuple[Suggest, int, int]]] = {
    "fashion": [
        (ddrm, 20, 30), (ddrm, 100, 30), (diffpir, 20, 30), (diffpir, 100, 30), (pigdm, 100, 20), (reddiff, 1000, 10),
        (daps, 1000, 10), (dps, 1000, 6),
    ],
    "photo": [(ddrm, 20, 20), (diffpir, 20, 20), (ddrm, 100, 10), (diffpir, 100, 10)],
}  # fmt: skip


Case = tuple[Tensor, operators.Operator, Tensor]  # images, operator, measurements


def cases(prior: str, task: str, evaluations: int, cache: pathlib.Path) -> tuple[Case, Case]:
    """What settings are sought on, and others to choose on among what was found."""
    if prior == "fashion":
        few, many = (8, 32) if evaluations <= 100 else (4, 8)
        return problem(task, few, cache, first=0), problem(task, many, cache, first=64)
    crops, rng = PhotoBatches(cache), np.random.default_rng(0)
    truth = to_float(np.stack([crops.crop(128, rng) for _ in range(6)]))
    found = [(part, *measured(task, part, first)) for first, part in ((0, truth[:3]), (3, truth[3:]))]
    return found[0], found[1]


def quality(method: str, evaluations: int, task: str, prior: Any, case: Case, found: dict[str, Any]) -> float:
    """Mean PSNR of settings as a search has them; of none, the authors'."""
    truth, op, y = case
    settings = as_settings(method, evaluations, found) or baselines.paper_settings(method, task)
    estimate = baselines.reconstruct(
        method, y, op, prior, NOISE, evaluations=evaluations, shape=tuple(truth.shape), **settings
    )
    value = float(psnr(estimate.mean.clamp(-1, 1), truth).mean())
    return value if value == value else -100.0  # a chain that diverged


def shared(method: str, evaluations: int) -> dict[str, dict[str, Any]]:
    """The best settings for all tasks together as a search has them, by a name, if there are any."""
    settings = tuned_settings(method, evaluations)
    if settings is None:
        return {}
    fields = {name: value for name, value in settings.items() if name != "schedule"}
    return {"all tasks": {**fields, "low": 0.05, "high": 20.0}}


def search(suggest: Suggest, evaluations: int, trials: int, task: str, prior: Any, case: Case) -> dict[str, Any]:
    """The settings of the highest mean PSNR that were found."""
    method = suggest.__name__
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=0))
    for known in shared(method, evaluations).values():
        study.enqueue_trial(known)
    study.optimize(lambda trial: quality(method, evaluations, task, prior, case, suggest(trial)), n_trials=trials)
    return {name: float(f"{v:.4g}") if isinstance(v, float) else v for name, v in study.best_params.items()}


def choose(
    method: str, evaluations: int, task: str, prior: Any, case: Case, found: dict[str, Any]
) -> dict[str, Any]:  # fmt: skip
    """The best of what was found, of the settings for all tasks and of the authors' (empty): few images mislead."""
    candidates: dict[str, dict[str, Any]] = {"authors": {}, "found": found} | shared(method, evaluations)
    values = {name: quality(method, evaluations, task, prior, case, each) for name, each in candidates.items()}
    best = max(values, key=lambda name: values[name])
    told = ", ".join(f"{name} {value:.2f}" for name, value in values.items())
    print(f"{method}-{evaluations} {task}: {told} dB on other images; kept: {best} {candidates[best]}", flush=True)
    return candidates[best]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = sorted({suggest.__name__ for suggest, _, _ in SEARCHES["fashion"]})
    parser.add_argument("--prior", choices=sorted(SEARCHES), default="fashion", help="and its images (fashion)")
    parser.add_argument("--methods", nargs="+", choices=names, default=names, help="which (all)")
    parser.add_argument("--force", action="store_true", help="search again where something is kept")
    parser.add_argument("--out", type=pathlib.Path, default=TUNED, help="where it is kept")
    parser.add_argument("--data", type=pathlib.Path, default=pathlib.Path.home() / ".cache" / "rmp_fast" / "data")
    arguments = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    prior = rmp.priors.load(arguments.prior)
    for suggest, evaluations, trials in SEARCHES[arguments.prior]:
        for task in TASKS:
            kept = json.loads(arguments.out.read_text()) if arguments.out.exists() else {}
            found = (
                kept.setdefault(arguments.prior, {}).setdefault(suggest.__name__, {}).setdefault(str(evaluations), {})
            )
            if suggest.__name__ not in arguments.methods or (task in found and not arguments.force):
                continue
            tuning, choosing = cases(prior.name, task, evaluations, arguments.data)
            best = search(suggest, evaluations, trials, task, prior, tuning)
            found[task] = choose(suggest.__name__, evaluations, task, prior, choosing, best)
            _json.write(arguments.out, kept)


if __name__ == "__main__":
    main()
