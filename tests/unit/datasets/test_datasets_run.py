"""The data of a run as its settings name it."""

import json

import pytest

from gradalign_trainer.config.training import TrainConfig
from gradalign_trainer.datasets import DataError
from gradalign_trainer.runs.data import load_run_data
from gradalign_trainer.settings import SettingsError
from gradalign_trainer.worlds.tinymodel import byte_tokenizer


def config(**settings):
    return TrainConfig(**{"run_id": "r", "output": "o"} | settings)


def jsonl(path, *records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


def test_the_built_in_world_needs_no_file():
    data = load_run_data(config(seed=4))
    assert len(data.pool) > len(data.heldout) > len(data.validation) > 0
    assert {problem.prompt[2] for problem in [*data.validation, *data.heldout]} == {"+"}
    assert data.reward(data.heldout[0], data.heldout[0].answer) == 1.0
    assert data.pool == load_run_data(config(seed=4)).pool
    assert data.pool != load_run_data(config(seed=5)).pool


def test_chats_are_rendered_with_the_tokenizer_of_the_model(tmp_path):
    path = jsonl(tmp_path / "a.jsonl", {"prompt": [{"role": "user", "content": "hi"}], "answer": "a"})
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}[{{ m.content }}]{% endfor %}"
    settings = config(pool=path, reward="exact")
    assert load_run_data(settings, tokenizer).pool[0].prompt == "[hi]"
    assert load_run_data(settings).pool[0].prompt == "hi"


def test_generated_parts_of_a_run_share_nothing():
    pytest.importorskip("reasoning_gym", reason="reasoning_gym needs a C compiler to install")
    tasks = {part: {"kind": "reasoning_gym", "task": "chain_sum", "size": 10} for part in ("pool", "heldout")}
    data = load_run_data(config(**tasks, validation="reasoning_gym:chain_sum", reward="reasoning_gym"))
    assert not {problem.prompt for problem in data.pool} & {problem.prompt for problem in data.heldout}
    assert data.reward(data.pool[0], data.pool[0].answer) == 1.0


def test_a_reward_that_cannot_judge_a_part_is_refused_before_the_run(tmp_path):
    pytest.importorskip("reasoning_gym", reason="reasoning_gym needs a C compiler to install")
    path = jsonl(tmp_path / "a.jsonl", {"id": "x7", "prompt": "p", "answer": "a", "source": "mine"})
    task = {"kind": "reasoning_gym", "task": "chain_sum", "size": 3}
    with pytest.raises(DataError, match=r"data\.heldout holds problem 'x7' of source 'mine'"):
        load_run_data(config(pool=task, validation=task, heldout=path, reward="reasoning_gym"))


def test_heldout_problems_that_are_trained_on_are_warned_of(tmp_path, caplog):
    path = jsonl(tmp_path / "a.jsonl", {"id": "x7", "prompt": "p", "answer": "a"})
    load_run_data(config(pool=path, heldout=path, reward="exact"))
    assert "1 of 1 held-out problems are in the pool too (x7...)" in caplog.text


def test_a_reward_that_is_not_there_is_refused():
    with pytest.raises(SettingsError, match="reward 'no_such_module:judge' cannot be imported"):
        load_run_data(config(reward="no_such_module:judge"))
