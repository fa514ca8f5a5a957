"""Runs the code blocks of a Markdown page in order, as a reader with a shell and a Python beside it would.

python tests/support/pageblocks.py docs/api.md http://127.0.0.1:8000=URL...

writes the replies into the page anew, from scorers at the URLs that stand for those of the page.
"""

import ast
import contextlib
import io
import itertools
import json
import re
import subprocess
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path

FENCED = re.compile(r"^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
VARYING = {"at", "created_at", "updated_at", "uptime_seconds", "version", "device"}
END = "--end-of-block--"


@dataclass
class Block:
    """A fenced block of a page: what to run, and the reply printed right below it, if there is one."""

    language: str
    code: str
    line: int
    printed: str | None
    place: tuple[int, int] | None


def blocks_of(text, *languages):
    """The blocks of a page in the given languages, in order."""
    found = list(FENCED.finditer(text))
    below = {}
    for first, second in itertools.pairwise(found):
        if second[1] in ("json", "text") and not text[first.end() : second.start()].strip():
            below[first.start()] = second
    return [
        Block(
            match[1], match[2], text.count("\n", 0, match.start()) + 1,
            reply[2] if (reply := below.get(match.start())) else None, reply.span(2) if reply else None,
        )
        for match in found if match[1] in languages
    ]  # fmt: skip


class Reader:
    """A shell and a Python that keep their variables from block to block.

    Args:
        addresses: what stands for an address of the page.
        folder: the shell's working directory.
        scope: names that the Python begins with.
    """

    def __init__(self, addresses, folder, **scope):
        self.addresses, self.scope = addresses, scope
        self.shell = subprocess.Popen(
            ["sh"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=folder
        )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.shell.stdin.close()
        self.shell.wait(timeout=20)
        self.shell.stdout.close()

    def run(self, block):
        """What the block prints."""
        code = block.code
        for printed, real in self.addresses.items():
            code = code.replace(printed, real)
        out = self._python(code) if block.language == "python" else self._shell(code)
        for printed, real in self.addresses.items():
            out = out.replace(real, printed)
        return out.strip()

    def _python(self, code):
        with contextlib.redirect_stdout(io.StringIO()) as out:
            exec(compile(ast.parse(code), "<page>", "exec"), self.scope)
        return out.getvalue()

    def _shell(self, code):
        self.shell.stdin.write(f"{code}\necho; echo {END}\n")
        self.shell.stdin.flush()
        lines = []
        for line in self.shell.stdout:
            if line.strip() == END:
                return "".join(lines)
            lines.append(line)
        raise AssertionError(f"the shell ended: {''.join(lines)}")


def values_in(text):
    """The JSON values of a reply, or its lines where it is none."""
    decoder, found, rest = json.JSONDecoder(), [], " ".join(line.strip() for line in text.strip().splitlines())
    try:
        while rest:
            value, end = decoder.raw_decode(rest)
            found.append(value)
            rest = rest[end:].lstrip()
    except ValueError:
        return text.strip().splitlines()
    return found


def without_varying(value):
    """The same, with what differs from run to run taken out and numbers rounded."""
    if isinstance(value, dict):
        return {key: "varies" if key in VARYING else without_varying(item) for key, item in value.items()}
    if isinstance(value, list):
        return [without_varying(item) for item in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value


def pretty(reply):
    """A reply as the page shows it."""
    values = values_in(reply)
    if not all(isinstance(value, dict | list) for value in values):
        return reply.strip() + "\n"
    rounded = [json.dumps(_short(value)) for value in values]
    return "".join("\n".join(textwrap.wrap(text, 118, break_long_words=False, break_on_hyphens=False)) + "\n"
                   for text in rounded)  # fmt: skip


def _short(value):
    if isinstance(value, dict):
        return {key: _short(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_short(item) for item in value]
    return round(value, 6) if isinstance(value, float) else value


def rewrite(path, addresses):
    """Put the replies of now into a page."""
    text = path.read_text()
    shift = 0
    with Reader(addresses, "/tmp") as reader:
        for block in blocks_of(text, "sh", "python"):
            reply = reader.run(block)
            if block.place:
                begin, end = (at + shift for at in block.place)
                path_text = pretty(reply)
                shift += len(path_text) - (end - begin)
                text = text[:begin] + path_text + text[end:]
    path.write_text(text)


if __name__ == "__main__":
    rewrite(Path(sys.argv[1]), dict(pair.split("=", 1) for pair in sys.argv[2:]))
