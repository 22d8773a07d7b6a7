"""What is on disk before what: data, then names, then the marker. And nothing is flushed twice."""

from __future__ import annotations

import re

import pytest

from tests.crash.conftest import CASES, Case, Place
from tests.support import faults

each_case = pytest.mark.parametrize("case", CASES)

FLUSHING = {"fsync", "fdatasync", "syncfs", "sync", "sync_file_range"}
NAMING = {
    "openat",
    "rename",
    "renameat",
    "renameat2",
    "link",
    "linkat",
    "mkdir",
    "mkdirat",
    "unlink",
    "unlinkat",
}

# A call, the directory that its file descriptor is of, and the rest.
CALL = re.compile(r"(?P<name>\w+)\((?:[0-9#]+<(?P<path>[^>]*)>)?(?P<rest>.*)")


def steps(place: Place, case: Case, *arguments: str, **keys: object) -> list[str]:
    """Say what a run flushes, and when it publishes and when it says so."""
    place.lay_out(case)
    calls = faults.with_paths(place.hook(case, *arguments, **keys), FLUSHING | NAMING)
    found = [step for call in calls if (step := _step(call))]
    return [step for number, step in enumerate(found) if number == 0 or step != found[number - 1]]


def _step(call: faults.Call) -> str | None:
    match = CALL.match(call.text)
    assert match
    if call.name in FLUSHING:
        return f"{call.name} {match['path']}"
    if call.name.startswith("rename") and re.search(r"<HOME/out(/archive[^>]*)?>, \"[^\"]*\"", match["rest"]):
        return "publish"
    if call.name == "mkdirat" and "/.archive" not in call.text and ".archive" not in match["rest"]:
        return f"make a directory in {match['path']}"
    if '"success"' in match["rest"]:
        if call.name.startswith("unlink"):
            return "remove the marker"
        if "O_CREAT" in match["rest"]:
            return "create the marker"
    return None


@each_case
def test_data_come_before_names_and_names_before_the_marker(place: Place, case: Case) -> None:
    staging = "HOME/out/.archive.#"

    done = steps(place, case)

    if case.method.name == "move":
        done.remove("make a directory in HOME")  # the twin
    assert done == [
        "remove the marker",
        "fsync HOME",
        # Once for all that was written, and not for each file.
        f"fsync {staging}/archive" if case.method.makes == "file" else f"syncfs {staging}",
        "publish",
        # A merge has made entries in many directories.
        "syncfs HOME/out" if case.if_exists == "merge" else "fsync HOME/out",
        "create the marker",
        "fsync HOME",
    ]


def test_directories_that_were_missing_last_too(place: Place) -> None:
    case = next(case for case in CASES if case.method.name == "tar.gz")

    done = steps(
        place,
        case,
        archive_to=place.out / "one" / "two" / "archive",
        success=place.out / "three" / "success",
    )

    assert "publish" in steps(place, case), "the pattern matches"
    assert done == [
        "make a directory in HOME/out",
        "fsync HOME/out",
        "make a directory in HOME/out/one",
        "fsync HOME/out/one",
        "fsync HOME/out/one/two/.archive.#/archive",
        "fsync HOME/out/one/two",
        "make a directory in HOME/out",
        "fsync HOME/out",
        "create the marker",
        "fsync HOME/out/three",
    ]


@each_case
def test_without_fsync_nothing_is_flushed(place: Place, case: Case) -> None:
    done = steps(place, case, "--no-fsync")

    assert "create the marker" in done
    assert not [step for step in done if step.partition(" ")[0] in FLUSHING]
