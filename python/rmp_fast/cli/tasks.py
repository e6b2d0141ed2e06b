"""The operators and tasks that the command line knows, and the options that each of them takes."""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import hashlib
import pathlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import images
from .usage import UsageError

__all__ = ["FILES", "OPTIONS", "TASKS", "Settings", "Task", "as_kernel", "as_known", "as_maps", "check_single",
           "choice", "decide", "derive_seed", "load_array", "resolve"]  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Task:
    """A name of the command line.

    Attributes:
        operator: registered name of the operator.
        simulated: the options that it takes, with their values under ``--simulate`` when not given; None: no default.
        needed: of those, what must be given.
        needed_for_measurements: of those, what must be given without ``--simulate``; one of them is enough.
        fixed: settings that the name implies.
        arrays: whether measurements are .npy arrays, because they are no pictures.
    """

    operator: str
    simulated: dict[str, Any]
    needed: tuple[str, ...] = ()
    needed_for_measurements: tuple[str, ...] = ()
    fixed: dict[str, Any] = dataclasses.field(default_factory=dict)
    arrays: bool = False


_MASK = {"mask": None, "invert_mask": None}
_MOTION = {"kernel": None, "motion_length": 15.0, "motion_angle": 45.0, "boundary": "circular"}
TASKS = {
    "denoising": Task("denoising", {}),
    "denoise": Task("denoising", {}),
    "inpainting": Task("inpainting", _MASK, needed=("mask",)),
    "inpaint_random": Task("inpainting", {**_MASK, "missing": 0.7}, needed_for_measurements=("mask",)),
    "inpaint_box": Task("inpainting", {**_MASK, "box": None}, needed_for_measurements=("mask",)),
    "super_resolution": Task("super_resolution", {"factor": None, "filter": "average"}, needed=("factor",)),
    "sr4": Task("super_resolution", {"filter": "average"}, fixed={"factor": 4}),
    "gaussian_blur": Task("gaussian_blur", {"blur_std": None, "boundary": "reflect"}, needed=("blur_std",)),
    "gaussian_deblur": Task(
        "gaussian_blur", {"blur_std": 2.0, "boundary": "reflect"}, needed_for_measurements=("blur_std",)
    ),
    "blur": Task("blur", {"kernel": None, "boundary": "circular"}, needed=("kernel",)),
    "motion_deblur": Task("blur", _MOTION, needed_for_measurements=("kernel", "motion_length")),
    "mri": Task("mri", {**_MASK, "acceleration": 4.0, "maps": None}, needed_for_measurements=("mask",), arrays=True),
    "phase_retrieval": Task("phase_retrieval", {"oversampling": 2.0, "starts": 8}, arrays=True),
    "nonlinear_deblur": Task(
        "nonlinear_blur", {"kernel": None, "exposure": 1.25, "gamma": 2.2}, needed_for_measurements=("kernel",)
    ),
}
OPTIONS = ("mask", "invert_mask", "missing", "box", "factor", "filter", "blur_std", "kernel", "motion_length",
           "motion_angle", "boundary", "acceleration", "maps", "oversampling", "starts", "exposure",
           "gamma")  # fmt: skip
FILES = ("mask", "kernel", "maps")
BOUNDARIES = ("reflect", "replicate", "circular")
# No camera wraps around. Simulations of a general kernel do, because that has a closed form and no iterations.
BOUNDARY_OF_MEASUREMENTS = "reflect"
FILTERS = ("average", "bicubic")
FACTORS = (2, 4, 8)


@dataclasses.dataclass(frozen=True)
class Settings:
    """A task with all its options decided.

    Attributes:
        options: every option that applies, files as their paths.
        mask: (1 or C, H, W) bool, True = known, if it came from a file.
        kernel: (h, w), or for nonlinear blur (rows, columns, h, w), each of sum 1, if it came from a file.
        maps: (N, H, W) complex sensitivities of coils, if they came from a file.
        digests: SHA-256 of the option files.
    """

    name: str
    operator: str
    options: dict[str, Any]
    mask: NDArray[np.bool_] | None
    kernel: NDArray[np.float64] | None
    maps: NDArray[np.complex128] | None
    digests: dict[str, str]

    @property
    def deciding(self) -> dict[str, Any]:
        """The options, files by their SHA-256: what decides the numbers of a result."""
        return {key: self.digests.get(key, value) for key, value in self.options.items()}


def choice(flag: str, value: str, known: tuple[str, ...]) -> str:
    """``value`` if it is one of ``known``, else UsageError with the nearest names."""
    if value in known:
        return value
    near = difflib.get_close_matches(value, known, n=3, cutoff=0.5)
    hint = f"; did you mean {' or '.join(map(repr, near))}?" if near else ""
    raise UsageError(f"`{flag}` must be one of {', '.join(map(repr, known))}, got {value!r}{hint}")


def resolve(given: argparse.Namespace) -> Settings:
    """Decide the options of ``given.operator`` and read the files among them.

    Raises:
        UsageError: unknown names, options that do not apply or are missing or out of range, unreadable files.
    """
    if given.operator is None:
        raise UsageError(f"`--operator` must be given: how the images were degraded, one of {', '.join(TASKS)}")
    name = choice("--operator", given.operator, tuple(TASKS))
    values = {key: getattr(given, key) for key in OPTIONS}
    stated = {key: value for key, value in values.items() if value is not None and value is not False}
    options, operator = decide(name, stated, given.simulate), TASKS[name].operator
    mask = _read_mask(options["mask"], "invert_mask" in options) if "mask" in options else None
    kernel = _read_kernel(options["kernel"], operator == "nonlinear_blur") if "kernel" in options else None
    maps = _read_maps(options["maps"]) if "maps" in options else None
    digests: dict[str, str] = {
        key: hashlib.sha256(options[key].read_bytes()).hexdigest() for key in FILES if key in options
    }
    return Settings(name, operator, options, mask, kernel, maps, digests)


def decide(name: str, stated: dict[str, Any], simulate: bool) -> dict[str, Any]:
    """Every option that applies to the task ``name``, from those that were stated; files are passed through unread.

    Raises:
        UsageError: options that do not apply, exclude each other, are missing or out of range.
    """
    task = TASKS[name]
    for key in stated:
        if key not in task.simulated:
            users = ", ".join(n for n, t in TASKS.items() if key in t.simulated)
            raise UsageError(f"`{_flag(key)}` does not apply to {name}; it applies to {users}")
    for key in task.needed:
        if key not in stated:
            raise UsageError(f"`{_flag(key)}` must be given for {name}")
    alternatives = () if simulate else task.needed_for_measurements
    if alternatives and not any(key in stated for key in alternatives):
        flags = " or ".join(f"`{_flag(key)}`" for key in alternatives)
        raise UsageError(f"{flags} must be given for {name} of a measurement; only --simulate has a default")
    for key, others in (
        ("mask", ("missing", "box", "acceleration")),
        ("kernel", ("motion_length", "motion_angle")),
    ):
        for other in others:
            if key in stated and other in stated:
                raise UsageError(f"`{_flag(key)}` and `{_flag(other)}` exclude each other")
    if "invert_mask" in stated and "mask" not in stated:
        raise UsageError("`--invert-mask` needs `--mask`")
    measured = {} if simulate or "boundary" not in task.simulated else {"boundary": BOUNDARY_OF_MEASUREMENTS}
    options = {**task.simulated, **measured, **task.fixed, **stated}
    if "mask" in stated:
        options.pop("missing", None)
        options.pop("box", None)
        options.pop("acceleration", None)
    if "kernel" in stated:
        options.pop("motion_length", None)
        options.pop("motion_angle", None)
    options = {key: value for key, value in options.items() if value is not None}
    _check_values(options)
    return options


def derive_seed(seed: int, purpose: str, name: str) -> int:
    """A seed on [0, 2^63) that depends on the run's seed, its purpose and the file's name, not on other files."""
    digest = hashlib.sha256(f"{seed}/{purpose}/{name}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def _check_values(options: dict[str, Any]) -> None:
    if "boundary" in options:
        choice("--boundary", options["boundary"], BOUNDARIES)
    if "filter" in options:
        choice("--filter", options["filter"], FILTERS)
    if "factor" in options and options["factor"] not in FACTORS:
        raise UsageError(f"`--factor` must be one of {', '.join(map(str, FACTORS))}, got {options['factor']}")
    if "missing" in options and not 0 <= options["missing"] < 1:
        raise UsageError(f"`--missing` must be a share on [0, 1), got {options['missing']}")
    for key in ("box", "blur_std", "exposure", "gamma"):
        if key in options and not 0 < options[key] < float("inf"):
            raise UsageError(f"`{_flag(key)}` must be a number > 0, got {options[key]}")
    for key, unit in (("motion_length", " pixel"), ("acceleration", ""), ("oversampling", ""), ("starts", "")):
        if key in options and not 1 <= options[key] < float("inf"):
            raise UsageError(f"`{_flag(key)}` must be at least 1{unit}, got {options[key]}")
    if "motion_angle" in options and not abs(options["motion_angle"]) < float("inf"):
        raise UsageError(f"`--motion-angle` must be a finite number, got {options['motion_angle']}")


def as_known(values: NDArray[Any], numbers: bool, invert: bool, label: str) -> NDArray[np.bool_]:
    """The mask (1 or C, H, W), True = known, that an array or a picture holds.

    Args:
        values: (H, W) or (C, H, W).
        numbers: an array, where all but 0 is known; else a picture on [0, 1], where white is.
        invert: 0 or black is known instead.
        label: what messages call it.

    Raises:
        UsageError: another shape, or nothing known.
    """
    if values.ndim == 2:
        values = values[None]
    if values.ndim != 3 or values.shape[0] not in (1, 3):
        raise UsageError(f"{label} must have shape (H, W) or (C, H, W), got {values.shape}")
    known = values > 0 if numbers else values.mean(0, keepdims=True) >= 0.5
    known = ~known if invert else known
    if not known.any():
        raise UsageError(f"{label} marks no pixel as known (white); if black means known, add --invert-mask")
    return known


def as_kernel(values: NDArray[Any], label: str, varies: bool = False) -> NDArray[np.float64]:
    """The blur kernel (h, w) of sum 1 that an array or a picture holds; where it ``varies``, also a grid of them.

    Raises:
        UsageError: another shape, or a sum that cannot be scaled to 1.
    """
    values = values.astype(np.float64)
    if values.ndim == 3:
        values = values.mean(0)
    if values.ndim not in ((2, 4) if varies else (2,)) or values.size == 0:
        expected = "(h, w) or (rows, columns, h, w)" if varies else "(h, w)"
        raise UsageError(f"{label} must have shape {expected}, got {values.shape}")
    total = values.sum((-2, -1), keepdims=True)
    if not (total > 0).all():
        raise UsageError(f"{label} must have a positive sum, got {total.min():g}")
    scaled: NDArray[np.float64] = values / total
    return scaled


def as_maps(values: NDArray[Any], label: str) -> NDArray[np.complex128]:
    """The sensitivities (N, H, W) of N coils that an array holds.

    Raises:
        UsageError: real numbers, another number of axes, or numbers that float32 does not have.
    """
    if values.ndim != 3 or not np.iscomplexobj(values):
        raise UsageError(f"{label} must be complex of shape (coils, H, W), got {values.dtype} {values.shape}")
    check_single(values, label)
    return values.astype(np.complex128)


def check_single(values: NDArray[Any], label: str) -> None:
    """UsageError unless float32 has the numbers of an array, real and imaginary parts."""
    top = max((float(np.abs(part).max()) for part in (values.real, values.imag) if part.size), default=0.0)
    if not top <= float(np.finfo(np.float32).max):
        raise UsageError(f"{label} must hold numbers of float32, got up to {top:g}")


def _read_maps(path: pathlib.Path) -> NDArray[np.complex128]:
    return as_maps(load_array(path, "--maps"), f"`--maps` {path}")


def _read_mask(path: pathlib.Path, invert: bool) -> NDArray[np.bool_]:
    values = _read_array("--mask", path)
    return as_known(values, path.suffix.lower() == ".npy", invert, f"`--mask` {path}")


def _read_kernel(path: pathlib.Path, varies: bool) -> NDArray[np.float64]:
    return as_kernel(_read_array("--kernel", path), f"`--kernel` {path}", varies)


def _read_array(flag: str, path: pathlib.Path) -> NDArray[Any]:
    """A .npy file as float64, or an image (C, H, W) on [0, 1]."""
    if path.is_file() and path.suffix.lower() != ".npy":
        try:
            return images.read(path).pixels
        except images.ImageError as error:
            raise UsageError(f"`{flag}` {error}") from error
    values = load_array(path, flag)
    if np.iscomplexobj(values):
        raise UsageError(f"`{flag}` {path} must be real, got {values.dtype}")
    return values


def load_array(path: pathlib.Path, flag: str) -> NDArray[Any]:
    """The numbers of a .npy file as float64 or complex128; UsageError naming ``flag`` where there are none."""
    if not path.is_file():
        raise UsageError(f"`{flag}` {path} does not exist")
    try:
        values = np.asarray(np.load(path, allow_pickle=False))
        values = values.astype(np.complex128 if np.iscomplexobj(values) else np.float64)
    except Exception as cause:  # numpy parses headers with all that Python has, each part with exceptions of its own
        raise UsageError(f"`{flag}` {path}: cannot be read as an array of numbers: {cause}") from cause
    if not np.isfinite(values).all():
        raise UsageError(f"`{flag}` {path} must be finite, got NaN or infinity")
    return values


def _flag(key: str) -> str:
    return "--" + key.replace("_", "-")
