"""Problems from JSONL and Parquet: lines, shards, bad records, repeats, limits, and back to files."""

import json

import pyarrow as pa
import pytest
from pyarrow import parquet

from gradalign_trainer.datasets import DataError, content_id, load_problems, write_jsonl, write_parquet
from gradalign_trainer.problems import Problem


def jsonl(path, *records):
    lines = (record if isinstance(record, str) else json.dumps(record) for record in records)
    path.write_text("".join(f"{line}\n" for line in lines))
    return str(path)


def row(number, **more):
    return {"id": f"p{number}", "prompt": f"{number}+1=", "answer": str(number + 1)} | more


def verl(index, question):
    return {
        "data_source": "sums",
        "prompt": [{"role": "user", "content": question}],
        "reward_model": {"ground_truth": "5", "style": "rule"},
        "extra_info": {"index": index, "split": "train"},
    }


def ids(spec, **settings):
    return [problem.problem_id for problem in load_problems(spec, **settings).problems]


def error_of(spec):
    with pytest.raises(DataError) as caught:
        load_problems(spec)
    return caught.value


def test_jsonl_is_read_in_order(tmp_path):
    path = jsonl(tmp_path / "a.jsonl", row(2), "", "  ", row(1))
    problems = load_problems(path).problems
    assert [problem.prompt for problem in problems] == ["2+1=", "1+1="]


def test_a_byte_order_mark_and_other_line_ends_do_no_harm(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(row(1)).encode() + b"\r\n" + json.dumps(row(2)).encode())
    assert ids(str(path)) == ["p1", "p2"]


def test_bad_lines_are_named_with_their_numbers(tmp_path):
    path = jsonl(tmp_path / "a.jsonl", row(1), '{"prompt": "2+', "", {"prompt": "3+1="}, "[1]")
    with (tmp_path / "a.jsonl").open("ab") as file:
        file.write(b'{"prompt": "\xff", "answer": "a"}\n')
    error = error_of(path)
    assert [bad.place.number for bad in error.bad] == [2, 4, 5, 6]
    assert str(error).startswith(
        f"{path}: 4 of 5 records do not fit the schema:\n  {path}:2: not JSON: Unterminated string"
    )
    assert "field 'answer' is missing or null" in str(error)
    assert 'bad_records = "skip"' in str(error)


def test_a_long_list_of_faults_is_cut(tmp_path):
    error = error_of(jsonl(tmp_path / "a.jsonl", *["{"] * 8))
    assert str(error).count("not JSON") == 5
    assert "\n  and 3 more\n" in str(error)


def test_reading_stops_where_nothing_good_can_come(tmp_path):
    error = error_of(jsonl(tmp_path / "a.jsonl", *["["] * 3000))
    assert len(error.bad) == 1000
    assert "1000 of 1000 records do not fit the schema, where reading stopped" in str(error)


def test_bad_records_may_be_skipped_and_are_reported(tmp_path, caplog):
    path = jsonl(tmp_path / "a.jsonl", row(1), "{", row(2))
    loaded = load_problems({"path": path, "bad_records": "skip"})
    assert [problem.problem_id for problem in loaded.problems] == ["p1", "p2"]
    assert [bad.place.number for bad in loaded.bad] == [2]
    assert f"{path}: left out 1 of 3 records:\n  {path}:2: not JSON" in caplog.text


def test_nothing_at_all_is_an_error(tmp_path):
    path = jsonl(tmp_path / "a.jsonl", "{", "")
    assert "there is no problem in" in str(error_of({"path": path, "bad_records": "skip"}))
    assert "there is no problem in" in str(error_of(jsonl(tmp_path / "b.jsonl")))


def test_the_limit_counts_problems_and_reads_no_further(tmp_path):
    path = jsonl(tmp_path / "a.jsonl", row(1), row(2), "{", row(3))
    assert ids({"path": path, "limit": 2}) == ["p1", "p2"]
    assert ids({"path": path, "limit": 3, "bad_records": "skip"}) == ["p1", "p2", "p3"]
    with pytest.raises(DataError):
        load_problems({"path": path, "limit": 3})


def test_repeated_ids_are_refused_with_both_places(tmp_path):
    path = jsonl(tmp_path / "a.jsonl", row(1), row(2), row(1, prompt="other"))
    error = error_of(path)
    assert f"{path}:3: problem_id 'p1': the id of {path}:1." in str(error)
    both = error_of([jsonl(tmp_path / "b.jsonl", row(1)), jsonl(tmp_path / "c.jsonl", row(1))])
    assert f"{tmp_path}/c.jsonl:1: problem_id 'p1': the id of {tmp_path}/b.jsonl:1." in str(both)


def test_repeated_content_is_refused(tmp_path):
    bare = {"prompt": "p", "answer": "a"}
    error = error_of(jsonl(tmp_path / "a.jsonl", bare, {**bare, "level": 2}))
    assert f"the same content as {tmp_path}/a.jsonl:1." in str(error)


def dapo(name):
    """A record as DAPO-Math-17k has it."""
    return {
        "data_source": "math_dapo",
        "prompt": [{"role": "user", "content": f"Solve {name}."}],
        "ability": "MATH",
        "reward_model": {"ground_truth": "34", "style": "rule-lighteval/MATH_v2"},
        "extra_info": {"index": f"9a9b6eb4-{name}"},
    }


@pytest.mark.parametrize("form", ["jsonl", "parquet"])
def test_duplicates_may_be_dropped_and_are_said_and_counted(tmp_path, form, caplog):
    records = [dapo(name) for _ in range(100) for name in "abc"]
    path = tmp_path / f"dapo.{form}"
    jsonl(path, *records) if form == "jsonl" else parquet.write_table(pa.Table.from_pylist(records), path)
    refused = error_of(str(path))
    assert len(refused.bad) == 297
    assert 'To keep the first of each, say duplicates = "drop"' in str(refused)
    assert 'duplicates = "drop"' in str(error_of({"path": str(path), "bad_records": "skip"}))
    loaded = load_problems({"path": str(path), "duplicates": "drop"})
    assert [problem.problem_id for problem in loaded.problems] == [f"math_dapo/9a9b6eb4-{name}" for name in "abc"]
    assert loaded.dropped == 297
    assert f"{path}: dropped 297 of 300 problems, which repeat an earlier one: {path}" in caplog.text
    assert len(load_problems({"path": str(path), "duplicates": "drop", "limit": 2}).problems) == 2


def test_of_one_id_the_first_is_kept_within_a_source_and_over_several(tmp_path, caplog):
    path = jsonl(tmp_path / "a.jsonl", row(1), row(2), row(1, prompt="other"), {"prompt": "p", "answer": "a"})
    loaded = load_problems({"path": path, "duplicates": "drop"})
    assert [problem.prompt for problem in loaded.problems] == ["1+1=", "2+1=", "p"]
    assert loaded.dropped == 1
    assert f"dropped 1 of 4 problems, which repeat an earlier one: {path}:3." in caplog.text
    other = jsonl(tmp_path / "b.jsonl", row(2), row(3), {"prompt": "p", "answer": "a"})
    both = [{"path": path, "duplicates": "drop"}, {"path": other, "duplicates": "drop"}]
    assert len(load_problems(both).problems) == 4
    assert f"{other}:1: problem_id 'p2'" in str(error_of([both[0], other]))  # the second source does not say so


def test_colliding_indices_of_different_problems_are_no_duplicates(tmp_path):
    path = jsonl(tmp_path / "a.jsonl", verl(0, "a?"), verl(0, "b?"), verl(0, "a?"))
    assert len(ids({"path": path, "duplicates": "drop"})) == 2


def test_a_folder_is_read_shard_by_shard_and_a_glob_as_matched(tmp_path):
    for name, number in (("b.jsonl", 2), ("a.jsonl", 1), ("c.ndjson", 3), ("notes.txt", 4)):
        jsonl(tmp_path / name, row(number))
    assert ids(f"jsonl:{tmp_path}") == ["p1", "p2", "p3"]
    assert ids(f"{tmp_path}/[ab].jsonl") == ["p1", "p2"]
    assert ids([f"{tmp_path}/c.ndjson", f"{tmp_path}/a.jsonl"]) == ["p3", "p1"]


def test_a_path_that_holds_nothing_names_its_neighbour(tmp_path):
    jsonl(tmp_path / "train.jsonl", row(1))
    assert "(did you mean 'train.jsonl'?)" in str(error_of(f"{tmp_path}/trian.jsonl"))
    (tmp_path / "empty").mkdir()
    assert "expected a folder with *.jsonl or *.ndjson." in str(error_of(f"jsonl:{tmp_path}/empty"))


@pytest.mark.parametrize("form", ["jsonl", "parquet"])
def test_verls_colliding_indices_give_way_to_the_content(tmp_path, form):
    records = [verl(0, "a?"), verl(0, "b?"), verl(1, "c?")]
    path = tmp_path / f"train.{form}"
    if form == "jsonl":
        jsonl(path, *records)
    else:
        parquet.write_table(pa.Table.from_pylist(records), path)
    made = [content_id("", "5", "sums", records[number]["prompt"]) for number in (0, 1)]
    assert ids(str(path)) == [*made, "sums/train/1"]
    problem = load_problems(str(path)).problems[2]
    assert problem.prompt == "c?"
    assert problem.extra["extra_info"] == {"index": 1, "split": "train"}


def test_verls_default_index_makes_the_same_ids_in_any_order(tmp_path):
    records = [verl(0, question) for question in ("a?", "b?", "c?")]
    forth = ids(jsonl(tmp_path / "a.jsonl", *records))
    back = ids(jsonl(tmp_path / "b.jsonl", *reversed(records)))
    assert forth == back[::-1]


def test_an_id_that_was_given_wins_over_one_that_was_derived(tmp_path):
    given = {"id": "sums/train/0", "prompt": "p", "answer": "a"}
    path = jsonl(tmp_path / "a.jsonl", verl(0, "a?"), given)
    assert ids(path) == [content_id("", "5", "sums", verl(0, "a?")["prompt"]), "sums/train/0"]


def test_parquet_is_read_in_batches_and_places_are_rows(tmp_path):
    rows = [row(number) for number in range(2500)]
    parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    assert ids(f"{tmp_path}/a.parquet") == [f"p{number}" for number in range(2500)]
    rows[2000]["prompt"] = ""
    parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    assert f"{tmp_path}/a.parquet row 2001: prompt = ''" in str(error_of(f"{tmp_path}/a.parquet"))


def test_a_damaged_parquet_file_is_refused_by_name(tmp_path):
    path = jsonl(tmp_path / "a.parquet", row(1))
    assert f"{path} cannot be read as Parquet after row 0" in str(error_of(path))
    parquet.write_table(pa.Table.from_pylist([row(n) for n in range(100)]), path)
    whole = (tmp_path / "a.parquet").read_bytes()
    (tmp_path / "a.parquet").write_bytes(whole[: len(whole) // 2])
    assert "expected a whole" in str(error_of(path)).lower()


def test_what_is_written_is_what_was_read(tmp_path):
    chat = [{"role": "user", "content": "3+1="}]
    problems = [
        Problem("p1", "2+3=", "5", "sums", {"level": 1, "deep": {"a": [None, 1.5]}}),
        Problem("p2", "3+1=", "", "", {"messages": chat}),
    ]
    write_jsonl(problems, tmp_path / "a.jsonl")
    write_parquet(problems, tmp_path / "a.parquet")
    assert load_problems(f"{tmp_path}/a.jsonl").problems == problems
    assert load_problems(f"{tmp_path}/a.parquet").problems == problems


def test_progress_is_told_of_the_whole(tmp_path):
    jsonl(tmp_path / "a.jsonl", *map(row, range(50)))
    jsonl(tmp_path / "b.jsonl", *map(row, range(50, 80)))
    told = []

    class Tells:
        def __init__(self, description, total):
            self.description, self.total, self.done = description, total, 0
            told.append(self)

        def __enter__(self):
            return self.advance

        def __exit__(self, *error):
            pass

        def advance(self, amount):
            self.done += amount

    load_problems([f"jsonl:{tmp_path}", "arithmetic:clean/validation"], progress=Tells)
    (reading,) = told
    assert reading.description == f"reading {tmp_path}"
    assert reading.done == reading.total == sum(file.stat().st_size for file in tmp_path.iterdir())
