"""From what was computed to what is stored and answered: the three say the same."""

import msgpack
import numpy as np
import pytest
from ranking_kit import CPU, rank, request_of, rows_of, unit

from gradalign import Projection, Ranking, RefreshReply, RefreshRequest, Selection, SelectRequest
from gradalign_scorer.ranking.aggregation import aggregate
from gradalign_scorer.ranking.selection import PickRule, StoredScores, pick
from gradalign_scorer.service.outcomes import refresh_commit, score_commit, selection_commit
from gradalign_scorer.store import RunRecord, ValidationRecord

RNG = np.random.default_rng(0)
SKETCHES = RNG.standard_normal((12, 64))
SKETCHES[3] = 0
SKETCHES[5, 1] = np.nan
VECTOR = unit(RNG.standard_normal(64))
RATES = RNG.uniform(0, 1, 12)
VALIDATION = ValidationRecord(7, 2, VECTOR.numpy())


def scored(strategy="cosine", validation=VECTOR, **request):
    """A request, its ranking and its commit."""
    made = request_of(SKETCHES, policy_version=4, **request)
    ranking = rank(SKETCHES, strategy, validation=validation, policy_version=4, **request)
    held = None if validation is None else VALIDATION
    return ranking, score_commit(made, b"digest", strategy, held, ranking)


class TestScore:
    def test_the_reply_is_the_ranking(self):
        ranking, commit = scored(select=4, request_id="r1", epoch=3, pass_rates=RATES)
        reply = Ranking.from_map(msgpack.unpackb(commit.reply))
        assert reply.problem_ids == ranking.ids
        for column in ("priorities", "alignments", "weights", "norms"):
            assert getattr(reply, column) == getattr(ranking, column).tolist(), column
        assert reply.no_signal == ["p3"]
        assert [row.problem_id for row in reply.rejected] == ["p5"]
        assert reply.selected == ranking.ids[:4]
        assert (reply.validation_version, reply.validation_policy_version) == (7, 2)
        assert (reply.policy_version, reply.strategy, reply.request_id) == (4, "cosine", "r1")
        assert reply.reliability == ranking.reliability.value
        assert reply.advised_dim == ranking.reliability.advised_dim

    def test_what_is_stored_is_what_is_answered(self):
        ranking, commit = scored(select=4, request_id="r1", epoch=3, pass_rates=RATES)
        assert (commit.run_id, commit.policy_version, commit.epoch) == ("run", 4, 3)
        assert (commit.request_id, commit.digest) == ("r1", b"digest")
        assert commit.ids == ranking.ids
        assert commit.alignments.tolist() == ranking.alignments.tolist()
        assert commit.priorities.tolist() == ranking.priorities.tolist()
        assert commit.pass_rates.tolist() == ranking.pass_rates.tolist()
        assert [i for i, chosen in zip(commit.ids, commit.selected, strict=True) if chosen] == ranking.ids[:4]
        assert [i for i, has in zip(commit.ids, commit.signal, strict=True) if not has] == ["p3"]
        assert commit.validation_version == 7
        # None keeps the run's strategy: only a request that names one changes it.
        assert commit.strategy is None

    def test_the_round_sums_it_up(self):
        ranking, commit = scored(select=4, pass_rates=RATES)
        record, summary = commit.record, commit.record.summary
        assert (record.kind, record.policy_version, record.validation_version) == ("score", 4, 7)
        assert (record.problems, record.selected) == (11, 4)
        assert (summary["strategy"], summary["no_signal"], summary["rejected"]) == ("cosine", 1, 1)
        wanted = np.quantile(ranking.alignments, [0, 0.1, 0.25, 0.5, 0.75, 0.9, 1])
        assert summary["alignment_quantiles"] == pytest.approx(wanted)
        assert summary["selected_alignment"] == pytest.approx(ranking.alignments[:4].mean())
        assert summary["mean_pass_rate"] == pytest.approx(np.delete(RATES, 5).mean())
        assert summary["reliability"] == ranking.reliability.value
        assert summary.get("advised_dim") == ranking.reliability.advised_dim
        assert summary["validation_age"] == 2
        # 11 problems: a tenth holds 1.1 of them, so the first four stand in the first, first, second and third.
        assert summary["selected_tenths"] == [2, 1, 1, 0, 0, 0, 0, 0, 0, 0]

    @pytest.mark.parametrize(("select", "selected"), [(None, 0), (0, 0), (1, 1), (11, 11), (12, 11), (10**6, 11)])
    def test_no_more_is_selected_than_was_ranked(self, select, selected):
        ranking, commit = scored(select=select)
        assert msgpack.unpackb(commit.reply)["selected"] == ranking.ids[:selected]
        assert commit.selected.sum() == commit.record.selected == selected
        assert ("selected_alignment" in commit.record.summary) == (selected > 0)

    def test_without_a_validation_gradient(self):
        _, commit = scored("random", validation=None)
        reply = msgpack.unpackb(commit.reply)
        absent = ("alignments", "validation_version", "validation_policy_version", "reliability", "advised_dim")
        assert [reply[name] for name in absent] == [None] * 5
        assert np.isnan(commit.alignments).all()
        assert (commit.validation_version, commit.reliability, commit.pass_rates) == (0, None, None)
        assert commit.record.validation_version is None
        assert set(commit.record.summary) == {"strategy", "no_signal", "rejected"}

    def test_where_every_row_was_rejected(self):
        broken = np.full((2, 8), np.nan)
        request = request_of(broken, select=1, pass_rates=[0.1, 0.2])
        ranking = rank(broken, validation=unit(np.ones(8)), pass_rates=[0.1, 0.2])
        commit = score_commit(request, b"", "cosine", VALIDATION, ranking)
        reply = msgpack.unpackb(commit.reply)
        assert (reply["problem_ids"], reply["selected"], len(reply["rejected"])) == ([], [], 2)
        assert (commit.ids, commit.record.problems) == ([], 0)
        assert "alignment_quantiles" not in commit.record.summary
        assert "mean_pass_rate" not in commit.record.summary


def test_a_refresh():
    request = RefreshRequest(
        run_id="run",
        policy_version=4,
        projection=Projection(dim=64, seed=0, parameters="ab" * 32),
        problem_ids=[f"v{i}" for i in range(12)],
        sketches=rows_of(SKETCHES).matrices[0],
        request_id="r2",
        epoch=1,
    )
    gradient = aggregate(rows_of(SKETCHES), "mean", None, CPU)
    commit = refresh_commit(request, b"digest", 8, gradient)
    reply = RefreshReply.from_map(msgpack.unpackb(commit.reply))
    assert (reply.validation_version, reply.problems, reply.coherence) == (8, 10, gradient.coherence)
    assert [row.problem_id for row in reply.rejected] == ["v5"]
    assert (reply.request_id, commit.request_id, commit.epoch, commit.digest) == ("r2", "r2", 1, b"digest")
    assert (commit.validation.version, commit.validation.policy_version) == (8, 4)
    assert commit.validation.vector.tolist() == gradient.vector.tolist()
    assert (commit.problems, commit.coherence) == (10, gradient.coherence)
    record = commit.record
    assert (record.kind, record.problems, record.selected, record.validation_version) == ("refresh", 10, 0, 8)
    assert record.summary == {"coherence": gradient.coherence, "no_signal": 1, "rejected": 1}


@pytest.mark.parametrize(("fields", "version"), [({}, None), ({"validation_version": "3"}, 3)])
def test_a_selection(fields, version):
    scores = StoredScores(["a", "b", "c"], np.array([0.1, np.nan, 0.3]), np.array([0.0, -1, 0]), np.full(3, -1.0))
    request = SelectRequest(run_id="run", policy_version=4, count=3, exploration=0.34, request_id="r3")
    rule = PickRule(policy_version=4, count=3, half_life=16.0, exploration=0.34, cooldown=1, seed=0)
    picks = pick(scores, rule)
    commit = selection_commit(request, b"digest", RunRecord("run", fields), scores, picks)
    reply = Selection.from_map(msgpack.unpackb(commit.reply))
    assert sorted(reply.selected) == ["a", "b", "c"]
    assert commit.ids == reply.selected
    assert reply.priorities[reply.selected.index("b")] is None
    assert reply.priorities[0] == pytest.approx(picks.values[0])
    assert reply.explored == [scores.ids[i] for i in picks.explored]
    assert "b" in reply.explored
    record = commit.record
    assert (record.kind, record.problems, record.selected, record.validation_version) == ("select", 3, 3, version)
    assert record.summary == {"explored": len(reply.explored), "selected_tenths": [1, 0, 0, 0, 0, 1, 0, 0, 0, 0]}
