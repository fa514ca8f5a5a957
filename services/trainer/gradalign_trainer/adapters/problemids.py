"""Ids of problems in a dataset that has none, for the adapters: `stable_id`, and `row_id` of a whole row.

The rule is that of `datasets.ids`: the id depends on source, prompt and answer alone, so that it is the same after a
shuffle, on another machine and in a resumed run. Rows that agree in all three are one problem to the curriculum.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from gradalign_trainer.datasets.records.ids import content_id
from gradalign_trainer.datasets.records.messages import without_nulls
from gradalign_trainer.numerals import as_number, numeral

__all__ = ["PromptLike", "row_id", "stable_id"]

PromptLike: TypeAlias = str | Sequence[Mapping[str, Any]]
"""A prompt as datasets hold it: a text, or a chat as a list of messages with `role`, `content` and other keys."""


def stable_id(prompt: PromptLike, answer: Any = "", source: str = "") -> str:
    """The id of a problem that was given none: `sha256-` and 24 hex digits, equal to what `load_problems` makes.

    Args:
        prompt: a text or a chat; all keys of its messages count.
        answer: the trusted answer; a finite number counts as its digits, what else is no text as its JSON, None as none.
        source: where the problem comes from.

    Raises:
        TypeError: the prompt is neither a text nor a chat, or a message or the answer has no JSON form.
    """
    messages = None if isinstance(prompt, str) else [_message(message) for message in prompt]
    return content_id("" if messages is not None else str(prompt), _plain(answer), source, messages)


def row_id(row: Mapping[str, Any]) -> str:
    """The id of a row of a dataset: what its column `problem_id` has, else by the names and values of all columns.

    Raises:
        TypeError: there is no `problem_id`, and a column has no JSON form, an image say.
    """
    if row.get("problem_id") not in (None, ""):
        return str(row["problem_id"])
    try:
        return stable_id(json.dumps(row, sort_keys=True, ensure_ascii=False))
    except TypeError as error:
        raise TypeError(
            f"a row with the columns {sorted(map(str, row))} has no problem_id, and one column has no JSON form to make an "
            f"id of ({error}); give the dataset a column problem_id, the same for a problem in every run."
        ) from error


def _message(message: Any) -> Mapping[str, Any]:
    if (
        not isinstance(message, Mapping)
        or "role" not in message
        or not ("content" in message or "tool_calls" in message)
    ):
        raise TypeError(
            f'message {message!r:.120}; expected {{"role": "user", "content": "..."}}, or a text as prompt.'
        )
    return dict(without_nulls(message)) | {"role": _plain(message["role"])}


def _plain(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    number = as_number(value)
    if number is not None and math.isfinite(number):
        return numeral(number)
    return json.dumps(value, sort_keys=True, ensure_ascii=False)
