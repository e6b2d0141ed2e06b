"""The service as a deployment of Ray Serve."""

from __future__ import annotations

import asyncio
from typing import Any

from .._optional import require
from .config import Config
from .listener import MARGIN, Listener

__all__ = ["deployment", "replica_type", "require_ray"]


def require_ray() -> None:
    """ImportError where the packages of the service are absent, with what installs them."""
    require(("ray", "starlette", "python_multipart"), "ray", "the service")


def deployment(
    config: Config, replicas: int = 1, drain_seconds: float = 120.0, listen: tuple[str, int] | None = None
) -> Any:
    """An application for ``ray.serve.run``.

    Args:
        config: of every replica; each has ``config.threads`` processors and its own queue.
        replicas: processes that share the requests.
        drain_seconds: within which a replica that is stopped must have finished what it accepted.
        listen: host and port on which every replica listens itself, the kernel dealing out connections; Ray's proxy is
            then not needed, nor its milliseconds. None: requests come from Ray's proxy, which deals out each of them.

    Raises:
        ImportError: without ray, with what to install.
    """
    require_ray()
    from ray import serve

    options = serve.deployment(
        name="rmp-fast",
        num_replicas=replicas,
        max_ongoing_requests=config.queue + config.batch + MARGIN,
        max_queued_requests=config.queue,
        graceful_shutdown_timeout_s=drain_seconds,
        graceful_shutdown_wait_loop_s=0.1,
        health_check_period_s=5.0,
        health_check_timeout_s=30.0,
        ray_actor_options={"num_cpus": config.threads, "num_gpus": int(config.device.startswith("cuda"))},
        logging_config={"log_level": "WARNING", "enable_access_log": False},
    )

    def build() -> Any:  # Ray takes nothing but a function
        return _application(config)

    replica = replica_type(config, drain_seconds, listen)
    return options(replica if listen else serve.ingress(build)(replica)).bind()


def replica_type(config: Config, drain_seconds: float, listen: tuple[str, int] | None) -> type:
    """The class of a replica; arguments as of :func:`deployment`."""

    class Replica:
        """The application of one replica, and what Ray asks of it."""

        app: Any
        draining = False  # what ends is not to be replaced: the replacement would take requests again

        def check_health(self) -> None:
            if not self.draining:
                self.app.state.service.check()

        async def drain(self, seconds: float) -> bool:
            """Finish what was accepted and refuse the rest; False if that takes longer."""
            self.draining = True
            done = await asyncio.to_thread(self.app.state.service.drain, seconds)
            while self.app.state.in_flight:
                await asyncio.sleep(0.01)
            return bool(done)

    class Listening(Replica):
        """A replica with a port."""

        listener: Listener | None = None  # until it has started

        def __init__(self) -> None:
            assert listen is not None
            self.app = _application(config)
            self.listener = Listener(self.app, config, listen, drain_seconds)

        def check_health(self) -> None:
            super().check_health()
            if self.listener is not None and not self.draining:
                self.listener.check()

        async def drain(self, seconds: float) -> bool:
            done = await super().drain(seconds)
            await asyncio.to_thread(self._stop)
            return done

        def _stop(self) -> None:
            if self.listener is not None:
                self.listener.stop()

        def __del__(self) -> None:  # Ray calls it when it stops a replica by itself
            self._stop()

    return Listening if listen else Replica


def _application(config: Config) -> Any:
    from .app import create_app
    from .service import Service

    return create_app(Service(config))
