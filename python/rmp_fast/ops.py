"""The arithmetic of the operators: a kernel where one applies, else the same in plain torch.

Every function takes ``backend``: ``"auto"`` uses the kernels of the tensors' device for float32 tensors that autograd
does not follow, ``"cpu"``, ``"cuda"`` and ``"triton"`` insist on them, ``"torch"`` never uses them. The torch forms are
complete: any device, float32 and float64, differentiable.

They are registered as ``torch.ops.rmp_fast.*`` too, with ``out`` variants that return nothing, for programs that
torch compiles or exports. These are not differentiable.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from . import cuda_ops, triton_ops
from ._checks import check_choice, check_shape, shape_text

__all__ = [
    "BACKENDS",
    "BOUNDARIES",
    "available",
    "biharmonic",
    "block_average",
    "block_average_adjoint",
    "block_counts",
    "block_repeat",
    "boundary_index",
    "clip_gradient",
    "fold",
    "kernels",
    "mask",
    "pad",
    "separable_blur",
    "spectral",
    "unavailable_reason",
]

BACKENDS = ("auto", "cpu", "cuda", "triton", "torch")
BOUNDARIES = ("circular", "reflect", "replicate")


def _load() -> tuple[ModuleType | None, str]:
    try:
        return importlib.import_module("rmp_fast._core"), ""
    except ImportError as error:
        return None, str(error)


_core, _reason = _load()


def available() -> bool:
    """Whether the compiled extension could be imported."""
    return _core is not None


def unavailable_reason() -> str:
    """Why the compiled extension could not be imported; empty if it was."""
    return _reason


def _has_tangent(tensor: Tensor) -> bool:
    return forward_ad.unpack_dual(tensor).tangent is not None  # type: ignore[no-untyped-call]


def _transformed(tensors: Sequence[Tensor]) -> bool:
    """Whether torch traces, or follows by torch.func or in forward mode, what it would not see in kernels."""
    if torch._C._get_tracing_state() is not None or torch._C._functorch.peek_interpreter_stack() is not None:
        return True
    return forward_ad._current_level >= 0 and any(map(_has_tangent, tensors))


def kernels(backend: str, *tensors: Tensor) -> ModuleType | None:
    """The kernels that compute on these tensors, or None for plain torch.

    Those are ``_core`` on the CPU, else :mod:`rmp_fast.cuda_ops` or :mod:`rmp_fast.triton_ops`.

    Raises:
        ValueError: an unknown ``backend``.
        RuntimeError: ``backend`` insists on kernels that are missing or cannot take these tensors.
    """
    check_choice("backend", backend, BACKENDS)
    if backend == "torch":
        return None
    device = tensors[0].device
    wanted = backend
    if backend == "auto":
        wanted = "cpu" if device.type == "cpu" else "triton" if cuda_ops.unavailable_reason(device) else "cuda"
    if wanted == "cpu":
        reason = None if available() else _reason
    else:
        reason = (cuda_ops if wanted == "cuda" else triton_ops).unavailable_reason(device)
    if reason is not None:
        if backend == "auto":
            return None
        names = {"cpu": "the compiled extension is", "cuda": "the CUDA kernels are", "triton": "the Triton kernels are"}
        what = names[wanted]
        raise RuntimeError(f"{what} not available ({reason}); use backend='torch'")
    followed = torch.is_grad_enabled() and any(t.requires_grad for t in tensors)
    # Fake tensors and other subclasses have no memory that a kernel could work on.
    suits = all(
        t.device == device and t.dtype in (torch.float32, torch.complex64) and type(t) in (Tensor, nn.Parameter)
        for t in tensors
    )
    if wanted == "cpu":
        suits = suits and device.type == "cpu"
    if suits and not followed and not torch.compiler.is_compiling() and not _transformed(tensors):
        return _core if wanted == "cpu" else cuda_ops if wanted == "cuda" else triton_ops
    if backend == "auto":
        return None
    kinds = ", ".join(f"{t.dtype} on {t.device}{' with grad' if t.requires_grad else ''}" for t in tensors)
    where = "in CPU memory" if wanted == "cpu" else "on one device"
    raise RuntimeError(f"backend {backend!r} computes float32 tensors {where} without autograd, got {kinds}")


def _empty_like(x: Tensor) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _into(out: Tensor | None, result: Tensor) -> Tensor:
    return result if out is None else out.copy_(result)


def _averages_shape(x: Tensor, factor: int) -> tuple[int, ...]:
    return (*x.shape[:2], -(-x.shape[2] // factor), -(-x.shape[3] // factor))


def mask(x: Tensor, mask: Tensor, *, out: Tensor | None = None, backend: str = "auto") -> Tensor:
    """``x`` where ``mask`` is nonzero, else 0 (also where ``x`` is not finite).

    Args:
        x: (B, *item).
        mask: uint8 or bool (1 or B, *item).
        out: where to write the result, contiguous; so in all these functions.
    """
    if mask.shape[1:] != x.shape[1:] or mask.shape[0] not in (1, x.shape[0]):
        expected, got = shape_text(("1 or B", *x.shape[1:])), shape_text(mask.shape)
        raise ValueError(f"`mask` must have shape {expected} for images {shape_text(x.shape)}, got {got}")
    compiled = kernels(backend, x)
    if compiled is not None:
        out = _empty_like(x) if out is None else out
        compiled.mask(x.detach().contiguous(), mask.bool().to(torch.uint8).contiguous(), out)
        return out
    return _into(out, torch.where(mask.bool(), x, 0))


def block_counts(size: Sequence[int], factor: int, device: torch.device | None = None) -> Tensor:
    """Pixels per block, (ceil(H / factor), ceil(W / factor)), of images of ``size`` = (H, W); float32."""
    rows, columns = (
        (n - torch.arange(0, n, factor, dtype=torch.float32, device=device)).clamp(max=factor) for n in size
    )
    return rows[:, None] * columns


def block_repeat(blocks: Tensor, factor: int, size: Sequence[int]) -> Tensor:
    """Every block's value (B, C, ceil(H / factor), ceil(W / factor)) on all its pixels: (B, C, H, W)."""
    batch, channels, rows, columns = blocks.shape
    spread = blocks[:, :, :, None, :, None].expand(-1, -1, -1, factor, -1, factor)
    image = spread.reshape(batch, channels, rows * factor, columns * factor)
    return image[:, :, : size[0], : size[1]].contiguous()


def block_average(x: Tensor, factor: int, *, out: Tensor | None = None, backend: str = "auto") -> Tensor:
    """Means over blocks of ``factor`` x ``factor`` cut from the top left, the last ones smaller where needed.

    (B, C, H, W) -> (B, C, ceil(H / factor), ceil(W / factor)).
    """
    compiled = kernels(backend, x)
    if compiled is not None:
        out = x.new_empty(_averages_shape(x, factor)) if out is None else out
        compiled.block_average(x.detach().contiguous(), factor, out)
        return out
    return _into(out, nn.functional.avg_pool2d(x, factor, ceil_mode=True, count_include_pad=False))


def block_average_adjoint(
    y: Tensor, factor: int, size: Sequence[int], *, out: Tensor | None = None, backend: str = "auto"
) -> Tensor:
    """The adjoint of :func:`block_average` on images of ``size`` = (H, W): every pixel gets its block's value / n."""
    compiled = kernels(backend, y)
    if compiled is not None:
        out = y.new_empty(*y.shape[:2], *size) if out is None else out
        compiled.block_average_adjoint(y.detach().contiguous(), factor, out)
        return out
    return _into(out, block_repeat(y / block_counts(size, factor, y.device).to(y.dtype), factor, size))


def boundary_index(start: int, stop: int, n: int, boundary: str, device: torch.device | None = None) -> Tensor:
    """Which of n samples stands at positions start .. stop - 1, however far outside.

    circular: ... b c | a b c | a b ...; reflect: ... b a | a b c | c b ... (the edge is repeated); replicate:
    ... a a | a b c | c c ...
    """
    position = torch.arange(start, stop, device=device)
    if boundary == "circular":
        return position.remainder(n)
    if boundary == "replicate":
        return position.clamp(0, n - 1)
    position = position.remainder(2 * n)
    return torch.minimum(position, 2 * n - 1 - position)


def pad(x: Tensor, dim: int, before: int, after: int, boundary: str) -> Tensor:
    """``x`` continued along ``dim`` by any number of samples."""
    n = x.shape[dim]
    return x.index_select(dim, boundary_index(-before, n + after, n, boundary, x.device))


def fold(x: Tensor, dim: int, before: int, after: int, boundary: str) -> Tensor:
    """The adjoint of :func:`pad`: every continued sample is added to the one it was copied from."""
    n = x.shape[dim] - before - after
    shape = list(x.shape)
    shape[dim] = n
    return x.new_zeros(shape).index_add(dim, boundary_index(-before, n + after, n, boundary, x.device), x)


def separable_blur(
    x: Tensor,
    taps_vertical: Tensor,
    taps_horizontal: Tensor,
    boundary: str,
    *,
    adjoint: bool = False,
    out: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """Convolution along both axes, out[i] = sum_k taps[k] x[i + r - k] with r = len // 2, or its exact adjoint.

    Args:
        x: (B, C, H, W).
        taps_vertical, taps_horizontal: 1-D, any odd length, also longer than the image.
        boundary: as in :func:`boundary_index`.
    """
    check_choice("boundary", boundary, BOUNDARIES)
    compiled = kernels(backend, x)
    if compiled is not None:
        out = _empty_like(x) if out is None else out
        vertical, horizontal = (t.to(x).contiguous() for t in (taps_vertical, taps_horizontal))
        compiled.separable_blur(x.detach().contiguous(), vertical, horizontal, boundary, adjoint, out)
        return out
    planes = x.reshape(-1, 1, *x.shape[-2:])
    for taps, dim in ((taps_vertical, 2), (taps_horizontal, 3)):
        planes = _blur_axis(planes, taps.to(x), dim, boundary, adjoint)
    return _into(out, planes.reshape(x.shape))


def _blur_axis(planes: Tensor, taps: Tensor, dim: int, boundary: str, adjoint: bool) -> Tensor:
    radius = taps.numel() // 2
    weight = taps.flip(0).reshape((1, 1, -1, 1) if dim == 2 else (1, 1, 1, -1))
    if adjoint:
        return fold(nn.functional.conv_transpose2d(planes, weight), dim, radius, radius, boundary)
    return nn.functional.conv2d(pad(planes, dim, radius, radius, boundary), weight)


def spectral(
    c: Tensor,
    energy: Tensor,
    data: Tensor,
    noise_ratio: Tensor,
    *,
    update: bool,
    out: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """delta = (data - energy c) / max(energy + noise_ratio, tiny), the pointwise part of a spectral form.

    Args:
        c: coefficients (B, ...), real or complex.
        energy: S^2, real (1 or B, ...).
        data: S U^H y, like ``c``.
        noise_ratio: q = noise_std^2 / r2 per item (B,).
        update: return delta; else c + delta.
        out: where to write the result, contiguous, like ``c`` and possibly ``c`` itself.
    """
    compiled = kernels(backend, c, data, energy)
    if compiled is not None:
        out = _empty_like(c) if out is None else out
        flat = [t.detach().contiguous().flatten(1) for t in (c, energy, data)]
        ratio = noise_ratio.to(torch.float32).contiguous()
        compiled.spectral(*flat, ratio, out.view(flat[0].shape), update)
        return out
    total = energy + noise_ratio.to(energy).reshape(-1, *[1] * (c.ndim - 1))
    delta = (data - energy * c) / total.clamp(min=torch.finfo(energy.dtype).tiny)
    return _into(out, delta if update else c + delta)


def clip_gradient(
    gradient: Tensor,
    direction: Tensor | None = None,
    limit: Tensor | None = None,
    weight: Tensor | None = None,
    residual: Tensor | None = None,
    *,
    out: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """g' = g / ||r||, times min(1, limit ||u|| / (weight ||g'||)), with the norms of every item.

    Divided by ||r|| here, u need not be before g = J^T u is computed, which is linear. A residual of norm 0 divides
    nothing.

    Args:
        gradient: g (B, *item).
        direction: u, like ``gradient``; given with ``limit`` and ``weight`` (B,), or none of the three.
        residual: r (B, ...), of any size.
        out: where to write the result, contiguous, like ``gradient`` and possibly that itself.
    """
    if len({direction is None, limit is None, weight is None}) > 1:
        raise ValueError("`direction`, `limit` and `weight` must be given together, or none of them")
    given = (gradient, direction, residual)
    compiled = kernels(backend, *(t for t in given if t is not None))
    if compiled is not None:
        out = _empty_like(gradient) if out is None else out
        g, u, r = (None if t is None else t.detach().contiguous() for t in given)
        per_item = [None if t is None else t.to(torch.float32).contiguous() for t in (limit, weight)]
        compiled.clip_gradient(g, u, *per_item, r, out)
        return out
    scale = norm = gradient.new_ones(gradient.shape[0])
    if residual is not None:
        norm = _norms(residual)
        norm = torch.where(norm == 0, 1, norm)
    if direction is not None and limit is not None and weight is not None:
        length = weight.to(gradient) * _norms(gradient) / norm
        share = (limit.to(gradient) * _norms(direction) / length).clamp(max=1)
        scale = torch.where(length > 0, share, 1)
    scale = (scale / norm).clamp(max=torch.finfo(norm.dtype).max)
    return _into(out, gradient * scale.reshape(-1, *[1] * (gradient.ndim - 1)))


def biharmonic(x: Tensor, weight: float, plus: Tensor, *, out: Tensor | None = None) -> Tensor:
    """``plus`` + weight L L x, with L x the sum of every pixel's differences from its neighbours.

    L L x is the gradient of ||L x||^2 / 2. Beyond the edge x, and L x, go on flat. A kernel on the CPU, plain torch
    elsewhere.

    Args:
        x: (B, C, H, W).
        plus: like ``x``.
        out: where to write the result, contiguous, another tensor than ``x``.
    """
    compiled = kernels("auto", x, plus) if x.device.type == "cpu" else None
    if compiled is None:
        return _into(out, plus.add(_laplacian(_laplacian(x)), alpha=weight))
    out = _empty_like(x) if out is None else out
    compiled.biharmonic(x.detach().contiguous(), weight, plus.detach().contiguous(), out)
    return out


def _laplacian(x: Tensor) -> Tensor:
    out = torch.zeros_like(x)
    for dim in (-1, -2):
        last = x.shape[dim] - 1
        difference = x.narrow(dim, 1, last) - x.narrow(dim, 0, last)
        out.narrow(dim, 1, last).add_(difference)
        out.narrow(dim, 0, last).sub_(difference)
    return out


def _norms(x: Tensor) -> Tensor:
    norms: Tensor = x.flatten(1).norm(dim=1)
    return norms


# --- torch.ops.rmp_fast ----------------------------------------------------------------------------------------------

_library = torch.library.Library("rmp_fast", "DEF")


def _register(name: str, arguments: str, function: Callable[..., Tensor], fake: Callable[..., Tensor]) -> None:
    """Register ``function`` for every device as ``rmp_fast::name``, and ``rmp_fast::name.out``.

    Args:
        arguments: of the schema, all positional, also those of ``fake``, which makes an empty tensor like the result.
    """

    def run(*values: Any, out: Tensor | None = None) -> Tensor:
        # Below autograd, what still requires a gradient would keep the kernels from it.
        return function(*(v.detach() if isinstance(v, Tensor) else v for v in values), out=out).contiguous()

    def run_out(*values: Any, out: Tensor) -> None:
        fake_out(*values, out=out)
        run(*values, out=out)

    def fake_out(*values: Any, out: Tensor) -> None:
        check_shape("out", out, fake(*values).shape)

    _library.define(f"{name}({arguments}) -> Tensor")
    _library.define(f"{name}.out({arguments}, *, Tensor(a!) out) -> ()")
    _library.impl(name, run, "CompositeExplicitAutograd")
    _library.impl(f"{name}.out", run_out, "CompositeExplicitAutograd")
    torch.library.register_fake(f"rmp_fast::{name}", fake, lib=_library)
    torch.library.register_fake(f"rmp_fast::{name}.out", fake_out, lib=_library)


def _first_like(x: Tensor, *_: Any) -> Tensor:
    return _empty_like(x)


_register("mask", "Tensor x, Tensor mask", mask, _first_like)
_register(
    "block_average",
    "Tensor x, int factor",
    block_average,
    lambda x, factor: x.new_empty(_averages_shape(x, factor)),
)
_register(
    "block_average_adjoint",
    "Tensor y, int factor, int[] size",
    block_average_adjoint,
    lambda y, factor, size: y.new_empty(*y.shape[:2], *size),
)
_register(
    "separable_blur",
    "Tensor x, Tensor taps_vertical, Tensor taps_horizontal, str boundary, bool adjoint",
    lambda x, vertical, horizontal, boundary, adjoint, out: separable_blur(
        x, vertical, horizontal, boundary, adjoint=adjoint, out=out
    ),
    _first_like,
)
_register(
    "spectral",
    "Tensor c, Tensor energy, Tensor data, Tensor noise_ratio, bool update",
    lambda c, energy, data, noise_ratio, update, out: spectral(c, energy, data, noise_ratio, update=update, out=out),
    _first_like,
)
_register(
    "clip_gradient",
    "Tensor gradient, Tensor? direction, Tensor? limit, Tensor? weight, Tensor? residual",
    clip_gradient,
    _first_like,
)


def _natural_step_into(
    previous: Tensor, mean: Tensor, input: Tensor, denoised: Tensor, look: Tensor, seeds: Tensor, ok: Tensor,
    evaluation: int, *, out: tuple[Tensor, Tensor, Tensor, Tensor], curvature: Tensor | None = None, **settings: Any,
) -> None:  # fmt: skip
    from .loop import CompiledStep
    from .torch_step import TorchStep
    from .triton_step import TritonStep

    next_mean, next_input, next_ok, learned = out
    next_input.copy_(input)
    next_ok.copy_(ok)
    if curvature is not None:
        learned.copy_(curvature)
    batch = mean.shape[0]
    compiled = kernels("auto", mean)
    step: Any = TorchStep if compiled is None else TritonStep if compiled is triton_ops else CompiledStep
    step(
        previous=previous, mean=mean, next_mean=next_mean, input=next_input[:batch],
        input_mirror=next_input[batch:] if denoised.shape[0] != batch else None, looks=look[None], seeds=seeds,
        ok=next_ok, curvature=None if curvature is None else learned, **settings,
    )(0, denoised, evaluation)  # fmt: skip


def _natural_step_outputs(
    previous: Tensor, mean: Tensor, input: Tensor, denoised: Tensor, look: Tensor, seeds: Tensor, ok: Tensor,
    evaluation: int, *, curvature: Tensor | None = None, **settings: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    learned = mean.new_empty(0) if curvature is None else _empty_like(curvature)
    return _empty_like(mean), _empty_like(denoised), _empty_like(ok), learned


def _natural_step(*values: Any, **settings: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    out = _natural_step_outputs(*values, **settings)
    _natural_step_into(*values, out=out, **settings)
    return out


def _natural_step_out(
    *values: Any, next_mean: Tensor, next_input: Tensor, next_ok: Tensor, next_curvature: Tensor, **settings: Any
) -> None:
    _natural_step_into(*values, out=(next_mean, next_input, next_ok, next_curvature), **settings)


# The step of `_core.NaturalStep` as a function. `look` (B, 8) is one row of the table of coefficients; `input` and
# `denoised` are (B, ...), or (2B, ...) with the mirrored looks of antithetic pairs behind the others. Results: next
# mean, next input, ok, and curvature, empty for a fixed precision.
_STEP_ARGUMENTS = (
    "Tensor previous, Tensor mean, Tensor input, Tensor denoised, Tensor look, Tensor seeds, Tensor ok, "
    "int evaluation, *, Tensor? curvature=None, Tensor? y=None, Tensor? mask=None, str correction='none', "
    "int factor=1, bool drawn=False, int stream=0"
)
_library.define(f"natural_step({_STEP_ARGUMENTS}) -> (Tensor, Tensor, Tensor, Tensor)")
_library.define(
    f"natural_step.out({_STEP_ARGUMENTS}, Tensor(a!) next_mean, Tensor(b!) next_input, Tensor(c!) next_ok, "
    "Tensor(d!) next_curvature) -> ()"
)
_library.impl("natural_step", _natural_step, "CompositeExplicitAutograd")
_library.impl("natural_step.out", _natural_step_out, "CompositeExplicitAutograd")
torch.library.register_fake("rmp_fast::natural_step", _natural_step_outputs, lib=_library)
torch.library.register_fake("rmp_fast::natural_step.out", lambda *_, **__: None, lib=_library)
