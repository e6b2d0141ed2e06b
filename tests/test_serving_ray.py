"""``rmp-fast serve`` as its users have it: a real Ray, real sockets, a real signal."""

from __future__ import annotations

import concurrent.futures
import contextlib
import importlib.util
import io
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from serving_requests import descendants, grey, npy, wrong_requests

import rmp_fast as rmp
from rmp_fast.cli import main

httpx = pytest.importorskip("httpx", reason="it speaks to the service")

OPTIONS = ["--prior", "fashion", "--evaluations", "2", "--batch", "4", "--threads", "1", "--warm", "sr4:1x32x32"]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextlib.contextmanager
def started(folder: pathlib.Path, *options: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    pytest.importorskip("ray.serve", reason="the extra [ray] brings it")
    port = free_port()
    # pytest's own folder has too long a path for Ray's sockets; TMPDIR is where the command makes its folder.
    environment = os.environ | {"TMPDIR": "/tmp"}
    command = [sys.executable, "-m", "rmp_fast.cli", "serve", "--port", str(port), *OPTIONS, *options]
    with (folder / "stderr").open("w+") as errors:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment)
        said = process.stdout.readline()
        if not said.startswith("ready after"):
            errors.seek(0)
            pytest.fail(f"the service did not start: {said}{errors.read()[-4000:]}")
        assert said.endswith(f"listening on http://127.0.0.1:{port}\n")
        yield f"http://127.0.0.1:{port}", process
        process.kill()


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    with started(tmp_path_factory.mktemp("serve")) as running:
        yield running


def form(fields: dict[str, str], files: dict[str, bytes]) -> list[Any]:
    return [(k, (None, v)) for k, v in fields.items()] + [(k, (k, v)) for k, v in files.items()]


def direct(y: np.ndarray, seed: int, batch: int, item: int) -> np.ndarray:
    prior = rmp.priors.load("fashion")
    shape = (batch, 1, 4 * y.shape[1], 4 * y.shape[2])
    chain = rmp.presets.for_task("sr4", prior, 2)
    plan = rmp.Plan(rmp.operators.SuperResolution(4), prior, shape, 0.05, **chain, data_range=(0.0, 1.0))
    images = torch.full(plan.measurement_shape, 0.5)
    images[item] = torch.from_numpy(y)
    seeds = torch.zeros(batch, dtype=torch.int64)
    seeds[item] = seed
    return plan.execute(images, seeds=seeds).mean[item].numpy()


def test_mixed_requests_from_several_clients(service: tuple[str, subprocess.Popen[str]]) -> None:
    """Every right one as the direct call of the batch it says it was in, bit for bit; every wrong one 4xx."""
    url, _ = service
    wrong = [case for case in wrong_requests() if case.status != 413]  # the sizes allowed here are larger

    def client(number: int) -> list[tuple[str, Any]]:
        problems = []
        with httpx.Client(timeout=60) as http:
            for k in range(10):
                seed = 10 * number + k
                if k == 9:
                    case = wrong[seed % len(wrong)]
                    response = http.post(f"{url}/v1/reconstruct", files=form(case.fields, case.files))
                    right = response.status_code == case.status and case.message in response.json()["error"]["message"]
                else:
                    y = grey(8, 8 if k % 2 else 12, seed=seed)
                    fields = {"operator": "sr4", "noise_std": "0.05", "seed": str(seed), "format": "npy"}
                    response = http.post(f"{url}/v1/reconstruct", files=form(fields, {"image": npy(y)}))
                    if response.status_code == 200:
                        batch, item = (int(response.headers[f"x-rmp-{key}"]) for key in ("batch", "item"))
                        got = np.load(io.BytesIO(response.content))
                        answers.append((y, seed, batch, item, got))
                    right = response.status_code == 200
                if not right:
                    problems.append((response.text[:200], seed))
        return problems

    answers: list[tuple[np.ndarray, int, int, int, np.ndarray]] = []
    with concurrent.futures.ThreadPoolExecutor(4) as clients:
        assert [problem for problems in clients.map(client, range(4)) for problem in problems] == []
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as the service
    try:
        for *asked, got in answers:
            np.testing.assert_array_equal(got, direct(*asked))
    finally:
        torch.set_num_threads(threads)
    lines = httpx.get(f"{url}/metrics", timeout=60).text.splitlines()
    assert 'rmp_requests_total{code="200",operator="sr4"} 36.0' in lines
    assert {line.partition("_")[0].removeprefix("# HELP ").removeprefix("# TYPE ") for line in lines} == {"rmp"}


def test_a_signal_finishes_what_was_accepted(service: tuple[str, subprocess.Popen[str]]) -> None:
    url, process = service
    folder = pathlib.Path(ray_folder(process.pid))
    assert folder.is_dir()
    children = descendants(process.pid)
    stop_while_a_chain_runs(url, process)
    assert not folder.exists()
    assert [pid for pid in children if pathlib.Path(f"/proc/{pid}/exe").exists()] == []


def stop_while_a_chain_runs(url: str, process: subprocess.Popen[str]) -> None:
    fields = {"operator": "denoise", "noise_std": "0.05"}  # a shape that is not warm, and large: a second or more
    files = {"image": npy(grey(384, 384))}
    with concurrent.futures.ThreadPoolExecutor(1) as clients, httpx.Client(timeout=60) as http:
        accepted = clients.submit(httpx.post, f"{url}/v1/reconstruct", files=form(fields, files), timeout=60)
        seen = False
        while not seen and not accepted.done():
            seen = "rmp_running_requests 1.0" in http.get(f"{url}/metrics").text
        assert seen
        process.send_signal(signal.SIGTERM)
        assert accepted.result().status_code == 200
    rest = process.stdout.read()
    assert process.wait(60) == 0
    said = [line for line in rest.splitlines() if "\x1b" not in line]  # Ray's own words come in colour
    assert said == ["stopping: new requests are refused, those accepted are finished", "stopped"]


def answers_as_the_direct_call(url: str) -> None:
    y = grey()
    fields = {"operator": "sr4", "noise_std": "0.05", "seed": "3", "format": "npy"}
    response = httpx.post(f"{url}/v1/reconstruct", files=form(fields, {"image": npy(y)}), timeout=60)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    np.testing.assert_array_equal(np.load(io.BytesIO(response.content)), direct(y, 3, 1, 0))
    torch.set_num_threads(threads)


def test_without_ray_the_same_answers_and_the_same_end(tmp_path: pathlib.Path) -> None:
    with started(tmp_path, "--direct") as (url, process):
        answers_as_the_direct_call(url)
        assert descendants(process.pid) == []
        stop_while_a_chain_runs(url, process)


def test_behind_ray_s_proxy_the_same_answers_and_the_same_end(tmp_path: pathlib.Path) -> None:
    with started(tmp_path, "--proxy") as (url, process):
        answers_as_the_direct_call(url)
        stop_while_a_chain_runs(url, process)


def test_replicas_share_a_port_and_one_that_is_killed_is_replaced(tmp_path: pathlib.Path) -> None:
    with started(tmp_path, "--replicas", "2") as (url, process):
        first = replicas(process.pid)
        assert len(first) == 2
        assert both_ready(url)
        victim = min(first)
        os.kill(victim, signal.SIGKILL)
        latest = time.monotonic() + 120
        while len(replicas(process.pid) - {victim}) < 2 or not both_ready(url):
            assert time.monotonic() < latest
            time.sleep(0.1)
        for _ in range(4):  # each a new connection
            answers_as_the_direct_call(url)


def both_ready(url: str) -> bool:
    try:
        return "rmp_ready_replicas 2.0" in httpx.get(f"{url}/metrics", timeout=60).text
    except httpx.TransportError:  # the connection was that of the dead one
        return False


def replicas(pid: int) -> set[int]:
    return {child for child in descendants(pid) if b"Replica" in title(child)}


def title(pid: int) -> bytes:
    try:
        return pathlib.Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:  # it has ended
        return b""


def ray_folder(pid: int) -> str:
    environments = (pathlib.Path(f"/proc/{child}/environ").read_text() for child in descendants(pid))
    found = {e.partition("PROMETHEUS_MULTIPROC_DIR=")[2].partition("\0")[0] for e in environments}
    (folder,) = found - {""}
    return str(pathlib.Path(folder).parent)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--port", "0"], "`--port` must be from 1 to 65535, got 0"),
        (["--host", "192.0.2.77"], "`--host` 192.0.2.77 `--port`"),
        (["--threads", "0"], "`--threads` must be at least 1, got 0"),
        (["--replicas", "-1"], "`--replicas` must be at least 1, got -1"),
        (["--drain", "nan"], "`--drain` must be a number > 0, got nan"),
        (["--temp-dir", "/tmp/" + "x" * 60], "`--temp-dir` must be a path of at most 39 characters"),
        (["--device", "gpu"], "`--device` must be one of 'cpu', 'cuda', got 'gpu'"),
        (["--direct", "--replicas", "2"], "`--direct` is one process without Ray; it excludes `--replicas`, `--proxy`"),
        (["--direct", "--warm", "blur:1x8x8"], "`warm` blur: `kernel` must be given for blur"),
        (["--prior", "foto"], "`priors` must be one of 'fashion', 'photo', got 'foto'; did you mean 'photo'"),
        (["--prior", "/"], "`--prior` must name what it gives, as in faces=/, got '/'"),
        (["--prior", "faces=/nowhere.pt"], "`weights` faces=/nowhere.pt: there is no such file or folder"),
        (["--prior", "photo=/dev/null"], "'photo' is a bundled prior; give yours another name"),
        (["--prior", "a=/dev/null", "a=/dev/zero"], "`--prior` gives 'a' twice: /dev/null and /dev/zero"),
        (["--prior", "a=/dev/null"], "`--prior` /dev/null: "),
        (["--presets", "photo"], "`--presets` must name what it gives, as in faces=photo, got 'photo'"),
        (["--presets", "photo=/nowhere"], "`presets` photo: /nowhere cannot be read as presets"),
        (["--presets", "faces=/nowhere"], "`presets` must be one of 'photo', got 'faces'"),
        (["--batch", "0"], "`batch` must be at least 1, got 0"),
        (["--warm", "sr4"], "`warm` must be OPERATOR:CxHxW"),
    ],
)
def test_what_cannot_be_served_is_refused_before_anything_starts(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:  # fmt: skip
    pytest.importorskip("ray.serve", reason="the extra [ray] brings it")
    assert main(["serve", "--port", str(free_port()), *arguments]) == 2
    assert message in capsys.readouterr().err


def test_a_folder_of_a_bundled_prior_s_name_does_not_hide_it(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("ray.serve", reason="the extra [ray] brings it")
    (tmp_path / "photo").mkdir()
    monkeypatch.chdir(tmp_path)
    assert main(["serve", "--port", str(free_port()), "--prior", "photo", "--batch", "0"]) == 2
    assert "`batch` must be at least 1, got 0" in capsys.readouterr().err


def test_a_port_that_is_taken_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("ray.serve", reason="the extra [ray] brings it")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        assert main(["serve", "--port", str(taken.getsockname()[1])]) == 2
    assert "cannot be listened on: Address already in use" in capsys.readouterr().err


def test_without_ray_the_command_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:  # fmt: skip
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "ray" else find(name))
    assert main(["serve"]) == 2
    assert "the service needs ray: pip install 'rmp_fast[ray]'" in capsys.readouterr().err


def test_the_package_is_imported_without_ray_and_starlette() -> None:
    program = "import sys, rmp_fast.serving; sys.exit(any(m in sys.modules for m in ('ray', 'starlette')))"
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0
