"""What ``--prior`` names: a bundled prior, a weights file or a folder of diffusers; and the presets for it."""

from __future__ import annotations

import pathlib
from typing import Any

from .. import presets, priors
from .tasks import Settings, choice
from .usage import UsageError

__all__ = ["open_prior", "preset", "strength"]


def open_prior(named: str) -> priors.NetworkPrior:
    """The prior that ``--prior`` names.

    Raises:
        UsageError: no bundled prior and nothing on disk, with the nearest names, or what cannot be opened.
    """
    if not pathlib.Path(named).exists():
        choice("--prior", named, priors.BUNDLED)
    try:
        return priors.open(named)
    except (ImportError, OSError, TypeError, ValueError) as cause:
        raise UsageError(f"`--prior` {named}: {cause}") from cause


def preset(
    named: pathlib.Path | None, settings: Settings, prior: priors.Prior, evaluations: int, noise_std: float
) -> dict[str, Any]:
    """:func:`rmp_fast.presets.for_operator`, or what the file that ``--presets`` names has for the task.

    Args:
        named: the file, if one was named.
        settings: of the operator.
        prior, evaluations: of the chain.
        noise_std: where black is 0 and white is 1.

    Raises:
        UsageError: no such file, no file of presets, or nothing in it for the task, its strength and so many
            evaluations.
    """
    task = settings.name
    if named is None:
        return presets.for_operator(task, prior, evaluations, strength=strength(settings, noise_std))
    try:
        table = presets.read(named)
    except ValueError as cause:
        raise UsageError(f"`--presets` {cause}") from cause
    known = strength(settings, noise_std)
    if presets.tuned(task, prior, evaluations, table, known) is None:
        held = ", ".join(f"{name} with {' and '.join(budgets)}" for name, budgets in table.items()) or "nothing"
        raise UsageError(
            f"`--presets` {named} has nothing that holds here for {task} with at most {evaluations} evaluations; "
            f"it has {held}"
        )
    return presets.for_task(task, prior, evaluations, table, known)


def strength(settings: Settings, noise_std: float) -> dict[str, float]:
    """Of a problem, as :func:`rmp_fast.presets.for_task` takes it, for noise where black is 0 and white is 1."""
    blur = {name: value for name, value in settings.options.items() if name == "blur_std"}
    return {"noise_std": 2 * noise_std, **blur}
