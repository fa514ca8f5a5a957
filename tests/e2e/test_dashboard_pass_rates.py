"""The dashboard on a run of pass rates: no figure of gradients, and what is believed of a problem."""

import pytest
from browserkit import BROWSES, tile, wait_for_round

from gradalign import Client

pytestmark = BROWSES


@pytest.fixture
def client(scorer, run_id):
    with Client(scorer.url, run_id=run_id) as client:
        for version in range(4):
            ids = [f"p{version}", f"q{version}", "always"]
            client.score(ids, pass_rates=[0.5, 0.25, 1.0], rollouts=[8, 8, 8], policy_version=version, discount=1.0)
            client.select(2, policy_version=version)
        yield client


def test_it_shows_what_is_known_of_the_run(open_page, scorer, client):
    page = open_page()
    page.goto(f"{scorer.url}/#/runs/{client.run_id}")
    wait_for_round(page, 8)
    assert "strategy posterior; by pass rates" in page.locator("[data-part=subtitle]").inner_text()
    assert tile(page, "pass rate, mean") == "58%"
    assert tile(page, "no signal") == "33%"
    names = page.locator(".tiles dt").all_inner_texts()
    assert not {"coherence", "validation age", "reliability", "alignment, median"} & set(names)
    shown = {figure.get_attribute("id") for figure in page.locator("figure").all() if figure.is_visible()}
    assert shown == {"figure-tenths", "figure-signal", "figure-staleness", "figure-pace"}


def test_a_problem_tells_what_is_believed_of_it(open_page, scorer, client):
    page = open_page()
    page.goto(f"{scorer.url}/#/runs/{client.run_id}")
    page.get_by_role("button", name="always", exact=True).first.click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_text("believed success rate").wait_for()
    assert client.problem("always").belief == [33.0, 1.0]
    cell = dialog.locator("dl div", has_text="believed success rate").locator("dd")
    assert cell.inner_text() == "97%, Beta(33, 1)"
    assert dialog.locator("figure").count() == 0


def test_the_list_of_runs_has_it(open_page, scorer, client):
    page = open_page()
    page.goto(f"{scorer.url}/")
    page.get_by_role("link", name=client.run_id).wait_for()
