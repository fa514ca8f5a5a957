"""Records to problems: our form and verl's, chats, ids, and what is said of records that fit neither."""

import hashlib
from decimal import Decimal

import numpy as np
import pytest

from gradalign_trainer.datasets import BadRecord, content_id
from gradalign_trainer.datasets.records.schema import Place, parse_record

PLACE = Place("train.jsonl", 7)
CHAT = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "2+3="}]
VERL = {
    "data_source": "gsm8k",
    "prompt": CHAT,
    "ability": "math",
    "reward_model": {"ground_truth": "5", "style": "rule"},
    "extra_info": {"index": 4, "split": "train"},
}


def problem_of(record, **fields):
    candidate = parse_record(record, PLACE, fields)
    assert not isinstance(candidate, BadRecord), candidate
    return candidate.problem


def fault_of(record, **fields):
    bad = parse_record(record, PLACE, fields)
    assert isinstance(bad, BadRecord), bad
    assert str(bad) == f"train.jsonl:7: {bad.message}"
    return bad.message


def test_our_form_whole():
    problem = problem_of(
        {"problem_id": "p1", "prompt": "2+3=", "answer": "5", "source": "sums", "extra": {"a": 1}, "level": 3}
    )
    assert (problem.problem_id, problem.prompt, problem.answer, problem.source) == ("p1", "2+3=", "5", "sums")
    assert problem.extra == {"level": 3, "a": 1}


@pytest.mark.parametrize(
    ("answer", "text"),
    [(5, "5"), (2.5, "2.5"), ("", ""), ("x", "x"), (5.0, "5"), (0.00001, "0.00001"), (1e22, "1" + "0" * 22), (-0.0, "0"),
     (Decimal("5.00"), "5"), (np.float32(5), "5"), (np.int64(5), "5"), (10**30, "1" + "0" * 30), ("5.0", "5.0")],
)  # fmt: skip
def test_answers_may_be_numbers_and_empty(answer, text):
    assert problem_of({"prompt": "p", "answer": answer}).answer == text


def test_an_id_may_be_called_id_and_be_a_number():
    for number in (12, 12.0, Decimal(12), np.int64(12)):
        assert problem_of({"id": number, "prompt": "p", "answer": "a"}).problem_id == "12"
    assert problem_of({"id": 0.0, "prompt": "p", "answer": "a"}).problem_id == "0"
    assert problem_of({"problem_id": "x", "id": 12, "prompt": "p", "answer": "a"}).problem_id == "x"


def test_null_is_as_good_as_absent():
    bare = {"prompt": "p", "answer": "a"}
    assert problem_of({**bare, "id": None, "source": None, "extra": None, "other": None}) == problem_of(bare)


def test_a_chat_is_joined_for_models_without_a_template_and_kept():
    for key in ("prompt", "messages"):
        problem = problem_of({key: CHAT, "answer": "5"})
        assert problem.prompt == "Be brief.\n\n2+3="
        assert problem.extra == {"messages": CHAT}


TOOL_CALL = {"type": "function", "id": "c1", "function": {"name": "add", "arguments": {"a": 1, "b": None}}}
AGENT = [
    {"role": "user", "content": "2+3=", "name": "ann"},
    {"role": "assistant", "tool_calls": [TOOL_CALL], "reasoning_content": "I add."},
    {"role": "tool", "content": "5", "tool_call_id": "c1", "name": "add"},
    {"role": "user", "content": [{"type": "text", "text": "And now?"}], "weight": 0},
]


def test_a_chat_keeps_what_a_template_may_use():
    problem = problem_of({"messages": AGENT, "answer": "5"})
    assert problem.extra["messages"] == AGENT
    assert problem.prompt == "2+3=\n\n5\n\nAnd now?"
    padded = [{"name": None, "tool_calls": None, **message} for message in AGENT]  # as Parquet gives it
    assert problem_of({"messages": padded, "answer": "5"}) == problem


@pytest.mark.parametrize(
    ("at", "change"),
    [
        (0, {"name": "bob"}),
        (1, {"reasoning_content": "Hm."}),
        (1, {"tool_calls": [{**TOOL_CALL, "id": "c2"}]}),
        (1, {"content": "So:"}),
        (2, {"tool_call_id": "c2"}),
        (3, {"weight": 1}),
        (3, {"content": [{"type": "text", "text": "And then?"}]}),
    ],
)
def test_ids_tell_chats_apart_that_differ_in_any_key(at, change):
    other = [{**message, **change} if place == at else message for place, message in enumerate(AGENT)]
    one, two = (problem_of({"messages": chat, "answer": "5"}).problem_id for chat in (AGENT, other))
    assert one != two


def test_ids_of_plain_chats_are_what_they_were():
    assert (
        problem_of({"messages": CHAT, "answer": "2"}).problem_id
        == "sha256-" + hashlib.sha256(b'["", [["system", "Be brief."], ["user", "2+3="]], "2"]').hexdigest()[:24]
    )


def test_ids_tell_apart_what_the_template_is_given_beside_the_chat():
    def made(**more):
        return problem_of({"messages": CHAT, "answer": "5", **more}).problem_id

    assert len({made(), made(tools=[{"name": "a"}]), made(tools=[{"name": "b"}]), made(level=1)}) == 3
    assert made(tools='[{"name": "a"}]') == made(tools=[{"name": "a"}])


@pytest.mark.parametrize(
    ("messages", "fault"),
    [
        ([{"role": "user", "content": ""}], "prompt[0] = {'role': 'user', 'content': ''}; expected"),
        ([{"role": "user", "content": []}], "prompt[0] ="),
        ([{"role": "user", "content": 5}], "prompt[0] ="),
        ([{"role": "user", "content": ["hi"]}], "prompt[0].content[0] = 'hi'; expected a part like"),
        ([{"role": "user", "content": [{"type": "image", "url": "x"}]}], "prompt holds no text"),
        ([{"role": "user", "content": "a", "when": {1, 2}}], "prompt[0].when = {1, 2}; expected what JSON can write"),
        ([{"role": "user", "content": "a", "name": "\ud83d"}], "prompt[0].name = '\\ud83d' holds"),
        ([{"role": "user", "content": "a", "tags": ["\ud83d"]}], "prompt[0].tags = "),
    ],
)
def test_a_bad_message_is_told_what_would_do(messages, fault):
    assert fault_of({"prompt": messages, "answer": "a"}).startswith(fault)


def test_extra_may_be_json_text_as_parquet_keeps_it():
    assert problem_of({"prompt": "p", "answer": "a", "extra": '{"deep": [1, null]}'}).extra == {"deep": [1, None]}


def test_fields_move_and_reach_into_records():
    record = {"question": {"text": "2+3="}, "solution": "5", "uid": "u1", "answer": "because"}
    problem = problem_of(record, prompt="question.text", answer="solution", problem_id="uid")
    assert (problem.prompt, problem.answer, problem.problem_id) == ("2+3=", "5", "u1")
    assert problem.extra == {"question": {"text": "2+3="}}


def test_fields_may_swap():
    problem = problem_of({"prompt": "5", "answer": "2+3="}, prompt="answer", answer="prompt")
    assert (problem.prompt, problem.answer) == ("2+3=", "5")


def test_verls_form_whole():
    candidate = parse_record(VERL, PLACE, {})
    problem = candidate.problem
    assert candidate.derived
    assert (problem.problem_id, problem.answer, problem.source) == ("gsm8k/train/4", "5", "gsm8k")
    assert problem.prompt == "Be brief.\n\n2+3="
    assert problem.extra == {
        "ability": "math",
        "reward_model": VERL["reward_model"],
        "extra_info": VERL["extra_info"],
        "messages": CHAT,
    }


@pytest.mark.parametrize(
    ("change", "problem_id"),
    [
        ({"id": "mine"}, "mine"),
        ({"extra_info": {"index": "q7"}}, "gsm8k/q7"),
        ({"extra_info": {"index": 0, "split": "test"}}, "gsm8k/test/0"),
        ({"extra_info": {"index": 0.0}}, "gsm8k/0"),
        ({"extra_info": {"index": ""}}, content_id("", "5", "gsm8k", CHAT)),
        ({"extra_info": {"index": 0.5}}, content_id("", "5", "gsm8k", CHAT)),
        ({"extra_info": {"index": True}}, content_id("", "5", "gsm8k", CHAT)),
        ({"extra_info": {}}, content_id("", "5", "gsm8k", CHAT)),
        ({"extra_info": None}, content_id("", "5", "gsm8k", CHAT)),
        ({"extra_info": {"index": "x" * 260}}, content_id("", "5", "gsm8k", CHAT)),
    ],
)
def test_ids_of_verls_form(change, problem_id):
    assert problem_of({**VERL, **change}).problem_id == problem_id


def test_a_structured_ground_truth_becomes_json():
    record = {**VERL, "reward_model": {"ground_truth": {"target": 24, "numbers": [4, 6]}}}
    assert problem_of(record).answer == '{"numbers": [4, 6], "target": 24}'


def test_made_ids_follow_the_rule_that_is_documented():
    text = '["sums", "2+3=ü", "5"]'
    assert content_id("2+3=ü", "5", "sums") == f"sha256-{hashlib.sha256(text.encode()).hexdigest()[:24]}"
    assert problem_of({"prompt": "2+3=ü", "answer": 5, "source": "sums"}).problem_id == content_id("2+3=ü", "5", "sums")


def test_made_ids_tell_contents_apart():
    ids = {
        content_id("p", "a"),
        content_id("p", "a", "s"),
        content_id("pa", ""),
        content_id("", "pa"),
        content_id("p", "a", "", [{"role": "user", "content": "p"}]),
        content_id("p", "a", "", [{"role": "system", "content": "p"}]),
    }
    assert len(ids) == 6


@pytest.mark.parametrize(
    ("record", "fault"),
    [
        ("text", "the record is 'text'; expected an object like"),
        (None, "the record is None; expected an object like"),
        ({}, "field 'prompt' is missing or null; the record has no fields."),
        ({"prompt": "p"}, "field 'answer' is missing or null; the record has 'prompt'."),
        (
            {"prompt": "p", "solution": "5"},
            "field 'answer' is missing or null; the record has 'prompt', 'solution'. If 'solution' is it, say "
            'fields = { answer = "solution" }.',
        ),
        ({"promt": "p"}, "field 'prompt' is missing or null; the record has 'promt' (did you mean 'promt'?)."),
        ({"prompt": "", "answer": "a"}, "prompt = '' (str); expected a non-empty string or a list of"),
        ({"prompt": 5, "answer": "a"}, "prompt = 5 (int); expected a non-empty string or a list of"),
        ({"prompt": [], "answer": "a"}, "prompt = []; expected a list of at least one message."),
        ({"prompt": ["hi"], "answer": "a"}, "prompt[0] = 'hi'; expected {\"role\": \"user\", \"content\": \"...\"}"),
        (
            {"prompt": [{"role": "usr", "content": "x"}], "answer": "a"},
            "prompt[0].role = 'usr'; expected one of system, developer, user, assistant, tool (did you mean 'user'?).",
        ),
        (
            {"messages": [*CHAT, {"role": "assistant", "content": "5"}], "answer": "5"},
            "messages ends with the assistant's turn; expected the turn it answers. Move the reply to the answer.",
        ),
        ({"prompt": "p", "answer": True}, "answer = True (bool); expected a string or a number. Write others as text."),
        ({"prompt": "p", "answer": ["5"]}, "answer = ['5'] (list); expected a string or a number."),
        ({"prompt": "p", "answer": float("nan")}, "answer = nan; expected a string or a finite number."),
        ({"prompt": "p", "answer": "a", "id": ""}, "id = ''; expected a string of 1 to 256 characters or an integer."),
        ({"prompt": "p", "answer": "a", "id": "x" * 257}, "id = 'xxx"),
        ({"prompt": "p", "answer": "a", "problem_id": 1.5}, "problem_id = 1.5; expected a string of 1 to 256"),
        ({"prompt": "p", "answer": "a", "source": 5}, "source = 5 (int); expected a string."),
        ({"prompt": "p", "answer": "a", "extra": 5}, "extra = 5; expected an object, or one as JSON text."),
        ({"prompt": "p", "answer": "a", "extra": "{"}, "extra = '{'; expected an object, or one as JSON text."),
        (
            {"prompt": "p", "answer": "a", "extra": {"messages": "hi"}},
            "extra.messages = 'hi'; expected a list of at least one message.",
        ),
        ({**VERL, "prompt": None}, "field 'prompt' is missing or null"),
        ({**VERL, "reward_model": {"style": "rule"}}, "reward_model = {'style': 'rule'}; expected {\"ground_truth\""),
        ({**VERL, "reward_model": "5"}, "reward_model = '5'; expected {\"ground_truth\""),
        ({**VERL, "extra_info": 5}, "extra_info = 5; expected an object like"),
        ({**VERL, "data_source": 5}, "data_source = 5 (int); expected a string."),
    ],
)  # fmt: skip
def test_a_bad_record_is_told_what_is_wrong_and_what_would_do(record, fault):
    assert fault_of(record).startswith(fault)


@pytest.mark.parametrize("field", ["prompt", "answer", "problem_id", "source"])
def test_half_a_surrogate_pair_is_refused_before_a_tokenizer_meets_it(field):
    record = {"prompt": "p", "answer": "a", "problem_id": "i", "source": "s", field: "cut \ud83d"}
    assert fault_of(record).startswith(f"{field} = 'cut \\ud83d' holds '\\ud83d', half of a surrogate pair")


def test_half_a_surrogate_pair_in_a_chat_is_refused_too():
    record = {"prompt": [{"role": "user", "content": "\udc00"}], "answer": "a"}
    assert fault_of(record).startswith("prompt[0].content = '\\udc00' holds")


def test_a_mapped_field_that_is_missing_is_named_with_its_neighbour():
    fault = fault_of({"questions": "p", "answer": "a"}, prompt="question")
    assert fault == (
        "field 'question', which `fields` maps to 'prompt', is missing; the record has 'questions', 'answer' "
        "(did you mean 'questions'?)."
    )
