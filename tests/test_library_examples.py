"""The example programs, built against the installed library, and the exported network that one of them runs."""

from __future__ import annotations

import functools
import math
import os
import pathlib

import c_library as c
import numpy as np
import pytest
import torch

import rmp_fast as rmp
from rmp_fast import export, presets, schedules

HEADERS = "ONNXRUNTIME_INCLUDE_DIR"
RUNTIME = c.BUILDS / "onnxruntime"


@functools.cache
def examples() -> pathlib.Path:
    definitions = {"CMAKE_PREFIX_PATH": str(c.installed()), "CMAKE_BUILD_TYPE": "Release"}
    definitions["CMAKE_CXX_FLAGS"] = "-Wall -Wextra -Werror"
    if HEADERS in os.environ:
        definitions[HEADERS] = os.environ[HEADERS]
    try:
        import onnxruntime
    except ImportError:
        pass
    else:
        # The package's library answers to another name than that of its file.
        RUNTIME.mkdir(parents=True, exist_ok=True)
        for found in pathlib.Path(onnxruntime.__file__).parent.glob("capi/libonnxruntime.so.*"):
            link = RUNTIME / "libonnxruntime.so.1"
            link.unlink(missing_ok=True)
            link.symlink_to(found)
            definitions["ONNXRUNTIME_LIBRARY"] = str(link)
    return c.built("examples", c.ROOT / "csrc" / "examples", **definitions)


def test_a_mixture_agrees_with_python():
    """The program's own denoiser sums in float64, Python's in float32; 40 looks of steps that do not amplify it."""
    index, numbers = torch.arange(16, dtype=torch.float64), 16
    means = torch.stack([torch.sin(0.7 * (k + 1) * index + k) for k in range(3)])
    prior = rmp.priors.GaussianMixture(torch.full((3,), 1 / 3), means, torch.tensor([0.02, 0.05, 0.1]))
    seen = index.remainder(2) == 0
    y = torch.where(seen, means[1] + 0.1 * (5 * index).cos(), 0).float()[None]
    plan = rmp.Plan(
        rmp.operators.Inpainting(seen[None]), rmp.priors.from_denoiser(prior.denoise, 0.5), (1, numbers), 0.1,
        schedule=schedules.log(20, 0.05, 20.0), backend="cpu",
    )  # fmt: skip
    expected = plan.execute(y, torch.tensor([7])).mean[0]
    said = c.run(examples() / "mixture").stdout
    mean = torch.tensor([float(line) for line in said.split()])
    assert mean.shape == (numbers,)
    assert (mean - expected).norm() <= 2e-5 * expected.norm()


def test_looks_survive_the_csv(tmp_path):
    looks = presets.for_task("sr4", "fashion")["looks"]
    export.to_csv(looks, tmp_path / "looks.csv")
    header, *lines = (tmp_path / "looks.csv").read_text().splitlines()
    assert header == "level,noise,weight,momentum,variance"
    read = torch.tensor([[float(value) for value in line.split(",")] for line in lines], dtype=torch.float64)
    columns = [looks.level, looks.noise, looks.weight, looks.momentum, looks.variance]
    assert torch.equal(read, torch.stack(columns, 1))


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    for package in ("onnx", "onnxruntime", "onnxscript"):
        pytest.importorskip(package, reason=f"the export needs {package}")
    path = tmp_path_factory.mktemp("export") / "fashion.onnx"
    assert export.main(["fashion", str(path), "--looks", str(path.with_suffix(".csv")), "--task", "sr4"]) == 0
    return path


def test_the_exported_network_denoises_any_batch_and_level(exported):
    import onnxruntime

    session = onnxruntime.InferenceSession(str(exported), providers=["CPUExecutionProvider"])
    prior = rmp.priors.load("fashion")
    generator = torch.Generator().manual_seed(1)
    for s in ([0.004, 120.0], [1.0], [0.3] * 5):
        levels = torch.tensor(s)
        x = torch.randn(len(s), 1, 32, 32, generator=generator) * levels[:, None, None, None]
        (found,) = session.run(None, {"x": x.numpy(), "s": levels.numpy()})
        expected = prior.denoise(x, levels).numpy()
        assert np.linalg.norm(found - expected) <= export.AGREEMENT * np.linalg.norm(expected)


def test_fashion_runs_through_onnx_runtime(exported, tmp_path):
    program = examples() / "fashion"
    if not program.exists():
        pytest.skip(f"ONNX Runtime's C header was not found: install it, or say where it lies in {HEADERS}")
    clean = torch.full((1, 1, 32, 32), -1.0)
    clean[..., 8:26, 10:22] = torch.linspace(-0.5, 0.9, 12)
    op = rmp.operators.SuperResolution(4)
    y = op.A(clean) + 0.05 * torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(2))
    (tmp_path / "y.f32").write_bytes(y.numpy().tobytes())
    files = (exported.with_suffix(".csv"), tmp_path / "y.f32", tmp_path / "out.f32")
    c.run(program, exported, *files, env=os.environ | {"LD_LIBRARY_PATH": str(RUNTIME)})
    mean = torch.from_numpy(np.fromfile(tmp_path / "out.f32", np.float32)).reshape(clean.shape)
    prior = rmp.priors.load("fashion")
    settings = presets.for_task("sr4", prior)
    expected = rmp.Plan(op, prior, clean.shape, 0.05, backend="cpu", **settings).execute(y).mean
    # The network's own rounding, 1e-5 of its output, through 20 looks that keep four fifths of it or more, and through
    # a start whose conjugate gradients are stopped early.
    assert (mean - expected).norm() <= 2e-3 * expected.norm()
    assert math.isclose(float((mean - clean).norm()), float((expected - clean).norm()), rel_tol=1e-2)


def test_export_refuses_what_it_cannot_do(tmp_path, capsys):
    with pytest.raises(SystemExit):
        export.main(["fashion", str(tmp_path / "f.onnx"), "--looks", str(tmp_path / "x.csv"), "--task", "denoise"])
    assert "no chain was tuned for denoise with fashion and 20 evaluations" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    with pytest.raises(SystemExit) as refused:
        export.main(["fashion", str(tmp_path / "f.onnx"), "--size", "0", "32"])
    assert refused.value.code == 2
    assert "`size` must be at least 1, got 0" in capsys.readouterr().err


def test_an_export_that_is_not_finite_replaces_nothing(tmp_path):
    for package in ("onnx", "onnxruntime", "onnxscript"):
        pytest.importorskip(package, reason=f"the export needs {package}")

    class Root(torch.nn.Module):
        def forward(self, x, s):
            return x.sqrt() * s[:, None, None, None]  # NaN for half of the pixels

    path = tmp_path / "root.onnx"
    path.write_bytes(b"from before")
    with pytest.raises(RuntimeError, match="differs from torch by nan"):
        export.to_onnx(rmp.priors.NetworkPrior(Root(), 1, 0.25), path, (4, 4))
    assert path.read_bytes() == b"from before"
    assert list(tmp_path.iterdir()) == [path]
