"""A step's buffers with random contents, and what the float64 oracle makes of them."""

from __future__ import annotations

from typing import Any

import oracle
import torch
from kernel_paths import kernels, poisoned
from torch import Tensor

__all__ = ["CORRECTIONS", "CURVATURE_BOUND", "MODES", "STEP_BOUND", "Problem", "assert_close"]


def assert_close(actual: Tensor, expected: Tensor, bound: float, what: str = "") -> None:
    """Largest error relative to the largest value, and no bias."""
    assert actual.shape == expected.shape
    if not actual.numel():
        return
    wide = torch.complex128 if actual.is_complex() else torch.float64
    error = actual.to(wide) - expected.to(wide)
    scale = expected.abs().max().clamp_min(1.0).item()
    assert error.abs().max().item() <= bound * scale, f"{what}: {error.abs().max().item():.3e}"
    assert abs(error.mean().item()) <= bound * scale


# A step has at most about eight roundings of 2^-24 on numbers of size 1 to 4; the normals add 6e-7 at |z| = 5.
STEP_BOUND = 2e-6
# Mean of up to 64 float32 products divided by a small number: the sum over an item of rounding errors of 2^-24.
CURVATURE_BOUND = 2e-5


class Problem:
    """Buffers of a step, filled from a seed, and its oracle."""

    def __init__(
        self,
        shape: tuple[int, ...],
        *,
        correction: str = "none",
        masks: int | None = None,
        factor: int = 1,
        drawn: bool = False,
        antithetic: bool = False,
        learned: bool | str = False,
        in_place: bool = True,
        stream: int = 0,
        seed: int = 0,
    ) -> None:
        g = torch.Generator().manual_seed(seed)
        batch = shape[0]

        def image(shape: tuple[int, ...] = shape) -> Tensor:
            return torch.randn(shape, generator=g)

        self.previous, self.mean, self.denoised, self.denoised_mirror = image(), image(), image(), image()
        self.next_mean = self.mean if in_place else poisoned(shape)
        looks = torch.rand(3, batch, 8, generator=g) * 0.5 + 0.1
        if batch > 2:
            looks[:, 1, oracle.NEXT_STD] = 0  # one item unperturbed
        self.looks = looks
        self.input = self.mean + image() * 0.2
        self.input_mirror = 2 * self.mean - self.input
        self.seeds = torch.randint(-(2**63), 2**63 - 1, (batch,), generator=g)
        self.ok = torch.ones(batch, dtype=torch.uint8)
        sizes = shape if learned == "diagonal" else (batch,)
        self.curvature = torch.rand(sizes, generator=g) if learned else None
        self.y: Tensor | None = None
        self.mask: Tensor | None = None
        if correction == "mask":
            self.y = image()
            if masks is not None:
                self.mask = (torch.rand(masks, *shape[1:], generator=g) > 0.5).to(torch.uint8)
        elif correction == "gradient":
            self.y = image(((2 if antithetic else 1) * batch, *shape[1:]))
        elif correction == "block_average":
            self.y = image((*shape[:2], -(-shape[2] // factor), -(-shape[3] // factor)))
        self.settings = {
            "drawn": drawn,
            "correction": correction,
            "y": self.y,
            "mask": self.mask,
            "factor": factor,
            "stream": stream,
        }
        self.antithetic = antithetic

    def buffers(self) -> dict[str, Any]:
        return {
            "previous": self.previous,
            "mean": self.mean,
            "next_mean": self.next_mean,
            "input": self.input,
            "input_mirror": self.input_mirror if self.antithetic else None,
            "looks": self.looks,
            "seeds": self.seeds,
            "ok": self.ok,
            "curvature": self.curvature,
            "antithetic": self.antithetic,
            **self.settings,
        }

    def expected(self, look: int, evaluation: int) -> oracle.Step:
        return oracle.natural_step(
            previous=self.previous,
            mean=self.mean,
            input=self.input,
            denoised=self.denoised,
            denoised_mirror=self.denoised_mirror if self.antithetic else None,
            looks=self.looks[look],
            seeds=self.seeds,
            evaluation=evaluation,
            curvature=self.curvature,
            **self.settings,
        )

    def run(self, path: str, look: int = 1, evaluation: int | None = None) -> None:
        step = kernels(path).NaturalStep(**self.buffers())
        if path == "triton":
            denoised = torch.cat([self.denoised, self.denoised_mirror]) if self.antithetic else self.denoised
            step(look, denoised, look + 1 if evaluation is None else evaluation)
            return
        mirror = self.denoised_mirror.data_ptr() if self.antithetic else 0
        arguments = () if evaluation is None else (evaluation,)
        step.step(look, self.denoised.data_ptr(), mirror, *arguments)

    def assert_agrees(self, path: str, look: int = 1, evaluation: int | None = None) -> None:
        """The step of ``path`` does to every buffer what the oracle says."""
        expected = self.expected(look, look + 1 if evaluation is None else evaluation)
        self.run(path, look, evaluation)
        assert_close(self.next_mean, expected.mean, STEP_BOUND, "mean")
        assert_close(self.input, expected.input, STEP_BOUND, "input")
        if self.antithetic:
            assert_close(self.input_mirror, expected.input_mirror, STEP_BOUND, "mirror")
        if self.curvature is not None:
            assert_close(self.curvature, expected.curvature, CURVATURE_BOUND, "curvature")
        assert torch.equal(self.ok, expected.ok)

    def item(self, index: int) -> Problem:
        """The same problem with one item alone."""
        alone = object.__new__(Problem)
        alone.antithetic = self.antithetic
        alone.settings = dict(self.settings)
        alone.looks = self.looks[:, index : index + 1].contiguous()
        for name in ("previous", "mean", "denoised", "denoised_mirror", "input", "input_mirror", "seeds", "ok"):
            setattr(alone, name, getattr(self, name)[index : index + 1].clone())
        alone.next_mean = alone.mean if self.next_mean is self.mean else self.next_mean[index : index + 1].clone()
        alone.curvature = None if self.curvature is None else self.curvature[index : index + 1].clone()
        for name in ("y", "mask"):
            value = self.settings[name]
            if isinstance(value, Tensor):
                alone.settings[name] = value[index :: len(self.mean)].clone() if len(value) > 1 else value
        return alone


MODES: dict[str, dict[str, Any]] = {
    "control": {},
    "drawn": {"drawn": True},
    "antithetic": {"antithetic": True},
    "apart": {"in_place": False, "stream": 3},
    "learned": {"learned": True},
    "learned drawn": {"learned": True, "drawn": True},
    "learned antithetic": {"learned": True, "antithetic": True},
    "diagonal": {"learned": "diagonal"},
    "diagonal drawn": {"learned": "diagonal", "drawn": True},
    "diagonal antithetic": {"learned": "diagonal", "antithetic": True},
}
CORRECTIONS: dict[str, dict[str, Any]] = {
    "none": {},
    "identity": {"correction": "mask"},
    "shared mask": {"correction": "mask", "masks": 1},
    "mask": {"correction": "mask", "masks": 3},
    "gradient": {"correction": "gradient"},
    "blocks of 2": {"correction": "block_average", "factor": 2},
    "blocks of 3": {"correction": "block_average", "factor": 3},
    "blocks of 4": {"correction": "block_average", "factor": 4},
    "one block": {"correction": "block_average", "factor": 99},
}
