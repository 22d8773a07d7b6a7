"""Each stop of a container becomes a layer of an image: what is in the layer, the config and the manifest."""

from __future__ import annotations

import os
import re
import shutil
import socket
import stat
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.integration.conftest import Saver, expect_equal
from tests.support import hooks, image_layouts, tools, trees

if TYPE_CHECKING:
    from tests.support.image_layouts import Image

pytestmark = pytest.mark.parametrize("method", ["oci"])

PREFIX = hooks.PREFIX
CREATED = "org.opencontainers.image.created"
TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ")


def stop(saver: Saver, *arguments: str, **keys: Any) -> hooks.Result:
    """Run the hook, which has to succeed, and give what it said."""
    result = saver.run(*arguments, **keys)
    assert result.status == 0, result.stderr
    return result


def change(saver: Saver, name: str, text: str = "by a container") -> None:
    """Let the container write a file."""
    saver.overlay.change(lambda root: (root / name).write_text(text))


def delete_all(root: Path) -> None:
    for path in root.iterdir():
        path.unlink()


def contents(layout: Path) -> trees.View:
    """Give all that is in a layout. Its own time is left out: staging comes and goes in it."""
    seen = trees.view(layout)
    return trees.View({path: seen.entries[path] for path in seen.entries if path != trees.TOP}, seen.links)


def below(root: Path) -> None:
    for name in ("changed", "gone1", "gone2", "linked"):
        (root / name).write_text("below")
    for name in ("kept/deep", "replaced/old", "to file", "removed/deep"):
        (root / name).mkdir(parents=True)
        (root / name / "gone").write_text("below")
        (root / name / "stays").write_text("below")
    (root / "to directory").write_text("below")


def change_everything(root: Path) -> None:
    """Make an entry of each kind that every container can make, and delete some."""
    (root / "gone1").unlink()
    (root / "gone2").unlink()
    (root / "kept/deep/gone").unlink()
    shutil.rmtree(root / "replaced")
    (root / "replaced").mkdir()
    (root / "replaced" / "new").write_text("new")
    shutil.rmtree(root / "removed/deep")
    (root / "removed/deep").symlink_to("../kept")
    shutil.rmtree(root / "to file")
    (root / "to file").write_text("a file")
    (root / "to directory").unlink()
    (root / "to directory").mkdir()
    (root / "to directory" / "in it").touch()
    (root / "changed").write_text("changed")
    os.link(root / "linked", root / "kept/another name")
    os.link(root / "linked", root / "a name that comes first")
    (root / "kept/deep/new").write_text("new")
    (root / "kept/deep/new").chmod(0o4751)
    os.symlink("nowhere", root / "symlink")
    os.link(root / "symlink", root / "symlink's other name", follow_symlinks=False)
    os.mkfifo(root / "pipe", 0o620)
    (root / "large").write_bytes(os.urandom(300_000))
    with open(root / "sparse", "wb") as file:
        file.seek(1 << 20)
        file.write(b"end")
        file.truncate(1 << 21)
    (root / ("long " * 40)).mkdir()
    (root / ("long " * 40) / ("long " * 40)).write_text("x")
    (root / os.fsdecode(b"\xff not UTF-8 \n")).write_text("x")
    os.setxattr(root / "changed", "user.lines", b"one\ntwo\0")
    os.setxattr(root / "kept", "user.colour", b"red")
    os.utime(root / "changed", ns=(0, 1_234_567_890_123_456_789))
    os.utime(root / "kept/deep/new", ns=(0, -12_345_678_901_234))
    os.utime(root / "symlink", ns=(0, 1), follow_symlinks=False)


@pytest.fixture
def full(any_saver: Saver) -> Saver:
    """Give a container that has changed something of every kind."""
    any_saver.overlay.layer(below)
    any_saver.overlay.change(change_everything)
    return any_saver


# The layer


def test_a_layer_says_all_that_a_change_set_holds(saver: Saver) -> None:
    saver.overlay.layer(below)
    saver.overlay.change(change_everything)

    stop(saver)

    left = saver.overlay.view()
    directory = saver.directory / "extracted"
    directory.mkdir()
    flavour = saver.overlay.flavour.standing_alone
    attribute = f"{'user' if flavour.rootless or flavour.program else 'trusted'}.overlay.opaque"
    layer = image_layouts.read(saver.archive).layers[0]
    saver.overlay.inside(lambda: image_layouts.extract(layer, directory, attribute))
    expect_equal(left, saver.overlay.restacked(directory))


def test_what_only_root_can_make_is_in_a_layer(any_saver: Saver) -> None:
    tools.need_root()

    def change(root: Path) -> None:
        os.mknod(root / "device", stat.S_IFBLK | 0o640, os.makedev(7, 300))
        (root / "owned").touch()
        os.chown(root / "owned", 3_000_000, 4_000_000)
        os.setxattr(root / "owned", "trusted.mine", b"\0x")
        os.symlink("x", root / "link")
        os.chown(root / "link", 1, 2, follow_symlinks=False)

    any_saver.overlay.change(change)

    stop(any_saver)

    layer = image_layouts.read(any_saver.archive).layers[0]
    device, owned, link = (layer.member(name) for name in ("device", "owned", "link"))
    assert (device.isblk(), device.devmajor, device.devminor, device.mode) == (True, 7, 300, 0o640)
    assert (owned.uid, owned.gid) == (3_000_000, 4_000_000)
    assert owned.pax_headers["SCHILY.xattr.trusted.mine"] == "\0x"
    assert (link.issym(), link.linkname, link.uid, link.gid) == (True, "x", 1, 2)


def test_every_layer_has_the_form_that_the_tools_take(saver: Saver) -> None:
    saver.overlay.layer(below)
    saver.overlay.change(change_everything)

    stop(saver)

    layer = image_layouts.read(saver.archive).layers[0]
    assert layer.faults() == []


def test_deletions_come_first_in_each_directory(full: Saver) -> None:
    stop(full)

    names = image_layouts.read(full.archive).layers[0].names

    assert names[:3] == [".", ".wh.gone1", ".wh.gone2"]
    kept = [name for name in names if name == "kept" or name.startswith("kept/")]
    assert kept == ["kept", "kept/another name", "kept/deep", "kept/deep/.wh.gone", "kept/deep/new"]
    assert [name for name in names if name.startswith("replaced")] == [
        "replaced",
        "replaced/.wh..wh..opq",
        "replaced/new",
    ]


def test_no_deletion_names_something_that_is_there(full: Saver) -> None:
    stop(full)

    names = set(image_layouts.read(full.archive).layers[0].names)

    assert not {name for name in names if name.replace(".wh.", "", 1) in names - {name}}


def test_a_layer_has_no_attribute_that_an_overlay_acts_on(any_saver: Saver) -> None:
    # Whoever reads the image may mount it in another way than the container's mount was.
    marks = {
        "user.overlay.opaque": b"y",
        "user.fuseoverlayfs.opaque": b"y",
        "user.overlay.redirect": b"/kept",
    }
    any_saver.overlay.layer(below)

    def change(root: Path) -> None:
        for name, value in marks.items():
            os.setxattr(root / "kept", name, value)

    any_saver.overlay.change(change)

    result = stop(any_saver)

    kept = image_layouts.read(any_saver.archive).layers[0].member("kept")
    found = {key for key in kept.pax_headers if key.startswith("SCHILY.xattr.")}
    # In a mount with userxattr the kernel keeps a container's marks apart, by a name of their own.
    assert {key for key in found if ".overlay.overlay." not in key} == set()
    for name in marks:
        if f"SCHILY.xattr.{name.replace('overlay.', 'overlay.overlay.')}" not in found:
            assert any(name in warning and "kept" in warning for warning in result.messages("warning"))


@pytest.mark.parametrize("place", ["", "kept/", "made/"], ids=["top", "kept", "made"])
@pytest.mark.parametrize("name", [".wh.new", ".wh..wh..opq", ".wh."])
def test_a_name_that_would_delete_something_is_refused(any_saver: Saver, place: str, name: str) -> None:
    def change(root: Path) -> None:
        (root / "made").mkdir()
        (root / place / name).touch()

    any_saver.overlay.layer(below)
    any_saver.overlay.change(change)

    result = any_saver.run()

    assert result.status == 1
    assert f"{place}{name}" in result.only_error()
    assert not any_saver.success.exists()
    assert list(any_saver.archive.iterdir()) == []


def test_the_deletion_of_such_a_name_is_refused(any_saver: Saver) -> None:
    any_saver.overlay.layer(lambda root: (root / ".wh.old").touch())
    any_saver.overlay.change(lambda root: (root / ".wh.old").unlink())

    result = any_saver.run()

    assert (result.status, ".wh.old" in result.only_error()) == (1, True)


def test_an_attribute_that_no_layer_can_name_is_refused(any_saver: Saver) -> None:
    def change(root: Path) -> None:
        (root / "file").touch()
        os.setxattr(root / "file", "user.a=b", b"x")

    any_saver.overlay.change(change)

    result = any_saver.run()

    assert result.status == 1
    assert "user.a=b" in result.only_error()
    assert "file" in result.only_error()


def test_what_is_refused_leaves_the_image_as_it_was(small: Saver) -> None:
    stop(small)
    before = contents(small.archive)
    change(small, ".wh.new")

    result = small.run()

    assert (result.status, small.success.exists()) == (1, False)
    expect_equal(before, contents(small.archive))


def test_a_socket_is_left_out_with_a_warning(any_saver: Saver) -> None:
    def change(root: Path) -> None:
        with socket.socket(socket.AF_UNIX) as listening:
            os.chdir(root)
            listening.bind("socket")
        (root / "file").touch()

    any_saver.overlay.change(change)

    result = stop(any_saver)

    assert image_layouts.read(any_saver.archive).layers[0].names == [".", "file"]
    assert any("socket" in warning for warning in result.messages("warning"))


def test_everything_can_belong_to_one_owner(full: Saver) -> None:
    stop(full, tar_content_owner="2001:3000")

    members = image_layouts.read(full.archive).layers[0].members

    assert {(member.uid, member.gid) for member in members} == {(2001, 3000)}
    assert {member.name: member.mode for member in members}["./kept/deep/new"] == 0o751


# Compression, digests


@pytest.mark.parametrize(
    ("compression", "media_type", "magic"),
    [
        (None, "application/vnd.oci.image.layer.v1.tar+gzip", b"\x1f\x8b"),
        ("gzip", "application/vnd.oci.image.layer.v1.tar+gzip", b"\x1f\x8b"),
        ("zstd", "application/vnd.oci.image.layer.v1.tar+zstd", b"\x28\xb5\x2f\xfd"),
        ("none", "application/vnd.oci.image.layer.v1.tar", b"././@PaxHeader"),
    ],
    ids=lambda value: value if isinstance(value, str) and "/" not in value else "",
)
def test_a_layer_is_compressed_as_asked(
    full: Saver, compression: str | None, media_type: str, magic: bytes
) -> None:
    if compression == "zstd":
        tools.need("zstd")

    stop(full, compression=compression)

    layer = image_layouts.read(full.archive).layers[0]
    assert layer.descriptor["mediaType"] == media_type
    assert image_layouts.blob(full.archive, layer.descriptor).read_bytes().startswith(magic)
    image_layouts.expect_sound(full.archive)


@pytest.mark.parametrize(("compression", "fast", "small_"), [("gzip", 1, 9), ("zstd", 1, 19)])
def test_a_level_is_a_matter_of_size(any_saver: Saver, compression: str, fast: int, small_: int) -> None:
    if compression == "zstd":
        tools.need("zstd")
    change(any_saver, "words", " ".join(f"{number**3:x}" for number in range(30_000)))
    sizes = []
    for level in (fast, small_):
        stop(
            any_saver,
            archive_to=f"{any_saver.archive}:level{level}",
            compression=compression,
            compression_level=level,
        )
        image = image_layouts.read(any_saver.archive, f"level{level}")
        sizes.append(image.layers[0].descriptor["size"])

    assert sizes[0] > sizes[1]


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"compression": "bzip2"}, "bzip2"),
        ({"compression": "gzip", "compression_level": "10"}, "1 to 9"),
        ({"compression": "none", "compression_level": "1"}, "compression-level"),
        ({"if_exists": "replace"}, "if-exists"),
    ],
    ids=lambda value: "-".join(value.values()) if isinstance(value, dict) else "",
)
def test_what_cannot_be_is_refused(small: Saver, keys: dict[str, Any], said: str) -> None:
    result = small.run(**keys)

    assert result.status == 1
    assert said in result.only_error()
    assert not small.archive.exists()


@pytest.mark.parametrize("compression", ["gzip", "zstd", "none"])
def test_the_same_change_set_gives_the_same_digest(full: Saver, compression: str) -> None:
    if compression == "zstd":
        tools.need("zstd")
    # Enough for several threads to have something to do.
    full.overlay.change(lambda root: (root / "larger").write_bytes(os.urandom(1 << 20) * 12))
    digests = []
    for jobs in ("1", "2", "5"):
        stop(full, "--jobs", jobs, archive_to=f"{full.archive}:jobs{jobs}", compression=compression)
        digests += image_layouts.read(full.archive, f"jobs{jobs}").digests

    assert len(set(digests)) == 1


# The image


def test_the_first_stop_makes_an_image_of_one_layer(small: Saver) -> None:
    stop(small)

    image = image_layouts.read(small.archive)
    assert len(image.layers) == 1
    assert image.layers[0].names == [".", "made"]
    assert image.config["os"] == "linux"
    machine = os.uname().machine
    assert image.config["architecture"] == {"x86_64": "amd64", "aarch64": "arm64"}.get(machine, machine)
    image_layouts.expect_sound(small.archive)


def test_each_stop_is_one_more_layer(any_saver: Saver) -> None:
    digests: list[str] = []
    for number in range(1, 4):
        change(any_saver, f"file{number}")
        result = stop(any_saver)
        assert f"revision {number}" in result.stderr
        image = image_layouts.read(any_saver.archive)
        assert image.digests[:-1] == digests
        digests = image.digests

    assert len(digests) == 3
    assert image.layers[2].names == [".", "file1", "file2", "file3"]


def test_history_says_where_each_layer_is_from(small: Saver) -> None:
    stop(small)
    change(small, "more")
    stop(small)

    image = image_layouts.read(small.archive)
    assert len(image.config["history"]) == 2
    for entry in image.config["history"]:
        assert TIME.fullmatch(entry["created"])
        assert entry["created_by"] == "archive_overlay"
        for part in ("c1", "data", "/data"):  # the container, the archive and the mount point
            assert part in entry["comment"]
        assert "empty_layer" not in entry
    assert image.config["created"] == image.config["history"][1]["created"]


def test_annotations_say_what_a_revision_is(full: Saver) -> None:
    stop(full)

    image = image_layouts.read(full.archive)
    annotations = image.manifest["annotations"]
    assert TIME.fullmatch(annotations[CREATED])
    members = image.layers[0].members
    deletions = [member for member in members if ".wh." in member.name and "opq" not in member.name]
    opaque = [member for member in members if member.name.endswith(".wh..wh..opq")]
    upper = annotations.pop(f"{PREFIX}.upper")
    assert re.fullmatch("[0-9a-f]{16} 1", upper)
    assert {key: value for key, value in annotations.items() if key.startswith(PREFIX)} == {
        f"{PREFIX}.container": "c1",
        f"{PREFIX}.archive": "data",
        f"{PREFIX}.mount-point": "/data",
        f"{PREFIX}.entries": str(len(members) - len(deletions) - len(opaque) - 1),
        f"{PREFIX}.deletions": str(len(deletions)),
        f"{PREFIX}.bytes": str(sum(member.size for member in members if member.isreg())),
        f"{PREFIX}.base": "unknown",
    }


def test_a_revision_s_facts_are_its_own(small: Saver) -> None:
    stop(small)
    change(small, "more")
    stop(small)

    image = image_layouts.read(small.archive)
    assert [layer.descriptor["annotations"][f"{PREFIX}.entries"] for layer in image.layers] == ["1", "2"]
    assert image.manifest["annotations"][f"{PREFIX}.entries"] == "2"


BASE: dict[str, Any] = {
    "config": {
        "architecture": "riscv64",
        "variant": "v9",
        "os": "linux",
        "author": "somebody",
        "com.example.unknown": {"kept": [1, 2.5, None, "\u00fc"]},
        "config": {
            "Env": ["PATH=/bin", "COLOUR=red"],
            "Labels": {"com.example.label": "value"},
            "Entrypoint": ["/bin/data"],
            "Volumes": {"/x": {}},
            "com.example.unknown": True,
        },
    },
    "manifest": {
        "annotations": {"com.example.annotation": "kept"},
        "com.example.unknown": ["kept"],
    },
    "annotations": {"com.example.entry": "of its tag"},
}


def put_base(saver: Saver, tag: str = "latest") -> Image:
    """Put an image into the layout that is the container's lower layer."""
    tar = image_layouts.tar_of(saver.overlay.lowers[0])
    image_layouts.put(saver.archive, tag, layers=[tar], **BASE)
    return image_layouts.read(saver.archive, tag)


def test_everything_else_of_the_parent_stays(full: Saver) -> None:
    base = put_base(full)

    stop(full)

    image = image_layouts.read(full.archive)
    assert image.digests[:1] == base.digests
    assert len(image.digests) == 2
    ours = {"created", "history", "rootfs"}
    assert {key: value for key, value in image.config.items() if key not in ours} == {
        key: value for key, value in base.config.items() if key not in ours
    }
    assert image.config["history"][:-1] == base.config["history"]
    assert image.manifest["com.example.unknown"] == ["kept"]
    assert image.manifest["annotations"]["com.example.annotation"] == "kept"
    assert image.manifest["layers"][:-1] == base.manifest["layers"]


def test_the_entry_of_a_tag_keeps_what_was_said_of_it(full: Saver) -> None:
    put_base(full)

    stop(full)

    descriptor = image_layouts.read(full.archive).descriptor
    assert descriptor["annotations"]["com.example.entry"] == "of its tag"


def test_a_history_stays_in_step_with_the_layers(full: Saver) -> None:
    # Some tools write none, and every reader takes the n-th entry for the n-th layer's.
    tar = image_layouts.tar_of(full.overlay.lowers[0])
    image_layouts.put(full.archive, "latest", layers=[tar], config={"history": None})

    stop(full)

    image = image_layouts.read(full.archive)
    entries = [entry for entry in image.config["history"] if not entry.get("empty_layer")]
    assert len(entries) == len(image.layers) == 2
    assert entries[1]["created_by"] == "archive_overlay"


def test_entries_of_history_without_a_layer_are_no_layers(full: Saver) -> None:
    tar = image_layouts.tar_of(full.overlay.lowers[0])
    history = [{"created_by": "COPY"}, {"created_by": "ENV", "empty_layer": True}]
    image_layouts.put(full.archive, "latest", layers=[tar], config={"history": history})

    stop(full)

    assert image_layouts.read(full.archive).config["history"][:-1] == history


def test_umoci_makes_the_image_that_is_built_upon(small: Saver) -> None:
    tools.need("umoci")
    subprocess.run(["umoci", "init", "--layout", small.archive], check=True)
    stop(small, archive_to=f"{small.archive}:first")
    subprocess.run(["umoci", "new", "--image", f"{small.archive}:second"], check=True)
    stop(small, archive_to=f"{small.archive}:second")

    for tag in ("first", "second"):
        assert len(image_layouts.read(small.archive, tag).layers) == 1
        subprocess.run(
            ["umoci", "stat", "--image", f"{small.archive}:{tag}"], check=True, stdout=subprocess.DEVNULL
        )


# Tags and branches


def test_the_tag_is_latest_if_there_is_none(small: Saver) -> None:
    stop(small)
    stop(small, archive_to=f"{small.archive}:latest")

    assert image_layouts.tags(small.archive) == ["latest"]
    assert len(image_layouts.read(small.archive).layers) == 2


@pytest.mark.parametrize("tag", ["v1", "a.b_c-d+e@f", "a--b", "2026", "X" * 128])
def test_a_tag_of_the_specification(small: Saver, tag: str) -> None:
    stop(small, archive_to=f"{small.archive}:{tag}")

    assert image_layouts.tags(small.archive) == [tag]


@pytest.mark.parametrize(
    "tag", ["", "-v1", "v1-", "a..b", "a---b", ".", "a b", "a:b", "a,b", "\u00fc", "a\n", "a$"]
)
def test_what_is_no_tag_is_refused(small: Saver, tag: str) -> None:
    result = small.run(archive_to=f"{small.archive}:{tag}")

    assert result.status == 1
    assert "tag" in result.only_error()
    assert os.listdir(small.out) == []


@pytest.mark.parametrize("tag", ["localhost/x:1", "a/b"])
def test_a_tag_with_a_slash_makes_no_layout_elsewhere(small: Saver, tag: str) -> None:
    result = small.run(archive_to=f"{small.archive}:{tag}")

    assert (result.status, "colon" in result.only_error()) == (1, True)
    assert os.listdir(small.out) == []


@pytest.mark.parametrize("parent", ["-v1", "\u00fc"])
def test_a_parent_that_is_no_tag_is_refused(small: Saver, parent: str) -> None:
    stop(small)

    result = small.run(archive_to=f"{small.archive}:branch", parent=parent)

    assert (result.status, repr(parent) in result.only_error()) == (1, True)
    assert image_layouts.tags(small.archive) == ["latest"]


def test_a_parent_that_is_not_there_is_refused(small: Saver) -> None:
    stop(small)
    before = trees.view(small.archive)

    result = small.run(archive_to=f"{small.archive}:branch", parent="main")

    assert (result.status, "main" in result.only_error()) == (1, True)
    expect_equal(before, trees.view(small.archive))


def test_branches_grow_from_their_parent(small: Saver) -> None:
    stop(small, archive_to=f"{small.archive}:main")
    for number in (1, 2):
        change(small, f"file{number}")
        stop(small, archive_to=f"{small.archive}:branch{number}", parent="main")

    main, one, two = (image_layouts.read(small.archive, tag) for tag in ("main", "branch1", "branch2"))
    assert len(main.digests) == 1
    assert one.digests[:-1] == two.digests[:-1] == main.digests
    assert [image.layers[-1].names for image in (one, two)] == [
        [".", "file1", "made"],
        [".", "file1", "file2", "made"],
    ]
    image_layouts.expect_sound(small.archive)


def test_a_branch_goes_on_by_itself(small: Saver) -> None:
    stop(small, archive_to=f"{small.archive}:main")
    stop(small, archive_to=f"{small.archive}:branch", parent="main")
    change(small, "more")

    stop(small, archive_to=f"{small.archive}:branch")

    assert len(image_layouts.read(small.archive, "branch").layers) == 3
    assert len(image_layouts.read(small.archive, "main").layers) == 1


def test_a_parent_left_in_a_script_throws_nothing_away(small: Saver) -> None:
    stop(small, archive_to=f"{small.archive}:main")

    for name in ("first", "second"):
        change(small, name)
        stop(small, archive_to=f"{small.archive}:branch", parent="main")

    main, branch = (image_layouts.read(small.archive, tag) for tag in ("main", "branch"))
    assert branch.digests[:1] == main.digests
    assert len(branch.digests) == 3


def test_each_stop_can_be_a_branch_with_the_time_in_its_name(small: Saver) -> None:
    stop(small, archive_to=f"{small.archive}:main")

    stop(small, archive_to=f"{small.archive}:{{id}}-{{name}}-{{timestamp}}", parent="main")

    tag = image_layouts.tags(small.archive)[1]
    assert re.fullmatch(r"c1-data-\d{8}T\d{6}\.\d{6}Z", tag)
    assert len(image_layouts.read(small.archive, tag).layers) == 2


def test_a_parent_that_is_the_tag_itself_need_not_be_there(small: Saver) -> None:
    for number in (1, 2):
        stop(small, archive_to=f"{small.archive}:main", parent="main")
        assert len(image_layouts.read(small.archive, "main").layers) == number


def test_the_summary_names_the_tag(small: Saver) -> None:
    result = stop(small, archive_to=f"{small.archive}:nightly")

    (summary,) = (line for line in result.messages("info") if "saved" in line)
    assert "nightly" in summary
    assert "1 entry" in summary


# Nothing changed


def test_an_empty_change_set_adds_no_layer(small: Saver) -> None:
    stop(small)
    small.success.unlink()
    before = contents(small.archive)
    small.overlay.change(lambda root: (root / "made").unlink())

    result = stop(small)

    assert any("no layer" in line for line in result.messages("info"))
    assert small.success.read_bytes() == b""
    expect_equal(before, contents(small.archive))


def test_an_empty_change_set_makes_no_image(any_saver: Saver) -> None:
    any_saver.overlay.change(lambda root: None)

    result = stop(any_saver)

    assert any("no layer" in line for line in result.messages("info"))
    assert os.listdir(any_saver.archive) == []


def test_an_empty_change_set_makes_a_branch_of_what_its_parent_is(small: Saver) -> None:
    stop(small, archive_to=f"{small.archive}:main")
    small.overlay.change(lambda root: (root / "made").unlink())

    result = stop(small, archive_to=f"{small.archive}:branch", parent="main")

    assert any("no layer" in line for line in result.messages("info"))
    main, branch = (image_layouts.read(small.archive, tag) for tag in ("main", "branch"))
    assert branch.descriptor["digest"] == main.descriptor["digest"]
    image_layouts.expect_sound(small.archive)


def test_more_zeros_than_anybody_can_wait_for_fail_by_name(any_saver: Saver) -> None:
    def change(root: Path) -> None:
        (root / "endless").touch()
        os.truncate(root / "endless", 1 << 42)

    any_saver.overlay.change(change)

    result = any_saver.run(method="oci")

    assert result.status == 1
    assert (
        "endless cannot be stored: with it the archive has 4398046511104 bytes of holes"
        in result.only_error()
    )
