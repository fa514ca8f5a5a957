"""Validation gradients in memory, by run and version; what is not here is in the store."""

from __future__ import annotations

from collections import OrderedDict

from gradalign import ValidationMissing
from gradalign_scorer.store import RunRecord, RunStore, ValidationGoneError, ValidationRecord

__all__ = ["ValidationCache"]

_Key = tuple[str, str, int]
_RECORD_BYTES = 512


class ValidationCache:
    """Reads through to the store. A version never changes within a run's incarnation, so nothing here can be stale.

    Args:
        store: of all runs.
        max_bytes: of vectors kept; the least recently used go first.
    """

    def __init__(self, store: RunStore, max_bytes: int) -> None:
        self._store = store
        self._max_bytes = max_bytes
        self._held: OrderedDict[_Key, ValidationRecord] = OrderedDict()
        self._bytes = 0

    async def current(self, run: RunRecord) -> ValidationRecord | None:
        """The run's current validation gradient; None before its first.

        Raises:
            ValidationGoneError: the run has another one since it was loaded.
            ValidationMissing: the store lost it.
            Unavailable: the store is away, or its copy is damaged.
        """
        version = run.validation_version
        if version == 0:
            return None
        key = (run.run_id, run.incarnation, version)
        record = self._held.get(key)
        if record is not None:
            self._held.move_to_end(key)
            return record
        record = await self._store.load_validation(run.run_id, version)
        if record is None:
            now = await self._store.load_run(run.run_id)
            if now is None or (now.incarnation, now.validation_version) != (run.incarnation, version):
                raise ValidationGoneError
            raise ValidationMissing(
                f"the store no longer holds validation gradient {version} of run {run.run_id!r}; send /refresh_validation "
                "again.",
                param="run_id",
            )
        self._keep(key, record)
        return record

    def _keep(self, key: _Key, record: ValidationRecord) -> None:
        if key not in self._held:
            self._bytes += _size(record)
        self._held[key] = record
        while self._bytes > self._max_bytes and self._held:
            _, old = self._held.popitem(last=False)
            self._bytes -= _size(old)


def _size(record: ValidationRecord) -> int:
    """Bytes of a vector, and those around it: a run of products has none."""
    return record.vector.nbytes + _RECORD_BYTES
