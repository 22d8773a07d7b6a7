"""The circle of a directory: a container works on an overlay over it, and what it did becomes the directory's new state."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support import hooks, trees
from tests.support.engines import HOOK, Engine

if TYPE_CHECKING:
    from tests.support.engines import Machine

FIRST = "mkdir -p /data/d/e && echo a > /data/d/a && echo b > /data/d/e/b && echo c > /data/c"
SECOND = "rm -r /data/d && mkdir /data/d && echo new > /data/d/new && rm /data/c && ln -s d /data/link && chmod 700 /data/d"
LISTED = "cd /data && find . | sort && cat d/new"


@pytest.mark.parametrize(
    ("user", "store", "method"),
    [
        ("rootful", "native", "copy"),
        ("rootful", "fuse", "tar.gz"),
        ("rootless", "native", "tar.gz"),
        ("rootless", "fuse", "copy"),
    ],
)
def test_what_a_container_did_becomes_the_state_of_its_volume(
    machine: Machine, user: str, store: str, method: str
) -> None:
    engine = Engine(machine, user == "rootless", store, "crun")
    name = f"apply-{method.replace('.', '-')}"
    data = engine.new_directory(name)
    outside = engine.machine.outside(data)
    work = engine.new_directory(f"{name}-work")

    def run(number: int, command: str) -> str:
        asked = {"mount_point": "/data", "archive_to": f"{work}/{number}", "method": method}
        volume = ("--volume", f"{data}:/data:O")
        done = engine.run(
            f"{name}-{number}",
            "--rm",
            *volume,
            command=command,
            annotations=hooks.annotations("data", **asked),
        )
        return done.stdout

    def apply(archive: str, *options: str) -> str:
        return engine.as_container_root(HOOK, "apply", *options, archive, data)

    run(1, FIRST)
    assert apply(f"{work}/1") == f"applied to {data}: 5 entries, 0 deletions\n"
    before = trees.view(outside)
    expected = run(2, f"{SECOND} && {LISTED}")

    apply(f"{work}/2", "--reverse", f"{work}/undo.tar.gz")

    assert run(3, LISTED) == expected == ".\n./d\n./d/new\n./link\nnew\n"
    apply(f"{work}/undo.tar.gz")
    assert trees.view(outside) == before
