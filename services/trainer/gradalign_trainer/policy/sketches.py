"""Sketches of gradients out of batched backwards, and exact products with the validation gradient where it is kept."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from gradalign.errors import GradAlignError
from gradalign.sketch import Sketcher
from gradalign.wire.projection import Projection
from gradalign_trainer.config.training import TrainConfig
from gradalign_trainer.curriculum.measured import Measured
from gradalign_trainer.grpo.rollouts import ScoredRollouts
from gradalign_trainer.policy.agreement import agreements
from gradalign_trainer.policy.gradients import GradientMeter, ProblemSketches
from gradalign_trainer.policy.meter import Advance, FreshGradient, no_advance, validation_shares

__all__ = ["SketchMeter", "head_of"]


@dataclass(frozen=True, slots=True)
class _ValidationGradient:
    """The full validation gradient of a version of the scorer's; with decay as long as that, else up to its length."""

    version: int
    gradient: Mapping[str, Tensor]


class SketchMeter:
    """Takes sketches; see `Meter`.

    Args:
        config: of the run.
        model: the policy.
    """

    def __init__(self, config: TrainConfig, model: PreTrainedModel) -> None:
        self._config, self._device = config, model.device
        self._model = model
        self._exact = config.alignment == "exact"
        head = head_of(model) if config.alignment == "head" else None
        self._sketcher = Sketcher(head or model, dim=config.dim, seed=config.projection_seed)
        self._meter = GradientMeter(model, self._sketcher, config.problems_per_backward, head=head)
        self._kept: _ValidationGradient | None = None
        self.fresh: FreshGradient | None = None

    @property
    def projection(self) -> Projection:
        """Of the sketches."""
        return self._sketcher.projection

    @property
    def kept_version(self) -> int | None:
        """The scorer's version of the gradient that exact products are taken with."""
        return self._kept.version if self._kept else None

    def candidates(self, scored: ScoredRollouts, advance: Advance = no_advance) -> Measured:
        """Sketches of candidates, with exact products where a validation gradient is kept."""
        return self._against_validation(scored, advance=advance)

    def validation(self, scored: ScoredRollouts, advance: Advance = no_advance) -> Measured:
        """Sketches of validation problems; the sum of their gradients is kept as `fresh` where the settings need it."""
        if not (self._exact or self._config.train_on_validation):
            return _measured(scored, self._meter.measure(scored, advance=advance), None)
        shares = validation_shares(scored, self._config.aggregation)
        measured = _measured(scored, self._meter.measure(scored, shares=shares, advance=advance), None)
        signal = scored.signal
        self.fresh = FreshGradient(
            self._sketcher.gradients(), float(shares.sum()), float(shares[signal].sum()), int(signal.sum())
        )
        self._model.zero_grad(set_to_none=True)
        return measured

    def agreements(self, scored: ScoredRollouts) -> Tensor:
        """How each rollout's gradient agrees with those of all others of the batch, float64 [P, G]; see `agreements`."""
        sketches = self._meter.of_rollouts(scored)
        return agreements(sketches.flatten(0, 1)).view(sketches.shape[:2])

    def keep(self, version: int, decay: float | None) -> None:
        """Keep the gradient that `validation` took, with what decays of the one before."""
        if not self._exact or self.fresh is None:
            return
        earlier = self._kept.gradient if self._kept and decay else {}
        mean = {name: part / self.fresh.total for name, part in self.fresh.gradient.items()}
        names = [*mean, *(name for name in earlier if name not in mean)]
        gradient = {name: _sum(decay or 0.0, earlier.get(name), mean.get(name)) for name in names}
        signal = any(bool(part.any()) for part in gradient.values())
        self._kept = _ValidationGradient(version, gradient) if signal else None

    def with_update(self, scored: ScoredRollouts) -> Measured:
        """Sketches of the problems trained on, out of the very backwards of the update."""
        share = torch.full((len(scored.problems),), 1 / len(scored.problems))
        return self._against_validation(scored, shares=share)

    def state(self) -> Any:
        """The version and the gradient that are kept."""
        return None if self._kept is None else (self._kept.version, dict(self._kept.gradient))

    def load(self, state: Any) -> None:
        """Go on from what `state` gave."""
        if state is not None:
            version, gradient = state
            self._kept = _ValidationGradient(version, {name: part.to(self._device) for name, part in gradient.items()})

    def _against_validation(self, scored: ScoredRollouts, **settings: Any) -> Measured:
        """As `GradientMeter.measure`, with exact products where a validation gradient is kept."""
        kept = self._kept
        if kept is None:
            return _measured(scored, self._meter.measure(scored, **settings), None)
        return _measured(scored, self._meter.measure(scored, against=kept.gradient, **settings), kept.version)


def _sum(factor: float, left: Tensor | None, right: Tensor | None) -> Tensor:
    """`factor * left + right`, where at least one is there."""
    if left is None:
        assert right is not None
        return right
    return factor * left if right is None else factor * left + right


def _measured(scored: ScoredRollouts, sketched: ProblemSketches, dots_version: int | None) -> Measured:
    return Measured(
        problem_ids=[problem.problem_id for problem in scored.problems],
        sketches=sketched.sketches,
        tokens=scored.rollouts.tokens.tolist(),
        rollouts=[scored.rollouts.group_size] * len(scored.problems),
        pass_rates=scored.pass_rates,
        norms=None if sketched.norms is None else sketched.norms.tolist(),
        dots=None if sketched.dots is None else sketched.dots.tolist(),
        dots_version=dots_version,
    )


def head_of(model: PreTrainedModel) -> nn.Module:
    """The layer that makes logits, whose gradient alone LESSER (arXiv 2610.03702) compares.

    Raises:
        GradAlignError: the model shows none that is trained.
    """
    head: nn.Module | None = model.get_output_embeddings()
    if head is None or not any(parameter.requires_grad for parameter in head.parameters()):
        raise GradAlignError(
            "alignment = 'head' compares gradients of the model's head, and get_output_embeddings() of this model gives "
            f"{'none' if head is None else 'one that is frozen'}. Train the head, or set alignment = 'capture'."
        )
    return head
