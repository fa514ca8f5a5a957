"""The TRL example ends on two processes where it does on one: what is left is the order in which sums are added up."""

import pytest
import trlends

pytestmark = [pytest.mark.slow, pytest.mark.long]
SHORT = ["--steps", "4", "--base-steps", "200"]
MEASURED = {"capture": 1e-5, "forward": 1e-2}
"""How far alignments may be apart: products are differences of two passes, which show more of the rounding."""


@pytest.mark.parametrize("alignment", ["capture", "forward"])
def test_sharded_and_replicated_runs_end_where_one_process_does(tmp_path, alignment):
    def ended(engine):
        return trlends.ended(engine, tmp_path, [*SHORT, "--alignment", alignment, "--cache", str(tmp_path / "models")])

    one = ended("one")
    rounding = trlends.apart(one, ended("halves"))
    assert 0 < rounding["weights"] < 1e-4 < one["moved"]
    for engine in ("ddp", "fsdp2"):
        found = trlends.apart(one, ended(engine))
        assert found["draws"] < 0.01  # a token between two that are as likely
        assert found["reward"] == 0
        assert found["weights"] < max(10 * rounding["weights"], 1e-6)
        assert found["gradalign/alignment"] < MEASURED[alignment]
        assert found["gradalign/weight"] < MEASURED[alignment]
