"""The process behind `MathVerify`: reads `{"answer", "completion"}` as JSON lines, writes `{"right"}`.

It is a process, not a thread, because math-verify's own time limits are signals, which only a main thread may set and
which cannot interrupt a computation inside C; a process can be killed. Run by `math_reward`, not by hand.
"""

from __future__ import annotations

import json
import logging
import os
import resource
import sys
from typing import Any

__all__ = ["main"]

MEMORY_LIMIT = 4 << 30  # bytes of address space: 9**9**9 must not take the machine down
SOFT_LIMIT = 2  # seconds for each of parsing and comparing, math-verify's own


def _parsed_answer(answer: str) -> Any:
    """The trusted answer; bare LaTeX and plain numbers are read as if between dollar signs."""
    from math_verify import parse

    final = answer.rsplit("####", 1)[-1].strip()  # GSM8K puts the solution before the answer
    marked = "$" in final or "\\boxed" in final or "\\(" in final or "\\[" in final
    found = [] if marked else parse(f"${final}$", parsing_timeout=SOFT_LIMIT)
    return found or parse(final, parsing_timeout=SOFT_LIMIT)


def _is_right(answer: str, completion: str) -> bool | None:
    """Whether the completion's final answer equals the trusted one; None where the trusted one cannot be read."""
    from math_verify import parse, verify

    gold = _parsed_answer(answer)
    if not gold:
        return None
    return bool(verify(gold, parse(completion, parsing_timeout=SOFT_LIMIT), timeout_seconds=SOFT_LIMIT))


def main() -> None:
    """Answer requests until stdin ends."""
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever the parsers print must not mix with the replies
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    limit = MEMORY_LIMIT if hard == resource.RLIM_INFINITY else min(MEMORY_LIMIT, hard)
    resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
    logging.disable(logging.CRITICAL)
    from math_verify.errors import TimeoutException

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
