"""SkyRL: its trainer with prompts that the scorer chooses by pass rates. One option more for its own command:

    export GRADALIGN_SCORER_URL=http://HOST:8000 GRADALIGN_RUN_ID=my-run
    python -m skyrl.train.entrypoints.main_base trainer.override_entrypoint=skyrl_trainer ...

with this file's folder in PYTHONPATH, here and in Ray's workers. Where you have an entry point of your own, take
`CurriculumTrainer` in its `get_trainer`.

- What is chosen: the prompts of each generation, in the place of the shuffled training set. An epoch is as long as it was.
- What is reported: the rewards of all rollouts, of groups too that dynamic sampling drops; of a trajectory of several steps
  that of its last. Rewards of single tokens are added up.
- Ids: `problem_id` of a row, else of all its columns. Resume: with the data loader, in SkyRL's checkpoints.

Read in skyrl 0.3.0 and at a956457. Run against 0.3.0 on a CPU: its trainer's `train`, prompts, dynamic sampling, checkpoints
and `get_trainer`, with stand-ins for the generator and the workers; no inference engine, no model, no Ray cluster. The fully
asynchronous trainer has a loader and a loop of its own: not for this file.
"""

import sys

import ray
from skyrl.train.config import SkyRLTrainConfig
from skyrl.train.entrypoints.main_base import BasePPOExp
from skyrl.train.trainer import RayPPOTrainer
from skyrl.train.utils import validate_cfg
from skyrl.train.utils.utils import initialize_ray

from gradalign_trainer.adapters.base import PassRateLink, PassRateSettings
from gradalign_trainer.adapters.base.loader import CurriculumLoader
from gradalign_trainer.adapters.problemids import row_id


class CurriculumTrainer(RayPPOTrainer):
    """SkyRL's trainer; only which prompts come, and what is told of them, are other."""

    settings: PassRateSettings | None = None
    """Of the environment where None."""

    def _build_train_dataloader_and_compute_training_steps(self):
        super()._build_train_dataloader_and_compute_training_steps()
        if self.train_dataset is None:
            raise ValueError("CurriculumTrainer chooses from data.train_data; expected a training set.")
        self.names = [row_id(row) for row in self.train_dataset.dataframe]
        self.link = PassRateLink(self.settings or PassRateSettings.from_environment(), self.names)
        self.train_dataloader = CurriculumLoader(
            self.link,
            self.names,
            self.train_dataset,
            self.cfg.trainer.train_batch_size,
            self._batch,
        )

    def _batch(self, items):
        """SkyRL's batch. Under dynamic sampling a step has several, and wants no prompt twice by its name."""
        self.drawn = getattr(self, "drawn", 0) + 1
        return [{**each, "uid": f"{each['uid']}.{self.drawn}"} for each in self.train_dataset.collate_fn(items)]

    async def train(self):
        try:
            await super().train()
        finally:
            self.link.close()

    async def generate(self, input_batch):
        made = await super().generate(input_batch)
        rows = (input_batch if made.get("is_last_step") is None else made)["trajectory_ids"]
        ends = made.get("is_last_step") or [True] * len(rows)
        rewards: dict[str, list[float]] = {}
        for row, end, reward in zip(rows, ends, made["rewards"], strict=True):
            if end:
                total = sum(reward) if isinstance(reward, list) else reward
                rewards.setdefault(self.names[int(row.instance_id.partition(".")[0])], []).append(float(total))
        self.link.observe(rewards, self.global_step - 1)
        self.all_metrics.update({f"gradalign/{name}": value for name, value in self.link.figures().items()})
        return made

    def train_critic_and_policy(self, data):
        status = super().train_critic_and_policy(data)
        self.link.step = self.global_step
        return status

    def load_checkpoints(self):
        found = super().load_checkpoints()
        self.link.step = found[0]
        return found


class CurriculumExp(BasePPOExp):
    """SkyRL's experiment, with this trainer."""

    def get_trainer(self, **given):
        return CurriculumTrainer(**given)


@ray.remote(num_cpus=1)
def run(cfg: SkyRLTrainConfig, settings: PassRateSettings) -> None:
    """The experiment, off the head node, as SkyRL runs its own."""
    CurriculumTrainer.settings = settings
    CurriculumExp(cfg).run()


def main() -> None:
    """What `trainer.override_entrypoint` calls."""
    settings = PassRateSettings.from_environment()
    own = [argument for argument in sys.argv[1:] if not argument.startswith("trainer.override_entrypoint=")]
    cfg = SkyRLTrainConfig.from_cli_overrides(own)
    validate_cfg(cfg)
    initialize_ray(cfg)
    ray.get(run.remote(cfg, settings))
