"""Whatever a container leaves in an overlay is in the archive: each kind of entry, each property of it.

Each test changes a real overlay, saves it, stacks the archive on the same lower layers, and compares the
two views. All are run for each flavour of overlay, and for the methods of which each writes in a way of its
own: the tars differ in nothing but the compression (test_methods.py).
"""

from __future__ import annotations

import os
import shutil
import socket
import stat
import struct
import subprocess
from pathlib import Path

import pytest

from tests.integration.conftest import Saver
from tests.support import overlays, tools

# What only a container with real privileges can do.
rootful = pytest.mark.parametrize("overlay", [overlays.NATIVE, overlays.FUSE], indirect=True)

# cap_net_raw=ep, as setcap(8) writes it: revision 2, effective.
CAPABILITY = struct.pack("<5I", 0x02000001, 1 << 13, 0, 0, 0)


@pytest.fixture(params=["copy", "move", "tar.gz"])
def method(request: pytest.FixtureRequest) -> str:
    """Give the name of a method."""
    name: str = request.param
    return name


def need_owners(saver: Saver) -> None:
    if saver.overlay.namespace.owners == 1:
        tools.cannot_run("an ordinary user's namespace has one owner")


def below(root: Path) -> None:
    """Make a lower layer with some of everything."""
    (root / "file").write_text("below")
    (root / "last").write_text("last")
    os.symlink("file", root / "symlink")
    for directory in ("directory", "directory/inner", "directory/inner/most", "other"):
        (root / directory).mkdir()
        for number in range(3):
            (root / directory / f"file{number}").write_text(f"{directory} {number}")


def test_nothing_changed(saver: Saver) -> None:
    saver.overlay.layer(below)
    saver.overlay.change(lambda root: (root / "file").read_text())

    saver.expect_the_same()


def test_files(saver: Saver) -> None:
    def change(root: Path) -> None:
        (root / "file").write_text("above")
        (root / "directory" / "inner" / "file0").write_text("")
        (root / "empty").touch()
        (root / "zeros").write_bytes(bytes(5000))
        with (root / "directory" / "file1").open("a") as appended:
            appended.write(" and more")

    saver.overlay.layer(below)
    saver.overlay.change(change)

    saver.expect_the_same()


def test_a_file_of_several_mebibytes(saver: Saver) -> None:
    saver.overlay.change(lambda root: (root / "large").write_bytes(os.urandom(5 * 2**20 + 1)))

    saver.expect_the_same()


def test_a_file_with_holes(saver: Saver) -> None:
    def change(root: Path) -> None:
        with (root / "holes").open("wb") as holes:
            holes.seek(2**20)
            holes.write(b"data")
            holes.truncate(3 * 2**20)

    saver.overlay.change(change)

    saver.expect_the_same()


def test_directories(saver: Saver) -> None:
    def change(root: Path) -> None:
        (root / "new" / "empty").mkdir(parents=True)
        (root / "new" / "full").mkdir()
        (root / "new" / "full" / "file").write_text("x")
        (root / "directory" / "new").mkdir()
        (root / "directory" / "inner").chmod(0o711)
        root.chmod(0o555)

    saver.overlay.layer(below)
    saver.overlay.change(change)

    saver.expect_the_same()


def test_symlinks(saver: Saver) -> None:
    def change(root: Path) -> None:
        os.symlink("directory/file0", root / "relative")
        os.symlink("/etc/passwd", root / "absolute")
        os.symlink("../../../../../../../../etc/passwd", root / "directory" / "climbing")
        os.symlink("nowhere", root / "dangling")
        os.symlink("loop", root / "loop")
        os.symlink("directory", root / "to a directory")
        os.symlink("x" * 150, root / "longer than a tar header holds")
        os.symlink("y/" * 2000, root / "long")
        os.symlink(b"\xff\xfe not UTF-8 \n", os.fsencode(root / "bytes"))
        (root / "symlink").unlink()
        os.symlink("directory", root / "symlink")

    saver.overlay.layer(below)
    saver.overlay.change(change)

    saver.expect_the_same()


def test_hard_links(saver: Saver) -> None:
    def change(root: Path) -> None:
        (root / "z").write_text("one file under four names")
        os.link(root / "z", root / "a")
        os.link(root / "z", root / "directory" / "inner" / "link")
        (root / "new").mkdir()
        os.link(root / "z", root / "new" / "link")
        os.link(root / "file", root / "other" / "from below")
        os.symlink("file", root / "s1")
        os.link(root / "s1", root / "s2", follow_symlinks=False)
        os.mkfifo(root / "f1")
        os.link(root / "f1", root / "directory" / "f2")
        (root / "removed").write_text("one of its two names goes")
        os.link(root / "removed", root / "stays")
        (root / "removed").unlink()

    saver.overlay.layer(below)
    saver.overlay.change(change)

    saver.expect_the_same()


# fuse-overlayfs 1.10 writes such a change under the other name, and shows a mixture.
@pytest.mark.parametrize("overlay", [overlays.NATIVE, overlays.NATIVE_ROOTLESS], indirect=True)
def test_one_name_of_a_lower_hard_link_is_changed(saver: Saver) -> None:
    def twins(root: Path) -> None:
        (root / "twin").write_text("under two names")
        os.link(root / "twin", root / "other twin")

    saver.overlay.layer(twins)
    saver.overlay.change(lambda root: (root / "twin").write_text("on its own now"))

    saver.expect_the_same()


def test_fifos(saver: Saver) -> None:
    def change(root: Path) -> None:
        os.mkfifo(root / "fifo", 0o622)
        os.mkfifo(root / "directory" / "fifo")

    saver.overlay.layer(below)
    saver.overlay.change(change)

    saver.expect_the_same()


@rootful
def test_device_nodes(saver: Saver) -> None:
    def change(root: Path) -> None:
        os.mknod(root / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
        os.mknod(root / "large numbers", stat.S_IFCHR | 0o600, os.makedev(4000, 1_000_000))
        os.mknod(root / "block", stat.S_IFBLK | 0o640, os.makedev(7, 0))
        os.mknod(root / "block 0:0", stat.S_IFBLK | 0o640, os.makedev(0, 0))
        os.link(root / "null", root / "null too")
        os.chown(root / "block", 0, 6)

    saver.overlay.change(change)

    saver.expect_the_same()


def test_whiteouts(saver: Saver) -> None:
    def crowd(root: Path) -> None:
        below(root)
        (root / "crowd").mkdir()
        for number in range(60):
            (root / "crowd" / f"{number}").touch()

    def change(root: Path) -> None:
        for number in range(50):
            (root / "crowd" / f"{number}").unlink()
        (root / "file").unlink()
        (root / "symlink").unlink()
        shutil.rmtree(root / "directory" / "inner")
        shutil.rmtree(root / "other")

    saver.overlay.layer(crowd)
    saver.overlay.change(change)

    saver.expect_the_same()


def test_whiteouts_that_are_links_of_one_another_each_delete_a_name(saver: Saver) -> None:
    def change(root: Path) -> None:
        os.mknod(root / "file", stat.S_IFCHR, os.makedev(0, 0))
        os.link(root / "file", root / "symlink")
        (root / "directory").mkdir()
        os.link(root / "file", root / "directory" / "inner")

    saver.overlay.layer(below)
    saver.overlay.inside(lambda: change(saver.overlay.upper))
    saver.overlay.change(lambda root: None)

    saver.expect_the_same()


def test_opaque_directories(saver: Saver) -> None:
    def change(root: Path) -> None:
        shutil.rmtree(root / "directory")
        (root / "directory").mkdir()
        (root / "directory" / "file1").write_text("new")
        (root / "directory" / "inner").mkdir()
        (root / "directory" / "inner" / "file9").write_text("new")
        shutil.rmtree(root / "other")
        (root / "other").mkdir(0o700)

    saver.overlay.layer(below)
    saver.overlay.change(change)

    saver.expect_the_same()


def test_an_opaque_directory_deep_in_a_merged_one(saver: Saver) -> None:
    def change(root: Path) -> None:
        shutil.rmtree(root / "directory" / "inner" / "most")
        (root / "directory" / "inner" / "most").mkdir()
        (root / "directory" / "inner" / "most" / "file1").touch()
        (root / "directory" / "inner" / "most" / "file1").unlink()

    saver.overlay.layer(below)
    saver.overlay.change(change)

    saver.expect_the_same()


@pytest.mark.parametrize("method", ["copy", "tar.gz"])  # what is moved stays as it is
def test_an_opaque_directory_holds_no_whiteouts(saver: Saver) -> None:
    def change(root: Path) -> None:
        shutil.rmtree(root / "directory")
        (root / "directory").mkdir()
        (root / "directory" / "new").touch()

    def plant(upper: Path) -> None:
        os.mknod(upper / "directory" / "file0", stat.S_IFCHR, os.makedev(0, 0))

    saver.overlay.layer(below)
    saver.overlay.change(change)
    saver.overlay.inside(lambda: plant(saver.overlay.upper))

    saver.expect_the_same()
    assert sorted(os.listdir(saver.extracted / "directory")) == ["new"]


def test_types_that_change(saver: Saver) -> None:
    def change(root: Path) -> None:
        (root / "file").unlink()
        (root / "file").mkdir()
        (root / "file" / "inner").touch()
        shutil.rmtree(root / "directory")
        (root / "directory").write_text("a file now")
        shutil.rmtree(root / "other")
        os.symlink("file", root / "other")
        (root / "symlink").unlink()
        (root / "symlink").mkdir()
        (root / "last").unlink()
        os.mkfifo(root / "last")

    saver.overlay.layer(below)
    saver.overlay.change(change)

    saver.expect_the_same()


def test_renames(saver: Saver) -> None:
    def change(root: Path) -> None:
        (root / "file").rename(root / "moved")
        (root / "directory" / "file0").rename(root / "other" / "file0")
        # A directory that has something below is copied where redirect_dir is off.
        shutil.move(root / "directory" / "inner", root / "inner")

    saver.overlay.layer(below)
    saver.overlay.change(change)

    saver.expect_the_same()


def test_several_lower_layers(saver: Saver) -> None:
    def second(root: Path) -> None:
        (root / "file").unlink()
        shutil.rmtree(root / "directory" / "inner")
        (root / "directory" / "inner").mkdir()
        (root / "directory" / "inner" / "second").write_text("2")
        shutil.rmtree(root / "other")

    def third(root: Path) -> None:
        (root / "file").write_text("back")
        (root / "other").mkdir()
        (root / "other" / "third").write_text("3")
        (root / "directory" / "inner" / "third").write_text("3")

    def change(root: Path) -> None:
        (root / "file").unlink()
        (root / "directory" / "inner" / "second").unlink()
        (root / "directory" / "inner" / "file0").write_text("again")
        (root / "other" / "third").chmod(0o600)
        (root / "other" / "file0").touch()

    for layer in (below, second, third):
        saver.overlay.layer(layer)
    saver.overlay.change(change)

    saver.expect_the_same()


def test_owners(saver: Saver) -> None:
    def change(root: Path) -> None:
        (root / "new").write_text("x")
        (root / "d").mkdir()
        os.symlink("x", root / "s")
        os.mkfifo(root / "f")
        os.chown(root / "new", 1000, 2000)
        os.chown(root / "d", 65534, 65535)
        os.lchown(root / "s", 33, 0)
        os.chown(root / "f", 0, 33)
        os.chown(root / "file", 12345, 54321)
        os.chown(root, 7, 8)

    need_owners(saver)
    saver.overlay.layer(below)
    saver.overlay.change(change)

    saver.expect_the_same()


@rootful
def test_owners_beyond_what_a_tar_header_holds(saver: Saver) -> None:
    def change(root: Path) -> None:
        (root / "new").touch()
        os.chown(root / "new", 3_000_000_000, 4_000_000_000)

    saver.overlay.change(change)

    saver.expect_the_same()


def test_modes(saver: Saver) -> None:
    def change(root: Path) -> None:
        for mode in (0o0, 0o777, 0o400, 0o4755, 0o2755, 0o6711, 0o1644, 0o7777):
            (root / f"file {mode:o}").write_text("x")
            (root / f"file {mode:o}").chmod(mode)
            (root / f"directory {mode:o}").mkdir()
            (root / f"directory {mode:o}" / "inner").touch()
            (root / f"directory {mode:o}").chmod(mode)
        os.mkfifo(root / "fifo")
        (root / "fifo").chmod(0o4777)

    saver.overlay.change(change)

    saver.expect_the_same()


def test_set_user_id_of_another_owner(saver: Saver) -> None:
    def change(root: Path) -> None:
        for mode in (0o4755, 0o2755, 0o6755):
            (root / f"{mode:o}").write_text("x")
            os.chown(root / f"{mode:o}", 1000, 1000)
            (root / f"{mode:o}").chmod(mode)

    need_owners(saver)
    saver.overlay.change(change)

    saver.expect_the_same()


def test_times(saver: Saver) -> None:
    times = {
        "a nanosecond": 1_700_000_000_123_456_789,
        "one nanosecond": 1,
        "the epoch": 0,
        "one nanosecond before the epoch": -1,
        "half a second before the epoch": -500_000_000,
        "before 1970": -12_345_678_901_234,
        "after what a tar header holds": 10_000_000_000_000_000_001,
    }

    def change(root: Path) -> None:
        (root / "directory" / "inner" / "file0").write_text("x")
        for name, time in times.items():
            (root / name).touch()
            (root / f"{name}, directory").mkdir()
            (root / f"{name}, directory" / "inner").touch()
            os.symlink("x", root / f"{name}, symlink")
            for path in (name, f"{name}, directory", f"{name}, symlink"):
                os.utime(root / path, ns=(0, time), follow_symlinks=False)
        os.utime(root / "directory", ns=(0, -12_345_678_901_234))
        os.utime(root, ns=(0, 987_654_321_987_654_321))

    saver.overlay.layer(below)
    saver.overlay.change(change)

    saver.expect_the_same()


def test_extended_attributes(saver: Saver) -> None:
    def change(root: Path) -> None:
        for path in (root / "file", root / "new", root / "directory", root / "new directory", root):
            if not path.exists():
                path.mkdir() if "directory" in path.name else path.touch()
            os.setxattr(path, "user.text", b"text")
            os.setxattr(path, "user.empty", b"")
            os.setxattr(path, "user.binary", bytes(range(256)))
            os.setxattr(path, "user.lines", b"one\n12 two=three\n")
            os.setxattr(path, "user.name with spaces, \u00fc", b"x")
            os.setxattr(path, os.fsdecode(b"user.\xff"), b"x")

    saver.overlay.layer(below)
    saver.overlay.change(change)

    saver.expect_the_same()


@rootful
def test_attributes_of_privileged_namespaces(saver: Saver) -> None:
    def change(root: Path) -> None:
        (root / "new").touch()
        os.mkfifo(root / "fifo")
        os.symlink("x", root / "link")
        names = ["new", "fifo", "link", "file", "directory"]
        if saver.overlay.flavour.program:
            names.remove("link")  # fuse-overlayfs 1.10 follows it
        for name in names:
            os.setxattr(root / name, "trusted.mine", b"\0value", follow_symlinks=False)

    saver.overlay.layer(below)
    saver.overlay.change(change)

    saver.expect_the_same()


def test_file_capabilities(saver: Saver) -> None:
    def change(root: Path) -> None:
        (root / "ping").write_text("x")
        os.setxattr(root / "ping", "security.capability", CAPABILITY)
        if saver.overlay.namespace.owners > 1:
            (root / "of another").write_text("x")
            os.chown(root / "of another", 1000, 1000)
            (root / "of another").chmod(0o4755)
            os.setxattr(root / "of another", "security.capability", CAPABILITY)

    saver.overlay.change(change)

    saver.expect_the_same()


def test_access_control_lists(saver: Saver) -> None:
    def change(root: Path) -> None:
        (root / "file").chmod(0o640)
        (root / "new").mkdir()
        for arguments in (
            ("-m", "u:0:rwx,g:0:r,m::rw", root / "file"),
            ("-m", "u:0:r,d:u:0:rw,d:g::x", root / "new"),
            ("-d", "-m", "u:0:rwx", root / "directory"),
        ):
            subprocess.run(["setfacl", *arguments], check=True)
        # Made under a default list, it has one of its own.
        (root / "new" / "heir").touch()

    tools.need("setfacl")
    saver.overlay.layer(below)
    saver.overlay.change(change)

    saver.expect_the_same()


def test_names(saver: Saver) -> None:
    # fuse-overlayfs needs room for a prefix.
    longest = 251 if saver.overlay.flavour.program else 255
    hostile = (
        b"line\nbreak",
        b"\xff\xfe",
        "\u00fc\u20ac\U0001f40b".encode(),
        b" space ",
        b"-rf",
        b"a\\b",
        b"*?[x]",
        b'"quoted"',
        b"=equals=",
        b"\x1b[31mred",
        b"...",
        b"~",
        b"n" * longest,
        b"\xe4" * longest,
    )

    def change(root: Path) -> None:
        top = os.fsencode(root)
        os.mkdir(top + b"/d\xff")
        for name in hostile:
            with open(top + b"/" + name, "xb") as file:
                file.write(name)
            os.mkdir(top + b"/d\xff/" + name)
            os.symlink(name, top + b"/d\xff/" + name + b"/link")
            os.link(top + b"/" + name, top + b"/d\xff/" + name + b"/" + name)
        for name in (b"gone\n", b"gone\xff"):
            os.unlink(top + b"/" + name)

    def doomed(root: Path) -> None:
        for name in (b"gone\n", b"gone\xff"):
            open(os.fsencode(root) + b"/" + name, "xb").close()

    saver.overlay.layer(doomed)
    saver.overlay.change(change)

    saver.expect_the_same()


def test_long_paths(saver: Saver) -> None:
    def change(root: Path) -> None:
        deep = root.joinpath(*["directory name " * 4] * 30)
        deep.mkdir(parents=True)
        (deep / "file").write_text("deep")
        os.link(deep / "file", root / "link")

    saver.overlay.change(change)

    saver.expect_the_same()


def test_sockets(saver: Saver) -> None:
    def change(root: Path) -> None:
        os.chdir(root)
        for name in ("listening", "directory/listening\n"):
            with socket.socket(socket.AF_UNIX) as listening:
                listening.bind(name)
        (root / "listening").chmod(0o600)
        os.link(root / "listening", root / "listening too")

    saver.overlay.layer(below)
    saver.overlay.change(change)

    saver.expect_the_same()


@pytest.mark.parametrize("method", ["tar.gz"])
def test_a_tar_says_which_sockets_it_lacks(saver: Saver) -> None:
    def change(root: Path) -> None:
        os.chdir(root)
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind("directory/listening")

    saver.overlay.layer(below)
    saver.overlay.change(change)
    result = saver.run()

    (warning,) = result.messages("warning")
    assert "directory/listening" in warning
    assert "socket" in warning


def test_hundreds_of_names(saver: Saver) -> None:
    def change(root: Path) -> None:
        for directory in range(5):
            (root / f"{directory}").mkdir()
            for number in range(100):
                (root / f"{directory}" / f"{number}").write_text(f"{number}")

    saver.overlay.change(change)

    saver.expect_the_same()
