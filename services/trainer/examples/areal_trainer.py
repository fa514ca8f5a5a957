"""AReaL: its PPO trainer with problems that the scorer chooses by pass rates. In your training script, for `PPOTrainer`:

    from areal_trainer import CurriculumTrainer

    with CurriculumTrainer(config, train_dataset=train_dataset, valid_dataset=valid_dataset) as trainer:
        trainer.train(workflow="areal.workflow.rlvr.RLVRWorkflow", workflow_kwargs=workflow_kwargs, ...)

with this file's folder in PYTHONPATH of the script and of AReaL's workers, and GRADALIGN_SCORER_URL and GRADALIGN_RUN_ID in
the script's environment.

- What is chosen: the problems of each batch of the training set. AReaL draws ahead of the policy: GRADALIGN_COOLDOWN of
  `rollout.max_head_offpolicyness` keeps a problem from being drawn again before its rewards are known.
- What is reported: the rewards of each group that comes back. One that `dynamic_filter_fn` rejects does not: leave it out,
  the scorer's choice is there for that. `dynamic_bs` may stay.
- Ids: `problem_id` of a row, else of all its columns. Resume: with the data loader, in AReaL's recover checkpoints.
- The workflow: a `RolloutWorkflow` by its class or path that returns tensors. Agents behind the proxy are refused.
- Figures are in AReaL's statistics under gradalign/; warnings go to stderr, since AReaL's log takes its own loggers' alone.

Read in areal 1.0.4 and at 4aef98d. Run against 1.0.4 on a CPU: its trainer's `train`, rollout engine, workflow executor,
groups, data loader and recover checkpoints, in one process, with stand-ins for the actor's engine and the inference server;
no scheduler, no model. One controller only, AReaL's default: ranks of their own (AREAL_SPMD_MODE) are refused.
"""

from collections.abc import Callable, Sequence
from typing import Any

from areal.api import RolloutWorkflow
from areal.infra.data_service.rdataset import RDataset
from areal.infra.rpc.rtensor import RTensor, clear_fetch_buffer, flatten_shard_ids
from areal.trainer.rl_trainer import PPOTrainer
from areal.utils import stats_tracker
from areal.utils.dynamic_import import import_from_string
from areal.utils.environ import is_single_controller

from gradalign_trainer.adapters.base import PassRateLink, PassRateSettings
from gradalign_trainer.adapters.base.loader import CurriculumLoader
from gradalign_trainer.adapters.problemids import row_id

KEY = "gradalign"


class Named:
    """A dataset whose rows have their ids with them."""

    def __init__(self, rows: Any, names: Sequence[str]) -> None:
        self.rows, self.names = rows, names

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {**self.rows[index], KEY: self.names[index]}


class Reporting(RolloutWorkflow):
    """A workflow whose rollouts have the id of their problem with them, and are the inner one's otherwise."""

    def __init__(self, inner: str, settings: dict[str, Any]) -> None:
        self.inner = import_from_string(inner)(**settings)

    async def arun_episode(self, engine, data):
        plain = {name: value for name, value in data.items() if name != KEY}
        made = await self.inner.arun_episode(engine, plain)
        return {**made, KEY: data[KEY]} if made and "rewards" in made else made


class CurriculumTrainer(PPOTrainer):
    """AReaL's trainer; only which problems come, and what is told of them, are other."""

    def __init__(self, config, train_dataset=None, valid_dataset=None):
        if not is_single_controller():
            raise ValueError("AREAL_SPMD_MODE is set, so each rank reads data of its own; expected one controller.")
        if isinstance(train_dataset, RDataset):
            raise TypeError(
                "train_dataset.scheduling_spec is set, so rows come from AReaL's data service; expected none."
            )
        super().__init__(config, train_dataset, valid_dataset)

    def _create_dataloader(self, dataset, dataset_config, rank, world_size):
        if dataset_config is not self.config.train_dataset:
            return super()._create_dataloader(dataset, dataset_config, rank, world_size)
        names = [row_id(dataset[row]) for row in range(len(dataset))]
        self.link = PassRateLink(PassRateSettings.from_environment(), names)
        return CurriculumLoader(self.link, names, Named(dataset, names), dataset_config.batch_size)

    def train(self, workflow=None, *given, workflow_kwargs=None, dynamic_filter_fn=None, **named):
        if given:
            raise TypeError("train takes all arguments behind the workflow by name.")
        if dynamic_filter_fn is not None:
            raise ValueError(
                f"dynamic_filter_fn is {dynamic_filter_fn!r}; expected none: the rewards of a group that it rejects never "
                "come back, so such problems would be chosen again and again. The scorer leaves them out by itself."
            )
        settings = {"inner": self._path(workflow), "settings": workflow_kwargs or {}}
        self.link.step = self.rollout.get_version()
        self.actor.prepare_batch = self._told(self.actor.prepare_batch)
        try:
            super().train(Reporting, workflow_kwargs=settings, **named)
        finally:
            self.link.close()

    def _path(self, workflow: Any) -> str:
        if isinstance(workflow, type):
            workflow = f"{workflow.__module__}.{workflow.__name__}"
        if not isinstance(workflow, str) or self._requires_proxy_workflow(workflow):
            raise TypeError(f"workflow is {workflow!r:.80}; expected the class of a RolloutWorkflow, or its path.")
        return workflow

    def _told(self, prepare_batch: Callable) -> Callable:
        """The rollouts of a batch, whose rewards are told, without what names their problems."""

        def prepare(*given, **named):
            groups = prepare_batch(*given, **named)
            if not all(KEY in group for group in groups):
                raise TypeError("the workflow returned no tensors with rewards; expected what RLVRWorkflow returns.")
            columns = [group["rewards"] for group in groups]
            rewards: dict[str, list[float]] = {}
            for group, column in zip(groups, RTensor.localize(columns), strict=True):
                rewards.setdefault(group.pop(KEY), []).extend(column.flatten().tolist())
            clear_fetch_buffer(flatten_shard_ids(columns))
            self.link.observe(rewards, self.rollout.get_version())
            stats_tracker.scalar(**{f"gradalign/{name}": value for name, value in self.link.figures().items()})
            return groups

        return prepare
