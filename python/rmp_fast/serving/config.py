"""What the operator of a service decides."""

from __future__ import annotations

import dataclasses
import pathlib
import re
from collections.abc import Mapping
from typing import Any

from .. import presets
from .._checks import check_choice, check_count, check_positive
from ..cli import tasks
from ..cli.tasks import TASKS
from ..presets import Table
from ..priors import BUNDLED

__all__ = ["OPERATORS", "OPTIONS", "Config", "Warm", "parse_warm"]

#: The tasks that the service offers, all of the command line's, and the options that any of them takes.
OPERATORS = tuple(TASKS)
OPTIONS = tasks.OPTIONS


@dataclasses.dataclass(frozen=True)
class Warm:
    """Plans to make, and to execute once, before the first request.

    Attributes:
        operator: one of :data:`OPERATORS`.
        shape: (C, H, W) of the restored images.
        prior: its name.
        options: of the operator, as in a request; none of them a file.
    """

    operator: str
    shape: tuple[int, int, int]
    prior: str
    options: dict[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Config:
    """Priors, limits and resources of a service; each replica has its own queue and plans.

    Attributes:
        priors: names that requests may ask for; the first is the default.
        weights: of those that are not bundled, what :func:`rmp_fast.priors.open` takes, by name.
        presets: files that ``rmp-fast tune`` wrote, by the name of the prior that they are for; tables: what they hold.
        evaluations: budgets of network evaluations that a request may ask for; the first is its default.
        warm: plans made before the service is ready.
        batch: most items of one batch.
        batch_pixels: most pixels of one batch of several items; larger batches gain nothing on a processor.
        queue: most requests that wait.
        queue_pixels: most pixels that wait, of restored images or of what was measured of them, whichever are more;
            this bounds the memory that they take.
        max_bytes: of a request's body, and upload_bytes: of all bodies that are on their way in.
        max_pixels: of a restored image, H times W, and of every uploaded file before it is decoded.
        max_kernel: longest side of a blur kernel in pixels, and max_kernels: most of them for one picture.
        max_coils: most coils of a scanner, and max_coil_side: longest side of what they see in pixels, because a matrix
            of that side is decomposed for every line, which nothing can interrupt.
        max_starts: most chains of phase retrieval, of which the best is answered.
        deadline: seconds from arrival to answer, where the request says nothing; longest_deadline: most it may say.
        body_seconds: within which a body must have come.
        plans: plans kept, and plan_bytes: bytes of their buffers and operators; the least recently used go first.
        threads: of one replica.
        backend, device: of the plans.

    Raises:
        TypeError, ValueError: for anything that does not fit.
    """

    priors: tuple[str, ...] = ("photo",)
    weights: Mapping[str, str] = dataclasses.field(default_factory=dict)
    presets: Mapping[str, str] = dataclasses.field(default_factory=dict)
    tables: Mapping[str, Table] = dataclasses.field(init=False, repr=False)
    evaluations: tuple[int, ...] = (20, 40)
    warm: tuple[Warm, ...] = ()
    batch: int = 8
    batch_pixels: int = 2**17
    queue: int = 64
    queue_pixels: int = 2**24
    max_bytes: int = 2**25
    upload_bytes: int = 2**28
    max_pixels: int = 2**22
    max_kernel: int = 255
    max_kernels: int = 16
    max_coils: int = 32
    max_coil_side: int = 1024
    max_starts: int = 16
    deadline: float = 60.0
    longest_deadline: float = 600.0
    body_seconds: float = 30.0
    plans: int = 64
    plan_bytes: int = 2**31
    threads: int = 1
    backend: str = "auto"
    device: str = "cpu"

    def __post_init__(self) -> None:
        for name in ("priors", "evaluations"):
            if not getattr(self, name):
                raise ValueError(f"`{name}` must not be empty: requests take the first one unless they say otherwise")
        for name, path in self.weights.items():
            if name in BUNDLED:
                raise ValueError(f"`weights` {name}={path}: {name!r} is a bundled prior; give yours another name")
            if not pathlib.Path(path).exists():
                raise ValueError(f"`weights` {name}={path}: there is no such file or folder")
        for prior in self.priors:
            check_choice("priors", prior, (*BUNDLED, *self.weights))
        tables: dict[str, Table] = {}
        for name, path in self.presets.items():
            check_choice("presets", name, self.priors)
            try:
                tables[name] = presets.read(path)
            except ValueError as cause:
                raise ValueError(f"`presets` {name}: {cause}") from cause
        object.__setattr__(self, "tables", tables)
        for count in self.evaluations:
            check_count("evaluations", count)
        counts = ("batch", "batch_pixels", "queue", "queue_pixels", "max_bytes", "upload_bytes", "max_pixels",
                  "max_kernel", "max_kernels", "max_coils", "max_coil_side", "max_starts", "plans", "plan_bytes",
                  "threads")  # fmt: skip
        for name in counts:
            check_count(name, getattr(self, name))
        for name in ("deadline", "longest_deadline", "body_seconds"):
            check_positive(name, getattr(self, name))
        if self.deadline > self.longest_deadline:
            raise ValueError(
                f"`deadline` must be at most `longest_deadline` = {self.longest_deadline:g}, got {self.deadline:g}"
            )
        for warm in self.warm:
            check_choice("warm", warm.operator, OPERATORS)
            check_choice("warm", warm.prior, self.priors)

    def batch_limit(self, pixels: int) -> int:
        """Most items of a batch of images of so many pixels."""
        return max(1, min(self.batch, self.batch_pixels // pixels))


def parse_warm(text: str, priors: tuple[str, ...]) -> Warm:
    """A :class:`Warm` from ``OPERATOR:CxHxW[:NAME=VALUE,...]``, e.g. ``gaussian_blur:1x32x32:blur_std=1``.

    Args:
        text: as said; among the names is ``prior``.
        priors: of the service, the first one the default.

    Raises:
        ValueError: for another text, with what is known.
    """
    operator, _, rest = text.partition(":")
    size, _, settings = rest.partition(":")
    found = re.fullmatch(r"([13])x([1-9]\d{0,5})x([1-9]\d{0,5})", size)
    if not found:
        raise ValueError(
            f"`warm` must be OPERATOR:CxHxW[:NAME=VALUE,...] with C 1 or 3, as in sr4:3x256x256, got {text!r}"
        )
    check_choice("warm", operator, OPERATORS)
    options: dict[str, Any] = {}
    for setting in filter(None, settings.split(",")):
        name, _, value = setting.partition("=")
        check_choice("warm", name, ("prior", *(key for key in OPTIONS if key not in (*tasks.FILES, "invert_mask"))))
        options[name] = value
    channels, height, width = map(int, found.groups())
    return Warm(operator, (channels, height, width), options.pop("prior", priors[0]), options)
