"""The service in one process without Ray: the least delay, no other processes and ports, no replacement if it dies."""

from __future__ import annotations

import logging
import signal
import socket
import time
from collections.abc import Callable
from typing import Any

from .config import Config
from .deployment import require_ray
from .listener import server_config

__all__ = ["run"]


def run(config: Config, host: str, port: int, drain_seconds: float, say: Callable[[str], None]) -> bool:
    """Serve until SIGTERM or SIGINT, then take no new connections and finish what was accepted.

    Args and Returns: as :func:`rmp_fast.serving.local.run`.

    Raises:
        ImportError: without what the extra [ray] brings, which has the server too.
        ValueError: a plan to keep warm that cannot be made.
    """
    require_ray()
    import uvicorn

    from .app import create_app
    from .service import Service

    logging.basicConfig(level=logging.WARNING)
    started = time.monotonic()
    service = Service(config)
    stopped_at: list[float] = []

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            say(f"ready after {time.monotonic() - started:.1f} s, listening on http://{host}:{port}")

        def handle_exit(self, sig: int, frame: Any) -> None:
            if not stopped_at:
                say("stopping: new requests are refused, those accepted are finished")
            stopped_at.append(time.monotonic())
            super().handle_exit(sig, frame)

    grace = round(drain_seconds) or 1
    server = Server(server_config(create_app(service), config, host=host, port=port, timeout_graceful_shutdown=grace))
    # The server raises the signal once more when it has finished; this process is then to end with its own exit code.
    previous = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        server.run()
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    done = bool(stopped_at) and time.monotonic() - stopped_at[0] < drain_seconds and len(stopped_at) == 1
    say("stopped" if done else f"stopped; not everything was finished within {drain_seconds:g} s")
    return done
