"""GRPOTrainer with a curriculum, read along TRL's own course of a generation batch.

    sampler draws the problems ("select") -> validation gradient, every few steps -> TRL generates, rewards, takes advantages
    -> a sketch of each group, or products of its rollouts -> /score -> advantages times weights ("weight")
    -> TRL shuffles, splits and trains

Only what TRL lets a subclass override is overridden. Rank 0 alone talks to the scorer; all others get what it heard.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch
from accelerate.utils import broadcast_object_list
from datasets import IterableDataset
from torch import Tensor
from transformers import TrainerCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from trl.trainer.grpo_trainer import GRPOTrainer

from gradalign.errors import GradAlignError, SketchError
from gradalign.sketch import Sketcher
from gradalign_trainer.adapters.base.figures import batch_figures
from gradalign_trainer.adapters.trl.alignment import CAPTURE, FORWARD, alignment_of
from gradalign_trainer.adapters.trl.config import GradAlignConfig
from gradalign_trainer.adapters.trl.link import ScorerLink
from gradalign_trainer.adapters.trl.measuring.aside import aside, scoring_batches
from gradalign_trainer.adapters.trl.measuring.capture import GroupMeter
from gradalign_trainer.adapters.trl.measuring.forward import ProductMeter
from gradalign_trainer.adapters.trl.measuring.groups import Batches, Groups, grouped
from gradalign_trainer.adapters.trl.rows import dataset_ids, row_id
from gradalign_trainer.adapters.trl.sampler import CurriculumSampler
from gradalign_trainer.adapters.trl.setups import check_agreement, check_supported
from gradalign_trainer.adapters.trl.state import CurriculumState
from gradalign_trainer.curriculum.measured import Gradients
from gradalign_trainer.fallbacks import UNMEASURED, Fallbacks

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
        GradAlignError: ids are missing or repeat, or the model is held in a way that it cannot be measured.
    """

    def __init__(self, *args: Any, gradalign: GradAlignConfig, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.gradalign = gradalign
        self._check_selectable()
        self._alignment = alignment_of(gradalign, self)
        check_supported(gradalign, self, self._alignment)
        column = gradalign.id_column
        self._pool = [] if self._streams else dataset_ids(self.train_dataset, column, "train_dataset")
        self._row_of = {problem_id: row for row, problem_id in enumerate(self._pool)}
        self._trusted = dataset_ids(gradalign.validation_dataset, column, "validation_dataset")
        self._link: ScorerLink | None = None
        self._sketcher: Sketcher | None = None
        self._meter: GroupMeter | ProductMeter | None = None
        self._resumed: Path | None = None
        self._refreshed: int | None = None
        self._unmeasured = False
        self._batches = Batches(lambda row: row_id(row, gradalign.id_column), fail_open=gradalign.fail_open)
        self._rewards = torch.zeros(0)
        self._selections = 0
        self._scoring = False
        self.add_callback(_Begin(self))

    @property
    def _streams(self) -> bool:
        return isinstance(self.train_dataset, IterableDataset)

    def _check_selectable(self) -> None:
        if self._streams and self.gradalign.selects:
            raise GradAlignError(
                f"GradAlignConfig.use = {self.gradalign.use!r} chooses among the rows of train_dataset, and a streamed "
                'dataset has none to choose among. Load it without streaming=True, or take use="weight".'
            )

    def begin_curriculum(self) -> None:
        """Meet the scorer, and settle how to measure; called when training begins, with the checkpoint loaded."""
        config, step = self.gradalign, self.state.global_step
        check_agreement(config, {"train_dataset": self._pool, "validation_dataset": self._trusted})
        if self._alignment != FORWARD:
            self._sketcher = self._made_sketcher()
        kept = self._on_main(lambda: CurriculumState.read(self._resumed))
        self._refreshed = kept.refreshed
        self._link = ScorerLink(
            config,
            None if self._sketcher is None else self._sketcher.projection,
            alignment=self._alignment,
            step=step,
            snapshot=kept.snapshot,
            fallbacks=Fallbacks.of(kept.fallbacks, kept.fallback_reasons),
        )
        self._met()

    def _made_sketcher(self) -> Sketcher | None:
        """None where the model cannot be sketched and need not be."""
        config = self.gradalign
        try:
            return Sketcher(self.accelerator.unwrap_model(self.model), dim=config.dim, seed=config.seed)
        except SketchError:
            if self._alignment == CAPTURE:
                raise
            self._alignment = FORWARD
            return None

    def _met(self) -> bool:
        """Whether the scorer is there; then it is settled how gradients are measured."""
        link, config = self._link, self.gradalign
        assert link is not None
        alignment = self._on_main(lambda: link.alignment if link.reachable() else None)
        if alignment is not None and self._meter is None:
            sketcher, self._sketcher = self._sketcher, None
            if alignment == FORWARD:
                self._meter = ProductMeter(self, config)
            else:
                assert sketcher is not None
                self._meter = GroupMeter(self, sketcher)
            self._go_on_with_gradient(self._meter, link)
        return alignment is not None

    def _go_on_with_gradient(self, meter: GroupMeter | ProductMeter, link: ScorerLink) -> None:
        if self._resumed is None or self._refreshed is None:
            return
        version = self._on_main(lambda: link.validation_version)
        if not meter.resume(self._resumed, version):
            self._refreshed = None

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
        ids = self._batches.names(inputs)
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
        if not self._met():
            return False
        meter = self._meter
        assert link is not None
        assert meter is not None

        def due() -> bool:
            late = self._refreshed is None or step - self._refreshed >= self.gradalign.refresh_every
            # What cannot be measured costs rollouts at every try.
            return late or ((link.needs_validation or not meter.ready) and not self._unmeasured)

        if self._on_main(due):
            measured = self._measured_validation(meter)
            self._unmeasured, self._refreshed = measured is None, step
            self._on_main(lambda: link.unmeasured() if measured is None else link.refresh(measured, step))
        return self._on_main(lambda: link.reachable() and not link.needs_validation)

    def _measured_validation(self, meter: GroupMeter | ProductMeter) -> Gradients | None:
        self._scoring = True
        try:
            with aside(self, int(self.gradalign.validation_rollouts or self.num_generations or 1)):
                return meter.validation(self._validation_groups())
        finally:
            self._scoring = False

    def _validation_groups(self) -> Iterator[Groups]:
        """Rollouts of the validation problems, a generation batch at a time."""
        column, settings = self.gradalign.id_column, cast("Any", self.args)  # declared as a plain TrainingArguments
        rows = [
            {**row, column: problem_id}
            for row, problem_id in zip(self.gradalign.validation_dataset, self._trusted, strict=True)
        ]
        batches = scoring_batches(
            rows,
            group_size=int(self.num_generations or 1),
            batch_rows=settings.generation_batch_size,
            processes=self.accelerator.num_processes,
            process=self.accelerator.process_index,
        )
        for batch in batches:
            output = self._generate_and_score_completions([dict(row) for row in batch])
            yield grouped(self, [row[column] for row in batch], output, self._rewards)

    def _score(self, ids: Sequence[str | None], output: dict[str, Any], *, ready: bool) -> None:
        """Score the batch's groups and weigh their advantages."""
        link, meter, step = self._link, self._meter, self.state.global_step
        assert link is not None
        began = time.monotonic()
        groups = self._batches.groups(self, ids, output, self._rewards)
        wanted = ready and meter is not None and meter.ready
        measured = meter.candidates(groups) if wanted and meter is not None and groups is not None else None
        self._log_figure("seconds_measuring", time.monotonic() - began)

        def ask() -> tuple[list[float] | None, dict[str, float]]:
            ranking = None if measured is None else link.score(measured, step)
            if ranking is None or groups is None:
                link.count_fallback(UNMEASURED if wanted and measured is None else None)
                return None, batch_figures(link, None)
            return groups.row_weights(ranking), batch_figures(link, ranking)

        weights, figures = self._on_main(ask)
        if weights is not None and self.gradalign.weighs:
            begin = self.accelerator.process_index * len(ids)
            factors = torch.tensor(weights[begin : begin + len(ids)]).to(output["advantages"])
            output["advantages"] = output["advantages"] * factors
        for name, value in {**figures, **({} if meter is None else meter.figures())}.items():
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
        folder = Path(self._get_output_dir(trial=trial)) / name
        if self._meter is not None and not self.args.save_only_model:
            version = self._on_main(lambda: link.validation_version)
            if not self._meter.keep(folder, version):
                self._refreshed = None
        if self.args.should_save:
            state = CurriculumState(
                self.gradalign.run_id, snapshot, self._refreshed, link.fallbacks, dict(link.reasons)
            )
            state.write(folder)


class GradAlignGRPOTrainer(GradAlignMixin, GRPOTrainer):
    """`trl.GRPOTrainer` with a curriculum: one argument more, `gradalign=GradAlignConfig(...)`."""
