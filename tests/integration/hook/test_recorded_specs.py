"""What engines hand over, as tests/data/specs has it, read by the package's own readers."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from archive_overlay.errors import ArchiveError
from archive_overlay.hook import runtime
from archive_overlay.hook.annotations import Context, group_by_name, parse_request
from archive_overlay.log import Log
from archive_overlay.overlay import locate
from archive_overlay.overlay.dialect import FUSE_OVERLAYFS, NATIVE, NATIVE_USERXATTR
from archive_overlay.overlay.mount import OverlayMount
from archive_overlay.overlay.options import from_mount_table, upperdirs
from archive_overlay.system import mountinfo
from archive_overlay.system.mountinfo import MountTable
from tests.support import tools
from tests.support.hooks import TOP

if TYPE_CHECKING:
    from collections.abc import Iterator

RECORDS = sorted((TOP / "tests/data/specs").glob("*.json"))
PODMAN = [path for path in RECORDS if path.stem.startswith("podman-")]

# Where the engines of the records kept what the tests make anew in a directory of their own.
STORES = ("/run/e2e/", "/run/containers/", "/var/lib/")


class Said:
    """A sink that keeps what is logged."""

    def __init__(self) -> None:
        self.messages: list[str] = []

    def write(self, level: str, message: str) -> None:
        self.messages.append(f"{level}: {message}")


class Record:
    """One record, with its bundle on disk.

    Attributes:
        name: the engine's.
        spec: what the package reads in the bundle.
        mounts: of the engine's mount namespace.
    """

    def __init__(self, path: Path, directory: Path) -> None:
        text = path.read_text()
        for store in STORES:
            text = text.replace(store, f"{directory}{store}")
        text = text.replace("user_id=0,", f"user_id={os.geteuid()},")
        kept: dict[str, Any] = json.loads(text)
        self.name = path.stem
        self.config = kept["config"]
        self.state = kept["state"]
        self.mounts = MountTable(line.encode() for line in kept["mountinfo"])
        self.processes: list[list[str]] = kept["fuse-overlayfs"]
        bundle = Path(self.state["bundle"])
        bundle.mkdir(parents=True)
        (bundle / "config.json").write_text(json.dumps(self.config))
        self.spec = runtime.read_spec(str(bundle))

    def source(self, destination: str) -> str:
        """Give the source of the mount at a destination."""
        (found,) = (mount.source for mount in self.spec.mounts if mount.destination == destination)
        return found

    def behind(self, path: str) -> OverlayMount:
        """Give the overlay of the kernel that is mounted at a path, by the record's mounts."""
        mounted = self.mounts.at(path)
        assert mounted, f"nothing is mounted at {path}"
        assert (mounted.type, mounted.root) == ("overlay", "/")
        return from_mount_table(mounted.options, path, upper="".join(upperdirs(mounted.options)))


@pytest.fixture(params=[pytest.param(path, id=path.stem) for path in RECORDS])
def record(request: pytest.FixtureRequest, tmp_path: Path) -> Record:
    """Each record."""
    return Record(request.param, tmp_path)


@pytest.fixture(params=[pytest.param(path, id=path.stem) for path in PODMAN])
def of_podman(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Record:
    """Each record of podman, with an image mount at /data and a volume at /volume, and its mounts as those here."""
    made = Record(request.param, tmp_path)
    monkeypatch.setattr(mountinfo, "read", lambda: made.mounts)
    return made


@pytest.fixture
def of_crio(tmp_path: Path) -> Record:
    """The container of a pod, as CRI-O describes it."""
    return Record(TOP / "tests/data/specs/crio.json", tmp_path)


@pytest.fixture
def mount_program(of_podman: Record, tmp_path: Path) -> Iterator[str]:
    """Give the path of a mount program whose processes have the record's command lines."""
    program = tmp_path / "fuse-overlayfs"
    processes = []
    if of_podman.processes:
        tools.need("busybox")
        if not os.access("/dev/fuse", os.R_OK | os.W_OK):
            tools.cannot_run("/dev/fuse is not open to this user")
        shutil.copy(str(shutil.which("busybox")), program)
    for arguments in of_podman.processes:
        # "yes" takes whatever arguments there are, and sleeps once nobody reads what it says.
        with open("/dev/fuse", "rb") as device:
            process = subprocess.Popen(
                ["yes", *arguments[1:]], executable=program, stdin=device, stdout=subprocess.PIPE
            )
        assert process.stdout
        process.stdout.read(1)
        processes.append(process)
    yield str(program)
    for process in processes:
        process.kill()
        process.communicate()


def test_the_state_says_which_container_and_where_its_bundle_is(record: Record) -> None:
    reader, writer = os.pipe()
    os.write(writer, json.dumps(record.state).encode())
    os.close(writer)
    try:
        state = runtime.read_state(reader)
    finally:
        os.close(reader)

    assert (state.id, state.bundle) == (record.state["id"], record.state["bundle"])
    assert len(state.id) == 64


def test_no_mount_of_the_spec_is_taken_for_malformed(record: Record) -> None:
    assert record.spec.faults == ()
    assert [mount.destination for mount in record.spec.mounts] == [
        mount["destination"] for mount in record.config["mounts"]
    ]
    assert record.spec.root == record.config["root"]["path"]


def test_the_annotations_ask_for_what_the_user_wanted_and_the_engine_s_own_for_nothing(
    record: Record,
) -> None:
    context = Context(id=record.state["id"], timestamp="20261122T010203.000004Z")
    said = Said()
    log = Log("warning", [said])
    requests = [
        parse_request(name, keys, context, log) for name, keys in group_by_name(record.spec.annotations, log)
    ]

    asked = {request.name: (request.mount_point, request.method.name) for request in requests}
    if record.name == "crio":
        assert asked == {"data": ("/data", "copy"), "root": ("/", "tar.gz")}
        assert all(
            request.archive_to.endswith(f"/{request.name}-{record.state['id']}") for request in requests
        )
    else:
        assert asked == {"data": ("/data", "copy")}
    assert said.messages == []


def find(of_podman: Record, mount_point: str, mount_program: str) -> OverlayMount:
    spec = of_podman.spec
    return locate.find_overlay(spec.mounts, spec.root, mount_point, mount_program=mount_program)


@pytest.mark.parametrize("destination", ["/data", "/volume"])
def test_the_upperdir_of_a_mount_of_podman_is_found(
    of_podman: Record, mount_program: str, destination: str
) -> None:
    upper = Path(of_podman.source(destination)).parent / "upper"
    upper.mkdir(parents=True)

    overlay = find(of_podman, destination, mount_program)

    assert overlay.upper == str(upper)
    (lower,) = overlay.lowers
    assert lower.endswith("/volume" if destination == "/volume" else "/merged")
    assert (
        overlay.dialect
        is {
            "podman-rootful-native": NATIVE,
            "podman-rootless-native": NATIVE_USERXATTR,
            "podman-rootful-fuse": FUSE_OVERLAYFS,
            "podman-rootless-fuse": FUSE_OVERLAYFS,
        }[of_podman.name]
    )


def test_the_upperdir_of_the_root_file_system_of_podman_is_found(
    of_podman: Record, mount_program: str
) -> None:
    upper = Path(of_podman.spec.root).parent / "diff"
    if of_podman.processes:
        upper.mkdir(parents=True)
        overlay = find(of_podman, "/", mount_program)
    else:
        overlay = of_podman.behind(of_podman.spec.root)

    assert overlay.upper == str(upper)
    assert overlay.lowers


def test_what_fuse_overlayfs_serves_has_its_upperdir_on_a_command_line_and_not_among_the_mounts(
    of_podman: Record,
) -> None:
    mounted = of_podman.mounts.at(of_podman.source("/data"))
    if not of_podman.processes:
        assert mounted is None, "the runtime mounts it, in the container's namespace"
        return
    assert mounted
    assert mounted.type == "fuse.fuse-overlayfs"
    assert not any("upperdir" in option for option in mounted.options)


def test_the_root_file_system_of_a_pod_s_container_is_an_overlay(of_crio: Record) -> None:
    overlay = of_crio.behind(of_crio.spec.root)

    assert overlay.upper == str(Path(of_crio.spec.root).parent / "diff")
    assert len(overlay.lowers) == 2
    assert overlay.may_refer_to_lowers, "it is mounted with metacopy=on"


def test_a_volume_of_a_pod_may_be_an_overlay_that_a_driver_mounted(of_crio: Record) -> None:
    overlay = of_crio.behind(of_crio.source("/data"))

    assert overlay.upper == "/srv/data/train/upper"


def test_an_image_volume_of_a_pod_is_read_only(of_crio: Record) -> None:
    with pytest.raises(ArchiveError, match="without an upperdir: it is mounted read-only"):
        of_crio.behind(of_crio.source("/model"))


def test_no_mount_of_a_pod_s_container_has_the_type_overlay(of_crio: Record) -> None:
    assert not [mount for mount in of_crio.spec.mounts if mount.type == "overlay"]
