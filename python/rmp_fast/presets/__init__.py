"""Settings that need no tuning by hand: the paper's own, and tuned ones for the bundled priors.

The tables, one JSON file per prior, were made by ``rmp-fast tune``; each names the command and the images it was tuned
on, and what it gained on others; ``holds_for`` was added by hand where ``benchmarks/quality/preset_range.py`` found a
limit, or had tried nothing beyond. :func:`read` takes the file that it wrote for a prior of your own.
"""

from __future__ import annotations

import functools
import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

from .. import schedules
from .._checks import check_choice, check_count
from ..priors import Prior

__all__ = ["NONLINEAR", "TASKS", "budgets", "for_operator", "for_task", "paper_ve", "paper_vp", "read", "tables",
           "tuned", "untuned"]  # fmt: skip

#: The tasks by name; the last ones are nonlinear or complex.
TASKS = (
    "denoise",
    "inpaint_random",
    "inpaint_box",
    "sr4",
    "gaussian_deblur",
    "motion_deblur",
    "mri",
    "phase_retrieval",
    "nonlinear_deblur",
)
#: Of these, the nonlinear ones.
NONLINEAR = ("phase_retrieval", "nonlinear_deblur")

_FOLDER = pathlib.Path(__file__).parent


def paper_ve() -> dict[str, Any]:
    """VE-RMP of Xue, Cai, Yuan, Gao (arXiv 2410.05646): T = 30, T_in = 20, fixed precision, drawn noise.

    600 evaluations; the constant step size 0.2 is ours, the paper leaves it open.
    """
    return {"schedule": schedules.ve(30), "inner_steps": 20, "step_size": 0.2, "noise": "drawn", "covariance": "fixed"}


def paper_vp() -> dict[str, Any]:
    """VP-RMP of the same paper: T = 400, T_in = 1, fixed precision, drawn noise; full steps. 400 evaluations."""
    return {"schedule": schedules.vp(400), "inner_steps": 1, "step_size": 1.0, "noise": "drawn", "covariance": "fixed"}


Table = Mapping[str, Mapping[str, Any]]  # task -> evaluations -> settings and their origin


@functools.cache
def tables(prior: str) -> dict[str, dict[str, Any]]:
    """What was tuned for a prior: task -> evaluations -> settings and their origin; empty for an unknown prior."""
    path = _FOLDER / f"{prior}.json"
    if not path.exists():
        return {}
    found: dict[str, dict[str, Any]] = json.loads(path.read_text())
    return found


def read(path: str | os.PathLike[str]) -> dict[str, dict[str, Any]]:
    """What ``rmp-fast tune --out`` wrote: task -> evaluations -> settings and their origin.

    Raises:
        ValueError: there is no such file, or it holds something else, with the place.
    """
    try:
        found = json.loads(pathlib.Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as cause:
        raise ValueError(f"{path} cannot be read as presets: {cause}") from cause
    if not isinstance(found, dict) or not all(isinstance(budgets, dict) for budgets in found.values()):
        raise ValueError(f"{path} must hold presets: a JSON object of tasks, each an object of evaluations")
    for task, budgets in found.items():
        check_choice(f"task in {path}", task, TASKS)
        for budget, entry in budgets.items():
            try:
                looks = len(_settings(entry)["looks"])
                if looks != int(budget):
                    raise ValueError(f"it has {looks} looks")
                _holds(entry, {})
            except (AttributeError, KeyError, TypeError, ValueError) as cause:
                raise ValueError(
                    f"{path}: the preset of {task} with {budget} evaluations is damaged: {cause}"
                ) from cause
    return found


def _settings(entry: Mapping[str, Any]) -> dict[str, Any]:
    check_choice("start", entry["start"], ("zero", "smooth"))
    return {"looks": schedules.Looks(**entry["looks"]), "start": entry["start"]}


def _holds(entry: Mapping[str, Any], strength: Mapping[str, float]) -> bool:
    """Whether a preset is not known to lose against the untuned chain at that strength."""
    return all(low <= strength.get(name, low) <= high for name, (low, high) in entry.get("holds_for", {}).items())


def for_task(
    task: str,
    prior: Prior | str,
    evaluations: int = 20,
    table: Table | None = None,
    strength: Mapping[str, float] | None = None,
) -> dict[str, Any]:
    """Keyword arguments of :class:`rmp_fast.Plan` for a task and a budget.

    For a bundled prior the table tuned for the largest budget that fits; where there is none, the untuned default:
    levels from 20 to 0.05 with two looks each, for nonlinear tasks with the ``gauss_newton`` guidance. Phase retrieval
    takes :func:`rmp_fast.schedules.annealed` with that guidance, and gains with every evaluation up to 100 and with
    every start of :func:`rmp_fast.operators.best_of_starts`.

    Args:
        task: one of :data:`TASKS`.
        prior: a prior, or the name of one.
        evaluations: network evaluations per item, at least 1; the settings never use more.
        table: what :func:`read` returned, in place of the bundled one.
        strength: of the problem, as far as it is known: ``blur_std`` in pixels, ``noise_std`` on [-1, 1]. A preset that
            was found to lose there against the untuned chain (its ``holds_for``) is not taken; a smaller one that
            holds is.

    Raises:
        ValueError: for an unknown task, with the nearest names, or a budget below 1.
        TypeError: if ``prior`` is neither, or ``evaluations`` not whole.
    """
    check_choice("task", task, TASKS)
    check_count("evaluations", evaluations)
    if not isinstance(prior, Prior | str):
        raise TypeError(f"`prior` must be an rmp_fast prior or a name, got {type(prior).__name__}")
    fitting = _fitting(task, prior, evaluations, table, strength)
    if fitting:
        chain = _settings(fitting[max(fitting)])
    elif task == "phase_retrieval":
        chain = {"looks": schedules.annealed(evaluations), "start": "zero"}
    else:
        chain = untuned(evaluations)
    return chain | ({"guidance": "gauss_newton"} if task in NONLINEAR else {})


def tuned(
    name: str,
    prior: Prior | str,
    evaluations: int,
    table: Table | None = None,
    strength: Mapping[str, float] | None = None,
) -> int | None:
    """The budget that the chain of :func:`for_operator` was tuned for, None where it was not: arguments as there."""
    return max(_fitting(name, prior, evaluations, table, strength), default=None)


def budgets(
    name: str, prior: Prior | str, table: Table | None = None, strength: Mapping[str, float] | None = None
) -> list[int]:  # fmt: skip
    """The evaluations that chains of :func:`for_operator` were tuned for, ascending: arguments as there."""
    return sorted(_fitting(name, prior, None, table, strength))


def _fitting(
    task: str, prior: Prior | str, most: int | None, table: Table | None, strength: Mapping[str, float] | None
) -> dict[int, Mapping[str, Any]]:
    """The presets of at most so many evaluations that may be taken, by their evaluations."""
    name = prior if isinstance(prior, str) else prior.name
    entries = {int(count): entry for count, entry in (tables(name) if table is None else table).get(task, {}).items()}
    return {
        count: entry
        for count, entry in entries.items()
        if (most is None or count <= most) and _holds(entry, strength or {})
    }


def for_operator(
    name: str,
    prior: Prior | str,
    evaluations: int = 20,
    table: Table | None = None,
    strength: Mapping[str, float] | None = None,
) -> dict[str, Any]:
    """As :func:`for_task` for one of :data:`TASKS`; :func:`untuned` for a linear operator by any other name.

    Such an operator has a kernel, a mask or a strength of its own, and no table was tuned for that.
    """
    return for_task(name, prior, evaluations, table, strength) if name in TASKS else untuned(evaluations)


def untuned(evaluations: int = 20) -> dict[str, Any]:
    """Keyword arguments of :class:`rmp_fast.Plan`: levels from 20 to 0.05 with two looks each.

    Args:
        evaluations: network evaluations per item, at least 1; of an odd number above 1 one is left.

    Raises:
        TypeError, ValueError: ``evaluations`` is not whole or below 1.
    """
    inner = min(2, check_count("evaluations", evaluations))
    return {"schedule": schedules.log(evaluations // inner), "inner_steps": inner}
