"""``rmp-fast latency``: its command, and the statistics it prints."""

from __future__ import annotations

import json
import pathlib
import re
from typing import Any

import numpy as np
import pytest
from test_cli import photo, save

from rmp_fast.bench import latency
from rmp_fast.cli import main


@pytest.fixture
def picture(tmp_path: pathlib.Path) -> pathlib.Path:
    return save(tmp_path / "in" / "face.png", photo(32)[..., 1])


def test_command(picture: pathlib.Path, tmp_path: pathlib.Path, capsys: Any) -> None:
    pytest.importorskip("matplotlib", reason="latency.svg needs matplotlib: pip install 'rmp_fast[bench]'")
    out = tmp_path / "out"
    arguments = ["latency", f"--images={picture}", "--prior=fashion", "--task=sr4", "--evaluations=2", f"--out={out}"]
    assert main([*arguments, "--runs=20", "--batch", "1", "2", "--threads=1"]) == 0
    document = json.loads((out / "latency.json").read_text())
    assert [entry["batch"] for entry in document["batches"]] == [1, 2]
    told = capsys.readouterr().out
    for entry in document["batches"]:
        assert len(entry["seconds"]) == entry["runs"] == 20
        assert entry["p50"] == pytest.approx(np.median(entry["seconds"]))
        assert entry["p95"] == pytest.approx(np.percentile(entry["seconds"], 95))
        assert entry["p99"] is entry["p99.9"] is None
        assert f"p50 {1e3 * entry['p50']:.3f} ms" in told
    cost = document["batches"][0]["overhead"]
    # The chain without its network is a part of the chain; 2 evaluations, so the start takes its share.
    assert 0 < cost["chain"] < cost["total"]
    assert cost["network_fixed"] >= 0
    assert (out / "latency.svg").read_text().count("batch ") == 2
    assert main([*arguments, "--runs=1"]) == 2
    assert "add --force" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--task=sr5"], "`--task` must be one of .*did you mean 'sr4'"),
        (["--prior=fashon"], "did you mean 'fashion'"),
        (["--runs=0"], "`--runs` must be at least 1, got 0"),
        (["--seconds=0"], "`--seconds` must be a finite number > 0, got 0"),
        (["--batch", "0"], "`--batch` must be whole numbers of at least 1, got 0"),
    ],
)
def test_bad_input(picture: pathlib.Path, capsys: Any, arguments: list[str], message: str) -> None:
    assert main(["latency", f"--images={picture}", *arguments]) == 2
    assert re.search(message, capsys.readouterr().err)


def test_percentiles_need_enough_executions() -> None:
    values = [float(n) for n in range(1, 101)]
    assert latency.percentiles(values) == {
        "p50": 50.5, "p95": pytest.approx(95.05), "p99": pytest.approx(99.01), "p99.9": None
    }  # fmt: skip
    assert latency.percentiles([2.0]) == {"p50": 2.0, "p95": None, "p99": None, "p99.9": None}


def test_histogram_counts_every_execution() -> None:
    values = np.random.default_rng(0).gamma(2.0, 1e-3, 500)
    lines = latency.histogram(list(values)).splitlines()
    assert sum(int(re.findall(r"(?:ms|above) +(\d+)", line)[0]) for line in lines) == 500
    assert lines[-1].split()[0] == "above"
    assert max(line.count("█") for line in lines) == 50
    assert latency.histogram([0.001] * 3).strip() == "all 3 at 1 ms"


def test_warm_up_does_not_count() -> None:
    calls: list[int] = []
    assert len(latency.repeated(lambda: calls.append(1), 5, 60.0)) == 5
    assert len(calls) == 5 + latency.WARM_UP
    assert len(latency.repeated(lambda: calls.append(1), 10**9, 1e-9)) == 1
