"""The program that checks an operator of one's own."""

from __future__ import annotations

import pathlib
import subprocess
import sys

import pytest
import torch

from rmp_fast import check_operator
from rmp_fast.operators import GaussianBlur

MINE = """
import torch
from rmp_fast.operators import GaussianBlur, PhaseRetrieval

class Right:
    def A(self, x):
        return x[..., 1:] - x[..., :-1]
    def adjoint(self, y):
        return torch.nn.functional.pad(y, (1, 0)) - torch.nn.functional.pad(y, (0, 1))

class Doubled(Right):
    def adjoint(self, y):
        return 2 * super().adjoint(y)

class Mixing(Right):
    def A(self, x):
        return super().A(x) + x.mean()

class Affine(Right):
    def A(self, x):
        return super().A(x) + 1

class Random(Right):
    def A(self, x):
        return super().A(x) + torch.rand(())

class Misshapen(Right):
    def adjoint(self, y):
        return y

class Undefined(Right):
    def A(self, x):
        return super().A(x) / 0

class Listed(Right):
    def A(self, x):
        return [super().A(x)]

class Doubling(Right):
    def A(self, x):
        return super().A(x).double()

class AloneA:
    def A(self, x):
        return 3 * x

def made():
    return Right()

def broken():
    raise RuntimeError("no camera")

blur = GaussianBlur(1.0)
phase = PhaseRetrieval()
number = 3
"""


@pytest.fixture
def folder(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    (tmp_path / "mine_to_check.py").write_text(MINE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "mine_to_check", raising=False)
    return tmp_path


@pytest.mark.parametrize(
    ("name", "code", "said"),
    [
        ("Right", 0, "adjoint"),
        ("made", 0, "linear"),
        ("blur", 0, "items alone, adjoint"),
        ("phase", 0, "items alone"),
        ("AloneA", 0, "no adjoint to compare: rmp_fast derives it"),
        ("Doubled", 1, "2 times as much"),
        ("Mixing", 1, "FAILS: A mixes the items of a batch"),
        ("Affine", 1, "FAILS: A is not linear, or adds a constant"),
        ("Random", 1, "FAILS: A is random or keeps state"),
        ("Undefined", 1, "nan"),
        ("Misshapen", 2, "`adjoint(y)` must have shape (2, 1, 5, 7), got (2, 1, 5, 6)"),
        ("Listed", 2, "TypeError: `A(x)` must be a torch.Tensor, got list"),
        ("Doubling", 2, "TypeError: `A(x)` must be torch.float32 as its input, got torch.float64"),
        ("broken", 2, "RuntimeError: no camera"),
        ("number", 2, "must have a function A(x), got int"),
        ("nothing", 2, "cannot be imported"),
    ],
)
def test_verdicts(name: str, code: int, said: str, folder: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert check_operator.main([f"mine_to_check:{name}", "--shape", "1", "5", "7"]) == code
    printed = capsys.readouterr()
    assert said in (printed.err if code == 2 else printed.out)
    assert (printed.out == "") == (code == 2)


def test_errors_are_measured_in_units_of_the_norms() -> None:
    op = GaussianBlur(1.0)
    findings = {
        f.name: f
        for f in check_operator.check(op.A, lambda y: op.adjoint(y) * 1.001, (3, 2, 9, 8), dtype=torch.float64)
    }
    assert not findings["adjoint"].holds
    assert 1e-6 < findings["adjoint"].error < 1e-3  # 0.001 of a product that is smaller than the norms
    assert findings["linear"].error < 1e-12
    assert len(check_operator.check(op.A, op.adjoint, (2, 1, 4, 4), linear=False)) == 2
    with pytest.raises(ValueError, match=r"`shape` must be \(B, ...\) with B >= 2, to compare items, got \(1, 4\)"):
        check_operator.check(op.A, None, (1, 4))
    with pytest.raises(TypeError, match=r"`dtype` must be torch.float32 or torch.float64, got torch.float16"):
        check_operator.check(op.A, None, (2, 4), dtype=torch.float16)


def test_arguments(folder: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert check_operator.main(["mine_to_check"]) == 2
    assert "must be given as module:name, got 'mine_to_check'" in capsys.readouterr().err
    assert check_operator.main(["mine_to_check:Right", "--batch", "1"]) == 2
    assert "`--batch` must be at least 2 and `--shape` positive, got 1 and [3, 32, 32]" in capsys.readouterr().err
    assert check_operator.main(["mine_to_check:Mixing", "--nonlinear", "--dtype", "float64", "--shape", "4"]) == 1


def test_as_a_program(folder: pathlib.Path) -> None:
    run = subprocess.run(
        [sys.executable, "-m", "rmp_fast.check_operator", "mine_to_check:Doubled"], capture_output=True, text=True
    )
    assert run.returncode == 1
    assert "adjoint" in run.stdout
    assert run.stderr == ""
