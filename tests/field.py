"""Other libraries for the tests, or a skip that says what to install."""

from __future__ import annotations

import importlib
import importlib.util
from types import ModuleType

import pytest
import torch

__all__ = ["deepinv", "diffusers", "installed"]

# Schemas without which torchvision's Python files cannot be imported.
_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
_library: torch.library.Library | None = None  # takes its schemas back when it is dropped


def installed(name: str) -> bool:
    """Whether there is such a package."""
    return importlib.util.find_spec(name) is not None


def deepinv() -> ModuleType:
    """deepinv, which needs torchvision."""
    return _imported("deepinv")


def diffusers() -> ModuleType:
    """diffusers, which imports torchvision where it is installed."""
    return _imported("diffusers")


def _imported(name: str) -> ModuleType:
    if not installed(name):
        pytest.skip(f"{name} is not installed: pip install 'rmp_fast[{name}]'", allow_module_level=True)
    if installed("torchvision"):
        _complete_torchvision()
    return importlib.import_module(name)


def _complete_torchvision() -> None:
    """Let torchvision be imported beside a torch for processors.

    The one of the package index is built for graphics cards: its compiled operators do not load here, and its import
    then stops at two of them, which neither library calls. With their schemas stated the rest of it works.
    """
    global _library
    try:
        importlib.import_module("torchvision")
    except RuntimeError as cause:
        if "operator torchvision::" not in str(cause):
            raise
        _library = torch.library.Library("torchvision", "DEF")
        for schema in _SCHEMAS:
            _library.define(schema)
        importlib.import_module("torchvision")
