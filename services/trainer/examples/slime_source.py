"""slime and miles: a data source whose prompts the scorer chooses by pass rates. Configuration alone, no patch.

    --data-source-path slime_source.CurriculumSource
    --rollout-all-samples-process-path slime_source.report

with this file's folder in PYTHONPATH, and GRADALIGN_SCORER_URL and GRADALIGN_RUN_ID in the rollout manager's environment
(`env_vars` of Ray's runtime environment). Rewards of -1 and 1 want GRADALIGN_WORST_REWARD=-1.

- What is chosen: the prompts of each call of `get_samples`; half-finished groups of the buffer come first, as ever.
- What is reported: the rewards of all groups of a rollout, those too that `--dynamic-sampling-filter-path` drops.
- Ids: `problem_id` of a row's metadata, else of its prompt and label.
- Resume: with slime's own file of the data source, in `--save` and `--load`.

Read in slime at 624b824 and miles at 31f1ca9 (2026-08-21). Run against slime's own data source, dataset and
`generate_rollout` at that commit, on a CPU, with generation by `--custom-generate-function-path`: no SGLang, no training.
miles was read only; its data source has the same methods. `fully_async_rollout` does not call `report`: call it yourself.
"""

from collections.abc import Callable, Iterator
from typing import Any

try:
    from slime.rollout.data_source import RolloutDataSourceWithBuffer
except ImportError:  # miles took slime's data source over
    from miles.rollout.data_source import RolloutDataSourceWithBuffer

from gradalign_trainer.adapters.base import PassRateLink, PassRateSettings
from gradalign_trainer.adapters.problemids import stable_id

KEY = "problem_id"


class CurriculumSource(RolloutDataSourceWithBuffer):
    """slime's data source, in the order that the scorer gives."""

    def __init__(self, args):
        super().__init__(args)
        if self.dataset is None:
            raise ValueError("CurriculumSource chooses from --prompt-data; expected it, and --rollout-global-dataset.")
        for sample in self.dataset.samples:
            sample.metadata[KEY] = str(sample.metadata.get(KEY) or stable_id(sample.prompt, sample.label))
        self.pool = {sample.metadata[KEY]: sample for sample in self.dataset.samples}
        self.link = PassRateLink(PassRateSettings.from_environment(), list(self.pool))
        self.rollouts = 0  # behind the run: slime updates the policy once a rollout

    def get_samples(self, num_samples: int):
        samples = self._get_samples_from_buffer(num_samples)
        missing = num_samples - len(samples)
        return samples + self._chosen(missing) if missing else samples

    def _chosen(self, count: int):
        """Groups of the chosen prompts, made by slime as those of the next `count` rows of its dataset."""
        rows = self.dataset.samples
        self.dataset.samples = [self.pool[name] for name in self.link.next(count, self.rollouts)]
        self.sample_offset = 0
        try:
            return super(RolloutDataSourceWithBuffer, self).get_samples(count)
        finally:
            self.dataset.samples, self.sample_offset = rows, 0

    def observe(self, args: Any, groups: list) -> None:
        """Tell the scorer the rewards of a rollout."""
        rewards: dict[str, list[float]] = {}
        for sample in flat(groups):
            if sample.reward is not None:
                rewards.setdefault(sample.metadata[KEY], []).append(float(sample.get_reward_value(args)))
        self.link.observe(rewards, self.rollouts)
        self.rollouts += 1

    def save(self, rollout_id):
        self.metadata["gradalign"] = {"rollouts": self.rollouts, "link": self.link.state_dict()}
        super().save(rollout_id)

    def load(self, rollout_id=None):
        super().load(rollout_id)
        kept = self.metadata.get("gradalign")
        if kept:
            self.rollouts = kept["rollouts"]
            self.link.load_state_dict(kept["link"])


def flat(groups: Any) -> Iterator[Any]:
    """The samples of groups, also of rollouts that fanned out into several."""
    for each in groups:
        if isinstance(each, list):
            yield from flat(each)
        else:
            yield each


def report(args: Any, all_samples: list, data_source: Callable) -> None:
    """What `--rollout-all-samples-process-path` names; slime hands on the source's bound `get_samples`."""
    source = getattr(data_source, "__self__", data_source)
    if not isinstance(source, CurriculumSource):
        raise TypeError(f"report got {source!r:.80}; it goes with --data-source-path slime_source.CurriculumSource.")
    source.observe(args, all_samples)
