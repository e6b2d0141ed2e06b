"""Priors made of a trained network."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import torch
from torch import Tensor, nn

from .._checks import check_choice, check_positive
from .base import Prior
from .files import file_metadata, fit, read_state, weights_path
from .unet import DenoiserUNet, UNetConfig

__all__ = ["BUNDLED", "DATA_VARIANCE", "NetworkPrior", "from_safetensors", "load", "metadata", "self_ensemble"]

_FOLDER = pathlib.Path(__file__).parent / "bundled"

#: Names of the priors that ship with the package.
BUNDLED = ("fashion", "photo")

#: Mirror images of a self-ensemble: the axes that are reversed, in the order in which they are taken.
_FLIPS: tuple[tuple[int, ...], ...] = ((), (-1,), (-2,), (-2, -1))

#: Variance per element of images on [-1, 1] where nothing says better: the square of sigma_data = 0.5 of EDM.
DATA_VARIANCE = 0.25


class NetworkPrior(Prior):
    """A prior from a network that maps (x, s) to D(x, s), for x (B, C, H, W) in float32 and s (B,).

    A network for colour images also takes grey ones, C = 1: they are shown to it as three equal channels, and the
    result is the mean over its three outputs.

    Args:
        network: a module, put into evaluation mode; it never gets gradients for its weights.
        channels: channels of the network's input; None: it takes any.
        data_variance: p, variance per element of clean images on [-1, 1].
        name: what messages and reports call it.
    """

    def __init__(self, network: nn.Module, channels: int | None, data_variance: float, name: str = "network") -> None:
        self.network = network.eval().requires_grad_(False)
        self.network_channels = channels
        if channels is not None:
            self.channels = (1, 3) if channels == 3 else (channels,)
        self.data_variance = check_positive("data_variance", data_variance)
        self.name = name

    def to(self, device: torch.device | str) -> NetworkPrior:
        """Move the network to ``device`` in place and return the prior."""
        self.network.to(device)
        return self

    def denoise(self, x: Tensor, s: Tensor) -> Tensor:
        """D(x, s) for x (B, C, H, W) and s (B,), computed in float32."""
        if x.shape[0] == 0:  # which many networks cannot reshape
            return x.clone(memory_format=torch.contiguous_format)
        channels = x.shape[1] if self.network_channels is None else self.network_channels
        grey = x.shape[1] != channels
        image = x.float()
        if grey:
            image = image.expand(-1, channels, -1, -1)
        out: Tensor = self.network(image, s.float())
        if grey:
            out = out.mean(1, keepdim=True)
        return out.to(x.dtype).contiguous()


class _SelfEnsemble(nn.Module):
    def __init__(self, network: nn.Module, flips: int) -> None:
        super().__init__()
        self.network, self.flips, self.transposed = network, _FLIPS[:flips], flips > len(_FLIPS)

    def forward(self, x: Tensor, s: Tensor) -> Tensor:
        result = self._mean(x, s)
        return (result + self._mean(x.mT, s).mT) / 2 if self.transposed else result

    def _mean(self, x: Tensor, s: Tensor) -> Tensor:
        mirrored = torch.cat([x.flip(axes) for axes in self.flips])
        parts = self.network(mirrored, s.repeat(len(self.flips))).chunk(len(self.flips))
        return torch.stack([part.flip(axes) for part, axes in zip(parts, self.flips, strict=True)]).mean(0)


def self_ensemble(prior: NetworkPrior, flips: int = 2) -> NetworkPrior:
    r"""The prior whose denoiser is the mean over mirror images, which share the errors of a network only in part:

    .. math:: \bar D(x, s) = \frac{1}{F} \sum_f f^{-1} D(f x, s)

    (Timofte et al., "Seven ways to improve example-based single image super resolution", CVPR 2016). For images that
    are as likely mirrored, such as photographs, not for those of writing. Presets of ``prior`` serve it too.

    Args:
        prior: of images (B, C, H, W); its weights are shared.
        flips: F, evaluations of the network that one of the result takes: 1, 2 (left and right exchanged), 4 (top and
            bottom too) or 8 (rows and columns too).

    Raises:
        TypeError: ``prior`` is none of a network.
        ValueError: another number of flips.
    """
    if not isinstance(prior, NetworkPrior):
        raise TypeError(f"`prior` must be a NetworkPrior, got {type(prior).__name__}")
    if flips not in (1, 2, 4, 8):
        raise ValueError(f"`flips` must be 1, 2, 4 or 8, got {flips!r}")
    if flips == 1:
        return prior
    network = _SelfEnsemble(prior.network, flips)
    ensemble = NetworkPrior(network, prior.network_channels, prior.data_variance, prior.name)
    ensemble.evaluations = flips * prior.evaluations
    return ensemble


def metadata(name: str) -> dict[str, str]:
    """What the weights file of a bundled prior says of itself: data with licences, recipe, training command."""
    check_choice("name", name, BUNDLED)
    return file_metadata(_FOLDER / f"{name}.safetensors")


def load(name: str) -> NetworkPrior:
    """Load a prior that ships with the package.

    Args:
        name: ``"photo"`` (colour and grey photographs of any size) or ``"fashion"`` (Fashion-MNIST, grey 32x32).

    Raises:
        ValueError: for any other name, with the nearest known ones.
        RuntimeError: if the weights file is missing or damaged.
    """
    check_choice("name", name, BUNDLED)
    path = _FOLDER / f"{name}.safetensors"
    try:
        return from_safetensors(path)
    except (OSError, ValueError) as error:
        raise RuntimeError(
            f"the weights of the prior {name!r} cannot be read from {path}: {error}; reinstall"
        ) from error


def from_safetensors(path: str | pathlib.Path) -> NetworkPrior:
    """A prior from a file that ``python -m rmp_fast.training`` wrote: weights, network and data variance.

    Args:
        path: the ``.safetensors`` file; its metadata hold ``config``, the fields of
            :class:`~rmp_fast.priors.unet.UNetConfig` as JSON, ``data_variance`` and ``name``.

    Raises:
        FileNotFoundError: no file.
        ValueError: a damaged file, one without these metadata, or weights that are not those of the network, with the
            first that are missing, unexpected or of another shape.
    """
    file = weights_path(path)
    info = file_metadata(file)
    try:
        held: dict[str, Any] = json.loads(info["config"])
        fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in held.items()}
        config = UNetConfig(**fields)
        variance = float(info["data_variance"])
    except (KeyError, TypeError, ValueError) as cause:
        raise ValueError(
            f"`path` {file} must have the metadata `config` and `data_variance` of python -m rmp_fast.training, "
            f"got {', '.join(sorted(info)) or 'none'} ({type(cause).__name__}: {cause})"
        ) from cause
    network = DenoiserUNet(config).float()  # whatever torch.set_default_dtype says
    fit(network, read_state(file), file)
    return NetworkPrior(network.channels_last(), config.channels, variance, info.get("name", file.name))
