"""The OpenAPI description holds: what it allows is taken, what it rules out is refused, and replies are as it says.

The long form is `tests/bench/fuzz.py --openapi 40`.
"""

from collections.abc import Callable
from typing import Any

import pytest
from openapi import Driver


@pytest.fixture(scope="module")
def driver(scorer):
    driver = Driver(scorer.url, examples=5)
    driver.send_examples()
    return driver


def test_every_operation_keeps_to_its_description(driver):
    for operation in driver.operations.values():
        driver.drive(operation)
    assert len(driver.operations) == 16
    assert min(driver.counts[status] for status in (200, 400, 404, 422)) > 4
    assert sum(driver.counts.values()) > 100


def forget_a_status(api: dict[str, Any]) -> None:
    del api["paths"]["/runs/{run}"]["get"]["responses"]["404"]


def name_another_type(api: dict[str, Any]) -> None:
    api["paths"]["/runs"]["get"]["responses"]["200"]["content"] = {"text/csv": {}}


def ask_for_more(api: dict[str, Any]) -> None:
    api["paths"]["/health"]["get"]["responses"]["200"]["content"]["application/json"]["schema"]["required"] += ["mood"]


def allow_more(api: dict[str, Any]) -> None:
    limit = api["paths"]["/runs/{run}/rounds"]["get"]["parameters"]
    next(p for p in limit if p["name"] == "limit")["schema"] = {"type": "integer", "minimum": 2000, "maximum": 3000}


@pytest.mark.parametrize(
    ("change", "label"),
    [
        (forget_a_status, "GET /runs/{run}"),
        (name_another_type, "GET /runs"),
        (ask_for_more, "GET /health"),
        (allow_more, "GET /runs/{run}/rounds"),
    ],
)
def test_a_description_that_is_wrong_is_found_out(scorer, driver, change: Callable[[dict[str, Any]], None], label):
    wrong = Driver(scorer.url, examples=5, change=change)
    with pytest.raises(BaseExceptionGroup):
        wrong.drive(wrong.operations[label])


def test_it_says_which_keys_open_what(scorer):
    with scorer.http() as http:
        api = http.get("/openapi.json").json()
    assert set(api["components"]["securitySchemes"]) == {"bearer", "basic"}
    assert api["paths"]["/livez"]["get"]["security"] == []
    assert api["paths"]["/score"]["post"]["security"] == [{"bearer": []}]
    assert api["paths"]["/runs"]["get"]["security"] == [{"bearer": []}, {"basic": []}]
    assert "HTTPValidationError" not in str(api)
