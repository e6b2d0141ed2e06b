"""Whether a Ray cluster can be joined at an address, found out in seconds: Ray itself waits for minutes."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys

from ..cli.usage import UsageError

__all__ = ["check_address"]

LONGEST_CONNECT = 5.0  # seconds; a machine that is there answers within a fraction of one
#: Seconds that Ray may look for a node of the cluster on this machine; usually 60, in which it finds no more.
LONGEST_SEARCH = 5
LONGEST_JOIN = 30.0  # seconds; usual are 1.5, of which most is Python's import of Ray
IMPORTED = "imported"
#: What joins and leaves again, and writes the innermost cause if it cannot.
JOIN = f"""\
import logging, sys, ray
print("{IMPORTED}", flush=True)
try:
    ray.init(sys.argv[1], log_to_driver=False, logging_level=logging.ERROR)
except Exception as error:
    while error.__cause__ is not None:
        error = error.__cause__
    print(error)
    sys.exit(1)
"""
#: What that says, and what to do.
REMEDIES = {
    "No node info found": "this machine is no node of that cluster; start the command on one, or first "
    "`ray start --address` here",
    "InvalidAuthToken": "that cluster wants a token: set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN_PATH where the token "
    "is not in ~/.ray/auth_token",
}


def check_address(address: str) -> None:
    """Refuse an address where no Ray cluster is that this process can join.

    In a process of its own, because Ray's native code waits where nothing answers, and may then end its process.

    Args:
        address: HOST:PORT of the cluster's head, or "auto", the cluster of this machine.

    Raises:
        UsageError: it has another form, nothing listens there, what listens is not Ray, it runs other versions of Ray
            or Python, this machine is no node of it, or it wants a token.
    """
    if address != "auto":
        host, port = _parsed(address)
        try:
            socket.create_connection((host, port), LONGEST_CONNECT).close()
        except OSError as cause:
            raise UsageError(f"Ray cannot be reached at `--address` {address}: {cause.strerror or cause}") from cause
    environment = {**os.environ, "RAY_gcs_server_request_timeout_seconds": str(LONGEST_SEARCH)}
    command = [sys.executable, "-c", JOIN, address]
    try:
        tried = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=LONGEST_JOIN)
    except subprocess.TimeoutExpired as ended:
        imported = IMPORTED.encode() in (ended.stdout or b"")
        what = "what listens there did not answer as Ray's head" if imported else "Ray could not be imported"
        why = f"{what} within {LONGEST_JOIN:g} s"
    else:
        if tried.returncode == 0:
            return
        why = (
            _shortened(tried.stdout.removeprefix(f"{IMPORTED}\n"))
            or f"joining it ended with exit code {tried.returncode}"
        )
    why = next((remedy for text, remedy in REMEDIES.items() if text in why), why)
    raise UsageError(f"Ray cannot be reached at `--address` {address}: {why}")


def _parsed(address: str) -> tuple[str, int]:
    """Host and port of an address."""
    found = re.fullmatch(r"\[?([^/\[\]]+?)\]?:(\d{1,5})", address)
    if found is None or not 1024 <= int(found[2]) <= 65535:  # Ray's own limits
        raise UsageError(
            f"`--address` must be HOST:PORT of the cluster's head, as `ray start` prints it, or auto, got {address!r}"
        )
    return found[1], int(found[2])


def _shortened(text: str) -> str:
    """An error's text in one line: of one that holds a traceback the last line alone."""
    lines = [" ".join(line.split()) for line in text.strip().splitlines()]
    return lines[-1] if any("Traceback (" in line for line in lines[:-1]) else " ".join(lines)
