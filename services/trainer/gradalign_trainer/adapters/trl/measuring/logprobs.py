"""TRL's own log-prob function over a generation batch: with a graph, or as `gradalign.forward` calls it.

What the model is and how its log-probs come about (fused head, autocast, images, shards, adapters) stays TRL's business.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from trl.models.utils import disable_gradient_checkpointing
from trl.trainer.utils import split_pixel_values_by_grid, split_tensor_dict, unsplit_pixel_values_by_grid

from gradalign_trainer.adapters.trl.measuring.groups import counted

__all__ = ["LogProbs", "Rollouts", "rollouts_of"]

_MODEL_INPUTS = (
    "pixel_values", "image_grid_thw", "num_images", "pixel_attention_mask", "spatial_shapes", "num_tiles",
    "image_sizes", "token_type_ids", "mm_token_type_ids", "image_position_ids",
)  # fmt: skip


@dataclass(frozen=True)
class Rollouts:
    """Rows of a generation batch that go through the model.

    Attributes:
        rows: int64 [n], which rows of the batch they are.
        inputs: prompts, completions, masks and images of these rows, by TRL's names.
        weights: float32 [n], A_i / Z; 0 for a row that only fills up.
        mask: [n, T], the completion tokens that count.
        logprobs_at: float [n, T] at the weights as they are, where TRL has them; or None.
        at_once: rows in one forward.
    """

    rows: Tensor
    inputs: Mapping[str, Any]
    weights: Tensor
    mask: Tensor
    logprobs_at: Tensor | None
    at_once: int

    def parts(self) -> Iterator[tuple[Mapping[str, Any], Tensor]]:
        """The inputs and the shares of tokens, `weights` times `mask`, of each forward."""
        shares = self.weights[:, None] * self.mask
        if "pixel_values" not in self.inputs:
            for at in range(0, len(shares), self.at_once):
                part = slice(at, at + self.at_once)
                yield {name: value[part] for name, value in self.inputs.items()}, shares[part]
            return
        split: Any = split_pixel_values_by_grid({**self.inputs, "shares": shares})
        pieces: Any = split_tensor_dict(split, len(shares) // self.at_once)
        for piece in pieces:
            whole: dict[str, Any] = unsplit_pixel_values_by_grid(piece)
            yield whole, whole.pop("shares")


def rollouts_of(batch: Mapping[str, Any], weights: Tensor, count: int, at_once: int) -> Rollouts:
    """The rows with a weight, filled up with others to `count`; with images, which no row index finds, all rows.

    Args:
        batch: what TRL's `_generate_and_score_completions` gave, B rows.
        weights: float32 [B].
        count: at least as many as have a weight.
        at_once: most rows in one forward.
    """
    size = len(weights)
    names = ("prompt_ids", "prompt_mask", "completion_ids", "completion_mask")
    extra = [name for name in _MODEL_INPUTS if name in batch]
    if extra:
        rows = torch.arange(size, device=weights.device)
        # TRL cuts batches with images into parts of one size.
        at_once = next(part for part in range(min(at_once, size), 0, -1) if size % part == 0)
    else:
        rows = torch.argsort((weights == 0).int(), stable=True)[:count].sort().values
    old = batch.get("old_per_token_logps")
    taken = {name: batch[name] if extra else batch[name][rows] for name in names}
    return Rollouts(
        rows=rows,
        inputs={**taken, **{name: batch[name] for name in extra}},
        weights=weights[rows],
        mask=counted(batch)[rows],
        logprobs_at=None if old is None else old[rows],
        at_once=at_once,
    )


class LogProbs:
    """TRL's log-prob function of its model; calling it runs it without gradient checkpointing, which has no use there.

    Args:
        trainer: a `trl.GRPOTrainer`.
    """

    def __init__(self, trainer: Any) -> None:
        self._trainer = trainer

    def __call__(self, rollouts: Rollouts) -> Tensor:
        """Log-probs of completion tokens, [n, T]."""
        with self._plain():
            return self.of(rollouts.inputs, rollouts.at_once)

    def of(self, inputs: Mapping[str, Any], at_once: int) -> Tensor:
        """The same of a batch as TRL has it, with a graph where that is on."""
        prompts, completions = inputs["prompt_ids"], inputs["completion_ids"]
        found: tuple[Tensor, ...] = self._trainer._get_per_token_logps_and_entropies(
            self._trainer.model,
            torch.cat([prompts, completions], dim=1),
            torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], dim=1),
            completions.size(1),
            batch_size=at_once,
            **{name: inputs[name] for name in _MODEL_INPUTS if name in inputs},
        )
        return found[0]

    @contextmanager
    def _plain(self) -> Iterator[None]:
        settings = self._trainer.args.gradient_checkpointing_kwargs
        with disable_gradient_checkpointing(self._trainer.model, settings):
            yield
