"""The OpenAPI description: schemas of requests, replies and errors, taken from the messages themselves."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence
from typing import Annotated, Any, get_type_hints

from fastapi import Path
from pydantic import Field, TypeAdapter, create_model

from gradalign import Projection, SketchMatrix
from gradalign.wire.checks import LARGEST_FEATURE, LARGEST_PRODUCT, MAX_FEATURES, MAX_ROLLOUTS, NAME_PATTERN
from gradalign.wire.codec import JSON, MSGPACK
from gradalign.wire.messages import AGGREGATIONS, MAX_PROBLEMS, NORMS_KINDS, SELECT_STRATEGIES, STRATEGIES
from gradalign.wire.projection import LAYOUT, MAX_DIM
from gradalign.wire.scales import LARGEST_SCALE
from gradalign_scorer.access.authentication import OPEN_PATHS
from gradalign_scorer.docstrings import attribute_texts

__all__ = [
    "HEALTH",
    "WARNINGS",
    "ProblemId",
    "RunName",
    "Schema",
    "SnapshotName",
    "completed",
    "integer_query",
    "listing",
    "operation",
    "query",
]

Schema = dict[str, Any]
"""Of JSON Schema or OpenAPI."""
_MOST = 2**53 - 1
_NAME: Schema = {"type": "string", "pattern": f"^{NAME_PATTERN}$"}
_COUNT: Schema = {"type": "integer", "minimum": 0, "maximum": _MOST}
_ID: Schema = {"type": "string", "minLength": 1, "maxLength": 256}
_IDS: Schema = {"type": "array", "items": _ID, "minItems": 1, "uniqueItems": True}
_FEATURE: Schema = {"type": "number", "minimum": -LARGEST_FEATURE, "maximum": LARGEST_FEATURE}
# What the checks of the messages hold each key to; a null says the same as leaving the key out.
_LIMITS: dict[str, Schema] = {
    **dict.fromkeys(("run_id", "request_id", "preconditioner"), _NAME),
    **dict.fromkeys(("policy_version", "epoch", "select", "cooldown", "seed"), _COUNT),
    **dict.fromkeys(("dots_version", "products_version", "decay_version"), _COUNT),
    "count": {**_COUNT, "minimum": 1},
    "problem_ids": _IDS,
    "sketches": {"minItems": 1, "maxItems": MAX_PROBLEMS},
    "products": {
        "minItems": 1,
        "maxItems": MAX_PROBLEMS,
        "items": {"type": "array", "minItems": 1, "maxItems": MAX_ROLLOUTS, "items": {"type": "number"}},
    },
    "norms_kind": {"enum": list(NORMS_KINDS)},
    "norms": {"items": {"type": "number", "minimum": 0}},
    "rollouts": {"items": _COUNT},
    "tokens": {"items": _COUNT},
    "pass_rates": {"items": {"type": "number", "minimum": 0, "maximum": 1}},
    "strategy": {"enum": list(STRATEGIES)},
    "aggregation": {"enum": list(AGGREGATIONS)},
    "half_life": {"minimum": 1e-6},
    "decay": {"minimum": 0, "maximum": 1},
    "discount": {"minimum": 0, "maximum": 1},
    "scales": {"type": "array", "items": {"type": "number", "minimum": 0, "maximum": LARGEST_SCALE}},
    "features": {"minItems": 1, "items": {"type": "array", "minItems": 1, "maxItems": MAX_FEATURES, "items": _FEATURE}},
    "exploration": {"minimum": 0, "maximum": 1},
    "id": {"pattern": "^[0-9a-f]{16}$"},
    "dim": {"minimum": 1, "maximum": MAX_DIM},
    "parameters": {"pattern": "^[0-9a-f]{64}$"},
    "layout": {"const": LAYOUT},
}
# Keys of the bin that JSON takes too, and that no message has as an attribute of its own.
_OF_INT8: Schema = {
    "dtype": {
        "description": "`int8` where the sketches are whole numbers from -127 to 127 (-128 for NaN or Inf) and `scales` are "
        "sent; anything else says nothing in JSON."
    },
    "scales": {
        "anyOf": [{}, {"type": "null"}],
        "description": "With dtype `int8`: what to multiply each row by, its max|row| / 127 as a rule; 0 for one of zeros.",
    },
}
_PROJECTION = Projection(dim=4, seed=0, parameters="ab" * 32).to_map()
_EXAMPLE: Schema = {
    "run_id": "hello",
    "policy_version": 0,
    "projection": _PROJECTION,
    "problem_ids": ["along", "across"],
    "sketches": [[2, 1, 0, 0], [0, 0, 1, 0]],
}
_SECURITY: list[Schema] = [{"bearer": []}, {"basic": []}]
_SCHEMES: Schema = {
    "bearer": {"type": "http", "scheme": "bearer", "description": "An API key; none is asked for where none is set."},
    "basic": {
        "type": "http",
        "scheme": "basic",
        "description": "For browsers, to read: any name, the key as password.",
    },
}
WARNINGS: Schema = {
    "type": "array",
    "items": {"type": "string"},
    "description": "What may go wrong with the store some day, and the fix.",
}
HEALTH: Schema = {
    "type": "object",
    "required": ["status", "version", "device", "compute", "store", "warm", "draining"],
    "properties": {
        "status": {"enum": ["ok", "degraded"]},
        "version": {"type": "string"},
        "device": {"type": "string"},
        "compute": {"enum": ["alive", "stuck"]},
        "store": {"type": "string", "description": "`reachable`, or what is wrong."},
        "warnings": WARNINGS,
        "warm": {"type": "boolean"},
        "draining": {"type": "boolean"},
        "queue_depth": _COUNT,
        "admitted_requests": _COUNT,
        "uptime_seconds": {"type": "number", "minimum": 0},
    },
}
"""The reply of `/health`."""

# Documented here and checked by our own checks, whose messages name the fix.
RunName = Annotated[str, Path(description="The training job.", json_schema_extra={"pattern": _NAME["pattern"]})]
SnapshotName = Annotated[str, Path(description="Of the snapshot.", json_schema_extra={"pattern": _NAME["pattern"]})]
ProblemId = Annotated[
    str, Path(description="The problem, percent-encoded.", json_schema_extra={"minLength": 1, "maxLength": 256})
]

_ERROR: Schema = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["type", "message", "param", "request_id"],
            "properties": {
                "type": {"type": "string"},
                "message": {"type": "string", "description": "What was sent, what was expected, and what to do."},
                "param": {"type": ["string", "null"]},
                "request_id": {"type": ["string", "null"]},
            },
        }
    },
}
_FAULTS = {
    "400": "The bytes are not what the Content-Type says.",
    "401": "No API key, or one that is not accepted.",
    "403": "The key is accepted, but not for this run or not for writing.",
    "404": "No such run, problem, snapshot or route.",
    "409": "The request disagrees with what the run holds.",
    "413": "The body is too large; answered before it is read.",
    "415": "Neither msgpack nor JSON, or a Content-Encoding.",
    "422": "A wrong length, dimension, value or name.",
    "429": "The queue is full, or too many pages watch runs; see Retry-After.",
    "503": "The store is away, or the scorer is starting or draining; see Retry-After.",
}
_WITHOUT_BODY = ("401", "403", "404", "409", "422", "503")


def operation(
    reply: type | Schema | None,
    *,
    request: type | None = None,
    parameters: Sequence[Schema] = (),
    media_type: str = JSON,
) -> Schema:
    """What a route adds to its OpenAPI entry.

    Args:
        reply: the reply's dataclass or schema; None for 204.
        request: the dataclass of its body, if it takes one.
        parameters: of its query string.
        media_type: of the reply, where it is not the wire's JSON or msgpack.
    """
    faults = _FAULTS if request else {status: _FAULTS[status] for status in _WITHOUT_BODY}
    responses: Schema = {status: _fault(status, text) for status, text in faults.items()}
    if reply is None:
        responses["204"] = {"description": "Done."}
    else:
        kinds = (JSON, MSGPACK) if media_type == JSON else (media_type,)
        responses["200"] = {"description": "Done.", "content": _content(_schema(reply), kinds)}
    extra: Schema = {"responses": responses}
    if parameters:
        extra["parameters"] = list(parameters)
    if request:
        extra["requestBody"] = {"required": True, "content": _request_content(request)}
    return extra


def completed(api: Schema) -> Schema:
    """FastAPI's description of all routes, with the keys that they ask for and without its own form of errors."""
    api["components"] = {"securitySchemes": _SCHEMES}
    for path, methods in api["paths"].items():
        for method, route in methods.items():
            route["security"] = [] if path in OPEN_PATHS else _SECURITY if method == "get" else _SECURITY[:1]
            for content in route["responses"].get("422", {}).get("content", {}).values():
                content["schema"].pop("$ref", None)
    return api


def listing(key: str, row: type) -> Schema:
    """The schema of `{key: [row, ...]}`."""
    return {"type": "object", "required": [key], "properties": {key: {"type": "array", "items": _schema(row)}}}


def query(name: str, text: str, schema: Schema | None = None) -> Schema:
    """An optional query parameter; a string where no schema is given."""
    return {"name": name, "in": "query", "required": False, "description": text, "schema": schema or {"type": "string"}}


def integer_query(name: str, text: str, *, low: int = 0, high: int = _MOST) -> Schema:
    """An optional query parameter that is an integer in [low, high]."""
    return query(name, text, {"type": "integer", "minimum": low, "maximum": high})


def _fault(status: str, text: str) -> Schema:
    fault: Schema = {"description": text, "content": _content(_ERROR)}
    if status in ("429", "503"):
        seconds = {"description": "When to come back, in seconds.", "schema": {"type": "integer", "minimum": 1}}
        fault["headers"] = {"Retry-After": seconds}
    return fault


def _content(schema: Schema, kinds: Sequence[str] = (JSON, MSGPACK)) -> Schema:
    return {kind: {"schema": schema} for kind in kinds}


def _request_content(message: type) -> Schema:
    schema = _schema(message)
    if "products" in schema["properties"]:
        schema["properties"] |= copy.deepcopy(_OF_INT8)
    schema = _limited(schema)
    if "products" not in schema["properties"]:
        schema["properties"]["strategy"]["anyOf"][0]["enum"] = list(SELECT_STRATEGIES)
        example = {"run_id": "hello", "policy_version": 0, "count": 1}
        return {kind: {**content, "example": example} for kind, content in _content(schema).items()}
    # One is enough; that a request has no two of them, only our own checks say.
    version = "products_version" if "products_version" in schema["properties"] else "lengths"
    schema["anyOf"] = [{"required": ["projection", "sketches"]}, {"required": ["products", version]}]
    if "pass_rates" in schema["properties"]:
        schema["anyOf"].append({"required": ["pass_rates", "rollouts"]})
    binary = {
        "type": "string",
        "format": "binary",
        "description": "Two msgpack objects: the keys of the JSON form without `sketches` and with `dtype` (float16, "
        "bfloat16, float32, or int8 with `scales`), then a bin of the sketches, row-major, little-endian. Without "
        "sketches, one: the keys of the JSON form.",
    }
    return {JSON: {"schema": schema, "example": _EXAMPLE}, MSGPACK: {"schema": binary}}


def _limited(schema: Schema) -> Schema:
    """A request's schema with the limits of its keys, which are all that it may have."""
    schema["additionalProperties"] = False
    for name, kind in schema["properties"].items():
        # Of a key that may be null the first kind is the other one.
        first = kind.get("anyOf", [kind])[0]
        first.update(_LIMITS.get(name, {}))
        if "properties" in first:
            _limited(first)
    return schema


def _projection() -> Any:
    keys: dict[str, Any] = {name: (kind, ...) for name, kind in get_type_hints(Projection).items()}
    return create_model("Projection", id=(str, ...), **keys)


_LENGTH = Annotated[float, Field(gt=0, le=LARGEST_PRODUCT)]
_WRITTEN: dict[Any, Any] = {
    SketchMatrix | None: list[list[float]] | None,
    Projection | None: _projection() | None,
    float | list[float] | None: _LENGTH | Annotated[list[_LENGTH], Field(min_length=1, max_length=1)] | None,
}
"""How values of requests look in JSON, where their own types do not say it."""


def _schema(of: type | Schema) -> Schema:
    """Inlined schema of a message; sketches are rows of numbers, as in JSON."""
    if isinstance(of, dict):
        return of
    hints = get_type_hints(of)
    described = attribute_texts(of.__doc__ or "")
    fields: dict[str, Any] = {}
    for field in dataclasses.fields(of):
        kind = _WRITTEN.get(hints[field.name], hints[field.name])
        default = ... if _required(field) else field.default
        if field.default_factory is not dataclasses.MISSING:
            default = None
        fields[field.name] = (kind, default)
    schema = TypeAdapter(create_model(of.__name__, **fields)).json_schema()
    for name, text in described.items():
        if name in schema["properties"]:
            schema["properties"][name]["description"] = text
    inlined: Schema = _inlined(schema, schema.pop("$defs", {}))
    return inlined


def _required(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _inlined(schema: Any, definitions: Schema) -> Any:
    if isinstance(schema, list):
        return [_inlined(item, definitions) for item in schema]
    if not isinstance(schema, dict):
        return schema
    if "$ref" in schema:
        return _inlined(definitions[schema["$ref"].rsplit("/", 1)[1]], definitions)
    return {key: _inlined(value, definitions) for key, value in schema.items() if key != "title"}
