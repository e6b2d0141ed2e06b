"""``rmp-fast serve``: the service on this machine."""

from __future__ import annotations

import argparse
import os
import socket
import sys

from ..priors import BUNDLED
from .prior import open_prior
from .tasks import choice
from .usage import UsageError

__all__ = ["run"]


def run(options: argparse.Namespace) -> int:
    """Serve until stopped and return the exit code: 0, or 1 where not all that was accepted could be finished.

    Raises:
        UsageError: before anything is started.
    """
    from ..serving.deployment import require_ray

    try:
        require_ray()
    except ImportError as error:
        raise UsageError(str(error)) from error
    for name in ("replicas", "threads"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise UsageError(f"`--{name}` must be at least 1, got {value}")
    if not 0 < options.drain < float("inf"):
        raise UsageError(f"`--drain` must be a number > 0, got {options.drain}")
    if options.direct and (options.replicas > 1 or options.temp_dir is not None or options.proxy):
        raise UsageError("`--direct` is one process without Ray; it excludes `--replicas`, `--proxy` and `--temp-dir`")
    from ..serving import Config, direct, local, parse_warm

    longest = local.LONGEST_PATH  # for Ray's sockets
    if options.temp_dir is not None and len(str(options.temp_dir.resolve())) > longest:
        raise UsageError(f"`--temp-dir` must be a path of at most {longest} characters, got {options.temp_dir}")
    _check_device(options.device, options.replicas)
    _check_free(options.host, options.port)
    threads = options.threads or max(1, len(os.sched_getaffinity(0)) // options.replicas)
    names = ("batch", "queue", "max_bytes", "max_pixels", "deadline", "longest_deadline", "backend", "device")
    weights, presets = _by_name("--prior", options.prior), _by_name("--presets", options.presets)
    try:
        priors = tuple(text.partition("=")[0] for text in options.prior)
        config = Config(
            priors=priors,
            weights=weights,
            presets=presets,
            evaluations=tuple(options.evaluations),
            warm=tuple(parse_warm(text, priors) for text in options.warm),
            threads=threads,
            **{name: getattr(options, name) for name in names},
        )
    except ValueError as error:
        raise UsageError(str(error)) from error

    for path in weights.values():  # what cannot be opened is refused here, before processes start
        open_prior(path)

    def say(text: str) -> None:
        print(text, flush=True)

    folder = None if options.temp_dir is None else options.temp_dir.resolve()
    try:
        if options.direct:
            done = direct.run(config, options.host, options.port, options.drain, say)
        else:
            layout = local.Layout(options.host, options.port, options.replicas, options.proxy, options.drain)
            done = local.run(config, layout, folder, say)
    except ValueError as error:
        raise UsageError(str(error)) from error
    except (RuntimeError, OSError) as error:  # of Ray, with what a replica said
        print(f"rmp-fast serve: error: {error}", file=sys.stderr)
        return 1
    return 0 if done else 1


def _by_name(flag: str, texts: list[str]) -> dict[str, str]:
    """The paths of NAME=PATH; a prior without = is a name alone."""
    found: dict[str, str] = {}
    for text in texts:
        name, separator, path = text.partition("=")
        if flag == "--prior" and not separator and (text in BUNDLED or not os.path.exists(text)):
            continue
        if not (name and path):
            raise UsageError(f"`{flag}` must name what it gives, as in faces={path or text}, got {text!r}")
        if name in found:
            raise UsageError(f"`{flag}` gives {name!r} twice: {found[name]} and {path}")
        found[name] = os.path.abspath(path)
    return found


def _check_device(device: str, replicas: int) -> None:
    """Refuse replicas that wait for a GPU which is not there."""
    if choice("--device", device, ("cpu", "cuda")) == "cuda":
        import torch

        count = torch.cuda.device_count()
        if count < replicas:
            raise UsageError(
                f"`--device` cuda needs a GPU for each of `--replicas` {replicas}, and there are {count}; use cpu, or "
                "fewer replicas"
            )


def _check_free(host: str, port: int) -> None:
    if not 0 < port < 2**16:
        raise UsageError(f"`--port` must be from 1 to 65535, got {port}")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as cause:
        raise UsageError(f"`--host` {host} `--port` {port} cannot be listened on: {cause.strerror or cause}") from cause
