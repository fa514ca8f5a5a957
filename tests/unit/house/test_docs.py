"""What the pages say about the code is so: links, messages, settings."""

import re
from functools import cache
from pathlib import Path

import pytest

from gradalign_scorer.settings import Settings

ROOT = Path(__file__).parents[3]
PAGES = sorted(
    path for pattern in ("*.md", "docs/*.md", "proto/*.md", "deploy/**/*.md") for path in ROOT.glob(pattern)
)  # fmt: skip
SOURCES = [ROOT / "proto/gradalign", ROOT / "services"]
TROUBLE = (ROOT / "docs/troubleshooting.md").read_text()


def prose(page):
    return re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)


@cache
def anchors(page):
    """The anchors of a page's headings, as code hosts make them."""
    found = set()
    for heading in re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE):
        text = re.sub(r"[^\w\- ]", "", re.sub(r"\[(.*?)\]\(.*?\)", r"\1", heading).strip().lower())
        found.add(text.replace(" ", "-"))
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_somewhere(page):
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{page.name}: {link}"
        if anchor and target.suffix == ".md":
            assert anchor in anchors(target), f"{page.name}: {link}; {target.name} has {sorted(anchors(target))}"


def test_the_index_names_every_page():
    index = (ROOT / "docs/README.md").read_text()
    for page in (ROOT / "docs").glob("*.md"):
        assert page.name == "README.md" or f"]({page.name}" in index, page.name


def test_every_setting_is_in_the_table_of_operations():
    rows = re.findall(
        r"^\| `(GRADALIGN_[A-Z_]+)` \| ([^|]*) \|", (ROOT / "docs/operations.md").read_text(), re.MULTILINE
    )
    assert [name for name, _ in rows] == [f"GRADALIGN_{name.upper()}" for name in Settings.model_fields]
    for (name, default), field in zip(rows, Settings.model_fields.values(), strict=True):
        if isinstance(field.default, str | int | float) and not isinstance(field.default, bool):
            shown = re.sub(r"(\d+) MiB", lambda found: str(int(found[1]) << 20), default.strip().strip("`"))
            assert shown == f"{field.default:g}" if isinstance(field.default, float) else str(field.default), name


@cache
def code():
    """All sources in one line each, string pieces joined as the compiler joins them."""
    texts = [path.read_text() for folder in SOURCES for path in folder.rglob("*.py")]
    texts += [path.read_text() for folder in SOURCES for path in folder.rglob("*.js")]
    return re.sub(r'"\s*\n?\s*f?"', "", "\n".join(texts))


def quoted():
    return re.findall(r"^### `(.+)`$", TROUBLE, re.MULTILINE)


@pytest.mark.parametrize("message", quoted())
def test_every_quoted_message_is_the_codes(message):
    """`…` in a message stands for what varies; what is between must follow one another within one message."""
    parts = [re.escape(part.strip()) for part in message.split("…") if part.strip()]
    found = re.search(r"[^\n]{0,200}?".join(parts), code())
    assert found, message


def test_there_are_symptoms_enough():
    assert len(quoted()) >= 25
    assert len(set(quoted())) == len(quoted())
