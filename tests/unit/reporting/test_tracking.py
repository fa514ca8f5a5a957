"""Metrics of a run: one line a round, whole after any stop, and the same whether or not the run was resumed."""

import importlib.util
import json
import math

import pytest

from gradalign_trainer.records import RoundReport
from gradalign_trainer.reporting.tracking import MetricsError, MetricsLog, read_metrics


def played(folder, rounds, **settings):
    with MetricsLog(folder, **settings) as log:
        for number in rounds:
            log.write(number, {"reward": number / 10})


def rounds_of(folder):
    return [row["round"] for row in read_metrics(folder)]


def test_a_line_holds_the_round_the_time_and_the_figures(tmp_path):
    report = RoundReport(round_number=3, policy_version=12, pass_rate=0.25, figures={"reward": 0.5})
    with MetricsLog(tmp_path / "deep" / "run") as log:
        log.report(report)
        log.report(RoundReport(round_number=4, policy_version=16, pass_rate=None, figures={}))
    first, second = read_metrics(tmp_path / "deep" / "run")
    assert first.pop("time") == pytest.approx(second.pop("time"), abs=60)
    assert first == {"round": 3, "policy_version": 12, "pass_rate": 0.25, "reward": 0.5}
    assert second == {"round": 4, "policy_version": 16}


def test_a_line_can_be_read_as_soon_as_it_is_written(tmp_path):
    with MetricsLog(tmp_path) as log:
        log.write(1, {})
        assert rounds_of(tmp_path) == [1]


def test_what_json_lacks_is_null(tmp_path):
    with MetricsLog(tmp_path) as log:
        log.write(1, {"a": math.nan, "b": math.inf, "c": None, "d": "text"})
    text = (tmp_path / "metrics.jsonl").read_text()
    row = json.loads(text, parse_constant=pytest.fail)
    assert [row[name] for name in "abcd"] == [None, None, None, "text"]


def test_a_resumed_run_drops_what_came_after_its_checkpoint(tmp_path):
    played(tmp_path, range(6))
    played(tmp_path, [3, 4], resume_round=2)
    assert rounds_of(tmp_path) == [0, 1, 2, 3, 4]


def test_a_run_resumed_before_its_first_checkpoint_begins_anew(tmp_path):
    played(tmp_path, range(3))
    played(tmp_path, [0, 1], resume_round=0)
    assert rounds_of(tmp_path) == [0, 1]


def test_a_folder_with_metrics_is_refused_to_a_new_run_and_left_alone(tmp_path):
    played(tmp_path, range(3))
    with pytest.raises(MetricsError, match=r"holds the metrics of an earlier run.*--resume"):
        MetricsLog(tmp_path)
    assert rounds_of(tmp_path) == [0, 1, 2]


def test_an_empty_file_of_a_run_that_never_began_is_no_hindrance(tmp_path):
    (tmp_path / "metrics.jsonl").touch()
    played(tmp_path, [0])
    assert rounds_of(tmp_path) == [0]


def test_a_torn_last_line_is_left_out_and_replaced(tmp_path):
    played(tmp_path, range(3))
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(path.read_bytes()[:-9])
    assert rounds_of(tmp_path) == [0, 1]
    played(tmp_path, [2, 3], resume_round=1)
    assert rounds_of(tmp_path) == [0, 1, 2, 3]
    assert path.read_bytes().endswith(b"\n")


def test_a_last_line_that_lost_its_newline_alone_is_kept_whole(tmp_path):
    played(tmp_path, range(3))
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(path.read_bytes()[:-1])
    played(tmp_path, [3], resume_round=2)
    assert rounds_of(tmp_path) == [0, 1, 2, 3]


@pytest.mark.parametrize("damage", ["{", "[1]", "5", '{"reward": 1}', '{"round": null}', '{"round": Infinity}', "\x00"])
def test_a_damaged_line_is_named_and_nothing_is_cut(tmp_path, damage):
    played(tmp_path, range(3))
    path = tmp_path / "metrics.jsonl"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], damage, *lines[1:], ""]))
    before = path.read_bytes()
    with pytest.raises(MetricsError, match=r"metrics\.jsonl:2 is no line of metrics.*remove the line"):
        read_metrics(tmp_path)
    with pytest.raises(MetricsError, match=r"metrics\.jsonl:2"):
        MetricsLog(tmp_path, resume_round=1)
    assert path.read_bytes() == before


def test_a_damaged_last_line_that_was_written_whole_is_named_too(tmp_path):
    played(tmp_path, range(2))
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"round": \n')
    with pytest.raises(MetricsError, match=r"metrics\.jsonl:3 is no line of metrics"):
        read_metrics(tmp_path)


def test_no_metrics_at_all_is_said(tmp_path):
    with pytest.raises(MetricsError, match=r"metrics\.jsonl does not exist"):
        read_metrics(tmp_path)


def test_an_unknown_tracker_is_refused(tmp_path):
    with pytest.raises(MetricsError, match="tracker 'tensorbord' is unknown; expected one of tensorboard, wandb"):
        MetricsLog(tmp_path, trackers=["tensorbord"])


@pytest.mark.parametrize("name", ["tensorboard", "wandb"])
def test_a_tracker_that_is_not_installed_is_named(tmp_path, name):
    if importlib.util.find_spec(name) is not None:
        pytest.skip(f"{name} is installed")
    with pytest.raises(MetricsError, match=rf"tracker '{name}' was asked for.*pip install {name}"):
        MetricsLog(tmp_path, trackers=[name])


def test_the_log_follows_a_loop_without_writing_stages(tmp_path):
    with MetricsLog(tmp_path) as log:
        log.stage("rollouts", 5)
        log.advance()
    assert read_metrics(tmp_path) == []
