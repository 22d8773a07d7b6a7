"""What the random containers of test_oracle.py once brought to light."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support import overlays, trees

if TYPE_CHECKING:
    from tests.integration.conftest import Saver

fuse = pytest.mark.parametrize("overlay", [overlays.FUSE, overlays.FUSE_ROOTLESS], indirect=True)


def below(root: Path) -> None:
    (root / "file").write_text("below")
    (root / ".opq").write_text("below")
    (root / "directory").mkdir()
    (root / "directory" / "file").write_text("below")


@fuse
@pytest.mark.parametrize("kind", [stat.S_IFDIR, stat.S_IFREG, stat.S_IFIFO])
def test_fuse_overlayfs_takes_a_lone_wh_opq_for_a_deletion(saver: Saver, kind: int) -> None:
    def change(root: Path) -> None:
        if kind == stat.S_IFDIR:
            (root / ".wh..opq").mkdir()
        else:
            os.mknod(root / ".wh..opq", kind | 0o600)

    saver.overlay.layer(below)
    saver.overlay.change(change)

    saver.expect_the_same()
    assert b"file" in saver.overlay.view().entries


@fuse
def test_fuse_overlayfs_believes_an_opaque_marker_of_any_type(saver: Saver) -> None:
    saver.overlay.layer(below)
    saver.overlay.change(lambda root: (root / "directory" / "made").touch())
    saver.overlay.inside(lambda: (saver.overlay.upper / "directory" / ".wh..wh..opq").mkdir())

    saver.expect_the_same()
    assert b"directory/file" not in saver.overlay.view().entries


@fuse
def test_a_whiteout_of_no_name_is_no_whiteout(saver: Saver) -> None:
    saver.overlay.layer(below)
    saver.overlay.change(lambda root: (root / "directory" / "made").touch())
    saver.overlay.inside(lambda: (saver.overlay.upper / "directory" / ".wh.").touch())

    saver.expect_the_same()


@fuse
def test_what_only_the_kernel_escapes_is_no_attribute_under_fuse_overlayfs(saver: Saver) -> None:
    def forge(root: Path) -> None:
        (root / "file").write_text("above")
        os.setxattr(root / "file", "user.overlay.overlay.opaque", b"y")

    saver.overlay.layer(below)
    saver.overlay.change(forge)

    saver.expect_the_same()


@pytest.mark.parametrize("method", ["oci"])
def test_an_error_about_the_top_directory_names_it(any_saver: Saver) -> None:
    any_saver.overlay.change(lambda root: os.setxattr(root, "user.a=b", b"x"))

    result = any_saver.run()

    assert result.status == 1
    assert "the attribute user.a=b of . cannot be stored" in result.only_error()


# Not in the domain of the random containers: see `stacks._leave_one_name`.
@fuse
def test_of_a_lower_file_with_two_names_fuse_overlayfs_writes_one_and_that_one_is_saved(saver: Saver) -> None:
    names = ["one", "other"]

    def two_names(root: Path) -> None:
        (root / "one").write_text("below")
        os.link(root / "one", root / "other")

    def texts() -> list[str]:
        return [(saver.overlay.merged / name).read_text() for name in names]

    saver.overlay.layer(two_names)
    saver.overlay.change(lambda root: (root / "one").write_text("above"))

    result = saver.run()

    # The container sees one file. The upperdir has one name of it, whichever the program met first.
    assert result.status == 0, result.stderr
    assert saver.overlay.inside(texts) == ["above", "above"]
    (saved,) = os.listdir(saver.extracted)
    assert saved in names
    assert (saver.extracted / saved).read_text() == "above"
    (warning,) = result.messages("warning")
    assert warning.startswith(f"{saver.overlay.upper / saved}: the file has several names in a lower layer")
    # Another mount of the same layers shows either file for both names: the changes may be gone from sight.
    saver.overlay.unmount()
    saver.overlay.mount()
    assert saver.overlay.inside(texts) in (["above", "above"], ["below", "below"])
    # The archive has what the upperdir has, whatever a mount shows.
    below = trees.view(saver.overlay.lowers[0]).entries
    for flavour in (saver.overlay.flavour, overlays.NATIVE_ROOTLESS):
        again = saver.overlay.restacked(saver.extracted, flavour).entries
        assert [name for name in names if again[os.fsencode(name)] != below[os.fsencode(name)]] == [saved]
