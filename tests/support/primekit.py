"""What the recipe for prime-rl touches of it: its Curriculum where its source is in PYTHONPATH, else a stand-in.

prime-rl is on no package index. The stand-in has the signatures of prime-rl at 559b447: `TaskSampler` with `__next__`,
`observe(group)`, `state_dict`, `load_state_dict` and `metrics`; `Curriculum(config, tasks)`, which makes the sampler that
`samplers.StandardSampler` names, with `on_result(group)`; and of verifiers 0.4.0 a task's `key`, and an episode's `task` and
`traces` with `reward`, `has_error` and `agent.trainable`.
"""

import sys
from types import SimpleNamespace

import recipekit

REAL = recipekit.source_here("prime_rl")


class TaskSampler:
    def __iter__(self):
        return self


class Curriculum:
    def __init__(self, config, tasks):
        self.sampler = sys.modules["prime_rl.orchestrator.curriculum.samplers"].StandardSampler(tasks)

    def on_result(self, group):
        self.sampler.observe(group)
        return True

    def state_dict(self):
        return {"sampler": self.sampler.state_dict(), "gates": {}}

    def load_state_dict(self, state_dict):
        self.sampler.load_state_dict(state_dict["sampler"])

    def metrics(self):
        return {f"sampler/{name}": float(value) for name, value in self.sampler.metrics().items()}


def install(monkeypatch):
    """Stand-ins where imports find them, if prime-rl is not here."""
    if not REAL:
        modules = {"TaskSampler": TaskSampler, "StandardSampler": TaskSampler}
        recipekit.stand_in(
            monkeypatch,
            **{"prime_rl.orchestrator.curriculum.samplers": modules, "prime_rl.orchestrator.curriculum.base": {}},
        )
        sys.modules["prime_rl.orchestrator.curriculum.base"].Curriculum = Curriculum


def curriculum(tasks):
    """The curriculum of an environment without settings."""
    return sys.modules["prime_rl.orchestrator.curriculum.base"].Curriculum(None, tasks)


def task(question):
    if not REAL:
        return SimpleNamespace(key=question, prompt=question)
    import verifiers.v1 as vf

    return vf.Task(vf.TaskData(idx=0, prompt=question))


def question_of(task):
    return task.data.prompt if REAL else task.prompt


def episode(task, reward):
    """A finished rollout of a task."""
    if not REAL:
        trace = SimpleNamespace(reward=reward, has_error=False, agent=SimpleNamespace(trainable=True))
        return SimpleNamespace(task=task, traces=[trace])
    import verifiers.v1 as vf

    told = vf.TraceTask(type=type(task).__name__, data=task.data, key=task.key, hash=task.hash)
    trace = vf.Trace(
        task=told,
        agent=vf.AgentInfo(config=vf.AgentConfig()),
        nodes=[],
        rewards={"r": vf.Reward(score=reward)},
        ok=True,
    )
    return vf.Episode(env=vf.EnvInfo(id="e", name="e"), task=told, group=vf.GroupInfo(id="g"), traces=[trace])
