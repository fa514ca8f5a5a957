"""The policy gradient of every problem of a round, as sketches out of a few batched backwards.

A batch goes through `Sketcher.capture`. Where that refuses (a module it cannot take apart, a gradient that is not finite)
the batch is done again with one backward per problem, so that only the problem at fault is left out.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from gradalign.errors import SketchError
from gradalign.sketch import Sketcher
from gradalign_trainer.grpo.loss import problem_losses
from gradalign_trainer.grpo.rollouts import ScoredRollouts

__all__ = ["GradientMeter", "ProblemSketches"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ProblemSketches:
    """Gradients of P problems; row i everywhere is problem i, zeros where it has no signal.

    Attributes:
        sketches: float32 [P, dim], on the CPU.
        dots: float64 [P], exact products with a unit gradient, on the CPU; None where none was given.
        norms: float64 [P], exact norms, on the CPU; None where no products were taken.
    """

    sketches: Tensor
    dots: Tensor | None
    norms: Tensor | None


class GradientMeter:
    """Takes the gradients of one policy.

    Args:
        model: the policy.
        sketcher: made for it, or for its head.
        problems_per_backward: problems in one forward and backward; bounds memory.
        head: of the model, where its gradient alone is taken: backwards then end at its input.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        sketcher: Sketcher,
        problems_per_backward: int,
        *,
        head: nn.Module | None = None,
    ) -> None:
        self._model, self._sketcher, self._size = model, sketcher, problems_per_backward
        self._head = head
        self._captures = True

    def measure(
        self,
        scored: ScoredRollouts,
        *,
        shares: Tensor | None = None,
        against: Mapping[str, Tensor] | None = None,
        advance: Callable[[int], None] = lambda problems: None,  # noqa: ARG005
    ) -> ProblemSketches:
        """The sketch of each problem's gradient, at the weights as they are; `.grad` is empty before and after.

        Problems whose rewards are all equal have gradient zero and cost nothing. One whose gradient is not finite counts
        as zero too, with a warning: it must not stop the run.

        Args:
            scored: rollouts at these weights.
            shares: float [P], positive; then `.grad` holds the sum of share times gradient over the problems afterwards.
            against: gradient by parameter name to take exact products with.
            advance: told how many problems more are done.
        """
        count = len(scored.problems)
        rows, found = torch.zeros(count, self._sketcher.dim), torch.zeros(count, 2, dtype=torch.float64)
        batches = [part.cpu() for part in scored.signal_parts(self._size)]
        advance(count - sum(map(len, batches)))
        self._model.zero_grad(set_to_none=True)
        for batch in batches:
            rows[batch], found[batch] = self._batch(_Batch(scored, batch, shares, against))
            advance(len(batch))
        if shares is None:
            self._model.zero_grad(set_to_none=True)
        return ProblemSketches(rows, *((None, None) if against is None else found.unbind(1)))

    def of_rollouts(self, scored: ScoredRollouts) -> Tensor:
        """Sketches of each rollout's share of its problem's gradient, float32 [P, G, dim] on the CPU.

        Zeros for rollouts without an advantage, and, with a warning, for a batch whose gradients cannot be taken apart or
        are not finite.
        """
        size = scored.rollouts.group_size
        rows = torch.zeros(len(scored.problems), size, self._sketcher.dim)
        scored = scored.unshared()
        for part in scored.signal_parts(self._size):
            batch = _Batch(scored, part.cpu(), None, None)
            index = torch.arange(len(part) * size, device=self._model.device)
            try:
                with self._sketcher.capture(index, keep_grad=False) as captured:
                    self._losses(batch, batch.problems).sum().backward()
            except SketchError as error:
                logger.warning("The gradients of %d groups were not compared: %s", len(part), error)
                self._model.zero_grad(set_to_none=True)
                continue
            rows[batch.problems] = captured.sketches.float().cpu().view(len(part), size, -1)
        return rows

    def _batch(self, batch: _Batch) -> tuple[Tensor, Tensor]:
        """Sketches [n, dim], and products and norms [n, 2]."""
        if not self._captures:
            return self._one_by_one(batch)[0]
        scale = batch.scale
        # A backward that fails half-way has added to some parameters already.
        before = self._sketcher.gradients() if batch.shares is not None else {}
        try:
            with self._sketcher.capture(
                batch.index(self._model.device), keep_grad=batch.shares is not None, against=batch.against
            ) as captured:
                (self._losses(batch, batch.problems) * scale.to(self._model.device)).sum().backward()
        except SketchError as error:
            self._put_back(before)
            result, faulty = self._one_by_one(batch)
            if not faulty:
                logger.warning("From now on gradients take one backward a problem, which is slower: %s", error)
                self._captures = False
            return result
        found = torch.zeros(len(scale), 2, dtype=torch.float64)
        if batch.against is not None:
            found = torch.stack([captured.dots, captured.norms], 1).cpu() / scale[:, None]
        return captured.sketches.float().cpu() / scale[:, None], found

    def _one_by_one(self, batch: _Batch) -> tuple[tuple[Tensor, Tensor], int]:
        """As `_batch`, and how many gradients were not finite."""
        total = self._sketcher.gradients()
        rows = torch.zeros(len(batch.problems), self._sketcher.dim)
        found, faulty = torch.zeros(len(rows), 2, dtype=torch.float64), 0
        for row, problem in enumerate(batch.problems.tolist()):
            self._model.zero_grad(set_to_none=True)
            self._losses(batch, batch.problems[row : row + 1]).sum().backward()
            try:
                rows[row], found[row] = self._taken(batch.against)
            except SketchError as error:
                logger.warning("Problem %s counts as no signal: %s", batch.scored.problems[problem].problem_id, error)
                faulty += 1
                continue
            if batch.shares is not None:
                share, gradients = float(batch.shares[problem]), self._sketcher.gradients()
                total |= {name: total.get(name, 0) + share * gradient for name, gradient in gradients.items()}
        self._put_back(total)
        return (rows, found), faulty

    def _taken(self, against: Mapping[str, Tensor] | None) -> tuple[Tensor, Tensor]:
        """Sketch [dim], and product and norm [2], of what `.grad` holds."""
        if against is None:
            return self._sketcher.from_grads().float().cpu(), torch.zeros(2, dtype=torch.float64)
        exact = self._sketcher.from_grads(against=against)
        return exact.sketch.float().cpu(), torch.tensor([exact.dot, exact.norm], dtype=torch.float64)

    def _losses(self, batch: _Batch, problems: Tensor) -> Tensor:
        handle = None if self._head is None else self._head.register_forward_pre_hook(_detached)
        try:
            groups = batch.scored.rollouts.groups(problems.tolist())
            return problem_losses(self._model, groups, batch.scored.advantages[problems])
        finally:
            if handle is not None:
                handle.remove()

    def _put_back(self, gradients: Mapping[str, Tensor]) -> None:
        for name, parameter in self._sketcher.named():
            parameter.grad = gradients.get(name)


def _detached(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (inputs[0].detach(), *inputs[1:])


@dataclass(frozen=True, slots=True)
class _Batch:
    """Problems of one forward and backward: their numbers, int64 [n], and what to do with their gradients."""

    scored: ScoredRollouts
    problems: Tensor
    shares: Tensor | None
    against: Mapping[str, Tensor] | None

    def index(self, device: torch.device) -> Tensor:
        """The place in the batch of every row of it."""
        rollouts = self.scored.rollouts
        rows = 1 if rollouts.share_prompts else rollouts.group_size
        return torch.arange(len(self.problems), device=device).repeat_interleave(rows)

    @property
    def scale(self) -> Tensor:
        """Factors of the losses, float32 [n] on the CPU."""
        return torch.ones(len(self.problems)) if self.shares is None else self.shares[self.problems].float().cpu()
