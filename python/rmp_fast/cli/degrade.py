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

__all__ = ["baseline", "build", "mask_of", "observed", "simulate"]


def build(settings: Settings, names: Sequence[str], image_shape: tuple[int, ...], seed: int) -> operators.Operator:
    """The operator of a batch.

    Args:
        settings: of the run.
        names: file names of the batch; each decides its own random mask.
        image_shape: (C, H, W) of the images.
        seed: of the run.
    """
    options = settings.options
    if settings.operator == "denoising":
        return operators.Denoising()
    if settings.operator == "inpainting":
        own = names if settings.name == "inpaint_random" else names[:1]
        return operators.Inpainting(torch.stack([mask_of(settings, name, image_shape, seed) for name in own]))
    if settings.operator == "super_resolution":
        return operators.SuperResolution(options["factor"], filter=options["filter"])
    if settings.operator == "gaussian_blur":
        return operators.GaussianBlur(options["blur_std"], boundary=options["boundary"])
    if settings.kernel is None:
        kernel = operators.motion_kernel(options["motion_length"], options["motion_angle"])
    else:
        kernel = torch.from_numpy(settings.kernel)
    return operators.Blur(kernel, boundary=options["boundary"])


def simulate(op: operators.Operator, truths: Tensor, noise_std: float, names: Sequence[str], seed: int) -> Tensor:
    """y = A(x) + noise_std n for images (B, C, H, W) on [0, 1], the noise of every item by its own seed."""
    y = op.A(truths)
    for item, name in zip(y, names, strict=True):
        noise = np.random.default_rng(derive_seed(seed, "noise", name)).standard_normal(item.shape, dtype=np.float32)
        item.add_(torch.from_numpy(noise), alpha=noise_std)
    return observed(op, y)


def observed(op: operators.Operator, y: Tensor) -> Tensor:
    """``y`` with zeros where a mask hides it, whatever a file or the noise has there."""
    return op.A(y) if isinstance(op, operators.Inpainting) else y


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
    settings: Settings, y: NDArray[Any], shape: tuple[int, ...], mask: Tensor | None
) -> tuple[str, NDArray[Any]]:
    """A restoration that needs no prior, and its name: the measurement, filled or enlarged to the image's size.

    Args:
        y: measurement (C, h, w).
        shape: (C, H, W) of the image.
        mask: bool (1 or C, H, W), True = known; None: everything is.
    """
    if settings.operator == "super_resolution":
        enlarged = resize(y, (y.shape[0], *shape[1:]), order=3, mode="edge", anti_aliasing=False)
        return "bicubic enlargement", enlarged
    if mask is None:
        return "measurement", y
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
