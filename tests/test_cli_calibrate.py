"""``rmp-fast calibrate`` and the figures it prints."""

from __future__ import annotations

import pathlib

import numpy as np
import pytest
import torch
from PIL import Image
from test_cli import photo, save, sidecar

from rmp_fast.cli import calibrate, main
from rmp_fast.spread import Calibration, calibration

TASK = ["--task=inpaint_random", "--missing=0.5", "--noise-std=0.05", "--evaluations=4", "--looks=2"]


def test_gaussian_errors_of_the_stated_variance_are_calibrated() -> None:
    generator = torch.Generator().manual_seed(0)
    n = 200_000
    deviation = 0.1 + torch.rand(n, generator=generator).double()
    truth = torch.zeros(n).double()
    found = calibration(deviation * torch.randn(n, generator=generator).double(), deviation.square(), truth)
    # Five standard errors of a share: 5 sqrt(p (1 - p) / n).
    for share, expected in zip(found.within, (0.682689, 0.954500, 0.997300), strict=True):
        assert abs(share - expected) < 5 * (expected * (1 - expected) / n) ** 0.5
    # Five standard errors of E[v e^2] / E[v], v = deviation^2.
    v = deviation.square()
    assert found.ratio == pytest.approx(1, abs=5 * float((3 * v.square().mean() / v.mean() ** 2 - 1) / n) ** 0.5)
    # Corr(v, v e^2) = Var(v) / sqrt(Var(v) (3 E[v^2] - E[v]^2)); over other seeds it spreads by 0.0015.
    exact = v.var() / (v.var() * (3 * v.square().mean() - v.mean() ** 2)).sqrt()
    assert found.correlation == pytest.approx(float(exact), abs=5 * 0.0015)
    doubled = calibration(deviation * 2, v, truth)
    assert doubled.within == (0.0, 1.0, 1.0)
    assert doubled.ratio == pytest.approx(0.25)


def test_tensors_must_agree() -> None:
    one, two = torch.zeros(1, 2), torch.zeros(1, 3)
    with pytest.raises(ValueError, match="`variance` must have shape"):
        calibration(one, two, one)
    with pytest.raises(ValueError, match="`estimate` must have shape"):
        calibration(two, one, one)
    with pytest.raises(ValueError, match="`truth` must have elements"):
        calibration(one[:0], one[:0], one[:0])


def test_command_reports_and_draws_and_names_a_bad_image(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, out = tmp_path / "in", tmp_path / "out"
    save(folder / "face.png", photo(40))
    save(folder / "eye.png", photo(24))
    (folder / "broken.png").write_bytes(b"no image")
    assert main(["calibrate", f"--images={folder}", f"--out={out}", *TASK]) == 1
    captured = capsys.readouterr()
    assert "broken.png" in captured.err
    document = sidecar(out / "calibrate.json")
    assert set(document["images"]) == {"face.png", "eye.png"}
    sizes = {"face.png": 40 * 40, "eye.png": 24 * 24}
    for index in range(3):
        weighted = np.average([document["images"][n]["within"][index] for n in sizes], weights=list(sizes.values()))
        assert document["all"]["within"][index] == pytest.approx(weighted)
    assert f"{document['all']['ratio']:.2f}" in captured.out.splitlines()[-1]
    with Image.open(out / "face_spread.png") as sheet:
        assert sheet.width > 4 * 200  # four tiles of at least 200 pixels


def test_figures_that_are_not_finite_are_null(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # What exact restorations (no error) with even error bars (no correlation) would have.
    figures = Calibration((1.0, 1.0, 1.0), float("inf"), float("nan"))
    monkeypatch.setattr(calibrate, "calibration", lambda *_: figures)
    file, out = save(tmp_path / "face.png", photo(24)), tmp_path / "out"
    assert main(["calibrate", f"--images={file}", f"--out={out}", *TASK]) == 0
    document = sidecar(out / "calibrate.json")
    for found in (document["all"], document["images"]["face.png"]):
        assert found == {"within": [1, 1, 1], "ratio": None, "correlation": None}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--task=phase_retrieval"], "`--task` must be one of"),
        (["--looks=0"], "`--looks` must be at least 1, got 0"),
        (["--task=mri"], "face.png: mri takes grey pictures"),
        (["--prior=photos"], "did you mean 'photo'?"),
    ],
)
def test_bad_input_is_refused(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    file = save(tmp_path / "face.png", photo(24))
    task = [word for word in TASK if not (arguments[0].startswith("--task") and word.startswith("--missing"))]
    assert main(["calibrate", f"--images={file}", f"--out={tmp_path / 'out'}", *task, *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
