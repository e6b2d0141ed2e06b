"""The figures of a benchmark's report, as SVG for a page that fetches nothing."""

from __future__ import annotations

import importlib
import io
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .analysis import frontier, line
from .methods import METHODS
from .results import Row

__all__ = ["batch", "latency", "missing", "pareto", "roofline", "scaling", "time_parts"]

INK, FAINT, GRID = "#1f2933", "#7b8794", "#e4e7eb"
#: Of every method: colour and marker. Ours are filled and in one strong colour, deepinv's hollow.
STYLES = {
    "rmp": ("#d64545", "o"),
    "rmp-compiled": ("#d64545", "D"),
    "rmp-bfloat16": ("#d64545", "*"),
    "rmp-flips-bfloat16": ("#d64545", "d"),
    "rmp-graph": ("#d64545", "p"),
    "rmp-untuned": ("#ef8354", "o"),
    "rmp-untuned-compiled": ("#ef8354", "D"),
    "rmp-untuned-bfloat16": ("#ef8354", "*"),
    "rmp-untuned-graph": ("#ef8354", "p"),
    "eager": ("#52606d", "o"),
    "eager-compiled": ("#52606d", "D"),
    "eager-bfloat16": ("#52606d", "*"),
    "ddrm": ("#2680c2", "s"),
    "diffpir": ("#199473", "^"),
    "pigdm": ("#8719e0", "v"),
    "dps": ("#b88a00", "P"),
    "reddiff": ("#a0522d", "X"),
    "daps": ("#3ebd93", "*"),
    "average": ("#2680c2", "H"),
    "deepinv-ddrm": ("#2680c2", "s"),
    "deepinv-diffpir": ("#199473", "^"),
    "deepinv-dps": ("#b88a00", "P"),
    "deepinv-average": ("#2680c2", "H"),
}
TUNED = " (tuned settings)"
PARTS = {
    "network": ("network", "#bcccdc"),
    "operator": ("operator", "#199473"),
    "step": ("step and loop", "#d64545"),
    "start": ("smooth start", "#8719e0"),
    "other": ("everything else, not told apart", "#52606d"),
}


def missing() -> str | None:
    """None where figures can be drawn, else what to install."""
    try:
        importlib.import_module("matplotlib")
    except ImportError:
        return "the report's figures need matplotlib: pip install 'rmp_fast[bench]'"
    return None


def _figure(rows: int, columns: int, width: float, height: float) -> tuple[Any, Any]:
    matplotlib = importlib.import_module("matplotlib")
    figure_class = importlib.import_module("matplotlib.figure").Figure
    matplotlib.rcParams.update({
        "svg.fonttype": "none", "font.family": "sans-serif", "font.size": 10, "axes.edgecolor": FAINT,
        "axes.labelcolor": INK, "text.color": INK, "xtick.color": FAINT, "ytick.color": FAINT, "xtick.labelcolor": INK,
        "ytick.labelcolor": INK, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True,
        "grid.color": GRID, "grid.linewidth": 0.8, "axes.axisbelow": True, "axes.titlesize": 11,
        "axes.titleweight": "bold", "axes.titlelocation": "left", "legend.frameon": False,
    })  # fmt: skip
    figure = figure_class(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False)


def _svg(figure: Any, name: str) -> str:
    """The figure as an element of HTML, with identifiers of its own."""
    matplotlib = importlib.import_module("matplotlib")
    stream = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with matplotlib.rc_context({"svg.hashsalt": name}):
        figure.savefig(stream, format="svg", metadata=nothing)
    text = stream.getvalue()
    text = text[text.index("<svg") :]
    # HTML knows the name spaces of an <svg>; without them the page holds no address at all.
    text = re.sub(r'\s+xmlns(:\w+)?="[^"]*"', "", text)
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = re.sub(r'="#', f'="#{name}-', text)
    text = text.replace("url(#", f"url(#{name}-")
    text = re.sub(r'width="[\d.]+pt" height="[\d.]+pt"', "", text, count=1)
    return text.replace("<svg", f'<svg role="img" data-figure="{name}"', 1)


def _style(row: Row, size: float = 8.0) -> dict[str, Any]:
    colour, marker = STYLES[row.method]
    deepinv = row.method.startswith("deepinv-")
    tuned = row.settings == "tuned" and not deepinv
    return {
        "color": colour, "marker": marker, "markersize": size, "markerfacecolor": "white" if deepinv else colour,
        "markerfacecoloralt": "white", "fillstyle": "left" if tuned else "full", "markeredgecolor": colour,
        "markeredgewidth": 1.6 if deepinv or tuned else 0.8,
    }  # fmt: skip


def _legend_name(row: Row) -> str:
    return METHODS[row.method] + (TUNED if row.settings == "tuned" else "")


def _seconds(value: float, _: Any = None) -> str:
    return f"{value:g} s" if value >= 1 else f"{1e3 * value:g} ms"


def _log_seconds(axis: Any) -> None:
    ticker = importlib.import_module("matplotlib.ticker")
    axis.set_xscale("log")
    axis.xaxis.set_major_locator(ticker.LogLocator(subs=(1.0, 3.0)))
    axis.xaxis.set_major_formatter(_seconds)
    axis.xaxis.set_minor_formatter(ticker.NullFormatter())


def pareto(rows: Sequence[Row]) -> str:
    """PSNR against seconds per image, one panel for each task; numbers are evaluations."""
    tasks = list(dict.fromkeys(row.task for row in rows))
    columns = min(2, len(tasks))
    lines = -(-len(tasks) // columns)
    figure, axes = _figure(lines, columns, 10.5, 4.2 * lines + 1.2)
    seen: dict[str, Any] = {}
    for axis, task in zip(axes.flat, tasks, strict=False):
        own = [row for row in rows if row.task == task]
        best = frontier(own)
        axis.step(
            [r.ms_per_image / 1e3 for r in best], [r.psnr for r in best], where="post", color=FAINT, lw=1, ls=":",
            zorder=1,
        )  # fmt: skip
        for row in own:
            ours = row.method.startswith("rmp")
            style = _style(row, 10 if ours else 7.5)
            (mark,) = axis.plot(row.ms_per_image / 1e3, row.psnr, ls="none", zorder=4 if ours else 3, **style)
            seen.setdefault(_legend_name(row), mark)
        _log_seconds(axis)
        axis.margins(0.12)
        axis.set_title(task)
        axis.set_xlabel("time per image (log scale)")
        axis.set_ylabel("PSNR in dB")
        _annotate(axis, own)
    for axis in axes.flat[len(tasks) :]:
        axis.set_visible(False)
    order = list(METHODS.values())
    names = sorted(seen, key=lambda name: (order.index(name.removesuffix(TUNED)), name))
    marks = [seen[name] for name in names]
    figure.legend(marks, names, loc="outside lower center", ncols=3, fontsize=9, handletextpad=0.3)
    return _svg(figure, "pareto")


def _annotate(axis: Any, rows: Sequence[Row]) -> None:
    """Evaluations beside the marks, ours first; once where marks of as many lie together."""
    told: list[tuple[str, float, float]] = []
    for row in sorted(rows, key=lambda r: not r.method.startswith("rmp")):
        text = f"{row.samples} x {row.evaluations // row.samples}" if row.samples > 1 else str(row.evaluations)
        at = row.ms_per_image / 1e3, row.psnr
        x, y = axis.transData.transform(at)
        if any(text == other and abs(x - a) < 45 and abs(y - b) < 14 for other, a, b in told):
            continue
        told.append((text, x, y))
        ours = row.method.startswith("rmp")
        axis.annotate(
            text, at, (6, 5), textcoords="offset points", fontsize=8, color=INK if ours else FAINT,
            fontweight="bold" if ours else "normal",
        )  # fmt: skip


def batch(rows: Sequence[Row]) -> str:
    """Images per second against the batch, with the band of the middle 80 %."""
    figure, axes = _figure(1, 1, 9.5, 4.6)
    axis = axes[0][0]
    labels = list(dict.fromkeys(row.label for row in rows))
    for label in labels:
        own = sorted((row for row in rows if row.label == label), key=lambda r: r.batch)
        x, y = [r.batch for r in own], [r.images_per_second for r in own]
        style = _style(own[0], 7)
        width = 2.4 if own[0].method.startswith("rmp") else 1.2
        axis.plot(x, y, lw=width, label=label, ls="--" if own[0].method.startswith("deepinv") else "-", **style)
        banded = [(r.batch, r.images_per_second_low, r.images_per_second_high) for r in own if r.repeats > 1]
        if banded:
            axis.fill_between(*zip(*banded, strict=True), color=style["color"], alpha=0.12, lw=0)
    axis.set_xscale("log", base=2)
    axis.set_xticks(sorted({row.batch for row in rows}))
    axis.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axis.set_ylim(bottom=0)
    axis.set_xlabel("images in a batch")
    axis.set_ylabel("images per second")
    figure.legend(loc="outside right center", fontsize=9)
    return _svg(figure, "batch")


def time_parts(rows: Sequence[Row]) -> str:
    """Milliseconds per image by part; on the right without the network."""
    told = [row for row in rows if row.network_seconds is not None]
    figure, axes = _figure(1, 2, 10.5, 0.34 * len(told) + 1.7)
    for axis, leave_out in zip(axes[0], ((), ("network",)), strict=True):
        left = [0.0] * len(told)
        for part, (name, colour) in PARTS.items():
            if part in leave_out:
                continue
            values = [1e3 * (getattr(row, f"{part}_seconds") or 0.0) / row.batch for row in told]
            axis.barh([row.label for row in told], values, left=left, color=colour, label=name, height=0.66)
            left = [a + b for a, b in zip(left, values, strict=True)]
        if leave_out:
            for index, (row, value) in enumerate(zip(told, left, strict=True)):
                axis.annotate(f" {value / row.ms_per_image:.1%}", (value, index), va="center", fontsize=8, color=INK)
            axis.set_yticks([])
            axis.margins(x=0.15)
        axis.invert_yaxis()
        axis.grid(visible=False, axis="y")
        axis.set_xlabel("milliseconds per image")
    axes[0][0].set_title("the whole chain")
    axes[0][1].set_title("without the network, and its share of the chain")
    handles, names = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=5, fontsize=9)
    return _svg(figure, "parts")


SCALES: dict[str, tuple[str, Callable[[Row], float]]] = {
    "images": ("images", lambda r: r.batch),
    "pixels": ("thousand pixels of an image", lambda r: r.height * r.width / 1e3),
    "evaluations": ("evaluations of the network", lambda r: r.evaluations),
}


def scaling(rows: Sequence[Row]) -> str:
    """Seconds of one call against images, pixels and evaluations, with straight lines; and the peak of memory."""
    figure, axes = _figure(1, 3, 10.5, 3.6)
    for axis, (section, (name, measure)) in zip(axes[0], SCALES.items(), strict=True):
        own = sorted((row for row in rows if row.section == section), key=measure)
        x = [measure(row) for row in own]
        y = [row.ms_per_image * row.batch / 1e3 for row in own]
        axis.plot(x, y, "o", color=STYLES["rmp"][0], ms=6)
        if len(own) > 1:
            fit = line(x, y)
            ends = [0.0, max(x)]
            axis.plot(ends, [fit.intercept + fit.slope * v for v in ends], "-", color=FAINT, lw=1.2, zorder=1)
            axis.set_title(f"off the line by at most {fit.worst:.0%}", fontweight="normal", fontsize=9)
        if section == "evaluations" and own and all(row.peak_memory_mb is not None for row in own):
            memory = axis.twinx()
            memory.plot(x, [row.peak_memory_mb for row in own], "s", color="#2680c2", ms=5, mfc="white")
            memory.set_ylim(0, 2 * max(1e-9, *(row.peak_memory_mb or 0.0 for row in own)))
            memory.set_ylabel("peak memory in MB (squares)", color="#2680c2")
            memory.grid(visible=False)
            memory.spines["right"].set_visible(True)
        axis.set_xlim(left=0)
        axis.set_ylim(bottom=0)
        axis.set_xlabel(name)
        axis.set_ylabel("seconds of a call")
    return _svg(figure, "scaling")


def roofline(kernels: Sequence[dict[str, Any]], plain: float, arithmetic: float) -> str:
    """Every kernel at its operations per byte, under what memory and arithmetic allow.

    Args:
        kernels: with ``kernel``, ``intensity`` (operations per byte) and ``gops``.
        plain: GB/s of plain passes over memory.
        arithmetic: 10^9 operations per second of a matrix product.
    """
    figure, axes = _figure(1, 1, 10.5, 4.8)
    axis = axes[0][0]
    intensities = [kernel["intensity"] for kernel in kernels if kernel["intensity"] > 0]
    knee = arithmetic / plain
    ends = min([*intensities, knee]) / 2, max([*intensities, knee]) * 2
    axis.plot([ends[0], knee, ends[1]], [ends[0] * plain, arithmetic, arithmetic], color=INK, lw=1.4)
    colours = list(dict.fromkeys(colour for colour, _ in STYLES.values()))
    for index, kernel in enumerate(kernels):
        if kernel["intensity"] > 0:
            style = {"marker": "os^vDPX*"[index // len(colours) % 8], "color": colours[index % len(colours)]}
            axis.plot(kernel["intensity"], kernel["gops"], ls="none", ms=7, label=kernel["kernel"], **style)
    axis.set_xscale("log")
    axis.set_yscale("log")
    axis.set_xlabel("operations per byte of memory traffic")
    axis.set_ylabel("10⁹ operations per second")
    figure.legend(loc="outside right center", fontsize=8)
    return _svg(figure, "roofline")


def latency(batches: Sequence[tuple[int, Sequence[float]]]) -> str:
    """A histogram of milliseconds for each batch, with its median and 99th percentile; a file of its own."""
    figure, axes = _figure(1, len(batches), 3.5 * len(batches), 3.2)
    for axis, (size, seconds) in zip(axes[0], batches, strict=True):
        values = np.asarray(seconds) * 1e3
        axis.hist(values, bins=40, color="#2680c2")
        for share, style in ((50, "-"), (99, "--")):
            axis.axvline(np.percentile(values, share), color=STYLES["rmp"][0], lw=1.2, ls=style, label=f"p{share}")
        axis.set_title(f"batch {size}")
        axis.set_xlabel("milliseconds")
        axis.set_ylabel("executions")
    axes[0][0].legend(fontsize=9)
    stream = io.StringIO()
    figure.savefig(stream, format="svg", metadata={"Date": None})
    return stream.getvalue()
