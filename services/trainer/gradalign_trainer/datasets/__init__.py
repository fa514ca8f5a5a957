"""Problems from JSONL, Parquet, verl's format, Hugging Face datasets and `reasoning_gym` tasks; docs/data.md shows how.

May import its records and sources, and worlds. A change here keeps older files valid.
"""

from gradalign_trainer.datasets.load import LoadedProblems, load_problems
from gradalign_trainer.datasets.records.chat import render_prompts
from gradalign_trainer.datasets.records.ids import content_id
from gradalign_trainer.datasets.records.schema import BadRecord, DataError
from gradalign_trainer.datasets.sources.files import write_jsonl, write_parquet
from gradalign_trainer.datasets.sources.source import DataSource, DataSpec, parse_sources

__all__ = [
    "BadRecord",
    "DataError",
    "DataSource",
    "DataSpec",
    "LoadedProblems",
    "content_id",
    "load_problems",
    "parse_sources",
    "render_prompts",
    "write_jsonl",
    "write_parquet",
]
