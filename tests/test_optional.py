"""What is said where an optional package is absent, and that nothing needs one before it is used."""

from __future__ import annotations

import pathlib
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

import rmp_fast as rmp


def folder_of_diffusers(path: pathlib.Path) -> pathlib.Path:
    (path / "config.json").write_text('{"_class_name": "UNet2DModel"}')
    return path


CALLS: dict[str, Callable[[pathlib.Path], Any]] = {
    "rmp_fast.operators.from_deepinv needs deepinv: pip install 'rmp_fast[deepinv]'": (
        lambda _: rmp.operators.from_deepinv(None, (1, 2, 2))
    ),
    "rmp_fast.deepinv needs deepinv: pip install 'rmp_fast[deepinv]'": lambda _: rmp.deepinv.RMP,
    "rmp_fast.priors.from_diffusers needs diffusers: pip install 'rmp_fast[diffusers]'": (
        lambda path: rmp.priors.open(folder_of_diffusers(path))
    ),
}


@pytest.mark.parametrize("message", CALLS)
def test_absent_packages_are_named(message: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for package in ("deepinv", "deepinv.physics", "deepinv.models", "diffusers"):
        monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.delitem(sys.modules, "rmp_fast.deepinv", raising=False)
    monkeypatch.delitem(vars(rmp), "deepinv", raising=False)
    with pytest.raises(ImportError) as caught:
        CALLS[message](tmp_path)
    assert message in str(caught.value)


def test_nothing_optional_is_imported_early() -> None:
    code = "import sys, rmp_fast, rmp_fast.priors, rmp_fast.operators, rmp_fast.check_operator; "
    code += "print(sorted({'deepinv', 'diffusers', 'torchvision'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
