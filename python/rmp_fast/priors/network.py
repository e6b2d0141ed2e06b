"""Priors made of a trained network."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from .._checks import check_choice, check_positive
from .base import Prior
from .unet import DenoiserUNet, UNetConfig

__all__ = ["BUNDLED", "NetworkPrior", "load", "metadata"]

_FOLDER = pathlib.Path(__file__).parent / "bundled"

#: Names of the priors that ship with the package.
BUNDLED = ("fashion", "photo")


class NetworkPrior(Prior):
    """A prior from a network that maps (x, s) to D(x, s), for x (B, C, H, W) in float32 and s (B,).

    A network for colour images also takes grey ones, C = 1: they are shown to it as three equal channels, and the
    result is the mean over its three outputs.

    Args:
        network: a module in evaluation mode; it never gets gradients for its weights.
        channels: channels of the network's input.
        data_variance: p, variance per element of clean images on [-1, 1].
        name: what messages and reports call it.
    """

    def __init__(self, network: nn.Module, channels: int, data_variance: float, name: str = "network") -> None:
        self.network = network.eval().requires_grad_(False)
        self.network_channels = channels
        self.channels = (1, 3) if channels == 3 else (channels,)
        self.data_variance = check_positive("data_variance", data_variance)
        self.name = name

    def to(self, device: torch.device | str) -> NetworkPrior:
        """Move the network to ``device`` in place and return the prior."""
        self.network.to(device)
        return self

    def denoise(self, x: Tensor, s: Tensor) -> Tensor:
        """D(x, s) for x (B, C, H, W) and s (B,), computed in float32."""
        grey = x.shape[1] != self.network_channels
        image = x.float()
        if grey:
            image = image.expand(-1, self.network_channels, -1, -1)
        out: Tensor = self.network(image, s.float())
        if grey:
            out = out.mean(1, keepdim=True)
        return out.to(x.dtype).contiguous()


def metadata(name: str) -> dict[str, str]:
    """What the weights file of a bundled prior says of itself: data with licences, recipe, training command."""
    check_choice("name", name, BUNDLED)
    with safe_open(_FOLDER / f"{name}.safetensors", framework="pt") as file:
        return dict(file.metadata() or {})


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
        info = metadata(name)
        state = {key: value.float() for key, value in load_file(path).items()}
    except (OSError, SafetensorError) as error:
        raise RuntimeError(
            f"the weights of the prior {name!r} cannot be read from {path}: {error}; reinstall"
        ) from error
    fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in json.loads(info["config"]).items()}
    config = UNetConfig(**fields)
    network = DenoiserUNet(config)
    network.load_state_dict(state)
    return NetworkPrior(network.channels_last(), config.channels, float(info["data_variance"]), name)
