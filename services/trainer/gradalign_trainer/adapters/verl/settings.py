"""Settings of the verl adapter, from the environment: driver and workers are processes of their own, on many machines."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Self

from gradalign import Client
from gradalign.errors import GradAlignError

__all__ = ["PREFIX", "VerlSettings"]

PREFIX = "GRADALIGN_VERL_"


@dataclass(frozen=True, slots=True, kw_only=True)
class VerlSettings:
    """Settings, each `GRADALIGN_VERL_` and its name in capitals.

    Attributes:
        url: of the scorer.
        run_id: of the run, a new one for each; a resumed run keeps its own.
        api_key: of the scorer; empty for `GRADALIGN_API_KEY` or none.
        epoch: fencing token; raise it when a run is resumed.
        strategy: of the scorer.
        dim: buckets of a sketch.
        seed: of the projection and of random choices.
        every: steps between captures in the workers.
        refresh_every: steps between the batches that trusted problems join.
        trusted_share: the most of a batch that they take, in (0, 1).
        exploration: share of a selection that goes to problems never scored or longest unscored, in [0, 1].
        cooldown: updates for which a problem that was picked is picked again only when no other is left.
        half_life: policy versions in which an old score shrinks half-way to the mean.
        timeout: seconds to wait for a reply.
        retries: tries after the first, before a step goes on without the scorer.
        sketch_dtype: that sketches travel as: `float32`, or `int8` for a quarter of the bytes.
    """

    url: str
    run_id: str
    api_key: str = ""
    epoch: int = 0
    strategy: str = "cosine"
    dim: int = 8192
    seed: int = 0
    every: int = 1
    refresh_every: int = 8
    trusted_share: float = 0.25
    exploration: float = 0.25
    cooldown: int = 4
    half_life: float = 16.0
    timeout: float = 10.0
    retries: int = 1
    sketch_dtype: str = "float32"

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Self:
        """Read them.

        Raises:
            GradAlignError: url or run id is missing, a name is unknown, or a value is not a number.
        """
        known = {field.name: field for field in fields(cls)}
        found: dict[str, Any] = {}
        for name, text in environment.items():
            key = name.removeprefix(PREFIX).lower()
            if not name.startswith(PREFIX):
                continue
            if key not in known:
                raise GradAlignError(f"{name} is set and means nothing; known are {_spelled(known)}.")
            kind = {"int": int, "float": float}.get(str(known[key].type), str)
            try:
                found[key] = kind(text)
            except ValueError:
                raise GradAlignError(f"{name} = {text!r}; expected a number ({kind.__name__}).") from None
        missing = [name for name in ("url", "run_id") if not found.get(name)]
        if missing:
            raise GradAlignError(
                f"{_spelled(missing)} not set; the verl adapter needs the scorer's address and a name for the run. Under "
                "Ray set them in ray_kwargs.ray_init.runtime_env.env_vars, so that every worker has them."
            )
        return cls(**found)

    def connect(self) -> Client:
        """A client of the run."""
        return Client(
            self.url,
            run_id=self.run_id,
            api_key=self.api_key or None,
            epoch=self.epoch,
            timeout=self.timeout,
            retries=self.retries,
            sketch_dtype=self.sketch_dtype,
        )


def _spelled(names: Any) -> str:
    return ", ".join(f"{PREFIX}{name.upper()}" for name in names)
