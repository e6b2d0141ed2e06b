"""The service on one machine: a Ray of its own, one proxy, replicas, and an orderly end."""

from __future__ import annotations

import contextlib
import logging
import os
import pathlib
import signal
import threading
import time
from collections.abc import Callable

from .._ray import LONGEST_FOLDER, own_folder
from .config import Config
from .deployment import deployment, require_ray

__all__ = ["LONGEST_PATH", "run"]

NAME = "rmp-fast"
LONGEST_PATH = LONGEST_FOLDER - len("/ray")
_OBJECT_STORE = 80 * 2**20  # the least that Ray takes; requests and answers do not go through it
_FLUSH_SECONDS = 1.0  # in which the proxy hands the last answers to their clients


def run(
    config: Config,
    host: str,
    port: int,
    replicas: int = 1,
    drain_seconds: float = 120.0,
    folder: pathlib.Path | None = None,
    say: Callable[[str], None] = print,
) -> bool:
    """Serve until SIGTERM or SIGINT, then refuse new requests and finish those accepted; a second signal stops at once.

    Args:
        config, replicas, drain_seconds: see :func:`rmp_fast.serving.deployment`.
        host, port: where to listen.
        folder: for what Ray writes and for counters, its path at most :data:`LONGEST_PATH` characters; by default a
            temporary one that is removed at the end.
        say: told what happens, one line each.

    Returns:
        whether all that was accepted was finished.

    Raises:
        ImportError: without ray, with what to install.
        RuntimeError: if Ray or a replica does not start.
    """
    require_ray()
    with own_folder() if folder is None else contextlib.nullcontext(folder) as place:
        return _with_ray(config, host, port, replicas, drain_seconds, place, say)


def _with_ray(
    config: Config, host: str, port: int, replicas: int, drain_seconds: float, folder: pathlib.Path,
    say: Callable[[str], None],
) -> bool:  # fmt: skip
    counters = folder / "metrics"
    counters.mkdir(parents=True, exist_ok=True)
    # Read by processes that Ray starts, and by ray itself when it is imported.
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "PROMETHEUS_MULTIPROC_DIR": str(counters)}
    import ray

    try:
        ray.init(
            address="local", num_cpus=replicas * config.threads, include_dashboard=False, log_to_driver=True,
            logging_level=logging.WARNING, object_store_memory=_OBJECT_STORE, _temp_dir=str(folder / "ray"),
            _node_ip_address="127.0.0.1",
        )  # fmt: skip
        return _serve(config, host, port, replicas, drain_seconds, say)
    finally:
        ray.shutdown()


def _serve(
    config: Config, host: str, port: int, replicas: int, drain_seconds: float, say: Callable[[str], None]
) -> bool:  # fmt: skip
    import ray
    from ray import serve

    told = threading.Event()

    def stop(number: int, frame: object) -> None:
        if told.is_set():
            raise KeyboardInterrupt
        told.set()

    # After ray.init, which puts its own handler in place.
    previous = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    started = time.monotonic()
    try:
        # A little longer than the service's own deadline, which has the better answer.
        options = {"host": host, "port": port, "request_timeout_s": config.longest_deadline + config.body_seconds}
        quiet = {"log_level": "WARNING", "enable_access_log": False}
        serve.start(http_options=options, proxy_location="HeadOnly", logging_config=quiet)
        handle = serve.run(deployment(config, replicas, drain_seconds), name=NAME, route_prefix="/")
        say(f"ready after {time.monotonic() - started:.1f} s, listening on http://{host}:{port}")
        while not told.wait(0.5):
            pass
        say("stopping: new requests are refused, those accepted are finished")
        try:
            done = all(handle.broadcast("drain", drain_seconds).results(timeout_s=drain_seconds + 30))
        except (TimeoutError, ray.exceptions.RayError):  # a replica that hangs, or died with what it had accepted
            done = False
        time.sleep(_FLUSH_SECONDS)
        serve.shutdown()
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    say("stopped" if done else f"stopped; not everything was finished within {drain_seconds:g} s")
    return done
