"""Seconds a round of each method takes when nothing else runs: what equal wall time is read by.

Runs of the grid share the machine with each other, so their own clocks would charge a method for its neighbours.
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from statistics import median

import torch

from gradalign.errors import GradAlignError
from gradalign_trainer.config.training import TrainConfig
from gradalign_trainer.reproduce.grid.worker import play

__all__ = ["Timing", "measure_timing", "read_timing"]

FILE = "timing.json"
WARM, TIMED = 2, 10  # rounds

Timing = Mapping[str, float]
"""Method -> seconds a round, evaluations not counted."""


def measure_timing(folder: Path, configs: Mapping[str, TrainConfig]) -> None:
    """Time methods, one after the other, and keep the times in a grid's folder beside those that are there.

    Args:
        folder: of the grid.
        configs: method -> a run of it.
    """
    times = dict(read_timing(folder))
    for method, config in configs.items():
        reports = play(replace(config, rounds=WARM + TIMED, evaluate_every=WARM + TIMED))
        times[method] = median(report.figures["round_seconds"] for report in reports[1 + WARM :])
        _write(folder / FILE, times)


def _write(path: Path, times: Timing) -> None:
    machine = {"cores": os.cpu_count(), "machine": platform.machine(), "torch": torch.__version__}
    rounded = {method: round(seconds, 4) for method, seconds in times.items()}
    temporary = path.with_suffix(".new")
    temporary.write_text(json.dumps({"seconds_a_round": rounded, **machine}, indent=1) + "\n")
    os.replace(temporary, path)


def read_timing(folder: Path) -> Timing:
    """The times of a grid's folder; none where they were not taken.

    Raises:
        GradAlignError: the file is damaged.
    """
    path = folder / FILE
    if not path.exists():
        return {}
    try:
        return {str(name): float(value) for name, value in json.loads(path.read_text())["seconds_a_round"].items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise GradAlignError(
            f"{path} holds no times ({error!r}); expected {{'seconds_a_round': {{method: seconds}}}}. Remove it, and the "
            "times are taken again."
        ) from error
