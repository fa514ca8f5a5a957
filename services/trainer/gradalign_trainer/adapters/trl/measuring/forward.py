"""Products of a generation batch's rollouts with the validation gradient, out of forward passes of TRL's own function.

The gradient is GRPO's at ratio 1, `-sum_i A_i sum_t grad log pi(y_it)` with TRL's own advantages, as that of sketches is:
the part of TRL's loss that the rewards speak through. KL penalty, entropy bonus and clipping are left out.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import Tensor

from gradalign.errors import DirectionError
from gradalign.forward import Direction, MicroBatch
from gradalign_trainer.adapters.trl.measuring.aside import gradients_aside
from gradalign_trainer.adapters.trl.measuring.groups import Groups
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
        lasting: a resumed run goes on with the validation gradient: it is too large for a checkpoint, so none does.
    """

    lasting = False

    def __init__(self, trainer: Any, config: Any) -> None:
        self._trainer, self._accelerator, self._config = trainer, trainer.accelerator, config
        self._model = self._accelerator.unwrap_model(trainer.model)
        self._logprobs = LogProbs(trainer)
        narrow = any(p.requires_grad and p.element_size() < 4 for p in self._model.parameters())
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
        try:
            _agree(failed)
        except DirectionError as error:
            logger.warning("No products can be taken of this batch: %s", error)
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
            several = self._accelerator.num_processes > 1 and not self._trainer.is_fsdp_enabled
            group = torch.distributed.group.WORLD if several else None
            self._direction = Direction(self._model, target=self.target, group=group, offload=self._config.offload)
        self._taken = False
        with gradients_aside([p for p in self._model.parameters() if p.requires_grad]):
            failed: Exception | None = None
            try:
                self._run_backward(rollouts)
            except RuntimeError as error:
                failed = error
            _agree(failed)
            self._add_up()
            length = self._direction.take()
        check = self._direction.check_of(self._logprobs, [_micro_batch(each) for each in rollouts])
        self._taken = True
        return length, iter(check.products)

    def _products(self, rollouts: Rollouts) -> Tensor:
        assert self._direction is not None
        given = _micro_batch(rollouts)
        if given.logprobs_at is not None:
            try:
                return self._direction.products_of(self._logprobs, [given])[0]
            except DirectionError as error:
                logger.info("TRL's old_per_token_logps are not used for products: %s", error)
        return self._direction.products_of(self._logprobs, [replace(given, logprobs_at=None)])[0]

    def _run_backward(self, rollouts: Sequence[Rollouts]) -> None:
        # FSDP2 averages gradients over the processes.
        factor = self._accelerator.num_processes if self._trainer.is_fsdp_enabled else 1
        with self._reducing(), self._same_random_numbers():
            for each in rollouts:
                for inputs, shares in each.parts():
                    loss = -(self._logprobs.of(inputs, len(shares)) * shares).sum()
                    (loss * factor).backward()

    @contextmanager
    def _reducing(self) -> Iterator[None]:
        """Has FSDP2 reduce gradients here, where it may be told to wait for the end of an accumulation."""
        if not self._trainer.is_fsdp_enabled:
            yield
            return
        model: Any = self._trainer.model
        model.set_requires_gradient_sync(True)
        try:
            yield
        finally:
            model.set_requires_gradient_sync(self._accelerator.sync_gradients)

    def _same_random_numbers(self) -> AbstractContextManager[None]:
        """Behind the block, passes draw for dropout what the block drew."""
        device = self._accelerator.device
        return torch.random.fork_rng([device] if device.type == "cuda" else [])

    def _add_up(self) -> None:
        """The sum of the gradients over processes that hold whole weights, where DDP is not asked to make it."""
        if self._accelerator.num_processes == 1 or self._trainer.is_fsdp_enabled:
            return
        for parameter in self._model.parameters():
            if parameter.requires_grad:
                own = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
                torch.distributed.all_reduce(own)
                parameter.grad = own


def _micro_batch(rollouts: Rollouts) -> MicroBatch:
    return MicroBatch(rollouts, rollouts.weights, rollouts.mask, rollouts.logprobs_at)


def _agree(failed: Exception | None) -> None:
    """Raise DirectionError on every process where one has failed, so that none waits for another."""
    if any(gather_object([failed is not None])):
        raise DirectionError(str(failed) if failed else "it failed on another process, whose log says why.") from failed
