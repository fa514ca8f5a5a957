"""The process behind `MathVerify`: reads `{"answer", "completion"}` as JSON lines, writes `{"right"}`.

It is a process, not a thread, because math-verify's own time limits are signals, which only a main thread may set and
which cannot interrupt a computation inside C; a process can be killed. Run by `math_reward`, not by hand.
"""

from __future__ import annotations

import json
import logging
import os
import re
import resource
import sys
from contextlib import suppress
from decimal import Decimal
from typing import Any

from gradalign_trainer.numerals import numeral

__all__ = ["main"]

MEMORY_LIMIT = 4 << 30  # bytes of address space: 9**9**9 must not take the machine down
LONGEST_QUANTITY = 200  # characters of a number with words around it
LONGEST = 4000  # digits of a number with an exponent
SOFT_LIMIT = 2  # seconds for each of parsing and comparing, math-verify's own


_WORDS = r"(?:[^\W\d_]|[ '.,%/²³()-]|\^\{?[23]\}?)*"
_SIGN = r"(?P<sign>[-+−]?)\s*(?:\\?\$|[€£¥₹])?\s*"
_NUMBER = (
    r"(?P<number>(?:\d+[ ](?=\d+\s*/|\\[dt]?frac))?(?:\d+\s*/\s*\d+|\\[dt]?frac\s*(?:\{\d+\}\s*\{\d+\}|\d\s*\d)"
    r"|\d{1,3}(?:[ ,]\d{3})+(?:\.\d+)?|\d+(?:\.\d+)?|\.\d+)(?:[eE][-+]?\d+)?)"
)
_QUANTITY = re.compile(rf"(?P<before>{_WORDS}?){_SIGN}{_NUMBER}\s*(?P<after>{_WORDS})")
_EXPONENT = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)[eE][-+]?\d+")
_AMBIGUOUS = re.compile(r"[-+]?(?!1[eE])\d+e[-+]\d")
_TEXT = re.compile(r"\\(?:text|textrm|textbf|mathrm|mbox)\s*\{([^{}]*)\}")
_GROUPED = re.compile(r"(?<=\d)\\,(?=\d{3}(?!\d))")
_DATE = re.compile(r"\d{4}-\d{2}-\d{2}")
_SHORT = frozenset(
    re.findall(
        r"\w+",
        "am cm dm ft gb gm hr hz in kb kg km kw lb mb mg mi ml mm ms oz pm rs sq tb yd yr gal mph kph",
    )
)
_SINGLE = frozenset("msghlL")
_NO_UNITS = frozenset(
    re.findall(
        r"\w+",
        "arccos arcsin arctan cos cosh cot csc det exp frac gcd infty infinity lcm lim ln log max min mod pi "
        "sec sin sinh sqrt tan tanh theta alpha beta gamma delta lambda sigma omega phi percent percentage "
        "and or by to times over",
    )
)


def _readings(answer: str) -> list[Any]:
    """What the trusted answer may mean, as math-verify reads it; a completion is right that equals any of it.

    Bare LaTeX and plain numbers are read as if between dollar signs, where plain words would be products of letters: of
    a number with words the number is read too.
    """
    from math_verify import parse

    final = _bare(answer)
    if not final:
        return []
    if _DATE.fullmatch(final):
        return [[final]]  # as text: it is no subtraction
    exponent = _in_digits(final)
    if exponent is not None and not _AMBIGUOUS.fullmatch(final):
        return [parse(f"${exponent}$", parsing_timeout=SOFT_LIMIT)]
    marked = _is_marked(final)
    number = exponent or (_number(final) if not marked or final.count("$") == 1 else None)
    found = [parse(f"${number}$", parsing_timeout=SOFT_LIMIT)] if number else []
    if number is None or not _is_mixed(final):
        whole = [] if marked else parse(f"${final}$", parsing_timeout=SOFT_LIMIT)
        found.append(whole or parse(final, parsing_timeout=SOFT_LIMIT))
    return [reading for reading in found if reading]


def _is_marked(text: str) -> bool:
    return "$" in text.replace("\\$", "") or "\\boxed" in text or "\\(" in text or "\\[" in text


def _bare(answer: str) -> str:
    """The final answer, without what stands around all of it: GSM8K's solution, a box, dollar signs, a `\\text{}`."""
    final = _GROUPED.sub("", answer.rsplit("####", 1)[-1].strip())
    if final.startswith("\\boxed") and (inner := _last_box(final)) is not None and final.endswith(f"{{{inner}}}"):
        final = inner.strip()
    for begin, end in (("$$", "$$"), ("$", "$"), ("\\(", "\\)"), ("\\[", "\\]")):
        inside = final[len(begin) : -len(end)].strip()
        if final.startswith(begin) and final.endswith(end) and inside and not _is_marked(inside):
            final = inside
            break
    whole = _TEXT.fullmatch(final)
    return whole[1].strip() if whole else final


def _last_box(text: str) -> str | None:
    """What stands in the last `\\boxed{}`; None where there is none."""
    start = text.rfind("\\boxed{")
    if start < 0:
        return None
    depth, begin = 0, start + len("\\boxed")
    for at in range(begin, len(text)):
        depth += {"{": 1, "}": -1}.get(text[at], 0)
        if depth == 0:
            return text[begin + 1 : at]
    return None


def _in_digits(text: str) -> str | None:
    """A number with an exponent in digits; None for what is none, or too long to write."""
    if len(text) > LONGEST_QUANTITY or not _EXPONENT.fullmatch(text):
        return None
    number = Decimal(text)
    return numeral(number) if abs(number.adjusted()) < LONGEST else None


def _is_mixed(text: str) -> bool:
    """Whether it is a number and a fraction, `3 1/2`, which the library would multiply, or a number in groups of spaces."""
    found = _quantity(text)
    return found is not None and " " in found["number"]


def _quantity(text: str) -> re.Match[str] | None:
    return _QUANTITY.fullmatch(_TEXT.sub(r" \1 ", text)) if len(text) <= LONGEST_QUANTITY else None


def _number(text: str) -> str | None:
    """The number of a text that is one number with words around it, as LaTeX; None for all else."""
    found = _quantity(text)
    if found is None:
        return None
    number, sign = found["number"], found["sign"].replace("−", "-")
    plain = not found["before"].strip() and not found["after"].strip(" .")
    currency = found.string[found.end("sign") : found.start("number")].strip()
    if plain and not currency and " " not in number:
        return None
    if not plain and not _are_units(
        found["before"], found["after"], glued=found.string[found.end("number") :][:1].isalpha()
    ):
        return None
    number = re.sub(r"^(\d+) +(\d+)\s*/\s*(\d+)$", r"\1\\frac{\2}{\3}", number)
    number = re.sub(r"^(\d+) +(\\[dt]?frac)", r"\1\2", number)
    number = re.sub(r"(?<=\d) (?=\d)", "", number)
    percent = "\\%" if found["after"].lstrip().startswith("%") else ""
    return f"{sign}{_in_digits(number) or number}{percent}"


def _are_units(before: str, after: str, *, glued: bool) -> bool:
    words = re.findall(r"[^\W\d_]+", f"{before} {after}")
    if not words or any(word.lower() in _NO_UNITS for word in words):
        return False
    first = words[len(re.findall(r"[^\W\d_]+", before)) :][:1]
    if glued:
        return bool(first) and (first[0].lower() in _SHORT or len(first[0]) > 3 or first[0].isupper())
    known = [len(word) > 2 or word.lower() in _SHORT or (word.isupper() and len(word) > 1) for word in words]
    return any(known) or words[0] in _SINGLE


def _same_text(answer: str, completion: str) -> bool:
    """Whether the box of a completion holds the trusted answer letter by letter."""
    box = _last_box(completion)
    wanted = _bare(answer).split()
    return box is not None and bool(wanted) and _bare(box).split() == wanted


def _is_right(answer: str, completion: str) -> bool | None:
    """Whether the completion's final answer equals the trusted one; None where the trusted one cannot be read."""
    from math_verify import parse, verify

    if _same_text(answer, completion):
        return True
    readings = _readings(answer)
    if not readings:
        return None
    given = [parse(completion, parsing_timeout=SOFT_LIMIT)]
    box = _last_box(completion)
    said = _bare(completion if box is None else box)
    number = _in_digits(said) or _number(said)
    if number:
        given.append(parse(f"${number}$", parsing_timeout=SOFT_LIMIT))
    return any(verify(gold, read, timeout_seconds=SOFT_LIMIT) for gold in readings for read in given)


def main() -> None:
    """Answer requests until stdin ends."""
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever the parsers print must not mix with the replies
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    limit = MEMORY_LIMIT if hard == resource.RLIM_INFINITY else min(MEMORY_LIMIT, hard)
    resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
    logging.disable(logging.CRITICAL)
    from math_verify.errors import TimeoutException

    with suppress(Exception, TimeoutException):
        _is_right("$(x+1)^2$", "$x^2 + 2x + 1$")  # what sympy loads late must not cost the first answer its time
    replies.write('{"ready": true}\n')
    replies.flush()
    for line in sys.stdin:
        request = json.loads(line)
        try:
            right = _is_right(request["answer"], request["completion"])
        except (Exception, TimeoutException):  # TimeoutException is no Exception; a late signal raises it anywhere
            right = False
        replies.write(json.dumps({"right": right}) + "\n")
        replies.flush()


if __name__ == "__main__":
    main()
