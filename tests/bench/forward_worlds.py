"""Policies and their rollouts, for `bench_forward.py`: the demo's, a random one, and SmolLM2's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from bench_sketch import model_of
from grpo_gradients import Stage
from torch import Tensor, nn
from torch.nn.functional import log_softmax

from gradalign.forward import MicroBatch


@dataclass
class World:
    """A policy, and rollouts of validation and candidate problems."""

    model: nn.Module
    logprobs: Callable[[nn.Module], Callable[[Any], Tensor]]
    validation: list[MicroBatch]
    pool: list[MicroBatch]
    labels: Callable[[Any], Tensor]


def tiny_world(regime: str = "inverted", updates: int = 10, problems: int = 256) -> World:
    """The demo's base model in a regime of the arithmetic world, after some updates."""
    from gradalign_trainer.grpo.loss import completion_logprobs

    stage = Stage(regime, updates=updates, pool=problems)
    stage.model.eval()

    def batches(scored: Any, *, pooled: bool) -> list[MicroBatch]:
        found = []
        for start in range(0, len(scored.advantage), 64):
            part = scored.part(start, start + 64)
            # The pooled gradient weighs every token alike; a problem's own divides by its own tokens.
            tokens = torch.ones(len(part.advantage)) if pooled else part.rollouts.tokens
            weights = (part.advantage / tokens[:, None]).flatten()
            mask = part.rollouts.completion_mask.bool()
            found.append(MicroBatch(part.rollouts, weights, mask, index=part.index))
        return found

    return World(
        stage.model,
        lambda model: lambda rollouts: completion_logprobs(model, rollouts),
        batches(stage.validation, pooled=True),
        batches(stage.pool, pooled=False),
        lambda rollouts: rollouts.completion_ids,
    )


def logprobs_of(model: nn.Module) -> Callable[[Any], Tensor]:
    """Log-probs of the last tokens of rows, as trainers take them."""

    def logprobs(batch: dict[str, Any]) -> Tensor:
        kept = batch["completion"]
        inputs = {key: batch[key] for key in ("input_ids", "attention_mask", "position_ids")}
        logits = model(**inputs, use_cache=False, logits_to_keep=kept + 1).logits[:, :-1].float()
        return log_softmax(logits, -1).gather(2, batch["input_ids"][:, -kept:, None])[..., 0]

    return logprobs


def large_world(problems: int = 16) -> World:
    """Random rows for a random model of 26 million parameters."""
    model = model_of(
        vocab_size=8192, hidden_size=512, intermediate_size=1408, num_hidden_layers=6, num_attention_heads=8,
        num_key_value_heads=2,
    ).eval()  # fmt: skip
    ids = torch.randint(3, 8192, (4 * problems, 48), generator=torch.Generator().manual_seed(0))

    def batch(rows: slice) -> MicroBatch:
        count = rows.stop - rows.start
        inputs = {"input_ids": ids[rows], "attention_mask": torch.ones_like(ids[rows]), "completion": 16}
        inputs["position_ids"] = torch.arange(48).expand(count, 48)
        weights = torch.randn(count, generator=torch.Generator().manual_seed(rows.start)) / (16 * count)
        index = torch.arange(count) // 4
        return MicroBatch(inputs, weights, torch.ones(count, 16, dtype=torch.bool), index=index)

    half = 2 * problems
    return World(model, logprobs_of, [batch(slice(0, half))], [batch(slice(half, 2 * half))], _labels)


def _labels(batch: dict[str, Any]) -> Tensor:
    return batch["input_ids"][:, -batch["completion"] :]


def smollm2_world(folder: str, problems: int) -> World:
    """Rollouts of SmolLM2 at additions and subtractions; additions are the validation problems."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token

    def sampled(count: int, signs: str) -> list[MicroBatch]:
        random = torch.Generator().manual_seed(len(signs))
        rows: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
        while len(rows) < count:
            asked = []
            for _ in range(16):
                one, other, which = torch.randint(2, 30, (3,), generator=random).tolist()
                asked.append((one, other, signs[which % len(signs)]))
            prompts = [f"3 + 4 = 7\n12 - 5 = 7\n11 + 8 = 19\n20 - 6 = 14\n{a} {s} {b} =" for a, b, s in asked]
            inputs = tokenizer(prompts, return_tensors="pt", padding=True)
            with torch.no_grad():
                out = model.generate(
                    **inputs,
                    do_sample=True,
                    max_new_tokens=4,
                    num_return_sequences=4,
                    pad_token_id=tokenizer.pad_token_id,
                )
            width = inputs["input_ids"].shape[1]
            for at, (a, b, s) in enumerate(asked):
                group = out[4 * at : 4 * at + 4, width:]
                texts = [tokenizer.decode(row).split("\n") for row in group]
                rewards = torch.tensor([t[0].strip() == str(a + b if s == "+" else a - b) for t in texts]).float()
                if rewards.std() > 0:
                    # A completion ends with its first line.
                    ended = torch.tensor([["\n" in tokenizer.decode(row[:t]) for t in range(4)] for row in group])
                    attention = inputs["attention_mask"][at].expand(4, width)
                    rows.append((out[4 * at : 4 * at + 4], attention, ~ended, rewards - rewards.mean()))
        return [_joined(rows[start : start + 8]) for start in range(0, count, 8)]

    return World(model, logprobs_of, sampled(problems // 2, "+"), sampled(problems, "+-"), _labels)


def _joined(rows: Sequence[tuple[Tensor, Tensor, Tensor, Tensor]]) -> MicroBatch:
    widest = max(ids.shape[1] for ids, *_ in rows)

    def wide(tensor: Tensor, size: int) -> Tensor:
        return torch.nn.functional.pad(tensor, (size - tensor.shape[1], 0))

    ids = torch.cat([wide(i, widest) for i, *_ in rows])
    attention = torch.cat([wide(torch.cat([a, torch.ones(4, 4).long()], 1), widest) for _, a, _, _ in rows])
    mask = torch.cat([m for _, _, m, _ in rows])
    tokens = mask.view(len(rows), -1).sum(1)
    weights = (torch.stack([a for *_, a in rows]) / tokens[:, None]).flatten()
    positions = (attention.cumsum(1) - 1).clamp(min=0)
    batch = {"input_ids": ids, "attention_mask": attention, "position_ids": positions, "completion": 4}
    return MicroBatch(batch, weights, mask, index=torch.arange(len(rows)).repeat_interleave(4))
