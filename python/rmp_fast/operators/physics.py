"""Operators of deepinv, unchanged."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .._checks import check_choice, check_count, shape_text
from .._optional import optional
from .base import Memo, Operator, Shape
from .forms import Form, Spectral, condition
from .function import Function, LinearFunction, try_out
from .items import pseudo_reciprocal
from .separable import significant

__all__ = ["LinearPhysics", "Physics", "from_deepinv"]

ADJOINTS = ("physics", "autograd")

# A closed form of deepinv's is believed where it solves its equation to this much of the right-hand side: transforms
# there and back, at a condition number of about 10. Tables that deepinv made in float32 fail in float64.
_SOLVES = {torch.float32: 1e-4, torch.float64: 1e-10}


class _Closed(NamedTuple):
    """Which closed forms hold: shape (C...) of coefficients V^H x of one item, V V^H = I, the form, the Gram solve."""

    coefficients: Shape = ()
    complete: bool = False
    spectral: bool = False
    solves: bool = False


class _Singular(NamedTuple):
    """A = U diag(values) V^H of a decomposable physics; ``values`` broadcast against coefficients (B, ...)."""

    module: Any
    values: Tensor


class _Runner:
    """A physics as a function of real tensors: images (B, *image) to measurements (B, *measurement).

    It runs in its own precision unless it also works in that of its input; then a converted copy of it does, made when
    it is first needed. Complex measurements become (..., 2) real ones, lists of measurements one row of numbers.
    """

    def __init__(self, physics: Any, image: Shape, batch: int | None) -> None:
        self.image, self.batch, self.physics = image, batch, physics
        held = [t for t in (*physics.parameters(), *physics.buffers()) if t.is_floating_point()]
        self.device = held[0].device if held else torch.device("cpu")
        self.dtype = torch.float64 if held and all(t.dtype == torch.float64 for t in held) else torch.float32
        self._modules: Memo[Any] = Memo()
        self._complex_images = False
        self._parts: list[tuple[Shape, bool]] = []
        self._listed = False
        self._double: bool | None = True if self.dtype == torch.float64 else None
        example = torch.rand((batch or 2, *image), generator=torch.Generator().manual_seed(0))
        example = example.to(self.device, self.dtype)
        try:
            measured = physics.A(example)
        except (RuntimeError, TypeError) as cause:
            # Some take complex images alone.
            self._complex_images = True
            try:
                measured = physics.A(example.to(self.dtype.to_complex()))
            except Exception as other:
                if str(other) == str(cause):
                    raise
                raise RuntimeError(f"{cause}; and of complex ones {type(other).__name__}: {other}") from cause
        self._listed = not isinstance(measured, Tensor)
        parts = list(measured) if self._listed else [measured]
        self._parts = [(tuple(p.shape[1:]), p.is_complex()) for p in parts]
        sizes = [(*shape, 2) if is_complex else shape for shape, is_complex in self._parts]
        self.measurement: Shape = (sum(math.prod(s) for s in sizes),) if self._listed else sizes[0]

    @property
    def double(self) -> bool:
        """Whether it works in float64, tried when first asked for."""
        if self._double is None:
            example = torch.zeros((self.batch or 2, *self.image), dtype=torch.float64, device=self.device)
            module = self.module(self.device, torch.float64)

            def keeps_it() -> bool:
                measured = self.pack(module.A(example.to(torch.complex128) if self._complex_images else example))
                images = module.A_adjoint(self.unpack(measured)) if hasattr(module, "A_adjoint") else example
                return {measured.dtype, images.dtype} <= {torch.float64, torch.complex128}

            self._double = _tried(keeps_it)
        return self._double

    def pack(self, measured: Any) -> Tensor:
        """Real numbers (B, *measurement) of what the physics measures."""
        parts = [
            torch.view_as_real(p.resolve_conj()) if p.is_complex() else p
            for p in (measured if self._listed else [measured])
        ]
        return torch.cat([p.flatten(1) for p in parts], dim=1) if self._listed else parts[0]

    def unpack(self, y: Tensor) -> Any:
        """The inverse of :meth:`pack`."""
        batch, parts, start = y.shape[0], [], 0
        for shape, is_complex in self._parts:
            size = math.prod(shape) * (2 if is_complex else 1)
            part = y[:, start : start + size] if self._listed else y
            part = part.reshape(batch, *shape, *([2] if is_complex else []))
            parts.append(torch.view_as_complex(part.contiguous()) if is_complex else part)
            start += size
        return optional("deepinv.utils", "deepinv", "from_deepinv").TensorList(parts) if self._listed else parts[0]

    def apply(self, x: Tensor) -> Tensor:
        """A(x)."""
        return self.run(x, lambda module, x: self.pack(module.A(x)), self.measurement)

    def transpose(self, y: Tensor) -> Tensor:
        """A^T y, the real part where the physics returns complex images."""

        def back(module: Any, y: Tensor) -> Tensor:
            image: Tensor = module.A_adjoint(self.unpack(y))
            return image.real if image.is_complex() else image

        return self.run(y, back, self.image, is_image=False)

    def run(self, x: Tensor, fn: Callable[[Any, Tensor], Tensor], item: Shape, is_image: bool = True) -> Tensor:
        """fn(module, x) in the module's precision, returned in that of ``x`` and in memory of its own."""
        if x.shape[0] == 0:
            return x.new_zeros((0, *item))
        dtype = self.precision(x)
        with torch.inference_mode(False):
            given = x.clone() if x.is_inference() else x
            given = given.to(dtype).contiguous()
            out = fn(
                self.module(x.device, dtype),
                given.to(dtype.to_complex()) if is_image and self._complex_images else given,
            )
            out = out.to(x.dtype) if not out.is_complex() else out.to(x.dtype.to_complex())
            shared = out.untyped_storage().data_ptr() == x.untyped_storage().data_ptr()
            return out.clone(memory_format=torch.contiguous_format) if shared else out.contiguous()

    def precision(self, x: Tensor) -> torch.dtype:
        """The dtype in which ``x`` is worked on."""
        return x.dtype if x.dtype == self.dtype or (x.dtype == torch.float64 and self.double) else self.dtype

    def module(self, device: torch.device, dtype: torch.dtype) -> Any:
        """The physics itself, or a converted copy."""
        if (device, dtype) == (self.device, self.dtype):
            return self.physics

        def convert(t: Tensor) -> Tensor:
            if t.is_complex():
                return t.to(device, dtype.to_complex())
            return t.to(device, dtype) if t.is_floating_point() else t.to(device)

        def build() -> Any:
            try:
                twin = copy.deepcopy(self.physics)
            except (TypeError, RuntimeError):  # generators of random numbers, which deepinv's slower way copies too
                twin = self.physics.clone()
            return twin._apply(convert)

        return self._modules.get((device, dtype), build)

    def __str__(self) -> str:
        return f"{type(self.physics).__name__}, image_shape={shape_text(self.image)}"


class _Converting(Operator):
    """What both kinds share: measurements as deepinv has them, and as this operator has them."""

    _runner: _Runner

    def pack(self, measured: Any) -> Tensor:
        """The measurement of this operator from deepinv's: complex and listed ones as real numbers."""
        return self._runner.pack(measured)

    def unpack(self, y: Tensor) -> Any:
        """deepinv's measurement from this operator's."""
        return self._runner.unpack(y)


class Physics(_Converting, Function):
    """y = A(u) + n for a nonlinear physics of deepinv and u the image on its own range; by :func:`from_deepinv`."""

    name = "physics"

    def __init__(self, runner: _Runner, low: float, high: float) -> None:
        self._runner = runner
        half = (high - low) / 2
        super().__init__(lambda x: runner.apply(low + half * (x + 1)), runner.measurement, runner.image, runner.batch)

    def __repr__(self) -> str:
        return f"Physics({self._runner})"


class LinearPhysics(_Converting, LinearFunction):
    """y = A x + n for a linear physics of deepinv; made by :func:`from_deepinv`.

    A decomposable physics has the spectral form and the closed Gram solve of its singular values; a circular
    ``Downsampling`` has its ``prox_l2`` as the preconditioner of two conjugate gradient steps; others take
    ``iterations`` of them.
    """

    name = "linear_physics"

    def __init__(self, runner: _Runner, adjoint: str, iterations: int) -> None:
        self._runner = runner
        back = runner.transpose if adjoint == "physics" else None
        super().__init__(runner.apply, runner.measurement, runner.image, back, iterations, runner.batch)
        self._values: Memo[_Singular] = Memo()
        self._closed: Memo[_Closed] = Memo()
        self._proximal = False

    def __repr__(self) -> str:
        return f"LinearPhysics({self._runner})"

    def prepare(self) -> None:
        """Find the closed forms in the physics's own precision."""
        deepinv = optional("deepinv.physics", "deepinv", "from_deepinv")
        runner, physics = self._runner, self._runner.physics
        like = torch.empty(0, device=runner.device, dtype=runner.dtype)
        if isinstance(physics, deepinv.DecomposablePhysics):
            self._closed_for(like)
        elif type(physics).prox_l2 is deepinv.Downsampling.prox_l2 and physics.padding == "circular":
            y = self._drawn(like, runner.measurement, 2)
            self._proximal = True
            self._proximal = _tried(lambda: float(self.iterative_solve(y, 1.0, 0.7, None, 1).residual.max()) < 1e-3)
            self.iterations = 2 if self._proximal else self.iterations

    def _closed_for(self, like: Tensor) -> _Closed:
        """What holds in the precision that serves ``like``."""
        if not hasattr(self._runner.physics, "V_adjoint"):
            return _Closed()
        dtype = self._runner.precision(like)
        return self._closed.get((like.device, dtype), lambda: self._find_closed(like.to(dtype)))

    def _find_closed(self, like: Tensor) -> _Closed:
        """Try the singular values, and keep what solves its equation."""
        bound, ratio = _SOLVES[like.dtype], 0.5
        d, y = self._drawn(like, self._runner.image, 1), self._drawn(like, self._runner.measurement, 2)
        closed = _Closed()

        def spectral() -> bool:
            nonlocal closed
            c = self._to_coefficients(d, tuple(self._singular(d).module.V_adjoint(d).shape[1:]))
            complete = float((self._from_coefficients(c) - d).norm()) <= bound * float(d.norm())
            closed = _Closed(tuple(c.shape[1:]), complete)
            found = condition(self._spectral_form(d, closed), self, d, y, 1.0, ratio**0.5)
            # With u = d_y - D: A^T (y - A d_y) = q u.
            left = self.adjoint(y - self.A(found)) - ratio * (found - d)
            return float(left.norm()) <= bound * float(self.adjoint(y - self.A(d)).norm())

        def solves() -> bool:
            variance = torch.full((len(y), *[1] * (y.ndim - 1)), ratio, dtype=y.dtype, device=y.device)
            solved = self._solve_by_values(y, torch.ones_like(variance), variance, closed)
            left = self.A(self.adjoint(solved)) + ratio * solved - y
            return float(left.norm()) <= bound * float(y.norm())

        if not _tried(spectral):
            return _Closed()
        return closed._replace(spectral=True, solves=_tried(solves))

    def _drawn(self, like: Tensor, item: Shape, seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        return torch.randn((self._runner.batch or 2, *item), generator=generator, dtype=torch.float64).to(like)

    def form(self, image_shape: Sequence[int], device: torch.device, dtype: torch.dtype) -> Form:
        """Spectral where the singular values are known, else iterative."""
        like = torch.empty(0, device=device, dtype=dtype)
        closed = self._closed_for(like)
        if not closed.spectral:
            return super().form(image_shape, device, dtype)
        self.measurement_shape(image_shape)
        return self._spectral_form(like, closed)

    def _spectral_form(self, like: Tensor, closed: _Closed) -> Spectral:
        energy = self._singular(like).values.abs().square().to(like.dtype)
        first = energy.shape[0] if energy.ndim == 1 + len(closed.coefficients) else 1
        return Spectral(
            analysis=lambda x: self._to_coefficients(x, closed.coefficients),
            synthesis=self._from_coefficients,
            project=lambda y: self._weighed(y, lambda c, v: v.conj() * c, closed.coefficients),
            energy=energy.expand(first, *closed.coefficients).contiguous(),
            complete=closed.complete,
        )

    def _singular(self, like: Tensor) -> _Singular:
        """In the precision that serves ``like``, values at its rounding level exactly 0."""
        dtype = self._runner.precision(like)

        def build() -> _Singular:
            module = self._runner.module(like.device, dtype)
            values = torch.as_tensor(module.mask, device=like.device)
            values = values if values.is_complex() or values.is_floating_point() else values.to(dtype)
            return _Singular(module, significant(values, dtype))

        return self._values.get((like.device, dtype), build)

    def _to_coefficients(self, x: Tensor, item: Shape) -> Tensor:
        return self._runner.run(x, lambda module, x: module.V_adjoint(x), item)

    def _from_coefficients(self, c: Tensor) -> Tensor:
        return self._runner.run(c, lambda module, c: module.V(c), self._runner.image, is_image=False)

    def _weighed(self, y: Tensor, weigh: Callable[[Tensor, Tensor], Tensor], item: Shape) -> Tensor:
        """weigh(U^H y, values)."""
        values = self._singular(y).values

        def back(module: Any, y: Tensor) -> Tensor:
            return weigh(module.U_adjoint(self._runner.unpack(y)), values)

        return self._runner.run(y, back, item, is_image=False)

    def _solve(self, r: Tensor, r2: Tensor, variance: Tensor, image_shape: Shape) -> Tensor:
        closed = self._closed_for(r)
        if not closed.solves or r.shape[0] == 0:
            return super()._solve(r, r2, variance, image_shape)
        return self._solve_by_values(r, r2, variance, closed)

    def _solve_by_values(self, r: Tensor, r2: Tensor, variance: Tensor, closed: _Closed) -> Tensor:
        c = self._weighed(r, lambda c, v: torch.where(v != 0, c, 0), closed.coefficients)
        column = (-1, *[1] * (c.ndim - 1))
        energy = self._singular(r).values.abs().square().to(r.dtype)
        inverse = pseudo_reciprocal(r2.reshape(column) * energy + variance.reshape(column))

        def out(c: Tensor) -> Tensor:
            runner = self._runner
            return runner.run(c, lambda module, c: runner.pack(module.U(c)), runner.measurement, is_image=False)

        # What no image can produce is noise alone.
        return out(c * inverse) + (r - out(c)) * pseudo_reciprocal(variance)

    def _preconditioner(
        self, r: Tensor, r2: Tensor, variance: Tensor, image_shape: Shape
    ) -> Callable[[Tensor], Tensor] | None:
        """(v - A prox(v)) / noise_std^2, exact where prox_l2 = argmin gamma ||A x - v||^2 + ||x||^2 is."""
        if not self._proximal or r.shape[0] == 0:
            return None
        # The difference loses the digits that r2 / noise_std^2 has; half of those of deepinv's float32 tables stay.
        floor = torch.finfo(torch.float32).eps ** 0.5
        gain = r2.clamp(min=torch.finfo(r.dtype).tiny ** 0.25)
        noise = torch.maximum(variance, floor * gain)
        gamma = (gain / noise).expand(r.shape[0], *[1] * (len(image_shape) - 1))

        def prox(module: Any, v: Tensor) -> Tensor:
            zero = v.new_zeros(image_shape)
            image: Tensor = module.prox_l2(zero, self._runner.unpack(v), gamma.to(v.dtype))
            return image

        def precondition(v: Tensor) -> Tensor:
            return (v - self._apply(self._runner.run(v, prox, self._runner.image, is_image=False))) / noise

        return precondition


def _tried(test: Callable[[], bool]) -> bool:
    """Whether a test passes; what a physics raises that has no such form, or no such precision, fails it.

    Each class of deepinv says so in its own way (RuntimeError has NotImplementedError in it). That memory ran out says
    nothing about the physics.
    """
    try:
        return test()
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, TypeError, ValueError, AttributeError):
        return False


def from_deepinv(
    physics: Any,
    image_shape: Sequence[int],
    *,
    adjoint: str = "physics",
    batch: int | None = None,
    data_range: tuple[float, float] = (0.0, 1.0),
    iterations: int = 50,
) -> Physics | LinearPhysics:
    """An operator from any physics of deepinv, tried once on random images before it is accepted.

    Only its A and A_adjoint are used, not its noise. A linear one does not depend on the range of the images: for
    measurements of images on [0, 1], as deepinv has them, plan with ``data_range=(0, 1)``, which converts them and
    their ``noise_std``. A nonlinear one gets its images on ``data_range``, and its measurements and ``noise_std`` stay
    in its own unit. Complex measurements and lists of them become real tensors: ``op.pack(y)`` turns what deepinv
    measured into what this operator measures, ``op.unpack`` back.

    Where the physics has a closed form for the Gram solve, (r2 A A^T + noise_std^2 I)^-1, it is checked and used: the
    singular values of a ``DecomposablePhysics``, the ``prox_l2`` of a circular ``Downsampling``. Others take conjugate
    gradients.

    Args:
        physics: the physics; kept, not copied, except where another device or precision is asked for. If its parameters
            are changed later, make the operator again.
        image_shape: of one item, such as (C, H, W).
        adjoint: whose adjoint of a linear physics: ``"physics"`` its own, or ``"autograd"`` the gradient of A.
        batch: number of items where the parameters of the physics, such as masks, hold one entry for each; the operator
            then takes batches of this size alone.
        data_range: (low, high) of the images that a nonlinear physics takes.
        iterations: conjugate gradient steps of the Gram solve.

    Raises:
        ImportError: deepinv is not installed.
        TypeError: ``physics`` is none of deepinv's.
        ValueError: it cannot take such images, or on them shows NaN, an item that depends on its neighbours, a linear
            physics that is not linear, an adjoint that is not its own, or a nonlinear one without gradients.
    """
    deepinv = optional("deepinv.physics", "deepinv", "rmp_fast.operators.from_deepinv")
    if not isinstance(physics, deepinv.Physics):
        raise TypeError(f"`physics` must be a deepinv physics, got {type(physics).__name__}")
    check_choice("adjoint", adjoint, ADJOINTS)
    if batch is not None:
        check_count("batch", batch)
    low, high = data_range
    if not low < high:
        raise ValueError(f"`data_range` must be (low, high) with low < high, got {data_range!r}")
    item = _item(image_shape)
    linear = isinstance(physics, deepinv.LinearPhysics)
    op: Physics | LinearPhysics
    with torch.inference_mode(False), torch.enable_grad():
        try:
            runner = _Runner(physics, item, batch)
        except Exception as cause:
            raise ValueError(
                f"`physics` {type(physics).__name__} must take images {shape_text(('B', *item))}, got "
                f"{type(cause).__name__}: {cause}"
                + ("" if batch else "; if it has parameters for each item, give `batch`")
            ) from cause
        op = LinearPhysics(runner, adjoint, iterations) if linear else Physics(runner, low, high)
        try:
            try_out(op, not linear or adjoint == "autograd", runner.device, runner.dtype)
        except ValueError as cause:
            hint = "; adjoint='autograd' takes the gradient of A instead" if str(cause).startswith("`adjoint`") else ""
            raise ValueError(f"{type(physics).__name__}: {cause}{hint}") from cause
        if isinstance(op, LinearPhysics):
            op.prepare()
    return op


def _item(shape: Iterable[int]) -> Shape:
    item = tuple(shape)
    if not item or not all(isinstance(n, int) and n >= 1 for n in item):
        raise ValueError(f"`image_shape` must be the shape of one item, such as (C, H, W), each >= 1, got {shape!r}")
    return item
