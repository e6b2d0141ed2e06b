"""``rmp-fast bench``: as a process from end to end, its report in a browser, its parts against arithmetic by hand."""

from __future__ import annotations

import csv
import dataclasses
import functools
import json
import math
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import field
import pytest
import torch
from test_cli import photo, process, save

import rmp_fast as rmp
from rmp_fast import engine
from rmp_fast.bench import analysis, figures, harness, methods, results
from rmp_fast.bench.harness import AbsentError, Arm, CheckError, Result
from rmp_fast.bench.page import _share
from rmp_fast.bench.problem import Problem, network_rounding
from rmp_fast.bench.results import COLUMNS, Results, Row
from rmp_fast.cli import main
from rmp_fast.cli.problems import tiled

pytest.importorskip("matplotlib", reason="the report of rmp-fast bench needs matplotlib: pip install 'rmp_fast[bench]'")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FEW = ["--prior=fashion", "--evaluations=4", "--budget=0", "--threads=1", "--quick"]
SECTIONS = ["--sections", "quality", "batch", "scaling"]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Two grey crops of 32 x 32 pixels."""
    folder = tmp_path_factory.mktemp("pictures")
    for name, crop in {"face": photo(40)[:32, :32], "eye": photo(40)[8:, 8:]}.items():
        save(folder / f"{name}.png", crop[..., 1])
    return folder


@pytest.fixture(scope="module")
def report(pictures: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """The folder of one whole small run, and beside it what the process printed."""
    out = tmp_path_factory.mktemp("bench") / "out"
    chosen = ["rmp", "rmp-untuned", "eager", "ddrm", "pigdm", "average"]
    batch = ["--batch", "1", "2", "--methods", *chosen]
    done = process("bench", "--images", pictures, "--task", "sr4", *FEW, *batch, *SECTIONS, "--out", out)
    assert done.returncode == 0, done.stderr
    (out.parent / "stdout").write_text(done.stdout)
    return out


def rows(out: pathlib.Path) -> list[dict[str, str]]:
    with (out / "bench.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_csv_json_table_and_page_agree(report: pathlib.Path) -> None:
    document = json.loads((report / "bench.json").read_text())
    assert document["finished"]
    found = rows(report)
    assert tuple(found[0]) == COLUMNS
    assert len(found) == len(document["rows"])
    printed, page = (report.parent / "stdout").read_text(), (report / "bench.html").read_text()
    for text, entry in zip(found, document["rows"], strict=True):
        for name in COLUMNS:
            assert text[name] == ("" if entry[name] is None else str(entry[name]))
        assert entry["images_per_second"] == pytest.approx(1e3 / entry["ms_per_image"])
        parts = [entry[f"{part}_seconds"] or 0.0 for part in ("network", "operator", "step", "start", "other")]
        assert all(part >= 0 for part in parts)
        assert f"{entry['ms_per_image']:.4g}" in page
        if entry["section"] in ("quality", "batch"):
            assert f"{entry['ms_per_image']:10.1f}" in printed
    quality = {entry["label"]: entry for entry in document["rows"] if entry["section"] == "quality"}
    budgets = {label: (entry["evaluations"], entry["backward_evaluations"]) for label, entry in quality.items()}
    assert budgets == {
        "rmp-4": (4, 0), "rmp-untuned-4": (4, 0), "eager-4": (4, 0), "ddrm-4": (4, 0), "ddrm-4 tuned": (4, 0),
        "pigdm-4": (4, 4), "16 x ddrm-4": (64, 0),
    }  # fmt: skip
    assert all("<=" in entry["check"] for entry in quality.values())
    assert all((e["backward_evaluations"] > 0) == (e["method"] in methods.BACKWARD) for e in document["rows"])
    batches = {(entry["label"], entry["batch"]) for entry in document["rows"] if entry["section"] == "batch"}
    assert batches == {(label, b) for label in ("rmp-4", "rmp-untuned-4", "eager-4", "ddrm-4") for b in (1, 2)}
    scales = [entry for entry in document["rows"] if entry["section"] in ("images", "pixels", "evaluations")]
    assert {(e["batch"], e["height"], e["evaluations"]) for e in scales} >= {(4, 32, 4), (1, 48, 4), (1, 32, 8)}


def test_every_command_of_the_page_is_one_that_runs(report: pathlib.Path) -> None:
    page = (report / "bench.html").read_text()
    commands = re.findall(r"<pre>(rmp-fast bench [^<]*)</pre>", page)
    assert len(commands) >= 5  # one under each figure and one for the whole
    for command in commands:
        from rmp_fast.cli import build_parser

        options = build_parser().parse_args(command.split()[1:])
        assert options.task == ["sr4"]
        assert options.evaluations == 4


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium to open the report in; apt-get install chromium")
def test_the_page_draws_every_figure_in_a_browser_and_fetches_nothing(
    report: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    page = (report / "bench.html").read_text()
    assert "default-src 'none'" in page
    assert "http://" not in page
    assert "https://" not in page
    # Counts what a reader sees: a script of the test's own, which the page's policy would refuse.
    script = """<script>document.title = [...document.querySelectorAll("svg, img")].map(e => {
      const box = e.getBoundingClientRect();
      const drawn = e.tagName == "IMG" ? e.naturalWidth : e.querySelectorAll("path").length;
      return (e.dataset.figure || "picture") + ":" + (box.width > 300 && box.height > 100) + ":" + (drawn > 10);
    }).join(" ") + " fetched:" + performance.getEntriesByType("resource").filter(
      e => !e.name.startsWith("data:")).length + " wide:" + (document.body.scrollWidth > innerWidth);</script>"""
    opened = tmp_path / "page.html"
    opened.write_text(re.sub(r"<meta http-equiv[^>]*>", "", page).replace("</body>", script + "</body>"))
    assert CHROMIUM is not None
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    command += ["--window-size=1280,1000", "--virtual-time-budget=2000", "--dump-dom", opened.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    title = re.search(r"<title>(.*?)</title>", done.stdout, re.DOTALL)
    assert title is not None
    assert title[1].split() == [
        "pareto:true:true", "batch:true:true", "parts:true:true", "scaling:true:true", "picture:true:true",
        "fetched:0", "wide:false",
    ]  # fmt: skip


def test_an_interrupted_run_keeps_what_was_measured(pictures: pathlib.Path, tmp_path: pathlib.Path) -> None:
    out = tmp_path / "out"
    command = [sys.executable, "-m", "rmp_fast.cli", "bench", "--images", str(pictures), *FEW, "--out", str(out)]
    # Many samples of long chains: seconds, in which what is looked for below is there to see.
    command += ["--evaluations=40", "--budget=600", "--methods", "rmp-untuned", "eager"]
    command += ["--sections", "quality", "batch"]
    # A shell's background job ignores the signal, and so would its children.
    heard = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    running = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, preexec_fn=heard)
    try:
        while not ((out / "bench.csv").is_file() and len(rows(out)) >= 2):
            assert running.poll() is None
            time.sleep(0.05)
        running.send_signal(signal.SIGINT)
        _, told = running.communicate(timeout=600)
    finally:
        running.kill()
    assert running.returncode == 130
    assert "partial" in told
    document = json.loads((out / "bench.json").read_text())
    assert not document["finished"]
    assert [row["label"] for row in document["rows"]] == [row["label"] for row in rows(out)]
    assert "<b>Partial.</b>" in (out / "bench.html").read_text()
    # As after a kill that left no page.
    (out / "bench.html").unlink()
    assert main(["bench", "--report-only", f"--out={out}"]) == 0
    assert "<b>Partial.</b>" in (out / "bench.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--methods", "rpm"], "`--methods` must be one of .*did you mean 'rmp'"),
        (["--task", "inpaint_randm"], "`--task` must be one of .*did you mean 'inpaint_random'"),
        (["--task", "phase_retrieval"], "`--task` must be one of 'denoise', .*'motion_deblur'"),
        (["--sections", "qualty"], "`--sections` must be one of .*did you mean 'quality'"),
        (["--prior", "faces"], "`--prior` must be one of 'fashion', 'photo'"),
        (["--batch", "0"], "`--batch` must be whole numbers of at least 1, got 0"),
        (["--budget", "-1"], "`--budget` must be a finite number of seconds"),
        (["--count", "0"], "`--count` must be at least 1"),
        (["--size", "4000"], "`--size` must be at most the size of"),
        (["--missing=0.5", "--task", "sr4"], "`--missing` does not apply to sr4"),
        (["--report-only"], "`--report-only`: .*bench.json cannot be read as the result of rmp-fast bench"),
    ],
)
def test_bad_input_is_refused_before_any_work(
    arguments: list[str], message: str, pictures: pathlib.Path, tmp_path: pathlib.Path, capsys: Any
) -> None:
    out = tmp_path / "out"
    assert main(["bench", f"--images={pictures}", "--prior=fashion", f"--out={out}", *arguments]) == 2
    assert re.search(message, capsys.readouterr().err)
    assert not out.exists()


def test_more_refusals(report: pathlib.Path, pictures: pathlib.Path, tmp_path: pathlib.Path, capsys: Any) -> None:
    before = (report / "bench.json").read_bytes()
    assert main(["bench", f"--images={pictures}", "--prior=fashion", f"--out={report}"]) == 2
    assert "add --force" in capsys.readouterr().err
    assert (report / "bench.json").read_bytes() == before
    assert main(["bench", f"--images={pictures}"]) == 2
    assert "`--out` must be given" in capsys.readouterr().err
    assert main(["bench", "--prior=fashion", f"--data={tmp_path}", f"--out={tmp_path / 'out'}"]) == 2
    assert "Fashion-MNIST is not in" in capsys.readouterr().err
    save(tmp_path / "mixed" / "a.png", photo(32)[..., 1])
    save(tmp_path / "mixed" / "b.png", photo(40)[..., 1])
    assert main(["bench", "--prior=fashion", f"--images={tmp_path / 'mixed'}", f"--out={tmp_path / 'out'}"]) == 2
    assert "--size PIXELS cuts squares of one size" in capsys.readouterr().err


def test_without_deepinv_its_rows_are_left_out_and_that_is_said_once(
    pictures: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setitem(sys.modules, "deepinv", None)
    names = ["rmp-untuned", "deepinv-ddrm", "deepinv-dps"]
    arguments = ["bench", f"--images={pictures}", *FEW, f"--out={tmp_path}", "--sections=quality", "--methods", *names]
    assert main([*arguments, "--task", "denoise"]) == 0
    told = capsys.readouterr()
    assert told.err.count("pip install deepinv") == 1
    assert "left out deepinv-ddrm, deepinv-dps (denoise)" in told.err
    assert [row["label"] for row in rows(tmp_path)] == ["rmp-untuned-4"]
    assert "pip install deepinv" in (tmp_path / "bench.html").read_text()


def test_quick_says_what_it_leaves_out(
    pictures: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(harness, "measure", lambda arms, **_: [])
    monkeypatch.setitem(sys.modules, "deepinv", None)
    out = tmp_path / "out"
    command = ["bench", f"--images={pictures}", "--prior=fashion", "--quick", f"--out={out}", "--threads=1"]
    assert main([*command, "--sections", "quality", "batch"]) == 0
    told = capsys.readouterr().err
    names = {
        "rmp-compiled", "rmp-bfloat16", "rmp-untuned-compiled", "rmp-untuned-bfloat16", "eager-compiled",
        "eager-bfloat16", "rmp-flips-bfloat16",
    }  # fmt: skip
    compiling = re.search(r"left out (.*): compiling takes minutes", told)
    assert compiling is not None
    assert set(compiling[1].split(", ")) == names
    assert re.search(r"left out .*dps-1000.*: too many evaluations for --quick", told)
    left = {entry["what"].removesuffix(" tuned") for entry in json.loads((out / "bench.json").read_text())["left_out"]}
    assert left == names | {
        "rmp-graph", "rmp-untuned-graph",
        "deepinv-ddrm", "deepinv-diffpir", "deepinv-dps", "deepinv-average", "pigdm-100", "dps-1000", "reddiff-1000",
        "daps-1000", "16 x ddrm-100",
    }  # fmt: skip


def test_what_is_not_compiled_is_no_compiled_row(prior: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> Any:
        raise RuntimeError("no compiler here")

    monkeypatch.setattr(torch, "compile", broken)
    given = make(prior, "denoise", OPERATORS["denoise"]())
    arms, _ = methods.arms(given, list(methods.COMPILED), 8)
    assert {arm.method for arm in arms} == set(methods.COMPILED)
    for found in arms:
        with (
            pytest.warns(RuntimeWarning, match="no compiler here"),
            pytest.raises(AbsentError, match="not be compiled"),
        ):
            found.make()


def test_what_does_not_run_in_bfloat16_is_no_such_row(prior: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    given = make(prior, "denoise", OPERATORS["denoise"]())
    arms, _ = methods.arms(given, list(methods.BFLOAT16), 8)
    assert {arm.method for arm in arms} == set(methods.BFLOAT16)
    monkeypatch.setattr(engine, "_without_bfloat16", lambda device: None)
    for found in arms:
        assert "equals" in found.check(found.make()())
    monkeypatch.setattr(engine, "LEAST_PSNR", math.inf)
    for found in arms:
        if found.method != "eager-bfloat16":  # which has no guard but the check
            call = found.make()
            with pytest.warns(RuntimeWarning, match="back to float32"), pytest.raises(AbsentError, match="in bfloat16"):
                call()
    monkeypatch.setattr(engine, "_without_bfloat16", lambda device: "no such instructions")
    for found in arms:
        with pytest.warns(RuntimeWarning, match="no such instr"), pytest.raises(AbsentError, match="in bfloat16"):
            found.make()


def test_without_matplotlib_the_extra_is_named(
    pictures: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert main(["bench", f"--images={pictures}", f"--out={tmp_path / 'out'}"]) == 2
    assert "pip install 'rmp_fast[bench]'" in capsys.readouterr().err


# The parts.


@pytest.fixture(scope="module")
def prior() -> Any:
    return rmp.priors.load("fashion")


def make(prior: Any, task: str, op: rmp.operators.LinearOperator, shape: tuple[int, ...] = (2, 1, 24, 32)) -> Problem:
    generator = torch.Generator().manual_seed(3)
    truth = torch.rand(shape, generator=generator) * 2 - 1
    y = op.A(truth)
    y = y + 0.1 * torch.randn(y.shape, generator=generator)
    y = op.A(y) if isinstance(op, rmp.operators.Inpainting) else y
    return Problem(task, op, prior, truth, y, 0.1, torch.tensor([5, 0])[: shape[0]], network_rounding(prior, shape))


OPERATORS: dict[str, Callable[[], Any]] = {
    "denoise": rmp.operators.Denoising,
    "inpaint_random": lambda: rmp.operators.Inpainting(rmp.operators.random_mask((24, 32), 0.7, 0)),
    "sr4": lambda: rmp.operators.SuperResolution(4),
    "gaussian_deblur": lambda: rmp.operators.GaussianBlur(1.5),
    "motion_deblur": lambda: rmp.operators.Blur(rmp.operators.motion_kernel(9, 45)),
}


@pytest.mark.parametrize("task", OPERATORS)
def test_the_eager_chain_equals_the_plan(prior: Any, task: str) -> None:
    """Its check runs it on the plan's random numbers; a wrong chain or operator must fail it."""
    given = make(prior, task, OPERATORS[task]())
    ((arm,), left_out) = methods.arms(given, ["eager"], 4)
    assert not left_out
    assert "equals rmp_fast's chain" in arm.check(arm.make()())
    noisier = Problem(task, given.op, prior, given.truth, given.y + 0.01, 0.1, given.seeds, given.rounding)
    ((ours,), _) = methods.arms(given, ["rmp-untuned"], 4)
    ((other,), _) = methods.arms(noisier, ["rmp-untuned"], 4)
    with pytest.raises(CheckError, match="more than rounding can"):
        ours.check(other.make()())


def test_rmp_has_an_arm_for_every_preset_that_holds(prior: Any) -> None:
    given = make(prior, "inpaint_box", rmp.operators.Inpainting(rmp.operators.box_mask((24, 32), 12)))
    arms, _ = methods.arms(given, ["rmp"])
    assert [arm.evaluations for arm in arms] == rmp.presets.budgets("inpaint_box", prior)
    assert {arm.settings for arm in arms} == {"preset"}
    noisy = dataclasses.replace(given, noise_std=0.6)
    ((only,), _) = methods.arms(noisy, ["rmp"])
    assert (only.evaluations, only.settings) == (methods.EQUAL, "untuned")


def test_every_method_has_a_colour_and_a_marker_of_its_own() -> None:
    assert set(figures.STYLES) == set(methods.METHODS)
    filled = [style for name, style in figures.STYLES.items() if not name.startswith("deepinv-")]
    assert len(set(filled)) == len(filled)


def test_methods_that_run_the_same_chain_share_a_picture() -> None:
    chains = {name: methods.chain_of(name) for name in methods.METHODS}
    assert {chains[name] for name in (*methods.OURS, *methods.EAGER)} == {"rmp", "rmp-flips", "rmp-untuned"}
    assert {chains[name] for name in methods.EAGER} == {"rmp-untuned"}
    assert all(methods.chain_of(chain) == chain for chain in chains.values())
    assert len(set(chains.values())) == len(methods.METHODS) - len(methods.OURS) - len(methods.EAGER) + 3


def test_mirror_images_count_as_evaluations(prior: Any) -> None:
    given = make(prior, "sr4", rmp.operators.SuperResolution(4))
    ((arm,), left_out) = methods.arms(given, ["rmp-flips-bfloat16"], 8)
    assert not left_out
    assert (arm.label, arm.evaluations, arm.settings) == ("rmp-flips-bfloat16-8", 8, "untuned")
    ((arm,), _) = methods.arms(given, ["rmp-flips-bfloat16"])
    assert (arm.label, arm.evaluations, arm.settings) == ("rmp-flips-bfloat16-80", 80, "preset")
    closed = rmp.priors.from_denoiser(lambda x, s: x, data_variance=1.0)
    _, left_out = methods.arms(dataclasses.replace(given, prior=closed), ["rmp-flips-bfloat16"])
    assert "mirror images are of priors made of a network" in left_out["rmp-flips-bfloat16"]


def test_operators_without_a_few_lines_of_torch_have_no_eager_arm(prior: Any) -> None:
    op = rmp.operators.Blur(rmp.operators.motion_kernel(9, 45), boundary="reflect")
    arms, left_out = methods.arms(make(prior, "motion_deblur", op), ["eager", "ddrm"], 4)
    assert not arms
    assert "no few lines of plain torch" in left_out["eager"]
    assert "singular value decomposition" in left_out["ddrm"]


def arm(label: str, results: Iterator[torch.Tensor], *, wrong: bool = False) -> Arm:
    def check(result: Result) -> str:
        if wrong:
            raise CheckError("not what it must be")
        return "looked at"

    made = lambda: lambda: Result(next(results), 3, 0, {"network": 0.0})  # noqa: E731
    return Arm("rmp", label, "preset", 3, made, check, tolerance=0.1)


def test_arms_that_fail_their_check_or_change_their_answer_are_dropped() -> None:
    zero = torch.zeros(1, 1, 2, 2)
    steady, failing = iter([zero] * 99), iter([zero] * 99)
    drifting = iter([zero, zero, zero, zero + 1, zero])
    broken = iter([zero + torch.nan] * 99)
    dropped: dict[str, str] = {}
    kept = harness.measure(
        [arm("a", steady), arm("b", failing, wrong=True), arm("c", drifting), arm("d", broken)],
        budget=0, on_wrong=lambda arm, why: dropped.update({arm.label: why}),
    )  # fmt: skip
    assert [m.arm.label for m in kept] == ["a"]
    assert len(kept[0].seconds) == 3
    assert kept[0].warm_up_seconds is not None
    assert dropped["b"] == "not what it must be"
    assert "differs from the first by 1 " in dropped["c"]
    assert "differs from the first by nan" in dropped["d"]


def test_an_arm_that_cannot_run_here_is_absent_not_wrong() -> None:
    def never() -> Result:
        raise AbsentError("no such processor")

    told: list[tuple[str, str]] = []
    absent = dataclasses.replace(arm("a", iter(())), make=lambda: never)
    kept = harness.measure(
        [absent, arm("b", iter([torch.zeros(1, 1, 2, 2)] * 99))], budget=0,
        on_wrong=lambda arm, why: told.append((arm.label, "wrong")),
        on_absent=lambda arm, why: told.append((arm.label, why)),
    )  # fmt: skip
    assert [m.arm.label for m in kept] == ["b"]
    assert told == [("a", "no such processor")]


def test_a_long_call_is_its_own_warm_up_unless_it_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(harness, "LONG", 0.0)
    calls = {"plain": 0, "compiling": 0}

    def counted(name: str) -> Iterator[torch.Tensor]:
        while True:
            calls[name] += 1
            yield torch.zeros(1, 1, 2, 2)

    plain, compiling = arm("plain", counted("plain")), arm("compiling", counted("compiling"))
    compiling = dataclasses.replace(compiling, compiles=True)
    once, several = harness.measure([plain, compiling], budget=0)
    assert (len(once.seconds), once.warm_up_seconds, calls["plain"]) == (1, None, 1)
    assert (len(several.seconds), calls["compiling"]) == (3, 5)  # two before the clock runs
    assert several.warm_up_seconds is not None


def test_peak_memory_sees_what_was_held() -> None:
    with harness.peak_memory() as peak:
        held = torch.ones(16 << 20)
        del held
    if peak.bytes is None:
        pytest.skip("this system does not tell the peak of resident memory")
    # 64 MiB, and what else the process touched meanwhile.
    assert 60 << 20 < peak.bytes < 100 << 20


def test_band() -> None:
    assert harness.band([3.0, 1.0, 2.0]) == (2.0, 1.0, 3.0)
    median, low, high = harness.band([float(n) for n in range(1, 12)])
    assert (median, low, high) == (6.0, 2.0, 10.0)


def row(method: str, psnr: float, ms: float, **other: Any) -> Row:
    values: dict[str, Any] = dict.fromkeys(COLUMNS, 0) | {
        "section": "quality", "task": "sr4", "method": method, "label": method, "settings": "authors", "batch": 1,
        "samples": 1, "evaluations": 20, "images_per_second": 1e3 / ms, "ms_per_image": ms, "psnr": psnr,
        "network_seconds": None, "ssim": None, "psnr_error": None, "warm_up_seconds": None,
    }  # fmt: skip
    return Row(**(values | other))


@pytest.mark.parametrize(
    ("ratio", "text"), [(0.25, "1/4"), (1 / 11.36, "1/11.4"), (1 / 1068.4, "1/1068"), (1.25, "1/0.8")]
)
def test_a_share_of_time_is_readable(ratio: float, text: str) -> None:
    assert _share(ratio) == text


def test_time_to_quality_and_ratios() -> None:
    found = [
        row("rmp", 24.0, 10.0, label="rmp-20"), row("rmp", 25.0, 20.0, label="rmp-40", evaluations=40),
        row("ddrm", 24.5, 100.0, evaluations=100), row("diffpir", 20.0, 12.0), row("dps", 23.0, 3000.0),
        row("average", 26.0, 1600.0, samples=16, evaluations=1600),
    ]  # fmt: skip
    best, dps, average = analysis.time_to_quality(found)
    assert best.ours is not None
    assert (best.peer.method, best.ours.label, best.ratio) == ("ddrm", "rmp-40", pytest.approx(0.2))
    assert dps.ours is not None
    assert (dps.ours.label, dps.ratio) == ("rmp-20", pytest.approx(1 / 300))
    assert (average.ours, average.ratio, average.best.label) == (None, None, "rmp-40")
    ((ours, other, ratio), (_, slow, _)) = analysis.equal_evaluations(found)
    assert (ours.label, other.method, ratio) == ("rmp-20", "diffpir", pytest.approx(1.2))
    assert slow.method == "dps"
    assert [r.label for r in analysis.frontier(found)] == ["rmp-20", "rmp-40", "average"]


def test_a_line_through_points() -> None:
    fit = analysis.line([1, 2, 4], [3.0, 5.0, 9.0])
    assert (fit.slope, fit.intercept, fit.worst) == (pytest.approx(2), pytest.approx(1), pytest.approx(0, abs=1e-12))
    assert analysis.line([1, 2, 3], [1.0, 3.0, 3.0]).worst > 0.1


def test_results_are_written_with_every_row_and_read_again(tmp_path: pathlib.Path) -> None:
    kept = Results(tmp_path, "rmp-fast bench", {"tasks": ["sr4"]}, {"threads": 1})
    kept.put(row("rmp", 24.0, 10.0))
    kept.put(row("rmp", 24.0, 11.0))  # the same row, with more samples
    kept.put(row("ddrm", 20.0, 11.0))
    kept.leave_out("quality", "sr4", "ddrm", "it failed its check")
    again = Results.read(tmp_path)
    assert again == kept
    assert not again.finished
    assert [(r["method"], r["ms_per_image"]) for r in rows(tmp_path)] == [("rmp", "11.0")]
    flawless = row("daps", math.inf, 12.0)
    again.put(flawless)
    assert "Infinity" not in (tmp_path / "bench.json").read_text()  # which is no JSON
    assert Results.read(tmp_path).rows[flawless.key] == flawless
    (tmp_path / "bench.json").write_text('{"schema": 1}')
    with pytest.raises(ValueError, match="cannot be read as the result"):
        Results.read(tmp_path)


def test_tiled_images_repeat_and_mirror() -> None:
    from rmp_fast.cli.problems import Clean

    image = Clean("a", torch.arange(6.0).reshape(1, 2, 3).numpy())
    many = tiled([image], 3)
    assert [i.name for i in many] == ["a", "a (1)", "a (2)"]
    (large,) = tiled([image], 1, 4)
    assert large.pixels.tolist() == [[[0, 1, 2, 2], [3, 4, 5, 5], [3, 4, 5, 5], [0, 1, 2, 2]]]


@pytest.mark.parametrize("task", ["inpaint_random", "motion_deblur", "sr4"])
def test_deepinv_solves_the_same_problem_and_leaves_it_alone(prior: Any, task: str) -> None:
    field.deepinv()
    given = make(prior, task, OPERATORS[task]())
    names = ["deepinv-ddrm", "deepinv-diffpir", "deepinv-dps", "deepinv-average"]
    arms, left_out = methods.arms(given, names, 2)
    if task == "sr4":
        assert set(left_out) == set(names)
        return
    assert not left_out
    before = given.y.clone()
    for found in arms:
        call = found.make()
        first = call()
        assert "operators equal" in found.check(first)
        # Its own random numbers start anew with every call, and rounding is all that two calls differ by.
        assert (call().mean - first.mean).square().mean().sqrt() <= found.tolerance
        assert first.mean.shape == given.shape
        assert first.backward_evaluations == (2 if found.method == "deepinv-dps" else 0)
    assert torch.equal(given.y, before)


OURS, OTHERS = '[project]\nname = "rmp_fast"\n', '[project]\nname = "others"\n'


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
@pytest.mark.parametrize(
    ("repository", "package", "project", "named"),
    [
        (".", "python/rmp_fast", OURS, True),
        (".", "python/rmp_fast", OTHERS, False),
        (".", "python/rmp_fast", None, False),
        (".", "python/rmp_fast", "damaged", False),
        (".", "python/rmp_fast", "project = 1", False),
        (".", "venv/lib/python3.11/site-packages/rmp_fast", OURS, False),  # installed inside its own checkout
        (".", "src/rmp_fast", OURS, False),
        ("..", "python/rmp_fast", OURS, False),  # a copy without its history
    ],
)
def test_the_commit_is_that_of_the_packages_own_checkout(
    repository: str, package: str, project: str | None, named: bool,
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    top = tmp_path / "above" / "top"
    module = top / package / "bench" / "results.py"
    module.parent.mkdir(parents=True)
    module.write_text("")
    if project is not None:
        (top / "pyproject.toml").write_text(project)

    def git(*words: str) -> str:
        who = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
        done = subprocess.run(["git", "-C", top / repository, *who, *words], capture_output=True, text=True, check=True)
        return done.stdout.strip()

    git("init")
    git("add", ".")
    git("commit", "-m", "first")
    monkeypatch.setattr(results, "__file__", str(module))
    expected = git("rev-parse", "HEAD")[:12] if named else None
    assert results.commit() == expected
    module.write_text("# changed")
    assert results.commit() == (f"{expected}-dirty" if named else None)


def test_without_git_there_is_no_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert results.commit() is None
