"""A pod's container as CRI-O has runtimes run it, without CRI-O: its spec, its mounts, and the order of its steps.

Source: tests/data/specs/README.md. When CRI-O unmounts a root file system, and when it runs poststop hooks:
server/container_stop.go and server/container_remove.go of cri-o/cri-o, and its issue 9732.
"""

from __future__ import annotations

import json
import posixpath
from typing import TYPE_CHECKING, Any

import pytest

from tests.e2e.archives import read_directory, read_tar
from tests.support import hooks
from tests.support.engines import HERE, HOOK, HOOKS_DIR, IMAGE_ROOT, TOP, Engine, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.engines import Machine

# What the node would have, in a directory of the test's own.
NODE = ("/run/containers/", "/var/lib/")

FILES = ("/etc/hosts", "/etc/hostname", "/etc/resolv.conf", "/run/.containerenv", "/dev/termination-log")

LINK = "l/4VYXKQ2M3J5C7E6HABCDEFGHIJ"

CHANGES = """
    rm /tree/deleted
    echo made > /tree/made
    rm /data/deleted
    echo made > /data/made
"""


class Pod:
    """The container of the pod, on a node where all that it mounts is there.

    Args:
        machine: the node.
        runtime: "runc" or "crun".
    """

    def __init__(self, machine: Machine, runtime: str) -> None:
        self.machine = machine
        self.node = f"{HERE}/crio-{runtime}"
        text = (TOP / "tests/data/specs/crio.json").read_text()
        for path in NODE:
            text = text.replace(path, f"{self.node}{path}")
        kept = json.loads(text)
        self.spec: dict[str, Any] = kept["config"]
        self.id: str = kept["state"]["id"]
        self.bundle: str = kept["state"]["bundle"]
        self.archives = f"{self.node}/var/lib/archives"
        self.log = f"{self.node}/hook.log"
        self._runtime = [runtime, *(["--cgroup-manager=disabled"] if runtime == "crun" else [])]
        self._adapt()
        self._mount()

    def _adapt(self) -> None:
        """Take out of the spec what belongs to a node with Kubernetes, and put the test in."""
        self.spec["process"]["args"] = ["/bin/busybox", "sh", "-ec", f"export PATH=/bin\n{CHANGES}"]
        self.spec["hooks"]["poststop"] = [
            {"path": HOOK, "args": ["archive_overlay", f"--log-file={self.log}"]}
        ]
        self.spec["linux"]["cgroupsPath"] = f"{self.machine.cgroup}/{posixpath.basename(self.node)}"
        for namespace in self.spec["linux"]["namespaces"]:
            namespace.pop("path", None)

    def _mount(self) -> None:
        self.machine.run("mkdir", "-p", self.bundle, self.archives)
        for mount in self.spec["mounts"]:
            if mount["type"] != "bind":
                continue
            source = mount["source"]
            parent = posixpath.dirname(source) if mount["destination"] in FILES else source
            self.machine.run("mkdir", "-p", parent)
            if mount["destination"] in FILES:
                self.machine.run("touch", source)
        for layers, mount_point, lower in (
            (posixpath.dirname(self.root), self.root, self._store_the_image()),
            (f"{self.node}/srv/data", self.source("/data"), f"{IMAGE_ROOT}/tree"),
        ):
            upper, work = f"{layers}/diff", f"{layers}/work"
            self.machine.run("mkdir", "-p", upper, work, mount_point)
            options = f"lowerdir={lower},upperdir={upper},workdir={work}"
            self.machine.run("mount", "-t", "overlay", "-o", options, "overlay", mount_point)
        options = f"lowerdir={IMAGE_ROOT}/tree:{IMAGE_ROOT}/etc"
        self.machine.run("mount", "-t", "overlay", "-o", options, "overlay", self.source("/model"))

    def _store_the_image(self) -> str:
        """Have the image as a layer below that of the container, as the overlay driver of containers/storage does.

        Returns:
            The lower layer that the container is mounted on.
        """
        layer = posixpath.dirname(self.root)
        store = posixpath.dirname(layer)
        self.machine.run("mkdir", "-p", layer, f"{store}/l", f"{store}/{'5' * 64}")
        self.machine.run("cp", "-a", IMAGE_ROOT, f"{store}/{'5' * 64}/diff")
        self.machine.run("ln", "-s", f"../{'5' * 64}/diff", f"{store}/{LINK}")
        self.machine.outside(f"{layer}/lower").write_text(LINK)
        return f"{store}/{LINK}"

    @property
    def root(self) -> str:
        path: str = self.spec["root"]["path"]
        return path

    def source(self, destination: str) -> str:
        """Give what is mounted at a destination."""
        (source,) = (m["source"] for m in self.spec["mounts"] if m["destination"] == destination)
        assert isinstance(source, str)
        return source

    def run_to_its_end(self) -> None:
        """Do what CRI-O does from the creation of the container until its process has ended."""
        self.machine.outside(f"{self.bundle}/config.json").write_text(json.dumps(self.spec))
        # The container's process must not keep the pipes open by which this one reads what is said.
        create = (*self._runtime, "create", "--bundle", self.bundle, self.id)
        self.machine.run("sh", "-ec", '"$@" >/dev/null 2>&1', "sh", *create)
        self.machine.run(*self._runtime, "start", self.id)
        wait_until(self._has_stopped, "the container does not stop")

    def _has_stopped(self) -> bool:
        state = json.loads(self.machine.run(*self._runtime, "state", self.id).stdout)
        return bool(state["status"] == "stopped")

    def remove(self) -> None:
        """Do what CRI-O does when the container is removed: only now the hook runs."""
        self.machine.run(*self._runtime, "delete", self.id)

    def remove_though_the_hook_fails(self) -> None:
        """Remove it, whatever the runtime makes of the hook's status: runc 1.3.6 exits with 1, others with 0."""
        self.machine.run(*self._runtime, "delete", self.id, check=False)
        assert self.machine.run(*self._runtime, "state", self.id, check=False).returncode, "it is still there"

    def forget(self) -> None:
        """Take away what a reboot takes away in /run: the bundle, and what the runtime knows."""
        self.machine.run("rm", "-rf", self.bundle, f"/run/{self._runtime[0]}/{self.id}")

    def saved(self) -> set[str]:
        """Give the names of archives and markers, without the container's id."""
        found = self.machine.run("ls", "-A", self.archives).stdout.split()
        assert all(self.id in name for name in found)
        return {name.replace(f"-{self.id}", "") for name in found}

    def said(self) -> list[str]:
        """Give what the hook has logged."""
        return [line.message for line in hooks.parse_log(self.machine.outside(self.log).read_text())]

    def expect_the_volume(self) -> None:
        """Compare the archive of the volume with what `CHANGES` does."""
        native = Engine(self.machine, rootless=False, store="native", runtime="runc")
        archive = read_directory(native, f"{self.archives}/data-{self.id}")
        assert sorted(archive) == [".", "deleted", "made"]
        assert archive["deleted"].is_whiteout
        assert archive["made"].content == b"made\n"

    def expect_the_root(self) -> None:
        """Compare the archive of the root file system with what `CHANGES` does."""
        archive = read_tar(self.machine.outside(f"{self.archives}/root-{self.id}"))
        assert sorted(name for name in archive if name.startswith("tree/")) == ["tree/deleted", "tree/made"]
        assert archive["tree/deleted"].is_whiteout
        assert archive["tree/made"].content == b"made\n"

    def close(self) -> None:
        """Give the node back as it was, for its mounts are in nobody's way but the next pod's."""
        for destination in ("/data", "/model"):
            self.machine.run("umount", self.source(destination))
        self.machine.run("umount", "--quiet", self.root, check=False)
        self.machine.run("rm", "-rf", self.node)


@pytest.fixture(params=["runc", "crun"])
def pod(request: pytest.FixtureRequest, machine: Machine) -> Iterator[Pod]:
    """A pod whose container has run to its end, under each runtime."""
    made = Pod(machine, request.param)
    made.run_to_its_end()
    yield made
    made.close()


def test_nothing_is_archived_before_the_container_is_removed(pod: Pod) -> None:
    assert pod.saved() == set()

    pod.remove()

    assert pod.saved() == {"data", "data.success", "root", "root.success"}


def test_a_volume_that_a_driver_mounted_as_an_overlay_is_saved(pod: Pod) -> None:
    pod.remove()

    pod.expect_the_volume()


def test_the_root_file_system_is_saved_while_it_is_mounted(pod: Pod) -> None:
    pod.remove()

    pod.expect_the_root()


def test_the_root_file_system_is_saved_once_crio_has_unmounted_it(pod: Pod) -> None:
    pod.machine.run("umount", pod.root)
    pod.machine.run("rmdir", pod.root)

    pod.remove()

    assert pod.saved() == {"data", "data.success", "root", "root.success"}
    pod.expect_the_root()
    pod.expect_the_volume()


def test_after_a_reboot_it_is_recovered_before_crio_deletes_it(pod: Pod) -> None:
    machine, store = pod.machine, f"{pod.node}/var/lib/containers/storage"
    lasting = f"{store}/overlay-containers/{pod.id}/userdata"
    machine.run("mkdir", "-p", lasting)
    machine.run("cp", f"{pod.bundle}/config.json", lasting)
    machine.run("touch", "-d", "1 hour ago", f"{lasting}/config.json")
    listed = [{"id": pod.id, "layer": posixpath.basename(posixpath.dirname(pod.root))}]
    machine.outside(f"{store}/overlay-containers/containers.json").write_text(json.dumps(listed))
    machine.run("chmod", "0700", f"{store}/overlay-containers")
    machine.run("umount", pod.root)
    pod.forget()
    command = (HOOK, "recover", f"--root={store}", f"--hooks-dir={HOOKS_DIR}")

    done = machine.run(*command)
    again = machine.run(*command)

    assert "archive root of / saved" in done.stdout
    assert again.stdout == "Nothing is left to recover.\n"
    pod.expect_the_root()


def test_without_the_engine_s_list_of_layers_the_root_file_system_is_not_found(pod: Pod) -> None:
    pod.machine.run("umount", pod.root)
    pod.machine.run("rm", f"{posixpath.dirname(pod.root)}/lower")

    pod.remove_though_the_hook_fails()

    assert pod.saved() == {"data", "data.success"}
    pod.expect_the_volume()
    assert any(f"root file system {pod.root} is not mounted any more" in said for said in pod.said())


def test_an_image_volume_cannot_be_archived_for_it_is_read_only(pod: Pod) -> None:
    prefix = f"{hooks.PREFIX}.data"
    config = pod.machine.outside(f"{pod.bundle}/config.json")
    spec = json.loads(config.read_text())
    spec["annotations"][f"{prefix}.mount-point"] = "/model"
    config.write_text(json.dumps(spec))

    pod.remove_though_the_hook_fails()

    assert pod.saved() == {"root", "root.success"}
    assert any("read-only" in said for said in pod.said())
