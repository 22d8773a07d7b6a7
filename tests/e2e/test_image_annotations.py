"""Images that ask for archives themselves, by annotations of their manifests, which podman up to 4.5.0 passes on."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from tests.e2e.archives import read_tar
from tests.support import engines, hooks
from tests.support.engines import HOOK, HOOKS_DIR, IMAGE, Engine, pods
from tests.support.hooks import PREFIX

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.engines import Machine

NATIVE = pytest.param((False, "native"), id="rootful-native")
KINDS = [
    NATIVE,
    *(
        pytest.param((rootless, store), id=f"{'rootless' if rootless else 'rootful'}-{store}")
        for rootless, store in ((False, "fuse"), (True, "native"), (True, "fuse"))
    ),
]


@dataclass(frozen=True)
class Box:
    """A container of an image that means harm.

    Attributes:
        engine: where it runs.
        directory: where its archives and the hook's log are.
        hooks: the directory of the hook's configuration.
    """

    engine: Engine
    directory: str
    hooks: str

    def asks(self, name: str, *, separator: str = ".", **more: str) -> dict[str, str]:
        """Ask for an archive of the root file system."""
        asked = hooks.annotations(
            name, **{"mount_point": "/", "archive_to": f"{self.directory}/{name}", "method": "tar.gz", **more}
        )
        return {separator.join(key.rsplit(".", 1)): value for key, value in asked.items()}

    @property
    def of_image(self) -> dict[str, str]:
        """What the image asks for: archives of its own, and a say in one of the user's."""
        return {
            **self.asks("evil"),
            **self.asks("slashed", separator="/"),
            **self.asks("kept"),
            f"{PREFIX}.shared.success": f"{self.directory}/success",
        }

    @property
    def of_user(self) -> dict[str, str]:
        """What the user asks for; one of the image's archives goes where the user wants it, and is another one's."""
        shared = self.asks("shared")
        return {
            **self.asks("own"),
            **shared,
            **{f"{PREFIX}.kept.{key}": "" for key in ("mount-point", "archive-to")},
        }

    def build(self, name: str) -> str:
        """Build the image, and give its name."""
        context = f"{self.directory}/context"
        self.engine.machine.outside(context).mkdir()
        self.engine.machine.outside(f"{context}/Containerfile").write_text(f"FROM {IMAGE}\n")
        options = [f"--annotation={key}={value}" for key, value in self.of_image.items()]
        self.engine.podman("build", "--quiet", *options, "--tag", name, context)
        return name

    def run(self, name: str, image: str, *options: str) -> None:
        self.engine.run(
            name,
            *options,
            image=image,
            command="echo made > /tree/made",
            podman_options=("--hooks-dir", self.hooks),
            annotations=self.of_user,
        )

    def outside(self, name: str) -> Path:
        return self.engine.machine.outside(f"{self.directory}/{name}")

    def expect(self, name: str, *, copied: bool | None = None) -> None:
        """Expect the user's archive, and none that the image had a say in.

        Args:
            name: the container's.
            copied: whether podman passed the image's annotations on; None: its spec is there to tell.
        """
        if copied is None:
            copied = f"{PREFIX}.evil.archive-to" in self.engine.spec(name)["annotations"]
        lines = hooks.parse_log(self.outside("log").read_text())
        refused = [line.message for line in lines if "comes from the image localhost/" in line.message]
        assert {message.split(":")[0] for message in refused} == (
            {"archive evil", "archive slashed", "archive shared"} if copied else set()
        )
        assert read_tar(self.outside("own"))["tree/made"].content == b"made\n"
        assert {path.name for path in self.outside("").iterdir()} - {
            "context",
            "layout",
            "log",
            "pod.yaml",
        } == ({"own"} if copied else {"own", "shared"})


def box(machine: Machine, kind: tuple[bool, str], name: str) -> Box:
    """Make directories for a container, and a hook configuration."""
    engine = Engine(machine, *kind, "crun")
    directory = engine.new_directory(name)
    configuration = json.loads(machine.outside(f"{HOOKS_DIR}/archive_overlay.json").read_text())
    configuration["hook"]["args"].append(f"--log-file={directory}/log")
    where = engine.new_directory(f"hooks-{name}")
    machine.outside(f"{where}/hook.json").write_text(json.dumps(configuration))
    return Box(engine, directory, where)


@pytest.mark.parametrize("kind", KINDS)
def test_an_image_has_no_say_in_what_is_archived(machine: Machine, kind: tuple[bool, str]) -> None:
    evil = box(machine, kind, "evil")
    image = evil.build("localhost/evil:1")
    if kind[1] == "fuse":
        evil.engine.podman("push", "--quiet", image, f"oci:{evil.directory}/layout")
        evil.engine.podman("rmi", image)
        image = evil.engine.podman("pull", "--quiet", f"oci:{evil.directory}/layout").stdout.strip()

    evil.run("evil", image)

    evil.expect("evil")


@pytest.mark.parametrize("kind", [NATIVE])
def test_nor_in_a_user_namespace(machine: Machine, kind: tuple[bool, str]) -> None:
    mapped = box(machine, kind, "mapped")

    mapped.run("mapped", mapped.build("localhost/mapped:1"), "--uidmap=0:1000:2000")

    mapped.expect("mapped")


def test_nor_in_a_pod(machine: Machine) -> None:
    pod = box(machine, (True, "native"), "pod")
    image = pod.build("localhost/pod:1")
    with pods(pod.engine):
        pod.outside("pod.yaml").write_text(
            json.dumps(
                {
                    "apiVersion": "v1",
                    "kind": "Pod",
                    "metadata": {"name": "pod", "annotations": pod.of_user},
                    "spec": {
                        "restartPolicy": "Never",
                        "hostNetwork": True,
                        "containers": [
                            {
                                "name": "box",
                                "image": image,
                                "command": ["/bin/sh", "-ec", "echo made > /tree/made"],
                            }
                        ],
                    },
                }
            )
        )
        pod.engine.podman("--hooks-dir", pod.hooks, "play", "kube", f"{pod.directory}/pod.yaml")
        pod.engine.podman("wait", "pod-box")
        pod.engine.podman("container", "cleanup", "pod-box", check=False)
        pod.expect("pod-box")


def test_nor_if_it_is_in_a_second_store(machine: Machine) -> None:
    second = box(machine, (False, "native"), "second")
    image = second.build("localhost/second:1")
    engine = second.engine
    own = engine.new_directory("own-store")
    conf = machine.outside(f"{engine.home}/storage.conf").read_text().replace(f"{engine.home}/", f"{own}/")
    machine.outside(f"{own}/storage.conf").write_text(
        f'{conf}[storage.options]\nadditionalimagestores = ["{engine.home}/storage"]\n'
    )
    environment = {**engine.environment, "CONTAINERS_STORAGE_CONF": f"{own}/storage.conf"}
    asked = [f"--annotation={key}={value}" for key, value in second.of_user.items()]

    machine.run(
        *(
            "podman",
            "--runtime=crun",
            "--hooks-dir",
            second.hooks,
            "run",
            "--rm",
            "--cgroups=disabled",
            *asked,
        ),
        *(image, "sh", "-ec", "echo made > /tree/made"),
        environment=environment,
    )

    second.expect("second", copied=copies_annotations(machine))


def test_nor_if_it_is_deleted_with_its_container(machine: Machine) -> None:
    gone = box(machine, (False, "native"), "gone")
    image = gone.build("localhost/gone:1")
    engine = gone.engine
    engine.run(
        "gone",
        *("--rm", "--stop-timeout=0"),
        image=image,
        command="echo made > /tree/made; touch /ready; exec sleep infinity",
        podman_options=("--hooks-dir", gone.hooks),
        annotations=gone.of_user,
        detach=True,
    )
    engines.wait_until(
        lambda: engine.podman("exec", "gone", "test", "-e", "/ready", check=False).returncode == 0,
        "the container does not start",
    )

    engine.podman("--hooks-dir", gone.hooks, "rmi", "--force", image)

    gone.expect("gone", copied=copies_annotations(machine))


def copies_annotations(machine: Machine) -> bool:
    """Say whether `check` says that podman passes on annotations of images."""
    said = machine.run(HOOK, "check", f"--hooks-dir={HOOKS_DIR}", check=False).stdout
    (line,) = [line for line in said.splitlines() if "annotations of images are refused" in line]
    return "this podman passes them on" in line


def test_check_says_whether_podman_passes_them_on(machine: Machine) -> None:
    engine = Engine(machine, False, "native", "crun")
    context = engine.new_directory("told")
    machine.outside(f"{context}/Containerfile").write_text(f"FROM {IMAGE}\n")
    engine.podman("build", "--quiet", "--annotation=a.b=c", "--tag=localhost/told:1", context)
    engine.podman("create", "--name=told", "--cgroups=disabled", "localhost/told:1", "true")
    annotations = json.loads(engine.podman("inspect", "--format={{json .Config.Annotations}}", "told").stdout)

    assert copies_annotations(machine) == ("a.b" in (annotations or {}))
