"""Seconds of generation by transformers and by vLLM, at the same weights, prompts and lengths.

    python tests/bench/bench_generation.py --model FOLDER [--tokens 8 64] [--prompts N] [--responses N] [--repeats N]

Needs vLLM for the device. Completions are kept from ending, so that all have the same length. The two take turns; a figure
is the median of the repeats. `takes over` is what the engine needs for the policy's weights after an update.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from gradalign_trainer.grpo.generation import Sampling
from gradalign_trainer.grpo.models import load_policy, pick_device
from gradalign_trainer.grpo.samplers import Sampler, TransformersSampler
from gradalign_trainer.grpo.vllm_sampler import VLLMSampler

TEMPERATURE = 0.7


def endless(model: Any, tokenizer: Any) -> None:
    """Let no token end a completion but the last of the vocabulary, which is hardly ever drawn."""
    last = model.get_input_embeddings().num_embeddings - 1
    model.generation_config.eos_token_id = last
    tokenizer.eos_token_id = last


def seconds(what: Callable[[], Any]) -> float:
    """What a call takes, with what it left on a GPU."""
    begun = time.perf_counter()
    what()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - begun


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--tokens", type=int, nargs="+", default=[8, 64])
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--responses", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--memory", type=float, default=0.3)
    options = parser.parse_args()
    model, tokenizer = load_policy(options.model, device=pick_device(options.device))
    endless(model, tokenizer)
    begun = time.perf_counter()
    engine = VLLMSampler(model, tokenizer, memory=options.memory, temperature=TEMPERATURE)
    print(f"the engine starts in {time.perf_counter() - begun:.1f} s", flush=True)
    samplers: dict[str, Sampler] = {"transformers": TransformersSampler(model, tokenizer), "vLLM": engine}
    prompts = [
        f"Question: Ada has {first} apples and gets {first % 5 + 2} more. How many apples does Ada have now?\nAnswer: "
        for first in range(1, options.prompts + 1)
    ]
    print(f"| tokens of each completion | {' | '.join(samplers)} |\n|---|---|---|")
    for tokens in options.tokens:
        how = Sampling(options.responses, tokens, TEMPERATURE, options.prompts)
        found: dict[str, list[float]] = {name: [] for name in samplers}
        for repeat in range(options.repeats):
            for name, sampler in samplers.items():
                generator = torch.Generator(model.device).manual_seed(repeat)
                found[name].append(seconds(partial(sampler.generate, prompts, how, generator)))
        print(f"| {tokens} | {' | '.join(f'{statistics.median(each):.2f}' for each in found.values())} |", flush=True)
    engine.weights_changed()
    how = Sampling(1, 1, TEMPERATURE, 1)
    first, again = (seconds(lambda: engine.generate(prompts[:1], how, torch.Generator(model.device))) for _ in range(2))
    print(f"takes over weights in {first - again:.2f} s")


if __name__ == "__main__":
    main()
