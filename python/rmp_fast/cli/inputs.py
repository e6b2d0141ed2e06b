"""What the command line checks of its inputs and outputs without importing torch."""

from __future__ import annotations

import json
import os
import pathlib
import tempfile
from collections.abc import Iterable, Sequence

from ..images import EXTENSIONS, ImageError
from .usage import UsageError

__all__ = ["ARRAYS", "PICTURES", "check_name", "check_outputs", "collect_inputs", "make_output_folder",
           "output_names", "refuse_input_folder", "refuse_results", "refuse_strangers"]  # fmt: skip


# What files are called, and the ends of their names.
PICTURES = ("PNG, JPEG, TIFF or WebP", EXTENSIONS)
ARRAYS = ("NumPy (.npy)", (".npy",))


def collect_inputs(
    inputs: Sequence[pathlib.Path], flag: str = "INPUT", kinds: tuple[str, tuple[str, ...]] = PICTURES
) -> list[pathlib.Path]:
    """The files of some kinds among ``inputs`` and directly in its folders, each once, folders in alphabetical order.

    Args:
        inputs: the arguments.
        flag: what messages call them.
        kinds: :data:`PICTURES` or :data:`ARRAYS`.

    Raises:
        UsageError: a path that does not exist, is of another kind by its name, or a folder without such files.
    """
    names, extensions = kinds
    files: dict[pathlib.Path, pathlib.Path] = {}
    for path in inputs:
        if path.is_dir():
            visible = (p for p in path.iterdir() if not p.name.startswith("."))
            found = sorted(p for p in visible if p.suffix.lower() in extensions and p.is_file())
            if not found:
                raise UsageError(f"`{flag}` {path} is a folder without {names} files")
        elif not path.exists():
            raise UsageError(f"`{flag}` {path} does not exist")
        elif path.suffix.lower() not in extensions:
            raise UsageError(f"`{flag}` must be {names} files or folders with such files, got {path}")
        else:
            found = [path]
        for file in found:
            files.setdefault(file.resolve(), file)
    return list(files.values())


def check_outputs(
    files: Iterable[pathlib.Path], inputs: Sequence[pathlib.Path], out: pathlib.Path, suffix: str
) -> None:
    """Refuse to let one output overwrite another, or an input.

    Args:
        files: the image files to restore.
        inputs: the arguments they came from.
        out: the output folder.
        suffix: extension of the restorations.
    """
    refuse_input_folder(inputs, out)
    target = out.resolve()
    owners: dict[pathlib.Path, pathlib.Path] = {}
    sources = {file.resolve() for file in files}
    for file in files:
        for name in output_names(file, suffix):
            if target / name in sources:
                raise UsageError(
                    f"`--out` {out}: {name} would overwrite the input {target / name}; choose another folder"
                )
            first = owners.setdefault(target / name, file)
            if first is not file:
                raise UsageError(
                    f"`INPUT` {first} and {file} would both be written to {out / name}; use one --out for each"
                )


def refuse_input_folder(inputs: Sequence[pathlib.Path], out: pathlib.Path) -> None:
    """Refuse an output folder that is an input."""
    for path in inputs:
        if path.is_dir() and path.resolve() == out.resolve():
            raise UsageError(
                f"`--out` must not be an input folder, got {out} for both; a second run would take results for images"
            )


def refuse_strangers(files: Iterable[pathlib.Path], out: pathlib.Path, suffix: str, force: bool) -> None:
    """Refuse to replace what no earlier run wrote, which has a sidecar before it has a picture, unless ``force``."""
    for file in files:
        names = output_names(file, suffix)
        there = [name for name in names if (out / name).exists()]
        if there and not force and not _is_sidecar(out / names[-1]):
            raise UsageError(
                f"`--out` {out} holds {', '.join(there)}, which is no result of an earlier run; choose another folder, "
                "or add --force to replace it"
            )


def _is_sidecar(path: pathlib.Path) -> bool:
    try:
        found = json.loads(path.read_text())
        return isinstance(found, dict) and "settings_hash" in found
    except (OSError, ValueError, RecursionError):
        return False


def check_name(file: pathlib.Path) -> None:
    """ImageError for a name that is no text: records and messages could not say it."""
    try:
        str(file).encode()
    except UnicodeEncodeError:
        raise ImageError(f"{os.fsencode(file)!r}: its name is not UTF-8; rename it") from None


def output_names(file: pathlib.Path, suffix: str) -> tuple[str, str, str]:
    """Names of the restoration, the panel and the sidecar of an input file."""
    return file.stem + suffix, f"{file.stem}_panel.png", f"{file.stem}.json"


def refuse_results(out: pathlib.Path, names: Iterable[str], force: bool) -> None:
    """Refuse a folder that has any of these files already, unless ``force``."""
    there = [name for name in names if (out / name).exists()]
    if there and not force:
        raise UsageError(f"`--out` {out} has results already ({', '.join(there)}); add --force to replace them")


def make_output_folder(out: pathlib.Path) -> None:
    """Make ``out`` and see that a file can be written there."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=out, prefix=".rmp-fast.")
        os.close(handle)
        pathlib.Path(name).unlink()
    except OSError as cause:
        raise UsageError(f"`--out` {out} cannot be written: {cause.strerror or cause}") from cause
