"""verl's v1 trainers with a curriculum, read along verl's own course of a step.

    sampler draws the problems ("select"), with validation problems now and then -> verl generates, rewards, takes
    log-probs and advantages -> the actor's workers take products -> the scorer ranks -> advantages times weights
    ("weight"), validation rows out of the loss -> verl updates

The driver alone talks to the scorer. Whatever fails here is said once, and verl goes on without us.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, TypeVar

import ray
import torch
import transfer_queue as tq
from omegaconf import OmegaConf, open_dict
from tensordict import TensorDict
from torch import Tensor
from torchdata.stateful_dataloader import StatefulDataLoader
from transfer_queue import KVBatchMeta
from verl.trainer.ppo.v1.trainer_base import PPOTrainer, register_trainer
from verl.trainer.ppo.v1.trainer_colocate_async import PPOTrainerColocateAsync
from verl.trainer.ppo.v1.trainer_sync import PPOTrainerSync
from verl.utils.dataset.rl_dataset import collate_fn
from verl.workers.engine_workers import ActorRolloutRefWorker

from gradalign.errors import GradAlignError
from gradalign.wire.replies import Ranking
from gradalign_trainer.adapters.base.figures import batch_figures
from gradalign_trainer.adapters.verl.problems import mark_problems
from gradalign_trainer.adapters.verl.v1.link import ScorerLink
from gradalign_trainer.adapters.verl.v1.meter import CANDIDATES, VALIDATED, one_a_row
from gradalign_trainer.adapters.verl.v1.rows import COLUMNS, BatchRows, batch_rows
from gradalign_trainer.adapters.verl.v1.sampler import CurriculumSampler
from gradalign_trainer.adapters.verl.v1.settings import SECTION, GradAlignSettings
from gradalign_trainer.adapters.verl.v1.worker import MEASURED, OFFLOAD, PRODUCTS, MeasuringWorker

__all__ = ["GradAlignColocateAsync", "GradAlignMixin", "GradAlignSync"]

T = TypeVar("T")
logger = logging.getLogger(__name__)


class GradAlignMixin(PPOTrainer):  # type: ignore[misc]
    """A curriculum for a trainer of verl's; `mode` is the `trainer_mode` that it is registered under at verl.

    Args:
        config: verl's, with a section `gradalign`.

    Raises:
        GradAlignError: settings are missing or wrong, or the actor is held in a way that it cannot be measured.
    """

    mode: ClassVar[str]

    def __init__(self, config: Any) -> None:
        section = OmegaConf.select(config, SECTION)
        plain: Any = None if section is None else OmegaConf.to_container(section, resolve=True)
        self._gradalign = GradAlignSettings.from_section(plain)
        _check_actor(config)
        with open_dict(config):
            config.trainer.v1.trainer_mode = self.mode
        super().__init__(config)
        self._link = ScorerLink(self._gradalign)
        self._off, self._said = False, ""

    def _init_dataloader(self) -> None:
        super()._init_dataloader()
        data, settings = self.config.data, self._gradalign
        rows = mark_problems(self.train_dataset, data.get("prompt_key", "prompt"), settings.trusted_sources)
        if not rows.trusted:
            raise GradAlignError(
                "no problem of data.train_files is trusted, so there is nothing to align with. Name the data_source of the "
                "trusted rows, +gradalign.trusted_sources=[NAME], or mark them by extra_info.gradalign = 'trusted'."
            )
        seed = data.get("seed")
        self._sampler = CurriculumSampler(
            rows,
            int(data.train_batch_size),
            refresh_every=settings.refresh_every,
            trusted_share=settings.trusted_share,
            seed=settings.seed if seed is None else int(seed),
            shuffle=bool(data.get("shuffle", True)),
            choose=self._choose,
            missing=lambda: self._link.needs_validation,
            joins=lambda: not (self._off or self._link.away),
        )
        self.train_dataloader = StatefulDataLoader(
            dataset=self.train_dataset,
            batch_size=int(data.get("gen_batch_size") or data.train_batch_size),
            num_workers=0,  # others would draw batches long before their priorities are there
            drop_last=True,
            collate_fn=collate_fn,
            sampler=self._sampler,
        )

    def _init_resource_pool_mgr(self) -> None:
        super()._init_resource_pool_mgr()
        classes = {
            role: getattr(worker, "__ray_actor_class__", worker) for role, worker in self.role_worker_mapping.items()
        }
        actors = [role for role, own in classes.items() if own is ActorRolloutRefWorker]
        if not actors:
            names = ", ".join(getattr(own, "__name__", str(own)) for own in classes.values())
            raise GradAlignError(
                f"the workers are {names}; expected verl's own ActorRolloutRefWorker, which is given the measuring. Does "
                "another plugin or a trainer of your own put in its own class? Let that be a MeasuringWorker."
            )
        for role in actors:
            self.role_worker_mapping[role] = ray.remote(MeasuringWorker)

    def on_init_end(self) -> None:
        """Meet the scorer, with the checkpoint loaded.

        Raises:
            GradAlignError: the scorer is there, and what it holds of this run is not this run's.
        """
        super().on_init_end()
        self._link.begin(self.global_steps, _snapshot_name(self.global_steps) if self.global_steps else "")

    def fit(self, agent_loop_manager: Any) -> None:
        """As verl's; the connections are closed behind it."""
        try:
            super().fit(agent_loop_manager)
        finally:
            self._link.close()

    def _compute_advantage(self, batch: Any, metrics: dict[str, Any]) -> Any:
        batch = super()._compute_advantage(batch, metrics)
        read = self._guarded(lambda: self._read(batch))
        if read is not None:
            rows, columns = read
            factors = None if self._off else self._guarded(lambda: self._factors(batch, rows, metrics))
            self._guarded(lambda: self._write(batch, rows, columns, factors))
        return batch

    def _save_checkpoint(self) -> None:
        self._guarded(lambda: None if self._off else self._link.snapshot(_snapshot_name(self.global_steps)))
        super()._save_checkpoint()

    @property
    def _version(self) -> int:
        """Steps behind the run; verl counts the one that it is at, once it trains."""
        return max(int(self.global_steps) - 1, 0)

    def _choose(self, pool: Sequence[str], count: int, draw: int) -> Sequence[str]:
        if self._off or not self._gradalign.selects:
            return ()
        return self._guarded(lambda: self._link.select(pool, count, self._version, draw)) or ()

    def _read(self, batch: Any) -> tuple[BatchRows, Any]:
        columns: Any = tq.kv_batch_get(keys=batch.keys, partition_id=batch.partition_id, select_fields=list(COLUMNS))
        return batch_rows(columns, batch.tags), columns

    def _factors(self, batch: Any, rows: BatchRows, metrics: dict[str, Any]) -> Tensor | None:
        """What rows' advantages are multiplied by; None where they stay as they are."""
        link, settings = self._link, self._gradalign
        pooled = settings.aggregation == "pooled"
        ranking: Ranking | None = None
        measured: dict[str, float] = {}
        if link.reachable() and (rows.part(trusted=True) or not link.needs_validation):
            products, found = self._measured(batch, rows, pooled=pooled)
            self._say(found["fault"], lasting=found["lasting"])
            if not found["held"]:
                link.unmeasured()
            # Also where the candidates behind it failed: what comes next is measured with the new one.
            if rows.part(trusted=True) and (found["length"] is not None or not found["fault"]):
                link.refresh(rows.validation(products, found["length"] or 0.0, pooled=pooled), self._version)
            candidates = rows.candidates(products, rollout_weights=settings.rollout_weights)
            if found["held"] and not found["fault"] and candidates.problem_ids:
                ranking = link.score(candidates, self._version)
            measured = found["figures"]
        if ranking is None:
            link.count_fallback()
        figures = {**batch_figures(link, ranking), **measured}
        metrics.update({f"gradalign/{name}": value for name, value in figures.items()})
        return rows.factors(ranking) if ranking is not None and settings.weighs else None

    def _say(self, fault: str, *, lasting: bool) -> None:
        """A fault of measuring, once for all batches that follow with the same."""
        if lasting:
            raise GradAlignError(f"the actor's workers cannot measure: {fault}")
        if fault and fault != self._said:
            logger.warning("No products can be taken of this batch, and of those to come while this lasts: %s", fault)
        self._said = fault

    def _measured(self, batch: Any, rows: BatchRows, *, pooled: bool) -> tuple[Tensor, dict[str, Any]]:
        """The products of all rows, float64 [B], and what the workers say of them."""
        shares = {VALIDATED: rows.shares(trusted=True, pooled=pooled), CANDIDATES: rows.shares(trusted=False)}
        columns = TensorDict({name: each[:, None] for name, each in shares.items()}, batch_size=len(batch))
        tq.kv_batch_put(keys=batch.keys, partition_id=batch.partition_id, fields=columns)
        asked = KVBatchMeta(
            keys=batch.keys,
            tags=batch.tags,
            partition_id=batch.partition_id,
            extra_info={
                "temperature": self.config.actor_rollout_ref.rollout.temperature,
                OFFLOAD: self._gradalign.offload,
            },
        )
        answer = self.actor_rollout_wg.measure_alignment(asked)
        found = tq.kv_batch_get(keys=batch.keys, partition_id=batch.partition_id, select_fields=[PRODUCTS])
        each = answer.extra_info[MEASURED]
        return one_a_row(found[PRODUCTS]).double(), _of_all_ranks(each if isinstance(each, list) else [each])

    def _write(self, batch: Any, rows: BatchRows, columns: Any, factors: Tensor | None) -> None:
        """Weigh candidates' advantages; unless they are trained on, take validation rows out of all terms of the loss, as
        verl does filling rows."""
        written: dict[str, Tensor] = {}
        if factors is not None:
            written["advantages"] = _times(columns["advantages"], factors)
        if bool(rows.trusted.any()) and not self._gradalign.train_on_trusted:
            kept = (~rows.trusted).long()
            written["advantages"] = _times(written.get("advantages", columns["advantages"]), kept)
            written |= {name: _times(columns[name], kept) for name in ("response_mask", "loss_mask")}
        if written:
            fields = TensorDict(written, batch_size=len(batch))
            tq.kv_batch_put(keys=batch.keys, partition_id=batch.partition_id, fields=fields)

    def _guarded(self, call: Callable[[], T]) -> T | None:
        """What a call gives; where it fails, None from now on, said once: training is never stopped by us."""
        try:
            return call()
        except Exception as error:
            if not self._off:
                logger.exception(
                    "GradAlign is off from here on, and training goes on as verl's own: %s. Problems are drawn in plain "
                    "order, and all weights are 1.",
                    error,
                )
            self._off = True
            return None


@register_trainer("gradalign_sync")
class GradAlignSync(GradAlignMixin, PPOTrainerSync):  # type: ignore[misc]
    """verl's `sync` trainer with a curriculum."""

    mode = "sync"


@register_trainer("gradalign_colocate_async")
class GradAlignColocateAsync(GradAlignMixin, PPOTrainerColocateAsync):  # type: ignore[misc]
    """verl's `colocate_async` trainer with a curriculum."""

    mode = "colocate_async"


def _check_actor(config: Any) -> None:
    actor = config.actor_rollout_ref.actor
    if actor.strategy != "fsdp2":
        raise GradAlignError(
            f"actor_rollout_ref.actor.strategy = {actor.strategy!r}: products are taken in FSDP2's shards, and this engine "
            "cannot say where its shards lie. Set actor_rollout_ref.actor.strategy=fsdp2."
        )
    ranks = OmegaConf.select(config, "actor_rollout_ref.actor.fsdp_config.ulysses_sequence_parallel_size") or 1
    if int(ranks) > 1:
        raise GradAlignError(
            f"actor_rollout_ref.actor.fsdp_config.ulysses_sequence_parallel_size = {ranks}: it gives the same rows to "
            "several ranks, whose products would count twice. Set it to 1."
        )


def _snapshot_name(step: int) -> str:
    return f"verl-global_step_{step}"


def _times(rows: Tensor, factors: Tensor) -> Tensor:
    """Jagged rows, [B, T], each times its factor."""
    parts = [row * factor.to(row) for row, factor in zip(rows.unbind(), factors, strict=True)]
    return torch.nested.as_nested_tensor(parts, layout=torch.jagged)


def _of_all_ranks(each: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What the ranks say together: a fault of one of them is one of all."""
    faults = [own["fault"] for own in each if own["fault"]]
    return {**each[0], "held": all(own["held"] for own in each), "fault": faults[0] if faults else ""}
