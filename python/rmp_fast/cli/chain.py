"""One run's prior, settings and plans: image arrays in, restorations and their quality out."""

from __future__ import annotations

import argparse
import dataclasses
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from .. import backends, engine, images, metrics, operators, presets, schedules
from ..plan import Estimate, Plan
from ..priors import BUNDLED, NetworkPrior, Prior, self_ensemble
from ..reconstruction import automatic_tile
from ..tiling import Tiled, check_sizes
from . import degrade, record
from .arrays import ArrayFile
from .prior import open_prior, preset
from .tasks import TASKS, Settings, choice, derive_seed
from .usage import UsageError

__all__ = ["Chain", "Outcome", "from_starts"]

DEFAULTS: dict[str, Any] = {
    "inner_steps": 2,
    "relaxation": 1.4,
    "guidance": "gaussian",
    "noise": "control",
    "low": 0.05,
    "high": 20.0,
}


@dataclasses.dataclass(frozen=True)
class Outcome:
    """The result for one image; arrays are (C, H, W) on [0, 1], the measurement as a picture."""

    measurement: NDArray[np.float32]
    restoration: NDArray[np.float32]
    scored: NDArray[np.float32]  # the restoration, moved onto the truth where the measurement leaves that open
    truth: NDArray[np.float32] | None
    ok: bool
    quality: dict[str, Any] | None  # PSNR and SSIM of baseline and restoration, if there is a truth
    seeds: dict[str, int]
    stats: dict[str, Any]

    @property
    def captions(self) -> tuple[str, str]:
        """What the panel says of measurement and restoration."""
        if self.quality is None:
            return "", ""
        before, after = self.quality["baseline"], self.quality["restoration"]
        name = "" if before["name"] == "measurement" else f" ({before['name']})"
        return f"{before['psnr']:.2f} dB{name}", f"{after['psnr']:.2f} dB" + (
            "" if after["ssim"] is None else f", SSIM {after['ssim']:.3f}"
        )


def from_starts(
    op: operators.Operator, y: torch.Tensor, run: Callable[[torch.Tensor], Estimate], starts: int, seeds: torch.Tensor,
    low: float = -1.0,
) -> Estimate:  # fmt: skip
    """The best of several runs by :func:`~rmp_fast.operators.best_of_starts`, with the evaluations and seconds of all.

    Args:
        op, y: the operator, and measurements in its unit.
        run: seeds (B,) -> estimate on [low, 1].
        starts: how many runs; 1: that run.
        seeds: (B,).
        low: -1 or 0.

    Returns:
        an estimate on [low, 1]. A run that left the finite range has no say; where all did, ``ok`` is False and
        ``mean`` the first one's.
    """
    if starts == 1:
        return run(seeds)
    runs: list[Estimate] = []

    def image(own: torch.Tensor) -> torch.Tensor:
        runs.append(run(own))
        mean = 2 * runs[-1].mean - 1 if low == 0 else runs[-1].mean
        return torch.where(_per_image(runs[-1].ok), mean, torch.nan)

    best = operators.best_of_starts(op, y, image, starts, seeds)
    ok = best.residual.isfinite()
    mean = torch.where(_per_image(ok), (best.image + 1) / 2 if low == 0 else best.image, runs[0].mean)
    summed = {key for key in runs[0].stats if "evaluations" in key or "seconds" in key} - {"compile_seconds"}
    stats = runs[0].stats | {key: sum(one.stats[key] for one in runs) for key in summed}
    return Estimate(mean, None, ok, stats)


def _per_image(values: torch.Tensor) -> torch.Tensor:
    """(B,) -> (B, 1, 1, 1)."""
    return values[:, None, None, None]


class Chain:
    """Prior, operator settings and chain options of a run.

    Args:
        options: of the command line.
        task: the operator, by :func:`tasks.resolve`.
        device: where plans live.
        prior: the prior that ``options`` name, if it was loaded before; it is moved to ``device``.

    Raises:
        UsageError: an option that does not fit, with the message of whoever refuses it.
    """

    def __init__(
        self,
        options: argparse.Namespace,
        task: Settings,
        device: str = "cpu",
        prior: NetworkPrior | None = None,
    ) -> None:
        choice("--precision", options.precision, engine.PRECISIONS)
        self._tile = _tile(options.tile)
        if options.threads is not None:
            torch.set_num_threads(options.threads)
        try:
            backends.resolve(options.backend, torch.device(device), torch.float32)
        except ValueError as error:
            raise UsageError(str(error)) from error
        self._options, self._task, self._device = options, task, torch.device(device)
        self._single = (prior or open_prior(options.prior)).to(device)
        try:
            self._prior = self_ensemble(self._single, options.flips)
        except ValueError as error:
            raise UsageError(str(error)) from error
        if options.evaluations < options.flips:
            raise UsageError(f"`--evaluations` must be at least `--flips` {options.flips}, got {options.evaluations}")
        looks = options.evaluations // options.flips
        given = {name: getattr(options, name) for name in DEFAULTS if getattr(options, name) is not None}
        defaults = DEFAULTS | ({"guidance": "gauss_newton"} if task.name in presets.NONLINEAR else {})
        tuned = preset(options.presets, task, self._prior, looks, options.noise_std)
        if given and options.presets is not None:
            raise UsageError(
                f"`--presets` decides the whole chain; it excludes `--{next(iter(given)).replace('_', '-')}`"
            )
        if not given and "looks" in tuned:
            self._plan_options = tuned
            self._evaluations = options.flips * len(tuned["looks"])
            columns = dataclasses.asdict(tuned["looks"])
            self._chain = tuned | {"looks": {name: column.tolist() for name, column in columns.items()}}
        else:
            self._chain = defaults | given
            self._plan_options = self._levels()
            self._evaluations = options.evaluations
        self._starts = task.options.get("starts", 1)
        self._plan_key: object = None
        self._plan: Plan | None = None
        self.settings: dict[str, Any] = {}
        self.settings_hash = ""

    def _levels(self) -> dict[str, Any]:
        """The plan's options where the chain is given by its levels."""
        chain, evaluations = self._chain, self._options.evaluations
        per_level = chain["inner_steps"] * (2 if chain["noise"] == "antithetic" else 1) * self._options.flips
        if evaluations % per_level:
            own = all(getattr(self._options, name) is None for name in DEFAULTS)
            why = f"; no preset of so few holds for {self._task.name} at this noise" if own else ""
            raise UsageError(
                f"`--evaluations` must be a multiple of {per_level}, what every noise level takes, got {evaluations}"
                + why
            )
        try:
            schedule = schedules.log(evaluations // per_level, chain["low"], chain["high"])
        except ValueError as error:
            raise UsageError(str(error)) from error
        return {"schedule": schedule} | {name: chain[name] for name in DEFAULTS if name not in ("low", "high")}

    @property
    def prior(self) -> NetworkPrior:
        """The prior that the options name, for other chains to share."""
        return self._single

    @property
    def title(self) -> str:
        """One line that says what was done."""
        options = self._options
        parts = [
            self._task.name,
            f"noise {options.noise_std:g}",
            f"{options.prior} prior",
            f"{self._evaluations} evaluations" + (f" x {self._starts} starts" if self._starts > 1 else ""),
        ]
        return "  ·  ".join(parts)

    @property
    def option_files(self) -> dict[str, dict[str, str]]:
        """Mask and kernel files, with their hashes."""
        digests = self._task.digests
        return {key: {"file": str(self._task.options[key]), "sha256": value} for key, value in digests.items()}

    def check(self, shape: tuple[int, ...], name: str) -> None:
        """Refuse, before any work, files of a shape (C, H, W) or arrays of another that operator or prior cannot take.

        Args:
            shape: of the files.
            name: of one of them, for the message.
        """
        try:
            if self._plan is None:
                self._decide(self._prepared(shape, [name]).backend)
            else:
                op = self._operator(shape, [name])
                image_shape = self._image_shape(op, (1, *shape))
                op.measurement_shape(image_shape)
                self._prior.check_image_shape(image_shape)
        except UsageError:
            raise
        except (TypeError, ValueError) as error:
            raise UsageError(f"{name}: {error}") from error

    def restore(
        self,
        batch: Sequence[images.ImageFile | ArrayFile],
        names: Sequence[str],
        seeds: Sequence[int] | None = None,
        noise_std: Sequence[float] | None = None,
    ) -> list[Outcome]:
        """Restore images of one shape.

        Args:
            batch: measurements, or with ``--simulate`` clean images.
            names: their file names, which decide their random numbers.
            seeds, noise_std: of each image instead of the run's; not for simulated ones.
        """
        options = self._options
        bases = [options.seed] * len(names) if seeds is None else seeds
        pixels = torch.from_numpy(np.stack([image.pixels for image in batch]))
        plan = self._prepared(batch[0].pixels.shape, names)
        if options.simulate:
            y = degrade.simulate(plan.op, pixels, options.noise_std, names, options.seed)
        else:
            y = degrade.measured(plan.op, pixels)
        own = [derive_seed(base, "chain", name) for base, name in zip(bases, names, strict=True)]
        levels = None
        if noise_std is not None:
            levels = torch.tensor(noise_std, dtype=torch.float64, device=self._device) * degrade.own_unit(plan.op)
        estimate = self._estimate(plan, y.to(self._device), torch.tensor(own, device=self._device), levels)
        means = estimate.mean.cpu().numpy()
        measured = y.numpy()
        outcomes = []
        for index, (image, name) in enumerate(zip(batch, names, strict=True)):
            # Quality and panel are of what the file will hold.
            top = np.float32(2**image.depth - 1)
            restoration = images.quantise(means[index], image.depth).astype(np.float32) / top
            truth = image.pixels if options.simulate else None
            scored = restoration if truth is None else degrade.aligned(plan.op, restoration, truth)
            outcomes.append(
                Outcome(
                    measurement=degrade.picture(plan.op, measured[index], restoration.shape),
                    restoration=restoration,
                    scored=scored,
                    truth=truth,
                    ok=bool(estimate.ok[index]),
                    quality=None if truth is None else self._quality(plan, measured[index], scored, truth, name),
                    seeds={"base": bases[index], "chain": own[index]},
                    stats={**estimate.stats, "seconds_per_image": estimate.stats["seconds"] / len(names)},
                )
            )
        return outcomes

    def _estimate(self, plan: Plan, y: torch.Tensor, seeds: torch.Tensor, noise_std: torch.Tensor | None) -> Estimate:
        def run(own: torch.Tensor) -> Estimate:
            return plan.execute(y, seeds=own, noise_std=noise_std)

        return from_starts(plan.op, y, run, self._starts, seeds, low=0.0)

    def decided(self, batch_size: int) -> dict[str, Any]:
        """Every option of the command line with its value in this run, for a batch of that size."""
        options, task = self._options, self._task
        return {
            "operator": task.name,
            **{key: value for key, value in task.options.items() if key not in TASKS[task.name].fixed},
            "simulate": options.simulate,
            "prior": options.prior if options.prior in BUNDLED else pathlib.Path(options.prior),
            "noise_std": options.noise_std,
            "out": options.out,
            "presets": options.presets,
            "evaluations": options.evaluations,
            "flips": options.flips,
            # A preset is asked for by giving none of these.
            **{name: None if "looks" in self._chain else self._chain[name] for name in DEFAULTS},
            "seed": options.seed,
            "backend": self.settings["backend"],
            "batch_size": batch_size,
            "threads": torch.get_num_threads(),
            "tile": self._plan.prior.tile if self._plan and isinstance(self._plan.prior, Tiled) else options.tile,
            "compile": options.compile,
            "precision": options.precision,
            "format": options.format,
            "no_panel": options.no_panel,
            "force": True,
        }

    def _decide(self, backend: str) -> None:
        """Settle what decides the numbers of a restoration, besides its file: what a second run compares."""
        options, task = self._options, self._task
        self.settings = {
            "task": task.name,
            "operator": task.operator,
            "operator_options": task.deciding,
            "simulate": options.simulate,
            "noise_std": options.noise_std,
            "seed": options.seed,
            "prior": options.prior,
            "weights_sha256": record.weights_digest(options.prior),
            "evaluations": self._evaluations,
            "flips": options.flips,
            **self._chain,
            "backend": backend,
            # The command of the sidecar says what was decided; a second run must not depend on the memory of the day.
            "tile": None if self._tile == "auto" else self._tile,
            "compile": options.compile,
            "precision": options.precision,
            "format": options.format,
            "rmp_fast": record.version(),
        }
        self.settings_hash = record.settings_hash(self.settings)

    def _prepared(self, shape: tuple[int, ...], names: Sequence[str]) -> Plan:
        """The plan for files of a shape; the last one if it fits. Random masks are each image's own."""
        key = (len(names), shape, tuple(names) if self._task.name == "inpaint_random" else None)
        if self._plan is None or self._plan_key != key:
            self._plan = None  # frees its buffers before the next plan takes its own
            op = self._operator(shape, names)
            image_shape, options = self._image_shape(op, (len(names), *shape)), self._options
            self._plan = Plan(
                op,
                self._prior_for(image_shape),
                image_shape,
                options.noise_std * degrade.own_unit(op),
                **self._plan_options,
                backend=options.backend,
                device=self._device,
                data_range=(0.0, 1.0),
                compile=options.compile,
                precision=options.precision,
            )
            self._plan_key = key
        return self._plan

    def _operator(self, shape: tuple[int, ...], names: Sequence[str]) -> operators.Operator:
        build = degrade.build if self._options.simulate else degrade.build_for
        return build(self._task, names, shape, self._options.seed)

    def _prior_for(self, image_shape: tuple[int, ...]) -> Prior:
        """The prior, in tiles where they were asked for or one image needs more memory than there is."""
        tile = self._tile
        if tile == "auto":
            guidance = self._plan_options.get("guidance")
            tile = automatic_tile(self._prior, image_shape, self._device, guidance)
        return Tiled(self._prior, int(tile)) if tile else self._prior

    def _image_shape(self, op: operators.Operator, file_shape: tuple[int, ...]) -> tuple[int, ...]:
        return file_shape if self._options.simulate else degrade.image_shape(op, file_shape)

    def _quality(
        self, plan: Plan, y: NDArray[Any], restoration: NDArray[Any], truth: NDArray[Any], name: str
    ) -> dict[str, Any]:
        mask = None
        if self._task.operator == "inpainting":
            mask = degrade.mask_of(self._task, name, truth.shape, self._options.seed)
        label, before = degrade.baseline(plan.op, y, truth.shape, mask)
        before = np.clip(before, 0, 1)
        return {
            "baseline": {"name": label, "psnr": metrics.psnr(before, truth), "ssim": metrics.ssim(before, truth)},
            "restoration": {"psnr": metrics.psnr(restoration, truth), "ssim": metrics.ssim(restoration, truth)},
        }


def _tile(text: str) -> int | str | None:
    """``--tile`` as a side in pixels, ``"auto"`` or None."""
    if text in ("auto", "none"):
        return None if text == "none" else text
    if not text.isdigit():
        raise UsageError(f"`--tile` must be a number of pixels, none or auto, got {text!r}")
    try:
        return check_sizes(int(text))[0]
    except ValueError as error:
        raise UsageError(str(error)) from error
