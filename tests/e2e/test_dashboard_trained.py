"""The dashboard in a real browser, beside a trainer that is at work."""

import os
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
from browserkit import BROWSES, SIZES, number, table, tile, wait_for_round, wait_past_round

from gradalign import Client

FOLDER = os.environ.get("GRADALIGN_SCREENSHOTS")  # to make those of docs/ anew
CONFIG = Path(__file__).parents[2] / "services/trainer/configs/demo-inverted.toml"

pytestmark = BROWSES


@contextmanager
def trained(url, run_id, output, *changes):
    """A `gradalign train` of the demo's `inverted`, as a process of its own, under way; it must end well."""
    settings = [f"scorer.url={url}", f"run_id={run_id}", f"output={output}", *changes]
    command = [sys.executable, "-m", "gradalign", "train", str(CONFIG), "--quiet"]
    with (output.parent / f"{run_id}.log").open("w+b") as log:
        process = subprocess.Popen(
            [*command, *(word for setting in settings for word in ("--set", setting))], stdout=log, stderr=log
        )
        try:
            yield process
            status = process.wait(timeout=500)
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
        log.seek(0)
        assert status == 0, log.read().decode()


@pytest.mark.parametrize("size", ["desktop", pytest.param("phone", marks=pytest.mark.long)])
def test_a_trainer_is_watched_while_it_trains(open_page, scorer, base, run_id, tmp_path, size):
    page = open_page(size, color_scheme="dark" if size == "phone" else "light")
    page.goto(f"{scorer.url}/")
    with trained(scorer.url, run_id, tmp_path / "run", f"model.path={base}", "rounds=12") as process:
        page.set_default_timeout(120_000)
        page.get_by_role("link", name=run_id).click()  # by itself it appears, with the first request
        wait_past_round(page, 1)
        assert process.poll() is None  # the page is ahead of the trainer's end
        opener = page.locator("[data-part=best] button").first
        opener.click()
        dialog = page.get_by_role("dialog")
        dialog.locator("table").wait_for()
        page.keyboard.press("Escape")
        page.locator("#figure-alignment summary").click()
        page.locator("#figure-alignment tbody tr").first.wait_for()
        wait_past_round(page, 4)
        assert process.poll() is None
    with Client(scorer.url, run_id=run_id) as client:
        state, rounds, outline = client.run(), client.rounds(limit=1000), client.outline()
        wait_for_round(page, rounds[-1].round)
        scores = [record for record in rounds if record.kind == "score"]
        assert len(scores) == 12
        age = state.policy_version - state.validation_policy_version
        wanted = {
            "policy version": str(state.policy_version),
            "alignment, median": number(scores[-1].summary["alignment_quantiles"][3]),
            "validation age": str(age),
            "coherence": number(state.coherence),
            "reliability": number(state.reliability),
            "problems": f"{state.problems:,}",
        }
        settled = time.monotonic() + 120  # the state is asked for less often than rounds come
        while (shown := {name: tile(page, name) for name in wanted}) != wanted:
            assert time.monotonic() < settled, (shown, wanted)
            time.sleep(0.2)
        assert page.locator("[data-part=warnings] li").all_inner_texts() == [w.message for w in state.warnings]
        for part, ends in (("best", outline.best), ("worst", outline.worst)):
            shown = [[row.problem_id, number(row.alignment)] for row in ends]
            deadline = time.monotonic() + 120
            while [row[:2] for row in table(page, part)] != shown:
                assert time.monotonic() < deadline, (table(page, part), shown)
                time.sleep(0.2)
    figures = page.locator("main figure").all()
    assert len(figures) == 10
    for figure in figures:
        assert figure.locator("canvas").count() == 1, figure.inner_text()
    assert page.evaluate("document.documentElement.scrollWidth") == SIZES[size][0]


@pytest.mark.skipif(FOLDER is None, reason="GRADALIGN_SCREENSHOTS names the folder to write them to")
def test_screenshots(open_page, start_scorer, tmp_path):
    """The demo's run of `inverted` by alignment, all of it, at the end of its twenty rounds."""
    process = start_scorer(redis_url=None)
    run = "demo-inverted-cosine"
    pages = {}
    for size, scheme in (("desktop", "light"), ("phone", "dark")):
        page = pages[size] = open_page(size, color_scheme=scheme)
        page.goto(f"{process.url}/")
    with trained(process.url, run, tmp_path / "run"):
        for page in pages.values():
            page.set_default_timeout(300_000)
            page.get_by_role("link", name=run).click()
    for size, page in pages.items():
        wait_for_round(page, 40)
        page.wait_for_timeout(6000)  # the ranking is asked for less often than rounds come
        path = Path(FOLDER) / f"dashboard-{size}.png"
        height = {"desktop": 1288, "phone": 1192}[size]
        page.screenshot(path=path, full_page=True, clip={"x": 0, "y": 0, "width": SIZES[size][0], "height": height})
        assert path.stat().st_size < 300_000
