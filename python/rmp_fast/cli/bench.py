"""``rmp-fast bench``: every method on the same problems, timed in turns, with a report to look at."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import datetime
import os
import pathlib
import shlex
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import backends, images, priors
from ..bench import analysis, deepinv_arms, figures, harness, kernels, methods, page, roofline
from ..bench.harness import Arm, Measured
from ..bench.problem import Problem, network_rounding
from ..bench.results import Results, commit, row, table, time_text
from . import panel, record
from .inputs import make_output_folder, refuse_results
from .parsers.bench import SECTIONS
from .problems import NOISE_STD, Clean, clean_images, problem, settings_of, tiled
from .tasks import Settings, choice
from .usage import UsageError, check_numbers

__all__ = ["run"]

OUTPUTS = ("bench.json", "bench.csv", "bench.html")


@dataclasses.dataclass(frozen=True)
class Extent:
    """How much is measured where options do not say: images, their size, batches, seconds of timed calls for a row."""

    count: int
    size: int | None
    batch: tuple[int, ...]
    budget: float


EXTENTS = {
    ("photo", False): Extent(3, None, (1, 2, 4), 10.0),
    ("photo", True): Extent(1, 64, (1, 2), 0.5),
    ("fashion", False): Extent(16, None, (1, 4, 16), 5.0),
    ("fashion", True): Extent(4, None, (1, 4), 0.5),
}
#: Evaluations, a backward pass counted as two, above which ``--quick`` leaves a chain out.
QUICK = 200
#: Of the throughput curve, whose methods all get as many.
EQUAL = 20
MOST_TILES = 7


def run(options: argparse.Namespace) -> int:
    """Carry out the command and return its exit code: 0, 1 when a check failed, 130 when interrupted.

    Raises:
        UsageError: before any work, for anything that cannot be carried out as given.
    """
    missing = figures.missing()
    if missing is not None:
        raise UsageError(missing)
    if options.out is None:
        raise UsageError("`--out` must be given: the folder for the results")
    if options.report_only:
        try:
            _write_page(Results.read(options.out))
        except ValueError as error:
            raise UsageError(f"`--report-only`: {error}") from error
        return 0
    try:
        device = kernels.place_of(options.device or "cpu")
    except (ValueError, RuntimeError) as error:
        raise UsageError(str(error)) from error
    with _chosen(device):
        return _run(options, device)


@contextlib.contextmanager
def _chosen(device: torch.device) -> Iterator[None]:
    """A CUDA device is the current one, its convolutions in float32 throughout: the checks' bounds are float32's."""
    if device.type != "cuda":
        yield
        return
    with torch.cuda.device(device), kernels.full_float32():
        yield


def _run(options: argparse.Namespace, device: torch.device) -> int:
    bench = Bench(options, device)
    results = bench.results
    try:
        with np.errstate(all="ignore"):
            bench.run()
        results.finish()
        code = 1 if bench.wrong else 0
    except KeyboardInterrupt:
        print("interrupted: what was measured is kept, and the report says that it is partial", file=sys.stderr)
        code = 130
    results.write()
    _print(results)
    _write_page(results)
    print(f"\nreport: {options.out / 'bench.html'}")
    return code


class Bench:
    """A run: what its options ask for, checked, and what it has found so far."""

    def __init__(self, options: argparse.Namespace, device: torch.device) -> None:
        self.options, self.device = options, device
        choice("--prior", options.prior, tuple(priors.BUNDLED))
        options.noise_std = NOISE_STD[options.prior] if options.noise_std is None else options.noise_std
        check_numbers(options, ("count", "size", "evaluations", "threads"))
        for name in options.sections:
            choice("--sections", name, SECTIONS)
        for name in options.methods or ():
            choice("--methods", name, tuple(methods.METHODS))
        tasks = list(dict.fromkeys(options.task or ["inpaint_random"]))
        self.tasks = {task: settings_of(options, task) for task in tasks}
        refuse_results(options.out, OUTPUTS, options.force)
        extent = EXTENTS[options.prior, options.quick]
        self.batches = sorted(set(options.batch or extent.batch))
        if self.batches[0] < 1:
            raise UsageError(f"`--batch` must be whole numbers of at least 1, got {self.batches[0]}")
        self.budget = extent.budget if options.budget is None else options.budget
        if not 0 <= self.budget < float("inf"):
            raise UsageError(f"`--budget` must be a finite number of seconds >= 0, got {self.budget}")
        size = extent.size if options.size is None and not options.images else options.size
        self.clean = clean_images(options, options.count or extent.count, size)
        if options.threads is not None:
            torch.set_num_threads(options.threads)
        self.prior = priors.load(options.prior).to(device)
        self.problems = {}
        shape = self.clean[0].pixels.shape
        self.rounding = network_rounding(self.prior, (1, *shape)) if self._fits(shape) else 0.0
        for task, settings in self.tasks.items():
            self.problems[task] = self._problem(settings, self.clean)
        self._make_folder()
        self.chosen = tuple(dict.fromkeys(options.methods or methods.METHODS))
        self.wrong = False
        environment = record.environment()
        environment["versions"] |= deepinv_arms.version()
        if device.type == "cuda":
            environment |= _card(device)
            environment["versions"]["cuda"] = str(torch.version.cuda)
        environment |= {
            "commit": commit(),
            "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "load": _load(),
        }
        self.where = {
            "prior": options.prior,
            "device": environment.get("device", environment["processor"]),
            "threads": environment["threads"],
            "versions": ", ".join(f"{name} {value}" for name, value in environment["versions"].items()),
            "commit": environment["commit"],
        }
        asked = {
            "tasks": tasks, "prior": options.prior, "noise_std": options.noise_std, "seed": options.seed,
            "images": [image.name for image in self.clean], "size": "×".join(map(str, shape[1:])),
            "quick": options.quick, "budget": self.budget,
            "operators": {task: repr(p.op) for task, p in self.problems.items()},
        }  # fmt: skip
        self.results = Results(options.out, _command(options), asked, environment)

    def _fits(self, shape: tuple[int, ...]) -> bool:
        return self.prior.channels is None or shape[0] in self.prior.channels

    def _problem(self, settings: Settings, clean: Sequence[Clean]) -> Problem:
        return problem(
            settings, self.prior, clean, self.options.noise_std, self.options.seed, self.rounding, self.device
        )

    def _make_folder(self) -> None:
        out: pathlib.Path = self.options.out
        make_output_folder(out)
        for path in [*(out / name for name in OUTPUTS), *out.glob("pictures_*.png")]:
            path.unlink(missing_ok=True)

    def run(self) -> None:
        """Measure the sections one after the other."""
        asked = self.options.sections
        skipped = [name for name in self.chosen if name not in self._affordable()]
        self._leave_out("", "", skipped, "compiling takes minutes: not with --quick, unless --methods names it")
        if "quality" in asked:
            for task in self.tasks:
                self._quality(task)
            if self.device.type == "cuda":
                told = "the chains' own clock does not wait for a card; a profiler's events there would tell"
                self._leave_out("quality", "", ["where the time goes"], told)
        if "batch" in asked:
            self._batch(next(iter(self.tasks)))
        if "scaling" in asked:
            self._scaling(next(iter(self.tasks)))
        if "roofline" in asked:
            self._roofline()

    # The sections.

    def _quality(self, task: str) -> None:
        given = self.problems[task]
        arms, left_out = methods.arms(given, self._affordable(), self.options.evaluations)
        self._say_left_out("quality", task, left_out)
        if self.options.quick:
            long = [arm.label for arm in arms if arm.evaluations > QUICK]
            self._leave_out("quality", task, long, "too many evaluations for --quick")
            arms = [arm for arm in arms if arm.evaluations <= QUICK]
        measured = self._measure([("quality", given, arm) for arm in arms])
        _write_pictures(self, task, measured)

    def _batch(self, task: str) -> None:
        evaluations = self.options.evaluations or EQUAL
        chosen = [name for name in self._affordable() if name not in (*methods.BACKWARD, *methods.AVERAGES)]
        for batch in self.batches:
            given = self._problem(self.tasks[task], tiled(self.clean, batch))
            arms, left_out = methods.arms(given, chosen, evaluations)
            self._say_left_out("batch", task, left_out)
            self._measure([("batch", given, arm) for arm in arms if arm.settings != "tuned"])

    def _scaling(self, task: str) -> None:
        if not any(name in self.chosen for name in methods.OURS):
            self._leave_out("scaling", task, ["scaling"], "it is of RMP, which --methods leaves out")
            return
        jobs = []
        for section, clean, evaluations in self._scales():
            try:
                given = self._problem(self.tasks[task], clean)
            except UsageError as error:
                self._leave_out(section, task, [f"{clean[0].pixels.shape[1:]}"], str(error))
                continue
            (arm,), _ = methods.arms(given, ["rmp-untuned"], evaluations)
            jobs.append((section, given, arm))
        self._measure(jobs)

    def _scales(self) -> Iterator[tuple[str, list[Clean], int]]:
        evaluations, quick = self.options.evaluations or EQUAL, self.options.quick
        for count in (1, 2, 4) if quick else (1, 2, 4, 8):
            yield "images", tiled(self.clean, count), evaluations
        side = min(self.clean[0].pixels.shape[1:])
        shares = (0.25, 0.5, 0.75, 1.0) if side > 64 else (0.5, 1.0, 1.5, 2.0)
        for share in shares[: 3 if quick else 4]:
            yield "pixels", tiled(self.clean, 1, max(16, 8 * round(share * side / 8))), evaluations
        for factor in (0.5, 1, 2) if quick else (0.5, 1, 2, 4):
            yield "evaluations", tiled(self.clean, 1), max(1, round(factor * evaluations))

    def _roofline(self) -> None:
        """Our kernels on this machine's processor, as ``rmp-fast roofline`` has them."""
        if self.device.type == "cuda":
            told = f"it is of processors; rmp-fast roofline --device {self.device} measures the kernels on the card"
            self._leave_out("roofline", "", ["the kernels' roofline"], told)
            return
        side = min(128 if self.options.quick else 256, *self.clean[0].pixels.shape[1:])
        try:
            measured = roofline.measure(images=(1,), side=side, threads=(torch.get_num_threads(),))
        except RuntimeError as cause:  # there is no compiled extension
            self._leave_out("roofline", "", ["the kernels' roofline"], str(cause))
            return
        largest: dict[str, dict[str, Any]] = {}
        for kernel in measured["kernels"]:
            if kernel["bytes"] >= largest.get(kernel["kernel"], kernel)["bytes"]:
                largest[kernel["kernel"]] = kernel
        found = {name: measured[name] for name in ("plain_gbps", "gops")}
        self.results.extras["roofline"] = {**found, "kernels": list(largest.values())}
        self.results.write()

    def _affordable(self) -> list[str]:
        """The methods without those that take minutes to compile, if ``--quick`` and not asked for by name."""
        if not self.options.quick or self.options.methods:
            return list(self.chosen)
        return [name for name in self.chosen if name not in methods.COMPILED]

    # Measuring.

    def _measure(self, jobs: Sequence[tuple[str, Problem, Arm]]) -> list[Measured]:
        """Time the arms in turns, and keep a row of each with every new sample."""
        given = {id(arm): (section, found) for section, found, arm in jobs}

        def keep(measured: Measured) -> None:
            section, found = given[id(measured.arm)]
            self.results.put(row(measured, found.truth, section, found.task, self.where))

        def leave_out(arm: Arm, reason: str) -> None:
            section, found = given[id(arm)]
            self._leave_out(section, found.task, [arm.label], reason)

        def drop(arm: Arm, reason: str) -> None:
            self.wrong = True
            leave_out(arm, reason)

        def say(arm: Arm) -> None:
            if sys.stderr.isatty():
                section, found = given[id(arm)]
                print(f"\r\033[K{section}, {found.task}: {arm.label}", end="", file=sys.stderr, flush=True)

        done = harness.measure(
            [arm for _, _, arm in jobs],
            budget=self.budget,
            device=self.device,
            on_sample=keep,
            on_wrong=drop,
            on_absent=leave_out,
            on_start=say,
        )
        if sys.stderr.isatty():
            print("\r\033[K", end="", file=sys.stderr, flush=True)
        return done

    def _say_left_out(self, section: str, task: str, left_out: dict[str, str]) -> None:
        for reason in dict.fromkeys(left_out.values()):
            self._leave_out(section, task, [name for name, why in left_out.items() if why == reason], reason)

    def _leave_out(self, section: str, task: str, names: Sequence[str], why: str) -> None:
        told = {(entry["what"], entry["why"]) for entry in self.results.left_out}
        new = [name for name in names if (name, why) not in told]
        if new:
            of_task = f" ({task})" if task else ""
            print(f"rmp-fast bench: left out {', '.join(new)}{of_task}: {why}", file=sys.stderr)
        for name in names:
            self.results.leave_out(section, task, name, why)


def _card(device: torch.device) -> dict[str, str]:
    """What the environment holds of a CUDA device."""
    return {
        "device": torch.cuda.get_device_name(device),
        "kernels": backends.preferred(device, torch.float32),
        "convolutions": "in float32 from end to end, without TF32",
    }


def _load() -> str:
    try:
        return f"{os.getloadavg()[0]:.1f} busy processes at the start, {harness.cores()} processors"
    except OSError:
        return "unknown"


def _command(options: argparse.Namespace) -> str:
    """The command line that does the same, without its output and sections."""
    words = ["rmp-fast", "bench"]
    for name, value in vars(options).items():
        if name in ("command", "out", "sections", "force", "report_only") or value is None or value is False:
            continue
        words.append("--" + name.replace("_", "-"))
        if value is not True:
            words += [str(v) for v in value] if isinstance(value, list) else [str(value)]
    return shlex.join(words)


def _print(results: Results) -> None:
    for section in ("quality", "batch"):
        for task in dict.fromkeys(r.task for r in results.of(section)):
            print(f"\n{section}: {task}\n{table(results.of(section, task))}")
    for r in analysis.time_to_quality(results.of("quality")):
        other = f"{r.what} ({r.peer.label})"
        if r.ours is None or r.ratio is None:
            print(f"{r.task}: {other} is {r.peer.psnr - r.best.psnr:.2f} dB better than {r.best.label}")
        else:
            print(f"{r.task}: {r.ours.label} is as good as {other} in 1/{1 / r.ratio:.3g} of its time")


def _write_pictures(bench: Bench, task: str, measured: Sequence[Measured]) -> None:
    """The first image as every chain left it, each in its best row, however its network was run."""
    if not measured:
        return
    given = bench.problems[task]
    best: dict[str, tuple[float, Measured]] = {}
    for one in measured:
        error = float((one.result.mean[0] - given.truth[0]).square().mean())
        chain = methods.chain_of(one.arm.method)
        if chain not in best or error < best[chain][0]:
            best[chain] = error, one
    shown = [one for _, one in best.values()][: MOST_TILES - 2]
    tiles = [("measurement", "", _unit(_visible(given)))]
    for one in shown:
        found = bench.results.rows.get(row(one, given.truth, "quality", task, bench.where).key)
        tiles.append((one.arm.label, "" if found is None else time_text(found.ms_per_image), _unit(one.result.mean[0])))
    tiles.append(("truth", "", bench.clean[0].pixels))
    title = f"{task}  ·  {bench.clean[0].name}  ·  noise {bench.options.noise_std:g}  ·  {bench.options.prior} prior"
    images.write_atomically(bench.options.out / f"pictures_{task}.png", panel.sheet(tiles, title))


def _visible(given: Problem) -> Tensor:
    """The first measurement as a picture."""
    y = given.y[0].cpu()
    mask = getattr(given.op, "mask", None)
    return y if mask is None else torch.where(mask.reshape(-1, *mask.shape[-2:])[:1], y, -1.0)


def _unit(x: Tensor) -> Any:
    return ((x.clamp(-1, 1) + 1) / 2).float().cpu().numpy()


def _write_page(results: Results) -> None:
    pictures = []
    for task in results.settings["tasks"]:
        path = results.folder / f"pictures_{task}.png"
        if path.is_file():
            pictures.append((f"{task}: the first image, with the best row of each method", path.read_bytes()))
    text = page.render(results, pictures)
    images.write_atomically(results.folder / "bench.html", text.encode())
