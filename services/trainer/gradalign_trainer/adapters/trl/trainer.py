"""GRPOTrainer with a curriculum, read along TRL's own course of a generation batch.

    sampler draws the problems ("select") -> validation gradient, every few steps -> TRL generates, rewards, takes advantages
    -> one sketch a group -> /score -> advantages times weights ("weight") -> TRL shuffles, splits and trains

Only what TRL lets a subclass override is overridden. Rank 0 alone talks to the scorer; all others get what it heard.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from accelerate.utils import broadcast_object_list, gather_object
from datasets import IterableDataset
from torch import Tensor
from transformers import TrainerCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from trl.trainer.grpo_trainer import GRPOTrainer

from gradalign.errors import GradAlignError
from gradalign.sketch import Sketcher
from gradalign_trainer.adapters.trl.aside import aside, scoring_batches
from gradalign_trainer.adapters.trl.config import GradAlignConfig
from gradalign_trainer.adapters.trl.figures import batch_figures
from gradalign_trainer.adapters.trl.gradients import GroupMeter
from gradalign_trainer.adapters.trl.link import ScorerLink
from gradalign_trainer.adapters.trl.rows import dataset_ids, row_id
from gradalign_trainer.adapters.trl.sampler import CurriculumSampler
from gradalign_trainer.adapters.trl.state import CurriculumState
from gradalign_trainer.curriculum.measured import Measured
from gradalign_trainer.fallbacks import Fallbacks

__all__ = ["GradAlignGRPOTrainer", "GradAlignMixin"]

T = TypeVar("T")
if TYPE_CHECKING:
    _Trainer = GRPOTrainer
else:
    _Trainer = object


class _Begin(TrainerCallback):
    """Begins and ends the conversation with the training, behind the loading of a checkpoint."""

    def __init__(self, trainer: GradAlignMixin) -> None:
        self._trainer = trainer

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self._trainer.begin_curriculum()

    def on_train_end(self, *_: Any, **__: Any) -> None:
        self._trainer.end_curriculum()


class GradAlignMixin(_Trainer):
    """A curriculum for `trl.GRPOTrainer` and subclasses of it: `class Mine(GradAlignMixin, MyTrainer)`.

    Args:
        gradalign: how to use the scorer. All other arguments are GRPOTrainer's.

    Raises:
        GradAlignError: ids are missing or repeat, or the run is sharded in a way that sketches cannot be taken of.
    """

    def __init__(self, *args: Any, gradalign: GradAlignConfig, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.gradalign = gradalign
        self._check_supported()
        column = gradalign.id_column
        self._pool = [] if self._streams else dataset_ids(self.train_dataset, column, "train_dataset")
        self._row_of = {problem_id: row for row, problem_id in enumerate(self._pool)}
        self._trusted = dataset_ids(gradalign.validation_dataset, column, "validation_dataset")
        self._link: ScorerLink | None = None
        self._meter: GroupMeter | None = None
        self._resumed: Path | None = None
        self._refreshed: int | None = None
        self._rewards = torch.zeros(0)
        self._selections = 0
        self._scoring = False
        self.add_callback(_Begin(self))

    @property
    def _streams(self) -> bool:
        return isinstance(self.train_dataset, IterableDataset)

    def _check_supported(self) -> None:
        sharded = "FSDP" if self.is_fsdp_enabled else "DeepSpeed" if self.is_deepspeed_enabled else None
        if sharded is not None:
            raise GradAlignError(
                f"the model is sharded by {sharded}; the sketches of a batch's groups are taken of whole parameters. Launch "
                "with DDP (accelerate launch --multi_gpu), with LoRA where the optimizer's state does not fit."
            )
        if self._is_vlm:
            raise GradAlignError("the processing class is of a vision-language model; sketches are taken of text only.")
        if self._streams and self.gradalign.selects:
            raise GradAlignError(
                f"GradAlignConfig.use = {self.gradalign.use!r} chooses among the rows of train_dataset, and a streamed "
                'dataset has none to choose among. Load it without streaming=True, or take use="weight".'
            )

    def begin_curriculum(self) -> None:
        """Make the sketcher and meet the scorer; called when training begins, with the checkpoint loaded."""
        config, model = self.gradalign, self.accelerator.unwrap_model(self.model)
        sketcher = Sketcher(model, dim=config.dim, seed=config.seed)
        self._meter = GroupMeter(
            model,
            sketcher,
            rows=self.args.per_device_train_batch_size,
            temperature=self.temperature,
            autocast=self.accelerator.autocast,
        )
        kept = CurriculumState.read(self._resumed)
        step, self._refreshed = self.state.global_step, kept.refreshed
        self._link = ScorerLink(
            config,
            sketcher.projection,
            step=step,
            resumed=step > 0,
            snapshot=kept.snapshot,
            fallbacks=Fallbacks.of(kept.fallbacks, kept.fallback_reasons),
        )
        self._on_main(self._link.reachable)

    def end_curriculum(self) -> None:
        """Close the connections."""
        if self._link is not None:
            self._link.close()

    def _on_main(self, call: Callable[[], T]) -> T:
        """What a call on rank 0 gave, on every rank; an error of it is raised on every rank."""
        outcome: list[Any] = [None, None]
        if self.accelerator.is_main_process:
            try:
                outcome[0] = call()
            except GradAlignError as error:
                outcome[1] = error
        broadcast_object_list(outcome, from_process=0)
        if outcome[1] is not None:
            raise outcome[1]
        value: T = outcome[0]
        return value

    def _get_train_sampler(self, dataset: Any = None) -> Any:
        own = super()._get_train_sampler(dataset)
        if not self.gradalign.selects:
            return own
        names = ("data_source", "mini_repeat_count", "batch_size", "repeat_count", "shuffle", "seed")
        settings = {name: getattr(own, name) for name in names}
        return CurriculumSampler(choose=self._select, passed=lambda: self._passed(own), **settings)

    def _passed(self, sampler: Any) -> int:
        """Generation batches of the present epoch that a resumed run only skips."""
        batches = len(self._pool) // sampler.batch_size * sampler.repeat_count
        accumulated = self.args.gradient_accumulation_steps
        if self.args.ignore_data_skip or not batches:
            return 0
        updates = max(1, -(-batches // accumulated))
        return int(self.state.global_step % updates * accumulated // sampler.repeat_count)

    def _select(self, proposed: Sequence[int]) -> list[int]:
        link, step = self._link, self.state.global_step
        assert link is not None
        self._selections += 1
        picked = self._on_main(lambda: link.select(self._pool, len(proposed), step, self._selections))
        if picked is None or len(picked.selected) < len(proposed):
            return list(proposed)
        self._metrics["train"]["gradalign/explored"].append(len(picked.explored) / len(picked.selected))
        return [self._row_of[problem_id] for problem_id in picked.selected]

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        model: Any = self.model
        if not model.training or self._scoring:
            plain: dict[str, Any] = super()._generate_and_score_completions(inputs)
            return plain
        ids = [row_id(row, self.gradalign.id_column) for row in inputs]
        began = time.monotonic()
        ready = self._validated()
        self._log_figure("seconds_validation", time.monotonic() - began)
        output: dict[str, Any] = super()._generate_and_score_completions(inputs)
        self._score(ids, output, ready=ready)
        return output

    def _calculate_rewards(self, *args: Any, **kwargs: Any) -> Tensor:
        found: Tensor = super()._calculate_rewards(*args, **kwargs)
        self._rewards = (found * self.reward_weights.to(found.device)).nansum(dim=1)
        return found

    def _validated(self) -> bool:
        """Refresh the validation gradient where that is due; whether the scorer is there and holds one."""
        link, step = self._link, self.state.global_step
        assert link is not None

        def due() -> bool | None:
            if not link.reachable():
                return None
            late = self._refreshed is None or step - self._refreshed >= self.gradalign.refresh_every
            return link.needs_validation or late

        wanted = self._on_main(due)
        if wanted is None:
            return False
        if wanted:
            measured = self._measure_validation()
            self._on_main(lambda: link.refresh(measured, step))
            self._refreshed = step
        return self._on_main(lambda: link.reachable() and not link.needs_validation)

    def _measure_validation(self) -> Measured:
        group_size = int(self.gradalign.validation_rollouts or self.num_generations or 1)
        accelerator, parts = self.accelerator, []
        settings: Any = self.args  # declared as a plain TrainingArguments
        rows = [
            {**row, self.gradalign.id_column: problem_id}
            for row, problem_id in zip(self.gradalign.validation_dataset, self._trusted, strict=True)
        ]
        batches = scoring_batches(
            rows,
            group_size=group_size,
            batch_rows=settings.generation_batch_size,
            processes=accelerator.num_processes,
            process=accelerator.process_index,
        )
        self._scoring = True
        try:
            with aside(self, group_size):
                for batch in batches:
                    output = self._generate_and_score_completions([dict(row) for row in batch])
                    parts.append(self._measured([row[self.gradalign.id_column] for row in batch], output))
        finally:
            self._scoring = False
        return _joined(parts).distinct()

    def _measured(self, ids: Sequence[str], output: Mapping[str, Any]) -> Measured:
        """The gradients of a batch's groups over all processes, on every process."""
        assert self._meter is not None
        accelerator, size = self.accelerator, int(self.num_generations or 1)
        everyone: list[str] = gather_object(list(ids))
        names = everyone[::size]
        if any(everyone[row] != names[row // size] for row in range(len(everyone))):
            raise GradAlignError(
                f"a generation batch does not hold every problem {size} times in a row, as RepeatSampler gives it; is "
                "_get_train_sampler or get_train_dataloader overridden? Keep RepeatSampler's order."
            )
        device = output["advantages"].device
        groups = (accelerator.process_index * len(ids) + torch.arange(len(ids), device=device)) // size
        mask = output["completion_mask"] * output["tool_mask"] if "tool_mask" in output else output["completion_mask"]
        tokens = torch.zeros(len(names), device=device).index_add_(0, groups, mask.sum(1).float())
        sketches = self._meter.measure(output, groups, len(names))
        tokens, sketches = accelerator.reduce(tokens), accelerator.reduce(sketches)
        return Measured(
            problem_ids=names,
            sketches=(sketches / tokens.clamp(min=1)[:, None]).cpu(),
            tokens=[int(count) for count in tokens.tolist()],
            rollouts=[size] * len(names),
            pass_rates=self._rewards.view(-1, size).mean(dim=1).clamp(0, 1).tolist(),
        )

    def _score(self, ids: Sequence[str], output: dict[str, Any], *, ready: bool) -> None:
        """Score the batch's groups and weigh their advantages."""
        link, step = self._link, self.state.global_step
        assert link is not None
        began = time.monotonic()
        measured = self._measured(ids, output).distinct() if ready else None
        self._log_figure("seconds_sketches", time.monotonic() - began)

        def ask() -> tuple[dict[str, float] | None, dict[str, float]]:
            ranking = None if measured is None else link.score(measured, step)
            if ranking is None:
                link.count_fallback()
            return None if ranking is None else ranking.weight_of(), batch_figures(link, ranking)

        weights, figures = self._on_main(ask)
        if weights is not None and self.gradalign.weighs:
            factors = torch.tensor([weights.get(problem_id, 0.0) for problem_id in ids]).to(output["advantages"])
            output["advantages"] = output["advantages"] * factors
        for name, value in figures.items():
            self._log_figure(name, value)

    def _log_figure(self, name: str, value: float) -> None:
        self._metrics["train"][f"gradalign/{name}"].append(value)

    def _load_optimizer_and_scheduler(self, checkpoint: Any) -> None:
        trainer: Any = super()
        trainer._load_optimizer_and_scheduler(checkpoint)
        self._resumed = None if checkpoint is None else Path(checkpoint)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        trainer: Any = super()
        trainer._save_checkpoint(model, trial)
        link, name = self._link, f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        assert link is not None
        snapshot = self._on_main(lambda: link.snapshot(name))
        if self.args.should_save:
            state = CurriculumState(
                self.gradalign.run_id, snapshot, self._refreshed, link.fallbacks, dict(link.reasons)
            )
            state.write(Path(self._get_output_dir(trial=trial)) / name)


class GradAlignGRPOTrainer(GradAlignMixin, GRPOTrainer):
    """`trl.GRPOTrainer` with a curriculum: one argument more, `gradalign=GradAlignConfig(...)`."""


def _joined(parts: Sequence[Measured]) -> Measured:
    return Measured(
        problem_ids=[problem_id for part in parts for problem_id in part.problem_ids],
        sketches=torch.cat([part.sketches for part in parts]),
        tokens=[count for part in parts for count in part.tokens],
        rollouts=[count for part in parts for count in part.rollouts],
        pass_rates=[rate for part in parts for rate in part.pass_rates],
    )
