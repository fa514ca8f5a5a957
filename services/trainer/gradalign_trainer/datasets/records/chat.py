"""Prompts of chats, rendered with the chat template of a tokenizer."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from gradalign_trainer.datasets.records.ids import given_to_template
from gradalign_trainer.datasets.records.schema import DataError
from gradalign_trainer.problems import Problem

__all__ = ["render_prompts"]


def render_prompts(problems: Iterable[Problem], tokenizer: Any, *, wrap_text: bool = False) -> list[Problem]:
    """The problems, chats rendered as text that ends where the assistant's turn begins.

    The template is given the messages with all their keys, and of the record's fields `tools`, `documents` and those of
    `chat_template_kwargs`. A tokenizer without a chat template leaves the prompt that the loader made: the contents of
    the messages, an empty line between them. Where the tokenizer puts its begin-of-text token before every text by
    itself, the template's is taken off, so that it does not come twice.

    Args:
        problems: the messages of a chat are in `extra["messages"]`.
        tokenizer: of transformers.
        wrap_text: render plain prompts too, as one message of the user.

    Raises:
        DataError: the template refuses a chat; some take no `system` message, say.
    """
    if not getattr(tokenizer, "chat_template", None):
        return list(problems)
    begin = _own_beginning(tokenizer)

    def rendered(problem: Problem) -> Problem:
        messages = problem.extra.get("messages")
        if messages is None and not wrap_text:
            return problem
        messages = [{"role": "user", "content": problem.prompt}] if messages is None else messages
        given = given_to_template(problem.extra)
        try:
            given |= given.pop("chat_template_kwargs", {})
            text = tokenizer.apply_chat_template(
                messages, **(given | {"tokenize": False, "add_generation_prompt": True})
            )
        except Exception as error:  # templates are programs; they raise what they like
            roles = ", ".join(message["role"] for message in messages)
            raise DataError(
                f"the chat template of the tokenizer refuses problem {problem.problem_id!r} with roles {roles}: {error}. "
                "Expected a chat in the form that the model was trained on; change the messages, or take another model."
            ) from error
        return replace(problem, prompt=text.removeprefix(begin))

    return [rendered(problem) for problem in problems]


def _own_beginning(tokenizer: Any) -> str:
    """The begin-of-text token where encoding adds it to every text; else empty."""
    begin = tokenizer.bos_token
    ids = tokenizer("a").input_ids
    return begin if begin and ids and ids[0] == tokenizer.bos_token_id else ""
