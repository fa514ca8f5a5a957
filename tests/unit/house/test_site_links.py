"""Links of pages, as the site needs them."""

import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
REPO = "https://code.example/gradalign"


@pytest.fixture(scope="module")
def hook():
    spec = importlib.util.spec_from_file_location("site_hook", ROOT / "scripts/site_hook.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("page", "text", "linked"),
    [
        ("api.md", "[w](../proto/README.md#events)", "[w](wire.md#events)"),
        ("api.md", "[s](security.md#keys) and [t](#here)", "[s](security.md#keys) and [t](#here)"),
        ("changelog.md", "[s](docs/security.md)", "[s](security.md)"),
        ("changelog.md", "![p](docs/demo.png)", "![p](demo.png)"),
        ("wire.md", "[v](vectors/codec.json)", f"[v]({REPO}/blob/main/proto/vectors/codec.json)"),
        ("reproduction.md", "[f](reproduction/)", f"[f]({REPO}/tree/main/docs/reproduction)"),
        ("reproduction/report.md", "![c](curves-updates.png)", "![c](curves-updates.png)"),
        ("reproduction/report.md", "[r](../reproduction.md)", "[r](../reproduction.md)"),
        (
            "api.md",
            "[h](https://a.example/b) [m](mailto:a@b.example)",
            "[h](https://a.example/b) [m](mailto:a@b.example)",
        ),
        ("api.md", "`[c](../LICENSE)` [`x`](../LICENSE)", f"`[c](../LICENSE)` [`x`]({REPO}/blob/main/LICENSE)"),
        ("api.md", "```sh\n[c](../LICENSE)\n```\n", "```sh\n[c](../LICENSE)\n```\n"),
        ("api.md", "[gone](../gone.py)", "[gone](gone.py)"),
    ],
)
def test_a_link_leads_where_the_site_has_it(hook, page, text, linked):
    assert hook.with_links(text, page, REPO) == linked


def test_without_a_repository_files_are_paths(hook):
    text = "see [codec.json](vectors/codec.json) and [the licence](../LICENSE)"
    assert hook.with_links(text, "wire.md", "") == "see `proto/vectors/codec.json` and the licence (`LICENSE`)"


def test_what_is_taken_and_made_is_there(hook):
    assert all((ROOT / path).is_file() for path in hook.TAKEN)
    navigation = (ROOT / "mkdocs.yml").read_text()
    assert all(f": {page}\n" in navigation for page in [*hook.TAKEN.values(), *hook.MODULES])


def test_every_page_is_in_the_navigation():
    navigation = (ROOT / "mkdocs.yml").read_text()
    for page in (ROOT / "docs").rglob("*.md"):
        assert f": {page.relative_to(ROOT / 'docs').as_posix()}\n" in navigation, page.name
