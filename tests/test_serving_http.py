"""The service over HTTP, without Ray: every answer, limits of the body, deadlines, queue, end."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import io
import json
import os
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from serving_requests import Wrong, grey, npy, png, samples, wrong_requests
from test_presets import LOOKS

import rmp_fast as rmp
from rmp_fast import images
from rmp_fast.priors.network import _FOLDER
from rmp_fast.serving import Config, Service, Warm

httpx = pytest.importorskip("httpx", reason="it speaks to the service")
for package in ("starlette", "python_multipart"):
    pytest.importorskip(package, reason="the extra [ray] brings what the service needs")
parser = pytest.importorskip("prometheus_client.parser", reason="the extra [ray] brings what the service needs")

CONFIG = Config(
    priors=("fashion",), evaluations=(2,), batch=4, queue=3, max_bytes=2**16, max_pixels=4096, body_seconds=0.2,
    warm=(Warm("inpaint_random", (1, 32, 32), "fashion"),),
)  # fmt: skip
GOOD = {"operator": "sr4", "noise_std": "0.05", "format": "npy", "seed": "7"}


@pytest.fixture(scope="module")
def service() -> Iterator[Service]:
    """Its plans run only while ``gate`` is open."""
    threads = torch.get_num_threads()
    service = Service(CONFIG)
    service.gate = threading.Event()
    service.gate.set()
    restore = service._plans.restore

    def gated(*arguments: Any) -> Any:
        assert service.gate.wait(30)
        return restore(*arguments)

    service._plans.restore = gated
    yield service
    assert service.close(30)
    torch.set_num_threads(threads)


def talk(service: Service, conversation: Callable[[httpx.AsyncClient], Awaitable[Any]]) -> Any:
    async def run() -> Any:
        from rmp_fast.serving import create_app

        transport = httpx.ASGITransport(create_app(service))
        async with httpx.AsyncClient(transport=transport, base_url="http://service", timeout=30) as client:
            return await conversation(client)

    return asyncio.run(run())


def post(service: Service, fields: dict[str, str], files: dict[str, bytes]) -> httpx.Response:
    return talk(service, lambda client: send(client, fields, files))


def send(client: httpx.AsyncClient, fields: dict[str, str], files: dict[str, bytes]) -> Awaitable[httpx.Response]:
    # Fields too as parts of the form, so that there is one where nothing is uploaded.
    parts: list[Any] = [(name, (None, value)) for name, value in fields.items()]
    parts += [(name, (f"{name}.bin", data)) for name, data in files.items()]
    return client.post("/v1/reconstruct", files=parts)


def refusal(response: httpx.Response, status: int, code: str) -> str:
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert error.keys() == {"status", "code", "message"}
    assert (error["status"], error["code"]) == (status, code)
    return error["message"]


def direct(y: np.ndarray, seed: int) -> np.ndarray:
    prior = rmp.priors.load("fashion")
    chain = rmp.presets.for_task("sr4", prior, 2)
    op = rmp.operators.SuperResolution(4)
    plan = rmp.Plan(op, prior, (1, 1, 32, 32), 0.05, **chain, data_range=(0.0, 1.0))
    return plan.execute(torch.from_numpy(y)[None], seeds=torch.tensor([seed])).mean[0].numpy()


def test_an_answer_is_the_image_of_a_direct_call_and_says_how_it_was_made(service: Service) -> None:
    y = grey()
    response = post(service, GOOD, {"image": npy(y)})
    assert response.status_code == 200
    np.testing.assert_array_equal(np.load(io.BytesIO(response.content)), direct(y, 7))
    head = response.headers
    assert (head["x-rmp-seed"], head["x-rmp-batch"], head["x-rmp-item"], head["x-rmp-ok"]) == ("7", "1", "0", "true")
    assert (head["x-rmp-evaluations"], head["x-rmp-shape"]) == ("2", "1x32x32")
    assert head["server-timing"].startswith("queue;dur=")
    assert len(head["x-rmp-settings"]) == 64
    other = post(service, GOOD | {"seed": "8"}, {"image": npy(y)}).headers["x-rmp-settings"]
    assert other != head["x-rmp-settings"]


def test_samples_of_coils_come_with_their_mask_and_maps(service: Service) -> None:
    maps = rmp.operators.coil_maps(2, (16, 16)).to(torch.complex64).numpy()
    files = {"image": npy(samples(2, 16, 16)), "mask": png(np.ones((1, 16, 16))), "maps": npy(maps)}
    for kind in ("npy", "png", "jpeg"):
        response = post(service, GOOD | {"operator": "mri", "format": kind}, files)
        assert response.status_code == 200, response.text
        assert response.headers["x-rmp-shape"] == "1x16x16"
        if kind != "npy":
            assert images.probe(response.content) == images.ImageHeader((1, 16, 16), 16 if kind == "png" else 8)


@pytest.mark.parametrize(("kind", "depth"), [("png", 8), ("png", 16), ("jpeg", 8)])
def test_pictures_come_back_as_deep_as_they_were_sent(kind: str, depth: int, service: Service) -> None:
    sent = png(grey(), depth)
    response = post(service, GOOD | {"format": kind}, {"image": sent})
    assert response.headers["content-type"] == f"image/{kind}"
    got = images.read(response.content)
    assert got.depth == depth
    expected = direct(images.read(sent).pixels, 7).clip(0, 1)
    # Half a level; the quantiser of a JPEG of quality 95 moves a pixel by a few levels more.
    assert np.abs(got.pixels - expected).max() <= 0.5 / (2**depth - 1) + (16 / 255 if kind == "jpeg" else 1e-6)


def test_what_was_left_out_of_a_picture_is_said(service: Service) -> None:
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(np.zeros((8, 8, 2), np.uint8), "LA").save(file, "PNG")
    assert post(service, GOOD, {"image": file.getvalue()}).headers["x-rmp-notes"] == "the alpha channel was dropped"


@pytest.mark.parametrize("wrong", wrong_requests()[::4], ids=lambda wrong: wrong.name)
def test_a_wrong_request_is_4xx_with_a_clear_body(wrong: Wrong, service: Service) -> None:
    code = {413: "too_large", 415: "unsupported"}.get(wrong.status, "invalid")
    assert wrong.message in refusal(post(service, wrong.fields, wrong.files), wrong.status, code)


def raw(service: Service, body: bytes, kind: str, **headers: str) -> httpx.Response:
    return talk(
        service,
        lambda client: client.post("/v1/reconstruct", content=body, headers={"Content-Type": kind, **headers}),
    )


FORM = "multipart/form-data; boundary=b"


def part(name: str, text: str) -> bytes:
    return f'--b\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{text}\r\n'.encode()


@pytest.mark.parametrize(
    ("body", "kind", "status", "message"),
    [
        (b"{}", "application/json", 415, "the body must be multipart/form-data, got application/json"),
        (b"", "", 415, "got no content type"),
        (b"x", "multipart/form-data", 400, "the body must be a form: Missing boundary"),
        (b"nonsense", FORM, 400, "the body must be"),
        (b"", FORM, 400, "closing boundary is missing"),
        (part("operator", "sr4"), FORM, 400, "closing boundary is missing"),
        (part("seed", "1") * 2 + b"--b--\r\n", FORM, 400, "`seed` must be given once"),
        (part("operator", "x" * 5000) + b"--b--\r\n", FORM, 400, "the body must be a form: Part exceeded"),
        (b"".join(part(f"f{i}", "") for i in range(99)) + b"--b--\r\n", FORM, 400, "Too many fields"),
        (b"--b\r\n\r\nx\r\n--b--\r\n", FORM, 400, "the body must be a form"),
        (b"x" * (2**16 + 1), FORM, 413, "the body must have at most 65536 bytes, got 65537"),
    ],
)
def test_a_body_that_is_no_form(body: bytes, kind: str, status: int, message: str, service: Service) -> None:
    code = {413: "too_large", 415: "unsupported"}.get(status, "invalid")
    assert message in refusal(raw(service, body, kind), status, code)


@given(st.binary(max_size=200), st.sampled_from([b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"\x93NUMPY\x01\x00"]))
@settings(max_examples=60, deadline=None)
def test_no_bytes_are_a_failure_of_the_service(service: Service, data: bytes, magic: bytes) -> None:
    assert post(service, GOOD, {"image": magic + data}).status_code in (400, 413, 415, 422)
    form = part("operator", "sr4") + b"--b\r\n" + data
    assert raw(service, form, FORM).status_code in (400, 422)


def test_an_upload_without_end_is_cut_off(service: Service) -> None:
    async def endless() -> AsyncIterator[bytes]:
        for _ in range(1000):
            yield bytes(1000)

    response = talk(
        service,
        lambda client: client.post("/v1/reconstruct", content=endless(), headers={"Content-Type": FORM}),
    )
    assert "at most 65536 bytes, got more" in refusal(response, 413, "too_large")


def test_uploads_are_limited_together(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "config", dataclasses.replace(CONFIG, upload_bytes=100))
    message = refusal(raw(service, bytes(101), FORM), 429, "busy")
    assert message == "101 bytes are on their way in; try again in 1 s"
    assert "Invalid multipart" in refusal(raw(service, bytes(100), FORM), 400, "invalid")


def test_a_slow_client_is_told_so(service: Service) -> None:
    async def slow() -> AsyncIterator[bytes]:
        yield b"--b"
        await asyncio.sleep(5)

    response = talk(
        service,
        lambda client: client.post("/v1/reconstruct", content=slow(), headers={"Content-Type": FORM}),
    )
    assert "the body must come within 0.2 s, got 3 bytes of it" in refusal(response, 408, "slow")


def test_other_addresses_and_methods(service: Service) -> None:
    response = talk(service, lambda client: client.get("/../../etc/passwd"))
    assert "POST /v1/reconstruct" in refusal(response, 404, "not_found")
    response = talk(service, lambda client: client.get("/v1/reconstruct"))
    refusal(response, 405, "method_not_allowed")
    assert response.headers["allow"] == "POST"


def test_deadline_queue_and_metrics(service: Service) -> None:
    """With the worker held up: too late is 504, one too many 429, and the rest are answered as one batch."""
    before = counted(service)
    service.gate.clear()

    async def conversation(client: httpx.AsyncClient) -> tuple[list[httpx.Response], list[httpx.Response]]:
        def ask(seed: int, **fields: str) -> asyncio.Task[httpx.Response]:
            return asyncio.ensure_future(send(client, GOOD | {"seed": str(seed)} | fields, {"image": npy(grey())}))

        async def until(waiting: int) -> None:
            while service._batcher.waiting != waiting or not service._batcher._running:
                await asyncio.sleep(0.005)

        first = ask(0)
        await until(0)
        late = [await ask(1, deadline="0"), await ask(2, deadline="0.05")]
        kept = [ask(seed) for seed in (3, 4, 5)]
        await until(3)
        late.append(await ask(6))
        service.gate.set()
        return late, [await first, *[await task for task in kept]]

    late, kept = talk(service, conversation)
    assert "`deadline` of 0 s" in refusal(late[0], 504, "deadline")
    assert "`deadline` of 0.05 s" in refusal(late[1], 504, "deadline")
    assert "the queue is full, with 3 requests waiting" in refusal(late[2], 429, "busy")
    assert int(late[2].headers["retry-after"]) >= 1
    assert [r.headers["x-rmp-batch"] for r in kept] == ["1", "3", "3", "3"]
    assert sorted(r.headers["x-rmp-item"] for r in kept[1:]) == ["0", "1", "2"]

    after = counted(service)
    gained = {key: after[key] - before.get(key, 0) for key in after}
    assert gained["rmp_requests_total", "200", "sr4"] == 4
    assert gained["rmp_requests_total", "504", "sr4"] == 2
    assert gained["rmp_requests_total", "429", "sr4"] == 1
    assert gained["rmp_batch_items_count",] == 2
    assert gained["rmp_batch_items_sum",] == 4
    assert gained["rmp_network_evaluations_total",] == 4 * 2
    assert after["rmp_queue_requests",] == 0
    assert after["rmp_ready_replicas",] == 1


def counted(service: Service) -> dict[tuple[str, ...], float]:
    text = talk(service, lambda client: client.get("/metrics")).text
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in parser.text_string_to_metric_families(text)
        for sample in family.samples
        if "le" not in sample.labels and not sample.name.endswith("_created")
    }


@contextlib.contextmanager
def network(service: Service, denoise: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> Iterator[None]:
    """Another network for a while; plans keep the one that they were made with."""
    prior, plans = service.priors["fashion"], service._plans._plans
    plans.clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prior, "denoise", denoise)
        yield
    plans.clear()


def test_a_chain_that_diverges_is_no_answer(service: Service) -> None:
    """Only the item that diverged is refused."""
    true = service.priors["fashion"].denoise

    def denoise(x: torch.Tensor, s: torch.Tensor) -> torch.Tensor:
        return true(x, s) * torch.tensor([1.0, torch.inf])[: x.shape[0], None, None, None]

    with network(service, denoise):
        good, bad = run_as_one_batch(service, 2)
    assert good.status_code == 200
    assert "the chain left the finite range" in refusal(bad, 422, "diverged")


def test_a_chain_that_nobody_waits_for_is_stopped(service: Service) -> None:
    """Its request is given up during the first look; the second of two is not taken."""
    true, looks = service.priors["fashion"].denoise, []
    before = counted(service).get(("rmp_stopped_total",), 0)
    entered, told = threading.Event(), threading.Event()

    def denoise(x: torch.Tensor, s: torch.Tensor) -> torch.Tensor:
        looks.append(x.shape)
        entered.set()
        assert told.wait(30)
        return true(x, s)

    async def conversation(client: httpx.AsyncClient) -> None:
        asked = asyncio.ensure_future(send(client, GOOD, {"image": npy(grey())}))
        assert await asyncio.to_thread(entered.wait, 30)
        asked.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asked
        told.set()
        await idle(service)

    with network(service, denoise):
        talk(service, conversation)
    assert len(looks) == 1
    assert counted(service)["rmp_stopped_total",] == before + 1


async def idle(service: Service) -> None:
    while service._batcher._running:
        await asyncio.sleep(0.005)


def run_as_one_batch(service: Service, number: int) -> list[httpx.Response]:
    service.gate.clear()

    async def conversation(client: httpx.AsyncClient) -> list[httpx.Response]:
        first = asyncio.ensure_future(send(client, GOOD | {"operator": "denoise"}, {"image": npy(grey(16, 16))}))
        while not service._batcher._running:
            await asyncio.sleep(0.005)
        tasks = []
        for seed in range(number):
            tasks.append(asyncio.ensure_future(send(client, GOOD | {"seed": str(seed)}, {"image": npy(grey())})))
            while service._batcher.waiting <= seed:
                await asyncio.sleep(0.005)
        service.gate.set()
        await first
        return [await task for task in tasks]

    return talk(service, conversation)


def test_a_failure_inside_is_500_for_the_one_that_caused_it(
    service: Service, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:  # fmt: skip
    restore = service._plans.restore

    def failing(jobs: Any, *wanted: Any) -> Any:
        if any(job.seed == 1 for job in jobs):
            raise RuntimeError("secret of the inside")
        return restore(jobs, *wanted)

    monkeypatch.setattr(service._plans, "restore", failing)
    answers = run_as_one_batch(service, 3)
    assert [answer.status_code for answer in answers] == [200, 500, 200]
    assert "its log says why" in refusal(answers[1], 500, "internal")
    assert "secret" not in answers[1].text
    assert "secret of the inside" in caplog.text


def test_questions(service: Service) -> None:
    info = talk(service, lambda client: client.get("/v1/info")).json()
    assert info["priors"] == ["fashion"]
    assert info["limits"]["max_pixels"] == 4096
    assert {"mri", "phase_retrieval", "nonlinear_deblur"} < set(info["operators"])
    assert {"maps", "starts", "gamma"} < set(info["options"])
    assert (info["limits"]["max_coils"], info["limits"]["max_starts"]) == (32, 16)
    assert talk(service, lambda client: client.get("/healthz")).json() == {"status": "ok"}
    assert talk(service, lambda client: client.get("/readyz")).json() == {"status": "ready"}


def test_warm_plans_are_there_before_the_first_request_and_an_end_is_orderly() -> None:
    service = Service(CONFIG)
    assert counted(service)["rmp_plans",] == 4  # one for every number of items

    async def conversation(client: httpx.AsyncClient) -> list[httpx.Response]:
        accepted = asyncio.ensure_future(send(client, GOOD, {"image": npy(grey())}))
        while not (service._batcher.waiting or service._batcher._running):
            await asyncio.sleep(0.001)
        ended = asyncio.ensure_future(asyncio.to_thread(service.drain))
        while not service._batcher.draining:
            await asyncio.sleep(0.001)
        answers = [await send(client, GOOD, {"image": npy(grey())}), await client.get("/readyz"), await accepted]
        assert await ended
        return answers

    refused, ready, accepted = talk(service, conversation)
    refusal(refused, 503, "draining")
    assert refused.headers["retry-after"] == "5"
    refusal(ready, 503, "draining")
    assert accepted.status_code == 200
    assert talk(service, lambda client: client.get("/healthz")).status_code == 200
    assert service.close(30)
    assert "the worker thread has ended" in refusal(
        talk(service, lambda client: client.get("/healthz")), 503, "unhealthy"
    )


def test_a_prior_of_ones_own_with_what_was_tuned_for_it(tmp_path: Any) -> None:
    """The same weights under two names: one takes the bundled presets, one the file's."""
    weights, tuned = tmp_path / "mine.safetensors", tmp_path / "tuned.json"
    weights.write_bytes((_FOLDER / "fashion.safetensors").read_bytes())
    tuned.write_text(json.dumps({"sr4": {"2": {"looks": LOOKS, "start": "zero"}}}))
    config = Config(
        priors=("fashion", "clothes"), weights={"clothes": str(weights)}, presets={"clothes": str(tuned)},
        evaluations=(2,), warm=(Warm("sr4", (1, 32, 32), "clothes"),), batch=1,
    )  # fmt: skip
    threads = torch.get_num_threads()
    service = Service(config)
    y, means = grey(), {}
    for prior in config.priors:
        job = service.parse(GOOD | {"prior": prior}, {"image": npy(y)})
        means[prior] = service.submit(job).outcome.result(60).mean
    plan = rmp.Plan(
        rmp.operators.SuperResolution(4), rmp.priors.load("fashion"), (1, 1, 32, 32), 0.05, data_range=(0.0, 1.0),
        **rmp.presets.for_task("sr4", "fashion", 2, rmp.presets.read(tuned)),
    )  # fmt: skip
    direct = plan.execute(torch.from_numpy(y)[None], seeds=torch.tensor([7]))
    assert np.array_equal(means["clothes"], direct.mean[0].numpy())
    assert not np.array_equal(means["fashion"], means["clothes"])
    assert service.close(30)
    torch.set_num_threads(threads)


@pytest.mark.parametrize(
    ("warm", "message"),
    [
        (Warm("blur", (1, 32, 32), "fashion"), "`warm` blur: `kernel` must be given for blur"),
        (Warm("mri", (1, 32, 32), "fashion"), "`warm` mri: `mask` must be given for mri"),
        (Warm("nonlinear_deblur", (1, 32, 32), "fashion"), "`warm` nonlinear_deblur: `kernel` must be given"),
        (Warm("phase_retrieval", (3, 32, 32), "fashion"), "`warm` phase_retrieval: .* takes grey pictures"),
        (Warm("sr4", (1, 30, 32), "fashion"), "`warm` sr4: height and width must be multiples of `factor` = 4"),
        (Warm("sr4", (3, 32, 32), "fashion"), "for the prior 'fashion'"),
    ],
)
def test_plans_that_cannot_be_made_stop_the_start(warm: Warm, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Service(Config(priors=("fashion",), evaluations=(2,), warm=(warm,)))


def test_replicas_count_together_and_the_dead_leave_no_gauges(tmp_path: Any) -> None:
    """Two processes share a directory; one of them was killed. Its requests still count, its plans do not."""
    program = """
import sys
from rmp_fast.serving.metrics import Metrics
metrics = Metrics(8)
metrics.requests.labels("sr4", "200").inc(3)
metrics.plans.set(5)
import prometheus_client
prometheus_client.Counter("ray_something", "not ours").inc()
if sys.argv[1] == "die":
    import os
    os._exit(9)
print(metrics.render()[0].decode())
"""
    environment = os.environ | {"PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}
    first, second = (
        subprocess.run([sys.executable, "-c", program, how], env=environment, capture_output=True, text=True)
        for how in ("die", "report")
    )
    assert first.returncode == 9
    lines = second.stdout.splitlines()
    assert 'rmp_requests_total{code="200",operator="sr4"} 6.0' in lines
    assert "rmp_plans 5.0" in lines
    assert "ray_something" not in second.stdout
