"""Measurement operators y = A(x) + n, and the table of their names."""

from __future__ import annotations

from .._checks import check_choice
from .base import LinearOperator, Operator
from .blur import Blur, GaussianBlur, as_kernel, motion_kernel
from .camera import NonlinearBlur, camera_shake
from .conjugate_gradients import Solution, conjugate_gradients
from .defaults import for_task
from .dense import CompressedSensing
from .forms import Blocks, Form, Iterative, Pointwise, Spectral, condition
from .function import Function, LinearFunction, from_callable
from .linearised import Linearised
from .masks import Denoising, Inpainting, box_mask, random_mask
from .mri import MRI, cartesian_mask, coil_maps
from .phase import Alignment, PhaseRetrieval, align
from .physics import LinearPhysics, Physics, from_deepinv
from .resampling import SuperResolution
from .starts import BestOfStarts, best_of_starts

__all__ = [
    "MRI",
    "REGISTRY",
    "Alignment",
    "BestOfStarts",
    "Blocks",
    "Blur",
    "CompressedSensing",
    "Denoising",
    "Form",
    "Function",
    "GaussianBlur",
    "Inpainting",
    "Iterative",
    "LinearFunction",
    "LinearOperator",
    "LinearPhysics",
    "Linearised",
    "NonlinearBlur",
    "Operator",
    "PhaseRetrieval",
    "Physics",
    "Pointwise",
    "Solution",
    "Spectral",
    "SuperResolution",
    "align",
    "as_kernel",
    "best_of_starts",
    "box_mask",
    "camera_shake",
    "cartesian_mask",
    "coil_maps",
    "condition",
    "conjugate_gradients",
    "for_task",
    "from_callable",
    "from_deepinv",
    "get",
    "motion_kernel",
    "random_mask",
]

REGISTRY: dict[str, type[Operator]] = {
    operator.name: operator
    for operator in (
        Denoising, Inpainting, SuperResolution, GaussianBlur, Blur, CompressedSensing, MRI, PhaseRetrieval,
        NonlinearBlur, LinearFunction, Function, Linearised,
    )
}  # fmt: skip


def get(name: str) -> type[Operator]:
    """The operator class registered under ``name``, or ValueError with the nearest names."""
    return REGISTRY[check_choice("operator", name, REGISTRY)]
