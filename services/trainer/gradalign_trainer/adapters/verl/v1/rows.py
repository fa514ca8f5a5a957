"""The rows of a training batch: which problem each is of, what the engine is to measure, and what it is then trained with.

A row is one output of an agent loop; rows of one `uid` are the rollouts of a problem. verl fills a batch up with rows that
count nothing (tag `is_padding`), which are copies of a real row in every column but the tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gradalign.errors import GradAlignError
from gradalign.wire.replies import Ranking
from gradalign_trainer.adapters.verl.problems import TRUSTED
from gradalign_trainer.curriculum.products import MeasuredProducts

__all__ = ["COLUMNS", "BatchRows", "Group", "batch_rows"]

COLUMNS = ("uid", "extra_info", "response_mask", "loss_mask", "advantages", "rm_scores")
"""What `batch_rows` reads of a batch."""


@dataclass(frozen=True, slots=True)
class Group:
    """The rollouts of one problem in a batch.

    Attributes:
        problem_id: of the problem.
        trusted: whether it is validated on.
        rows: of the batch.
        tokens: that count, of all its rows.
        pass_rate: mean reward, clipped to [0, 1].
    """

    problem_id: str
    trusted: bool
    rows: Sequence[int]
    tokens: int
    pass_rate: float


@dataclass(frozen=True, slots=True)
class BatchRows:
    """The rows of a batch.

    Attributes:
        problem_ids: the problem of each row; empty for one that fills up.
        trusted: bool [B], rows that are validated on.
        groups: the first group of each problem that has any token that counts.
    """

    problem_ids: Sequence[str]
    trusted: Tensor
    groups: Sequence[Group]

    def part(self, *, trusted: bool) -> list[Group]:
        """The groups that are validated on, or the candidates."""
        return [group for group in self.groups if group.trusted == trusted]

    def shares(self, *, trusted: bool, pooled: bool = False) -> Tensor:
        """What a token's advantage is multiplied by in its problem's loss, float32 [B]: one over the group's tokens.

        Args:
            trusted: of the groups that are validated on, or of the candidates; 0 for all others.
            pooled: 1 in place of one over the tokens, so that tokens of all groups weigh alike.
        """
        shares = torch.zeros(len(self.problem_ids))
        for group in self.part(trusted=trusted):
            shares[list(group.rows)] = 1.0 if pooled else 1.0 / group.tokens
        return shares

    def validation(self, products: Tensor, length: float, *, pooled: bool) -> MeasuredProducts:
        """What the scorer gets of the groups that are validated on.

        Args:
            products: float64 [B], with the validation gradient's unit vector.
            length: of that gradient.
            pooled: as the shares were.
        """
        groups = self.part(trusted=True)
        # In the unit of a problem's own gradient, the mean over its tokens.
        scale = len(groups) / max(sum(group.tokens for group in groups), 1) if pooled else 1.0
        return self._measured(groups, products * scale, length=length * scale)

    def candidates(self, products: Tensor, *, rollout_weights: bool) -> MeasuredProducts:
        """What the scorer gets of the others, by products as in `validation`."""
        return self._measured(self.part(trusted=False), products, rollout_weights=rollout_weights)

    def factors(self, ranking: Ranking) -> Tensor:
        """What each row's advantages are multiplied by, float32 [B].

        It is the weight of its rollout or problem, 1 for what is validated on, and 0 for others that were not ranked.
        """
        weights = ranking.weight_of()
        factors = torch.tensor([weights.get(name, 0.0) for name in self.problem_ids])
        if ranking.rollout_weights is not None:
            each = dict(zip(ranking.problem_ids, ranking.rollout_weights, strict=True))
            for group in self.part(trusted=False):
                if group.problem_id in each:
                    factors[list(group.rows)] = torch.tensor(each[group.problem_id])
        factors[self.trusted] = 1.0
        return factors

    def _measured(self, groups: Sequence[Group], products: Tensor, **named: Any) -> MeasuredProducts:
        return MeasuredProducts(
            problem_ids=[group.problem_id for group in groups],
            products=[products[list(group.rows)].tolist() for group in groups],
            tokens=[group.tokens for group in groups],
            pass_rates=[group.pass_rate for group in groups],
            **named,
        )


def batch_rows(columns: Mapping[str, Any], tags: Sequence[Mapping[str, Any]]) -> BatchRows:
    """The rows of a batch.

    Args:
        columns: `COLUMNS` of its rows; `response_mask` and `rm_scores` jagged, [B, response tokens].
        tags: of its rows, as verl keeps them beside the columns.

    Raises:
        GradAlignError: a column did not arrive, or a row has no id.
    """
    missing = [name for name in COLUMNS if name not in columns]
    if missing:
        raise GradAlignError(
            f"the columns {', '.join(missing)} of the batch did not arrive; expected {', '.join(COLUMNS)}. Does an agent "
            "loop of your own write its outputs without the columns of the prompt, or a dataset of your own drop extra_info?"
        )
    infos, uids = list(columns["extra_info"]), [str(uid) for uid in columns["uid"]]
    filling = [bool(tag.get("is_padding", False)) for tag in tags]
    names = [""] * len(uids)
    trusted = torch.zeros(len(uids), dtype=torch.bool)
    for row, info in enumerate(infos):
        if filling[row]:
            continue
        names[row] = _problem_id(info, row)
        trusted[row] = info.get("gradalign") == TRUSTED
    tokens = [int(mask.sum()) for mask in columns["response_mask"].unbind()]
    rewards = [float(scores.sum()) for scores in columns["rm_scores"].unbind()]
    groups = []
    for rows in _first_groups(names, uids):
        counted = sum(tokens[row] for row in rows)
        if counted:
            mean = sum(rewards[row] for row in rows) / len(rows)
            groups.append(Group(names[rows[0]], bool(trusted[rows[0]]), rows, counted, min(max(mean, 0.0), 1.0)))
    return BatchRows(names, trusted, groups)


def _problem_id(info: Any, row: int) -> str:
    found = info.get("problem_id") if isinstance(info, Mapping) else None
    if found in (None, ""):
        raise GradAlignError(
            f"row {row} of the batch has extra_info {info!r:.120} without a problem_id, which was written into the dataset "
            "when the run began. Does an agent loop or a dataset of your own make extra_info anew? Let it keep what it has."
        )
    return str(found)


def _first_groups(names: Sequence[str], uids: Sequence[str]) -> list[list[int]]:
    """The rows of the first group of each problem, in order; a problem may come twice where few candidates are left."""
    of: dict[str, dict[str, list[int]]] = {}
    for row, (name, uid) in enumerate(zip(names, uids, strict=True)):
        if name:
            of.setdefault(name, {}).setdefault(uid, []).append(row)
    return [next(iter(groups.values())) for groups in of.values()]
