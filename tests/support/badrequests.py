"""Requests that a scorer must refuse, and what its refusals are held to."""

import msgpack

MSGPACK = {"Content-Type": "application/msgpack"}
JSON = {"Content-Type": "application/json"}


def header(run_id, problem_ids, projection, /, **changes):
    good = {
        "run_id": run_id,
        "policy_version": 5,
        "projection": projection.to_map(),
        "problem_ids": problem_ids,
        "dtype": "float16",
    }
    return {key: value for key, value in {**good, **changes}.items() if value is not ...}


def packed(header, data):
    return msgpack.packb(header) + msgpack.packb(bytes(data))


def check(reply, status, kind, *words, param=None):
    assert reply.status_code == status, reply.text
    error = reply.json()["error"]
    assert set(error) == {"type", "message", "param", "request_id"}
    assert error["type"] == kind
    for word in words:
        assert word in error["message"], error["message"]
    if param is not None:
        assert error["param"] == param
    return error
