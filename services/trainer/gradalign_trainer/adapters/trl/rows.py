"""The problem id of each row of a TRL dataset: its own, or one made of its content.

A row without an id is called as `gradalign_trainer.adapters.problemids.stable_id` has it, of `prompt`, `answer` and `source`
where these are its only columns; with other columns, the JSON of all but `prompt`, `source` and the images stands for the
answer. So the id depends on the content alone: not on the order, the file or the machine.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from gradalign.errors import GradAlignError
from gradalign_trainer.adapters.problemids import stable_id

__all__ = ["dataset_ids", "row_id"]

IMAGES = ("image", "images")
LONGEST_ID = 256  # characters, as the wire has it


def row_id(row: Mapping[str, Any], column: str) -> str:
    """The problem id of one row.

    Args:
        row: as the dataset gives it.
        column: that holds the id, if the row has it.

    Raises:
        GradAlignError: the id is missing or too long, or none can be made.
    """
    if column in row:
        given = row[column]
        if given is None or not 0 < len(str(given)) <= LONGEST_ID:
            raise GradAlignError(
                f"{column} = {given!r:.80}: expected 1 to {LONGEST_ID} characters in every row. Fill the column, or drop it "
                f"(dataset.remove_columns({column!r})): then ids are made of the rows' content."
            )
        return str(given)
    others = {key: row[key] for key in sorted(row) if key not in ("prompt", "source", *IMAGES)}
    answer = others.get("answer") if set(others) <= {"answer"} else others
    try:
        return stable_id(row["prompt"], answer, "" if row.get("source") is None else str(row["source"]))
    except (TypeError, KeyError) as error:
        raise GradAlignError(
            f"no id can be made of the content of a row with columns {sorted(row)}: {error}. Give the problems ids of your "
            f"own in a column {column!r}, or name the column that has them: GradAlignConfig(id_column=...)."
        ) from None


def dataset_ids(dataset: Any, column: str, name: str) -> list[str]:
    """The ids of all rows, in order.

    Args:
        dataset: a `datasets.Dataset`.
        column: that holds the ids, if the dataset has it.
        name: of the dataset, for messages.

    Raises:
        GradAlignError: an id is missing, cannot be made, or two rows have the same.
    """
    ids: list[str] = []
    for number, row in enumerate(_contents(dataset, column)):
        try:
            ids.append(row_id(row, column))
        except GradAlignError as error:
            raise GradAlignError(f"row {number} of {name}: {error}") from None
    _check_distinct(ids, name, column, given=column in dataset.column_names)
    return ids


def _contents(dataset: Any, column: str) -> Iterator[Mapping[str, Any]]:
    """The rows without what ids do not depend on: decoding images would take hours."""
    if column in dataset.column_names:
        yield from dataset.select_columns([column])
    else:
        yield from dataset.remove_columns([image for image in IMAGES if image in dataset.column_names])


def _check_distinct(ids: Sequence[str], name: str, column: str, *, given: bool) -> None:
    first: dict[str, int] = {}
    repeated = [
        (first[problem_id], row) for row, problem_id in enumerate(ids) if first.setdefault(problem_id, row) != row
    ]
    if not repeated:
        return
    earlier, later = repeated[0]
    what = f"the same {column}, {ids[later]!r:.80}" if given else "the same content in every column"
    fix = "Make the ids distinct" if given else f"Drop the repeats, or tell them apart by a column {column!r}"
    raise GradAlignError(
        f"rows {earlier} and {later} of {name} have {what} ({len(repeated)} such rows in all). The curriculum remembers a "
        f"problem by its id, so each needs its own. {fix}."
    )
