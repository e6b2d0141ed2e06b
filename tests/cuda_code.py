"""Compiles the CUDA kernels for cards that need not be here and reads their machine code; as a program, prints it.

``python tests/cuda_code.py`` prints registers, occupancy and accesses of every kernel on every card.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
from collections import Counter
from pathlib import Path

__all__ = ["CARDS", "FLAGS", "Kernel", "kernels", "missing"]

ROOT = Path(__file__).parents[1]
CARDS = ("sm_80", "sm_90", "sm_100")
#: As in cmake/cuda.cmake.
FLAGS = ["-fmad=false", "--expt-relaxed-constexpr", "-diag-suppress 1675"]
_CODE = [
    "arch=compute_80,code=sm_80",
    "arch=compute_90,code=sm_90",
    # With PTX, which says what the compiler was promised of the launch.
    "arch=compute_100,code=[sm_100,compute_100]",
]
REGISTERS = 65_536  # of a multiprocessor, given out to warps eight per thread at a time
MULTIPROCESSOR = {"sm_80": 2048, "sm_90": 2048, "sm_100": 2048}  # threads


@dataclasses.dataclass(frozen=True)
class Kernel:
    """What the machine code of a kernel says, and the blocks that the launcher wants resident."""

    card: str
    name: str
    arguments: tuple[str, ...]  # of its template, such as "Point0", "Precision2", "4"
    registers: int
    stack: int
    local: int
    threads: int
    resident: int
    accesses: Counter[str]  # "LDG.128", "STG", ...: how many instructions

    def __str__(self) -> str:
        named = f"{self.name}<{', '.join(self.arguments)}>" if self.arguments else self.name
        busy = 100 * self.resident * self.threads // MULTIPROCESSOR[self.card]
        held = " ".join(f"{name}:{count}" for name, count in sorted(self.accesses.items()))
        return f"{self.card:<7} {named:<40} {self.registers:>4} {self.threads:>4} x {self.resident} {busy:>4} %  {held}"


def _tools() -> Path | None:
    """The folder of cuobjdump and nvdisasm."""
    found = shutil.which("cuobjdump")
    if found and shutil.which("nvdisasm"):
        return Path(found).parent
    specification = importlib.util.find_spec("triton")
    if specification is None or specification.origin is None:
        return None
    folder = Path(specification.origin).parent / "backends" / "nvidia" / "bin"
    return folder if (folder / "cuobjdump").exists() and (folder / "nvdisasm").exists() else None


def missing() -> str | None:
    """What this machine lacks to compile the kernels or to read their code, or None."""
    if shutil.which("nvcc") is None:
        return "there is no nvcc here"
    if _tools() is None:
        return "there are no cuobjdump and nvdisasm here, neither with CUDA nor with triton"
    return None


def _run(*command: str | Path) -> str:
    folder = _tools()
    path = os.pathsep.join([str(folder), os.environ["PATH"]])
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, "PATH": path})
    if done.returncode:
        raise RuntimeError(f"{' '.join(map(str, command))}\n{done.stdout}{done.stderr}")
    return done.stdout


def _compiled(source: Path) -> Path:
    """The fat binary of a source file; kept under build/ by what went into it."""
    command = ["nvcc", "-std=c++17", "-O3", *" ".join(FLAGS).split(), "-DRMP_PATH=cuda", f"-I{ROOT}"]
    command += [part for code in _CODE for part in ("-gencode", code)]
    used = [source, *sorted((ROOT / "kernels").glob("*.h")), *sorted((ROOT / "kernels/cuda").glob("*.h"))]
    digest = hashlib.sha256("\0".join([*command, *(path.read_text() for path in used)]).encode()).hexdigest()[:16]
    folder = ROOT / "build" / "cuda_code"
    made = folder / f"{source.stem}-{digest}.fatbin"
    if not made.exists():
        folder.mkdir(parents=True, exist_ok=True)
        for old in folder.glob(f"{source.stem}-*"):
            old.unlink()
        fresh = made.with_suffix(".new")
        _run(*command, "-fatbin", source, "-o", fresh)
        fresh.rename(made)
    return made


def _read(binary: Path) -> list[Kernel]:
    promises = {
        name: (int(threads), int(resident))
        for name, threads, resident in re.findall(
            r"\.entry (\w+)\([^)]*\)\s*\.maxntid (\d+)[^.]*\.minnctapersm (\d+)", _run("cuobjdump", "-ptx", binary)
        )
    }
    found = []
    for card in CARDS:
        usage = _run("cuobjdump", "-arch", card, "-res-usage", binary)
        held = {
            name: tuple(map(int, numbers))
            for name, *numbers in re.findall(r"Function (\w+):\s*REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", usage)
        }
        for body in _run("cuobjdump", "-arch", card, "-sass", binary).split("Function : ")[1:]:
            symbol = body.split(maxsplit=1)[0]
            named = re.search(r"\d([a-z_]+_kernel)(?:I(.*?)EEv)?", symbol)
            assert named is not None, symbol
            arguments = re.findall(r"L(?:NS\w*?_\d([A-Z][a-z]+)E|[ib])(\d+)E?", (named[2] or "") + "E")
            accesses = Counter(
                f"{name}{'.' + width if width else ''}"
                for name, width in re.findall(
                    r"\b(LDG|STG|LDL|STL|LD|ST)\b(?:\.(?!(?:128|64|U8|S8|U16)\b)\w+)*(?:\.(\w+))?", body
                )
            )
            found.append(
                Kernel(
                    card, named[1], tuple("".join(part) for part in arguments),
                    *held[symbol], *promises[symbol], accesses,
                )
            )  # fmt: skip
    return found


def kernels() -> list[Kernel]:
    """All kernels on all cards."""
    sources = sorted((ROOT / "kernels/cuda").glob("*.cu"))
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        # The longest first.
        binaries = list(pool.map(_compiled, sorted(sources, key=lambda path: -path.stat().st_size)))
        return [kernel for read in pool.map(_read, binaries) for kernel in read]


if __name__ == "__main__":
    print(f"{'card':<7} {'kernel':<40} regs  threads x blocks  occupancy  accesses")
    print(*sorted(map(str, kernels())), sep="\n")
