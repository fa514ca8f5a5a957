"""Ids of problems: given, derived from verl's index, or made from the content.

A problem without an id is called `sha256-` and the first 24 hex digits of the SHA-256 of the UTF-8 JSON list
`[source, prompt, answer]`, a chat standing for the prompt as a list of `[role, content]`; written with `", "` between
items and no escapes for characters beyond ASCII. So the id depends on the content alone: not on the order, the file
or the machine.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence

__all__ = ["content_id"]


def content_id(prompt: str, answer: str, source: str = "", messages: Sequence[Mapping[str, str]] | None = None) -> str:
    """The id of a problem that was given none.

    Args:
        prompt: as text; not looked at where there are messages.
        answer: the trusted answer.
        source: where the problem comes from.
        messages: of a chat, each with `role` and `content`.
    """
    asked = prompt if messages is None else [[message["role"], message["content"]] for message in messages]
    # Any text of Python's has an id, half a surrogate pair too, which UTF-8 has no bytes for.
    text = json.dumps([source, asked, answer], ensure_ascii=False).encode("utf-8", "surrogatepass")
    return f"sha256-{hashlib.sha256(text).hexdigest()[:24]}"
