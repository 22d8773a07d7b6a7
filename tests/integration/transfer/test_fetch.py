"""What other hosts have pushed, fetched: only what is newer, in the place of nothing that it lacks, and believed for nothing else."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from typing import TYPE_CHECKING, Any

import pytest

from archive_overlay.layout.stored import chains_of
from tests.support import histories, history, hooks, image_layouts, tools
from tests.support.registry import Registry, Way
from tests.support.screens import run_at_once, screen

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PUSHED = f"{hooks.PREFIX}.pushed"
PUSH_TO = f"{hooks.PREFIX}.push-to"
FEW = "--timeout=20"


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    """Give a registry that many tests use, each with names of its own."""
    with Registry(tmp_path_factory.mktemp("registry") / "plain") as made:
        yield made


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    """Give a name that no other test has."""
    return f"team/{hashlib.sha256(request.node.name.encode()).hexdigest()[:12]}"


class Host:
    """A host with a layout, whose tag main is shared by a registry.

    Args:
        layout: where it is.
        remote: what main is there.
        most: how many layers an image of it has.
    """

    def __init__(self, layout: Path, remote: str, *, most: int = 0) -> None:
        self.layout = layout
        self.remote = remote
        self._most = most

    def stop(self, text: str) -> None:
        """Add a revision, as a container does that stops."""
        entries = [history.directory("./"), history.file("./x", text.encode()), history.file(f"./{text}")]
        histories.append(self.layout, "main", history.layer(*entries), most=self._most)

    def push(self) -> hooks.Result:
        """Push main."""
        arguments = ("--no-fsync", "--tls-verify=false", FEW, f"--to={self.remote}")
        return history.run("push", *arguments, f"{self.layout}:main")

    def fetch(self, *arguments: str, remote: str = "") -> hooks.Result:
        """Fetch main."""
        names = (f"{self.layout}:main", remote or self.remote)
        return history.run("fetch", "--no-fsync", "--tls-verify=false", FEW, *arguments, *names)

    def get(self, *arguments: str, remote: str = "") -> str:
        """Fetch main, which must be possible; give what is said of it."""
        result = self.fetch(*arguments, remote=remote)
        assert (result.status, result.stderr) == (0, "")
        return result.stdout

    @property
    def numbers(self) -> list[int]:
        return histories.numbers(self.layout)

    @property
    def entry(self) -> dict[str, Any]:
        """The entry of main in the index."""
        entries: list[dict[str, Any]] = image_layouts.read_index(self.layout)["manifests"]
        return next(each for each in entries if image_layouts.tag_of(each) == "main")

    @property
    def waits(self) -> bool:
        return bool(self.entry["annotations"].get(PUSHED) != self.entry["digest"])

    @property
    def now(self) -> str:
        """What x has in the last revision."""
        return history.output_of("cat", f"{self.layout}:main:x")

    def expect_whole(self) -> None:
        """Fail the test unless all can be had, and nothing else is there but what the next writer deletes."""
        image_layouts.expect_whole(self.layout)
        verified = history.run("verify", "--read-data", self.layout)
        assert not verified.status, verified
        assert sorted(os.listdir(self.layout)) == ["blobs", "index.json", "oci-layout"]

    def seen(self) -> tuple[int, int, bytes]:
        """What changes if anything is written."""
        status = (self.layout / "index.json").stat()
        return status.st_ino, status.st_mtime_ns, (self.layout / "index.json").read_bytes()


@pytest.fixture
def two(shared: Registry, name: str, scratch: Path) -> tuple[Host, Host]:
    """Give a host that has pushed three revisions, and one that has nothing."""
    one = Host(scratch / "one", shared.reference(name))
    for text in ("1", "2", "3"):
        one.stop(text)
    assert one.push().status == 0
    return one, Host(scratch / "two", one.remote)


# What comes


def test_before_anybody_has_pushed_there_is_nothing_to_fetch(
    shared: Registry, name: str, scratch: Path
) -> None:
    host = Host(scratch / "new", shared.reference(name))

    said = f"{host.remote} is not there yet, so there is nothing to fetch\n"
    assert host.get("--missing-ok") == said
    assert not host.layout.exists()

    missing = host.fetch()
    assert missing.status == 1
    assert f"no image {host.remote}; check the name, or add --missing-ok" in missing.stderr

    host.stop("1")
    assert host.push().status == 0
    misspelt = host.fetch("--missing-ok", remote=f"{host.remote}s")
    assert (misspelt.status, f"{host.layout}:main belongs to {host.remote}" in misspelt.stderr) == (0, True)


def test_a_new_host_gets_all_that_the_image_says(two: tuple[Host, Host]) -> None:
    one, new = two

    said = new.get()

    assert said == f"{new.layout}:main: revision 3 of {new.remote}\n"
    assert new.numbers == [1, 2, 3]
    assert (new.now, new.waits) == ("3", False)
    image_layouts.expect_sound(new.layout)
    mine, theirs = image_layouts.read(one.layout, "main"), image_layouts.read(new.layout, "main")
    assert mine.manifest["config"] == theirs.manifest["config"]
    assert mine.digests == theirs.digests


def test_a_terminal_shows_how_far_it_is(shared: Registry, name: str, scratch: Path) -> None:
    one, new = (Host(scratch / each, shared.reference(name)) for each in ("one", "new"))
    data = history.file("./x", os.urandom(4 << 20))
    histories.append(one.layout, "main", history.layer(history.directory("./"), data))
    assert one.push().status == 0

    shown, _ = run_at_once("fetch", "--no-fsync", "--tls-verify=false", f"{new.layout}:main", new.remote)

    assert " of 4.0M" in shown
    assert screen(shown) == [f"{new.layout}:main: revision 1 of {new.remote}", ""]


def test_only_what_is_newer_is_downloaded(two: tuple[Host, Host], shared: Registry, name: str) -> None:
    one, other = two
    other.get()
    one.stop("4")
    assert one.push().status == 0
    before = len(shared.requests())

    other.get()

    got = [each for each in shared.requests()[before:] if f"GET /v2/{name}/blobs/" in each]
    layers = image_layouts.read(other.layout, "main").digests
    assert sum(layers[-1] in each for each in got) == 1
    assert not any(layer in each for each in got for layer in layers[:-1])
    assert other.numbers == [1, 2, 3, 4]


def test_what_is_not_newer_changes_nothing(two: tuple[Host, Host], shared: Registry) -> None:
    other = two[1]
    other.get()
    before, requests = other.seen(), len(shared.requests())

    assert other.get() == f"{other.layout}:main: {other.remote} has nothing newer\n"
    assert other.seen() == before
    assert len(shared.requests()) - requests < 6
    other.stop("4")
    before = other.seen()
    other.get()
    assert other.seen() == before
    assert other.waits


def test_hosts_in_turn_have_one_history(shared: Registry, name: str, scratch: Path) -> None:
    hosts = [Host(scratch / each, shared.reference(name), most=most) for each, most in (("a", 2), ("b", 3))]
    asked = []

    for turn in range(1, 9):
        host = hosts[turn % 2]
        before = len(shared.requests())
        host.get("--missing-ok")
        asked.append(len(shared.requests()) - before)
        host.stop(f"{turn}")
        assert host.push().status == 0

    hosts[1].get()
    assert [each.now for each in hosts] == ["8", "8"]
    assert [each.numbers for each in hosts] == [[*range(1, 9)]] * 2
    states = [histories.states(each.layout, scratch) for each in hosts]
    assert states[0] == states[1]
    assert max(asked[4:]) <= max(asked[:4])
    for each in hosts:
        each.expect_whole()


def test_a_host_that_was_away_while_others_composed_goes_on(two: tuple[Host, Host], scratch: Path) -> None:
    one, away = two
    away.get()
    busy = Host(one.layout, one.remote, most=2)
    for number in range(4, 12):
        busy.stop(f"{number}")
    assert busy.push().status == 0
    layers = len(image_layouts.read(busy.layout, "main").layers)

    assert away.push().status == 0  # what it has is there
    away.get()

    assert layers < 3
    assert away.now == "11"
    # Its own are still there, one by one; of the others, those that are the last of a layer.
    assert away.numbers[:3] == [1, 2, 3]
    assert away.numbers[-1] == 11
    assert history.output_of("cat", f"{away.layout}:main@2:x") == "2"
    away.expect_whole()
    away.stop("12")
    assert away.push().status == 0
    busy.get()
    assert busy.numbers == [*range(1, 13)]
    busy.expect_whole()


def test_a_container_that_began_before_the_fetch_lies_on_what_it_had(two: tuple[Host, Host]) -> None:
    one, other = two
    other.get()
    history.output_of("squash", f"{other.layout}:main@1..2")
    had = chains_of(image_layouts.read(other.layout, "main").config["rootfs"]["diff_ids"])[-1]
    one.stop("4")
    assert one.push().status == 0

    other.get()

    assert had not in chains_of(image_layouts.read(other.layout, "main").config["rootfs"]["diff_ids"])
    tar = history.layer(history.directory("./"), history.file("./x", b"branch"))
    histories.append(other.layout, "main", tar, had=[had])
    assert other.now == "4"
    assert "main@3" in history.output_of("show", f"{other.layout}:main-cccccccccccc")


# What is not lost


def test_what_does_not_go_on_with_what_is_here_is_not_fetched(two: tuple[Host, Host]) -> None:
    one, other = two
    other.get()
    one.stop("theirs")
    assert one.push().status == 0
    other.stop("ours")
    before = other.seen()

    result = other.fetch()

    assert (result.status, result.stdout) == (1, "")
    assert f"archive_overlay tag {other.layout}:main main-here" in result.stderr
    assert other.seen() == before
    history.output_of("tag", f"{other.layout}:main", "main-here")
    assert "what was here is in the tag main-here" in other.get()
    assert (other.now, other.numbers) == ("theirs", [1, 2, 3, 4])
    assert history.output_of("cat", f"{other.layout}:main-here:x") == "ours"
    other.expect_whole()


def test_a_branch_that_a_push_made_is_as_good(two: tuple[Host, Host]) -> None:
    one, other = two
    other.get()
    one.stop("theirs")
    other.stop("ours")
    assert (one.push().status, other.push().status) == (0, 1)

    assert "what was here is in the tag main-cccccccccccc" in other.get()

    assert (other.now, other.waits) == ("theirs", False)
    other.stop("more")
    assert other.push().status == 0
    one.get()
    assert one.now == "more"


def test_a_stop_in_the_meantime_is_not_lost(two: tuple[Host, Host], shared: Registry, name: str) -> None:
    one, other = two
    other.get()
    one.stop("theirs")
    assert one.push().status == 0
    layer = image_layouts.read(one.layout, "main").digests[-1].encode()
    stopped: list[bool] = []

    def stop(data: bytes) -> None:
        if layer in data and not stopped:
            stopped.append(True)
            other.stop("ours")

    with Way(shared, watch=stop) as way:
        result = other.fetch(remote=way.reference(name))

    assert stopped
    assert (result.status, other.now) == (1, "ours")
    other.expect_whole()


@pytest.mark.parametrize("fault", ["stopped", "silent", "broken"])
def test_a_registry_that_fails_leaves_all_as_it_was(
    two: tuple[Host, Host], shared: Registry, name: str, fault: str
) -> None:
    one, other = two
    other.get()
    one.stop("4")
    assert one.push().status == 0
    before = other.seen()

    def end(data: bytes) -> None:
        if fault == "broken" and b"/blobs/" in data:
            raise ConnectionError

    with Way(shared, silent=fault == "silent", watch=end) as way:
        remote = way.reference(name)
        if fault == "stopped":
            remote = "docker://127.0.0.1:1/data:main"
        result = other.fetch("--timeout=2", remote=remote)

    assert (result.status, result.stdout) == (1, "")
    assert result.stderr.count("\n") == 1
    assert other.seen() == before
    other.expect_whole()


def test_passwords_and_certificates_are_asked_for(scratch: Path) -> None:
    with Registry(scratch / "registry", password=True, tls=True) as registry:
        auth = registry.authfile(scratch / "auth.json")
        one, other = (Host(scratch / each, registry.reference("data")) for each in ("one", "two"))
        one.stop("1")
        pushed = ("--no-fsync", "--tls-verify=false", f"--authfile={auth}", f"--to={one.remote}")
        history.output_of("push", *pushed, f"{one.layout}:main")

        assert other.fetch().status == 1
        unknown = history.run("fetch", f"--authfile={auth}", f"{other.layout}:main", other.remote)
        assert (unknown.status, other.layout.exists()) == (1, False)
        other.get(f"--authfile={auth}")

    assert other.now == "1"


# Whoever can write to the registry


def forge(host: Host, *layers: tuple[dict[str, Any], bytes], below: int = 0, **said: Any) -> None:
    """Push an image that somebody made by hand.

    Args:
        host: made by this one's layout, and to where that goes.
        layers: what is said of each, and its tar.
        below: how many layers of the host's image it has below them.
        said: its annotations, without what all keys begin with.
    """
    place = host.layout.parent / "forged"
    shutil.copytree(host.layout, place)
    image = image_layouts.read(place, "main")
    stored = [
        {
            "mediaType": image_layouts.LAYER_TYPE,
            **image_layouts.put_blob(place, tar),
            "annotations": keys(said),
        }
        for said, tar in layers
    ]
    diff_ids = [*image.config["rootfs"]["diff_ids"][:below], *(each["digest"] for each in stored)]
    config = {**image.config, "rootfs": {"type": "layers", "diff_ids": diff_ids}, "history": []}
    described = {**image.manifest["config"], **image_layouts.put_blob(place, image_layouts.as_json(config))}
    manifest = {
        **image.manifest,
        "config": described,
        "layers": [*image.manifest["layers"][:below], *stored],
        "annotations": keys(said),
    }
    descriptor = {
        "mediaType": image_layouts.MANIFEST_TYPE,
        **image_layouts.put_blob(place, image_layouts.as_json(manifest)),
        "annotations": {image_layouts.REF_NAME: "main"},
    }
    (place / "index.json").write_bytes(image_layouts.as_json({"schemaVersion": 2, "manifests": [descriptor]}))
    options = ("--quiet", "--preserve-digests", "--dest-tls-verify=false")
    subprocess.run(["skopeo", "copy", *options, f"oci:{place}:main", host.remote], check=True)


def keys(said: dict[str, Any]) -> dict[str, str]:
    return {f"{hooks.PREFIX}.{key.replace('_', '-')}": str(value) for key, value in said.items()}


EVIL = history.layer(history.directory("./"), history.file("./x", b"evil"))


def test_what_an_image_says_of_a_layout_means_nothing(two: tuple[Host, Host]) -> None:
    one, other = two
    other.get()
    needed = [f"sha256:{each}" for each in os.listdir(other.layout / "blobs/sha256")]
    loose = str(image_layouts.put_blob(other.layout, b"of somebody who writes just now")["digest"])
    forge(
        one,
        ({}, EVIL),
        below=3,
        superseded=" ".join([*needed, loose]),
        history=f"sha256:{'0' * 64} 999",
        push_to="docker://evil.example/data:main",
        pushed=f"sha256:{'0' * 64}",
    )

    other.get()

    assert other.entry["annotations"][PUSH_TO] == other.remote
    other.stop("5")
    other.stop("6")
    assert other.numbers == [1, 2, 3, 4, 5, 6]
    assert (other.layout / "blobs/sha256" / loose.partition(":")[2]).exists()
    other.expect_whole()


def test_revisions_that_are_here_stay_what_they_were(two: tuple[Host, Host]) -> None:
    one, other = two
    other.get()
    chain = chains_of(image_layouts.read(one.layout, "main").config["rootfs"]["diff_ids"])[-1]
    # One layer, which says that it is those three and one more.
    forge(one, ({"revision": "1-4", "container": "c"}, EVIL), ancestors=f"3:{chain[:16]}")

    other.get()

    assert (other.now, other.numbers) == ("evil", [1, 2, 3, 4])
    assert [history.output_of("cat", f"{other.layout}:main@{n}:x") for n in (1, 2, 3)] == ["1", "2", "3"]
    other.expect_whole()


@pytest.mark.parametrize(
    "said",
    [
        {"revision": "999999999"},
        {"revision": "1-99999999"},
        {"chains": "f" * 64},
    ],
    ids=lambda said: "".join(said),
)
def test_an_image_that_lies_about_itself_harms_nothing_here(
    two: tuple[Host, Host], said: dict[str, str]
) -> None:
    one, other = two
    other.get()
    forge(one, (said, EVIL), below=3)

    other.fetch()

    assert other.numbers[:3] == [1, 2, 3]
    assert history.output_of("cat", f"{other.layout}:main@3:x") == "3"
    verified = history.run("verify", "--read-data", other.layout)
    assert not verified.status or " 0 of them cannot be fully restored" in verified.stdout


def test_a_blob_that_is_not_what_its_digest_says_does_not_come(
    two: tuple[Host, Host], shared: Registry
) -> None:
    one, other = two
    digest = image_layouts.read(one.layout, "main").digests[-1].partition(":")[2]
    blob = shared.storage / f"docker/registry/v2/blobs/sha256/{digest[:2]}/{digest}/data"
    data = blob.read_bytes()
    blob.write_bytes(data[::-1])

    result = other.fetch()

    blob.write_bytes(data)
    assert result.status == 1
    assert os.listdir(other.layout) == []
    other.get()
    assert other.numbers == [1, 2, 3]


def test_a_blob_without_an_end_does_not_fill_the_disk(two: tuple[Host, Host], shared: Registry) -> None:
    one, other = two
    digest = image_layouts.read(one.layout, "main").digests[-1].partition(":")[2]
    blob = shared.storage / f"docker/registry/v2/blobs/sha256/{digest[:2]}/{digest}/data"
    size = blob.stat().st_size
    os.truncate(blob, 1 << 40)

    result = other.fetch()

    os.truncate(blob, size)
    assert (result.status, os.listdir(other.layout)) == (1, [])
    assert "sent more data than its manifest says" in result.stderr


def test_an_image_of_another_form_can_be_what_a_history_begins_with(
    shared: Registry, name: str, scratch: Path
) -> None:
    image_layouts.put(scratch / "made", "main", layers=[EVIL])
    host = Host(scratch / "host", shared.reference(name))
    options = ("--quiet", "--format=v2s2", "--dest-tls-verify=false")
    subprocess.run(["skopeo", "copy", *options, f"oci:{scratch}/made:main", host.remote], check=True)

    host.get()
    host.get()

    assert (host.now, host.numbers) == ("evil", [1])
    host.stop("2")
    assert host.push().status == 0
    assert host.get() == f"{host.layout}:main: {host.remote} has nothing newer\n"


# Whose files they are


def test_files_are_as_those_that_are_there(two: tuple[Host, Host]) -> None:
    tools.need_root()
    one, other = two
    other.get()
    assert {each.stat().st_mode & 0o777 for each in (other.layout / "blobs/sha256").iterdir()} == {0o600}
    for each in (other.layout, *other.layout.rglob("*")):
        os.chown(each, 1234, 1234)
    (other.layout / "index.json").chmod(0o640)
    one.stop("4")
    assert one.push().status == 0
    before = set((other.layout / "blobs/sha256").iterdir())

    other.get()

    new = [each.stat() for each in {*(other.layout / "blobs/sha256").iterdir()} - before]
    assert {(each.st_uid, each.st_mode & 0o777) for each in new} == {(1234, 0o640)}
