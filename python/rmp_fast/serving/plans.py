"""The plans of a service, and how a batch of jobs runs through one of them."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from .. import operators, presets
from ..cli import degrade, record
from ..cli.chain import from_starts
from ..cli.prior import strength
from ..plan import Estimate, Plan
from ..priors import Prior
from .config import Config
from .parsing import Job

__all__ = ["Outcome", "Plans", "StoppedError"]


@dataclasses.dataclass(frozen=True)
class Outcome:
    """The result of one job.

    Attributes:
        mean: (C, H, W) float32, black 0 and white 1.
        ok: whether the chain stayed finite.
        batch, item: how many items ran together, and which of them this is; with the seed they repeat it bit for bit.
        evaluations: of the network, of all starts together.
        chain_seconds: of the whole batch.
        settings: everything but the measurement that decides the numbers, and settings_hash: of that.
    """

    mean: NDArray[np.float32]
    ok: bool
    batch: int
    item: int
    evaluations: int
    chain_seconds: float
    settings: dict[str, Any]
    settings_hash: str


class StoppedError(Exception):
    """The chain was stopped on its way, because nobody waits for it any longer."""


class Plans:
    """Plans by operator, shape and number of items, the least recently used dropped; for one thread.

    There is a plan for every number of items: one costs a millisecond and a few images of memory, where filling up a
    batch costs an item's whole chain.
    """

    def __init__(self, config: Config, priors: Mapping[str, Prior]) -> None:
        self._config, self._priors = config, priors
        self._plans: collections.OrderedDict[Hashable, Plan] = collections.OrderedDict()
        self._weights = {name: record.weights_digest(config.weights.get(name, name)) for name in priors}
        self._version = record.version()
        self.hits = self.misses = 0

    def __len__(self) -> int:
        return len(self._plans)

    @property
    def buffer_bytes(self) -> int:
        """Of all plans together, with the data of their operators."""
        return sum(plan.buffer_bytes + plan.operator_bytes for plan in self._plans.values())

    def restore(self, jobs: Sequence[Job], wanted: Callable[[], bool] = lambda: True) -> list[Outcome]:
        """Run jobs of one key as one batch.

        Raises:
            StoppedError: after the look at which ``wanted`` returned False.
        """
        first, batch = jobs[0], len(jobs)
        op = first.op
        if isinstance(op, operators.Inpainting):
            op = operators.Inpainting(torch.cat([_mask(job.op) for job in jobs]))
        noise_std = torch.tensor([job.noise_std for job in jobs], dtype=torch.float64) * degrade.own_unit(op)
        plan, known = self._plan(first, batch, op, noise_std)
        seeds = torch.tensor([job.seed for job in jobs], dtype=torch.int64)
        device = plan.device
        y = torch.stack([job.y for job in jobs]).to(device)

        def run(own: torch.Tensor) -> Estimate:
            found = plan.execute(
                y, seeds=own, noise_std=noise_std.to(device) if known else None,
                op=op if known and isinstance(op, operators.Inpainting) else None,
                progress=lambda done, total: done == total or wanted(),
            )  # fmt: skip
            if not found.stats.get("finished", True):
                raise StoppedError
            return found

        estimate = from_starts(plan.op, y, run, first.task.options.get("starts", 1), seeds.to(device), low=0.0)
        means, ok = estimate.mean.cpu().numpy(), estimate.ok.tolist()
        outcomes = []
        for item, job in enumerate(jobs):
            settings = self._settings(job, plan)
            outcomes.append(
                Outcome(
                    mean=means[item], ok=ok[item], batch=batch, item=item,
                    evaluations=int(estimate.stats["evaluations"]), chain_seconds=estimate.stats["seconds"],
                    settings=settings, settings_hash=record.settings_hash(settings),
                )
            )  # fmt: skip
        return outcomes

    def _plan(
        self, job: Job, batch: int, op: operators.Operator, noise_std: torch.Tensor
    ) -> tuple[Plan, bool]:  # fmt: skip
        """A plan, and whether it was known, so that its noise and the data of its operator are another batch's."""
        key = (job.key, batch)
        plan, known = self._plans.pop(key, None), True
        if plan is None:
            prior, known = self._priors[job.prior], False
            plan = Plan(
                op, prior, (batch, *job.shape), noise_std, backend=self._config.backend, device=self._config.device,
                data_range=(0.0, 1.0),
                # Their noise levels may differ, but call for the same preset, which is in their key.
                **presets.for_operator(
                    job.task.name, prior, job.evaluations, self._config.tables.get(job.prior),
                    strength(job.task, job.noise_std),
                ),
            )  # fmt: skip
        self.hits += known
        self.misses += not known
        self._plans[key] = plan
        while len(self._plans) > 1 and (
            len(self._plans) > self._config.plans or self.buffer_bytes > self._config.plan_bytes
        ):
            self._plans.popitem(last=False)
        return plan, known

    def _settings(self, job: Job, plan: Plan) -> dict[str, Any]:
        return {
            "task": job.task.name,
            "operator": job.task.operator,
            "operator_options": job.task.deciding,
            "noise_std": job.noise_std,
            "seed": job.seed,
            "prior": job.prior,
            "weights_sha256": self._weights[job.prior],
            "evaluations": plan.evaluations,
            "tuned": plan.looks is not None,
            "backend": plan.backend,
            "rmp_fast": self._version,
        }


def _mask(op: operators.Operator) -> torch.Tensor:
    assert isinstance(op, operators.Inpainting)  # all jobs of a batch share the kind of their operator
    return op.mask
