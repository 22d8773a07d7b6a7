"""Archives stand on their own: what an upperdir only refers to in the lower layers is in them.

Each test makes the kernel write the reference, and holds that it did; then it saves, stacks the archive again
without redirects and metacopy, and compares. Where the lower layers have references of their own, the archive is
stacked again with what it takes to read them, and nothing more.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.integration.conftest import Saver, expect_equal
from tests.support import hooks, overlays, tools, trees
from tests.support.overlays import Flavour

if TYPE_CHECKING:
    from typing import Any, Callable

PLAIN = overlays.NATIVE
METACOPY = Flavour("metacopy", options=("metacopy=on", "redirect_dir=on"))
REDIRECT = Flavour("redirect", options=("redirect_dir=on",))

# What reads lower layers that have redirects, or files without data.
FOLLOW = Flavour("follow", options=("redirect_dir=follow",))
READ_METACOPY = Flavour("read-metacopy", options=("metacopy=on",))

redirecting = pytest.mark.parametrize("overlay", [REDIRECT, METACOPY], indirect=True)
metacopying = pytest.mark.parametrize("overlay", [METACOPY], indirect=True)


def below(root: Path) -> None:
    for directory in ("a", "a/b", "a/b/c", "other"):
        (root / directory).mkdir()
        (root / directory / "file").write_text(f"below, in {directory}")
    os.symlink("file", root / "a" / "symlink")
    os.mkfifo(root / "a" / "b" / "fifo")
    os.setxattr(root / "a" / "b" / "file", "user.colour", b"red")
    (root / "a" / "b").chmod(0o2751)
    for path in sorted(root.rglob("*")):
        os.utime(path, ns=(0, 10**18 + len(str(path.relative_to(root)))), follow_symlinks=False)


def mark(saver: Saver, path: str, key: str, value: bytes) -> None:
    """Set an attribute of the overlay in the upperdir, as the kernel would."""
    os.setxattr(saver.overlay.upper / path, f"trusted.overlay.{key}", value)


def expect_redirect(saver: Saver, path: str, expected: str) -> None:
    """Hold that the kernel made this test's subject."""
    assert os.getxattr(saver.overlay.upper / path, "trusted.overlay.redirect").decode() == expected


def expect_the_same_read_by(saver: Saver, reader: Flavour) -> None:
    """Save, stack again over lower layers that only this mount can read, and compare."""
    left = saver.overlay.view()
    result = saver.run()
    assert result.status == 0, result.stderr
    expect_equal(left, saver.overlay.restacked(saver.extracted, reader))
    for path, entry in saver.overlay.inside(lambda: trees.view(saver.extracted)).entries.items():
        marks = {name for name, _ in entry.attributes if name.startswith("trusted.overlay.")}
        assert marks <= {"trusted.overlay.opaque"}, path


# Redirects


@redirecting
def test_a_bare_redirect(saver: Saver) -> None:
    saver.overlay.layer(below)
    saver.overlay.change(lambda root: (root / "a").rename(root / "renamed"))

    expect_redirect(saver, "renamed", "a")
    saver.expect_the_same()


@redirecting
def test_an_absolute_redirect(saver: Saver) -> None:
    saver.overlay.layer(below)
    saver.overlay.change(lambda root: (root / "a" / "b").rename(root / "other" / "moved"))

    expect_redirect(saver, "other/moved", "/a/b")
    saver.expect_the_same()


@redirecting
def test_a_directory_that_is_renamed_again(saver: Saver) -> None:
    saver.overlay.layer(below)
    saver.overlay.change(lambda root: (root / "a" / "b").rename(root / "other" / "once"))
    saver.overlay.change(lambda root: (root / "other" / "once").rename(root / "a" / "twice"))

    expect_redirect(saver, "a/twice", "/a/b")
    saver.expect_the_same()


@redirecting
def test_renamed_parents_with_renamed_children(saver: Saver) -> None:
    def change(root: Path) -> None:
        (root / "a" / "b" / "c").rename(root / "a" / "b" / "child")
        (root / "a" / "b").rename(root / "a" / "parent")
        (root / "a").rename(root / "grandparent")
        (root / "grandparent" / "parent" / "child" / "file").write_text("above")
        (root / "grandparent" / "parent" / "new").mkdir()

    saver.overlay.layer(below)
    saver.overlay.change(change)

    expect_redirect(saver, "grandparent/parent/child", "c")
    saver.expect_the_same()


@redirecting
def test_a_child_that_left_its_renamed_parent(saver: Saver) -> None:
    def change(root: Path) -> None:
        (root / "a").rename(root / "renamed")
        (root / "renamed" / "b" / "c").rename(root / "c")
        (root / "a").mkdir()
        (root / "c").rename(root / "a" / "back")

    saver.overlay.layer(below)
    saver.overlay.change(change)

    expect_redirect(saver, "a/back", "/a/b/c")
    saver.expect_the_same()


@redirecting
def test_directories_that_change_places(saver: Saver) -> None:
    def change(root: Path) -> None:
        (root / "a").rename(root / "aside")
        (root / "other").rename(root / "a")
        (root / "aside").rename(root / "other")

    saver.overlay.layer(below)
    saver.overlay.change(change)

    saver.expect_the_same()


@redirecting
def test_what_was_deleted_in_a_renamed_directory_stays_deleted(saver: Saver) -> None:
    def change(root: Path) -> None:
        (root / "a" / "file").unlink()
        shutil.rmtree(root / "a" / "b" / "c")
        (root / "a").rename(root / "renamed")
        (root / "renamed" / "symlink").unlink()

    saver.overlay.layer(below)
    saver.overlay.change(change)

    saver.expect_the_same()


@redirecting
def test_hard_links_within_a_renamed_directory(saver: Saver) -> None:
    def linked(root: Path) -> None:
        below(root)
        os.link(root / "a" / "file", root / "a" / "b" / "link")

    saver.overlay.layer(linked)
    saver.overlay.change(lambda root: (root / "a").rename(root / "renamed"))

    saver.expect_the_same()
    assert (saver.extracted / "renamed" / "file").stat().st_nlink == 2


# Several lower layers


def redirect_over(saver: Saver, second: Callable[[Path], object], maker: Flavour) -> None:
    saver.overlay.layer(below)
    saver.overlay.layer(second, maker)
    saver.overlay.layer(lambda root: (root / "a" / "of the third").write_text("x"), PLAIN)
    saver.overlay.change(lambda root: (root / "a").rename(root / "renamed"))


@redirecting
def test_a_renamed_directory_of_several_layers(saver: Saver) -> None:
    def second(root: Path) -> None:
        (root / "a" / "file").write_text("of the second")
        (root / "a" / "b" / "of the second").write_text("x")

    redirect_over(saver, second, PLAIN)

    saver.expect_the_same()


@redirecting
def test_whiteouts_in_a_lower_layer(saver: Saver) -> None:
    def second(root: Path) -> None:
        (root / "a" / "file").unlink()
        shutil.rmtree(root / "a" / "b" / "c")

    redirect_over(saver, second, PLAIN)

    saver.expect_the_same()
    assert not (saver.extracted / "renamed" / "file").exists()


@redirecting
def test_opaque_directories_in_a_lower_layer(saver: Saver) -> None:
    def second(root: Path) -> None:
        shutil.rmtree(root / "a" / "b")
        (root / "a" / "b").mkdir()
        (root / "a" / "b" / "of the second").write_text("x")

    redirect_over(saver, second, PLAIN)

    saver.expect_the_same()
    assert os.listdir(saver.extracted / "renamed" / "b") == ["of the second"]


@redirecting
def test_attribute_whiteouts_in_a_lower_layer(saver: Saver) -> None:
    def second(root: Path) -> None:
        (root / "a" / "b" / "new").write_text("x")

    redirect_over(saver, second, PLAIN)
    # As mkcomposefs and others make them, for layers that are themselves on an overlay.
    directory = saver.overlay.lowers[1] / "a" / "b"
    os.setxattr(directory, "trusted.overlay.opaque", b"x")
    (directory / "file").touch()
    os.setxattr(directory / "file", "trusted.overlay.whiteout", b"")

    saver.expect_the_same()
    assert not (saver.extracted / "renamed" / "b" / "file").exists()


@redirecting
def test_redirects_in_a_lower_layer(saver: Saver) -> None:
    def second(root: Path) -> None:
        (root / "a" / "b").rename(root / "a" / "moved in the second")
        (root / "other").rename(root / "a" / "from elsewhere")

    redirect_over(saver, second, REDIRECT)

    expect_the_same_read_by(saver, FOLLOW)


@metacopying
def test_metacopy_in_a_lower_layer(saver: Saver) -> None:
    def second(root: Path) -> None:
        (root / "a" / "file").chmod(0o600)
        (root / "a" / "b" / "file").chmod(0o640)
        (root / "a" / "b").rename(root / "a" / "moved")

    saver.overlay.layer(below)
    saver.overlay.layer(second, METACOPY)
    saver.overlay.change(lambda root: os.chown(root / "a" / "moved" / "file", 7, 8))
    saver.overlay.change(lambda root: (root / "a").rename(root / "renamed"))

    assert os.listxattr(saver.overlay.lowers[0] / "a" / "file")
    expect_the_same_read_by(saver, READ_METACOPY)
    assert (saver.extracted / "renamed" / "moved" / "file").read_text() == "below, in a/b"


# Files without data


@metacopying
@pytest.mark.parametrize(
    "change",
    [
        lambda file: file.chmod(0o4711),
        lambda file: os.chown(file, 5, 6),
        lambda file: os.utime(file, ns=(0, -5)),
        lambda file: os.setxattr(file, "user.colour", b"blue"),
        lambda file: os.link(file, file.parent.parent / "link"),
        lambda file: file.rename(file.parent.parent / "moved"),
    ],
    ids=["chmod", "chown", "utime", "setxattr", "link", "rename"],
)
def test_a_file_of_which_only_the_metadata_changed(saver: Saver, change: Callable[[Path], Any]) -> None:
    saver.overlay.layer(below)
    saver.overlay.change(lambda root: change(root / "a" / "file"))

    found = [
        path
        for path in saver.overlay.upper.rglob("*")
        if path.is_file() and "trusted.overlay.metacopy" in os.listxattr(path)
    ]
    assert found, "the kernel has copied the data"
    saver.expect_the_same()


@metacopying
def test_data_come_from_the_layer_that_the_container_saw(saver: Saver) -> None:
    saver.overlay.layer(below)
    saver.overlay.layer(lambda root: (root / "a" / "file").write_text("of the second"), PLAIN)
    saver.overlay.change(lambda root: (root / "a" / "file").chmod(0o600))

    saver.expect_the_same()
    assert (saver.extracted / "a" / "file").read_text() == "of the second"


@metacopying
def test_a_sparse_file_without_its_data(saver: Saver) -> None:
    def sparse(root: Path) -> None:
        with (root / "holes").open("wb") as file:
            file.seek(2**20)
            file.write(b"data")
            file.truncate(2**22)

    saver.overlay.layer(sparse)
    saver.overlay.change(lambda root: (root / "holes").chmod(0o600))

    saver.expect_the_same()


@metacopying
def test_data_only_layers(saver: Saver) -> None:
    """A layer of metadata over one that has nothing but data, as composefs makes them."""
    overlay = saver.overlay
    data = overlay.directory / "data"
    (data / "objects").mkdir(parents=True)
    (data / "objects" / "one").write_text("the data of one")
    (data / "objects" / "two").write_text("the data of two")

    def metadata(root: Path) -> None:
        (root / "d").mkdir()
        for name, object_name in (("changed", "one"), ("d/moved", "two"), ("untouched", "one")):
            (root / name).touch()
            os.truncate(root / name, (data / "objects" / object_name).stat().st_size)
            os.setxattr(root / name, "trusted.overlay.metacopy", b"")
            os.setxattr(root / name, "trusted.overlay.redirect", f"/objects/{object_name}".encode())

    def change(root: Path) -> None:
        (root / "changed").chmod(0o600)
        (root / "d").rename(root / "renamed")

    overlay.layer(metadata)
    layers = f"{overlay.lowers[0]}::{data}"
    writable = [f"lowerdir={layers}", f"upperdir={overlay.upper}", f"workdir={overlay.work}"]
    options = [*writable, *METACOPY.options]

    def seen(options: list[str]) -> trees.View:
        overlays.mount_overlay(overlay.merged, options)
        try:
            return trees.view(overlay.merged)
        finally:
            overlays.unmount(overlay.merged)

    def contained() -> None:
        overlays.mount_overlay(overlay.merged, options)
        change(overlay.merged)
        overlays.unmount(overlay.merged)

    overlay.inside(contained)
    left = overlay.inside(lambda: seen(options))

    mount = {**overlay.spec_mount(), "options": options}
    result = saver.run(mounts=[mount])

    assert result.status == 0, result.stderr
    # The lower layers alone cannot be read without metacopy=on.
    again = [f"lowerdir={saver.extracted}:{layers}", "metacopy=on"]
    expect_equal(left, overlay.inside(lambda: seen(again)))
    assert (saver.extracted / "changed").read_text() == "the data of one"
    assert (saver.extracted / "renamed" / "moved").read_text() == "the data of two"


# Only what needs the lower layers reads them


def opened_below_lowers(saver: Saver) -> list[str]:
    """Save under strace, and give the lines of calls that name a lower layer, but for looks whether it is a link."""
    tools.need("strace")
    log = saver.directory / "strace"
    bundle = hooks.Bundle(
        saver.directory / "bundle", mounts=[saver.overlay.spec_mount()], annotations=saver.asks()
    )
    subprocess.run(
        ["strace", "-f", "-qq", "-y", "-e", "trace=file,getdents64,read", "-o", log, *hooks.command()],
        input=bundle.state(),
        env={},
        check=True,
    )
    lines = log.read_text().splitlines()
    assert any(str(saver.overlay.upper) in line for line in lines), "strace has not seen the work"
    lowers = tuple(str(lower) for lower in saver.overlay.lowers)
    return [line for line in lines if "readlink(" not in line and any(lower in line for lower in lowers)]


@pytest.mark.parametrize("overlay", [PLAIN], indirect=True)
def test_an_ordinary_change_set_is_saved_without_a_look_below(saver: Saver) -> None:
    def change(root: Path) -> None:
        (root / "a" / "file").write_text("above")
        (root / "a" / "b" / "file").unlink()
        shutil.rmtree(root / "other")
        (root / "other").mkdir()

    saver.overlay.layer(below)
    saver.overlay.change(change)

    assert opened_below_lowers(saver) == []


@metacopying
def test_a_change_set_with_references_is_saved_with_a_look_below(saver: Saver) -> None:
    saver.overlay.layer(below)
    saver.overlay.change(lambda root: (root / "a" / "file").chmod(0o600))

    assert opened_below_lowers(saver)


# What cannot be read, or must not be


def expect_refused(saver: Saver, *named: str) -> None:
    """Hold that the request fails, that its error names these, and that nothing is written."""
    result = saver.run()

    assert result.status == 1, result.stderr
    error = result.only_error()
    assert all(name in error for name in named), error
    assert os.listdir(saver.out) == []
    assert not saver.success.exists()


@metacopying
def test_a_lower_layer_that_is_gone_is_named(saver: Saver) -> None:
    saver.overlay.layer(below)
    saver.overlay.change(lambda root: (root / "a" / "file").chmod(0o600))
    saver.overlay.lowers[0].rename(saver.overlay.directory / "elsewhere")

    expect_refused(saver, str(saver.overlay.lowers[0]))


@metacopying
def test_a_file_whose_data_are_gone_is_named(saver: Saver) -> None:
    saver.overlay.layer(below)
    saver.overlay.change(lambda root: (root / "a" / "file").chmod(0o600))
    (saver.overlay.lowers[0] / "a" / "file").unlink()

    expect_refused(saver, "a/file")


@metacopying
def test_a_lower_directory_that_cannot_be_listed_is_named(saver: Saver) -> None:
    tools.need("strace")
    saver.overlay.layer(below)
    saver.overlay.change(lambda root: (root / "a").rename(root / "renamed"))
    bundle = hooks.Bundle(
        saver.directory / "bundle", mounts=[saver.overlay.spec_mount()], annotations=saver.asks()
    )
    directory = saver.overlay.lowers[0] / "a"
    log = saver.directory / "strace"
    done = subprocess.run(
        [
            "strace",
            "-f",
            "-qq",
            "-o",
            log,
            "-P",
            directory,
            "-e",
            "inject=getdents64:error=EIO",
            *hooks.command(),
        ],
        input=bundle.state(),
        env={},
        capture_output=True,
        check=False,
    )

    assert "INJECTED" in log.read_text()
    assert done.returncode == 1
    (error,) = (line.message for line in hooks.parse_log(done.stderr.decode()) if line.level == "error")
    assert str(directory) in error
    assert os.listdir(saver.out) == []


@redirecting
@pytest.mark.parametrize(
    "redirect",
    ["..", ".", "", "/", "//a", "/a/", "/a//b", "/../a", "/a/..", "/./a", "a/b", "../a", "a/", "./a"],
)
def test_a_redirect_that_the_kernel_does_not_follow_is_refused(saver: Saver, redirect: str) -> None:
    saver.overlay.layer(below)
    saver.overlay.change(lambda root: (root / "a").rename(root / "renamed"))
    mark(saver, "renamed", "redirect", redirect.encode())

    expect_refused(saver, "renamed")


@redirecting
@pytest.mark.parametrize("redirect", ["link", "/link", "/link/secret", "/up/etc"])
def test_a_redirect_through_a_symlink_is_refused(saver: Saver, redirect: str) -> None:
    outside = saver.directory / "outside"
    (outside / "secret").mkdir(parents=True)
    (outside / "secret" / "key").write_text("of the host")

    def linked(root: Path) -> None:
        below(root)
        (root / "link").symlink_to(outside)
        (root / "up").symlink_to("../" * 20)

    saver.overlay.layer(linked)
    saver.overlay.change(lambda root: (root / "a").rename(root / "renamed"))
    mark(saver, "renamed", "redirect", redirect.encode())

    expect_refused(saver, "renamed", redirect, "in no lower layer")


@metacopying
@pytest.mark.parametrize("redirect", ["link", "/link", "/directory/file"])
def test_data_behind_a_symlink_are_no_data(saver: Saver, redirect: str) -> None:
    outside = saver.directory / "outside"
    outside.mkdir()
    (outside / "file").write_text("of the host")

    def linked(root: Path) -> None:
        below(root)
        (root / "link").symlink_to(outside / "file")
        (root / "directory").symlink_to(outside)

    saver.overlay.layer(linked)
    saver.overlay.change(lambda root: (root / "a" / "file").rename(root / "moved"))
    mark(saver, "moved", "redirect", redirect.encode())

    expect_refused(saver, "moved")


@redirecting
def test_a_lower_layer_that_is_itself_a_symlink_is_followed(saver: Saver) -> None:
    saver.overlay.layer(below)
    real = saver.overlay.directory / "real"
    saver.overlay.lowers[0].rename(real)
    saver.overlay.lowers[0].symlink_to(real)
    saver.overlay.change(lambda root: (root / "a").rename(root / "renamed"))

    saver.expect_the_same()


# index=on


@pytest.mark.parametrize(
    "overlay",
    [Flavour("index", options=("index=on",)), Flavour("all", options=(*METACOPY.options, "index=on"))],
    indirect=True,
)
def test_names_that_changed_without_being_in_the_upperdir_fail_the_request(saver: Saver) -> None:
    def linked(root: Path) -> None:
        below(root)
        os.link(root / "a" / "file", root / "twin")

    saver.overlay.layer(linked)
    saver.overlay.change(lambda root: (root / "a" / "file").write_text("under both names"))

    assert saver.overlay.view().entries[b"twin"].content.startswith(b"16 bytes")
    expect_refused(saver, "a/file")


@pytest.mark.parametrize("overlay", [Flavour("index", options=("index=on",))], indirect=True)
def test_a_file_of_which_all_names_are_in_the_upperdir_is_saved(saver: Saver) -> None:
    def linked(root: Path) -> None:
        below(root)
        os.link(root / "a" / "file", root / "twin")

    def change(root: Path) -> None:
        (root / "a" / "file").write_text("under both names")
        (root / "twin").chmod(0o600)

    saver.overlay.layer(linked)
    saver.overlay.change(change)

    saver.expect_the_same()
