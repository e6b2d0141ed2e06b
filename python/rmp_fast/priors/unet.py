"""The denoising network behind the bundled priors: a norm-free residual U-Net with EDM preconditioning.

No normalisation layer looks across pixels or items, so an item's result depends neither on its neighbours in the batch
nor (beyond the receptive field) on how an image is cut into tiles.
"""

from __future__ import annotations

import dataclasses
import itertools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["DenoiserUNet", "UNetConfig", "pad_to_multiple"]


@dataclasses.dataclass(frozen=True)
class UNetConfig:
    """Shape of a :class:`DenoiserUNet`.

    Attributes:
        channels: image channels C.
        widths: feature channels per resolution, finest first; the first resolution is 1/2 (pixel unshuffle by 2).
        blocks: residual blocks per resolution on the way down, and again on the way up.
        data_mean, data_std: mean and standard deviation of the training images on [-1, 1] (sigma_data of EDM).
        embedding: width of the noise-level embedding.
        level_range: noise levels s covered by the training; s outside is clamped for the embedding only.
    """

    channels: int
    widths: tuple[int, ...]
    blocks: int = 2
    data_mean: float = 0.0
    data_std: float = 0.5
    embedding: int = 128
    level_range: tuple[float, float] = (0.005, 100.0)

    @property
    def multiple(self) -> int:
        """Height and width are padded to a multiple of this inside the network."""
        return int(2 ** len(self.widths))


class _LevelEmbedding(nn.Module):
    """log s -> vector, by Fourier features and a two-layer perceptron."""

    frequencies: Tensor

    def __init__(self, width: int, features: int = 16) -> None:
        super().__init__()
        self.register_buffer(
            "frequencies", 2.0 ** torch.linspace(-3, 2, features, dtype=torch.float32), persistent=False
        )
        self.layers = nn.Sequential(nn.Linear(2 * features, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU())

    def forward(self, log_level: Tensor) -> Tensor:
        phase = log_level[:, None] * self.frequencies
        out: Tensor = self.layers(torch.cat([phase.sin(), phase.cos()], dim=1))
        return out


class _ResidualBlock(nn.Module):
    """x + conv(silu(film(conv(silu(x))))), the second convolution starting at zero."""

    def __init__(self, width: int, embedding: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        self.film = nn.Linear(embedding, 2 * width)
        nn.init.zeros_(self.conv2.weight)
        nn.init.zeros_(self.film.weight)
        for bias in (self.conv1.bias, self.conv2.bias, self.film.bias):
            assert bias is not None
            nn.init.zeros_(bias)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        scale, shift = self.film(embedding)[:, :, None, None].chunk(2, dim=1)
        h = self.conv1(F.silu(x))
        h = torch.addcmul(shift, h, 1 + scale)
        out: Tensor = x + self.conv2(F.silu(h))
        return out


class _Group(nn.ModuleList):
    """The residual blocks of one resolution."""

    def __init__(self, blocks: int, width: int, embedding: int) -> None:
        super().__init__(_ResidualBlock(width, embedding) for _ in range(blocks))

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        for block in self:
            x = block(x, embedding)
        return x


class DenoiserUNet(nn.Module):
    r"""D(x, s) = E[x0 | x0 + s z = x] for images x0 on [-1, 1].

    .. math:: D(x, s) = m + c_{skip} (x - m) + c_{out} F(c_{in} (x - m), \log s)

    with m = ``config.data_mean`` and sigma_data = ``config.data_std`` (Karras et al. 2022, arXiv 2206.00364, Table 1,
    last column). F is a U-Net without normalisation layers. Any height and width: the input is padded by reflection (by
    repetition where it is too small to reflect) to a multiple of ``config.multiple`` and the output cropped back.
    """

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        self.config = config
        widths, blocks, emb = config.widths, config.blocks, config.embedding
        self.level = _LevelEmbedding(emb)
        self.first = nn.Conv2d(4 * config.channels, widths[0], 3, padding=1)
        self.down = nn.ModuleList(_Group(blocks, w, emb) for w in widths)
        self.shrink = nn.ModuleList(nn.Conv2d(a, b, 2, stride=2) for a, b in itertools.pairwise(widths))
        self.grow = nn.ModuleList(nn.ConvTranspose2d(b, a, 2, stride=2) for a, b in itertools.pairwise(widths))
        self.up = nn.ModuleList(_Group(blocks, w, emb) for w in widths[:-1])
        self.last = nn.Conv2d(widths[0], 4 * config.channels, 3, padding=1)
        nn.init.zeros_(self.last.weight)

    def channels_last(self) -> DenoiserUNet:
        """Lay the weights out for convolutions over channels-last images, in place; faster on processors."""
        for parameter in self.parameters():
            if parameter.ndim == 4:
                parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
        return self

    def forward(self, x: Tensor, s: Tensor) -> Tensor:
        """Denoise ``x`` (B, C, H, W) at noise standard deviations ``s`` (B,), both on [-1, 1]."""
        height, width = x.shape[-2:]
        x = pad_to_multiple(x, self.config.multiple) - self.config.data_mean
        data = self.config.data_std
        var = (s * s + data * data)[:, None, None, None]
        sigma = s[:, None, None, None]
        h = F.pixel_unshuffle(x * var.rsqrt(), 2)
        emb = self.level(s.clamp(*self.config.level_range).log())
        h = self.first(h)
        skips = []
        for i, group in enumerate(self.down):
            h = group(h, emb)
            if i < len(self.shrink):
                skips.append(h)
                h = self.shrink[i](h)
        for i in reversed(range(len(self.up))):
            h = self.grow[i](h) + skips[i]
            h = self.up[i](h, emb)
        h = F.pixel_shuffle(self.last(F.silu(h)), 2)
        out = self.config.data_mean + x * (data * data / var) + h * (sigma * data * var.rsqrt())
        return out[..., :height, :width]


def pad_to_multiple(x: Tensor, multiple: int) -> Tensor:
    """Images whose sides are a multiple, continued at the bottom and right by reflection, or repetition if small."""
    height, width = x.shape[-2:]
    bottom, right = -height % multiple, -width % multiple
    if bottom == 0 and right == 0:
        return x
    mode = "reflect" if bottom < height and right < width else "replicate"
    return F.pad(x, (0, right, 0, bottom), mode=mode)


def edm_loss(net: DenoiserUNet, clean: Tensor, noisy: Tensor, s: Tensor) -> Tensor:
    """Mean of ||D - x0||^2 / c_out^2: every level weighs the same (EDM, eq. 8)."""
    data = net.config.data_std
    weight = (s * s + data * data) / (s * data) ** 2
    error: Tensor = net(noisy, s) - clean
    return (error.square().mean(dim=(1, 2, 3)) * weight).mean()
