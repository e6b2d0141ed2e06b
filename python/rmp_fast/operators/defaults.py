"""Operators with the settings that a task's name stands for."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from .._checks import check_choice
from .base import Operator, check_image_shape
from .blur import Blur, GaussianBlur, motion_kernel
from .camera import NonlinearBlur, camera_shake
from .masks import Denoising, Inpainting, box_mask, random_mask
from .mri import MRI, cartesian_mask
from .phase import PhaseRetrieval
from .resampling import SuperResolution

__all__ = ["for_task"]

_TASKS = (
    "denoise", "inpaint_random", "inpaint_box", "sr4", "gaussian_deblur", "motion_deblur", "mri", "phase_retrieval",
    "nonlinear_deblur",
)  # fmt: skip


def for_task(task: str, image_shape: Sequence[int], seed: int = 0) -> Operator:
    """The operator of a task for images of one size, as ``rmp-fast compare`` simulates it unless told otherwise.

    Args:
        task: ``"denoise"``; ``"inpaint_random"``: 70 % of the pixels are missing, for every item others;
            ``"inpaint_box"``: a square in the middle is, a quarter of the shorter side wide; ``"sr4"``: averages of
            4 x 4 pixels; ``"gaussian_deblur"``: a standard deviation of 2 pixels, the edge reflected;
            ``"motion_deblur"``: 15 pixels at 45 degrees, circular; ``"mri"``: one coil, a quarter of the columns, 8 %
            of them in the middle and the others random; ``"phase_retrieval"``: padded to twice the size;
            ``"nonlinear_deblur"``: a shake as long as 1/20 of the shorter side, turning by a third of that, at the
            exposure and response of :class:`NonlinearBlur`.
        image_shape: (B, C, H, W); for ``"mri"`` C is 2, or 1 for real images.
        seed: of the missing pixels (of item k, ``seed + k``), the sampled columns or the camera's movement.

    Raises:
        ValueError: an unknown task, or a shape that the operator cannot take.
    """
    check_choice("task", task, _TASKS)
    batch, _, height, width = check_image_shape("image_shape", image_shape)
    shorter = min(height, width)
    made: dict[str, Callable[[], Operator]] = {
        "denoise": Denoising,
        "inpaint_random": lambda: Inpainting(
            torch.stack([random_mask((1, height, width), 0.7, seed + k) for k in range(batch)])
        ),
        "inpaint_box": lambda: Inpainting(box_mask((height, width), max(1, shorter // 4))),
        "sr4": lambda: SuperResolution(4),
        "gaussian_deblur": lambda: GaussianBlur(2.0),
        "motion_deblur": lambda: Blur(motion_kernel(15.0, 45.0)),
        "mri": lambda: MRI(cartesian_mask((height, width), seed=seed)),
        "phase_retrieval": PhaseRetrieval,
        "nonlinear_deblur": lambda: NonlinearBlur(camera_shake(seed, shorter / 20, shorter / 60)),
    }
    op = made[task]()
    op.measurement_shape(image_shape)
    return op
