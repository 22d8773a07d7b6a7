"""One more layer of an image in a layout: where it may be, what stays as it was, and what is flushed when."""

from __future__ import annotations

import errno
import fcntl
import gzip
import hashlib
import json
import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from archive_overlay.destination.paths import Paths
from archive_overlay.errors import ArchiveError
from archive_overlay.layout.add_layer import judge_destination
from archive_overlay.layout.layer import MEDIA_TYPES, Layer
from archive_overlay.layout.provenance import Provenance
from archive_overlay.log import Log
from archive_overlay.system import kernel
from archive_overlay.system.patience import Patience
from tests.support import debris, history, image_layouts
from tests.support.flushing import Flushed, open_files

if TYPE_CHECKING:
    from archive_overlay.layout.add_layer import LayoutDestination

TAR = bytes(10240)  # a tar with nothing in it


class Stop:
    """One stop of a container that has made a layer, and has only to add it.

    Attributes:
        layout: where the image is to be.
        said: what was logged.
        flushed: what would be flushed.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.layout = directory / "layout"
        self.upper = directory / "upper"
        self.upper.mkdir()
        self.said: list[str] = []
        self.flushed = Flushed(directory)
        self.log = Log("info", [self])
        self.patience = Patience()

    def write(self, level: str, message: str) -> None:
        self.said.append(f"{level}: {message}")

    def judge(self, archive_to: Path | str = "", parent: str = "") -> LayoutDestination:
        return judge_destination(
            str(archive_to or self.layout),
            parent=parent,
            provenance=Provenance(container="c1", archive="data", mount_point="/data"),
            upper=str(self.upper),
            paths=Paths(),
            patience=self.patience,
            log=self.log,
        )

    def add(
        self,
        archive_to: Path | str = "",
        parent: str = "",
        *,
        tar: bytes = TAR,
        entries: int = 1,
        deletions: int = 0,
    ) -> str:
        destination = self.judge(archive_to, parent)
        blob = gzip.compress(tar, mtime=0)
        layer = Layer(
            media_type=MEDIA_TYPES["gzip"],
            digest=f"sha256:{hashlib.sha256(blob).hexdigest()}",
            size=len(blob),
            diff_id=f"sha256:{hashlib.sha256(tar).hexdigest()}",
            entries=entries,
            deletions=deletions,
            bytes=len(tar),
        )
        with destination.stage(self.flushed, self.log) as staging:
            with open(staging.create_file("archive"), "wb") as file:
                file.write(blob)
            return destination.publish(staging, layer)

    def index(self) -> Any:
        return json.loads((self.layout / "index.json").read_bytes())


@pytest.fixture
def stop(tmp_path: Path) -> Stop:
    return Stop(tmp_path)


# What podman does not pull


def test_what_podman_does_not_pull_is_said_once_with_what_works(stop: Stop) -> None:
    path = stop.directory / "My Data"

    for _ in range(2):
        stop.add(f"{path}:main")

    (line,) = stop.said
    assert line.startswith(
        f"warning: archive data: podman pull may refuse oci:{path}:main: podman up to 4.6 does not accept "
    )
    assert line.endswith(f" skopeo copy 'oci:{path}:main' containers-storage:localhost/my-data:main")


def test_no_word_is_said_of_an_image_that_is_not_there(stop: Stop) -> None:
    stop.add(stop.directory / "My Data:main", entries=0)

    assert stop.said == []


# Where it may be


def test_a_layout_is_not_in_the_upperdir(stop: Stop) -> None:
    with pytest.raises(ArchiveError, match=r"archive-to .*/upper/layout is the upperdir .* or in it"):
        stop.judge(stop.upper / "layout:tag")


def test_a_layout_does_not_contain_the_upperdir(stop: Stop) -> None:
    with pytest.raises(ArchiveError, match="contains the upperdir"):
        stop.judge(stop.directory)


def test_no_path_with_a_colon_is_taken(stop: Stop) -> None:
    with pytest.raises(ArchiveError, match="has a colon before its last slash; a tag cannot contain a slash"):
        stop.judge(f"{stop.directory}/a:b/layout")


@pytest.mark.parametrize("name", ["docker.io/library/x:v1", "localhost:5000/x", "x@sha256:00"])
def test_a_parent_has_the_name_that_another_program_gave_it(stop: Stop, name: str) -> None:
    image_layouts.put(stop.layout, name, layers=[b"a layer"])

    assert stop.add(f"{stop.layout}:main", name) == "revision 2 of main"

    assert image_layouts.tags(stop.layout) == [name, "main"]


@pytest.mark.parametrize(
    ("archive_to", "parent"),
    [
        ("layout:-", ""),
        ("layout:tag", "a b"),
        ("layout:tag", "/a"),
        ("layout:tag", "a//b"),
        ("layout:tag", "a:"),
    ],
)
def test_tags_are_what_the_specification_says(stop: Stop, archive_to: str, parent: str) -> None:
    with pytest.raises(ArchiveError, match="is not a valid tag"):
        stop.judge(stop.directory / archive_to, parent)


@pytest.mark.parametrize(("tag", "parent"), [("main@3", ""), ("main@007", ""), ("a@b@1", "")])
def test_no_tag_hides_a_revision(stop: Stop, tag: str, parent: str) -> None:
    with pytest.raises(ArchiveError, match=r"would hide revision .*; a tag must not end in @ and digits"):
        stop.judge(f"{stop.layout}:{tag}", parent)


@pytest.mark.parametrize("tag", ["main@3a", "main@v3", "main-3", "3", "a@b.3"])
def test_other_tags_with_an_at_sign_are_tags(stop: Stop, tag: str) -> None:
    assert stop.add(f"{stop.layout}:{tag}") == f"revision 1 of {tag}"


def test_a_parent_has_to_be_there(stop: Stop) -> None:
    error = f"the image layout {stop.layout} has no tag main, which is to be the parent"
    with pytest.raises(ArchiveError, match=error):
        stop.judge(f"{stop.layout}:branch", "main")
    image_layouts.put(stop.layout, "other")
    with pytest.raises(ArchiveError, match=error):
        stop.judge(f"{stop.layout}:branch", "main")


def test_a_parent_without_a_tag_can_get_one(stop: Stop) -> None:
    image_layouts.put(stop.layout, "")
    with pytest.raises(
        ArchiveError,
        match=f"its only image has no tag: skopeo copy oci:{stop.layout} oci:{stop.layout}:main gives it",
    ):
        stop.judge(f"{stop.layout}:branch", "main")

    image_layouts.put(stop.layout, "other", config={"author": "another"})
    with pytest.raises(ArchiveError, match=f"once more, as skopeo copy IMAGE oci:{stop.layout}:main"):
        stop.judge(f"{stop.layout}:branch", "main")


@pytest.mark.parametrize("others", [(), ("other",)])
def test_a_base_without_a_tag_is_said_to_be_ignored(stop: Stop, others: tuple[str, ...]) -> None:
    for tag in ("", *others):
        image_layouts.put(stop.layout, tag, layers=[b"a layer"], config={"author": tag})

    assert stop.add(f"{stop.layout}:main") == "revision 1 of main"
    assert stop.add(f"{stop.layout}:main") == "revision 2 of main"
    if others:
        assert stop.add(f"{stop.layout}:branch", "other") == "revision 2 of branch"

    said = [line for line in stop.said if "podman" not in line]
    assert said == [
        f"warning: archive data: the image layout {stop.layout} has an image without a tag, which is ignored: main begins"
        f" without it. To begin with it, copy it there once more, as skopeo copy IMAGE oci:{stop.layout}:base, and ask for"
        " parent=base"
    ]


def test_a_directory_with_something_else_is_no_layout(stop: Stop) -> None:
    stop.layout.mkdir()
    (stop.layout / "something").touch()
    with pytest.raises(
        ArchiveError,
        match="archive-to names a directory with other contents, not an image layout: it has no index",
    ):
        stop.judge()


@pytest.mark.parametrize("shared", [False, True])
def test_a_layout_without_its_index_is_no_new_one_and_loses_nothing(stop: Stop, shared: bool) -> None:
    stop.add()
    if shared:
        for blob in [*(stop.layout / "blobs/sha256").iterdir()]:
            elsewhere = stop.layout.parent / f"of-{blob.name}"
            blob.rename(elsewhere)
            blob.symlink_to(elsewhere)
    index = (stop.layout / "index.json").read_bytes()
    (stop.layout / "index.json").unlink()
    before = sorted(stop.layout.rglob("*"))

    with pytest.raises(
        ArchiveError,
        match=r"index\.json of the image layout is gone, and its blobs are still there; .*backup",
    ):
        stop.judge()

    assert sorted(stop.layout.rglob("*")) == before
    (stop.layout / "index.json").write_bytes(index)
    assert stop.add().startswith("revision 2 of ")


def test_what_a_killed_run_left_is_nothing_else(stop: Stop) -> None:
    stop.layout.mkdir()
    debris.put(stop.layout, "")
    (stop.layout / "blobs").mkdir()
    (stop.layout / "oci-layout").touch()

    assert stop.add() == "revision 1 of latest"

    image_layouts.expect_sound(stop.layout)


def test_damage_is_seen_before_anything_is_written(stop: Stop) -> None:
    image_layouts.put(stop.layout, "latest", layers=[b"a layer"])
    image_layouts.blob(stop.layout, image_layouts.read(stop.layout).manifest["layers"][0]).unlink()

    with pytest.raises(ArchiveError, match=r"the image layout is damaged: blobs/sha256/.* is missing"):
        stop.judge()
    assert open_files(stop.directory) == []


@pytest.mark.parametrize("name", ["blobs", "blobs/sha256"])
@pytest.mark.parametrize("new", [True, False], ids=["new", "not-new"])
def test_blobs_that_are_elsewhere_are_seen_before_anything_is_written(
    stop: Stop, name: str, new: bool
) -> None:
    elsewhere = stop.directory / "elsewhere"
    image_layouts.put(stop.layout, "main", layers=[b"a layer"])
    (stop.layout / name).rename(elsewhere)
    (stop.layout / name).symlink_to(elsewhere)
    if new:
        (stop.layout / "index.json").unlink()

    with pytest.raises(
        ArchiveError,
        match=f"the image layout {stop.layout} has its blobs elsewhere: {name} is a symbolic link, and nothing is"
        " written through it; name another layout; skopeo copy ",
    ):
        stop.judge(f"{stop.layout}:main")


def test_single_blobs_that_are_elsewhere_are_built_upon(stop: Stop) -> None:
    image_layouts.put(stop.layout, "main", layers=[b"a layer"])
    elsewhere = stop.directory / "elsewhere"
    elsewhere.mkdir()
    for blob in (stop.layout / "blobs/sha256").iterdir():
        blob.rename(elsewhere / blob.name)
        blob.symlink_to(elsewhere / blob.name)
    before = sorted(os.listdir(elsewhere))

    assert stop.add(f"{stop.layout}:main") == "revision 2 of main"

    assert len(image_layouts.read(stop.layout, "main").layers) == 2
    assert sorted(os.listdir(elsewhere)) == before


@pytest.mark.parametrize("damage", ["missing", "size", "directory"])
def test_damage_behind_a_link_is_seen(stop: Stop, damage: str) -> None:
    image_layouts.put(stop.layout, "main", layers=[b"a layer"])
    blob = image_layouts.blob(stop.layout, image_layouts.read(stop.layout, "main").manifest["layers"][0])
    blob.unlink()
    blob.symlink_to(stop.directory / "elsewhere")
    if damage == "size":
        (stop.directory / "elsewhere").write_bytes(b"another layer")
    elif damage == "directory":
        (stop.directory / "elsewhere").mkdir()

    with pytest.raises(ArchiveError, match=f"the image layout is damaged: blobs/sha256/{blob.name} "):
        stop.judge(f"{stop.layout}:main")


def test_a_file_in_the_layout_s_place_is_an_error(stop: Stop) -> None:
    stop.layout.touch()
    with pytest.raises(ArchiveError, match=f"cannot read the image layout {stop.layout}: Not a directory"):
        stop.judge()


def test_a_layout_that_cannot_be_read_is_an_error(stop: Stop) -> None:
    image_layouts.put(stop.layout, "latest")
    (stop.layout / "index.json").unlink()
    (stop.layout / "index.json").symlink_to("oci-layout")
    with pytest.raises(
        ArchiveError, match=f"cannot read the image layout {stop.layout}: index.json: Too many levels"
    ):
        stop.judge()
    assert open_files(stop.directory) == []


# What comes, and what stays


def test_a_new_image_has_one_layer_and_says_where_it_comes_from(stop: Stop) -> None:
    assert stop.add(entries=3, deletions=2) == "revision 1 of latest"

    image_layouts.expect_sound(stop.layout)
    image = image_layouts.read(stop.layout)
    assert image.config["os"] == "linux"
    assert image.config["config"] == {}
    assert image.manifest["schemaVersion"] == 2
    assert stop.index()["mediaType"] == "application/vnd.oci.image.index.v1+json"
    (history,) = image.config["history"]
    assert history["created_by"] == "archive_overlay"
    assert history["comment"] == "revision 1: container c1, archive data, mount point /data"
    (layer,) = image.manifest["layers"]
    facts = {key.rpartition(".")[2]: value for key, value in layer["annotations"].items()}
    created = facts.pop("created")
    assert facts == {
        "container": "c1",
        "archive": "data",
        "mount-point": "/data",
        "entries": "3",
        "deletions": "2",
        "bytes": "10240",
        "base": "unknown",
        "revision": "1",
        # What a store calls the top layer.
        "chains": image.config["rootfs"]["diff_ids"][0].partition(":")[2],
    }
    of_revision = {
        key: value
        for key, value in layer["annotations"].items()
        if not key.endswith((".revision", ".chains"))
    }
    assert image.manifest["annotations"] == of_revision
    assert history["created"] == image.config["created"] == created


@pytest.mark.parametrize(
    ("machine", "architecture"),
    [("x86_64", "amd64"), ("aarch64", "arm64"), ("armv6l", "arm"), ("riscv64", "riscv64")],
)
def test_a_new_image_is_of_this_machine(
    stop: Stop, monkeypatch: pytest.MonkeyPatch, machine: str, architecture: str
) -> None:
    monkeypatch.setattr(os, "uname", lambda: os.uname_result(("Linux", "host", "6", "1", machine)))

    stop.add()

    assert image_layouts.read(stop.layout).config["architecture"] == architecture


def test_what_the_image_had_stays(stop: Stop) -> None:
    image_layouts.put(
        stop.layout,
        "latest",
        layers=[b"one", b"two"],
        config={"author": "somebody", "config": {"Cmd": ["sh"]}},
        manifest={"com.example": 1, "annotations": {"theirs": "kept"}},
        annotations={"of the entry": "kept"},
    )
    index = stop.index()
    platform = {"architecture": "arm64", "os": "linux", "variant": "v8"}
    index["manifests"][0].update(platform=platform, unknown="of this manifest alone")
    index["com.example"] = "kept"
    (stop.layout / "index.json").write_text(json.dumps(index))

    assert stop.add() == "revision 3 of latest"

    image_layouts.expect_whole(stop.layout)
    image = image_layouts.read(stop.layout)
    assert image.descriptor["platform"] == platform
    assert "unknown" not in image.descriptor
    assert image.descriptor["annotations"] == {"of the entry": "kept", image_layouts.REF_NAME: "latest"}
    assert stop.index()["com.example"] == "kept"
    assert (image.config["author"], image.config["config"]) == ("somebody", {"Cmd": ["sh"]})
    assert image.manifest["com.example"] == 1
    assert image.manifest["annotations"]["theirs"] == "kept"
    assert [layer.tar for layer in image.layers] == [b"one", b"two", TAR]


def test_a_history_with_holes_gets_an_entry_for_each_layer(stop: Stop) -> None:
    history = [{"created_by": "FROM"}, {"created_by": "ENV", "empty_layer": True}]
    image_layouts.put(stop.layout, "latest", layers=[b"one", b"two", b"three"], config={"history": history})

    stop.add()

    said = [each["created_by"] for each in image_layouts.read(stop.layout).config["history"]]
    assert said == ["FROM", "ENV", "unknown", "unknown", "archive_overlay"]


def test_a_branch_is_built_upon_its_parent_which_stays(stop: Stop) -> None:
    stop.add(f"{stop.layout}:main")

    assert stop.add(f"{stop.layout}:branch", "main", tar=bytes(20480)) == "revision 2 of branch"

    assert image_layouts.tags(stop.layout) == ["main", "branch"]
    assert [len(image_layouts.read(stop.layout, tag).layers) for tag in ("main", "branch")] == [1, 2]


def test_nothing_changed_is_no_revision(stop: Stop) -> None:
    assert stop.add(entries=0) == "no layer, because nothing was changed,"
    assert os.listdir(stop.layout) == []
    stop.add()
    before = stop.index()

    assert stop.add(entries=0) == "no layer, because nothing was changed,"
    assert stop.index() == before


def test_a_deletion_alone_is_a_change(stop: Stop) -> None:
    assert stop.add(entries=0, deletions=1) == "revision 1 of latest"


def test_nothing_changed_on_a_branch_is_its_tag(stop: Stop) -> None:
    stop.add(f"{stop.layout}:main")

    done = stop.add(f"{stop.layout}:branch", "main", entries=0)

    assert done == "no layer, because nothing was changed, but the tag branch,"
    main, branch = (image_layouts.read(stop.layout, tag) for tag in ("main", "branch"))
    assert main.descriptor["digest"] == branch.descriptor["digest"]
    image_layouts.expect_sound(stop.layout)


# Disks and other programs


def test_everything_is_flushed_before_what_refers_to_it(stop: Stop) -> None:
    stop.add()

    assert [digests_left_out(step) for step in stop.flushed.steps] == [
        "file .",  # the layout's directory was missing
        "file layout/.archive_overlay-/archive",
        "file layout/.archive_overlay-/DIGEST",
        "file layout/.archive_overlay-/DIGEST",
        "file layout/.archive_overlay-/oci-layout",
        "file layout/.archive_overlay-/index.json",  # of no image
        "file layout",
        "file layout/.archive_overlay-/index.json",
        "file layout/blobs/sha256",
        "file layout/blobs",
        "file layout",
        "file layout",
    ]
    assert open_files(stop.directory) == []


def test_a_layout_whose_first_publication_is_cut_short_is_whole_and_goes_on(
    stop: Stop, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(fd: int) -> None:
        if (stop.layout / "index.json").exists():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as disk:
        disk.setattr(stop.flushed, "file", fail)
        with pytest.raises(ArchiveError, match="No space left"):
            stop.add()

    assert history.output_of("verify", stop.layout).startswith(f"{stop.layout} is whole: 0 images")
    assert stop.add() == "revision 1 of latest"


def digests_left_out(step: str) -> str:
    directory, slash, name = step.rpartition("/")
    return f"{directory}{slash}{'DIGEST' if len(name) == 64 else name}"


def test_what_was_written_is_for_its_owner_alone(stop: Stop) -> None:
    old = os.umask(0)
    try:
        stop.add()
    finally:
        os.umask(old)

    modes = {stat.S_IMODE(path.stat().st_mode) for path in stop.layout.rglob("*")}
    assert modes == {0o600, 0o755}


def test_a_layout_that_another_program_has_locked_is_waited_for_but_not_for_ever(
    stop: Stop, monkeypatch: pytest.MonkeyPatch
) -> None:
    slept: list[float] = []

    def sleep(seconds: float) -> None:
        assert len(stop.said) == 1, "it is said before anybody waits, and once"
        slept.append(seconds)

    monkeypatch.setattr("time.sleep", sleep)
    stop.add()
    lock = os.open(stop.layout, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)

    with pytest.raises(
        ArchiveError,
        match=f"the image layout {stop.layout} is locked by another program .*waited for locks for 300 s",
    ):
        stop.add()

    assert round(sum(slept)) == 300
    assert max(slept) < 1
    name = Path("/proc/self/comm").read_text().strip()
    assert stop.said == [
        f"info: waiting for another program (pid {os.getpid()}, {name}), which holds the lock of the image layout"
        f" {stop.layout}, for at most 300 s"
    ]

    with pytest.raises(ArchiveError, match="waited for locks for 300 s, the most that it may"):
        stop.add()

    assert round(sum(slept)) == 300, "the second one does not wait again"
    assert len(stop.said) == 1
    os.close(lock)
    assert open_files(stop.directory) == []
    assert stop.add(tar=bytes(20480)) == "revision 2 of latest", "and nobody has it now"


def test_a_parent_that_went_away_in_the_meantime_is_missed(stop: Stop) -> None:
    stop.add(f"{stop.layout}:main")
    destination = stop.judge(f"{stop.layout}:branch", "main")
    (stop.layout / "index.json").write_text('{"schemaVersion": 2, "manifests": []}')
    layer = Layer(media_type="", digest="sha256:", size=0, diff_id="", entries=1, deletions=0, bytes=0)

    missing = pytest.raises(ArchiveError, match="has no tag main, which is to be the parent")
    with destination.stage(stop.flushed, stop.log) as staging, missing:
        destination.publish(staging, layer)


def test_a_layout_that_takes_no_writes_is_an_error(stop: Stop, monkeypatch: pytest.MonkeyPatch) -> None:
    stop.add()

    def failing(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(stop.flushed, "file", failing)

    with pytest.raises(ArchiveError, match=f"cannot write to the image layout {stop.layout}: No space left"):
        stop.add()

    assert open_files(stop.directory) == []
    image_layouts.expect_sound(stop.layout)


# Programs that do not take the lock


class Meanwhile(Flushed):
    """Another program writes to the layout at one of the flushes."""

    def __init__(self, top: Path, when: int) -> None:
        super().__init__(top)
        self.when = when

    def _note(self, what: str, fd: int) -> None:
        super()._note(what, fd)
        if len(self.steps) == self.when:
            image_layouts.put(self._top / "layout", "theirs", layers=[TAR])


def test_a_tag_that_another_program_made_meanwhile_stays(tmp_path: Path) -> None:
    when, last = 1, 0
    while when > last:
        last = when
        directory = tmp_path / str(when)
        directory.mkdir()
        stop = Stop(directory)
        stop.add()
        stop.flushed = Meanwhile(directory, when)
        stop.add(tar=bytes(20480))
        tags = image_layouts.tags(stop.layout)
        if len(stop.flushed.steps) >= when:
            when += 1
            assert sorted(tags) == ["latest", "theirs"], f"at flush {last}"
        assert len(image_layouts.read(stop.layout).layers) == 2
        assert image_layouts.expect_whole(stop.layout) is not None
    assert when > 5


def test_a_tag_made_at_the_last_moment_stays(stop: Stop, monkeypatch: pytest.MonkeyPatch) -> None:
    stop.add()
    exchange = kernel.exchange
    exchanged: list[Any] = []

    def late(*arguments: Any) -> None:
        if not exchanged:
            image_layouts.put(stop.layout, "theirs", layers=[TAR])
        exchanged.append(arguments)
        exchange(*arguments)

    monkeypatch.setattr(kernel, "exchange", late)
    stop.add(tar=bytes(20480))

    assert sorted(image_layouts.tags(stop.layout)) == ["latest", "theirs"]
    assert len(image_layouts.read(stop.layout).layers) == 2
    assert len(exchanged) == 3  # one, and back again
