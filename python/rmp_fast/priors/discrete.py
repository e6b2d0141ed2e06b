"""Networks trained on the discrete timesteps of a variance-preserving process, as denoisers D(x, s)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .._checks import check_choice, check_shape, check_tensor
from .unet import pad_to_multiple

__all__ = ["PREDICTIONS", "DiscreteDenoiser"]

#: What a network was trained to predict: the noise, the image, or v = sqrt(abar) e - sqrt(1 - abar) x0.
PREDICTIONS = ("epsilon", "sample", "v_prediction")


class DiscreteDenoiser(nn.Module):
    r"""D(x, s) = E[x0 | x0 + s z = x] from a network N(z_t, t) with z_t = sqrt(abar_t) x0 + sqrt(1 - abar_t) e.

    .. math:: s_t = \sqrt{(1 - \bar\alpha_t) / \bar\alpha_t}, \quad a = 1 / \sqrt{1 + s^2}, \quad n = N(a x, t(s))

    with D = x - s n where N predicts the noise (``"epsilon"``), D = n (``"sample"``), D = a^2 x - s a n
    (``"v_prediction"``; Salimans and Ho 2022, arXiv 2202.00512, appendix D). t(s) is interpolated between timesteps in
    log s. Beyond the trained levels s_0 and s_T the network is told the nearest one, while its input and D are those of
    s itself.

    Args:
        network: (z, t) -> (B, C, H, W), or (B, 2 C, H, W) whose second half (a learned variance) is dropped; it may
            return a tuple that begins with it or an object that has it as ``sample``. t is (B,) float32.
        alphas_cumprod: (T,) abar, decreasing from below 1; final zeros are left out.
        prediction: one of :data:`PREDICTIONS`.
        label: class of every image, given to the network as a third argument (B,) int64; None: no third argument.
        multiple: height and width are padded to a multiple of it by reflection and the result cropped back.
        whole: round t to whole timesteps (int64), for networks that look them up in a table.

    Raises:
        TypeError, ValueError: ``alphas_cumprod`` that do not decrease inside (0, 1), an unknown prediction.
    """

    _log_levels: Tensor

    def __init__(
        self,
        network: nn.Module,
        alphas_cumprod: Tensor,
        prediction: str = "epsilon",
        *,
        label: int | None = None,
        multiple: int = 1,
        whole: bool = False,
    ) -> None:
        super().__init__()
        self.network = network
        self.prediction = check_choice("prediction", prediction, PREDICTIONS)
        self.label, self.multiple, self.whole = label, multiple, whole
        abar = check_tensor("alphas_cumprod", alphas_cumprod).detach().double().cpu()
        check_shape("alphas_cumprod", abar, (abar.numel(),), ("T",))
        # Schedules of zero final signal-to-noise ratio end at 0, or at a tiny number in its place.
        abar = abar[: int((abar > 1e-7).sum())]
        if abar.numel() < 2 or not bool((abar < 1).all() and (abar.diff() < 0).all()):
            raise ValueError("`alphas_cumprod` must hold at least 2 numbers that decrease inside (0, 1)")
        log_levels = 0.5 * ((1 - abar).log() - abar.log())
        self.level_range = (float(log_levels[0].exp()), float(log_levels[-1].exp()))
        self.register_buffer("_log_levels", log_levels.float(), persistent=False)

    def timestep(self, s: Tensor) -> Tensor:
        """t (B,) of noise levels ``s`` (B,), fractional between timesteps, within 0 … T - 1."""
        table = self._log_levels
        position = s.float().log().clamp(table[0], table[-1])
        below = (torch.searchsorted(table, position, right=True) - 1).clamp(0, len(table) - 2)
        t: Tensor = below + (position - table[below]) / (table[below + 1] - table[below])
        return t.round().long() if self.whole else t

    def forward(self, x: Tensor, s: Tensor) -> Tensor:
        """Denoise ``x`` (B, C, H, W) at noise standard deviations ``s`` (B,)."""
        channels, height, width = x.shape[1:]
        level = s[:, None, None, None]
        scale = (1 + level * level).rsqrt()
        arguments: list[Tensor] = [pad_to_multiple(scale * x, self.multiple), self.timestep(s)]
        if self.label is not None:
            arguments.append(torch.full((x.shape[0],), self.label, dtype=torch.int64, device=x.device))
        out = _tensor(self.network(*arguments))[:, :channels, :height, :width]
        if self.prediction == "epsilon":
            return x - level * out
        if self.prediction == "sample":
            return out
        return scale * (scale * x - level * out)


def _tensor(out: Any) -> Tensor:
    if isinstance(out, tuple):
        out = out[0]
    tensor: Tensor = getattr(out, "sample", out) if not isinstance(out, Tensor) else out
    return tensor
