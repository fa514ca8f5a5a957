"""`gradalign rank` on files that are wrong in part: what is left out is said, and what cannot be done ends with a reason."""

import pytest
import torch
from responsefiles import problems, read_jsonl, responses, save_files, write_jsonl, write_list
from transformers import AutoModelForCausalLM, AutoTokenizer

from gradalign.cli import main

GROUPS, SAMPLES = 6, 4


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return save_files(tmp_path_factory.mktemp("faults"), GROUPS, SAMPLES)


@pytest.fixture
def rank(files, scorer, tmp_path):
    def run(*flags, model="model", train=None):
        return main([
            *("rank", "--model", str(files / model), "--train", str(train or files / "train.json")),
            *("--validation", str(files / "val.json"), "--out", str(tmp_path / "s.jsonl"), "--device", "cpu"),
            *("--dim", "512", "--url", scorer.url, *flags),
        ])  # fmt: skip

    return run


def test_bad_problems_are_named_and_the_rest_is_selected_from(rank, tmp_path, capfd):
    lines = write_jsonl(tmp_path / "problems.jsonl", problems(GROUPS)).read_text().splitlines()
    lines[1:1] = ['{"prompt": [', '{"prompt": "of no index"}', "[1]"]
    (tmp_path / "problems.jsonl").write_text("\n".join(lines))
    assert rank("--select", "2", "--problems", str(tmp_path / "problems.jsonl")) == 0
    told = " ".join(capfd.readouterr().err.split())
    for line, words in ((2, "not JSON"), (3, "extra_info = None"), (4, "extra_info = None")):
        assert f"problems.jsonl:{line}: " in told
        assert words in told
    assert len(read_jsonl(tmp_path / "selected/train.jsonl")) == 2


@pytest.mark.parametrize(
    ("records", "words"),
    [
        ([{"prompt": "of no index"}], "has no problem with an index."),
        (
            [{**each, "extra_info": {"index": 70 + n}} for n, each in enumerate(problems(3))],
            "6 groups have no problem in",
        ),
    ],
)
def test_problems_that_no_group_is_of_end_it(rank, tmp_path, capsys, records, words):
    write_jsonl(tmp_path / "problems.jsonl", records)
    assert rank("--select", "2", "--problems", str(tmp_path / "problems.jsonl")) == 2
    assert words in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "s.jsonl").exists()


def test_problems_of_no_one_schema_are_selected_as_json_alone(rank, tmp_path, capsys):
    records = problems(GROUPS)
    for number, record in enumerate(records):
        record["reward_model"] = str(number) if number % 2 else {"ground_truth": number}
    write_jsonl(tmp_path / "problems.jsonl", records)
    assert rank("--select", "6", "--problems", str(tmp_path / "problems.jsonl")) == 2
    assert "train.jsonl is written, but Parquet wants one type a field" in " ".join(capsys.readouterr().err.split())
    assert len(read_jsonl(tmp_path / "selected/train.jsonl")) == GROUPS
    assert [path.name for path in (tmp_path / "selected").iterdir()] == ["train.jsonl"]


def test_responses_that_are_cut_are_counted(rank, tmp_path, capfd):
    assert rank("--max-length", "24") == 0
    told = " ".join(capfd.readouterr().err.split())
    assert "responses are longer than 24 tokens with their prompts and were cut there; --max-length sets it" in told


def test_records_of_other_kinds_are_left_out(rank, tmp_path, capfd):
    records = responses(GROUPS, SAMPLES, seed=3)
    records[1] = ["no", "record"]
    records[2] |= {"is_correct": "perhaps"}
    write_list(tmp_path / "train.json", records)
    assert rank(train=tmp_path / "train.json") == 0
    told = " ".join(capfd.readouterr().err.split())
    assert "left out 2 of 24 records" in told
    assert "the record is ['no', 'record']" in told
    assert "is_correct = 'perhaps'; expected true, false or a finite number" in told
    assert rank(train=tmp_path / "nowhere.json") == 2
    assert "nowhere.json is no file; expected responses as a JSON list, JSONL or Parquet" in " ".join(
        capfd.readouterr().err.split()
    )


@pytest.mark.parametrize("flags", [(), ("--exact",)])
def test_a_group_whose_gradient_is_not_finite_has_no_signal(files, rank, tmp_path, capfd, flags):
    model, tokenizer = (each.from_pretrained(files / "model") for each in (AutoModelForCausalLM, AutoTokenizer))
    with torch.no_grad():
        model.get_input_embeddings().weight[tokenizer("~")["input_ids"]] = torch.inf
    model.save_pretrained(tmp_path / "broken")
    tokenizer.save_pretrained(tmp_path / "broken")
    records = responses(GROUPS, SAMPLES, seed=3)
    broken = 2
    for record in records:
        record["prompt"] += " ~" if record["group_id"] == broken else ""
        record["is_correct"] = record["sample_id"] % 2 == 0
    write_list(tmp_path / "train.json", records)
    assert rank(*flags, model=tmp_path / "broken", train=tmp_path / "train.json") == 0
    assert f"Group {broken} counts as no signal" in " ".join(capfd.readouterr().err.split())
    similarities = {record["group_id"]: record["similarity"] for record in read_jsonl(tmp_path / "s.jsonl")}
    assert [group for group, similarity in similarities.items() if similarity == 0] == [broken]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--exact",), "the validation gradient is zero: in every group"),
        ((), "none of the 3 validation sketches has a signal"),
    ],
)
def test_a_validation_without_a_signal_ends_it(rank, tmp_path, capsys, flags, words):
    write_list(tmp_path / "val.json", [each | {"is_correct": True} for each in responses(3, SAMPLES, seed=8)])
    assert rank("--validation", str(tmp_path / "val.json"), *flags) == 2
    assert words in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("words", ["0", "-3"])
def test_counts_are_at_least_1(rank, capsys, words):
    with pytest.raises(SystemExit):
        rank("--select", words)
    assert f"{words}; expected at least 1" in capsys.readouterr().err
