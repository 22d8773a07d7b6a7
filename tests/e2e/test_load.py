"""The same podman run again and again: each container finds what the last one left, and the store stays small."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

import pytest

from tests.support import history, hooks, tools
from tests.support.engines import HOOK, HOOKS_DIR, IMAGE, USER, Engine, wait_until

if TYPE_CHECKING:
    from pathlib import Path

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

    def run(
        self,
        name: str,
        command: str,
        *options: str,
        detach: bool = False,
        check: bool = True,
        podman: tuple[str, ...] = (),
        **keys: str,
    ) -> str:
        asked = {
            "mount_point": "/data",
            "archive_to": f"{self.layout}:main",
            "method": "oci",
            "load_as": self.image,
            **keys,
        }
        return self.engine.run(
            name,
            *("--mount", f"type=image,source={self.image},destination=/data,rw=true"),
            *(options or ("--rm",)),
            command=command,
            annotations=hooks.annotations("data", **asked),
            detach=detach,
            check=check,
            podman_options=podman,
        ).stdout

    def revisions(self, tag: str = "main") -> list[int]:
        """Give the numbers of the revisions that the hook made, newest first."""
        index = json.loads(self.engine.machine.outside(f"{self.layout}/index.json").read_bytes())
        assert any(
            each.get("annotations", {}).get("org.opencontainers.image.ref.name") == tag
            for each in index["manifests"]
        )
        found = json.loads(
            history.output_of("log", "--json", f"{self.engine.machine.outside(self.layout)}:{tag}")
        )
        return [each["revision"] for each in found if each["container"]]

    def images(self) -> set[str]:
        """Give the ids of all images of the store that have, or had, the name."""
        found = json.loads(self.engine.podman("images", "--all", "--format=json").stdout)
        return {each["Id"] for each in found if any(self.image == name for name in each.get("History") or [])}

    def mounted(self) -> str:
        """Give the images that are mounted."""
        return self.engine.as_container_root("podman", "image", "mount")

    def with_options(self, *options: str) -> tuple[tuple[str, ...], Path]:
        """Give podman's options for a hook with options of its own, and the file with its log."""
        directory = self.engine.new_directory(self.layout.split("/")[-2] + "-hooks")
        configuration = json.loads(
            self.engine.machine.outside(f"{HOOKS_DIR}/archive_overlay.json").read_text()
        )
        configuration["hook"]["args"] += [*options, f"--log-file={directory}/log"]
        self.engine.machine.outside(f"{directory}/archive_overlay.json").write_text(json.dumps(configuration))
        return ("--hooks-dir", directory), self.engine.machine.outside(f"{directory}/log")

    def identifier(self) -> str:
        """Give the id of the image that has the name."""
        return self.engine.podman("image", "inspect", "--format={{.Id}}", self.image).stdout.strip()


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


@rootful
def test_a_container_that_is_started_again_finds_what_it_left(data: Data) -> None:
    before = data.mounted()
    script = "cat /data/count 2>/dev/null || :; echo once >> /data/count; [ $(wc -l < /data/count) -ge 3 ]"
    # Some releases wait for the last of the restarts, and others for the first end alone.
    data.run("restarts", script, "--restart=on-failure:5", check=False)
    wait_until(lambda: data.revisions() == [4, 3, 2], "the container did not stop three times")
    data.engine.podman("wait", "restarts")
    assert data.engine.podman("start", "--attach", "restarts").stdout.split() == ["once"] * 3
    assert data.revisions() == [5, 4, 3, 2]
    assert data.mounted() == before


@rootful
def test_a_name_that_was_set_back_by_hand_stays_and_a_warning_says_how_to_move_it(data: Data) -> None:
    podman, log = data.with_options()
    for number in range(2):
        data.run(f"back{number}", f"echo {number} >> /data/count", podman=podman)
    data.engine.podman("tag", IMAGE, data.image)

    data.run("back-again", "echo branch > /data/count", podman=podman)

    (said,) = [
        line
        for line in hooks.parse_log(log.read_text())
        if line.level == "warning" and "Choose" in line.message
    ]
    assert f"{data.image} is revision 1 of main in the engine's store, and the newest is 3" in said.message
    newest, branch = re.findall(r"archive_overlay load (\S+) localhost/\S+", said.message)
    assert newest == f"{data.layout}:main"
    for tag, content in ((newest, ["0", "1"]), (branch, ["branch"])):
        data.engine.machine.run(HOOK, "load", tag, data.image, environment=data.engine.environment)
        assert data.run("back-look", "cat /data/count", podman=podman).split() == content


@rootful
def test_another_image_with_the_name_stays(data: Data) -> None:
    podman, log = data.with_options()
    data.run("other", "touch /data/x; exec sleep 1000", detach=True, podman=podman)
    data.engine.podman("commit", "--quiet", "other", data.image)
    other = data.identifier()
    data.engine.podman("stop", "--time=0", "other")
    assert data.revisions() == [2]
    assert data.identifier() == other
    (line,) = [line for line in log.read_text().splitlines() if "is safe" in line]
    assert "level=error" in line
    assert "is another image in the engine's store" in line


@rootful
def test_what_could_not_be_loaded_is_loaded_at_the_next_stop(data: Data) -> None:
    podman, log = data.with_options("--skopeo=/nonexistent")
    data.run("without", "touch /data/first", podman=podman)
    assert data.revisions() == [2]
    said = [line for line in log.read_text().splitlines() if "will not be loaded" in line or "saved" in line]
    assert "no program /nonexistent" in said[0]
    assert "first" not in data.run("next", "ls /data").split()
    assert "first" in data.run("last", "ls /data").split()


@rootful
def test_an_administrator_limits_the_names(data: Data) -> None:
    podman, log = data.with_options(
        f"--allow-archive-to={data.engine.home}", "--allow-load-as=localhost/other"
    )
    before = data.identifier()
    data.run("limited", "touch /data/first", podman=podman)
    assert data.revisions() == [2]
    assert data.identifier() == before
    assert f"load-as {data.image} is not allowed" in log.read_text()


@rootful
def test_changes_of_a_directory_are_not_loaded_without_it(data: Data) -> None:
    podman, log = data.with_options()
    directory = data.engine.new_directory(data.layout.split("/")[-2] + "-directory")
    data.engine.machine.outside(f"{directory}/below").write_text("")
    fresh = "localhost/fresh-from-a-directory:main"
    asked = {"mount_point": "/d", "archive_to": f"{data.layout}:main", "method": "oci", "load_as": fresh}
    data.engine.run(
        "of-a-directory",
        *("--rm", f"--volume={directory}:/d:O"),
        command="touch /d/x",
        annotations=hooks.annotations("data", **asked),
        podman_options=podman,
    )
    assert data.revisions() == [1]
    assert data.engine.podman("image", "exists", fresh, check=False).returncode == 1
    assert "so the next container could not use it" in log.read_text()


@pytest.mark.parametrize("flavour", [FLAVOURS[0], FLAVOURS[2]])
def test_after_revert_a_person_loads_and_the_next_container_goes_on_from_there(data: Data) -> None:
    engine = data.engine

    def load(tag: str = "main", *, check: bool = True) -> str:
        done = engine.machine.run(
            *(HOOK, "load", f"{data.layout}:{tag}", data.image),
            user=USER if engine.rootless else 0,
            environment=engine.environment,
            check=check,
        )
        return done.stdout + done.stderr

    for number in range(3):
        data.run(f"revert{number}", f"echo {number} >> /data/count")
    engine.as_container_root(HOOK, "revert", f"{data.layout}:main@2")

    assert load() == f"{data.layout}:main: loaded as {data.image}\n"
    assert load() == f"{data.image} is {data.layout}:main already\n"
    assert data.run("revert-next", "cat /data/count; echo next >> /data/count").split() == ["0"]
    assert len(data.revisions()) == 4  # no branch

    engine.as_container_root(HOOK, "tag", f"{data.layout}:main@3", "old")
    load("old")
    assert data.run("revert-old", "cat /data/count").split() == ["0", "1"]

    engine.podman("tag", IMAGE, data.image)
    load()
    assert data.run("revert-again", "cat /data/count").split() == ["0", "next"]

    if engine.rootless:
        return  # whose podman 4.3 does not commit with a store of its own
    engine.run("revert-other", command=":", annotations={})
    engine.podman("commit", "--quiet", "revert-other", data.image)
    other = data.identifier()
    assert "is another image in the engine's store" in load(check=False)
    assert data.identifier() == other
