"""Writes the pages that are read off the code: docs/cli.md and docs/settings.md.

    .venv/bin/python scripts/reference.py [--check]

`--check` writes nothing and fails when a page is not what the code says. `tests/unit/test_reference.py` does the same.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import importlib
import re
import sys
from collections.abc import Iterator
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
MADE = "<!-- Made by scripts/reference.py from the code; change the code, then run `make reference`. -->\n"
MIB = 1 << 20

CLI_HEAD = f"""# Commands

{MADE}
`gradalign COMMAND`; `gradalign COMMAND --help` says the same in a terminal. `gradalign --version` prints the version.
"""
SETTINGS_HEAD = f"""# Settings

{MADE}
## The scorer

`gradalign serve` takes each setting as a flag or as an environment variable; the flag goes first.

"""
CLIENTS = """
## Clients

| variable | meaning |
|---|---|
| `GRADALIGN_URL` | of the scorer, for `gradalign status` and `gradalign top`. |
| `GRADALIGN_API_KEY` | the key that a client sends. |
| `GRADALIGN_CA_FILE` | certificate authority (PEM) that a client trusts. |

## The reference trainer

`gradalign train` reads these from a TOML file, and `--set KEY=VALUE` overrides one. [Data](data.md) describes the sources.
"""


def main() -> int:
    """Write or check the pages; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; fail when a page is not up to date")
    check = parser.parse_args().check
    stale = False
    for path, text in pages().items():
        before = path.read_text(encoding="utf-8") if path.exists() else ""
        if check and before != text:
            stale = True
            sys.stdout.writelines(difflib.unified_diff(before.splitlines(True), text.splitlines(True), "page", "code"))
        elif not check:
            path.write_text(text, encoding="utf-8")
    if stale:
        sys.stderr.write("pages differ from the code; run: make reference\n")
    return int(stale)


def pages() -> dict[Path, str]:
    """The text of each page by its path."""
    return {ROOT / "docs/cli.md": cli_page(), ROOT / "docs/settings.md": settings_page()}


def cli_page() -> str:
    """A section for each console command, with its arguments."""
    parts = [CLI_HEAD]
    for point in sorted(entry_points(group="gradalign.commands"), key=lambda point: point.name):
        command = point.load()()
        parser = argparse.ArgumentParser(prog=f"gradalign {point.name}", add_help=False)
        command.configure(parser)
        actions = parser._actions
        names = [_argument(action) for action in actions if not action.option_strings]
        names += [_flag(action) for action in actions if action.option_strings and action.required]
        optional = any(action.option_strings and not action.required for action in actions)
        synopsis = " ".join([f"gradalign {point.name}", *(["[options]"] if optional else []), *names])
        rows = [f"| `{_flag(action)}` | {_help(action)} |" for action in actions]
        parts.append(
            f"\n## gradalign {point.name}\n\n{_sentence(command.help)}\n\n    {synopsis}\n\n"
            "| argument | meaning |\n|---|---|\n" + "\n".join(rows) + "\n"
        )
    return "".join(parts)


def _argument(action: argparse.Action) -> str:
    name = action.metavar if isinstance(action.metavar, str) else action.dest.upper()
    return f"[{name}]" if action.nargs == "?" else name


def _flag(action: argparse.Action) -> str:
    if not action.option_strings:
        return _argument(action).strip("[]")
    if action.nargs == 0:
        return action.option_strings[-1]
    metavar = "VALUE" if action.choices else action.metavar or action.dest.upper()
    many = " ..." if action.nargs in ("+", "*") else ""
    return f"{action.option_strings[-1]} {metavar}{many}"


def _help(action: argparse.Action) -> str:
    text = _ended((action.help or "").replace("%%", "%"))
    if action.choices:
        text += " One of " + ", ".join(f"`{choice}`" for choice in action.choices) + "."
    return _cell(text + (" Required." if action.option_strings and action.required else ""))


def settings_page() -> str:
    """Tables of the scorer's and the trainer's settings."""
    parts = [SETTINGS_HEAD, "| variable | flag | default | meaning |\n|---|---|---|---|\n", *_scorer_rows(), CLIENTS]
    section = None
    for key, default, text in _trainer_settings():
        here = key.rpartition(".")[0]
        if here != section:
            section = here
            parts.append(f"\n### {f'[{here}]' if here else 'At the top of the file'}\n\n")
            parts.append("| key | default | meaning |\n|---|---|---|\n")
        parts.append(f"| `{key.rpartition('.')[2]}` | {default} | {_cell(text)} |\n")
    return "".join(parts)


def _scorer_rows() -> Iterator[str]:
    settings = _class_of("gradalign_scorer", "Settings")
    texts = _attribute_texts(settings)
    for name, field in settings.model_fields.items():
        shown = "`~/.local/share/gradalign`" if name == "data_dir" else _default(field.default, on="on", off="off")
        flag = f"--{name.replace('_', '-')}"
        yield f"| `GRADALIGN_{name.upper()}` | `{flag}` | {shown} | {_cell(_ended(texts[name]))} |\n"


def _trainer_settings() -> list[tuple[str, str, str]]:
    """Key as the file spells it, default and meaning, those at the top of the file first."""
    config = _class_of("gradalign_trainer", "TrainConfig")
    texts = _attribute_texts(config)
    rows = []
    for field in dataclasses.fields(config):
        key = field.metadata.get("key")
        if key == "":  # not for files
            continue
        text = re.sub(r"^\[[\w.]+\] ", "", texts[field.name])
        default = "required" if field.default is dataclasses.MISSING else _default(field.default)
        rows.append((key or field.name, default, _ended(text)))
    sections = list(dict.fromkeys(key.rpartition(".")[0] for key, _, _ in rows))
    return sorted(rows, key=lambda row: sections.index(row[0].rpartition(".")[0]))


def _class_of(package: str, name: str) -> Any:
    """The class of a package that has this name, in whichever module it lies."""
    folder = Path(str(importlib.import_module(package).__file__)).parent
    for path in sorted(folder.rglob("*.py")):
        if re.search(rf"^class {name}\b", path.read_text(encoding="utf-8"), re.MULTILINE):
            module = ".".join((package, *path.relative_to(folder).with_suffix("").parts)).removesuffix(".__init__")
            return getattr(importlib.import_module(module), name)
    raise LookupError(f"no class {name} in {package}; scripts/reference.py looks for it")


def _attribute_texts(documented: Any) -> dict[str, str]:
    """Texts by name of a docstring's Attributes section."""
    section = documented.__doc__.partition("Attributes:")[2].partition("\n\n")[0]
    entries = re.findall(r"^ {8}(\w[\w, ]*): (.*(?:\n {12}.*)*)", section, re.MULTILINE)
    return {name.strip(): re.sub(r"\s+", " ", text) for names, text in entries for name in names.split(",")}


def _default(value: Any, *, on: str = "true", off: str = "false") -> str:
    if value is None or value == ():
        return "none"
    if isinstance(value, bool):
        return on if value else off
    if isinstance(value, int) and value >= MIB and value % MIB == 0:
        return f"{value // MIB} MiB"
    return f"{value:g}" if isinstance(value, float) else str(value) if isinstance(value, int) else f"`{value}`"


def _sentence(text: str) -> str:
    return text[:1].upper() + _ended(text[1:])


def _ended(text: str) -> str:
    return text.rstrip(".") + "." if text else ""


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    sys.exit(main())
