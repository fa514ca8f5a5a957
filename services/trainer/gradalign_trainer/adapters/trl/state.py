"""What a TRL checkpoint keeps of the curriculum, in a file of its own beside TRL's."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Self

__all__ = ["CurriculumState"]

FILE = "gradalign.json"


@dataclass(frozen=True, slots=True)
class CurriculumState:
    """The curriculum at a checkpoint; the defaults are those of a checkpoint that was written without one.

    Attributes:
        run_id: of the run.
        snapshot: name of the curriculum's snapshot at the scorer; None where none could be kept.
        refreshed: step of the last validation gradient.
        fallbacks: batches that went on without a ranking so far.
        fallback_reasons: of these, how many for which reason.
    """

    run_id: str = ""
    snapshot: str | None = None
    refreshed: int | None = None
    fallbacks: int = 0
    fallback_reasons: dict[str, int] = field(default_factory=dict)

    @classmethod
    def read(cls, checkpoint: Path | None) -> Self:
        """Of a checkpoint's folder, if there is one."""
        if checkpoint is None or not (checkpoint / FILE).exists():
            return cls()
        return cls(**json.loads((checkpoint / FILE).read_text(encoding="utf-8")))

    def write(self, checkpoint: Path) -> None:
        """Into a checkpoint's folder."""
        (checkpoint / FILE).write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")
