"""NeMo-RL: its GRPO with problems that the scorer chooses by pass rates. Run your script through it, its options behind it:

    export GRADALIGN_SCORER_URL=http://HOST:8000 GRADALIGN_RUN_ID=my-run
    uv run python nemo_rl_driver.py examples/run_grpo.py --config examples/configs/grpo_math_1B.yaml ...

NeMo-RL has a setting for a function that picks rows (`data.custom_dataloader`), which never sees a reward. So this gives
`grpo_train` of nemo_rl.algorithms.grpo another data loader, and looks at the rewards where they are scaled.

- What is chosen: the problems of each batch of the training set, in place of `data.shuffle`.
- What is reported: the total reward of each rollout before it is scaled, of groups too that dynamic sampling drops.
- Ids: `problem_id` of a row of the dataset, else of all its columns; before its processor.
- Resume: with the data loader, `train_dataloader.pt` of a checkpoint.

Read at 7ea279a. Run against it on a CPU: its `grpo_train`, dataset, collation, rollouts, dynamic sampling, advantages and
checkpoints, with stand-ins for the policy, its generation and Ray's calls of the environment; no model was trained. Refused,
since rollouts are made elsewhere there: asynchronous GRPO, the data plane, NeMo-Gym, and several loaders.
"""

import functools
import inspect
import runpy
import sys

from nemo_rl.algorithms import grpo

from gradalign_trainer.adapters.base import PassRateLink, PassRateSettings
from gradalign_trainer.adapters.base.loader import CurriculumLoader
from gradalign_trainer.adapters.problemids import row_id


class Curriculum:
    """What one call of `grpo_train` is given in place of its data loader, and what looks on meanwhile.

    Args:
        given: the arguments of that call, by name.
        settings: of the run.
    """

    def __init__(self, given: dict, settings: PassRateSettings) -> None:
        plain, self.policy, self.logger = given["wrapped_dataloader"], given["policy"], given["logger"]
        self.names = [row_id(row) for row in plain.dataset.dataset]
        self.link = PassRateLink(settings, self.names)
        self.loader = CurriculumLoader(self.link, self.names, plain.dataset, plain.batch_size, plain.collate_fn)
        path = given["checkpointer"].get_latest_checkpoint_path()
        if path is not None:
            grpo.load_dataloader_state(self.loader, path, given["master_config"].data)
        self.link.step = given["grpo_save_state"].total_steps
        self.scale_rewards, self.train = grpo.scale_rewards, self.policy.train

    def __enter__(self) -> CurriculumLoader:
        grpo.scale_rewards, self.policy.train = self._told, self._trained
        return self.loader

    def __exit__(self, *_) -> None:
        grpo.scale_rewards, self.policy.train = self.scale_rewards, self.train
        self.link.close()

    def _told(self, batch, *given, **named):
        rewards: dict[str, list[float]] = {}
        for row, reward in zip(batch["idx"], batch["total_reward"], strict=True):
            rewards.setdefault(self.names[int(row)], []).append(float(reward))
        self.link.observe(rewards)
        self.logger.log_metrics(self.link.figures(), self.link.step + 1, prefix="gradalign")
        return self.scale_rewards(batch, *given, **named)

    def _trained(self, *given, **named):
        results = self.train(*given, **named)
        self.link.step += 1
        return results


def refuse(config) -> None:
    """Raise SystemExit where rewards do not come by here."""
    faults = {
        "grpo.async_grpo.enabled": config.grpo.async_grpo.enabled,
        "data_plane.enabled": (config.data_plane or {}).get("enabled"),
        "data.use_multiple_dataloader": config.data["use_multiple_dataloader"],
        "env.should_use_nemo_gym": config.env.get("should_use_nemo_gym"),
    }
    found = [name for name, value in faults.items() if value]
    if found:
        raise SystemExit(f"{', '.join(found)} is set, which nemo_rl_driver.py cannot choose for; expected false.")


def install(settings: PassRateSettings) -> None:
    """Put both where NeMo-RL's scripts import them from."""
    setup, train = grpo.setup, grpo.grpo_train

    @functools.wraps(setup)
    def checked(master_config, *given, **named):
        refuse(master_config)
        return setup(master_config, *given, **named)

    @functools.wraps(train)
    def chosen(*given, **named):
        call = inspect.signature(train).bind(*given, **named)
        with Curriculum(call.arguments, settings) as loader:
            call.arguments["wrapped_dataloader"] = loader
            return train(*call.args, **call.kwargs)

    grpo.setup, grpo.grpo_train = checked, chosen


def main() -> None:
    """The script that the first argument names, with the others."""
    if len(sys.argv) < 2 or not sys.argv[1].endswith(".py"):
        raise SystemExit(f"got {sys.argv[1:]}; expected the path of NeMo-RL's examples/run_grpo.py, then its options.")
    install(PassRateSettings.from_environment())
    del sys.argv[0]
    runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    main()
