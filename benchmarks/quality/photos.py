"""The photographs of the quality tables: crops of scikit-image's, which no prior or preset has seen."""

import numpy as np
import skimage.data
import torch
from torch import Tensor

#: Top left corners.
CROPS = {"astronaut": (64, 160), "chelsea": (84, 164), "coffee": (174, 194)}


def photos() -> Tensor:
    """(3, 3, 128, 128) on [-1, 1]."""
    crops = [getattr(skimage.data, name)()[top : top + 128, left : left + 128] for name, (top, left) in CROPS.items()]
    return torch.stack([torch.from_numpy(crop.copy()).permute(2, 0, 1) for crop in crops]).float() / 127.5 - 1


#: Colour, then grey.
EIGHT = ("astronaut", "chelsea", "coffee", "rocket", "stereo_motorcycle", "camera", "coins", "brick")


def central_crops(size: int = 256) -> Tensor:
    """(8, 3, size, size) on [-1, 1], grey ones in three equal channels."""
    crops = []
    for name in EIGHT:
        image = getattr(skimage.data, name)()
        image = np.asarray(image[0] if isinstance(image, tuple) else image)
        image = image if image.ndim == 3 else np.repeat(image[..., None], 3, 2)
        top, left = (image.shape[0] - size) // 2, (image.shape[1] - size) // 2
        crops.append(torch.from_numpy(image[top : top + size, left : left + size].copy()).permute(2, 0, 1))
    return torch.stack(crops).float() / 127.5 - 1


def psnr(images: Tensor, truth: Tensor) -> Tensor:
    """(B,) in dB, for images on [-1, 1]."""
    return 10 * torch.log10(4 / (images - truth).square().flatten(1).mean(1))
