"""Tinker: an `RLDataset` whose batches the scorer chooses by pass rates; no gradient leaves Tinker, and none is needed.

    export GRADALIGN_SCORER_URL=http://HOST:8000 GRADALIGN_RUN_ID=my-run      # of the process that runs rl/train.py
    dataset_builder = CurriculumBuilder(inner=..., groups_per_batch=64, steps=400, log_path=..., save_every=20)

in the `Config` of tinker_cookbook/rl/train.py, around the builder that it had. Where the base's own groups are no
`ProblemGroupBuilder`, give `CurriculumDataset` a `problem_id` of yours.

- What is chosen: the groups of each batch, out of all that the inner dataset has. An epoch has no meaning here; `steps` says
  how long the training is.
- What is reported: each group's rewards, once it is graded, constant ones too, with the next batch.
- Resume: every `save_every` batches, those of the trainer's checkpoints, the state goes to LOG_PATH/gradalign.

Read against tinker-cookbook 0.6.1 and its main branch at 9dfcc3a. Run against 0.6.1 on a CPU: its own RLDataset,
ProblemGroupBuilder and do_group_rollout, with a policy that needs no service. Tinker's service itself was not called.
Rollouts have to run in the trainer's process (no `set_rollout_executor`): a report cannot leave another one.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import chz
from tinker_cookbook.rl.types import EnvGroupBuilder, RLDataset, RLDatasetBuilder

from gradalign_trainer.adapters.base import PassRateLink, PassRateSettings
from gradalign_trainer.adapters.problemids import stable_id


def content_of(builder: Any) -> str:
    """The id of the problem of a ProblemGroupBuilder, by its question and answer."""
    env = builder.env_thunk()
    return stable_id(env.get_question(), env.get_reference_answer(), builder.dataset_name)


class Reporting(EnvGroupBuilder):
    """A group that tells its rewards when it is graded, and is the inner one otherwise."""

    def __init__(self, inner: EnvGroupBuilder, report: Callable[[Sequence[float]], None]) -> None:
        self.inner, self.report = inner, report

    async def make_envs(self):
        return await self.inner.make_envs()

    async def compute_group_rewards(self, trajectory_group, env_group):
        graded = await self.inner.compute_group_rewards(trajectory_group, env_group)
        steps = (sum(step.reward for step in trajectory.transitions) for trajectory in trajectory_group)
        self.report([total + reward for total, (reward, _) in zip(steps, graded, strict=True)])
        return graded

    async def cleanup(self) -> None:
        await self.inner.cleanup()

    def logging_tags(self) -> list[str]:
        return self.inner.logging_tags()

    def __reduce__(self):
        raise TypeError("a Reporting group stays in the trainer's process; take set_rollout_executor(None).")


class CurriculumDataset(RLDataset):
    """Batches by the scorer's choice.

    Args:
        inner: its groups are the pool.
        groups_per_batch: groups of a batch.
        steps: batches of the whole training.
        folder: where the state is kept; None keeps none.
        save_every: batches between two checkpoints of the trainer.
        problem_id: of a group.
    """

    def __init__(
        self,
        inner: RLDataset,
        groups_per_batch: int,
        steps: int,
        *,
        folder: Path | None = None,
        save_every: int = 20,
        problem_id: Callable[[Any], str] = content_of,
        settings: PassRateSettings | None = None,
    ) -> None:
        groups = [group for index in range(len(inner)) for group in inner.get_batch(index)]
        self.pool = {problem_id(group): group for group in groups}
        self.link = PassRateLink(settings or PassRateSettings.from_environment(), list(self.pool))
        self.size, self.steps, self.folder, self.save_every = groups_per_batch, steps, folder, save_every
        self.rewards: dict[str, list[float]] = {}
        self.begun = False

    def __len__(self) -> int:
        return self.steps

    def get_batch(self, index: int) -> Sequence[EnvGroupBuilder]:
        if not self.begun and index:
            self._resume(index)
        self.begun = True
        rewards, self.rewards = self.rewards, {}
        self.link.observe(rewards, max(index - 1, 0))
        if self.folder and index and index % self.save_every == 0:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._state(index).write_text(json.dumps(self.link.state_dict()), encoding="utf-8")
        return [Reporting(self.pool[name], self._told(name)) for name in self.link.next(self.size, index)]

    def _told(self, name: str) -> Callable[[Sequence[float]], None]:
        return lambda rewards: self.rewards.setdefault(name, []).extend(rewards)

    def _state(self, index: int) -> Path:
        return self.folder / f"{index:06d}.json"

    def _resume(self, index: int) -> None:
        if self.folder and self._state(index).exists():
            self.link.load_state_dict(json.loads(self._state(index).read_text(encoding="utf-8")))
        else:
            self.link.begin(index)


@chz.chz
class CurriculumBuilder(RLDatasetBuilder):
    """Builds `CurriculumDataset` around what another builder builds; its test set stays as it is."""

    inner: RLDatasetBuilder
    groups_per_batch: int
    steps: int
    log_path: str
    save_every: int = 20

    async def __call__(self) -> tuple[RLDataset, RLDataset | None]:
        train, test = await self.inner()
        folder = Path(self.log_path) / "gradalign"
        made = CurriculumDataset(train, self.groups_per_batch, self.steps, folder=folder, save_every=self.save_every)
        return made, test
