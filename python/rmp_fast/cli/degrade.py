"""From settings to operators, simulated measurements and what a measurement looks like without any prior."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.interpolate import LinearNDInterpolator, NearestNDInterpolator
from scipy.spatial import QhullError
from skimage.transform import resize
from torch import Tensor

from .. import operators
from .tasks import Settings, derive_seed
from .usage import UsageError

__all__ = [
    "aligned",
    "baseline",
    "build",
    "build_for",
    "image_shape",
    "mask_of",
    "measured",
    "noise_to_prior_range",
    "own_unit",
    "picture",
    "simulate",
    "to_prior_range",
]


def build(settings: Settings, names: Sequence[str], image_shape: tuple[int, ...], seed: int) -> operators.Operator:
    """The operator of a batch.

    Args:
        settings: of the run.
        names: file names of the batch; each decides its own random mask.
        image_shape: (C, H, W) of the images.
        seed: of the run.
    """
    options = settings.options
    if settings.operator in ("mri", "phase_retrieval") and image_shape[0] != 1:
        raise UsageError(f"{names[0]}: {settings.name} takes grey pictures, got one in colour; convert it first")
    if settings.operator == "denoising":
        return operators.Denoising()
    if settings.operator == "inpainting":
        own = names if settings.name == "inpaint_random" else names[:1]
        return operators.Inpainting(torch.stack([mask_of(settings, name, image_shape, seed) for name in own]))
    if settings.operator == "super_resolution":
        return operators.SuperResolution(options["factor"], filter=options["filter"])
    if settings.operator == "gaussian_blur":
        return operators.GaussianBlur(options["blur_std"], boundary=options["boundary"])
    if settings.operator == "mri":
        return _mri(settings, names[0], image_shape, seed)
    if settings.operator == "phase_retrieval":
        return operators.PhaseRetrieval(options["oversampling"])
    if settings.operator == "nonlinear_blur":
        if settings.kernel is None:
            length = min(image_shape[1:]) / 20
            kernels = operators.camera_shake(seed, length, length / 3)
        else:
            kernels = torch.from_numpy(settings.kernel)
        return operators.NonlinearBlur(kernels, options["exposure"], options["gamma"])
    if settings.kernel is None:
        kernel = operators.motion_kernel(options["motion_length"], options["motion_angle"])
    else:
        kernel = torch.from_numpy(settings.kernel)
    return operators.Blur(kernel, boundary=options["boundary"])


def build_for(settings: Settings, names: Sequence[str], shape: tuple[int, ...], seed: int) -> operators.Operator:
    """The operator of measurements; see :func:`build`.

    Args:
        shape: of each: (C, h, w), of complex samples (2, H, W) or (2, N, H, W).

    Raises:
        UsageError: options that do not fit measurements of that shape.
    """
    if settings.operator != "mri":
        return build(settings, names, shape, seed)
    coils = None if settings.maps is None else len(settings.maps)
    if shape[1:-2] != (() if coils is None else (coils,)):
        need = "(H, W), or `--maps` must give its coils" if coils is None else f"({coils}, H, W), the coils of `--maps`"
        raise UsageError(f"{names[0]}: samples must have shape {need}, got {shape[1:]}")
    return build(settings, names, (1, *shape[-2:]), seed)


def image_shape(op: operators.Operator, measurement_shape: tuple[int, ...]) -> tuple[int, ...]:
    """(B, C, H, W) of the images that are restored from measurements: real ones, which priors know."""
    shape = tuple(op.image_shape(measurement_shape))
    return (shape[0], 1, *shape[2:]) if isinstance(op, operators.MRI) else shape


def _mri(settings: Settings, name: str, image_shape: tuple[int, ...], seed: int) -> operators.Operator:
    if settings.mask is None:
        mask = operators.cartesian_mask(image_shape[1:], settings.options["acceleration"], seed=seed)
    else:
        mask = mask_of(settings, name, image_shape, seed)[0]
    return operators.MRI(mask, None if settings.maps is None else torch.from_numpy(settings.maps))


def own_unit(op: operators.Operator) -> float:
    """How far white is from black in the unit of the operator's measurements and noise, for images on [0, 1]."""
    return 2.0 if isinstance(op, operators.NonlinearBlur) else 1.0


def simulate(op: operators.Operator, truths: Tensor, noise_std: float, names: Sequence[str], seed: int) -> Tensor:
    """y = A(x) + noise_std n for images (B, C, H, W) on [0, 1], the noise of every item by its own seed.

    Nonlinear operators take images on [-1, 1] and measure in their own unit.
    """
    y = op.A(truths) if op.linear else op.A(2 * truths - 1)
    noise_std = noise_std * own_unit(op)
    for item, name in zip(y, names, strict=True):
        noise = np.random.default_rng(derive_seed(seed, "noise", name)).standard_normal(item.shape, dtype=np.float32)
        item.add_(torch.from_numpy(noise), alpha=noise_std)
    return _observed(op, y)


def to_prior_range(op: operators.Operator, measured: Tensor, truths: Tensor) -> Tensor:
    """What :func:`simulate` measured on [0, 1], for images on [-1, 1]: A(2 x - 1) + 2 n where A is linear."""
    return 2 * measured - op.A(torch.ones_like(truths)) if op.linear else measured


def noise_to_prior_range(op: operators.Operator, noise_std: float) -> float:
    """The standard deviation of the noise in what :func:`to_prior_range` returns, for one on [0, 1]."""
    return noise_std * (2.0 if op.linear else own_unit(op))


def measured(op: operators.Operator, y: Tensor) -> Tensor:
    """The measurement that files (B, ...) hold, pictures on [0, 1], in the operator's unit."""
    return _observed(op, 2 * y - 1 if isinstance(op, operators.NonlinearBlur) else y)


def _observed(op: operators.Operator, y: Tensor) -> Tensor:
    """``y`` with zeros where a mask hides it, whatever a file or the noise has there."""
    if isinstance(op, operators.Inpainting):
        return op.A(y)
    return y * op.mask.to(y) if isinstance(op, operators.MRI) else y


def picture(op: operators.Operator, y: NDArray[Any], image_shape: tuple[int, ...]) -> NDArray[Any]:
    """A measurement as a picture (C, h, w) on [0, 1]: magnitudes by their logarithm, no larger than the image."""
    if isinstance(op, operators.NonlinearBlur):
        return (y + 1) / 2
    if not isinstance(op, operators.MRI | operators.PhaseRetrieval):
        return y
    if isinstance(op, operators.MRI):
        y = np.sqrt(np.square(y).sum(tuple(range(y.ndim - 2)), keepdims=True)).reshape(1, *y.shape[-2:])
    # Five orders of magnitude below the brightest are black.
    shown = 1 + np.log10(np.maximum(y / max(float(y.max()), 1e-30), 1e-5)) / 5
    if shown.shape[1:] != image_shape[1:]:
        shown = resize(shown, (shown.shape[0], *image_shape[1:]), order=1, anti_aliasing=True)
    return shown


def aligned(op: operators.Operator, image: NDArray[Any], truth: NDArray[Any]) -> NDArray[Any]:
    """Of the images on [0, 1] that phase retrieval cannot tell from ``image``, the nearest to ``truth``: for scores."""
    if not isinstance(op, operators.PhaseRetrieval):
        return image
    estimate, target = (torch.from_numpy(2 * values[None] - 1) for values in (image, truth))
    found: NDArray[Any] = (operators.align(estimate, target).image[0].numpy() + 1) / 2
    return found


def mask_of(settings: Settings, name: str, image_shape: tuple[int, ...], seed: int) -> Tensor:
    """The mask (1 or C, H, W) of one image, True = known: from the file, or made by the task.

    Raises:
        UsageError: the mask or the box does not fit the image.
    """
    channels, height, width = image_shape
    if settings.mask is not None:
        mask = settings.mask
        if mask.shape[1:] != (height, width) or mask.shape[0] not in (1, channels):
            expected = image_shape if mask.shape[0] > 1 else image_shape[1:]
            got = mask.shape if mask.shape[0] > 1 else mask.shape[1:]
            raise UsageError(f"`--mask` must have the size {expected} of {name}, got {got}")
        return torch.from_numpy(mask)
    if settings.name == "inpaint_random":
        mask_seed = derive_seed(seed, "mask", name)
        return operators.random_mask((1, height, width), settings.options["missing"], mask_seed)
    box = settings.options.get("box", max(1, min(height, width) // 4))
    if box > min(height, width) or box == height == width:
        raise UsageError(f"`--box` must be smaller than {name}, (H, W) = {(height, width)}, got {box}")
    return operators.box_mask((height, width), box)[None]


def baseline(
    op: operators.Operator, y: NDArray[Any], shape: tuple[int, ...], mask: Tensor | None
) -> tuple[str, NDArray[Any]]:
    """A restoration on [0, 1] without a prior, and its name: the measurement, filled or enlarged to the image's size.

    Args:
        op: the operator that measured it.
        y: measurement (C, h, w), or what :func:`simulate` makes.
        shape: (C, H, W) of the image.
        mask: bool (1 or C, H, W), True = known; None: everything is.
    """
    if isinstance(op, operators.SuperResolution):
        # Blocks begin at the corner and may reach beyond the image; a filter's samples span it.
        whole = [op.factor * n for n in y.shape[1:]] if op.filter == "average" else shape[1:]
        enlarged = resize(y, (y.shape[0], *whole), order=3, mode="edge", anti_aliasing=False)
        return "bicubic enlargement", enlarged[:, : shape[1], : shape[2]]
    if isinstance(op, operators.MRI):
        image = op.adjoint(torch.from_numpy(y[None]), (1, *shape))[0]
        coils = 1 if op.maps is None else op.maps.abs().square().sum(-3).clamp(min=1e-6)
        return "zero-filled", (image / coils).to(image).numpy()
    if isinstance(op, operators.PhaseRetrieval):
        # The magnitude at zero frequency is the sum of the image over the root of the padded size.
        middle = y[:, y.shape[1] // 2, y.shape[2] // 2] * np.sqrt(y.shape[1] * y.shape[2]) / (shape[1] * shape[2])
        return "mean brightness", np.broadcast_to(middle[:, None, None], shape).astype(y.dtype)
    if mask is None:
        return "measurement", picture(op, y, shape)
    known = np.broadcast_to(mask.numpy(), y.shape)
    filled = y.copy()
    for known_plane, out in zip(known, filled, strict=True):
        out[~known_plane] = _interpolated(out, known_plane)
    return "linear interpolation", filled


def _interpolated(plane: NDArray[Any], known: NDArray[np.bool_]) -> NDArray[Any]:
    """Values of the unknown pixels, linear between the known ones and that of the nearest outside their hull."""
    points, values, wanted = np.argwhere(known), plane[known], np.argwhere(~known)
    if not len(points):
        return np.zeros(len(wanted))
    result: NDArray[Any] = NearestNDInterpolator(points, values)(wanted)
    try:
        linear = LinearNDInterpolator(points, values)(wanted)
    except QhullError:  # the known pixels lie on one line
        return result
    return np.where(np.isnan(linear), result, linear)
