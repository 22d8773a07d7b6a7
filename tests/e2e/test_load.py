"""The same podman run again and again: each container finds what the last one left, and the store stays small."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from tests.support import hooks, tools
from tests.support.engines import IMAGE, Engine

if TYPE_CHECKING:
    from tests.support.engines import Machine

FLAVOURS = [
    pytest.param((False, "native", "crun"), id="rootful-native"),
    pytest.param((False, "fuse", "runc"), id="rootful-fuse"),
    pytest.param((True, "native", "runc"), id="rootless-native"),
    pytest.param((True, "fuse", "crun"), id="rootless-fuse"),
]
flavours = pytest.mark.parametrize("flavour", FLAVOURS)
rootful = pytest.mark.parametrize("flavour", FLAVOURS[:1])


class Data:
    """An image that containers mount by a name of its own, and the layout with its history."""

    def __init__(self, engine: Engine, name: str) -> None:
        tools.need("skopeo")
        self.engine = engine
        self.image = f"localhost/{name}:main"
        self.layout = f"{engine.new_directory(name)}/layout"
        engine.podman("tag", IMAGE, self.image)

    def run(self, name: str, command: str, *, detach: bool = False, check: bool = True, **keys: str) -> str:
        asked = {
            "mount_point": "/data",
            "archive_to": f"{self.layout}:main",
            "method": "oci",
            "load_as": self.image,
            **keys,
        }
        return self.engine.run(
            name,
            *("--rm", "--mount", f"type=image,source={self.image},destination=/data,rw=true"),
            command=command,
            annotations=hooks.annotations("data", **asked),
            detach=detach,
            check=check,
        ).stdout

    def revisions(self, tag: str = "main") -> list[int]:
        """Give the numbers of the revisions that the hook made, newest first."""
        index = json.loads(self.engine.machine.outside(f"{self.layout}/index.json").read_bytes())
        assert any(
            each.get("annotations", {}).get("org.opencontainers.image.ref.name") == tag
            for each in index["manifests"]
        )
        found = tools_log(self, tag)
        return [each["revision"] for each in found if each["container"]]

    def images(self) -> list[dict[str, object]]:
        """Give all images of the store that have, or had, the name."""
        found = json.loads(self.engine.podman("images", "--all", "--format=json").stdout)
        return [each for each in found if any(self.image == name for name in each.get("History") or [])]

    def mounted(self) -> str:
        """Give the images that are mounted."""
        return self.engine.as_container_root("podman", "image", "mount")


def tools_log(data: Data, tag: str) -> list[dict[str, object]]:
    from tests.support import history

    path = data.engine.machine.outside(data.layout)
    found: list[dict[str, object]] = json.loads(history.output_of("log", "--json", f"{path}:{tag}"))
    return found


@pytest.fixture
def data(flavour: tuple[bool, str, str], machine: Machine, request: pytest.FixtureRequest) -> Data:
    name = "load-" + request.node.name.partition("[")[0][len("test_") :].replace("_", "-")[:30].strip("-")
    return Data(Engine(machine, *flavour), name)


@flavours
def test_each_container_finds_what_the_last_one_left(data: Data) -> None:
    before = data.mounted()
    for number in range(4):
        found = data.run(
            f"again{number}",
            f"cat /data/count 2>/dev/null || :; echo {number} >> /data/count; rm -rf /data/d; mkdir /data/d",
        )
        assert found.split() == [str(each) for each in range(number)]
    assert len(data.revisions()) == 4
    assert data.mounted() == before
    assert len(data.images()) <= 2


@flavours
def test_two_containers_at_once_end_as_two_branches_and_the_name_stays_with_the_first(data: Data) -> None:
    data.run("first", "exec sleep 1000", detach=True)
    data.run("second", "exec sleep 1000", detach=True)
    for name in ("first", "second"):
        data.engine.podman("exec", name, "sh", "-c", f"echo {name} > /data/{name}")
    for name in ("first", "second"):
        data.engine.podman("stop", "--time=0", name)
    seen = data.run("third", "ls /data")
    assert "first" in seen.split()
    assert "second" not in seen.split()
    tags = data.engine.machine.outside(f"{data.layout}/index.json").read_text()
    assert "main-" in tags
