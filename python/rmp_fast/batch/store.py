"""Folders on any file system that fsspec knows: what is there, and files that appear whole or not at all."""

from __future__ import annotations

import contextlib
import pathlib
import posixpath
import uuid
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, BinaryIO

import fsspec
from fsspec.implementations.local import LocalFileSystem

from ..cli.usage import UsageError
from ..images import EXTENSIONS, write_atomically

__all__ = ["Store", "is_image", "join", "output_name", "sidecar_name"]

#: Stores where one put makes a file visible, complete or not at all; elsewhere a file gets its name by a rename.
WHOLE_PUTS = {"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "adl", "oci", "oss", "obs", "memory"}
#: What changes with a file's content, by the names that the file systems give it.
VERSIONS = ("ETag", "etag", "md5Hash", "mtime", "LastModified", "last_modified", "updated", "modified", "created")
PARALLEL = 16  # requests at a time: a store's answer takes tens of milliseconds, whatever is asked


class Store:
    """A folder.

    Args:
        url: a path, or a URL of any protocol that fsspec has here.
        flag: what messages call it.

    Raises:
        UsageError: for an unknown protocol, or one whose package is not installed.
    """

    def __init__(self, url: str, flag: str) -> None:
        try:
            self.fs, root = fsspec.core.url_to_fs(url)
        except (ValueError, ImportError) as cause:
            raise UsageError(f"`{flag}` {url} cannot be opened: {cause}") from cause
        self.url, self.root, self.flag = url, root.rstrip("/") or root, flag
        self.local = isinstance(self.fs, LocalFileSystem)

    @property
    def absolute(self) -> str:
        """Its URL, the same wherever a process runs."""
        url: str = self.fs.unstrip_protocol(self.root)
        return url

    def holds(self, url: str) -> bool:
        """Whether a file or folder is this one, or lies in it."""
        fs, path = fsspec.core.url_to_fs(url)
        return type(fs) is type(self.fs) and posixpath.join(path, "").startswith(posixpath.join(self.root, ""))

    def path(self, name: str) -> str:
        """The file system's own path of a file in the folder."""
        return f"{self.root}/{name}"

    def files(self) -> dict[str, str]:
        """All files of the folder and of those in it, and their versions; nothing if there is no such folder.

        Files and folders with a leading dot are left out.
        """
        self.fs.invalidate_cache()
        try:
            found = self.fs.find(self.root, detail=True)
        except FileNotFoundError:
            return {}
        except OSError as cause:
            raise UsageError(f"`{self.flag}` {self.url} cannot be read: {cause.strerror or cause}") from cause
        named = {path[len(self.root) :].lstrip("/"): version(info) for path, info in found.items()}
        return {name: told for name, told in named.items() if not any(p.startswith(".") for p in name.split("/"))}

    def read(self, name: str) -> bytes:
        """The bytes of a file."""
        data: bytes = self.fs.cat_file(self.path(name))
        return data

    def read_all(self, names: Iterable[str]) -> dict[str, bytes]:
        """The bytes of many files; those that have vanished are left out."""

        def one(name: str) -> tuple[str, bytes | None]:
            try:
                return name, self.read(name)
            except FileNotFoundError:
                return name, None

        with ThreadPoolExecutor(PARALLEL) as pool:
            return {name: data for name, data in pool.map(one, names) if data is not None}

    def write(self, name: str, data: bytes) -> None:
        """Make or replace a file in one step: no reader, and no run that is cut off, leaves or meets half of it."""
        path = self.path(name)
        if self.local:
            target = pathlib.Path(path)
            target.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(target, data)
        elif WHOLE_PUTS.intersection(_protocols(self.fs)):
            self.fs.pipe_file(path, data)
        else:
            folder, _, last = path.rpartition("/")
            self.fs.makedirs(folder, exist_ok=True)
            temporary = f"{folder}/.{last}.{uuid.uuid4().hex}.part"
            try:
                self.fs.pipe_file(temporary, data)
                self.fs.mv(temporary, path)
            except BaseException:
                if self.fs.exists(temporary):
                    self.fs.rm_file(temporary)
                raise

    def remove(self, name: str) -> None:
        """Remove a file, if it is there."""
        with contextlib.suppress(FileNotFoundError, IsADirectoryError, NotADirectoryError):
            self.fs.rm_file(self.path(name))

    def sweep(self) -> None:
        """Remove the temporary files that killed writers left behind."""
        for path in self.fs.find(self.root) if self.fs.exists(self.root) else ():
            last = path.rpartition("/")[2]
            if last.startswith(".") and last.endswith(".part"):
                self.remove(path[len(self.root) :].lstrip("/"))


def open_file(url: str) -> BinaryIO:
    """A file of any file system, open for reading; over a network only what is read is fetched."""
    fs, path = fsspec.core.url_to_fs(url)
    file: BinaryIO = fs.open(path, "rb") if isinstance(fs, LocalFileSystem) else fs.open(path, "rb", block_size=2**16)
    return file


def read_file(url: str) -> bytes:
    """The bytes of a file of any file system."""
    fs, path = fsspec.core.url_to_fs(url)
    data: bytes = fs.cat_file(path)
    return data


def versions(urls: Iterable[str]) -> dict[str, str | None]:
    """Version of each file, None where there is none: one listing for every folder that they lie in."""
    wanted = {url: fsspec.core.url_to_fs(url) for url in dict.fromkeys(urls)}
    folders = {(fs, path.rpartition("/")[0]) for fs, path in wanted.values()}

    def listed(place: tuple[Any, str]) -> dict[tuple[Any, str], str]:
        fs, folder = place
        try:
            return {(fs, info["name"]): version(info) for info in fs.ls(folder, detail=True)}
        except OSError:
            return {}

    found: dict[tuple[Any, str], str] = {}
    with ThreadPoolExecutor(PARALLEL) as pool:
        for part in pool.map(listed, folders):
            found |= part
    return {url: found.get(place) for url, place in wanted.items()}


def version(info: dict[str, Any]) -> str:
    """Size and what else tells one content of a file from the next, of a file system's entry for it."""
    told = next((info[key] for key in VERSIONS if info.get(key) is not None), "")
    return f"{info.get('size')}/{told}"


def join(folder: str, path: str) -> str:
    """``path`` itself if it is a URL or absolute, else the path seen from ``folder``."""
    return path if "://" in path or path.startswith("/") else f"{folder.rstrip('/')}/{path}"


def is_image(name: str) -> bool:
    """Whether a file's name is that of an image."""
    return name.lower().endswith(EXTENSIONS)


def output_name(name: str, suffix: str) -> str:
    """Where the restoration of image ``name`` goes; no two images share a place.

    A name that has the suffix already is kept, another gets it appended: x.png and x.jpg become x.png and x.jpg.png.
    So that no kept name is one with the suffix appended, a name is kept only if no image's name is left without it.
    """
    stem = name[: -len(suffix)]
    return name if name.endswith(suffix) and not is_image(stem) else name + suffix


def sidecar_name(name: str) -> str:
    """Where the record of image ``name`` goes."""
    return f"{name}.json"


def check_apart(source: Store, target: Store) -> None:
    """Refuse folders of which one contains the other: a second run would restore results."""
    if target.holds(source.absolute) or source.holds(target.absolute):
        raise UsageError(
            f"`--output` must lie outside of the input folder and not around it, got {target.url} for {source.url}"
        )


def _protocols(fs: Any) -> tuple[str, ...]:
    return (fs.protocol,) if isinstance(fs.protocol, str) else tuple(fs.protocol)
