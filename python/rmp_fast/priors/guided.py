"""The U-Net of guided-diffusion, with the parameter names of its published weights, read off a state dict."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .._checks import check_count

__all__ = ["GuidedConfig", "GuidedUNet", "infer_config", "is_guided"]


@dataclasses.dataclass(frozen=True)
class GuidedConfig:
    """Shape of a :class:`GuidedUNet`.

    Attributes:
        channels, out_channels: of the image, and of the output: the same, or twice as many with a learned variance.
        width: base width ``model_channels``.
        mult: factors of the width per resolution, finest first.
        blocks: residual blocks per resolution on the way down.
        attention: resolutions with attention, as downsampling factors 1, 2, 4 ….
        updown: resolutions change inside residual blocks (``resblock_updown``), else by strided convolutions.
        scale_shift: the timestep scales and shifts the normalised features, else it is added to them.
        classes: of a class-conditional network; 0: none.
        head_channels: channels per attention head; None: ``heads`` heads.
        heads: number of attention heads where ``head_channels`` is None.
        new_order: ``use_new_attention_order``, query, key and value split before the heads.
    """

    channels: int
    out_channels: int
    width: int
    mult: tuple[float, ...]
    blocks: int
    attention: tuple[int, ...]
    updown: bool = True
    scale_shift: bool = True
    classes: int = 0
    head_channels: int | None = 64
    heads: int = 4
    new_order: bool = False

    @property
    def multiple(self) -> int:
        """Height and width must be multiples of this."""
        return int(2 ** (len(self.mult) - 1))


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(32, channels)


class _Upsample(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        return out


class _Downsample(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.op = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.op(x)
        return out


class _ResBlock(nn.Module):
    """skip(x) + conv(silu(norm(conv(silu(norm(x))), t))); ``resize`` 2.0 or 0.5 doubles or halves the sides inside."""

    def __init__(self, channels: int, out: int, embedding: int, scale_shift: bool, resize: float | None = None) -> None:
        super().__init__()
        self.scale_shift, self.resize = scale_shift, resize
        self.in_layers = nn.Sequential(_norm(channels), nn.SiLU(), nn.Conv2d(channels, out, 3, padding=1))
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(embedding, 2 * out if scale_shift else out))
        # The identity stands where training has its dropout, so that the numbers in the names agree.
        self.out_layers = nn.Sequential(_norm(out), nn.SiLU(), nn.Identity(), nn.Conv2d(out, out, 3, padding=1))
        self.skip_connection = nn.Identity() if channels == out else nn.Conv2d(channels, out, 1)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        norm, activation, conv = self.in_layers
        h = conv(self._resized(activation(norm(x))))
        told = self.emb_layers(embedding)[:, :, None, None]
        if self.scale_shift:
            scale, shift = told.chunk(2, dim=1)
            h = self.out_layers[0](h) * (1 + scale) + shift
            h = self.out_layers[1:](h)
        else:
            h = self.out_layers(h + told)
        out: Tensor = self.skip_connection(self._resized(x)) + h
        return out

    def _resized(self, x: Tensor) -> Tensor:
        if self.resize is None:
            return x
        return F.interpolate(x, scale_factor=2.0, mode="nearest") if self.resize > 1 else F.avg_pool2d(x, 2)


class _Attention(nn.Module):
    def __init__(self, channels: int, config: GuidedConfig) -> None:
        super().__init__()
        if config.head_channels is None:
            self.heads = config.heads
        else:
            self.heads = max(1, channels // config.head_channels)
        if channels % self.heads or (config.head_channels is not None and channels % config.head_channels):
            raise ValueError(
                f"attention over {channels} channels cannot have heads of {config.head_channels or 'equal'} channels; "
                "give the `head_channels` of the training, or head_channels=None and its number of `heads`"
            )
        self.new_order = config.new_order
        self.norm = _norm(channels)
        self.qkv = nn.Conv1d(channels, 3 * channels, 1)
        self.proj_out = nn.Conv1d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        flat = x.reshape(batch, channels, height * width)
        qkv = self.qkv(self.norm(flat))
        sizes = (3, self.heads) if self.new_order else (self.heads, 3)
        parts = qkv.reshape(batch, *sizes, channels // self.heads, height * width).mT
        query, key, value = parts.unbind(1 if self.new_order else 2)
        seen = F.scaled_dot_product_attention(query, key, value)
        out: Tensor = flat + self.proj_out(seen.mT.reshape(batch, channels, height * width))
        return out.reshape(x.shape)


class _Stage(nn.ModuleList):
    """Layers one after the other; residual blocks also see the timestep."""

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        for layer in self:
            x = layer(x, embedding) if isinstance(layer, _ResBlock) else layer(x)
        return x


class GuidedUNet(nn.Module):
    """N(z, t) of Dhariwal and Nichol, "Diffusion models beat GANs on image synthesis", 2021 (arXiv 2105.05233).

    Args:
        config: its shape.
    """

    def __init__(self, config: GuidedConfig) -> None:
        super().__init__()
        self.config = config
        width, embedding = config.width, 4 * config.width
        self.time_embed = nn.Sequential(nn.Linear(width, embedding), nn.SiLU(), nn.Linear(embedding, embedding))
        if config.classes:
            self.label_emb = nn.Embedding(config.classes, embedding)

        def block(channels: int, out: int, resize: float | None = None) -> _ResBlock:
            return _ResBlock(channels, out, embedding, config.scale_shift, resize)

        def attended(channels: int, level: int) -> list[nn.Module]:
            return [_Attention(channels, config)] if 2**level in config.attention else []

        widths = [int(mult * width) for mult in config.mult]
        now, last = widths[0], len(widths) - 1
        self.input_blocks = nn.ModuleList([_Stage([nn.Conv2d(config.channels, now, 3, padding=1)])])
        skips = [now]
        for level, out in enumerate(widths):
            for _ in range(config.blocks):
                self.input_blocks.append(_Stage([block(now, out), *attended(out, level)]))
                now = out
                skips.append(now)
            if level < last:
                self.input_blocks.append(_Stage([block(now, now, 0.5) if config.updown else _Downsample(now)]))
                skips.append(now)
        self.middle_block = _Stage([block(now, now), _Attention(now, config), block(now, now)])
        self.output_blocks = nn.ModuleList()
        for level, out in reversed(list(enumerate(widths))):
            for i in range(config.blocks + 1):
                layers: list[nn.Module] = [block(now + skips.pop(), out), *attended(out, level)]
                now = out
                if level and i == config.blocks:
                    layers.append(block(now, now, 2.0) if config.updown else _Upsample(now))
                self.output_blocks.append(_Stage(layers))
        self.out = nn.Sequential(_norm(now), nn.SiLU(), nn.Conv2d(now, config.out_channels, 3, padding=1))

    def forward(self, z: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        """Output for images ``z`` (B, C, H, W), timesteps ``t`` (B,) that may be fractional, and classes (B,)."""
        embedding = self.time_embed(_sinusoids(t, self.config.width))
        if labels is not None:
            embedding = embedding + self.label_emb(labels)
        h, skips = z, []
        for stage in self.input_blocks:
            h = stage(h, embedding)
            skips.append(h)
        h = self.middle_block(h, embedding)
        for stage in self.output_blocks:
            h = stage(torch.cat([h, skips.pop()], dim=1), embedding)
        out: Tensor = self.out(h)
        return out


def _sinusoids(t: Tensor, width: int) -> Tensor:
    half = width // 2
    frequencies = torch.exp(torch.arange(half, dtype=torch.float32, device=t.device) * (-math.log(10000) / half))
    phase = t[:, None].float() * frequencies
    return F.pad(torch.cat([phase.cos(), phase.sin()], dim=1), (0, width % 2))


def is_guided(state: Mapping[str, Any]) -> bool:
    """Whether a state dict has the names of guided-diffusion."""
    return {"time_embed.0.weight", "input_blocks.0.0.weight", "out.2.weight"} <= set(state)


def infer_config(state: Mapping[str, Tensor], **options: Any) -> GuidedConfig:
    """The shape of the network whose weights are ``state``.

    Widths, depth, attention, ``updown``, ``scale_shift`` and classes are read off names and shapes. Weights do not tell
    the number of attention heads nor their order; both are as in OpenAI's 256x256 and 512x512 models and in the FFHQ
    model of DPS, heads of 64 channels and the old order, unless ``options`` say otherwise.

    Args:
        state: names and weights.
        options: fields of :class:`GuidedConfig` that override what was found.

    Raises:
        TypeError, ValueError: names that are not those of guided-diffusion, an option that is no field, or no whole
            number of heads.
    """
    fields = {field.name for field in dataclasses.fields(GuidedConfig)}
    for name in options:
        if name not in fields:
            raise ValueError(f"`{name}` is no option of the network; those are {', '.join(sorted(fields))}")
    if not is_guided(state):
        raise ValueError("the weights must have the names of guided-diffusion (time_embed, input_blocks, out)")
    ends = [int(key.split(".")[1]) for key in state if key.startswith("output_blocks.")]
    stages = max(ends, default=-1) + 1
    upsampled = [i for i in range(stages) if _upsampler(state, i) is not None]
    # Every resolution has blocks + 1 stages on the way up; all but the finest end in an upsampler.
    per_level = upsampled[0] + 1 if upsampled else stages
    if stages == 0 or stages % per_level:
        raise ValueError("the weights must have as many `output_blocks` at every resolution as guided-diffusion has")
    width = state["time_embed.0.weight"].shape[1]
    levels = stages // per_level
    firsts = [f"input_blocks.{1 + level * per_level}.0.out_layers.3.weight" for level in range(levels)]
    for name in firsts:
        if name not in state:
            raise ValueError(f"the weights must have `{name}`, the end of the first block of a resolution")
    middle = state["middle_block.0.emb_layers.1.weight"].shape[0]
    found: dict[str, Any] = {
        "channels": state["input_blocks.0.0.weight"].shape[1],
        "out_channels": state["out.2.weight"].shape[0],
        "width": width,
        "mult": tuple(state[name].shape[0] / width for name in firsts),
        "blocks": per_level - 1,
        "attention": tuple(
            2**level for level in range(levels) if f"input_blocks.{1 + level * per_level}.1.qkv.weight" in state
        ),
        "updown": not upsampled or _upsampler(state, upsampled[0]) == "in_layers",
        "scale_shift": middle == 2 * state["middle_block.0.out_layers.3.weight"].shape[0],
        "classes": state["label_emb.weight"].shape[0] if "label_emb.weight" in state else 0,
    }
    config = GuidedConfig(**found | options)
    check_count("heads", config.heads)
    if config.head_channels is not None:
        check_count("head_channels", config.head_channels)
    return config


def _upsampler(state: Mapping[str, Tensor], stage: int) -> str | None:
    """What ends a stage on the way up: ``in_layers`` of a residual block, ``conv``, or None where nothing does."""
    for layer in (1, 2):
        prefix = f"output_blocks.{stage}.{layer}."
        if f"{prefix}conv.weight" in state:
            return "conv"
        if f"{prefix}in_layers.2.weight" in state:
            return "in_layers"
    return None
