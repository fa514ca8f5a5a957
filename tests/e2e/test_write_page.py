"""docs/adapters-write.md: its blocks run as printed, and so do the tests that it shows, against a real scorer."""

import contextlib
import io
import random
from pathlib import Path

import pytest
from pageblocks import blocks_of

from gradalign import Client

PAGE = (Path(__file__).parents[2] / "docs/adapters-write.md").read_text()
BLOCKS = blocks_of(PAGE, "python")
SHOWN = ("it_moves_to_what_can_be_learned", "all_rewards_arrive", "a_resumed_run_has_its_curriculum",
         "without_a_scorer_every_problem_comes")  # fmt: skip


@pytest.fixture
def run(scorer, run_id):
    """Runs blocks of the page in one scope, as runs of this test's own; what each prints."""
    random.seed(0)
    scope = {"__name__": "page"}

    def give(blocks):
        printed = []
        for block in blocks:
            code = block.code.replace("http://127.0.0.1:8000", scorer.url)
            for name in ("write-an-adapter", "weights-by-hand"):
                code = code.replace(f'"{name}"', f'"{name}-{run_id}"')
            with contextlib.redirect_stdout(io.StringIO()) as out:
                exec(compile(code, "<page>", "exec"), scope)
            printed.append(out.getvalue().strip())
        return scope, printed

    yield give
    for name in ("trainer", "again", "weights"):
        if name in scope:
            scope[name].link.close()


def test_its_blocks_print_what_they_show(run):
    scope, printed = run(BLOCKS)
    shown = [(block.printed.strip(), out) for block, out in zip(BLOCKS, printed, strict=True) if block.printed]
    assert len(shown) == 2
    assert all(wanted == out for wanted, out in shown)
    assert sum(question.startswith("useful") for question in scope["trainer"].seen) >= 3
    assert scope["trainer"].link.fallbacks == scope["weights"].link.fallbacks == 0


@pytest.mark.parametrize("shown", SHOWN)
def test_the_tests_that_it_shows_pass(run, scorer, run_id, shown):
    scope, _ = run([block for block in BLOCKS if "make serve" not in block.code][:2])
    run(BLOCKS[-1:])
    made = []

    def make(scorer_url=scorer.url):
        settings = scope["PassRateSettings"](scorer_url=scorer_url, run_id=run_id, retries=0)
        made.append(scope["CurriculumTrainer"](scope["questions"], settings))
        return made[-1]

    test = scope[f"test_{shown}"]
    names = test.__code__.co_varnames[: test.__code__.co_argcount]
    with Client(scorer.url, run_id=run_id) as client:
        given = {"make": make, "client": client, "trainer": make() if "trainer" in names else None}
        test(**{name: given[name] for name in names})
    for trainer in made:
        trainer.link.close()


def test_every_shown_test_is_run():
    assert {line[9:].partition("(")[0] for line in BLOCKS[-1].code.splitlines() if line.startswith("def test_")} == set(
        SHOWN
    )
