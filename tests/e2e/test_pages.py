"""Commands of the tutorial and of the how-to pages, run as they stand, each page on a host of its own.

A fenced block of `sh` is run by root, one of `sh rootless` by an ordinary user, in the order of the page; the blocks of one
user share a shell. A block of `text` after it is what it writes to stdout. Blocks of `sh not-run` and of other languages
show what a test cannot run here, or a configuration.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from tests.support import tools
from tests.support.engines import HERE, HOOK, HOOKS_DIR, TOP, USER, Engine, prepare_store
from tests.support.engines import IMAGE as TEST_IMAGE
from tests.support.registry import Registry

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.engines import Machine

DOCS = TOP / "docs"
PAGES = [DOCS / "tutorial.md", *sorted((DOCS / "how-to").glob("*.md"))]
USERS = ("sh", "sh rootless")

FENCED = re.compile(r"^( *)```(.*)\n((?:.*\n)*?)\1```$", re.MULTILINE)
IMAGE = "docker.io/library/alpine:latest"
PLACES = ("/srv", "/mnt")
KEPT = (TEST_IMAGE, "<none>:<none>")
REMOTE = "registry.example"
POLICY = "/etc/containers/oci/hooks.d"

# What differs from one run to the next, or from one release of zlib or podman to the next.
VARYING = (
    (re.compile(r"\d{4}-\d\d-\d\d[ T]\d\d:\d\d(:\d\dZ)?"), "DATE"),
    (re.compile(r"\b[0-9a-f]{64}\b"), "ID"),
    (re.compile(r"\b[0-9a-f]{12}\b"), "ID"),
    (re.compile(r"(?m)^((?:\* )? *\d+ +DATE .*) \d+(\.\d+)?[KM]?\b"), r"\1 SIZE"),
    (re.compile(r"[ \t]+"), " "),
    (re.compile(r"(?m) $"), ""),
    # What `log` says of how an image was made, on a line of its own.
    (re.compile(r"(?m)^ /bin/sh -c .*\n"), ""),
)


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


def blocks_of(page: Path) -> list[Block]:
    text = page.read_text()
    return [
        Block(
            found[2].strip(),
            re.sub(rf"(?m)^{found[1]}", "", found[3]),
            text.count("\n", 0, found.start()) + 1,
        )
        for found in FENCED.finditer(text)
    ]


class Host:
    """A host for one page: nothing but the hook and an image is there.

    Args:
        engines: podman of each kind of blocks.
        registry: what `registry.example` stands for.
    """

    def __init__(self, engines: dict[str, Engine], registry: Registry) -> None:
        self.machine = engines["sh"].machine
        self._engines = engines
        self._registry = registry
        self._used: list[Engine] = []
        for place in PLACES:
            self.machine.run("mkdir", "-p", f"{HERE}/pages{place}")
            self.machine.run("mount", "--bind", f"{HERE}/pages{place}", place)

    def run(self, kind: str, blocks: list[Block]) -> list[str]:
        """Run the blocks of one user in one shell; give what each wrote to stdout."""
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
            engine.podman("rm", "--all", "--force", "--time=0")
            named = engine.podman("images", "--format={{.Repository}}:{{.Tag}}").stdout.split()
            engine.podman("rmi", "--force", *(name for name in named if name not in KEPT))
            engine.as_container_root("rm", "-rf", f"{engine.home}/pages")
        self.machine.run("umount", "--lazy", *PLACES)
        self.machine.run("rm", "-rf", POLICY, *(f"{HERE}/pages{place}" for place in PLACES))

    def _as_here(self, engine: Engine, text: str) -> str:
        """Give a block as it has to be for paths, stores and a registry that are not where they usually are."""
        text = text.replace("/usr/bin/archive_overlay", HOOK).replace(REMOTE, self._registry.host)
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


def alike(text: str) -> str:
    """Give what is the same whenever a page is read."""
    for pattern, name in VARYING:
        text = pattern.sub(name, text)
    return text.strip()


@pytest.fixture(scope="module")
def engines(machine: Machine) -> dict[str, Engine]:
    """Give podman of each kind of blocks, with stores that other tests do not use."""
    tools.need("skopeo", "rsync", "getfattr")
    made = {kind: Engine(machine, rootless, "pages", "crun") for kind, rootless in zip(USERS, (False, True))}
    for engine in made.values():
        prepare_store(engine, hooks_dir=HOOKS_DIR)
    return made


@pytest.fixture
def host(engines: dict[str, Engine], tmp_path: Path) -> Iterator[Host]:
    with Registry(tmp_path / "registry") as registry:
        made = Host(engines, registry)
        yield made
        made.clean()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_does_what_it_says(page: Path, host: Host) -> None:
    blocks = blocks_of(page)
    for kind in USERS:
        mine = [block for block in blocks if block.kind == kind]
        if not mine:
            continue
        for block, written in zip(mine, host.run(kind, mine)):
            after = blocks[blocks.index(block) + 1 :][:1]
            if after and after[0].kind == "text":
                assert alike(written) == alike(after[0].text), f"line {after[0].line}"
