"""Weights files: read without running code from them, fitted to a network, and recognised."""

from __future__ import annotations

import json
import pathlib
import pickle
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from .._checks import shape_text

__all__ = ["describe_misfit", "diffusers_class", "file_metadata", "fit", "read_state", "weights_path"]

_TORCH_SUFFIXES = (".pt", ".pth", ".ckpt", ".bin")
_LISTED = 5


def weights_path(path: str | pathlib.Path) -> pathlib.Path:
    """``path`` if it is a file, else TypeError or FileNotFoundError."""
    if not isinstance(path, str | pathlib.Path):
        raise TypeError(f"`path` must be a file name, got {type(path).__name__}")
    file = pathlib.Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"`path` {file} is no file")
    return file


def file_metadata(path: pathlib.Path) -> dict[str, str]:
    """The metadata of a safetensors file; ValueError where it is damaged or none."""
    try:
        with safe_open(path, framework="pt") as file:
            return dict(file.metadata() or {})
    except SafetensorError as cause:
        raise ValueError(f"`path` {path} cannot be read as safetensors: {cause}") from cause


def read_state(path: str | pathlib.Path) -> dict[str, Tensor]:
    """Names and weights of a ``.safetensors`` or a torch file (``.pt``, ``.pth``, ``.ckpt``, ``.bin``), on the CPU.

    Torch files are read with ``weights_only=True``, which refuses everything but tensors and plain containers. Weights
    below ``state_dict`` or ``model`` are found there, and the prefix ``module.`` of parallel training is dropped.

    Raises:
        FileNotFoundError: ``path`` is no file.
        ValueError: another kind of file, a damaged one, or one that holds more than weights.
    """
    file = weights_path(path)
    if file.suffix == ".safetensors":
        file_metadata(file)  # says what is wrong with a damaged file
        return load_file(file)
    if file.suffix not in _TORCH_SUFFIXES:
        known = ", ".join((".safetensors", *_TORCH_SUFFIXES))
        raise ValueError(f"`path` must end in one of {known}, got {file.name!r}")
    try:
        held: Any = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as cause:
        raise ValueError(
            f"`path` {file} holds more than weights, or is damaged, and is not loaded, because that could run code; "
            "load it with the program that wrote it and save the network's state_dict()"
        ) from cause
    except Exception as cause:  # damage makes torch's reader raise whatever its parts do, IndexError among it
        raise ValueError(f"`path` {file} cannot be read as a torch file: {cause}") from cause
    for inner in ("state_dict", "model"):
        if isinstance(held, Mapping) and isinstance(held.get(inner), Mapping):
            held = held[inner]
    if not isinstance(held, Mapping) or not all(isinstance(v, Tensor) for v in held.values()) or not held:
        raise ValueError(f"`path` {file} must hold a dictionary of weights, a network's state_dict()")
    return {str(name).removeprefix("module."): value for name, value in held.items()}


def fit(network: nn.Module, state: Mapping[str, Tensor], source: object) -> None:
    """Load ``state`` into ``network``; ValueError naming missing, unexpected and differently shaped weights.

    Args:
        network: takes the weights, converted to the types of its own.
        state: names and weights.
        source: what the message calls their origin.
    """
    expected = network.state_dict()
    shapes = {
        name: (state[name].shape, value.shape)
        for name, value in expected.items()
        if name in state and state[name].shape != value.shape
    }
    missing, unexpected = sorted(expected.keys() - state.keys()), sorted(state.keys() - expected.keys())
    if missing or unexpected or shapes:
        differing = [
            f"{name} {shape_text(has)} instead of {shape_text(needs)}" for name, (has, needs) in shapes.items()
        ]
        raise ValueError(describe_misfit(source, missing, unexpected, differing))
    network.load_state_dict(dict(state))


def describe_misfit(source: object, missing: Iterable[str], unexpected: Iterable[str], differing: Iterable[str]) -> str:
    """What is wrong with weights, each list cut after its first few entries."""
    found = {"missing": missing, "unexpected": unexpected, "of another shape": differing}
    parts = []
    for kind, entries in found.items():
        listed = list(entries)
        if listed:
            more = f" and {len(listed) - _LISTED} more" if len(listed) > _LISTED else ""
            parts.append(f"{len(listed)} {kind} ({', '.join(listed[:_LISTED])}{more})")
    return f"the weights of {source} must be those of the network, got {'; '.join(parts)}"


def diffusers_class(folder: pathlib.Path, name: str) -> str | None:
    """``_class_name`` of the configuration ``name`` in ``folder``, or None where there is none."""
    try:
        held = json.loads((folder / name).read_text())
    except (OSError, ValueError):
        return None
    found = held.get("_class_name") if isinstance(held, dict) else None
    return found if isinstance(found, str) else None
