"""One container of each kind of podman: what it changed is at the paths that its annotations name."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from tests.e2e.archives import Entry, read_directory, read_tar
from tests.support import hooks
from tests.support.engines import FIRST_SUBORDINATE, FUSE_OVERLAYFS, HOOK, IMAGE, Engine

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.engines import Machine

CHANGES = """
    cd /data/tree
    rm deleted
    rm -r replaced
    mkdir replaced
    echo new > replaced/new
    ln -s ../no/where link
    echo changed by the container > changed
    ln changed twin
    chown 1234:2345 owned
    chmod 4750 program
    touch -d '2001-02-03 04:05:06' dated
    mkfifo pipe
    rm /volume/deleted
    echo made > /volume/made
    rm /tree/deleted
    echo made > /tree/made
"""
DATED = 981_173_106 * 10**9


@dataclass(frozen=True)
class Saved:
    """A container that has stopped.

    Attributes:
        engine: whose container it was.
        directory: where its archives are, a path on the machine.
        data: the archives of the image mount, by method.
        volume, root: archives of the volume and of the root file system.
    """

    engine: Engine
    directory: str
    data: dict[str, dict[str, Entry]]
    volume: dict[str, Entry]
    root: dict[str, Entry]

    def outside(self, name: str) -> Path:
        return self.engine.machine.outside(f"{self.directory}/{name}")


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(
            (rootless, store, runtime), id=f"{'rootless' if rootless else 'rootful'}-{store}-{runtime}"
        )
        for rootless in (False, True)
        for store in ("native", "fuse")
        for runtime in ("runc", "crun")
    ],
)
def saved(request: pytest.FixtureRequest, machine: Machine) -> Saved:
    """Run a container that asks for four archives, two of them of one mount."""
    engine = Engine(machine, *request.param)
    directory = engine.new_directory(f"archives-{engine.runtime}")
    volume = engine.new_directory(f"volume-{engine.runtime}")
    for name in ("kept", "deleted"):
        machine.outside(f"{volume}/{name}").write_text("on the volume\n")
    container = f"matrix-{engine.runtime}"
    asked = {}
    for name, mount_point, method in (
        ("data-copy", "/data", "copy"),
        ("data-tar", "/data/", "tar.gz"),
        ("volume", "/volume", "copy"),
        ("root", "/", "tar.gz"),
    ):
        asked.update(
            hooks.annotations(
                name,
                mount_point=mount_point,
                archive_to=f"{directory}/{name}",
                success=f"{directory}/{name}.success",
                method=method,
            )
        )
    engine.run(
        container,
        *("--volume", f"{volume}:/volume:O"),
        *("--mount", f"type=image,source={IMAGE},destination=/data,rw=true"),
        command=CHANGES,
        annotations=asked,
    )
    outside = machine.outside(directory)
    return Saved(
        engine,
        directory,
        data={
            "copy": read_directory(engine, f"{directory}/data-copy"),
            "tar.gz": read_tar(outside / "data-tar"),
        },
        volume=read_directory(engine, f"{directory}/volume"),
        root=read_tar(outside / "root"),
    )


@pytest.fixture(params=["copy", "tar.gz"])
def data(request: pytest.FixtureRequest, saved: Saved) -> dict[str, Entry]:
    """The archive of the image mount by one method."""
    return saved.data[request.param]


# Asked once for each store: podman takes a second to answer.
_about: dict[tuple[bool, str], dict[str, Any]] = {}


def about(engine: Engine) -> dict[str, Any]:
    """Give what podman says of the engine's store."""
    store = engine.rootless, engine.store
    if store not in _about:
        _about[store] = json.loads(engine.podman("info", "--format", "json").stdout)
    return _about[store]


def test_the_engine_is_what_the_test_is_named_after(saved: Saved) -> None:
    engine = saved.engine
    info = about(engine)
    assert info["host"]["security"]["rootless"] is engine.rootless
    assert info["store"]["graphDriverName"] == "overlay"
    served = info["store"]["graphOptions"].get("overlay.mount_program", {}).get("Executable")
    assert served == (FUSE_OVERLAYFS if engine.store == "fuse" else None)
    native_diff = info["store"]["graphStatus"]["Native Overlay Diff"]
    assert native_diff == ("false" if engine.store == "fuse" else "true")
    assert engine.inspect(f"matrix-{engine.runtime}", "OCIRuntime") == engine.runtime
    mounts = {mount["destination"]: mount for mount in engine.spec(f"matrix-{engine.runtime}")["mounts"]}
    for destination in ("/data", "/volume"):
        mount = mounts[destination]
        assert mount["type"] == ("bind" if engine.store == "fuse" else "overlay")
        assert ("userxattr" in mount["options"]) == (engine.rootless and engine.store == "native")


def test_an_archive_holds_what_changed_and_nothing_else(data: dict[str, Entry]) -> None:
    names = [
        "changed",
        "twin",
        "deleted",
        "dated",
        "link",
        "owned",
        "pipe",
        "program",
        "replaced",
        "replaced/new",
    ]
    assert sorted(data) == sorted([".", "tree", *(f"tree/{name}" for name in names)])


def test_a_deleted_name_is_a_whiteout(data: dict[str, Entry]) -> None:
    assert data["tree/deleted"].is_whiteout
    assert [name for name, entry in data.items() if entry.is_whiteout] == ["tree/deleted"]


def test_a_replaced_directory_is_opaque(saved: Saved, data: dict[str, Entry]) -> None:
    assert data["tree/replaced"].kind == "directory"
    assert data["tree/replaced"].attributes == {saved.engine.opaque_attribute: "y"}
    assert data["tree/replaced/new"].content == b"new\n"


def test_no_bookkeeping_of_the_overlay_is_in_an_archive(data: dict[str, Entry]) -> None:
    assert {name: entry.attributes for name, entry in data.items() if entry.attributes}.keys() == {
        "tree/replaced"
    }


def test_a_symlink_keeps_its_target(data: dict[str, Entry]) -> None:
    assert data["tree/link"].kind == "symlink"
    assert data["tree/link"].target == "../no/where"


def test_a_changed_file_has_its_new_content_under_both_names(data: dict[str, Entry]) -> None:
    pair = [data["tree/changed"], data["tree/twin"]]
    assert sorted(entry.kind for entry in pair) == ["file", "hard link"]
    assert b"".join(entry.content for entry in pair) == b"changed by the container\n"


def test_owner_mode_and_time_are_the_container_s(data: dict[str, Entry]) -> None:
    assert data["tree/owned"].owner == (1234, 2345)
    assert data["tree/owned"].content == b"owned of the image\n"
    assert data["tree/program"].mode == 0o4750
    assert data["tree/program"].owner == (0, 0)
    assert data["tree/dated"].mtime_ns == DATED


def test_a_fifo_is_kept(data: dict[str, Entry]) -> None:
    assert data["tree/pipe"].kind == "FIFO"


def test_owners_of_a_copy_are_mapped_outside(saved: Saved) -> None:
    status = (saved.outside("data-copy") / "tree/owned").stat()
    if saved.engine.rootless:
        assert (status.st_uid, status.st_gid) == (FIRST_SUBORDINATE + 1233, FIRST_SUBORDINATE + 2344)
    else:
        assert (status.st_uid, status.st_gid) == (1234, 2345)


def test_both_methods_agree(saved: Saved) -> None:
    copied, packed = (
        {
            name: (entry.mode, entry.owner, entry.mtime_ns)
            for name, entry in saved.data[method].items()
            if not entry.is_whiteout
        }
        for method in ("copy", "tar.gz")
    )
    assert copied == packed


def test_a_volume_with_an_overlay_is_saved(saved: Saved) -> None:
    assert sorted(saved.volume) == [".", "deleted", "made"]
    assert saved.volume["deleted"].is_whiteout
    assert saved.volume["made"].content == b"made\n"


def test_the_root_file_system_is_saved(saved: Saved) -> None:
    assert [name for name in sorted(saved.root) if name.startswith("tree")] == [
        "tree",
        "tree/deleted",
        "tree/made",
    ]
    assert saved.root["tree/deleted"].is_whiteout
    assert saved.root["tree/made"].content == b"made\n"


def test_success_markers_are_empty_and_no_staging_is_left(saved: Saved) -> None:
    names = {"data-copy", "data-tar", "volume", "root"}
    markers = {f"{name}.success" for name in names}
    assert {path.name for path in saved.outside("").iterdir()} == names | markers
    for marker in markers:
        assert saved.outside(marker).read_bytes() == b""


def test_the_root_file_system_can_be_saved_by_hand_after_podman_has_unmounted_it(saved: Saved) -> None:
    engine = saved.engine
    bundle, archives = (
        engine.new_directory(f"{name}-by-hand-{engine.runtime}") for name in ("bundle", "archives")
    )
    annotations = hooks.annotations("root", mount_point="/", archive_to=f"{archives}/root", method="tar.gz")
    spec = {"root": engine.spec(f"matrix-{engine.runtime}")["root"], "annotations": annotations}
    engine.machine.outside(f"{bundle}/config.json").write_text(json.dumps(spec))
    log = f"{bundle}/log"
    command = f"{HOOK} --log-file={log} --bundle={bundle} || true"

    engine.as_container_root("sh", "-c", command)

    if engine.store == "fuse":
        assert "served by a mount program" in engine.machine.outside(log).read_text()
        assert not engine.machine.outside(f"{archives}/root").exists()
    else:
        assert read_tar(engine.machine.outside(f"{archives}/root")) == saved.root
