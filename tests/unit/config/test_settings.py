"""Settings as dataclasses: conversion, limits, and messages that name every fault at once."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from gradalign_trainer.settings import (
    SettingsError,
    check_settings,
    key_of,
    limits,
    nearest,
    read_toml,
    with_override,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Oven:
    """Settings of an oven."""

    place: Path = Path("kitchen")
    degrees: float = field(default=9.0, metadata=limits(low=0, high=30))
    minutes: int = field(default=20, metadata=limits(key="time.minutes", above=0))
    fan: bool = False
    racks: tuple[str, ...] = field(default=(), metadata=limits(choices=("top", "middle", "bottom")))
    dish: str | None = field(
        default=None, metadata=limits(check=lambda dish: "expected no soup" if dish == "soup" else None)
    )
    notes: Mapping[str, Any] = field(default_factory=dict)
    secret: str = field(default="", metadata=limits(key=""))

    def __post_init__(self):
        check_settings(self)


def faults_of(**settings):
    with pytest.raises(SettingsError) as caught:
        Oven(**settings)
    return caught.value.faults


def test_values_are_converted_to_their_types():
    oven = Oven(place="garden", degrees=20, racks=["top", "bottom"], notes={"salt": 1})
    assert oven == Oven(place=Path("garden"), degrees=20.0, racks=("top", "bottom"), notes={"salt": 1})
    assert type(oven.degrees) is float


@pytest.mark.parametrize(
    ("settings", "fault"),
    [
        ({"degrees": 31}, "degrees = 31 (an integer): expected a value at least 0 and at most 30; the default is 9.0."),
        ({"degrees": "hot"}, "degrees = 'hot' (a string): expected a number at least 0 and at most 30; the default is 9.0."),
        ({"degrees": True}, "degrees = True (a boolean): expected a number at least 0 and at most 30; the default is 9.0."),
        ({"minutes": 0}, "time.minutes = 0 (an integer): expected a value above 0; the default is 20."),
        ({"minutes": 2.5}, "time.minutes = 2.5 (a number): expected an integer above 0; the default is 20."),
        ({"minutes": True}, "time.minutes = True (a boolean): expected an integer above 0; the default is 20."),
        ({"fan": 1}, "fan = 1 (an integer): expected true or false; the default is false."),
        ({"place": ""}, "place = '' (a string): expected a path, as a string; the default is kitchen."),
        ({"racks": "top"}, "racks = 'top' (a string): expected a list of strings."),
        ({"racks": ["tap"]}, "racks = ['tap'] (a list): expected one of top, middle, bottom (did you mean 'top'?)."),
        ({"dish": "soup"}, "dish = 'soup' (a string): expected no soup."),
        ({"dish": 5}, "dish = 5 (an integer): expected a string."),
        ({"notes": []}, "notes = [] (a list): expected a table."),
        ({"secret": 1}, "secret = 1 (an integer): expected a string."),
    ],
)  # fmt: skip
def test_a_fault_names_key_value_and_what_is_expected(settings, fault):
    assert faults_of(**settings) == [fault]


@pytest.mark.parametrize("degrees", [float("nan"), float("inf"), 10**400])
def test_a_number_that_is_no_finite_float_is_refused_in_our_own_words(degrees):
    (fault,) = faults_of(degrees=degrees)
    assert "expected a number" in fault


def test_every_fault_is_reported_at_once():
    with pytest.raises(
        SettingsError, match=r"^the settings cannot be used, 3 faults:\n  degrees .*\n  time.*\n  fan"
    ) as e:
        Oven(degrees=-1, minutes="x", fan=None)
    assert len(e.value.faults) == 3


def test_the_prefix_goes_before_the_key():
    oven = Oven()
    object.__setattr__(oven, "fan", 3)
    with pytest.raises(SettingsError, match=r"kitchen\.fan = 3"):
        check_settings(oven, prefix="kitchen.")


def test_a_key_is_the_name_unless_the_field_says_otherwise():
    keys = {each.name: key_of(each) for each in Oven.__dataclass_fields__.values()}
    assert (keys["degrees"], keys["minutes"], keys["secret"]) == ("degrees", "time.minutes", "")


def test_nearest_looks_at_the_spelling_and_at_the_last_part():
    valid = ["data.pool", "rounds", "scorer.url"]
    assert nearest("data.pol", valid) == " (did you mean 'data.pool'?)"
    assert nearest("url", valid) == " (did you mean 'scorer.url'?)"
    assert nearest("zzz", valid) == ""


def test_a_missing_file_names_its_neighbour(tmp_path):
    (tmp_path / "gsm8k.toml").write_text("a = 1")
    with pytest.raises(SettingsError, match=r"(?s)gsm8.toml cannot be used.*did you mean 'gsm8k.toml'\?"):
        read_toml(tmp_path / "gsm8.toml")
    assert read_toml(tmp_path / "gsm8k.toml") == {"a": 1}


@pytest.mark.parametrize("content", [b"a = hello", b"a = \xff\xfe"])
def test_a_file_that_is_no_toml_is_refused_by_name(tmp_path, content):
    (tmp_path / "bad.toml").write_bytes(content)
    with pytest.raises(SettingsError, match=r"bad\.toml cannot be used, 1 fault"):
        read_toml(tmp_path / "bad.toml")


@pytest.mark.parametrize(
    ("assignment", "table"),
    [
        ("rounds=20", {"rounds": 20}),
        ("rounds = 20 ", {"rounds": 20}),
        ("rate=1e-4", {"rate": 1e-4}),
        ("fan=true", {"fan": True}),
        ("name=hello world", {"name": "hello world"}),
        ("run_id=7", {"run_id": "7"}),
        ("url=http://h:1/?a=b", {"url": "http://h:1/?a=b"}),
        ("a.b.c=1", {"a": {"b": {"c": 1}}}),
        ('pool={ path = "x.jsonl" }', {"pool": {"path": "x.jsonl"}}),
        ("name=", {"name": ""}),
        ("name=1\nb = 2", {"name": "1\nb = 2"}),
    ],
)
def test_an_override_is_read_as_toml_where_it_is_that(assignment, table):
    got = {}
    with_override(got, assignment, text_keys=["run_id"])
    assert got == table


def test_an_override_keeps_the_rest_of_its_section():
    table = {"data": {"pool": "a.jsonl", "reward": "exact"}, "rounds": 1}
    with_override(table, "data.pool=b.jsonl")
    assert table == {"data": {"pool": "b.jsonl", "reward": "exact"}, "rounds": 1}


@pytest.mark.parametrize("assignment", ["rounds", "=3", ".a=3", "a.=3", "a..b=3"])
def test_an_override_without_key_or_value_is_refused(assignment):
    with pytest.raises(SettingsError, match="expected key=value, for example"):
        with_override({}, assignment)


def test_an_override_below_a_value_is_refused():
    with pytest.raises(SettingsError, match=r"data\.pool is 'a.jsonl', not a table; set data\.pool itself"):
        with_override({"data": {"pool": "a.jsonl"}}, "data.pool.limit=3")
