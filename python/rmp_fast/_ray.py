"""The folder of a Ray that one process has for itself, and how long its path may be."""

from __future__ import annotations

import contextlib
import os
import pathlib
import shutil
import tempfile
from collections.abc import Iterator

__all__ = ["LONGEST_FOLDER", "own_folder"]

PREFIX = "rmp-fast-ray-"
#: Characters of a folder that Ray can have: those of a Unix socket's path, less what Ray appends.
LONGEST_FOLDER = 107 - len("/session_2026-01-01_00-00-00_000000_1234567/sockets/plasma_store")
INSIDE = "/ray"  # a caller may give Ray a folder in this one


@contextlib.contextmanager
def own_folder() -> Iterator[pathlib.Path]:
    """A folder for this process's Ray; removed at the end, or by the next process if this one is killed."""
    _remove_abandoned()
    folder = pathlib.Path(tempfile.mkdtemp(prefix=f"{PREFIX}{os.getpid()}-", dir=_short_folder()))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _short_folder() -> str:
    """The folder for temporary files, unless its path is too long for Ray's sockets."""
    usual = tempfile.gettempdir()
    name = len(f"/{PREFIX}1234567-12345678{INSIDE}")
    return usual if len(usual) + name <= LONGEST_FOLDER else "/tmp"


def _remove_abandoned() -> None:
    """Remove the folders of processes of this user that were killed."""
    for folder in {tempfile.gettempdir(), _short_folder()}:
        for path in pathlib.Path(folder).glob(f"{PREFIX}*"):
            owner = path.name[len(PREFIX) :].partition("-")[0]
            with contextlib.suppress(FileNotFoundError):  # another process that starts now removes it too
                if owner.isdigit() and not _is_alive(int(owner)) and path.stat().st_uid == os.getuid():
                    shutil.rmtree(path, ignore_errors=True)


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
