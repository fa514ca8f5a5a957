"""Supervised training of models made on the spot, and the folder where each is kept."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["IGNORED", "one_thread", "padded_batch", "save_once", "train_supervised"]

IGNORED = -100
"""Target of a token that is not learned from: the prompt's, and padding."""


@contextmanager
def one_thread() -> Iterator[None]:
    """Torch computes on one thread inside: the order of its sums, and so the weights, are then the same on every machine.

    For tiny models, which more threads do not make faster: beside a busy core they wait for each other.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def padded_batch(rows: Sequence[tuple[Sequence[int], Sequence[int]]], pad: int) -> tuple[Tensor, Tensor]:
    """Token ids and targets, int64 [B, T] each, padded on the right.

    Args:
        rows: token ids of a prompt and of its completion.
        pad: id to fill up with.
    """
    longest = max(len(prompt) + len(completion) for prompt, completion in rows)
    ids = torch.full((len(rows), longest), pad)
    targets = torch.full((len(rows), longest), IGNORED)
    for row, (prompt, completion) in enumerate(rows):
        start, stop = len(prompt), len(prompt) + len(completion)
        ids[row, :stop] = torch.tensor([*prompt, *completion])
        targets[row, start:stop] = ids[row, start:stop]
    return ids, targets


def train_supervised(
    model: PreTrainedModel,
    draw: Callable[[], tuple[Tensor, Tensor]],
    *,
    steps: int,
    learning_rate: float,
    progress: Callable[[int], None] = lambda done: None,  # noqa: ARG005
) -> None:
    """Teach a model by next-token cross-entropy; it is left in evaluation mode.

    Args:
        model: in float32.
        draw: gives the next batch, ids and targets as `padded_batch` makes them.
        steps: updates of AdamW, gradient norm clipped to 1.
        learning_rate: falling linearly to a tenth over the last half.
        progress: called after each step with the steps done.
    """
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate)
    half = steps / 2
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, 1.0 - 0.9 * (step - half) / half) if half else 1.0
    )
    for step in range(steps):
        ids, targets = (rows.to(model.device) for rows in draw())
        logits = model(input_ids=ids, use_cache=False).logits
        loss = functional.cross_entropy(logits[:, :-1].flatten(0, 1), targets[:, 1:].flatten(), ignore_index=IGNORED)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
        progress(step + 1)
    model.eval()


def save_once(folder: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Path:
    """Write a model in Hugging Face form, whole or not at all; a folder that another process wrote meanwhile is kept.

    Whoever may read new folders of this user may read it, as scorers and trainers often run as different users.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=".model-", dir=folder.parent))
    written = temporary / folder.name
    try:
        written.mkdir()
        model.save_pretrained(written)
        tokenizer.save_pretrained(written)
        for path in written.iterdir():
            path.chmod(written.stat().st_mode & 0o666)
        os.replace(written, folder)
    except OSError:
        if not folder.is_dir():
            raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder
