"""What is stored of a run, a problem and a validation gradient, and how it is packed."""

from __future__ import annotations

import json
import math
import struct
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgpack
import numpy as np
import numpy.typing as npt

from gradalign import ProblemState, RunState, Unavailable

__all__ = ["ProblemColumns", "RunRecord", "ValidationRecord", "problem_state"]

# The head of a problem's record; guard.lua has the same layout. History entries of (policy_version, alignment) follow.
_HEAD = struct.Struct("<ffffffddII")
_HISTORY = struct.Struct("<df")
_HEAD_DTYPE = np.dtype(
    [
        ("alignment", "<f4"),
        ("priority", "<f4"),
        ("norm", "<f4"),
        ("pass_rate", "<f4"),
        ("evidence_sum", "<f4"),
        ("evidence_weight", "<f4"),
        ("policy_version", "<f8"),
        ("selected_version", "<f8"),
        ("times_scored", "<u4"),
        ("times_selected", "<u4"),
    ]
)


@dataclass(frozen=True)
class RunRecord:
    """The fields of a run that a request is checked against.

    Attributes:
        run_id: the training job.
        fields: the meta hash, decoded.
        problems: how many problems were ever scored; None where it was not asked for.
    """

    run_id: str
    fields: Mapping[str, str]
    problems: int | None = None

    @property
    def projection_id(self) -> str | None:
        """Id of the run's projection."""
        return self.fields.get("projection_id")

    @property
    def projection(self) -> dict[str, Any] | None:
        """The run's projection map."""
        text = self.fields.get("projection")
        return json.loads(text) if text else None

    @property
    def epoch(self) -> int:
        """Highest fencing token seen."""
        return int(self.fields.get("epoch", 0))

    @property
    def policy_version(self) -> int:
        """Highest policy version seen; -1 before the first."""
        return int(self.fields.get("policy_version", -1))

    @property
    def strategy(self) -> str:
        """The strategy of a /score that names none."""
        return self.fields.get("strategy", "cosine")

    @property
    def validation_version(self) -> int:
        """Current validation version; 0 before the first."""
        return int(self.fields.get("validation_version", 0))

    @property
    def validation_counter(self) -> int:
        """Highest validation version ever made; a restore does not lower it."""
        return int(self.fields.get("validation_counter", 0))

    @property
    def incarnation(self) -> str:
        """Tells a run from an earlier, deleted one of the same name."""
        return self.fields.get("incarnation", "")

    def spread(self) -> tuple[float, float] | None:
        """Discounted mean and standard deviation of the run's alignments; None before the first scores."""
        weight = float(self.fields.get("spread_weight", 0))
        if weight < 1:
            return None
        mean = float(self.fields["spread_sum"]) / weight
        variance = float(self.fields["spread_square"]) / weight - mean * mean
        return mean, math.sqrt(max(variance, 0.0))

    def state(self) -> RunState:
        """The run as the wire shows it."""
        get = self.fields.get
        return RunState(
            run_id=self.run_id,
            epoch=self.epoch,
            policy_version=self.policy_version,
            projection=self.projection,
            strategy=self.strategy,
            validation_version=self.validation_version,
            validation_policy_version=_int_or_none(get("validation_policy_version")),
            validation_problems=int(get("validation_problems", 0)),
            coherence=_float_or_none(get("coherence")),
            reliability=_float_or_none(get("reliability")),
            problems=self.problems or 0,
            rounds=int(get("rounds", 0)),
            created_at=float(get("created_at", 0)),
            updated_at=float(get("updated_at", 0)),
        )


def _int_or_none(text: str | None) -> int | None:
    return None if text is None else int(text)


def _float_or_none(text: str | None) -> float | None:
    return None if text is None else float(text)


@dataclass(frozen=True)
class ProblemColumns:
    """Records of many problems as columns; float32 and float64 arrays [problems].

    Attributes:
        ids: problem ids.
        table: structured array with the fields of a record's head; a problem without a record has `times_scored` 0,
            NaN alignment and no evidence.
    """

    ids: list[str]
    table: npt.NDArray[np.void]

    @classmethod
    def unpack(cls, ids: Sequence[str], records: Sequence[bytes | None]) -> ProblemColumns:
        """Columns of packed records; None for a problem that has none."""
        size = _HEAD.size
        heads = b"".join(record[:size] if record else _EMPTY for record in records)
        return cls(list(ids), np.frombuffer(heads, dtype=_HEAD_DTYPE))

    def column(self, name: str) -> npt.NDArray[np.float64]:
        """One column as float64."""
        return self.table[name].astype(np.float64)


_EMPTY = _HEAD.pack(math.nan, math.nan, math.nan, math.nan, 0.0, 0.0, -1.0, -1.0, 0, 0)


def problem_state(problem_id: str, record: bytes, *, history: bool = False) -> ProblemState:
    """A problem as the wire shows it."""
    alignment, priority, _, pass_rate, _, _, version, _, scored, selected = _HEAD.unpack_from(record)
    entries = _HISTORY.iter_unpack(record[_HEAD.size :]) if history else ()
    return ProblemState(
        problem_id=problem_id,
        priority=0.0 if math.isnan(priority) else priority,
        alignment=_known(alignment),
        policy_version=int(version),
        times_scored=scored,
        times_selected=selected,
        pass_rate=_known(pass_rate),
        history=[{"policy_version": int(v), "alignment": _known(a)} for v, a in entries],
    )


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value


@dataclass(frozen=True)
class ValidationRecord:
    """A validation gradient as it is stored: immutable, with a checksum.

    Attributes:
        version: its number within the run.
        policy_version: the weights it was taken at.
        vector: the unit vector, float32 [dim].
    """

    version: int
    policy_version: int
    vector: npt.NDArray[np.float32]

    def pack(self) -> bytes:
        """Header and vector with the CRC-32 of the vector."""
        data = np.ascontiguousarray(self.vector, dtype="<f4").tobytes()
        packed: bytes = msgpack.packb([self.version, self.policy_version, zlib.crc32(data), data])
        return packed

    @classmethod
    def unpack(cls, packed: bytes) -> ValidationRecord:
        """The record of packed bytes; Unavailable where they were damaged."""
        try:
            version, policy_version, checksum, data = msgpack.unpackb(packed)
            intact = zlib.crc32(data) == checksum
        except (ValueError, TypeError, msgpack.UnpackException):
            intact = False
        if not intact:
            raise Unavailable(
                "the stored validation gradient fails its checksum: the store's data are damaged. Send "
                "/refresh_validation again, and check the store's disk and memory.",
                retry_after=1.0,
            )
        return cls(version, policy_version, np.frombuffer(data, dtype="<f4"))
