"""Containers of an engine whose data go to a registry, as root and as an ordinary user."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from tests.support import hooks, tools
from tests.support.engines import HOOKS_DIR, IMAGE, Engine
from tests.support.registry import Registry

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.engines import Machine


@pytest.mark.parametrize(
    "flavour",
    [
        pytest.param((False, "native", "crun"), id="rootful"),
        pytest.param((True, "fuse", "crun"), id="rootless"),
    ],
)
def test_what_containers_leave_is_in_the_registry(
    flavour: tuple[bool, str, str], machine: Machine, tmp_path: Path
) -> None:
    tools.need("skopeo")
    engine = Engine(machine, *flavour)
    directory = engine.new_directory("push")
    image = "localhost/push:main"
    engine.podman("tag", IMAGE, image)
    with Registry(tmp_path / "registry", password=True) as registry:
        options = [f"--allow-push-to={registry.host}/team", "--tls-verify=false"]
        passwords = registry.authfile(tmp_path / "auth.json").read_text()
        configuration = json.loads(machine.outside(f"{HOOKS_DIR}/archive_overlay.json").read_text())
        configuration["hook"]["args"] += [*options, f"--authfile={directory}/auth.json"]
        machine.outside(f"{directory}/hooks").mkdir()
        machine.outside(f"{directory}/hooks/hook.json").write_text(json.dumps(configuration))
        # It belongs to root, and the user may read it: what else is in the directory is the user's.
        machine.outside(f"{directory}/auth.json").write_text(passwords)
        machine.outside(f"{directory}/auth.json").chmod(0o644)
        for number in range(2):
            engine.run(
                f"push{number}",
                *("--rm", "--mount", f"type=image,source={image},destination=/data,rw=true"),
                command=f"echo {number} > /data/pushed",
                annotations=hooks.annotations(
                    "data",
                    mount_point="/data",
                    archive_to=f"{directory}/layout:main",
                    method="oci",
                    load_as=image,
                    push_to=registry.reference("team/data"),
                ),
                podman_options=("--hooks-dir", f"{directory}/hooks"),
            )
            index = json.loads(machine.outside(f"{directory}/layout/index.json").read_bytes())
            (entry,) = (each for each in index["manifests"] if "annotations" in each)
            assert registry.digest("team/data") == entry["digest"]
        assert len(registry.manifest("team/data")["layers"]) == 3
