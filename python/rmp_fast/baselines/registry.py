"""The table of the methods' names, and the one call that runs any of them."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from .._checks import check_choice
from ..operators import Operator
from ..plan import Estimate
from .base import Baseline, Denoiser, reconstruct_with
from .daps import DAPS
from .ddrm import DDRM
from .diffpir import DiffPIR
from .dps import DPS
from .pigdm import PiGDM
from .reddiff import REDDiff

__all__ = ["REGISTRY", "get", "make", "paper_settings", "reconstruct", "usable"]

REGISTRY: dict[str, type[Baseline]] = {method.name: method for method in (DPS, PiGDM, DDRM, DiffPIR, DAPS, REDDiff)}


def get(name: str) -> type[Baseline]:
    """The class of the method ``name``, whose fields are its settings; ValueError with the nearest names otherwise."""
    return REGISTRY[check_choice("name", name, REGISTRY)]


def make(name: str, *, evaluations: int | None = None, **settings: Any) -> Baseline:
    """The method ``name`` with its settings decided.

    Raises:
        ValueError: an unknown method or setting, with the nearest names, or a value out of range.
        TypeError: a setting of the wrong type.
    """
    method = get(name)
    known = [field.name for field in dataclasses.fields(method) if field.name != "evaluations"]
    for key in settings:
        check_choice(f"setting of {name!r}", key, known)
    return method(**settings) if evaluations is None else method(evaluations=evaluations, **settings)


def paper_settings(name: str, task: str) -> dict[str, Any]:
    """The authors' settings of the method ``name`` for a task, such as "sr4", where they differ from its defaults.

    A task that they did not treat has none.
    """
    return get(name).paper_settings(task)


def usable(op: Operator, shape: tuple[int, ...], device: torch.device, dtype: torch.dtype) -> list[str]:
    """The methods that can serve ``op`` on images of ``shape``."""
    return [name for name, method in REGISTRY.items() if method().check(op, shape, device, dtype) is None]


def reconstruct(
    name: str,
    y: Tensor,
    op: Operator,
    prior: Denoiser,
    noise_std: float | Tensor,
    *,
    evaluations: int | None = None,
    seeds: Tensor | None = None,
    samples: int = 1,
    shape: tuple[int, ...] | None = None,
    **settings: Any,
) -> Estimate:
    """Draw samples of p(x0 | y) with a published method and average them.

    Args:
        name: ``"dps"``, ``"pigdm"``, ``"ddrm"``, ``"diffpir"``, ``"daps"`` or ``"reddiff"``.
        y: measurements (B, ...) of images on [-1, 1], float32 or float64.
        op: the operator A of y = A(x0) + n; ``dps``, ``daps`` and ``reddiff`` need it differentiable, ``pigdm`` and
            ``diffpir`` linear, ``ddrm`` with a singular value decomposition.
        prior: anything with ``denoise(x, s)``.
        noise_std: standard deviation of n, on the range of ``y``: a number or a tensor (B,).
        evaluations: network evaluations of one sample; the authors' number unless given.
        seeds: (B,) int64, one per item, default 0 … B - 1. An item's samples depend on its own seed alone.
        samples: K, how many are averaged.
        shape: (B, ...) of the images; default: what the operator makes of the shape of ``y``.
        **settings: of the method: the fields of ``get(name)``.

    Returns:
        :class:`rmp_fast.Estimate`: ``mean``, the average of the samples; ``variance``, their unbiased sample variance
        where K > 1, an estimate of the posterior variance; ``ok``, False where an item is not finite (its neighbours
        are not touched); ``stats`` with ``evaluations`` and ``backward_evaluations`` per item over all samples,
        ``seconds`` and ``network_seconds``. An empty batch gives an empty estimate.

    Raises:
        TypeError, ValueError: before any work, for anything that does not fit; an operator that the method cannot serve
            is refused, naming the methods that can.
    """
    method = make(name, evaluations=evaluations, **settings)
    return reconstruct_with(method, y, op, prior, noise_std, seeds=seeds, samples=samples, shape=shape)
