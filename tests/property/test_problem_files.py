"""Whatever problems are written as JSONL or Parquet are read back the same; no line stops the reading in others' words."""

import contextlib
import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gradalign_trainer.datasets import DataError, content_id, load_problems, write_jsonl, write_parquet
from gradalign_trainer.datasets.records.messages import ROLES
from gradalign_trainer.datasets.records.schema import BadRecord, Candidate, Place, parse_record
from gradalign_trainer.problems import Problem

numbers = st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False)
leaves = st.none() | st.booleans() | numbers | st.text(max_size=8)
values = st.recursive(leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner))
turns = st.builds(lambda role, content: {"role": role, "content": content}, st.sampled_from(ROLES), st.text(min_size=1))
chats = st.lists(turns, min_size=1, max_size=3).filter(lambda chat: chat[-1]["role"] != "assistant")
extras = st.dictionaries(st.text(max_size=8).filter(lambda key: key != "messages"), values, max_size=3)


@st.composite
def problems(draw):
    count = draw(st.integers(1, 4))
    ids = draw(st.lists(st.text(min_size=1, max_size=256), min_size=count, max_size=count, unique=True))
    made = []
    for problem_id in ids:
        chat, extra = draw(st.none() | chats), draw(extras)
        prompt = draw(st.text(min_size=1)) if chat is None else "\n\n".join(turn["content"] for turn in chat)
        extra = extra if chat is None else {**extra, "messages": chat}
        made.append(Problem(problem_id, prompt, draw(st.text()), draw(st.text()), extra))
    return made


@pytest.mark.parametrize("write", [write_jsonl, write_parquet])
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(problems())
def test_files_give_back_what_was_written(write, tmp_path, written):
    path = tmp_path / f"problems.{write.__name__.removeprefix('write_')}"
    write(written, path)
    assert load_problems(str(path)).problems == written


@given(
    st.dictionaries(st.sampled_from(["id", "prompt", "messages", "answer", "source", "extra", "reward_model"]), values)
)
def test_any_record_is_a_problem_or_bad_in_our_own_words(record):
    parsed = parse_record(record, Place("a.jsonl", 1), {})
    assert isinstance(parsed, (Candidate, BadRecord))
    if isinstance(parsed, BadRecord):
        assert "expected" in parsed.message or "missing" in parsed.message or "Move" in parsed.message
    else:
        assert 1 <= len(parsed.problem.problem_id) <= 256
        parsed.problem.prompt.encode()


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(st.lists(st.binary(max_size=60), max_size=5))
def test_any_bytes_are_read_or_refused_in_our_own_words(tmp_path, lines):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\n".join(lines))
    with contextlib.suppress(DataError):
        load_problems(str(path))


@given(st.text(), st.text(), st.text(), st.text(), st.text(), st.text())
def test_made_ids_are_the_same_for_the_same_content_alone(prompt, answer, source, other, another, third):
    same = (prompt, answer, source) == (other, another, third)
    assert (content_id(prompt, answer, source) == content_id(other, another, third)) == same
    json.dumps(content_id(prompt, answer, source)).encode("ascii")
