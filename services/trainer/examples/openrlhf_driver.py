"""OpenRLHF: its PPO trainer with prompts that the scorer chooses by pass rates. Run it in place of its own command:

    export GRADALIGN_SCORER_URL=http://HOST:8000 GRADALIGN_RUN_ID=my-run
    python openrlhf_driver.py --reward.remote_url reward_func.py ...        # as `python -m openrlhf.cli.train_ppo_ray ...`

OpenRLHF has no setting for a sampler. So this puts a subclass of its trainer where its command looks for the trainer.

- What is chosen: the prompts of each generation, by a sampler in the trainer's own kind of data loader.
- What is reported: the score of every rollout, else its reward, of groups too that dynamic filtering drops. It has to come
  with the rollout: a reward function, a remote reward or an agent. A reward model's comes later, and is not seen.
- Ids: of prompt and label. Resume: with the trainer's client states (`--ckpt.save_steps`, `--ckpt.load_enable`).

Read in openrlhf 0.11.2. Run against it on a CPU: its trainer's `fit`, samples generator, dataset and checkpoint states, with
stand-ins for vLLM, DeepSpeed and the models. No model was trained. `--train.async_enable` has another trainer: refused.
"""

import runpy
import sys

import ray
from openrlhf.trainer import ppo_trainer
from torchdata.stateful_dataloader import StatefulDataLoader

from gradalign_trainer.adapters.base import PassRateLink, PassRateSettings, ProblemSampler
from gradalign_trainer.adapters.problemids import stable_id


class ReportingGenerator(ppo_trainer.SamplesGenerator):
    """Notes how each rollout for training did."""

    def __init__(self, **settings):
        super().__init__(**settings)
        self.noting, self.noted = False, {}

    def generate_samples(self, **generate_kwargs):
        self.noting = True
        try:
            return super().generate_samples(**generate_kwargs)
        finally:
            self.noting = False

    def _process_response_into_experience(self, response, **generate_kwargs):
        made = super()._process_response_into_experience(response, **generate_kwargs)
        reward = made.rewards if made.scores is None else made.scores
        if self.noting and reward is not None:
            name = stable_id(response["prompt"], response["label"])
            self.noted.setdefault(name, []).append(float(reward[0]))
        return made

    def taken(self):
        """What was noted since the last call, rewards by problem."""
        noted, self.noted = self.noted, {}
        return noted


class CurriculumTrainer(ppo_trainer.PPOTrainer.__ray_actor_class__):
    """OpenRLHF's trainer; only where prompts come from, what is told of them and what a checkpoint keeps are other."""

    settings: PassRateSettings

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        dataset, rollout = self.prompts_dataloader.dataset, self.args.rollout
        names = [stable_id(prompt, label) for prompt, label in zip(dataset.prompts, dataset.labels, strict=True)]
        self.link = PassRateLink(self.settings, names)
        drawn = getattr(rollout, "vllm_generate_batch_size", None) or rollout.batch_size
        self.prompts_dataloader = StatefulDataLoader(
            dataset,
            batch_size=1,
            sampler=ProblemSampler(self.link, names, drawn),
            drop_last=True,
            collate_fn=dataset.collate_fn,
        )
        plain = self.samples_generator
        self.samples_generator = ReportingGenerator(
            strategy=self.strategy,
            prompts_dataloader=self.prompts_dataloader,
            eval_dataloader=self.eval_dataloader,
            tokenizer=plain.tokenizer,
            vllm_engines=plain.vllm_engines,
        )

    def fit(self, global_step=0):
        try:
            super().fit(global_step)
        finally:
            self.link.close()

    def train_step(self, rollout_samples, global_step):
        self.link.observe(self.samples_generator.taken(), global_step)
        status, global_step = super().train_step(rollout_samples, global_step)
        self.link.step = global_step
        return status | {f"gradalign/{name}": value for name, value in self.link.figures().items()}, global_step

    def save_logs_and_checkpoints(self, global_step, logs_dict=None, client_states=None):
        client_states = client_states or {}
        if global_step % self.args.ckpt.save_steps == 0:
            client_states["gradalign"] = self.link.state_dict()
        super().save_logs_and_checkpoints(global_step, logs_dict, client_states)

    def init_checkpoint_states(self):
        states = super().init_checkpoint_states()
        if states.get("gradalign"):
            self.link.load_state_dict(states["gradalign"])
        return states


def main():
    """OpenRLHF's own command, with this trainer."""
    if "--train.async_enable" in sys.argv:
        raise SystemExit(
            "--train.async_enable takes another trainer than the one that this file changes; leave it out."
        )
    CurriculumTrainer.settings = PassRateSettings.from_environment()
    ppo_trainer.PPOTrainer = ray.remote(CurriculumTrainer)
    runpy.run_module("openrlhf.cli.train_ppo_ray", run_name="__main__")


if __name__ == "__main__":
    main()
