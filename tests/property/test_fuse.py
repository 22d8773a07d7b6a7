"""fuse-overlayfs, rootful and rootless, with all its ways to mark deletions, opaque directories and owners.

The marks are put into the upperdir by hand, each way by itself, because the program chooses among them by what the
file system allows. What comes out has to stack again under fuse-overlayfs and under a native mount alike.
"""

from __future__ import annotations

import os
import stat
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.integration.conftest import Saver, expect_equal
from tests.support import overlays, tools, trees

if TYPE_CHECKING:
    from typing import Callable

    from tests.support import hooks

both = pytest.mark.parametrize("overlay", [overlays.FUSE, overlays.FUSE_ROOTLESS], indirect=True)
rootful = pytest.mark.parametrize("overlay", [overlays.FUSE], indirect=True)


def below(root: Path) -> None:
    for directory in ("d", "d/inner", "other"):
        (root / directory).mkdir()
        (root / directory / "file").write_text(f"below, in {directory}")
    (root / "file").write_text("below")


def above(root: Path) -> None:
    """Copy up the directories that get marks."""
    (root / "d" / "above").write_text("above")
    (root / "other" / "above").write_text("above")


def plant(saver: Saver, function: Callable[[Path], object]) -> None:
    """Change the upperdir itself, as nobody but the program would, while it is not mounted."""
    saver.overlay.layer(below)
    saver.overlay.change(above)
    saver.overlay.unmount()
    saver.overlay.inside(lambda: function(saver.overlay.upper))
    saver.overlay.mount()


def tree(path: Path) -> None:
    path.mkdir()
    (path / "in it").touch()


KINDS: dict[str, Callable[[Path], object]] = {
    "file": lambda path: path.touch(),
    "file-with-data": lambda path: path.write_text("data"),
    "directory": lambda path: path.mkdir(),
    "directory-with-files": tree,
    "symlink": lambda path: path.symlink_to("nowhere"),
    "FIFO": os.mkfifo,
    "device": lambda path: os.mknod(path, stat.S_IFCHR, 0),
}


@both
@pytest.mark.parametrize("kind", KINDS)
def test_a_whiteout_by_name_may_be_of_any_type(saver: Saver, kind: str) -> None:
    make = KINDS[kind]
    if kind == "device" and saver.overlay.namespace.owners == 1:
        tools.cannot_run("an ordinary user makes no devices here")

    def whiteouts(upper: Path) -> None:
        make(upper / ".wh.file")
        make(upper / "d" / ".wh.inner")

    plant(saver, whiteouts)

    saver.expect_the_same()
    assert (saver.extracted / "file").is_char_device()
    assert (saver.extracted / "d" / "inner").is_char_device()


@both
def test_a_whiteout_by_name_hides_what_is_beside_it_too(saver: Saver) -> None:
    def contradiction(upper: Path) -> None:
        (upper / "d" / ".wh.above").touch()
        (upper / "d" / "file").write_text("above")
        (upper / "d" / ".wh.file").touch()

    plant(saver, contradiction)

    saver.expect_the_same()


@both
def test_a_whiteout_of_nothing(saver: Saver) -> None:
    plant(saver, lambda upper: (upper / "d" / ".wh.never was").touch())

    saver.expect_the_same()


@both
@pytest.mark.parametrize("kind", KINDS)
def test_an_opaque_marker_alone(saver: Saver, kind: str) -> None:
    make = KINDS[kind]
    plant(saver, lambda upper: make(upper / "d" / ".wh..wh..opq"))

    saver.expect_the_same()
    assert os.listdir(saver.extracted / "d") == ["above"]


@both
@pytest.mark.parametrize("attribute", ["user.fuseoverlayfs.opaque", "trusted.overlay.opaque"])
def test_an_opaque_attribute_alone(saver: Saver, attribute: str) -> None:
    if attribute.startswith("trusted.") and saver.overlay.flavour.rootless:
        attribute = "user.fuseoverlayfs.opaque"
    plant(saver, lambda upper: os.setxattr(upper / "d", attribute, b"y"))

    saver.expect_the_same()
    assert os.getxattr(saver.extracted / "d", "user.overlay.opaque") == b"y"


@both
@pytest.mark.parametrize("value", [b"n", b"", b"x"])
def test_an_opaque_attribute_that_says_no(saver: Saver, value: bytes) -> None:
    plant(saver, lambda upper: os.setxattr(upper / "d", "user.fuseoverlayfs.opaque", value))

    saver.expect_the_same()


@both
def test_marks_within_an_opaque_directory(saver: Saver) -> None:
    def marks(upper: Path) -> None:
        os.setxattr(upper / "d", "user.fuseoverlayfs.opaque", b"y")
        (upper / "d" / ".wh.file").touch()
        (upper / "d" / "inner").mkdir()
        (upper / "d" / "inner" / ".wh.file").touch()

    plant(saver, marks)

    saver.expect_the_same()


@both
def test_nothing_of_the_program_s_bookkeeping_is_in_the_archive(saver: Saver) -> None:
    def change(root: Path) -> None:
        (root / "file").chmod(0o600)
        (root / "d" / "inner" / "file").rename(root / "moved")
        (root / "other" / "file").unlink()
        (root / "new").mkdir()

    saver.overlay.layer(below)
    saver.overlay.change(change)

    saver.expect_the_same()
    for path, entry in saver.overlay.inside(lambda: trees.view(saver.extracted)).entries.items():
        assert not os.path.basename(path).startswith(b".wh."), path
        marks = [pair for pair in entry.attributes if "overlay" in pair[0]]
        assert set(marks) <= {("user.overlay.opaque", b"y")}, path


@rootful
def test_attributes_that_the_program_would_believe_in_another_mount_are_left_out(saver: Saver) -> None:
    def forge(root: Path) -> None:
        (root / "file").write_text("above")
        os.setxattr(root / "file", "security.fuseoverlayfs.override_stat", b"0:0:104755")

    saver.overlay.layer(below)
    saver.overlay.change(forge)

    result = saver.run()

    assert result.status == 0, result.stderr
    assert "security.fuseoverlayfs.override_stat" not in os.listxattr(saver.extracted / "file")
    (warning,) = result.messages("warning")
    assert "security.fuseoverlayfs.override_stat" in warning


# Files of lower layers with several names: which of them a change gets is the program's choice.

SEVERAL = ": the file has several names in a lower layer"
one_method = pytest.mark.parametrize("method", ["copy"])


def several_names(root: Path) -> None:
    (root / "d" / "inner").mkdir(parents=True)
    (root / "single").write_text("below")
    for name in ("file", "twin", "moved", "unchanged"):
        (root / "d" / "inner" / name).write_text("below")
        os.link(root / "d" / "inner" / name, root / f"other {name}")


def names_of(result: hooks.Result) -> list[str]:
    """Give the names that warnings are about, of files with several names."""
    return [
        os.path.basename(message.partition(": ")[0])
        for message in result.messages("warning")
        if SEVERAL in message
    ]


@both
@one_method
def test_a_change_to_a_file_with_several_names_is_said_by_name(saver: Saver) -> None:
    saver.overlay.layer(several_names)

    def change(root: Path) -> None:
        (root / "d" / "inner" / "file").write_text("above")
        os.utime(root / "d" / "inner" / "twin", (0, 0))
        (root / "d" / "inner" / "moved").rename(root / "d" / "new name")
        (root / "single").write_text("above")
        (root / "new").write_text("above")
        os.link(root / "new", root / "new too")

    saver.overlay.change(change)

    result = saver.run()

    assert result.status == 0, result.stderr
    found = {name.removeprefix("other ") for name in names_of(result)}
    assert found == {"file", "twin", "new name"}
    assert len(result.messages("warning")) == 3


@both
@one_method
def test_of_many_such_files_ten_are_named(saver: Saver) -> None:
    names = [f"{number}" for number in range(15)]

    def below(root: Path) -> None:
        for name in names:
            (root / name).touch()
            os.link(root / name, root / f"other {name}")

    saver.overlay.layer(below)
    saver.overlay.change(lambda root: [(root / name).write_text("above") for name in names])

    result = saver.run()

    assert result.status == 0, result.stderr
    assert len(names_of(result)) == 10
    assert (
        "files with several names in a lower layer: 5 more, not named here" in result.messages("warning")[-1]
    )


@both
@one_method
def test_an_origin_that_leads_nowhere_says_nothing(saver: Saver) -> None:
    origins = [b"..", b"../lower0/f", b"/f", b"a//f", b"l/f", b"gone", b"", b"f/f", b"x" * 5000]

    def below(root: Path) -> None:
        (root / "d").mkdir()
        (root / "f").touch()
        os.link(root / "f", root / "d" / "f")
        (root / "l").symlink_to("d")

    def forge(upper: Path) -> None:
        for number, origin in enumerate([*origins, b"d/f"]):
            (upper / f"{number}").touch()
            os.setxattr(upper / f"{number}", "user.fuseoverlayfs.origin", origin + b"\0")

    saver.overlay.layer(below)
    saver.overlay.change(lambda root: None)
    saver.overlay.inside(lambda: forge(saver.overlay.upper))

    result = saver.run()

    assert result.status == 0, result.stderr
    assert names_of(result) == [f"{len(origins)}"], "one does lead somewhere"
    assert len(result.messages("warning")) == 1


@both
@one_method
def test_a_layer_above_counts(saver: Saver) -> None:
    saver.overlay.layer(several_names)
    saver.overlay.layer(lambda root: (root / "other file").unlink())
    saver.overlay.layer(lambda root: (root / "single").write_text("another"))
    saver.overlay.change(lambda root: (root / "single").write_text("above"))

    saver.expect_the_same()


@both
@one_method
def test_lower_files_with_several_names_that_nobody_changes_are_nothing_to_talk_of(saver: Saver) -> None:
    saver.overlay.layer(several_names)
    saver.overlay.change(lambda root: (root / "new").write_text("new"))

    assert saver.expect_the_same().messages("warning") == []


# xattr_permissions: owners and modes are in attributes, as "uid:gid:mode". In the mode, which is octal, the type may
# be there or not. Regular files and directories have it; all others are what they are. xattr_permissions=1 writes
# security.fuseoverlayfs.override_stat, and makes neither symlinks nor devices; 2 writes
# user.fuseoverlayfs.override_stat. An attribute without a type, with leading blanks or zeros is read; one that
# is missing or cannot be read makes the entry unreadable in the mount.

XATTR_1 = replace(overlays.FUSE, name="fuse-xattr-1", options=("xattr_permissions=1",))
XATTR_2 = replace(overlays.FUSE, name="fuse-xattr-2", options=("xattr_permissions=2",))
XATTR_2_ROOTLESS = replace(
    overlays.FUSE_ROOTLESS, name="fuse-rootless-xattr-2", options=("xattr_permissions=2",)
)
with_permissions = pytest.mark.parametrize("overlay", [XATTR_1, XATTR_2, XATTR_2_ROOTLESS], indirect=True)


def attribute_of(saver: Saver) -> str:
    space = "security" if saver.overlay.flavour == XATTR_1 else "user"
    return f"{space}.fuseoverlayfs.override_stat"


def expect_the_same_without_attribute(saver: Saver) -> None:
    """Save, stack again under the program and under the kernel, neither of which reads such attributes."""
    if saver.overlay.namespace.owners == 1:
        tools.cannot_run("an ordinary user's namespace has one owner")
    result = saver.run()
    assert result.status == 0, result.stderr
    assert result.messages("warning") == []
    left = without_attribute(saver.overlay.view())
    program = overlays.FUSE_ROOTLESS if saver.overlay.flavour.rootless else overlays.FUSE
    for flavour in (program, overlays.NATIVE_ROOTLESS):
        expect_equal(left, saver.overlay.restacked(saver.extracted, flavour), flavour.name)


def without_attribute(seen: trees.View) -> trees.View:
    """Give the view without the attribute, which xattr_permissions=1 does not hide."""
    return trees.View(
        {
            path: replace(
                entry,
                attributes=tuple(pair for pair in entry.attributes if "override_stat" not in pair[0]),
            )
            for path, entry in seen.entries.items()
        },
        seen.links,
    )


@with_permissions
def test_owners_and_modes_in_attributes(saver: Saver) -> None:
    def change(root: Path) -> None:
        (root / "new").write_text("new")
        os.chown(root / "new", 1000, 2000)
        (root / "new").chmod(0o4751)
        os.link(root / "new", root / "d" / "link")
        (root / "directory").mkdir()
        os.chown(root / "directory", 5, 6)
        (root / "directory").chmod(0o1777)
        (root / "directory" / "inner").mkdir(0o700)
        (root / "directory" / "inner" / "file").touch(0o600)
        (root / "file").chmod(0o2750)
        os.chown(root / "d", 7, 8)
        root.chmod(0o751)

    saver.overlay.layer(below)
    saver.overlay.change(change)

    # (fuse-overlayfs 1.10 may forget an owner when the mode changes: what it left is what counts.)
    assert os.getxattr(saver.overlay.upper / "new", attribute_of(saver)).endswith(b":104751")
    expect_the_same_without_attribute(saver)


@pytest.mark.parametrize("overlay", [XATTR_2, XATTR_2_ROOTLESS], indirect=True)
def test_what_has_no_owner_in_an_attribute_is_what_it_is(saver: Saver) -> None:
    def change(root: Path) -> None:
        os.symlink("nowhere", root / "symlink")
        os.mkfifo(root / "FIFO", 0o620)
        os.lchown(root / "symlink", 3, 4)
        (root / "file").chmod(0o640)

    saver.overlay.layer(below)
    saver.overlay.change(change)

    expect_the_same_without_attribute(saver)


@with_permissions
@pytest.mark.parametrize("value", [b"3:4:640", b"3:4:100640", b" 3:4:0100640", b"3:4:640:and more"])
def test_all_forms_of_the_attribute_that_the_program_reads(saver: Saver, value: bytes) -> None:
    plant(saver, lambda upper: os.setxattr(upper / "d" / "above", attribute_of(saver), value))

    entry = saver.overlay.view().entries[b"d/above"]
    assert (entry.uid, entry.gid, entry.mode) == (3, 4, 0o640)
    saver.overlay.mount()
    expect_the_same_without_attribute(saver)


@with_permissions
@pytest.mark.parametrize("value", [None, b"", b"y", b"3:4", b"3:4:8", b"a:b:c"])
def test_an_attribute_that_the_program_cannot_read_fails_the_request(
    saver: Saver, value: bytes | None
) -> None:
    def spoil(upper: Path) -> None:
        if value is None:
            os.removexattr(upper / "d" / "above", attribute_of(saver))
        else:
            os.setxattr(upper / "d" / "above", attribute_of(saver), value)

    plant(saver, spoil)

    result = saver.run()

    assert result.status == 1, result.stderr
    assert "d/above" in result.only_error()
    assert os.listdir(saver.out) == []


@rootful
def test_without_the_option_the_attribute_of_a_file_says_nothing(saver: Saver) -> None:
    attribute = "user.fuseoverlayfs.override_stat"
    plant(saver, lambda upper: os.setxattr(upper / "d" / "above", attribute, b"3:4:100640"))

    saver.expect_the_same()


@with_permissions
def test_the_engine_s_mark_of_such_layers_is_not_in_the_archive(saver: Saver) -> None:
    """With force_mask, containers-storage marks the top of each layer; all that is in it then needs the mark."""
    plant(saver, lambda upper: os.setxattr(upper, "user.containers.override_stat", b"0:0:40755"))

    expect_the_same_without_attribute(saver)
    assert "user.containers.override_stat" not in os.listxattr(saver.extracted)
