"""The rows of a benchmark and the files that keep them, written anew with every row."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
import pathlib
import subprocess
import tomllib
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from .. import _json
from ..images import write_atomically
from .harness import Measured, band
from .problem import quality

__all__ = ["COLUMNS", "Results", "Row", "commit", "row", "table", "time_text"]

SCHEMA = 1


@dataclasses.dataclass(frozen=True)
class Row:
    """One method on one problem.

    Attributes:
        section: what it was measured for: quality, batch, images, pixels or evaluations.
        settings: whose: authors, tuned, preset, untuned.
        evaluations, backward_evaluations: of the network per image, of all samples together.
        repeats: timed calls; of a single one the band is empty.
        images_per_second, _low, _high: median and the band of the middle 80 % of the calls.
        warm_up_seconds: preparation and first call, which are in no other column; None where the first call is the row.
        network_seconds: of one call, like the other parts; None where the method does not tell it apart, and off the
            CPU. The step's holds the loop around it; ``other_seconds`` is what no part accounts for: checks,
            conversions, Python.
        peak_memory_mb: most memory held beyond what was held before the call: resident, or of a CUDA device's
            allocator, there with what a captured graph keeps for itself.
        device: the processor or the card, by name.
        psnr, ssim: mean over the images. psnr_error: its standard error, None for one image.
        check: what was verified before the clock ran.
    """

    section: str
    task: str
    prior: str
    method: str
    label: str
    settings: str
    batch: int
    channels: int
    height: int
    width: int
    evaluations: int
    backward_evaluations: int
    samples: int
    repeats: int
    images_per_second: float
    images_per_second_low: float | None
    images_per_second_high: float | None
    ms_per_image: float
    warm_up_seconds: float | None
    network_seconds: float | None
    operator_seconds: float | None
    step_seconds: float | None
    start_seconds: float | None
    other_seconds: float | None
    peak_memory_mb: float | None
    psnr: float
    psnr_error: float | None
    ssim: float | None
    check: str
    device: str
    threads: int
    versions: str
    commit: str | None

    @property
    def key(self) -> tuple[Any, ...]:
        """What makes it the same row."""
        return self.section, self.task, self.label, self.batch, self.height, self.width


COLUMNS = tuple(field.name for field in dataclasses.fields(Row))


def row(measured: Measured, truth: Tensor, section: str, task: str, where: dict[str, Any]) -> Row:
    """The row of an arm's samples so far.

    Args:
        measured: at least one sample.
        truth: (B, C, H, W) on [-1, 1].
        where: prior, device, threads, versions and commit.
    """
    arm, result = measured.arm, measured.result
    batch, channels, height, width = truth.shape
    median, low, high = band(measured.seconds)
    several = len(measured.seconds) > 1
    psnr, ssim = quality(result.mean, truth)
    mean = sum(psnr) / batch
    spread = (sum((p - mean) ** 2 for p in psnr) / (batch - 1) / batch) ** 0.5 if batch > 1 else None
    known = [value for value in ssim if value is not None]
    parts = {name: measured.part(name) for name in ("network", "operator", "step", "start")}
    told = [value for value in parts.values() if value is not None]
    return Row(
        section=section, task=task, method=arm.method, label=arm.label, settings=arm.settings, batch=batch,
        channels=channels, height=height, width=width, evaluations=result.evaluations,
        backward_evaluations=result.backward_evaluations, samples=arm.samples, repeats=len(measured.seconds),
        images_per_second=batch / median, images_per_second_low=batch / high if several else None,
        images_per_second_high=batch / low if several else None, ms_per_image=1e3 * median / batch,
        warm_up_seconds=measured.warm_up_seconds,
        network_seconds=parts["network"], operator_seconds=parts["operator"], step_seconds=parts["step"],
        start_seconds=parts["start"],
        other_seconds=max(0.0, median - sum(told)) if told else None,
        peak_memory_mb=None if measured.peak_bytes is None else (measured.peak_bytes + result.kept_bytes) / 1e6,
        psnr=mean, psnr_error=spread, ssim=sum(known) / len(known) if known else None, check=measured.checked, **where,
    )  # fmt: skip


@dataclasses.dataclass
class Results:
    """Everything a run found; :meth:`put` and :meth:`finish` write it to ``folder`` at once.

    Attributes:
        command: that repeats the run. settings, environment: of the run.
        rows: by :attr:`Row.key`.
        left_out: what was not measured, and why.
        extras: further results by name, such as the kernels' roofline.
        finished: False: the run was interrupted, or goes on.
    """

    folder: pathlib.Path
    command: str
    settings: dict[str, Any]
    environment: dict[str, Any]
    rows: dict[tuple[Any, ...], Row] = dataclasses.field(default_factory=dict)
    left_out: list[dict[str, str]] = dataclasses.field(default_factory=list)
    extras: dict[str, Any] = dataclasses.field(default_factory=dict)
    finished: bool = False

    def put(self, new: Row) -> None:
        """Add or replace a row."""
        self.rows[new.key] = new
        self.write()

    def leave_out(self, section: str, task: str, what: str, why: str) -> None:
        """Remember what has no row; each thing once for a task and reason, and no row of it stays."""
        self.rows = {k: r for k, r in self.rows.items() if (r.section, r.task, r.label) != (section, task, what)}
        entry = {"section": section, "task": task, "what": what, "why": why}
        if entry not in self.left_out:
            self.left_out.append(entry)
        self.write()

    def of(self, section: str, task: str | None = None) -> list[Row]:
        """The rows of a section, of one task or all."""
        return [r for r in self.rows.values() if r.section == section and task in (None, r.task)]

    def finish(self) -> None:
        """Say that the run is complete."""
        self.finished = True
        self.write()

    def write(self) -> None:
        """bench.json and bench.csv, each complete at any time."""
        document = {
            "schema": SCHEMA,
            "finished": self.finished,
            "command": self.command,
            "settings": self.settings,
            "environment": self.environment,
            "left_out": self.left_out,
            "extras": self.extras,
            "rows": [dataclasses.asdict(r) for r in self.rows.values()],
        }
        _json.write(self.folder / "bench.json", document)
        stream = io.StringIO()
        writer = csv.DictWriter(stream, COLUMNS)
        writer.writeheader()
        writer.writerows(dataclasses.asdict(r) for r in self.rows.values())
        write_atomically(self.folder / "bench.csv", stream.getvalue().encode())

    @classmethod
    def read(cls, folder: pathlib.Path) -> Results:
        """What :meth:`write` left in a folder.

        Raises:
            ValueError: there is no such file, or it is not of this kind.
        """
        path = folder / "bench.json"
        try:
            document = json.loads(path.read_text())
            if document["schema"] != SCHEMA:
                raise ValueError(f"{path} has schema {document['schema']}, not {SCHEMA}")
            rows = [Row(**{**entry, "psnr": _number(entry["psnr"])}) for entry in document["rows"]]
            names = ("command", "settings", "environment", "left_out", "extras", "finished")
            rest = {name: document[name] for name in names}
        except (OSError, KeyError, TypeError, json.JSONDecodeError) as cause:
            raise ValueError(f"{path} cannot be read as the result of rmp-fast bench: {cause}") from cause
        return cls(folder=folder, rows={r.key: r for r in rows}, **rest)


def _number(psnr: float | None) -> float:
    """What null in the file stands for: the PSNR of a flawless image."""
    return math.inf if psnr is None else psnr


def commit() -> str | None:
    """The commit that the package was run from, with -dirty where files differ from it.

    None where the package is not part of a checkout of its own: an installed copy says nothing of the repository that
    it happens to lie in.
    """
    package = pathlib.Path(__file__).resolve().parent.parent
    top = package.parent.parent
    command = ["git", "-C", str(top), "describe", "--always", "--dirty", "--exclude=*", "--abbrev=12"]
    try:
        name = tomllib.loads((top / "pyproject.toml").read_text())["project"]["name"]
        if (name, package) != ("rmp_fast", top / "python" / "rmp_fast") or not (top / ".git").exists():
            return None
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, KeyError, TypeError, ValueError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def time_text(milliseconds: float) -> str:
    """A time in the unit that suits it."""
    return f"{milliseconds:.3g} ms" if milliseconds < 1000 else f"{milliseconds / 1e3:.3g} s"


def table(rows: Sequence[Row]) -> str:
    """Rows as text, in the order of their time."""
    lines = [
        f"{'':30}{'batch':>6}{'PSNR':>8}{'SSIM':>7}{'forward':>9}{'back':>6}{'ms/image':>10}"
        f"{'images/s':>10}  {'(middle 80 %)':16}{'network':>8}{'memory':>9}"
    ]
    for r in sorted(rows, key=lambda r: (r.batch, r.ms_per_image)):
        ssim = "" if r.ssim is None else f"{r.ssim:.3f}"
        low, high = r.images_per_second_low, r.images_per_second_high
        spread = "one call" if low is None or high is None else f"{low:.3g} to {high:.3g}"
        share = "" if r.network_seconds is None else f"{1e3 * r.network_seconds / (r.batch * r.ms_per_image):.1%}"
        memory = "" if r.peak_memory_mb is None else f"{r.peak_memory_mb:.0f} MB"
        lines.append(
            f"{r.label:30}{r.batch:6}{r.psnr:8.2f}{ssim:>7}{r.evaluations:9}{r.backward_evaluations:6}"
            f"{r.ms_per_image:10.1f}{r.images_per_second:10.3g}  {spread:16}{share:>8}{memory:>9}"
        )
    return "\n".join(lines)
