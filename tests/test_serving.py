"""The service without its transport: what it refuses, that it computes what a direct call does, how it queues."""

from __future__ import annotations

import threading
import time
from concurrent.futures import CancelledError

import numpy as np
import pytest
import torch
from serving_requests import Wrong, grey, npy, png, wrong_requests

import rmp_fast as rmp
from rmp_fast.serving import Config, RequestError, Warm, parse_warm
from rmp_fast.serving.batching import Batcher
from rmp_fast.serving.decode import array, picture
from rmp_fast.serving.parsing import Job, parse
from rmp_fast.serving.plans import Plans

CONFIG = Config(priors=("fashion",), evaluations=(2, 4), batch=4, max_pixels=4096)


@pytest.fixture(scope="module")
def priors() -> dict[str, rmp.priors.Prior]:
    return {"fashion": rmp.priors.load("fashion")}


def job_of(priors: dict, fields: dict[str, str] | None = None, seed: int = 0, **files: bytes) -> Job:
    given = {"operator": "sr4", "noise_std": "0.05", "format": "npy", "seed": str(seed)} | (fields or {})
    return parse(given, {"image": npy(grey(seed=seed)), **files}, CONFIG, priors)


@pytest.mark.parametrize("wrong", wrong_requests(), ids=lambda wrong: wrong.name)
def test_what_is_wrong_is_refused_with_what_to_do(wrong: Wrong, priors: dict) -> None:
    with pytest.raises(RequestError) as caught:
        parse(wrong.fields, wrong.files, CONFIG, priors)
    assert caught.value.status == wrong.status
    assert wrong.message in caught.value.message
    assert "--" not in caught.value.message  # fields, not the flags of the command line


def test_pictures_and_arrays_of_one_measurement_are_the_same_request(priors: dict) -> None:
    levels = np.random.default_rng(0).integers(0, 256, (1, 8, 8))
    values = (levels / 255).astype(np.float32)
    jobs = [job_of(priors, image=data) for data in (npy(values), npy(values[0].astype(">f8")), png(values))]
    for job in jobs:
        torch.testing.assert_close(job.y, torch.from_numpy(values), rtol=2**-23, atol=0)  # one rounding of x / 255
    assert len({job.key for job in jobs}) == 1


def test_a_request_states_what_it_wants(priors: dict) -> None:
    job = job_of(priors, {"evaluations": "4", "deadline": "7.5", "alone": "TRUE", "format": "jpeg"}, seed=2**63 - 1)
    assert (job.evaluations, job.deadline, job.alone, job.file_format) == (4, 7.5, True, "jpeg")
    assert (job.seed, job.shape, job.noise_std) == (2**63 - 1, (1, 32, 32), 0.05)


@pytest.mark.parametrize("picture_of_mask", [True, False])
def test_a_mask_hides_what_the_file_has_there(picture_of_mask: bool, priors: dict) -> None:
    known = np.random.default_rng(1).random((1, 32, 32)) < 0.5
    mask = png(known.astype(np.float32)) if picture_of_mask else npy(known[0].astype(np.int16))
    fields = {"operator": "inpainting"}
    y = grey(32, 32)
    job = job_of(priors, fields, image=npy(y), mask=mask)
    np.testing.assert_array_equal(job.y, y * known)
    turned = job_of(priors, fields | {"invert_mask": "1"}, image=npy(y), mask=npy(~known))
    np.testing.assert_array_equal(turned.y, job.y)


def test_jobs_share_a_batch_where_only_data_differ(priors: dict) -> None:
    inpaint = {"operator": "inpainting"}
    masks = [npy(np.random.default_rng(i).random((32, 32)) < 0.5) for i in range(2)]
    a, b = (job_of(priors, inpaint, image=npy(grey(32, 32)), mask=mask) for mask in masks)
    assert a.key == b.key
    assert job_of(priors).key == job_of(priors, {"noise_std": "0.1"}, seed=4).key
    others = [{}, {"evaluations": "4"}, {"filter": "bicubic"}, {"operator": "super_resolution", "factor": "4"}]
    blurs = [{"operator": "gaussian_blur", "blur_std": std} for std in ("1", "2")]
    kernels = [npy(np.ones((n, n))) for n in (1, 3)]
    keys = {job_of(priors, fields).key for fields in others + blurs}
    keys |= {job_of(priors, {"operator": "blur"}, kernel=kernel).key for kernel in kernels}
    assert len(keys) == len(others) + len(blurs) + len(kernels)


@pytest.mark.parametrize("operator", ["inpainting", "sr4", "gaussian_deblur"])
def test_a_batch_gives_the_bits_of_a_direct_call(operator: str, priors: dict) -> None:
    """The same plan, seeds and number of items; an item repeats with any neighbours, as the headers say."""
    side = 8 if operator == "sr4" else 32
    fields = {"operator": operator} | ({"blur_std": "1.5"} if operator == "gaussian_deblur" else {})
    masks = torch.stack([rmp.operators.random_mask((1, 32, 32), 0.5, i) for i in range(3)])
    jobs = []
    for i in range(3):
        files = {"mask": npy(masks[i, 0].numpy())} if operator == "inpainting" else {}
        noise = {"noise_std": str(0.02 * (i + 1))}
        jobs.append(job_of(priors, fields | noise, seed=i, image=npy(grey(side, side, seed=i)), **files))
    outcomes = Plans(CONFIG, priors).restore(jobs)

    op = {
        "inpainting": rmp.operators.Inpainting(masks),
        "sr4": rmp.operators.SuperResolution(4),
        "gaussian_deblur": rmp.operators.GaussianBlur(1.5),
    }[operator]
    chain = rmp.presets.for_task(operator if operator in rmp.presets.TASKS else "denoise", "fashion", 2)
    noise_std = torch.tensor([0.02, 0.04, 0.06], dtype=torch.float64)
    plan = rmp.Plan(op, priors["fashion"], (3, 1, 32, 32), noise_std, **chain, data_range=(0.0, 1.0))
    y = torch.stack([torch.from_numpy(grey(side, side, seed=i)) for i in range(3)])
    y = op.A(y) if operator == "inpainting" else y
    direct = plan.execute(y, seeds=torch.arange(3)).mean.numpy()
    for i, outcome in enumerate(outcomes):
        np.testing.assert_array_equal(outcome.mean, direct[i])
        assert (outcome.batch, outcome.item, outcome.evaluations, outcome.ok) == (3, i, 2, True)
    y[[0, 2]] = 0.25
    again = plan.execute(y, seeds=torch.tensor([9, 1, 8])).mean.numpy()
    np.testing.assert_array_equal(again[1], outcomes[1].mean)
    alone = Plans(CONFIG, priors).restore(jobs[1:2])[0].mean
    # Sums over channels in another order: some roundings of 2^-24 on values up to 2 in two evaluations of ~40 layers.
    assert np.abs(alone - direct[1]).max() < 1e-4
    assert len({outcome.settings_hash for outcome in outcomes}) == 3


def test_a_kept_plan_takes_the_masks_and_noise_of_another_batch(priors: dict) -> None:
    def jobs(first: int) -> list[Job]:
        masks = [npy(np.random.default_rng(seed).random((32, 32)) < 0.5) for seed in (first, first + 1)]
        noise = [{"operator": "inpainting", "noise_std": str(0.01 * (first + k + 1))} for k in range(2)]
        return [job_of(priors, noise[k], first + k, image=npy(grey(32, 32)), mask=masks[k]) for k in range(2)]

    plans = Plans(CONFIG, priors)
    plans.restore(jobs(0))
    again = plans.restore(jobs(5))
    assert (plans.hits, plans.misses) == (1, 1)
    fresh = Plans(CONFIG, priors).restore(jobs(5))
    for one, other in zip(again, fresh, strict=True):
        np.testing.assert_array_equal(one.mean, other.mean)


def test_plans_are_kept_and_the_least_recently_used_dropped(priors: dict) -> None:
    plans = Plans(Config(priors=("fashion",), evaluations=(2,), plans=2), priors)
    small, other = job_of(priors), job_of(priors, {"operator": "denoise"}, image=npy(grey(16, 16)))
    for jobs in ([small], [small, small], [small], [other], [small], [small, small]):
        plans.restore(jobs)
    # Missed: both sizes, the other, and the pair that had to leave for it.
    assert (len(plans), plans.hits, plans.misses) == (2, 2, 4)
    tight = Plans(Config(priors=("fashion",), evaluations=(2,), plan_bytes=1), priors)
    tight.restore([small])
    tight.restore([other])
    assert len(tight) == 1


class Gated:
    """A worker's function that waits for permission, and what it was given."""

    def __init__(self) -> None:
        self.gate, self.entered = threading.Semaphore(0), threading.Semaphore(0)
        self.batches: list[list] = []

    def __call__(self, tickets: list) -> None:
        self.batches.append(tickets)
        self.entered.release()
        assert self.gate.acquire(timeout=30)
        for ticket in tickets:
            ticket.outcome.set_result(ticket.job.seed)


def small_queue(**limits: int) -> Config:
    return Config(priors=("fashion",), evaluations=(2, 4), **{"batch": 4, "queue": 6, **limits})


def blocked(priors: dict, config: Config) -> tuple[Gated, Batcher]:
    """A batcher whose worker is busy with a first job."""
    run = Gated()
    batcher = Batcher(run, config)
    batcher.submit(job_of(priors, seed=99))
    assert run.entered.acquire(timeout=30)
    return run, batcher


def finish(run: Gated, batcher: Batcher) -> list[list[int]]:
    run.gate.release(100)
    assert batcher.close(30)
    return [[ticket.job.seed for ticket in batch] for batch in run.batches]


def test_batches_form_while_the_worker_is_busy_and_the_oldest_goes_first(priors: dict) -> None:
    run, batcher = blocked(priors, small_queue(queue=20))
    other = {"evaluations": "4"}
    for seed, fields in ((1, {}), (2, other), (3, {}), (4, {"alone": "true"}), (5, {}), (6, {}), (7, {}), (8, other)):
        batcher.submit(job_of(priors, fields, seed=seed))
    assert finish(run, batcher) == [[99], [1, 3, 5, 6], [2, 8], [4], [7]]


def test_large_images_are_not_batched(priors: dict) -> None:
    run, batcher = blocked(priors, small_queue(batch_pixels=2 * 32 * 32))
    for seed in range(5):
        batcher.submit(job_of(priors, seed=seed))
    assert finish(run, batcher) == [[99], [0, 1], [2, 3], [4]]


def test_a_full_queue_refuses_and_recovers(priors: dict) -> None:
    run, batcher = blocked(priors, small_queue(queue=2))
    kept = [batcher.submit(job_of(priors, seed=seed)) for seed in (1, 2)]
    with pytest.raises(RequestError, match="the queue is full, with 2 requests waiting; try again in 1 s") as caught:
        batcher.submit(job_of(priors))
    assert (caught.value.status, caught.value.code, caught.value.retry_after) == (429, "busy", 1)
    kept[0].give_up()  # its place is free at once
    batcher.submit(job_of(priors, seed=3))
    assert finish(run, batcher) == [[99], [2, 3]]
    with pytest.raises(CancelledError):
        kept[0].outcome.result(0)


def test_the_queue_is_limited_in_pixels_too(priors: dict) -> None:
    run, batcher = blocked(priors, small_queue(queue_pixels=32 * 32 + 1))
    batcher.submit(job_of(priors, seed=1))
    with pytest.raises(RequestError, match="the queue is full, with 1024 pixels waiting"):
        batcher.submit(job_of(priors))
    finish(run, batcher)


def test_a_deadline_ends_the_wait(priors: dict) -> None:
    run, batcher = blocked(priors, small_queue())
    with pytest.raises(RequestError, match=r"no result within the `deadline` of 0 s") as caught:
        batcher.submit(job_of(priors, {"deadline": "0"}))
    assert caught.value.status == 504
    late = batcher.submit(job_of(priors, {"deadline": "0.01"}))
    time.sleep(0.02)
    assert finish(run, batcher) == [[99]]
    assert isinstance(late.outcome.exception(0), RequestError)


def test_draining_finishes_what_was_accepted_and_takes_nothing_new(priors: dict) -> None:
    run, batcher = blocked(priors, small_queue())
    ticket = batcher.submit(job_of(priors, seed=1))
    assert not batcher.drain(0.01)
    with pytest.raises(RequestError, match="shutting down") as caught:
        batcher.submit(job_of(priors))
    assert caught.value.status == 503
    run.gate.release(2)
    assert batcher.drain(30)
    assert ticket.outcome.result(0) == 1
    assert batcher.problem() is None
    assert batcher.close(30)
    assert batcher.problem() == "the worker thread has ended"


def test_closing_in_a_hurry_refuses_what_is_left(priors: dict) -> None:
    run, batcher = blocked(priors, small_queue())
    left = batcher.submit(job_of(priors, seed=1))
    assert not batcher.close(0.01)
    assert left.outcome.exception(1).status == 503
    run.gate.release(2)


def test_a_batch_that_fails_is_told_to_its_requests_and_the_next_runs(priors: dict) -> None:
    def run(tickets: list) -> None:
        if tickets[0].job.seed == 1:
            raise MemoryError("no room")
        tickets[0].outcome.set_result("fine")

    batcher = Batcher(run, small_queue())
    with pytest.raises(MemoryError, match="no room"):
        batcher.submit(job_of(priors, seed=1)).outcome.result(30)
    assert batcher.submit(job_of(priors, seed=2)).outcome.result(30) == "fine"
    assert batcher.close(30)


def test_a_batch_that_runs_for_ever_is_a_problem(priors: dict) -> None:
    run, batcher = blocked(priors, Config(priors=("fashion",), deadline=1e-3, longest_deadline=1e-3))
    time.sleep(0.01)
    assert batcher.problem() == "one batch has been running for more than 0.002 s"
    finish(run, batcher)


def test_decoding_keeps_what_fits() -> None:
    values = grey(4, 5, 3)
    np.testing.assert_array_equal(array("mask", npy(np.asfortranarray(values)), 20), values)
    deep = picture("image", png(values, 16), 20)
    assert deep.depth == 16
    assert np.abs(deep.pixels - values).max() <= 0.5 / 65535 + 2**-24  # half a level, and a rounding to float32


def test_plans_to_keep_warm_are_named_in_words() -> None:
    warm = parse_warm("gaussian_blur:3x64x32:blur_std=1.5,prior=fashion", ("photo", "fashion"))
    assert warm == Warm("gaussian_blur", (3, 64, 32), "fashion", {"blur_std": "1.5"})
    assert parse_warm("sr4:1x32x32", ("photo",)) == Warm("sr4", (1, 32, 32), "photo")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sr4", "must be OPERATOR:CxHxW"),
        ("sr4:2x8x8", "with C 1 or 3"),
        ("sr5:1x8x8", "did you mean 'sr4'"),
        ("sr4:1x8x8:mask=x", "`warm` must be one of 'prior'"),
    ],
)
def test_plans_that_cannot_be_kept_warm_are_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_warm(text, ("fashion",))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"priors": ()}, "`priors` must not be empty"),
        ({"priors": ("foto",)}, "did you mean 'photo'"),
        ({"evaluations": (0,)}, "`evaluations` must be at least 1"),
        ({"batch": 0}, "`batch` must be at least 1"),
        ({"deadline": float("nan")}, "`deadline` must be a finite number > 0"),
        ({"deadline": 700.0}, "`deadline` must be at most `longest_deadline` = 600, got 700"),
    ],
)
def test_a_configuration_that_cannot_work_is_refused(values: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Config(**values)
