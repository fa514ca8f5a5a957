"""The base model of the arithmetic world: supervised training from scratch, in seconds, kept in a folder.

It stands in for a pretrained model: it knows the form of every answer and often enough the answer.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from torch import Tensor
from transformers import PreTrainedTokenizerFast, Qwen2ForCausalLM

from gradalign_trainer.worlds.arithmetic import CHARACTERS, SKILLS, TARGET, noisy_answer
from gradalign_trainer.worlds.supervised import one_thread, padded_batch, save_once, train_supervised
from gradalign_trainer.worlds.tinymodel import character_tokenizer, tiny_model

__all__ = ["BaseTraining", "base_model", "train_base"]

CORPUS_SKILLS = [*SKILLS, TARGET, TARGET, TARGET]  # 4 in 10 are of the target skill
RECIPE = 2  # raise it when the corpus or the training changes, so that cached models are not mistaken for it


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
    """Token ids and targets, int64 [size, tokens]."""
    vocabulary, end = tokenizer.get_vocab(), int(tokenizer.eos_token_id)
    rows = []
    for _ in range(size):
        a, b, skill = rng.randrange(100), rng.randrange(100), rng.choice(CORPUS_SKILLS)
        prompt, answer = f"{a:02d}{skill}{b:02d}=", noisy_answer(a, skill, b, rng)
        rows.append(([vocabulary[c] for c in prompt], [*(vocabulary[c] for c in answer), end]))
    return padded_batch(rows, int(tokenizer.pad_token_id))


def train_base(
    settings: BaseTraining,
    progress: Callable[[int], None] = lambda done: None,  # noqa: ARG005
) -> tuple[Qwen2ForCausalLM, PreTrainedTokenizerFast]:
    """Train the base model from scratch; the same settings give the same weights, whatever number of threads torch has.

    Args:
        settings: how.
        progress: called after each step with the steps done.
    """
    tokenizer = character_tokenizer(CHARACTERS)
    model = tiny_model(tokenizer, seed=settings.seed, positions=64)
    rng = random.Random(f"base/{settings.seed}")
    with one_thread():
        train_supervised(
            model,
            lambda: _corpus_batch(settings.batch, tokenizer, rng),
            steps=settings.steps,
            learning_rate=settings.learning_rate,
            progress=progress,
        )
    return model, tokenizer


def base_model(
    cache: Path,
    settings: BaseTraining | None = None,
    progress: Callable[[int], None] = lambda done: None,  # noqa: ARG005
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
    return save_once(folder, *train_base(settings, progress))
