"""Kill ``rmp-fast batch`` again and again and see that every image is restored exactly once.

python tests/batch_kills.py --images 200 --kills 10 --folder /tmp/kills
"""

from __future__ import annotations

import argparse
import hashlib
import json
import pathlib
import random
import signal
import subprocess
import sys
import tempfile
import time

import numpy as np
from pyarrow import parquet

from rmp_fast import images
from rmp_fast._ray import PREFIX

OPTIONS = [
    "--operator=inpaint_box", "--simulate", "--prior=fashion", "--noise-std=0.1", "--evaluations=20", "--batch-size=2",
    "--device=cpu", "--workers=1", "--threads=1",
]  # fmt: skip
LONGEST_RUN = 600.0
LONGEST_GOODBYE = 60.0  # of processes whose parent is dead, on a machine that does much else; usual are seconds
STARTED: set[int] = set()  # process ids of the runs
AGENTS = ("ray::DashboardAgent", "ray::RuntimeEnvAgent")  # wait a minute for Ray's dead head before they end, idle


def make_images(folder: pathlib.Path, count: int) -> None:
    """Grey pictures of random blocks in three folders; names recur between folders and formats."""
    rng = np.random.default_rng(0)
    for index in range(count):
        pixels = np.kron(rng.random((8, 8)), np.ones((4, 4)))[None]
        kind, suffix = (("png", ".png"), ("tiff", ".tif"))[index % 2]
        target = folder / ("", "a", "b/c")[index % 3] / f"{index // 6:03d}{suffix}"
        target.parent.mkdir(parents=True, exist_ok=True)
        images.write(target, pixels, 8, kind)


def start(source: pathlib.Path, out: pathlib.Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "rmp_fast.cli", "batch", f"--input={source}", f"--output={out}", *OPTIONS]
    run = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    STARTED.add(run.pid)
    return run


def offspring(process: int) -> set[int]:
    """The process's children, theirs, and so on."""
    parents = {}
    for entry in pathlib.Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except (OSError, IndexError):
                continue
    found: set[int] = set()
    front = {process}
    while front:
        front = {child for child, parent in parents.items() if parent in front} - found
        found |= front
    return found


def alive(processes: set[int]) -> set[int]:
    def runs(process: int) -> bool:
        try:
            return pathlib.Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
        except OSError:
            return False

    return {process for process in processes if runs(process)}


def command(process: int) -> str:
    try:
        return pathlib.Path(f"/proc/{process}/cmdline").read_text().replace("\0", " ")[:100]
    except OSError:
        return str(process)


def records(out: pathlib.Path) -> int:
    return sum(path.name != "batch.json" for path in out.rglob("*.json"))


def kill_once(source: pathlib.Path, out: pathlib.Path, chance: random.Random, goal: int | None) -> set[int]:
    """Start a run and kill its first process; all that it had started must go, but two agents may take longer.

    Args:
        source, out: of the run.
        chance: decides how long to wait.
        goal: records to wait for before a short random pause; None: a longer random pause alone, while the run starts.

    Returns:
        the agents.
    """
    run = start(source, out)
    began = time.monotonic()
    pause = chance.uniform(0, 8) if goal is None else chance.uniform(0, 0.5)
    while goal is not None and records(out) < goal and run.poll() is None:
        assert time.monotonic() - began < LONGEST_RUN, "the run does not get on"
        time.sleep(0.01)
    time.sleep(pause)
    told = {child: command(child) for child in offspring(run.pid)}
    run.send_signal(signal.SIGKILL)
    run.communicate()
    agents = {child for child, text in told.items() if text.startswith(AGENTS)}
    await_end(told.keys() - agents)
    print(f"killed after {time.monotonic() - began:.1f} s with {records(out)} records", flush=True)
    return agents


def await_end(processes: set[int], longest: float = LONGEST_GOODBYE) -> None:
    began = time.monotonic()
    while left := alive(processes):
        assert time.monotonic() - began < longest, f"outlive their run: {[command(process) for process in left]}"
        time.sleep(0.05)


def finish(source: pathlib.Path, out: pathlib.Path) -> str:
    run = start(source, out)
    said, complaint = run.communicate(timeout=LONGEST_RUN)
    assert run.returncode == 0, complaint
    assert complaint == "", complaint
    return said.strip()


def verify(source: pathlib.Path, out: pathlib.Path) -> None:
    """Nothing lost, nothing double, nothing half: manifest, records and pictures say the same of every image."""
    names = sorted(str(path.relative_to(source)) for path in source.rglob("*.*"))
    rows = parquet.read_table(out / "manifest.parquet").to_pylist()
    assert [row["name"] for row in rows] == names
    expected = {"manifest.parquet", "batch.json"}
    for row in rows:
        picture, sidecar = out / row["output"], out / f"{row['name']}.json"
        entry = json.loads(sidecar.read_text())
        digest = hashlib.sha256(picture.read_bytes()).hexdigest()
        assert row["status"] == "restored"
        assert digest == row["output_sha256"] == entry["output"]["sha256"], row["name"]
        assert row["input_sha256"] == hashlib.sha256((source / row["name"]).read_bytes()).hexdigest()
        assert images.read(picture).pixels.shape == (1, 32, 32)
        expected |= {row["output"], f"{row['name']}.json"}
    assert {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()} == expected


def abandoned() -> list[pathlib.Path]:
    """Ray's folders of the runs, which all have ended."""
    folders = pathlib.Path(tempfile.gettempdir()).glob(f"{PREFIX}*")
    return [path for path in folders if int(path.name.removeprefix(PREFIX).partition("-")[0]) in STARTED]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=pathlib.Path, required=True, help="must not exist")
    options = parser.parse_args()
    source, out = options.folder / "in", options.folder / "out"
    make_images(source, options.images)
    chance = random.Random(options.seed)
    agents: set[int] = set()
    for _ in range(options.kills):
        # One run in four is killed while it starts, the others after a random number of further images.
        before = records(out)
        goal = before + chance.randint(1, max(1, (options.images - before) // 3))
        agents |= kill_once(source, out, chance, None if chance.random() < 0.25 else goal)
    print(finish(source, out))
    verify(source, out)
    assert not abandoned()
    await_end(agents, 2 * LONGEST_GOODBYE)
    print(f"{options.images} images, {options.kills} kills: every image restored exactly once")


if __name__ == "__main__":
    main()
