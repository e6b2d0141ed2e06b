"""Compiled kernels. Tensors are contiguous float32 unless said otherwise, all on the CPU or, if this was built with
CUDA, all on one CUDA device; what is wrong is said in a ValueError or TypeError before any work. `path` picks one of
`cpu_paths()` instead of `cpu_path()`, or is "cuda". On a CUDA device the work is queued on `cuda_stream`, a raw pointer
as `torch.cuda.Stream.cuda_stream` is, by default the default stream; a RuntimeError names the kernel that CUDA
refused."""

from collections.abc import Sequence
from typing import Literal, final

from torch import Tensor

def cpu_path() -> str:
    """The code path in use: the fastest that this processor has, or what RMP_FAST_CPU named at import."""

def cpu_paths() -> list[str]:
    """The code paths that this processor can run, fastest first."""

def cuda_problem() -> str | None:
    """Why CUDA kernels cannot run here, or None if they can: built with CUDA, a driver, a device."""

@final
class NaturalStep:
    """The natural step of one plan, bound to its buffers. One call at a time.

    Per item, with q, s1, ... from the item's row of `looks` (see kernels/params.h)::

        d_y       = d + gain * A^T (y - A d), or d + q y            by `correction`
        point     = input if drawn else mean
        next_mean = mean + rho (to_previous (previous - point) + to_denoised (d_y - point))
        input     = next_mean + sqrt(rho_next) next_std e,   input_mirror = the same with -e

    An element whose new mean is not finite keeps its mean and sets its item's `ok` to 0.
    """

    def __init__(
        self,
        *,
        previous: Tensor,
        mean: Tensor,
        next_mean: Tensor,
        input: Tensor,
        input_mirror: Tensor | None = None,
        looks: Tensor,
        seeds: Tensor,
        ok: Tensor,
        curvature: Tensor | None = None,
        drawn: bool = False,
        correction: Literal["none", "mask", "block_average", "gradient"] = "none",
        y: Tensor | None = None,
        mask: Tensor | None = None,
        factor: int = 1,
        antithetic: bool = False,
        stream: int = 0,
        path: str | None = None,
    ) -> None:
        """Check and keep the buffers.

        Args:
            previous, mean, next_mean, input, input_mirror: (B, ...); (B, C, H, W) for block averages. `next_mean` may
                be `mean`; so may `input` on the CPU where no look is perturbed.
            looks: (L, B, 8).
            seeds: (B,) int64, read as 64 bits.
            ok: (B,) uint8 or bool.
            curvature: (B,) j of the learned isotropic precision, like `mean` for a diagonal one, or None: fixed.
            y: like `mean`, or (B, C, ceil(H / factor), ceil(W / factor)) for block averages, or (2B, ...) for the
                gradients of antithetic pairs.
            mask: (1 or B, ...) uint8 or bool, None for the identity.
        """

    def step(
        self, look: int, denoised: int, denoised_mirror: int = 0, evaluation: int | None = None, cuda_stream: int = 0
    ) -> None:
        """Run one look.

        `denoised` is the `data_ptr()` of a contiguous float32 tensor of the mean's shape; `evaluation`, by default
        look + 1, counts the normals written into `input`.
        """

    def perturb(self, look: int, evaluation: int, cuda_stream: int = 0) -> None:
        """Write `input` (and its mirror) around `mean` as `looks[look]` says the next one is; change nothing else."""

def mask(x: Tensor, mask: Tensor, out: Tensor, *, path: str | None = None, cuda_stream: int = 0) -> None:
    """out = x where mask else 0; x, out (B, ...), mask (1 or B, ...) uint8 or bool."""

def block_average(x: Tensor, factor: int, out: Tensor, *, path: str | None = None, cuda_stream: int = 0) -> None:
    """Means of factor x factor blocks; x (..., H, W), out (..., ceil(H / factor), ceil(W / factor))."""

def block_average_adjoint(
    y: Tensor, factor: int, out: Tensor, *, path: str | None = None, cuda_stream: int = 0
) -> None:
    """Every value over its block, divided by the block's pixels; shapes the other way round."""

def separable_blur(
    x: Tensor,
    taps_v: Tensor,
    taps_h: Tensor,
    boundary: Literal["circular", "reflect", "replicate"],
    adjoint: bool,
    out: Tensor,
    *,
    scratch: Tensor | None = None,
    path: str | None = None,
    cuda_stream: int = 0,
) -> None:
    """out[i] = sum_k taps[k] x[i + r - k] along rows and columns, r = len(taps) // 2, or its exact adjoint.

    x, out (..., H, W), `out` may be `x`; taps (K,), K odd, of any length. "reflect" repeats the edge: ... b a | a b ...
    On a CUDA device `scratch`, another tensor like `out`, holds what lies between the two passes.
    """

def spectral(
    c: Tensor,
    energy: Tensor,
    data: Tensor,
    noise_ratio: Tensor,
    out: Tensor,
    update: bool,
    *,
    path: str | None = None,
    cuda_stream: int = 0,
) -> None:
    """delta = (data - energy c) / (energy + noise_ratio); out = delta if update else c + delta.

    c, data, out (B, ...) float32 or complex64, `out` may be `c`; energy (1 or B, ...); noise_ratio (B,).
    """

def cosine_fold(x: Tensor, out: Tensor, *, path: str | None = None) -> None:
    """Samples of both axes in the order 0, 2, 4, ..., 5, 3, 1; x, out (..., H, W) float32 on the CPU."""

def cosine_unfold(spectrum: Tensor, out: Tensor, *, path: str | None = None) -> None:
    """The image (..., H, W) whose folded samples have Hartley numbers of this half spectrum (..., H, W // 2 + 1)."""

def cosine_turn(spectrum: Tensor, turns_v: Tensor, turns_h: Tensor, out: Tensor, *, path: str | None = None) -> None:
    """The coefficients (..., H, W) of the cosine transform whose folded samples have this half spectrum.

    turns (n // 2 + 1,) complex64 of an axis of n: c exp(-i pi k / (2 n)) with c = 1 for k = 0, else sqrt(2), divided by
    2 for the rows. The spectrum (..., H, W // 2 + 1) is that of an orthonormal FFT.
    """

def cosine_turn_back(coefficients: Tensor, turns_v: Tensor, turns_h: Tensor, *, path: str | None = None) -> None:
    """Coefficients (..., H, W) become, in place, the Hartley numbers of the folded samples.

    These are Re V - Im V with V the spectrum. turns: the reciprocals of c exp(-i pi k / (2 n)), for the rows too.
    """

def conjugate_step(
    direction: Tensor,
    image: Tensor,
    solution: Tensor,
    residual: Tensor,
    squares: Tensor,
    product: Tensor,
    least: Tensor,
    *,
    path: str | None = None,
) -> None:
    """A step of conjugate gradients along `direction`, which the matrix maps to `image`.

    a = product / <direction, image>, 0 where squares <= least or nothing is curved; solution += a direction,
    residual -= a image, squares = ||residual||^2, for every item. Tensors (B, ...) float32, numbers (B,) float64, on
    the CPU.
    """

def conjugate_turn(
    direction: Tensor,
    towards: Tensor,
    residual: Tensor,
    squares: Tensor,
    product: Tensor,
    *,
    path: str | None = None,
) -> None:
    """The next direction: towards + (now / product) direction; then product = now = <residual, towards>, per item.

    `towards` is the preconditioned residual, without preconditioner `residual` itself, whose `squares` are known. A
    product of 0 keeps nothing of the direction.
    """

def biharmonic(x: Tensor, weight: float, plus: Tensor, out: Tensor, *, path: str | None = None) -> None:
    """out = plus + weight L L x, with L x the sum of every pixel's differences from its neighbours.

    All (..., H, W) on the CPU; `out` may be `plus`.
    """

def clip_gradient(
    gradient: Tensor,
    direction: Tensor | None,
    limit: Tensor | None,
    weight: Tensor | None,
    residual: Tensor | None,
    out: Tensor,
    *,
    scratch: Tensor | None = None,
    path: str | None = None,
    cuda_stream: int = 0,
) -> None:
    """g = gradient / ||residual||, out = g min(1, limit ||direction|| / (weight ||g||)), with norms of items.

    gradient, direction, out (B, ...), `out` may be `gradient`; limit, weight (B,); residual (B, ...) of any size.
    Without `direction`, `limit` and `weight` nothing is held to a length; without `residual`, or where its norm is 0,
    nothing is divided. On a CUDA device `scratch` (B, chunks, 3) float64 holds the sums of squares of the items' chunks
    of 4096 numbers, unless none of these is given.
    """

def normals(
    seeds: Tensor, evaluation: int, stream: int, out: Tensor, *, path: str | None = None, cuda_stream: int = 0
) -> None:
    """The standard normals that a step makes; seeds (B,) int64, out (B, ...)."""

def philox(counter: Sequence[int], key: Sequence[int], *, path: str | None = None) -> list[int]:
    """Philox4x32-10: four words from four words of counter and two of key."""
