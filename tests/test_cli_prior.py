"""Priors of one's own on the command line."""

from __future__ import annotations

import hashlib
import json
import pathlib
import shlex

import numpy as np
import pytest
import torch
from test_presets import LOOKS

from rmp_fast import images
from rmp_fast.cli import main
from rmp_fast.cli.record import weights_digest
from rmp_fast.priors.guided import GuidedConfig, GuidedUNet
from rmp_fast.priors.network import _FOLDER


def restore(folder: pathlib.Path, prior: object, out: str = "out", *more: str) -> int:
    file = folder / "grey.png"
    images.write(file, np.random.default_rng(0).random((1, 16, 16)), 8, "png")
    options = ["--operator=denoise", "--simulate", "--evaluations=2", "--noise-std=0.05", "--no-panel"]
    return main(["reconstruct", str(file), *options, f"--prior={prior}", f"--out={folder / out}", *more])


def test_a_training_file_restores_as_the_bundled_prior_of_the_same_weights(tmp_path: pathlib.Path) -> None:
    copy = tmp_path / "mine.safetensors"
    copy.write_bytes((_FOLDER / "fashion.safetensors").read_bytes())
    assert restore(tmp_path, copy, "mine") == 0
    assert restore(tmp_path, "fashion", "bundled") == 0
    pixels = [images.read(tmp_path / out / "grey.png").pixels for out in ("mine", "bundled")]
    assert np.array_equal(*pixels)
    settings = [json.loads((tmp_path / out / "grey.json").read_text())["settings"] for out in ("mine", "bundled")]
    assert settings[0]["weights_sha256"] == settings[1]["weights_sha256"]
    assert settings[0]["prior"] == str(copy)


def test_weights_of_guided_diffusion_restore(tmp_path: pathlib.Path) -> None:
    torch.manual_seed(0)
    network = GuidedUNet(GuidedConfig(1, 2, 64, (1, 1), 1, (2,)))
    torch.save(network.state_dict(), tmp_path / "ema.pt")
    assert restore(tmp_path, tmp_path / "ema.pt") == 0
    assert images.probe(tmp_path / "out" / "grey.png").shape == (1, 16, 16)


def test_the_recorded_command_finds_the_prior_from_any_folder(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "mine.safetensors"
    copy.write_bytes((_FOLDER / "fashion.safetensors").read_bytes())
    monkeypatch.chdir(tmp_path)
    assert restore(tmp_path, "mine.safetensors") == 0
    assert f"--prior={copy.resolve()}" in shlex.split(
        json.loads((tmp_path / "out" / "grey.json").read_text())["command"]
    )


def test_the_digest_of_a_folder_is_of_its_files_and_their_names(tmp_path: pathlib.Path) -> None:
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet" / "config.json").write_text("{}")
    first = weights_digest(str(tmp_path))
    (tmp_path / "unet" / "config.json").rename(tmp_path / "unet" / "weights.bin")
    assert weights_digest(str(tmp_path)) != first
    file = tmp_path / "unet" / "weights.bin"
    assert weights_digest(str(file)) == hashlib.sha256(b"{}").hexdigest()


def test_what_cannot_be_opened_is_named(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"nothing at all, but long enough")
    assert restore(tmp_path, broken) == 2
    assert f"`--prior` {broken}: `path` {broken} cannot be read as safetensors" in capsys.readouterr().err
    assert restore(tmp_path, tmp_path) == 2
    assert "it has no configuration of that kind" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_what_was_tuned_decides_the_chain_and_is_recorded(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tuned = tmp_path / "tuned.json"
    tuned.write_text(json.dumps({"denoise": {"2": {"looks": LOOKS, "start": "zero"}}}))
    assert restore(tmp_path, "fashion", "tuned", f"--presets={tuned}") == 0
    entry = json.loads((tmp_path / "tuned" / "grey.json").read_text())
    assert entry["settings"]["looks"] == LOOKS
    first = (tmp_path / "tuned" / "grey.png").read_bytes()
    assert main(shlex.split(entry["command"])[1:]) == 0
    assert (tmp_path / "tuned" / "grey.png").read_bytes() == first
    assert restore(tmp_path, "fashion", "plain") == 0
    assert (tmp_path / "plain" / "grey.png").read_bytes() != first
    capsys.readouterr()
    for more, message in (
        (["--guidance=dps"], "`--presets` decides the whole chain; it excludes `--guidance`"),
        (
            ["--evaluations=1"],
            f"`--presets` {tuned} has nothing that holds here for denoise with at most 1 evaluations; it has",
        ),
        ([f"--presets={tmp_path}"], f"`--presets` {tmp_path} cannot be read as presets"),
    ):
        assert restore(tmp_path, "fashion", "refused", f"--presets={tuned}", *more) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "refused").exists()


@pytest.mark.parametrize("command", ["compare", "calibrate"])
def test_other_commands_take_what_was_tuned(command: str, tmp_path: pathlib.Path) -> None:
    images.write(tmp_path / "grey.png", np.random.default_rng(0).random((1, 16, 16)), 8, "png")
    tuned = tmp_path / "tuned.json"
    tuned.write_text(json.dumps({"denoise": {"2": {"looks": LOOKS, "start": "zero"}}}))
    out = tmp_path / "out"
    methods = ["--methods=rmp"] if command == "compare" else ["--looks=1"]
    options = ["--task=denoise", f"--images={tmp_path / 'grey.png'}", "--prior=fashion", "--noise-std=0.05", *methods]
    assert main([command, *options, f"--out={out}", f"--presets={tuned}"]) == 0
    written = json.loads((out / f"{command}.json").read_text())
    assert written["settings"]["presets"] == str(tuned)
    if command == "compare":
        assert [row["evaluations"] for row in written["rows"] if row["method"] == "rmp"] == [2]


@pytest.mark.parametrize(
    ("task", "noise", "tuned"),
    [("gaussian_deblur", "0.05", True), ("inpaint_random", "0.1", True), ("inpaint_random", "0.2", False)],
)
def test_a_preset_is_taken_where_it_helps(task: str, noise: str, tuned: bool, tmp_path: pathlib.Path) -> None:
    images.write(tmp_path / "grey.png", np.random.default_rng(0).random((1, 16, 16)), 8, "png")
    options = [f"--operator={task}", f"--noise-std={noise}", "--simulate", "--no-panel", "--prior=photo"]
    assert main(["reconstruct", str(tmp_path / "grey.png"), *options, f"--out={tmp_path / 'out'}"]) == 0
    assert ("looks" in json.loads((tmp_path / "out" / "grey.json").read_text())["settings"]) == tuned
