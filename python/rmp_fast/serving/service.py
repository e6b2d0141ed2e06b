"""The service without its transport: from fields and files to the bytes of an answer."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from .. import __version__, backends, images, priors
from ..cli import degrade, record
from ..cli.tasks import TASKS
from . import decode
from .batching import Batcher, Ticket
from .config import OPERATORS, OPTIONS, Config, Warm
from .metrics import Metrics
from .parsing import FORMATS, Job, in_fields, parse, settings_of
from .plans import Outcome, Plans, StoppedError
from .refusals import RequestError, diverged

__all__ = ["Answer", "Service"]

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Answer:
    """An image file and what is said of it in headers."""

    body: bytes
    media_type: str
    headers: dict[str, str]


class Service:
    """Priors, plans, queue and metrics of one replica; its methods may be called from any thread.

    Args:
        config: see :class:`Config`. Its ``threads`` become those of torch in the whole process.

    Raises:
        ImportError, OSError, TypeError, ValueError: weights that cannot be opened.
        ValueError: a backend that does not work here, or a plan to keep warm that cannot be made.
    """

    def __init__(self, config: Config) -> None:
        self.config = config
        torch.set_num_threads(config.threads)
        device = torch.device(config.device)
        backends.resolve(config.backend, device, torch.float32)
        self.priors = {name: priors.open(config.weights.get(name, name)).to(device) for name in config.priors}
        self.metrics = Metrics(config.batch)
        self._plans = Plans(config, self.priors)
        for warm in config.warm:
            self._warm(warm)
        self._batcher = Batcher(self._run, config)
        self._report()

    @property
    def ready(self) -> bool:
        """Whether requests are taken."""
        return not self._batcher.draining and self._batcher.problem() is None

    def check(self) -> None:
        """RuntimeError where the service will never answer again and should be replaced."""
        problem = self._batcher.problem()
        if problem is not None:
            raise RuntimeError(problem)

    def parse(self, fields: Mapping[str, str], files: Mapping[str, bytes]) -> Job:
        """See :func:`rmp_fast.serving.parsing.parse`."""
        return parse(fields, files, self.config, self.priors)

    def submit(self, job: Job, arrived: float | None = None) -> Ticket:
        """See :meth:`Batcher.submit`; the ticket's outcome becomes an :class:`Outcome`."""
        ticket = self._batcher.submit(job, arrived)
        self.metrics.queued.set(self._batcher.waiting)
        return ticket

    def answer(self, ticket: Ticket, outcome: Outcome) -> Answer:
        """The image file of a finished ticket.

        Raises:
            RequestError: 422, the chain diverged.
        """
        job = ticket.job
        if not outcome.ok:
            raise diverged()
        if job.file_format == "npy":
            body = decode.array_bytes(outcome.mean)
        else:
            depth = job.depth if job.file_format in images.DEEP_FORMATS else 8
            body = images.encode(outcome.mean, depth, job.file_format, job.icc_profile)
        headers = {
            "X-RMP-Ok": "true",
            "X-RMP-Seed": str(job.seed),
            "X-RMP-Batch": str(outcome.batch),
            "X-RMP-Item": str(outcome.item),
            "X-RMP-Evaluations": str(outcome.evaluations),
            "X-RMP-Settings": outcome.settings_hash,
            "X-RMP-Shape": "x".join(map(str, job.shape)),
            "Server-Timing": f"queue;dur={1e3 * ticket.queue_seconds:.2f}, chain;dur={1e3 * outcome.chain_seconds:.2f}",
        }
        if job.notes:
            headers["X-RMP-Notes"] = "; ".join(job.notes)
        return Answer(body, FORMATS[job.file_format], headers)

    def info(self) -> dict[str, Any]:
        """What requests may ask for, and the limits; for a client that wants to know before it sends."""
        config = self.config
        limits = ("max_bytes", "max_pixels", "max_kernel", "max_kernels", "max_coils", "max_coil_side", "max_starts",
                  "batch", "queue", "deadline", "longest_deadline")  # fmt: skip
        return {
            "rmp_fast": __version__,
            "operators": list(OPERATORS),
            "options": list(OPTIONS),
            "priors": list(config.priors),
            "evaluations": list(config.evaluations),
            "formats": list(FORMATS),
            "limits": {name: getattr(config, name) for name in limits},
            "warm": [dataclasses.asdict(warm) for warm in config.warm],
            "backend": backends.resolve(config.backend, torch.device(config.device), torch.float32),
            "environment": record.environment(),
        }

    def drain(self, seconds: float | None = None) -> bool:
        """Refuse new requests and wait until those accepted are done; False if that takes longer."""
        self.metrics.ready.set(0)
        return self._batcher.drain(seconds)

    def close(self, seconds: float | None = None) -> bool:
        """Drain and end the worker; see :meth:`Batcher.close`."""
        self.metrics.ready.set(0)
        return self._batcher.close(seconds)

    def _run(self, tickets: Sequence[Ticket]) -> None:
        """Carry out a batch; where it fails, each of its items alone, so that one cannot spoil the others."""

        self.metrics.running.set(len(tickets))
        self.metrics.queued.set(self._batcher.waiting)

        def wanted() -> bool:
            return not all(ticket.abandoned for ticket in tickets)

        try:
            outcomes: list[Outcome | Exception] = list(self._plans.restore([ticket.job for ticket in tickets], wanted))
        except StoppedError as stopped:
            outcomes = [stopped] * len(tickets)
        except Exception as error:
            log.exception("a batch of %d failed: %s", len(tickets), tickets[0].job.key)
            outcomes = [error] if len(tickets) == 1 else [self._alone(ticket.job) for ticket in tickets]
        # Counted before anyone is told, so that whoever reads the metrics after an answer finds it there.
        self._count(tickets, outcomes)
        for ticket, outcome in zip(tickets, outcomes, strict=True):
            if isinstance(outcome, Exception):
                ticket.outcome.set_exception(outcome)
            else:
                ticket.outcome.set_result(outcome)

    def _alone(self, job: Job) -> Outcome | Exception:
        try:
            return self._plans.restore([job])[0]
        except Exception as error:
            return error

    def _count(self, tickets: Sequence[Ticket], outcomes: Sequence[Outcome | Exception]) -> None:
        metrics, operator = self.metrics, tickets[0].job.task.name
        metrics.running.set(0)
        metrics.batch_items.observe(len(tickets))
        metrics.stopped.inc(sum(isinstance(outcome, StoppedError) for outcome in outcomes))
        for ticket, outcome in zip(tickets, outcomes, strict=True):
            metrics.queue_seconds.observe(ticket.queue_seconds)
            if isinstance(outcome, Outcome):
                metrics.evaluations.inc(outcome.evaluations)
                if not outcome.ok:
                    metrics.diverged.labels(operator).inc()
                if outcome.item == 0:
                    metrics.chain_seconds.labels(operator).observe(outcome.chain_seconds)
        self._report()

    def _report(self) -> None:
        plans, metrics = self._plans, self.metrics
        metrics.plan_hits.inc(plans.hits)
        metrics.plan_misses.inc(plans.misses)
        plans.hits = plans.misses = 0
        metrics.plans.set(len(plans))
        metrics.plan_bytes.set(plans.buffer_bytes)
        metrics.queued.set(self._batcher.waiting)
        metrics.ready.set(int(self.ready))

    def _warm(self, warm: Warm) -> None:
        """Make the plans of every number of items and run each once, which also warms up the libraries below."""
        started = time.perf_counter()
        try:
            job = self._example(warm)
        except (RequestError, ValueError) as error:
            raise ValueError(f"`warm` {warm.operator}: {in_fields(str(error))}") from error
        for items in range(1, self.config.batch_limit(job.pixels) + 1):
            self._plans.restore([job] * items)
        log.info("warm: %s %s, %.1f s", warm.operator, job.shape, time.perf_counter() - started)

    def _example(self, warm: Warm) -> Job:
        """A grey picture as a request for a warm plan would bring it, everything known where a mask is needed."""
        fields = {"operator": warm.operator, "noise_std": "0.05", "prior": warm.prior, **warm.options}
        files: dict[str, bytes] = {}
        if TASKS[warm.operator].operator == "inpainting":
            files["mask"] = decode.array_bytes(np.ones(warm.shape[1:], bool))
        task = settings_of(fields, files, self.config)
        _, height, width = warm.shape
        factor = task.options.get("factor", 1)
        if height % factor or width % factor:
            raise ValueError(f"height and width must be multiples of `factor` = {factor}, got {warm.shape}")
        op = degrade.build(task, ["`image`"], warm.shape, 0)
        y = np.full(op.measurement_shape((1, *warm.shape))[1:], 0.5, np.float32)
        return self.parse(fields, {**files, "image": decode.array_bytes(y)})
