"""The command line, as a process where its own start matters, else through main()."""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
import pathlib
import shlex
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import skimage.data
import torch
from PIL import Image

from rmp_fast import Plan, images, metrics, operators
from rmp_fast.cli import degrade, main, panel
from rmp_fast.cli.tasks import TASKS, derive_seed
from rmp_fast.training.data import PHOTOS

ROOT = pathlib.Path(__file__).parent.parent
FEW = ["--evaluations=4", "--noise-std=0.05"]
Run = Callable[..., int]


def process(*arguments: str | pathlib.Path, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "rmp_fast.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment}, timeout=300)


def photo(size: int = 48, left: int = 200, top: int = 60) -> np.ndarray:
    """A crop of the astronaut's face, uint8 (H, W, 3)."""
    return skimage.data.astronaut()[top : top + size, left : left + size]


def save(path: pathlib.Path, levels: np.ndarray) -> pathlib.Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    depth = 16 if levels.dtype == np.uint16 else 8
    pixels = np.moveaxis(levels.reshape(*levels.shape[:2], -1), -1, 0) / (2**depth - 1)
    images.write(path, pixels, depth, "tiff" if path.suffix == ".tif" else "png")
    return path


def sidecar(path: pathlib.Path) -> dict[str, Any]:
    """A record; Python alone would also read NaN and Infinity, which are no JSON."""

    def refuse(word: str) -> None:
        raise ValueError(f"{path} holds {word}")

    found: dict[str, Any] = json.loads(path.read_text(), parse_constant=refuse)
    return found


@pytest.fixture
def face(tmp_path: pathlib.Path) -> pathlib.Path:
    return save(tmp_path / "in" / "face.png", photo())


@pytest.fixture
def out(tmp_path: pathlib.Path) -> pathlib.Path:
    return tmp_path / "out"


@pytest.fixture
def run(out: pathlib.Path) -> Run:
    """Restore with few evaluations; the defaults can be repeated with other values."""
    return lambda *arguments: main(["reconstruct", f"--out={out}", *FEW, *map(str, arguments)])


def test_help_is_instant() -> None:
    code = "import sys\nfrom rmp_fast.cli import main\ntry: main(['reconstruct', '--help'])\nexcept SystemExit: pass\n"
    code += "print('slow:', sorted({'torch', 'numpy', 'PIL'} & set(sys.modules)))"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "slow: []" in shown
    assert all(name in shown for name in TASKS)


def test_names_are_registered() -> None:
    assert {task.operator for task in TASKS.values()} <= set(operators.REGISTRY)


# The two uses.


def test_simulation_reports_what_its_files_show_and_repeats_to_the_bit(face: pathlib.Path, out: pathlib.Path) -> None:
    done = process(
        "reconstruct", face, "--operator=denoise", "--simulate", "--noise-std=0.2", "--evaluations=12", "--out", out
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""  # no progress bar off a terminal
    assert {path.name for path in out.iterdir()} == {"face.png", "face_panel.png", "face.json"}
    entry = sidecar(out / "face.json")
    truth, restored = images.read(face), images.read(out / "face.png")
    quality = entry["quality"]["restoration"]
    assert quality["psnr"] == metrics.psnr(restored.pixels, truth.pixels)
    assert quality["ssim"] == metrics.ssim(restored.pixels, truth.pixels)
    before = entry["quality"]["baseline"]["psnr"]
    # Noise of 0.2, clipped to the range, leaves 14 to 16 dB; a prior that works gains several.
    assert 13.5 < before < 16.5
    assert quality["psnr"] > before + 3
    assert f"PSNR {before:.2f} → {quality['psnr']:.2f} dB" in done.stdout
    assert entry["output"]["sha256"] == file_digest(out / "face.png")
    assert entry["settings"]["evaluations"] == entry["timing"]["evaluations"] == 12
    assert entry["environment"]["versions"]["torch"] == torch.__version__

    files = {path.name: path.read_bytes() for path in out.iterdir()}
    again = process(*shlex.split(entry["command"])[1:])
    assert again.returncode == 0, again.stderr
    for name in ("face.png", "face_panel.png"):
        assert (out / name).read_bytes() == files[name]
    assert (out / "face.json").read_bytes() != files["face.json"]  # another time: it did run
    assert sidecar(out / "face.json")["settings_hash"] == entry["settings_hash"]


def test_flips_are_evaluations(face: pathlib.Path, out: pathlib.Path, run: Run) -> None:
    assert run(face, "--operator=sr4", "--simulate", "--evaluations=10", "--flips=2") == 0
    entry = sidecar(out / "face.json")
    assert (entry["settings"]["evaluations"], entry["settings"]["flips"]) == (10, 2)
    assert len(entry["settings"]["looks"]["level"]) == 5
    assert entry["timing"]["evaluations"] == 10
    assert "--flips=2" in entry["command"] or "--flips 2" in entry["command"]


def file_digest(path: pathlib.Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_measurement_with_a_mask_ignores_what_the_mask_hides(
    run: Run, face: pathlib.Path, out: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    mask = np.full((48, 48), 255, dtype=np.uint8)
    mask[12:30, 10:28] = 0
    save(tmp_path / "mask.png", mask)
    arguments = [face, "--operator=inpainting", f"--mask={tmp_path / 'mask.png'}", "--noise-std=0.01"]
    assert run(*arguments) == 0
    first = images.read(out / "face.png").pixels
    entry = sidecar(out / "face.json")
    assert entry["quality"] is None
    assert entry["option_files"]["mask"]["sha256"] == file_digest(tmp_path / "mask.png")

    damaged = photo().copy()
    damaged[12:30, 10:28] = 255
    save(face, damaged)
    assert run(*arguments) == 0
    np.testing.assert_array_equal(images.read(out / "face.png").pixels, first)
    # Known pixels stay near what was measured (noise 0.01), hidden ones do not follow the white paint.
    measured = images.read(face).pixels
    known = np.broadcast_to(mask > 0, first.shape)
    assert np.sqrt(np.mean((first - measured)[known] ** 2)) < 0.05
    assert np.mean(first[~known]) < 0.9

    np.save(tmp_path / "mask.npy", mask == 0)
    assert (
        run(face, "--operator=inpainting", f"--mask={tmp_path / 'mask.npy'}", "--invert-mask", "--noise-std=0.01") == 0
    )
    np.testing.assert_array_equal(images.read(out / "face.png").pixels, first)


def test_measurement_of_lower_resolution_becomes_larger(run: Run, out: pathlib.Path, tmp_path: pathlib.Path) -> None:
    small = save(tmp_path / "small.png", photo(64).reshape(16, 4, 16, 4, 3).mean((1, 3)).round().astype(np.uint8))
    assert run(small, "--operator=sr4", "--noise-std=0.01") == 0
    restored = images.read(out / "small.png").pixels
    assert restored.shape == (3, 64, 64)
    averages = restored.reshape(3, 16, 4, 16, 4).mean((2, 4))
    assert np.sqrt(np.mean((averages - images.read(small).pixels) ** 2)) < 0.05


def test_kernel_as_array_or_image_is_scaled_to_sum_one(
    run: Run, face: pathlib.Path, out: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    kernel = np.array([[0, 85, 0], [85, 255, 85], [0, 85, 0]], dtype=np.uint8)
    save(tmp_path / "kernel.png", kernel)
    np.save(tmp_path / "kernel.npy", kernel / 85.0)
    results = []
    for name in ("kernel.png", "kernel.npy"):
        assert run(face, "--operator=blur", f"--kernel={tmp_path / name}", "--boundary=circular") == 0
        results.append(images.read(out / "face.png").pixels)
    # Equal but for the rounding of the image's float32 pixels, which may cross a level here and there.
    assert np.abs(results[0] - results[1]).max() <= 1.001 / 255
    assert abs(results[0].mean() - images.read(face).pixels.mean()) < 0.03


@pytest.mark.parametrize(
    "options",
    [
        ["denoising"],
        ["inpaint_random", "--missing=0.5"],
        ["inpaint_box", "--box=10"],
        ["super_resolution", "--factor=2", "--filter=bicubic"],
        ["sr4"],
        ["gaussian_blur", "--blur-std=1.5", "--boundary=circular"],
        ["gaussian_deblur"],
        ["motion_deblur", "--motion-length=7", "--motion-angle=-30"],
    ],
    ids=lambda options: options[0],
)
def test_every_task_simulates_and_its_command_is_accepted(
    run: Run, out: pathlib.Path, tmp_path: pathlib.Path, options: list[str]
) -> None:
    odd = save(tmp_path / "odd.png", photo()[:37, :41])
    assert run(odd, "--simulate", "--operator", *options) == 0
    entry = sidecar(out / "odd.json")
    assert entry["output"]["shape"] == [3, 37, 41]
    assert math.isfinite(entry["quality"]["restoration"]["psnr"])
    before = (out / "odd.png").read_bytes()
    (out / "odd.png").unlink()
    assert main(shlex.split(entry["command"])[1:]) == 0
    assert (out / "odd.png").read_bytes() == before


@pytest.mark.parametrize("suffix", [".png", ".tif"])
@pytest.mark.parametrize("channels", [1, 3])
def test_depth_and_channels_are_kept(
    run: Run, out: pathlib.Path, tmp_path: pathlib.Path, suffix: str, channels: int
) -> None:
    deep = photo().astype(np.uint16) * 257
    file = save(tmp_path / f"deep{suffix}", deep if channels == 3 else deep[..., 1])
    file_format = {".png": "png", ".tif": "tiff"}[suffix]
    assert run(file, "--operator=denoise", "--simulate", f"--format={file_format}") == 0
    header = images.probe(out / f"deep{suffix}")
    assert header == images.ImageHeader((channels, 48, 48), 16)
    levels = images.quantise(images.read(out / f"deep{suffix}").pixels, 16)
    assert (levels % 257 != 0).mean() > 0.9  # the lower bits are used: no detour over 8 bit


def test_fashion_prior_restores_grey(run: Run, out: pathlib.Path, tmp_path: pathlib.Path) -> None:
    file = save(tmp_path / "grey.png", np.zeros((32, 32), dtype=np.uint8))
    assert run(file, "--operator=denoise", "--prior=fashion", "--simulate") == 0
    assert images.probe(out / "grey.png").shape == (1, 32, 32)


# Folders.


def test_folder_names_damaged_files_and_goes_on(out: pathlib.Path, tmp_path: pathlib.Path) -> None:
    folder = tmp_path / "in"
    for index, size in enumerate((48, 48, 40)):
        save(folder / f"photo{index}.png", photo(size, left=180 + 10 * index))
    data = (folder / "photo0.png").read_bytes()
    (folder / "cut.png").write_bytes(data[: len(data) // 2])
    (folder / "text.jpg").write_text("no image")
    (folder / "notes.txt").write_text("no image, and not named like one")
    done = process("reconstruct", folder, "--operator=denoise", "--simulate", *FEW, "--batch-size=2", "--out", out)
    assert done.returncode == 1
    errors = done.stderr.splitlines()
    assert len(errors) == 2
    assert all(
        any(f"{name}: cannot be read as an image" in line for line in errors) for name in ("cut.png", "text.jpg")
    )
    assert {path.name for path in out.glob("*.json")} == {"photo0.json", "photo1.json", "photo2.json"}
    assert not list(out.glob(".*"))
    assert [sidecar(out / f"photo{index}.json")["batch"]["size"] for index in range(3)] == [2, 2, 1]
    assert "mean of 3 images" in done.stdout


def test_finished_images_are_skipped_until_something_differs(
    run: Run, face: pathlib.Path, out: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [face, "--operator=denoise", "--simulate"]

    def stamp() -> int:
        return (out / "face.json").stat().st_mtime_ns

    assert run(*arguments) == 0
    first = stamp()
    capsys.readouterr()
    assert run(*arguments) == 0
    assert stamp() == first
    assert "1 finished before and skipped; --force does them again" in capsys.readouterr().err
    for change in (["--force"], ["--seed=1"], ["--noise-std=0.06"], ["--relaxation=1.2"]):
        assert run(*arguments, *change) == 0
        assert stamp() > first
        first = stamp()
    (out / "face_panel.png").unlink()
    assert run(*arguments, "--relaxation=1.2") == 0
    assert stamp() > first
    first = stamp()
    save(face, photo(left=190))
    assert run(*arguments, "--relaxation=1.2") == 0
    assert stamp() > first


def test_an_image_does_not_depend_on_its_neighbours(run: Run, out: pathlib.Path, tmp_path: pathlib.Path) -> None:
    folder = tmp_path / "in"
    file = save(folder / "b.png", photo())
    arguments = ["--operator=inpaint_random", "--simulate", "--force"]
    assert run(file, *arguments) == 0
    alone, alone_pixels = sidecar(out / "b.json"), images.read(out / "b.png").pixels
    for name in ("a.png", "c.png"):
        save(folder / name, photo(left=170))
    assert run(folder, *arguments, "--batch-size=3") == 0
    together = sidecar(out / "b.json")
    assert together["batch"]["size"] == 3
    assert together["quality"]["baseline"] == alone["quality"]["baseline"]  # the same mask and noise
    # The network's convolutions may round otherwise in a batch, which can move a pixel across one level.
    assert np.abs(images.read(out / "b.png").pixels - alone_pixels).max() <= 1.001 / 255
    assert sidecar(out / "a.json")["quality"]["baseline"] != sidecar(out / "c.json")["quality"]["baseline"]


def test_an_estimate_that_is_not_ok_is_reported_and_not_written(
    run: Run,
    out: pathlib.Path,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    execute = Plan.execute

    def failing(self: Plan, *arguments: Any, **options: Any) -> Any:
        estimate = execute(self, *arguments, **options)
        estimate.ok[0] = False
        return estimate

    monkeypatch.setattr(Plan, "execute", failing)
    for name in ("bad", "good"):
        save(tmp_path / "in" / f"{name}.png", photo())
    assert run(tmp_path / "in", "--operator=denoise", "--simulate", "--batch-size=2") == 1
    assert "bad.png could not be restored: its estimate left the finite range" in capsys.readouterr().err
    assert {path.stem for path in out.iterdir()} == {"good", "good_panel"}


def test_a_failing_batch_does_not_stop_the_others(
    run: Run,
    out: pathlib.Path,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    execute = Plan.execute

    def failing(self: Plan, *arguments: Any, **options: Any) -> Any:
        if self.shape[-1] == 48:
            raise RuntimeError("not enough memory")
        return execute(self, *arguments, **options)

    monkeypatch.setattr(Plan, "execute", failing)
    for size in (40, 48):
        save(tmp_path / "in" / f"size{size}.png", photo(size))
    assert run(tmp_path / "in", "--operator=denoise", "--simulate", "--no-panel", "--quiet") == 1
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "size48.png could not be restored: not enough memory" in shown.err
    assert {path.name for path in out.iterdir()} == {"size40.png", "size40.json"}


# Bad input: refused before any work.


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("FACE", "`--operator` must be given: how the images were degraded, one of denoising, denoise"),
        ("FACE --operator=inpaint_randon", "got 'inpaint_randon'; did you mean 'inpaint_random'"),
        ("FACE --operator=denoise --prior=foto", "`--prior` must be one of 'fashion', 'photo', got 'foto'; did you"),
        ("FACE --operator=denoise --noise-std=-1", "`--noise-std` must be a finite number >= 0, got -1.0"),
        ("FACE --operator=denoise --noise-std=nan", "`--noise-std` must be a finite number >= 0, got nan"),
        ("FACE --operator=denoise --evaluations=0", "`--evaluations` must be at least 1, got 0"),
        ("FACE --operator=denoise --evaluations=5", "`--evaluations` must be a multiple of 2"),
        ("FACE --operator=denoise --evaluations=6 --flips=2", "`--evaluations` must be a multiple of 4"),
        ("FACE --operator=denoise --evaluations=1 --flips=2", "`--evaluations` must be at least `--flips` 2, got 1"),
        ("FACE --operator=denoise --flips=3", "`flips` must be 1, 2, 4 or 8, got 3"),
        ("FACE --operator=denoise --batch-size=0", "`--batch-size` must be at least 1, got 0"),
        ("FACE --operator=denoise --threads=-1", "`--threads` must be at least 1, got -1"),
        ("FACE --operator=denoise --low=30", "`low` must be below `high`, got low=30.0 and high=20.0"),
        ("FACE --operator=denoise --guidance=gausian", "did you mean 'gaussian'"),
        ("FACE --operator=denoise --noise=no", "`noise` must be one of"),
        ("FACE --operator=denoise --relaxation=-1", "`relaxation` must be"),
        ("FACE --operator=denoise --backend=gpu", "`backend` must be one of"),
        ("FACE --operator=denoise --format=bmp", "`--format` must be one of 'png', 'tiff', 'jpeg', 'webp', got 'bmp'"),
        ("FACE --operator=denoise --mask=MASK", "`--mask` does not apply to denoise; it applies to inpainting"),
        ("FACE --operator=sr4 --factor=4", "`--factor` does not apply to sr4; it applies to super_resolution"),
        ("FACE --operator=super_resolution", "`--factor` must be given for super_resolution"),
        ("FACE --operator=super_resolution --factor=3", "`--factor` must be one of 2, 4, 8, got 3"),
        ("FACE --operator=sr4 --filter=box", "`--filter` must be one of 'average', 'bicubic', got 'box'"),
        ("FACE --operator=inpainting", "`--mask` must be given for inpainting"),
        ("FACE --operator=inpaint_random", "`--mask` must be given for inpaint_random of a measurement"),
        ("FACE --operator=motion_deblur", "`--kernel` or `--motion-length` must be given for motion_deblur"),
        ("FACE --operator=gaussian_deblur", "`--blur-std` must be given for gaussian_deblur of a measurement"),
        ("FACE --operator=gaussian_deblur --blur-std=0", "`--blur-std` must be a number > 0, got 0.0"),
        ("FACE --operator=gaussian_deblur --blur-std=1 --boundary=zero", "`--boundary` must be one of 'reflect'"),
        ("FACE --operator=motion_deblur --motion-length=0.5", "`--motion-length` must be at least 1 pixel, got 0.5"),
        ("FACE --operator=motion_deblur --motion-length=5 --motion-angle=inf", "`--motion-angle` must be a finite"),
        ("FACE --operator=inpaint_random --simulate --missing=1", "`--missing` must be a share on [0, 1), got 1.0"),
        ("FACE --operator=inpaint_box --simulate --box=49", "`--box` must be smaller than face.png"),
        ("FACE --operator=inpaint_box --simulate --box=5 --mask=MASK", "`--mask` and `--box` exclude each other"),
        ("FACE --operator=inpaint_box --simulate --invert-mask", "`--invert-mask` needs `--mask`"),
        ("FACE --operator=inpainting --mask=MASK", "`--mask` must have the size (48, 48) of face.png, got (32, 48)"),
        ("FACE --operator=inpainting --mask=BLACK", "marks no pixel as known (white); if black means known, add --inv"),
        ("FACE --operator=inpainting --mask=none.png", "`--mask` none.png does not exist"),
        ("FACE --operator=inpainting --mask=CUT", "cut.png: cannot be read as an image"),
        ("FACE --operator=blur --kernel=CUT.npy", "cannot be read as an array of numbers"),
        ("FACE --operator=blur --kernel=NAN.npy", "must be finite, got NaN or infinity"),
        ("FACE --operator=blur --kernel=LINE.npy", "must have shape (h, w), got (3,)"),
        ("FACE --operator=blur --kernel=BLACK", "must have a positive sum, got 0"),
        ("FACE --operator=denoise --prior=fashion", "face.png: `shape`"),
        ("DEEP --operator=denoise --format=jpeg", "`--format` jpeg cannot hold the 16 bit of"),
        ("EMPTY --operator=denoise", "is a folder without PNG, JPEG, TIFF or WebP files"),
        ("missing.png --operator=denoise", "`INPUT` missing.png does not exist"),
        ("LINE.npy --operator=denoise", "`INPUT` must be PNG, JPEG, TIFF or WebP files or folders with such files, "),
        ("FACE SAME --operator=denoise", "would both be written to"),
        ("FACE --operator=denoise --out=IN", "face.png would overwrite the input"),
        ("IN --operator=denoise --out=IN", "`--out` must not be an input folder"),
        ("FACE --operator=denoise --out=FACE/out", "cannot be written: Not a directory"),
    ],
)  # fmt: skip
def test_bad_input_is_refused(
    run: Run,
    face: pathlib.Path,
    out: pathlib.Path,
    tmp_path: pathlib.Path,
    arguments: str,
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    places = {"FACE": face, "IN": face.parent, "EMPTY": tmp_path / "empty", "CUT": tmp_path / "cut.png"}
    places["EMPTY"].mkdir()
    places["CUT"].write_bytes(face.read_bytes()[:300])
    places["MASK"] = save(tmp_path / "mask.png", np.full((32, 48), 255, dtype=np.uint8))
    places["BLACK"] = save(tmp_path / "black.png", np.zeros((48, 48), dtype=np.uint8))
    places["DEEP"] = save(tmp_path / "deep.png", photo().astype(np.uint16) * 257)
    places["SAME"] = save(tmp_path / "other" / "face.png", photo())
    for name, content in (("NAN.npy", np.full((3, 3), np.nan)), ("LINE.npy", np.ones(3))):
        np.save(tmp_path / name, content)
        places[name] = tmp_path / name
    places["CUT.npy"] = tmp_path / "cut.npy"
    places["CUT.npy"].write_bytes(b"\x93NUMPY")

    def located(argument: str) -> str:
        flag, equals, value = argument.rpartition("=")
        first, slash, rest = value.partition("/")
        return f"{flag}{equals}{places.get(first, first)}{slash}{rest}"

    assert run(*map(located, arguments.split())) == 2
    shown = capsys.readouterr()
    assert shown.err.startswith("rmp-fast reconstruct: error: ")
    assert message in shown.err
    assert shown.err.count("\n") == 1
    assert not out.exists()


def test_missing_noise_level_and_folder_are_refused_by_the_process(face: pathlib.Path, out: pathlib.Path) -> None:
    done = process("reconstruct", face, "--operator=denoise", "--out", out)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("rmp-fast reconstruct: error: `--noise-std` must be given")
    done = process("reconstruct", face, "--operator=denoise", "--noise-std=0.1")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("rmp-fast reconstruct: error: `--out` must be given")


def test_wrong_code_path_is_refused_and_told_by_info(face: pathlib.Path, out: pathlib.Path) -> None:
    done = process("reconstruct", face, "--operator=denoise", *FEW, "--out", out, RMP_FAST_CPU="mmx")
    assert done.returncode == 2
    assert "RMP_FAST_CPU" in done.stderr
    assert "mmx" in done.stderr
    assert not out.exists()
    told = process("info", "--json", RMP_FAST_CPU="mmx")
    assert told.returncode == 0
    facts = json.loads(told.stdout)
    assert "mmx" in facts["backends"]["cpu"]
    assert facts["cpu_path"]["override"] == "mmx"


@pytest.mark.parametrize("name", ["face.png", "face_panel.png", "face.json"])
def test_files_of_the_user_s_are_not_replaced_unless_forced(
    face: pathlib.Path, out: pathlib.Path, run: Run, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    out.mkdir()
    (out / name).write_text("mine")
    assert run(face, "--operator=denoise") == 2
    assert f"holds {name}, which is no result of an earlier run" in capsys.readouterr().err
    assert [path.read_text() for path in out.iterdir()] == ["mine"]
    assert run(face, "--operator=denoise", "--force") == 0
    assert run(face, "--operator=denoise", "--evaluations=4") == 0  # results are replaced by those of other settings


def test_a_damaged_result_is_done_again(face: pathlib.Path, out: pathlib.Path, run: Run) -> None:
    assert run(face, "--operator=denoise") == 0
    whole = (out / "face.png").read_bytes()
    (out / "face.png").write_bytes(b"")
    assert run(face, "--operator=denoise") == 0
    assert (out / "face.png").read_bytes() == whole


def test_the_enlargement_of_a_size_that_the_factor_does_not_divide_is_in_place() -> None:
    ramp = torch.linspace(0, 1, 96).expand(1, 3, 93, 96)[..., :93]
    op = operators.SuperResolution(4)
    _, enlarged = degrade.baseline(op, op.A(ramp)[0].numpy(), (3, 93, 93), None)
    inside = slice(8, -8)
    # The spline's ends are felt at 7e-4 here; stretched to the size, the ramp would be off by up to 0.03.
    assert np.abs(enlarged[:, inside, inside] - ramp[0].numpy()[:, inside, inside]).max() < 2e-3


def test_a_format_without_room_for_an_image_costs_only_that(
    face: pathlib.Path, out: pathlib.Path, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    save(face.parent / "wide.png", np.zeros((8, 2100), dtype=np.uint8))
    assert run(face.parent, "--operator=super_resolution", "--factor=8", "--format=webp", "--no-panel") == 1
    assert "wide.png: its results cannot be written" in capsys.readouterr().err
    assert (out / "face.webp").is_file()


def test_a_name_that_is_no_text_costs_only_itself(
    face: pathlib.Path, out: pathlib.Path, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        pathlib.Path(os.fsdecode(bytes(face.parent) + b"/bad\xff.png")).write_bytes(face.read_bytes())
    except OSError:
        pytest.skip("this file system takes no such name")
    assert run(face.parent, "--operator=denoise") == 1
    assert "its name is not UTF-8; rename it" in capsys.readouterr().err
    assert (out / "face.png").is_file()


@pytest.mark.parametrize("stdout", [">&-", "> /dev/full", "| true"], ids=["closed", "full", "left"])
def test_results_are_written_though_nobody_reads(face: pathlib.Path, out: pathlib.Path, stdout: str) -> None:
    save(face.parent / "second.png", photo())
    words = [
        pathlib.Path(sys.executable).with_name("rmp-fast"),
        "reconstruct",
        face.parent,
        "--operator=denoise",
        *FEW,
        "--out",
        out,
    ]
    command = shlex.join([*map(str, words), "--batch-size=1"])
    done = subprocess.run(["bash", "-c", f"{command} {stdout}"], capture_output=True, text=True, check=False)
    assert "Traceback" not in done.stderr
    assert {"face.png", "second.png", "face.json", "second.json"} <= {path.name for path in out.iterdir()}


def test_interrupt_says_how_to_go_on(
    run: Run, face: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Plan, "execute", interrupted)
    assert run(face, "--operator=denoise", "--simulate") == 130
    assert "the same command goes on from there" in capsys.readouterr().err


# Parts.


def test_simulated_noise_has_the_stated_deviation() -> None:
    truths = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    y = degrade.simulate(operators.Denoising(), truths, 0.1, ["a.png", "b.png"], 0)
    noise = y - truths
    for item in noise:
        # The deviation of 12,288 normals scatters by 1 / sqrt(2 N) = 0.64 %; four of those.
        assert abs(float(item.std()) / 0.1 - 1) < 0.026
    assert not torch.equal(noise[0], noise[1])
    assert torch.equal(degrade.simulate(operators.Denoising(), truths[1:], 0.1, ["b.png"], 0), y[1:])


def test_simulated_noise_is_hidden_by_the_mask() -> None:
    mask = operators.random_mask((1, 16, 16), 0.5, 0)
    y = degrade.simulate(operators.Inpainting(mask), torch.ones(1, 3, 16, 16), 0.1, ["a.png"], 0)
    assert torch.equal(y != 0, mask.expand(1, 3, 16, 16))


def test_derived_seeds_differ_by_seed_purpose_and_name() -> None:
    seeds = {derive_seed(*key) for key in ((0, "mask", "a"), (1, "mask", "a"), (0, "noise", "a"), (0, "mask", "b"))}
    assert len(seeds) == 4
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_baseline_of_inpainting_is_exact_on_a_plane_and_falls_back_outside_the_hull() -> None:
    op = operators.Inpainting(torch.ones(1, 1, dtype=torch.bool))
    rows, columns = np.mgrid[:5, :6].astype(np.float32)
    plane = (rows + 2 * columns)[None]
    known = torch.zeros(1, 5, 6, dtype=torch.bool)
    for corner in ((0, 0), (0, 5), (4, 0), (4, 5)):
        known[0][corner] = True
    name, filled = degrade.baseline(op, plane * known.numpy(), plane.shape, known)
    assert name == "linear interpolation"
    np.testing.assert_allclose(filled, plane, atol=1e-5)  # a few roundings of values up to 14
    line = torch.tensor([[[True, False, False, True]]])
    assert degrade.baseline(op, np.array([[[1.0, 0, 0, 4]]]), (1, 1, 4), line)[1].tolist() == [[[1, 1, 4, 4]]]
    assert degrade.baseline(op, np.zeros((1, 1, 2)), (1, 1, 2), torch.zeros(1, 1, 2, dtype=torch.bool))[1].sum() == 0


def test_metrics_against_their_definition() -> None:
    rng = np.random.default_rng(0)
    truth = rng.random((3, 20, 24))
    image = truth + 0.1
    assert metrics.psnr(image, truth) == pytest.approx(20, abs=1e-9)
    assert metrics.psnr(truth, truth) == math.inf
    assert metrics.ssim(truth, truth) == pytest.approx(1)
    assert metrics.ssim(truth[:, :8], truth[:, :8]) is None
    with pytest.raises(ValueError, match=r"`image` must have shape \(C, H, W\) = \(3, 20, 24\), the truth's, got"):
        metrics.psnr(image[:, :8], truth)


def test_error_map_is_amplified_as_labelled() -> None:
    assert [panel.error_factor(np.full(100, error)) for error in (0.9, 0.4, 0.09, 0.0)] == [1, 2, 10, 50]


def test_panel_shows_what_it_is_given() -> None:
    measurement, restoration, truth = (
        np.full((3, side, side), value) for side, value in ((64, 0.2), (256, 0.6), (256, 0.6))
    )
    sheet = Image.open(io.BytesIO(panel.render(measurement, restoration, truth, "title", ("", ""))))
    assert sheet.size == (8 + 4 * 264, 78 + 256 + 8)
    centres = [sheet.getpixel((8 + 264 * index + 128, 78 + 128)) for index in range(4)]
    assert centres == [(51,) * 3, (153,) * 3, (153,) * 3, (0,) * 3]
    assert Image.open(io.BytesIO(panel.render(measurement, restoration, None, "title", ("", "")))).width == 8 + 2 * 264


# Information.


def test_info_tells_what_is_active_and_why_not() -> None:
    told = process("info")
    assert told.returncode == 0, told.stderr
    for word in ("rmp_fast", "backends", "cuda", "triton", "cpu path", "threads", "OpenMP", "photo", "fashion"):
        assert word in told.stdout
    assert "warning" not in told.stdout
    facts = json.loads(process("info", "--json").stdout)
    assert facts["backends"]["cpu"] is None
    assert facts["auto"] == "cpu"
    if not torch.cuda.is_available():
        assert "torch " in facts["backends"]["cuda"]
    assert facts["cpu_path"]["in_use"] in facts["cpu_path"]["available"]
    assert len(facts["openmp_runtimes"]) == 1
    assert facts["priors"]["photo"]["metadata"]["data"]


def test_notice_names_every_training_photograph() -> None:
    notice = (ROOT / "NOTICE").read_text()
    for package, file, author, licence in PHOTOS:
        assert package in notice
        assert any(file in line and f"{author} ({licence})" in line for line in notice.splitlines()), file
