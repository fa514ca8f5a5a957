"""Tiny models and tokenizers made on the spot, and policies loaded from folders."""

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from gradalign_trainer.grpo.models import load_policy, load_tokenizer, pick_device
from gradalign_trainer.worlds.tinymodel import byte_tokenizer, character_tokenizer, tiny_model

BYTES = byte_tokenizer()


@given(st.text(alphabet=st.characters(exclude_categories=["Cs"])))
@example("")
@example(" a  b\r\n\t\n")
@example("\x00\x7f\u200b\ufeff🤷🏽‍♀️ Ω")
@example("the end<eos>or not <pad>")
def test_bytes_give_any_text_back(text):
    ids = BYTES(text)["input_ids"]
    assert BYTES.decode(ids) == text
    assert all(0 <= token < 258 for token in ids)


@given(st.text())
def test_there_is_one_token_a_byte(text):
    if "<eos>" not in text and "<pad>" not in text:
        ids = BYTES(text)["input_ids"]
        assert len(ids) == len(text.encode())
        assert not {0, 1} & set(ids)


def test_bytes_have_the_size_that_is_documented():
    assert (len(BYTES), BYTES.pad_token_id, BYTES.eos_token_id, BYTES.padding_side) == (258, 0, 1, "left")


@given(st.text("0123456789+-="))
def test_characters_give_their_text_back(text):
    tokenizer = character_tokenizer("0123456789+-=")
    ids = tokenizer(text)["input_ids"]
    assert len(ids) == len(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.decode([*ids, 1, 0, 0], skip_special_tokens=True) == text


def test_a_character_outside_the_vocabulary_is_refused():
    with pytest.raises(Exception, match=r"(?i)unk"):
        character_tokenizer("ab")("abc")


def test_the_model_fits_its_tokenizer_and_its_seed():
    first, again, other = (tiny_model(BYTES, seed=seed, hidden=16, mlp=32) for seed in (1, 1, 2))
    assert first.get_input_embeddings().weight.shape == (258, 16)
    assert first.get_output_embeddings().weight is not first.get_input_embeddings().weight
    assert first.get_input_embeddings().padding_idx is None
    assert first.generation_config.eos_token_id == 1
    assert not first.training
    same = [torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True)]
    assert all(same)
    assert not torch.equal(first.lm_head.weight, other.lm_head.weight)


def test_making_a_model_leaves_the_random_state_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    tiny_model(BYTES, seed=1, hidden=16, mlp=32)
    assert torch.equal(torch.rand(3), expected)


def test_the_default_size_is_about_as_documented():
    size = sum(parameter.numel() for parameter in tiny_model(character_tokenizer("0123456789"), seed=0).parameters())
    assert 100_000 < size < 120_000


@pytest.mark.parametrize("tokenizer", [BYTES, character_tokenizer("ab+=")])
def test_a_saved_policy_is_loaded_as_it_was(tmp_path, tokenizer):
    model = tiny_model(tokenizer, seed=1, hidden=16, mlp=32).train()
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    again, its_tokenizer = load_policy(tmp_path, device=torch.device("cpu"))
    assert its_tokenizer.get_vocab() == tokenizer.get_vocab() == load_tokenizer(tmp_path).get_vocab()
    assert its_tokenizer("a+b=")["input_ids"] == tokenizer("a+b=")["input_ids"]
    assert (its_tokenizer.pad_token_id, its_tokenizer.eos_token_id) == (0, 1)
    assert not again.training
    assert torch.equal(again.lm_head.weight, model.lm_head.weight)


def test_a_policy_takes_the_dtype_that_is_asked_for(tmp_path):
    tiny_model(BYTES, seed=1, hidden=16, mlp=32).save_pretrained(tmp_path)
    BYTES.save_pretrained(tmp_path)
    model, _ = load_policy(tmp_path, device=torch.device("cpu"), dtype="bfloat16")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


def test_devices_are_picked_by_name():
    assert pick_device("cpu") == torch.device("cpu")
    assert pick_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
