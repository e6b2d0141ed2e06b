"""librmp_fast: the numbers of Python's plans, every refusal, installed and linked, under the sanitizers."""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import subprocess

import c_library as c
import pytest
import torch
from torch import Tensor

import rmp_fast as rmp
from rmp_fast import loop, schedules

SHAPE = (3, 2, 7, 9)
LEVELS = (0.05, 0.3, 1.5, 8.0)
#: float32 sums in another order: some units in the last place, through a chain whose steps do not amplify them.
ROUNDING = 3e-6


@pytest.fixture(autouse=True)
def one_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps of the one code path that the library under test is built with: another one fuses where this does not."""
    compiled = loop.CompiledStep
    monkeypatch.setattr(loop, "CompiledStep", lambda **buffers: compiled(path="baseline", **buffers))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def shrink(x: Tensor, s: Tensor) -> Tensor:
    return x * (0.4 / (0.4 + s * s)).reshape(-1, *[1] * (x.ndim - 1))


PRIOR = rmp.priors.from_denoiser(shrink, 0.4)


def measured(op: rmp.operators.Operator, shape: tuple[int, ...] = SHAPE) -> Tensor:
    return torch.randn(op.measurement_shape(shape), generator=generator())


def blocks(op: str) -> tuple[rmp.operators.Operator, dict[str, object]]:
    """An operator of Python and the library's."""
    mask = (torch.rand(SHAPE, generator=generator(3)) < 0.5).to(torch.uint8)
    if op == "identity":
        return rmp.operators.Denoising(), {"kind": "identity"}
    if op == "block_average":
        return rmp.operators.SuperResolution(4), {"kind": "block_average", "op_factor": 4}
    if op == "one block":
        return rmp.operators.SuperResolution(20), {"kind": "block_average", "op_factor": 20}
    kept = mask[:1] if op == "mask" else mask
    pointer = kept.contiguous().numpy().ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))
    return rmp.operators.Inpainting(kept), {"kind": "mask", "op_mask": pointer, "op_mask_items": kept.shape[0]}


CHAINS = (
    {},
    {"noise": "drawn", "covariance": "learned", "relaxation": 0.9},
    {"noise": "antithetic", "covariance": "diagonal", "precision_rate": 0.2, "inner_steps": 1},
    {"noise": "antithetic", "covariance": "learned"},
    {"noise": "none", "anchor": "next", "step_size": 0.7},
    {"covariance": "diagonal", "inner_steps": 3, "anchor": "next"},
)


def as_fields(chain: dict[str, object]) -> dict[str, object]:
    names = {"noise": c.NOISES, "anchor": c.ANCHORS, "covariance": c.COVARIANCES}
    return {key: names[key].index(value) if key in names else value for key, value in chain.items()}


def of_library(kind: str, chain: dict[str, object], shape: tuple[int, ...] = SHAPE, **fields: object) -> c.Plan:
    return c.Plan(c.options(shape, kind, denoiser=c.denoiser(shrink, shape), **as_fields(chain), **fields))


def of_python(op: rmp.operators.Operator, chain: dict[str, object], **options: object) -> rmp.Plan:
    settings = {
        "schedule": schedules.Schedule(torch.tensor(LEVELS, dtype=torch.float64)),
        "noise_std": 0.1,
        "shape": SHAPE,
        **options,
    }
    if "looks" in settings:
        del settings["schedule"]
    return rmp.Plan(op, PRIOR, backend="cpu", **settings, **chain)


@pytest.mark.parametrize("op", ["identity", "mask", "mask per item", "block_average", "one block"])
@pytest.mark.parametrize("chain", CHAINS, ids=str)
def test_the_numbers_are_pythons_to_the_last_bit(op, chain):
    operator, fields = blocks(op)
    y, seeds = measured(operator), torch.tensor([5, -1, 2**62])
    expected = of_python(operator, chain).execute(y, seeds)
    mean, ok = of_library(fields.pop("kind"), chain, **fields).execute(y, seeds)
    assert torch.equal(mean, expected.mean)
    assert ok.all()


def test_looks_given_one_by_one_are_pythons_to_the_last_bit():
    columns = [[5.0, 1.0, 0.2], [4.0, 0.8, 0.0], [0.9, 0.8, 0.7], [0.0, 0.3, -0.1], [0.3, 0.2, 0.1]]
    looks = schedules.Looks(*(torch.tensor(column, dtype=torch.float64) for column in columns))
    rows = (c.Look * 3)(*(c.Look(*row) for row in zip(*columns, strict=True)))
    operator, fields = blocks("mask")
    for noise in ("control", "antithetic", "none"):
        plan = of_python(operator, {"noise": noise}, looks=looks)
        mine = of_library(fields["kind"], {"noise": noise}, levels=None, looks=rows, look_count=3, op_mask_items=1,
                          op_mask=fields["op_mask"])  # fmt: skip
        assert torch.equal(mine.coefficients(), plan._looks)
        y = measured(operator)
        assert torch.equal(mine.execute(y)[0], plan.execute(y).mean)


@pytest.mark.parametrize("chain", CHAINS, ids=str)
def test_the_table_is_pythons(chain):
    """The same operations in float64 in the same order, then rounded to float32: equal."""
    noise_std = torch.tensor([0.0, 0.1, 3.0], dtype=torch.float64)
    plan = of_python(rmp.operators.Denoising(), chain, noise_std=noise_std)
    mine = of_library("identity", chain, noise_std=c.doubles(noise_std.tolist()), noise_std_count=3)
    assert torch.equal(mine.coefficients(), plan._looks)


def test_noise_levels_and_starts_belong_to_the_items():
    operator = rmp.operators.Denoising()
    y, start = measured(operator), torch.randn(SHAPE, generator=generator(1))
    noise_std = torch.tensor([0.3, 0.0, 1.0], dtype=torch.float64)
    plan = of_library("identity", {})
    before = plan.execute(y)[0]
    assert torch.equal(before, of_python(operator, {}).execute(y).mean)
    assert c.library().rmp_fast_plan_set_noise_std(plan.handle, c.doubles(noise_std.tolist()), 3) == c.OK
    assert torch.equal(plan.execute(y)[0], of_python(operator, {}, noise_std=noise_std).execute(y).mean)
    # Item k of a batch is item k alone, from its own start too.
    together = plan.execute(y, torch.arange(3), start)[0]
    assert not torch.equal(together, plan.execute(y)[0])
    for item in range(3):
        alone = of_library("identity", {}, (1, *SHAPE[1:]), noise_std=c.doubles([float(noise_std[item])]))
        mine = alone.execute(y[item : item + 1], torch.tensor([item]), start[item : item + 1])[0]
        assert torch.equal(mine, together[item : item + 1])


def test_a_blur_agrees_to_rounding():
    for boundary, name in enumerate(("reflect", "circular")):
        operator = rmp.operators.GaussianBlur(1.3, boundary=name)
        for chain, noise_std in (({}, 0.1), ({"noise": "antithetic"}, 0.0)):
            y = operator.A(torch.rand(SHAPE, generator=generator()))
            expected = of_python(operator, chain, noise_std=noise_std).execute(y).mean
            mine = of_library("gaussian_blur", chain, op_blur_std=1.3, op_boundary=boundary,
                              noise_std=c.doubles([noise_std]))  # fmt: skip
            # Without noise a coefficient is divided by singular values down to 32 units in the last place.
            bound = ROUNDING if noise_std else 2e-2
            assert (mine.execute(y)[0] - expected).norm() <= bound * expected.norm()


MATRIX = torch.randn(11, 126, generator=generator(4)) / 11


def linear(columns: str) -> object:
    matrix = MATRIX if columns == "apply" else MATRIX.T

    def call(_, source, target, batch, from_numel, to_numel, stream):
        assert (to_numel, from_numel) == tuple(matrix.shape)
        c.tensor(target, batch, to_numel).copy_(c.tensor(source, batch, from_numel) @ matrix.T)
        return 0

    return c.Map(call)


def linear_operator() -> rmp.operators.Operator:
    return rmp.operators.from_callable(
        lambda x: x.flatten(1) @ MATRIX.T.to(x.dtype), (11,), SHAPE[1:], linear=True,
        adjoint=lambda y: (y @ MATRIX.to(y.dtype)).reshape(-1, *SHAPE[1:]),
    )  # fmt: skip


@pytest.mark.parametrize("noise", ["control", "antithetic"])
def test_linear_callbacks_agree_to_rounding(noise):
    operator = linear_operator()
    y = measured(operator)
    expected = of_python(operator, {"noise": noise}).execute(y).mean
    fields = {"op_measurement_numel": 11, "op_apply": linear("apply"), "op_adjoint": linear("adjoint")}
    mine = of_library("linear", {"noise": noise}, **fields).execute(y)[0]
    # Both solves stop at 8 float32 epsilon of the residual; the matrix has a condition of about 2.
    assert (mine - expected).norm() <= 1e-5 * expected.norm()


def test_a_correction_of_the_callers_own_agrees_to_rounding():
    """The correction of a mask, written as a callback."""
    operator, _ = blocks("mask per item")
    seen = operator.form(SHAPE, torch.device("cpu"), torch.float32).mask.bool()
    calls = []

    def correct(_, y, ratio, denoised, batch, numel, measurement_numel, stream):
        calls.append((batch, numel, measurement_numel))
        d, q = c.tensor(denoised, *SHAPE), c.tensor(ratio, batch).reshape(-1, 1, 1, 1)
        d.copy_(torch.where(seen, d + (c.tensor(y, *SHAPE) - d) / (1 + q), d))
        return 0

    y = measured(operator)
    chain = {"noise": "antithetic"}
    mine = of_library("correction", chain, op_measurement_numel=126, op_correct=c.Correction(correct)).execute(y)[0]
    expected = of_python(operator, chain).execute(y).mean
    assert (mine - expected).norm() <= ROUNDING * expected.norm()
    assert calls == [(3, 126, 126)] * 12  # 6 looks, each half of a pair


@pytest.mark.parametrize("kind", ["identity", "mask", "block_average", "gaussian_blur", "linear"])
def test_smooth_starts_agree_to_rounding(kind):
    """With one tiny level above another the chain hardly moves what it starts from."""
    if kind in ("gaussian_blur", "linear"):
        operator = rmp.operators.GaussianBlur(1.3) if kind == "gaussian_blur" else linear_operator()
        fields = {"op_blur_std": 1.3, "op_measurement_numel": 11, "op_apply": linear("apply"),
                  "op_adjoint": linear("adjoint")}  # fmt: skip
    else:
        operator, fields = blocks(kind)
        fields.pop("kind")
    y = operator.A(torch.rand(SHAPE, generator=generator()))
    chain = {"noise": "none", "inner_steps": 1, "step_size": 1e-6}
    expected = of_python(operator, chain, start="smooth").execute(y).mean
    mine = of_library(kind, chain, start=1, **fields).execute(y)[0]
    # Conjugate gradients of a condition of 1e3 and more, stopped after 20 or 40 steps, on float32 dot products there
    # and float64 ones here. Of 11 numbers about 126 pixels, most directions are left to the Laplacian and far from
    # converged, where rounding decides how far they came.
    bound = 3e-2 if kind == "linear" else 2e-3
    assert (mine - expected).norm() <= bound * expected.norm()


def test_the_smooth_start_of_a_sparse_mask_begins_where_pythons_does():
    """Its few steps are far from the minimiser, so that another guess would end elsewhere."""
    shape, chain = (2, 3, 33, 47), {"noise": "none", "inner_steps": 1, "step_size": 1e-6}
    mask = rmp.operators.random_mask((2, 3, 33, 47), 0.97)
    operator = rmp.operators.Inpainting(mask)
    y = operator.A(torch.rand(shape, generator=generator()))
    expected = of_python(operator, chain, shape=shape, start="smooth").execute(y).mean
    pointer = mask.numpy().ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))
    mine = of_library("mask", chain, shape, start=1, op_mask=pointer, op_mask_items=2).execute(y)[0]
    # Sums of the pyramid and dot products in another order, float32; fifteen steps do not amplify that a hundredfold.
    assert (mine - expected).norm() <= 1e-4 * expected.norm()


def test_levels_are_pythons_to_rounding():
    levels = torch.zeros(11, dtype=torch.float64)
    assert c.library().rmp_fast_log_levels(10, 0.05, 20.0, levels.data_ptr()) == c.OK
    assert torch.allclose(levels, schedules.log(10, 0.05, 20.0).levels, rtol=1e-14, atol=0)


def test_an_empty_batch_asks_nobody():
    plan = c.Plan(c.options((0, 1, 4, 4)))  # whose denoiser fails
    mean, ok = plan.execute(torch.zeros(0, 1, 4, 4))
    assert mean.shape == (0, 1, 4, 4)
    assert ok.shape == (0,)


def test_it_says_what_it_is():
    assert c.library().rmp_fast_version().decode() in (c.ROOT / "pyproject.toml").read_text()
    plan = of_library("block_average", {}, op_factor=4)
    assert c.library().rmp_fast_plan_looks(plan.handle) == 6
    assert c.library().rmp_fast_plan_measurement_numel(plan.handle) == 2 * 2 * 3
    assert c.library().rmp_fast_plan_buffer_bytes(plan.handle) > 4 * 4 * 3 * 126  # two means, input, denoised


REFUSED = [
    ({"batch": -1}, "`batch` must be at least 0, got -1"),
    ({"channels": 0}, "`channels` must be at least 1, got 0"),
    ({"height": 0}, "`height` must be at least 1, got 0"),
    ({"width": -3}, "`width` must be at least 1, got -3"),
    ({"height": 2**40, "width": 2**40}, "`the shape` must be small enough to be counted, got"),
    ({"denoiser": c.Denoiser()}, "`denoiser` must be given, got NULL"),
    ({"noise": 4}, "`noise` must be one of 0 ... 3, got 4"),
    ({"anchor": 2}, "`anchor` must be one of 0 ... 1, got 2"),
    ({"covariance": -1}, "`covariance` must be one of 0 ... 2, got -1"),
    ({"start": 2}, "`start` must be one of 0 ... 1, got 2"),
    ({"threads": -1}, "`threads` must be at least 0, got -1"),
    ({"noise": 3, "covariance": 1}, "`noise` must perturb the looks where `covariance` is learned"),
    ({"levels": None}, "`levels` must be given, got NULL"),
    ({"level_count": 1}, "`level_count` must be at least 2, got 1"),
    ({"levels": c.doubles([0.1, 2.0, 2.0, 3.0])}, "`levels` must be positive, finite and strictly increasing, got 2"),
    ({"levels": c.doubles([0.0, 2.0, 3.0, 4.0])}, "`levels` must be positive, finite and strictly increasing, got 0"),
    ({"data_variance": 0.0}, "`data_variance` must be a finite number > 0, got 0"),
    ({"inner_steps": 0}, "`inner_steps` must be at least 1, got 0"),
    ({"step_size": -0.5}, "`step_size` must be a finite number > 0, got -0.5"),
    ({"relaxation": 2.5}, "`relaxation` must be at most 2, where the chain stops converging, got 2.5"),
    ({"precision_rate": float("nan")}, "`precision_rate` must be a finite number > 0, got nan"),
    ({"noise_std": None}, "`noise_std` must be given, got NULL"),
    ({"noise_std_count": 2}, "`noise_std_count` must be 1 or batch = 3, got 2"),
    ({"noise_std": c.doubles([-0.1])}, "`noise_std` must be finite and >= 0, got -0.1 at 0"),
    ({"size": 8}, "`size` must be that of the rmp_fast_options of this library"),
    ({"size": 4096}, "`size` must be that of the rmp_fast_options of this library"),
    ({"op_kind": 6}, "`op.kind` must be one of 0 ... 5, got 6"),
    ({"op_kind": 1}, "`op.mask` must be given, got NULL"),
    ({"op_kind": 2}, "`op.factor` must be at least 1, got 0"),
    ({"op_kind": 3}, "`op.blur_std` must be a finite number > 0, got 0"),
    ({"op_kind": 3, "op_blur_std": 1e4}, "`op.blur_std` must be at most 1000 pixels, got 10000"),
    ({"op_kind": 3, "op_blur_std": 1.0, "op_boundary": 2}, "`op.boundary` must be one of 0 ... 1, got 2"),
    ({"op_kind": 4}, "`op.apply` must be given, got NULL"),
    ({"op_kind": 4, "op_apply": linear("apply")}, "`op.adjoint` must be given, got NULL"),
    ({"op_kind": 5}, "`op.correct` must be given, got NULL"),
    ({"op_kind": 5, "op_correct": c.Correction(lambda *_: 0)}, "`op.measurement_numel` must be at least 1, got 0"),
    ({"op_kind": 5, "op_correct": c.Correction(lambda *_: 0), "op_measurement_numel": 1, "start": 1},
     "`start` must be RMP_FAST_START_ZERO for RMP_FAST_CORRECTION"),
    ({"looks": (c.Look * 1)()}, "`levels` must be NULL where `looks` are given"),
    ({"looks": (c.Look * 1)(), "levels": None}, "`look_count` must be at least 1, got 0"),
    ({"looks": (c.Look * 1)(), "levels": None, "look_count": 1}, "`looks` must have level > 0, variance > 0"),
    ({"looks": (c.Look * 1)((float("inf"),)), "levels": None, "look_count": 1}, "`looks` must hold finite numbers"),
    ({"looks": (c.Look * 1)(), "levels": None, "noise": 1}, "`noise` must not be drawn where `looks` are given"),
    ({"looks": (c.Look * 1)(), "levels": None, "covariance": 1}, "`covariance` must be RMP_FAST_FIXED"),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "message"), REFUSED, ids=[message for _, message in REFUSED])
def test_refusals_say_what_was_wrong(fields, message):
    with pytest.raises(ValueError, match=f"^{c.INVALID_ARGUMENT}: {re.escape(message)}"):
        c.Plan(c.options(SHAPE, **fields))


def test_functions_refuse_what_they_cannot_use():
    library, plan = c.library(), of_library("identity", {})
    y, out = torch.zeros(SHAPE), torch.zeros(SHAPE)

    def refused(status: int, message: str) -> None:
        assert status == c.INVALID_ARGUMENT
        assert message in c.last_error()

    refused(library.rmp_fast_options_init(None, 8), "`options` must be given, got NULL")
    refused(library.rmp_fast_plan_create(None, ctypes.byref(ctypes.c_void_p())), "`options` must be given, got NULL")
    refused(library.rmp_fast_plan_create(ctypes.byref(plan.options), None), "`plan` must be given, got NULL")
    refused(library.rmp_fast_plan_set_noise_std(None, None, 1), "`plan` must be given, got NULL")
    refused(library.rmp_fast_plan_set_noise_std(plan.handle, None, 1), "`noise_std` must be given, got NULL")
    refused(library.rmp_fast_plan_execute(None, *[None] * 6), "`plan` must be given, got NULL")
    refused(library.rmp_fast_plan_execute(plan.handle, *[None] * 6), "`y` must be given, got NULL")
    refused(library.rmp_fast_plan_execute(plan.handle, y.data_ptr(), *[None] * 5), "`out` must be given, got NULL")
    y[1, 0, 2, 3] = float("inf")
    refused(
        library.rmp_fast_plan_execute(plan.handle, y.data_ptr(), None, None, out.data_ptr(), None, None),
        "`y` must be finite, got NaN or infinity in item 1",
    )
    start, y = y.clone(), torch.zeros(SHAPE)
    refused(
        library.rmp_fast_plan_execute(plan.handle, y.data_ptr(), None, start.data_ptr(), out.data_ptr(), None, None),
        "`start` must be finite, got NaN or infinity in item 1",
    )
    refused(
        library.rmp_fast_plan_coefficients(plan.handle, None, 7), "`count` must be (looks + 1) batch 8 = 168, got 7"
    )
    refused(library.rmp_fast_plan_coefficients(plan.handle, None, 168), "`rows` must be given, got NULL")
    refused(library.rmp_fast_log_levels(0, 1.0, 2.0, None), "`steps` must be at least 1, got 0")
    refused(library.rmp_fast_log_levels(1, 3.0, 2.0, y.data_ptr()), "`low` must be below `high` = 2, got 3")
    assert library.rmp_fast_plan_looks(None) == library.rmp_fast_plan_measurement_numel(None) == 0
    library.rmp_fast_plan_destroy(None)


# --- In C and C++ -----------------------------------------------------------------------------------------------------


def test_checks_in_cpp():
    done = c.run(c.checks() / "checks", timeout=300)
    assert done.stdout.splitlines()[-1] == "executing allocates nothing"


@pytest.mark.parametrize("sanitizer", ["address,undefined", "thread"])
def test_checks_in_cpp_under_sanitizers(sanitizer):
    name = sanitizer.partition(",")[0]
    flags = "-O1 -g1"
    try:
        folder = c.built(
            name, c.ROOT / "tests" / "library", SANITIZE=sanitizer, BUILD_SHARED_LIBS="OFF", CMAKE_BUILD_TYPE="Debug",
            CMAKE_CXX_FLAGS_DEBUG=flags,
        )  # fmt: skip
    except AssertionError as error:
        if "cannot find" in str(error) and "san" in str(error):
            pytest.skip(f"the compiler has no runtime for -fsanitize={sanitizer}")
        raise
    # Too much memory is asked for on purpose.
    options = "allocator_may_return_null=1:detect_leaks=1" if name == "address" else "allocator_may_return_null=1"
    environment = os.environ | {f"{name[0].upper()}SAN_OPTIONS": options, "OMP_NUM_THREADS": "1"}
    done = c.run(folder / "checks", env=environment, timeout=300)
    # A finding ends the program with another code than 0.
    assert done.stdout.splitlines()[-1] == "executing allocates nothing"


def test_only_the_interface_is_visible():
    library = (c.checks() / "rmp_fast" / "librmp_fast.so").resolve()
    if shutil.which("nm") is None or shutil.which("readelf") is None:
        pytest.skip("binutils are not installed")
    names = [line.split()[-1] for line in c.run("nm", "-D", "--defined-only", library).stdout.splitlines()]
    header = (c.ROOT / "csrc" / "include" / "rmp_fast.h").read_text()
    assert len(names) >= 11
    assert all(f"{name}(" in header for name in names)
    version = c.library().rmp_fast_version().decode()
    assert f"[librmp_fast.so.{version.rpartition('.')[0]}]" in c.run("readelf", "-d", library).stdout


C_PROGRAM = """
#include <rmp_fast.h>
#include <stdio.h>
int main(void) {
  rmp_fast_options options;
  if (rmp_fast_options_init(&options, sizeof options) != RMP_FAST_OK) return 1;
  if (rmp_fast_plan_create(&options, NULL) != RMP_FAST_INVALID_ARGUMENT) return 2;
  printf("%s; %s\\n", rmp_fast_version(), rmp_fast_last_error());
  return 0;
}
"""


def test_pkg_config_finds_it_for_c(tmp_path):
    if shutil.which("pkg-config") is None or shutil.which("cc") is None:
        pytest.skip("pkg-config or a C compiler is not installed")
    (tmp_path / "program.c").write_text(C_PROGRAM)
    (found,) = c.installed().rglob("rmp_fast.pc")
    environment = os.environ | {"PKG_CONFIG_PATH": str(found.parent)}
    flags = c.run("pkg-config", "--cflags", "--libs", "rmp_fast", env=environment).stdout.split()
    strict = ["-std=c99", "-pedantic", "-Wall", "-Wextra", "-Werror"]
    c.run("cc", *strict, tmp_path / "program.c", "-o", tmp_path / "program", *flags)
    environment["LD_LIBRARY_PATH"] = str(found.parent.parent)
    said = subprocess.run([tmp_path / "program"], capture_output=True, text=True, env=environment, check=True).stdout
    assert said == f"{c.library().rmp_fast_version().decode()}; `plan` must be given, got NULL\n"
