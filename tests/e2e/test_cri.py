"""containerd as Kubernetes uses it: pods by the container runtime interface, the hook by the base runtime spec.

docs/kubernetes.md says how a node is set up; its configuration is what is tried here.
"""

from __future__ import annotations

import json
import re
from functools import partial
from typing import TYPE_CHECKING

import pytest

from tests.e2e.archives import read_directory
from tests.support import containerd, cri, hooks, tools
from tests.support.engines import HERE, HOOK, IMAGE, IMAGE_ROOT, TOP, Engine, wait_until
from tests.support.registry import Registry

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
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    with Registry(tmp_path_factory.mktemp("registry") / "plain") as made:
        yield made


@pytest.fixture(scope="module")
def daemon(machine: Machine, registry: Registry) -> Iterator[cri.Runtime]:
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
    pushing = [f"--allow-push-to={registry.host}/team", "--tls-verify=false"]
    spec["hooks"] = {"poststop": [{"path": HOOK, "args": ["archive_overlay", "--syslog", *pushing]}]}
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


def test_a_pod_on_any_node_goes_on_with_what_the_last_one_left(
    node: cri.Runtime, machine: Machine, registry: Registry
) -> None:
    remote = registry.reference("team/app")
    image = remote[len("docker://") :]
    native = Engine(machine, rootless=False, store="native", runtime="runc")
    native.podman("push", "--tls-verify=false", IMAGE, remote)
    init = _image_with_all_mount_points(node, native)
    for number, each in enumerate(("a", "b", "a")):
        layout = f"{ARCHIVES}/node-{each}:main"
        asked = {"mount-point": "/", "archive-to": layout, "method": "oci", "push-to": remote}
        annotations = {f"{hooks.PREFIX}.root/{key}": value for key, value in asked.items()}
        pod = node.run_pod(f"go-on{number}", annotations=annotations, cgroup=node.machine.cgroup)
        # As an init container does, which changes nothing in its own root file system.
        machine.run(HOOK, "fetch", "--tls-verify=false", layout, remote)
        before = registry.digest("team/app")
        node.run_container(pod, "init", init, "/bin/true")
        machine.run("ctr", f"--address={node.socket}", "-n=k8s.io", "images", "pull", "--plain-http", image)
        node.run_container(
            pod,
            "main",
            image,
            "/bin/sh",
            "-ec",
            f"cd /tree; test $(ls -d turn* | wc -l) = {number}; :> turn{number}",
        )
        wait_until(partial(_moved, registry, before), "nothing is pushed")
        node.remove_pod(pod)

    machine.run(HOOK, "fetch", "--tls-verify=false", f"{ARCHIVES}/node-b:main", remote)
    listed = machine.run(HOOK, "show", f"{ARCHIVES}/node-b:main:tree").stdout
    assert [name for name in ("turn0", "turn1", "turn2") if name not in listed] == []
    log = json.loads(machine.run(HOOK, "log", "--json", f"{ARCHIVES}/node-b:main").stdout)
    assert sum(bool(each["container"]) for each in log) == 3


def _moved(registry: Registry, before: str) -> bool:
    return registry.digest("team/app") != before


def _image_with_all_mount_points(node: cri.Runtime, native: Engine) -> str:
    """Make an image in which the runtime makes nothing for its mounts."""
    name, root = "localhost/init:1", f"{HERE}/init"
    machine = node.machine
    machine.run("cp", "-a", IMAGE_ROOT, root)
    for each in ("hosts", "hostname", "resolv.conf"):
        machine.outside(f"{root}/etc/{each}").touch()
    machine.run("tar", "-C", root, "--numeric-owner", "-cf", f"{root}.tar", ".")
    native.podman("import", f"{root}.tar", name)
    native.podman("save", "--format=oci-archive", f"--output={root}.image", name)
    machine.run("ctr", f"--address={node.socket}", "-n=k8s.io", "images", "import", f"{root}.image")
    return name
