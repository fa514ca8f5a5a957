"""The gradients of a batch's problems, taken in verl's actor workers and sent to the scorer by rank 0.

verl deals a problem's rollouts to all data-parallel ranks. So the ranks go through the problems together, each with the rows
that it has (or a row that counts nothing, so that collectives meet), and the mean that FSDP takes of their gradients is,
times their number, the problem's gradient; `from_grads()` sketches every rank's shard. The price is one backward
a problem.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from gradalign import Client
from gradalign.errors import GradAlignError, NotFound, SketchError, StalePolicy, UnavailableError, ValidationMissing
from gradalign.sketch import Sketcher
from gradalign_trainer.adapters.verl.problems import batch_problem_ids
from gradalign_trainer.adapters.verl.settings import VerlSettings
from gradalign_trainer.curriculum.measured import Measured

__all__ = ["ActorCapture", "ProblemGradients"]

INPUTS = ("responses", "response_mask", "input_ids", "attention_mask", "position_ids")
logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ProblemGradients:
    """What the scorer wants of P problems; item i everywhere is problem i.

    Attributes:
        ids: of the problems.
        trusted: whether each is of the validation set.
        sketches: float32 [P, dim].
        tokens: response tokens.
        rollouts: group sizes.
        pass_rates: mean rewards, clipped to [0, 1].
    """

    ids: Sequence[str]
    trusted: Sequence[bool]
    sketches: Tensor
    tokens: Sequence[int]
    rollouts: Sequence[int]
    pass_rates: Sequence[float]

    def part(self, *, trusted: bool) -> Measured:
        """The trusted problems, or the candidates."""
        places = [place for place, own in enumerate(self.trusted) if own == trusted]
        return Measured(
            problem_ids=[self.ids[place] for place in places],
            sketches=self.sketches[places],
            tokens=[self.tokens[place] for place in places],
            rollouts=[self.rollouts[place] for place in places],
            pass_rates=[self.pass_rates[place] for place in places],
        )


class ActorCapture:
    """Captures in one worker.

    Args:
        actor: verl's `DataParallelPPOActor`, its module whole or sharded by FSDP2.
        settings: of the adapter.

    Attributes:
        steps: batches seen.
        failed: captures that were given up; training went on.
    """

    def __init__(self, actor: Any, settings: VerlSettings) -> None:
        if getattr(actor, "use_ulysses_sp", False):
            raise GradAlignError(
                "ulysses sequence parallelism splits a row's tokens over ranks, which the capture does not do; set "
                "actor_rollout_ref.actor.ulysses_sequence_parallel_size=1."
            )
        self._actor, self._settings = actor, settings
        self._sketcher = Sketcher(actor.actor_module, dim=settings.dim, seed=settings.seed)
        self._client: Client | None = settings.connect() if _rank() == 0 else None
        self._first: int | None = None
        self.steps = self.failed = 0

    def __call__(self, batch: Any) -> None:
        """Measure and send the problems of a batch, then take trusted ones out of the update: their advantages become 0.

        Args:
            batch: this rank's `DataProto`, as `update_policy` is given it.
        """
        _, trusted = batch_problem_ids(batch)
        if self.steps % self._settings.every == 0 or _anywhere(any(trusted)):
            found = self.measure(batch)
            if self._client is not None:
                self._send(self._client, found)
        self.steps += 1
        batch.batch["advantages"][torch.tensor(trusted, device=batch.batch["advantages"].device)] = 0.0

    def measure(self, batch: Any) -> ProblemGradients:
        """The gradients of the problems of all ranks' batches, on all ranks; `.grad` is empty before and after."""
        ids, trusted = batch_problem_ids(batch)
        counts = _gathered(_counted(batch, ids, trusted))
        order = sorted(counts)
        size = int(self._actor.config.ppo_micro_batch_size_per_gpu or 1)
        rows = {name: [place for place, own in enumerate(ids) if own == name] for name in order}
        parts = _gathered({name: [-(-len(own) // size)] for name, own in rows.items()}, longest=True)
        sketches = [self._sketch(batch, rows[name], int(parts[name][0]), size, counts[name][1]) for name in order]
        self._actor.actor_optimizer.zero_grad()
        return ProblemGradients(
            ids=order,
            trusted=[bool(counts[name][3]) for name in order],
            sketches=torch.stack(sketches).float().cpu(),
            tokens=[int(counts[name][1]) for name in order],
            rollouts=[int(counts[name][0]) for name in order],
            pass_rates=[min(max(counts[name][2] / counts[name][0], 0.0), 1.0) for name in order],
        )

    def close(self) -> None:
        """Close the connection."""
        if self._client is not None:
            self._client.close()

    def _sketch(self, batch: Any, rows: Sequence[int], parts: int, size: int, tokens: float) -> Tensor:
        self._actor.actor_optimizer.zero_grad()
        device = next(self._actor.actor_module.parameters()).device
        for part in range(parts):
            own = list(rows[part * size : (part + 1) * size])
            micro = batch.select_idxs(torch.tensor(own or [0]))
            inputs = {name: micro.batch[name].to(device) for name in INPUTS}
            counted = micro.batch["advantages"].to(device) * inputs["response_mask"] * float(bool(own))
            inputs["pad_token_id"] = batch.meta_info.get("pad_token_id", 0)
            output = self._actor._forward_micro_batch(inputs, temperature=batch.meta_info["temperature"])
            logprobs = output["log_probs"] if isinstance(output, dict) else output[1]
            (-_world() / max(tokens, 1) * (logprobs * counted).sum()).backward()
        try:
            return self._sketcher.from_grads()
        except SketchError as error:  # on all ranks alike
            logger.warning("A problem counts as no signal: %s", error)
            return torch.zeros(self._settings.dim, device=device)

    def _send(self, client: Client, found: ProblemGradients) -> None:
        try:
            if self._first is None:
                self._first = _next_version(client) - self.steps
            spec: dict[str, Any] = {"policy_version": self._first + self.steps, "projection": self._sketcher.projection}
            trusted, candidates = found.part(trusted=True), found.part(trusted=False)
            if trusted.problem_ids and bool(trusted.sketches.any()):
                trusted.refresh(client, **spec)
            if candidates.problem_ids:
                candidates.score(client, strategy=self._settings.strategy, **spec)
        except (UnavailableError, ValidationMissing, StalePolicy) as error:
            self.failed += 1
            self._first = None if isinstance(error, StalePolicy) else self._first  # ask where the run stands
            logger.warning("The scores of batch %d are lost: %s", self.steps + 1, error)


def captured_update(actor: Any, batch: Any) -> None:
    """What runs before an actor's `update_policy`: fail-open, whatever cannot be captured is said once and given up."""
    state = actor.__dict__.setdefault("_gradalign", {"capture": None, "off": False})
    if state["off"]:
        return
    try:
        if state["capture"] is None:
            state["capture"] = ActorCapture(actor, VerlSettings.from_environment())
        state["capture"](batch)
    except (GradAlignError, SketchError) as error:
        state["off"] = True
        logger.error("GradAlign captures no more gradients in this worker, training goes on: %s", error)


def _next_version(client: Client) -> int:
    """The policy version to go on with: a resumed run's workers count from 0 again, its scorer does not."""
    try:
        state = client.run()
        return state.policy_version + (state.projection is not None)  # a selection alone takes no version
    except NotFound:
        return 0


def _counted(batch: Any, ids: Sequence[str], trusted: Sequence[bool]) -> dict[str, list[float]]:
    """By problem: rollouts, response tokens, sum of rewards, trusted rows; of this rank."""
    tokens = batch.batch["response_mask"].sum(1).tolist()
    scores = batch.batch.get("token_level_scores", None)
    rewards = [0.0] * len(ids) if scores is None else scores.sum(1).tolist()
    found: dict[str, list[float]] = {}
    for row, name in enumerate(ids):
        own = found.setdefault(name, [0.0] * 4)
        for place, value in enumerate((1, tokens[row], rewards[row], trusted[row])):
            own[place] += value
    return found


def _gathered(own: dict[str, list[float]] | dict[str, list[int]], *, longest: bool = False) -> dict[str, list[float]]:
    """Sums (or maxima) over all ranks, by problem."""
    everyone: list[Any] = [own]
    if _world() > 1:
        everyone = [None] * _world()
        dist.all_gather_object(everyone, own)
    total: dict[str, list[float]] = {}
    for each in everyone:
        for name, values in each.items():
            before = total.get(name, [0.0] * len(values))
            total[name] = [max(a, b) if longest else a + b for a, b in zip(before, values, strict=True)]
    return total


def _anywhere(value: bool) -> bool:
    return bool(_gathered({"any": [float(value)]})["any"][0])


def _world() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def _rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0
