"""The recipe for prime-rl: its own curriculum with verifiers' episodes where its source is here, else its stand-in."""

import primekit
import pytest
import recipekit
from recipekit import PROBLEMS, useful

from gradalign import Client


@pytest.fixture
def make(monkeypatch, environment):
    monkeypatch.setenv("GRADALIGN_DRAW", "8")
    primekit.install(monkeypatch)
    module = recipekit.recipe("prime_rl_sampler")
    monkeypatch.setattr(module.samplers, "StandardSampler", module.samplers.StandardSampler)
    monkeypatch.setitem(primekit.sys.modules, "prime_rl.orchestrator.curriculum.samplers", module.samplers)
    module.install()
    if primekit.REAL:
        import prime_rl.orchestrator.curriculum.base  # noqa: F401
    made = []

    def give(tasks=None):
        made.append(primekit.curriculum([primekit.task(name) for name in PROBLEMS] if tasks is None else tasks))
        return made[-1]

    yield give
    for curriculum in made:
        curriculum.sampler.link.close()


def train(curriculum, draws, group=8):
    taken = []
    for _ in range(draws):
        tasks = [next(curriculum.sampler) for _ in range(8)]
        for task in tasks:
            rewards = [recipekit.reward(primekit.question_of(task), place) for place in range(group)]
            assert curriculum.on_result([primekit.episode(task, reward) for reward in rewards])
        taken.append([primekit.question_of(task) for task in tasks])
    return taken


def run_of(scorer, run_id):
    with Client(scorer.url, run_id=run_id) as client:
        return next(run for run in client.runs() if run.run_id.startswith(f"{run_id}-"))


def test_draws_move_to_tasks_with_a_signal(make, scorer, run_id):
    curriculum = make()
    taken = train(curriculum, 12)
    assert all(len(set(batch)) == 8 for batch in taken)
    assert sum(map(useful, taken[-3:])) >= 16
    run = run_of(scorer, run_id)
    assert (run.kind, run.policy_version) == ("pass_rates", 11)
    assert curriculum.metrics()["sampler/gradalign/fallbacks"] == 0.0


def test_a_restarted_orchestrator_has_the_curriculum_of_its_checkpoint(make, scorer, run_id):
    first = make()
    train(first, 3)
    next(first.sampler)
    state = first.state_dict()
    train(first, 4)
    again = make()
    again.load_state_dict(state)
    left = [next(again.sampler).key for _ in range(7)]
    assert left == state["sampler"]["queue"]  # the draw that it was in
    next(again.sampler)
    run = run_of(scorer, run_id)
    assert (run.policy_version, run.epoch) == (4, 2)


def test_without_a_scorer_every_task_comes_in_turn(make, environment):
    environment(url=recipekit.GONE)
    taken = train(make(), 3)
    assert sorted(name for batch in taken for name in batch) == sorted(PROBLEMS)


def test_an_endless_taskset_is_refused(make):
    with pytest.raises(ValueError, match="finite taskset"):
        make(iter([primekit.task("half0")]))


def test_it_is_short():
    assert recipekit.lines_of("prime_rl_sampler") < 150
