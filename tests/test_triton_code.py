"""Machine code of the Triton kernels, compiled for cards that need not be here: what it holds, what it moves."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from rmp_fast.bench import cost

if importlib.util.find_spec("triton") is None:
    pytest.skip("the package triton is not installed", allow_module_level=True)

HERE = Path(__file__).parent
TRAFFIC = json.loads((HERE.parent / "kernels" / "traffic.json").read_text())
TARGETS = ("sm_80", "sm_90", "sm_100", "gfx942")
NVIDIA = TARGETS[:3]
FIXED, ISOTROPIC, DIAGONAL = range(3)

Row = dict[str, Any]


@pytest.fixture(scope="module")
def code() -> dict[str, list[Row]]:
    """What triton_code.py prints, by target; the targets are compiled side by side."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    running = {
        target: subprocess.Popen(
            [sys.executable, HERE / "triton_code.py", target],
            env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for target in TARGETS
    }  # fmt: skip
    rows = {}
    for target, process in running.items():
        out, errors = process.communicate()
        assert process.returncode == 0, errors
        rows[target] = json.loads(out)
    return rows


def told(row: Row) -> str:
    return f"{row['case']}, {row['kernel']}: {row['registers']} registers, {row['accesses']}"


@pytest.mark.parametrize("target", TARGETS)
def test_every_kernel_compiles(code: dict[str, list[Row]], target: str) -> None:
    names = {row["kernel"] for row in code[target]}
    assert names == {
        "natural_step", "perturb", "mask", "block_average", "block_average_adjoint", "blur_axis", "spectral", "squares",
        "clip_gradient", "normals",
    }  # fmt: skip


@pytest.mark.parametrize("target", TARGETS)
def test_nothing_is_spilled_and_registers_leave_half_the_threads(code: dict[str, list[Row]], target: str) -> None:
    # 64 of 65,536 registers leave 1,024 of the 2,048 threads of a multiprocessor; tile_of counts on these. Lanes of an
    # MI300 have 512, so that 128 leave four of its eight waves.
    most = 64 if target in NVIDIA else 128
    for row in code[target]:
        assert row["stack"] == row["local"] == 0, told(row)
        assert not any(name.startswith(("LDL", "STL", "scratch")) for name in row["accesses"]), told(row)
        if not row["case"].startswith("unaligned"):
            assert row["registers"] <= most, told(row)


def step_bytes(row: Row) -> tuple[float, float]:
    """The table's bytes per element of a step's kernel: of arrays of floats, and of what is smaller."""
    table, given, constants = TRAFFIC["natural_step"], row["given"], row["constants"]
    pair = "input_mirror_ptr" in given
    perturbing = table["always"]["input"] + (table["antithetic"]["input_mirror"] if pair else 0)
    if row["kernel"] == "perturb":
        return table["isotropic"]["next_mean"] + perturbing, 0
    learned = constants["PRECISION"] != FIXED
    parts = ["always"] + ["antithetic"] * pair + ["drawn or learned"] * (constants["DRAWN"] or learned)
    parts += ["diagonal"] * (constants["PRECISION"] == DIAGONAL)
    floats, small = 0.0, 0.0
    if constants["GRADIENT"]:
        parts += ["gradient"] + ["gradient antithetic"] * pair
    elif constants["ROWS"] > 1:
        small = table["per block"]["y"] / constants["ROWS"] ** 2
    elif "mask_ptr" in given:
        floats, small = table["mask"]["y"], table["mask"]["mask"]
    elif "y_ptr" in given:
        parts.append("identity")
    floats += sum(sum(table[part].values()) for part in parts)
    # What an isotropic precision perturbs with is known after the step.
    return floats - perturbing * (constants["PRECISION"] == ISOTROPIC), small


def table_bytes(row: Row) -> tuple[float, float]:
    """As :func:`step_bytes`, for every kernel that reads every array once."""
    constants, table = row["constants"], TRAFFIC.get(row["kernel"], {})
    if row["kernel"] in ("natural_step", "perturb"):
        return step_bytes(row)
    if row["kernel"] == "mask":
        return table["always"]["x"] + table["always"]["out"], table["always"]["mask"]
    if row["kernel"] == "block_average":
        return table["always"]["x"], table["per block"]["out"] / constants["FACTOR"] ** 2
    if row["kernel"] == "spectral":
        kind = table["complex" if constants["COMPLEX"] else "real"]
        if not constants["COMPLEX"]:
            return sum(kind.values()), 0
        return (sum(kind.values()) - kind["energy"]) / 2, kind["energy"] / 2  # an element is half a coefficient
    if row["kernel"] == "squares":
        parts = {"direction_ptr": "held", "residual_ptr": "per number measured"}
        found = (TRAFFIC["clip_gradient"][part] for name, part in parts.items() if name in row["given"])
        return sum(sum(part.values()) for part in found), 0
    if row["kernel"] == "clip_gradient":
        return sum(table["always"].values()), 0
    assert row["kernel"] == "normals"
    return table["always"]["out"], 0


def tile(row: Row) -> int:
    constants = row["constants"]
    if row["kernel"] == "block_average":
        return int(constants["BLOCKS"] * constants["FACTOR"] ** 2)
    return int(constants["COLUMNS"] * constants.get("ROWS", 1))


def reads_once(row: Row) -> bool:
    """Not: blocks that are averaged by a kernel of their own, or over rows in a loop; shifted reads of a blur."""
    if row["case"].startswith("unaligned") or row["kernel"] in ("blur_axis", "block_average_adjoint"):
        return False
    if row["kernel"] == "block_average":
        return row["constants"]["FACTOR"] in (2, 4, 8, 16)
    return "averages_ptr" not in row["given"]


@pytest.mark.parametrize("target", NVIDIA)
def test_bytes_are_the_fewest_and_accesses_128_bits_wide(code: dict[str, list[Row]], target: str) -> None:
    rows = [row for row in code[target] if reads_once(row)]
    assert {r["kernel"] for r in rows} >= {
        "natural_step", "perturb", "mask", "block_average", "spectral", "squares", "clip_gradient", "normals",
    }  # fmt: skip
    for row in rows:
        floats, small = table_bytes(row)
        assert row["loaded"] + row["stored"] == (floats + small) * tile(row), told(row)
        wide = row["accesses"].get("LDG.128", 0) + row["accesses"].get("STG.128", 0)
        assert 16 * wide * row["threads"] == floats * tile(row), told(row)


@pytest.mark.parametrize("target", NVIDIA)
def test_images_are_written_128_bits_wide_everywhere(code: dict[str, list[Row]], target: str) -> None:
    rows = [r for r in code[target] if r["kernel"] in ("natural_step", "blur_axis", "block_average_adjoint")]
    for row in rows:
        if not row["case"].startswith("unaligned"):
            assert 16 * row["accesses"]["STG.128"] * row["threads"] == row["stored"], told(row)
            if row["kernel"] == "blur_axis" and row["constants"]["VERTICAL"]:
                assert row["accesses"]["LDG.128"] > 0, told(row)


def test_accesses_are_128_bits_wide_on_amd(code: dict[str, list[Row]]) -> None:
    for row in code["gfx942"]:
        if reads_once(row) and row["kernel"] == "squares":  # writes sums alone
            assert row["accesses"]["global_load_dwordx4"] > 0, told(row)
        elif reads_once(row) and row["kernel"] != "block_average":
            assert row["accesses"]["global_store_dwordx4"] > 0, told(row)
            assert not any(name in row["accesses"] for name in ("global_store_dword", "global_store_dwordx2")) or (
                row["constants"].get("PRECISION") == ISOTROPIC
            ), told(row)


def test_the_table_names_every_operation_of_the_launchers() -> None:
    launchers = {
        "natural_step",
        "mask",
        "block_average",
        "block_average_adjoint",
        "separable_blur",
        "spectral",
        "clip_gradient",
        "normals",
    }
    assert set(TRAFFIC) == {*launchers, *cost.PROCESSOR_KERNELS, "unit"}
