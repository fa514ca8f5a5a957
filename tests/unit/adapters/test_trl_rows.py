"""Ids of the rows of a TRL dataset, settings, and the order of the sampler; no training."""

import warnings

import pytest

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what TRL's import warns of is TRL's
    from datasets import Dataset
    from trl.trainer.utils import RepeatSampler

    from gradalign_trainer.adapters.trl import GradAlignConfig
    from gradalign_trainer.adapters.trl.measuring.aside import scoring_batches
    from gradalign_trainer.adapters.trl.rows import dataset_ids, row_id
    from gradalign_trainer.adapters.trl.sampler import CurriculumSampler

from gradalign import GradAlignError
from gradalign_trainer.adapters.problemids import stable_id

CHAT = [{"role": "user", "content": "1+1?"}]


def test_given_ids_are_taken_and_others_are_made_of_the_content():
    assert row_id({"problem_id": 7, "prompt": "a"}, "problem_id") == "7"
    plain = {"prompt": "a", "answer": "b", "source": "c"}
    assert row_id(plain, "problem_id") == stable_id("a", "b", "c")
    assert row_id({"prompt": CHAT, "answer": "2"}, "problem_id") == stable_id(CHAT, "2")
    more = {"prompt": "a", "grader": "honest", "answer": "b"}
    assert row_id(more, "problem_id") == stable_id("a", {"answer": "b", "grader": "honest"})
    assert row_id({**more, "image": object()}, "problem_id") == row_id(more, "problem_id")
    assert row_id({**more, "grader": "inverted"}, "problem_id") != row_id(more, "problem_id")


def test_chats_that_differ_in_any_key_are_told_apart():
    call = {"id": "c1", "function": {"name": "add", "arguments": "{}"}}
    chats = [
        CHAT,
        [{**CHAT[0], "name": "ann"}],
        [*CHAT, {"role": "assistant", "content": "", "tool_calls": [call]}],
        [*CHAT, {"role": "assistant", "content": "", "tool_calls": [{**call, "id": "c2"}]}],
        [*CHAT, {"role": "assistant", "content": "", "reasoning_content": "hm"}],
        [*CHAT, {"role": "tool", "content": "", "tool_call_id": "c1"}],
        [*CHAT, {"role": "tool", "content": "", "tool_call_id": "c2"}],
    ]
    dataset = Dataset.from_list([{"prompt": chat, "answer": "2"} for chat in chats])
    ids = dataset_ids(dataset, "problem_id", "d")
    assert len(set(ids)) == len(chats)
    assert ids[0] == stable_id(CHAT, "2")  # the keys that Arrow fills with null count for nothing


def test_a_source_of_zero_is_a_source():
    assert row_id({"prompt": "a", "source": 0}, "problem_id") != row_id({"prompt": "a", "source": None}, "problem_id")


def test_made_ids_do_not_depend_on_the_order():
    dataset = Dataset.from_dict({"prompt": ["a", "b", "c"], "answer": ["1", "2", "3"]})
    assert dataset_ids(dataset.select([2, 0, 1]), "problem_id", "d")[0] == dataset_ids(dataset, "problem_id", "d")[2]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"problem_id": ["a", None]}, r"row 1 of train_dataset: problem_id = None: expected 1 to 256 .* or drop it"),
        ({"problem_id": ["a", ""]}, "row 1 of train_dataset: problem_id = ''"),
        ({"problem_id": ["a", "a"]}, r"rows 0 and 1 of train_dataset have the same problem_id, 'a' \(1 such rows"),
        ({"answer": ["1", "1"]}, r"the same content in every column .* a column 'problem_id'"),
    ],
)
def test_ids_that_miss_or_repeat_are_refused(columns, message):
    with pytest.raises(GradAlignError, match=message):
        dataset_ids(Dataset.from_dict({"prompt": ["x", "x"], **columns}), "problem_id", "train_dataset")


def test_content_without_a_json_form_asks_for_ids():
    with pytest.raises(GradAlignError, match=r"no id can be made .* GradAlignConfig\(id_column"):
        row_id({"prompt": "a", "when": object()}, "problem_id")


def test_settings_are_checked_all_at_once():
    with pytest.raises(GradAlignError) as caught:
        GradAlignConfig(scorer_url="http://s", run_id="a b", validation_dataset=[], use="wieght", refresh_every=0)
    for said in (
        "run_id = 'a b'",
        "datasets.Dataset with a `prompt` column",
        "did you mean 'weight'?",
        "refresh_every",
    ):
        assert said in str(caught.value)
    with pytest.raises(GradAlignError, match="validation_dataset is None"):
        GradAlignConfig(scorer_url="http://s", run_id="a", validation_dataset=None)


def test_the_sampler_yields_what_repeat_sampler_would_where_nothing_is_chosen():
    settings = {"data_source": range(23), "mini_repeat_count": 2, "batch_size": 4, "repeat_count": 3, "seed": 5}
    ours = CurriculumSampler(choose=lambda proposed: proposed, passed=lambda: 0, **settings)
    theirs = RepeatSampler(**settings)
    assert len(ours) == len(theirs)
    for _ in range(2):  # epochs
        assert list(ours) == list(theirs)


def test_the_sampler_asks_once_a_batch_and_not_for_batches_that_a_resumed_run_skips():
    asked = []

    def choose(proposed):
        asked.append(list(proposed))
        return [0, 1]

    settings = {"data_source": range(6), "mini_repeat_count": 2, "batch_size": 2, "repeat_count": 2, "shuffle": False}
    order = list(CurriculumSampler(choose=choose, passed=lambda: 1, **settings))
    assert asked == [[2, 3], [4, 5]]
    assert order == [0, 0, 1, 1] * 6


@pytest.mark.parametrize("count", [1, 2, 5])
@pytest.mark.parametrize("group_size", [1, 3, 4])
@pytest.mark.parametrize("processes", [1, 2, 3, 8])
def test_scoring_batches_divide_among_any_processes(count, group_size, processes):
    rows, sizes = [{"prompt": str(number)} for number in range(count)], {"group_size": group_size, "batch_rows": 8}
    shares = [list(scoring_batches(rows, **sizes, processes=processes, process=each)) for each in range(processes)]
    assert len({len(share) for own in shares for share in own}) == 1
    whole = [row["prompt"] for batch in zip(*shares, strict=True) for share in batch for row in share]
    groups = [whole[start : start + group_size] for start in range(0, len(whole), group_size)]
    assert all(len(set(group)) == 1 for group in groups)
    assert {group[0] for group in groups} == {str(number) for number in range(count)}


def test_scoring_batches_keep_groups_whole_and_are_of_one_size():
    problems = [{"prompt": str(number)} for number in range(5)]
    shares = [
        list(scoring_batches(problems, group_size=3, batch_rows=6, processes=2, process=process))
        for process in range(2)
    ]
    whole = [[row["prompt"] for share in batch for row in share] for batch in zip(*shares, strict=True)]
    assert whole == [["0"] * 3 + ["1"] * 3, ["2"] * 3 + ["3"] * 3, ["4"] * 3 + ["0"] * 3]
