"""What a round does, one module a mode: a function from the run's `Workshop` to the figures of the round.

`choosing` is choose, then generate: score a pool, train on the selection with fresh rollouts. `weighting` is generate,
then weight: score every training batch, and let its groups count by their weight. `dynamic` draws until a batch is full of
groups that have a signal. `filtering` leaves out rollouts that contradict the others of their batch.

May import grpo and the curriculum. A change here keeps a round's draws the same for a seed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeAlias

from gradalign_trainer.rounds.choosing import chosen_round
from gradalign_trainer.rounds.dynamic import dynamic_round
from gradalign_trainer.rounds.filtering import filtered_round
from gradalign_trainer.rounds.weighting import weighted_round
from gradalign_trainer.rounds.workshop import Workshop

__all__ = ["ROUNDS", "Round", "Workshop"]

Round: TypeAlias = Callable[[Workshop], dict[str, float]]
"""Plays one round; what it measured, for the round's report."""

ROUNDS: Mapping[str, Round] = {
    "choose": chosen_round,
    "weight": weighted_round,
    "dynamic": dynamic_round,
    "filter": filtered_round,
}
"""By `TrainConfig.mode`."""
