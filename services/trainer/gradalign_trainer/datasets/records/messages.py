"""The messages of a chat, as records hold them: checked, with every key that a chat template may use.

`role` and `content` are ours to check; `tool_calls`, `tool_call_id`, `name`, `reasoning_content` and keys that we never
heard of are kept. Null is as good as absent, since Parquet fills the keys of one message into all; the arguments of a
tool call stay as they are.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, TypeAlias

from gradalign.wire.checks import shown
from gradalign_trainer.settings import nearest

__all__ = ["ROLES", "Message", "Unfit", "chat_text", "encodable", "read_chat", "without_nulls"]

ROLES = ("system", "developer", "user", "assistant", "tool")
MAY_BE_SILENT = ("tool_calls", "function_call", "reasoning_content", "reasoning", "thinking")
"""Keys of a message that has something to say without a content."""

Message: TypeAlias = dict[str, Any]


class Unfit(Exception):
    """What is wrong with a record."""


def encodable(name: str, text: str) -> str:
    """The text, unless UTF-8 cannot write it: JSON may hold half a surrogate pair, which no tokenizer takes.

    Raises:
        Unfit: it holds half a surrogate pair.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise Unfit(
            f"{name} = {shown(text)} holds {text[error.start]!r}, half of a surrogate pair; expected whole characters"
        ) from error
    return text


def read_chat(name: str, value: Any) -> list[Message]:
    """The messages of a chat that the assistant has to answer.

    Args:
        name: of the field, for messages.
        value: a list of messages.

    Raises:
        Unfit: it is no such list, or a message is none.
    """
    if not isinstance(value, (list, tuple)) or not value:
        raise Unfit(f"{name} = {shown(value)}; expected a list of at least one message")
    messages = [_message(f"{name}[{index}]", message) for index, message in enumerate(value)]
    if messages[-1]["role"] == "assistant":
        raise Unfit(
            f"{name} ends with the assistant's turn; expected the turn it answers. Move the reply to the answer"
        )
    if not chat_text(messages):
        raise Unfit(f"{name} holds no text; expected a message with a content")
    return messages


def chat_text(messages: list[Message]) -> str:
    """The contents of the messages, an empty line between them; of parts, those of type text."""
    return "\n\n".join(filter(None, (_said(message.get("content")) for message in messages)))


def _said(content: Any) -> str:
    if isinstance(content, str):
        return content
    return "\n\n".join(part["text"] for part in content or () if isinstance(part.get("text"), str))


def _message(name: str, message: Any) -> Message:
    if not isinstance(message, Mapping):
        raise Unfit(f'{name} = {shown(message)}; expected {{"role": "user", "content": "..."}} with text as content')
    kept: Message = without_nulls(message)
    if not _has_content(name, kept):
        raise Unfit(f'{name} = {shown(message)}; expected {{"role": "user", "content": "..."}} with text as content')
    if kept.get("role") not in ROLES:
        given = message.get("role")
        raise Unfit(f"{name}.role = {shown(given)}; expected one of {', '.join(ROLES)}{nearest(str(given), ROLES)}")
    for key, value in kept.items():
        _check_written(f"{name}.{key}", value)
    return kept


def _has_content(name: str, message: Message) -> bool:
    content = message.get("content")
    if isinstance(content, list):
        for index, part in enumerate(content):
            if not isinstance(part, Mapping) or not isinstance(part.get("type"), str):
                raise Unfit(
                    f'{name}.content[{index}] = {shown(part)}; expected a part like {{"type": "text", "text": "..."}}'
                )
        return bool(content)
    if content is None or content == "":
        return message.get("role") == "tool" or any(message.get(key) for key in MAY_BE_SILENT)
    return isinstance(content, str)


def _check_written(name: str, value: Any) -> None:
    """Hold a value to what JSON can write in UTF-8."""
    if isinstance(value, str):
        encodable(name, value)
        return
    try:
        text = json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise Unfit(f"{name} = {shown(value)}; expected what JSON can write ({error})") from error
    encodable(name, text)


def without_nulls(value: Any) -> Any:
    """A value without the keys that are null, all the way down but for the arguments of tool calls."""
    if isinstance(value, Mapping):
        return {
            key: each if key == "arguments" else without_nulls(each) for key, each in value.items() if each is not None
        }
    return [without_nulls(each) for each in value] if isinstance(value, (list, tuple)) else value
