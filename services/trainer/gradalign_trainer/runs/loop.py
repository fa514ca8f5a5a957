"""The GRPO loop, to be read top to bottom.

    pool -> rollouts -> rewards -> advantages -> sketches -> /score -> update on the selection
    every few rounds: the validation gradient, an evaluation, a checkpoint with a snapshot of the curriculum

It departs from the paper's code in that selection is a call to the scorer within the loop, not a program that runs
between two trainings. What a round does is in `rounds`, one module a mode. `gradalign train CONFIG` runs it.
"""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Any

import torch

from gradalign.errors import GradAlignError
from gradalign.wire.projection import Projection
from gradalign_trainer.config.training import TrainConfig
from gradalign_trainer.curriculum.curriculum import Curriculum, ScorerAddress
from gradalign_trainer.fallbacks import Fallbacks
from gradalign_trainer.grpo.evaluation import exact_pass_rates
from gradalign_trainer.grpo.features import PoolFeatures
from gradalign_trainer.grpo.rollouts import reward_table
from gradalign_trainer.policy.policy import Policy
from gradalign_trainer.records import Observer, RoundReport, RunData, RunResult
from gradalign_trainer.rounds import ROUNDS, Workshop
from gradalign_trainer.rounds.costs import Costs
from gradalign_trainer.runs.checkpoint import RunState, latest_checkpoint, load_optimizer, load_state, save_checkpoint

__all__ = ["train"]

logger = logging.getLogger(__name__)


class _Silent:
    def stage(self, name: str, total: int) -> None: ...

    def advance(self, amount: int = 1) -> None: ...

    def report(self, report: RoundReport) -> None: ...


def train(
    config: TrainConfig, data: RunData, source: str | Path, *, resume: bool = False, observer: Observer | None = None
) -> RunResult:
    """Run GRPO with an adaptive curriculum.

    Args:
        config: of the run.
        data: problems and reward.
        source: folder or hub id of the model to begin with.
        resume: go on from the newest checkpoint in the run's output folder.
        observer: told of progress.

    Raises:
        GradAlignError: the scorer refuses what is sent, the checkpoint does not fit, or the output folder is taken.
    """
    run = _Run(config, data, source, resume=resume, observer=observer or _Silent())
    try:
        if run.round_number == 0:
            run.report({}, evaluate=True)
        while not run.is_over():
            began, computed, asked = time.monotonic(), time.process_time(), run.curriculum.seconds
            figures = ROUNDS[config.mode](run.shop)
            run.shop.round_number += 1
            figures["round_seconds"] = time.monotonic() - began
            run.shop.costs.seconds += figures["round_seconds"]
            run.shop.costs.cpu_seconds += time.process_time() - computed
            figures |= run.shop.costs.figures()
            if run.curriculum.adaptive:
                figures["scorer_seconds"] = run.curriculum.seconds - asked
            last = run.is_over()
            run.report(figures, evaluate=last or run.round_number % config.evaluate_every == 0)
            if last or (config.checkpoint_every and run.round_number % config.checkpoint_every == 0):
                run.checkpoint()
        return RunResult(reports=run.reports, reasons=run.curriculum.reasons, checkpoint=run.last_checkpoint)
    finally:
        run.curriculum.close()


class _Run:
    """Everything that lives from round to round, and what happens between rounds."""

    def __init__(
        self, config: TrainConfig, data: RunData, source: str | Path, *, resume: bool, observer: Observer
    ) -> None:
        self.config, self.data, self.observer = config, data, observer
        self.checkpoints = config.output / "checkpoints"
        self.reports: list[RoundReport] = []
        start = _checkpoint_to_resume(self.checkpoints, config, resume=resume)
        state = load_state(start) if start else None
        training = load_optimizer(start, torch.device("cpu")) if start else None
        self.policy = Policy(
            config,
            start or source,
            training=training,
            version=state.policy_version if state else 0,
        )
        self.last_checkpoint = start or self.checkpoints
        self.curriculum = self._curriculum(state)
        round_number = state.round_number if state else 0
        costs = Costs.from_state(state.costs) if state else Costs()
        shared = (config, data, self.policy, self.curriculum, observer)
        features = self._features(training)
        self.shop = Workshop(*shared, round_number=round_number, costs=costs, features=features)

    @property
    def round_number(self) -> int:
        """Rounds done."""
        return self.shop.round_number

    def is_over(self) -> bool:
        """Whether all rounds are played, or the rollouts that were to be spent are."""
        spent, limit = self.shop.costs.total_rollouts, self.config.stop_at_rollouts
        return self.round_number >= self.config.rounds or (limit is not None and spent >= limit)

    def _features(self, training: dict[str, Any] | None) -> PoolFeatures | None:
        """Of the policy that the run began with, which a checkpoint does not hold any more: it holds its features."""
        if not self.config.proposals:
            return None
        kept = training.get("features") if training else None
        if kept is not None:
            return PoolFeatures.from_state(self.data.pool, kept)
        if training is not None:
            raise GradAlignError(
                "the checkpoint was made with proposals = false and holds no features of the initial policy. "
                "Resume with that setting."
            )
        model, tokenizer = self.policy.model, self.policy.tokenizer
        return PoolFeatures.of(model, tokenizer, self.data.pool, self.config.feature_components)

    def _curriculum(self, state: RunState | None) -> Curriculum:
        config, projection = self.config, self.policy.meter.projection
        kind = _kind(config, projection)
        if state and (state.run_id, state.projection) != (config.run_id, kind):
            raise GradAlignError(
                f"the checkpoint is of run {state.run_id!r} with {_told(state.projection)}; the configuration makes run "
                f"{config.run_id!r} with {_told(kind)}. Resume with the configuration it was made with (run_id, strategy, "
                "alignment, model, dim and projection_seed decide)."
            )
        wanted = config.needs_scorer
        scorer = None
        if wanted:
            scorer = ScorerAddress(
                url=config.scorer_url or "",
                api_key=config.scorer_api_key,
                timeout=config.scorer_timeout,
                retries=config.scorer_retries,
                epoch=_next_epoch(config.output),
                sketch_dtype=config.sketch_dtype,
            )
        curriculum = Curriculum(
            config.run_id,
            scorer,
            strategy=config.strategy,
            aggregation=config.aggregation,
            projection=projection,
            seed=config.seed,
            needs_validation=config.needs_validation,
        )
        if state:
            curriculum.reasons = Fallbacks.of(state.fallbacks, state.fallback_reasons)
            if state.snapshot:
                curriculum.restore_later(state.snapshot)
        return curriculum

    def evaluate(self) -> float:
        """Mean pass rate on the held-out problems."""
        config, policy, heldout = self.config, self.policy, self.data.heldout
        self.observer.stage("evaluate", len(heldout))
        if config.evaluation == "exact":
            return float(
                exact_pass_rates(
                    policy.model,
                    policy.tokenizer,
                    heldout,
                    temperature=config.temperature,
                    share_prompts=config.share_prompts,
                ).mean()
            )
        prompts = [problem.prompt for problem in heldout]
        rollouts = policy.generate(prompts, config.evaluation_rollouts, policy.generator("evaluation"))
        return float(reward_table(heldout, self.data.reward, rollouts).mean())

    def report(self, figures: dict[str, float], *, evaluate: bool) -> None:
        """Tell the observer of the round."""
        report = RoundReport(
            round_number=self.round_number,
            policy_version=self.policy.version,
            pass_rate=self.evaluate() if evaluate else None,
            figures=figures,
        )
        self.reports.append(report)
        self.observer.report(report)

    def checkpoint(self) -> None:
        """Write a checkpoint, with a snapshot of the curriculum where the scorer is there."""
        policy = self.policy
        state = RunState(
            run_id=self.config.run_id,
            round_number=self.round_number,
            policy_version=policy.version,
            fallbacks=self.curriculum.fallbacks,
            fallback_reasons=dict(self.curriculum.reasons),
            snapshot=self.curriculum.snapshot(f"round-{self.round_number:06d}"),
            projection=_kind(self.config, policy.meter.projection),
            costs=self.shop.costs.state(),
        )
        training: dict[str, Any] = policy.training_state()
        if self.shop.features is not None:
            training["features"] = self.shop.features.state()
        self.last_checkpoint = save_checkpoint(
            self.checkpoints, state, policy.model, policy.tokenizer, training, keep=self.config.checkpoints_kept
        )


def _kind(config: TrainConfig, projection: Projection | None) -> str:
    """What a checkpoint says of what the scorer gets: the id of its sketches' projection, `products` or `pass rates`."""
    if config.by_pass_rates:
        return "pass rates"
    return "products" if projection is None else projection.id


def _told(kind: str) -> str:
    return kind if kind in ("products", "pass rates") else f"projection {kind}"


def _checkpoint_to_resume(folder: Path, config: TrainConfig, *, resume: bool) -> Path | None:
    newest = latest_checkpoint(folder)
    if resume and newest is None:
        logger.warning("%s holds no checkpoint; run %s begins at round 0.", folder, config.run_id)
    if newest is not None and not resume:
        raise GradAlignError(
            f"{folder} holds checkpoints of an earlier run; expected an empty output folder. Pass --resume to go on "
            "from the newest, or give this run another output folder and run_id."
        )
    return newest


def _next_epoch(output: Path) -> int:
    """A number that grows with every start of the run, so that the scorer refuses a forgotten predecessor."""
    output.mkdir(parents=True, exist_ok=True)
    path = output / "epoch"
    epoch = int(path.read_text()) + 1 if path.exists() else 1
    path.write_text(f"{epoch}\n")
    return epoch
