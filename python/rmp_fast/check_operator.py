"""Does an operator agree with its own adjoint? ``python -m rmp_fast.check_operator module:name --shape 3 64 64``.

``module:name`` is an operator of rmp_fast, a physics of deepinv, or any object with ``A`` and ``adjoint`` (or
``A_adjoint``) that take batches; or a function or class without arguments that makes one. The module is imported from
the current folder too, and its code runs. Prints relative errors on random images; exit code 0: all agree, 1: something
does not, 2: the arguments are wrong or the operator cannot be run.
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ._checks import check_shape, check_tensor, shape_text
from .operators.agreement import AGREEMENT, adjoint_mismatch, alone, mismatch

__all__ = ["Finding", "check", "main"]

_DTYPES = {"float32": torch.float32, "float64": torch.float64}


class Finding(NamedTuple):
    """One property: how far from it, how far is rounding, and what a failure means."""

    name: str
    error: float
    bound: float
    advice: str

    @property
    def holds(self) -> bool:
        """Whether it is met; NaN meets nothing."""
        return self.error <= self.bound


def check(
    A: Callable[[Tensor], Tensor],
    adjoint: Callable[[Tensor], Tensor] | None,
    shape: Sequence[int],
    *,
    linear: bool = True,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    seed: int = 0,
) -> list[Finding]:
    """Errors of an operator on random images on [-1, 1], in units of the norms of what is compared.

    Args:
        A, adjoint: functions of batches; without ``adjoint`` or for a nonlinear A the dot test is left out.
        shape: (B, ...) of the images, B >= 2.
        linear: whether A is meant to be.
        dtype, device, seed: of the random images.

    Raises:
        TypeError: another dtype, or a result that is no tensor of the images' dtype.
        ValueError: fewer than two images, or a result of another shape than the images or their batch allow.
    """
    if dtype not in AGREEMENT:
        raise TypeError(f"`dtype` must be torch.float32 or torch.float64, got {dtype}")
    if not len(shape) or shape[0] < 2:
        raise ValueError(f"`shape` must be (B, ...) with B >= 2, to compare items, got {shape_text(shape)}")
    generator = torch.Generator().manual_seed(seed)
    bound = AGREEMENT[dtype]

    def drawn(shape: Sequence[int]) -> Tensor:
        return torch.rand(tuple(shape), generator=generator, dtype=torch.float64).mul(2).sub(1).to(device, dtype)

    x, other = drawn(shape), drawn(shape)
    with torch.no_grad():
        y = A(x)
        _check_result("A(x)", y, None, x)
        findings = [
            Finding("same result twice", mismatch(A(x), y, y), bound, "A is random or keeps state"),
            Finding("items alone", mismatch(alone(A, x), y, y), bound, "A mixes the items of a batch"),
        ]
        if not linear:
            return findings
        combined = A(2 * x - 0.5 * other)
        findings.append(
            Finding(
                "linear", mismatch(combined, 2 * y - 0.5 * A(other), y), bound, "A is not linear, or adds a constant"
            )
        )
        if adjoint is None:
            return findings
        weights = drawn(y.shape)
        image = adjoint(weights)
        _check_result("adjoint(y)", image, x.shape, x)
        left, right, apart = adjoint_mismatch(y, weights, x, image)
        ratio = float(right[0] / left[0]) if left[0] != 0 else float("nan")
        advice = (
            f"<A x, y> = {float(left[0]):.6g} but <x, adjoint(y)> = {float(right[0]):.6g}, {ratio:.4g} times as much"
        )
        findings += [
            Finding("adjoint", apart, bound, advice),
            Finding(
                "items alone, adjoint", mismatch(alone(adjoint, weights), image, image), bound, "it mixes the items"
            ),
        ]
    return findings


def _check_result(name: str, value: object, shape: Sequence[int] | None, x: Tensor) -> None:
    """TypeError or ValueError unless ``value`` has x's dtype and ``shape``, or where that is None x's batch."""
    result = check_tensor(name, value, floating=False)
    check_shape(name, result, (len(x), *result.shape[1:]) if shape is None else shape)
    if result.dtype != x.dtype:
        raise TypeError(f"`{name}` must be {x.dtype} as its input, got {result.dtype}")


def load(name: str) -> Any:
    """The object that ``module:name`` stands for, made by calling it where it is a class or function."""
    module, colon, attribute = name.partition(":")
    if not colon or not module or not attribute:
        raise ValueError(f"the operator must be given as module:name, got {name!r}")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        found: Any = importlib.import_module(module)
        for part in attribute.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError) as cause:
        raise ValueError(f"{name!r} cannot be imported: {cause}") from cause
    if inspect.isclass(found) or inspect.isfunction(found):
        found = found()
    if not callable(getattr(found, "A", None)):
        raise ValueError(f"{name!r} must have a function A(x), got {type(found).__name__}")
    return found


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m rmp_fast.check_operator",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("operator", metavar="module:name", help="what to check")
    parser.add_argument("--shape", type=int, nargs="+", default=[3, 32, 32], help="of one image (3 32 32)")
    parser.add_argument("--batch", type=int, default=2, help="number of images, at least 2 (2)")
    parser.add_argument("--dtype", choices=_DTYPES, default="float32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--nonlinear", action="store_true", help="A is not meant to be linear")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Check and print; the exit code."""
    options = _parser().parse_args(argv)
    if options.batch < 2 or min(options.shape) < 1:
        print(
            f"`--batch` must be at least 2 and `--shape` positive, got {options.batch} and {options.shape}",
            file=sys.stderr,
        )
        return 2
    try:
        op = load(options.operator)
        adjoint = getattr(op, "adjoint", None) or getattr(op, "A_adjoint", None)
        linear = not options.nonlinear and bool(getattr(op, "linear", True))
        findings = check(
            op.A, adjoint, (options.batch, *options.shape), linear=linear, dtype=_DTYPES[options.dtype],
            device=options.device,
        )  # fmt: skip
    except Exception as cause:  # the operator's own code may raise anything
        print(f"{options.operator}: {type(cause).__name__}: {cause}", file=sys.stderr)
        return 2
    for finding in findings:
        verdict = "ok" if finding.holds else f"FAILS: {finding.advice}"
        print(f"{finding.name:22}{finding.error:10.1e}  (at most {finding.bound:.0e})  {verdict}")
    if linear and adjoint is None:
        print("no adjoint to compare: rmp_fast derives it by automatic differentiation")
    return 0 if all(finding.holds for finding in findings) else 1


if __name__ == "__main__":
    sys.exit(main())
