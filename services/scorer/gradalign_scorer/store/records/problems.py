"""What is stored of a problem: a packed record, read one by one or as columns."""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from gradalign import ProblemState

__all__ = ["ProblemColumns", "problem_state"]

# The head of a record; problem.lua has the same layout. The scores before the last follow, oldest first, each as the
# distance to the policy version of the next one (6 bytes) and the alignment (float32).
_HEAD = struct.Struct("<fffffddII")
_GAP_BYTES, _ENTRY_BYTES = 6, 10
_HEAD_DTYPE = np.dtype(
    [
        ("alignment", "<f4"),
        ("priority", "<f4"),
        ("pass_rate", "<f4"),
        ("evidence_sum", "<f4"),
        ("evidence_weight", "<f4"),
        ("policy_version", "<f8"),
        ("selected_version", "<f8"),
        ("times_scored", "<u4"),
        ("times_selected", "<u4"),
    ]
)
_EMPTY = _HEAD.pack(math.nan, math.nan, math.nan, 0.0, 0.0, -1.0, -1.0, 0, 0)


@dataclass(frozen=True)
class ProblemColumns:
    """Records of many problems as columns of equal length.

    Attributes:
        ids: problem ids, n of them.
        table: structured array [n] of `alignment`, `priority` and `pass_rate` (float32, NaN where unknown),
            `evidence_sum` and `evidence_weight` (float32: discounted sum and count of alignments), `policy_version` and
            `selected_version` (float64, -1 for never), `times_scored` and `times_selected` (uint32). A problem without
            a record has NaN, 0, -1 and 0.
    """

    ids: list[str]
    table: npt.NDArray[np.void]

    @classmethod
    def unpack(cls, ids: Sequence[str], records: Sequence[bytes | None]) -> ProblemColumns:
        """Columns of packed records; None for a problem that has none."""
        size = _HEAD.size
        heads = b"".join([record[:size] if record else _EMPTY for record in records])
        return cls(list(ids), np.frombuffer(heads, dtype=_HEAD_DTYPE))

    def column(self, name: str) -> npt.NDArray[np.float64]:
        """One column as float64 [n]."""
        return self.table[name].astype(np.float64)


def problem_state(
    problem_id: str, record: bytes, *, history: bool = False, belief: list[float] | None = None
) -> ProblemState:
    """A problem as the wire shows it; `history` adds its last scores, oldest first."""
    alignment, priority, pass_rate, _, _, version, _, scored, selected = _HEAD.unpack_from(record)
    return ProblemState(
        problem_id=problem_id,
        priority=0.0 if math.isnan(priority) else priority,
        alignment=_known(alignment),
        policy_version=int(version),
        times_scored=scored,
        times_selected=selected,
        pass_rate=_known(pass_rate),
        history=_history(record, int(version), alignment) if history and scored else [],
        belief=belief,
    )


def _history(record: bytes, version: int, alignment: float) -> list[dict[str, int | float | None]]:
    scores: list[dict[str, int | float | None]] = [{"policy_version": version, "alignment": _known(alignment)}]
    for start in range(len(record) - _ENTRY_BYTES, _HEAD.size - 1, -_ENTRY_BYTES):
        version -= int.from_bytes(record[start : start + _GAP_BYTES], "little")
        (earlier,) = struct.unpack_from("<f", record, start + _GAP_BYTES)
        scores.append({"policy_version": version, "alignment": _known(earlier)})
    return scores[::-1]


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value
