"""What MkDocs asks us for while it builds the site (`hooks` of mkdocs.yml).

The pages are plain Markdown that a code host shows too, with links relative to the file. The site takes some pages from
outside docs/, makes those of the Python API, and so has to set every link that leaves docs/ anew.
"""

from __future__ import annotations

import os
import posixpath
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files

__all__ = ["on_files", "on_page_markdown", "with_links"]

ROOT = Path(__file__).parents[1]
BRANCH = os.environ.get("REPO_BRANCH", "main")

# Files outside docs/ that are pages of the site: path in the repository -> path in the site.
TAKEN = {
    "proto/README.md": "wire.md",
    "deploy/helm/gradalign/README.md": "helm-chart.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "SECURITY.md": "reporting.md",
}
# Pages made from docstrings: path in the site -> module, whose `__all__` is shown.
MODULES = {
    "python/gradalign.md": "gradalign",
    "python/sketch.md": "gradalign.sketch",
    "python/forward.md": "gradalign.forward",
    "python/trl.md": "gradalign_trainer.adapters.trl",
    "python/verl.md": "gradalign_trainer.adapters.verl",
    "python/adapters.md": "gradalign_trainer.adapters.base",
}
_CODE_OR_LINK = re.compile(
    r"(?P<code>^```.*?^```$|`[^`\n]+`)|(?P<image>!?)\[(?P<text>(?:[^\[\]]|\[[^\]]*\])*)\]\((?P<target>[^()\s]+)\)",
    re.DOTALL | re.MULTILINE,
)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that do not lie in docs/."""
    from mkdocs.structure.files import File

    for path, page in TAKEN.items():
        files.append(File.generated(config, page, content=(ROOT / path).read_text(encoding="utf-8")))
    for page, module in MODULES.items():
        files.append(File.generated(config, page, content=f"# `{module}`\n\n::: {module}\n"))
    return files


def on_page_markdown(markdown: str, page: Any, config: MkDocsConfig, **_: Any) -> str:
    """Set links for the site, and name the file of a code block where the page names one behind the language."""
    linked = with_links(markdown, page.file.src_uri, config.repo_url or "")
    return re.sub(r"^```(\w+) ([\w./-]+)$", r'```\1 title="\2"', linked, flags=re.MULTILINE)


def with_links(markdown: str, page: str, repo_url: str) -> str:
    """The text of a page with the links that the site needs.

    Args:
        markdown: as the file has it, with links relative to the file.
        page: its path in the site.
        repo_url: links to files that are no pages of the site lead there; empty: they become the file's path.
    """
    origin = next((path for path, taken in TAKEN.items() if taken == page), f"docs/{page}")

    def set_anew(found: re.Match[str]) -> str:
        target = found["target"]
        if found["code"] or re.match(r"[a-z][a-z+.-]*:|#", target):
            return found[0]
        path, _, anchor = target.partition("#")
        place = posixpath.normpath(posixpath.join(posixpath.dirname(origin), path))
        in_site = TAKEN.get(place) or _in_docs(place)
        if in_site:
            link = posixpath.relpath(in_site, posixpath.dirname(page) or ".")
            return f"{found['image']}[{found['text']}]({link}{'#' + anchor if anchor else ''})"
        return _to_repository(found["text"], place, anchor, repo_url)

    return _CODE_OR_LINK.sub(set_anew, markdown)


def _in_docs(place: str) -> str | None:
    """The path in the site of a file under docs/; one that is not there too, for MkDocs to complain about."""
    return place.removeprefix("docs/") if place.startswith("docs/") and not (ROOT / place).is_dir() else None


def _to_repository(text: str, place: str, anchor: str, repo_url: str) -> str:
    if not (ROOT / place).exists():
        return f"[{text}]({place})"  # MkDocs knows no such page, and says so
    if repo_url:
        kind = "tree" if (ROOT / place).is_dir() else "blob"
        return f"[{text}]({repo_url.rstrip('/')}/{kind}/{BRANCH}/{place}{'#' + anchor if anchor else ''})"
    return f"`{place}`" if text.strip("`") in place else f"{text} (`{place}`)"
