"""What ``--prior`` names: a bundled prior, a weights file or a folder of diffusers."""

from __future__ import annotations

import pathlib

from .. import priors
from .tasks import choice
from .usage import UsageError

__all__ = ["open_prior"]


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
