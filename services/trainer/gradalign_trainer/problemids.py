"""Ids of problems in a dataset that has none, for the adapters: `stable_id`.

The rule is that of `datasets.ids`: the id depends on source, prompt and answer alone, so that it is the same after a
shuffle, on another machine and in a resumed run. Rows that agree in all three are one problem to the curriculum.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from gradalign_trainer.datasets.ids import content_id

__all__ = ["PromptLike", "stable_id"]

PromptLike: TypeAlias = str | Sequence[Mapping[str, Any]]
"""A prompt as datasets hold it: a text, or a chat as a list of messages with `role` and `content`."""


def stable_id(prompt: PromptLike, answer: Any = "", source: str = "") -> str:
    """The id of a problem that was given none: `sha256-` and 24 hex digits, equal to what `load_problems` makes.

    Args:
        prompt: a text or a chat.
        answer: the trusted answer; what is no text counts as its JSON, None as none.
        source: where the problem comes from.

    Raises:
        TypeError: the prompt is neither a text nor a chat, or the answer has no JSON form.
    """
    messages = None
    if not isinstance(prompt, str):
        messages = [{"role": _text(message, "role"), "content": _text(message, "content")} for message in prompt]
    return content_id("" if messages is not None else str(prompt), _plain(answer), source, messages)


def _text(message: Any, key: str) -> str:
    if not isinstance(message, Mapping) or key not in message:
        raise TypeError(
            f'message {message!r:.120}; expected {{"role": "user", "content": "..."}}, or a text as prompt.'
        )
    return _plain(message[key])


def _plain(value: Any) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True, ensure_ascii=False)
