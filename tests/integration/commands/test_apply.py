"""A change set carried out on a plain directory: what becomes of it, and which ones are left alone."""

from __future__ import annotations

import fcntl
import gzip
import json
import os
import shutil
import stat
import subprocess
import tarfile
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from archive_overlay import cli
from tests.integration.conftest import Saver, expect_equal
from tests.support import history, image_layouts, overlays, tools, trees
from tests.support.history import directory, entry, file, layer, link, symlink

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

WITHOUT = ("trusted.overlay.", "user.overlay.", "user.fuseoverlayfs.")


def below(root: Path) -> None:
    for name in ("replaced", "merged", "removed", "to file"):
        (root / name).mkdir()
        (root / name / "old").write_text("old")
    (root / "gone").write_text("gone")
    (root / "to directory").write_text("a file")
    (root / "kept").write_text("kept")
    os.link(root / "kept", root / "merged/other name")
    os.setxattr(root / "merged", "user.old", b"yes")


def change(root: Path) -> None:
    """Do all that makes a difference to how something is applied."""
    (root / "gone").unlink()
    shutil.rmtree(root / "removed")
    shutil.rmtree(root / "replaced")
    (root / "replaced").mkdir()
    (root / "replaced/new").write_bytes(bytes(2000))
    shutil.rmtree(root / "to file")
    (root / "to file").write_text("a file now")
    (root / "to directory").unlink()
    (root / "to directory").mkdir()
    (root / "to directory/inside").touch()
    (root / "merged/old").write_text("new")
    os.removexattr(root / "merged", "user.old")
    (root / "first").write_text("text")
    os.link(root / "first", root / "merged/second")
    os.symlink("else where", root / "symlink")
    os.mkfifo(root / "pipe")
    with open(root / "sparse", "wb") as sparse:
        sparse.write(b"data")
        sparse.truncate(1 << 20)
    (root / "program").write_text("#!")
    (root / "program").chmod(0o4755)
    (root / "closed").mkdir()
    (root / "closed/inside").touch()
    (root / "closed").chmod(0o500)


def apply(archive: str | Path, data: Path, *options: str | Path) -> str:
    """Apply a change set, which has to succeed in silence but for a line that says so; give that."""
    return history.output_of("apply", *options, archive, data)


def contents(tree: Path) -> dict[str, str]:
    """Give what each path of a tree is: a file's text, a symbolic link's target, or "/" for directories."""
    found = {}
    for path in sorted(tree.rglob("*")):
        name = str(path.relative_to(tree))
        if path.is_symlink():
            found[name] = f"-> {os.readlink(path)}"
        else:
            found[name] = "/" if path.is_dir() else path.read_text()
    return found


@pytest.fixture
def data(scratch: Path) -> Path:
    """Give a directory to apply something to."""
    made = scratch / "data"
    made.mkdir()
    below(made)
    return made


def put_layer(scratch: Path, *entries: Any) -> Path:
    """Store a tar of these entries."""
    archive = scratch / "layer.tar"
    archive.write_bytes(layer(*entries))
    return archive


# What a container saw


@pytest.mark.parametrize("method", ["copy", "tar", "oci"])
def test_a_directory_becomes_what_the_container_saw_and_can_be_taken_back(saver: Saver) -> None:
    overlay = saver.overlay
    overlay.layer(below)
    overlay.change(change)
    archive = f"{saver.archive}:main" if saver.method == "oci" else str(saver.archive)
    assert saver.run(archive_to=archive).status == 0
    data, reverse = saver.directory / "data", saver.directory / "reverse.tar.gz"
    overlay.inside(lambda: subprocess.run(["cp", "-a", overlay.lowers[0], data], check=True) and None)
    before = overlay.inside(lambda: trees.view(data))

    said = overlay.inside(lambda: apply(archive, data, "--reverse", reverse))

    assert said.startswith(f"applied to {data}: ")
    change_set = overlay.change_set()
    expect_equal(
        _without_marks(overlay.view()),
        _without_marks(overlay.inside(lambda: trees.view(data))).linked_among(change_set),
    )
    assert stat.S_IMODE(reverse.stat().st_mode) == 0o600
    overlay.inside(lambda: apply(reverse, data))
    taken_back = overlay.inside(lambda: trees.view(data))
    expect_equal(before.linked_among(set()), taken_back.linked_among(set()))


def _without_marks(seen: trees.View) -> trees.View:
    return trees.View(
        {
            path: trees.Entry(
                **{
                    **entry.__dict__,
                    "attributes": tuple(pair for pair in entry.attributes if not pair[0].startswith(WITHOUT)),
                }
            )
            for path, entry in seen.entries.items()
        },
        seen.links,
    )


def test_a_layer_is_applied_whatever_the_order_of_its_entries(data: Path, scratch: Path) -> None:
    archive = put_layer(
        scratch,
        file("replaced/new", b"new"),
        file("removed/inside", b"of a new directory"),
        file("gone"),
        file(".wh.gone"),
        file("replaced/.wh..wh..opq"),
        file(".wh.removed"),
        file("merged/.wh.old"),
        file(".wh.never there"),
        file("to file/.wh.old"),
        file("to file"),
        directory("replaced", mode=0o711),
        link("linked", "replaced/new"),
    )

    assert apply(archive, data) == f"applied to {data}: 6 entries, 5 deletions\n"

    assert contents(data) == {
        "gone": "",
        "kept": "kept",
        "linked": "new",
        "merged": "/",
        "merged/other name": "kept",
        "removed": "/",
        "removed/inside": "of a new directory",
        "replaced": "/",
        "replaced/new": "new",
        "to directory": "a file",
        "to file": "",
    }
    assert stat.S_IMODE((data / "replaced").stat().st_mode) == 0o711
    assert (data / "linked").stat().st_ino == (data / "replaced/new").stat().st_ino


def test_a_directory_that_a_tar_does_not_list_keeps_what_it_has(data: Path, scratch: Path) -> None:
    (data / "merged").chmod(0o2751)
    for path in (data / "merged", data):
        os.utime(path, ns=(5, 1234567890123456789))
    before = trees.view(data).entries

    apply(put_layer(scratch, file("merged/new"), file("new/new")), data)

    after = trees.view(data).entries
    assert after[b"merged"] == before[b"merged"]
    assert after[trees.TOP] == before[trees.TOP]
    assert after[b"new"].mode == 0o755


@pytest.mark.parametrize("option", ["--json", "--bytes"])
def test_what_says_how_to_show_changes_is_for_dry_runs(data: Path, scratch: Path, option: str) -> None:
    archive = put_layer(scratch, file("a"))
    before = trees.view(data)

    assert "are for --dry-run" in history.complaint_of("apply", option, archive, data)

    assert trees.view(data) == before


def test_time_does_not_grow_with_the_square_of_the_depth(data: Path, scratch: Path) -> None:
    deep = put_layer(scratch, file(f"top/{'a/' * 3000}new"))

    apply(deep, data, "--no-fsync")

    # Now the directory has them, and each would get an entry with its whole path.
    assert "does not list" in history.complaint_of("apply", "--no-fsync", deep, data)


def test_a_hard_link_leads_no_further_than_the_top(data: Path, scratch: Path) -> None:
    tar = scratch / "a.tar"
    tar.write_bytes(layer(file("n", b"new"), link("a", "../../n")))

    apply(tar, data)

    assert (data / "a").read_text() == "new"
    assert (data / "a").samefile(data / "n")


def test_an_opaque_top_hides_all_that_was_there(data: Path, scratch: Path) -> None:
    apply(put_layer(scratch, file(".wh..wh..opq"), file("merged/new"), file("alone")), data)

    assert contents(data) == {"alone": "", "merged": "/", "merged/new": ""}


def test_whiteouts_that_are_hard_links_of_one_another_each_delete(data: Path, scratch: Path) -> None:
    archive = put_layer(scratch, entry("gone", tarfile.CHRTYPE), link("removed", "gone"))

    assert apply(archive, data).endswith("0 entries, 2 deletions\n")

    assert not {"gone", "removed"} & set(os.listdir(data))


def test_names_of_attributes_are_read_as_gnu_tar_writes_them(data: Path, scratch: Path) -> None:
    changes = scratch / "changes"
    changes.mkdir()
    (changes / "file").touch()
    os.setxattr(changes / "file", "user.a=%", b"value")
    archive = scratch / "gnu.tar"
    subprocess.run(["tar", "--xattrs", "-cf", archive, "-C", changes, "."], check=True)

    apply(archive, data)

    assert os.getxattr(data / "file", "user.a=%") == b"value"


def test_a_revision_of_a_history_is_applied(data: Path, scratch: Path) -> None:
    image_layouts.put(
        scratch / "layout", "main", layers=[layer(file("one")), layer(file("two")), layer(file(".wh.one"))]
    )

    apply(f"{scratch}/layout:main@2", data)

    assert "two" in os.listdir(data)
    assert "one" not in os.listdir(data)


def test_a_mount_point_is_changed_in_place(any_overlay: overlays.Overlay, scratch: Path) -> None:
    data = scratch / "data"
    data.mkdir()
    archive = put_layer(scratch, file("new", b"text"), file(".wh.gone"))

    def run() -> dict[str, str]:
        overlays.mount_tmpfs(data, "mode=755")
        (data / "gone").touch()
        apply(archive, data)
        return contents(data)

    assert any_overlay.inside(run) == {"new": "text"}


def test_where_directories_cannot_be_renamed_several_steps_do_it_and_a_warning_says_so(
    any_overlay: overlays.Overlay, scratch: Path
) -> None:
    any_overlay.layer(below)
    any_overlay.mount()
    archive = put_layer(scratch, file(".wh.removed"), file("replaced/.wh..wh..opq"), file("to file", b"new"))

    result = any_overlay.inside(lambda: history.run("apply", archive, any_overlay.merged))

    assert result.status == 0, result.stderr
    assert "in several steps" in result.stderr
    found = any_overlay.inside(lambda: contents(any_overlay.merged))
    assert found["to file"] == "new"
    assert not {"removed", "replaced/old", "to file/old"} & found.keys()


# What would happen


def test_a_dry_run_says_what_would_happen_and_changes_nothing(data: Path, scratch: Path) -> None:
    archive = put_layer(
        scratch,
        file("new/file", b"12345"),
        file("replaced/.wh..wh..opq"),
        file("absent/.wh..wh..opq"),
        file(".wh.gone"),
        file(".wh.never there"),
        directory("kept"),
        symlink("merged", "kept"),
    )
    before = trees.view(data), trees.traces(data)

    assert apply(archive, data, "--dry-run").splitlines() == [
        "A            5 new/file",
        "O            - replaced/",
        "A            - absent/",
        "D            - gone",
        "A            - kept/",
        "A            - merged -> kept",
    ]
    found = json.loads(apply(archive, data, "--dry-run", "--json"))
    assert found[3] == {"path": "gone", "change": "deleted"}

    assert (trees.view(data), trees.traces(data)) == before


# What is refused, before anything is changed


def expect_refused(words: str, archive: str | Path, data: Path, *options: str | Path) -> None:
    """Have a command refuse, by a line with these words, and change nothing."""
    before = trees.view(data)
    assert words in history.complaint_of("apply", *options, archive, data)
    expect_equal(before, trees.view(data))


def test_damage_at_the_end_is_found_out_first(data: Path, scratch: Path) -> None:
    packed = gzip.compress(layer(file("new"), file(".wh.gone")))
    archive = scratch / "archive.tar.gz"
    archive.write_bytes(packed[:-5] + b"12345")

    expect_refused("cannot read", archive, data)


def test_a_full_disk_is_found_out_first(any_overlay: overlays.Overlay, scratch: Path) -> None:
    data = scratch / "data"
    data.mkdir()
    archive = put_layer(scratch, file(".wh.gone"), file("large", bytes(range(256)) * 8192))

    def run() -> None:
        overlays.mount_tmpfs(data, "mode=755,size=1m")
        (data / "gone").touch()
        expect_refused("No space left", archive, data)

    any_overlay.inside(run)


@pytest.mark.parametrize("name", ["../out", "a/../../out"])
def test_no_entry_leads_out_of_the_directory(data: Path, scratch: Path, name: str) -> None:
    expect_refused("leads out of", put_layer(scratch, file(name)), data)
    assert not (scratch / "out").exists()


def test_links_of_the_directory_lead_nowhere(data: Path, scratch: Path) -> None:
    outside = scratch / "outside"
    outside.mkdir()
    (outside / "kept").touch()
    os.symlink(outside, data / "link")

    apply(put_layer(scratch, file("link/.wh.kept"), file("link/new")), data)

    assert os.listdir(outside) == ["kept"]
    assert contents(data / "link") == {"new": ""}


def test_links_of_the_change_set_lead_nowhere(data: Path, scratch: Path) -> None:
    outside = scratch / "outside"
    outside.mkdir()
    archive = put_layer(scratch, symlink("link", str(outside)), file("link/new"))

    history.run("apply", archive, data)

    assert os.listdir(outside) == []


@pytest.mark.parametrize("place", ["data", "data/inside", "."])
def test_the_archive_and_the_directory_are_apart(data: Path, scratch: Path, place: str) -> None:
    archive = scratch / place
    archive.mkdir(exist_ok=True)

    expect_refused("the archive", archive, data, "--as", "directory")


def test_the_root_directory_is_refused(scratch: Path) -> None:
    assert "root directory" in history.complaint_of("apply", put_layer(scratch, file("a")), Path("/"))


def test_a_directory_must_be_there(scratch: Path) -> None:
    said = history.complaint_of("apply", put_layer(scratch, file("a")), scratch / "none")
    assert "must be a directory that exists" in said
    assert not (scratch / "none").exists()


def test_two_at_once_do_not_change_one_directory(data: Path, scratch: Path) -> None:
    fd = os.open(data, os.O_RDONLY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        expect_refused("locked", put_layer(scratch, file("a")), data)
    finally:
        os.close(fd)


def test_a_layer_of_an_engines_store_is_refused(scratch: Path) -> None:
    data = scratch / "store/overlay/0123/diff/inside"
    data.mkdir(parents=True)
    (scratch / "store/overlay-layers").mkdir()
    (scratch / "store/overlay/0123/link").touch()

    expect_refused("engine's store", put_layer(scratch, file("a")), data)


@pytest.mark.parametrize("attribute", ["metacopy", "redirect"])
@pytest.mark.parametrize("form", ["directory", "tar"])
def test_what_is_in_a_lower_layer_is_not_taken_for_nothing(
    data: Path, scratch: Path, attribute: str, form: str
) -> None:
    tools.need_root()
    changes = scratch / "changes"
    (changes / "directory").mkdir(parents=True)
    (changes / "file").write_bytes(bytes(10))
    where = changes / ("file" if attribute == "metacopy" else "directory")
    os.setxattr(where, f"trusted.overlay.{attribute}", b"/elsewhere" if attribute == "redirect" else b"")
    archive = changes
    if form == "tar":
        archive = scratch / "changes.tar"
        tar = f"tar --xattrs --xattrs-include=* -cf {archive} -C {changes} ."
        subprocess.run(tar.split(), check=True)

    expect_refused("layer", archive, data)


def test_owners_that_are_in_attributes_are_not_taken_for_others(data: Path, scratch: Path) -> None:
    changes = scratch / "changes"
    changes.mkdir()
    (changes / "file").touch()
    os.setxattr(changes / "file", "user.fuseoverlayfs.override_stat", b"1000:1000:0644")

    expect_refused("override_stat", changes, data, "--marks", "fuse")


def test_what_is_mounted_in_the_directory_stays(any_overlay: overlays.Overlay, scratch: Path) -> None:
    data = scratch / "data"
    (data / "sub/mounted").mkdir(parents=True)
    harmless = scratch / "harmless.tar"
    harmless.write_bytes(layer(file("sub/new")))
    archives = []
    for number, each in enumerate(([file(".wh.sub")], [file("sub/mounted/new")], [file("sub/.wh..wh..opq")])):
        archives.append(scratch / f"{number}.tar")
        archives[-1].write_bytes(layer(*each))

    def run() -> None:
        overlays.mount_tmpfs(data / "sub/mounted", "mode=755")
        for archive in archives:
            expect_refused("is mounted at", archive, data)
        apply(harmless, data)

    any_overlay.inside(run)


# Directories that a mounted overlay has


@pytest.mark.parametrize("which", ["the same", "inside", "around"])
def test_a_lower_layer_of_a_mounted_overlay_is_refused(
    overlay: overlays.Overlay, scratch: Path, which: str
) -> None:
    overlay.layer(lambda root: (root / "inside").mkdir())
    overlay.mount()
    lower = overlay.lowers[0]
    data = {"the same": lower, "inside": lower / "inside", "around": lower.parent}[which]
    archive = put_layer(scratch, file("new"))

    def run() -> str:
        return history.complaint_of("apply", archive, data)

    assert f"overlay at {overlay.merged}" in overlay.inside(run)
    assert not (data / "new").exists()


def test_a_lower_layer_of_an_overlay_in_another_namespace_is_refused(
    any_overlay: overlays.Overlay, scratch: Path
) -> None:
    any_overlay.layer(below)
    any_overlay.mount()

    expect_refused(
        f"overlay at {any_overlay.merged} in the mount namespace of process",
        put_layer(scratch, file("new")),
        any_overlay.lowers[0],
    )


def test_a_lower_layer_by_another_path_is_refused(any_overlay: overlays.Overlay, scratch: Path) -> None:
    any_overlay.layer(below)
    any_overlay.mount()
    elsewhere = scratch / "elsewhere"
    elsewhere.mkdir()
    archive = put_layer(scratch, file("new"))

    def run() -> None:
        overlays.bind(any_overlay.lowers[0] / "merged", elsewhere)
        assert "a lower layer" in history.complaint_of("apply", archive, elsewhere)

    any_overlay.inside(run)


def test_an_upperdir_of_a_mounted_overlay_is_refused(any_overlay: overlays.Overlay, scratch: Path) -> None:
    any_overlay.mount()
    archive = put_layer(scratch, file("new"))

    said = any_overlay.inside(lambda: history.complaint_of("apply", archive, any_overlay.upper))

    assert "the upperdir of the overlay" in said


# What is kept


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("reverse", "is not the name of a tar"),
        ("data/reverse.tar", "is the directory"),
        ("absent/reverse.tar", "does not exist"),
        ("there.tar.gz", "exists"),
    ],
)
def test_what_is_overwritten_is_kept_in_a_new_tar_elsewhere(
    data: Path, scratch: Path, name: str, words: str
) -> None:
    (scratch / "there.tar.gz").write_text("of an earlier run")

    expect_refused(words, put_layer(scratch, file("new")), data, "--reverse", scratch / name)

    assert (scratch / "there.tar.gz").read_text() == "of an earlier run"


def test_what_cannot_be_kept_is_named(data: Path, scratch: Path) -> None:
    tools.need_root()
    os.mknod(data / "socket", stat.S_IFSOCK | 0o600)
    os.setxattr(data / "gone", "user.overlay.opaque", b"y")
    archive = put_layer(scratch, *(file(f".wh.{name}") for name in ("socket", "gone", "kept")))

    result = history.run("apply", "--reverse", scratch / "reverse.tar", archive, data)

    assert result.status == 0
    assert result.stderr.splitlines() == [
        "archive_overlay: warning: gone: the attribute user.overlay.opaque cannot be taken back, because overlays act on it",
        "archive_overlay: warning: socket is a socket, which cannot be taken back",
        "archive_overlay: warning: kept has other names (hard links) that do not change: taken back, it is a separate file",
    ]
    apply(scratch / "reverse.tar", data)
    assert (data / "kept").read_text() == (data / "merged/other name").read_text() == "kept"


def test_what_is_kept_is_the_directory_s_though_another_has_its_path(
    data: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def exchange(*_: object) -> None:
        data.rename(scratch / "true one")
        data.mkdir()
        (data / "gone").write_text("of somebody else")

    monkeypatch.setattr("archive_overlay.commands.apply.command._refuse_mount_points", exchange)
    archive = put_layer(scratch, file(".wh.gone"))
    reverse = scratch / "reverse.tar"
    cli.main(["apply", "--reverse", str(reverse), str(archive), str(data)])
    monkeypatch.undo()

    assert not (scratch / "true one/gone").exists()
    apply(reverse, scratch / "true one")
    assert (scratch / "true one/gone").read_text() == "gone"
    assert (data / "gone").read_text() == "of somebody else"


def test_directories_that_stay_keep_the_marks_of_overlays_that_they_have(data: Path, scratch: Path) -> None:
    """If it was no plain directory but a change set, what it has deleted does not come back."""
    for path in (data, data / "merged"):
        os.setxattr(path, "user.overlay.opaque", b"y")
    archive = put_layer(scratch, file("merged/new"))

    apply(archive, data, "--reverse", scratch / "reverse.tar")
    kept = [os.getxattr(path, "user.overlay.opaque") for path in (data, data / "merged")]
    apply(scratch / "reverse.tar", data)

    assert kept == [b"y", b"y"]
    assert os.getxattr(data / "merged", "user.overlay.opaque") == b"y"
    assert sorted(os.listdir(data / "merged")) == ["old", "other name"]


# What cannot be given


def test_what_overlays_act_on_is_never_given(data: Path, scratch: Path) -> None:
    archive = put_layer(
        scratch,
        file("file", pax_headers={"SCHILY.xattr.user.overlay.opaque": "y"}),
        entry("gone", tarfile.CHRTYPE),
    )

    result = history.run("apply", "--marks", "oci", archive, data)

    assert result.status == 0
    assert result.stderr == (
        f"archive_overlay: warning: {data} differs from the change set: it lacks the attribute user.overlay.opaque of"
        " file, the device 0:0 of gone; overlays would act on some of it, so that is never restored\n"
    )
    assert os.listxattr(data / "file") == []
    assert not (data / "gone").exists()


# An ordinary user

NOBODY = 65534


def become_nobody() -> None:
    os.setgroups([])
    os.setresgid(NOBODY, NOBODY, NOBODY)
    os.setresuid(NOBODY, NOBODY, NOBODY)


@pytest.fixture
def for_everybody() -> Iterator[Path]:
    """Give a directory that other users reach, too."""
    tools.need_root()
    with tempfile.TemporaryDirectory(prefix="archive_overlay-test-") as made:
        Path(made).chmod(0o777)
        yield Path(made)
        overlays.remove(Path(made))


def test_an_ordinary_user_is_told_what_could_not_be_given(for_everybody: Path) -> None:
    data = for_everybody / "data"
    data.mkdir()
    (data / "closed").mkdir()
    (data / "closed/old").touch()
    (data / "closed").chmod(0o555)
    for path in (data, data / "closed", data / "closed/old"):
        os.chown(path, NOBODY, NOBODY)
    archive = for_everybody / "layer.tar"
    archive.write_bytes(
        layer(
            file("of somebody else", uid=7, gid=7),
            directory("closed", mode=0o555, uid=NOBODY, gid=NOBODY),
            file("closed/new", uid=NOBODY, gid=NOBODY),
            directory("also closed", mode=0o500, uid=NOBODY, gid=NOBODY),
            directory("also closed/inside", mode=0o500, uid=NOBODY, gid=NOBODY),
            file("also closed/inside/.wh.nothing", uid=NOBODY, gid=NOBODY),
            entry("device", tarfile.CHRTYPE, devmajor=1, devminor=3),
        )
    )

    result = history.run("apply", archive, data, before=become_nobody)

    assert result.status == 0, result.stderr
    assert result.stderr == (
        f"archive_overlay: warning: {data} differs from the change set: it lacks the owner of of somebody else, the"
        " device of device\n"
    )
    assert sorted(os.listdir(data)) == ["also closed", "closed", "of somebody else"]
    assert sorted(os.listdir(data / "closed")) == ["new", "old"]
    assert stat.S_IMODE((data / "closed").stat().st_mode) == 0o555
    assert stat.S_IMODE((data / "also closed").stat().st_mode) == 0o500


def test_marks_that_only_root_sees_are_not_taken_for_none(for_everybody: Path) -> None:
    data, changes = for_everybody / "data", for_everybody / "changes"
    for each in (data, changes):
        each.mkdir()
    os.chown(data, NOBODY, NOBODY)

    result = history.run("apply", changes, data, before=become_nobody)
    assert result.status == 1
    assert "add --marks user" in result.stderr
    assert history.run("apply", "--marks", "user", changes, data, before=become_nobody).status == 0


def test_a_directory_of_somebody_else_is_refused(for_everybody: Path) -> None:
    data = for_everybody / "data"
    data.mkdir()
    archive = for_everybody / "layer.tar"
    archive.write_bytes(layer(file("new")))

    result = history.run("apply", archive, data, before=become_nobody)

    assert result.status == 1
    assert "only its owner and root can" in result.stderr
