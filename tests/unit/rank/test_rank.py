"""The parts of `gradalign rank`: reading responses, rules, the ledger, the order."""

from decimal import Decimal

import numpy as np
import pytest
import torch

from gradalign.errors import GradAlignError
from gradalign_trainer.rank.steps.gradient import Row, Rule
from gradalign_trainer.rank.steps.ledger import Ledger, Measurement
from gradalign_trainer.rank.steps.responses import parse_group_id, sort_key, wire_id
from gradalign_trainer.rank.steps.scoring import rank_order, spearman


@pytest.mark.parametrize(
    ("given", "read"),
    [
        (3, 3),
        ("3", 3),
        ("a-3", "a-3"),
        (True, None),
        (-1, None),
        ("", None),
        (None, None),
        (1.5, None),
        (0.0, 0),
        (7.0, 7),
        ("0", 0),
        (Decimal("4"), 4),
        (np.int64(0), 0),
        (float("nan"), None),
        (-0.0, 0),
        (1e13, None),
        ("9" * 5000, None),
        ([], None),
    ],
)
def test_ids_are_numbers_where_they_can_be(given, read):
    assert parse_group_id(given) == read


def test_ties_break_by_number_and_not_by_its_spelling():
    ids = [9, 10, 100, "a"]
    assert sorted(["a", 100, 9, 10], key=sort_key) == ids
    assert rank_order({wire_id(group): 0.0 for group in ids}) == [wire_id(group) for group in ids]


def row(tokens, advantage=1.0):
    return Row(tuple(range(tokens + 2)), 2, (True,) * tokens, advantage)


def test_the_group_s_rule_divides_by_the_tokens_of_the_group_whatever_the_parts():
    rows = [row(2), row(3, -1.0), row(5)]
    for size in (1, 2, 3):
        pieces = list(Rule("group", rows_per_backward=size).pieces(rows))
        assert [piece.scale for piece in pieces] == [1 / 10] * len(pieces)
        assert sum((piece.rows for piece in pieces), ()) == tuple(rows)
    assert Rule("group").loss(rows) == pytest.approx(-(2 - 3 + 5) / 10)


def test_the_reference_s_rule_deals_to_ranks_by_the_place_in_the_file():
    rows = [row(1), row(2), row(3), row(4), row(5)]
    pieces = list(Rule("reference", mini_batch=2, ranks=2).pieces(rows, offset=3))
    dealt = [[each.tokens for each in piece.rows] for piece in pieces]
    assert dealt == [[2, 4], [1, 3], [5]]  # places 3 to 7: the even ones are the first rank's
    assert [piece.scale for piece in pieces] == [8 / (6 * 2), 8 / (4 * 2), 8 / (5 * 2)]


def test_a_ledger_that_was_cut_short_keeps_its_whole_lines(tmp_path):
    ledger = Ledger(tmp_path / "p", {"dim": 4}, 4, resume=False)
    for number in range(3):
        ledger.add(Measurement(f"train/{number}", 0.5, number, 2.0), torch.full((4,), float(number)))
    ledger.close()
    with (tmp_path / "p/groups.jsonl").open("ab") as lines, (tmp_path / "p/sketches.bin").open("ab") as rows:
        lines.write(b'{"key": "tra')
        rows.write(b"12345")
    again = Ledger(tmp_path / "p", {"dim": 4}, 4, resume=True)
    again.add(Measurement("train/3", 0.5), torch.full((4,), 3.0))
    again.close()
    last = Ledger(tmp_path / "p", {"dim": 4}, 4, resume=True)
    assert list(last) == [f"train/{number}" for number in range(4)]
    assert [last[key][1].tolist() for key in last] == [[float(number)] * 4 for number in range(4)]
    last.close()


def test_a_ledger_of_other_settings_says_which(tmp_path):
    Ledger(tmp_path / "p", {"dim": 4, "rule": ["group"]}, 4, resume=False).close()
    with pytest.raises(GradAlignError, match=r"rule was \['group'\] and is \['reference', 8, 1\]"):
        Ledger(tmp_path / "p", {"dim": 4, "rule": ["reference", 8, 1]}, 4, resume=True)


def test_spearman_looks_at_ranks_only():
    values = np.array([3.0, -1.0, 0.5, 2.0])
    assert spearman(values, values**3) == pytest.approx(1)
    assert spearman(values, -values) == pytest.approx(-1)
    assert np.isnan(spearman(values[:2], values[:2]))
