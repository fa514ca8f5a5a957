"""Prompts computed once: the same completions, log-probs and gradients as one prompt and one rollout at a time."""

from dataclasses import replace

import pytest
import torch
from tiny_causal_lms import tiny

from gradalign import GradAlignError
from gradalign_trainer.grpo.evaluation import exact_pass_rates
from gradalign_trainer.grpo.generation import Sampling, generate
from gradalign_trainer.grpo.loss import completion_distributions, problem_losses
from gradalign_trainer.grpo.models import end_at
from gradalign_trainer.grpo.sharing import check_sharing, common_beginning
from gradalign_trainer.problems import Problem
from gradalign_trainer.worlds.tinymodel import character_tokenizer

PREFIX = "abcab"
PROMPTS = [f"{PREFIX}{rest}" for rest in ("c", "bbca", "abcc", "a", "ccab")]
EXACT = {"rtol": 1e-9, "atol": 1e-9}  # in float64


@pytest.fixture(scope="module")
def tokenizer():
    return character_tokenizer("abcdefgh")


@pytest.fixture(params=["llama", "qwen2"])
def model(request, tokenizer):
    """Weights larger than fresh ones, so that what came before decides; float64, so that no two tokens are nearly alike."""
    model = tiny(request.param, vocab_size=len(tokenizer), pad_token_id=None, bos_token_id=None, eos_token_id=1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4.0)
    return model.double()


def rolled(model, tokenizer, prompts=PROMPTS, **sampling):
    settings = Sampling(**{"group_size": 3, "max_new_tokens": 6, "share_prompts": True} | sampling)
    return generate(model, tokenizer, prompts, settings, torch.Generator().manual_seed(0))


@pytest.mark.parametrize("prompts", [PROMPTS, PROMPTS[:1], ["a", "bc", "cba"], ["abc", "abc"]])
def test_greedy_completions_are_those_of_transformers(model, tokenizer, prompts):
    batch = rolled(model, tokenizer, prompts, temperature=0, group_size=2)
    for row, prompt in enumerate(prompt for prompt in prompts for _ in range(2)):
        ids = torch.tensor([tokenizer(prompt)["input_ids"]])
        theirs = model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=6, pad_token_id=0
        )
        said = batch.completion_ids[row][batch.completion_mask[row].bool()]
        assert said.tolist() == theirs[0, ids.shape[1] :].tolist()


def test_samples_are_those_of_unshared_prompts(model, tokenizer):
    shared, plain = (rolled(model, tokenizer, share_prompts=each) for each in (True, False))
    assert torch.equal(shared.completion_ids, plain.completion_ids)
    assert torch.equal(shared.completion_mask, plain.completion_mask)
    torch.testing.assert_close(shared.logprobs, plain.logprobs, rtol=1e-5, atol=1e-5)
    assert len(set(shared.texts)) > len(PROMPTS)


def test_log_probs_and_gradients_are_those_of_a_row_a_rollout(model, tokenizer):
    shared = rolled(model, tokenizer)
    plain = replace(shared, share_prompts=False)
    real = shared.completion_mask.bool()
    mine, theirs = (completion_distributions(model, each)[real] for each in (shared, plain))
    torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)  # log-softmax is in float32
    advantage = torch.randn(len(PROMPTS), 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for problem in (0, 3):
        gradients = []
        for each in (shared, plain):
            model.zero_grad()
            problem_losses(model, each, advantage)[problem].backward()
            gradients.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
        assert gradients[0].norm() > 0
        assert (gradients[0] - gradients[1]).norm() < 1e-5 * gradients[1].norm()


def test_groups_of_shared_rollouts_stay_shared(model, tokenizer):
    part = rolled(model, tokenizer).groups([3, 1])
    assert part.share_prompts
    mine, theirs = (completion_distributions(model, each) for each in (part, replace(part, share_prompts=False)))
    real = part.completion_mask.bool()
    torch.testing.assert_close(mine[real], theirs[real], rtol=1e-5, atol=1e-5)


def test_exact_pass_rates_are_the_same(model, tokenizer):
    problems = [Problem(str(number), prompt, "bca"[: 1 + number % 3]) for number, prompt in enumerate(PROMPTS)]
    shared, plain = (exact_pass_rates(model, tokenizer, problems, share_prompts=each) for each in (True, False))
    torch.testing.assert_close(shared, plain, rtol=1e-4, atol=1e-7)


def test_what_rows_begin_with_leaves_each_a_token():
    assert common_beginning([[1, 2, 3], [1, 2, 4, 5]]) == 2
    assert common_beginning([[1, 2], [1, 2, 3]]) == 1
    assert common_beginning([[7], [7]]) == 0
    assert common_beginning([[1, 2], [3, 2]]) == 0


def test_models_that_see_a_part_of_the_row_are_refused():
    sees = {"layer_types": ["full_attention", "sliding_attention"], "use_sliding_window": True, "sliding_window": 4}
    with pytest.raises(GradAlignError, match=r"share_prompts = true needs full attention .* sliding_attention"):
        check_sharing(tiny("qwen2", **sees))
    check_sharing(tiny("llama"))


def test_a_text_of_one_token_ends_completions(tokenizer):
    model = tiny("llama", vocab_size=len(tokenizer), pad_token_id=None, bos_token_id=None, eos_token_id=1)
    end_at(model, tokenizer, "b")
    end = tokenizer("b")["input_ids"][0]
    batch = rolled(model, tokenizer, group_size=8, max_new_tokens=20)
    said = [ids[mask.bool()] for ids, mask in zip(batch.completion_ids, batch.completion_mask, strict=True)]
    assert any(tokens[-1] == end for tokens in said)
    assert not any((tokens[:-1] == end).any() for tokens in said)
    with pytest.raises(GradAlignError, match="stop = 'ab' is 2 tokens of this model; expected a text of one token"):
        end_at(model, tokenizer, "ab")
