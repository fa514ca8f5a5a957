"""Rows of a Hugging Face dataset: a local folder, or an id of the hub."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from gradalign_trainer.datasets.records.schema import DataError, Place
from gradalign_trainer.datasets.sources.source import DataSource
from gradalign_trainer.settings import nearest

__all__ = ["open_dataset", "read_dataset"]


def open_dataset(source: DataSource) -> Any:
    """The split of a dataset, rows loaded as they are asked for.

    A folder written by `save_to_disk` is read as such; any other folder, and an id, goes to `load_dataset`.

    Raises:
        DataError: `datasets` is not installed, or there is no such dataset or split.
    """
    try:
        library: Any = importlib.import_module("datasets")
        if library.__spec__.origin is None:  # a folder of that name that stands where modules are looked for
            raise ModuleNotFoundError("No module named 'datasets'")
    except ImportError as error:
        raise DataError(
            f"source {source.path!r} of kind 'huggingface' needs the package datasets: "
            "pip install 'gradalign[huggingface]'. Or export it to Parquet and use kind 'parquet'."
        ) from error
    folder = Path(source.path).expanduser()
    saved = (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file()
    try:
        found = library.load_from_disk(str(folder)) if saved else _load(library, source, folder)
    except Exception as error:  # the library raises its own, the hub's and the operating system's errors
        raise DataError(
            f"Hugging Face dataset {source.path!r} (subset {source.subset or None!r}, split {source.split!r}) cannot be "
            f"loaded: {type(error).__name__}: {error}. Expected a folder of data files, one written by save_to_disk, or an "
            "id of the hub."
        ) from error
    if isinstance(found, dict):
        if source.split not in found:
            raise DataError(
                f"{source.path} has no split {source.split!r}; expected one of {', '.join(found)}"
                f"{nearest(source.split, found)}."
            )
        return found[source.split]
    return found


def _load(library: Any, source: DataSource, folder: Path) -> Any:
    name = str(folder) if folder.is_dir() else source.path
    return library.load_dataset(name, source.subset or None, split=source.split)


def read_dataset(dataset: Any, source: DataSource, advance: Callable[[float], None]) -> Iterator[tuple[Place, Any]]:
    """Yield the place and the record of every row. `advance` is told of rows."""
    for number, record in enumerate(dataset, start=1):
        yield Place(source.path, number, "row"), record
        advance(1)
