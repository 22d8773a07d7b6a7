"""Hosts that share a registry, at random: what each has is the registry's history, and its own as far as that goes on with it."""

from __future__ import annotations

import os
import random
from typing import TYPE_CHECKING

import pytest

from archive_overlay.commands.writing import open_layout
from archive_overlay.errors import ArchiveError
from archive_overlay.history.joining import goes_on_with
from archive_overlay.history.revisions import open_image
from archive_overlay.layout.read import read_image, read_index, tagged
from archive_overlay.layout.stored import StoredImage
from archive_overlay.transfer.fetch import Downloaded, Place, Remote, put
from archive_overlay.transfer.names import parse_remote
from tests.property.conftest import SEED, SOAKING
from tests.support import histories, history, image_layouts

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from archive_overlay.commands.writing import Layout

HOSTS = 3
STEPS = 45
NAME = parse_remote("docker://registry.example/data:main")
State = dict[str, bytes]


class Hosts:
    """Hosts with a layout each, and a registry, which is one more layout with the newest image alone.

    Attributes:
        states: of each host, what each revision of main is to have, by number.
        there: the same of the registry.
        lines: of each host and then the registry, what each revision has had that its image lies on, known or not.
    """

    def __init__(self, directory: Path, chance: random.Random) -> None:
        self.states: list[dict[int, State]] = [{} for _ in range(HOSTS)]
        self.there: dict[int, State] = {}
        self.lines: list[dict[int, State]] = [{} for _ in range(HOSTS + 1)]
        self._directory = directory
        self._chance = chance
        self._most = [chance.choice((2, 3, 4, 6)) for _ in range(HOSTS)]
        self._written = 0

    def layout(self, host: int) -> Path:
        return self._directory / f"host{host}"

    @property
    def registry(self) -> Path:
        return self._directory / "registry"

    def stop(self, host: int) -> None:
        """Add a revision, on what the host has."""
        states = self.states[host]
        before = states[max(states)] if states else {}
        self._written += 1
        new = f"file{self._written}"
        after = {**before, "all": b"%d" % self._written, new: b"new"}
        entries = [
            history.directory("./"),
            history.file("./all", after["all"]),
            history.file(f"./{new}", b"new"),
        ]
        if len(before) > 2:
            gone = self._chance.choice([each for each in before if each != "all"])
            del after[gone]
            entries.append(history.file(f"./.wh.{gone}"))
        histories.append(self.layout(host), "main", history.layer(*entries), most=self._most[host])
        number = max(states, default=0) + 1
        states[number] = self.lines[host][number] = after

    def squash(self, host: int) -> None:
        """Make one revision of two on a host."""
        numbers = sorted(self.states[host])
        if len(numbers) > 3:
            first = self._chance.randrange(len(numbers) - 2)
            pair = f"{numbers[first]}..{numbers[first + 1]}"
            history.output_of("squash", "--no-fsync", f"{self.layout(host)}:main@{pair}")
            del self.states[host][numbers[first]]

    def push(self, host: int) -> bool:
        """Let the registry have what a host has, if that goes on with what it has; say whether it does."""
        if not self.states[host]:
            return False
        with open_image(f"{self.layout(host)}:main") as mine:
            if self.there:
                with open_image(f"{self.registry}:main") as theirs:
                    if not goes_on_with(mine.stored, theirs.stored):
                        return False
            image = mine.stored
        self._replace_registry(host)
        said = {piece.last for piece in image.layers}
        self.there = {number: state for number, state in self.states[host].items() if number in said}
        self.lines[-1] = dict(self.lines[host])
        return True

    def _replace_registry(self, host: int) -> None:
        """Have the registry name a host's image: manifest, config and layers as they are, and no packs."""
        blobs = self.registry / "blobs/sha256"
        blobs.mkdir(parents=True, exist_ok=True)
        image = image_layouts.read(self.layout(host), "main")
        digests = [image.descriptor["digest"], image.manifest["config"]["digest"], *image.digests]
        for digest in digests:
            name = digest.partition(":")[2]
            (blobs / name).write_bytes((self.layout(host) / "blobs/sha256" / name).read_bytes())
        (self.registry / "oci-layout").write_bytes((self.layout(host) / "oci-layout").read_bytes())
        descriptor = {key: image.descriptor[key] for key in ("mediaType", "digest", "size")}
        descriptor["annotations"] = {image_layouts.REF_NAME: "main"}
        index = {"schemaVersion": 2, "manifests": [descriptor]}
        (self.registry / "index.json").write_bytes(image_layouts.as_json(index))

    def fetch(self, host: int) -> None:
        """Fetch what the registry has; what is lost by that gets a tag first, and is looked for afterwards."""
        if not self.there:
            return
        states = self.states[host]
        try:
            brings = self._fetch(host)
        except ArchiveError:
            self._written += 1
            history.output_of("tag", "--no-fsync", f"{self.layout(host)}:main", f"aside{self._written}")
            assert self._fetch(host)
            brings = True
            kept = {n for n, state in states.items() if self.lines[-1].get(n) == state}
            self.states[host] = states = {n: states[n] for n in kept}
        if brings:
            states.update(self.there)
            self.lines[host] = dict(self.lines[-1])

    def _fetch(self, host: int) -> bool:
        registry = os.open(self.registry, os.O_RDONLY | os.O_DIRECTORY)
        try:
            descriptor = tagged(read_index(registry), "main")
            assert descriptor
            manifest, config = read_image(registry, descriptor)
        finally:
            os.close(registry)
        remote = Remote(name=NAME, manifest=manifest, digest=descriptor["digest"])
        with open_layout(str(self.layout(host)), fsync=False, log=histories.LOG, make=True) as layout:
            named = {key: value for key, value in descriptor.items() if key != "annotations"}
            image = StoredImage(layout.fd, named, manifest, config)
            parts = [manifest["config"], *manifest["layers"]]
            files = {part["digest"]: self._staged(part["digest"], layout) for part in parts}
            downloaded = Downloaded(image=image, files=files)
            place = Place(path=layout.path, layout=layout.fd, tag="main")
            return layout.write_at_once(lambda edit: put(place, edit.index, remote, downloaded, edit)).brings

    def _staged(self, digest: str, layout: Layout) -> str:
        name = digest.partition(":")[2]
        with open(layout.staging.create_file(f"fetched-{name}"), "wb") as file:
            file.write((self.registry / "blobs/sha256" / name).read_bytes())
        return f"fetched-{name}"

    def faults(self, scratch: Path) -> Iterator[str]:
        """Say what is wrong with what the hosts have."""
        for host in range(HOSTS):
            if not self.states[host]:
                continue
            layout = self.layout(host)
            numbers = histories.numbers(layout)
            if numbers != sorted(self.states[host]):
                yield f"host {host} has {numbers}, and not {sorted(self.states[host])}"
            verified = history.run("verify", "--read-data", layout)
            if verified.status:
                yield f"host {host}: {verified.stdout}{verified.stderr}"
            for number in set(numbers) & set(self.states[host]):
                made = scratch / f"{host}-{number}"
                history.output_of("extract", "--no-fsync", f"{layout}:main@{number}", made)
                found = {each.name: each.read_bytes() for each in made.iterdir()}
                if found != self.states[host][number]:
                    yield f"host {host}: revision {number} has {found}, and not {self.states[host][number]}"


@pytest.mark.parametrize("number", range(40 if SOAKING else 3))
def test_a_fetched_history_is_the_registrys_with_what_is_here_of_it(number: int, scratch: Path) -> None:
    seed = f"{SEED} {number}"
    chance = random.Random(seed)
    hosts = Hosts(scratch, chance)
    for _ in range(STEPS):
        host = chance.randrange(HOSTS)
        action = chance.choice(("turn", "turn", "turn", "fetch", "stop", "push", "squash"))
        if action in ("turn", "fetch"):
            hosts.fetch(host)
        if action in ("turn", "stop"):
            hosts.stop(host)
        if action == "squash":
            hosts.squash(host)
        if action in ("turn", "push", "squash"):
            hosts.push(host)

    states = scratch / "states"
    states.mkdir()
    faults = list(hosts.faults(states))

    assert not faults, "\n".join([seed, *faults])
