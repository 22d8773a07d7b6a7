"""Which room may know which: what docs/design.md says of it, held against the imports."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[2] / "archive_overlay"

# What each room may import from, besides itself. A room is a folder, or a module beside the folders.
BASICS = {"errors", "log", "system"}
MAY_IMPORT = {
    "": set[str](),
    "errors": set[str](),
    "keys": set[str](),
    "log": set[str](),
    "marks": set[str](),
    "system": {"errors"},
    "settings": {"system"},
    "overlay": BASICS | {"marks"},
    "tar": BASICS | {"marks", "overlay.change"},
    "destination": BASICS | {"overlay.change"},
    "layout": BASICS | {"destination", "keys", "marks", "tar"},
    "history": BASICS | {"destination", "layout", "marks", "overlay.change", "tar"},
    "methods": BASICS | {"destination", "layout", "marks", "overlay", "tar"},
    "hook": BASICS | {"destination", "keys", "marks", "methods", "overlay", "settings"},
    "commands": BASICS
    | {
        "",
        "destination",
        "history",
        "keys",
        "layout",
        "marks",
        "methods",
        "overlay",
        "settings",
        "tar",
    },
    "cli": BASICS | {"", "commands", "hook.hook", "settings"},
    "__main__": {"cli"},
}


def name_of(path: Path) -> str:
    """Give the dotted name of a module in the package; "" for the package itself."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


MODULES = {name_of(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def imports(path: Path) -> set[str]:
    """Give the modules of ours that a module names in imports, for types too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path} imports relatively"
            for alias in node.names:
                module = f"{node.module}.{alias.name}"
                inside = module.partition(".")[2]
                found.add(module if inside in MODULES else node.module)
    return {name.partition(".")[2] for name in found if name.partition(".")[0] == "archive_overlay"}


IMPORTS = {name: imports(path) for name, path in MODULES.items()}


def room(module: str) -> str:
    return module.partition(".")[0]


def may_import(module: str, other: str) -> bool:
    allowed = MAY_IMPORT[room(module)]
    return room(other) in {room(module), *allowed} or other in allowed


def test_every_room_has_a_rule() -> None:
    assert {room(module) for module in MODULES} == set(MAY_IMPORT)


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_from_rooms_that_it_may_know(module: str) -> None:
    assert sorted(other for other in IMPORTS[module] if not may_import(module, other)) == []


def test_no_imports_go_round_in_a_circle() -> None:
    left = dict(IMPORTS)
    while free := [module for module, others in left.items() if not (others & left.keys()) - {module}]:
        for module in free:
            del left[module]
    assert left == {}
