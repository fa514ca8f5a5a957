"""Chats rendered with a tokenizer's template, and left as joined text where there is none."""

import json

import pytest

from gradalign_trainer.datasets import DataError, render_prompts
from gradalign_trainer.problems import Problem
from gradalign_trainer.worlds.tinymodel import byte_tokenizer

TEMPLATE = (
    "{% for message in messages %}"
    "{% if message.role == 'system' %}{{ raise_exception('no system message here') }}{% endif %}"
    "<{{ message.role }}>{{ message.content }}"
    "{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)
CHAT = Problem("c", "2+3=", "5", extra={"messages": [{"role": "user", "content": "2+3="}], "level": 1})
PLAIN = Problem("p", "3+4=", "7")


@pytest.fixture
def tokenizer():
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def test_a_chat_ends_where_the_assistant_begins(tokenizer):
    chat, plain = render_prompts([CHAT, PLAIN], tokenizer)
    assert chat.prompt == "<user>2+3=<assistant>"
    assert (chat.problem_id, chat.answer, chat.extra) == (CHAT.problem_id, CHAT.answer, CHAT.extra)
    assert plain == PLAIN


def test_plain_prompts_are_wrapped_where_asked(tokenizer):
    assert render_prompts([PLAIN], tokenizer, wrap_text=True)[0].prompt == "<user>3+4=<assistant>"


def test_without_a_template_prompts_stay_as_they_are():
    assert render_prompts([CHAT, PLAIN], byte_tokenizer(), wrap_text=True) == [CHAT, PLAIN]


def test_a_refusing_template_names_the_problem_and_its_roles(tokenizer):
    chat = Problem("s1", "x", "y", extra={"messages": [{"role": "system", "content": "x"}, CHAT.extra["messages"][0]]})
    with pytest.raises(DataError, match="refuses problem 's1' with roles system, user: no system message here"):
        render_prompts([chat], tokenizer)


def test_the_beginning_token_does_not_come_twice(tokenizer):
    from tokenizers.processors import TemplateProcessing

    tokenizer.add_special_tokens({"bos_token": "<bos>"})
    tokenizer.chat_template = "<bos>" + TEMPLATE
    assert render_prompts([CHAT], tokenizer)[0].prompt.startswith("<bos><user>")
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", tokenizer.bos_token_id)]
    )
    prompt = render_prompts([CHAT], tokenizer)[0].prompt
    assert prompt == "<user>2+3=<assistant>"
    assert tokenizer(prompt).input_ids.count(tokenizer.bos_token_id) == 1


def test_the_template_is_given_every_key_and_the_tools_of_the_record(tokenizer):
    tokenizer.chat_template = (
        "{% for message in messages %}{{ message.name }}:{{ message.content }};{{ message.tool_calls }}{% endfor %}"
        "{% for tool in tools or [] %}[{{ tool.function.name }}]{% endfor %}{{ mode }}"
    )
    messages = [
        {"role": "user", "name": "ann", "content": "2+3="},
        {
            "role": "assistant",
            "name": "bot",
            "content": "",
            "tool_calls": [{"function": {"name": "add", "arguments": {}}}],
        },
    ]
    tools = [{"type": "function", "function": {"name": "add", "parameters": {}}}]
    settings = {"mode": "quick", "tokenize": True}
    extra = {"messages": messages, "tools": tools, "chat_template_kwargs": settings}
    (problem,) = render_prompts([Problem("c", "x", "5", extra=extra)], tokenizer)
    assert problem.prompt.startswith("ann:2+3=;bot:;[{'function': {'name': 'add'")
    assert problem.prompt.endswith("[add]quick")
    as_text = {**extra, "tools": json.dumps(tools), "chat_template_kwargs": json.dumps(settings)}
    assert render_prompts([Problem("c", "x", "5", extra=as_text)], tokenizer)[0].prompt == problem.prompt
