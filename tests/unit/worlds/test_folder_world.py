"""The world of a folder: its problems, and what is said of a folder that describes none."""

from dataclasses import replace
from pathlib import Path

import pytest
from toyworld import SCALE, toy_world

from gradalign_trainer.datasets.records.schema import DataError
from gradalign_trainer.reproduce.grid.cells import Cell, Recipe
from gradalign_trainer.settings import SettingsError
from gradalign_trainer.worlds.tasks.registry import world_of
from gradalign_trainer.worlds.tasks.spoiling import REGIMES

EXAMPLE = Path(__file__).parents[3] / "services/trainer/configs/gsm8k"


@pytest.fixture
def world(tmp_path):
    return world_of(str(toy_world(tmp_path / "toy")))


@pytest.mark.parametrize("regime", REGIMES)
def test_parts_are_of_the_files_and_seeded(world, regime):
    one, again, other = (world.parts(regime, seed=seed) for seed in (0, 0, 1))
    assert one == again
    assert one.pool != other.pool
    assert (len(one.pool), len(one.validation), len(one.heldout)) == (SCALE["pool"], SCALE["trusted"], 5)
    trusted = {problem.prompt for problem in one.validation}
    assert not trusted & {problem.prompt for problem in one.pool}
    strangers = [problem for problem in one.pool if int(problem.prompt.partition("+")[0]) >= 200]
    assert bool(strangers) == (regime in ("imbalance", "low-utility"))
    assert not any(problem.extra["good"] for problem in strangers)


def test_its_model_is_the_folders(world, tmp_path):
    assert world.base(tmp_path / "cache", 0) == tmp_path / "toy" / "model"
    assert not (tmp_path / "cache").exists()


def test_other_problems_are_other_facts(world, tmp_path):
    before = world.base_facts(0)
    assert world.base_facts(0) == before
    with (tmp_path / "toy" / "train.jsonl").open("a") as file:
        file.write('{"prompt": "900+1=", "answer": "901"}\n')
    assert world.base_facts(0) != before


def test_a_hub_id_stays_one(tmp_path):
    world = world_of(str(toy_world(tmp_path, model="owner/model-0.5B")))
    assert str(world.base(tmp_path / "cache", 0)) == "owner/model-0.5B"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"targets": ["x"]}, r"targets is no key \(did you mean .target.\?\); expected .*heldout"),
        ({"model": None, "heldout": None}, r"(?s)2 faults.*model is missing.*heldout is missing"),
        ({"name": 7}, r"name = 7 .*expected a string"),
        ({"scale": {"update": 3}}, r"scale\.update is no key \(did you mean .updates."),
        ({"scale": {"updates": 0}}, r"scale\.updates = 0 .*expected a value at least 1"),
    ],
)
def test_a_wrong_world_file_is_told_of_by_key(tmp_path, changes, message):
    with pytest.raises(SettingsError, match=message):
        world_of(str(toy_world(tmp_path, **changes)))


def test_too_few_problems_are_told_of(tmp_path):
    few = world_of(str(toy_world(tmp_path / "a", scale={**SCALE, "trusted": 40})))
    with pytest.raises(DataError, match=r"train\.jsonl of .* hold 40 problems, of which scale\.trusted = 40"):
        few.parts("clean", seed=0)
    alone = world_of(str(toy_world(tmp_path / "b", off_target=None)))
    with pytest.raises(
        DataError, match=r"off_target = \[\], which hold 0 problems; this regime needs \d+ of other tasks"
    ):
        alone.parts("imbalance", seed=0)
    assert alone.parts("coin", seed=0).pool


def test_a_record_that_is_none_is_named(tmp_path):
    folder = toy_world(tmp_path)
    (folder / "test.jsonl").write_text('{"question": "1+1="}\n')
    with pytest.raises(DataError, match=r"test\.jsonl:1.*Mend it"):
        world_of(str(folder)).parts("clean", seed=0)


def test_the_example_for_a_gpu_makes_runs_of_64_problems_and_100_updates(tmp_path):
    world = world_of(str(EXAMPLE))
    for method in ("random", "cosine", "forward-weights"):
        recipe = Recipe(world=replace(world, folder=toy_world(tmp_path), off_target=("other.jsonl",)), long=False)
        config = recipe.config(Cell(0, "coin", method), tmp_path, tmp_path / "out", "http://h:1")
        assert (config.batch_problems, config.group_size) == (64, 8)
        assert config.rounds * config.updates_per_round == 100
        assert config.reward == "graded"
