"""``rmp-fast batch --address``: on a Ray cluster that runs already, with nodes that die."""

from __future__ import annotations

import os
import pathlib
import socket
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from rmp_fast.cli import main
from rmp_fast.cli.usage import UsageError

pytest.importorskip("pyarrow", reason="rmp-fast batch keeps its manifest with pyarrow: pip install .[ray]")
pytest.importorskip("ray", reason="rmp-fast batch runs on Ray: pip install .[ray]")

import batch_kills
from pyarrow import parquet
from ray_cluster import Cluster

from rmp_fast.batch import address

pytest_plugins = ["batch_store"]  # its fixtures

OPTIONS = [option for option in batch_kills.OPTIONS if not option.startswith("--workers")] + ["--evaluations=12"]
LONGEST_RUN = 120.0


@pytest.fixture(scope="module")
def nodes() -> Iterator[Cluster]:
    cluster = Cluster()
    cluster.add()
    yield cluster
    cluster.close()


def start(cluster: Cluster, source: pathlib.Path, out: pathlib.Path, *more: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "rmp_fast.cli", "batch", f"--input={source}", f"--output={out}", *OPTIONS, *more]
    return subprocess.Popen(
        [*command, f"--address={cluster.address}"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=cluster.environment,
    )  # fmt: skip


def finish(run: subprocess.Popen[str]) -> tuple[int, str, str]:
    said, complaint = run.communicate(timeout=LONGEST_RUN)
    return run.returncode, said, complaint


def test_a_cluster_that_loses_a_node_restores_as_one_machine_does_and_is_left_running(
    nodes: Cluster, tmp_path: pathlib.Path, fed: list[list[str]]
) -> None:
    source, out, alone = tmp_path / "in", tmp_path / "out", tmp_path / "alone"
    batch_kills.make_images(source, 30)
    run = start(nodes, source, out)
    end = time.monotonic() + LONGEST_RUN
    while batch_kills.records(out) < 6 and run.poll() is None:
        assert time.monotonic() < end, "the run does not get on"
        time.sleep(0.01)
    assert batch_kills.records(out) < 30
    nodes.kill(nodes.raylets[1])
    code, said, complaint = finish(run)
    assert (code, complaint) == (0, "")
    assert said.startswith("30 images: 30 restored; mean PSNR ")
    assert said.count("\n") == 1  # Ray tells of every task that it repeats, if it may
    batch_kills.verify(source, out)
    assert main(["batch", f"--input={source}", f"--output={alone}", *OPTIONS]) == 0
    for row in parquet.read_table(out / "manifest.parquet").to_pylist():
        assert row["batch_size"] == 2  # what the lost node held was not torn up
        assert (out / row["output"]).read_bytes() == (alone / row["output"]).read_bytes()

    end = time.monotonic() + batch_kills.LONGEST_GOODBYE
    while left := nodes.workers():
        assert time.monotonic() < end, f"outlive their run: {left}"
        time.sleep(0.05)
    assert batch_kills.alive(set(nodes.raylets)) == set(nodes.raylets)
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.*g")}
    code, said, complaint = finish(start(nodes, source, out))
    assert (code, complaint) == (0, "")
    assert said.startswith("30 images: 30 restored (30 before); ")
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_a_node_with_another_rmp_fast_is_named(nodes: Cluster, tmp_path: pathlib.Path) -> None:
    batch_kills.make_images(tmp_path / "in", 1)
    other = tmp_path / "other" / "rmp_fast-9.9.dist-info"
    other.mkdir(parents=True)
    (other / "METADATA").write_text("Metadata-Version: 2.1\nName: rmp_fast\nVersion: 9.9\n")
    raylet = nodes.add(PYTHONPATH=str(other.parent))
    code, said, complaint = finish(start(nodes, tmp_path / "in", tmp_path / "out"))
    nodes.kill(raylet)
    assert (code, said) == (2, "")
    assert "`--address`: node 127.0.0.1 of the cluster has rmp_fast 9.9, this process 0.1.0; install the" in complaint
    assert not (tmp_path / "out").exists()


def test_a_run_says_that_the_head_is_gone_before_ray_ends_it(tmp_path: pathlib.Path) -> None:
    batch_kills.make_images(tmp_path / "in", 60)
    cluster = Cluster()
    run = start(cluster, tmp_path / "in", tmp_path / "out")
    try:
        end = time.monotonic() + LONGEST_RUN
        while batch_kills.records(tmp_path / "out") < 2 and run.poll() is None:
            assert time.monotonic() < end, "the run does not get on"
            time.sleep(0.01)
        cluster.kill_head()
        said = run.stderr.readline()
        assert f"the head of the cluster, {cluster.address}, does not answer" in said
    finally:
        run.kill()
        run.communicate()
        cluster.close()


# Addresses.


def test_an_address_without_ray_is_refused_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(address, "LONGEST_JOIN", 12.0)  # of which a busy machine needs some to import Ray
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        with pytest.raises(UsageError, match=r"what listens there did not answer as Ray's head within 12 s"):
            address.check_address(f"127.0.0.1:{port}")
    began = time.monotonic()
    with pytest.raises(UsageError, match=rf"reached at `--address` 127\.0\.0\.1:{port}: Connection refused"):
        address.check_address(f"127.0.0.1:{port}")
    assert time.monotonic() - began < address.LONGEST_CONNECT


@pytest.mark.parametrize("wrong", ["", "local", "localhost", "ray://head:10001", "head:http", "head:80", "head:65536"])
def test_other_forms_of_an_address_are_refused(wrong: str) -> None:
    with pytest.raises(UsageError, match="`--address` must be HOST:PORT of the cluster's head, as `ray start` prints"):
        address.check_address(wrong)


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ("No node info found matching attributes: ''", "this machine is no node of that cluster; start the command on"),
        ("Traceback (most recent\n...\nInvalidAuthToken: missing", "that cluster wants a token: set RAY_AUTH_MODE=tok"),
        ("Version mismatch:\n    Ray: 2.60.0\n    Python: 3.12.1\n", "auto: Version mismatch: Ray: 2.60.0 Python: 3.1"),
        ("x: Traceback (most recent\n  File a\nOSError: gone", "`--address` auto: OSError: gone$"),
        ("", "joining it ended with exit code 1$"),
    ],
)
def test_what_ray_says_of_a_cluster_becomes_what_to_do(
    monkeypatch: pytest.MonkeyPatch, said: str, message: str
) -> None:
    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(command, 1, said, "")

    monkeypatch.setattr(address.subprocess, "run", run)
    with pytest.raises(UsageError, match=message):
        address.check_address("auto")
    assert "RAY_gcs_server_request_timeout_seconds" not in os.environ
