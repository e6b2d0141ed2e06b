"""What the rows of a benchmark say: time to quality, ratios at equal evaluations, straight lines through costs."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from .methods import EAGER, OURS
from .results import Row

__all__ = ["BEST_SINGLE", "Line", "Reached", "equal_evaluations", "frontier", "line", "time_to_quality"]


#: What the report calls the row of highest PSNR among the others' of one sample.
BEST_SINGLE = "the best single-sample peer"


@dataclasses.dataclass(frozen=True)
class Reached:
    """How soon RMP is as good as someone else.

    Attributes:
        task: of both. what: who the other is. peer: its row.
        ours: RMP's fastest row of at least its PSNR; None: no row reaches it.
        best: RMP's best row.
        wanted: share of the peer's time that RMP should need at most.
    """

    task: str
    what: str
    peer: Row
    ours: Row | None
    best: Row
    wanted: float

    @property
    def ratio(self) -> float | None:
        """RMP's share of the peer's time."""
        return None if self.ours is None else self.ours.ms_per_image / self.peer.ms_per_image


def time_to_quality(rows: Sequence[Row]) -> list[Reached]:
    """Of the quality rows of each task: RMP against the best single-sample peer, DPS and the averages of samples."""
    found = []
    for task in dict.fromkeys(row.task for row in rows):
        mine = [row for row in rows if row.task == task and row.method in OURS]
        others = [row for row in rows if row.task == task and row.method not in (*OURS, *EAGER)]
        if not mine or not others:
            continue
        single = [row for row in others if row.samples == 1]
        peers = [(BEST_SINGLE, max(single, key=lambda r: r.psnr), 1 / 4)] if single else []
        peers += [("DPS", r, 1 / 100) for r in others if r.method in ("dps", "deepinv-dps")]
        peers += [(f"the average of {r.samples} samples", r, 1 / 16) for r in others if r.samples > 1]
        best = max(mine, key=lambda r: r.psnr)
        for what, peer, wanted in peers:
            reaching = [row for row in mine if row.psnr >= peer.psnr]
            ours = min(reaching, key=lambda r: r.ms_per_image, default=None)
            found.append(Reached(task, what, peer, ours, best, wanted))
    return found


def equal_evaluations(rows: Sequence[Row]) -> list[tuple[Row, Row, float]]:
    """Forward-only rows of one sample beside the fastest of ours of as many evaluations on the same problem.

    Returns:
        (ours, other, images per second of ours over the other's), methods of ours among the others too.
    """
    found = []
    for other in rows:
        if other.backward_evaluations or other.samples > 1:
            continue
        same = [
            row for row in rows
            if row.method in OURS and (row.section, row.task, row.batch, row.height, row.width, row.evaluations)
            == (other.section, other.task, other.batch, other.height, other.width, other.evaluations)
        ]  # fmt: skip
        if same:
            ours = max(same, key=lambda r: r.images_per_second)
            if ours is not other:
                found.append((ours, other, ours.images_per_second / other.images_per_second))
    return found


def frontier(rows: Sequence[Row]) -> list[Row]:
    """The rows that no other beats in both time and PSNR, fastest first."""
    found: list[Row] = []
    for row in sorted(rows, key=lambda r: (r.ms_per_image, -r.psnr)):
        if not found or row.psnr > found[-1].psnr:
            found.append(row)
    return found


@dataclasses.dataclass(frozen=True)
class Line:
    """y = intercept + slope x by least squares of relative errors; ``worst``, the largest of these."""

    slope: float
    intercept: float
    worst: float


def line(x: Sequence[float], y: Sequence[float]) -> Line:
    """The straight line through at least two points, each weighted by 1 / y."""
    a, b = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    design = np.stack([a, np.ones_like(a)], 1) / b[:, None]
    (slope, intercept), *_ = np.linalg.lstsq(design, np.ones_like(b), rcond=None)
    return Line(float(slope), float(intercept), float(np.abs((intercept + slope * a) / b - 1).max()))
