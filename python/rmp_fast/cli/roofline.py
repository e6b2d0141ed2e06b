"""``rmp-fast roofline``: what the kernels should take on a device, and on this machine what they do take."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from .. import _json
from ..bench import kernels, roofline
from ..bench.devices import DEVICES
from .tasks import choice
from .usage import UsageError

__all__ = ["beside_torch", "render", "run", "table"]


def run(options: argparse.Namespace) -> int:
    """Print the table; exit code 0, whatever it says, and 1 where a kernel does not agree with torch."""
    here = options.device.partition(":")[0] == "cuda"
    if not here:
        choice("--device", options.device, (*DEVICES, "cpu", "cuda"))
    if here and options.tasks:
        raise UsageError("`--tasks` does not go with --device cuda, where every kernel is measured by itself")
    names = options.tasks or list(roofline.MEASURED if options.device == "cpu" else roofline.TASKS)
    for name in names:
        choice("--tasks", name, roofline.TASKS)
    for flag in ("images", "threads"):
        if getattr(options, flag) and min(getattr(options, flag)) < 1:
            raise UsageError(f"`--{flag}` must be at least 1, got {min(getattr(options, flag))}")
    if options.side < 1:
        raise UsageError(f"`--side` must be at least 1, got {options.side}")
    if options.threads and options.device != "cpu":
        where = "works on its own" if here else "is on paper"
        raise UsageError(f"`--threads` is for --device cpu, which is measured; {options.device} {where}")
    if options.out is not None and options.out.exists() and not options.force:
        raise UsageError(f"`--out` {options.out} exists; choose another file or add --force")
    if options.out is not None and not options.out.absolute().parent.is_dir():
        raise UsageError(f"`--out` {options.out}: the folder does not exist")
    try:
        if options.device == "cpu":
            report = roofline.measure(names, options.images, options.side, options.threads)
        elif here:
            report = kernels.measure(options.device, [(n, 3, options.side, options.side) for n in options.images])
        else:
            report = roofline.predict(options.device, names, options.images, options.side)
    except (ValueError, RuntimeError) as error:
        raise UsageError(str(error)) from error
    if options.out is not None:
        _json.write(options.out, report)
    print(_json.dumps(report) if options.json else render(report))
    return 1 if report.get("refused") else 0


def render(report: dict[str, Any]) -> str:
    """A report of :mod:`rmp_fast.bench.roofline`, or on a CUDA device of :mod:`rmp_fast.bench.kernels`, as text."""
    if report["device"]["id"] == "cuda":
        return beside_torch(report)
    return _measured(report) if report["device"]["id"] == "cpu" else _predicted(report)


def beside_torch(report: dict[str, Any]) -> str:
    """The report of :func:`rmp_fast.bench.kernels.measure` as text."""
    device = report["device"]
    lines = [
        f"{device['name']}, kernels '{device['backend']}', torch {device['torch']}; each kernel agrees with torch",
        "us: of calls one after the other, and the band of 80 % of the samples; graph us: inside a CUDA graph; torch: "
        "backend='torch', with the same normals",
        "GB/s: bytes of the cost model, inside the graph where there is one; of copy: of what copy_ of as many bytes "
        "moves beside it (what fits into a cache stays there, for both)",
        "",
        *table(
            (
                "kernel", "images", "MB", "us", "band", "graph us", "on paper us", "GB/s", "copy GB/s", "of copy",
                "torch us", "torch / ours",
            ),
            [
                (
                    row["kernel"], " x ".join(map(str, row["shape"])), f"{row['bytes'] / 1e6:.2f}",
                    *_micro(row, "seconds"), "-".join(_micro(row, "low", "high")),
                    *_micro(row, "graph_seconds", "paper_seconds"), f"{row['gbps']:.1f}", f"{row['copy_gbps']:.1f}",
                    f"{row['bandwidth_share']:.0%}", *_micro(row, "torch_seconds"), f"{row['torch_ratio']:.1f}",
                )
                for row in report["kernels"]
            ],
        ),
        *(f"NO ROW: {reason}" for reason in report["refused"]),
    ]  # fmt: skip
    return "\n".join(lines)


def _predicted(report: dict[str, Any]) -> str:
    device, side = report["device"], report["side"]
    lines = [
        f"{device['name']}, on paper; images of {side} x {side}",
        f"  memory      {device['bandwidth'] / 1e12:.2f} TB/s: {device['bandwidth_source']}",
        f"  arithmetic  {device['rates']['floating'] / 1e12:.1f} T instructions/s: {device['rates_source']}",
        f"  launches    {device['launch_source']}",
        "",
        *table(
            ("kernel", "images", "MB", "Mop", "launches", "memory us", "arithmetic us", "us", "bound", "of copy"),
            [
                (
                    row["kernel"], row["images"], f"{row['bytes'] / 1e6:.2f}", _millions(row["operations"]),
                    row["launches"], *_micro(row, "memory_seconds", "arithmetic_seconds", "seconds"), row["bound"],
                    f"{row['bandwidth_share']:.0%}",
                )
                for row in report["kernels"]
            ],
        ),
        "",
        "everything of ours between two evaluations of the network; least: what the launches alone take",
        *table(
            ("task", "images", "MB", "Mop", "launches", "graph us", "eager us", "least", "least eager", "of copy"),
            [
                (
                    row["task"], row["images"], f"{row['bytes'] / 1e6:.2f}", _millions(row["operations"]),
                    row["launches"],
                    *_micro(row, "graph_seconds", "eager_seconds", "least_graph_seconds", "least_eager_seconds"),
                    f"{row['bandwidth_share']:.0%}",
                )
                for row in report["tasks"]
            ],
        ),
        "",
        "torch's own operations between two evaluations (transforms, matrix products, solves), not in the times above",
        *table(
            ("task", "calls", "MB per image", "calls of ours in a chain", "graphs of a chain"),
            [
                (
                    row["task"], f"{row['library_calls']:g}", f"{row['library_bytes'] / row['images'] / 1e6:.2f}",
                    row["chain_calls"], row["chain_graph_launches"],
                )
                for row in {row["task"]: row for row in report["tasks"]}.values()
            ],
        ),
    ]  # fmt: skip
    if report["targets"]:
        lines += ["", "targets"]
    for row in report["targets"]:
        verdict = "met" if row["met"] else "missed"
        found = f"{row['found']:.3g}, wanted {row['wanted']:g}; furthest: {row['worst_task']}"
        lines.append(f"  {verdict:<7} {row['target']}: {found}")
    return "\n".join(lines)


def _measured(report: dict[str, Any]) -> str:
    lines = [f"this machine's CPU, measured; images of {report['side']} x {report['side']}"]
    for threads, limits in report["device"]["threads"].items():
        product = limits["rates"]["floating"] / 1e9
        lines.append(
            f"  {_threads(threads)}: {product:.0f} G fused multiply-adds/s in a matrix product, "
            f"{1e-6 / limits['normal']:.0f} M normals/s in a cache, {limits['start'] * 1e6:.1f} us a call"
        )
    columns = ("threads", "images")
    lines += [
        f"  load average {report['device']['load']:.1f} on {report['device']['processors']} processors"
        + ("; rows of several threads are not to be trusted" if report["device"]["busy"] else ""),
        "",
        *table(
            ("kernel", *columns, "MB", "Mop", "predicted us", "measured us", "ratio", "bound", "GB/s", "plain GB/s"),
            [
                (
                    row["kernel"], row["threads"], row["images"], f"{row['bytes'] / 1e6:.2f}",
                    _millions(row["operations"]), *_micro(row, "predicted_seconds", "seconds"), f"{row['ratio']:.2f}",
                    row["bound"], f"{row['gbps']:.1f}", f"{row['plain_gbps']:.1f}",
                )
                for row in report["kernels"]
            ],
        ),
        "",
        "everything of ours between two evaluations of the network",
        *table(
            ("task", *columns, "MB", "predicted us", "measured us", "ratio"),
            [
                (
                    row["task"], row["threads"], row["images"], f"{row['bytes'] / 1e6:.2f}",
                    *_micro(row, "predicted_seconds", "seconds"), f"{row['ratio']:.2f}",
                )
                for row in report["tasks"]
            ],
        ),
        "",
        *(
            f"{_threads(threads)}: {within['near']} of {within['memory_bound_rows']} memory-bound rows are within "
            f"{within['bound']:.0%} of the prediction"
            for threads, within in report["within"].items()
        ),
    ]  # fmt: skip
    return "\n".join(lines)


def _threads(count: str) -> str:
    return f"{count} thread{'' if count == '1' else 's'}"


def _micro(row: dict[str, Any], *names: str) -> list[str]:
    return ["" if row[name] is None else f"{row[name] * 1e6:.1f}" for name in names]


def _millions(operations: dict[str, float]) -> str:
    return f"{sum(operations.values()) / 1e6:.2f}"


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> list[str]:
    """Lines with the first column to the left and the others to the right."""
    cells = [list(map(str, row)) for row in (head, *rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(head))]
    lines = []
    for first, *others in cells:
        right = (text.rjust(width) for text, width in zip(others, widths[1:], strict=True))
        lines.append("  ".join([first.ljust(widths[0]), *right]))
    return lines
