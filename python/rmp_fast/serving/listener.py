"""A replica that takes its requests from the network itself, on a port that it shares with the other replicas."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from typing import Any

from .config import Config

__all__ = ["MARGIN", "Listener", "server_config", "shared_socket"]

# Requests of a replica beyond its queue and batch: questions of health, and those that it refuses in its own words,
# where a server would only say that it is busy.
MARGIN = 128
_START_SECONDS = 30.0
_MARGIN_SECONDS = 5.0  # in which a server ends that has no connections any more


def server_config(app: Any, config: Config, **options: Any) -> Any:
    """The settings of uvicorn for the application of a service."""
    import uvicorn

    limit = config.queue + config.batch + MARGIN
    return uvicorn.Config(app, log_config=None, access_log=False, lifespan="on", limit_concurrency=limit, **options)


def shared_socket(host: str, port: int) -> socket.socket:
    """A socket bound to an address that other processes of this user may bind too (SO_REUSEPORT).

    The kernel deals out connections among those that listen; one that does not listen keeps the port from others.

    Raises:
        OSError: an address that cannot be bound, or a system that cannot share ports.
    """
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    with contextlib.ExitStack() as undo:
        found = undo.enter_context(socket.socket(family, kind, protocol))
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        found.bind(address)
        # It was for connections of the last server that linger; left on, others could bind while nobody listens.
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
        undo.pop_all()
    return found


class Listener:
    """An application that answers on a shared port, from a thread of its own, until :meth:`stop`.

    Args:
        app: as :func:`rmp_fast.serving.create_app` makes it.
        config: of its service.
        address: host and port to listen on.
        drain_seconds: within which clients must have taken their answers at the end.

    Raises:
        OSError: see :func:`shared_socket`.
        RuntimeError: the server did not start.
    """

    def __init__(self, app: Any, config: Config, address: tuple[str, int], drain_seconds: float) -> None:
        import uvicorn

        self._longest_stop = drain_seconds + _MARGIN_SECONDS
        grace = round(drain_seconds) or 1
        self._server = uvicorn.Server(server_config(app, config, timeout_graceful_shutdown=grace))
        place = shared_socket(*address)
        self._thread = threading.Thread(target=self._server.run, args=([place],), name="rmp-fast-http", daemon=True)
        self._thread.start()
        latest = time.monotonic() + _START_SECONDS
        while not self._server.started:
            if not self._thread.is_alive() or time.monotonic() > latest:
                self._server.should_exit = True
                raise RuntimeError(f"the server for http://{address[0]}:{address[1]} did not start")
            time.sleep(0.005)

    def check(self) -> None:
        """RuntimeError where no request will ever be answered again."""
        if not self._thread.is_alive():
            raise RuntimeError("the HTTP server has ended")

    def stop(self) -> None:
        """Take no new connections, finish the requests that are under way and end; again does nothing.

        A client that does not read its answer is left behind after ``drain_seconds``.
        """
        self._server.should_exit = True
        self._thread.join(self._longest_stop)
