"""What an API key may do: which runs it may name, and whether it may write."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

from starlette.requests import Request
from starlette.types import Scope

from gradalign import Forbidden

__all__ = ["Access", "access_of", "grant"]

_GRANTED = "gradalign.access"
READING = frozenset({"GET", "HEAD", "OPTIONS"})


@dataclass(frozen=True)
class Access:
    """The scope of a key; without arguments, everything.

    Attributes:
        runs: run ids, or prefixes that end with `*`.
        read_only: only GET requests are answered.
    """

    runs: tuple[str, ...] = ("*",)
    read_only: bool = False

    def allows_run(self, run_id: str) -> bool:
        """Whether a run is within the scope."""
        return any(
            run_id.startswith(pattern[:-1]) if pattern.endswith("*") else run_id == pattern for pattern in self.runs
        )

    def check_run(self, run_id: str, request_id: str | None = None) -> None:
        """Refuse a run out of scope. Whether it exists is not looked up, so the answer does not tell.

        Raises:
            Forbidden: with the request's id.
        """
        if not self.allows_run(run_id):
            raise Forbidden(
                f"the request names run {run_id!r} and its API key is for the runs {', '.join(self.runs)}; use a run_id "
                "within that, or ask the scorer's operator to widen `runs=` on the key's line of GRADALIGN_API_KEY_FILE.",
                param="run_id",
                request_id=request_id,
            )

    def check_method(self, method: str) -> None:
        """Refuse a write by a read-only key.

        Raises:
            Forbidden: naming the method.
        """
        if self.read_only and method not in READING:
            raise Forbidden(
                f"the request is a {method} and its API key is read-only; send GET requests only, or use a key whose line "
                "of GRADALIGN_API_KEY_FILE does not say `read-only`.",
                param="Authorization",
            )


def grant(scope: Scope, access: Access) -> None:
    """Note what the key of a request may do."""
    scope[_GRANTED] = access


def access_of(request: Request) -> Access:
    """What the key of a request may do; an error where nobody granted anything, so a forgotten gate opens nothing."""
    return cast(Access, request.scope[_GRANTED])
