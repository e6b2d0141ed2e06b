"""``rmp-fast compare``: as a process where its own start matters, else through main()."""

from __future__ import annotations

import csv
import pathlib
import re
from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import Image
from test_cli import photo, process, save, sidecar

from rmp_fast import baselines, images, metrics, priors
from rmp_fast.cli import degrade, main
from rmp_fast.cli.compare import COLUMNS
from rmp_fast.cli.tasks import Settings, derive_seed

Run = Callable[..., int]
TASK = ["--task=inpaint_random", "--noise-std=0.05", "--evaluations=4"]


@pytest.fixture
def photos(tmp_path: pathlib.Path) -> pathlib.Path:
    """Two crops of 40 and 24 pixels."""
    save(tmp_path / "in" / "face.png", photo(40))
    save(tmp_path / "in" / "eye.png", photo(24))
    return tmp_path / "in"


@pytest.fixture
def out(tmp_path: pathlib.Path) -> pathlib.Path:
    return tmp_path / "out"


@pytest.fixture
def run(photos: pathlib.Path, out: pathlib.Path) -> Run:
    return lambda *arguments: main(["compare", f"--images={photos}", f"--out={out}", *TASK, *map(str, arguments)])


def rows(out: pathlib.Path) -> list[dict[str, str]]:
    with (out / "compare.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_all_methods_side_by_side_and_one_bad_image(photos: pathlib.Path, out: pathlib.Path) -> None:
    (photos / "broken.png").write_bytes(b"no image")
    done = process("compare", "--images", photos, "--out", out, *TASK, "--samples=2")
    assert done.returncode == 1
    assert "broken.png" in done.stderr
    assert "cannot be read as an image" in done.stderr
    assert {path.name for path in out.iterdir()} == {
        "compare.csv", "compare.json", "face_compare.png", "eye_compare.png"
    }  # fmt: skip
    found = rows(out)
    assert list(found[0]) == list(COLUMNS)
    methods = ["linear interpolation", "rmp", "ddrm", "diffpir", "pigdm"]
    assert [(row["image"], row["method"]) for row in found] == [
        (image, method) for image in ("eye.png", "face.png") for method in methods
    ]
    budgets = {row["method"]: (row["evaluations"], row["backward_evaluations"]) for row in found}
    assert budgets == {
        "linear interpolation": ("0", "0"), "rmp": ("4", "0"), "ddrm": ("8", "0"), "diffpir": ("8", "0"),
        "pigdm": ("8", "8"),
    }  # fmt: skip
    document = sidecar(out / "compare.json")
    assert document["settings"]["evaluations"] == dict.fromkeys(methods[1:], 4)
    for mean in document["means"]:
        own = [float(row["psnr"]) for row in found if row["method"] == mean["method"]]
        assert mean["psnr"] == pytest.approx(np.mean(own))
        line = next(line for line in done.stdout.splitlines() if line.startswith(mean["method"]))
        assert f"{mean['psnr']:.2f}" in line
    with Image.open(out / "face_compare.png") as sheet:
        assert sheet.width > 6 * 200  # five restorations and the truth, at least 200 pixels each


def test_scores_are_those_of_the_library_on_the_same_measurement(
    run: Run, photos: pathlib.Path, out: pathlib.Path
) -> None:
    assert run("--methods", "ddrm", "--evaluations=3", "--seed=5") == 0
    truth = images.read(photos / "face.png").pixels
    settings = Settings("inpaint_random", "inpainting", {"missing": 0.7}, None, None, None, {})
    op = degrade.build(settings, ["face.png"], truth.shape, 5)
    clean = torch.from_numpy(truth)[None]
    y = 2 * degrade.simulate(op, clean, 0.05, ["face.png"], 5) - op.A(torch.ones_like(clean))
    assert (y[~op.mask.expand_as(y)] == 0).all()
    seeds = torch.tensor([derive_seed(5, "chain", "face.png")])
    estimate = baselines.reconstruct("ddrm", y, op, priors.load("photo"), 0.1, evaluations=3, seeds=seeds)
    expected = metrics.psnr(((estimate.mean[0].numpy() + 1) / 2).clip(0, 1), truth)
    row = next(row for row in rows(out) if row["image"] == "face.png" and row["method"] == "ddrm")
    assert float(row["psnr"]) == pytest.approx(expected, abs=1e-5)


def test_a_run_repeats(run: Run, out: pathlib.Path) -> None:
    assert run("--methods", "rmp", "ddrm") == 0
    first, picture = rows(out), (out / "eye_compare.png").read_bytes()
    assert run("--methods", "rmp", "ddrm") == 0
    for before, after in zip(first, rows(out), strict=True):
        assert {**before, "seconds": ""} == {**after, "seconds": ""}
    assert (out / "eye_compare.png").read_bytes() == picture


def test_budgets_by_method(run: Run, out: pathlib.Path) -> None:
    assert run("--methods", "rmp", "ddrm", "dps", "--evaluations", "4", "ddrm=3") == 0
    found = {row["method"]: row["evaluations"] for row in rows(out) if row["evaluations"] != "0"}
    assert found == {"rmp": "4", "ddrm": "3", "dps": "4"}


def test_fashion_prior_on_grey_images(tmp_path: pathlib.Path, out: pathlib.Path) -> None:
    grey = save(tmp_path / "grey.png", photo(32).mean(2).astype(np.uint8))
    arguments = ["compare", f"--images={grey}", f"--out={out}", "--prior=fashion", "--task=sr4", "--noise-std=0.02"]
    assert main([*arguments, "--methods", "rmp", "ddrm", "--evaluations=4"]) == 0
    assert [row["method"] for row in rows(out)] == ["bicubic enlargement", "rmp", "ddrm"]


def test_an_infinite_score_is_null_in_json_and_inf_elsewhere(
    tmp_path: pathlib.Path, out: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # Interpolation of an even grey without noise is exact.
    even = save(tmp_path / "even.png", np.full((24, 24, 3), 51, np.uint8))
    words = ["compare", f"--images={even}", f"--out={out}", *TASK, "--noise-std=0", "--methods", "ddrm"]
    assert main(words) == 0
    first, second = sidecar(out / "compare.json")["rows"]
    assert (first["method"], first["psnr"], first["ssim"]) == ("linear interpolation", None, 1)
    assert second["psnr"] > 0
    assert [mean["psnr"] for mean in sidecar(out / "compare.json")["means"]] == [None, second["psnr"]]
    assert rows(out)[0]["psnr"] == "inf"
    assert re.search(r"linear interpolation +1 +inf ", capsys.readouterr().out)


def test_a_failing_method_leaves_the_others(
    run: Run, out: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("out of everything")

    monkeypatch.setattr(baselines.DDRM, "sample", fail)
    assert run("--methods", "ddrm", "rmp") == 1
    assert "ddrm could not restore" in (error := capsys.readouterr().err)
    assert "out of everything" in error
    assert {row["method"] for row in rows(out)} == {"linear interpolation", "rmp"}


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--task=sr3"], "`--task` must be one of .*did you mean 'sr4'"),
        (["--methods", "rmp", "drrm"], "`--methods` must be one of .*did you mean 'ddrm'"),
        (["--prior=fashoin"], "`--prior` must be one of .*did you mean 'fashion'"),
        (["--prior=fashion"], "C = 1 for the prior 'fashion'"),
        (["--evaluations=many"], r"`--evaluations` must be a whole number >= 1, or METHOD=N, got 'many'"),
        (["--evaluations", "dsp=3"], "`--evaluations` must be one of .*did you mean 'dps'"),
        (["--evaluations", "daps=10"], "`--evaluations` daps=10 is for a method that `--methods` leaves out"),
        (["--methods", "daps", "--evaluations=7"], "`--methods` daps: `evaluations` must be a multiple of `ode_steps`"),
        (["--samples=0"], "`--samples` must be at least 1, got 0"),
        (["--noise-std=-1"], "`--noise-std` must be a finite number >= 0"),
        (["--factor=4"], "`--factor` does not apply to inpaint_random"),
        (
            ["--task=motion_deblur", "--boundary=reflect", "--methods", "ddrm"],
            "`--methods` ddrm cannot serve motion_deblur: .*those that can: rmp, dps, pigdm, diffpir, daps, reddiff",
        ),
    ],
)
def test_refusals(
    run: Run, out: pathlib.Path, arguments: list[str], text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*arguments) == 2
    error = capsys.readouterr().err
    assert re.search(text, error), error
    assert not out.exists()


@pytest.mark.parametrize(
    ("left_out", "text"),
    [("--task", "`--task` must be given"), ("--noise-std", "`--noise-std` must be given"),
     ("--images", "`--images` must be given"), ("--out", "`--out` must be given")],
)  # fmt: skip
def test_what_must_be_given(
    photos: pathlib.Path, out: pathlib.Path, left_out: str, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [f"--images={photos}", f"--out={out}", *TASK]
    assert main(["compare", *[word for word in words if not word.startswith(left_out)]]) == 2
    assert text in capsys.readouterr().err


def test_sheets_are_not_compared_the_next_time(photos: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(photos.iterdir())
    assert main(["compare", f"--images={photos}", f"--out={photos}", *TASK]) == 2
    assert "`--out` must not be an input folder" in capsys.readouterr().err
    assert sorted(photos.iterdir()) == before


def test_folders_without_images(tmp_path: pathlib.Path, out: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    assert main(["compare", f"--images={tmp_path / 'empty'}", f"--out={out}", *TASK]) == 2
    assert "`--images`" in (error := capsys.readouterr().err)
    assert "is a folder without PNG" in error
    assert main(["compare", f"--images={tmp_path / 'none'}", f"--out={out}", *TASK]) == 2
    assert "does not exist" in capsys.readouterr().err
