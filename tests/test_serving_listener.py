"""A replica that listens on a shared port: who may share it, and that its end comes."""

from __future__ import annotations

import asyncio
import importlib
import socket
import time
from typing import Any

import pytest

from rmp_fast.serving import Config
from rmp_fast.serving import listener as listeners

pytest.importorskip("uvicorn", reason="the extra [ray] brings it")

HOST = "127.0.0.1"


@pytest.fixture
def held() -> Any:
    """A socket that keeps a port of its own, and does not listen."""
    with listeners.shared_socket(HOST, 0) as found:
        yield found


def plain(body: bytes = b"ok") -> Any:
    """An ASGI application that answers everything with ``body``."""

    async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            while (message := await receive())["type"] != "lifespan.shutdown":
                await send({"type": f"{message['type']}.complete"})
            await send({"type": "lifespan.shutdown.complete"})
            return
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": body})

    return app


def test_a_port_that_nobody_listens_on_is_kept_from_strangers_and_open_to_replicas(held: socket.socket) -> None:
    port = held.getsockname()[1]
    with socket.socket() as stranger:
        stranger.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        with pytest.raises(OSError, match="in use"):
            stranger.bind((HOST, port))
    for _ in range(2):  # one after the other, as a replica that is replaced
        replica = listeners.Listener(plain(), Config(), (HOST, port), 1.0)
        with socket.create_connection((HOST, port), 5) as client:
            client.sendall(b"GET / HTTP/1.0\r\n\r\n")
            assert client.recv(64).startswith(b"HTTP/1.1 200")
        replica.stop()
        with pytest.raises(RuntimeError, match="the HTTP server has ended"):
            replica.check()


def test_a_client_that_does_not_read_cannot_hold_up_the_end(held: socket.socket) -> None:
    port = held.getsockname()[1]
    replica = listeners.Listener(plain(bytes(2**26)), Config(), (HOST, port), 1.0)
    with socket.create_connection((HOST, port), 5) as client:
        client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert client.recv(16)  # the answer has begun
        began = time.monotonic()
        replica.stop()
        assert time.monotonic() - began < 30  # not before the client left, else
    with pytest.raises(RuntimeError, match="the HTTP server has ended"):
        replica.check()


def test_what_has_drained_is_healthy_and_ends_without_having_started(
    held: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray replaces what is not healthy, and the replacement would take requests again."""
    module = importlib.import_module("rmp_fast.serving.deployment")  # where the package has a function of that name
    kind = module.replica_type(Config(("fashion",)), 1.0, (HOST, held.getsockname()[1]))
    replica = kind()
    replica.check_health()
    assert asyncio.run(replica.drain(1.0))
    with pytest.raises(RuntimeError):
        replica.listener.check()
    replica.check_health()

    def fail(*arguments: Any) -> None:
        raise OSError("taken")

    monkeypatch.setattr(module, "Listener", fail)
    unmade = kind.__new__(kind)
    with pytest.raises(OSError, match="taken"):
        unmade.__init__()
    unmade.__del__()  # as Ray does; it has nothing to stop
    assert unmade.listener is None
