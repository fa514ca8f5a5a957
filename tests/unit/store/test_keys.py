"""Names of keys: one slot for a run, and no two runs or parts share a key."""

import re

from gradalign_scorer.store.keys import RUNS, RunKeys


def all_keys(run_id):
    keys = RunKeys(run_id)
    return [*keys.parts(), keys.snapshots, keys.reply("q"), keys.reply(None), *keys.snapshot("s")]


def test_every_key_of_a_run_has_its_tag():
    assert {re.search(r"\{(.*?)\}", key).group(1) for key in all_keys("run.1")} == {"run.1"}


def test_keys_are_distinct():
    every = [*all_keys("a"), *all_keys("a.b"), RUNS]
    assert len(set(every)) == len(every)
