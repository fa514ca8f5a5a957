"""What the recipe for Tinker touches of tinker-cookbook: itself where it is installed, else stand-ins.

The stand-ins have the signatures of tinker-cookbook 0.6.1 (and its main branch at 9dfcc3a): `RLDataset.get_batch(index)` and
`__len__`; `EnvGroupBuilder.make_envs`, `compute_group_rewards(trajectory_group, env_group)`, `cleanup`, `logging_tags`;
`ProblemGroupBuilder(env_thunk, num_envs, dataset_name)`; `do_group_rollout(builder, policy)`; `chz.chz`.
"""

import asyncio
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace

import recipekit

REAL = recipekit.installed("tinker_cookbook.rl.rollouts")
GROUP = 8


class EnvGroupBuilder:
    async def compute_group_rewards(self, trajectory_group, env_group):
        return [(0.0, {}) for _ in trajectory_group]

    async def cleanup(self): ...

    def logging_tags(self):
        return []


class Dataset:
    """As `RLDataset`."""


@dataclass(frozen=True)
class ProblemGroupBuilder(EnvGroupBuilder):
    env_thunk: object
    num_envs: int
    dataset_name: str = "problems"

    async def make_envs(self):
        return [self.env_thunk() for _ in range(self.num_envs)]

    def logging_tags(self):
        return [self.dataset_name]


async def do_group_rollout(builder, policy):
    envs = await builder.make_envs()
    steps = [await env.step([1]) for env in envs]
    await builder.compute_group_rewards([SimpleNamespace(transitions=[step]) for step in steps], envs)
    await builder.cleanup()


def install(monkeypatch):
    """Stand-ins where imports find them, if tinker-cookbook is not here."""
    if not REAL:
        types = {"EnvGroupBuilder": EnvGroupBuilder, "RLDataset": Dataset, "RLDatasetBuilder": object}
        recipekit.stand_in(
            monkeypatch,
            **{"tinker_cookbook.rl.types": types, "chz": {"chz": dataclass(frozen=True, kw_only=True)}},
        )


def parts():
    """ProblemGroupBuilder, the base of environments, do_group_rollout, and what a step gives."""
    if not REAL:
        return ProblemGroupBuilder, object, do_group_rollout, SimpleNamespace
    import tinker
    from tinker_cookbook.rl.problem_env import ProblemEnv
    from tinker_cookbook.rl.problem_env import ProblemGroupBuilder as Real
    from tinker_cookbook.rl.rollouts import do_group_rollout as rollout
    from tinker_cookbook.rl.types import StepResult

    end = {"episode_done": True, "next_observation": tinker.ModelInput.empty(), "next_stop_condition": []}
    return Real, ProblemEnv, rollout, partial(StepResult, **end)


def groups(questions):
    """A group for each question; its i-th environment rewards as the i-th attempt."""
    builder, base, _, step = parts()

    class Env(base):
        attempts = dict.fromkeys(questions, 0)

        def __init__(self, question):
            self.question = question

        def get_question(self):
            return self.question

        def get_reference_answer(self):
            return "yes"

        def check_answer(self, sample_str):
            return True

        def check_format(self, sample_str):
            return True

        async def initial_observation(self):
            import tinker

            return tinker.ModelInput.from_ints([1]), []

        async def step(self, action, *, extra=None):
            self.attempts[self.question] += 1
            return step(reward=recipekit.reward(self.question, self.attempts[self.question]))

    return [builder(env_thunk=partial(Env, question), num_envs=GROUP) for question in questions]


def dataset(questions, size=6):
    """An inner dataset: its groups in order, `size` to a batch."""
    base = Dataset
    if REAL:
        from tinker_cookbook.rl.types import RLDataset as base  # noqa: N813
    made = groups(questions)

    class Inner(base):
        def get_batch(self, index):
            return made[index * size : (index + 1) * size]

        def __len__(self):
            return (len(made) + size - 1) // size

    return Inner()


def roll_out(builder):
    """The group's rollouts, as the trainer makes and grades them; no service is called."""

    async def policy(model_input, stop, *, max_tokens=None):
        from tinker_cookbook.completers import TokensWithLogprobs

        return TokensWithLogprobs(tokens=[1], maybe_logprobs=[0.0])

    asyncio.run(parts()[2](builder, policy))
