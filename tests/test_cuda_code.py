"""Machine code of the CUDA kernels: nothing spilled, the occupancy that launches count on, no access too many."""

from __future__ import annotations

import json

import cuda_code
import pytest
from cuda_code import CARDS, REGISTERS, Kernel

pytestmark = pytest.mark.skipif(cuda_code.missing() is not None, reason=str(cuda_code.missing()))

TRAFFIC = json.loads((cuda_code.ROOT / "kernels" / "traffic.json").read_text())
DRAWN, PAIR = "Point1", "Point2"
FIXED, ISOTROPIC, DIAGONAL = "Precision0", "Precision1", "Precision2"


@pytest.fixture(scope="module")
def code() -> list[Kernel]:
    return cuda_code.kernels()


def test_flags_are_those_of_the_build() -> None:
    build = (cuda_code.ROOT / "cmake" / "cuda.cmake").read_text()
    assert all(flag in build for flag in cuda_code.FLAGS)


@pytest.mark.parametrize("card", CARDS)
def test_every_kernel_is_there(code: list[Kernel], card: str) -> None:
    assert {kernel.name for kernel in code if kernel.card == card} == {
        "step_kernel", "quad_step_kernel", "perturb_kernel", "mask_kernel", "averages_kernel", "quad_averages_kernel",
        "adjoint_kernel", "blur_kernel", "spectral_kernel", "squares_kernel", "scale_kernel", "normals_kernel",
    }  # fmt: skip


def test_nothing_is_spilled(code: list[Kernel]) -> None:
    for kernel in code:
        assert kernel.stack == kernel.local == 0, kernel
        assert not {"LDL", "STL"} & {name.split(".")[0] for name in kernel.accesses}, kernel


def test_the_kind_of_memory_is_known_everywhere(code: list[Kernel]) -> None:
    """A generic access finds out at every address whether it is global, shared or local."""
    for kernel in code:
        assert not {"LD", "ST"} & {name.split(".")[0] for name in kernel.accesses}, kernel


def test_registers_leave_room_for_the_resident_blocks(code: list[Kernel]) -> None:
    for kernel in code:
        given = -(-kernel.registers // 8) * 8
        assert given * kernel.threads * kernel.resident <= REGISTERS, kernel
        # Enough threads to keep memory busy, each asking for 48 bytes and more at once; quads ask for 192.
        assert kernel.threads * kernel.resident >= (320 if kernel.name == "quad_step_kernel" else 768), kernel


def arrays(*parts: str) -> int:
    """How many arrays of one float per element the table names under these headings of the step."""
    return sum(size // 4 for part in parts for size in TRAFFIC["natural_step"][part].values())


def step_accesses(kernel: Kernel) -> tuple[int, int]:
    """The table's loads and stores of whole groups of four by a step's kernel, per group; alternatives count all."""
    written = ["next_mean", "input"]
    assert set(TRAFFIC["natural_step"]["always"]) == {"previous", "mean", "denoised", *written}
    pair, learned = PAIR in kernel.arguments, FIXED not in kernel.arguments
    loads = arrays("always") - len(written)
    stores = 1
    if pair:
        loads += arrays("antithetic") - 1  # the mirrored input is written
    if DRAWN in kernel.arguments or learned:
        loads += arrays("drawn or learned")
    if DIAGONAL in kernel.arguments:
        loads, stores = loads + arrays("diagonal") // 2, stores + arrays("diagonal") // 2
    if ISOTROPIC not in kernel.arguments:
        stores += 2 * 2  # the next input and its mirror image, perturbed or not
    if kernel.name == "quad_step_kernel":
        rows = int(kernel.arguments[-1])
        return rows * loads, rows * stores
    # Either the measurement, of pixels that are seen, or gradients.
    loads += arrays("identity") + arrays("gradient") + (arrays("gradient antithetic") if pair else 0)
    return loads, stores


def table_accesses(kernel: Kernel) -> tuple[int, int]:
    """The same for all kernels that make each array's accesses once."""
    if kernel.name in ("step_kernel", "quad_step_kernel"):
        return step_accesses(kernel)
    if kernel.name == "perturb_kernel":
        return arrays("isotropic") + (arrays("diagonal") // 2 if DIAGONAL in kernel.arguments else 0), 2 * 2
    if kernel.name == "spectral_kernel":
        kind = TRAFFIC["spectral"]["complex" if kernel.arguments == ("1",) else "real"]
        return (sum(kind.values()) - kind["out"]) // 4, kind["out"] // 4
    if kernel.name == "squares_kernel":
        parts = (TRAFFIC["clip_gradient"][part] for part in ("held", "per number measured"))
        return sum(sum(part.values()) for part in parts) // 4, 0
    if kernel.name == "scale_kernel":
        return tuple(TRAFFIC["clip_gradient"]["always"][array] // 4 for array in ("gradient", "out"))
    table = TRAFFIC[{"mask": "mask", "normals": "normals", "adjoint": "block_average_adjoint"}.get(
        kernel.name.removesuffix("_kernel"), "block_average"
    )]["always"]  # fmt: skip
    if kernel.name == "quad_averages_kernel":
        return int(kernel.arguments[0]) * table["x"] // 4, 0
    return table.get("x", 0) // 4, table["out"] // 4


@pytest.mark.parametrize("card", CARDS)
def test_accesses_are_128_bits_wide_and_as_few_as_the_table_says(code: list[Kernel], card: str) -> None:
    checked = set()
    for kernel in code:
        # Blurs read shifted samples, averages of odd blocks whatever there is.
        if kernel.card != card or kernel.name in ("blur_kernel", "averages_kernel"):
            continue
        loads, stores = table_accesses(kernel)
        assert kernel.accesses["LDG.128"] == loads, kernel
        assert kernel.accesses["STG.128"] == stores, kernel
        checked.add(kernel.name)
    assert len(checked) == 10


@pytest.mark.parametrize("card", CARDS)
def test_single_numbers_are_written_only_where_groups_are_not_whole(code: list[Kernel], card: str) -> None:
    """Every store of four has its counterpart of four single ones, for items that begin anywhere, and no other."""
    for kernel in code:
        if kernel.card != card or "averages" in kernel.name or kernel.name == "squares_kernel":
            continue
        curvatures = 1 if kernel.name == "perturb_kernel" and kernel.arguments[-1] == "1" else 0
        assert kernel.accesses["STG"] == 4 * kernel.accesses["STG.128"] + curvatures, kernel
        assert kernel.accesses["STG.128"] > 0, kernel


@pytest.mark.parametrize("card", CARDS)
def test_blurs_read_128_bits_at_once(code: list[Kernel], card: str) -> None:
    (blur,) = (kernel for kernel in code if (kernel.card, kernel.name) == (card, "blur_kernel"))
    assert blur.accesses["LDG.128"] > 0
