"""The OpenAPI description: schemas of requests, replies and errors, taken from the messages themselves."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, get_type_hints

from pydantic import TypeAdapter, create_model

from gradalign import Projection, SketchMatrix
from gradalign.codec import JSON, MSGPACK
from gradalign_scorer.docstrings import attribute_texts

__all__ = ["listing", "operation", "query"]

Schema = dict[str, Any]
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
    "415": "Neither msgpack nor JSON.",
    "422": "A wrong length, dimension, value or name.",
    "429": "The queue is full; see Retry-After.",
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
    responses: Schema = {status: {"description": text, "content": _content(_ERROR)} for status, text in faults.items()}
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


def listing(key: str, row: type) -> Schema:
    """The schema of `{key: [row, ...]}`."""
    return {"type": "object", "required": [key], "properties": {key: {"type": "array", "items": _schema(row)}}}


def query(name: str, text: str) -> Schema:
    """An optional query parameter."""
    return {"name": name, "in": "query", "required": False, "description": text, "schema": {"type": "string"}}


def _content(schema: Schema, kinds: Sequence[str] = (JSON, MSGPACK)) -> Schema:
    return {kind: {"schema": schema} for kind in kinds}


def _request_content(message: type) -> Schema:
    schema = _schema(message)
    if "sketches" not in schema["properties"]:
        return _content(schema)
    binary = {
        "type": "string",
        "format": "binary",
        "description": "Two msgpack objects: the keys of the JSON form without `sketches` and with `dtype`, then a bin "
        "of the sketches, row-major, little-endian.",
    }
    return {JSON: {"schema": schema}, MSGPACK: {"schema": binary}}


def _schema(of: type | Schema) -> Schema:
    """Inlined schema of a message; sketches are rows of numbers, as in JSON."""
    if isinstance(of, dict):
        return of
    hints = get_type_hints(of)
    described = attribute_texts(of.__doc__ or "")
    fields: dict[str, Any] = {}
    for field in dataclasses.fields(of):
        kind = {SketchMatrix: list[list[float]], Projection: _projection()}.get(hints[field.name], hints[field.name])
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


def _projection() -> Any:
    keys: dict[str, Any] = {name: (kind, ...) for name, kind in get_type_hints(Projection).items()}
    return create_model("Projection", id=(str, ...), **keys)


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
