"""The section `gradalign` of verl's configuration: what is missing, unknown or out of range is said with its fix."""

import dataclasses
import re
from pathlib import Path

import pytest

from gradalign_trainer.adapters.verl.v1.settings import GradAlignSettings
from gradalign_trainer.settings import SettingsError

GIVEN = {"scorer_url": "http://scorer:8000", "run_id": "a"}


def test_two_are_enough():
    settings = GradAlignSettings.from_section(GIVEN)
    assert (settings.use, settings.strategy, settings.refresh_every) == ("both", "shrunken", 8)
    assert settings.weighs
    assert settings.selects
    assert settings.address(3).epoch == 3


@pytest.mark.parametrize("section", [None, {}, {"scorer_url": "", "run_id": None}])
def test_missing_ones_say_what_to_add(section):
    with pytest.raises(SettingsError, match=r"2 faults") as raised:
        GradAlignSettings.from_section(section)
    assert "add +gradalign.scorer_url=http://HOST:8000" in str(raised.value)
    assert "add +gradalign.run_id=MY-RUN" in str(raised.value)


def test_an_unknown_one_names_its_neighbour():
    with pytest.raises(SettingsError, match=r"gradalign\.refresh_evry is unknown \(did you mean 'refresh_every'\?\)"):
        GradAlignSettings.from_section({**GIVEN, "refresh_evry": 3})


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("run_id", "a b", "expected 1 to 128 letters"),
        ("use", "weights", "expected one of both, select, weight"),
        ("strategy", "learnalign", "expected one of cosine"),
        ("aggregation", "normalized", "expected one of pooled, mean"),
        ("refresh_every", 0, "expected a value at least 1"),
        ("trusted_share", 1.0, "expected a value above 0 and at most 0.9"),
        ("trusted_sources", "trusted", "expected a list of strings"),
        ("timeout", "long", "expected a number"),
    ],
)
def test_values_that_cannot_be_used_are_refused(name, value, words):
    with pytest.raises(SettingsError, match=words) as raised:
        GradAlignSettings.from_section({**GIVEN, name: value})
    assert f"gradalign.{name} = " in str(raised.value)


@pytest.mark.parametrize(("use", "weighs", "selects"), [("weight", True, False), ("select", False, True)])
def test_either_use_alone(use, weighs, selects):
    settings = GradAlignSettings.from_section({**GIVEN, "use": use})
    assert (settings.weighs, settings.selects) == (weighs, selects)


def test_the_table_of_the_guide_is_whole():
    page = (Path(__file__).parents[3] / "docs/adapters-verl.md").read_text()
    rows = dict(re.findall(r"^\| `([a-z_]+)` \| (\S+) \|", page, re.MULTILINE))
    fields = {field.name: field.default for field in dataclasses.fields(GradAlignSettings)}
    told = {
        name: {dataclasses.MISSING: "required", (): "none", False: "false"}.get(value, value)
        for name, value in fields.items()
    }
    told |= {"seed": 0, "exploration": 0.25}  # 0 is equal to False
    assert rows == {name: str(value).removesuffix(".0") for name, value in told.items()}
