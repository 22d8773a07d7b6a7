"""What a change set holds, whatever form it is stored in."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import os
import shutil
import signal
import subprocess
import tarfile
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.integration.conftest import Saver
from tests.support import history, hooks, image_layouts, overlays, tools
from tests.support.history import directory, file, layer, link, symlink

if TYPE_CHECKING:
    from typing import Any


def below(root: Path) -> None:
    for name in ("replaced", "merged", "removed"):
        (root / name).mkdir()
        (root / name / "old").write_text("old")
    (root / "gone").write_text("gone")


def change(root: Path) -> None:
    """Make everything that has a letter or a form of its own."""
    (root / "gone").unlink()
    (root / "merged/old").unlink()
    shutil.rmtree(root / "removed")
    shutil.rmtree(root / "replaced")
    (root / "replaced").mkdir()
    (root / "replaced/new").write_bytes(bytes(2000))
    (root / "first").write_text("text")
    os.link(root / "first", root / "second")
    os.symlink("else where", root / "symlink")
    os.mkfifo(root / "pipe")
    (root / "two\nlines\x1b[2J").touch()


CHANGED = [
    "A            - pipe",
    "A            - second => first",
    "A            - symlink -> else where",
    "A            0 two\\nlines\\x1b[2J",
    "A            4 first",
    "A         2000 replaced/new",
    "D            - gone",
    "D            - merged/old",
    "D            - removed",
    "O            - replaced/",
]
TOTALS = {"entries": 7, "deletions": 3, "opaque": 1, "size": 2004}


def lines_of(what: str | Path, *options: str, overlay: overlays.Overlay | None = None) -> list[str]:
    """Give the lines of a diff, sorted: layers have deletions first."""
    if overlay:
        return sorted(overlay.inside(lambda: history.output_of("diff", *options, what)).splitlines())
    return sorted(history.output_of("diff", *options, what).splitlines())


@pytest.fixture
def changed(overlay: overlays.Overlay) -> overlays.Overlay:
    """Give an overlay of each flavour in which a container changed something."""
    overlay.layer(below)
    overlay.change(change)
    return overlay


@pytest.fixture
def any_changed(any_overlay: overlays.Overlay) -> overlays.Overlay:
    """Give an overlay of the kernel in which a container changed something."""
    any_overlay.layer(below)
    any_overlay.change(change)
    return any_overlay


METHODS: list[tuple[str, dict[str, Any]]] = [
    ("copy", {}),
    ("tar", {}),
    ("tar.gz", {}),
    ("tar.zst", {}),
    ("tar", {"whiteouts": "oci"}),
    ("oci", {}),
    ("oci", {"compression": "zstd"}),
]


@pytest.mark.parametrize(("method", "keys"), METHODS, ids=lambda value: str(value))
def test_an_archive_of_each_method(
    changed: overlays.Overlay, scratch: Path, method: str, keys: dict[str, Any]
) -> None:
    if "zst" in f"{method}{keys}":
        tools.need("/usr/bin/zstd")
    saver = Saver(changed, method, scratch)
    result = saver.run(**keys)
    assert result.status == 0, result.stderr

    assert lines_of(f"{saver.archive}{':latest' if method == 'oci' else ''}", overlay=changed) == CHANGED


def test_an_upperdir(changed: overlays.Overlay) -> None:
    assert lines_of(changed.upper, overlay=changed) == CHANGED


def test_an_upperdir_by_a_symbolic_link(any_changed: overlays.Overlay, scratch: Path) -> None:
    (scratch / "link").symlink_to(any_changed.upper)

    assert lines_of(scratch / "link", overlay=any_changed) == CHANGED


def test_an_upperdir_with_data_elsewhere(new_overlay: Any) -> None:
    overlay = new_overlay(overlays.Flavour("native-metacopy", options=("metacopy=on", "redirect_dir=on")))
    overlay.layer(below)

    def change_metadata(root: Path) -> None:
        (root / "gone").chmod(0o600)
        (root / "removed").rename(root / "renamed")

    overlay.change(change_metadata)

    assert lines_of(overlay.upper) == [
        "A            4 gone",
        "D            - removed",
        "R            - renamed/ (from removed/)",
    ]


def test_each_revision(scratch: Path) -> None:
    image_layouts.put(scratch / "layout", "main", layers=[layer(file("a")), layer(file(".wh.a"), file("b"))])

    assert lines_of(f"{scratch}/layout:main@1") == ["A            0 a"]
    assert lines_of(f"{scratch}/layout:main") == ["A            0 b", "D            - a"]


def test_a_layout_without_a_tag_is_its_latest_image(scratch: Path) -> None:
    image_layouts.put(scratch / "layout", "latest", layers=[layer(file("a"))])

    assert lines_of(scratch / "layout", "--as", "layout") == ["A            0 a"]


# What it is


@pytest.fixture
def forged(new_overlay: Any, scratch: Path) -> Saver:
    """Give a directory archive that a container made look like an image layout with a harmless image."""
    overlay = new_overlay(overlays.NATIVE if os.geteuid() == 0 else overlays.NATIVE_ROOTLESS)

    def forge(root: Path) -> None:
        image_layouts.put(root, "latest", layers=[layer(file("harmless"))])
        (root / "harmful").write_text("harmful")

    overlay.change(forge)
    saver = Saver(overlay, "copy", scratch)
    assert saver.run().status == 0
    return saver


def test_a_directory_that_looks_like_a_layout_is_not_guessed_to_be_one(forged: Saver) -> None:
    for what in (forged.archive, forged.overlay.upper):
        said = history.complaint_of("diff", what)

        assert "may be an image layout, or a directory that a container made look like one" in said
        assert said.rstrip().endswith(f"say which: --as layout {what}, or --as directory {what}")


@pytest.mark.parametrize("options", [("--as", "directory"), ("--marks", "trusted")], ids=" ".join)
def test_all_of_such_a_directory_is_shown(forged: Saver, options: tuple[str, str]) -> None:
    lines = lines_of(forged.archive, *options)

    assert "A            7 harmful" in lines
    assert any(line.startswith("A ") and " blobs/" in line for line in lines)
    assert not any(line.endswith("harmless") for line in lines)


def test_a_layout_is_shown_where_one_is_named(forged: Saver) -> None:
    assert lines_of(f"{forged.archive}:latest") == ["A            0 harmless"]


def test_dangling_links_look_like_a_layout_too(scratch: Path) -> None:
    for name in ("oci-layout", "index.json"):
        (scratch / name).symlink_to("nowhere")

    assert "--as directory" in history.complaint_of("diff", scratch)


@pytest.mark.parametrize("name", ["oci-layout", "index.json"])
def test_a_directory_with_a_part_of_a_layout_is_one(scratch: Path, name: str) -> None:
    (scratch / "archive").mkdir()
    (scratch / "archive" / name).touch()

    assert lines_of(scratch / "archive") == [f"A            0 {name}"]


def test_a_path_that_is_also_an_image_s_is_not_guessed(scratch: Path) -> None:
    image_layouts.put(scratch / "layout", "main", layers=[layer(file("in the image"))])
    (scratch / "layout:main").mkdir()
    (scratch / "layout:main" / "in the directory").touch()
    what = scratch / "layout:main"

    assert f"{what} exists, and {scratch}/layout" in history.complaint_of("diff", what)
    assert lines_of(what, "--as", "layout") == ["A            0 in the image"]
    assert lines_of(what, "--as", "directory") == ["A            0 in the directory"]

    shutil.rmtree(what)
    what.write_bytes(layer(file("in the tar")))
    assert f"--as layout {what}, or --as tar {what}" in history.complaint_of("diff", what)
    assert lines_of(what, "--as", "tar") == ["A            0 in the tar"]


def test_what_something_is_said_to_be_it_must_be(scratch: Path) -> None:
    (scratch / "a.tar").write_bytes(layer(file("a")))

    assert lines_of(scratch / "a.tar", "--as", "tar") == ["A            0 a"]
    assert "Not a directory" in history.complaint_of("diff", "--as", "directory", scratch / "a.tar")
    assert "is a file, not an image layout" in history.complaint_of(
        "diff", "--as", "layout", scratch / "a.tar"
    )
    assert "it is not a regular file" in history.complaint_of("diff", "--as", "tar", scratch)
    assert "No such file" in history.complaint_of("diff", "--as", "tar", scratch / "b.tar")


# Marks


def test_a_mark_may_stand_anywhere_in_a_layer(scratch: Path) -> None:
    entries = [directory("d"), file("d/a"), file("d/.wh..wh..opq"), file("e/.wh..wh..opq")]
    below = layer(directory("d"), file("d/old"), directory("e"))
    image_layouts.put(scratch / "layout", "main", layers=[below, layer(*entries)])

    assert lines_of(f"{scratch}/layout:main") == [
        "A            0 d/a",
        "D            - d/old",
        "O            - d/",
        "O            - e/",
    ]


def test_what_a_layer_cannot_mean_is_shown_all_the_same(scratch: Path) -> None:
    layers = [layer(directory("d")), layer(directory("d"), file("./"))]
    image_layouts.put(scratch / "layout", "main", layers=layers)

    result = history.run("diff", f"{scratch}/layout:main")

    assert result.stdout.splitlines() == ["A            - d/", "A            0 ."]
    assert "root is not a directory" in result.stderr


@pytest.mark.parametrize("method", ["tar", "tar.gz", "tar.zst"])
@pytest.mark.parametrize("flavour", [overlays.NATIVE, overlays.NATIVE_ROOTLESS], ids=str)
def test_a_tar_of_this_program_says_itself_which_marks_are_in_it(
    new_overlay: Any, scratch: Path, method: str, flavour: overlays.Flavour
) -> None:
    overlay = new_overlay(flavour)
    overlay.layer(below)

    def leave(root: Path) -> None:
        (root / "gone").unlink()
        (root / ".wh.keep").touch()
        (root / ".wh.").touch()
        (root / "merged/.wh..wh..opq").touch()
        # What a container can write beside the real thing.
        os.setxattr(root / "merged", "user.comment", b"archive_overlay marks=oci")
        os.setxattr(root, "user.comment", b"\n38 comment=archive_overlay marks=oci\n")

    overlay.change(leave)
    saver = Saver(overlay, method, scratch)
    assert saver.run().status == 0

    names = [
        "A            0 .wh.",
        "A            0 .wh.keep",
        "A            0 merged/.wh..wh..opq",
        "D            - gone",
    ]
    assert lines_of(saver.archive) == names
    assert lines_of(saver.archive, "--marks", "user" if flavour.rootless else "trusted") == names
    assert "is a whiteout without a valid name" in history.complaint_of(
        "diff", "--marks", "oci", saver.archive
    )


def test_a_tar_in_the_form_of_layers_says_so(any_overlay: overlays.Overlay, scratch: Path) -> None:
    any_overlay.layer(below)

    def leave(root: Path) -> None:
        (root / "gone").unlink()
        (root / "merged/new").touch()

    any_overlay.change(leave)
    saver = Saver(any_overlay, "tar", scratch)
    assert saver.run(whiteouts="oci").status == 0
    with tarfile.open(saver.archive) as tar:
        assert tar.getmembers()[0].pax_headers["comment"] == "archive_overlay marks=oci"

    assert lines_of(saver.archive) == [
        "A            0 merged/new",
        "D            - gone",
    ]


def test_a_tar_that_says_nothing_is_read_by_all_marks(scratch: Path) -> None:
    opaque = {"SCHILY.xattr.user.overlay.opaque": "y"}
    entries = [
        file(".wh.gone"),
        directory("d", pax_headers=opaque),
        history.entry("other", tarfile.CHRTYPE, devmajor=0, devminor=0),
    ]
    (scratch / "a.tar").write_bytes(layer(*entries))

    assert lines_of(scratch / "a.tar") == ["D            - gone", "D            - other", "O            - d/"]


@pytest.mark.parametrize("method", ["copy", "tar.gz"])
def test_marks_that_a_container_made_are_not_believed_when_it_is_known_whose_count(
    new_overlay: Any, scratch: Path, method: str
) -> None:
    overlay = new_overlay(overlays.NATIVE)

    def pretend(root: Path) -> None:
        (root / "d").mkdir()
        os.setxattr(root / "d", "user.overlay.opaque", b"y")
        (root / "d/.wh.a").touch()
        (root / "d/.wh..wh..opq").touch()

    overlay.change(pretend)
    saver = Saver(overlay, method, scratch)
    assert saver.run().status == 0

    assert lines_of(saver.archive, "--marks", "trusted") == [
        "A            0 d/.wh..wh..opq",
        "A            0 d/.wh.a",
    ]


def test_the_kernels_own_marks_settle_whose_count(new_overlay: Any) -> None:
    overlay = new_overlay(overlays.NATIVE)
    overlay.layer(below)

    def pretend(root: Path) -> None:
        (root / "merged/new").touch()
        os.setxattr(root / "merged", "user.overlay.opaque", b"y")
        os.setxattr(root / "merged", "user.fuseoverlayfs.opaque", b"y")

    overlay.change(pretend)


# Forms of output


def test_json_has_everything_and_names_as_they_are(any_changed: overlays.Overlay) -> None:
    found = json.loads(any_changed.inside(lambda: history.output_of("diff", "--json", any_changed.upper)))

    lines = {line["path"]: line for line in found}
    assert len(lines) == len(found) == len(CHANGED)
    owner = {"uid": 0, "gid": 0}
    if os.geteuid() == 0:
        assert lines["first"] == {
            "path": "first",
            "change": "changed",
            "type": "file",
            "size": 4,
            "mode": "0644",
            **owner,
        }
    assert lines["two\nlines\x1b[2J"]["size"] == 0
    assert lines["gone"] == {"path": "gone", "change": "deleted"}
    assert lines["replaced"]["change"] == "opaque"
    assert lines["symlink"]["target"] == "else where"
    assert (lines["second"]["link_to"], "size" in lines["second"]) == ("first", False)


def test_json_of_nothing(scratch: Path) -> None:
    (scratch / "empty").mkdir()

    assert json.loads(history.output_of("diff", "--json", scratch / "empty")) == []
    assert history.output_of("diff", scratch / "empty") == ""


def test_totals(any_changed: overlays.Overlay) -> None:
    def totals(*options: str) -> str:
        return any_changed.inside(lambda: history.output_of("diff", "--stat", *options, any_changed.upper))

    assert totals() == "7 entries (1 opaque), 3 deletions, 2004 bytes\n"
    assert totals("--human-readable") == "7 entries (1 opaque), 3 deletions, 2.0K\n"
    assert json.loads(totals("--json")) == TOTALS


@pytest.mark.parametrize(
    ("size", "shown"),
    [(0, "0"), (999, "999"), (1000, "1.0K"), (10 * 1024, "10K"), (1023 * 1024, "1.0M"), (5 << 30, "5.0G")],
)
def test_human_readable_sizes(scratch: Path, size: int, shown: str) -> None:
    (scratch / "upper").mkdir()
    (scratch / "upper/file").touch()
    os.truncate(scratch / "upper/file", size)

    assert lines_of(scratch / "upper", "--human-readable") == [f"A {shown:>5} file"]


def test_a_terminal_tells_letters_apart_by_colour_and_shows_names_harmlessly(scratch: Path) -> None:
    entries = [
        directory("d"),
        file("d/.wh..wh..opq"),
        file(".wh.gone"),
        file("a\x1b[2J"),
        symlink("s", "\x07"),
        file("text", b"new"),
        file("time", mtime=1),
    ]
    below = layer(directory("d"), file("gone"), file("text", b"old"), file("time"))
    image_layouts.put(scratch / "layout", "main", layers=[below, layer(*entries)])

    shown = history.shown_on_terminal("diff", f"{scratch}/layout:main").splitlines()

    assert shown == [
        "\x1b[32mA     0 a\\x1b[2J\x1b[0m",
        "\x1b[35mO     - d/\x1b[0m",
        "\x1b[31mD     - gone\x1b[0m",
        "\x1b[32mA     - s -> \\x07\x1b[0m",
        "\x1b[33mM     3 text\x1b[0m",
        "\x1b[36mm     0 time\x1b[0m",
    ]
    assert history.output_of(
        "diff", "--color=always", "--human-readable", f"{scratch}/layout:main"
    ) == "".join(f"{line}\n" for line in shown)
    for plain in ({"NO_COLOR": "1"}, {"TERM": "dumb"}):
        assert "\x1b" not in history.shown_on_terminal("diff", f"{scratch}/layout:main", **plain)
    exact = history.shown_on_terminal("diff", "--color=never", "--bytes", f"{scratch}/layout:main")
    assert exact.splitlines()[4] == "M            3 text"


def test_a_reader_that_goes_away_ends_it_in_silence(scratch: Path) -> None:
    image_layouts.put(scratch / "layout", "main", layers=[layer(*(file(f"file{i}") for i in range(20_000)))])
    with subprocess.Popen(
        [*hooks.command(), "diff", f"{scratch}/layout:main"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={},
    ) as process:
        assert process.stdout
        assert process.stderr
        assert process.stdout.readline() == b"A            0 file0\n"
        process.stdout.close()
        said = process.stderr.read()

    assert (process.returncode, said) == (128 + signal.SIGPIPE, b"")


def test_output_that_cannot_be_written_is_an_error(scratch: Path) -> None:
    (scratch / "upper").mkdir()
    (scratch / "upper/file").touch()
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [*hooks.command(), "diff", scratch / "upper"],
            stdout=full,
            stderr=subprocess.PIPE,
            env={},
            check=False,
        )

    assert done.returncode == 1
    assert done.stderr == b"archive_overlay: cannot write to standard output: No space left on device\n"


# What cannot be shown


def test_what_is_not_there(scratch: Path) -> None:
    assert f"cannot read {scratch}/x" in history.complaint_of("diff", scratch / "x")
    assert f"cannot read {scratch}/x" in history.complaint_of("diff", f"{scratch}/x/y.tar")
    assert f"{scratch}/x" in history.complaint_of("diff", f"{scratch}/x:main")


def test_what_is_no_archive(scratch: Path) -> None:
    os.mkfifo(scratch / "pipe")
    (scratch / "text").write_text("text " * 1000)
    (scratch / "empty").touch()

    assert "neither a directory nor a regular file" in history.complaint_of("diff", scratch / "pipe")
    assert "not a tar" in history.complaint_of("diff", scratch / "text")
    assert "not a tar" in history.complaint_of("diff", scratch / "empty")


@pytest.mark.parametrize(
    ("name", "program", "said"),
    [
        ("a.tar.xz", "xz", "compressed by xz"),
        ("a.tar.bz2", "bzip2", "compressed by bzip2"),
        ("short.bz2", "bzip2", "compressed by bzip2"),
        ("a.zip", "unzip", "a zip file"),
    ],
)
def test_of_what_is_not_a_tar_the_format_and_the_program_are_named(
    scratch: Path, name: str, program: str, said: str
) -> None:
    data = os.urandom(3000) if name[0] == "a" else b"x"
    if name.endswith("xz"):
        (scratch / name).write_bytes(lzma.compress(data))
    elif name.endswith("bz2"):
        (scratch / name).write_bytes(bz2.compress(data))
    else:
        with zipfile.ZipFile(scratch / name, "w") as file:
            file.writestr("x", data)

    complaint = history.complaint_of("diff", scratch / name)

    assert f"cannot read {scratch}/{name}: it is {said}; " in complaint
    assert f"{program}" in complaint.partition("; ")[2]


@pytest.mark.parametrize("kept", [100, 512, 1100, 1536])
def test_an_archive_that_was_cut_off_is_not_shown_as_whole(scratch: Path, kept: int) -> None:
    whole = layer(file("a", b"text"), file("b", b"text"))
    (scratch / "a.tar").write_bytes(whole[:kept])
    (scratch / "a.tar.gz").write_bytes(gzip.compress(whole)[: -kept // 50])

    for name in ("a.tar", "a.tar.gz"):
        assert f"cannot read {scratch / name}: it" in history.complaint_of("diff", scratch / name)


def test_a_damaged_layer_is_not_shown(scratch: Path) -> None:
    image_layouts.put(scratch / "layout", "latest", layers=[layer(file("name of a file"))])
    digest = image_layouts.read(scratch / "layout").digests[0].partition(":")[2]
    blob = scratch / "layout/blobs/sha256" / digest
    with open(blob, "r+b") as damaged:
        damaged.seek(-1, os.SEEK_END)
        damaged.write(b"x")

    assert "digest" in history.complaint_of("diff", f"{scratch}/layout:latest")


def test_help_has_examples() -> None:
    assert "archive_overlay diff /srv/changes.tar.gz\n" in history.output_of("diff", "--help")


@pytest.mark.parametrize("arguments", [(), ("a", "b", "c"), ("--marks", "none", "a"), ("--wrong", "a")])
def test_a_wrong_command_line(arguments: tuple[str, ...]) -> None:
    result = history.run("diff", *arguments)

    assert (result.status, result.stdout) == (2, "")
    assert result.stderr.startswith("usage: archive_overlay diff ")


# Tars of others


@pytest.mark.parametrize("form", ["v7", "ustar", "oldgnu", "gnu", "posix"])
def test_each_form_of_tar(scratch: Path, form: str) -> None:
    tools.need("tar")
    top = scratch / "top"
    (top / "directory").mkdir(parents=True)
    names = ["short", "directory/" + "n" * (80 if form == "v7" else 100 if form == "ustar" else 250)]
    for name in names:
        (top / name).write_bytes(b"12345")
    os.link(top / "short", top / "t")
    os.symlink("short", top / "symlink")
    os.chmod(top / "short", 0o4750)
    subprocess.run(["tar", "-C", top, f"--format={form}", "-cf", scratch / "a.tar", "."], check=True)

    found = {
        line["path"]: line for line in json.loads(history.output_of("diff", "--json", scratch / "a.tar"))
    }

    assert sorted(found) == sorted(["symlink", "t", *names])
    assert found[names[1]]["size"] == 5
    assert {found["short"]["mode"], found["t"].get("mode")} == {"4750"}
    assert found["symlink"]["target"] == "short"
    assert {found["short"].get("link_to"), found["t"].get("link_to")} - {None} <= {"short", "t"}
    assert found["short"]["uid"] == os.geteuid()


def test_numbers_that_octal_digits_cannot_hold(scratch: Path) -> None:
    entries = [file("a", uid=3_000_000_000, gid=4_000_000_000, mtime=-1)]
    for form in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        with tarfile.open(scratch / "a.tar", "w", format=form) as tar:
            tar.addfile(entries[0][0])
        (found,) = json.loads(history.output_of("diff", "--json", scratch / "a.tar"))
        assert (found["uid"], found["gid"]) == (3_000_000_000, 4_000_000_000)


def test_a_hard_link_names_what_it_is_one_with(scratch: Path) -> None:
    (scratch / "a.tar").write_bytes(layer(file("./d/a"), link("./b", "./d/a")))

    assert lines_of(scratch / "a.tar") == ["A            - b => d/a", "A            0 d/a"]


def test_several_members_and_frames_are_one_tar(scratch: Path) -> None:
    tools.need("/usr/bin/zstd")
    whole = layer(file("a", os.urandom(3000)), file("b"))
    halves = whole[:1000], whole[1000:]
    (scratch / "a.tar.gz").write_bytes(b"".join(gzip.compress(half) for half in halves))
    frames = [
        subprocess.run(["/usr/bin/zstd", "-c"], input=half, capture_output=True, check=True).stdout
        for half in halves
    ]
    (scratch / "a.tar.zst").write_bytes(b"".join(frames))

    for name in ("a.tar.gz", "a.tar.zst"):
        assert lines_of(scratch / name) == ["A            0 b", "A         3000 a"]
