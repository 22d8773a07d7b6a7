"""Which room may know which: what docs/design.md says of it, held against the imports."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

import pytest

TOP = Path(__file__).resolve().parents[2]
PACKAGE = TOP / "archive_overlay"

# What each room may import from, besides itself. A room is a folder, or a module beside the folders.
BASICS = {"errors", "log", "system"}
MAY_IMPORT = {
    "": set[str](),
    "errors": set[str](),
    "keys": set[str](),
    "log": {"system"},
    "marks": set[str](),
    "system": {"errors"},
    "settings": {"system"},
    "overlay": BASICS | {"marks"},
    "tar": BASICS | {"marks", "overlay.change"},
    "destination": BASICS | {"marks", "overlay.compose"},
    "layout": BASICS | {"destination", "keys", "marks", "overlay.change", "tar"},
    "history": BASICS
    | {"destination", "keys", "layout", "marks", "overlay.change", "overlay.compose", "tar"},
    "transfer": BASICS | {"destination", "history", "keys", "layout", "overlay", "settings"},
    "methods": BASICS
    | {"destination", "history", "layout", "marks", "overlay", "settings", "tar", "transfer"},
    "hook": BASICS | {"destination", "keys", "marks", "methods", "overlay", "settings"},
    "commands": BASICS
    | {
        "",
        "destination",
        "history",
        "hook.recovery",
        "hook.snapshot",
        "keys",
        "layout",
        "marks",
        "methods",
        "overlay",
        "settings",
        "tar",
        "transfer",
    },
    "cli": BASICS | {"", "commands", "hook.hook", "settings", "transfer.names"},
    "__main__": {"cli"},
}


def modules_of(package: Path) -> dict[str, Path]:
    """Give the dotted names of a package's modules in it, and their files; "" is the package itself."""
    found = {}
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package).with_suffix("").parts
        found[".".join(part for part in parts if part != "__init__")] = path
    return found


@cache
def imports_of(package: Path) -> dict[str, set[str]]:
    """Give the modules of a package that each of its modules names in imports, for types too."""
    modules = modules_of(package)
    found = {}
    for name, path in modules.items():
        named = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                named |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                assert node.level == 0, f"{path} imports relatively"
                for alias in node.names:
                    inside = f"{node.module}.{alias.name}".partition(".")[2]
                    named.add(f"{node.module}.{alias.name}" if inside in modules else node.module)
        found[name] = {each.partition(".")[2] for each in named if each.partition(".")[0] == package.name}
    return found


MODULES = modules_of(PACKAGE)


def room(module: str) -> str:
    return module.partition(".")[0]


def may_import(module: str, other: str) -> bool:
    allowed = MAY_IMPORT[room(module)]
    return room(other) in {room(module), *allowed} or other in allowed


def test_every_room_has_a_rule() -> None:
    assert {room(module) for module in MODULES} == set(MAY_IMPORT)


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_from_rooms_that_it_may_know(module: str) -> None:
    # Nobody who only collects tests waits for the imports.
    assert sorted(other for other in imports_of(PACKAGE)[module] if not may_import(module, other)) == []


@pytest.mark.parametrize("package", ["archive_overlay", "bench"])
def test_no_imports_go_round_in_a_circle(package: str) -> None:
    left = dict(imports_of(TOP / package))
    assert len(left) > 1
    while free := [module for module, others in left.items() if not (others & left.keys()) - {module}]:
        for module in free:
            del left[module]
    assert left == {}
