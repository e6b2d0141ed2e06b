"""The samplers that reverse mean propagation is compared with, on the same operators and priors.

>>> estimate = rmp.baselines.reconstruct("ddrm", y, op, prior, noise_std=0.05, evaluations=20)
>>> average = rmp.baselines.reconstruct("ddrm", y, op, prior, noise_std=0.05, evaluations=100, samples=64)

All of them run in noise-level coordinates: where a paper states a variance-preserving state (DDPM),
sqrt(abar) x0 + sqrt(1 - abar) z, the state is that divided by sqrt(abar): x0 + s z with s = sqrt((1 - abar) / abar).
Step sizes and weights are converted with it, so that the authors' settings mean here what they mean there.
"""

from __future__ import annotations

from .base import Baseline, Run, reconstruct_with
from .daps import DAPS
from .ddrm import DDRM
from .diffpir import DiffPIR
from .dps import DPS
from .pigdm import PiGDM
from .reddiff import REDDiff
from .registry import REGISTRY, get, make, paper_settings, reconstruct, usable

__all__ = [
    "DAPS",
    "DDRM",
    "DPS",
    "REGISTRY",
    "Baseline",
    "DiffPIR",
    "PiGDM",
    "REDDiff",
    "Run",
    "get",
    "make",
    "paper_settings",
    "reconstruct",
    "reconstruct_with",
    "usable",
]
