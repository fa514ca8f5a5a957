"""What the benchmarks of fidelity measure on: GRPO gradients of the demo's trained base model, in each of its regimes."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from gradalign.sketch import Sketcher
from gradalign_trainer.grpo.generation import RolloutBatch, Sampling, generate
from gradalign_trainer.grpo.loss import advantages, problem_losses
from gradalign_trainer.grpo.models import load_policy
from gradalign_trainer.worlds.arithmetic import ArithmeticReward
from gradalign_trainer.worlds.basemodel import base_model
from gradalign_trainer.worlds.regimes import make_world

ROLLOUTS, VALIDATION_ROLLOUTS, CHUNK = 8, 32, 128
CACHE = Path(tempfile.gettempdir()) / "gradalign-bench"


@dataclass
class Scored:
    """Rollouts of problems and their advantages, float [P, G]."""

    rollouts: RolloutBatch
    advantage: Tensor

    def part(self, start: int, stop: int) -> Scored:
        """Some of the problems."""
        picked = range(start, min(stop, len(self.advantage)))
        return Scored(self.rollouts.groups(picked), self.advantage[start:stop])

    def losses(self, model: nn.Module) -> Tensor:
        """The GRPO loss of each problem, [P]."""
        return problem_losses(model, self.rollouts, self.advantage)

    @property
    def index(self) -> Tensor:
        """The problem of each row."""
        return torch.arange(len(self.advantage)).repeat_interleave(self.rollouts.group_size)


class Stage:
    """The base model in one regime, after some updates, with a pool to score and trusted problems.

    Args:
        regime: of the arithmetic world.
        updates: of GRPO on problems of the pool, 32 at a time, before anything is measured.
        pool: number of problems to score.
        group: rollouts of each of them.
        training: `random`: on the pool's problems as they come; `oracle`: on good ones.
    """

    def __init__(
        self, regime: str, *, updates: int, pool: int, group: int = ROLLOUTS, training: str = "random"
    ) -> None:
        self.model, self.tokenizer = load_policy(base_model(CACHE), device=torch.device("cpu"))
        self.generator = torch.Generator().manual_seed(0)
        world = make_world(regime, seed=0)
        self._optimizer = torch.optim.AdamW(self.model.parameters(), lr=5e-4)
        self._world, self._size, self._group = world, pool, group
        others = world.pool[:-pool]
        self._diet = [problem for problem in others if problem.extra["good"]] if training == "oracle" else others
        self._step = 0
        self.train(updates)
        self.draw_pool()
        self.draw_validation()

    def train(self, updates: int) -> None:
        """So many updates more, on problems that are not scored."""
        for _ in range(updates):
            start = 32 * self._step % (len(self._diet) - 31)
            scored = self._score(self._diet[start : start + 32], ROLLOUTS)
            self._optimizer.zero_grad()
            (scored.losses(self.model).sum() / 32).backward()
            self._optimizer.step()
            self._step += 1
        self.model.zero_grad()

    @property
    def good(self) -> Tensor:
        """Which of the problems to score are good ones, bool [P]."""
        return torch.tensor([bool(problem.extra["good"]) for problem in self._world.pool[-self._size :]])

    def draw_pool(self) -> None:
        """Fresh rollouts of the problems to score."""
        self.pool = self._score(self._world.pool[-self._size :], self._group)

    def draw_validation(self) -> None:
        """Fresh rollouts of the trusted problems."""
        self.validation = self._score(self._world.validation, VALIDATION_ROLLOUTS)

    def _score(self, problems: list, group: int) -> Scored:
        sampling = Sampling(group_size=group, max_new_tokens=5)
        prompts = [problem.prompt for problem in problems]
        rollouts = generate(self.model, self.tokenizer, prompts, sampling, self.generator)
        owners = [problem for problem in problems for _ in range(group)]
        reward = ArithmeticReward()
        rewards = [reward(p, text) for p, text in zip(owners, rollouts.texts, strict=True)]
        return Scored(rollouts, advantages(torch.tensor(rewards).view(len(problems), group)))

    def validate(self) -> None:
        """Put the pooled validation gradient, a token-weighted sum, into `.grad`."""
        self.model.zero_grad()
        (self.validation.losses(self.model) * self.validation.rollouts.tokens).sum().backward()

    def exact(self) -> Tensor:
        """Exact cosines of the pool's problems with the validation gradient, float64 [P]; NaN where there is no signal."""
        sketcher = Sketcher(self.model, dim=64)
        self.validate()
        against = sketcher.gradients()
        found = []
        for start in range(0, len(self.pool.advantage), CHUNK):
            part = self.pool.part(start, start + CHUNK)
            with sketcher.capture(part.index, keep_grad=False, against=against) as captured:
                part.losses(self.model).sum().backward()
            found.append(captured.dots / captured.norms)
        return torch.cat(found)

    def sketches(self, sketcher: Sketcher) -> tuple[Tensor, Tensor]:
        """Sketches of the pool's problems, [P, k], and of the validation gradient, [k]."""
        self.validate()
        target = sketcher.from_grads()
        rows = []
        for start in range(0, len(self.pool.advantage), CHUNK):
            part = self.pool.part(start, start + CHUNK)
            with sketcher.capture(part.index, keep_grad=False) as captured:
                part.losses(self.model).sum().backward()
            rows.append(captured.sketches)
        return torch.cat(rows), target


def cosines(rows: Tensor, target: Tensor) -> Tensor:
    """Cosine of each row with the target, float64 [P]; NaN of a zero row."""
    rows, target = rows.double(), target.double()
    return rows @ target / (rows.norm(dim=1) * target.norm())


def ranks(values: Tensor) -> Tensor:
    """Ranks of distinct values, float64."""
    return values.argsort().argsort().double()


def pearson(one: Tensor, other: Tensor) -> float:
    """Pearson's correlation."""
    return float(torch.corrcoef(torch.stack([one.double(), other.double()]))[0, 1])


def spearman(one: Tensor, other: Tensor) -> float:
    """Spearman's correlation."""
    return pearson(ranks(one), ranks(other))


def overlap(one: Tensor, other: Tensor) -> float:
    """The share of the top eighth by one that is in the top eighth by the other."""
    count = len(one) // 8
    best = [set(values.topk(count).indices.tolist()) for values in (one, other)]
    return len(best[0] & best[1]) / count
