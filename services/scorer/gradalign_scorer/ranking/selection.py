"""Picking problems from the priorities of all rounds: scores fade with age, and nothing is forgotten for good."""

from __future__ import annotations

import heapq
import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["PickRule", "Picks", "StoredScores", "pick", "shrunken", "tenths"]

Floats = npt.NDArray[np.float64]
Indices = npt.NDArray[np.intp]
_MIX = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True)
class StoredScores:
    """What is remembered of the problems to pick from, as columns [n].

    Attributes:
        ids: problem ids.
        priorities: as last ranked; NaN for a problem never scored.
        policy_versions: at which each was last scored; -1 for never.
        selected_versions: at which each was last picked; -1 for never.
    """

    ids: Sequence[str]
    priorities: Floats
    policy_versions: Floats
    selected_versions: Floats


@dataclass(frozen=True, kw_only=True)
class PickRule:
    """How to pick; `SelectRequest` says what each value means."""

    policy_version: int
    count: int
    half_life: float
    exploration: float
    cooldown: int
    seed: int


@dataclass(frozen=True)
class Picks:
    """The outcome of a pick.

    Attributes:
        indices: into the columns, best first, the explored ones last.
        explored: those of `indices` that the exploration share picked.
        values: shrunken priority of each of `indices`; NaN for a problem never scored.
        tenths: how many were picked from each tenth of the ranking by shrunken priority, the best tenth first; problems
            never scored are in none. None where no problem was ever scored.
    """

    indices: Indices
    explored: Indices
    values: Floats
    tenths: list[int] | None


def shrunken(scores: StoredScores, policy_version: int, half_life: float) -> Floats:
    """`mean + (priority - mean) * 2^(-staleness/half_life)`, [n]; NaN for a problem never scored.

    A score made at an older policy says less about the present one, so it moves towards the mean of all that are known.
    """
    known = np.isfinite(scores.priorities)
    staleness = np.maximum(policy_version - scores.policy_versions, 0)
    kept = np.exp2(-staleness / half_life)
    with np.errstate(over="ignore", invalid="ignore"):
        mean = float(scores.priorities[known].mean()) if known.any() else 0.0
        if not math.isfinite(mean):  # their sum is beyond float64, as of norms of 1e308
            mean = float((scores.priorities[known] / known.sum()).sum())
        values = mean + (scores.priorities - mean) * kept
    return np.where(np.isfinite(values) | ~known, values, mean * (1 - kept) + scores.priorities * kept)


def pick(scores: StoredScores, rule: PickRule) -> Picks:
    """Pick problems; all of them where there are fewer than asked for.

    A share of the picks (rounded at random, seeded) goes to the problems never scored, then to those scored longest
    ago, in seeded random order among equals: without such a floor an adaptive sampler starves what it once ranked low.
    Where too few were ever scored, the share grows. Problems in their cool-down are picked only when no other is left.
    The order of the columns does not matter, and no step sorts all of them.
    """
    count = min(rule.count, len(scores.ids))
    values = shrunken(scores, rule.policy_version, rule.half_life)
    known = np.isfinite(values)
    rested = (scores.selected_versions < 0) | (rule.policy_version - scores.selected_versions >= rule.cooldown)
    left = np.ones(len(scores.ids), dtype=bool)

    best = _smallest(scores.ids, np.flatnonzero(rested & known), -values, count - _explorers(rule, count))
    left[best] = False
    explored = _oldest(scores, np.flatnonzero(left & rested), rule, count - len(best))
    left[explored] = False
    tired = np.flatnonzero(left & ~rested)
    last = _smallest(scores.ids, tired, np.where(known, -values, np.inf), count - len(best) - len(explored))
    indices = np.concatenate([best, explored, last])
    return Picks(indices, explored, values[indices], tenths(values, indices))


def tenths(values: Floats, indices: Indices) -> list[int] | None:
    """How many of `indices` stand in each tenth of a ranking by `values` [n], the highest tenth first; 10 counts.

    Equal values stand where the first of them does, and NaN nowhere. Nothing is sorted: a pool may hold a million.

    Returns:
        None where all values are NaN.
    """
    known = values[np.isfinite(values)]
    if not known.size:
        return None
    picked = values[indices]
    picked = picked[np.isfinite(picked)]
    # The lowest value of each tenth but the last: a pick below j of them stands in tenth j.
    places = len(known) - np.maximum(np.ceil(np.arange(1, 10) * len(known) / 10).astype(np.intp), 1)
    bounds = np.partition(known, np.unique(places))[places]
    counts = np.bincount(np.searchsorted(-bounds, -picked, side="left"), minlength=10)
    return [int(count) for count in counts]


def _smallest(ids: Sequence[str], members: Indices, keys: Floats, count: int) -> Indices:
    """The `count` members of the smallest keys [n], ascending; equal keys by id."""
    if count <= 0 or not members.size:
        return members[:0]
    if count < len(members):
        own = keys[members]
        members = members[own <= np.partition(own, count - 1)[count - 1]]
    chosen = heapq.nsmallest(count, members.tolist(), key=lambda i: (keys[i], ids[i]))
    return np.array(chosen, dtype=np.intp)


def _oldest(scores: StoredScores, members: Indices, rule: PickRule, count: int) -> Indices:
    """`count` members, lowest policy version first, equals in random order."""
    if count <= 0 or not members.size:
        return members[:0]
    ages = scores.policy_versions[members]
    if count < len(members):
        close = ages <= np.partition(ages, count - 1)[count - 1]
        members, ages = members[close], ages[close]
    ranks = np.zeros(len(scores.ids))
    # An age's rank and a chance below 1 make one key; float64 holds both exactly enough, and ids decide what is left.
    ranks[members] = np.unique(ages, return_inverse=True)[1] + _chances([scores.ids[i] for i in members.tolist()], rule)
    return _smallest(scores.ids, members, ranks, count)


def _explorers(rule: PickRule, count: int) -> int:
    """The exploration share of the picks, rounded at random so that it holds on average for small counts too."""
    return min(count, math.floor(rule.exploration * count + float(_chances([""], rule)[0])))


def _chances(ids: Sequence[str], rule: PickRule) -> Floats:
    """A number in [0, 1) per id, the same for the same id, seed and policy version."""
    salt = zlib.crc32(f"{rule.seed}|{rule.policy_version}|".encode())
    codes = np.array([zlib.crc32(i.encode(), salt) for i in ids], dtype=np.uint64)
    # CRC is linear, so two seeds would give orders alike; the multiplications mix it.
    mixed = (codes | np.uint64(salt << 32)) * _MIX
    mixed = (mixed ^ mixed >> np.uint64(32)) * _MIX
    return (mixed >> np.uint64(32)).astype(np.float64) / 2**32
