"""Products of every rollout's gradient with the validation gradient, out of forward passes alone."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from gradalign import DirectionError
from gradalign.forward import Direction, MicroBatch
from gradalign.sketch.parameters.names import trainable_parameters
from gradalign_trainer.config.training import TrainConfig
from gradalign_trainer.curriculum.products import MeasuredProducts
from gradalign_trainer.grpo.generation import RolloutBatch
from gradalign_trainer.grpo.loss import completion_logprobs, problem_losses
from gradalign_trainer.grpo.rollouts import ScoredRollouts
from gradalign_trainer.policy.meter import Advance, FreshGradient, no_advance, validation_shares

__all__ = ["ProductMeter"]

logger = logging.getLogger(__name__)

CHECK_EVERY = 16
"""Validation gradients between two whole self-checks, which measure the noise of products too; the others are brief."""


class ProductMeter:
    """Takes products along the validation gradient, which stays where its backward left it; see `Meter`.

    Args:
        config: of the run.
        model: the policy.
    """

    def __init__(self, config: TrainConfig, model: PreTrainedModel) -> None:
        self._config, self._model = config, model
        self._direction = self._new_direction()
        self._version: int | None = None
        self._taken = 0
        self.fresh: FreshGradient | None = None

    @property
    def projection(self) -> None:
        """None: nothing is projected."""
        return

    @property
    def kept_version(self) -> int | None:
        """The scorer's version of the direction."""
        return self._version

    def candidates(self, scored: ScoredRollouts, advance: Advance = no_advance) -> MeasuredProducts:
        """Products of candidates with the validation gradient, from one forward beside the log-probs of the sampling."""
        asked = {"version": self._version, "rollout_weights": self._config.rollout_weights}
        if self._config.norms == "head":
            found, norms = self._products_and_norms(scored.unshared(), advance)
            return _measured(scored, found, norms=norms.tolist(), norms_kind="head", **asked)
        return _measured(scored, self._products(scored, advance, 1.0 / scored.rollouts.tokens), **asked)

    def validation(self, scored: ScoredRollouts, advance: Advance = no_advance) -> MeasuredProducts:
        """Make the direction of the validation problems' gradient, and take their own products with it.

        Where no problem has a signal, the direction stays as it was.

        Raises:
            DirectionError: the products do not hold their self-check; there is no direction then.
        """
        signal = scored.signal
        if not bool(signal.any()):
            self.fresh = None
            return _measured(scored, torch.zeros_like(scored.advantages, dtype=torch.float64), length=0.0)
        shares = validation_shares(scored, self._config.aggregation)
        shares = shares / shares.sum()
        self._backward(scored, shares)
        fresh = self._config.train_on_validation
        length = self._direction.take(copy=fresh, decay=self._config.validation_decay)
        if fresh:
            named = trainable_parameters(self._model)
            gradient = {name: parameter.grad for name, parameter in named if parameter.grad is not None}
            self.fresh = FreshGradient(gradient, 1.0, float(shares[signal].sum()), int(signal.sum()))
        self._model.zero_grad(set_to_none=True)
        try:
            found = self._own_products(scored, advance, shares / scored.rollouts.tokens)
        except DirectionError:
            self._direction, self._version, self.fresh = self._new_direction(), None, None
            raise
        carried = self._direction.carried if self._config.validation_decay else None
        return _measured(scored, found, length=length, carried=carried)

    def keep(self, version: int, decay: float | None) -> None:  # noqa: ARG002
        """Note the scorer's version of the direction."""
        self._version = version

    def with_update(self, scored: ScoredRollouts) -> None:  # noqa: ARG002
        """Products need no backward, so they do not come out of one."""
        return

    def state(self) -> Any:
        """The version and the direction; None before the first."""
        return None if self._version is None else (self._version, self._direction.state_dict(), self._taken)

    def load(self, state: Any) -> None:
        """Go on from what `state` gave."""
        if state is not None:
            self._version, direction, self._taken = state
            self._direction.load_state_dict(direction)

    def _new_direction(self) -> Direction:
        return Direction(self._model, verify_every=CHECK_EVERY)

    def _backward(self, scored: ScoredRollouts, shares: Tensor) -> None:
        """Leave the gradient of the weighted losses in `.grad`."""
        self._model.zero_grad(set_to_none=True)
        for part in self._parts(scored):
            losses = problem_losses(self._model, scored.rollouts.groups(part.tolist()), scored.advantages[part])
            (losses * shares[part]).sum().backward()

    def _own_products(self, scored: ScoredRollouts, advance: Advance, per_token: Tensor) -> Tensor:
        """Products of the validation problems, out of the self-check that they are."""
        brief = self._taken % CHECK_EVERY != 0
        self._taken += 1
        check = self._direction.check_of(self._logprobs, self._batches(scored, per_token), brief=brief)
        advance(len(scored.problems))
        if check.fidelity is not None or not brief:
            fidelity = "" if check.fidelity is None else f", correlation with exact ones about {check.fidelity:.4f}"
            logger.info("Products by method %s: they add up to %.3f |v|%s.", check.method, check.quotient, fidelity)
        return _spread(scored, check.products)

    def _products(self, scored: ScoredRollouts, advance: Advance, per_token: Tensor) -> Tensor:
        found = self._direction.products_of(self._logprobs, self._batches(scored, per_token))
        advance(len(scored.problems))
        return _spread(scored, found)

    def _products_and_norms(self, scored: ScoredRollouts, advance: Advance) -> tuple[Tensor, Tensor]:
        """Products [P, G], and norms of the head's gradient [P], float64 on the CPU."""
        norms, found = torch.zeros(len(scored.problems), dtype=torch.float64), []
        batches = self._batches(scored, 1.0 / scored.rollouts.tokens)
        for part, batch in zip(self._parts(scored), batches, strict=True):
            rollouts: RolloutBatch = batch.batch
            problem = torch.arange(len(part), device=part.device).repeat_interleave(rollouts.group_size)
            products, lengths = self._direction.products_and_norms(
                self._logprobs, rollouts, batch.weights, batch.mask, rollouts.completion_ids,
                logprobs_at=batch.logprobs_at, norms_index=problem, temperature=rollouts.temperature or 1.0,
            )  # fmt: skip
            norms[part.cpu()] = lengths.cpu()
            found.append(products)
        advance(len(scored.problems))
        return _spread(scored, found), norms

    def _parts(self, scored: ScoredRollouts) -> list[Tensor]:
        return scored.signal_parts(self._config.problems_per_backward)

    def _batches(self, scored: ScoredRollouts, per_token: Tensor) -> list[MicroBatch]:
        """The groups that have a signal, in micro-batches; others have products of 0."""
        batches = []
        for part in self._parts(scored):
            rollouts = scored.rollouts.groups(part.tolist())
            weights = (scored.advantages[part] * per_token[part][:, None]).flatten()
            batches.append(MicroBatch(rollouts, weights, rollouts.completion_mask, rollouts.logprobs))
        return batches

    def _logprobs(self, rollouts: RolloutBatch) -> Tensor:
        return completion_logprobs(self._model, rollouts)


def _spread(scored: ScoredRollouts, found: Sequence[Tensor]) -> Tensor:
    """Products [P, G] of all groups, float64 on the CPU, out of those of the groups with a signal."""
    products = torch.zeros(scored.advantages.shape, dtype=torch.float64)
    if found:
        products[scored.signal.cpu()] = torch.cat([part.cpu() for part in found]).view(-1, products.shape[1])
    return products


def _measured(scored: ScoredRollouts, products: Tensor, **more: Any) -> MeasuredProducts:
    return MeasuredProducts(
        problem_ids=[problem.problem_id for problem in scored.problems],
        products=products.tolist(),
        tokens=scored.rollouts.tokens.tolist(),
        pass_rates=scored.pass_rates,
        **more,
    )
