"""The training loop on a handful of real photographs: it learns, resumes exactly, and writes what the loader reads."""

import dataclasses
import json
import pathlib

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from skimage import data

from rmp_fast.priors.unet import UNetConfig
from rmp_fast.training.train import RECIPES, Recipe, learning_rate, to_float, train

RECIPE = Recipe(
    config=UNetConfig(channels=1, widths=(8, 8)), batch=4, crops=((16, 0.5), (32, 0.5)), log_level_mean=-1.0,
    log_level_std=1.0, steps=6, data_variance=0.3,
)  # fmt: skip


class Coins:
    def __init__(self) -> None:
        self.sources = [{"package": "scikit-image", "file": "coins.png", "licence": "public domain"}]

    def draw(self, side: int, count: int, rng: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        corners = rng.integers(0, 200, (max(count, 1), 2))
        crops = np.stack([data.coins()[None, top : top + side, left : left + side] for top, left in corners])
        return to_float(crops), torch.from_numpy(rng.standard_normal(crops.shape, np.float32))


def weights(folder: pathlib.Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    path = folder / "coins.safetensors"
    with safe_open(path, framework="pt") as file:
        return load_file(path), file.metadata()


def run(folder: pathlib.Path, *stops: int, steps: int = 6) -> None:
    for stop in stops:
        recipe = dataclasses.replace(RECIPE, steps=steps)
        train("coins", recipe, Coins(), stop, folder / "work", folder, "command")


def test_resuming_changes_nothing(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # the schedule of the learning rate depends on the last step, so both runs are given the same one
    monkeypatch.setattr("rmp_fast.training.train.learning_rate", lambda recipe, step, steps: 1e-3)
    run(tmp_path / "whole", 6)
    run(tmp_path / "halves", 3, 6)
    whole, halves = weights(tmp_path / "whole")[0], weights(tmp_path / "halves")[0]
    assert all(torch.equal(whole[key], halves[key]) for key in whole)


def test_the_file_names_its_recipe_and_data(tmp_path: pathlib.Path) -> None:
    run(tmp_path, 2)
    info = weights(tmp_path)[1]
    assert json.loads(info["config"])["widths"] == [8, 8]
    assert info["command"] == "command"
    assert info["steps"] == "2"
    assert float(info["data_variance"]) == 0.3
    assert all("licence" in source for source in json.loads(info["data"]))


def test_learning_rate_warms_up_holds_and_decays() -> None:
    recipe = RECIPES["photo"]
    rates = [learning_rate(recipe, step, 10_000) for step in (0, 499, 5_000, 8_000, 9_000, 10_000)]
    assert rates == pytest.approx([2e-6, 1e-3, 1e-3, 1e-3, 5e-4, 0])
