"""What the service counts, in the format of Prometheus."""

from __future__ import annotations

import os
import pathlib
import re
from collections.abc import Iterator
from typing import Any

__all__ = ["Metrics"]

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
_DIRECTORY = "PROMETHEUS_MULTIPROC_DIR"


class Metrics:
    """Counters, gauges and histograms of one replica.

    Where ``PROMETHEUS_MULTIPROC_DIR`` is set before the process starts, replicas keep their numbers in files there and
    each of them reports the sum over all; counters outlive the replica that counted.

    Args:
        batch: most items of one batch, for the buckets.
    """

    def __init__(self, batch: int) -> None:
        from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

        self._directory = os.environ.get(_DIRECTORY)
        self._registry = CollectorRegistry()
        own: dict[str, Any] = {"registry": self._registry}
        gauge = own | {"multiprocess_mode": "livesum"}
        self.requests = Counter("rmp_requests_total", "Requests answered", ["operator", "code"], **own)
        self.request_seconds = Histogram(
            "rmp_request_seconds", "From the arrival of a request to its answer", ["operator"], buckets=_SECONDS, **own
        )
        self.queue_seconds = Histogram("rmp_queue_seconds", "Waiting for a batch", buckets=_SECONDS, **own)
        self.chain_seconds = Histogram("rmp_chain_seconds", "A batch's chain", ["operator"], buckets=_SECONDS, **own)
        sizes = sorted({1, 2, 4, 8, 16, 32, batch})
        self.batch_items = Histogram("rmp_batch_items", "Items of a batch", buckets=sizes, **own)
        self.evaluations = Counter("rmp_network_evaluations_total", "Network evaluations, items times looks", **own)
        self.diverged = Counter("rmp_diverged_total", "Chains that left the finite range", ["operator"], **own)
        self.stopped = Counter("rmp_stopped_total", "Requests whose chain was stopped, nobody waiting", **own)
        self.plan_hits = Counter("rmp_plan_hits_total", "Batches that found their plan", **own)
        self.plan_misses = Counter("rmp_plan_misses_total", "Batches that had to make a plan", **own)
        self.queued = Gauge("rmp_queue_requests", "Requests waiting", **gauge)
        self.running = Gauge("rmp_running_requests", "Requests whose batch is running", **gauge)
        self.plans = Gauge("rmp_plans", "Plans kept", **gauge)
        self.plan_bytes = Gauge("rmp_plan_bytes", "Bytes of the buffers and operators of plans", **gauge)
        self.ready = Gauge("rmp_ready_replicas", "Replicas that take requests", **gauge)

    def render(self) -> tuple[bytes, str]:
        """What ``/metrics`` answers, and its content type."""
        from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
        from prometheus_client.multiprocess import MultiProcessCollector

        registry = self._registry
        if self._directory is not None:
            self._forget_dead(pathlib.Path(self._directory))
            registry = CollectorRegistry()
            everything = MultiProcessCollector(None, self._directory)
            registry.register(_Own(everything))
        return generate_latest(registry), CONTENT_TYPE_LATEST

    @staticmethod
    def _forget_dead(directory: pathlib.Path) -> None:
        """Drop the gauges of replicas that were killed; those that leave in order take theirs along."""
        from prometheus_client.multiprocess import mark_process_dead

        for file in directory.glob("gauge_live*_*.db"):
            found = re.search(r"_(\d+)\.db$", file.name)
            if found and not pathlib.Path("/proc", found.group(1)).exists() and pathlib.Path("/proc/self").exists():
                mark_process_dead(int(found.group(1)), str(directory))


class _Own:
    """The families of this module: Ray's own processes find the directory in their environment and write there too."""

    def __init__(self, everything: Any) -> None:
        self._everything = everything

    def collect(self) -> Iterator[Any]:
        return (family for family in self._everything.collect() if family.name.startswith("rmp_"))
