"""Settings that need no tuning by hand: the paper's own, and tuned ones for the bundled priors.

The tables, one JSON file per prior, were made by ``rmp-fast tune``; each names the command and the images it was tuned
on, and what it gained on others.
"""

from __future__ import annotations

import functools
import json
import pathlib
from typing import Any

from .. import schedules
from .._checks import check_choice, check_count
from ..priors import Prior

__all__ = ["TASKS", "for_operator", "for_task", "paper_ve", "paper_vp", "tables", "untuned"]

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


@functools.cache
def tables(prior: str) -> dict[str, dict[str, Any]]:
    """What was tuned for a prior: task -> evaluations -> settings and their origin; empty for an unknown prior."""
    path = _FOLDER / f"{prior}.json"
    if not path.exists():
        return {}
    found: dict[str, dict[str, Any]] = json.loads(path.read_text())
    return found


def for_task(task: str, prior: Prior | str, evaluations: int = 20) -> dict[str, Any]:
    """Keyword arguments of :class:`rmp_fast.Plan` for a task and a budget.

    For a bundled prior the table tuned for the largest budget that fits; where there is none, the untuned default:
    levels from 20 to 0.05 with two looks each, for nonlinear tasks with the ``gauss_newton`` guidance. Phase retrieval
    takes :func:`rmp_fast.schedules.annealed` with that guidance, and gains with every evaluation up to 100 and with
    every start of :func:`rmp_fast.operators.best_of_starts`.

    Args:
        task: one of :data:`TASKS`.
        prior: a prior, or the name of one.
        evaluations: network evaluations per item, at least 1; the settings never use more.

    Raises:
        ValueError: for an unknown task, with the nearest names, or a budget below 1.
        TypeError: if ``prior`` is neither, or ``evaluations`` not whole.
    """
    check_choice("task", task, TASKS)
    check_count("evaluations", evaluations)
    if not isinstance(prior, Prior | str):
        raise TypeError(f"`prior` must be an rmp_fast prior or a name, got {type(prior).__name__}")
    name = prior if isinstance(prior, str) else prior.name
    fitting = [budget for budget in map(int, tables(name).get(task, {})) if budget <= evaluations]
    if fitting:
        entry = tables(name)[task][str(max(fitting))]
        return {"looks": schedules.Looks(**entry["looks"]), "start": entry["start"]}
    if task == "phase_retrieval":
        return {"looks": schedules.annealed(evaluations), "start": "zero", "guidance": "gauss_newton"}
    return untuned(evaluations) | ({"guidance": "gauss_newton"} if task in NONLINEAR else {})


def for_operator(name: str, prior: Prior | str, evaluations: int = 20) -> dict[str, Any]:
    """As :func:`for_task` for one of :data:`TASKS`; :func:`untuned` for a linear operator by any other name.

    Such an operator has a kernel, a mask or a strength of its own, and no table was tuned for that.
    """
    return for_task(name, prior, evaluations) if name in TASKS else untuned(evaluations)


def untuned(evaluations: int = 20) -> dict[str, Any]:
    """Keyword arguments of :class:`rmp_fast.Plan`: levels from 20 to 0.05 with two looks each.

    Args:
        evaluations: network evaluations per item, at least 1; of an odd number above 1 one is left.

    Raises:
        TypeError, ValueError: ``evaluations`` is not whole or below 1.
    """
    inner = min(2, check_count("evaluations", evaluations))
    return {"schedule": schedules.log(evaluations // inner), "inner_steps": inner}
