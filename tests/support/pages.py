"""Hosts on which the commands of pages and examples are run as they stand."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from tests.support.engines import HERE, HOOK, HOOKS_DIR, USER, Engine, prepare_store
from tests.support.engines import IMAGE as TEST_IMAGE

if TYPE_CHECKING:
    from tests.support.engines import Machine

# Kinds of fenced blocks that are run: by root, and by an ordinary user.
USERS = ("sh", "sh rootless")

IMAGE = "docker.io/library/alpine:latest"
PLACES = ("/srv", "/mnt")
KEPT = (TEST_IMAGE, "<none>:<none>")
REMOTE = "registry.example"
POLICY = "/etc/containers/oci/hooks.d"


@dataclass(frozen=True)
class Block:
    """A fenced block of a page.

    Attributes:
        kind: what stands after the fence.
        text: what is between the fences.
        line: where it begins in the page.
    """

    kind: str
    text: str
    line: int


class Host:
    """A host for one page: nothing but the hook and an image is there.

    Args:
        engines: podman of each kind of blocks.

    Attributes:
        machine: on which it is.
        registry: what `registry.example` stands for, as HOST:PORT.
    """

    def __init__(self, engines: dict[str, Engine]) -> None:
        self.machine = engines["sh"].machine
        self._engines = engines
        self.registry = REMOTE
        self._used: list[Engine] = []
        for place in PLACES:
            self.machine.run("mkdir", "-p", f"{HERE}/pages{place}")
            self.machine.run("mount", "--bind", f"{HERE}/pages{place}", place)

    def run(self, kind: str, blocks: list[Block]) -> list[str]:
        """Run the blocks of one user in one shell; give what each wrote to stdout."""
        if not blocks:
            return []
        engine = self._engines[kind]
        self._used.append(engine)
        home = engine.new_directory("pages")
        engine.podman("tag", TEST_IMAGE, IMAGE)
        parts = [
            "set -e",
            *(f"printf '\\n== %d\\n' {block.line}\n{self._as_here(engine, block.text)}" for block in blocks),
        ]
        script = self.machine.outside(f"{engine.home}/page.sh")
        script.write_text("\n".join(parts))
        script.chmod(0o755)
        done = self.machine.run(
            *("env", f"--chdir={home}", "bash", f"{engine.home}/page.sh"),
            user=USER if engine.rootless else 0,
            environment={
                **engine.environment,
                "CONTAINERS_CONF": self._configure(engine),
                "HOME": home,
                "PATH": f"{os.path.dirname(HOOK)}:/usr/sbin:/usr/bin:/sbin:/bin",
                "LC_ALL": "C.UTF-8",
                "COLUMNS": "80",
            },
            check=False,
        )
        written = re.split(r"(?m)^\n?== \d+\n", done.stdout.replace(home, "/home/you"))[1:]
        if done.returncode != 0:
            pytest.fail(
                f"line {blocks[len(written) - 1].line}: exit status {done.returncode}\n{done.stdout}\n{done.stderr}"
            )
        return written

    def clean(self) -> None:
        """Leave nothing of the page."""
        for engine in self._used:
            # podman 5 complains of containers that were killed.
            engine.podman("rm", "--all", "--force", "--time=0", check=False)
            named = engine.podman("images", "--format={{.Repository}}:{{.Tag}}").stdout.split()
            engine.podman("rmi", "--force", *(name for name in named if name not in KEPT))
            engine.as_container_root("rm", "-rf", f"{engine.home}/pages")
        self.machine.run("umount", "--lazy", *PLACES)
        self.machine.run("rm", "-rf", POLICY, *(f"{HERE}/pages{place}" for place in PLACES))

    def _as_here(self, engine: Engine, text: str) -> str:
        """Give a block as it has to be for paths, stores and a registry that are not where they usually are."""
        text = text.replace("/usr/bin/archive_overlay", HOOK).replace(REMOTE, self.registry)
        stores = " ".join((*engine.places, f"--hooks-dir={HOOKS_DIR}", f"--hooks-dir={POLICY}"))
        for command, options in (
            ("archive_overlay recover", stores),
            # Containers without control groups cannot be paused.
            ("archive_overlay snapshot", f"--no-pause {stores}"),
            ("archive_overlay (?:push|fetch)|podman push", "--tls-verify=false"),
            ("skopeo copy", "--src-tls-verify=false --dest-tls-verify=false"),
        ):
            text = re.sub(rf"\b({command})\b", rf"\1 {options}", text)
        return text.replace('"--allow-push-to=', '"--tls-verify=false", "--allow-push-to=')

    def _configure(self, engine: Engine) -> str:
        """Have podman do what a page cannot ask it for: use crun, without control groups."""
        path = f"{engine.home}/pages.conf"
        text = self.machine.outside(f"{engine.home}/containers.conf").read_text()
        text = text.replace("[containers]\n", '[containers]\ncgroups = "disabled"\n')
        text = text.replace("[engine]\n", '[engine]\nruntime = "crun"\n')
        text = text.replace(f'["{HOOKS_DIR}"]', f'["{HOOKS_DIR}", "{POLICY}"]')
        self.machine.outside(path).write_text(text)
        return path


def prepare(machine: Machine) -> dict[str, Engine]:
    """Give podman of each kind of blocks, with stores that other tests do not use."""
    made = {kind: Engine(machine, rootless, "pages", "crun") for kind, rootless in zip(USERS, (False, True))}
    for engine in made.values():
        prepare_store(engine, hooks_dir=HOOKS_DIR)
    return made
