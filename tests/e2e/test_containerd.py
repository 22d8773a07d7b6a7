"""The hook under containerd: with a spec of one's own, and through a wrapper runtime that adds it to all specs.

docs/engines.md says what is seen here, and has the wrapper.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

import pytest

from tests.e2e.archives import Entry, read_directory, read_tar
from tests.support import hooks, image_layouts, tools
from tests.support.containerd import PROGRAMS, running
from tests.support.engines import HERE, HOOK, IMAGE, IMAGE_ROOT, TOP, Engine, wait_until

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterator, Mapping

    from tests.support.containerd import Containerd
    from tests.support.engines import Machine

CHANGES = """
    cd /tree
    rm deleted
    rm -r replaced
    mkdir replaced
    ln -s ../no/where link
    echo changed > changed
"""


@pytest.fixture
def containerd(request: pytest.FixtureRequest) -> Containerd:
    """Give the daemon, which is started once; each test that lacks it is listed."""
    tools.need(*PROGRAMS)
    started: Containerd = request.getfixturevalue("daemon")
    return started


@pytest.fixture(scope="module")
def daemon(machine: Machine) -> Iterator[Containerd]:
    """Start the daemon without what Kubernetes needs of it."""
    disabled = 'disabled_plugins = ["io.containerd.grpc.v1.cri"]'
    with running(machine, f"{HERE}/containerd", namespace="default", configuration=disabled) as started:
        yield started


class Box:
    """A container to be, whose spec is the test's.

    Args:
        containerd: what runs it.
        name: the container's, and that of the directory of its archives.
        hook: the hook's arguments.
    """

    def __init__(self, containerd: Containerd, name: str, *hook: str) -> None:
        self.name = name
        self.home = f"{HERE}/{name}"
        self.annotations: dict[str, str] = {}
        self._containerd = containerd
        machine = containerd.machine
        machine.run("mkdir", "-p", *(f"{self.home}/{made}" for made in ("upper", "work", "archives")))
        machine.run("runc", "spec", "--bundle", self.home)
        self.spec = json.loads(machine.outside(f"{self.home}/config.json").read_text())
        self.spec["root"].update(path=IMAGE_ROOT, readonly=True)
        self.spec["hooks"] = {"poststop": [{"path": HOOK, "args": ["archive_overlay", *hook]}]}
        self.spec["linux"]["cgroupsPath"] = f"{machine.cgroup}/{name}"

    def mount(self, destination: str, type: str, source: str, *options: str) -> None:
        mounted = {"destination": destination, "type": type, "source": source, "options": options}
        self.spec["mounts"].append(mounted)

    def mount_overlay(self) -> None:
        """Mount an overlay over the image's tree."""
        self.mount(
            *("/tree", "overlay", "overlay"),
            *(f"lowerdir={IMAGE_ROOT}/tree", f"upperdir={self.home}/upper", f"workdir={self.home}/work"),
        )

    def ask(self, mount_point: str, *methods: str) -> None:
        """Ask for an archive by each method; it and its marker are named after the method."""
        for method in methods:
            self.annotations |= hooks.annotations(
                method.replace(".", "-"),
                mount_point=mount_point,
                archive_to=f"{self.home}/archives/{method}{':main' if method == 'oci' else ''}",
                success=f"{self.home}/archives/{method}.success",
                method=method,
            )

    def run(self, command: str, *options: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a shell script in it by `ctr run`, to its end if there is an option for that."""
        self.spec["process"].update(terminal=False, args=["sh", "-ec", command])
        config = self._containerd.machine.outside(f"{self.home}/config.json")
        config.write_text(json.dumps({**self.spec, "annotations": self.annotations}))
        return self._containerd.ctr(
            *("run", *options, "--config", f"{self.home}/config.json", self.name), check=check
        )

    def status(self) -> str:
        """Give what containerd says of its task: RUNNING or STOPPED; empty when it has none."""
        lines = self._containerd.ctr("tasks", "list").stdout.splitlines()
        return next((line.split()[2] for line in lines if line.split()[0] == self.name), "")

    def archives(self) -> list[str]:
        return sorted(self._containerd.machine.run("ls", "-A", f"{self.home}/archives").stdout.split())

    def copied(self) -> Mapping[str, Entry]:
        native = Engine(self._containerd.machine, rootless=False, store="native", runtime="runc")
        return read_directory(native, f"{self.home}/archives/copy")

    def packed(self) -> Mapping[str, Entry]:
        return read_tar(self._containerd.machine.outside(f"{self.home}/archives/tar.gz"))

    def layout(self) -> image_layouts.Image:
        return image_layouts.read(self._containerd.machine.outside(f"{self.home}/archives/oci"), "main")


def expect_changes(archive: Mapping[str, Entry]) -> None:
    """Compare an archive with what `CHANGES` does."""
    assert sorted(archive) == [".", "changed", "deleted", "link", "replaced"]
    assert archive["changed"].content == b"changed\n"
    assert archive["deleted"].is_whiteout
    assert archive["link"].target == "../no/where"
    assert archive["replaced"].attributes == {"trusted.overlay.opaque": "y"}


def test_an_overlay_of_the_spec_is_saved_by_each_method(containerd: Containerd) -> None:
    box = Box(containerd, "spec")
    box.mount_overlay()
    box.ask("/tree", "copy", "tar.gz", "oci")

    box.run(CHANGES, "--rm")

    kept = ["copy", "copy.success", "oci", "oci.success", "tar.gz", "tar.gz.success"]
    assert box.archives() == kept
    for archive in (box.copied(), box.packed()):
        expect_changes(archive)
    (layer,) = box.layout().layers
    assert not layer.faults()
    assert sorted(layer.names) == [".", ".wh.deleted", "changed", "link", "replaced", "replaced/.wh..wh..opq"]


def test_a_bind_mount_of_a_snapshot_is_saved(containerd: Containerd) -> None:
    snapshot = containerd.snapshot("data")
    box = Box(containerd, "bind")
    box.mount("/tree", "bind", snapshot, "rbind", "rw")
    box.ask("/tree", "copy", "tar.gz")

    box.run("cd /tree/tree; rm deleted; echo changed > changed", "--rm")

    for archive in (box.copied(), box.packed()):
        assert sorted(archive) == [".", "tree", "tree/changed", "tree/deleted"]
        assert archive["tree/deleted"].is_whiteout


def test_a_bind_mount_of_a_part_of_a_snapshot_is_refused(containerd: Containerd) -> None:
    snapshot = containerd.snapshot("part")
    log = f"{HERE}/part/log"
    box = Box(containerd, "part", f"--log-file={log}")
    box.mount("/tree", "bind", f"{snapshot}/tree", "rbind", "rw")
    box.ask("/tree", "copy")

    box.run("rm /tree/deleted", "--rm")

    assert box.archives() == []
    (said,) = hooks.parse_log(containerd.machine.outside(log).read_text())
    assert f"/tree is a bind mount of {snapshot}/tree, not an overlay" in said.message


def test_a_root_file_system_that_is_a_snapshot_is_saved(containerd: Containerd) -> None:
    box = Box(containerd, "root")
    box.spec["root"] = {"path": containerd.snapshot("root"), "readonly": False}
    box.ask("/", "copy", "tar.gz")

    box.run("rm /tree/deleted; echo made > /tree/made", "--rm")

    for archive in (box.copied(), box.packed()):
        assert archive["tree/deleted"].is_whiteout
        assert archive["tree/made"].content == b"made\n"
        assert sorted(name for name in archive if name.startswith("tree/")) == ["tree/deleted", "tree/made"]


def test_the_archive_is_made_when_the_task_is_deleted_and_not_before(containerd: Containerd) -> None:
    box = Box(containerd, "detached")
    box.mount_overlay()
    box.ask("/tree", "copy")

    box.run(CHANGES, "--detach")
    wait_until(lambda: box.status() == "STOPPED", "the container does not stop")
    assert box.archives() == []

    containerd.ctr("tasks", "delete", box.name)
    assert box.archives() == ["copy", "copy.success"]
    expect_changes(box.copied())


def test_a_container_whose_shim_was_killed_is_saved(containerd: Containerd) -> None:
    box = Box(containerd, "orphan")
    box.mount_overlay()
    box.ask("/tree", "copy")
    box.run(f"{CHANGES}\ntouch /tree/ready; exec sleep infinity", "--detach")
    upper = f"{box.home}/upper"
    wait_until(lambda: "ready" in containerd.machine.run("ls", upper).stdout, "the container does not start")

    shim = containerd.machine.run("pgrep", "-fx", f"/usr/bin/containerd-shim-runc-v2 .* -id {box.name} .*")
    containerd.machine.run("kill", "-KILL", *shim.stdout.split())
    wait_until(lambda: "copy.success" in box.archives(), "nobody runs the hook")

    archive = dict(box.copied())
    assert archive.pop("ready").kind == "file"
    expect_changes(archive)


def test_a_failure_shows_in_the_syslog_and_nowhere_else(containerd: Containerd) -> None:
    box = Box(containerd, "failing", "--syslog")
    box.ask("/nowhere", "copy")
    before = len(containerd.machine.syslog())

    ended = box.run("true", "--rm")

    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")
    assert "/nowhere" not in containerd.log()
    said = [line for line in containerd.machine.syslog()[before:] if " archive_overlay[" in line]
    assert len(said) == 1
    assert " daemon.err " in said[0]
    assert "no mount at /nowhere" in said[0]


@pytest.fixture
def wrapper(containerd: Containerd) -> str:
    """Install the wrapper runtime of docs/engines.md, for the runc that is here."""
    (script,) = re.findall(
        r"^    #!/usr/bin/python3 -I\n(?:(?:    .*)?\n)+",
        (TOP / "docs/engines.md").read_text(),
        re.MULTILINE,
    )
    path = f"{containerd.home}/runc-with-hook"
    text = re.sub("^    ", "", script, flags=re.MULTILINE)
    text = text.replace("/usr/sbin/runc", containerd.runc).replace("/usr/bin/archive_overlay", HOOK)
    containerd.write_program(path, text)
    return path


def test_the_documented_wrapper_saves_the_root_file_system_of_a_container(
    containerd: Containerd, wrapper: str
) -> None:
    box = Box(containerd, "wrapped")
    box.ask("/", "copy", "tar.gz")

    containerd.ctr(
        *("run", "--rm", f"--runc-binary={wrapper}", f"--cgroup={containerd.machine.cgroup}/wrapped"),
        *(f"--annotation={key}={value}" for key, value in box.annotations.items()),
        *(IMAGE, box.name, "sh", "-ec", "rm /tree/deleted; echo made > /tree/made"),
    )

    for archive in (box.copied(), box.packed()):
        assert archive["tree/deleted"].is_whiteout
        assert archive["tree/made"].content == b"made\n"


def test_the_documented_wrapper_leaves_other_containers_alone(containerd: Containerd, wrapper: str) -> None:
    ran = containerd.ctr(
        *("run", "--rm", f"--runc-binary={wrapper}", f"--cgroup={containerd.machine.cgroup}/other"),
        *(IMAGE, "other", "echo", "ran"),
    )

    assert ran.stdout == "ran\n"
