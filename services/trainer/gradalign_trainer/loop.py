"""The GRPO loop, to be read top to bottom.

    pool -> rollouts -> rewards -> advantages -> sketches -> /score -> update on the selection
    every few rounds: the validation gradient, an evaluation, a checkpoint with a snapshot of the curriculum

It departs from the paper's code in that selection is a call to the scorer within the loop, not a program that runs
between two trainings. `gradalign train CONFIG` runs it.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from gradalign.errors import GradAlignError
from gradalign_trainer.checkpoint import RunState, latest_checkpoint, load_optimizer, load_state, save_checkpoint
from gradalign_trainer.config import TrainConfig
from gradalign_trainer.curriculum import Choice, Curriculum, ScorerAddress
from gradalign_trainer.evaluation import exact_pass_rates, sampled_pass_rates
from gradalign_trainer.policy import Policy
from gradalign_trainer.problems import Problem
from gradalign_trainer.records import Observer, RoundReport, RunData, RunResult
from gradalign_trainer.rollouts import ScoredRollouts

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
        while run.round_number < config.rounds:
            began, asked = time.monotonic(), run.curriculum.seconds
            figures = run.weighted_round() if config.mode == "weight" else run.chosen_round()
            run.round_number += 1
            figures["round_seconds"] = time.monotonic() - began
            if run.curriculum.adaptive:
                figures["scorer_seconds"] = run.curriculum.seconds - asked
            last = run.round_number == config.rounds
            run.report(figures, evaluate=last or run.round_number % config.evaluate_every == 0)
            if last or (config.checkpoint_every and run.round_number % config.checkpoint_every == 0):
                run.checkpoint()
        return RunResult(reports=run.reports, fallbacks=run.curriculum.fallbacks, checkpoint=run.last_checkpoint)
    finally:
        run.curriculum.close()


class _Run:
    """Everything that lives from round to round, and the steps of a round."""

    def __init__(
        self, config: TrainConfig, data: RunData, source: str | Path, *, resume: bool, observer: Observer
    ) -> None:
        self.config, self.data, self.observer = config, data, observer
        self.checkpoints = config.output / "checkpoints"
        self.reports: list[RoundReport] = []
        self.by_id = {problem.problem_id: problem for problem in data.pool}
        self.validation = list(data.validation)[: config.validation_problems]
        start = _checkpoint_to_resume(self.checkpoints, config, resume=resume)
        state = load_state(start) if start else None
        self.round_number = state.round_number if state else 0
        self.policy = Policy(
            config,
            start or source,
            training=load_optimizer(start, torch.device("cpu")) if start else None,
            version=state.policy_version if state else 0,
        )
        self.last_checkpoint = start or self.checkpoints
        self.curriculum = self._curriculum(state)

    def _curriculum(self, state: RunState | None) -> Curriculum:
        config, projection = self.config, self.policy.sketcher.projection
        if state and (state.run_id, state.projection) != (config.run_id, projection.id):
            raise GradAlignError(
                f"the checkpoint is of run {state.run_id!r} with projection {state.projection}; the configuration "
                f"makes run {config.run_id!r} with projection {projection.id}. Resume with the configuration "
                "it was made with (run_id, model, dim and seed decide)."
            )
        wanted = config.mode == "weight" or config.strategy != "random"
        scorer = None
        if wanted:
            scorer = ScorerAddress(
                url=config.scorer_url or "",
                api_key=config.scorer_api_key,
                timeout=config.scorer_timeout,
                retries=config.scorer_retries,
                epoch=_next_epoch(config.output),
            )
        curriculum = Curriculum(
            config.run_id,
            scorer,
            strategy=config.strategy,
            aggregation=config.aggregation,
            projection=projection,
            seed=config.seed,
        )
        if state:
            curriculum.fallbacks = state.fallbacks
            if state.snapshot:
                curriculum.restore_later(state.snapshot)
        return curriculum

    def chosen_round(self) -> dict[str, float]:
        """Choose, then generate: score a pool, then train on the selection with fresh rollouts."""
        config = self.config
        pool = self._draw(config.pool_size)
        choice = self._choose(pool, max(1, round(config.select_fraction * len(pool))))
        selected = [self.by_id[problem_id] for problem_id in choice.selected]
        order = self._cycled(selected, config.updates_per_round * config.batch_problems)
        self.observer.stage("update", config.updates_per_round)
        means, norms = [], []
        for step in range(config.updates_per_round):
            batch = order[step * config.batch_problems : (step + 1) * config.batch_problems]
            scored = self._rollouts(batch, config.group_size, "update", step)
            norms.append(self._update(scored))
            means.append(float(scored.rewards.mean()))
            self.observer.advance()
        return {"reward": fmean(means), "gradient_norm": fmean(norms), **self._scorer_figures(choice)}

    def _update(self, scored: ScoredRollouts) -> float:
        """The norm of the gradient; the problems trained on are scored too where the settings say so."""
        if not self.config.score_updates or not self.curriculum.adaptive:
            return self.policy.update(scored)
        version = self.policy.version
        norm, measured = self.policy.update_and_measure(scored)
        self.curriculum.record(measured, policy_version=version)
        return norm

    def weighted_round(self) -> dict[str, float]:
        """Generate, then weight: every training batch is scored, and its groups count by their weight."""
        config = self.config
        self._refresh_validation_if_due()
        drawn = self._draw(config.updates_per_round * config.batch_problems)
        self.observer.stage("update", config.updates_per_round)
        means, norms, choices = [], [], []
        for step in range(config.updates_per_round):
            batch = drawn[step * config.batch_problems : (step + 1) * config.batch_problems]
            scored = self._rollouts(batch, config.group_size, "update", step)
            choice = self._weigh(scored)
            norms.append(self.policy.update(scored, choice.weights))
            means.append(float(scored.rewards.mean()))
            choices.append(choice)
            self.observer.advance()
        weight = fmean(fmean(choice.weights.values()) for choice in choices)
        figures = {"reward": fmean(means), "gradient_norm": fmean(norms), "weight": weight}
        return {**figures, **self._scorer_figures(choices[-1])}

    def _choose(self, pool: Sequence[Problem], count: int) -> Choice:
        if not self._refresh_validation_if_due():
            ids = [problem.problem_id for problem in pool]
            return self.curriculum.choose_at_random(ids, count, round_number=self.round_number)
        self.observer.stage("score", len(pool))
        scored = self._rollouts(pool, self.config.group_size, "pool", 0)
        measured = self.policy.measure(scored, self.observer.advance)
        version = self.policy.version
        return self.curriculum.choose(measured, count, policy_version=version, round_number=self.round_number)

    def _weigh(self, scored: ScoredRollouts) -> Choice:
        ids = [problem.problem_id for problem in scored.problems]
        if self.curriculum.needs_validation or not self.curriculum.reachable():
            return self.curriculum.choose_at_random(ids, len(ids), round_number=self.round_number)
        measured = self.policy.measure(scored)
        version = self.policy.version
        return self.curriculum.choose(measured, len(ids), policy_version=version, round_number=self.round_number)

    def _refresh_validation_if_due(self) -> bool:
        """Whether the scorer is there and holds a validation gradient."""
        curriculum = self.curriculum
        if not curriculum.reachable():
            return False
        if curriculum.needs_validation or self.round_number % self.config.refresh_every == 0:
            self.observer.stage("validation", len(self.validation))
            scored = self._rollouts(self.validation, self.config.validation_rollouts, "validation", 0)
            measured = self.policy.measure_validation(scored, self.observer.advance)
            reply = curriculum.refresh_validation(measured, policy_version=self.policy.version)
            if reply is not None:
                self.policy.keep_validation(reply.validation_version)
        return not curriculum.needs_validation

    def _rollouts(self, problems: Sequence[Problem], group_size: int, purpose: str, step: int) -> ScoredRollouts:
        generator = self.policy.generator(self.round_number, purpose, step)
        return self.policy.rollouts(problems, self.data.reward, group_size, generator)

    def _rng(self, purpose: str) -> random.Random:
        return random.Random(f"{self.config.seed}/{self.round_number}/{purpose}")

    def _draw(self, count: int) -> list[Problem]:
        return self._rng("pool").sample(list(self.data.pool), min(count, len(self.data.pool)))

    def _cycled(self, problems: Sequence[Problem], count: int) -> list[Problem]:
        """`count` problems: the whole selection in random order, again and again."""
        rng = self._rng("order")
        order: list[Problem] = []
        while len(order) < count:
            order += rng.sample(list(problems), len(problems))
        return order[:count]

    def _scorer_figures(self, choice: Choice) -> dict[str, float]:
        curriculum = self.curriculum
        if not curriculum.adaptive:
            return {}
        figures: dict[str, float] = {"fallback": float(choice.fallback), "fallbacks": float(curriculum.fallbacks)}
        if curriculum.validation is not None:
            figures["coherence"] = curriculum.validation.coherence
        ranking = choice.ranking
        if ranking is not None:
            figures["scored"] = float(len(ranking.problem_ids))
            figures["no_signal"] = float(len(ranking.no_signal))
            if ranking.reliability is not None:
                figures["reliability"] = ranking.reliability
            if ranking.alignments:
                by_id = dict(zip(ranking.problem_ids, ranking.alignments, strict=True))
                figures["alignment"] = fmean(ranking.alignments)
                figures["selected_alignment"] = fmean(by_id[problem_id] for problem_id in ranking.selected)
        return figures

    def evaluate(self) -> float:
        """Mean pass rate on the held-out problems."""
        config, policy, heldout = self.config, self.policy, self.data.heldout
        self.observer.stage("evaluate", len(heldout))
        if config.evaluation == "exact":
            return float(
                exact_pass_rates(policy.model, policy.tokenizer, heldout, temperature=config.temperature).mean()
            )
        sampling = policy.sampling(config.evaluation_rollouts)
        generator = policy.generator("evaluation")
        return float(
            sampled_pass_rates(
                policy.model, policy.tokenizer, heldout, self.data.reward, sampling=sampling, generator=generator
            ).mean()
        )

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
        policy, projection = self.policy, self.policy.sketcher.projection
        state = RunState(
            run_id=self.config.run_id,
            round_number=self.round_number,
            policy_version=policy.version,
            fallbacks=self.curriculum.fallbacks,
            snapshot=self.curriculum.snapshot(f"round-{self.round_number:06d}"),
            projection=projection.id,
        )
        training: dict[str, Any] = policy.training_state()
        self.last_checkpoint = save_checkpoint(
            self.checkpoints, state, policy.model, policy.tokenizer, training, keep=self.config.checkpoints_kept
        )


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
