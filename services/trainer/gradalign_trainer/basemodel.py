"""The base model of the arithmetic world: supervised training from scratch, in seconds, kept in a folder.

It stands in for a pretrained model: it knows the form of every answer and often enough the answer.
"""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedTokenizerFast, Qwen2ForCausalLM

from gradalign_trainer.arithmetic import CHARACTERS, SKILLS, TARGET, noisy_answer
from gradalign_trainer.tinymodel import character_tokenizer, tiny_model

__all__ = ["BaseTraining", "base_model", "train_base"]

PROMPT_TOKENS = 6
LONGEST_ANSWER = 4
CORPUS_SKILLS = [*SKILLS, TARGET, TARGET, TARGET]  # 4 in 10 are of the target skill
RECIPE = 1  # raise it when the corpus or the training changes, so that cached models are not mistaken for it


@dataclass(frozen=True, slots=True)
class BaseTraining:
    """Settings of the supervised training.

    Attributes:
        steps: updates.
        batch: examples per update.
        learning_rate: of AdamW, falling linearly to a tenth over the last half.
        seed: of weights and corpus.
    """

    steps: int = 1000
    batch: int = 256
    learning_rate: float = 2e-3
    seed: int = 0


def _corpus_batch(size: int, tokenizer: PreTrainedTokenizerFast, rng: random.Random) -> tuple[Tensor, Tensor]:
    """Token ids and targets, int64 [size, tokens]; targets are -100 on the prompt and the padding."""
    texts, answers = [], []
    for _ in range(size):
        a, b, skill = rng.randrange(100), rng.randrange(100), rng.choice(CORPUS_SKILLS)
        texts.append(f"{a:02d}{skill}{b:02d}=")
        answers.append(noisy_answer(a, skill, b, rng))
    vocabulary = tokenizer.get_vocab()
    end, pad = tokenizer.eos_token_id, tokenizer.pad_token_id
    rows = [
        [*(vocabulary[c] for c in text + answer), end] + [pad] * (LONGEST_ANSWER - len(answer))
        for text, answer in zip(texts, answers, strict=True)
    ]
    ids = torch.tensor(rows)
    targets = ids.masked_fill(ids == pad, -100)
    targets[:, :PROMPT_TOKENS] = -100
    return ids, targets


def train_base(
    settings: BaseTraining, progress: Callable[[int], None] | None = None
) -> tuple[Qwen2ForCausalLM, PreTrainedTokenizerFast]:
    """Train the base model from scratch; the same settings give the same weights.

    Args:
        settings: how.
        progress: called after each step with the steps done.
    """
    tokenizer = character_tokenizer(CHARACTERS)
    model = tiny_model(tokenizer, seed=settings.seed, positions=64).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.learning_rate)
    half = settings.steps / 2
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, 1.0 - 0.9 * (step - half) / half) if half else 1.0
    )
    rng = random.Random(f"base/{settings.seed}")
    for step in range(settings.steps):
        ids, targets = _corpus_batch(settings.batch, tokenizer, rng)
        logits = model(input_ids=ids, use_cache=False).logits
        loss = functional.cross_entropy(logits[:, :-1].flatten(0, 1), targets[:, 1:].flatten())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
        if progress is not None:
            progress(step + 1)
    return model.eval(), tokenizer


def base_model(
    cache: Path, settings: BaseTraining | None = None, progress: Callable[[int], None] | None = None
) -> Path:
    """The folder of a base model in Hugging Face form, trained first if the cache has none of these settings.

    Args:
        cache: folder of all base models; made where missing.
        settings: how to train.
        progress: as in `train_base`; not called on a hit.
    """
    settings = settings or BaseTraining()
    digest = hashlib.sha256(repr((RECIPE, sorted(asdict(settings).items()))).encode()).hexdigest()[:12]
    folder = cache / f"arithmetic-base-{digest}"
    if folder.is_dir():
        return folder
    model, tokenizer = train_base(settings, progress)
    cache.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=".base-", dir=cache))
    model.save_pretrained(temporary)
    tokenizer.save_pretrained(temporary)
    try:
        os.replace(temporary, folder)
    except OSError:
        # Another process was first with the same settings, hence the same weights.
        shutil.rmtree(temporary)
        if not folder.is_dir():
            raise
    return folder
