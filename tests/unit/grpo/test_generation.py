"""Rollouts: what the cache, the padding and the groups must not change, and where a completion ends."""

import pytest
import torch
from positions import POSITIONS

from gradalign_trainer.grpo.generation import (
    RolloutBatch,
    Sampling,
    encode_prompts,
    end_tokens,
    generate,
    join_batches,
)
from gradalign_trainer.worlds.tinymodel import character_tokenizer

PROMPTS = ["abca", "b", "ccab", "ab", "cabcabcabc"]
PAD, EOS = 0, 1


@pytest.fixture(scope="module", params=POSITIONS)
def model(request, tokenizer):
    """A model with larger weights than fresh ones, so that what came before decides what comes next.

    In float64, where no two tokens are so nearly alike that the size of a batch decides between them.
    """
    model = POSITIONS[request.param](tokenizer, seed=0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4.0)
    return model.double()


def rolled(model, tokenizer, prompts=PROMPTS, *, seed=0, **sampling):
    settings = Sampling(**{"group_size": 3, "max_new_tokens": 12} | sampling)
    return generate(model, tokenizer, prompts, settings, torch.Generator().manual_seed(seed))


def real(batch, row):
    """Tokens of a completion, without padding."""
    return batch.completion_ids[row][batch.completion_mask[row].bool()].tolist()


@torch.no_grad()
def greedy(model, ids, most):
    """The likeliest completion token by token: no cache, no padding, no batch."""
    said = []
    while len(said) < most and EOS not in said:
        said.append(int(model(input_ids=torch.tensor([[*ids, *said]])).logits[0, -1].argmax()))
    return said


def test_batched_greedy_completions_are_those_of_one_prompt_at_a_time(model, tokenizer):
    batch = rolled(model, tokenizer, temperature=0, group_size=2)
    alone = [greedy(model, tokenizer(prompt)["input_ids"], 12) for prompt in PROMPTS]
    assert [real(batch, row) for row in range(10)] == [said for said in alone for _ in range(2)]
    assert len({tuple(said) for said in alone}) > 1


def test_batches_of_prompts_do_not_change_what_is_likeliest(model, tokenizer):
    whole, parts = (rolled(model, tokenizer, temperature=0, prompts_per_batch=size) for size in (512, 2))
    assert torch.equal(whole.completion_ids, parts.completion_ids)
    assert torch.equal(whole.completion_mask, parts.completion_mask)


@torch.no_grad()
def test_groups_are_drawn_from_the_models_own_distribution(model, tokenizer):
    batch = rolled(model, tokenizer, seed=7, temperature=0.7)
    generator = torch.Generator().manual_seed(7)
    rows = [tokenizer(prompt)["input_ids"] for prompt in PROMPTS for _ in range(3)]
    said = [[] for _ in rows]
    for _ in range(12):
        if all(EOS in tokens for tokens in said):
            break
        logits = [
            model(input_ids=torch.tensor([row + tokens])).logits[0, -1] for row, tokens in zip(rows, said, strict=True)
        ]
        drawn = torch.multinomial(torch.softmax(torch.stack(logits) / 0.7, -1), 1, generator=generator)[:, 0]
        for tokens, token in zip(said, drawn.tolist(), strict=True):
            if EOS not in tokens:
                tokens.append(token)
    assert [real(batch, row) for row in range(len(rows))] == said


def test_a_seed_gives_its_rollouts_and_no_others(model, tokenizer):
    first, again, other = (rolled(model, tokenizer, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first.completion_ids, again.completion_ids)
    assert first.texts == again.texts
    assert first.texts != other.texts
    assert len(set(first.texts)) > len(PROMPTS)


def test_a_completion_ends_with_the_end_token_and_padding_follows(model, tokenizer):
    batch = rolled(model, tokenizer, seed=3, group_size=40, temperature=4)  # of 200 some end and some do not
    ended = 0
    for ids, mask, text in zip(batch.completion_ids.tolist(), batch.completion_mask.tolist(), batch.texts, strict=True):
        length = sum(mask)
        assert mask == [1] * length + [0] * (len(mask) - length)
        assert EOS not in ids[: length - 1]
        assert set(ids[length:]) <= {PAD}
        assert ids[length - 1] == EOS or length == 12
        assert text == tokenizer.decode(ids[:length], skip_special_tokens=True)
        ended += ids[length - 1] == EOS
    assert 0 < ended < len(batch.texts)
    assert batch.tokens.tolist() == batch.completion_mask.view(5, -1).sum(1).tolist()


def test_nothing_is_padded_beyond_the_longest(model, tokenizer):
    batch = rolled(model, tokenizer, prompts=["b"], group_size=1, temperature=0)
    assert batch.completion_mask.all()


def test_every_end_token_of_the_model_counts(model, tokenizer):
    assert end_tokens(model, tokenizer) == [EOS]
    configured = model.generation_config.eos_token_id
    model.generation_config.eos_token_id = [3, EOS]
    try:
        assert end_tokens(model, tokenizer) == [EOS, 3]
        batch = rolled(model, tokenizer, seed=3, group_size=40, temperature=4)
        assert all(not {EOS, 3} & set(real(batch, row)[:-1]) for row in range(200))
        assert any(real(batch, row)[-1] == 3 for row in range(200))
    finally:
        model.generation_config.eos_token_id = configured


def test_a_tokenizer_without_padding_token_will_do(model):
    bare = character_tokenizer("abc")
    bare.pad_token = None
    with_pad, without = (rolled(model, each, temperature=0) for each in (character_tokenizer("abc"), bare))
    assert [real(without, row) for row in range(15)] == [real(with_pad, row) for row in range(15)]
    assert without.texts == with_pad.texts


def test_the_model_is_left_in_its_mode(model, tokenizer):
    for mode in (True, False):
        model.train(mode)
        rolled(model, tokenizer)
        assert model.training is mode


def test_prompts_are_padded_on_the_left(tokenizer):
    ids, mask = encode_prompts(tokenizer, ["ab", "c"], torch.device("cpu"))
    assert ids.tolist() == [[2, 3], [PAD, 4]]
    assert mask.tolist() == [[1, 1], [0, 1]]


def test_joined_batches_are_those_of_each_part_padded(model, tokenizer):
    parts = [rolled(model, tokenizer, ["a", "bca"]), rolled(model, tokenizer, ["cabcab"], max_new_tokens=2)]
    whole = join_batches(parts)
    assert whole.texts == [*parts[0].texts, *parts[1].texts]
    assert whole.prompt_ids.shape == (3, 6)
    assert [real(whole, row) for row in range(9)] == [
        real(part, row) for part in parts for row in range(len(part.texts))
    ]
    for picked, part in (([0, 1], parts[0]), ([2], parts[1])):
        again = whole.groups(picked)
        assert torch.equal(again.prompt_ids[again.prompt_mask.bool()], part.prompt_ids[part.prompt_mask.bool()])


def test_groups_are_picked_in_order_and_trimmed_on_both_sides():
    batch = RolloutBatch(
        prompt_ids=torch.tensor([[2, 3, 4], [0, 0, 2], [0, 3, 3]]),
        prompt_mask=torch.tensor([[1, 1, 1], [0, 0, 1], [0, 1, 1]]),
        completion_ids=torch.tensor([[2, 3, 2, 1], [2, 1, 0, 0], [3, 1, 0, 0], [1, 0, 0, 0], [4, 4, 1, 0], [4, 1, 0, 0]]),
        completion_mask=torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 1, 0, 0], [1, 0, 0, 0], [1, 1, 1, 0], [1, 1, 0, 0]]),
        texts=["aba", "a", "b", "", "cc", "c"],
        group_size=2,
        temperature=0.5,
    )  # fmt: skip
    picked = batch.groups([2, 1])
    assert picked.prompt_ids.tolist() == [[3, 3], [0, 2]]
    assert picked.prompt_mask.tolist() == [[1, 1], [0, 1]]
    assert picked.completion_ids.tolist() == [[4, 4, 1], [4, 1, 0], [3, 1, 0], [1, 0, 0]]
    assert picked.completion_mask.tolist() == [[1, 1, 1], [1, 1, 0], [1, 1, 0], [1, 0, 0]]
    assert picked.texts == ["cc", "c", "b", ""]
    assert picked.tokens.tolist() == [5, 3]
    assert (picked.group_size, picked.temperature) == (2, 0.5)
    assert batch.tokens.tolist() == [6, 3, 5]
