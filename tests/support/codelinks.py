"""Links of pages to lines of code: kept at the line where the named function or class begins.

    python tests/support/codelinks.py docs/architecture.md      # writes the line numbers anew

A link is [`Name.method`](../path/to/file.py#L1); its text names what stands there.
"""

import ast
import re
import sys
from pathlib import Path

LINK = re.compile(r"\[`([\w.]+)(?:\(\))?`\]\(([^)#\s]+\.py)#L\d+\)")


def line_of(path, name):
    """The line on which a function, class or method of a file begins; KeyError where there is none of that name."""
    body = ast.parse(path.read_text()).body
    for part in name.split("."):
        found = [
            node
            for node in body
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and node.name == part
        ]
        if not found:
            raise KeyError(f"{path} has no {name}")
        body = found[-1].body
    return found[-1].lineno


def relinked(page):
    """The page's text with every link at its line."""

    def place(match):
        name, target = match.groups()
        line = line_of((page.parent / target).resolve(), name)
        return re.sub(r"#L\d+\)$", f"#L{line})", match.group(0))

    return LINK.sub(place, page.read_text())


if __name__ == "__main__":
    for argument in sys.argv[1:]:
        Path(argument).write_text(relinked(Path(argument)))
