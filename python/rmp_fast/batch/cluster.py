"""Ray: one of this machine's own for a run, or a cluster that is there; and the pool of workers that Ray Data feeds."""

from __future__ import annotations

import collections
import contextlib
import logging
import os
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from .._optional import require
from .._ray import own_folder
from ..cli.usage import UsageError
from .address import check_address

__all__ = [
    "Attempts", "Pool", "check_folders", "check_installed", "check_threads", "check_versions", "connect", "devices",
    "feed", "run_once", "watch_head",
]  # fmt: skip

T = TypeVar("T")

OBJECT_STORE = 96 * 2**20  # only names and records pass through it
LARGEST_GROUP = 4  # processor threads of a worker; more gain less than another worker does
BLOCKS = 4096  # of the data set, each one task; a batch each until there are more batches
LONGEST_ANSWER = 60.0  # seconds of a node for a question; usual is one, in which a process starts
PULSE = 2.0  # seconds between two looks whether the head still listens,
LOST = 3  # and how many in a row must fail
LONGEST_DELAY = 10.0  # seconds until a file that one machine of a network file system has written is seen by others


class Pool:
    """How many workers there are, and what each takes.

    Args:
        device: "cpu" or "cuda".
        cpus, gpus: of the machine or the cluster.
        workers, threads: as the user wants them.
    """

    def __init__(self, device: str, cpus: int, gpus: int, workers: int | None, threads: int | None) -> None:
        self.gpus = 1 if device == "cuda" else 0
        share = max(1, cpus // max(1, gpus)) if self.gpus else cpus
        self.threads = threads or min(LARGEST_GROUP, max(1, share // (workers or 1) if not self.gpus else share))
        self.workers = workers or (gpus if self.gpus else max(1, cpus // self.threads))


def check_installed() -> None:
    """Refuse to begin without the packages of the extra [ray]."""
    try:
        require(("ray", "pyarrow"), "ray", "`rmp-fast batch`")
    except ImportError as error:
        raise UsageError(str(error)) from error


def check_threads(pool: Pool) -> None:
    """Refuse workers that no machine of the cluster has room for: Ray would wait for one."""
    import ray

    largest = max(int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"])
    if pool.threads > largest:
        raise UsageError(f"`--threads` must be at most {largest}, the processors of Ray's machines, got {pool.threads}")


def check_versions(ours: str) -> None:
    """Refuse a cluster with a machine that has another rmp_fast, or none. Of Ray and Python, Ray itself sees to it.

    Args:
        ours: the version of this process.
    """

    def found() -> str | None:
        import importlib.metadata

        try:
            return importlib.metadata.version("rmp_fast")
        except importlib.metadata.PackageNotFoundError:
            return None

    for node, theirs in _ask_nodes(found):
        if theirs != ours:
            has = f"rmp_fast {theirs}" if theirs else "no rmp_fast"
            raise UsageError(
                f"`--address`: {node} of the cluster has {has}, this process {ours}; install the same on all machines"
            )


def check_folders(probe: str, text: str, source: str) -> None:
    """Refuse folders that are not the same on all machines of the cluster.

    Args:
        probe: URL of a file in the folder of results.
        text: what it holds.
        source: URL of the input, or a file in it.
    """
    longest = LONGEST_DELAY  # the function goes to machines as it stands here, without this module

    def sees(probe: str, text: str, source: str) -> tuple[bool, bool]:
        import time

        import fsspec

        end = time.monotonic() + longest
        while True:
            try:
                fs, path = fsspec.core.url_to_fs(probe)
                fs.invalidate_cache()
                held = fs.cat_file(path) == text.encode()
            except OSError:
                held = False
            if held or time.monotonic() > end:
                break
            time.sleep(0.2)
        fs, path = fsspec.core.url_to_fs(source)
        return held, bool(fs.exists(path))

    folder = probe.rpartition("/")[0]
    for node, seen in _ask_nodes(sees, probe, text, source):
        for flag, url, there in zip(("--output", "--input"), (folder, source), seen, strict=True):
            if not there:
                raise UsageError(
                    f"`{flag}` must be the same folder on all machines of the cluster, but {node} does not see {url}; "
                    "use a file system that all share, or a URL of a store"
                )


def _ask_nodes(function: Callable[..., T], *arguments: object) -> Iterator[tuple[str, T]]:
    """Call a function that is defined in another one, and so sent along, on every machine that may get workers.

    Yields:
        what to call the machine, and its answer; nothing of one that went away or does not answer in time.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    called = ray.remote(num_cpus=0, max_retries=0)(function)
    asked = [
        (
            f"node {node['NodeManagerAddress']}",
            called.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)).remote(
                *arguments
            ),
        )
        for node in ray.nodes()
        if node["Alive"] and node["Resources"].get("CPU", 0)
    ]
    end = time.monotonic() + LONGEST_ANSWER
    for name, answer in asked:
        try:
            told: T = ray.get(answer, timeout=max(0.0, end - time.monotonic()))
        except ray.exceptions.RayTaskError as error:
            raise RuntimeError(f"{name} of the cluster: {error}") from error
        except ray.exceptions.RayError:
            continue
        yield name, told


def devices(wanted: str, gpus: int) -> str:
    """ "cpu" or "cuda" for ``auto``, ``cpu`` or ``cuda`` where there are so many GPUs."""
    if wanted == "cuda" and not gpus:
        raise UsageError("`--device` cuda needs a GPU that Ray knows of, and there is none; use auto or cpu")
    return wanted if wanted != "auto" else ("cuda" if gpus else "cpu")


class Attempts:
    """How often each batch may be begun: Ray Data repeats without end what its worker does not survive.

    Args:
        limit: of beginnings, in all processes.
    """

    def __init__(self, limit: int) -> None:
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        self._limit = limit
        # Beside the run's own process: on another machine it would be lost with that, and every later batch with it.
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        self._counter = ray.remote(num_cpus=0, scheduling_strategy=here)(Counter).remote()

    def allowed(self, key: str) -> bool:
        """Count a beginning, and say whether it may go on."""
        import ray

        count: int = ray.get(self._counter.add.remote(key))
        return count <= self._limit


class Counter:
    """Counts by key."""

    def __init__(self) -> None:
        self._counts: collections.Counter[str] = collections.Counter()

    def add(self, key: str) -> int:
        """One more; returns how many there are now."""
        self._counts[key] += 1
        return self._counts[key]


@contextlib.contextmanager
def connect(address: str | None, cpus: int) -> Iterator[tuple[int, int]]:
    """Ray for a run, and the number of its processors and GPUs.

    Without an address a Ray of this process's own, that no other finds and that dies with the process however that
    ends: Linux tells the daemons, the workers follow within seconds, and two idle agents after Ray's request timeout of
    a minute. Its folder is removed at the end, or by the next run if this one is killed.

    With one the cluster is left as it was, but for three idle actors without a claim on a processor that Ray Data keeps
    in every cluster it was used in.

    Args:
        address: of a cluster that this machine is a node of, HOST:PORT or "auto".
        cpus: of a Ray of this machine.

    Raises:
        UsageError: Ray does not start, or no cluster can be joined at that address.
    """
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # what matters comes back as an exception
    # The workers are this interpreter; a tool that Ray was started through has no say in that.
    os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    if address is not None:
        check_address(address)
    import ray
    import ray.data

    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    with contextlib.ExitStack() as stack:
        # Of tasks that it repeats and nodes that are lost Ray tells on stdout, where the summary belongs, and has no
        # public switch for that. Until the end of ray.shutdown, which tells what is left.
        usual, ray._private.worker._worker_logs_enabled = ray._private.worker._worker_logs_enabled, False
        stack.callback(setattr, ray._private.worker, "_worker_logs_enabled", usual)
        try:
            if address is None:
                quiet |= {
                    "num_cpus": cpus, "object_store_memory": OBJECT_STORE, "include_dashboard": False,
                    "_temp_dir": str(stack.enter_context(own_folder())),
                }  # fmt: skip
            with _muffled():
                ray.init(address=address or "local", **quiet)
        except (OSError, ValueError, RuntimeError) as cause:
            where = f"at `--address` {address}" if address is not None else "on this machine"
            raise UsageError(f"Ray cannot be reached {where}: {cause}") from cause
        stack.callback(ray.shutdown)
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        context.print_on_execution_start = False
        # What a lost block held is found by what has no row, and tried again image by image.
        context.max_errored_blocks = -1
        found = ray.cluster_resources()
        yield int(found.get("CPU", 1)), int(found.get("GPU", 0))


@contextlib.contextmanager
def watch_head(tell: Callable[[str], None]) -> Iterator[None]:
    """Tell it once if the cluster's head is gone: a minute later Ray ends this process without a word."""
    import ray

    address = ray.get_runtime_context().gcs_address
    host, _, port = address.rpartition(":")
    ended = threading.Event()

    def watch() -> None:
        failed = 0
        while failed < LOST:
            if ended.wait(PULSE):
                return
            try:
                socket.create_connection((host.strip("[]"), int(port)), timeout=PULSE).close()
                failed = 0
            except OSError:
                failed += 1
        tell(
            f"the head of the cluster, {address}, does not answer. If it stays away Ray ends this run within minutes; "
            "what is restored by then stays, and the same command goes on from there"
        )

    watcher = threading.Thread(target=watch, name="rmp-fast head of the cluster", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        ended.set()
        watcher.join()


def run_once(function: Callable[..., Any], gpus: int, *arguments: Any) -> Any:
    """The result of a call in a worker process of the cluster, where the software and devices are those that count.

    Raises:
        UsageError: the function did.
        RuntimeError: Ray could not carry it out, or it failed otherwise.
    """
    import ray

    try:
        return ray.get(ray.remote(num_cpus=1, num_gpus=gpus, max_retries=2)(function).remote(*arguments))
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, UsageError):
            raise error.cause from None
        raise RuntimeError(f"a worker failed: {error}") from error
    except ray.exceptions.RayError as error:
        raise RuntimeError(f"no worker can begin: {error}") from error


def feed(
    worker: type[Callable[..., Any]], job: object, works: Sequence[str], pool: Pool, retries: int
) -> Iterator[str]:
    """Feed batches to a pool of workers.

    Args:
        worker: class whose instances map a table {"work": [...]} to {"result": [...]}.
        job: its argument, beside an :class:`Attempts`.
        works: the batches.
        pool: of workers.
        retries: how often a batch is tried again whose worker died.

    Yields:
        results as they come.

    Raises:
        RuntimeError: no worker could start, or Ray itself failed.
    """
    import ray.data

    items = [{"work": work} for work in works]
    data = ray.data.from_items(items, override_num_blocks=min(len(items), BLOCKS)).map_batches(
        worker,
        fn_constructor_args=(job, Attempts(retries + 1)),
        batch_size=1,
        batch_format="numpy",
        compute=ray.data.ActorPoolStrategy(size=min(pool.workers, len(items)), max_tasks_in_flight_per_actor=2),
        num_cpus=pool.threads,
        num_gpus=pool.gpus or None,
    )
    try:
        for table in data.iter_batches(batch_size=None, batch_format="numpy", prefetch_batches=0):
            yield from map(str, table["result"])
    except ray.exceptions.RayError as error:
        raise RuntimeError(f"the workers cannot go on: {error}") from error


@contextlib.contextmanager
def _muffled() -> Iterator[None]:
    """Keep from stderr what Ray's native code says when it starts, unless it fails."""
    sys.stderr.flush()
    usual = os.dup(2)
    with tempfile.TemporaryFile() as said:
        os.dup2(said.fileno(), 2)
        try:
            yield
        except BaseException:
            said.seek(0)
            os.write(usual, said.read())
            raise
        finally:
            os.dup2(usual, 2)
            os.close(usual)
