"""What ``rmp-fast batch`` refuses before any work, and how it says so."""

from __future__ import annotations

import pathlib
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from rmp_fast import images
from rmp_fast.cli.usage import UsageError

pyarrow = pytest.importorskip("pyarrow", reason="rmp-fast batch keeps its manifest with pyarrow: pip install .[ray]")
pytest.importorskip("ray", reason="rmp-fast batch runs on Ray: pip install .[ray]")

from batch_store import FEW, SIDE, Memory, go  # noqa: E402

from rmp_fast.batch import cluster, driver  # noqa: E402

pytest_plugins = ["batch_store"]  # its fixtures


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"file": ["a.png"]}, r"must have the column 'path', and may have 'seed', .*; it has 'file'"),
        ({"path": pyarrow.array([], "string")}, "has no rows"),
        ({"path": ["a.png", None]}, "row 1 of the manifest must have a path in column 'path', got None"),
        ({"path": ["a.txt"]}, "row 0 of the manifest must name a PNG, JPEG, TIFF or WebP file, got 'a.txt'"),
        ({"path": ["a.png", "./a.png"]}, "rows 0 and 1 of the manifest are both a.png; name each once"),
        ({"path": ["../a.png"]}, "row 0 of the manifest must not leave the manifest's folder by '..'"),
        ({"path": ["a.png"], "seed": [1.5]}, "row 0 of the manifest: seed must be a whole number, got 1.5"),
        ({"path": ["a.png"], "seed": [1e30]}, r"seed must be on \[-2\^63, 2\^63\), got 1e\+30"),
        ({"path": ["a.png"], "noise_std": [-1.0]}, "noise_std must be a finite number >= 0, got -1.0"),
        ({"path": ["a.png"], "mask": [3]}, "row 0 of the manifest must have a path in column 'mask', got 3"),
        ({"path": ["a.png"], "mask": ["m.png"]}, "`--mask` does not apply to denoise"),
        (
            {"path": ["a.png", "memory:///out/b.png"]},
            "`--output` must not hold what is restored: the path of row 1 is memory:///out/b.png",
        ),
    ],
)
def test_wrong_manifest_is_refused(
    source: Memory, out: Memory, fed: list[list[str]], columns: dict[str, Any], message: str
) -> None:
    source.picture("a.png")
    table = source.table("t.parquet", **columns)
    with pytest.raises(UsageError, match=message):
        go(table, out)
    assert not out.names()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"input": None}, "`--input` must be given: the folder to restore"),
        ({"output": None}, "`--output` must be given: the folder of results"),
        ({"input": "memory://none"}, "`--input` memory://none does not exist"),
        ({"input": "memory://in/empty"}, "`--input` memory://in/empty holds no PNG, JPEG, TIFF or WebP files"),
        ({"input": "memory://in/none.parquet"}, "none.parquet does not exist"),
        ({"input": "memory://in/text.parquet"}, "text.parquet cannot be read as a Parquet table"),
        ({"input": "nowhere://in"}, "`--input` nowhere://in cannot be opened: Protocol not known"),
        ({"output": "memory://in/out"}, "`--output` must lie outside of the input folder and not around it"),
        ({"output": "memory://"}, "`--output` must lie outside of the input folder and not around it"),
        ({"output": "memory://foreign"}, "holds files that are no batch's, like a.txt; use another folder, or --force"),
        ({"noise_std": None}, "`--noise-std` must be given"),
        ({"operator": "sr5"}, "`--operator` must be one of"),
        ({"guidance": "gausian"}, "did you mean 'gaussian'"),
        ({"prior": "foto"}, "did you mean 'photo'"),
        ({"device": "gpu"}, "`--device` must be one of 'auto', 'cpu', 'cuda', got 'gpu'"),
        ({"format": "bmp"}, "`--format` must be one of"),
        ({"workers": 0}, "`--workers` must be at least 1, got 0"),
        ({"seed": 2**63}, "`--seed` must be on [-2^63, 2^63), which the manifest can hold, got 9223372036854775808"),
        ({"tile": 100}, "must be"),
        ({"max_pixels": 0}, "`--max-pixels` must be at least 1, got 0"),
        ({"operator": "inpainting"}, "`--mask` must be given for inpainting"),
    ],
)
def test_bad_options_are_refused_before_work(
    source: Memory, out: Memory, fed: list[list[str]], options: dict[str, Any], message: str
) -> None:
    source.picture("a.png")
    source.write("empty/note.txt", b"")
    source.write("text.parquet", b"no table")
    Memory("/foreign").write("a.txt", b"")
    given = {"input": "memory://in", "output": "memory://out", **FEW, **options}
    with pytest.raises(UsageError) as refused:
        driver.run(driver.options_of(given), driver.Watcher())
    assert message in str(refused.value)
    assert not out.names()
    assert not fed


def test_unreadable_images_alone_are_refused_and_unknown_options_named(source: Memory, out: Memory) -> None:
    source.write("a.png", b"no image")
    with pytest.raises(UsageError, match=r"no image of 1 can be read; a\.png: the file: "):
        go(source, out)
    with pytest.raises(TypeError, match="did you mean 'noise_std'"):
        go(source, out, noise_sd=0.1)


def test_a_gpu_that_is_not_there_is_refused() -> None:
    with pytest.raises(UsageError, match="`--device` cuda needs a GPU that Ray knows of"):
        cluster.devices("cuda", 0)
    assert [cluster.devices(*key) for key in (("auto", 0), ("auto", 2), ("cpu", 2))] == ["cpu", "cuda", "cpu"]


def test_missing_ray_names_the_extra(tmp_path: pathlib.Path) -> None:
    images.write(tmp_path / "a.png", np.zeros((1, SIDE, SIDE)), 8, "png")
    blocked = "import sys; sys.modules['ray'] = None; from rmp_fast.cli import main; sys.exit(main(sys.argv[1:]))"
    arguments = ["batch", f"--input={tmp_path}", f"--output={tmp_path}-out", "--operator=denoise", "--noise-std=0.1"]
    done = subprocess.run(
        [sys.executable, "-c", blocked, *arguments, "--prior=fashion", "--device=cpu"], capture_output=True, text=True
    )
    assert done.returncode == 2
    assert "`rmp-fast batch` needs ray: pip install 'rmp_fast[ray]'" in done.stderr
    assert not pathlib.Path(f"{tmp_path}-out").exists()
