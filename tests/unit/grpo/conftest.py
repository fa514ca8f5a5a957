"""The tokenizer of these tests."""

import pytest

from gradalign_trainer.worlds.tinymodel import character_tokenizer


@pytest.fixture(scope="module")
def tokenizer():
    return character_tokenizer("abc")
