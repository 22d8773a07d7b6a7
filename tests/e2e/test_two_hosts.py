"""Two hosts that share a registry: on each, a container finds what the last one left, wherever that was."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from tests.support import histories, hooks, tools
from tests.support.engines import HOOK, IMAGE, USER, Engine
from tests.support.registry import Registry

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.engines import Machine


class Host:
    """A host: a store of its own, a layout, and the name by which its containers mount what they share.

    Args:
        engine: with the store.
        name: of what is shared.
        remote: the same in the registry.

    Attributes:
        name, remote: see there.
        image: the name by which containers mount it.
        layout, hooks: the layout, and the directory with the configuration of the hook.
    """

    def __init__(self, engine: Engine, name: str, remote: str) -> None:
        self.engine = engine
        self.name = name
        self.image = f"localhost/{name}:main"
        self.layout = f"{engine.new_directory(name)}/layout"
        self.hooks = engine.new_directory(f"{name}-hooks")
        self.remote = remote
        registry = remote[len("docker://") :].partition("/")[0]
        arguments = ("--syslog", f"--allow-push-to={registry}", "--tls-verify=false", "--push-timeout=30")
        configuration = {
            "version": "1.0.0",
            "hook": {"path": HOOK, "args": ["archive_overlay", *arguments]},
            "when": {"annotations": {f"^{hooks.PREFIX}": "."}},
            "stages": ["poststop"],
        }
        (engine.machine.outside(self.hooks) / "archive_overlay.json").write_text(json.dumps(configuration))

    def fetch(self, *, check: bool = True) -> str:
        """Fetch what is newer, as a unit does before its container."""
        arguments = (
            "--missing-ok",
            "--tls-verify=false",
            f"--load-as={self.image}",
            f"{self.layout}:main",
            self.remote,
        )
        return self.engine.machine.run(
            *(HOOK, "fetch", *arguments),
            user=USER if self.engine.rootless else 0,
            environment=self.engine.environment,
            check=check,
        ).stdout

    def run(self, name: str, command: str, *, detach: bool = False, **keys: str) -> list[str]:
        """Run a container on what is shared; give the words that it wrote."""
        asked = {
            "mount_point": "/data",
            "archive_to": f"{self.layout}:main",
            "method": "oci",
            "push_to": self.remote,
            **keys,
        }
        done = self.engine.run(
            name,
            *("--rm", "--mount", f"type=image,source={self.image},destination=/data,rw=true"),
            command=command,
            annotations=hooks.annotations("data", **asked),
            podman_options=("--hooks-dir", self.hooks),
            detach=detach,
        )
        return done.stdout.split()

    @property
    def numbers(self) -> list[int]:
        return histories.numbers(self.engine.machine.outside(self.layout))

    def images(self) -> int:
        """Give how many images of the store have, or had, the name."""
        found = json.loads(self.engine.podman("images", "--all", "--format=json").stdout)
        return len(
            {each["Id"] for each in found if any(self.image == name for name in each.get("History") or [])}
        )


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[Registry]:
    with Registry(tmp_path / "registry") as made:
        yield made


@pytest.fixture
def hosts(machine: Machine, registry: Registry, request: pytest.FixtureRequest) -> list[Host]:
    """Give two hosts, and let the registry have an image that all begins with."""
    tools.need("skopeo")
    rootless = bool(getattr(request, "param", False))
    engines = [Engine(machine, rootless, store, "crun") for store in ("native", "fuse")]
    name = "hosts-" + "".join(each for each in request.node.name if each.isalnum())[-24:].lower()
    remote = registry.reference(name)
    engines[0].podman("push", "--tls-verify=false", IMAGE, remote)
    return [Host(engine, name, remote) for engine in engines]


@pytest.mark.parametrize(
    ("hosts", "turns"), [(False, 20), (True, 4)], ids=["rootful", "rootless"], indirect=["hosts"]
)
def test_containers_on_two_hosts_in_turn_have_one_history(hosts: list[Host], turns: int) -> None:
    for turn in range(turns):
        host = hosts[turn % 2]
        host.fetch()
        seen = host.run(f"turn{turn}", f"cat /data/turns || :; echo {turn} >> /data/turns")
        assert seen == [str(each) for each in range(turn)]

    for host in hosts:
        host.fetch()
        base = len(host.numbers) - turns
        assert base > 0
        assert host.numbers == [*range(1, base + turns + 1)]
        assert host.images() <= 2


def test_of_two_containers_at_once_one_is_a_branch_and_both_are_kept(
    hosts: list[Host], registry: Registry
) -> None:
    for number, host in enumerate(hosts):
        host.fetch()
        host.run(f"at-once{number}", "exec sleep 1000", detach=True, load_as=host.image)
        host.engine.podman("exec", f"at-once{number}", "sh", "-c", f"echo {number} > /data/of{number}")
    for number, host in enumerate(hosts):
        host.engine.podman("stop", "--time=0", f"at-once{number}")

    second = hosts[1]
    assert "what was here is in the tag main-" in second.fetch()
    assert second.run("after", "cd /data; ls -d of*") == ["of0"]
    assert len(registry.tags(second.name)) == 2
    hosts[0].fetch()
    assert hosts[0].numbers == second.numbers
