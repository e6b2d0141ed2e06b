"""The service's tasks whose measurements are no pictures, or nonlinear: MRI, phase retrieval, a moving camera."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from serving_requests import grey, npy, png, samples

import rmp_fast as rmp
from rmp_fast import operators
from rmp_fast.cli import main
from rmp_fast.cli.chain import from_starts
from rmp_fast.serving import Config, RequestError, Service, Warm, parse_warm
from rmp_fast.serving.parsing import Job, parse
from rmp_fast.serving.plans import Plans, StoppedError

CONFIG = Config(priors=("fashion",), evaluations=(2, 20), batch=4, max_pixels=4096)
SIZE = (32, 32)


@dataclasses.dataclass(frozen=True)
class Case:
    """A task with an operator, and what a request must send of it.

    Attributes:
        unit: how far white is from black in the unit of the measurement.
        upload: measurements (B, ...) of ``op`` -> what a client has of each.
    """

    op: operators.Operator
    fields: dict[str, str]
    files: dict[str, bytes]
    upload: Callable[[torch.Tensor], np.ndarray]
    unit: float = 1.0

    def measured(self, number: int) -> torch.Tensor:
        truths = torch.stack([torch.from_numpy(grey(*SIZE, seed=seed)) for seed in range(number)])
        return self.op.A(truths if self.op.linear else 2 * truths - 1)


MASK = operators.cartesian_mask(SIZE, 2.0, seed=1)
MAPS = operators.coil_maps(3, SIZE)
KERNELS = operators.camera_shake(1, 4.0, 2.0)


def as_complex(y: torch.Tensor) -> np.ndarray:
    return torch.complex(y[:, 0], y[:, 1]).numpy()


CASES = {
    "mri": Case(operators.MRI(MASK), {"operator": "mri"}, {"mask": npy(MASK.numpy())}, as_complex),
    "coils": Case(
        operators.MRI(MASK, MAPS), {"operator": "mri"}, {"mask": png(MASK[None].float().numpy()),
        "maps": npy(MAPS.numpy())}, as_complex,
    ),
    "phase_retrieval": Case(
        operators.PhaseRetrieval(1.5), {"operator": "phase_retrieval", "oversampling": "1.5", "starts": "3"}, {},
        lambda y: y[:, 0].numpy(),
    ),
    "nonlinear_deblur": Case(
        operators.NonlinearBlur(KERNELS / KERNELS.sum((-2, -1), keepdim=True), 1.1, 2.0),
        {"operator": "nonlinear_deblur", "exposure": "1.1", "gamma": "2"}, {"kernel": npy(3 * KERNELS.numpy())},
        lambda y: ((y + 1) / 2).numpy(), unit=2.0,
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def priors() -> dict[str, rmp.priors.Prior]:
    return {"fashion": rmp.priors.load("fashion")}


@pytest.fixture(scope="module")
def service() -> Iterator[Service]:
    threads = torch.get_num_threads()
    service = Service(CONFIG)
    yield service
    assert service.close(30)
    torch.set_num_threads(threads)


def job_of(priors: dict, case: Case, fields: dict[str, str] | None = None, **files: bytes) -> Job:
    given = {"noise_std": "0.05", **case.fields, **(fields or {})}
    image = {"image": npy(case.upload(case.measured(1))[0])}
    return parse(given, image | case.files | files, CONFIG, priors)


@pytest.mark.parametrize("name", CASES)
def test_a_batch_gives_the_bits_of_a_direct_call(name: str, priors: dict) -> None:
    """Each item's own noise, in the unit of the measurement; the best of several starts is each item's own too."""
    case, noise = CASES[name], [0.02, 0.04, 0.06]
    y = case.measured(3)
    uploads = case.upload(y)
    jobs = [
        job_of(priors, case, {"noise_std": str(noise[i]), "seed": str(i)}, image=npy(uploads[i])) for i in range(3)
    ]  # fmt: skip
    assert len({job.key for job in jobs}) == 1
    plans = Plans(CONFIG, priors)
    plans.restore(jobs[::-1])  # of which nothing may be left in the plan
    outcomes = plans.restore(jobs)

    task = case.fields["operator"]
    starts = int(case.fields.get("starts", 1))
    chain = rmp.presets.for_task(task, "fashion", 2)
    levels = case.unit * torch.tensor(noise, dtype=torch.float64)
    plan = rmp.Plan(case.op, priors["fashion"], (3, 1, *SIZE), levels, **chain, data_range=(0.0, 1.0))
    if name == "nonlinear_deblur":
        y = 2 * torch.from_numpy(uploads) - 1
    seeds = torch.arange(3)
    best = operators.best_of_starts(
        case.op, y, lambda own: 2 * plan.execute(y, seeds=own).mean - 1 if starts > 1 else plan.execute(y, own).mean,
        starts, seeds,
    )  # fmt: skip
    direct = ((best.image + 1) / 2 if starts > 1 else best.image).numpy()
    for i, outcome in enumerate(outcomes):
        np.testing.assert_array_equal(outcome.mean, direct[i])
        assert (outcome.mean.shape, outcome.batch, outcome.item, outcome.ok) == ((1, *SIZE), 3, i, True)
        assert outcome.evaluations == 2 * starts


@pytest.mark.parametrize(
    ("name", "noise_std", "evaluations"),
    [
        ("mri", 0.02, 20),
        ("coils", 0.02, 20),
        ("phase_retrieval", 0.02, 20),
        ("nonlinear_deblur", 0.02, 20),
        ("nonlinear_deblur", 0.005, 10),
    ],
)  # The preset of 20 evaluations is for more noise than the last one has, that of 10 is not.
def test_an_answer_is_the_file_of_the_command_line(
    name: str, noise_std: float, evaluations: int, service: Service, tmp_path: pathlib.Path
) -> None:
    case = CASES[name]
    upload = case.upload(case.measured(1))[0]
    image = png(upload, 16) if name == "nonlinear_deblur" else npy(upload)
    source = tmp_path / ("y.png" if name == "nonlinear_deblur" else "y.npy")
    source.write_bytes(image)
    options = [f"--{key}={value}" for key, value in case.fields.items()]
    for key, data in case.files.items():
        path = tmp_path / (f"{key}.npy" if data.startswith(b"\x93NUMPY") else f"{key}.png")
        path.write_bytes(data)
        options.append(f"--{key}={path}")
    fixed = ["--prior=fashion", f"--noise-std={noise_std}", "--evaluations=20", "--threads=1", "--no-panel"]
    assert main(["reconstruct", str(source), f"--out={tmp_path / 'out'}", *fixed, *options]) == 0
    seed = json.loads((tmp_path / "out" / "y.json").read_text())["seeds"]["chain"]

    fields = {"noise_std": str(noise_std), "seed": str(seed), "evaluations": "20", **case.fields}
    ticket = service.submit(service.parse(fields, {"image": image, **case.files}))
    answer = service.answer(ticket, ticket.outcome.result(60))
    assert answer.body == (tmp_path / "out" / "y.png").read_bytes()
    assert answer.headers["X-RMP-Evaluations"] == str(evaluations * int(case.fields.get("starts", 1)))


def test_jobs_share_a_batch_only_where_their_operators_are_the_same(priors: dict) -> None:
    other = operators.cartesian_mask(SIZE, 2.0, seed=2).numpy()
    mri, coils = CASES["mri"], CASES["coils"]
    phase, shaken = CASES["phase_retrieval"], CASES["nonlinear_deblur"]
    jobs = [
        job_of(priors, mri),
        job_of(priors, mri, mask=npy(other)),
        job_of(priors, mri, {"invert_mask": "true"}),
        job_of(priors, coils),
        job_of(priors, coils, maps=npy(1j * MAPS.numpy())),
        job_of(priors, phase),
        job_of(priors, phase, {"starts": "2"}),
        job_of(priors, phase, {"oversampling": "2"}),
        job_of(priors, shaken),
        job_of(priors, shaken, kernel=npy(np.ones((3, 3)))),
        job_of(priors, shaken, {"gamma": "2.2"}),
    ]
    assert len({job.key for job in jobs}) == len(jobs)
    for case, job in ((mri, jobs[0]), (coils, jobs[3]), (phase, jobs[5]), (shaken, jobs[8])):
        assert job_of(priors, case, {"seed": "9", "noise_std": "0.1"}).key == job.key


def test_jobs_for_which_other_presets_hold_do_not_share_a_batch(priors: dict) -> None:
    case = CASES["nonlinear_deblur"]
    low, high, higher = (
        job_of(priors, case, {"evaluations": "20", "noise_std": noise}) for noise in ("0.005", "0.02", "0.03")
    )
    assert (low.preset, high.preset, higher.preset) == (10, 20, 20)
    assert low.key != high.key == higher.key


def test_what_was_measured_counts_where_the_queue_counts_pixels(priors: dict) -> None:
    pixels = {name: job_of(priors, case).pixels for name, case in CASES.items()}
    assert pixels == {"mri": 32**2, "coils": 3 * 32**2, "phase_retrieval": 48**2, "nonlinear_deblur": 32**2}


def test_samples_that_the_mask_hides_are_ignored(priors: dict) -> None:
    case = CASES["mri"]
    y = samples(*SIZE)
    shown, hidden = (job_of(priors, case, image=npy(values)) for values in (y, np.where(MASK.numpy(), y, 7)))
    np.testing.assert_array_equal(shown.y, hidden.y)
    np.testing.assert_array_equal(shown.y[0], np.where(MASK.numpy(), y.real, 0))


def test_starts_that_nobody_waits_for_are_stopped(priors: dict) -> None:
    """Given up during the second start: the third is not begun."""
    asked = []

    def wanted() -> bool:
        asked.append(1)
        return len(asked) < 2  # asked after the first of two looks of every start

    plans = Plans(CONFIG, priors)
    with pytest.raises(StoppedError):
        plans.restore([job_of(priors, CASES["phase_retrieval"])], wanted)
    assert len(asked) == 2


def test_a_start_that_left_the_finite_range_is_not_chosen() -> None:
    """Its last image explains the measurement best, and is no estimate."""
    op = operators.Denoising()
    y = torch.zeros(2, 1, 4, 4)
    means = [torch.zeros_like(y), torch.ones_like(y)]
    oks = [torch.tensor([False, False]), torch.tensor([True, False])]

    def run(seeds: torch.Tensor) -> rmp.Estimate:
        start = int(seeds[0] >> 32)
        return rmp.Estimate(means[start], None, oks[start], {"evaluations": 2, "seconds": 1.0})

    best = from_starts(op, y, run, 2, torch.arange(2))
    assert best.ok.tolist() == [True, False]
    assert bool((best.mean[0] == 1).all())
    assert bool(best.mean.isfinite().all())
    assert best.stats == {"evaluations": 4, "seconds": 2.0}


def test_phase_retrieval_is_kept_warm() -> None:
    warm = parse_warm("phase_retrieval:1x16x16:oversampling=1.5,starts=2", ("fashion",))
    assert warm == Warm("phase_retrieval", (1, 16, 16), "fashion", {"oversampling": "1.5", "starts": "2"})
    threads = torch.get_num_threads()
    service = Service(Config(priors=("fashion",), evaluations=(2,), batch=2, warm=(warm,)))
    before = service._plans.misses, len(service._plans)
    fields = {"operator": "phase_retrieval", "noise_std": "0.1", "oversampling": "1.5", "starts": "2"}
    ticket = service.submit(service.parse(fields, {"image": npy(grey(24, 24))}))
    assert ticket.outcome.result(60).batch == 1
    assert (service._plans.misses, len(service._plans)) == before == (0, 2)
    assert service.close(30)
    torch.set_num_threads(threads)


def test_a_file_cannot_be_named_for_a_plan_to_keep_warm() -> None:
    with pytest.raises(ValueError, match="`warm` must be one of 'prior'"):
        parse_warm("mri:1x16x16:maps=x", ("fashion",))


def test_limits_are_the_service_s_own(priors: dict) -> None:
    tight = dataclasses.replace(CONFIG, max_coils=2, max_kernels=3, max_starts=2)
    for name, what in (("coils", "2 coils"), ("nonlinear_deblur", "3 kernels"), ("phase_retrieval", "2, got 3")):
        case = CASES[name]
        files = {"image": npy(case.upload(case.measured(1))[0]), **case.files}
        with pytest.raises(RequestError, match=f"must have at most {what}|must be at most {what}"):
            parse({"noise_std": "0.1", **case.fields}, files, tight, priors)
