"""deepinv's samplers on our problems, where deepinv is installed (https://deepinv.github.io, version 0.5).

Everything is on [-1, 1] but DiffPIR, which deepinv writes for images on [0, 1]. DDRM gets the authors' levels in
place of its own start at 1 on [0, 1], and a copy of the measurements, because version 0.5.0 writes to them.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..baselines import DDRM
from ..operators import Blur, Denoising, GaussianBlur, Inpainting, SuperResolution
from ..priors import Prior
from .harness import SAMPLER_TOLERANCE, Arm, CheckError, Result
from .problem import Problem

__all__ = ["Denoiser", "arm", "physics", "unavailable_reason", "version"]

#: Weight of DPS in deepinv, in place of its default of 1: the best of 10, 30 and 100 on Fashion-MNIST.
DPS_WEIGHT = 30.0
#: lambda of DiffPIR in deepinv's terms, the default of its authors' program.
DIFFPIR_STRENGTH, DIFFPIR_ZETA = 7.0, 0.3
#: Largest difference of two operators that are the same but for rounding, for images on [-1, 1].
SAME_OPERATOR = 1e-4


def unavailable_reason() -> str | None:
    """None where deepinv can be imported, else what to do."""
    try:
        _deepinv()
    except (ImportError, RuntimeError) as cause:  # a torchvision for another torch raises the latter
        return f"deepinv cannot be imported ({cause}); pip install deepinv for these rows"
    return None


def version() -> dict[str, str]:
    """Name and version of deepinv, for the versions of a run; empty without it."""
    return {} if unavailable_reason() else {"deepinv": importlib.metadata.version("deepinv")}


def _deepinv() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return importlib.import_module("deepinv")


class Denoiser(nn.Module):
    """A prior as deepinv's samplers call denoisers.

    Args:
        unit: images are on [0, 1], and sigma too, instead of [-1, 1].

    Attributes:
        evaluations, seconds: of the network since :meth:`start`.
    """

    def __init__(self, prior: Prior, unit: bool = False) -> None:
        super().__init__()
        self._prior, self._unit = prior, unit
        self.start()

    def start(self) -> None:
        """Count from here on."""
        self.evaluations, self.seconds = 0, 0.0

    def forward(self, x: Tensor, sigma: float | Tensor, **_: Any) -> Tensor:
        """D(x, sigma) for x (B, C, H, W)."""
        level = torch.as_tensor(sigma, dtype=torch.float32, device=x.device).flatten().expand(x.shape[0])
        started = time.perf_counter()
        denoise = self._prior.denoise
        out = (denoise(2 * x - 1, 2 * level) + 1) / 2 if self._unit else denoise(x, level)
        self.seconds += time.perf_counter() - started
        self.evaluations += 1
        return out


def physics(problem: Problem, noise_std: float) -> Any:
    """deepinv's operator for the problem's, on the problem's device.

    Raises:
        ValueError: deepinv has none that does the same.
    """
    return _on_cpu(problem, noise_std).to(problem.y.device)


def _on_cpu(problem: Problem, noise_std: float) -> Any:
    dinv, op, shape = _deepinv(), problem.op, problem.shape[1:]
    noise = dinv.physics.GaussianNoise(noise_std)
    if isinstance(op, Denoising):
        return dinv.physics.Denoising(noise_model=noise)
    if isinstance(op, Inpainting):
        mask = op.mask.float().reshape(1, *op.mask.shape[-3:]) if op.mask.ndim > 2 else op.mask.float()[None, None]
        return dinv.physics.Inpainting(img_size=shape, mask=mask.expand(1, *shape), noise_model=noise)
    if isinstance(op, Blur) and op.boundary == "circular":
        return dinv.physics.BlurFFT(img_size=shape, filter=op.kernel.float()[None, None], noise_model=noise)
    if isinstance(op, GaussianBlur) and op.boundary == "reflect":
        raise ValueError("deepinv's reflected blur leaves out the edge pixel, another operator than this one")
    if isinstance(op, SuperResolution) and op.filter == "average":
        raise ValueError("deepinv has no block average whose singular values it knows")
    raise ValueError(f"deepinv has no operator like {op!r}")


def arm(problem: Problem, name: str, budget: int, samples: int) -> Arm:
    """deepinv's method ``name`` with ``budget`` evaluations of a sample.

    Raises:
        ValueError: deepinv has no operator like the problem's.
        CheckError: its operator gives other measurements.
    """
    theirs = physics(problem, problem.noise_std)
    gap = float((theirs.A(problem.truth) - problem.op.A(problem.truth)).abs().max())
    if not gap <= SAME_OPERATOR:
        raise CheckError(f"deepinv's operator differs from ours by {gap:.2g}")
    averaged = samples if name == "deepinv-average" else 1
    forward = budget * averaged
    backward = forward if name == "deepinv-dps" else 0

    def make() -> Callable[[], Result]:
        model, denoiser = _MODELS[name](problem, budget, averaged)

        def call() -> Result:
            torch.manual_seed(0)
            denoiser.start()
            with warnings.catch_warnings(), torch.no_grad():
                warnings.simplefilter("ignore")
                mean = model().float()
            if not bool(torch.isfinite(mean).all()):
                raise CheckError("an image left the finite range")
            passes = {} if backward else {"network": denoiser.seconds}  # the backward pass is not in it
            return Result(mean, denoiser.evaluations, denoiser.evaluations if backward else 0, passes)

        return call

    def check(result: Result) -> str:
        if result.evaluations != forward:
            raise CheckError(f"took {result.evaluations} evaluations of the network, not {forward}")
        return f"finite, evaluations counted, operators equal: {gap:.1e} <= {SAME_OPERATOR:g}"

    label = f"{averaged} x deepinv-ddrm-{budget}" if averaged > 1 else f"{name}-{budget}"
    whose = "tuned" if backward else "authors"
    cost = forward + 2 * backward
    return Arm(name, label, whose, cost, make, check, SAMPLER_TOLERANCE, averaged)


Model = tuple[Callable[[], Tensor], Denoiser]


def _ddrm(problem: Problem, budget: int, samples: int) -> Model:
    denoiser = Denoiser(problem.prior)
    model = _deepinv().sampling.DDRM(denoiser, sigmas=DDRM(evaluations=budget).levels())
    theirs = physics(problem, problem.noise_std)
    return lambda: model(problem.y.clone(), theirs), denoiser


def _average(problem: Problem, budget: int, samples: int) -> Model:
    dinv = _deepinv()
    denoiser = Denoiser(problem.prior)
    model = dinv.sampling.DDRM(denoiser, sigmas=DDRM(evaluations=budget).levels())
    sampler = dinv.sampling.DiffusionSampler(model, max_iter=samples, clip=None, verbose=False, thres_conv=0.0)
    theirs = physics(problem, problem.noise_std)

    def run() -> Tensor:
        mean: Tensor = sampler(problem.y.clone(), theirs)[0]
        return mean

    return run, denoiser


def _diffpir(problem: Problem, budget: int, samples: int) -> Model:
    dinv = _deepinv()
    denoiser = Denoiser(problem.prior, unit=True)
    half = physics(problem, problem.noise_std / 2)
    model = dinv.sampling.DiffPIR(
        denoiser, dinv.optim.data_fidelity.L2(), sigma=problem.noise_std / 2, max_iter=budget,
        zeta=DIFFPIR_ZETA, lambda_=DIFFPIR_STRENGTH, device=problem.y.device,
    )  # fmt: skip

    def run() -> Tensor:
        y = (problem.y + 1) / 2
        y = half.A(y) if isinstance(problem.op, Inpainting) else y
        mean: Tensor = 2 * model(y, half) - 1
        return mean

    return run, denoiser


def _dps(problem: Problem, budget: int, samples: int) -> Model:
    denoiser = Denoiser(problem.prior)
    model = _deepinv().sampling.DPS(
        denoiser, weight=DPS_WEIGHT, num_steps=budget + 1, minus_one_one=False, device=problem.y.device
    )
    theirs = physics(problem, problem.noise_std)
    return lambda: model(problem.y.clone(), theirs, seed=0), denoiser


_MODELS: dict[str, Callable[[Problem, int, int], Model]] = {
    "deepinv-ddrm": _ddrm,
    "deepinv-diffpir": _diffpir,
    "deepinv-dps": _dps,
    "deepinv-average": _average,
}
