"""Calls of everything in ``_core`` with arguments that hardly ever fit.

What a call may do is to return or to raise one of :data:`REFUSALS`. Tensors lie between guards, so that a kernel that
writes beside one is seen even where that does not crash.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from choices import Choices, pick
from torch import Tensor

from rmp_fast import _core

REFUSALS = (ValueError, TypeError, RuntimeError, OverflowError)

_GUARD = 96
_DTYPES = (torch.float32, torch.float32, torch.float32, torch.uint8, torch.bool, torch.int64, torch.complex64,
           torch.float64, torch.float16, torch.bfloat16, torch.int32)  # fmt: skip
_SIZES = (0, 1, 2, 3, 4, 5, 7, 8, 9, 16, 17, 31, 33)
_INTEGERS = (0, 1, 2, 3, 4, 5, 8, -1, -2, 63, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**62, 2**63 - 1, -(2**63), 2**63)
_FLOATS = (0.0, 1.0, -1.0, 0.5, 1e-30, 1e30, float("inf"), float("nan"))
_PATHS = (*(None,) * 12, *_core.cpu_paths() * 6, "cuda", "avx9")


@dataclasses.dataclass
class Arena:
    """Tensors of one call, and the memory around them."""

    choices: Choices
    owners: list[tuple[Tensor, int, int]] = dataclasses.field(default_factory=list)
    shapes: list[tuple[int, ...]] = dataclasses.field(default_factory=list)

    def shape(self) -> tuple[int, ...]:
        """Often one that was there before, or that with an axis changed."""
        if self.shapes and self.choices.integer(0, 3):
            shape = list(pick(self.choices, self.shapes))
            if shape and self.choices.integer(0, 3) == 0:
                shape[self.choices.integer(0, len(shape) - 1)] = pick(self.choices, _SIZES)
        else:
            shape = [pick(self.choices, _SIZES) for _ in range(pick(self.choices, (4, 4, 4, 3, 2, 1, 0, 5)))]
        self.shapes.append(tuple(shape))
        return tuple(shape)

    def tensor(self, dtype: torch.dtype | None = None, shape: tuple[int, ...] | None = None) -> Any:
        """Something in a tensor's place; of ``dtype`` and ``shape`` more often than not, where they are given."""
        odd = self.choices.integer(0, 149)
        if odd == 0:
            return pick(self.choices, (None, 1, "x", [1.0], torch.zeros(2).numpy(), object()))
        dtype = pick(self.choices, _DTYPES) if dtype is None or odd == 1 else dtype
        shape = self.shape() if shape is None or odd == 2 else shape
        count = int(torch.Size(shape).numel())
        whole = torch.full((count + 2 * _GUARD,), 1, dtype=dtype)
        self.owners.append((whole, _GUARD, count))
        made = whole[_GUARD : _GUARD + count]
        if made.is_floating_point() or made.is_complex():
            made.fill_(pick(self.choices, _FLOATS))
        made = made.reshape(shape)
        if odd == 3 and made.ndim > 1:
            return made.transpose(0, made.ndim - 1)
        if odd == 4 and made.ndim:
            return made[::2]
        if odd == 5 and made.is_floating_point():
            return made.detach().requires_grad_()
        if odd == 6 and made.is_complex():
            return made.conj()
        return made

    def integer(self) -> int:
        """Small, or now and then at the end of some range."""
        return pick(self.choices, _INTEGERS if self.choices.integer(0, 7) == 0 else (0, 1, 2, 3, 4, 7))

    def check_guards(self) -> None:
        """Nothing was written beside a tensor."""
        for whole, begin, count in self.owners:
            beside = torch.cat([whole[:begin], whole[begin + count :]])
            assert bool((beside == 1).all()), f"memory beside a tensor of {count} {whole.dtype} was overwritten"


def call(choices: Choices) -> str:
    """One call; returns the name of what was called and whether it worked."""
    arena = Arena(choices)
    # The arguments of a step are so many that they fit in one call of a hundred.
    name = pick(choices, (*_CALLS, *("NaturalStep",) * 3))
    try:
        _CALLS[name](arena)
        outcome = "worked"
    except REFUSALS as error:
        outcome = "refused" if str(error) else "refused without a word"
    assert "without" not in outcome, f"{name} {outcome}"
    arena.check_guards()
    return f"{name} {outcome}"


def _options(arena: Arena) -> dict[str, Any]:
    return {"path": pick(arena.choices, _PATHS), "cuda_stream": pick(arena.choices, (*(0,) * 20, 1, -1, 2**64))}


def _mask(arena: Arena) -> None:
    shape = arena.shape()
    kept = (1, *shape[1:]) if arena.choices.integer(0, 1) else shape
    x, mask = arena.tensor(torch.float32, shape), arena.tensor(torch.uint8, kept)
    _core.mask(x, mask, arena.tensor(torch.float32, shape), **_options(arena))


def _blocks(arena: Arena) -> None:
    shape, factor = arena.shape(), arena.integer()
    averages = shape
    if len(shape) >= 2 and factor >= 1:
        averages = (*shape[:-2], *(-(-n // factor) for n in shape[-2:]))
    image, small = arena.tensor(torch.float32, shape), arena.tensor(torch.float32, averages)
    if arena.choices.integer(0, 1):
        _core.block_average(image, factor, small, **_options(arena))
    else:
        _core.block_average_adjoint(small, factor, image, **_options(arena))


def _blur(arena: Arena) -> None:
    shape = arena.shape()
    taps = [arena.tensor(torch.float32, (pick(arena.choices, (1, 3, 5, 9, 33, 101) * 4 + (0, 2)),)) for _ in range(2)]
    boundary = pick(arena.choices, ("circular", "reflect", "replicate") * 5 + ("zero",))
    x = arena.tensor(torch.float32, shape)
    out = x if arena.choices.integer(0, 4) == 0 else arena.tensor(torch.float32, shape)
    scratch = None if arena.choices.integer(0, 1) else arena.tensor(torch.float32, shape)
    adjoint = bool(arena.choices.integer(0, 1))
    _core.separable_blur(x, *taps, boundary, adjoint, out, scratch=scratch, **_options(arena))


def _spectral(arena: Arena) -> None:
    shape, dtype = arena.shape(), pick(arena.choices, (torch.float32, torch.complex64))
    energy = (1, *shape[1:]) if arena.choices.integer(0, 1) else shape
    c, data = arena.tensor(dtype, shape), arena.tensor(dtype, shape)
    squares, ratio = arena.tensor(torch.float32, energy), arena.tensor(torch.float32, shape[:1])
    update = bool(arena.choices.integer(0, 1))
    _core.spectral(c, squares, data, ratio, arena.tensor(dtype, shape), update, **_options(arena))


def _cosine(arena: Arena) -> None:
    shape, path = arena.shape(), pick(arena.choices, _PATHS)
    height, width = shape[-2:] if len(shape) >= 2 else (1, 1)
    image, spectrum = arena.tensor(torch.float32, shape), arena.tensor(torch.complex64, (*shape[:-1], width // 2 + 1))
    turns = [arena.tensor(torch.complex64, (n // 2 + 1,)) for n in (height, width)]
    step = arena.choices.integer(0, 3)
    if step == 0:
        out = image if arena.choices.integer(0, 4) == 0 else arena.tensor(torch.float32, shape)
        _core.cosine_fold(image, out, path=path)
    elif step == 1:
        _core.cosine_unfold(spectrum, image, path=path)
    elif step == 2:
        _core.cosine_turn(spectrum, *turns, image, path=path)
    else:
        _core.cosine_turn_back(image, *turns, path=path)


def _conjugate(arena: Arena) -> None:
    shape, path = arena.shape(), pick(arena.choices, _PATHS)
    direction, *others = (arena.tensor(torch.float32, shape) for _ in range(4))
    numbers = [arena.tensor(torch.float64, shape[:1]) for _ in range(3)]
    step = arena.choices.integer(0, 2)
    if step == 0:
        _core.conjugate_step(direction, *others, *numbers, path=path)
    elif step == 1:
        towards = pick(arena.choices, others[:2])
        _core.conjugate_turn(direction, towards, others[0], *numbers[:2], path=path)
    else:
        out = direction if arena.choices.integer(0, 4) == 0 else pick(arena.choices, others[:2])
        _core.biharmonic(direction, pick(arena.choices, _FLOATS), others[0], out, path=path)


def _clip(arena: Arena) -> None:
    shape = arena.shape()
    gradient = arena.tensor(torch.float32, shape)
    held = pick(arena.choices, (0, 1, 1, 2))
    direction, limit, weight = (
        arena.tensor(torch.float32, size) if held == 1 or (held == 2 and arena.choices.integer(0, 1)) else None
        for size in (shape, shape[:1], shape[:1])
    )
    measured = (*shape[:1], *arena.shape()[1:]) if arena.choices.integer(0, 3) else arena.shape()
    residual = arena.tensor(torch.float32, measured) if arena.choices.integer(0, 1) else None
    out = gradient if arena.choices.integer(0, 2) == 0 else arena.tensor(torch.float32, shape)
    scratch = None if arena.choices.integer(0, 3) else arena.tensor(torch.float64, (*shape[:1], 1, 3))
    _core.clip_gradient(gradient, direction, limit, weight, residual, out, scratch=scratch, **_options(arena))


def _normals(arena: Arena) -> None:
    shape = arena.shape()
    seeds = arena.tensor(torch.int64, shape[:1])
    _core.normals(seeds, arena.integer(), arena.integer(), arena.tensor(torch.float32, shape), **_options(arena))


def _philox(arena: Arena) -> None:
    words = [[arena.integer() for _ in range(pick(arena.choices, (*(n,) * 20, 0, n + 1)))] for n in (4, 2)]
    _core.philox(*words, path=pick(arena.choices, _PATHS))


def _step(arena: Arena) -> None:
    shape, looks = arena.shape(), pick(arena.choices, (1, 2, 3, 3, 3, 0))
    items, antithetic = shape[:1], bool(arena.choices.integer(0, 2) == 0)
    correction = pick(arena.choices, ("none", "mask", "block_average", "gradient") * 5 + ("identity",))
    factor = arena.integer()
    measured = shape
    if correction == "block_average" and len(shape) == 4 and factor >= 1:
        measured = (*shape[:2], *(-(-n // factor) for n in shape[2:]))
    elif correction == "gradient" and antithetic and shape:
        measured = (2 * shape[0], *shape[1:])
    images = {name: arena.tensor(torch.float32, shape) for name in ("previous", "mean", "next_mean", "input")}
    if arena.choices.integer(0, 4) == 0:
        images[pick(arena.choices, ("previous", "next_mean", "input"))] = images["mean"]
    curvature = pick(arena.choices, (None, items, shape))
    step = _core.NaturalStep(
        **images,
        input_mirror=arena.tensor(torch.float32, shape) if antithetic or arena.choices.integer(0, 3) == 0 else None,
        looks=arena.tensor(torch.float32, (looks, *items, 8)),
        seeds=arena.tensor(torch.int64, items),
        ok=arena.tensor(pick(arena.choices, (torch.uint8, torch.bool)), items),
        curvature=None if curvature is None else arena.tensor(torch.float32, curvature),
        drawn=bool(arena.choices.integer(0, 1)),
        correction=correction,
        y=arena.tensor(torch.float32, measured) if arena.choices.integer(0, 9) else None,
        mask=arena.tensor(torch.uint8, shape) if arena.choices.integer(0, 1) else None,
        factor=factor,
        antithetic=antithetic,
        stream=arena.integer(),
        path=pick(arena.choices, _PATHS),
    )
    # Addresses are trusted to be those of such tensors, so these are; or 0, which is refused.
    made = torch.full((2, *images["mean"].shape), pick(arena.choices, _FLOATS))
    addresses = [pick(arena.choices, (*(half.data_ptr(),) * 20, 0)) for half in made]
    for _ in range(arena.choices.integer(1, 3)):
        if arena.choices.integer(0, 1):
            step.perturb(arena.choices.integer(-1, looks), arena.integer())
        else:
            mirror = addresses[1] if antithetic or arena.choices.integer(0, 5) == 0 else 0
            look = arena.choices.integer(-1, looks)
            step.step(look, addresses[0], mirror, pick(arena.choices, (None, 0, arena.integer())))


def _status(_: Arena) -> None:
    assert _core.cpu_path() in _core.cpu_paths()
    assert _core.cuda_problem() != ""


_CALLS = {
    "mask": _mask, "block_average": _blocks, "separable_blur": _blur, "spectral": _spectral, "cosine": _cosine,
    "conjugate": _conjugate, "clip_gradient": _clip, "normals": _normals, "philox": _philox, "NaturalStep": _step,
    "status": _status,
}  # fmt: skip
