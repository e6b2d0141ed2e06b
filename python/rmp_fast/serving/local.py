"""The service on one machine: a Ray of its own, replicas that listen, and an orderly end."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import pathlib
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from .._ray import LONGEST_FOLDER, own_folder
from .config import Config
from .deployment import deployment, require_ray
from .listener import shared_socket

__all__ = ["LONGEST_PATH", "Layout", "run"]

NAME = "rmp-fast"
LONGEST_PATH = LONGEST_FOLDER - len("/ray")
_OBJECT_STORE = 80 * 2**20  # the least that Ray takes; requests and answers do not go through it
_FLUSH_SECONDS = 1.0  # in which the proxy hands the last answers to their clients


@dataclasses.dataclass(frozen=True)
class Layout:
    """Where a service listens, and with how many processes.

    Attributes:
        host, port: where to listen.
        replicas: processes that share the requests.
        proxy: whether Ray's proxy takes the requests and deals out each of them, which costs milliseconds; else the
            replicas listen themselves and the kernel deals out connections.
        drain_seconds: within which what was accepted must be finished at the end.
    """

    host: str
    port: int
    replicas: int = 1
    proxy: bool = False
    drain_seconds: float = 120.0


def run(
    config: Config, layout: Layout, folder: pathlib.Path | None = None, say: Callable[[str], None] = print
) -> bool:  # fmt: skip
    """Serve until SIGTERM or SIGINT, then refuse new requests and finish those accepted; a second signal stops at once.

    Args:
        config: of every replica.
        layout: see :class:`Layout`.
        folder: for what Ray writes and for counters, its path at most :data:`LONGEST_PATH` characters; by default a
            temporary one that is removed at the end.
        say: told what happens, one line each.

    Returns:
        whether all that was accepted was finished.

    Raises:
        ImportError: without ray, with what to install.
        OSError: the port is taken.
        RuntimeError: if Ray or a replica does not start.
    """
    require_ray()
    with contextlib.ExitStack() as held:
        if not layout.proxy:  # from now on, and while a replica is replaced, nobody else takes the port
            held.enter_context(shared_socket(layout.host, layout.port))
        place = held.enter_context(own_folder()) if folder is None else folder
        counters = place / "metrics"
        counters.mkdir(parents=True, exist_ok=True)
        # Read by processes that Ray starts, and by ray itself when it is imported.
        os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "PROMETHEUS_MULTIPROC_DIR": str(counters)}
        import ray

        try:
            ray.init(
                address="local", num_cpus=layout.replicas * config.threads, include_dashboard=False, log_to_driver=True,
                logging_level=logging.WARNING, object_store_memory=_OBJECT_STORE, _temp_dir=str(place / "ray"),
                _node_ip_address="127.0.0.1",
            )  # fmt: skip
            return _serve(config, layout, say)
        finally:
            ray.shutdown()


@contextlib.contextmanager
def _started(config: Config, layout: Layout) -> Iterator[Any]:
    """The handle of replicas that take requests; at the end they are gone."""
    from ray import serve

    quiet = {"log_level": "WARNING", "enable_access_log": False}
    if layout.proxy:
        # A little longer than the service's own deadline, which has the better answer.
        patience = config.longest_deadline + config.body_seconds
        options = {"host": layout.host, "port": layout.port, "request_timeout_s": patience}
        serve.start(http_options=options, proxy_location="HeadOnly", logging_config=quiet)
        yield serve.run(deployment(config, layout.replicas, layout.drain_seconds), name=NAME, route_prefix="/")
        time.sleep(_FLUSH_SECONDS)
        serve.shutdown()
        return
    serve.start(proxy_location="Disabled", logging_config=quiet)
    listening = deployment(config, layout.replicas, layout.drain_seconds, (layout.host, layout.port))
    yield serve.run(listening, name=NAME, route_prefix=None)
    serve.shutdown()


def _serve(config: Config, layout: Layout, say: Callable[[str], None]) -> bool:
    import ray

    told = threading.Event()

    def stop(number: int, frame: object) -> None:
        if told.is_set():
            raise KeyboardInterrupt
        told.set()

    # After ray.init, which puts its own handler in place.
    previous = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    started, seconds = time.monotonic(), layout.drain_seconds
    try:
        with _started(config, layout) as handle:
            took = time.monotonic() - started
            say(f"ready after {took:.1f} s, listening on http://{layout.host}:{layout.port}")
            while not told.wait(0.5):
                pass
            say("stopping: new requests are refused, those accepted are finished")
            try:
                done = all(handle.broadcast("drain", seconds).results(timeout_s=seconds + 30))
            except (TimeoutError, ray.exceptions.RayError):  # a replica that hangs, or died with what it had accepted
                done = False
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    say("stopped" if done else f"stopped; not everything was finished within {seconds:g} s")
    return done
