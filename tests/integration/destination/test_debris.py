"""What is called as the hook's own directories and backups are, and is somebody else's: tried on whole runs."""

from __future__ import annotations

import os
import subprocess
from typing import TYPE_CHECKING, Any

import pytest

from archive_overlay.marks import TRUSTED_STAGING, USER_STAGING
from archive_overlay.methods import METHODS
from tests.integration.conftest import Saver, expect_equal
from tests.support import debris, hooks, image_layouts, overlays, trees

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

INSIDE = ".archive_overlay-0123456789ab"
BESIDE = ".x.archive_overlay-0123456789ab"
as_root = pytest.mark.parametrize("overlay", [overlays.NATIVE], indirect=True)


def look_alike(path: Path) -> None:
    """Make a directory that is like one of the hook's."""
    (path / "archive" / "inner").mkdir(parents=True)
    (path / "archive" / "inner" / "file").write_text("precious")
    (path / f"keep-{(path / 'archive').stat().st_ino}").mkdir()
    (path / "passing-1-1.").mkdir()
    path.chmod(0o700)


def forge(path: Path) -> None:
    """Make a directory as a container would that wants it to be taken for the hook's own."""
    look_alike(path)
    for name in (
        TRUSTED_STAGING,
        USER_STAGING,
        "user.overlay.overlay.archive_overlay",
        "trusted.overlay.overlay.archive_overlay",
        "user.fuseoverlayfs.archive_overlay",
    ):
        try:
            os.setxattr(path, name, b"%d" % path.stat().st_ino)
        except OSError:
            pass


def forged(root: Path) -> None:
    for name in (INSIDE, BESIDE, f"directory/{BESIDE}"):
        forge(root / name)


def marks(tree: Path) -> list[tuple[str, str]]:
    """Give the marks of the hook in a tree."""
    return [
        (str(path.relative_to(tree)), name)
        for path in [tree, *tree.rglob("*")]
        if not path.is_symlink()
        for name in os.listxattr(path)
        if name in (TRUSTED_STAGING, USER_STAGING)
    ]


# Whoever is in the container


@pytest.mark.parametrize("method", ["copy", "move"])
def test_no_container_can_make_the_mark(saver: Saver, method: str) -> None:
    saver.overlay.change(forged)

    result = saver.run()

    assert result.status == 0, result.stderr
    found = saver.overlay.inside(lambda: marks(saver.archive))
    if method == "move" and saver.overlay.flavour is overlays.NATIVE:
        # What is moved is not looked at. Whoever moves it may set the trusted mark, and believes no other.
        assert {name for _, name in found} == {USER_STAGING}
    else:
        assert found == []
    assert {INSIDE, BESIDE, "directory"} <= set(os.listdir(saver.archive))


@pytest.mark.parametrize("method", ["tar.gz", "oci"])
def test_no_tar_has_the_mark(saver: Saver, method: str) -> None:
    saver.overlay.change(forged)

    result = saver.run()

    assert result.status == 0, result.stderr
    if method == "oci":
        blobs = [path.read_bytes() for path in (saver.archive / "blobs" / "sha256").iterdir()]
    else:
        blobs = [saver.archive.read_bytes()]
    tars = [
        subprocess.run(["gzip", "-dc"], input=blob, capture_output=True, check=True).stdout
        for blob in blobs
        if blob.startswith(b"\x1f\x8b")
    ]
    assert len(tars) == 1
    assert b"SCHILY.xattr.user.overlay.archive_overlay" not in tars[0]
    assert b"SCHILY.xattr.trusted.overlay.archive_overlay" not in tars[0]


@pytest.mark.parametrize("method", ["copy"])
def test_nothing_that_is_rescued_by_copying_has_the_mark(saver: Saver, method: str, tmp_path: Path) -> None:
    saver.overlay.change(forged)
    # Another file system, so that it cannot be renamed.
    os.chmod(tmp_path, 0o777)
    result = saver.run("--rescue-dir", tmp_path / "rescue", archive_to="relative")

    assert result.status == 1
    assert "its changes are kept in" in result.only_error()
    kept = tmp_path / "rescue" / "c1" / "data"
    assert saver.overlay.inside(lambda: (marks(kept), (kept / INSIDE).is_dir())) == ([], True)


@as_root
@pytest.mark.parametrize("method", ["move"])
def test_what_a_container_may_have_marked_is_not_moved_in_a_user_namespace(
    saver: Saver, scratch: Path
) -> None:
    # An overlay that keeps its books in trusted attributes leaves user attributes to the container.
    saver.overlay.change(forged)
    assert (
        saver.overlay.inside(lambda: [name for _, name in marks(saver.overlay.upper)]) == [USER_STAGING] * 3
    )
    namespace = overlays.Namespace(rootless=True)
    saver.out.chmod(0o777)
    bundle = hooks.Bundle(
        scratch / "bundle", mounts=[saver.overlay.spec_mount()], annotations=saver.asks(success=None)
    )
    try:
        result = namespace.inside(lambda: hooks.run_hook(bundle))
    finally:
        namespace.close()

    # Its own marks cannot be seen there, so nothing is archived at all.
    assert result.status == 1
    assert "cannot be seen without CAP_SYS_ADMIN" in result.only_error()
    assert os.listdir(saver.out) == []


def test_what_a_container_called_so_survives_an_archive_beside_it(any_saver: Saver) -> None:
    saver = any_saver
    saver.overlay.change(forged)
    assert saver.run(method="copy").status == 0
    before = trees.view(saver.archive / BESIDE)

    for _ in range(2):
        result = saver.run(archive_to=saver.archive / "x", success=None)
        assert result.status == 0, result.stderr
        assert any(str(saver.archive / BESIDE) in line for line in result.messages("warning"))

    expect_equal(before, trees.view(saver.archive / BESIDE))


@pytest.fixture
def mounted(any_saver: Saver) -> Iterator[Saver]:
    """Save to a destination that is a mount point."""
    any_saver.archive.mkdir()
    any_saver.overlay.inside(lambda: overlays.mount_tmpfs(any_saver.archive, "size=8m"))
    yield any_saver
    any_saver.overlay.inside(lambda: overlays.unmount(any_saver.archive))


@pytest.mark.parametrize("method", ["copy"])
def test_what_a_container_called_so_survives_merges_into_a_mount_point(mounted: Saver) -> None:
    saver = mounted
    saver.overlay.change(forged)

    def merged() -> trees.View:
        return trees.view(saver.archive)

    assert saver.run().status == 0
    first = saver.overlay.inside(merged)
    assert {os.fsencode(name) for name in (INSIDE, BESIDE)} <= first.entries.keys()

    for _ in range(2):
        result = saver.run()
        assert result.status == 0, result.stderr
        assert len(result.messages("warning")) >= 1
        expect_equal(first, saver.overlay.inside(merged))


@pytest.mark.parametrize("method", ["copy"])
def test_debris_in_a_mount_point_is_removed_beside_what_is_called_so(mounted: Saver) -> None:
    saver = mounted
    saver.overlay.change(forged)
    assert saver.run().status == 0
    (name,) = saver.overlay.inside(lambda: [debris.put(saver.archive, "").name])

    assert saver.run().status == 0

    names = saver.overlay.inside(lambda: os.listdir(saver.archive))
    assert name not in names
    assert INSIDE in names


def test_what_is_in_a_layout_under_such_a_name_stays(small: Saver) -> None:
    look_alike(small.archive / INSIDE)
    before = trees.view(small.archive / INSIDE)

    for _ in range(2):
        result = small.run(method="oci")
        assert result.status == 0, result.stderr

    assert trees.view(small.archive / INSIDE) == before
    assert len(image_layouts.read(small.archive).layers) == 2


# Whoever chooses annotations


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("path", [BESIDE, f"{BESIDE}/inner", INSIDE, f"a/{INSIDE}/inner", "link"])
@pytest.mark.parametrize("key", ["archive_to", "success"])
def test_no_annotation_names_staging(small: Saver, method: str, path: str, key: str) -> None:
    if path == "link":
        path = "link/inner"
        (small.out / "link").symlink_to(BESIDE)
    keys: dict[str, Any] = {key: small.out / path}

    result = small.run(method=method, **keys)

    assert result.status == 1
    label = key.replace("_", "-")
    assert (
        f"{label} {small.out / path} has a name that this program uses for its working directories"
        in result.only_error()
    )
    assert set(os.listdir(small.out)) <= {"link"}
    assert os.listdir(small.overlay.upper) == ["made"]


@pytest.mark.parametrize("number", ["9" * 10, "9" * 245, "0" * 200 + "7"])
@pytest.mark.parametrize("method", ["copy", "move", "tar.gz"])
def test_no_backup_number_stops_backups(small: Saver, method: str, number: str) -> None:
    taken = small.out / f"archive.~{number}~"
    taken.write_text("of somebody else")

    for count in range(3):
        small.overlay.change(lambda root, count=count: (root / f"made{count}").touch())  # type: ignore[misc]
        result = small.run(if_exists="backup")
        assert result.status == 0, result.stderr
        if method == "move":
            overlays.remove(small.overlay.upper)
            small.overlay.upper.mkdir()

    assert sorted(os.listdir(small.out)) == sorted(["archive", "archive.~1~", "archive.~2~", taken.name])
    assert taken.read_text() == "of somebody else"
