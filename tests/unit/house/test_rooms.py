"""The rooms: few modules each, a purpose each, imports between them downwards only, as docs/architecture.md shows them."""

import ast
import subprocess

import codelinks
import pytest
import rooms as house

ROOMS, ARROWS = house.measured()
ARCHITECTURE = house.ROOT / "docs/architecture.md"

MAY_IMPORT = {
    "gradalign.client": {
        "gradalign.wire",
    },
    "gradalign.forward": {
        "gradalign.forward.parameters",
        "gradalign.forward.passes",
        "gradalign.sketch",
    },
    "gradalign.forward.parameters": {
        "gradalign.sketch",
        "gradalign.sketch.parameters",
    },
    "gradalign.forward.passes": {
        "gradalign.forward.parameters",
    },
    "gradalign.sketch": {
        "gradalign.sketch.capture",
        "gradalign.sketch.hashing",
        "gradalign.sketch.kernels",
        "gradalign.sketch.parameters",
        "gradalign.wire",
    },
    "gradalign.sketch.capture": {
        "gradalign.sketch.capture.operators",
        "gradalign.sketch.capture.rows",
        "gradalign.sketch.hashing",
        "gradalign.sketch.kernels",
        "gradalign.sketch.parameters",
        "gradalign.wire",
    },
    "gradalign.sketch.capture.operators": {
        "gradalign.sketch.capture.rows",
    },
    "gradalign.sketch.capture.rows": set(),
    "gradalign.sketch.hashing": {
        "gradalign.sketch.kernels",
    },
    "gradalign.sketch.kernels": {
        "gradalign.wire",
    },
    "gradalign.sketch.parameters": {
        "gradalign.sketch.kernels",
        "gradalign.wire",
    },
    "gradalign.watch": {
        "gradalign.client",
        "gradalign.wire",
    },
    "gradalign.wire": set(),
    "gradalign:base": set(),
    "gradalign:top": {
        "gradalign.client",
        "gradalign.wire",
    },
    "gradalign_scorer.access": {
        "gradalign_scorer.http",
    },
    "gradalign_scorer.http": set(),
    "gradalign_scorer.posterior": set(),
    "gradalign_scorer.ranking": {
        "gradalign_scorer.posterior",
    },
    "gradalign_scorer.routes": {
        "gradalign_scorer.access",
        "gradalign_scorer.http",
        "gradalign_scorer.service",
        "gradalign_scorer.store",
        "gradalign_scorer.telemetry",
    },
    "gradalign_scorer.service": {
        "gradalign_scorer.http",
        "gradalign_scorer.posterior",
        "gradalign_scorer.ranking",
        "gradalign_scorer.store",
        "gradalign_scorer.telemetry",
    },
    "gradalign_scorer.store": {
        "gradalign_scorer.posterior",
        "gradalign_scorer.ranking",
        "gradalign_scorer.store.embedded",
        "gradalign_scorer.store.records",
        "gradalign_scorer.store.server",
    },
    "gradalign_scorer.store.embedded": set(),
    "gradalign_scorer.store.records": {
        "gradalign_scorer.ranking",
    },
    "gradalign_scorer.store.server": set(),
    "gradalign_scorer.telemetry": {
        "gradalign_scorer.http",
        "gradalign_scorer.store",
    },
    "gradalign_scorer:base": set(),
    "gradalign_scorer:top": {
        "gradalign_scorer.access",
        "gradalign_scorer.http",
        "gradalign_scorer.ranking",
        "gradalign_scorer.routes",
        "gradalign_scorer.service",
        "gradalign_scorer.store",
        "gradalign_scorer.telemetry",
    },
    "gradalign_trainer.adapters": {
        "gradalign.forward",
        "gradalign_trainer.datasets.records",
    },
    "gradalign_trainer.adapters.base": {
        "gradalign_trainer.curriculum",
    },
    "gradalign_trainer.adapters.trl": {
        "gradalign.sketch",
        "gradalign_trainer.adapters",
        "gradalign_trainer.adapters.base",
        "gradalign_trainer.adapters.trl.measuring",
        "gradalign_trainer.curriculum",
    },
    "gradalign_trainer.adapters.trl.measuring": {
        "gradalign.forward",
        "gradalign.sketch",
        "gradalign_trainer.adapters",
        "gradalign_trainer.curriculum",
    },
    "gradalign_trainer.adapters.verl": {
        "gradalign.sketch",
        "gradalign_trainer.adapters",
        "gradalign_trainer.adapters.base",
        "gradalign_trainer.curriculum",
    },
    "gradalign_trainer.adapters.verl.v1": {
        "gradalign.forward",
        "gradalign_trainer.adapters",
        "gradalign_trainer.adapters.base",
        "gradalign_trainer.adapters.verl",
        "gradalign_trainer.curriculum",
    },
    "gradalign_trainer.config": {
        "gradalign_trainer.datasets.sources",
        "gradalign_trainer.reporting",
        "gradalign_trainer.rewards",
    },
    "gradalign_trainer.curriculum": set(),
    "gradalign_trainer.datasets": {
        "gradalign_trainer.datasets.records",
        "gradalign_trainer.datasets.sources",
        "gradalign_trainer.reporting",
        "gradalign_trainer.worlds",
        "gradalign_trainer.worlds.tasks",
    },
    "gradalign_trainer.datasets.records": set(),
    "gradalign_trainer.datasets.sources": {
        "gradalign_trainer.datasets.records",
    },
    "gradalign_trainer.demo": {
        "gradalign_trainer.config",
        "gradalign_trainer.curriculum",
        "gradalign_trainer.datasets",
        "gradalign_trainer.reporting",
        "gradalign_trainer.runs",
        "gradalign_trainer.worlds",
    },
    "gradalign_trainer.grpo": set(),
    "gradalign_trainer.policy": {
        "gradalign.forward",
        "gradalign.sketch",
        "gradalign.sketch.parameters",
        "gradalign_trainer.config",
        "gradalign_trainer.curriculum",
        "gradalign_trainer.grpo",
    },
    "gradalign_trainer.rank": {
        "gradalign_trainer.datasets.sources",
        "gradalign_trainer.rank.distributed",
        "gradalign_trainer.rank.steps",
        "gradalign_trainer.reporting",
    },
    "gradalign_trainer.rank.distributed": {
        "gradalign_trainer.datasets.records",
        "gradalign_trainer.datasets.sources",
        "gradalign_trainer.rank.steps",
        "gradalign_trainer.reporting",
    },
    "gradalign_trainer.rank.steps": {
        "gradalign.sketch",
        "gradalign_trainer.curriculum",
        "gradalign_trainer.datasets.records",
        "gradalign_trainer.datasets.sources",
        "gradalign_trainer.grpo",
        "gradalign_trainer.reporting",
    },
    "gradalign_trainer.reporting": set(),
    "gradalign_trainer.reproduce": {
        "gradalign_trainer.reporting",
        "gradalign_trainer.reproduce.grid",
        "gradalign_trainer.reproduce.report",
        "gradalign_trainer.worlds.tasks",
    },
    "gradalign_trainer.reproduce.grid": {
        "gradalign_trainer.config",
        "gradalign_trainer.curriculum",
        "gradalign_trainer.grpo",
        "gradalign_trainer.policy",
        "gradalign_trainer.reporting",
        "gradalign_trainer.runs",
        "gradalign_trainer.worlds",
    },
    "gradalign_trainer.reproduce.report": {
        "gradalign_trainer.reproduce.grid",
        "gradalign_trainer.worlds",
    },
    "gradalign_trainer.rewards": {
        "gradalign_trainer.datasets.sources",
        "gradalign_trainer.worlds",
    },
    "gradalign_trainer.rounds": {
        "gradalign_trainer.config",
        "gradalign_trainer.curriculum",
        "gradalign_trainer.grpo",
        "gradalign_trainer.policy",
    },
    "gradalign_trainer.runs": {
        "gradalign_trainer.config",
        "gradalign_trainer.curriculum",
        "gradalign_trainer.datasets",
        "gradalign_trainer.datasets.records",
        "gradalign_trainer.grpo",
        "gradalign_trainer.policy",
        "gradalign_trainer.reporting",
        "gradalign_trainer.rewards",
        "gradalign_trainer.rounds",
        "gradalign_trainer.worlds",
    },
    "gradalign_trainer.worlds": {
        "gradalign_trainer.reporting",
    },
    "gradalign_trainer.worlds.tasks": {
        "gradalign_trainer.datasets.records",
        "gradalign_trainer.datasets.sources",
        "gradalign_trainer.worlds",
    },
    "gradalign_trainer:base": set(),
    "gradalign_trainer:top": {
        "gradalign_trainer.config",
        "gradalign_trainer.demo",
        "gradalign_trainer.reporting",
        "gradalign_trainer.runs",
        "gradalign_trainer.worlds",
    },
}
EVERYWHERE = {"gradalign": {"gradalign:base"}, "others": {"gradalign:base", "gradalign:top", "gradalign.wire"}}
"""What every room of a package may import besides: the errors, the wire and the public names."""


def allowed(room):
    own = "gradalign" if house.package_of(room) == "gradalign" else "others"
    ground = f"{house.package_of(room)}:base"
    return MAY_IMPORT[room] | EVERYWHERE[own] | {ground}


def test_the_table_names_every_room():
    assert set(MAY_IMPORT) == set(ROOMS)


@pytest.mark.parametrize("room", sorted(ROOMS))
def test_a_room_imports_what_the_table_allows(room):
    found = ARROWS.get(room, set())
    assert found <= allowed(room), f"{room} also imports {sorted(found - allowed(room))}"
    unused = MAY_IMPORT[room] - found
    assert not unused, f"{room} imports no {sorted(unused)}: take it off the table"


def test_no_imports_run_in_a_circle():
    house.layers(ROOMS, ARROWS)


@pytest.mark.parametrize("room", sorted(room for room in ROOMS if ":" not in room))
def test_a_room_has_a_purpose_and_one_to_nine_modules(room):
    modules = [name for name in ROOMS[room] if name != "__init__"]
    assert 1 <= len(modules) <= 9, f"{room} has {len(modules)} modules"
    inside = next(path for name, path in house.modules().items() if name == room)
    purpose = ast.get_docstring(ast.parse(inside.read_text())) or ""
    for word in ("May import", "A change here keeps"):
        assert word in purpose, f"{inside}: say what lives here, what it may import, and what a change must keep"


@pytest.mark.skipif(not (house.ROOT / ".git").exists(), reason="a copy without its history, where git says nothing")
def test_git_ignores_no_module():
    """A wheel leaves out what git ignores."""
    paths = [str(path.relative_to(house.ROOT)) for path in house.modules().values()]
    ignored = subprocess.run(
        ["git", "check-ignore", "--no-index", *paths], cwd=house.ROOT, capture_output=True, text=True, check=False
    )
    assert ignored.stdout == ""


def test_the_picture_is_of_these_rooms():
    drawn = (house.ROOT / "docs/rooms.svg").read_text()
    assert drawn == house.drawn(ROOMS, ARROWS), "draw it anew: python tests/support/rooms.py docs/rooms.svg"


def test_links_to_lines_of_code_lead_there():
    anew = "python tests/support/codelinks.py docs/architecture.md"
    assert ARCHITECTURE.read_text() == codelinks.relinked(ARCHITECTURE), f"write the lines anew: {anew}"


def test_a_circle_is_found():
    with pytest.raises(ValueError, match="a -> b -> a"):
        house.layers({"a": [], "b": []}, {"a": {"b"}, "b": {"a"}})
