"""The command line's tasks whose measurements are no pictures, or nonlinear: MRI, phase retrieval, a moving camera."""

from __future__ import annotations

import math
import pathlib
import shlex

import numpy as np
import pytest
import torch
from test_cli import FEW, photo, save, sidecar

from rmp_fast import images, operators
from rmp_fast.cli import degrade, main


@pytest.fixture
def grey(tmp_path: pathlib.Path) -> pathlib.Path:
    return save(tmp_path / "in" / "grey.png", photo()[:37, :41, 1])


@pytest.fixture
def out(tmp_path: pathlib.Path) -> pathlib.Path:
    return tmp_path / "out"


def run(out: pathlib.Path, *arguments: object) -> int:
    return main(["reconstruct", f"--out={out}", *FEW, *map(str, arguments)])


@pytest.mark.parametrize(
    ("options", "before"),
    [
        (["mri", "--acceleration=2"], "zero-filled"),
        (["phase_retrieval", "--oversampling=1.5", "--starts=2"], "mean brightness"),
        (["nonlinear_deblur", "--exposure=1.1", "--gamma=2"], "measurement"),
    ],
    ids=["mri", "phase_retrieval", "nonlinear_deblur"],
)
def test_task_simulates_and_its_command_repeats_to_the_bit(
    out: pathlib.Path, grey: pathlib.Path, options: list[str], before: str
) -> None:
    assert run(out, grey, "--simulate", "--operator", *options) == 0
    entry = sidecar(out / "grey.json")
    assert entry["quality"]["baseline"]["name"] == before
    assert math.isfinite(entry["quality"]["restoration"]["psnr"])
    assert entry["timing"]["evaluations"] == 4 * entry["settings"]["operator_options"].get("starts", 1)
    written = (out / "grey.png").read_bytes()
    (out / "grey.png").unlink()
    assert main(shlex.split(entry["command"])[1:]) == 0
    assert (out / "grey.png").read_bytes() == written


def test_samples_of_a_scanner_are_an_array(out: pathlib.Path, grey: pathlib.Path, tmp_path: pathlib.Path) -> None:
    image = images.read(grey).pixels[0]
    mask = operators.cartesian_mask(image.shape, 3, seed=3).numpy()
    samples = np.fft.fftshift(np.fft.fft2(np.fft.ifftshift(image), norm="ortho"))
    np.save(tmp_path / "scan.npy", samples)  # what the mask hides is ignored
    np.save(tmp_path / "mask.npy", mask)
    more = ("--noise-std=0.01", "--evaluations=12")
    assert run(out, tmp_path / "scan.npy", "--operator=mri", f"--mask={tmp_path / 'mask.npy'}", *more) == 0
    restored = images.read(out / "scan.png")
    assert (restored.depth, restored.pixels.shape) == (16, (1, 37, 41))
    zero_filled = np.fft.fftshift(np.fft.ifft2(np.fft.ifftshift(samples * mask), norm="ortho")).real
    assert np.square(restored.pixels[0] - image).mean() < np.square(zero_filled - image).mean()


def test_samples_of_coils_need_their_maps(
    out: pathlib.Path, grey: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = images.read(grey).pixels[0]
    maps = operators.coil_maps(2, (37, 41)).numpy()
    samples = np.fft.fftshift(np.fft.fft2(np.fft.ifftshift(maps * image, axes=(1, 2)), norm="ortho"), axes=(1, 2))
    np.save(tmp_path / "scan.npy", samples)
    np.save(tmp_path / "maps.npy", maps)
    np.save(tmp_path / "mask.npy", np.ones(image.shape))
    scan, mask = tmp_path / "scan.npy", f"--mask={tmp_path / 'mask.npy'}"
    assert run(out, scan, "--operator=mri", mask, f"--maps={tmp_path / 'maps.npy'}") == 0
    # All is known, and without noise but what --noise-std says of it: the prior may smooth by about that much.
    assert np.sqrt(np.square(images.read(out / "scan.png").pixels[0] - image).mean()) < 0.05
    assert run(out, scan, "--operator=mri", mask) == 2
    expected = "scan.npy: samples must have shape (H, W), or `--maps` must give its coils, got (2, 37, 41)"
    assert expected in capsys.readouterr().err


def test_magnitudes_are_an_array(out: pathlib.Path, grey: pathlib.Path, tmp_path: pathlib.Path) -> None:
    image = torch.from_numpy(images.read(grey).pixels)[None]
    magnitudes = operators.PhaseRetrieval().A(2 * image - 1)[0, 0].numpy()
    np.save(tmp_path / "magnitudes.npy", magnitudes)
    assert run(out, tmp_path / "magnitudes.npy", "--operator=phase_retrieval", "--starts=1") == 0
    restored = torch.from_numpy(images.read(out / "magnitudes.png").pixels)[None]
    assert restored.shape == image.shape
    # Wherever the image ended, it explains the magnitudes better than none does.
    error = (operators.PhaseRetrieval().A(2 * restored - 1)[0, 0] - torch.from_numpy(magnitudes)).norm()
    assert error < 0.5 * np.linalg.norm(magnitudes)


def test_nonlinear_blur_of_a_file_is_undone_with_its_kernels(out: pathlib.Path, tmp_path: pathlib.Path) -> None:
    truth = torch.from_numpy(np.moveaxis(photo(), -1, 0) / np.float32(255))[None]
    kernels = operators.camera_shake(1, 4.0, 2.0)
    y = (operators.NonlinearBlur(kernels).A(2 * truth - 1) + 1) / 2
    file = save(tmp_path / "shaken.png", np.moveaxis(images.quantise(y[0].numpy(), 8), 0, -1))
    np.save(tmp_path / "kernels.npy", 3 * kernels.numpy())  # scaled to sum 1
    assert run(out, file, "--operator=nonlinear_deblur", f"--kernel={tmp_path / 'kernels.npy'}") == 0
    restored = torch.from_numpy(images.read(out / "shaken.png").pixels)[None]
    assert (restored - truth).square().mean() < (y - truth).square().mean()


def test_pictures_of_measurements() -> None:
    op = operators.PhaseRetrieval()
    y = op.A(torch.zeros(1, 1, 8, 6)).numpy()[0]
    shown = degrade.picture(op, y, (1, 8, 6))
    assert shown.shape == (1, 8, 6)
    assert 0 <= shown.min() <= shown.max() <= 1
    mri = operators.MRI(operators.cartesian_mask((8, 6), 2.0), operators.coil_maps(3, (8, 6)))
    samples = mri.A(torch.ones(1, 1, 8, 6).double()).numpy()[0]
    shown = degrade.picture(mri, samples, (1, 8, 6))
    assert shown.shape == (1, 8, 6)
    assert shown[0][~mri.mask.numpy()].max() == 0


def test_scores_do_not_count_what_magnitudes_leave_open() -> None:
    truth = np.zeros((1, 9, 9), np.float32)
    truth[0, 3:6, 2:4] = 0.5
    turned = np.roll(truth[:, ::-1, ::-1], 2, axis=2)
    assert np.array_equal(degrade.aligned(operators.PhaseRetrieval(), turned, truth), truth)
    assert degrade.aligned(operators.Denoising(), turned, truth) is turned


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("COLOUR --operator=mri --simulate", "colour.png: mri takes grey pictures, got one in colour"),
        ("GREY --operator=mri --mask=MASK", "`INPUT` must be NumPy (.npy) files or folders with such files"),
        ("GREY --operator=mri --simulate --mask=MASK --acceleration=3", "`--mask` and `--acceleration` exclude each"),
        ("GREY --operator=mri --simulate --acceleration=0.5", "`--acceleration` must be at least 1, got 0.5"),
        ("GREY --operator=mri --simulate --maps=MASK", "must be complex of shape (coils, H, W), got float64 (37, 41)"),
        ("SCAN --operator=mri", "`--mask` must be given for mri of a measurement"),
        ("GREY --operator=phase_retrieval --simulate --starts=0", "`--starts` must be at least 1, got 0"),
        ("GREY --operator=nonlinear_deblur", "`--kernel` must be given for nonlinear_deblur of a measurement"),
        ("GREY --operator=nonlinear_deblur --simulate --gamma=0", "`--gamma` must be a number > 0, got 0.0"),
        (
            "GREY --operator=nonlinear_deblur --kernel=FIVE",
            "shape (h, w) or (rows, columns, h, w), got (1, 1, 1, 3, 3)",
        ),
        ("GREY --operator=blur --kernel=SCAN", "scan.npy must be real, got complex128"),
    ],
)
def test_bad_input_is_refused(
    out: pathlib.Path,
    grey: pathlib.Path,
    tmp_path: pathlib.Path,
    capsys: pytest.CaptureFixture[str],
    arguments: str,
    message: str,
) -> None:
    files = {"GREY": grey, "COLOUR": save(tmp_path / "colour.png", photo())}
    for name, values in (
        ("MASK", np.ones((37, 41))),
        ("SCAN", np.ones((37, 41), complex)),
        ("FIVE", np.ones((1, 1, 1, 3, 3))),
    ):
        files[name] = tmp_path / f"{name.lower()}.npy"
        np.save(files[name], values)
    for name, path in files.items():
        arguments = arguments.replace(name, str(path))
    assert run(out, *arguments.split()) == 2
    assert message in capsys.readouterr().err
    assert not out.exists()


def test_damaged_array_is_named_and_skipped(
    out: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.save(tmp_path / "good.npy", np.ones((12, 12)))
    (tmp_path / "cut.npy").write_bytes((tmp_path / "good.npy").read_bytes()[:200])
    np.save(tmp_path / "line.npy", np.ones(5))
    np.save(tmp_path / "complex_line.npy", np.ones(5, complex))
    np.save(tmp_path / "vast.npy", np.full((12, 12), 1e39))
    assert run(out, tmp_path, "--operator=phase_retrieval", "--starts=1") == 1
    errors = capsys.readouterr().err
    assert "cut.npy: cannot be read as an array of numbers" in errors
    for name, kind in (("/line.npy", "float64"), ("complex_line.npy", "complex128")):
        assert f"{name}: must hold real magnitudes (H, W), got {kind} (5,)" in errors
    assert "vast.npy: must hold numbers of float32, got up to 1e+39" in errors
    assert (out / "good.png").exists()


@pytest.mark.parametrize("task", ["mri", "phase_retrieval", "nonlinear_deblur"])
def test_methods_are_compared(out: pathlib.Path, grey: pathlib.Path, task: str) -> None:
    starts = ["--starts=2"] if task == "phase_retrieval" else []
    options = [f"--task={task}", f"--images={grey}", f"--out={out}", "--noise-std=0.05", *starts]
    assert main(["compare", *options, "--methods", "rmp", "dps", "--evaluations=2"]) == 0
    rows = {row["method"]: row for row in sidecar(out / "compare.json")["rows"]}
    assert rows["rmp"]["evaluations"] == rows["dps"]["evaluations"] == 2 * max(1, len(starts) * 2)
    assert all(math.isfinite(row["psnr"]) for row in rows.values())
