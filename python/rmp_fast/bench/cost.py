"""What a call of a kernel costs on paper: bytes, operations, launches, by the tables in ``kernels/``.

``traffic.json`` says how many bytes a kernel must move per element, which tests read off its machine code;
``operations.json`` how many instructions its formulas take, which a test counts. Nothing here measures.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.resources
import json
from collections.abc import Iterable, Mapping
from typing import Any

__all__ = ["KINDS", "PROCESSOR_KERNELS", "Work", "call", "natural_step", "perturb"]

#: Kinds of instructions: floating point (a fused multiply-add is one), integer and logic, and the slow ones (roots,
#: divisions, conversions).
KINDS = ("floating", "integer", "special")

_COSINE = ("cosine_fold", "cosine_unfold", "cosine_turn", "cosine_turn_back")
#: Those that run on a CPU alone: a card transforms by matrices, and takes conjugate gradients from torch.
PROCESSOR_KERNELS = (*_COSINE, "conjugate_step", "conjugate_turn", "biharmonic")


# Arrays that are read once and written.
_CHANGED = {"conjugate_step": ("solution", "residual"), "conjugate_turn": ("direction",)}


@dataclasses.dataclass(frozen=True)
class Work:
    """One call of a kernel on a batch.

    Attributes:
        kernel: its name among the launchers.
        options: what it was asked for beyond that.
        images: items of the batch.
        image_bytes: read or written per item.
        shared_bytes: read once for all items, such as a mask that all share.
        formulas: how often a formula is evaluated per item.
        launches: kernels that CUDA launches for it.
        fresh_bytes: of ``image_bytes``, written to memory that the kernel did not read: a CPU fetches it all the same.
        overwritten_bytes: of ``image_bytes``, written where the kernel has read; the rest of ``image_bytes`` is read.
        staged: whether the CPU computes in a cache, on data fetched before, so that arithmetic and memory take turns.
    """

    kernel: str
    options: tuple[str, ...]
    images: int
    image_bytes: float
    shared_bytes: float
    formulas: Mapping[str, float]
    launches: int
    fresh_bytes: float = 0.0
    overwritten_bytes: float = 0.0
    staged: bool = False

    @property
    def name(self) -> str:
        """Kernel and options in words."""
        return ", ".join((self.kernel, *self.options))

    @property
    def bytes(self) -> float:
        """Bytes that must be read or written, by the whole batch."""
        return self.images * self.image_bytes + self.shared_bytes

    @property
    def read_share(self) -> float:
        """What part of :attr:`bytes` is read."""
        written = self.images * (self.fresh_bytes + self.overwritten_bytes)
        return 1 - written / self.bytes if self.bytes else 0.0

    @property
    def normals(self) -> float:
        """Standard normals that the batch needs."""
        return 4 * self.images * self.formulas.get("philox", 0.0)

    @property
    def operations(self) -> dict[str, float]:
        """Instructions of the batch, by kind."""
        return self._instructions(self.formulas)

    @property
    def operations_beside_normals(self) -> dict[str, float]:
        """:attr:`operations` without those that make normals."""
        return self._instructions({f: n for f, n in self.formulas.items() if f not in ("philox", "box_muller")})

    def of(self, images: int) -> Work:
        """The same for another batch."""
        return dataclasses.replace(self, images=images)

    def _instructions(self, formulas: Mapping[str, float]) -> dict[str, float]:
        counts = _operations()["formulas"]
        return {kind: self.images * sum(n * counts[f][kind] for f, n in formulas.items()) for kind in KINDS}


def natural_step(
    numbers: int, *, perturbed: bool, correction: str = "none", antithetic: bool = False, drawn: bool = False,
    precision: str = "fixed", in_place: bool = False, block_numbers: int = 0, factor: int = 1, width: int = 0,
    shared_mask: bool | None = None,
) -> Work:  # fmt: skip
    """The step of one image.

    Args:
        numbers: N of an image.
        perturbed: whether the next look goes through noise.
        correction: ``"none"``, ``"identity"``, ``"mask"``, ``"block_average"`` or ``"gradient"``.
        antithetic: pairs of looks.
        drawn: the gradient is taken at the perturbed image.
        precision: ``"fixed"``, ``"isotropic"`` or ``"diagonal"``.
        in_place: the new mean overwrites the one before, or that of the level above.
        block_numbers, factor, width: of a block average, numbers of one measurement, pixels of a side, of an image row.
        shared_mask: whether all items share the mask; None: there is none.
    """
    learned = precision != "fixed"
    parts = ["always"] + ["antithetic"] * antithetic + ["drawn or learned"] * (drawn or learned)
    parts += [precision] * learned
    blocks = correction == "block_average"
    per_image = 0.0
    if blocks:
        per_image = block_numbers * sum(_traffic()["natural_step"]["per block"].values())
        parts_of_correction = []
    else:
        parts_of_correction = [] if correction == "none" else [correction]
        if correction == "gradient" and antithetic:
            parts_of_correction.append("gradient antithetic")
    # The averages of both looks of a pair are of the same measurement, which the second finds in a cache.
    traffic = [*parts, *parts_of_correction]
    once = ("mask",) if shared_mask else ()
    made = _work("natural_step", numbers, traffic, once)
    formulas = [*parts, *(("block_average",) if blocks else parts_of_correction)]
    if perturbed:
        formulas += ["perturbed"] + ["perturbed antithetic"] * antithetic
    launches = ["always"] + ["isotropic"] * (precision == "isotropic")
    quads = factor in (2, 4) and width % 4 == 0 and precision != "isotropic"
    if blocks and not quads:
        launches += ["other blocks"] + ["other blocks antithetic"] * antithetic
    table = _traffic()["natural_step"]
    read = {"next_mean": in_place, "input": drawn or learned}
    fresh = sum(table["always"][name] for name, is_read in read.items() if not is_read)
    fresh += table["antithetic"]["input_mirror"] if antithetic else 0.0
    overwritten = sum(table["always"][name] for name, is_read in read.items() if is_read)
    overwritten += table["diagonal"]["curvature"] / 2 if precision == "diagonal" else 0.0
    shown = [] if correction == "none" else [correction.replace("_", " ")]
    shown += ["antithetic"] * antithetic + ["drawn"] * drawn + [f"{precision} precision"] * learned
    shown += ["noise"] * perturbed
    return dataclasses.replace(
        made, options=tuple(shown), image_bytes=made.image_bytes + per_image,
        formulas=_formulas("natural_step", numbers, formulas), launches=_launches("natural_step", launches),
        fresh_bytes=fresh * numbers, overwritten_bytes=overwritten * numbers,
    )  # fmt: skip


def perturb(numbers: int, *, antithetic: bool = False, diagonal: bool = False) -> Work:
    """The first perturbation of a chain, which reads the mean and writes the input."""
    table = _traffic()["natural_step"]
    each = sum(table["isotropic"].values()) + table["always"]["input"]
    each += table["antithetic"]["input_mirror"] if antithetic else 0
    each += table["diagonal"]["curvature"] / 2 if diagonal else 0  # read and not written
    formulas = _formulas("natural_step", numbers, ["perturbed"] + ["perturbed antithetic"] * antithetic)
    fresh = each - table["isotropic"]["next_mean"]
    launches = _launches("natural_step", ["always"])
    return Work("perturb", (), 1, each * numbers, 0.0, formulas, launches, fresh * numbers)


def call(kernel: str, arguments: tuple[Any, ...]) -> Work:
    """The work of a call of one of the operators' kernels.

    Args:
        kernel: ``"mask"``, ``"block_average"``, ``"block_average_adjoint"``, ``"separable_blur"``, ``"spectral"``,
            ``"clip_gradient"``, ``"normals"`` or one of :data:`PROCESSOR_KERNELS`.
        arguments: the positional ones, as ``rmp_fast._core`` takes them.
    """
    if kernel == "mask":
        x, mask, _ = arguments
        once = ("mask",) if mask.shape[0] == 1 < x.shape[0] else ()
        return _work(kernel, x[0].numel(), ["always"], once).of(x.shape[0])
    if kernel in ("block_average", "block_average_adjoint"):
        first, factor, last = arguments
        pixels, blocks = (first, last) if kernel == "block_average" else (last, first)
        small = blocks[0].numel() * sum(_traffic()[kernel]["per block"].values())
        made = _work(kernel, pixels[0].numel(), ["always"]).of(pixels.shape[0])
        fresh = small if kernel == "block_average" else made.fresh_bytes
        made = dataclasses.replace(made, image_bytes=made.image_bytes + small, fresh_bytes=fresh)
        return dataclasses.replace(made, options=(f"factor {factor}",))
    if kernel == "separable_blur":
        x, vertical, horizontal, _boundary, adjoint, _ = arguments
        taps = vertical.numel() + horizontal.numel()
        made = _work(kernel, x[0].numel(), ["always"]).of(x.shape[0])
        shown = (f"{vertical.numel()} x {horizontal.numel()} taps", *(["adjoint"] if adjoint else []))
        return dataclasses.replace(
            made, options=shown, formulas=_formulas(kernel, x[0].numel() * taps, ["per tap"]), staged=True,
            overwritten_bytes=made.fresh_bytes,  # by the second pass
        )  # fmt: skip
    if kernel == "spectral":
        c, energy, _, _, out, _ = arguments
        kind = "complex" if c.is_complex() else "real"
        once = ("energy",) if energy.shape[0] == 1 < c.shape[0] else ()
        made = _work(kernel, c[0].numel(), [kind], once).of(c.shape[0])
        overwrites = out.data_ptr() == c.data_ptr()
        return dataclasses.replace(
            made, options=(kind,), fresh_bytes=0.0 if overwrites else made.fresh_bytes,
            overwritten_bytes=made.fresh_bytes if overwrites else 0.0,
        )  # fmt: skip
    if kernel in _COSINE:
        image = arguments[0] if kernel == "cosine_turn_back" else arguments[-1]
        made = _work(kernel, image[0].numel(), ["always"])
        spectrum = 0
        if kernel in ("cosine_unfold", "cosine_turn"):
            spectrum = sum(_traffic()[kernel]["per frequency"].values()) * arguments[0][0].numel()
        overwritten = made.image_bytes / 2 if kernel == "cosine_turn_back" else 0.0
        return dataclasses.replace(
            made.of(len(image)), image_bytes=made.image_bytes + spectrum, overwritten_bytes=overwritten
        )
    if kernel in ("conjugate_step", "conjugate_turn"):
        return _conjugate(kernel, *arguments)
    if kernel == "biharmonic":
        x, _, plus, out = arguments
        made = _work(kernel, x[0].numel(), ["always"]).of(len(x))
        overwrites = out.data_ptr() == plus.data_ptr()
        return dataclasses.replace(
            made, fresh_bytes=0.0 if overwrites else made.fresh_bytes,
            overwritten_bytes=made.fresh_bytes if overwrites else 0.0,
        )  # fmt: skip
    if kernel == "clip_gradient":
        return _clip_gradient(*arguments)
    seeds, _, _, out = arguments
    return _work("normals", out.numel() // seeds.numel(), ["always"]).of(seeds.numel())


def _conjugate(kernel: str, direction: Any, *others: Any) -> Work:
    preconditioned = kernel == "conjugate_turn" and others[0].data_ptr() != others[1].data_ptr()
    parts = ["always"] + ["preconditioned"] * preconditioned
    made = _work(kernel, direction[0].numel(), parts).of(len(direction))
    overwritten = direction[0].numel() * sum(_traffic()[kernel]["always"][name] / 2 for name in _CHANGED[kernel])
    return dataclasses.replace(made, options=("preconditioned",) * preconditioned, overwritten_bytes=overwritten)


def _clip_gradient(gradient: Any, direction: Any, _limit: Any, _weight: Any, residual: Any, out: Any) -> Work:
    parts = ["always"] + ["held"] * (direction is not None)
    made = _work("clip_gradient", gradient[0].numel(), parts)
    formulas, measured = dict(made.formulas), 0.0
    if residual is not None:
        numbers = residual[0].numel()
        measured = numbers * sum(_traffic()["clip_gradient"]["per number measured"].values())
        for formula, count in _formulas("clip_gradient", numbers, ["per number measured"]).items():
            formulas[formula] = formulas.get(formula, 0.0) + count
    sums = direction is not None or residual is not None
    shown = ["held"] * (direction is not None) + ["divided"] * (residual is not None)
    overwrites = out.data_ptr() == gradient.data_ptr()
    return dataclasses.replace(
        made, options=tuple(shown), images=len(gradient), image_bytes=made.image_bytes + measured, formulas=formulas,
        launches=_launches("clip_gradient", ["always"] + ["sums"] * sums),
        fresh_bytes=0.0 if overwrites else made.fresh_bytes,
        overwritten_bytes=made.fresh_bytes if overwrites else 0.0,
    )  # fmt: skip


@functools.cache
def _traffic() -> dict[str, Any]:
    return _table("traffic.json")


@functools.cache
def _operations() -> dict[str, Any]:
    return _table("operations.json")


def _table(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((importlib.resources.files("rmp_fast._kernels") / name).read_text())
    return found


def _work(kernel: str, numbers: int, parts: Iterable[str], once: Iterable[str] = ()) -> Work:
    """A call for one image with the traffic and formulas of these parts of the tables."""
    parts = list(parts)
    arrays = [(array, size) for part in parts for array, size in _traffic()[kernel].get(part, {}).items()]
    each = numbers * sum(size for array, size in arrays if array not in once)
    shared = numbers * sum(size for array, size in arrays if array in once)
    fresh = numbers * sum(size for array, size in arrays if array == "out")
    formulas, launches = _formulas(kernel, numbers, parts), _launches(kernel, ["always"])
    return Work(kernel, (), 1, each, shared, formulas, launches, fresh)


def _formulas(kernel: str, numbers: int, parts: Iterable[str]) -> dict[str, float]:
    total: dict[str, float] = {}
    for part in parts:
        for formula, count in _operations()["kernels"][kernel].get(part, {}).items():
            total[formula] = total.get(formula, 0.0) + numbers * count
    return total


def _launches(kernel: str, parts: Iterable[str]) -> int:
    return sum(_operations()["launches"][kernel][part] for part in parts)
