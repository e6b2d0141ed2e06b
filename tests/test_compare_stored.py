"""Stored benchmarks beside new ones: a slow kernel is an alarm, a slow machine is none."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import pytest
import scripts


@pytest.fixture(scope="module")
def stored() -> Any:
    return scripts.load("compare_stored")


def run(folder: pathlib.Path, seconds: dict[str, float], copy: float = 1e-5, path: str = "avx2") -> pathlib.Path:
    """What pytest-benchmark writes, with the kernels' and the copy's seconds."""
    entries = [
        {"name": name, "extra_info": {
            "cpu_path": path, "rmp_fast": {"median": 3 * value, "low": value, "high": 9 * value},
            "copy": {"median": 2 * copy, "low": copy, "high": 5 * copy},
        }}
        for name, value in seconds.items()
    ]  # fmt: skip
    entries.append({"name": "bench_two_threads", "extra_info": {"cpu_path": path}})
    document = {
        "machine_info": {"cpu": {"brand_raw": "A processor"}, "processor": "x86_64", "python_version": "3.12.1"},
        "commit_info": {"id": "abc"}, "datetime": "2025-01-01T00:00:00", "benchmarks": entries,
    }  # fmt: skip
    file = folder / "new.json"
    file.write_text(json.dumps(document))
    return file


@pytest.fixture
def accepted(stored: Any, tmp_path: pathlib.Path) -> pathlib.Path:
    file = tmp_path / "accepted.json"
    assert stored.main([str(file), str(run(tmp_path, {"step": 2e-5, "blur": 9e-5})), "--accept"]) == 0
    return file


def test_what_is_accepted_is_the_ratio_to_the_copy(accepted: pathlib.Path) -> None:
    entry = json.loads(accepted.read_text())["avx2"]
    assert entry["ratios"] == pytest.approx({"step": 2, "blur": 9})
    assert entry["where"]["processor"] == "A processor"
    assert "pytest benchmarks/bench_kernels.py" in entry["where"]["command"]


@pytest.mark.parametrize(
    ("seconds", "copy", "code", "told"),
    [
        ({"step": 2e-5, "blur": 9e-5}, 1e-5, 0, "1.00x"),
        ({"step": 8e-5, "blur": 36e-5}, 4e-5, 0, "1.00x"),  # a machine of a quarter of the speed
        ({"step": 2e-5, "blur": 18e-5}, 1e-5, 1, "2.00x  SLOWER"),  # a kernel of half the speed
        ({"step": 1e-5, "blur": 9e-5}, 0.5e-5, 1, "2.00x  SLOWER"),  # a faster machine hides no slow kernel
        ({"step": 2e-5}, 1e-5, 1, "gone"),
        ({"step": 2e-5, "blur": 9e-5, "mask": 1e-5}, 1e-5, 0, "new"),
    ],
)
def test_comparison(
    stored: Any,
    accepted: pathlib.Path,
    tmp_path: pathlib.Path,
    capsys: Any,
    seconds: Any,
    copy: Any,
    code: int,
    told: str,
) -> None:
    assert stored.main([str(accepted), str(run(tmp_path, seconds, copy))]) == code
    assert told in capsys.readouterr().out


def test_other_code_paths_are_kept_and_not_compared(
    stored: Any, accepted: pathlib.Path, tmp_path: pathlib.Path, capsys: Any
) -> None:
    new = run(tmp_path, {"step": 9e-5}, path="avx512")
    assert stored.main([str(accepted), str(new)]) == 0
    assert "nothing to compare with; results were accepted for avx2" in capsys.readouterr().out
    assert stored.main([str(accepted), str(new), "--accept"]) == 0
    assert set(json.loads(accepted.read_text())) == {"avx2", "avx512"}


def test_bad_files_are_named(stored: Any, accepted: pathlib.Path, tmp_path: pathlib.Path, capsys: Any) -> None:
    new = run(tmp_path, {"step": 2e-5})
    broken = tmp_path / "broken.json"
    broken.write_text("{")
    assert stored.main([str(accepted), str(broken)]) == 2
    assert stored.main([str(broken), str(new)]) == 2
    assert stored.main([str(tmp_path / "none.json"), str(new)]) == 2
    assert stored.main([str(accepted), str(run(tmp_path, {}))]) == 2
    told = capsys.readouterr().err
    assert told.count("broken.json") == 2
    assert "none.json cannot be read as accepted results" in told
    assert "holds no benchmark that was timed beside a copy" in told
