"""The report of a benchmark: one HTML page that holds everything it shows and fetches nothing."""

from __future__ import annotations

import base64
import collections
import html
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from . import analysis, figures
from .results import Results, Row, time_text

__all__ = ["render"]

STYLE = """
:root { --ink: #1f2933; --faint: #616e7c; --line: #e4e7eb; --paper: #ffffff; --wash: #f5f7fa; --ours: #d64545; }
* { box-sizing: border-box; }
body { margin: 0; background: var(--wash); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif; }
main { max-width: 1160px; margin: 0 auto; padding: 40px 24px 80px; }
h1 { font-size: 30px; line-height: 1.2; margin: 0 0 6px; letter-spacing: -0.01em; }
h2 { font-size: 21px; margin: 0 0 4px; }
p { margin: 6px 0 12px; max-width: 78ch; }
.lead, figcaption, .note { color: var(--faint); }
section { background: var(--paper); border: 1px solid var(--line); border-radius: 10px; padding: 24px 26px;
  margin: 22px 0; }
.partial { background: #fff3c4; border: 1px solid #f0b429; border-radius: 10px; padding: 12px 18px; margin: 18px 0; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(215px, 1fr)); gap: 14px; margin: 24px 0 0; }
.card { background: var(--paper); border: 1px solid var(--line); border-top: 3px solid var(--ours); border-radius: 10px;
  padding: 14px 18px; }
.card b { display: block; font-size: 25px; line-height: 1.25; letter-spacing: -0.01em; }
.card span { color: var(--faint); font-size: 14px; line-height: 1.4; display: block; }
figure { margin: 14px 0 0; }
figure svg { width: 100%; height: auto; display: block; }
figure img { max-width: 100%; height: auto; display: block; border-radius: 4px; }
pre { background: var(--wash); border-radius: 6px; padding: 8px 12px; overflow-x: auto; margin: 12px 0 0;
  font: 12.5px/1.5 ui-monospace, "DejaVu Sans Mono", monospace; white-space: pre-wrap; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: 13px; margin-top: 10px; }
th { text-align: right; font-weight: 600; color: var(--faint); border-bottom: 2px solid var(--line); padding: 5px 8px;
  white-space: nowrap; vertical-align: bottom; }
td { text-align: right; padding: 4px 7px; border-bottom: 1px solid var(--line); font-variant-numeric: tabular-nums;
  white-space: nowrap; }
th:first-child, td:first-child, td.text, th.text { text-align: left; }
td.text { white-space: normal; }
tr.ours td:first-child { color: var(--ours); font-weight: 600; }
.met { color: #0c6b58; font-weight: 600; } .unmet { color: #ab091e; font-weight: 600; }
.check { color: #0c6b58; cursor: help; }
details summary { cursor: pointer; color: var(--faint); }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 3px 18px; font-size: 14px; margin: 10px 0 0; }
dt { color: var(--faint); } dd { margin: 0; overflow-wrap: anywhere; }
"""
#: Nothing but what the page holds may be shown.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def render(results: Results, pictures: Sequence[tuple[str, bytes]]) -> str:
    """The page.

    Args:
        results: what was measured.
        pictures: a caption and a PNG of restorations for each task.
    """
    command = results.command
    body = [_head(results)]
    if results.of("quality"):
        body.append(_pareto(results, command))
    if results.of("batch"):
        body.append(_batch(results, command))
    quality = results.of("quality")
    told = [row for row in quality if row.samples == 1 and row.network_seconds is not None]
    if told:
        body.append(_parts(told, command))
    if any(results.of(name) for name in figures.SCALES):
        body.append(_scaling(results, command))
    if "roofline" in results.extras:
        body.append(_roofline(results))
    if pictures:
        shown = "".join(
            f'<figure><img alt="{_e(caption)}" src="data:image/png;base64,{base64.b64encode(data).decode()}">'
            f"<figcaption>{_e(caption)}</figcaption></figure>"
            for caption, data in pictures
        )
        body.append(_section("Pictures", "", shown + _command(command, "quality")))
    if results.rows:
        body.append(_rows(results))
    body += [_left_out(results), _environment(results)]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>rmp-fast bench</title><style>{STYLE}</style></head>\n<body><main>"
        + "\n".join(body)
        + "</main></body></html>\n"
    )


def _e(text: object) -> str:
    return html.escape(str(text))


def _section(title: str, lead: str, content: str) -> str:
    intro = f'<p class="lead">{lead}</p>' if lead else ""
    return f"<section><h2>{title}</h2>{intro}{content}</section>"


def _command(command: str, section: str) -> str:
    return f"<pre>{_e(command)} --sections {_e(section)} --out {_e(section)}</pre>"


def _figure(svg: str, caption: str) -> str:
    return f"<figure>{svg}<figcaption>{caption}</figcaption></figure>"


def _table(columns: Sequence[str], lines: Iterable[Sequence[object]], text: Sequence[int] = (), ours: int = 0) -> str:
    """A table of HTML cells; columns numbered in ``text`` are aligned to the left, the first ``ours`` lines marked."""

    def cell(tag: str, index: int, content: object) -> str:
        return f"<{tag}{' class=text' if index in text else ''}>{content}</{tag}>"

    head = "".join(cell("th", k, name) for k, name in enumerate(columns))
    body = "".join(
        f"<tr{' class=ours' if number < ours else ''}>{''.join(cell('td', k, c) for k, c in enumerate(line))}</tr>"
        for number, line in enumerate(lines)
    )
    return f"<div class=wide><table><tr>{head}</tr>{body}</table></div>"


def _times(ratio: float) -> str:
    return f"{ratio:.2g}×" if ratio < 10 else f"{ratio:.0f}×"


def _span(values: Sequence[float], show: Callable[[float], str]) -> str:
    """The lowest and the highest value, or the one there is."""
    low, high = show(min(values)), show(max(values))
    return low if low == high else f"{low} to {high}"


def _head(results: Results) -> str:
    settings, where = results.settings, results.environment
    threads = f"{where['threads']} thread{'s' if where['threads'] != 1 else ''}"
    device = where.get("device", where["processor"])
    tasks, noise = _e(", ".join(settings["tasks"])), f"{settings['noise_std']:g}"
    lead = (
        f"Posterior means of {tasks} with the <b>{_e(settings['prior'])}</b> prior, {settings['size']} pixels, noise "
        f"{noise} on [0, 1]; {_e(device)}, {threads}. Every method has the same measurements, threads "
        "and network, which runs in another way only where its name says so; methods take turns; "
        "results are checked before the clock runs."
    )
    partial = (
        '<div class="partial"><b>Partial.</b> The run was interrupted or is still going on; this page shows what had '
        "been measured by then.</div>"
    )
    note = "" if results.finished else partial
    title = "<h1>Reverse mean propagation, measured</h1>"
    return f"<header>{title}<p class='lead'>{lead}</p>{note}{_cards(results)}</header>"


def _cards(results: Results) -> str:
    cards = []
    quality = results.of("quality")
    mine = [r for r in quality if r.method == "rmp" or r.settings == "preset"]
    if mine:
        fewest = min(r.evaluations for r in mine)
        fastest = min((r for r in mine if r.evaluations == fewest), key=lambda r: r.ms_per_image).method
        same = [r for r in mine if r.evaluations == fewest and r.method == fastest]
        psnr = sum(r.psnr for r in same) / len(same)
        speed = sum(r.ms_per_image for r in same) / len(same)
        tasks = "one task" if len(same) == 1 else f"mean of {len(same)} tasks"
        cards.append((f"{psnr:.2f} dB", f"in {time_text(speed)} per image: RMP with {fewest} evaluations, {tasks}"))
    single = [r for r in analysis.time_to_quality(quality) if r.what == analysis.BEST_SINGLE]
    ratios = [1 / r.ratio for r in single if r.ratio is not None]
    of_tasks = f", on {len(ratios)} of {len(single)} tasks" if len(single) > 1 else ""
    if ratios:
        cards.append((_span(ratios, _times), f"faster to the PSNR of {analysis.BEST_SINGLE}{of_tasks}"))
    if single:
        gains = [r.best.psnr - r.peer.psnr for r in single]
        text = f"RMP's best PSNR, beyond {analysis.BEST_SINGLE} at its best budget"
        cards.append((_span(gains, lambda g: f"{g:+.2f} dB"), text))
    equal = analysis.equal_evaluations(results.of("batch"))
    others = [x for _, other, x in equal if not other.method.startswith(("rmp", "eager"))]
    if others:
        text = "the images per second of the samplers, at equal evaluations"
        cards.append((_span(others, lambda x: f"{x:.2f}×"), text))
    inner = "".join(f"<div class='card'><b>{_e(value)}</b><span>{_e(text)}</span></div>" for value, text in cards)
    return f"<div class='cards'>{inner}</div>" if cards else ""


def _pareto(results: Results, command: str) -> str:
    rows = results.of("quality")
    images = rows[0].batch
    caption = (
        "Up and to the left is better. The number at a mark is its evaluations of the network (samples × evaluations "
        "where samples are averaged); the dotted line joins what nothing else beats. Hollow: deepinv's; half filled: "
        f"settings tuned on Fashion-MNIST. {images} image{'s' if images > 1 else ''} in one batch; time axes are "
        "logarithmic."
    )
    content = _figure(figures.pareto(rows), caption) + _command(command, "quality") + _time_to_quality(rows)
    return _section("Time against quality", "How long each method takes for how good an image.", content)


def _share(ratio: float) -> str:
    """A share as one over three digits, or over as many as the whole number has."""
    times = 1 / ratio
    return f"1/{times:.0f}" if times >= 100 else f"1/{times:.3g}"


def _time_to_quality(rows: Sequence[Row]) -> str:
    lines = []
    for r in analysis.time_to_quality(rows):
        if r.ours is None or r.ratio is None:
            mine = f"{r.peer.psnr - r.best.psnr:.2f} dB short ({_e(r.best.label)})"
            verdict = "<span class=unmet>not reached</span>"
        else:
            mine = f"{_e(r.ours.label)}: {r.ours.psnr:.2f} dB, {time_text(r.ours.ms_per_image)}"
            mark = "met" if r.ratio <= r.wanted else "unmet"
            verdict = f"<span class={mark}>{_share(r.ratio)}</span> (aim {_share(r.wanted)})"
        theirs = f"{_e(r.peer.label)}: {r.peer.psnr:.2f} dB, {time_text(r.peer.ms_per_image)}"
        lines.append((_e(r.task), _e(r.what), theirs, mine, verdict))
    columns = ("task", "as good as", "theirs, per image", "RMP, soonest", "share of their time")
    return _table(columns, lines, text=(1, 2, 3)) if lines else ""


def _batch(results: Results, command: str) -> str:
    rows = results.of("batch")
    lines = [
        (_e(other.label), other.batch, f"{other.images_per_second:.3g}", _e(ours.label),
         f"{ours.images_per_second:.3g}", f"<b>{ratio:.2f}</b>")
        for ours, other, ratio in analysis.equal_evaluations(rows)
    ]  # fmt: skip
    table = _table(("method", "batch", "images/s", "our fastest", "images/s", "ratio"), lines, text=(3,))
    caption = "Median and, shaded, the middle 80 % of the calls. Forward-only methods with one sample each."
    content = _figure(figures.batch(rows), caption) + _command(command, "batch")
    content += f"<details><summary>As ratios</summary>{table}</details>"
    lead = f"Every method gets {rows[0].evaluations} evaluations of the same network ({_e(rows[0].task)})."
    return _section("Throughput against batch", lead, content)


def _parts(told: Sequence[Row], command: str) -> str:
    task = told[0].task
    counts = collections.Counter(r.evaluations for r in told if r.task == task)
    shared = max(counts, key=lambda evaluations: (counts[evaluations], -evaluations))
    shown = [r for r in told if r.task == task and r.evaluations == shared]
    caption = (
        "The network is the same for all, and faster where a row is compiled or in bfloat16. “Step and loop” holds the "
        "kernel of the step and the Python that calls it; "
        "methods that do not tell operator and step apart have both under “everything else”."
    )
    lead = f"One call by part, for the methods with {shared} evaluations of the network ({_e(task)})."
    content = _figure(figures.time_parts(shown), caption) + _command(command, "quality")
    return _section("Where the time goes", lead, content)


def _scaling(results: Results, command: str) -> str:
    rows = [row for name in figures.SCALES for row in results.of(name)]
    lines = []
    for section, (name, measure) in figures.SCALES.items():
        own = results.of(section)
        if len(own) > 1:
            fit = analysis.line([measure(r) for r in own], [r.ms_per_image * r.batch / 1e3 for r in own])
            text = f"{fit.intercept:.3g} s + {fit.slope:.3g} s × {_e(name)}"
            lines.append((_e(name), text, f"{fit.worst:.1%}"))
    table = _table(("against", "fit of a call's seconds", "largest relative error"), lines, text=(1,))
    note = ""
    memory = [r.peak_memory_mb for r in results.of("evaluations") if r.peak_memory_mb is not None]
    if len(memory) > 1:
        span = _span(memory, lambda m: f"{m:.3g} MB")
        note = f"<p class='note'>Peak memory of one call, over all numbers of evaluations: {span}.</p>"
    content = _figure(figures.scaling(rows), "Untuned RMP; straight lines by least squares of relative errors.")
    content += _command(command, "scaling") + table + note
    lead = "Cost should grow as a straight line in images, pixels and evaluations, and memory not with evaluations."
    return _section("Scaling", lead, content)


def _roofline(results: Results) -> str:
    data: dict[str, Any] = results.extras["roofline"]
    svg = figures.roofline(data["kernels"], data["plain_gbps"], data["gops"])
    caption = (
        "A kernel on the slope moves its bytes as fast as plain passes of torch do (the line is the median of passes "
        "that read and write as much; in a cache some are faster); on the flat, arithmetic limits it."
    )
    content = _figure(svg, caption) + _command(results.command, "roofline")
    return _section("Roofline of the kernels", "What bounds each kernel of ours.", content)


def _rows(results: Results) -> str:
    columns = (
        "method", "task", "batch", "size", "forward", "backward", "PSNR", "SSIM", "ms/image", "images/s",
        "middle 80 %", "calls", "warm-up", "memory", "checked",
    )  # fmt: skip
    rows = sorted(results.rows.values(), key=lambda r: not r.method.startswith("rmp"))
    lines = []
    for r in rows:
        low, high = r.images_per_second_low, r.images_per_second_high
        lines.append((
            _e(r.label), _e(r.task), r.batch, f"{r.height}×{r.width}", r.evaluations, r.backward_evaluations,
            f"{r.psnr:.2f}" + ("" if r.psnr_error is None else f" ± {r.psnr_error:.2f}"),
            "" if r.ssim is None else f"{r.ssim:.3f}", f"{r.ms_per_image:.4g}", f"{r.images_per_second:.3g}",
            "" if low is None or high is None else f"{low:.3g}–{high:.3g}", r.repeats,
            "" if r.warm_up_seconds is None else f"{r.warm_up_seconds:.2g} s",
            "" if r.peak_memory_mb is None else f"{r.peak_memory_mb:.3g} MB",
            f"<span class=check title='{_e(r.check)}'>✓</span>",
        ))  # fmt: skip
    lead = (
        "Ours first. PSNR with its standard error over the images; what was checked shows when the pointer rests on ✓."
    )
    ours = sum(r.method.startswith("rmp") for r in rows)
    return _section("All rows", lead, _table(columns, lines, text=(1,), ours=ours))


def _left_out(results: Results) -> str:
    if not results.left_out:
        return ""
    reasons: dict[tuple[str, str], list[str]] = {}
    for entry in results.left_out:
        reasons.setdefault((entry["what"], entry["why"]), []).append(entry["task"])
    lines = [
        (_e(what), _e(", ".join(dict.fromkeys(task for task in tasks if task))), _e(why))
        for (what, why), tasks in reasons.items()
    ]
    return _section("Left out", "", _table(("what", "task", "why"), lines, text=(1, 2)))


def _environment(results: Results) -> str:
    where = results.environment
    pairs = {name: where[name] for name in ("device", "convolutions") if name in where} | {
        "processor": where["processor"], "threads": where["threads"],
        "kernels": where.get("kernels", where["cpu_path"]) or "plain torch",
        "other load": where["load"], "platform": where["platform"],
        "versions": ", ".join(f"{name} {value}" for name, value in where["versions"].items()),
        "commit": where["commit"] or "not run from its repository", "started": where["started"],
    }  # fmt: skip
    inner = "".join(f"<dt>{_e(name)}</dt><dd>{_e(value)}</dd>" for name, value in pairs.items())
    command = f"<pre>{_e(results.command)} --out {_e(results.folder.name)}</pre>"
    return _section("Environment", "", f"<dl>{inner}</dl>{command}")
