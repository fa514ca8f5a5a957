"""Reading our own docstrings: what OpenAPI and `--help` say of a field is what its class says."""

from __future__ import annotations

import re

__all__ = ["attribute_texts"]


def attribute_texts(doc: str) -> dict[str, str]:
    """Texts by name of a docstring's Attributes section."""
    section = doc.partition("Attributes:")[2].partition("\n\n")[0]
    entries = re.findall(r"^ {8}(\w[\w, ]*): (.*(?:\n {12}.*)*)", section, re.MULTILINE)
    return {name.strip(): re.sub(r"\s+", " ", text) for names, text in entries for name in names.split(",")}
