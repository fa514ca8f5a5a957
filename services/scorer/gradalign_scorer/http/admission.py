"""How much the scorer takes on at once, decided before a body is read."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from gradalign import Overloaded

__all__ = ["Admission", "Place"]

_RETRY_SECONDS = 0.1


class Admission:
    """Counts the requests whose bodies are held, and their bytes. It never waits: what does not fit is refused.

    Args:
        max_requests: held at once.
        max_bytes: of all bodies held at once.
    """

    def __init__(self, max_requests: int, max_bytes: int) -> None:
        self.max_requests = max_requests
        self.max_bytes = max_bytes
        self.requests = 0
        self.bytes = 0

    def admit(self) -> Place:
        """A place for one request, to be entered with `with`.

        Raises:
            Overloaded: all places are taken.
        """
        if self.requests >= self.max_requests:
            raise Overloaded(
                f"the scorer holds {self.requests} requests, which is all it takes at once; retry, send fewer at a time, or "
                "raise GRADALIGN_MAX_REQUESTS.",
                retry_after=_RETRY_SECONDS,
            )
        return Place(self)


class Place:
    """One admitted request; leaving it gives its place and its bytes back."""

    def __init__(self, admission: Admission) -> None:
        self._admission = admission
        self._bytes = 0

    def __enter__(self) -> Self:
        self._admission.requests += 1
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._admission.requests -= 1
        self._admission.bytes -= self._bytes

    def claim(self, count: int, times: int = 1) -> None:
        """Claim memory for more of the body.

        Args:
            count: bytes of it.
            times: how much more its parsed form takes; a request alone is admitted whatever that comes to.

        Raises:
            Overloaded: it does not fit beside what other requests hold.
        """
        held = self._admission.bytes
        if times > 1:
            # A request that alone takes all there is takes no more of it with its further chunks.
            count = min(count * times, self._admission.max_bytes - self._bytes)
        if held + count > self._admission.max_bytes:
            raise Overloaded(
                f"the scorer holds {held} bytes of other requests and {count} more do not fit; retry, send smaller "
                "requests, or raise GRADALIGN_MAX_ADMITTED_BYTES.",
                retry_after=_RETRY_SECONDS,
            )
        self._admission.bytes += count
        self._bytes += count
