"""Start a Ray cluster of several nodes on the loopback address; it ends with this process, however that ends.

On stdin a line ``add KEY=VALUE ...`` starts another node with such an environment, and the end of the input ends all;
on stdout a line of JSON for every node that has started: the cluster's address and the process id of the node's raylet.
"""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from typing import Any

from batch_kills import AGENTS, alive, command, offspring

#: Of the cluster and of all that join it, set before Ray is imported.
ENVIRONMENT = {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # what Ray does where clusters are off: it listens on the loopback only
    "RAY_AUTH_MODE": "token",
    "RAY_AUTH_TOKEN": secrets.token_hex(32),
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
}
#: A killed node refuses connections, and is given up after two of these seconds; a slow one has the usual time.
HEALTH = {"health_check_period_ms": 500, "health_check_failure_threshold": 4}
LONGEST_START = 60.0
LONGEST_GOODBYE = 30.0


class Cluster:
    """A head and further nodes of one processor each, in a process of their own."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="rmp-ray-", dir="/tmp")  # short, for Ray's sockets
        self.environment = os.environ | ENVIRONMENT
        self._process = subprocess.Popen(
            [sys.executable, __file__, self._folder.name], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, text=True, env=self.environment,
        )  # fmt: skip
        self.address, head = self._started()
        self.raylets = [head]
        self._headless = False

    def add(self, **environment: str) -> int:
        """Start a node, and return the process id of its raylet."""
        self._process.stdin.write(" ".join(["add", *(f"{key}={value}" for key, value in environment.items())]) + "\n")
        self._process.stdin.flush()
        self.raylets.append(self._started()[1])
        return self.raylets[-1]

    def kill(self, raylet: int) -> None:
        """Kill a node with all its workers, as a machine goes that loses its power."""
        for process in {raylet, *offspring(raylet)}:
            try:
                os.kill(process, signal.SIGKILL)
            except ProcessLookupError:
                continue
        self.raylets.remove(raylet)

    def kill_head(self) -> None:
        """Kill what keeps the nodes together, but no node."""
        (head,) = [one for one in offspring(self._process.pid) if "gcs_server" in command(one)]
        os.kill(head, signal.SIGKILL)
        self._headless = True

    def workers(self) -> list[str]:
        """What the nodes' processes that belong to a run are called."""
        told = [command(process) for raylet in self.raylets for process in offspring(raylet)]
        return [text for text in told if text.startswith(("ray::MapWorker", "ray::Counter"))]

    def close(self) -> None:
        """End all nodes and see that nothing is left of them."""
        processes = offspring(self._process.pid)
        agents = {one for one in processes if command(one).startswith(AGENTS)}
        self._process.communicate(timeout=LONGEST_GOODBYE)
        for agent in agents if self._headless else ():
            with contextlib.suppress(ProcessLookupError):
                os.kill(agent, signal.SIGKILL)  # it would wait a minute for the head
        end = time.monotonic() + LONGEST_GOODBYE
        while left := alive(processes):
            assert time.monotonic() < end, f"outlive their cluster: {[command(process) for process in left]}"
            time.sleep(0.05)
        self._folder.cleanup()

    def _started(self) -> tuple[str, int]:
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"no node started: {self._process.communicate()[1][-4000:]}")
        told = json.loads(line)
        return told["address"], told["raylet"]


def main(folder: str) -> None:
    import ray
    from ray.cluster_utils import Cluster as Nodes

    ray._private.utils.write_ray_address = lambda *_: None  # nobody else is to find this cluster as "auto"

    def tell(node: Any) -> None:
        (raylet,) = node.all_processes["raylet"]
        print(json.dumps({"address": node.gcs_address, "raylet": raylet.process.pid}), flush=True)

    common = {"num_cpus": 1, "include_dashboard": False, "object_store_memory": 96 * 2**20, "temp_dir": folder}
    nodes = Nodes()
    tell(nodes.add_node(**common, _system_config=HEALTH))
    for line in sys.stdin:
        own = dict(pair.partition("=")[::2] for pair in line.split()[1:])
        usual = dict(os.environ)
        os.environ.update(own)
        tell(nodes.add_node(**common))
        for key in own:
            os.environ.pop(key)
        os.environ.update(usual)
    nodes.shutdown()


if __name__ == "__main__":
    sys.path.remove(str(pathlib.Path(__file__).parent))  # what lies beside this file is no business of the nodes
    main(sys.argv[1])
