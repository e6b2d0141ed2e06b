"""``rmp-fast tune``: tune the looks of a chain on example images and keep them as a preset."""

from __future__ import annotations

import argparse
import dataclasses
import math
import pathlib
import shlex
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .. import _json, images, presets, schedules, tuning
from ..priors import Prior
from ..schedules import Looks
from . import degrade
from .inputs import collect_inputs, make_output_folder
from .prior import open_prior
from .tasks import TASKS as OF_TASK
from .tasks import Settings, choice, resolve
from .usage import UsageError

__all__ = ["TASKS", "run"]

#: Tasks that presets know and that have defaults of their own.
TASKS = (
    "denoise", "inpaint_random", "inpaint_box", "sr4", "gaussian_deblur", "motion_deblur", "mri", "nonlinear_deblur",
)  # fmt: skip
SOURCES = ("fashion-train", "photo-train")
FEWEST = 8
MOST_HELD_OUT = 64
CHUNK = 16  # held-out images restored at a time
FACTORS = (0.8, 1.25)

#: What ``--vary`` may name, where the task has it.
NOISE = "noise_std"
VARIABLE = (NOISE, "missing", "box", "blur_std", "motion_length", "acceleration", "exposure", "gamma")

Strength = dict[str, float]  # of a degradation: options by their names in :class:`Settings`, and the noise on [0, 1]
Pixels = NDArray[np.uint8]
Presets = dict[str, dict[str, Any]]


@dataclasses.dataclass(frozen=True)
class Crops:
    """Images, each at one or several sizes, of which square crops are taken.

    Attributes:
        pyramids: per image its arrays (C, H, W), uint8.
        side: of the crops.
    """

    pyramids: Sequence[Sequence[Pixels]]
    side: int

    def draw(self, image: int, rng: np.random.Generator) -> Pixels:
        """A random crop of one image at a random one of its sizes."""
        levels = self.pyramids[image]
        array = levels[int(rng.integers(len(levels)))]
        top, left = (int(rng.integers(length - self.side + 1)) for length in array.shape[1:])
        crop: Pixels = array[:, top : top + self.side, left : left + self.side]
        return crop

    def batch(self, count: int, rng: np.random.Generator) -> Tensor:
        """(count, C, side, side) on [-1, 1] from random images."""
        chosen = rng.integers(len(self.pyramids), size=count)
        return _to_float([self.draw(int(index), rng) for index in chosen])


def run(options: argparse.Namespace) -> int:
    """Carry out the command and return its exit code, 0.

    Raises:
        UsageError: an argument that does not fit, before any work.
    """
    choice("--task", options.task, TASKS)
    if options.start is None:
        options.start = "zero" if options.task in presets.NONLINEAR else "smooth"
    choice("--start", options.start, ("zero", "smooth"))
    if options.start == "smooth" and options.task in presets.NONLINEAR:
        raise UsageError(f"`--start` must be zero for {options.task}: only linear tasks have a smooth one")
    choice("--method", options.method, ("auto", "gradient", "search"))
    for name in ("evaluations", "steps", "batch", "side", "threads"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise UsageError(f"`--{name}` must be at least 1, got {value}")
    if not 0 < options.learning_rate < math.inf:
        raise UsageError(f"`--learning-rate` must be a number > 0, got {options.learning_rate}")
    if options.highest_level is not None and not 0 < options.highest_level < math.inf:
        raise UsageError(f"`--highest-level` must be a number > 0, got {options.highest_level}")
    if options.highest_level is not None and options.init is not None:
        raise UsageError("`--highest-level` is of the first table, which `--init` gives; they exclude each other")
    if not 0 <= options.noise_std < math.inf:
        raise UsageError(f"`--noise-std` must be a number >= 0, got {options.noise_std}")
    settings = resolve(_problem_of(options))
    varied = _varied(options)
    kept = _read_presets(options)
    first = _initial(options)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    prior = open_prior(options.prior)
    tuning_images, held_out = _split(options, prior)
    session = _Session(options, settings, varied, prior)
    for strength in session.ends():  # what does not fit the images is refused here
        session.problem(held_out[:1], "0", strength)

    gradient = options.method == "gradient"
    if options.method == "auto":
        gradient = tuning.is_differentiable(prior, tuple(held_out.shape))
    if varied and not gradient:
        raise UsageError("`--vary` needs the gradient of the prior: a search tries one strength")
    started = first or tuning.first_looks(
        options.evaluations, prior.data_variance, options.start, options.highest_level
    )
    session.say(
        f"{options.task}, {options.prior} prior, {options.evaluations} evaluations, {options.start} start: "
        f"{options.steps} {'steps of Adam' if gradient else 'trials'} on batches of {options.batch} of "
        f"{len(tuning_images.pyramids)} images"
    )
    try:
        tuned = session.tune(started, tuning_images, gradient)
    except (ValueError, RuntimeError) as error:
        raise UsageError(str(error)) from error
    looks = _rounded(tuned.looks)
    gain = session.report(held_out, looks)
    if not options.no_sensitivity:
        session.sensitivity(held_out, looks)
    entry = {
        "start": options.start,
        "looks": {name: getattr(looks, name).tolist() for name in tuning.COLUMNS},
        "tuned_on": session.provenance(len(tuning_images.pyramids)),
        "command": _command(options),
        "gain_db": gain,
    }
    kept.setdefault(options.task, {})[str(options.evaluations)] = entry
    _json.write(options.out, kept)
    session.say(f"written: {options.out}; rmp-fast reconstruct and others take it as --presets")
    return 0


class _Session:
    """One tuning: its settings, and the problems it is measured on."""

    def __init__(
        self, options: argparse.Namespace, settings: Settings, varied: dict[str, tuple[float, float]], prior: Prior
    ) -> None:  # fmt: skip
        self.options, self.settings, self.varied, self.prior = options, settings, varied, prior

    def say(self, text: str) -> None:
        if not self.options.quiet:
            print(text, flush=True)

    def problem(self, clean: Tensor, name: str, strength: Strength) -> tuning.Problem:
        """Measurements of ``clean``, ``strength`` in place of what was asked; ``name`` decides masks and noise."""
        names = [f"{name}/{index}" for index in range(len(clean))]
        shape = tuple(clean.shape[1:])
        changed = {key: value for key, value in strength.items() if key != NOISE}
        try:
            settings = dataclasses.replace(self.settings, options=self.settings.options | changed)
            op = degrade.build(settings, names, shape, self.options.seed)
            op.measurement_shape(tuple(clean.shape))
        except ValueError as error:
            raise UsageError(f"{self.options.task} of images (C, H, W) = {shape}: {error}") from error
        digest = int.from_bytes(np.random.SeedSequence((self.options.seed, *name.encode())).generate_state(1), "little")
        return tuning.measure(clean, op, 2 * strength.get(NOISE, self.options.noise_std), digest)

    def drawn(self, rng: np.random.Generator) -> Strength:
        """What ``--vary`` names, each uniform in logarithm."""
        exponents = {key: rng.uniform(math.log(low), math.log(high)) for key, (low, high) in self.varied.items()}
        return {key: _of_kind(key, math.exp(value)) for key, value in exponents.items()}

    def ends(self) -> list[Strength]:
        """Strengths to report at: both ends of what ``--vary`` names, or half and twice the noise; then as asked."""
        told = self.options.noise_std
        varied = self.varied or ({NOISE: (told / 2, 2 * told)} if told else {})
        return [*({key: end} for key, ends in varied.items() for end in ends), {}]

    def tune(self, first: Looks, crops: Crops, gradient: bool) -> tuning.Tuned:
        options = self.options
        recent: list[float] = []

        def progress(step: int, value: float) -> None:
            recent.append(value)
            if step % 20 == 0 or step == options.steps:
                self.say(f"step {step}/{options.steps}  {np.mean(recent[-20:]):.2f} dB")

        def problems(step: int) -> tuning.Problem:
            rng = np.random.default_rng((options.seed, step))
            clean = crops.batch(options.batch, rng)
            return self.problem(clean, f"step {step}", self.drawn(rng))

        if not gradient:
            return tuning.search_looks(
                problems(0), self.prior, options.evaluations, start=options.start, trials=options.steps,
                seed=options.seed, progress=progress,
            )  # fmt: skip
        return tuning.tune_looks(
            problems, self.prior, first, start=options.start, steps=options.steps, seed=options.seed,
            learning_rate=options.learning_rate, recompute=options.recompute, autocast=options.bfloat16,
            progress=progress,
        )  # fmt: skip

    def quality(self, held_out: Tensor, strength: Strength, **chain: Any) -> Tensor:
        """PSNR of every held-out image in dB, for plan options ``chain``."""
        parts = []
        for index in range(0, len(held_out), CHUNK):
            problem = self.problem(held_out[index : index + CHUNK], f"held out {index}", strength)
            parts.append(tuning.psnr(problem.images, tuning.restore(problem, self.prior, **chain)))
        return torch.cat(parts).double()

    def report(self, held_out: Tensor, looks: Looks) -> list[float | int]:
        """Print default and tuned PSNR; return mean gain, its standard error and the number of images, as asked."""
        count = self.options.evaluations
        inner = 2 if count % 2 == 0 else 1
        grid = schedules.log(count // inner, 0.05, 20.0)
        self.say(f"held out ({len(held_out)} images)")
        loses = False
        for strength in self.ends():
            default = self.quality(held_out, strength, schedule=grid, inner_steps=inner)
            self.tuned = self.quality(held_out, strength, looks=looks, start=self.options.start)
            mean, error = _paired(self.tuned - default)
            loses |= mean < -2 * error
            where = ", ".join(f"{_flag(key)} {value:g}" for key, value in strength.items())
            self.say(
                f"{where or 'as asked'}: default {default.mean():.2f} dB, tuned {self.tuned.mean():.2f} dB, "
                f"gain {mean:+.2f} ± {error:.2f} dB"
            )
        if loses:
            self.say("where it loses the default is better; --vary tunes for more than one strength")
        return [round(mean, 3), round(error, 3), len(held_out)]

    def sensitivity(self, held_out: Tensor, looks: Looks) -> None:
        """Print what it costs to scale one column of the table."""
        self.say("change of the held-out PSNR in dB when a column is scaled")
        self.say(f"{'':10}" + "".join(f"{f'x {factor:g}':>16}" for factor in FACTORS))
        for name in tuning.COLUMNS:
            cells = []
            for factor in FACTORS:
                scaled = dataclasses.replace(looks, **{name: getattr(looks, name) * factor})
                quality = self.quality(held_out, {}, looks=scaled, start=self.options.start)
                mean, error = _paired(quality - self.tuned)
                cells.append(f"{f'{mean:+.3f} ± {error:.3f}':>16}")
            self.say(f"{name:10}" + "".join(cells))

    def provenance(self, images_used: int) -> str:
        """What the table was tuned on, in words."""
        hidden = ("mask", "invert_mask", "kernel")
        told = {key: str(value) for key, value in self.settings.options.items() if key not in hidden}
        told[NOISE] = f"{self.options.noise_std:g}"
        told |= {key: f"{low:g} to {high:g}" for key, (low, high) in self.varied.items()}
        parts = [f"{key}={value}" for key, value in told.items()]
        parts[list(told).index(NOISE)] += " on [0, 1]"
        source = self.options.images if self.options.images in SOURCES else "a folder"
        return f"{images_used} images of {source}, {', '.join(parts)}"


def _flag(key: str) -> str:
    return key.replace("_", "-")


def _of_kind(key: str, value: float) -> float:
    """``value`` as that option has it: boxes have a whole number of pixels."""
    return round(value) if key == "box" else value


def _varied(options: argparse.Namespace) -> dict[str, tuple[float, float]]:
    """The ends of every option that ``--vary`` names, checked as the options themselves are."""
    known = [_flag(key) for key in VARIABLE if key == NOISE or key in OF_TASK[options.task].simulated]
    found: dict[str, tuple[float, float]] = {}
    for name, *ends in options.vary or ():
        key = choice("--vary", name, tuple(known)).replace("-", "_")
        try:
            low, high = map(float, ends)
        except ValueError as error:
            raise UsageError(f"`--vary` {name} must be followed by two numbers, got {' '.join(ends)}") from error
        if not 0 < low < high < math.inf:
            raise UsageError(f"`--vary` {name} must be from LOW to HIGH with 0 < LOW < HIGH, got {low:g} {high:g}")
        found[key] = _of_kind(key, low), _of_kind(key, high)
        for end in found[key]:
            if key != NOISE:
                resolve(_problem_of(options, **{key: end}))
    return found


def _problem_of(options: argparse.Namespace, **changed: float) -> argparse.Namespace:
    """The options as :func:`resolve` takes them."""
    return argparse.Namespace(**(vars(options) | changed), operator=options.task, simulate=True)


def _paired(difference: Tensor) -> tuple[float, float]:
    """Mean and its standard error."""
    return float(difference.mean()), float(difference.std() / math.sqrt(len(difference)))


def _to_float(pixels: Sequence[Pixels]) -> Tensor:
    return torch.from_numpy(np.stack(pixels)).float().div_(127.5).sub_(1)


def _split(options: argparse.Namespace, prior: Prior) -> tuple[Crops, Tensor]:
    """Tuning images, and held-out crops (B, C, side, side) of other images."""
    pyramids, side = _load(options)
    channels = {levels[0].shape[0] for levels in pyramids}
    if len(channels) > 1:
        raise UsageError("`--images` must be all grey or all in colour: convert some of them")
    if len(pyramids) < FEWEST:
        raise UsageError(f"`--images` must hold at least {FEWEST} images, to tune and to hold out, got {len(pyramids)}")
    try:
        prior.check_image_shape((1, *channels, side, side))
    except ValueError as error:
        raise UsageError(f"`--images`: {error}") from error
    rng = np.random.default_rng((options.seed, 2**32))
    order = rng.permutation(len(pyramids))
    held = min(MOST_HELD_OUT, len(pyramids) // 4)
    kept = Crops([pyramids[index] for index in order[:held]], side)
    whole = all(array.shape[1:] == (side, side) for levels in kept.pyramids for array in levels)
    repeats = 1 if whole else -(-MOST_HELD_OUT // (2 * held))
    crops = [kept.draw(index, rng) for _ in range(repeats) for index in range(held)]
    return Crops([pyramids[index] for index in order[held:]], side), _to_float(crops)


def _load(options: argparse.Namespace) -> tuple[Sequence[Sequence[Pixels]], int]:
    """Images as pyramids of uint8 arrays, and the side of their crops."""
    side = options.side
    if options.images in SOURCES:
        from ..training import data  # fetches packages

        try:
            if options.images == "fashion-train":
                return [[image] for image in data.fashion_images(options.data, "train")], 32
            pyramids = [[a for a in levels if min(a.shape[1:]) >= side] for levels in data.photo_pyramid(options.data)]
        except (RuntimeError, ImportError, OSError) as error:
            raise UsageError(f"`--images` {options.images}: {error}") from error
        if options.task == "mri":  # which is grey
            pyramids = [[a.mean(0, keepdims=True).round().astype(np.uint8) for a in levels] for levels in pyramids]
        return [levels for levels in pyramids if levels], side
    folder = pathlib.Path(options.images)
    if not folder.exists():
        choice("--images", options.images, (*SOURCES, "FOLDER"))
    found: list[list[Pixels]] = []
    for file in collect_inputs([folder]):
        try:
            array = images.quantise(images.read(file).pixels, 8)
        except images.ImageError as error:
            raise UsageError(f"`--images` {error}") from error
        if min(array.shape[1:]) < side:
            raise UsageError(f"`--side` must be at most the size of {file}, (H, W) = {array.shape[1:]}, got {side}")
        found.append([array])
    return found, side


def _read_presets(options: argparse.Namespace) -> Presets:
    """What ``--out`` holds and keeps, after checking that it may be written."""
    out: pathlib.Path = options.out
    if out.is_dir():
        raise UsageError(f"`--out` must be a file, got the folder {out}")
    make_output_folder(out.parent)
    if not out.exists():
        return {}
    if not options.append:
        if not options.force:
            raise UsageError(f"`--out` {out} exists: add --append to keep its other presets, or --force to replace it")
        return {}
    kept = _parse("--out", out)
    if str(options.evaluations) in kept.get(options.task, {}) and not options.force:
        raise UsageError(
            f"`--out` {out} has {options.task} with {options.evaluations} evaluations: add --force to replace it"
        )
    return kept


def _parse(flag: str, path: pathlib.Path) -> Presets:
    try:
        return presets.read(path)
    except ValueError as cause:
        raise UsageError(f"`{flag}` {cause}") from cause


def _initial(options: argparse.Namespace) -> Looks | None:
    """The looks of ``--init`` for the task, from the nearest number of evaluations, resampled."""
    if options.init is None:
        return None
    entries = _parse("--init", options.init).get(options.task, {})
    if not entries:
        raise UsageError(f"`--init` {options.init} has no preset for {options.task}")
    try:
        nearest = min(entries, key=lambda count: abs(math.log(int(count) / options.evaluations)))
        columns = {name: torch.tensor(entries[nearest]["looks"][name]) for name in tuning.COLUMNS}
        return tuning.resample(Looks(**columns), options.evaluations)
    except (KeyError, TypeError, ValueError) as error:
        raise UsageError(f"`--init` {options.init}: the preset for {options.task} is damaged: {error}") from error


def _rounded(looks: Looks) -> Looks:
    """Five digits, so that a file is readable and holds what was measured."""
    return Looks(**{n: torch.tensor([float(f"{v:.5g}") for v in getattr(looks, n).tolist()]) for n in tuning.COLUMNS})


def _command(options: argparse.Namespace) -> str:
    """The command line that makes the same table, without where it is written."""
    words = ["rmp-fast", "tune"]
    for name, value in sorted(vars(options).items()):
        if name in ("command", "out", "append", "force", "quiet", "no_sensitivity", "data") or value in (None, False):
            continue
        flag = f"--{_flag(name)}"
        if name == "vary":
            words += [word for one in value for word in (flag, *one)]
        else:
            words.append(flag if value is True else f"{flag}={value}")
    return shlex.join(words)
