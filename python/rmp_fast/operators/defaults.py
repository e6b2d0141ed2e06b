"""Operators with the settings that a task's name stands for."""

from __future__ import annotations

from collections.abc import Sequence

from .._checks import check_choice
from .base import Operator, check_image_shape
from .camera import NonlinearBlur, camera_shake
from .mri import MRI, cartesian_mask
from .phase import PhaseRetrieval

__all__ = ["for_task"]

_TASKS = ("mri", "phase_retrieval", "nonlinear_deblur")


def for_task(task: str, image_shape: Sequence[int], seed: int = 0) -> Operator:
    """The operator of a task for images of one size.

    Args:
        task: ``"mri"``: one coil, a quarter of the columns, 8 % of them in the middle and the others random;
            ``"phase_retrieval"``: padded to twice the size; ``"nonlinear_deblur"``: a shake as long as 1/20 of the
            shorter side, turning by a third of that, at the exposure and response of :class:`NonlinearBlur`.
        image_shape: (B, C, H, W); for ``"mri"`` C is 2, or 1 for real images.
        seed: of the sampled columns or the camera's movement.

    Raises:
        ValueError: an unknown task, or a shape that the operator cannot take.
    """
    check_choice("task", task, _TASKS)
    *_, height, width = check_image_shape("image_shape", image_shape)
    op: Operator
    if task == "mri":
        op = MRI(cartesian_mask((height, width), seed=seed))
    elif task == "phase_retrieval":
        op = PhaseRetrieval()
    else:
        length = min(height, width) / 20
        op = NonlinearBlur(camera_shake(seed, length, length / 3))
    op.measurement_shape(image_shape)
    return op
