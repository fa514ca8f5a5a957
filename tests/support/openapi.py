"""Requests that schemathesis makes from a scorer's OpenAPI description, and their replies held against it."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import httpx
import hypothesis
import msgpack
import schemathesis
from hypothesis import HealthCheck, Phase
from hypothesis.errors import Unsatisfiable
from schemathesis import APIOperation, Case, GenerationMode
from schemathesis.specs.openapi import checks

CHECKS = [
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_headers_conformance,
    checks.response_schema_conformance,
    checks.negative_data_rejection,
]
ACCEPTED = [checks.positive_data_acceptance]
# What the description allows of these is never refused. Elsewhere it cannot say all: that there is a sketch for each
# problem, say, or that a cursor comes from the page before.
FULLY_DESCRIBED = {
    "GET /runs/{run}",
    "DELETE /runs/{run}",
    "GET /runs/{run}/outline",
    "GET /runs/{run}/problems/{problem_id}",
    "GET /runs/{run}/rounds",
    "POST /runs/{run}/snapshots/{name}",
    "POST /runs/{run}/snapshots/{name}/restore",
}
KNOWN = {"run": "hello", "name": "kept", "problem_id": "along"}


@schemathesis.serializer("application/msgpack")
def packed(context: object, value: Any) -> Any:
    """A body in msgpack; what the description calls binary is bytes already."""
    if isinstance(value, bytes):
        return value
    try:
        return msgpack.packb(value)
    except OverflowError:  # an integer beyond msgpack's
        return b"\xc1"


class Driver:
    """Sends generated requests to the operations of one scorer, all but the stream of events, which has no end.

    Args:
        url: of the scorer.
        examples: of each operation, within its description and again beside it.
        start: same start, same requests.
        change: changes the description before it is used.
    """

    def __init__(
        self, url: str, examples: int, start: int = 0, change: Callable[[dict[str, Any]], None] | None = None
    ) -> None:
        description = httpx.get(f"{url}/openapi.json").json()
        if change is not None:
            change(description)
        self._url = url
        # A scorer without keys asks for none, so a request without one is not wrong.
        config = schemathesis.Config.from_dict({"generation": {"with-security-parameters": False}})
        self._schema = schemathesis.openapi.from_dict(description, config=config)
        self._start = start
        self._settings = hypothesis.settings(
            max_examples=examples,
            phases=[Phase.generate],
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
        )
        found = [result.ok() for result in self._schema.get_all_operations()]
        self.operations = {each.label: each for each in found if not each.path.endswith("/events")}
        self.counts: Counter[int] = Counter()

    def send_examples(self) -> None:
        """The bodies that the description shows, as they stand, and a snapshot: each must be answered with 200."""
        for label in ("POST /refresh_validation", "POST /score", "POST /select", "POST /runs/{run}/snapshots/{name}"):
            operation = self.operations[label]
            content = operation.definition.raw.get("requestBody", {}).get("content", {"": {}})
            for kind, media in content.items():
                if kind and "example" not in media:
                    continue
                body = {"body": media["example"], "media_type": kind} if kind else {}
                reply = self._send(operation.Case(path_parameters=self._known(operation), **body))
                assert reply.status_code == 200, reply.text

    def drive(self, operation: APIOperation) -> None:
        """Send requests within and beside the description of one operation, and about a run that is there."""
        self._generate(operation, GenerationMode.POSITIVE)
        self._generate(operation, GenerationMode.NEGATIVE)
        if operation.method == "get" and "{" in operation.path:
            self._generate(operation, GenerationMode.POSITIVE, path_parameters=self._known(operation))

    def _known(self, operation: APIOperation) -> dict[str, str]:
        return {name: value for name, value in KNOWN.items() if f"{{{name}" in operation.path}

    def _generate(self, operation: APIOperation, mode: GenerationMode, **fixed: object) -> None:
        @hypothesis.seed(self._start)
        @self._settings
        @hypothesis.given(operation.as_strategy(generation_mode=mode, **fixed))
        def send(case: Case) -> None:
            self._send(case)

        try:
            send()
        except Unsatisfiable:  # nothing can be wrong with a request without parameters
            assert mode == GenerationMode.NEGATIVE

    def _send(self, case: Case) -> Any:
        reply = case.call(base_url=self._url)
        self.counts[reply.status_code] += 1
        assert reply.status_code < 500 or reply.status_code == 503, f"{reply.status_code}: {reply.text}"
        case.validate_response(reply, checks=CHECKS + ACCEPTED * (case.operation.label in FULLY_DESCRIBED))
        return reply
