"""The photographs of the quality tables: 128x128 crops of scikit-image's, which no prior or preset has seen."""

import skimage.data
import torch
from torch import Tensor

#: Top left corners.
CROPS = {"astronaut": (64, 160), "chelsea": (84, 164), "coffee": (174, 194)}


def photos() -> Tensor:
    """(3, 3, 128, 128) on [-1, 1]."""
    crops = [getattr(skimage.data, name)()[top : top + 128, left : left + 128] for name, (top, left) in CROPS.items()]
    return torch.stack([torch.from_numpy(crop.copy()).permute(2, 0, 1) for crop in crops]).float() / 127.5 - 1


def psnr(images: Tensor, truth: Tensor) -> Tensor:
    """(B,) in dB, for images on [-1, 1]."""
    return 10 * torch.log10(4 / (images - truth).square().flatten(1).mean(1))
