"""Priors: distributions of clean images, known through their denoisers."""

from .base import Prior, from_denoiser
from .gaussian import Gaussian, GaussianMixture
from .network import BUNDLED, NetworkPrior, load, metadata

__all__ = ["BUNDLED", "Gaussian", "GaussianMixture", "NetworkPrior", "Prior", "from_denoiser", "load", "metadata"]
