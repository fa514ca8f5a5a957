"""Ids of problems: given, derived from verl's index, or made from the content.

A problem without an id is called `sha256-` and the first 24 hex digits of the SHA-256 of the UTF-8 JSON list
`[source, prompt, answer]`, a chat standing for the prompt as a list of `[role, content]`; written with `", "` between
items and no escapes for characters beyond ASCII. A message with other keys is `[role, content, {those, keys sorted}]`, and a
content that is no text counts as its JSON; what else the chat template is given (`tools`, say) is a fourth item. So the
id depends on the content alone: not on the order, the file or the machine.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["TEMPLATE_KEYS", "content_id", "given_to_template"]

TEMPLATE_KEYS = ("tools", "documents", "chat_template_kwargs")
"""Fields of a record, beside its messages, that the chat template is given."""


def content_id(
    prompt: str,
    answer: str,
    source: str = "",
    messages: Sequence[Mapping[str, Any]] | None = None,
    template: Mapping[str, Any] | None = None,
) -> str:
    """The id of a problem that was given none.

    Args:
        prompt: as text; not looked at where there are messages.
        answer: the trusted answer.
        source: where the problem comes from.
        messages: of a chat, each with `role`, mostly `content`, and whatever else its template may use.
        template: what else the template is given.
    """
    asked = prompt if messages is None else [_message(message) for message in messages]
    parts = [source, asked, answer, *([dict(template)] if template else [])]
    # Any text of Python's has an id, half a surrogate pair too, which UTF-8 has no bytes for.
    text = json.dumps(parts, sort_keys=True, ensure_ascii=False).encode("utf-8", "surrogatepass")
    return f"sha256-{hashlib.sha256(text).hexdigest()[:24]}"


def given_to_template(extra: Mapping[str, Any]) -> dict[str, Any]:
    """What the template of a chat is given beside the messages, by name."""
    return {key: _decoded(extra[key]) for key in TEMPLATE_KEYS if extra.get(key)}


def _decoded(value: Any) -> Any:
    """A value that may be JSON text, as Parquet holds objects whose keys differ."""
    try:
        return json.loads(value) if isinstance(value, str) else value
    except ValueError:
        return value


def _message(message: Mapping[str, Any]) -> list[Any]:
    content = message.get("content")
    said = "" if content is None else content
    said = said if isinstance(said, str) else json.dumps(said, sort_keys=True, ensure_ascii=False)
    others = {key: value for key, value in message.items() if key not in ("role", "content") and value is not None}
    return [message["role"], said, *([others] if others else [])]
