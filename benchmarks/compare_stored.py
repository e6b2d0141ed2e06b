"""Benchmarks of the kernels beside accepted ones: ``python benchmarks/compare_stored.py accepted.json new.json``.

``new.json`` comes from ``pytest benchmarks/bench_kernels.py --benchmark-json=new.json``. What is compared is how many
plain copies of the same memory fit into a kernel's time, both timed in turns within one run and taken at the tenth
percentile, where nothing else disturbs them: a slow or a busy machine slows both, a slow kernel only itself. Other
instructions have other ratios, so results are kept by code path (AVX-512, AVX2 ...).

``--accept new.json`` puts the new results in place of the accepted ones of their code path.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import sys
from typing import Any

#: A ratio may grow to so many times the accepted one: caches differ between processors of one code path.
ALLOWED = 1.6

Ratios = dict[str, dict[str, float]]


def read_run(path: pathlib.Path) -> tuple[Ratios, dict[str, Any]]:
    """By code path and benchmark the time over that of a copy, and where it was measured.

    Raises:
        ValueError: the file is not what pytest-benchmark writes for these suites.
    """
    try:
        document = json.loads(path.read_text())
        found: Ratios = {}
        for entry in document["benchmarks"]:
            info = entry["extra_info"]
            if "copy" in info and "rmp_fast" in info:
                found.setdefault(info["cpu_path"], {})[entry["name"]] = info["rmp_fast"]["low"] / info["copy"]["low"]
        machine = document["machine_info"]
        where = {
            "processor": machine["cpu"].get("brand_raw", machine["processor"]), "python": machine["python_version"],
            "when": document["datetime"], "commit": document["commit_info"].get("id"),
        }  # fmt: skip
    except (OSError, ValueError, KeyError, TypeError, ZeroDivisionError) as cause:
        raise ValueError(f"{path} cannot be read as results of benchmarks/bench_kernels.py: {cause!r}") from cause
    if not found:
        raise ValueError(f"{path} holds no benchmark that was timed beside a copy")
    return found, where


def read_accepted(path: pathlib.Path) -> dict[str, Any]:
    """The accepted results: for every code path ``ratios`` and ``where`` they come from."""
    try:
        document: dict[str, Any] = json.loads(path.read_text())
        for entry in document.values():
            entry["ratios"].items()
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as cause:
        raise ValueError(f"{path} cannot be read as accepted results: {cause!r}") from cause
    return document


def compare(accepted: dict[str, float], new: dict[str, float], allowed: float) -> tuple[list[str], bool]:
    """Lines that say what changed, and whether nothing is too slow or gone."""
    lines, fine = [f"{'copies in its time':44}{'accepted':>10}{'now':>10}{'change':>9}"], True
    for name in sorted({*accepted, *new}):
        before, now = accepted.get(name), new.get(name)
        if now is None:
            lines.append(f"{name:44}{before:10.2f}{'gone':>10}{'':9}  renamed or removed? accept anew")
            fine = False
        elif before is None:
            lines.append(f"{name:44}{'':10}{now:10.2f}{'':9}  new")
        else:
            slow = not now <= allowed * before  # nor NaN
            fine = fine and not slow
            lines.append(f"{name:44}{before:10.2f}{now:10.2f}{now / before:8.2f}x" + ("  SLOWER" if slow else ""))
    return lines, fine


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("accepted", type=pathlib.Path, help="benchmarks/accepted.json")
    parser.add_argument("new", type=pathlib.Path, help="what pytest-benchmark wrote")
    parser.add_argument("--allowed", type=float, default=ALLOWED, help=f"largest growth of a ratio ({ALLOWED})")
    parser.add_argument("--accept", action="store_true", help="keep the new results as the accepted ones")
    options = parser.parse_args(arguments)
    try:
        runs, where = read_run(options.new)
        accepted = read_accepted(options.accepted) if options.accepted.exists() or not options.accept else {}
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    if options.accept:
        command = f"pytest benchmarks/bench_kernels.py --benchmark-json={options.new.name}"
        accepted |= {path: {"where": {"command": command, **where}, "ratios": found} for path, found in runs.items()}
        options.accepted.write_text(json.dumps(accepted, indent=1, sort_keys=True) + "\n")
        return 0
    code = 0
    for path, found in runs.items():
        if path not in accepted:
            known = ", ".join(sorted(accepted)) or "none"
            print(f"{path}: nothing to compare with; results were accepted for {known}")
            continue
        lines, fine = compare(accepted[path]["ratios"], found, options.allowed)
        print("\n".join([f"{path}: {where['processor']} beside {accepted[path]['where']['processor']}", *lines]))
        code = code if fine else 1
    return code


if __name__ == "__main__":
    sys.exit(main())
