"""The compose file, its example and the pinned packages agree with the settings and the project; needs no engine."""

import re
import tomllib

from composekit import ROOT

from gradalign_scorer.settings import Settings


def test_the_compose_file_passes_only_settings_that_exist():
    names = re.findall(r"^ +(GRADALIGN_\w+):", (ROOT / "docker-compose.yml").read_text(), re.MULTILINE)
    assert names
    known = {f"GRADALIGN_{name.upper()}" for name in Settings.model_fields}
    assert set(names) <= known


def test_the_example_shows_the_defaults_of_the_compose_file():
    used = dict(re.findall(r"\$\{(\w+):-([^}]*)\}", (ROOT / "docker-compose.yml").read_text()))
    shown = dict(re.findall(r"^# (\w+)=(.*)$", (ROOT / ".env.example").read_text(), re.MULTILINE))
    assert shown.keys() == used.keys()
    for name, value in used.items():
        setting = (
            Settings.model_fields.get(name.removeprefix("GRADALIGN_").lower())
            if name.startswith("GRADALIGN_")
            else None
        )
        assert shown[name] == (value or (str(setting.default) if setting and setting.default else "")), name


def test_the_images_hold_what_the_project_asks_for():
    pinned = {
        line.split("==")[0].lower().replace("_", "-")
        for line in (ROOT / "deploy/constraints.txt").read_text().splitlines()
        if line and not line.startswith("#")
    }
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    asked = [*project["dependencies"], *extras["scorer"], *extras["embedded"], *extras["sketch"], *extras["trainer"]]
    names = {re.split(r"[\[>=<;! ]", each)[0].lower().replace("_", "-") for each in asked}
    assert names - {"gradalign", "torch"} <= pinned
    assert "torch" not in pinned, "its build is the build argument TORCH's to choose"
