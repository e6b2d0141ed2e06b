"""How a plan runs its prior's network: memory layout, precision and compilation. The prior itself is never changed."""

from __future__ import annotations

import copy
import threading
import time
import types
import warnings
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from ._checks import check_choice
from .priors import GaussianMixture, Prior
from .tiling import Tiled

__all__ = [
    "LEAST_PSNR",
    "OPTIONS",
    "PRECISIONS",
    "Network",
    "Result",
    "Stats",
    "check",
    "is_settled",
    "prepare",
    "settle",
    "stats_of",
]

PRECISIONS = ("float32", "bfloat16")

#: Arguments of a plan that say how its network is run.
OPTIONS = ("compile", "precision", "channels_last")

#: PSNR in dB that an estimate in bfloat16 must have against the one in float32.
LEAST_PSNR = 45.0

# Compiled and eager networks add the same float32 products in another order: each of a few dozen layers loses about
# 1e-7 of its size. Miscompiled ones are wrong by much more than 1e-4.
_AGREEMENT = 1e-4

_Denoise = Callable[[Tensor, Tensor], Tensor]
Stats = dict[str, float]
Result = tuple[Tensor, Tensor | None, Tensor]  # mean, variance, ok

# Of every weight that was laid out anew, by layout: its address and version then, and the copy, which plans share.
_laid = WeakTensorKeyDictionary()


class Network(Prior):
    """A prior as one plan runs it; see :func:`prepare`.

    Attributes:
        precision: in which it runs now.
        settled: False until the first execution in bfloat16 has been compared with float32.
    """

    def __init__(self, prior: Prior, precision: str, device: torch.device) -> None:
        self.prior, self.device = prior, device
        self.name, self.data_variance, self.channels = prior.name, prior.data_variance, prior.channels
        self.evaluations = prior.evaluations
        self._denoise: _Denoise = prior.denoise if precision == "float32" else _in_bfloat16(prior.denoise, device)
        self._compiled: dict[tuple[torch.Size, bool], _Denoise] = {}
        self._asked: tuple[list[tuple[int, ...]], torch.dtype, bool] | None = None
        self._seconds = 0.0
        self._guard = threading.Lock()
        self.precision = precision
        self.settled = precision == "float32"

    def denoise(self, x: Tensor, s: Tensor) -> Tensor:
        """See :meth:`rmp_fast.priors.Prior.denoise`."""
        if not self._compiled:
            return self._denoise(x, s)
        differentiates = x.requires_grad and torch.is_grad_enabled()
        compiled = self._compiled.get((x.shape, differentiates))
        if compiled is None:
            return self._denoise(x, s)
        if differentiates:
            return compiled(x, s)
        # Under the mode that it was compiled in: in another one torch would compile once more.
        with torch.inference_mode(False), torch.no_grad():
            return compiled(x, s)

    def check_image_shape(self, shape: tuple[int, ...]) -> None:
        """See :meth:`rmp_fast.priors.Prior.check_image_shape`."""
        self.prior.check_image_shape(shape)

    @property
    def stats(self) -> Stats:
        """``compiled`` and ``bfloat16`` (1 or 0), seconds of compiling, once, and of this run's guard."""
        return {
            "compiled": float(bool(self._compiled)),
            "bfloat16": float(self.precision == "bfloat16"),
            "compile_seconds": self._seconds,
            "guard_seconds": 0.0,
        }

    def compile(self, shapes: list[tuple[int, ...]], dtype: torch.dtype, gradients: bool) -> None:
        """Compile for inputs of these shapes, and gradients with respect to them; keep to eager where that fails."""
        self._asked = shapes, dtype, gradients
        started = time.perf_counter()
        try:
            for shape in shapes:
                self._compile(shape, dtype, gradients)
        except Exception as error:  # inductor raises whatever its C++ or Triton compiler does
            self._compiled.clear()
            _warn(f"the network of {self.name!r} is not compiled and runs eagerly: {_reason(error)}")
        self._seconds += time.perf_counter() - started

    def _compile(self, shape: tuple[int, ...], dtype: torch.dtype, gradients: bool) -> None:
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(shape, generator=generator).to(self.device, dtype)
        s = torch.ones(shape[0], dtype=dtype, device=self.device)
        # Weights become constants, laid out for their kernels, where no gradient is taken; freezing needs that.
        options: dict[str, Any] = {} if gradients else {"freezing": True}
        compiled: _Denoise = torch.compile(_fresh(self._denoise), dynamic=False, options=options)
        x.requires_grad_(gradients)
        with torch.inference_mode(False), torch.set_grad_enabled(gradients):
            out, expected = compiled(x, s), self._denoise(x, s)
            if gradients:
                direction = torch.randn(shape, generator=generator).to(out)
                pair = [torch.autograd.grad(d, x, direction)[0] for d in (out, expected)]
                self._compare(pair[0], pair[1])
        self._compare(out.detach(), expected.detach())
        self._compiled[x.shape, gradients] = compiled

    def _compare(self, out: Tensor, expected: Tensor) -> None:
        if self.precision != "float32":
            return  # the estimate's own comparison judges it
        error = float((out - expected).norm() / expected.norm().clamp_min(1e-30))
        if not error < _AGREEMENT:
            raise RuntimeError(f"compiled, it differs from itself by {error:.1e} of its size")

    def settle(self, found: Result, again: Callable[[], Result], span: float, stats: Stats) -> Result:
        """What an execution returns: ``found`` (mean, variance, ok), or the first time in bfloat16 what float32 says.

        Below :data:`LEAST_PSNR` in any item the network goes back to float32, with a warning. The comparison's time is
        ``stats["guard_seconds"]``.

        Args:
            again: runs the same chain once more; its results may lie in the buffers of ``found``.
            span: of the images' range, for the PSNR.
        """
        if self.settled:
            return found
        with self._guard:  # plans may share a network, and the other may have settled it meanwhile
            return found if self.settled else self._settle(found, again, span, stats)

    def _settle(self, found: Result, again: Callable[[], Result], span: float, stats: Stats) -> Result:
        found = _cloned(found)
        started = time.perf_counter()
        kept = self._denoise, self._compiled
        self._denoise, self._compiled = self.prior.denoise, {}
        try:
            exact = _cloned(again())
        except BaseException:
            self._denoise, self._compiled = kept
            raise
        psnr = _least_psnr(found, exact, span)
        if psnr >= LEAST_PSNR:
            self._denoise, self._compiled = kept
        else:
            found = exact
            self.precision = "float32"
            _warn(
                f"`precision` 'bfloat16' of {self.name!r}: an estimate has {psnr:.1f} dB against float32, less than "
                f"{LEAST_PSNR:g}; this plan goes back to float32"
            )
            if kept[1] and self._asked is not None:
                self.compile(*self._asked)
            stats.update(self.stats)
        self.settled = True
        stats["guard_seconds"] = time.perf_counter() - started
        return found

    def refuse_bfloat16(self, reason: str) -> None:
        """Run in float32 instead, and say so."""
        self.precision, self.settled, self._denoise = "float32", True, self.prior.denoise
        _warn(f"`precision` 'bfloat16' is not used, the network runs in float32: {reason}")


def check(prior: Prior, compile: object, precision: str, channels_last: object, backend: str) -> None:
    """TypeError or ValueError where :func:`prepare` cannot take these arguments, whose meanings are there."""
    check_choice("precision", precision, PRECISIONS)
    for name, value in (("compile", compile), ("channels_last", channels_last)):
        if not isinstance(value, bool) and not (name == "channels_last" and value is None):
            raise TypeError(f"`{name}` must be True or False, got {type(value).__name__}")
    asked = "`compile`" if compile else "`precision` 'bfloat16'" if precision == "bfloat16" else ""
    if (asked or channels_last is not None) and _network_of(prior) is not None:
        raise ValueError(
            f"{asked or '`channels_last`'} does not go with the `network` of another plan, which runs as that plan has "
            "it; give that plan's `prior`, or leave it out"
        )
    if asked and isinstance(prior, GaussianMixture):
        raise ValueError(f"{asked} is for priors made of a network; {prior.name!r} is computed in float64")
    if asked and backend == "reference":
        raise ValueError(f"{asked} does not go with `backend` 'reference', which runs the prior as it is")


def prepare(
    prior: Prior, shapes: Iterable[tuple[int, ...]], *, compile: bool, precision: str, channels_last: bool | None,
    gradients: bool, backend: str, device: torch.device, dtype: torch.dtype,
) -> Prior:  # fmt: skip
    """The prior as a plan runs it, for arguments that :func:`check` has seen.

    Args:
        prior: whose network is laid out, run in ``precision`` and compiled, in copies where anything changes: those do
            not follow weights that change later. The :attr:`~rmp_fast.Plan.network` of another plan is run as that plan
            has it, compilations included, and takes none of these settings.
        shapes: (B, ...) of the inputs it will get; compiled for these, eager for others.
        compile: with frozen weights (where no gradient is taken), once, here, for the number of threads set now;
            checked against eager on random input.
        precision: ``"float32"``, or ``"bfloat16"``: the network alone, its input and output stay float32.
        channels_last: layout of convolution weights; None: channels last on processors, as they are elsewhere.
        gradients: whether u -> J^T u is needed; weights never get gradients.
        backend, device, dtype: of the plan, resolved.

    Raises:
        ValueError: ``channels_last`` was given, and the network cannot be copied.

    Warns:
        RuntimeWarning: with the reason where compiling fails or the processor has no bfloat16; the network then runs
            eagerly, or in float32.
    """
    if backend == "reference" or isinstance(prior, GaussianMixture) or _network_of(prior) is not None:
        return prior
    tiled = prior if isinstance(prior, Tiled) else None
    network = Network(_laid_out(tiled.prior if tiled else prior, channels_last, device), precision, device)
    if precision == "bfloat16":
        reason = _without_bfloat16(device)
        if reason:
            network.refuse_bfloat16(reason)
    sizes = [size for shape in shapes if shape[0] for size in (tiled.shapes(shape) if tiled else [shape])]
    if compile and sizes:
        network.compile(sorted(set(sizes)), dtype, gradients)
    return tiled.around(network) if tiled else network


def settle(prior: Prior, found: Result, again: Callable[[], Result], span: float, stats: Stats) -> Result:
    """:meth:`Network.settle` where ``prior`` is what :func:`prepare` made of a network, else ``found``."""
    network = _network_of(prior)
    return found if network is None else network.settle(found, again, span, stats)


def is_settled(prior: Prior) -> bool:
    """Whether no comparison of bfloat16 with float32 is still to come."""
    network = _network_of(prior)
    return network is None or network.settled


def stats_of(prior: Prior) -> Stats:
    """:attr:`Network.stats`, or nothing for a prior that :func:`prepare` left alone."""
    network = _network_of(prior)
    return {} if network is None else network.stats


def _warn(text: str) -> None:
    warnings.warn(text, RuntimeWarning, stacklevel=3)


def _network_of(prior: Prior) -> Network | None:
    inner = prior.prior if isinstance(prior, Tiled) else prior
    return inner if isinstance(inner, Network) else None


def _laid_out(prior: Prior, channels_last: bool | None, device: torch.device) -> Prior:
    """The prior with its modules' 4-d weights in that layout; weights that have it already are shared, not copied."""
    if channels_last is None and device.type != "cpu":
        return prior
    layout = torch.contiguous_format if channels_last is False else torch.channels_last
    modules = {key: value for key, value in vars(prior).items() if isinstance(value, nn.Module)}
    weights = [p for module in modules.values() for p in module.parameters() if p.ndim == 4]
    if all(p.is_contiguous(memory_format=layout) for p in weights):
        return prior
    result = copy.copy(prior)
    for key, module in modules.items():
        # deepcopy refuses tensors that modules derived from their weights and keep.
        derived = [value for part in module.modules() for value in vars(part).values() if isinstance(value, Tensor)]
        same = {id(t): t for t in [*module.parameters(), *module.buffers(), *derived]}
        same |= {id(p): _copy_of(p, layout) for p in weights if not p.is_contiguous(memory_format=layout)}
        try:
            setattr(result, key, copy.deepcopy(module, dict(same)))
        except (RuntimeError, TypeError) as error:
            if channels_last is None:
                return prior
            raise ValueError(
                f"`channels_last` {channels_last} needs a copy of the network of {prior.name!r}, which cannot be made: "
                f"{error}; leave it out"
            ) from error
    return result


def _copy_of(weight: Tensor, layout: torch.memory_format) -> Tensor:
    state = weight.data_ptr(), 0 if weight.is_inference() else weight._version
    held = _laid.setdefault(weight, {})
    if layout not in held or held[layout][0] != state:
        with torch.inference_mode(False):
            copied = weight.detach().clone(memory_format=layout)
        held[layout] = state, nn.Parameter(copied, requires_grad=False)
    laid_out: Tensor = held[layout][1]
    return laid_out


def _in_bfloat16(denoise: _Denoise, device: torch.device) -> _Denoise:
    def lowered(x: Tensor, s: Tensor) -> Tensor:
        with torch.autocast(device.type, torch.bfloat16):
            return denoise(x, s)

    return lowered


def _without_bfloat16(device: torch.device) -> str | None:
    """Why bfloat16 would not be faster here, or None."""
    if device.type == "cuda":
        return None if torch.cuda.is_bf16_supported(False) else f"{device} has no bfloat16 units"
    native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return None if native else "this processor has no bfloat16 instructions (AVX512_BF16 or AMX)"


def _fresh(denoise: _Denoise) -> _Denoise:
    """``denoise`` behind a code object of its own: torch counts compilations per code object, and gives up after 8."""

    def call(x: Tensor, s: Tensor) -> Tensor:
        return denoise(x, s)

    return types.FunctionType(call.__code__.replace(), call.__globals__, "call", None, call.__closure__)


def _reason(error: Exception) -> str:
    """What went wrong at the bottom of torch's layers of exceptions, in one line."""
    inner = getattr(error, "inner_exception", None) or error
    lines = [line.strip() for line in str(inner).splitlines() if line.strip()]
    return f"{type(inner).__name__}: {lines[0]}" if lines else type(inner).__name__


def _cloned(result: Result) -> Result:
    mean, variance, ok = result
    return mean.clone(), None if variance is None else variance.clone(), ok.clone()


def _least_psnr(found: Result, exact: Result, span: float) -> float:
    """The smallest PSNR of an item; of those alone that float32 kept finite."""
    error = (found[0] - exact[0]).double().square().flatten(1).mean(1)
    psnr = torch.where(found[2], -10 * (error / span**2).log10(), -torch.inf).nan_to_num(nan=-torch.inf)
    return float(psnr[exact[2]].min()) if bool(exact[2].any()) else torch.inf
