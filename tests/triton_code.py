"""Compiles the Triton kernels for one target as the host launches them, and prints what the code holds, as JSON.

A program of its own, for a process that does not interpret kernels. Nothing is launched, and no device is needed.
"""

from __future__ import annotations

import collections
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import triton
from step_problem import CORRECTIONS, MODES, Problem
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from rmp_fast import triton_ops

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
TYPES = {torch.float32: "*fp32", torch.float64: "*fp64", torch.int64: "*i64", torch.uint8: "*u8"}

# Rows of whole tiles, and items that begin anywhere.
IMAGES, UNALIGNED = (2, 3, 64, 256), (3, 1, 7, 5)


def steps(shape: tuple[int, ...], modes: list[str], corrections: list[str]) -> Iterator[tuple[str, Callable[[], None]]]:
    for mode in modes:
        for correction in corrections:
            options = {**MODES[mode], **CORRECTIONS[correction]}
            if options.get("masks") == 3:
                options["masks"] = shape[0]
            yield f"{mode}, {correction}", lambda options=options: Problem(shape, **options).run("triton")


def operators(shape: tuple[int, ...]) -> Iterator[tuple[str, Callable[[], None]]]:
    x, taps = torch.zeros(shape), torch.ones(9)
    for masks in (1, shape[0]):
        kept = torch.ones(masks, *shape[1:], dtype=torch.uint8)
        yield f"{masks} masks", lambda kept=kept: triton_ops.mask(x, kept, torch.empty_like(x))
    for factor in (2, 3, 4, 8, 32):
        means = torch.zeros(*shape[:2], -(-shape[2] // factor), -(-shape[3] // factor))
        yield f"blocks of {factor}", lambda f=factor, means=means: triton_ops.block_average(x, f, means)
    yield "blocks of 32", lambda: triton_ops.block_average_adjoint(means, 32, torch.empty_like(x))
    for boundary in triton_ops.BOUNDARIES:
        for adjoint in (False, True):
            yield (
                f"{boundary}{' adjoint' if adjoint else ''}",
                lambda b=boundary, a=adjoint: triton_ops.separable_blur(x, taps, taps, b, a, torch.empty_like(x)),
            )
    wide = torch.ones(2 * max(shape) + 3)
    for boundary, adjoint in (("circular", False), ("reflect", False), ("reflect", True)):
        yield (
            f"{boundary}{' adjoint' if adjoint else ''}, wider than the image",
            lambda b=boundary, a=adjoint: triton_ops.separable_blur(x, wide, wide, b, a, torch.empty_like(x)),
        )
    for kind in (torch.float32, torch.complex64):
        for energies in (1, shape[0]):
            c, energy, ratio = x.to(kind), torch.ones(energies, *shape[1:]), torch.ones(shape[0])
            yield (
                f"{'complex' if kind.is_complex else 'real'}, {energies} energies",
                lambda c=c, e=energy, r=ratio: triton_ops.spectral(c, e, c, r, torch.empty_like(c), len(e) == 1),
            )
    one, few = torch.ones(shape[0]), torch.zeros(shape[0], 64)
    for case, given in (
        ("held and divided", (x, one, one, x)),
        ("held", (x, one, one, None)),
        ("divided by few", (None, None, None, few)),
        ("neither", (None, None, None, None)),
    ):
        yield case, lambda given=given: triton_ops.clip_gradient(x, *given, torch.empty_like(x))
    seeds = torch.zeros(shape[0], dtype=torch.int64)
    yield "any", lambda: triton_ops.normals(seeds, 1, 0, torch.empty_like(x))


def launches(everything: bool) -> list[tuple[str, triton_ops.Launch, dict[str, Any]]]:
    """Every launch of the cases, with its arguments, once per kernel that it needs.

    Args:
        everything: also those on items that begin anywhere, which have no wide accesses.
    """
    recorded: list[tuple[triton_ops.Launch, dict[str, Any]]] = []

    def record(launch: triton_ops.Launch, **changed: Any) -> None:
        recorded.append((launch, {**launch.arguments, **changed}))

    triton_ops.Launch.run = record  # type: ignore[method-assign]
    modes = [mode for mode in MODES if mode != "apart"]
    every = ["control", "antithetic"]
    unaligned = [*steps(UNALIGNED, every, ["mask", "blocks of 4"]), *operators(UNALIGNED)] if everything else []
    found: dict[Any, tuple[str, triton_ops.Launch, dict[str, Any]]] = {}
    for name, call in (
        *steps(IMAGES, modes, ["shared mask", "blocks of 4"]),
        *steps(IMAGES, every, list(CORRECTIONS)),
        *operators(IMAGES),
        *((f"unaligned {name}", call) for name, call in unaligned),
    ):
        recorded.clear()
        call()
        for launch, arguments in recorded:
            signature = source(launch.kernel, arguments)
            key = (signature.hash(), launch.warps)
            found.setdefault(key, (name, launch, arguments))
    return list(found.values())


def source(kernel: Any, arguments: dict[str, Any]) -> ASTSource:
    """What triton's launcher would compile for these arguments."""
    signature, constants, attributes = {}, {}, {}
    for index, parameter in enumerate(kernel.params):
        value = arguments[parameter.name]
        if parameter.is_constexpr or value is None:
            signature[parameter.name], constants[parameter.name] = "constexpr", value
        elif isinstance(value, torch.Tensor):
            signature[parameter.name] = TYPES[value.dtype]
            if value.data_ptr() % 16 == 0:
                attributes[(index,)] = [["tt.divisibility", 16]]
        else:
            assert parameter.do_not_specialize, f"{parameter.name} would make a kernel for every value"
            signature[parameter.name] = "i32"
    return ASTSource(kernel, signature, constants, attributes)


def tensor_bytes(ir: str) -> dict[str, float]:
    """Bytes per program of the accesses outside loops to whole tensors, loads and stores apart.

    Single bytes are stored only where an element left the finite range, and not counted.
    """
    total: dict[str, float] = {"loaded": 0, "stored": 0}
    depth = 0
    for line in ir.splitlines():
        if "scf.for" in line:
            depth += 1
        found = re.search(r"tt\.(load|store) .*: tensor<([\dx]+)x!tt\.ptr<(\w+)>", line)
        if found and not depth and (found[1], found[3]) != ("store", "i8"):
            bits = int(re.sub(r"\D", "", found[3]))
            count = 1
            for n in found[2].split("x"):
                count *= int(n)
            total["loaded" if found[1] == "load" else "stored"] += count * bits // 8
        if depth and re.match(r"\s*} (loc|$)", line):
            depth -= 1
    return total


def nvidia(compiled: Any) -> dict[str, Any]:
    """Registers, stack and the accesses of the machine code."""
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / "kernel.cubin"
        cubin.write_bytes(compiled.asm["cubin"])
        usage = subprocess.run([TOOLS / "cuobjdump", "-res-usage", cubin], capture_output=True, text=True, check=True)
        code = subprocess.run([TOOLS / "nvdisasm", "-c", cubin], capture_output=True, text=True, check=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", usage.stdout)
    assert found is not None, usage.stdout
    accesses = collections.Counter(
        f"{name}{'.' + suffix if suffix else ''}"
        for name, suffix in re.findall(r"\b(LDG|STG|LDL|STL)\b(?:\.(?!(?:128|64|U8|S8|U16)\b)\w+)*(?:\.(\w+))?", code)
    )
    return {"registers": int(found[1]), "stack": int(found[2]), "local": int(found[3]), "accesses": dict(accesses)}


def amd(compiled: Any) -> dict[str, Any]:
    """The same of code for AMD."""
    code = compiled.asm["amdgcn"]

    def entry(name: str) -> int:
        return int(re.search(rf"\.{name}:\s*(\d+)", code)[1])  # type: ignore[index]

    accesses = collections.Counter(re.findall(r"\b(?:global|flat|scratch|buffer)_(?:load|store)_\w+", code))
    spilled = entry("vgpr_spill_count") + entry("sgpr_spill_count")
    stack = entry("private_segment_fixed_size")
    return {"registers": entry("vgpr_count"), "stack": stack, "local": spilled, "accesses": dict(accesses)}


def main() -> None:
    gpu = TARGETS[sys.argv[1]]
    triton_ops.warp_size = lambda device: gpu.warp_size
    rows = []
    for name, launch, arguments in launches(everything=sys.argv[1] == "sm_90"):
        options = {"num_warps": launch.warps, **triton_ops.COMPILE_OPTIONS}
        made = triton.compile(source(launch.kernel, arguments), target=gpu, options=options)
        row = {
            "case": name,
            "kernel": launch.kernel.fn.__name__,
            "constants": {k: v for k, v in arguments.items() if k.isupper()},
            "given": sorted(k for k, v in arguments.items() if isinstance(v, torch.Tensor)),
            "threads": launch.warps * gpu.warp_size,
        }
        rows.append({**row, **tensor_bytes(made.asm["ttgir"]), **(nvidia if gpu.backend == "cuda" else amd)(made)})
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
