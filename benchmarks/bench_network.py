"""One evaluation of the bundled networks, run in every way there is: ``pytest benchmarks/bench_network.py -s``.

All ways of one network take turns in one process, after each has given the eager result: to rounding in float32, to
its eight bits in bfloat16. ``onnxruntime`` and ``openvino`` (both with onnx and onnxscript) are measured where they are
installed.

Plans do not run networks in either: an engine had to be 1.3 times faster than the compiled network. On two cores of an
AMD EPYC with AVX-512 and bfloat16, torch 2.13, the better of the two was 1.08 times faster for a photograph of 256x256
on one thread and slower on two, 1.08 and 0.8 times for 16 images of 32x32; OpenVINO in bfloat16 1.10 and 1.20, 1.15 and
0.93 times. One image of 32x32 is the exception, with 1.5 and 1.15 times, in bfloat16 1.9 and 2.3.
"""

from __future__ import annotations

import importlib.util
import io
import pathlib
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

import rmp_fast as rmp
from rmp_fast import engine
from rmp_fast.bench.interleave import interleaved, table

CASES = [("photo", (1, 3, 256, 256)), ("fashion", (1, 1, 32, 32)), ("fashion", (16, 1, 32, 32))]
Call = Callable[[], Tensor]


@contextmanager
def threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize(("name", "shape"), CASES, ids=str)
def bench_network(benchmark: Any, name: str, shape: tuple[int, ...], count: int) -> None:
    prior = rmp.priors.load(name)
    x = torch.rand(shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
    s = torch.full(shape[:1], 0.3)
    with threads(count), torch.inference_mode():
        arms: dict[str, Call] = {}
        for arm, options in {
            "eager": {},
            "eager, channels first": {"channels_last": False},
            "compiled": {"compile": True},
            "eager bfloat16": {"precision": "bfloat16"},
            "compiled bfloat16": {"precision": "bfloat16", "compile": True},
        }.items():
            arms[arm] = prepared(prior, x, s, **options)
        for build in (onnx_arm, openvino_arm):
            arms |= build(prior.network, x, s, count)
        expected = prior.denoise(x, s)
        for arm, call in arms.items():
            error = float((call() - expected).norm() / expected.norm())
            # float32: another order of the sums; bfloat16: 2^-9 for each of thirty layers in a row, at random
            assert error < (3e-2 if "bfloat16" in arm else 1e-5), (arm, error)
        timings = interleaved(arms, rounds=21, budget=40.0)
        benchmark.extra_info.update({arm: vars(timing) for arm, timing in timings.items()}, threads=count)
        print(table(f"\n{name} {shape}, {count} threads", timings, "eager"))
        benchmark.pedantic(arms["compiled"], rounds=5)


def prepared(prior: rmp.priors.Prior, x: Tensor, s: Tensor, **options: Any) -> Call:
    settings = {"compile": False, "precision": "float32", "channels_last": None, **options}
    network = engine.prepare(
        prior, [tuple(x.shape)], gradients=False, backend="torch", device=x.device, dtype=x.dtype, **settings
    )
    return lambda: network.denoise(x, s)


def exported(network: torch.nn.Module, x: Tensor, s: Tensor) -> bytes:
    with torch.inference_mode(False), torch.no_grad():
        program = torch.onnx.export(network, (x.clone(), s.clone()), dynamo=True, verbose=False)
    assert program is not None
    buffer = io.BytesIO()
    program.save(buffer)
    return buffer.getvalue()


def present(*modules: str) -> bool:
    return all(importlib.util.find_spec(module) for module in modules)


def onnx_arm(network: torch.nn.Module, x: Tensor, s: Tensor, count: int) -> dict[str, Call]:
    if not present("onnxruntime", "onnxscript"):
        return {}
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = count
    session = onnxruntime.InferenceSession(exported(network, x, s), options, providers=["CPUExecutionProvider"])
    feed = dict(zip([i.name for i in session.get_inputs()], (x.numpy(), s.numpy()), strict=True))
    return {"onnxruntime": lambda: torch.from_numpy(session.run(None, feed)[0])}


def openvino_arm(network: torch.nn.Module, x: Tensor, s: Tensor, count: int) -> dict[str, Call]:
    if not present("openvino", "onnxscript"):
        return {}
    import openvino

    core = openvino.Core()
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "network.onnx"
        path.write_bytes(exported(network, x, s))
        arms = {}
        for precision in ("f32", "bf16"):
            config = {"INFERENCE_NUM_THREADS": count, "INFERENCE_PRECISION_HINT": precision}
            request = core.compile_model(str(path), "CPU", config).create_infer_request()
            label = "openvino" + (" bfloat16" if precision == "bf16" else "")
            arms[label] = lambda request=request: torch.from_numpy(request.infer([x.numpy(), s.numpy()])[0])
    return arms
