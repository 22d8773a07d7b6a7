"""What podman's hook tells a program of the administrator: names that people know, and what the next container finds."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from tests.support import hooks, tools
from tests.support.engines import HOOK, IMAGE, Engine

if TYPE_CHECKING:
    from tests.support.engines import Machine


@pytest.mark.parametrize(
    "flavour",
    [
        pytest.param((False, "native", "crun"), id="rootful-native"),
        pytest.param((True, "fuse", "crun"), id="rootless-fuse"),
    ],
)
def test_a_program_is_told_by_which_name_a_revision_was_loaded(
    machine: Machine, flavour: tuple[bool, str, str]
) -> None:
    tools.need("skopeo")
    engine = Engine(machine, *flavour)
    home = engine.new_directory("reports")
    engine.new_directory("reports/hooks")
    outside = machine.outside(home)
    (outside / "program").write_text(f"#!/bin/sh\ncat >>'{home}/told'\n")
    (outside / "program").chmod(0o755)
    arguments = ["archive_overlay", f"--on-success={home}/program", f"--on-failure={home}/program"]
    configuration = {
        "version": "1.0.0",
        "hook": {"path": HOOK, "args": [*arguments, "--allow-load-as=localhost/reports"]},
        "when": {"always": True},
        "stages": ["poststop"],
    }
    (outside / "hooks/archive_overlay.json").write_text(json.dumps(configuration))
    engine.podman("tag", IMAGE, "localhost/reports:main")

    for container, name in (("reports-loaded", "reports"), ("reports-refused", "elsewhere")):
        engine.run(
            container,
            *("--rm", "--mount", "type=image,source=localhost/reports:main,destination=/data,rw=true"),
            command="echo $HOSTNAME >/data/made",
            annotations=hooks.annotations(
                "data",
                mount_point="/data",
                archive_to=f"{home}/layout:main",
                method="oci",
                load_as=f"localhost/{name}:main",
            ),
            podman_options=("--hooks-dir", f"{home}/hooks"),
        )

    loaded, refused = [json.loads(line) for line in (outside / "told").read_text().splitlines()]
    assert [loaded[field] for field in ("container_name", "image", "saved", "error")] == [
        *("reports-loaded", IMAGE, True, None)
    ]
    assert [loaded[field] for field in ("path", "tag", "revision", "loaded", "pushed")] == [
        *(f"{home}/layout", "main", 2, "localhost/reports:main", None)
    ]
    assert (refused["container_name"], refused["saved"], refused["revision"]) == ("reports-refused", True, 3)
    assert refused["loaded"] is None
    assert "load-as localhost/elsewhere:main is not allowed" in refused["error"]
