"""Products of a generation batch's rollouts with the validation gradient, out of forward passes of TRL's own function.

The gradient is GRPO's at ratio 1, `-sum_i A_i sum_t grad log pi(y_it)` with TRL's own advantages, as that of sketches is:
the part of TRL's loss that the rewards speak through. KL penalty, entropy bonus and clipping are left out.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import Tensor

from gradalign.errors import DirectionError
from gradalign.forward import Direction, MicroBatch
from gradalign_trainer.adapters.athand import by_logprobs_at_hand
from gradalign_trainer.adapters.ranks import agree
from gradalign_trainer.adapters.trl.measuring.engines import engine_of
from gradalign_trainer.adapters.trl.measuring.groups import Groups
from gradalign_trainer.adapters.trl.measuring.kept import read_direction, write_direction
from gradalign_trainer.adapters.trl.measuring.logprobs import LogProbs, Rollouts, rollouts_of
from gradalign_trainer.curriculum.products import MeasuredProducts

__all__ = ["ProductMeter"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Part:
    """A generation batch on its way to products.

    Attributes:
        groups: of it.
        firsts: the groups that count: the others are of problems that were there before.
        rollouts: rows with a weight; None where no process has any.
    """

    groups: Groups
    firsts: Sequence[int]
    rollouts: Rollouts | None


class ProductMeter:
    """Takes products with the gradient of the last validation rollouts. All processes call it together.

    Args:
        trainer: a `trl.GRPOTrainer`.
        config: its aggregation (`pooled` weighs tokens of validation problems alike, `mean` the problems), offload and
            rollout_weights.

    Attributes:
        target: change of a token's log-prob that a step along the gradient makes, in nats: larger in 16 bits, whose
            rounding a small difference drowns in.
    """

    def __init__(self, trainer: Any, config: Any) -> None:
        self._trainer, self._accelerator, self._config = trainer, trainer.accelerator, config
        self._engine = engine_of(trainer)
        self._logprobs = LogProbs(trainer)
        narrow = any(p.requires_grad and p.element_size() < 4 for p in trainer.model.parameters())
        self.target = 0.1 if narrow or self._accelerator.mixed_precision != "no" else 0.02
        self._direction: Direction | None = None
        self._taken = False

    @property
    def ready(self) -> bool:
        """Whether a validation gradient is held that candidates can be measured with."""
        return self._taken

    def figures(self) -> Mapping[str, float]:
        """What is logged of the measuring: the correlation with exact products that the self-check tells, if it does."""
        check = self._direction.checked if self._direction else None
        return {} if check is None or check.fidelity is None else {"fidelity": check.fidelity}

    def forget(self) -> None:
        """Let go of the validation gradient, and of the step that was found for it."""
        self._direction, self._taken = None, False

    def keep(self, folder: Path, version: int | None) -> bool:
        """Write the validation gradient beside a checkpoint; whether that was done, on every process.

        Where not, this run takes a new one too: it and a resumed one stay the same.

        Args:
            folder: of the checkpoint.
            version: of the gradient at the scorer.
        """
        state = self._direction.state_dict() if self._direction is not None and self._taken else {}
        ranks = gather_object([{name: value for name, value in state.items() if name != "parts"}])
        kept = version is not None and all(ranks) and self._config.checkpoint_gradient
        failed: Exception | None = None
        if version is not None and kept and (self._engine.shard is not None or self._trainer.args.should_save):
            try:
                write_direction(folder, state["parts"], ranks, self._engine.shard, version)
            except OSError as error:
                failed = error
        if not _agreed(failed, "The validation gradient is not kept with %s, and is taken anew: %s", folder):
            kept = False
        if not kept:
            self.forget()
        return kept

    def resume(self, folder: Path, version: int | None) -> bool:
        """Go on with what `keep` wrote; whether that can be done, on every process."""
        failed: Exception | None = None
        direction = self._made()
        try:
            direction.load_state_dict(
                read_direction(folder, self._accelerator.process_index, self._engine.shard, version)
            )
        except DirectionError as error:
            failed = error
        if not _agreed(failed, "The validation gradient is taken anew: %s"):
            return False
        self._direction, self._taken = direction, True
        return True

    def validation(self, batches: Iterable[Groups]) -> MeasuredProducts | None:
        """Take the validation gradient, and the products of its own problems with it; on every process.

        Without a signal the gradient before stays, and all products are 0.

        Returns:
            None where the products do not hold their self-check; then no gradient is held.
        """
        seen: set[str] = set()
        pooled = self._config.aggregation == "pooled"
        parts = [self._part(groups, groups.firsts(seen), pooled=pooled) for groups in batches]
        kept = [part.rollouts for part in parts if part.rollouts is not None]
        length = 0.0
        found: Iterator[Tensor] = iter(())
        if kept:
            try:
                length, found = self._take(kept)
            except (DirectionError, RuntimeError) as error:  # of the second kind are a kernel's, and memory that is out
                self.forget()
                logger.warning("No products can be taken with this validation gradient: %s", error)
                return None
        tokens = sum(float(part.groups.tokens[part.firsts].sum()) for part in parts)
        # In the unit of a problem's own gradient, the mean over its tokens.
        scale = len(seen) / max(tokens, 1.0) if pooled else 1.0
        measured = [self._measured(part, next(found) * scale if part.rollouts is not None else None) for part in parts]
        return MeasuredProducts(
            problem_ids=[name for part in measured for name in part.problem_ids],
            products=[group for part in measured for group in part.products],
            tokens=[count for part in measured for count in part.tokens],
            pass_rates=[rate for part in measured for rate in part.pass_rates],
            length=length * scale,
        )

    def candidates(self, groups: Groups) -> MeasuredProducts | None:
        """The products of a training batch's rollouts, on every process; None where they cannot be taken."""
        part = self._part(groups, groups.firsts(set()), pooled=False)
        products: Tensor | None = None
        failed: Exception | None = None
        if part.rollouts is not None:
            try:
                products = self._products(part.rollouts)
            except (DirectionError, RuntimeError) as error:
                failed = error
        if not _agreed(failed, "No products can be taken of this batch: %s"):
            return None
        return replace(self._measured(part, products), rollout_weights=self._config.rollout_weights)

    def _part(self, groups: Groups, firsts: Sequence[int], *, pooled: bool) -> _Part:
        advantages = groups.batch["advantages"]
        counts = torch.zeros(len(groups.names), device=advantages.device)
        counts[firsts] = 1.0
        shares = counts if pooled else counts / groups.tokens.clamp(min=1)
        weights = advantages.float() * shares[groups.index]
        # Sharded models gather their weights for every forward: all processes run as many.
        most = max(gather_object([int((weights != 0).sum())]))
        at_once = int(self._trainer.args.per_device_train_batch_size)
        return _Part(groups, firsts, rollouts_of(groups.batch, weights, most, at_once) if most else None)

    def _measured(self, part: _Part, products: Tensor | None) -> MeasuredProducts:
        groups = part.groups
        own = torch.zeros(len(groups.index), dtype=torch.float64)
        if products is not None and part.rollouts is not None:
            own[part.rollouts.rows.cpu()] = products.cpu()
        everyone: list[float] = gather_object(own.tolist())
        return MeasuredProducts(
            problem_ids=[groups.names[group] for group in part.firsts],
            products=[everyone[group * groups.size : (group + 1) * groups.size] for group in part.firsts],
            tokens=[int(count) for count in groups.tokens[part.firsts].tolist()],
            pass_rates=groups.pass_rates[part.firsts].tolist(),
        )

    def _take(self, rollouts: Sequence[Rollouts]) -> tuple[float, Iterator[Tensor]]:
        """The validation gradient's length, and the products of its own rows, float64 [n] each."""
        if self._direction is None:
            self._direction = self._made()
        self._taken = False
        with self._engine.aside():
            failed: Exception | None = None
            try:
                self._run_backward(rollouts)
            except RuntimeError as error:
                failed = error
            agree(failed)
            self._engine.add_up()
            length = self._direction.take()
        check = self._direction.check_of(self._logprobs, [_micro_batch(each) for each in rollouts])
        self._taken = True
        return length, iter(check.products)

    def _made(self) -> Direction:
        return self._engine.direction(target=self.target, offload=self._config.offload)

    def _products(self, rollouts: Rollouts) -> Tensor:
        direction = self._direction
        assert direction is not None
        return by_logprobs_at_hand(
            lambda given: direction.products_of(self._logprobs, [given])[0],
            _micro_batch(rollouts),
            "TRL's old_per_token_logps",
        )

    def _run_backward(self, rollouts: Sequence[Rollouts]) -> None:
        with self._same_random_numbers():
            for each in rollouts:
                for inputs, shares in each.parts():
                    loss = -(self._logprobs.of(inputs, len(shares)) * shares).sum()
                    (loss * self._engine.factor).backward()

    def _same_random_numbers(self) -> AbstractContextManager[None]:
        """Behind the block, passes draw for dropout what the block drew."""
        device = self._accelerator.device
        return torch.random.fork_rng([device] if device.type == "cuda" else [])


def _micro_batch(rollouts: Rollouts) -> MicroBatch:
    return MicroBatch(rollouts, rollouts.weights, rollouts.mask, rollouts.logprobs_at)


def _agreed(failed: Exception | None, told: str, *about: object) -> bool:
    """Whether all processes have come through; where one has failed, all say so and go on."""
    try:
        agree(failed)
    except DirectionError as error:
        logger.warning(told, *about, error)
        return False
    return True
