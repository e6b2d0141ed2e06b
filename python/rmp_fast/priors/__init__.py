"""Priors: distributions of clean images, known through their denoisers."""

from .base import Prior, from_denoiser
from .foreign import from_deepinv, from_diffusers, from_edm, from_guided_diffusion
from .foreign import open_prior as open
from .gaussian import Gaussian, GaussianMixture
from .network import BUNDLED, DATA_VARIANCE, NetworkPrior, from_safetensors, load, metadata, self_ensemble

__all__ = [
    "BUNDLED",
    "DATA_VARIANCE",
    "Gaussian",
    "GaussianMixture",
    "NetworkPrior",
    "Prior",
    "from_deepinv",
    "from_denoiser",
    "from_diffusers",
    "from_edm",
    "from_guided_diffusion",
    "from_safetensors",
    "load",
    "metadata",
    "open",
    "self_ensemble",
]
