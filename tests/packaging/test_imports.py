"""What a start imports: no more than the requests need, and all of it before the first archive begins."""

from __future__ import annotations

import json
import re
import subprocess
import zipfile
from typing import TYPE_CHECKING, Any

import pytest

from archive_overlay.methods import METHODS
from tests.packaging import pythons
from tests.support import hooks, tools
from tests.support.image_stores import ImageStore, manifest

if TYPE_CHECKING:
    from pathlib import Path

# Which rooms no start with a method imports from: what a person runs, and what other methods need.
FOREIGN = {
    "copy": {"commands", "history", "layout", "tar"},
    "move": {"commands", "history", "layout", "tar"},
    "tar": {"commands", "history", "layout"},
    "tar.gz": {"commands", "history", "layout"},
    "tar.zst": {"commands", "history", "layout"},
    "oci": {"commands", "history"},
}
# Every module more is one that every container stop pays for, about 0.1 ms each.
MOST_MODULES = dict.fromkeys(FOREIGN, 64) | {"oci": 81}
# Of the standard library, what the modules above import themselves. What that imports in turn depends
# on the version of Python. Of json and signal it is the halves that are written in C.
STANDARD_LIBRARY = {
    "__future__",
    "_ctypes",
    "_json",
    "_signal",
    "_socket",
    "errno",
    "fcntl",
    "gc",
    "itertools",
    "marshal",
    "os",
}
STANDARD_LIBRARY |= {"stat", "sys", "time", "zlib"}
COMPRESSION = STANDARD_LIBRARY | {"collections", "functools", "queue", "threading"}
THEIRS = {
    "copy": STANDARD_LIBRARY,
    "move": STANDARD_LIBRARY,
    "tar": COMPRESSION,
    "tar.gz": COMPRESSION,
    "tar.zst": COMPRESSION | {"subprocess"},
    "oci": COMPRESSION | {"hashlib", "json", "re"},
}

OPTIONS = "-IBSXutf8"
IMPORTED = re.compile(r"^import time:.*\| +(\S+)$", re.MULTILINE)


def state(directory: Path, method: str, *, place: Path | None = None, **keys: object) -> bytes:
    """Give the state of a container that asks for one archive of a small upperdir.

    Args:
        directory: where its files are.
        method: of the archive.
        place: its bundle; None: one in the directory.
        keys: other annotations of the archive.
    """
    upper, lower = directory / "upper", directory / "lower"
    for made in (upper, lower):
        made.mkdir()
    (upper / "file").write_text("data")
    bundle = hooks.Bundle(
        place or directory / "bundle",
        mounts=[hooks.overlay_mount("/data", upper=upper, lowers=[lower])],
        annotations=hooks.annotations(
            "data",
            mount_point="/data",
            archive_to=directory / "out" / "archive",
            success=directory / "out" / "success",
            method=method,
            **keys,
        ),
    )
    return bundle.state()


# Runs a zip file, and says at its end which modules there are: those of a group are not imported one by one.
AT_END = """
import os, sys, zipimport
import _frozen_importlib as machinery

end = os._exit

def tell(status):
    os.write(1, " ".join(sys.modules).encode())
    end(status)

os._exit = tell
del sys.argv[0]
sys.path.insert(0, sys.argv[0])
spec = machinery.ModuleSpec("__main__", zipimport.zipimporter(sys.argv[0]), origin=sys.argv[0] + "/__main__.py")
exec(spec.loader.get_code("__main__"), {"__name__": "__main__", "__spec__": spec})
"""


def imported(python: pythons.Python, program: Path, stdin: bytes = b"", *arguments: str) -> set[str]:
    """Run a program, and give the modules that are there at its end."""
    done = subprocess.run(
        [python.path, OPTIONS, "-c", AT_END, program, *arguments],
        input=stdin,
        capture_output=True,
        env={},
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
    return {*done.stdout.decode().split()}


def ours(modules: set[str]) -> set[str]:
    return {module for module in modules if module.partition(".")[0] == "archive_overlay"}


@pytest.mark.parametrize("python", pythons.SUPPORTED, ids=str)
@pytest.mark.parametrize("method", FOREIGN)
def test_a_start_imports_what_its_method_needs(
    executable: Path, tmp_path: Path, method: str, python: pythons.Python
) -> None:
    if method == "tar.zst":
        tools.need("/usr/bin/zstd")
        if python.version >= (3, 14):
            THEIRS[method] = COMPRESSION | {"compression.zstd"}

    found = imported(python, executable, state(tmp_path, method))

    assert (tmp_path / "out" / "success").exists()
    assert {rooms(module) for module in ours(found)} & FOREIGN[method] == set()
    assert len(ours(found)) <= MOST_MODULES[method]
    assert without_attempts(found - ours(found)) == what_they_import(python, THEIRS[method], tmp_path)


@pytest.mark.parametrize("python", pythons.SUPPORTED, ids=str)
def test_two_modules_look_at_the_image_of_a_container_in_a_store(
    executable: Path, tmp_path: Path, python: pythons.Python
) -> None:
    store = ImageStore(tmp_path / "storage")
    store.add_manifest(manifest({}))
    store.write()
    nothing = imported(python, executable, hooks.Bundle(store.bundle).state())
    asking = imported(python, executable, state(tmp_path, "copy", place=store.bundle))
    for name in ("upper", "lower"):
        (tmp_path / name).rename(tmp_path / f"old-{name}")

    elsewhere = imported(python, executable, state(tmp_path, "copy"))

    theirs = {"archive_overlay.hook.image_annotations", "archive_overlay.overlay.images"}
    assert asking - elsewhere == theirs
    assert nothing & theirs == set()


def rooms(module: str) -> str:
    """Give the folder that a module of ours is in."""
    return f"{module}..".split(".")[1]


def what_they_import(python: pythons.Python, modules: set[str], directory: Path) -> set[str]:
    """Give all that is imported by an executable zip file that imports some modules."""
    program = directory / "imports.pyz"
    with zipfile.ZipFile(program, "w") as archive:
        archive.writestr("__main__.py", f"import {', '.join(sorted(modules))}\nos._exit(0)\n")
    return without_attempts(imported(python, program))


def without_attempts(modules: set[str]) -> set[str]:
    """Leave out what Python looks for and does not find, and what only modules import that are not in the block."""
    return modules - {"__future__", "compression", "msvcrt"}


@pytest.mark.parametrize("arguments", [("--no-fsync",), ("--rescue-dir=/x", "--jobs=2")])
def test_a_hook_with_options_imports_no_command(
    executable: Path, tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    found = ours(imported(pythons.SUPPORTED[-1], executable, state(tmp_path, "copy"), *arguments))
    assert "archive_overlay.hook.hook" in found
    assert {module for module in found if rooms(module) == "commands"} == set()


WATCH = """
import json, sys
begun, late = [], []

def watch(event, arguments):
    if event == "os.mkdir":
        begun.append(arguments[0])
    elif event == "import" and begun:
        late.append(arguments[0])

program, *arguments = sys.argv[1:]
sys.path.insert(0, program + "/site-packages")
sys.addaudithook(watch)
from archive_overlay.cli import main
status = main(arguments)
print(json.dumps([status, len(begun), late]))
"""


def late(executable: Path, stdin: bytes, *arguments: str | Path) -> tuple[int, list[str]]:
    """Run the shipped modules, and give the status and what is imported after the first directory is made."""
    done = subprocess.run(
        [pythons.SUPPORTED[-1].path, OPTIONS, "-c", WATCH, executable, *arguments],
        input=stdin,
        capture_output=True,
        env={},
        check=True,
    )
    said: list[Any] = json.loads(done.stdout)
    assert said[1], "nothing was begun"
    return said[0], said[2]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("arguments", [(), ("--no-fsync", "--jobs=3", "--log-level=trace")])
def test_nothing_is_imported_after_the_first_archive_has_begun(
    executable: Path, tmp_path: Path, method: str, arguments: tuple[str, ...]
) -> None:
    if method == "tar.zst":
        tools.need("/usr/bin/zstd")

    assert late(executable, state(tmp_path, method), *arguments) == (0, [])


def test_nothing_is_imported_late_by_an_archive_that_fails_and_is_rescued(
    executable: Path, tmp_path: Path
) -> None:
    container = state(tmp_path, "tar.gz", whiteouts="oci")
    (tmp_path / "upper" / ".wh.file").touch()

    programs = ("--on-success=/bin/true", "--on-failure=/bin/true")

    status, modules = late(executable, container, "--rescue-dir", tmp_path / "rescue", *programs)

    assert (status, modules) == (1, [])
    assert (tmp_path / "rescue" / "c1" / "data" / "file").read_text() == "data"


def test_the_command_line_s_parser_is_imported_for_people_alone(executable: Path, tmp_path: Path) -> None:
    (python, *_) = pythons.SUPPORTED
    stopped = state(tmp_path, "copy")
    plain: list[tuple[str, ...]] = [(), ("--syslog",), ("--no-fsync", "--jobs", "2", "--file-mode=0640")]
    as_installed = [imported(python, executable, stopped, *arguments) for arguments in plain]
    help_text = subprocess.run(
        [python.path, OPTIONS, "-X", "importtime", executable, "--help"], capture_output=True, check=True
    ).stderr.decode()

    assert [("argparse" in modules, "syslog" in modules) for modules in as_installed] == [
        (False, False),
        (False, True),
        (False, False),
    ]
    assert "argparse" in IMPORTED.findall(help_text)
