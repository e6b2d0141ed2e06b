"""From the fields and files of a request to a job: everything that can be refused is refused here."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .. import images, operators, presets
from .._checks import check_choice
from ..cli import degrade, record, tasks
from ..cli.arrays import ArrayFile, as_measurement
from ..cli.prior import strength
from ..cli.tasks import TASKS, Settings, as_kernel, as_known, as_maps, decide
from ..cli.usage import UsageError
from ..priors import Prior
from . import decode
from .config import OPERATORS, OPTIONS, Config
from .refusals import invalid, too_large

__all__ = ["FIELDS", "FILES", "FORMATS", "Job", "in_fields", "parse", "settings_of"]

FILES = ("image", *tasks.FILES)
FIELDS = ("operator", "noise_std", "seed", "evaluations", "prior", "format", "deadline", "alone",
          *(name for name in OPTIONS if name not in FILES))  # fmt: skip
FORMATS = {"png": "image/png", "jpeg": "image/jpeg", "npy": "application/x-npy"}
_NUMBERS = ("missing", "blur_std", "motion_length", "motion_angle", "acceleration", "oversampling", "exposure", "gamma")
_COUNTS = ("box", "factor", "starts")
_MOST_NOISE = 10.0
# Far beyond any camera, and what float32 still computes.
_RANGES = {"exposure": (0.01, 100.0), "gamma": (0.1, 10.0)}


@dataclasses.dataclass(frozen=True)
class Job:
    """A request that will be carried out.

    Attributes:
        y: float32 measurement in the unit of ``op``, zero where a mask hides it: (C, h, w), black 0 and white 1, of
            a nonlinear blur -1 and 1, of phase retrieval magnitudes; of MRI (2, H, W), or (2, N, H, W) of N coils.
        op: operator of a batch of one.
        task: name and options of the operator.
        shape: (C, H, W) of the restored image.
        noise_std: standard deviation of the noise, for images on [0, 1]; ``degrade.own_unit`` makes it that of ``y``.
        seed: of the chain, on [0, 2^63).
        evaluations: most network evaluations.
        prior: name of the prior.
        preset: evaluations of the preset that it takes, None for the untuned chain.
        alone: whether it must run in a batch of its own.
        deadline: seconds from its arrival.
        file_format, depth, icc_profile: of the answer.
        notes: what was left out or converted when the image was read.
    """

    y: Tensor
    op: operators.Operator
    task: Settings
    shape: tuple[int, int, int]
    noise_std: float
    seed: int
    evaluations: int
    prior: str
    preset: int | None
    alone: bool
    deadline: float
    file_format: str
    depth: int
    icc_profile: bytes | None
    notes: tuple[str, ...]

    @property
    def pixels(self) -> int:
        """H times W of the restored image, or of all coils or the larger spectrum that were measured of it."""
        return max(self.shape[1] * self.shape[2], self.y.numel() // len(self.y))

    @property
    def key(self) -> Hashable:
        """What jobs of one batch must share; noise levels are each item's own, and masks of inpainting."""
        options = tuple(sorted(self.task.deciding.items()))
        if isinstance(self.op, operators.Inpainting):
            options = (("mask_channels", self.op.mask.shape[-3]),)
        return self.task.name, options, self.prior, self.evaluations, self.preset, self.shape


def parse(
    fields: Mapping[str, str], files: Mapping[str, bytes], config: Config, priors: Mapping[str, Prior]
) -> Job:  # fmt: skip
    """Decide everything about a request.

    Args:
        fields: of the form, by name; ``operator`` and ``noise_std`` must be there.
        files: what was uploaded, by name; ``image`` must be there.
        config, priors: of the service.

    Raises:
        RequestError: with the field and what to do.
    """
    try:
        return _parse(fields, files, config, priors)
    except UsageError as error:
        raise invalid(in_fields(str(error))) from error
    except (TypeError, ValueError) as error:  # an operator's or a prior's own refusal of this shape
        raise invalid(str(error)) from error


def _parse(
    fields: Mapping[str, str], files: Mapping[str, bytes], config: Config, priors: Mapping[str, Prior]
) -> Job:  # fmt: skip
    for name in fields:
        if name in FILES:
            raise invalid(f"`{name}` must be sent as a file, got a field; with curl: -F {name}=@FILE", 400)
        check_choice("field", name, FIELDS)
    for name in files:
        check_choice("file", name, FILES)
    check_choice("operator", _needed(fields, "operator"), OPERATORS)
    noise_std = _number("noise_std", _needed(fields, "noise_std"), 0.0, _MOST_NOISE)
    seed = _count("seed", fields.get("seed", "0"), 0, 2**63 - 1)
    evaluations = _count(
        "evaluations", fields.get("evaluations", str(config.evaluations[0])), 1, max(config.evaluations)
    )
    if evaluations not in config.evaluations:
        offered = ", ".join(map(str, config.evaluations))
        raise invalid(f"`evaluations` must be one of {offered}, got {evaluations}")
    prior = check_choice("prior", fields.get("prior", config.priors[0]), config.priors)
    file_format = check_choice("format", fields.get("format", "png"), FORMATS)
    deadline = _number("deadline", fields.get("deadline", str(config.deadline)), 0.0, config.longest_deadline)
    alone = _flag("alone", fields.get("alone", "false"))
    if "image" not in files:
        kinds = "a .npy file" if TASKS[fields["operator"]].arrays else "a PNG, JPEG or .npy file"
        raise invalid(f"`image` must be given: the measurement, {kinds}")
    task = settings_of(fields, files, config)
    image = _measurement(files["image"], task, noise_std, config)

    op = degrade.build_for(task, ["`image`"], image.pixels.shape, seed)
    shape = degrade.image_shape(op, (1, *image.pixels.shape))
    priors[prior].check_image_shape(shape)
    if shape[2] * shape[3] > config.max_pixels:
        raise too_large(
            f"the restored image must have at most {config.max_pixels} pixels, got (H, W) = {tuple(shape[2:])}"
        )
    y = degrade.measured(op, torch.from_numpy(image.pixels)[None])[0]
    preset = presets.tuned(task.name, priors[prior], evaluations, config.tables.get(prior), strength(task, noise_std))
    return Job(
        y=y, op=op, task=task, shape=(shape[1], shape[2], shape[3]), noise_std=noise_std, seed=seed,
        evaluations=evaluations, prior=prior, preset=preset, alone=alone, deadline=deadline, file_format=file_format,
        depth=image.depth, icc_profile=image.icc_profile, notes=image.notes,
    )  # fmt: skip


def settings_of(fields: Mapping[str, str], files: Mapping[str, bytes], config: Config) -> Settings:
    """The operator's options, by the rules of the command line.

    Raises:
        RequestError, UsageError, ValueError: options that do not apply, are missing, or out of range.
    """
    operator = check_choice("operator", _needed(fields, "operator"), OPERATORS)
    stated: dict[str, Any] = {}
    for name in OPTIONS:
        if name in files:
            stated[name] = "upload"
        elif name not in fields:
            continue
        elif name == "invert_mask":
            if _flag(name, fields[name]):
                stated[name] = True
        elif name in _COUNTS:
            stated[name] = _count(name, fields[name], 1, 2**16)
        elif name in _NUMBERS:
            stated[name] = _number(name, fields[name], -math.inf, math.inf)
        else:
            stated[name] = fields[name]
    options = decide(operator, stated, simulate=False)
    longest = config.max_kernel
    if options.get("motion_length", 1) > longest:
        raise invalid(f"`motion_length` must be at most {longest} pixels, got {options['motion_length']:g}")
    if 8 * options.get("blur_std", 0) > longest:
        raise invalid(f"`blur_std` must be at most {longest / 8:g} pixels, got {options['blur_std']:g}")
    if options.get("starts", 1) > config.max_starts:
        raise invalid(f"`starts` must be at most {config.max_starts}, got {options['starts']}")
    for name, (low, high) in _RANGES.items():
        if not low <= options.get(name, low) <= high:
            raise invalid(f"`{name}` must be a number on [{low:g}, {high:g}], got {options[name]:g}")
    mask = kernel = maps = None
    digests: dict[str, str] = {name: record.digest(files[name]) for name in tasks.FILES if name in options}
    if "mask" in options:
        values, numbers = _array("mask", files["mask"], config.max_pixels)
        mask = as_known(values, numbers, "invert_mask" in options, "`mask`")
    if "kernel" in options:
        varies = TASKS[operator].operator == "nonlinear_blur"
        allowed = decode.Numbers((config.max_kernels, "kernels"), axes=4) if varies else decode.PLANES
        kernel = as_kernel(_array("kernel", files["kernel"], longest**2, allowed)[0], "`kernel`", varies)
        if max(kernel.shape[-2:]) > longest:
            raise too_large(f"`kernel` must have at most {longest} pixels a side, got {kernel.shape}")
    if "maps" in options:
        maps = as_maps(_samples("maps", files["maps"], config), "`maps`")
        if max(maps.shape[-2:]) > config.max_coil_side:
            raise too_large(f"`maps` must have at most {config.max_coil_side} pixels a side, got {maps.shape}")
    return Settings(operator, TASKS[operator].operator, options, mask, kernel, maps, digests)


def _measurement(data: bytes, task: Settings, noise_std: float, config: Config) -> images.ImageFile | ArrayFile:
    """What the operator measured, and how its restoration is to be written."""
    if TASKS[task.name].arrays:
        numbers = _samples if task.operator == "mri" else _magnitudes
        return ArrayFile(as_measurement(numbers("image", data, config), task.operator, "`image`"))
    if not decode.is_array("image", data):
        return decode.picture("image", data, config.max_pixels)
    values = decode.array("image", data, config.max_pixels)
    if values.dtype.kind != "f":
        raise invalid(f"`image` must hold floats on [0, 1], got {values.dtype}; divide by its white and send float32")
    if values.ndim == 1:
        raise invalid(f"`image` must have shape (H, W) or (C, H, W), got {values.shape}")
    pixels = np.ascontiguousarray(values.reshape(-1, *values.shape[-2:]))
    if pixels.shape[0] not in (1, 3):
        raise invalid(f"`image` must have shape (H, W) or (C, H, W) with C = 1 or 3, got {values.shape}")
    # Noise may leave [0, 1], levels of another unit do so by far.
    low, high = float(pixels.min()), float(pixels.max())
    slack = 1 + 10 * noise_std
    if low < -slack or high > 1 + slack:
        raise invalid(
            f"`image` must lie on [0, 1] but for noise, black 0 and white 1, got values from {low:g} to {high:g}"
        )
    return ArrayFile(pixels.astype(np.float32), depth=8)


def _samples(name: str, data: bytes, config: Config) -> NDArray[Any]:
    """What coils sampled, or see."""
    return _numbers(name, data, config, decode.Numbers((config.max_coils, "coils"), complex=True))


def _magnitudes(name: str, data: bytes, config: Config) -> NDArray[Any]:
    return _numbers(name, data, config, decode.PLANES)


def _numbers(name: str, data: bytes, config: Config, allowed: decode.Numbers) -> NDArray[Any]:
    """An array that is no picture."""
    decode.is_array(name, data, pictures=False)
    return decode.array(name, data, config.max_pixels, allowed)


def _array(
    name: str, data: bytes, max_pixels: int, allowed: decode.Numbers = decode.PLANES
) -> tuple[NDArray[Any], bool]:
    """A mask's or kernel's values, and whether they are an array's own."""
    if decode.is_array(name, data):
        return decode.array(name, data, max_pixels, allowed), True
    return decode.picture(name, data, max_pixels).pixels, False


def _needed(fields: Mapping[str, str], name: str) -> str:
    if name in fields:
        return fields[name]
    what = {
        "operator": f"how the image was degraded, one of {', '.join(OPERATORS)}",
        "noise_std": "the standard deviation of the measurement noise, where black is 0 and white 1",
    }
    raise invalid(f"`{name}` must be given: {what[name]}")


def _number(name: str, text: str, low: float, high: float) -> float:
    try:
        value = float(text)
    except ValueError:
        raise invalid(f"`{name}` must be a number, got {text[:40]!r}") from None
    if not math.isfinite(value) or not low <= value <= high:
        between = f" on [{low:g}, {high:g}]" if math.isfinite(high) else ""
        raise invalid(f"`{name}` must be a finite number{between}, got {text[:40]!r}")
    return value


def _count(name: str, text: str, low: int, high: int) -> int:
    # Python would also take underscores, blanks and the digits of every script.
    if not re.fullmatch(r"-?[0-9]{1,20}", text):
        raise invalid(f"`{name}` must be a whole number, got {text[:40]!r}")
    value = int(text)
    if not low <= value <= high:
        raise invalid(f"`{name}` must be a whole number from {low} to {high}, got {text}")
    return value


def _flag(name: str, text: str) -> bool:
    if text.lower() not in ("true", "1", "false", "0"):
        raise invalid(f"`{name}` must be true or false, got {text[:40]!r}")
    return text.lower() in ("true", "1")


def in_fields(message: str) -> str:
    """A refusal of the command line in the words of a form: fields for flags, and nothing of simulations."""
    message = message.partition("; only --simulate")[0]
    return re.sub(r"--([a-z][a-z-]*)", lambda flag: flag.group(1).replace("-", "_"), message)
