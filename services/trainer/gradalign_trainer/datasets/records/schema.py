"""The schema of records: what a JSONL line, a Parquet row or a Hugging Face row must hold to be a problem.

Two forms, told apart by the key `reward_model`:

    ours   {"problem_id": "p1", "prompt": "2+3=", "answer": "5", "source": "sums", "extra": {...}}
           `problem_id` (or `id`), `source` and `extra` may be absent; other keys go to `extra`.
    verl   {"data_source": "gsm8k", "prompt": [{"role": "user", "content": "2+3="}],
            "reward_model": {"ground_truth": "5", "style": "rule"}, "extra_info": {"index": 0, "split": "train"}}

In both, a prompt is a text or a chat, a list of {role, content} with whatever else a chat template may use.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from gradalign.errors import GradAlignError
from gradalign.wire.checks import shown
from gradalign_trainer.datasets.records.ids import content_id, given_to_template
from gradalign_trainer.datasets.records.messages import Message, Unfit, chat_text, encodable, read_chat
from gradalign_trainer.numerals import as_integer, as_number, numeral
from gradalign_trainer.problems import Problem
from gradalign_trainer.settings import nearest

__all__ = ["BadRecord", "Candidate", "DataError", "Place", "parse_record"]

LONGEST_ID = 256
_OURS = ("problem_id", "id", "prompt", "messages", "answer", "source", "extra")
_VERL = ("problem_id", "id", "prompt", "messages", "data_source")


class DataError(GradAlignError):
    """Problems that cannot be read.

    Attributes:
        bad: the records at fault, where records are.
    """

    def __init__(self, message: str, bad: Sequence[BadRecord] = ()) -> None:
        super().__init__(message)
        self.bad = tuple(bad)


class Place(NamedTuple):
    """Where a record stands: file and line or row, both counted from 1."""

    file: str
    number: int
    unit: str = "line"

    def __str__(self) -> str:
        return f"{self.file}:{self.number}" if self.unit == "line" else f"{self.file} {self.unit} {self.number}"


@dataclass(frozen=True, slots=True)
class BadRecord:
    """A record that is no problem.

    Attributes:
        place: where it stands.
        message: the field, what was given, and what would do.
    """

    place: Place
    message: str

    def __str__(self) -> str:
        return f"{self.place}: {self.message}"


@dataclass(frozen=True, slots=True)
class Candidate:
    """A problem whose id may still give way.

    Attributes:
        problem: as parsed.
        place: where it stands.
        derived: its id was made from verl's `extra_info.index`, which may collide, and then falls back to the content.
        droppable: its source says to drop what repeats an earlier problem.
    """

    problem: Problem
    place: Place
    derived: bool = False
    droppable: bool = False

    @property
    def content(self) -> str:
        """The id that is made from the content."""
        problem = self.problem
        messages = problem.extra.get("messages")
        template = None if messages is None else given_to_template(problem.extra)
        return content_id(problem.prompt, problem.answer, problem.source, messages, template)


def parse_record(record: Any, place: Place, fields: Mapping[str, str]) -> Candidate | BadRecord:
    """The problem of a record, or what is wrong with it.

    Args:
        record: as decoded.
        place: where it stands.
        fields: our name -> the record's name, dots reaching into nested records.
    """
    try:
        if not isinstance(record, Mapping):
            raise Unfit(f'the record is {shown(record)}; expected an object like {{"prompt": ..., "answer": ...}}')
        present = _renamed({key: value for key, value in record.items() if value is not None}, fields)
        return _verl(present, place) if "reward_model" in present else _ours(present, place)
    except Unfit as error:
        return BadRecord(place, f"{error}.")


def _renamed(record: dict[str, Any], fields: Mapping[str, str]) -> dict[str, Any]:
    """The record under our names; a field that is moved leaves its old place, unless it is nested."""
    moved = dict(record)
    for ours, theirs in fields.items():
        value: Any = record
        for step in theirs.split("."):
            value = value.get(step) if isinstance(value, Mapping) else None
        if value is None:
            hint = nearest(theirs, record)
            raise Unfit(
                f"field {theirs!r}, which `fields` maps to {ours!r}, is missing; the record has {_keys(record)}{hint}"
            )
        if theirs not in fields:
            moved.pop(theirs, None)
        moved[ours] = value
    return moved


def _keys(record: Mapping[str, Any]) -> str:
    return ", ".join(map(repr, record)) or "no fields"


def _ours(record: Mapping[str, Any], place: Place) -> Candidate:
    prompt_key = "prompt" if "prompt" in record else "messages"
    if prompt_key not in record:
        raise _missing("prompt", record)
    if "answer" not in record:
        raise _missing("answer", record)
    prompt, messages = _prompt(prompt_key, record[prompt_key])
    extra = {key: value for key, value in record.items() if key not in _OURS} | _extra(record.get("extra", {}))
    if "messages" in extra:  # where `write_jsonl` put the chat that the prompt was made from
        extra["messages"] = read_chat("extra.messages", extra["messages"])
    id_key = "problem_id" if "problem_id" in record else "id"
    problem = _problem(
        _id(id_key, record[id_key]) if id_key in record else "",
        prompt,
        messages,
        answer=_answer("answer", record["answer"]),
        source=_text("source", record.get("source", ""), empty=True),
        extra=extra,
    )
    return Candidate(problem, place)


def _verl(record: Mapping[str, Any], place: Place) -> Candidate:
    if "prompt" not in record:
        raise _missing("prompt", record)
    reward, info = record["reward_model"], record.get("extra_info", {})
    if not isinstance(reward, Mapping) or reward.get("ground_truth") is None:
        raise Unfit(f'reward_model = {shown(reward)}; expected {{"ground_truth": "...", "style": "rule"}}')
    if not isinstance(info, Mapping):
        raise Unfit(f'extra_info = {shown(info)}; expected an object like {{"index": 0, "split": "train"}}')
    truth = reward["ground_truth"]
    if isinstance(truth, (Mapping, list)):
        truth = json.dumps(truth, sort_keys=True, ensure_ascii=False)
    source = _text("data_source", record.get("data_source", ""), empty=True)
    prompt, messages = _prompt("prompt", record["prompt"])
    given = next((_id(key, record[key]) for key in ("problem_id", "id") if key in record), "")
    index, split = info.get("index"), info.get("split")
    index = index if isinstance(index, str) and index else as_integer(index)
    derived = ""
    if not given and index is not None:
        derived = "/".join(str(part) for part in (source, split, index) if part not in (None, ""))
        derived = derived if len(derived) <= LONGEST_ID else ""
    kept = {key: value for key, value in record.items() if key not in _VERL}
    answer = _answer("reward_model.ground_truth", truth)
    problem = _problem(given or derived, prompt, messages, answer=answer, source=source, extra=kept)
    return Candidate(problem, place, derived=bool(derived))


def _problem(
    problem_id: str,
    prompt: str,
    messages: list[Message] | None,
    *,
    answer: str,
    source: str,
    extra: dict[str, Any],
) -> Problem:
    if messages is not None:
        extra = {**extra, "messages": messages}
    problem_id = problem_id or content_id(prompt, answer, source, messages, _template(extra))
    return Problem(problem_id=problem_id, prompt=prompt, answer=answer, source=source, extra=extra)


def _template(extra: Mapping[str, Any]) -> dict[str, Any] | None:
    return given_to_template(extra) if "messages" in extra else None


def _missing(name: str, record: Mapping[str, Any]) -> Unfit:
    usual = {
        "prompt": ("question", "problem", "instruction", "input", "query"),
        "answer": ("solution", "output", "target", "label"),
    }
    likely = next((key for key in usual[name] if key in record), None)
    hint = f'. If {likely!r} is it, say fields = {{ {name} = "{likely}" }}' if likely else nearest(name, record)
    return Unfit(f"field {name!r} is missing or null; the record has {_keys(record)}{hint}")


def _text(name: str, value: Any, *, empty: bool = False) -> str:
    if not isinstance(value, str) or not (value or empty):
        raise Unfit(
            f"{name} = {shown(value)} ({type(value).__name__}); expected {'a' if empty else 'a non-empty'} string"
        )
    return encodable(name, value)


def _id(name: str, value: Any) -> str:
    number = as_integer(value)
    text = value if number is None else str(number)
    if not isinstance(text, str) or not 1 <= len(text) <= LONGEST_ID:
        raise Unfit(f"{name} = {shown(value)}; expected a string of 1 to {LONGEST_ID} characters or an integer")
    return encodable(name, text)


def _answer(name: str, value: Any) -> str:
    if isinstance(value, str):
        return encodable(name, value)
    number = as_number(value)
    if number is None:
        raise Unfit(
            f"{name} = {shown(value)} ({type(value).__name__}); expected a string or a number. Write others as text"
        )
    try:
        return numeral(number)
    except ValueError:
        raise Unfit(f"{name} = {value}; expected a string or a finite number") from None


def _extra(value: Any) -> dict[str, Any]:
    if isinstance(value, str):  # Parquet has no type for objects with keys of their own: they are kept as JSON text
        try:
            decoded = json.loads(value)
        except (ValueError, RecursionError):
            decoded = None
    else:
        decoded = value
    if not isinstance(decoded, Mapping):
        raise Unfit(f"extra = {shown(value)}; expected an object, or one as JSON text")
    return dict(decoded)


def _prompt(name: str, value: Any) -> tuple[str, list[Message] | None]:
    """The prompt as text, and the messages where it is a chat."""
    if isinstance(value, (list, tuple)):
        messages = read_chat(name, value)
        return chat_text(messages), messages
    if not isinstance(value, str) or not value:
        raise Unfit(
            f"{name} = {shown(value)} ({type(value).__name__}); expected a non-empty string or a list of "
            '{"role": ..., "content": ...}'
        )
    return encodable(name, value), None
