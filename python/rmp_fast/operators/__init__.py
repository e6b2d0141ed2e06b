"""Measurement operators y = A(x) + n, and the table of their names."""

from __future__ import annotations

from .._checks import check_choice
from .base import Operator
from .blur import Blur, GaussianBlur, as_kernel, motion_kernel
from .conjugate_gradients import Solution, conjugate_gradients
from .dense import CompressedSensing
from .forms import Blocks, Form, Iterative, Pointwise, Spectral, condition
from .masks import Denoising, Inpainting, box_mask, random_mask
from .resampling import SuperResolution

__all__ = [
    "REGISTRY",
    "Blocks",
    "Blur",
    "CompressedSensing",
    "Denoising",
    "Form",
    "GaussianBlur",
    "Inpainting",
    "Iterative",
    "Operator",
    "Pointwise",
    "Solution",
    "Spectral",
    "SuperResolution",
    "as_kernel",
    "box_mask",
    "condition",
    "conjugate_gradients",
    "get",
    "motion_kernel",
    "random_mask",
]

REGISTRY: dict[str, type[Operator]] = {
    operator.name: operator
    for operator in (Denoising, Inpainting, SuperResolution, GaussianBlur, Blur, CompressedSensing)
}


def get(name: str) -> type[Operator]:
    """The operator class registered under ``name``, or ValueError with the nearest names."""
    return REGISTRY[check_choice("operator", name, REGISTRY)]
