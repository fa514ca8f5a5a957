"""The policy gradients of a generation batch's groups, as sketches out of a few batched backwards.

A model that FSDP2 shards runs on all processes in step: each takes as many rows as the one with most, and those beyond its
own count for nothing.

The gradient is GRPO's at ratio 1, `-sum_i A_i sum_t grad log pi(y_it)` with TRL's own advantages, at the temperature of
sampling: the part of TRL's loss that the rewards speak through. KL penalty, entropy bonus and clipping are left out.
TRL's fused LM head is an autograd function of its own, which capture cannot take apart, so the model's plain forward runs.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import Tensor

from gradalign.errors import SketchError
from gradalign.sketch import Capture, Sketcher
from gradalign_trainer.adapters.trl.measuring.engines import engine_of
from gradalign_trainer.adapters.trl.measuring.groups import Groups, counted
from gradalign_trainer.curriculum.measured import Measured

__all__ = ["GroupMeter"]

logger = logging.getLogger(__name__)


class GroupMeter:
    """Takes the gradients of one policy.

    Args:
        trainer: a `trl.GRPOTrainer`, whose temperature, autocast and micro-batch size are taken.
        sketcher: made for its model.

    Attributes:
        ready: candidates can be measured: always, of sketches.
    """

    ready = True

    def __init__(self, trainer: Any, sketcher: Sketcher) -> None:
        self._accelerator, self._sketcher = trainer.accelerator, sketcher
        self._rows, self._temperature = trainer.args.per_device_train_batch_size, trainer.temperature
        self._model = model = self._accelerator.unwrap_model(trainer.model)
        base = model.get_base_model() if hasattr(model, "get_base_model") else model
        self._keeps = "logits_to_keep" in inspect.signature(base.forward).parameters
        self._engine = engine_of(trainer)
        self._captures = True

    def validation(self, parts: Iterable[Groups]) -> Measured:
        """The gradients of the validation problems, on every process."""
        measured = [self._measured(part) for part in parts]
        return Measured(
            problem_ids=[problem_id for part in measured for problem_id in part.problem_ids],
            sketches=torch.cat([part.sketches for part in measured]),
            tokens=[count for part in measured for count in part.tokens],
            rollouts=[count for part in measured for count in part.rollouts],
            pass_rates=[rate for part in measured for rate in part.pass_rates],
        ).distinct()

    def candidates(self, groups: Groups) -> Measured:
        """The gradients of a training batch's problems, on every process."""
        return self._measured(groups).distinct()

    def figures(self) -> Mapping[str, float]:
        """What is logged of the measuring: nothing, of sketches."""
        return {}

    def keep(self, _folder: Path, _version: int | None) -> bool:
        """Whether a resumed run can go on with the validation gradient: the scorer has it, of sketches."""
        return True

    def resume(self, _folder: Path, _version: int | None) -> bool:
        """As `keep`."""
        return True

    def _measured(self, groups: Groups) -> Measured:
        names: Sequence[str] = groups.names
        sketches = self.measure(groups.batch, groups.index, len(names))
        return Measured(
            problem_ids=names,
            sketches=(sketches / groups.tokens.clamp(min=1)[:, None]).cpu(),
            tokens=[int(count) for count in groups.tokens.tolist()],
            rollouts=[groups.size] * len(names),
            pass_rates=groups.pass_rates.tolist(),
        )

    def measure(self, batch: Mapping[str, Any], groups: Tensor, count: int) -> Tensor:
        """The gradients of the groups, added over the processes; `.grad` is left as it was. All processes call it together.

        Args:
            batch: what TRL's `_generate_and_score_completions` gave.
            groups: int64 [B], the group of each rollout of this process.
            count: how many groups there are.

        Returns:
            float32 [count, dim] on the model's device, not yet over the groups' tokens. Zero where no rollout has an
            advantage, or the gradient is not finite (with a warning: it must not stop the run).
        """
        found = self._sketches(batch, torch.where(batch["advantages"] != 0, groups, -1), count)
        # Sketches of a sharded model are sums over the processes already.
        total: Tensor = found if self._engine.shard is not None else self._accelerator.reduce(found)
        return total

    def _sketches(self, batch: Mapping[str, Any], groups: Tensor, count: int) -> Tensor:
        """As `measure`, of this process alone where it holds the weights whole; -1 is the group of rows without a signal."""
        rows = self._rows_of(groups >= 0)
        total = torch.zeros(count, self._sketcher.dim, device=groups.device)
        if not len(rows):
            return total
        if self._captures:
            try:
                return self._captured(batch, groups, rows, count)
            except SketchError as error:
                logger.warning(
                    "This batch takes one backward a group, which is slower: %s "
                    '(GradAlignConfig(alignment="forward") takes no backward of groups, under a run_id of its own.)',
                    error,
                )
                self._engine.recover()
                total, faulty = self._one_by_one(batch, groups, total)
                self._captures = bool(faulty)
                return total
        return self._one_by_one(batch, groups, total)[0]

    def _rows_of(self, wanted: Tensor) -> Tensor:
        """int64 [n], the rows of a mask [B]; of a sharded model as many on every process, filled up with others."""
        most = int(wanted.sum())
        if self._engine.shard is not None:
            most = max(gather_object([most]))
        return torch.argsort((~wanted).int(), stable=True)[:most].sort().values

    def _captured(self, batch: Mapping[str, Any], groups: Tensor, rows: Tensor, count: int) -> Tensor:
        done: Capture | None = None
        for part in rows.split(self._rows):
            capture = self._sketcher.capture(groups[part], problems=count, keep_grad=False, onto=done)
            with capture:
                self._loss(batch, part, groups[part] >= 0).backward()
            done = capture
        assert done is not None
        return done.sketches.float()

    def _one_by_one(self, batch: Mapping[str, Any], groups: Tensor, total: Tensor) -> tuple[Tensor, int]:
        """As `_sketches`, and how many gradients were not finite."""
        faulty = 0
        for group in range(len(total)):
            rows = self._rows_of(groups == group)
            if not len(rows):
                continue
            with self._engine.aside():
                for part in rows.split(self._rows):
                    (self._loss(batch, part, groups[part] == group) * self._engine.factor).backward()
                try:
                    total[group] = self._sketcher.from_grads().to(total)
                except SketchError as error:
                    logger.warning("A group counts as without a signal: %s", error)
                    faulty += 1
        return total, faulty

    def _loss(self, batch: Mapping[str, Any], rows: Tensor, counts: Tensor) -> Tensor:
        """The loss of rows, of which those that do not count (bool [rows]) only run along."""
        prompts, completions = batch["prompt_ids"][rows], batch["completion_ids"][rows]
        lived = batch["completion_mask"][rows]
        longest = max(int(lived.any(0).nonzero().max()) + 1 if lived.any() else 1, 1)
        completions, lived = completions[:, :longest], lived[:, :longest]
        ids = torch.cat([prompts, completions], dim=1)
        mask = torch.cat([batch["prompt_mask"][rows], lived], dim=1)
        with self._accelerator.autocast():
            keep = {"logits_to_keep": longest + 1} if self._keeps else {}
            logits = self._model(input_ids=ids, attention_mask=mask, use_cache=False, **keep).logits
        logits = logits[:, -longest - 1 : -1].float() / self._temperature
        said = torch.log_softmax(logits, dim=-1).gather(-1, completions[..., None])[..., 0]
        kept = counted(batch)[rows, :longest]
        loss: Tensor = -((said * kept).sum(1) * batch["advantages"][rows] * counts).sum()
        return loss
