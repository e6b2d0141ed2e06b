"""A queue whose worker takes, whenever it is free, the oldest job and all that can share its batch.

Nothing waits for company: batches form while the worker is busy, so a request to an idle service is not delayed.
"""

from __future__ import annotations

import contextlib
import logging
import math
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, InvalidStateError
from typing import Any

from .config import Config
from .parsing import Job
from .refusals import busy, draining, expired

__all__ = ["Batcher", "Ticket"]

log = logging.getLogger(__name__)


class Ticket:
    """A job that was accepted, and its outcome to come.

    Attributes:
        outcome: cancelled by whoever stops waiting for it.
        arrived, due: on ``time.monotonic()``.
        queue_seconds: how long it waited, once it runs.
    """

    def __init__(self, job: Job, arrived: float) -> None:
        self.job = job
        self.arrived, self.due = arrived, arrived + job.deadline
        self.outcome: Future[Any] = Future()
        self.abandoned = False
        self.queue_seconds = 0.0

    def give_up(self) -> None:
        """Nobody waits any longer: leave the queue, or let the chain stop early."""
        self.abandoned = True
        self.outcome.cancel()


class Batcher:
    """Runs jobs one batch at a time in a thread of its own.

    Args:
        run: carries out the tickets of a batch and sets their outcomes; what it raises is theirs.
        config: limits of the queue and of a batch.
    """

    def __init__(self, run: Callable[[Sequence[Ticket]], None], config: Config) -> None:
        self._run, self._config = run, config
        self._waiting: list[Ticket] = []
        self._running: Sequence[Ticket] = ()
        self._running_since = 0.0
        self._seconds_per_batch = 1.0
        self._draining = self._closed = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._work, name="rmp-fast-batches", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Jobs in the queue."""
        return len(self._waiting)

    @property
    def draining(self) -> bool:
        """Whether new jobs are refused."""
        return self._draining

    def submit(self, job: Job, arrived: float | None = None) -> Ticket:
        """Accept a job.

        Args:
            job: what to do.
            arrived: when its request came, on ``time.monotonic()``; now by default.

        Raises:
            RequestError: 503 while draining, 504 if its deadline has passed, 429 if the queue is full.
        """
        now = time.monotonic()
        ticket = Ticket(job, now if arrived is None else arrived)
        with self._changed:
            if self._draining:
                raise draining()
            if ticket.due <= now:
                raise expired(job.deadline)
            self._waiting = [t for t in self._waiting if not t.abandoned]
            pixels = sum(t.job.pixels for t in self._waiting)
            full = len(self._waiting) >= self._config.queue
            if full or (self._waiting and pixels + job.pixels > self._config.queue_pixels):
                what = f"{len(self._waiting)} requests" if full else f"{pixels} pixels"
                seconds = math.ceil(self._seconds_per_batch)
                raise busy(f"the queue is full, with {what} waiting; try again in {seconds} s", seconds)
            self._waiting.append(ticket)
            self._changed.notify_all()
        return ticket

    def drain(self, seconds: float | None = None) -> bool:
        """Refuse new jobs and wait for those that were accepted; False where ``seconds`` are not enough."""
        with self._changed:
            self._draining = True
            return self._changed.wait_for(lambda: not self._waiting and not self._running, seconds)

    def close(self, seconds: float | None = None) -> bool:
        """Drain, and end the thread; jobs that are left after ``seconds`` are refused."""
        done = self.drain(seconds)
        with self._changed:
            self._closed = True
            left, self._waiting = self._waiting, []
            self._changed.notify_all()
        for ticket in left:
            self._fail(ticket, draining())
        self._thread.join(seconds)
        return done

    def problem(self) -> str | None:
        """Why no further batch will run, or None where one will."""
        if not self._thread.is_alive():
            return "the worker thread has ended"
        longest = 2 * self._config.longest_deadline
        if self._running and time.monotonic() - self._running_since > longest:
            return f"one batch has been running for more than {longest:g} s"
        return None

    def _work(self) -> None:
        while True:
            with self._changed:
                self._running = ()
                self._changed.notify_all()
                self._changed.wait_for(lambda: self._waiting or self._closed)
                if self._closed:
                    return
                # Before there is a batch: problem() reads both without the lock.
                self._running_since = started = time.monotonic()
                self._running = batch = self._take()
            if not batch:
                continue
            try:
                self._run(batch)
            except Exception as error:
                log.exception("a batch of %d failed", len(batch))
                for ticket in batch:
                    self._fail(ticket, error)
            self._seconds_per_batch += 0.2 * (time.monotonic() - started - self._seconds_per_batch)

    def _take(self) -> list[Ticket]:
        """The oldest ticket and those that share its batch, out of the queue; the lock is held."""
        now = time.monotonic()
        alive: list[Ticket] = []
        for ticket in self._waiting:
            if ticket.due <= now:
                self._fail(ticket, expired(ticket.job.deadline))
            elif not ticket.abandoned:
                alive.append(ticket)
        batch: list[Ticket] = []
        rest: list[Ticket] = []
        for ticket in alive:
            fits = not batch or (
                len(batch) < self._config.batch_limit(batch[0].job.pixels)
                and not (batch[0].job.alone or ticket.job.alone)
                and ticket.job.key == batch[0].job.key
            )
            if not fits:
                rest.append(ticket)
            elif ticket.outcome.set_running_or_notify_cancel():
                ticket.queue_seconds = now - ticket.arrived
                batch.append(ticket)
        self._waiting = rest
        return batch

    @staticmethod
    def _fail(ticket: Ticket, error: Exception) -> None:
        with contextlib.suppress(InvalidStateError):  # it has an outcome, or nobody waits for one
            ticket.outcome.set_exception(error)
