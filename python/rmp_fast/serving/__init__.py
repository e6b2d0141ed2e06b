"""RMP as a service over HTTP: batches of requests that share a plan, limits, deadlines, metrics; on Ray Serve.

:class:`Service` is all of it without a transport, :func:`create_app` puts it behind ASGI, :func:`deployment` makes an
application for ``ray.serve.run`` of it, and ``rmp-fast serve`` runs that on one machine. Ray and Starlette are imported
when they are used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from .config import Config, Warm, parse_warm

if TYPE_CHECKING:
    from .app import create_app
    from .deployment import deployment
    from .refusals import RequestError
    from .service import Service

__all__ = ["Config", "RequestError", "Service", "Warm", "create_app", "deployment", "parse_warm"]

_MODULES = {"RequestError": "refusals", "Service": "service", "create_app": "app", "deployment": "deployment"}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_MODULES[name]}", __name__), name)
    globals()[name] = value  # over the module of the same name
    return value
