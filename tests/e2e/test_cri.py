"""containerd as Kubernetes uses it: pods by the container runtime interface, the hook by the base runtime spec.

docs/kubernetes.md says how a node is set up; its configuration is what is tried here.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

import pytest

from tests.e2e.archives import read_directory
from tests.support import containerd, cri, hooks, tools
from tests.support.engines import HERE, HOOK, IMAGE, TOP, Engine, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.e2e.archives import Entry
    from tests.support.engines import Machine

HOME = f"{HERE}/node"
BASE_SPEC = f"{HOME}-base.json"
ARCHIVES = f"{HOME}-archives"

CHANGES = "export PATH=/bin; rm /tree/deleted; echo made > /tree/made"


@pytest.fixture
def node(request: pytest.FixtureRequest) -> cri.Runtime:
    """Give the daemon, which is started once; each test that lacks it is listed."""
    tools.need(*containerd.PROGRAMS, *cri.PROGRAMS)
    started: cri.Runtime = request.getfixturevalue("daemon")
    return started


@pytest.fixture(scope="module")
def daemon(machine: Machine) -> Iterator[cri.Runtime]:
    """Start the daemon with the documented configuration."""
    (documented,) = re.findall(
        r'^    \[plugins\."io\.containerd\.grpc\.v1\.cri"\.containerd\.runtimes\.runc\]\n(?:    .+\n)+',
        (TOP / "docs/kubernetes.md").read_text(),
        re.MULTILINE,
    )
    handler = re.sub("^    ", "", documented, flags=re.MULTILINE)
    configuration = f"""
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{containerd.PAUSE}"
restrict_oom_score_adj = true
disable_apparmor = true
{handler.replace("/etc/containerd/base.json", BASE_SPEC)}
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
BinaryName = "{HOME}/runc"
"""
    spec = json.loads(machine.run("ctr", "oci", "spec").stdout)
    spec["hooks"] = {"poststop": [{"path": HOOK, "args": ["archive_overlay", "--syslog"]}]}
    machine.outside(BASE_SPEC).write_text(json.dumps(spec))
    with containerd.running(machine, HOME, namespace="k8s.io", configuration=configuration) as started:
        machine.run("mkdir", ARCHIVES, f"{HOME}/logs")
        wait_until(lambda: "Connect containerd service" in started.log(), "it serves no pods")
        yield cri.Runtime(machine, started.socket, HOME)


def asks(name: str) -> dict[str, str]:
    """Ask, for all containers of a pod, for the changes of their root file systems."""
    directory = f"{ARCHIVES}/{name}"
    return {
        f"{hooks.PREFIX}.root/{key}": value
        for key, value in (
            ("mount-point", "/"),
            ("archive-to", f"{directory}/{{id}}"),
            ("success", f"{directory}/{{id}}.success"),
        )
    }


def archives(node: cri.Runtime, name: str) -> set[str]:
    """Give the names of the archives and markers of a pod."""
    return set(node.machine.run("sh", "-c", f"ls -A {ARCHIVES}/{name} || true").stdout.split())


def read(node: cri.Runtime, name: str, container: str) -> dict[str, Entry]:
    """Read the archive of a container's root file system."""
    native = Engine(node.machine, rootless=False, store="native", runtime="runc")
    return read_directory(native, f"{ARCHIVES}/{name}/{container}")


def test_the_root_file_system_of_each_container_of_a_pod_is_saved_when_it_ends(node: cri.Runtime) -> None:
    pod = node.run_pod("pair", annotations=asks("pair"), cgroup=node.machine.cgroup)

    containers = [
        node.run_container(pod, name, IMAGE, "/bin/sh", "-ec", f"{CHANGES}; echo {name} > /tree/changed")
        for name in ("one", "two")
    ]
    markers = {f"{container}.success" for container in containers}
    wait_until(lambda: markers <= archives(node, "pair"), "not all is saved")

    # The container that keeps the pod's namespaces runs on, and gets no hook from the base runtime spec.
    assert archives(node, "pair") == {*containers, *markers}
    for container, name in zip(containers, ("one", "two")):
        archive = read(node, "pair", container)
        below = sorted(path for path in archive if path.startswith("tree/"))
        assert below == ["tree/changed", "tree/deleted", "tree/made"]
        assert archive["tree/deleted"].is_whiteout
        assert archive["tree/changed"].content == f"{name}\n".encode()

    node.remove_pod(pod)
    assert archives(node, "pair") == {*containers, *markers}


def test_a_container_that_is_stopped_with_its_pod_is_saved(node: cri.Runtime) -> None:
    pod = node.run_pod("stopped", annotations=asks("stopped"), cgroup=node.machine.cgroup)
    command = f"{CHANGES}; trap 'exit 0' TERM; while :; do sleep 1; done"
    container = node.run_container(pod, "main", IMAGE, "/bin/sh", "-ec", command)

    node.remove_pod(pod)

    assert archives(node, "stopped") == {container, f"{container}.success"}


def test_a_pod_that_asks_for_nothing_gets_nothing(node: cri.Runtime) -> None:
    before = len(node.machine.syslog())
    pod = node.run_pod("plain", annotations={"example.com/other": "1"}, cgroup=node.machine.cgroup)
    node.run_container(pod, "main", IMAGE, "/bin/sh", "-ec", CHANGES)

    node.remove_pod(pod)

    assert not [line for line in node.machine.syslog()[before:] if " archive_overlay[" in line]
