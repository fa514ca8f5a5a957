"""Values that are wrong: every one is a 422 that names its place, and stores nothing."""

import json

import msgpack
import numpy as np
import pytest
from badrequests import JSON, MSGPACK, check, header, packed

# Changes of the header that make it invalid: what the error names, and words of its message.
INVALID = {
    "run_id missing": ({"run_id": ...}, "run_id", "missing"),
    "run_id with a space": ({"run_id": "a b"}, "run_id", "'a b'"),
    "run_id too long": ({"run_id": "a" * 129}, "run_id", "1 to 128"),
    "policy_version missing": ({"policy_version": ...}, "policy_version", "missing"),
    "policy_version negative": ({"policy_version": -1}, "policy_version", "-1"),
    "policy_version a string": ({"policy_version": "5"}, "policy_version", "'5'"),
    "policy_version true": ({"policy_version": True}, "policy_version", "True"),
    "policy_version a float": ({"policy_version": 5.5}, "policy_version", "5.5"),
    "an unknown key": ({"pass_rate": [1.0]}, "pass_rate", "unknown key"),
    "no ids": ({"problem_ids": []}, "problem_ids", "holds 0 ids"),
    "ids a string": ({"problem_ids": "p0"}, "problem_ids", "list of strings"),
    "an empty id": ({"problem_ids": ["p0", "", *"cdefgh"]}, "problem_ids[1]", "1 to 256"),
    "an id too long": ({"problem_ids": ["x" * 257, *"bcdefgh"]}, "problem_ids[0]", "256"),
    "an id that is a number": ({"problem_ids": [1, *"bcdefgh"]}, "problem_ids[0]", "1"),
    "a repeated id": ({"problem_ids": ["p0", "p0", *"cdefgh"]}, "problem_ids", "repeats 'p0'"),
    "one id too many": ({"problem_ids": [f"p{i}" for i in range(9)]}, "sketches", "expected 576"),
    "ids beyond the limit": ({"problem_ids": [f"p{i}" for i in range(4097)]}, "problem_ids", "1 to 4096"),
    "an unknown dtype": ({"dtype": "float64"}, "dtype", "float32"),
    "a dtype of another size": ({"dtype": "float32"}, "sketches", "expected 1024"),
    "int8 without scales": ({"dtype": "int8"}, "scales", "missing; expected with dtype int8 a list of 8 numbers"),
    "scales null": ({"dtype": "int8", "scales": None}, "scales", "missing"),
    "scales of float16": ({"scales": [1.0] * 8}, "scales", "with dtype float16, and goes with int8 only"),
    "scales too few": ({"dtype": "int8", "scales": [1.0] * 7}, "scales", "7 values for 8 problem_ids"),
    "scales too many": ({"dtype": "int8", "scales": [1.0] * 9}, "scales", "9 values for 8 problem_ids"),
    "a scale negative": ({"dtype": "int8", "scales": [1.0, -1.0, *[1.0] * 6]}, "scales[1]", "max|row| / 127"),
    "a scale NaN": ({"dtype": "int8", "scales": [*[1.0] * 7, float("nan")]}, "scales[7]", "send -128 for every number"),
    "a scale infinite": (
        {"dtype": "int8", "scales": [float("inf"), *[1.0] * 7]},
        "scales[0]",
        "inf; expected a finite",
    ),
    "a scale beyond float32": ({"dtype": "int8", "scales": [1e37, *[1.0] * 7]}, "scales[0]", "from 0 to 2.67939e+36"),
    "a scale a string": ({"dtype": "int8", "scales": ["1", *[1.0] * 7]}, "scales[0]", "'1'"),
    "scales a number": ({"dtype": "int8", "scales": 1.0}, "scales", "expected a list of 8 numbers"),
    "int8 of another size": ({"dtype": "int8", "scales": [1.0] * 8}, "sketches", "expected 256"),
    "norms too few": ({"norms": [1.0]}, "norms", "1 values for 8"),
    "norms negative": ({"norms": [-1.0] * 8}, "norms[0]", "-1.0"),
    "norms infinite": ({"norms": [float("inf")] * 8}, "norms[0]", "inf"),
    "tokens a float": ({"tokens": [1.5] * 8}, "tokens[0]", "1.5"),
    "an empty request id": ({"request_id": ""}, "request_id", "1 to 128"),
    "an epoch that is no number": ({"epoch": "two"}, "epoch", "'two'"),
    "projection a string": ({"projection": "p"}, "projection", "exactly the keys"),
}


INVALID_SCORES = {
    "pass_rates above 1": ({"pass_rates": [1.5] * 8}, "pass_rates[0]", "1.5"),
    "pass_rates NaN": ({"pass_rates": [float("nan")] * 8}, "pass_rates[0]", "nan"),
    "an unknown strategy": ({"strategy": "best"}, "strategy", "cosine"),
    "dots alone": ({"dots": [0.0] * 8}, "dots_version", "go together"),
    "select negative": ({"select": -1}, "select", "-1"),
    "pass_rates needed": ({"strategy": "accgreedy"}, "pass_rates", "accgreedy"),
    "pass_rates needed too": ({"strategy": "cosine_accuracy"}, "pass_rates", "cosine_accuracy"),
    "dots longer than norms": (
        {"dots": [3.0] * 8, "dots_version": 1, "norms": [1.0] * 8},
        "dots",
        "Divide the validation gradient by its norm",
    ),
}


INVALID_REFRESHES = {
    "an unknown aggregation": ({"aggregation": "median"}, "aggregation", "pooled"),
    "a key of /score": ({"strategy": "cosine"}, "strategy", "unknown key"),
    "tokens all 0": ({"tokens": [0] * 8}, "sketches", "0 tokens"),
}


class TestInvalidValue:
    """422: well-formed, but a length, dimension, value or name is wrong."""

    @pytest.mark.parametrize("path", ["/score", "/refresh_validation"])
    @pytest.mark.parametrize("name", INVALID)
    def test_shared_keys(self, run, http, stored, problem_ids, projection, sketches, name, path):
        self.refuse(run, http, stored, path, problem_ids, projection, sketches, INVALID[name])

    @pytest.mark.parametrize("name", INVALID_SCORES)
    def test_score(self, run, http, stored, problem_ids, projection, sketches, name):
        self.refuse(run, http, stored, "/score", problem_ids, projection, sketches, INVALID_SCORES[name])

    @pytest.mark.parametrize("name", INVALID_REFRESHES)
    def test_refresh(self, run, http, stored, problem_ids, projection, sketches, name):
        self.refuse(
            run, http, stored, "/refresh_validation", problem_ids, projection, sketches, INVALID_REFRESHES[name]
        )

    def refuse(self, run, http, stored, path, problem_ids, projection, sketches, case):
        changes, param, words = case
        body = packed(header(run.run_id, problem_ids, projection, **changes), sketches.tobytes())
        before = stored()
        check(http.post(path, content=body, headers=MSGPACK), 422, "invalid_value", words, param=param)
        assert stored() == before
        assert run.score(problem_ids, sketches, policy_version=5, projection=projection).problem_ids

    def test_a_header_that_is_no_map(self, http):
        body = msgpack.packb([1]) + msgpack.packb(b"")
        check(
            http.post("/score", content=body, headers=MSGPACK), 422, "invalid_value", "expected a map", param="header"
        )

    def test_a_projection_id_of_another_projection(self, http, run_id, problem_ids, projection, sketches):
        wrong = {**projection.to_map(), "id": "0" * 16}
        body = packed(header(run_id, problem_ids, projection, projection=wrong), sketches.tobytes())
        check(
            http.post("/score", content=body, headers=MSGPACK),
            422,
            "invalid_value",
            projection.id,
            param="projection.id",
        )

    @pytest.mark.parametrize("fill", [0.0, np.nan, np.inf])
    def test_a_validation_set_without_signal(self, http, stored, run_id, problem_ids, projection, fill):
        sketches = np.full((8, 32), fill, dtype=np.float32)
        body = packed(header(run_id, problem_ids, projection, dtype="float32"), sketches.tobytes())
        before = stored()
        reply = http.post("/refresh_validation", content=body, headers=MSGPACK)
        check(reply, 422, "invalid_value", "none of the 8", "more rollouts", param="sketches")
        assert stored() == before

    @pytest.mark.parametrize(
        ("change", "param"),
        [
            ({"count": 0}, "count"),
            ({"exploration": 2}, "exploration"),
            ({"half_life": 0}, "half_life"),
            ({"top": 3}, "top"),
        ],
    )
    def test_select(self, run, http, stored, change, param):
        before = stored()
        body = {"run_id": run.run_id, "policy_version": 5, "count": 3, **change}
        check(http.post("/select", json=body), 422, "invalid_value", param=param)
        assert stored() == before

    @pytest.mark.parametrize(
        ("path", "param"),
        [
            ("problems?limit=0", "limit"),
            ("problems?limit=abc", "limit"),
            ("problems?limit=" + "9" * 5000, "limit"),
            ("problems?cursor=%20", "cursor"),
            ("rounds?after=-1", "after"),
            ("rounds?limit=1001", "limit"),
        ],
    )
    def test_queries(self, run, http, path, param):
        check(http.get(f"/runs/{run.run_id}/{path}"), 422, "invalid_value", param=param)

    def test_epoch_in_a_query(self, run, http, stored):
        before = stored()
        check(http.delete(f"/runs/{run.run_id}?epoch=x"), 422, "invalid_value", param="epoch")
        check(http.post(f"/runs/{run.run_id}/snapshots/a%20b"), 422, "invalid_value", param="name")
        assert stored() == before


def test_json_refuses_what_msgpack_refuses(run, http, stored, problem_ids, projection, sketches):
    good = {**header(run.run_id, problem_ids, projection, dtype=...), "sketches": sketches.tolist()}
    before = stored()
    for change, param in (
        ({"sketches": sketches[:3].tolist()}, "sketches"),
        ({"sketches": sketches[:, :5].tolist()}, "sketches"),
        ({"sketches": [["a"] * 32] * 8}, "sketches"),
        ({"sketches": [[1.0], [1.0, 2.0]]}, "sketches"),
        ({"sketches": ...}, "sketches"),
        ({"select": "many"}, "select"),
    ):
        body = {key: value for key, value in {**good, **change}.items() if value is not ...}
        check(http.post("/score", json=body), 422, "invalid_value", param=param)
    check(http.post("/score", content=b"[]", headers=JSON), 422, "invalid_value", param="body")
    assert stored() == before
    assert http.post("/score", content=json.dumps(good), headers=JSON).status_code == 200


# What JSON can write and no cell, column or setting can hold.
NO_NUMBERS = ["1e999", "-1e999", "9" * 400, "9" * 5000, '"1.5"', "true", "[]", "{}"]


NO_COUNTS = [*NO_NUMBERS, "1.5", str(2**53), str(2**63), str(2**64), "-1"]


class TestJsonValues:
    """Whatever a JSON body holds where a number or an id belongs, it is a 422 that says where."""

    def refuse(self, http, stored, path, good, changes, texts):
        before = stored()
        for text in texts:
            for name, change in changes.items():
                for accept in ("application/json", "application/msgpack"):
                    content = json.dumps({**good, **change}).replace('"@"', text)
                    reply = http.post(path, content=content, headers={**JSON, "Accept": accept})
                    assert reply.status_code == 422, (name, text, reply.text)
                error = http.post(path, content=content, headers=JSON).json()["error"]
                assert error["param"] in (name, name.split("[")[0], "body"), (name, text)
                assert name in error["message"] or error["param"] == "body", (name, text)
        assert stored() == before

    def good(self, run, problem_ids, projection, sketches):
        return header(run.run_id, problem_ids, projection, dtype=..., sketches=sketches.tolist())

    def test_cells(self, run, http, stored, problem_ids, projection, sketches):
        rows = sketches.tolist()
        changes = {
            "sketches[3][1]": {"sketches": [*rows[:3], [rows[3][0], "@", *rows[3][2:]], *rows[4:]]},
            "features[3][1]": {"features": [*[[0.5, 1.0]] * 3, [0.5, "@"], *[[0.5, 1.0]] * 4]},
            "dots[3]": {"dots": [0, 0, 0, "@", 0, 0, 0, 0], "dots_version": 1},
        }
        for name in ("norms", "pass_rates", "rollouts", "tokens"):
            changes[f"{name}[3]"] = {name: [0, 0, 0, "@", 0, 0, 0, 0]}
        good = self.good(run, problem_ids, projection, sketches)
        self.refuse(http, stored, "/score", good, changes, [*NO_NUMBERS, "null"])

    def test_settings(self, run, http, stored, problem_ids, projection, sketches):
        good = {**self.good(run, problem_ids, projection, sketches), "dots": [0] * 8, "dots_version": 1}
        changes = {name: {name: "@"} for name in ("policy_version", "epoch", "select", "dots_version")}
        self.refuse(http, stored, "/score", good, changes, NO_COUNTS)
        for name in ("dim", "seed", "layout"):
            changes = {f"projection.{name}": {"projection": {**projection.to_map(), name: "@"}}}
            self.refuse(http, stored, "/score", good, changes, NO_COUNTS)

    def test_settings_of_refresh_and_select(self, run, http, stored, problem_ids, projection, sketches):
        good = self.good(run, problem_ids, projection, sketches)
        self.refuse(http, stored, "/refresh_validation", good, {"decay": {"decay": "@"}}, [*NO_NUMBERS, "1.5"])
        select = {"run_id": run.run_id, "policy_version": 5, "count": 1}
        counts = {name: {name: "@"} for name in ("policy_version", "count", "cooldown", "seed", "epoch")}
        self.refuse(http, stored, "/select", select, counts, NO_COUNTS)
        numbers = {name: {name: "@"} for name in ("half_life", "exploration")}
        self.refuse(http, stored, "/select", select, numbers, [*NO_NUMBERS, "-1"])

    @pytest.mark.parametrize("path", ["/score", "/refresh_validation", "/select"])
    def test_half_of_a_surrogate_pair_in_any_text(self, run, http, stored, problem_ids, projection, sketches, path):
        good = self.good(run, problem_ids, projection, sketches)
        good = {"run_id": run.run_id, "policy_version": 5, "count": 1} if path == "/select" else good
        places = [{"problem_ids": ["@", *problem_ids[1:]]}, {"run_id": "@"}, {"request_id": "@"}, {"@": 1}]
        places += [{"strategy": "@"}, {"aggregation": "@"}, {"projection": "@"}, {"projection": {"@": 1}}]
        before = stored()
        for place in places:
            for text in ("\\ud800", "a\\udfff"):
                content = json.dumps({**good, **place}).replace("@", text)
                for accept in ("application/json", "application/msgpack"):
                    reply = http.post(path, content=content, headers={**JSON, "Accept": accept})
                    assert reply.status_code == 422, (place, reply.text)
        assert stored() == before

    def test_ext_types_and_other_keys_of_msgpack(self, run, http, stored, problem_ids, projection, sketches):
        good, before = header(run.run_id, problem_ids, projection), stored()
        for value in (msgpack.ExtType(5, b""), msgpack.ExtType(5, b"x"), msgpack.Timestamp(1), {1: 2}, {b"a": 1}, b"r"):
            for name in (*good, "norms", "tokens", "request_id", "strategy"):
                body = packed({**good, name: value}, sketches.tobytes())
                assert http.post("/score", content=body, headers=MSGPACK).status_code in (400, 422), (name, value)
        for key in (1, b"a", (1,), True):
            body = packed({**good, key: 1}, sketches.tobytes())
            assert http.post("/score", content=body, headers=MSGPACK).status_code in (400, 422), key
        assert stored() == before

    def test_ids_and_names_in_paths(self, run, http, stored):
        before = stored()
        for name in ("%ED%A0%80", "%FF", "%00", "a%0Ab", "%2E%2E%2F", "x" * 300, "%F0%9F%98%80"):
            for path in (f"/runs/{name}", f"/runs/{run.run_id}/problems/{name}"):
                assert http.get(path).status_code in (404, 422), path
            for path in (f"/runs/{name}/snapshots/s", f"/runs/{run.run_id}/snapshots/{name}"):
                assert http.post(path).status_code in (404, 422), path
        assert stored() == before
