"""What runs in a namespace of the tests is this process in all but its namespaces."""

from __future__ import annotations

import os
import subprocess
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support import tools

if TYPE_CHECKING:
    from typing import Callable

    from tests.support.overlays import Namespace


@pytest.fixture(params=[False, True], ids=["rootful", "rootless"])
def inside(request: pytest.FixtureRequest, namespace: Callable[[bool], Namespace]) -> Namespace:
    if not request.param:
        tools.need_root()
    return namespace(request.param)


def namespaces() -> dict[str, str]:
    return {kind: os.readlink(f"/proc/self/ns/{kind}") for kind in ("mnt", "user")}


def test_a_function_is_in_the_namespaces_and_this_process_is_not(inside: Namespace) -> None:
    before, cwd = namespaces(), os.getcwd()
    found = inside.inside(namespaces)
    assert found["mnt"] == os.readlink(inside.path)
    assert (found["user"] != before["user"]) is inside.rootless
    assert (namespaces(), os.getcwd()) == (before, cwd)


def test_programs_that_it_starts_are_there_too(inside: Namespace) -> None:
    shown = inside.inside(lambda: subprocess.run(["readlink", "/proc/self/ns/mnt"], stdout=-1, check=True))
    assert shown.stdout.decode().strip() == os.readlink(inside.path)


def test_memory_and_files_are_those_of_this_process(inside: Namespace, tmp_path: Path) -> None:
    kept: list[int] = []

    inside.inside(lambda: kept.append(os.open(tmp_path, os.O_RDONLY)))

    assert os.path.sameopenfile(kept[0], kept[0])
    assert os.stat(kept[0]).st_ino == tmp_path.stat().st_ino
    os.close(kept[0])


def test_deep_calls_have_room(inside: Namespace) -> None:
    def depth(left: int) -> int:
        return 1 + (max([left - 1], key=depth) and 0 if left else 0)

    assert inside.inside(lambda: depth(200)) == 1


def test_what_is_raised_is_told(inside: Namespace) -> None:
    with pytest.raises(AssertionError, match=r"(?s)inside the namespace:.*ZeroDivisionError"):
        inside.inside(lambda: 1 // 0)


def test_a_thread_can_go_there_while_others_go_on(inside: Namespace) -> None:
    found: list[dict[str, str]] = []
    thread = threading.Thread(target=lambda: found.extend(inside.inside(namespaces) for _ in range(20)))
    thread.start()
    thread.join()
    assert {each["mnt"] for each in found} == {os.readlink(inside.path)}
