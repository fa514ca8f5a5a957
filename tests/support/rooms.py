"""The rooms of the house: which modules each folder holds, which rooms it imports, and a picture of it all.

    python tests/support/rooms.py docs/rooms.svg

`tests/unit/house/test_rooms.py` holds `MAY_IMPORT` to the code, and the picture to both.
"""

import ast
import sys
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGES = {
    "gradalign": ROOT / "proto",
    "gradalign_scorer": ROOT / "services/scorer",
    "gradalign_trainer": ROOT / "services/trainer",
}

TOP = {
    "gradalign": {"__init__", "__main__", "cli"},
    "gradalign_scorer": {"__init__", "app", "cli", "server"},
    "gradalign_trainer": {"__init__", "cli"},
}
"""Modules of a package's own folder that stand above its rooms; the others stand below them."""


def modules():
    """Every module of the product: dotted name -> file."""
    found = {}
    for package, root in PACKAGES.items():
        for path in (root / package).rglob("*.py"):
            parts = path.relative_to(root).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def room_of(name, path):
    """The room of a module: its folder; the modules in a package's own folder are its `base` or its `top`."""
    folder = name if path.name == "__init__.py" else name.rpartition(".")[0]
    if folder in TOP:
        return f"{folder}:{'top' if path.stem in TOP[folder] else 'base'}"
    return folder


def package_of(room):
    """The package that a room is of."""
    return room.partition(":")[0].partition(".")[0]


def imported(path, known):
    """The modules of the product that a file imports, whenever it does."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known)
        elif isinstance(node, ast.ImportFrom) and node.module in known:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if inner in known else node.module


def measured():
    """The rooms as the code has them: room -> its modules, and room -> the rooms it imports."""
    known = modules()
    rooms, arrows = defaultdict(list), defaultdict(set)
    for name, path in known.items():
        room = room_of(name, path)
        rooms[room].append(path.stem)
        for target in imported(path, known):
            # Whoever imports a public package means its face, not the folder behind it.
            other = room_of(target, known[target])
            if other != room:
                arrows[room].add(other)
    return dict(rooms), dict(arrows)


def layers(rooms, arrows):
    """Room -> how far above the ground it stands; raises ValueError where imports run in a circle."""
    height = {}

    def climb(room, path):
        if room in path:
            raise ValueError("imports run in a circle: " + " -> ".join([*path[path.index(room) :], room]))
        if room not in height:
            height[room] = 1 + max((climb(other, [*path, room]) for other in arrows.get(room, ())), default=-1)
        return height[room]

    for room in rooms:
        climb(room, [])
    return height


def needed(arrows, height):
    """The arrows without those that a longer way already implies: what a picture can show."""
    below = {}
    for room in sorted(height, key=height.get):
        direct = arrows.get(room, set())
        below[room] = set(direct).union(*(below[other] for other in direct))
    return {
        room: {other for other in direct if not any(other in below[rest] for rest in direct if rest != other)}
        for room, direct in arrows.items()
    }


WIDE, HIGH, GAP, RISE = 184, 58, 14, 96
"""Of a box, between two boxes, and from one row to the next; pixels."""


def places(rooms, height):
    """Where each room's box stands: x and y of its upper left corner; rows by how far a room is from the ground."""
    found, left = {}, GAP
    for package in PACKAGES:
        own = [room for room in rooms if package_of(room) == package]
        rows = defaultdict(list)
        for room in sorted(own):
            rows[height[room]].append(room)
        ranks = {level: rank for rank, level in enumerate(sorted(rows))}
        width = max(len(row) for row in rows.values()) * (WIDE + GAP)
        for level, row in rows.items():
            start = left + (width - len(row) * (WIDE + GAP)) / 2
            for place, room in enumerate(row):
                found[room] = (start + place * (WIDE + GAP), ranks[level])
        left += width + 2 * GAP
    tallest = max(rank for _, rank in found.values())
    return {room: (x, 40 + (tallest - rank) * RISE) for room, (x, rank) in found.items()}, left


def _words(modules, room):
    """The module names of a box in two lines."""
    names = sorted(set(modules) - {"__init__"})
    lines = [""]
    for name in names:
        if len(lines[-1]) + len(name) > 32 and len(lines) < 3:
            lines.append("")
        lines[-1] += f"{name} "
    return [f"{len(names)}: {lines[0]}", *lines[1:]] if names else [room]


def drawn(rooms, arrows):
    """The picture, as SVG."""
    height = layers(rooms, arrows)
    at, width = places(rooms, height)
    tall = max(y for _, y in at.values()) + HIGH + GAP
    svg = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {tall:.0f}" font-family="sans-serif">',
        "<title>The rooms of GradAlign, and which import which</title>",
        f'<rect width="{width:.0f}" height="{tall:.0f}" fill="#fff"/>',
    ]
    for room, others in sorted(needed(arrows, height).items()):
        for other in sorted(others):
            (x1, y1), (x2, y2) = at[room], at[other]
            same = package_of(room) == package_of(other)
            line = f'x1="{x1 + WIDE / 2:.0f}" y1="{y1 + HIGH:.0f}" x2="{x2 + WIDE / 2:.0f}" y2="{y2:.0f}"'
            if same:
                svg.append(f'<line {line} stroke="#789" stroke-width="1.2"/>')
    colours = dict(zip(PACKAGES, ("#e8f1fb", "#eaf6ec", "#fdf3e3"), strict=True))
    for package in PACKAGES:
        x = min(x for room, (x, _) in at.items() if package_of(room) == package)
        svg.append(f'<text x="{x:.0f}" y="24" font-size="16" font-weight="bold">{package}</text>')
    for room, (x, y) in sorted(at.items()):
        package = package_of(room)
        svg.append(
            f'<rect x="{x:.0f}" y="{y:.0f}" width="{WIDE}" height="{HIGH}" rx="5" fill="{colours[package]}" stroke="#567"/>'
        )
        title = {f"{package}:top": "(entrance)", f"{package}:base": "(ground)"}.get(
            room, room.removeprefix(package + ".")
        )
        svg.append(f'<text x="{x + 6:.0f}" y="{y + 15:.0f}" font-size="12" font-weight="bold">{title}</text>')
        for row, words in enumerate(_words(rooms[room], title)):
            svg.append(
                f'<text x="{x + 6:.0f}" y="{y + 28 + 11 * row:.0f}" font-size="9" fill="#345">{words.strip()}</text>'
            )
    return "\n".join([*svg, "</svg>", ""])


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(drawn(*measured()))
