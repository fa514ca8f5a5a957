"""The report of a grid: its files, and the page that takes its tables."""

import pytest

from gradalign import GradAlignError
from gradalign_trainer.reproduce.grid.cells import Cell
from gradalign_trainer.reproduce.grid.methods import METHODS
from gradalign_trainer.reproduce.grid.results import Result, ResultsLog
from gradalign_trainer.reproduce.report.pictures import STYLES
from gradalign_trainer.reproduce.report.report import BEGIN, END, write_report

CURVE = {"round": [0, 30], "updates": [0, 60], "rollouts": [0, 61440], "trained_good": [None, 0.5]}


@pytest.fixture
def folder(tmp_path):
    """Results of two methods and two seeds, equal updates alone."""
    with ResultsLog(tmp_path) as log:
        for method, rate in (("random", 0.5), ("cosine", 0.75)):
            for seed in (0, 1):
                log.add(Result(Cell(seed, "coin", method), "d", False, {**CURVE, "pass_rate": [0.25, rate]}))
    return tmp_path


def test_a_page_gets_the_tables_between_its_marks_and_nothing_else_changes(folder):
    page = folder / "page.md"
    page.write_text(f"before\n\n{BEGIN}stale\n{END}\n\nafter\n")
    for _ in range(2):
        report, *pictures = write_report(folder, page)
        text = page.read_text()
        assert text.startswith(f"before\n\n{BEGIN}\n")
        assert text.endswith(f"\n{END}\n\nafter\n")
        assert "stale" not in text
        tables = text.partition(BEGIN)[2].partition(END)[0].strip()
        least = "random: +.250 [+.250, +.250] ▲"
        assert f"| coin | .750 (2) | {least} | {least} |" in tables
        assert f"| coin | `cosine` | .750 (2) | {least} |" in tables
        assert "### coin" in tables
        assert tables in report.read_text()
    assert all(picture.exists() for picture in pictures)


@pytest.mark.parametrize("text", [None, "no marks", f"{END}\n{BEGIN}"])
def test_a_page_without_its_marks_is_left_alone(folder, text):
    page = folder / "page.md"
    if text is not None:
        page.write_text(text)
    with pytest.raises(GradAlignError, match=r"page\.md has no place for the tables; expected the lines"):
        write_report(folder, page)
    assert not page.exists() or page.read_text() == text


def test_a_folder_without_results_is_told_of(tmp_path):
    with pytest.raises(GradAlignError, match="holds no results; expected a folder that gradalign reproduce has run in"):
        write_report(tmp_path)


def test_methods_with_a_line_of_their_own_are_methods_and_no_two_lines_look_alike():
    assert set(STYLES) <= set(METHODS)
    assert len(set(STYLES.values())) == len(STYLES)
