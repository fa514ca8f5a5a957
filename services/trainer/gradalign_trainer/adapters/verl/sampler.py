"""`GradAlignSampler`: draws the rows of each batch by the priorities that the scorer holds for the run."""

from __future__ import annotations

import logging
import random
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from gradalign.errors import NotFound, StalePolicy, UnavailableError
from gradalign_trainer.adapters.base.draws import Draws
from gradalign_trainer.adapters.verl.draws import trusted_share
from gradalign_trainer.adapters.verl.problems import batch_problem_ids, mark_problems
from gradalign_trainer.adapters.verl.settings import VerlSettings

if TYPE_CHECKING:
    from torch.utils.data import Sampler as AbstractCurriculumSampler
else:
    try:
        from verl.experimental.dataset.sampler import AbstractCurriculumSampler
    except ImportError as missing:
        raise ImportError(
            f"GradAlignSampler needs verl 0.6 or 0.7, whose sampler interface it implements ({missing}). verl 0.8 took that "
            "interface out; docs/adapters-verl.md says what is left there."
        ) from missing

__all__ = ["GradAlignSampler"]

SILENT_STEPS = 8  # steps without a score from the workers after which that is said
logger = logging.getLogger(__name__)


class GradAlignSampler(Draws, AbstractCurriculumSampler):  # type: ignore[type-arg]
    """A curriculum for verl: `data.sampler.class_path=pkg://gradalign_trainer.adapters.verl.sampler`.

    A batch is drawn when its first row is asked for: every `refresh_every` batches trusted problems first, then what
    `/select` picks. Before anything was scored, and while the scorer is away, picks are random; training never waits for
    more than the client's retries.

    Args:
        data_source: verl's `RLHFDataset`; its rows are given ids.
        data_config: verl's `data` settings; `train_batch_size`, `gen_batch_size`, `prompt_key` and `seed` are read.

    Attributes:
        version: updates of the policy so far.
        fallbacks: batches drawn at random because the scorer was away.

    Raises:
        GradAlignError: settings are missing, or the dataset holds no candidates.
    """

    def __init__(self, data_source: Any, data_config: Any) -> None:
        super().__init__(len(data_source))
        self._settings = VerlSettings.from_environment()
        self._rows = mark_problems(data_source, data_config.get("prompt_key", "prompt"))
        self._size = int(data_config.get("gen_batch_size") or data_config.get("train_batch_size") or 1)
        seed = data_config.get("seed")
        self._seed = self._settings.seed if seed is None else int(seed)
        self._client = self._settings.connect()
        self._draws = self._silent = self._policy_seen = 0
        self._restore: str | None = None
        self.version = self.fallbacks = 0

    def update(self, batch: Any) -> None:
        """Take note of an optimizer step: the clock of staleness, and whether the workers' scores arrive.

        Args:
            batch: verl's `DataProto` of the step.
        """
        self.version += 1
        ids, trusted = batch_problem_ids(batch)
        try:
            seen = self._client.run().policy_version
            self._silent = 0 if seen != self._policy_seen else self._silent + 1
            self._policy_seen = seen
        except NotFound:
            self._silent += 1
        except UnavailableError:
            return
        if self._silent and self._silent % (SILENT_STEPS * self._settings.every) == 0:
            logger.warning(
                "No score of run %s has come from the workers for %d steps (the last batch had %d problems, %d of them "
                "trusted). Is VERL_USE_EXTERNAL_MODULES=gradalign_trainer.adapters.verl.plugin set in their environment?",
                self._settings.run_id,
                self._silent,
                len(set(ids)),
                len({name for name, own in zip(ids, trusted, strict=True) if own}),
            )

    def state_dict(self) -> dict[str, Any]:
        """Where the sampler stands; the curriculum at the scorer is kept under a name that belongs to it."""
        name = f"verl-{self._draws}"
        try:
            self._client.snapshot(name)
        except (NotFound, UnavailableError) as error:
            logger.warning("This checkpoint has no curriculum snapshot: %s", error)
            name = ""
        return {
            "yielded": self._yielded,
            "draws": self._draws,
            "queue": list(self._queue),
            "version": self.version,
            "fallbacks": self.fallbacks,
            "snapshot": name,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state; the curriculum is put back to its snapshot before the next draw.

        Args:
            state: as `state_dict` gave it.
        """
        self._yielded, self._draws, self._queue = state["yielded"], state["draws"], list(state["queue"])
        self.version, self.fallbacks = state["version"], state["fallbacks"]
        self._restore = state["snapshot"] or None

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    def _draw(self) -> list[int]:
        """The rows of the next batch."""
        rng = random.Random(f"verl/{self._seed}/{self._draws}")
        trusted: Sequence[str] = ()
        if self._rows.trusted and self._draws % self._settings.refresh_every == 0:
            trusted = trusted_share(self._rows, self._size, self._settings.trusted_share, rng)
        chosen = self._choose(self._size - len(trusted), rng)
        self._draws += 1
        rows = {**self._rows.pool, **self._rows.trusted}
        return [rng.choice(rows[name]) for name in (*trusted, *chosen)]

    def _choose(self, count: int, rng: random.Random) -> Sequence[str]:
        pool = list(self._rows.pool)
        chosen: list[str] = []
        try:
            self._put_back()
            chosen = self._selected(min(count, len(pool)), pool)
        except NotFound:
            logger.info("Run %s holds no scores yet; batch %d is random.", self._settings.run_id, self._draws + 1)
        except UnavailableError as error:
            self.fallbacks += 1
            logger.warning(
                "Batch %d is random, %d so far: the scorer is away: %s", self._draws + 1, self.fallbacks, error
            )
        rest = [name for name in pool if name not in set(chosen)]
        missing = count - len(chosen)
        return [*chosen, *(rng.sample(rest, missing) if missing <= len(rest) else rng.choices(pool, k=missing))]

    def _selected(self, count: int, pool: Sequence[str]) -> list[str]:
        settings: dict[str, Any] = {
            "problem_ids": pool,
            "half_life": self._settings.half_life,
            "exploration": self._settings.exploration,
            "cooldown": self._settings.cooldown,
            "seed": int(np.random.SeedSequence([self._seed, self._draws]).generate_state(1)[0]),
        }
        try:
            reply = self._client.select(count, policy_version=max(self.version, self._policy_seen), **settings)
        except StalePolicy:  # the run is ahead of this checkpoint, and there was no snapshot to go back to
            self._policy_seen = self._client.run().policy_version
            logger.warning(
                "The curriculum of run %s is ahead of this checkpoint (policy version %d, here %d) and goes on from there.",
                self._settings.run_id,
                self._policy_seen,
                self.version,
            )
            reply = self._client.select(count, policy_version=self._policy_seen, **settings)
        return list(reply.selected)

    def _put_back(self) -> None:
        if self._restore is None:
            return
        try:
            self._client.restore(self._restore)
            logger.info("The curriculum of run %s is back at %s.", self._settings.run_id, self._restore)
        except NotFound as error:
            logger.warning(
                "The curriculum starts from what the scorer holds: snapshot %s is gone: %s", self._restore, error
            )
        self._restore = None
