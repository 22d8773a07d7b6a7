"""What the annotations exclude, include and exclude-caches leave out is as if the container had not touched it."""

from __future__ import annotations

import json
import os
import shutil
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from archive_overlay.log import Log
from archive_overlay.overlay.dialect import NATIVE_USERXATTR
from archive_overlay.overlay.mount import OverlayMount
from archive_overlay.overlay.patterns import parse_patterns
from archive_overlay.overlay.selection import Selection
from archive_overlay.overlay.upper import read_changes
from tests.integration.conftest import Saver
from tests.integration.methods.test_oci import stop
from tests.support import history, hooks, image_layouts, overlays, trees

if TYPE_CHECKING:
    from typing import Callable

SIGNATURE = "Signature: 8a477f597d28d172789f06886806bc55"

copy_only = pytest.mark.parametrize("method", ["copy"])
oci_only = pytest.mark.parametrize("method", ["oci"])


def below(root: Path) -> None:
    for name in ("cache/deep", "data", "log"):
        (root / name).mkdir(parents=True)
        (root / name / "below").write_text("below")


def change(root: Path) -> None:
    shutil.rmtree(root / "cache/deep")
    (root / "cache/below").mkdir(parents=True)
    (root / "log/below").unlink()
    for name in ("cache/new", "cache/a.csv", "log/new", "data/new", "data/a.csv", "new"):
        (root / name).write_text(name)


def each(function: Callable[[Path], object], root: Path, *names: str) -> None:
    """Call a function for each of some paths."""
    for name in names:
        function(root / name)


@pytest.fixture
def used(saver: Saver) -> Saver:
    saver.overlay.layer(below)
    saver.overlay.change(change)
    return saver


@pytest.fixture
def changed(any_saver: Saver) -> Saver:
    any_saver.overlay.layer(below)
    any_saver.overlay.change(change)
    return any_saver


def saved(saver: Saver) -> set[str]:
    """Give what an archive has, but for directories; deletions with a minus."""
    if saver.method == "oci":
        members = image_layouts.read(saver.archive).layers[-1].members
        names = {member.name.removeprefix("./") for member in members if not member.isdir()}
        return {name.replace(".wh.", "-") for name in names}
    entries = trees.view(saver.extracted).entries
    kinds = {os.fsdecode(path): entry.kind for path, entry in entries.items() if entry.kind != "directory"}
    return {
        os.path.join(os.path.dirname(path), f"-{os.path.basename(path)}") if kind == trees.WHITEOUT else path
        for path, kind in kinds.items()
    }


@pytest.mark.parametrize("method", ["copy", "tar.gz", "oci"])
def test_what_is_excluded_is_not_in_the_archive_and_neither_are_deletions(used: Saver) -> None:
    result = used.run("--log-level=debug", exclude="/cache; log/*,**/*.csv, !data/a.csv")

    assert result.status == 0, result.stderr
    assert saved(used) == {"data/a.csv", "data/new", "new"}
    assert " of /data (3 entries excluded) to " in result.stderr
    listed = [line for line in result.messages("debug") if ": left out: " in line]
    assert listed == [".: left out: cache", "log: left out: below, new"]


@pytest.mark.parametrize("method", ["copy"])
def test_what_is_included_comes_with_the_directories_that_it_is_in(used: Saver) -> None:
    used.overlay.change(lambda root: (root / "cache").chmod(0o711))

    result = used.run(include="cache/*.csv;log/below")

    assert result.status == 0, result.stderr
    assert saved(used) == {"cache/a.csv", "log/-below"}
    entries = trees.view(used.archive).entries
    assert sorted(entries) == [b".", b"cache", b"cache/a.csv", b"log", b"log/below"]
    assert entries[b"cache"].mode == 0o711


@copy_only
def test_a_replaced_directory_hides_only_what_is_selected(used: Saver) -> None:
    def replace(root: Path) -> None:
        shutil.rmtree(root / "data")
        (root / "data").mkdir()
        (root / "data/new").write_text("new")

    used.overlay.layer(
        lambda root: [(root / "data" / name).write_text(name) for name in ("kept", "gone.csv")]
    )
    used.overlay.change(replace, again=True)

    result = used.run(exclude="data,!**/*.csv")

    assert result.status == 0, result.stderr
    assert {name for name in saved(used) if name.startswith("data")} == {"data/-gone.csv"}
    seen = used.overlay.restacked(used.archive).entries
    assert {os.path.basename(path) for path in seen if path.startswith(b"data/")} == {b"below", b"kept"}


@copy_only
def test_the_first_name_that_is_saved_has_the_data(used: Saver) -> None:
    used.overlay.change(lambda root: each(partial(os.link, root / "data/new"), root, "a", "b", "z"))

    result = used.run(exclude="a,data")

    assert result.status == 0, result.stderr
    assert (used.archive / "b").read_text() == "data/new"
    assert os.path.samefile(used.archive / "b", used.archive / "z")


@pytest.mark.parametrize(
    ("exclude", "kept"),
    [
        ("moved/*.csv,data", {"moved/b.txt", "moved/below"}),
        # Each name could be that of a directory with a deeper one.
        ("moved,!moved/b.txt,!moved/*/deeper,data", {"moved/b.txt"}),
    ],
)
def test_a_directory_that_was_renamed_is_matched_by_its_new_path(
    new_overlay: Callable[[overlays.Flavour], overlays.Overlay], scratch: Path, exclude: str, kept: set[str]
) -> None:
    flavour = overlays.Flavour("metacopy", options=("metacopy=on", "redirect_dir=on"))
    saver = Saver(new_overlay(flavour), "copy", scratch)
    saver.overlay.layer(below)
    saver.overlay.layer(lambda root: [(root / "data" / name).write_text(name) for name in ("a.csv", "b.txt")])
    saver.overlay.change(lambda root: os.rename(root / "data", root / "moved"))

    mount = saver.overlay.spec_mount()
    mount["options"] += flavour.options
    result = saver.run(mounts=[mount], exclude=exclude)

    assert result.status == 0, result.stderr
    assert saved(saver) == kept


@copy_only
def test_a_merge_leaves_alone_what_is_excluded(changed: Saver) -> None:
    (changed.archive / "cache/deep").mkdir(parents=True)
    for name in ("cache/deep/old", "cache/old", "log", "data"):
        (changed.archive / name).write_text("old")

    result = changed.run(exclude="cache,log")

    assert result.status == 0, result.stderr
    assert {name for name in saved(changed) if "/" not in name or name.startswith("cache")} == {
        *("cache/deep/old", "cache/old", "log", "new"),
    }
    assert (changed.archive / "data/new").read_text() == "data/new"


@pytest.mark.parametrize("key", ["exclude", "include", "exclude_caches"])
@copy_only
def test_what_is_moved_is_whole(changed: Saver, key: str) -> None:
    keys: dict[str, Any] = {key: "true"}
    result = changed.run(method="move", **keys)

    assert result.status == 1
    assert f"{key.replace('_', '-')} is not possible with method move" in result.only_error()
    assert not changed.archive.exists()


@copy_only
def test_an_invalid_pattern_fails_the_request_and_loses_nothing(changed: Saver, scratch: Path) -> None:
    result = changed.run("--rescue-dir", scratch / "rescued", exclude="cache,[a")

    assert result.status == 1
    assert "the exclude pattern '[a' is not valid" in result.only_error()
    assert (scratch / "rescued/c1/data/cache/new").exists()


@copy_only
def test_limits_count_what_is_saved(changed: Saver) -> None:
    def fill(root: Path) -> None:
        for number in range(200):
            (root / "cache" / str(number)).write_text("1")

    changed.overlay.change(fill)

    assert changed.run("--max-entries=8", exclude="cache/*").status == 0
    assert changed.run("--max-entries=8").status == 1
    assert changed.run("--max-bytes=1000", "--max-entries=8", exclude="cache,data").status == 0


def test_where_the_lower_layers_are_unknown_a_replaced_directory_hides_all(scratch: Path) -> None:
    upper = scratch / "upper"
    (upper / "data").mkdir(parents=True)
    (upper / "data/a.csv").touch()
    os.setxattr(upper / "data", "user.overlay.opaque", b"y")
    said = Kept()
    overlay = OverlayMount(
        upper=str(upper), lowers=(), dialect=NATIVE_USERXATTR, lowers_unknown="nobody knows them"
    )
    selection = Selection(exclude=parse_patterns("data,!**/*.csv", "exclude"))

    found = [
        (each.path, each.opaque)
        for each in read_changes(overlay, Log("warning", [said]), selection=selection)
    ]

    assert found == [("", False), ("data", True), ("data/a.csv", False)]
    assert said.lines == [
        f"{upper}/data hides all that lay below, selected or not, as it was replaced or renamed: nobody knows them"
    ]


class Kept:
    """A log sink that keeps messages."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def write(self, level: str, message: str) -> None:
        self.lines.append(message)


# Caches


def tag(directory: Path, text: str = f"{SIGNATURE}\n# made by a test\n") -> None:
    (directory / "CACHEDIR.TAG").write_text(text)


@copy_only
def test_of_a_cache_only_the_tag_is_saved(used: Saver) -> None:
    def make_caches(root: Path) -> None:
        tag(root / "cache")
        tag(root / "log", f"not {SIGNATURE}")
        os.symlink("../cache/CACHEDIR.TAG", root / "data/CACHEDIR.TAG")

    used.overlay.change(make_caches)

    result = used.run(exclude_caches="true", exclude="new")

    assert result.status == 0, result.stderr
    assert saved(used) == {
        "cache/CACHEDIR.TAG",
        *("log/CACHEDIR.TAG", "log/-below", "log/new"),
        *("data/CACHEDIR.TAG", "data/a.csv", "data/new"),
    }
    used.archive.rename(used.out / "first")
    assert used.run(exclude_caches="false", exclude="data").status == 0
    assert "cache/new" in saved(used)


@copy_only
def test_a_tag_counts_where_the_container_saw_it(used: Saver) -> None:
    used.overlay.layer(lambda root: each(tag, root, "cache", "data", "log"))

    def hide_tags(root: Path) -> None:
        (root / "data/CACHEDIR.TAG").unlink()
        shutil.rmtree(root / "log")
        (root / "log").mkdir()
        (root / "log/new").write_text("new")
        (root / "cache/CACHEDIR.TAG").chmod(0o600)

    used.overlay.change(hide_tags, again=True)

    result = used.run(exclude_caches="true")

    assert result.status == 0, result.stderr
    names = saved(used)
    assert {"data/new", "log/new", "new"} <= names
    assert {name for name in names if name.startswith("cache")} <= {"cache/CACHEDIR.TAG"}


# Histories


def again(saver: Saver, **keys: Any) -> hooks.Result:
    """Run the hook at one and the same start of the container."""
    return stop(saver, before=partial(os.utime, saver.directory / "bundle" / "config.json", (1, 1)), **keys)


@oci_only
def test_a_revision_says_how_much_was_left_out(changed: Saver) -> None:
    again(changed, exclude="cache,log")

    (said,) = json.loads(history.output_of("log", "--json", f"{changed.archive}:latest"))
    assert (said["entries"], said["excluded"]) == (4, 2)


@oci_only
def test_what_is_excluded_alone_is_no_change(changed: Saver) -> None:
    result = again(changed, exclude="*")

    assert "as no layer, because nothing was changed," in result.stderr
    assert not (changed.archive / "index.json").exists()


@oci_only
def test_other_patterns_at_the_next_archive_delete_nothing(changed: Saver) -> None:
    """What an earlier revision has of the same upperdir stays, if it is left out from now on."""
    again(changed)
    changed.overlay.change(lambda root: each(Path.unlink, root, "cache/a.csv", "log/new", "new"))

    again(changed, exclude="cache,!cache/*.csv,log")

    assert saved(changed) == {"-new", "cache/-a.csv"}
    again(changed, exclude="")
    assert saved(changed) == {"log/-new"}
