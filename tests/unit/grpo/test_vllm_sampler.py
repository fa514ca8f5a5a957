"""Sampling by vLLM: the policy's own weights and distribution, and the ends, masks and seeds of sampling by transformers."""

import math

import pytest
import torch
from releases import needs
from transformers import LlamaConfig, LlamaForCausalLM

from gradalign import GradAlignError
from gradalign_trainer.grpo import vllm_sampler
from gradalign_trainer.grpo.generation import Sampling, generate
from gradalign_trainer.grpo.loss import completion_logprobs
from gradalign_trainer.grpo.models import load_policy
from gradalign_trainer.grpo.vllm_sampler import VLLMSampler, check_vllm, policy_weights
from gradalign_trainer.worlds.tinymodel import tiny_model

needs("vllm")

# The heads are of a size that vLLM has a kernel for on CPUs.
SIZE = {"hidden": 128, "heads": 4, "mlp": 192}
PROMPTS = ["abca", "b", "ccab", "ab", "abbc" * 50]  # the last is longer than a block of the KV cache
PAD, EOS = 0, 1


def untied(tokenizer, folder):
    return tiny_model(tokenizer, seed=0, **SIZE)


def tied(tokenizer, folder):
    torch.manual_seed(0)
    size = {"hidden_size": 128, "intermediate_size": 192, "num_hidden_layers": 2, "num_attention_heads": 4}
    heads = {"num_key_value_heads": 2, "max_position_embeddings": 256, "tie_word_embeddings": True}
    ends = {"bos_token_id": None, "eos_token_id": EOS}
    return LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **size, **heads, **ends)).eval()


def adapted(tokenizer, folder):
    tiny_model(tokenizer, seed=0, **SIZE).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return load_policy(folder, device=torch.device("cpu"), lora_rank=4)[0]


@torch.no_grad()
def stirred(model, seed):
    """Other weights in all that is trained, large enough that what came before decides what comes next."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.normal_(std=0.3, generator=generator)


@pytest.fixture
def model(tokenizer):
    model = untied(tokenizer, None)
    stirred(model, 0)
    return model


def sampler(model, tokenizer, *, temperature=1.0):
    return VLLMSampler(model, tokenizer, memory=0.3, temperature=temperature)


def rolled(by, prompts=PROMPTS, *, seed=0, **sampling):
    settings = Sampling(**{"group_size": 3, "max_new_tokens": 12} | sampling)
    return by.generate(prompts, settings, torch.Generator().manual_seed(seed))


def likeliest(model, tokenizer):
    settings = Sampling(group_size=1, max_new_tokens=12, temperature=0)
    return generate(model, tokenizer, PROMPTS, settings, torch.Generator())


def assert_same(left, right):
    assert torch.equal(left.prompt_ids, right.prompt_ids)
    assert torch.equal(left.prompt_mask, right.prompt_mask)
    assert torch.equal(left.completion_ids, right.completion_ids)
    assert torch.equal(left.completion_mask, right.completion_mask)
    assert left.texts == right.texts


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
@pytest.mark.parametrize("make", [untied, tied, adapted])
def test_the_likeliest_completions_are_those_of_transformers_before_and_after_an_update(make, tokenizer, tmp_path):
    model = make(tokenizer, tmp_path)
    stirred(model, 1)
    by = sampler(model, tokenizer)
    before = likeliest(model, tokenizer)
    assert_same(rolled(by, group_size=1, temperature=0), before)
    kept = {name: parameter.clone() for name, parameter in model.named_parameters()}
    stirred(model, 2)
    by.weights_changed()
    after = likeliest(model, tokenizer)
    assert after.texts != before.texts
    assert_same(rolled(by, group_size=1, temperature=0), after)
    if make is adapted:  # merged in the copy alone
        assert all(torch.equal(p, kept[name]) for name, p in model.named_parameters() if "lora_" not in name)


def test_a_policy_in_bfloat16_is_served(model, tokenizer):
    halved = model.to(torch.bfloat16)
    theirs, ours = rolled(sampler(halved, tokenizer), ["ab"], group_size=1, temperature=0), likeliest(halved, tokenizer)
    assert theirs.completion_ids[0, 0] == ours.completion_ids[3, 0]  # roundings may part what comes later


def test_samplers_of_two_policies_take_turns_in_one_engine(model, tokenizer):
    other = untied(tokenizer, None)
    stirred(other, 3)
    pairs = [(each, sampler(each, tokenizer)) for each in (model, other)]
    for each, by in (*pairs, *pairs):
        assert_same(rolled(by, group_size=1, temperature=0), likeliest(each, tokenizer))


@torch.no_grad()
def test_first_and_second_tokens_come_as_often_as_the_policy_has_them(model, tokenizer):
    count, heat = 6000, 1.5
    batch = rolled(sampler(model, tokenizer), ["ab"], group_size=count, max_new_tokens=2, temperature=heat, seed=5)
    prompt = tokenizer("ab")["input_ids"]

    def odds(said):
        return torch.softmax(model(input_ids=torch.tensor([[*prompt, *said]])).logits[0, -1] / heat, -1).tolist()

    pairs = [
        tuple(row[mask.bool()].tolist()) for row, mask in zip(batch.completion_ids, batch.completion_mask, strict=True)
    ]
    for first, chance in enumerate(odds([])):
        assert_often(sum(pair[0] == first for pair in pairs), count, chance)
        if first == EOS:
            assert all(pair == (EOS,) for pair in pairs if pair[0] == EOS)
            continue
        for second, then in enumerate(odds([first])):
            assert_often(pairs.count((first, second)), count, chance * then)


def assert_often(found, count, chance):
    """Within five standard deviations of a binomial, and a count for what is rare."""
    assert abs(found - count * chance) <= 5 * math.sqrt(count * chance * (1 - chance)) + 1


def test_a_seed_gives_its_rollouts_and_no_others(model, tokenizer):
    by = sampler(model, tokenizer)
    first, again, other = (rolled(by, seed=seed, temperature=2) for seed in (1, 1, 2))
    fresh = rolled(sampler(model, tokenizer), seed=1, temperature=2)
    assert_same(first, again)
    assert_same(first, fresh)
    assert first.texts != other.texts
    assert len({*first.texts}) > len(PROMPTS)  # a group is not one completion over and over


def test_a_completion_ends_with_any_end_token_and_padding_follows(model, tokenizer):
    model.generation_config.eos_token_id = [3, EOS]
    batch = rolled(sampler(model, tokenizer), seed=3, group_size=40, temperature=2)
    rows = zip(batch.completion_ids.tolist(), batch.completion_mask.tolist(), batch.texts, strict=True)
    lasts = set()
    for ids, mask, text in rows:
        length = sum(mask)
        assert mask == [1] * length + [0] * (len(mask) - length)
        assert not {EOS, 3} & set(ids[: length - 1])
        assert set(ids[length:]) <= {PAD}
        assert ids[length - 1] in (EOS, 3) or length == 12
        assert text == tokenizer.decode(ids[:length], skip_special_tokens=True)
        lasts.add(ids[length - 1])
    assert {EOS, 3} < lasts
    assert batch.tokens.tolist() == batch.completion_mask.view(5, -1).sum(1).tolist()


def test_log_probs_are_left_to_the_policy(model, tokenizer):
    theirs = rolled(sampler(model, tokenizer))
    assert theirs.logprobs is None
    taken = completion_logprobs(model, theirs)
    assert bool((taken[theirs.completion_mask.bool()] < 0).all())


def test_prompts_that_are_too_long_are_refused_before_any_is_answered(model, tokenizer):
    with pytest.raises(GradAlignError, match=r"with max_new_tokens = 12 is 1034 tokens; vLLM takes up to 1024"):
        rolled(sampler(model, tokenizer), ["ab", "a" * 1022])


def test_a_model_that_vllm_cannot_serve_is_refused_at_once_and_the_next_is_served(model, tokenizer):
    strange = tiny_model(tokenizer, seed=0, hidden=24, heads=4, mlp=48)  # heads of 6
    with pytest.raises(
        GradAlignError, match=r"vLLM cannot generate with this Qwen2ForCausalLM(.|\n)*generation = 'trans"
    ):
        sampler(strange, tokenizer)
    assert_same(rolled(sampler(model, tokenizer), group_size=1, temperature=0), likeliest(model, tokenizer))


def test_weights_that_vllm_does_not_take_are_found_at_once(model, tokenizer, monkeypatch):
    sampler(model, tokenizer)
    stirred(model, 4)
    monkeypatch.setattr(
        vllm_sampler,
        "policy_weights",
        lambda model: (each for each in policy_weights(model) if "lm_head" not in each[0]),
    )
    with pytest.raises(GradAlignError, match=r"ValueError: its log-probs of tokens are [\d.]+ from the policy's own"):
        sampler(model, tokenizer)


def test_a_temperature_that_vllm_does_not_take_is_refused_at_once(model, tokenizer):
    with pytest.raises(
        GradAlignError, match=r"at temperature = 4 and vllm_memory = 0.3: .*temperature must be in \[0, 2\]"
    ):
        sampler(model, tokenizer, temperature=4.0)


def test_devices_that_this_build_of_vllm_has_none_of_are_refused():
    check_vllm(torch.device("cpu"))
    with pytest.raises(GradAlignError, match=r"model.device is 'cuda'; the vLLM that is installed here runs on 'cpu'"):
        check_vllm(torch.device("cuda"))
    with pytest.raises(GradAlignError, match=r"is 'cpu:1'; .* Set model.device = 'cpu' and CUDA_VISIBLE_DEVICES=1"):
        check_vllm(torch.device("cpu", 1))
