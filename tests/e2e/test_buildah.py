"""buildah, which runs hooks and tells them nothing: it passes no annotations on."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from tests.support import hooks, tools
from tests.support.engines import HOOK, IMAGE, Engine

if TYPE_CHECKING:
    from tests.support.engines import Machine

RECORDER = """\
#!/bin/sh
cp config.json "$1"
"""


@pytest.mark.parametrize("command", ["build", "run"])
def test_a_hook_of_buildah_runs_but_finds_no_annotations(machine: Machine, command: str) -> None:
    tools.need("buildah")
    engine = Engine(machine, rootless=False, store="native", runtime="runc")
    home = engine.new_directory(f"buildah-{command}")
    asked = hooks.annotations("data", mount_point="/data", archive_to=f"{home}/archive", success=f"{home}/ok")
    machine.run("mkdir", f"{home}/volume", f"{home}/hooks", f"{home}/context")
    outside = machine.outside(home)
    (outside / "recorder").write_text(RECORDER)
    (outside / "recorder").chmod(0o755)
    for name, path, arguments in (
        ("first", HOOK, ["archive_overlay", f"--log-file={home}/log", "--log-level=debug"]),
        ("second", f"{home}/recorder", ["recorder", f"{home}/config.json"]),
    ):
        configuration = {
            "version": "1.0.0",
            "hook": {"path": path, "args": arguments},
            # buildah matches the annotations of the image.
            "when": {"annotations": {r"^com\.launchplatform\.oci-hooks\.archive-overlay\.": ".*"}},
            "stages": ["poststop"],
        }
        (outside / f"hooks/{name}.json").write_text(json.dumps(configuration))
    image, volume = f"localhost/asks-{command}", f"--volume={home}/volume:/data:O"
    runtime = "--runtime=runc"

    def buildah(*arguments: str) -> None:
        machine.run("buildah", *arguments, environment=engine.environment)

    (outside / "context/Containerfile").write_text(f"FROM {IMAGE}\n")
    annotations = [f"--annotation={key}={value}" for key, value in asked.items()]
    buildah("build", *annotations, f"--tag={image}", f"{home}/context")
    if command == "build":
        (outside / "context/Containerfile").write_text(f"FROM {image}\nRUN echo made >/data/made\n")
        buildah("build", runtime, f"--hooks-dir={home}/hooks", volume, f"{home}/context")
    else:
        # `buildah run` has no option for hook directories, and takes those that are always there.
        machine.run("mkdir", "-p", "/etc/containers/oci")
        machine.run("cp", "-r", f"{home}/hooks", "/etc/containers/oci/hooks.d")
        buildah("from", "--name=asks", image)
        buildah("run", runtime, volume, "asks", "--", "sh", "-ec", "echo made >/data/made")
        machine.run("rm", "-r", "/etc/containers/oci/hooks.d")

    spec = json.loads((outside / "config.json").read_text())
    assert [mount["type"] for mount in spec["mounts"] if mount["destination"] == "/data"] == ["overlay"]
    assert not spec.get("annotations")
    assert [hook["path"] for hook in spec["hooks"]["poststop"]] == [HOOK, f"{home}/recorder"]
    assert not (outside / "archive").exists()
    assert not (outside / "ok").exists()
