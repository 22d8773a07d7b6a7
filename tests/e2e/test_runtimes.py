"""The hook run by runc and crun themselves, without an engine around them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from tests.e2e.archives import read_directory, read_tar
from tests.support import hooks
from tests.support.engines import HERE, HOOK, IMAGE_ROOT, Engine

if TYPE_CHECKING:
    from tests.support.engines import Machine

CHANGES = """
    cd /tree
    rm deleted
    rm -r replaced
    mkdir replaced
    ln -s ../no/where link
    echo changed > changed
"""

# Unlike podman, a runtime passes its caller's environment on to hooks.
HOSTILE = {"PYTHONHOME": "/nowhere", "PYTHONPATH": "/nowhere", "PYTHONSTARTUP": "/nowhere", "LC_ALL": "C"}


@pytest.mark.parametrize("runtime", ["runc", "crun"])
def test_a_bundle_with_an_overlay_and_a_poststop_hook_is_saved(machine: Machine, runtime: str) -> None:
    bundle = f"{HERE}/bundle-{runtime}"
    machine.run("mkdir", "-p", *(f"{bundle}/{name}" for name in ("upper", "work", "archives")))
    machine.run(runtime, "spec", "--bundle", bundle)
    config = machine.outside(f"{bundle}/config.json")
    spec = json.loads(config.read_text())
    spec["process"].update(terminal=False, args=["sh", "-ec", CHANGES])
    spec["root"].update(path=IMAGE_ROOT, readonly=True)
    layers = f"lowerdir={IMAGE_ROOT}/tree,upperdir={bundle}/upper,workdir={bundle}/work".split(",")
    spec["mounts"].append({"destination": "/tree", "type": "overlay", "source": "overlay", "options": layers})
    spec["hooks"] = {"poststop": [{"path": HOOK, "args": ["archive_overlay"]}]}
    spec["annotations"] = {
        **hooks.annotations(
            "copy",
            mount_point="/tree",
            archive_to=f"{bundle}/archives/copy",
            success=f"{bundle}/archives/copy.success",
            method="copy",
        ),
        **hooks.annotations(
            "tar",
            mount_point="/tree",
            archive_to=f"{bundle}/archives/tar",
            success=f"{bundle}/archives/tar.success",
            method="tar.gz",
        ),
    }
    # Why not the same for both: see `Engine.run`.
    spec["linux"]["cgroupsPath"] = f"{machine.cgroup}/bundle"
    options = ["--cgroup-manager=disabled"] if runtime == "crun" else []
    config.write_text(json.dumps(spec))

    machine.run(runtime, *options, "run", "--bundle", bundle, f"bundle-{runtime}", environment=HOSTILE)

    archives = machine.outside(f"{bundle}/archives")
    assert {path.name for path in archives.iterdir()} == {"copy", "copy.success", "tar", "tar.success"}
    native = Engine(machine, rootless=False, store="native", runtime=runtime)
    for archive in (read_directory(native, f"{bundle}/archives/copy"), read_tar(archives / "tar")):
        assert sorted(archive) == [".", "changed", "deleted", "link", "replaced"]
        assert archive["changed"].content == b"changed\n"
        assert archive["deleted"].is_whiteout
        assert archive["link"].target == "../no/where"
        assert archive["replaced"].attributes == {"trusted.overlay.opaque": "y"}
