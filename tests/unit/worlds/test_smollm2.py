"""The world of SmolLM2, as far as it goes without the model: problems, parts, and runs of every method."""

import json
import re

import pytest
from toyworld import toy_world

from gradalign import GradAlignError
from gradalign_trainer.datasets import load_problems
from gradalign_trainer.datasets.records.schema import DataError
from gradalign_trainer.reproduce.grid.cells import Cell, Recipe, run_id
from gradalign_trainer.reproduce.grid.methods import METHODS
from gradalign_trainer.rewards.registry import make_reward
from gradalign_trainer.settings import SettingsError
from gradalign_trainer.worlds.tasks.registry import WORLDS, world_of
from gradalign_trainer.worlds.tasks.smollm2 import HELDOUT, LEVEL, OFF_TARGET, SHAPE, SmolLM2World
from gradalign_trainer.worlds.tasks.spoiling import REGIMES

WORLD = SmolLM2World()
ALONE = [regime for regime in REGIMES if regime not in ("imbalance", "low-utility")]


@pytest.mark.parametrize("regime", ALONE)
def test_parts_share_no_prompt_and_are_seeded(regime):
    one, again, other = (WORLD.parts(regime, seed=seed) for seed in (0, 0, 1))
    assert one == again
    assert one.pool != other.pool
    prompts = [problem.prompt for part in (one.pool, one.validation, one.heldout) for problem in part]
    assert len(set(prompts)) == len(prompts) == WORLD.scale.pool + WORLD.scale.trusted + HELDOUT
    assert HELDOUT >= 300
    trusted = [*one.validation, *one.heldout]
    assert all(problem.extra["good"] and problem.extra["grader"] == "honest" for problem in trusted)
    assert {problem.source for problem in trusted} == {f"words/{LEVEL}"}


def test_trusted_and_heldout_problems_are_the_same_in_all_regimes():
    parts = [WORLD.parts(regime, seed=0) for regime in ALONE]
    assert all(each.validation == parts[0].validation and each.heldout == parts[0].heldout for each in parts)


def test_prompts_are_of_one_form_whatever_the_task():
    pytest.importorskip("reasoning_gym", reason="reasoning_gym needs a C compiler to install")
    pool = WORLD.parts("imbalance", seed=0).pool
    assert all(re.fullmatch(r"Question: [^\n]+\nAnswer: ", problem.prompt) for problem in pool)
    assert {problem.source for problem in pool} == {f"words/{LEVEL}", *(f"reasoning_gym/{task}" for task in OFF_TARGET)}
    assert all(re.fullmatch("[0-9a-f]{16}", problem.problem_id) for problem in pool)


def test_off_target_problems_are_marked_by_their_own_verifiers():
    pytest.importorskip("reasoning_gym", reason="reasoning_gym needs a C compiler to install")
    reward = make_reward("graded")
    strangers = [p for p in WORLD.parts("imbalance", seed=1).pool if p.source.startswith("reasoning_gym")][:40]
    assert all(reward(problem, problem.answer) == 1.0 for problem in strangers)
    assert all(reward(problem, "-77") < 1.0 for problem in strangers)


def test_a_source_of_data_names_the_world():
    (first, *_) = load_problems("world:smollm2/coin/pool", seed=3).problems
    assert first == WORLD.parts("coin", seed=3).pool[0]
    table = WORLD.source("coin", "validation", 5)
    assert list(load_problems(table, seed=3).problems) == list(WORLD.parts("coin", seed=3).validation[:5])
    with pytest.raises(DataError, match=r"smollm2 task 'coin/all'; expected REGIME/PART, REGIME one of clean, "):
        load_problems({"kind": "world", "path": "smollm2", "task": "coin/all"})
    with pytest.raises(
        SettingsError, match=r"world 'smolm2' is unknown.*smollm2.*expected arithmetic, smollm2, or a folder"
    ):
        load_problems("world:smolm2/coin/pool")


def test_worlds_are_found_by_their_names():
    assert {name: world_of(name).name for name in WORLDS} == {name: name for name in WORLDS}


@pytest.mark.parametrize("method", METHODS)
def test_every_method_makes_a_run_at_the_worlds_scale(method, tmp_path):
    recipe, cell = Recipe(world=WORLD, long=False), Cell(1, "coin", method)
    config = recipe.config(cell, tmp_path, tmp_path / "o", "http://h:1")
    scale = WORLD.scale
    assert config.rounds * config.updates_per_round == scale.updates
    assert config.rounds % config.evaluate_every == 0
    assert config.batch_problems in (scale.batch, scale.large_batch, scale.trusted)
    assert config.pool_size <= scale.pool
    assert (config.reward, config.stop, config.share_prompts) == ("graded", "\n", True)
    assert config.run_id == run_id(cell, "smollm2") != run_id(cell)
    assert recipe.digest(cell) != Recipe().digest(cell)


def test_a_folder_of_another_model_is_refused(tmp_path):
    toy_world(tmp_path)
    with pytest.raises(
        GradAlignError, match=r"holds a model of .*'hidden_size': 32.*expected SmolLM2-135M.*world\.toml"
    ):
        SmolLM2World(tmp_path / "model").base(tmp_path / "cache", 0)


def test_a_folder_that_is_given_is_the_base_of_all_seeds(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(dict(SHAPE)))
    assert {SmolLM2World(tmp_path).base(tmp_path / "cache", seed) for seed in (0, 1)} == {tmp_path}


def test_results_of_other_weights_are_of_other_facts(tmp_path):
    facts = []
    for number, content in enumerate((b"a" * 4096, b"b" * 4096, b"a" * 4096)):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "model.safetensors").write_bytes(content)
        facts.append(SmolLM2World(folder).base_facts(0))
    assert facts[0] == facts[2] != facts[1]
    assert WORLD.base_facts(0)["sha256"] == facts[0]["sha256"]
    with pytest.raises(GradAlignError, match=r"model\.safetensors cannot be read .*; expected weights in one file"):
        SmolLM2World(tmp_path).base_facts(0)
