"""The recipes of the bundled priors, and the loop that follows them."""

from __future__ import annotations

import copy
import dataclasses
import json
import pathlib
import time
from typing import Protocol

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from rmp_fast.priors.unet import DenoiserUNet, UNetConfig, edm_loss
from rmp_fast.training import data


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Everything that decides the weights apart from the data."""

    config: UNetConfig
    batch: int
    crops: tuple[tuple[int, float], ...]  # (side, share of the steps); the batch shrinks so that pixels stay constant
    log_level_mean: float  # 3 of 4 log levels are drawn from this normal, 1 of 4 uniformly over level_range
    log_level_std: float
    steps: int
    data_variance: float  # `p` of the guidance: variance per element of the images on [-1, 1]
    learning_rate: float = 1e-3
    ema_half_life: float = 500.0  # steps
    bfloat16: bool = False  # run the network in bfloat16; weights, loss and optimiser stay float32
    seed: int = 0


RECIPES = {
    "fashion": Recipe(
        config=UNetConfig(channels=1, widths=(64, 80, 96), data_mean=-0.56, data_std=0.67),
        batch=64, crops=((32, 1.0),), log_level_mean=-0.9, log_level_std=1.2, steps=8400, data_variance=0.6,
    ),
    "photo": Recipe(
        config=UNetConfig(channels=3, widths=(48, 96, 112, 80), data_std=0.5),
        batch=16, crops=((64, 0.5), (128, 0.5)), log_level_mean=-1.5, log_level_std=1.0, steps=62000,
        data_variance=0.25, bfloat16=True,
    ),
}  # fmt: skip


def to_float(pixels: np.ndarray) -> Tensor:
    """uint8 pixels as float32 on [-1, 1]."""
    return torch.from_numpy(pixels).float().div_(127.5).sub_(1)


class Batches(Protocol):
    """Where training images come from; ``sources`` credits them: package, file, author, licence."""

    sources: list[dict[str, str]]

    def draw(self, side: int, count: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """``count`` clean images on [-1, 1] and as much standard normal noise, both (count, C, side, side)."""
        ...


class FashionBatches:
    """Images of the Fashion-MNIST training set, as they are."""

    def __init__(self, cache: pathlib.Path) -> None:
        self.images = data.fashion_images(cache, "train")
        self.sources = [{"package": data.FASHION_PACKAGE, "author": "Zalando SE", "licence": "MIT"}]

    def draw(self, side: int, count: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """As :class:`Batches`."""
        clean = to_float(self.images[rng.integers(len(self.images), size=count)])
        return clean, torch.from_numpy(rng.standard_normal(clean.shape, np.float32))


class PhotoBatches:
    """Random crops, flipped, transposed, channels permuted (1 in 4), contrast varied; 1 batch in 7 is grey."""

    def __init__(self, cache: pathlib.Path) -> None:
        self.pyramids = data.photo_pyramid(cache)
        keys = ("package", "file", "author", "licence")
        self.sources = [dict(zip(keys, photo, strict=True)) for photo in data.PHOTOS]
        self.weights = [weight for _, weight in data.PYRAMID]

    def crop(self, side: int, rng: np.random.Generator) -> np.ndarray:
        """One uint8 crop (3, side, side) from a random photograph and reduction."""
        levels = [a for a in self.pyramids[rng.integers(len(self.pyramids))] if min(a.shape[1:]) >= side]
        weights = np.array(self.weights[-len(levels) :])
        image = levels[rng.choice(len(levels), p=weights / weights.sum())]
        top, left = rng.integers(image.shape[1] - side + 1), rng.integers(image.shape[2] - side + 1)
        patch = image[:, top : top + side, left : left + side]
        if rng.random() < 0.25:
            patch = patch[rng.permutation(3)]
        if rng.random() < 0.5:
            patch = patch.transpose(0, 2, 1)
        return patch[:, :: rng.choice((1, -1)), :: rng.choice((1, -1))]

    def draw(self, side: int, count: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """As :class:`Batches`."""
        clean = to_float(np.stack([self.crop(side, rng) for _ in range(count)]))
        contrast = torch.from_numpy(rng.uniform(0.7, 1.0, (count, 1, 1, 1)).astype(np.float32))
        room = 1 - contrast
        offset = torch.from_numpy(rng.uniform(-1, 1, (count, 1, 1, 1)).astype(np.float32)) * room
        clean = clean * contrast + offset
        noise = torch.from_numpy(rng.standard_normal(clean.shape, np.float32))
        if rng.random() < 1 / 7:  # grey images arrive as three equal channels, their noise equal too
            clean = clean.mean(1, keepdim=True).expand_as(clean)
            noise = noise[:, :1].expand_as(noise)
        return clean, noise


def learning_rate(recipe: Recipe, step: int, steps: int) -> float:
    """Linear warm-up over 500 steps, constant, then linear to zero over the last fifth."""
    return recipe.learning_rate * min(1.0, (step + 1) / 500, max(steps - step, 0) / (0.2 * steps))


def train(
    name: str, recipe: Recipe, batches: Batches, steps: int, work: pathlib.Path, output: pathlib.Path, command: str
) -> None:
    """Train until ``steps``, going on from the checkpoint in ``work`` if there is one.

    Args:
        name: of the prior, and of the files ``work``/NAME.pt and ``output``/NAME.safetensors.
        command: what the weights file will name as the way to make it again.
    """
    work.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(recipe.seed)
    net = DenoiserUNet(recipe.config).channels_last()
    mean = copy.deepcopy(net)
    optimiser = torch.optim.Adam(net.parameters(), lr=recipe.learning_rate, betas=(0.9, 0.99))
    state_path = work / f"{name}.pt"
    first, spent = 0, 0.0
    if state_path.exists():
        state = torch.load(state_path, weights_only=True)
        net.load_state_dict(state["net"])
        mean.load_state_dict(state["mean"])
        optimiser.load_state_dict(state["optimiser"])
        first, spent = state["step"], state["seconds"]
        print(f"resuming at step {first}", flush=True)

    low, high = (float(np.log(v)) for v in recipe.config.level_range)
    sides, shares = zip(*recipe.crops, strict=True)
    started, running = time.monotonic(), 0.0

    def checkpoint(step: int) -> None:
        state = {"net": net.state_dict(), "mean": mean.state_dict(), "optimiser": optimiser.state_dict(),
                 "step": step, "seconds": spent + time.monotonic() - started}  # fmt: skip
        torch.save(state, state_path.with_suffix(".partial"))
        state_path.with_suffix(".partial").replace(state_path)
        export(name, recipe, batches.sources, mean, step, command, output)

    for step in range(first, steps):
        rng = np.random.default_rng((recipe.seed, step))  # by step alone, so that resuming changes nothing
        side = int(rng.choice(sides, p=shares))
        count = recipe.batch * sides[0] ** 2 // side**2
        clean, noise = batches.draw(side, count, rng)
        log_level = rng.normal(recipe.log_level_mean, recipe.log_level_std, count)
        spread = rng.random(count) < 0.25
        log_level[spread] = rng.uniform(low, high, int(spread.sum()))
        s = torch.from_numpy(np.exp(log_level.clip(low, high)).astype(np.float32))
        noisy = clean + s[:, None, None, None] * noise
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(recipe, step, steps)
        clean = clean.contiguous(memory_format=torch.channels_last)
        noisy = noisy.contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16, enabled=recipe.bfloat16):
            loss = edm_loss(net, clean, noisy, s)
        optimiser.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimiser.step()
        decay = 0.5 ** (1 / min(recipe.ema_half_life, 0.1 * step + 1))  # short at first, so that the start is forgotten
        with torch.no_grad():
            for average, value in zip(mean.parameters(), net.parameters(), strict=True):
                average.lerp_(value, 1 - decay)
        running += loss.item()
        if (step + 1) % 200 == 0:
            minutes = (spent + time.monotonic() - started) / 60
            print(f"step {step + 1}/{steps}  loss {running / 200:.4f}  {minutes:.1f} min", flush=True)
            running = 0.0
        if (step + 1) % 500 == 0 or step + 1 == steps:
            checkpoint(step + 1)


def export(
    name: str,
    recipe: Recipe,
    sources: list[dict[str, str]],
    net: DenoiserUNet,
    step: int,
    command: str,
    output: pathlib.Path,
) -> None:
    """Write the averaged weights in float16 with everything needed to load and to credit them."""
    metadata = {
        "name": name,
        "config": json.dumps(dataclasses.asdict(recipe.config)),
        "data_variance": str(recipe.data_variance),
        "command": command,
        "steps": str(step),
        "recipe": json.dumps({k: v for k, v in dataclasses.asdict(recipe).items() if k != "config"}),
        "data": json.dumps(sources),
    }
    tensors = {key: value.half().contiguous() for key, value in net.state_dict().items()}
    output.mkdir(parents=True, exist_ok=True)
    partial = output / f".{name}.partial"
    save_file(tensors, partial, metadata=metadata)
    partial.replace(output / f"{name}.safetensors")
