"""The service under load: right and wrong requests from many clients, what a hop costs, and what survives a kill.

    python benchmarks/bench_service.py                   # all three parts, on a service that it starts
    python benchmarks/bench_service.py --part latency --direct

Every answer is compared with a direct call: of the load after the service has ended, of the latencies before they are
printed. The clients, the service and the direct calls share this machine's processors, so run it where they are free.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import contextlib
import dataclasses
import io
import os
import pathlib
import signal
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import httpx
import numpy as np
import torch

import rmp_fast as rmp
from rmp_fast.serving import Config, Service, create_app

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent / "tests"))
from serving_requests import descendants, grey, npy, wrong_requests

SHAPES = ((32, 32), (32, 48), (64, 64))
TASKS = ("sr4", "inpaint_random", "gaussian_deblur", "denoise")
NOISE_STD = 0.05
# An item in another batch: sums over channels in another order, some roundings of 2^-24 in every layer and look.
TOLERANCE = 1e-3


@dataclasses.dataclass(frozen=True)
class Asked:
    """A right request, and enough to make the same call directly."""

    task: str
    size: tuple[int, int]
    seed: int

    @property
    def y(self) -> np.ndarray:
        height, width = self.size
        factor = 4 if self.task == "sr4" else 1
        return grey(height // factor, width // factor, seed=self.seed)

    @property
    def mask(self) -> np.ndarray:
        return rmp.operators.random_mask(self.size, 0.7, self.seed).numpy()

    def form(self) -> list:
        fields = {"operator": self.task, "noise_std": str(NOISE_STD), "seed": str(self.seed), "format": "npy"}
        files = {"image": npy(self.y)}
        if self.task == "inpaint_random":
            files["mask"] = npy(self.mask)
        if self.task == "gaussian_deblur":
            fields["blur_std"] = "2"
        return form(fields, files)


def form(fields: dict[str, str], files: dict[str, bytes]) -> list:
    return [(k, (None, v)) for k, v in fields.items()] + [(k, (k, v)) for k, v in files.items()]


class Direct:
    """Plans of this process, by task, size and batch."""

    def __init__(self) -> None:
        self.prior = rmp.priors.load("fashion")

    def plan(self, asked: Asked, batch: int) -> rmp.Plan:
        op = {
            "sr4": lambda: rmp.operators.SuperResolution(4),
            "inpaint_random": lambda: rmp.operators.Inpainting(torch.from_numpy(asked.mask)[None, None]),
            "gaussian_deblur": lambda: rmp.operators.GaussianBlur(2.0),
            "denoise": rmp.operators.Denoising,
        }[asked.task]()
        chain = rmp.presets.for_task(asked.task, self.prior, 20)
        shape = (batch, 1, *asked.size)
        return rmp.Plan(op, self.prior, shape, NOISE_STD, **chain, data_range=(0.0, 1.0))

    def restore(self, asked: Asked, batch: int, item: int) -> np.ndarray:
        """The item in a batch of that size, its neighbours grey."""
        plan = self.plan(asked, batch)
        y = torch.full(plan.measurement_shape, 0.5)
        y[item] = torch.from_numpy(asked.y)
        if asked.task == "inpaint_random":
            y = plan.op.A(y)
        seeds = torch.zeros(batch, dtype=torch.int64)
        seeds[item] = asked.seed
        return plan.execute(y, seeds=seeds).mean[item].numpy()


@contextlib.contextmanager
def service(arguments: list[str]) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "rmp_fast.cli", "serve", "--prior", "fashion", "--port", str(port), *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        for line in process.stdout:
            if line.startswith("ready"):
                print(line, end="")
                break
        else:
            raise RuntimeError("the service did not start")
        yield f"http://127.0.0.1:{port}", process
    finally:
        process.send_signal(signal.SIGTERM)
        started = time.monotonic()
        print(process.stdout.read(), end="")
        print(f"exit code {process.wait(180)} after {time.monotonic() - started:.1f} s")


def post(client: httpx.Client, url: str, parts: list) -> httpx.Response:
    """With the patience that a client needs: 429 and 503 say when to come back."""
    while True:
        response = client.post(f"{url}/v1/reconstruct", files=parts)
        if response.status_code not in (429, 503):
            return response
        time.sleep(float(response.headers.get("retry-after", "1")) * 0.2)


def load(url: str, clients: int, requests: int) -> list[tuple[Asked, httpx.Response]]:
    """The mixed requests of all clients, 1 in 10 malformed; returns the right ones and their answers."""
    answered: list[tuple[Asked, httpx.Response]] = []
    problems: list[str] = []
    statuses: collections.Counter[int] = collections.Counter()
    wrong = [case for case in wrong_requests() if case.name not in ("too many pixels", "restored too large")]

    def client(number: int) -> None:
        random = np.random.default_rng(number)
        with httpx.Client(timeout=300) as http:
            for k in range(requests):
                if k % 10 == 9:
                    case = wrong[(number * requests + k) // 10 % len(wrong)]
                    response = http.post(f"{url}/v1/reconstruct", files=form(case.fields, case.files))
                    message = response.json().get("error", {}).get("message", "")
                    # The limits of this service are not those of the tests, so not every case is wrong for its size.
                    if not 400 <= response.status_code < 500 or not message:
                        problems.append(f"{case.name}: {response.status_code} {response.text[:100]}")
                else:
                    asked = Asked(TASKS[random.integers(4)], SHAPES[random.integers(3)], number * requests + k)
                    response = post(http, url, asked.form())
                    answered.append((asked, response))
                statuses[response.status_code] += 1

    threads = [threading.Thread(target=client, args=(number,)) for number in range(clients)]
    started = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds = time.perf_counter() - started
    print(f"{clients} clients x {requests}: {sum(statuses.values())} answers in {seconds:.0f} s, {dict(statuses)}")
    if problems:
        raise SystemExit("malformed requests were not refused:\n" + "\n".join(problems))
    if sum(statuses.values()) != clients * requests:
        raise SystemExit("some requests got no answer")
    return answered


def verify(answered: list[tuple[Asked, httpx.Response]], samples: int) -> None:
    """Every answer against a direct call alone; ``samples`` of them against one in the same place of the same batch."""
    direct = Direct()
    worst = exact = 0
    sizes: collections.Counter[str] = collections.Counter()
    for number, (asked, response) in enumerate(answered):
        if response.status_code != 200:
            raise SystemExit(f"{asked}: {response.status_code} {response.text[:200]}")
        got = np.load(io.BytesIO(response.content))
        batch, item = int(response.headers["x-rmp-batch"]), int(response.headers["x-rmp-item"])
        sizes[f"{batch:2d}"] += 1
        if number < samples:
            exact += bool((got == direct.restore(asked, batch, item)).all())
        worst = max(worst, float(np.abs(got - direct.restore(asked, 1, 0)).max()))
    print(f"batches: {dict(sorted(sizes.items()))}")
    print(
        f"{exact} of {min(samples, len(answered))} equal the direct call of the same seed, batch and item bit for bit"
    )
    print(f"largest difference of {len(answered)} from a direct call of one item: {worst:.2e} (limit {TOLERANCE:g})")
    if exact != min(samples, len(answered)) or worst > TOLERANCE:
        raise SystemExit("wrong answers")


def latency(url: str, repeats: int) -> None:
    """One warm request at a time: in turns over HTTP, through the same application in this process, and direct."""
    asked = Asked("sr4", (32, 32), 1)
    direct = Direct()
    plan, y, seeds = direct.plan(asked, 1), torch.from_numpy(asked.y)[None], torch.tensor([asked.seed])
    local = Service(Config(priors=("fashion",)))
    transport = httpx.ASGITransport(create_app(local))
    loop = asyncio.new_event_loop()
    bare = httpx.AsyncClient(transport=transport, base_url="http://here", timeout=60)
    times: dict[str, list[float]] = collections.defaultdict(list)

    def timed(name: str, call) -> object:
        started = time.perf_counter()
        result = call()
        times[name].append(time.perf_counter() - started)
        return result

    expected = plan.execute(y, seeds=seeds).mean[0].numpy()
    refused = form({"noise_std": "0.05"}, {"image": npy(asked.y)})
    with httpx.Client(timeout=60) as http:
        for _ in range(repeats):
            timed("direct", lambda: plan.execute(y, seeds=seeds))
            answers = [
                timed("http", lambda: http.post(f"{url}/v1/reconstruct", files=asked.form())),
                timed("no http", lambda: loop.run_until_complete(bare.post("/v1/reconstruct", files=asked.form()))),
            ]
            timed("GET", lambda: http.get(f"{url}/healthz"))
            # As large a request, read to its end and refused: what a hop with a body costs without any chain.
            timed("refused", lambda: http.post(f"{url}/v1/reconstruct", files=refused))
            timed("refused, no http", lambda: loop.run_until_complete(bare.post("/v1/reconstruct", files=refused)))
            for name, answer in zip(("chain", "chain, no http"), answers, strict=True):
                assert (np.load(io.BytesIO(answer.content)) == expected).all()
                times[name].append(float(answer.headers["server-timing"].rpartition("=")[2]) / 1e3)
    local.close()
    medians = {name: 1e3 * statistics.median(values) for name, values in times.items()}
    for name, values in times.items():
        low, high = np.percentile(values, (5, 95)) * 1e3
        print(f"{name:16s} p50 {medians[name]:8.2f} ms   p5 {low:8.2f}   p95 {high:8.2f}")
    for name, chain in (("http", "chain"), ("no http", "chain, no http")):
        beyond = [1e3 * (a - b) for a, b in zip(times[name], times[chain], strict=True)]
        print(f"{name}: beyond the direct call at p50 {medians[name] - medians['direct']:.2f} ms; "
              f"beyond its own chain at p50 {statistics.median(beyond):.2f} ms")  # fmt: skip


def kill(url: str, process: subprocess.Popen[str]) -> None:
    """A replica is killed while requests are under way; nobody may wait for ever, and service must come back."""
    asked = [Asked("sr4", (64, 64), seed) for seed in range(8)]
    results: list[str] = []

    def one(request: Asked) -> None:
        started = time.perf_counter()
        response = httpx.post(f"{url}/v1/reconstruct", files=request.form(), timeout=120)
        results.append(f"{response.status_code} after {time.perf_counter() - started:.1f} s")

    threads = [threading.Thread(target=one, args=(request,)) for request in asked]
    for thread in threads:
        thread.start()
    time.sleep(0.3)
    victims = [pid for pid in descendants(process.pid) if "REPLICA" in title(pid).upper()]
    os.kill(victims[0], signal.SIGKILL)
    started = time.perf_counter()
    for thread in threads:
        thread.join()
    print(f"one of {len(victims)} replicas killed with {len(asked)} requests under way: {sorted(results)}")
    with httpx.Client(timeout=120) as http:
        while (answer := http.post(f"{url}/v1/reconstruct", files=asked[0].form())).status_code != 200:
            time.sleep(0.2)
    print(f"an answer again {time.perf_counter() - started:.1f} s after the kill: {answer.status_code}")


def title(pid: int) -> str:
    return pathlib.Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=("load", "latency", "kill", "all"), default="all")
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--exact", type=int, default=100, help="answers compared bit for bit")
    way = parser.add_mutually_exclusive_group()
    way.add_argument("--direct", action="store_true", help="the service without Ray")
    way.add_argument("--proxy", action="store_true", help="the service behind Ray's proxy")
    parser.add_argument("--repeats", type=int, default=100)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, {os.cpu_count()} processors, load {os.getloadavg()[0]:.1f}")
    warm = [f"{task}:1x32x32" + (":blur_std=2" if task == "gaussian_deblur" else "") for task in TASKS]
    arguments = [
        "--threads",
        "1",
        *(f"--{name}" for name in ("direct", "proxy") if getattr(options, name)),
        "--warm",
        *warm,
    ]
    with service(arguments) as (url, process):
        if options.part in ("latency", "all"):
            latency(url, options.repeats)
        answered = load(url, options.clients, options.requests) if options.part in ("load", "all") else []
        if options.part in ("kill", "all"):
            kill(url, process)
    if answered:
        verify(answered, options.exact)


if __name__ == "__main__":
    main()
