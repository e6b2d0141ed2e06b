"""What a prior is: a denoiser at every noise level."""

from __future__ import annotations

import abc
from collections.abc import Callable

from torch import Tensor

from .._checks import check_positive

__all__ = ["Prior", "from_denoiser"]


class Prior(abc.ABC):
    """A distribution of x0 known through its denoiser D(x, s) = E[x0 | x0 + s z = x], z ~ N(0, I).

    Attributes:
        name: what messages and reports call it.
        data_variance: p, the variance per element on the prior's own range, [-1, 1] for images; ``gaussian`` guidance
            uses it as r2 = s^2 p / (s^2 + p).
        channels: image channels that it takes; None: any.
        evaluations: of its network, that one D(x, s) takes.
    """

    name: str = "prior"
    data_variance: float
    channels: tuple[int, ...] | None = None
    evaluations: int = 1

    @abc.abstractmethod
    def denoise(self, x: Tensor, s: Tensor) -> Tensor:
        """D(x, s).

        Args:
            x: (B, C, H, W) or (B, N).
            s: (B,) standard deviations of the noise in ``x``, on the prior's range.

        Returns:
            tensor of the shape and dtype of ``x``, contiguous.
        """

    def check_image_shape(self, shape: tuple[int, ...]) -> None:
        """ValueError unless the prior can denoise ``shape`` (B, ...)."""
        if self.channels is not None and (len(shape) != 4 or shape[1] not in self.channels):
            counts = " or ".join(map(str, self.channels))
            raise ValueError(f"`shape` must be (B, C, H, W) with C = {counts} for the prior {self.name!r}, got {shape}")


class _Callable(Prior):
    def __init__(self, function: Callable[[Tensor, Tensor], Tensor], data_variance: float, name: str) -> None:
        self.function = function
        self.data_variance = check_positive("data_variance", data_variance)
        self.name = name

    def denoise(self, x: Tensor, s: Tensor) -> Tensor:
        out = self.function(x, s)
        if out.shape != x.shape or out.dtype != x.dtype:
            raise ValueError(
                f"the denoiser must return shape {tuple(x.shape)} and {x.dtype}, got {tuple(out.shape)} and {out.dtype}"
            )
        return out.contiguous()


def from_denoiser(function: Callable[[Tensor, Tensor], Tensor], data_variance: float, name: str = "denoiser") -> Prior:
    """A prior from any D(x, s).

    Args:
        function: takes x (B, ...) and s (B,), noise standard deviations on the range of x, and returns D of x's shape.
        data_variance: p > 0, the variance per element of clean data on the same range.
        name: what messages and reports call it.
    """
    return _Callable(function, data_variance, name)
