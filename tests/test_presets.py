"""Presets: what they promise to whoever does not want to tune."""

import json
import pathlib
from typing import Any

import pytest
import torch

import rmp_fast as rmp
from rmp_fast.priors import BUNDLED


@pytest.mark.parametrize("prior", [*BUNDLED, "another"])
@pytest.mark.parametrize("task", rmp.presets.TASKS)
@pytest.mark.parametrize("evaluations", [1, 2, 20, 33, 40, 100])
def test_settings_make_plans_within_the_budget(task: str, prior: str, evaluations: int) -> None:
    settings = rmp.presets.for_task(task, prior, evaluations)
    gaussian = rmp.priors.from_denoiser(lambda x, s: x / (1 + s.reshape(-1, 1, 1, 1) ** 2), data_variance=1.0)
    nonlinear = task in rmp.presets.NONLINEAR
    op = rmp.operators.for_task(task, (1, 1, 6, 5)) if nonlinear else rmp.operators.Denoising()
    plan = rmp.Plan(op, gaussian, (1, 1, 6, 5), 0.05, **settings)
    assert 1 <= plan.evaluations <= evaluations
    assert plan.execute(torch.zeros(plan.measurement_shape)).ok.all()


def test_tables_say_where_they_come_from() -> None:
    for prior in BUNDLED:
        for task, budgets in rmp.presets.tables(prior).items():
            assert task in rmp.presets.TASKS
            for evaluations, entry in budgets.items():
                assert len(rmp.schedules.Looks(**entry["looks"])) == int(evaluations)
                assert entry["tuned_on"]
                assert entry["command"].startswith("rmp-fast tune")


@pytest.mark.parametrize(("preset", "evaluations"), [("paper_ve", 600), ("paper_vp", 400)])
def test_the_papers_settings(preset: str, evaluations: int) -> None:
    settings = getattr(rmp.presets, preset)()
    prior = rmp.priors.Gaussian(torch.zeros(4), torch.ones(4))
    plan = rmp.Plan(rmp.operators.Denoising(), prior, (1, 4), 0.1, **settings)
    assert plan.evaluations == evaluations
    assert plan.noise == "drawn"


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (("sr5", "photo"), ValueError, "`task` must be one of .* did you mean 'sr4'"),
        (("sr4", 3), TypeError, "`prior` must be an rmp_fast prior or a name, got int"),
        (("sr4", "photo", 0), ValueError, "`evaluations` must be at least 1, got 0"),
        (("sr4", "photo", 1.5), TypeError, "`evaluations` must be an integer, got float"),
    ],
)
def test_refusals(arguments: tuple[object, ...], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        rmp.presets.for_task(*arguments)


LOOKS = {"level": [2.0, 0.5], "noise": [0.1, 0.0], "weight": [1.0, 1.0], "momentum": [0.0, 0.0], "variance": [0.3, 0.1]}


def test_a_users_own_presets_take_the_place_of_the_bundled_ones(tmp_path: pathlib.Path) -> None:
    file = tmp_path / "tuned.json"
    file.write_text(json.dumps({"sr4": {"2": {"looks": LOOKS, "start": "smooth"}}}))
    table = rmp.presets.read(file)
    found = rmp.presets.for_task("sr4", "photo", 20, table)
    assert found["start"] == "smooth"
    assert {name: getattr(found["looks"], name).tolist() for name in LOOKS} == {
        name: pytest.approx(column) for name, column in LOOKS.items()
    }
    assert rmp.presets.for_operator("sr4", "photo", 3, table)["start"] == "smooth"
    assert "looks" not in rmp.presets.for_task("sr4", "photo", 1, table)
    assert "looks" not in rmp.presets.for_task("denoise", "photo", 20, table)
    assert rmp.presets.budgets("sr4", "photo", table) == [2]


@pytest.mark.parametrize(
    ("prior", "task", "strength", "tuned"),
    [
        ("photo", "gaussian_deblur", {}, True),
        ("photo", "gaussian_deblur", {"blur_std": 2.0, "noise_std": 0.05}, True),
        ("photo", "gaussian_deblur", {"blur_std": 1.0}, True),
        ("photo", "inpaint_random", {"noise_std": 0.3}, True),
        ("photo", "inpaint_box", {"noise_std": 0.3}, True),
        ("photo", "inpaint_box", {"noise_std": 0.4}, False),
        ("fashion", "sr4", {"noise_std": 0.2}, True),
        ("fashion", "inpaint_random", {"noise_std": 0.3}, True),
        ("fashion", "inpaint_random", {"noise_std": 0.6}, False),
    ],
)
def test_presets_are_not_taken_where_they_were_found_to_lose(
    prior: str, task: str, strength: dict[str, float], tuned: bool
) -> None:
    for found in (rmp.presets.for_task, rmp.presets.for_operator):
        assert ("looks" in found(task, prior, 20, strength=strength)) == tuned
    assert bool(rmp.presets.budgets(task, prior, strength=strength)) == tuned


def test_a_smaller_budget_is_taken_where_its_preset_holds_and_the_larger_does_not() -> None:
    for noise_std, looks in ((0.1, 20), (0.2, 10), (0.3, 5)):
        settings = rmp.presets.for_task("mri", "fashion", 20, strength={"noise_std": noise_std})
        assert len(settings["looks"]) == looks


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "cannot be read as presets"),
        ("[1]", "must hold presets: a JSON object of tasks"),
        ({"sr5": {}}, "must be one of .* did you mean 'sr4'"),
        ({"sr4": {"2": {"start": "zero"}}}, "the preset of sr4 with 2 evaluations is damaged: 'looks'"),
        ({"sr4": {"2": {"looks": LOOKS, "start": "cold"}}}, "`start` must be one of 'zero', 'smooth', got 'cold'"),
        ({"sr4": {"3": {"looks": LOOKS, "start": "zero"}}}, "with 3 evaluations is damaged: it has 2 looks"),
        ({"sr4": {"2": {"looks": {**LOOKS, "noise": [-1, 0]}, "start": "zero"}}}, "`noise` must not be negative"),
        ({"sr4": {"2": {"looks": LOOKS, "start": "zero", "holds_for": [1]}}}, "2 evaluations is damaged"),
        ({"sr4": {"2": {"looks": LOOKS, "start": "zero", "holds_for": {"noise_std": 1}}}}, "2 evaluations is damaged"),
    ],
)
def test_what_is_no_file_of_presets_is_refused(tmp_path: pathlib.Path, content: Any, message: str) -> None:
    file = tmp_path / "tuned.json"
    file.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(ValueError, match=message):
        rmp.presets.read(file)
    with pytest.raises(ValueError, match=r"none\.json cannot be read as presets"):
        rmp.presets.read(tmp_path / "none.json")
