"""The table of linear tasks: which files of earlier runs it goes on from."""

from __future__ import annotations

import importlib
import pathlib
import sys
from collections.abc import Callable

import pytest

FOLDER = pathlib.Path(__file__).parent.parent / "benchmarks" / "quality"
COLUMNS = "prior,task,row,images,evaluations,backward,samples,psnr,standard_error,seconds_per_image"
ROW = "fashion,sr4,rmp-20,64,20,0,1,21.5249,0.3711,0.0512"


@pytest.fixture
def main(monkeypatch: pytest.MonkeyPatch) -> Callable[[pathlib.Path], None]:
    """The program's main(), which prints what a file holds."""
    monkeypatch.syspath_prepend(FOLDER)
    program = importlib.import_module("linear_tasks")

    def run(file: pathlib.Path) -> None:
        monkeypatch.setattr(sys, "argv", ["linear_tasks.py", "--print", f"--csv={file}"])
        program.main()

    return run


def test_finished_rows_are_printed(
    main: Callable[[pathlib.Path], None], tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "rows.csv"
    file.write_text(f"{COLUMNS}\n{ROW}\n")
    main(file)
    assert capsys.readouterr().out.splitlines()[-1].split() == ["rmp-20", "21.52", "20", "0", "0.05"]


@pytest.mark.parametrize(
    ("header", "row", "lacking"),
    [
        (COLUMNS.removeprefix("prior,"), ROW.removeprefix("fashion,"), "`prior`"),
        # Rows that are added would stand below other names.
        (COLUMNS.removeprefix("prior,") + ",prior", ROW.removeprefix("fashion,") + ",fashion", "this order"),
    ],
    ids=["older", "reordered"],
)
def test_a_file_of_other_columns_is_refused(
    main: Callable[[pathlib.Path], None], tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str],
    header: str, row: str, lacking: str,
) -> None:  # fmt: skip
    file = tmp_path / "rows.csv"
    file.write_text(f"{header}\n{row}\n")
    with pytest.raises(SystemExit, match="2"):
        main(file)
    captured = capsys.readouterr()
    assert captured.out == ""
    expected = f"--csv {file} must have the columns {COLUMNS.replace(',', ', ')} to go on from, and lacks {lacking}"
    assert captured.err.splitlines()[-1].endswith(f"error: {expected}; name another file")
