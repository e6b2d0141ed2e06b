"""The baselines beside deepinv's own on the same measurements: ``python benchmarks/quality/against_deepinv.py``.

deepinv needs a torch of its own, hence an environment of its own: ``pip install deepinv``, then this package with
``pip install --no-deps .`` and its requirements. Both sides get the same measurements and the same random numbers in
the same order, so that two chains of the same equations end at nearly the same image. Prints mean PSNR of both, the
difference and its standard error over the images.

What deepinv 0.5.0 does otherwise than the papers, and what is done about it here:

- DDRM divides its noise by sqrt(2) for every operator. The half spectrum of its FFT blur needs that; inpainting does
  not, and there the sample lies closer to the posterior's mean. It is compared with ``noise_scale = sqrt(1/2)``, and
  once more with the paper's noise, its random numbers multiplied by sqrt(2).
- DDRM takes coefficients with a singular value below the noise level for unobserved, so its blurs are not the paper's.
- DDRM starts at level 1 of images on [0, 1]; it is given the authors' levels instead, on [-1, 1].
- DiffPIR minimises ||y - A z||^2 + 2 rho ||z - d||^2, with rho of the authors' program (noise on [0, 1], level on
  [-1, 1]); its lambda is twice ours, the authors' four times ours.
- DPS weighs the gradient of the norm by a constant times s^2 - t^2, the authors by zeta' sqrt((1 + s^2)(1 + t^2)).
  Neither step size says what the other should be, so each is given a small grid and its best is compared.
- PiGDM is the conditional score in a DDPM sampler: ``weight="score"``, ``eta=1`` here.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import pathlib
import sys
from collections.abc import Callable, Iterable
from typing import Any
from unittest import mock

import torch
from torch import Tensor

import rmp_fast as rmp
from rmp_fast import baselines, operators
from rmp_fast.baselines.ddrm import DDRM
from rmp_fast.bench.deepinv_arms import Denoiser
from rmp_fast.operators.blur import gaussian_taps
from rmp_fast.training.data import fashion_images

try:
    import deepinv as dinv
except ImportError as cause:
    sys.exit(
        f"deepinv cannot be imported here ({cause}); install it: pip install deepinv, in an environment of its own"
    )

NOISE = 0.05
SHAPE = (1, 32, 32)
METHODS = ("ddrm", "diffpir", "pigdm", "dps")


def tasks() -> dict[str, tuple[operators.Operator, Callable[[float], Any]]]:
    """Operators of both sides; the right one takes the noise level."""
    mask = operators.random_mask((32, 32), 0.7, seed=0)
    box = operators.box_mask((32, 32), 12)
    taps = gaussian_taps(1.5)
    kernels = {"gaussian_deblur": torch.outer(taps, taps), "motion_deblur": operators.motion_kernel(9, 45)}

    def hole(mask: Tensor) -> Callable[[float], Any]:
        return lambda noise: dinv.physics.Inpainting(
            img_size=SHAPE, mask=mask.float()[None], noise_model=dinv.physics.GaussianNoise(noise)
        )

    def blur(kernel: Tensor) -> Callable[[float], Any]:
        return lambda noise: dinv.physics.BlurFFT(
            img_size=SHAPE, filter=kernel.float()[None, None], noise_model=dinv.physics.GaussianNoise(noise)
        )

    found: dict[str, tuple[operators.Operator, Callable[[float], Any]]] = {
        "inpaint_random": (operators.Inpainting(mask), hole(mask)),
        "inpaint_box": (operators.Inpainting(box), hole(box)),
    }
    for name, kernel in kernels.items():
        found[name] = operators.Blur(kernel), blur(kernel)
    return found


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Settings of both sides; where there are several, the best of each side counts."""

    ours: tuple[dict[str, Any], ...]
    theirs: tuple[dict[str, Any], ...] = ({},)
    note: str = ""


def comparisons(method: str, task: str) -> list[Comparison]:
    if method == "ddrm":
        if not task.startswith("inpaint"):
            return [Comparison(({"evaluations": 100},))]
        quiet = {"evaluations": 100, "noise_scale": math.sqrt(0.5)}
        return [
            Comparison((quiet,), note="with noise divided by sqrt(2)"),
            Comparison(({"evaluations": 100},), ({"factor": math.sqrt(2)},), "with the paper's noise"),
        ]
    if method == "diffpir":
        return [Comparison(({"evaluations": 100, "strength": 3.5, "zeta": 0.3},))]
    if method == "pigdm":
        return [Comparison(({"evaluations": 100, "weight": "score", "eta": 1.0},))]
    mine = tuple({"evaluations": 1000, "step_size": step} for step in (0.3, 1.0, 3.0))
    return [Comparison(mine, tuple({"weight": weight} for weight in (10.0, 30.0, 100.0)), "best of three steps each")]


class Draws:
    """The random numbers that ``baselines.reconstruct`` draws for seeds 0 … B - 1, in its order."""

    def __init__(self, batch: int, factor: float = 1.0) -> None:
        self.run = baselines.Run(
            torch.zeros(batch, *SHAPE), operators.Denoising(), rmp.priors.load("fashion"), torch.zeros(batch),
            (batch, *SHAPE), torch.arange(batch),
        )  # fmt: skip
        self.factor = factor

    def like(self, x: Tensor) -> Tensor:
        """For images, or for the half spectrum (B, 1, H, W // 2 + 1, 2) of a blur, which DDRM divides by sqrt(2)."""
        e = self.run.draw()
        if x.ndim == 5:
            return math.sqrt(2) * torch.view_as_real(torch.fft.rfft2(e, norm="ortho"))
        return (self.factor * e).to(x.dtype)


def theirs(
    method: str, prior: rmp.priors.Prior, physics: Any, y: Tensor, factor: float = 1.0, weight: float = 1.0
) -> Tensor:
    """One sample of deepinv's on [-1, 1]; ``factor`` of DDRM's random numbers, ``weight`` of DPS."""
    draws = Draws(y.shape[0], factor)
    with mock.patch.object(torch, "randn_like", draws.like):
        return _theirs(method, prior, physics, y, draws, weight)


def _theirs(method: str, prior: rmp.priors.Prior, physics: Any, y: Tensor, draws: Draws, weight: float) -> Tensor:
    if method == "ddrm":
        model = dinv.sampling.DDRM(Denoiser(prior), sigmas=DDRM(evaluations=100).levels())
        return model(y, physics(NOISE))
    if method == "diffpir":
        half = physics(NOISE / 2)
        observed = half.A((y + 1) / 2) if isinstance(half, dinv.physics.Inpainting) else (y + 1) / 2
        fidelity = dinv.optim.data_fidelity.L2()
        unit = Denoiser(prior, unit=True)
        model = dinv.sampling.DiffPIR(unit, fidelity, sigma=NOISE / 2, max_iter=100, zeta=0.3, lambda_=7.0)
        return 2 * model(observed, half) - 1
    if method == "pigdm":
        model = dinv.sampling.PosteriorDiffusion(
            data_fidelity=dinv.sampling.PiGDMDataFidelity(),
            denoiser=Denoiser(prior),
            sde=dinv.sampling.VariancePreservingDiffusion(alpha=1.0),
            solver=dinv.sampling.DDPMSolver(timesteps=torch.linspace(1, 0, 101, dtype=torch.float64)),
            minus_one_one=False,
        )
    else:
        model = dinv.sampling.DPS(Denoiser(prior), weight=weight, num_steps=1001, minus_one_one=False)
    model.solver.randn_like = draws.like
    start = math.sqrt(1 + float(model.sde.sigma_t(1.0)) ** 2) * float(model.sde.scale_t(1.0)) * draws.run.draw()
    return model(y, physics(NOISE), x_init=start.double()).float()


def psnr(x: Tensor, truth: Tensor) -> Tensor:
    """(B,) in dB, of images clamped to [-1, 1]."""
    return 10 * (4 / (x.clamp(-1, 1) - truth).square().mean((1, 2, 3))).log10()


def best(samples: Iterable[Tensor], truth: Tensor) -> Tensor:
    """PSNR (B,) of the samples with the highest mean."""
    return max((psnr(sample, truth) for sample in samples), key=lambda each: float(each.mean()))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--tasks", nargs="+", default=None)
    parser.add_argument("--count", type=int, default=16, help="Fashion-MNIST test images (16)")
    parser.add_argument("--first", type=int, default=0, help="number of the first one (0)")
    parser.add_argument("--data", type=pathlib.Path, default=pathlib.Path.home() / ".cache" / "rmp_fast" / "data")
    args = parser.parse_args()
    known = tasks()
    for name in args.tasks or known:
        if name not in known:
            parser.error(f"--tasks must be of {', '.join(known)}, got {name!r}")
    prior = rmp.priors.load("fashion")
    images = fashion_images(args.data, "test")[args.first : args.first + args.count]
    truth = torch.from_numpy(images).float() / 127.5 - 1
    below = 0.0
    print(f"deepinv {dinv.__version__}, torch {torch.__version__}, {args.count} images; mean PSNR in dB")
    print(f"{'method':10}{'task':18}{'ours':>8}{'theirs':>8}{'ours - theirs':>15}{'std. error':>12}")
    for method in args.methods:
        for name in args.tasks or known:
            op, physics = known[name]
            y = op.A(truth) + NOISE * torch.randn(truth.shape, generator=torch.Generator().manual_seed(5))
            y = op.A(y) if isinstance(op, operators.Inpainting) else y
            gap = float((physics(NOISE).A(truth) - op.A(truth)).abs().max())
            if gap > 1e-4:
                raise RuntimeError(f"the operators of {name} differ by {gap}")
            for case in comparisons(method, name):
                mine = best((baselines.reconstruct(method, y, op, prior, NOISE, **s).mean for s in case.ours), truth)
                other = best((theirs(method, prior, physics, y, **s) for s in case.theirs), truth)
                difference = mine - other
                error = float(difference.std()) / math.sqrt(args.count)
                row = f"{method:10}{name:18}{float(mine.mean()):8.2f}{float(other.mean()):8.2f}"
                print(f"{row}{float(difference.mean()):+15.2f}{error:12.2f}  {case.note}", flush=True)
                below = max(below, -float(difference.mean()))
    print(f"ours is at most {below:.2f} dB below")
    return 0


if __name__ == "__main__":
    sys.exit(main())
