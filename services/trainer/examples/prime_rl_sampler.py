"""prime-rl: a task sampler that asks the scorer, by pass rates. In the module of your taskset, above the taskset:

    import prime_rl_sampler

    prime_rl_sampler.install()

with this file's folder in PYTHONPATH, and GRADALIGN_SCORER_URL and GRADALIGN_RUN_ID in the orchestrator's environment. It
stands in for prime-rl's default sampler: leave `[curriculum.sampler]` of the configuration out.

prime-rl has the right interface, `TaskSampler`, and a configuration that makes only its own two. The orchestrator loads the
taskset before it makes the sampler, so that a taskset's module can put another one there.

- What is chosen: tasks, GRADALIGN_DRAW (32) at a time; take the groups of a training step. The taskset has to be finite.
- What is reported: the rewards of each finished group, before admission gates, with the next draw.
- Ids: `task.key`. A taskset is a run of its own: GRADALIGN_RUN_ID and eight digits of its keys.
- Resume: with the orchestrator's checkpoint. Policy versions are counted in draws; the trainer's own are not known here.

Read in prime-rl at 559b447 (2026-08-21) and verifiers 0.4.0. Run against prime-rl's own Curriculum at that commit, with
verifiers' tasks and episodes, on a CPU: no inference server, no training.
"""

import os
from collections.abc import Sequence
from dataclasses import replace
from hashlib import sha256
from math import isnan
from typing import Any

from prime_rl.orchestrator.curriculum import samplers

from gradalign_trainer.adapters.base import PassRateLink, PassRateSettings


class GradAlignSampler(samplers.TaskSampler):
    """Tasks by the scorer's choice."""

    def __init__(self, tasks: Any) -> None:
        if not isinstance(tasks, Sequence) or not tasks:
            raise ValueError(
                "GradAlignSampler chooses from a finite taskset with tasks in it; this one is INFINITE or empty."
            )
        self.tasks = {task.key: task for task in tasks}
        settings, mark = PassRateSettings.from_environment(), sha256("\n".join(self.tasks).encode()).hexdigest()[:8]
        self.link = PassRateLink(replace(settings, run_id=f"{settings.run_id}-{mark}"), list(self.tasks))
        self.draw = int(os.environ.get("GRADALIGN_DRAW", "32"))
        self.draws, self.queue, self.rewards = 0, [], {}

    def __next__(self):
        if not self.queue:
            rewards, self.rewards = self.rewards, {}
            self.link.observe(rewards, self.draws)
            self.queue = self.link.next(self.draw, self.draws)
            self.draws += 1
        return self.tasks[self.queue.pop(0)]

    def observe(self, group: list) -> None:
        traces = [trace for episode in group for trace in episode.traces]
        found = [float(trace.reward) for trace in traces if not trace.has_error and trace.agent.trainable]
        self.rewards.setdefault(group[0].task.key, []).extend(found)

    def state_dict(self) -> dict[str, Any]:
        return {"link": self.link.state_dict(), "draws": self.draws, "queue": list(self.queue), "rewards": self.rewards}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.draws, self.queue = state_dict["draws"], list(state_dict["queue"])
        self.rewards = {name: list(found) for name, found in state_dict["rewards"].items()}
        self.link.load_state_dict(state_dict["link"])

    def metrics(self) -> dict[str, float]:
        return {f"gradalign/{name}": value for name, value in self.link.figures().items() if not isnan(value)}


def install() -> None:
    """Put it where prime-rl's curriculum looks for its default sampler."""
    samplers.StandardSampler = GradAlignSampler
