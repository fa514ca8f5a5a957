"""Names of the keys of a run. All share the tag `{run}`, so in a cluster one script touches one slot."""

from __future__ import annotations

__all__ = ["RUNS", "SNAPSHOT_PARTS", "RunKeys"]

RUNS = "gradalign:runs"
SNAPSHOT_PARTS = ("meta", "problems", "priorities", "validations", "rounds", "unsorted", "moments", "beliefs")


class RunKeys:
    """The keys of one run.

    Attributes:
        meta: hash of the run's own fields.
        problems: hash, problem id -> packed record.
        priorities: sorted set, problem id -> minus its priority, so that ascending order is best first and ties go by id.
        validations: hash, validation version -> packed validation gradient; immutable fields, old ones removed.
        rounds: stream of committed requests, entry `{round}-0`.
        unsorted: list of the ids of commits whose problems are still to be put in place in `priorities`, packed.
        moments: packed sums of features and alignments; absent where no features were sent.
        beliefs: hash, problem id -> packed belief about its success rate; absent where none is kept.
        snapshots: set of snapshot names.
    """

    def __init__(self, run_id: str) -> None:
        self._base = f"gradalign:{{{run_id}}}"
        self.meta, self.problems, self.priorities, self.validations, self.rounds, *others = self.parts()
        self.unsorted, self.moments, self.beliefs = others
        self.snapshots = f"{self._base}:snapshots"

    def parts(self) -> list[str]:
        """The keys that a snapshot copies, in the order of SNAPSHOT_PARTS."""
        return [f"{self._base}:{part}" for part in SNAPSHOT_PARTS]

    def reply(self, request_id: str | None) -> str:
        """Where the reply to a request id is kept; a key that is never written for requests without an id."""
        return f"{self._base}:reply:{request_id or ''}"

    def snapshot(self, name: str) -> list[str]:
        """The keys of a snapshot, in the order of SNAPSHOT_PARTS."""
        return [f"{self._base}:snapshot:{name}:{part}" for part in SNAPSHOT_PARTS]
