"""The method `move`: the upperdir itself becomes the archive, where it stands on its own."""

from __future__ import annotations

import dataclasses
import os
import shutil
import signal
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.integration.conftest import Saver, expect_equal
from tests.support import faults, hooks, overlays, tools, trees
from tests.support.overlays import Flavour

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any, Callable

    from tests.integration.conftest import NewOverlay

pytestmark = pytest.mark.parametrize("method", ["move"])

METACOPY = Flavour("metacopy", options=("metacopy=on",))
REDIRECT = Flavour("redirect", options=("redirect_dir=on",))
INDEX = Flavour("index", options=("index=on",))
NEITHER = Flavour("neither", options=("metacopy=off", "redirect_dir=nofollow", "index=off"))

# What the hook says when it does the work of `copy`.
COPIED = "is copied, not moved"


def below(root: Path) -> None:
    (root / "gone").write_text("below")
    (root / "file").write_text("below")
    (root / "other name").write_text("below")
    os.link(root / "other name", root / "one name")
    (root / "directory").mkdir()
    (root / "directory" / "below").write_text("below")
    (root / "replaced").mkdir()
    (root / "replaced" / "below").write_text("below")


def change(root: Path) -> None:
    (root / "gone").unlink()
    (root / "file").write_text("above")
    (root / "new").write_text("above")
    os.link(root / "new", root / "directory" / "link")
    os.setxattr(root / "new", "user.colour", b"red")
    shutil.rmtree(root / "replaced")
    (root / "replaced").mkdir()
    (root / "replaced" / "new").symlink_to("new")
    os.setxattr(root, "user.of the root", b"value")
    root.chmod(0o2751)
    os.utime(root, ns=(10**18, 1_234_567_890_123_456_789))


@pytest.fixture
def changed(any_saver: Saver) -> Saver:
    """Give an overlay that a container has changed."""
    any_saver.overlay.layer(below)
    any_saver.overlay.change(change)
    return any_saver


def view_of_upper(saver: Saver, tree: Path | None = None) -> trees.View:
    """View a tree as it is on disk: the upperdir by default."""
    return saver.overlay.inside(lambda: trees.view(tree or saver.overlay.upper))


def mount_with_options(saver: Saver) -> dict[str, Any]:
    """Give the spec's mount with all options of the flavour."""
    mount = saver.overlay.spec_mount()
    mount["options"] += saver.overlay.flavour.options
    return mount


def expect_copied(saver: Saver, reason: str) -> None:
    """Save, and hold that the work of `copy` was done, for a reason that is said."""
    inode = saver.overlay.upper.stat().st_ino

    result = saver.expect_the_same(mounts=[mount_with_options(saver)])

    (said,) = [message for message in result.messages("info") if COPIED in message]
    assert str(saver.overlay.upper) in said
    assert reason in said
    assert saver.overlay.upper.stat().st_ino == inode
    assert saver.archive.stat().st_ino != inode


# The upperdir itself


def test_the_upperdir_is_the_archive_as_it_was(changed: Saver) -> None:
    before = view_of_upper(changed)
    inodes = {path.name: path.lstat().st_ino for path in changed.overlay.upper.rglob("*")}

    result = changed.run()

    assert result.status == 0, result.stderr
    expect_equal(before, view_of_upper(changed, changed.archive))
    assert {path.name: path.lstat().st_ino for path in changed.archive.rglob("*")} == inodes


def test_an_empty_twin_takes_the_place_of_the_upperdir(changed: Saver) -> None:
    upper = changed.overlay.upper
    before = view_of_upper(changed).entries[trees.TOP]
    identity = upper.stat().st_ino

    result = changed.run()

    assert result.status == 0, result.stderr
    after = view_of_upper(changed).entries
    # Its time tells it from an upperdir in which a container changed nothing.
    twin = dataclasses.replace(before, mtime_ns=after[trees.TOP].mtime_ns)
    assert after == {trees.TOP: twin}
    assert twin.mtime_ns != before.mtime_ns
    assert upper.stat().st_ino != identity


def test_the_twin_has_the_owner_of_the_upperdir(changed: Saver) -> None:
    if changed.overlay.namespace.owners == 1:
        tools.cannot_run("an ordinary user's namespace has one owner")
    changed.overlay.inside(lambda: os.chown(changed.overlay.upper, 12, 34))

    result = changed.run()

    assert result.status == 0, result.stderr
    twin = changed.overlay.upper.stat()
    assert (twin.st_uid, twin.st_gid) == (12, 34)


def test_the_overlay_can_be_mounted_again(changed: Saver) -> None:
    result = changed.run()

    assert result.status == 0, result.stderr
    names = {b"gone", b"file", b"directory/below", b"replaced/below"}
    assert names <= changed.overlay.view().entries.keys()


def test_the_summary_says_what_was_done(changed: Saver) -> None:
    (said,) = changed.run().messages("info")

    assert said.startswith(f"archive data: saved the upperdir of /data to {changed.archive} by move in ")


@pytest.mark.parametrize("name", ["link", "upper/"])
def test_an_upperdir_that_is_named_in_another_way(changed: Saver, name: str) -> None:
    upper = changed.overlay.upper
    inode = upper.stat().st_ino
    (upper.parent / "link").symlink_to("upper")
    mount = changed.overlay.spec_mount()
    mount["options"] = [
        f"upperdir={upper.parent}/{name}" if option.startswith("upperdir=") else option
        for option in mount["options"]
    ]

    result = changed.run(mounts=[mount])

    assert result.status == 0, result.stderr
    assert changed.archive.lstat().st_ino == inode
    assert os.listdir(upper) == []


# What it costs


def hook(saver: Saver, executable: Path) -> faults.Hook:
    """Give the hook for strace, which sees no further than root's namespaces."""
    tools.need("strace", "unshare")
    tools.need_root()
    bundle = hooks.Bundle(
        saver.directory / "bundle", mounts=[saver.overlay.spec_mount()], annotations=saver.asks()
    )
    scratch = saver.directory / "scratch"
    scratch.mkdir(exist_ok=True)
    return faults.Hook(executable, bundle, saver.directory, scratch)


def test_nothing_in_the_upperdir_is_looked_at(changed: Saver, executable: Path) -> None:
    calls = faults.trace(hook(changed, executable), only="all")

    work = "\n".join(call.text for call in calls)
    assert "syncfs" in work, "strace has not seen the work"
    for path in trees.names(changed.archive) - {trees.TOP}:
        assert f'"{os.path.basename(path).decode()}"' not in work
    assert not {"copy_file_range", "sendfile"} & {call.name for call in calls}


def test_its_system_calls_are_the_same_whatever_the_size(any_saver: Saver, executable: Path) -> None:
    work = []
    for entries in (10, 10_000):
        any_saver.overlay.change(filler(entries))
        work.append([call.text for call in faults.failing_calls(hook(any_saver, executable))])
        assert len(os.listdir(any_saver.archive)) == entries
        overlays.remove(any_saver.archive)
        any_saver.success.unlink()

    few, many = work
    assert few == many


def filler(entries: int) -> Callable[[Path], None]:
    """Give what makes files in the top directory."""

    def fill(root: Path) -> None:
        for number in range(entries):
            (root / f"{number}").touch()

    return fill


def test_it_is_on_disk_before_it_is_at_the_destination(changed: Saver, executable: Path) -> None:
    calls = [call.text for call in faults.trace(hook(changed, executable), only="all")]

    steps = (
        ("rename", '"upper"', '"archive"'),  # out of the engine's way
        ("mkdir", '"upper"'),
        ("syncfs",),
        ("rename", '"archive"'),  # to the destination
        ("fsync",),
        ("open", '"success"', "O_CREAT"),
        ("fsync",),
    )
    rest = iter(calls)
    for step in steps:
        assert any(text.startswith(step[0]) and all(part in text for part in step) for text in rest), step


# What goes wrong


def test_a_failure_after_the_renaming_gives_the_upperdir_back(changed: Saver, executable: Path) -> None:
    subject = hook(changed, executable)
    spare = changed.directory / "spare"
    subprocess.run(["cp", "--archive", changed.overlay.upper, spare], check=True)
    before = view_of_upper(changed)
    calls = faults.failing_calls(subject)
    taken = next(
        index for index, call in enumerate(calls) if '"upper"' in call.text and "rename" in call.name
    )
    placed = next(index for index, call in enumerate(calls) if call.name == "renameat2" and index > taken)
    tried, wrong = [], []
    for call in calls[taken + 1 : placed + 1]:
        if call.name in ("close", "fstat", "newfstatat", "lseek"):
            continue  # they fail in no way that the kernel knows
        put_back(changed, spare)
        outcome = faults.fail(subject, call)
        tried.append(call.name)
        if outcome.status != 1 or os.listdir(changed.out) or view_of_upper(changed) != before:
            wrong.append(f"{call}: {outcome}, {os.listdir(changed.out)}")

    assert {"mkdirat", "syncfs", "renameat2"} <= {*tried} or {"mkdir", "syncfs", "renameat2"} <= {*tried}
    assert not wrong, "\n".join(wrong)


def put_back(saver: Saver, spare: Path) -> None:
    """Let the container have made its changes anew."""
    for path in (saver.overlay.upper, *saver.out.iterdir()):
        overlays.remove(path)
    subprocess.run(["cp", "--archive", spare, saver.overlay.upper], check=True)
    saver.success.unlink(missing_ok=True)


def test_a_signal_after_the_renaming_gives_the_upperdir_back(changed: Saver, executable: Path) -> None:
    subject = hook(changed, executable)
    spare = changed.directory / "spare"
    subprocess.run(["cp", "--archive", changed.overlay.upper, spare], check=True)
    before = view_of_upper(changed)
    calls = faults.changing_calls(subject)
    put_back(changed, spare)
    flushed = next(index for index, call in enumerate(calls) if call.name == "syncfs")

    outcome = faults.send(subject, calls, flushed, signal.SIGTERM)

    assert outcome.status == 128 + signal.SIGTERM
    expect_equal(before, view_of_upper(changed))
    assert os.listdir(changed.out) == []
    assert not changed.success.exists()


# Where it is not possible


@pytest.mark.parametrize("overlay", [overlays.FUSE, overlays.FUSE_ROOTLESS], indirect=True)
def test_what_fuse_overlayfs_serves_is_copied(saver: Saver) -> None:
    saver.overlay.layer(below)
    saver.overlay.change(change)

    expect_copied(saver, "fuse-overlayfs")


@pytest.mark.parametrize("overlay", [METACOPY, REDIRECT], indirect=True)
def test_what_may_refer_to_lower_layers_is_copied(saver: Saver) -> None:
    def refer(root: Path) -> None:
        (root / "one name").chmod(0o640)
        (root / "directory").rename(root / "renamed")

    saver.overlay.layer(below)
    saver.overlay.change(refer)

    expect_copied(saver, "lower layers")


@pytest.mark.parametrize("overlay", [overlays.NATIVE], indirect=True)
@pytest.mark.parametrize("parameter", ["metacopy", "redirect_dir"])
def test_what_the_kernel_s_defaults_let_refer_to_lower_layers_is_copied(saver: Saver, parameter: str) -> None:
    saver.overlay.layer(below)
    saver.overlay.change(change)
    before = view_of_upper(saver)

    result = with_kernel_default(saver, parameter)

    assert (result.status, COPIED in result.stderr) == (0, True), result.stderr
    expect_equal(before, view_of_upper(saver))


@pytest.mark.parametrize("overlay", [NEITHER], indirect=True)
@pytest.mark.parametrize("parameter", ["metacopy", "redirect_dir"])
def test_options_count_more_than_the_kernel_s_defaults(saver: Saver, parameter: str) -> None:
    saver.overlay.layer(below)
    saver.overlay.change(change)
    inode = saver.overlay.upper.stat().st_ino

    result = with_kernel_default(saver, parameter, mounts=[mount_with_options(saver)])

    assert (result.status, COPIED in result.stderr) == (0, False), result.stderr
    assert saver.archive.stat().st_ino == inode


@pytest.mark.parametrize("overlay", [overlays.NATIVE_ROOTLESS], indirect=True)
@pytest.mark.parametrize("parameter", ["metacopy", "redirect_dir"])
def test_a_user_namespace_has_no_references_whatever_the_kernel_s_defaults(
    saver: Saver, parameter: str
) -> None:
    saver.overlay.layer(below)
    saver.overlay.change(change)
    inode = saver.overlay.upper.stat().st_ino

    result = with_kernel_default(saver, parameter)

    assert (result.status, COPIED in result.stderr) == (0, False), result.stderr
    assert saver.archive.stat().st_ino == inode


def with_kernel_default(saver: Saver, parameter: str, **keys: Any) -> hooks.Result:
    """Run the hook where a default of the kernel's seems to be on."""
    where = Path("/sys/module/overlay/parameters") / parameter
    if not where.exists():
        tools.cannot_run("overlay is no module of this kernel, or its parameters are hidden")
    on = saver.directory / "on"
    on.write_text("Y\n")

    def run() -> hooks.Result:
        overlays.bind(on, where)
        try:
            return saver.run_here(**keys)
        finally:
            overlays.detach(where)

    return saver.overlay.inside(run)


@pytest.mark.parametrize("overlay", [INDEX], indirect=True)
def test_a_hard_link_that_shows_under_more_names_than_the_upperdir_has_is_not_lost(saver: Saver) -> None:
    def write(root: Path) -> None:
        with (root / "one name").open("a") as file:
            file.write(" and above")

    saver.overlay.layer(below)
    saver.overlay.change(write)
    before = view_of_upper(saver)

    result = saver.run(mounts=[mount_with_options(saver)])

    # `other name` has changed with it, and only the overlay's index knows.
    assert result.status == 1, result.stderr
    assert "one name" in result.only_error()
    expect_equal(before, view_of_upper(saver))
    assert os.listdir(saver.out) == []


@pytest.mark.parametrize("overlay", [overlays.NATIVE, overlays.NATIVE_ROOTLESS], indirect=True)
@pytest.mark.parametrize("other", ["another file system", "another mount of the same"])
def test_it_is_copied_across_mounts(saver: Saver, other: str) -> None:
    saver.overlay.layer(below)
    saver.overlay.change(change)
    left = saver.overlay.view()
    inode = saver.overlay.upper.stat().st_ino
    disk, archive = saver.directory / "disk", saver.directory / "disk" / "archive"
    disk.mkdir()
    if other == "another file system":
        saver.overlay.inside(lambda: overlays.mount_tmpfs(disk, "mode=755"))
        if not saver.overlay.inside(lambda: overlays.holds_upperdirs(disk)):
            tools.cannot_run("no tmpfs that takes whiteouts and extended attributes")
    else:
        saver.overlay.inside(lambda: overlays.bind(saver.out, disk))

    result = saver.run(archive_to=archive)

    assert result.status == 0, result.stderr
    (said,) = [message for message in result.messages("info") if COPIED in message]
    assert "on another file system" in said
    expect_equal(left, saver.overlay.restacked(archive))
    assert saver.overlay.inside(lambda: os.listdir(disk)) == ["archive"]
    assert saver.overlay.upper.stat().st_ino == inode
    saver.overlay.inside(lambda: overlays.detach(disk))


def test_it_is_copied_into_a_mount_point(changed: Saver) -> None:
    left = changed.overlay.view()
    changed.archive.mkdir()
    changed.overlay.inside(lambda: overlays.bind(changed.archive, changed.archive))

    result = changed.run()

    assert (result.status, COPIED in result.stderr) == (0, True), result.stderr
    expect_equal(left, changed.overlay.restacked(changed.archive))
    changed.overlay.inside(lambda: overlays.detach(changed.archive))


# While it is mounted


@pytest.mark.parametrize("overlay", [overlays.NATIVE, overlays.NATIVE_ROOTLESS], indirect=True)
def test_it_is_refused_while_the_overlay_is_mounted(saver: Saver) -> None:
    expect_refused(saver, saver.run)


@pytest.mark.parametrize("overlay", [overlays.NATIVE], indirect=True)
def test_it_is_refused_while_the_overlay_is_mounted_in_another_mount_namespace(saver: Saver) -> None:
    elsewhere = overlays.Namespace(rootless=False)
    try:
        expect_refused(saver, lambda: elsewhere.inside(saver.run_here))
    finally:
        elsewhere.close()


@pytest.mark.parametrize("overlay", [overlays.NATIVE], indirect=True)
def test_it_is_refused_while_another_overlay_is_mounted_on_the_upperdir(saver: Saver) -> None:
    # With another path to the same directory, as the options of a mount by hand may have.
    aside = saver.directory / "aside"
    aside.symlink_to(saver.overlay.upper)
    saver.overlay.layer(below)
    saver.overlay.change(change)
    options = [f"lowerdir={saver.overlay.lowers[0]}", f"upperdir={aside}", f"workdir={saver.overlay.work}"]
    saver.overlay.inside(lambda: overlays.mount_overlay(saver.overlay.merged, options))
    before = view_of_upper(saver)

    result = saver.run()

    assert "still mounted" in result.only_error()
    expect_equal(before, view_of_upper(saver))


@pytest.mark.parametrize("overlay", [overlays.NATIVE], indirect=True)
def test_it_is_refused_while_somebody_still_uses_what_was_unmounted(saver: Saver) -> None:
    saver.overlay.layer(below)
    saver.overlay.mount()
    in_use = os.open(f"{saver.overlay.namespace.root}{saver.overlay.merged}", os.O_RDONLY)
    saver.overlay.inside(lambda: overlays.detach(saver.overlay.merged))
    try:
        refused = saver.run()
    finally:
        os.close(in_use)

    assert "still mounted" in refused.only_error()
    assert saver.run().status == 0


@pytest.mark.parametrize("overlay", [overlays.NATIVE, overlays.NATIVE_ROOTLESS], indirect=True)
def test_nobody_prevents_it_by_a_mount_that_only_has_the_same_path(saver: Saver) -> None:
    saver.overlay.layer(below)
    saver.overlay.change(change)
    inode = saver.overlay.upper.stat().st_ino
    forger = overlays.Namespace(rootless=True)

    def forge() -> None:
        overlays.mount_tmpfs(saver.overlay.directory, "mode=755")
        for made in (saver.overlay.upper, saver.overlay.work, saver.overlay.merged):
            made.mkdir()
        options = [f"lowerdir=/usr,upperdir={saver.overlay.upper},workdir={saver.overlay.work},userxattr"]
        overlays.mount_overlay(saver.overlay.merged, options)

    try:
        forger.inside(forge)
        result = saver.run()
    finally:
        forger.close()

    assert (result.status, COPIED in result.stderr) == (0, False), result.stderr
    assert saver.archive.stat().st_ino == inode


@pytest.mark.parametrize("overlay", [overlays.NATIVE_ROOTLESS], indirect=True)
def test_it_is_copied_by_whom_the_kernel_tells_no_mounts(saver: Saver) -> None:
    saver.overlay.layer(below)
    saver.overlay.change(change)
    left = saver.overlay.view()

    result = saver.run(before=lambda: overlays.give_up_privilege(overlays.CAP_SYS_ADMIN))

    (said,) = [message for message in result.messages("info") if COPIED in message]
    assert "CAP_SYS_ADMIN" in said
    assert result.status == 0, result.stderr
    expect_equal(left, saver.overlay.restacked(saver.archive))


@pytest.mark.parametrize("overlay", [overlays.NATIVE_ROOTLESS], indirect=True)
def test_it_is_copied_by_whom_the_kernel_lets_mount_nothing(saver: Saver) -> None:
    # CAP_SYS_ADMIN in a user namespace says nothing of mounts in a namespace that is not its own.
    saver.overlay.layer(below)
    saver.overlay.change(change)
    left = saver.overlay.view()

    result = saver.run(before=overlays.leave_users)

    (said,) = [message for message in result.messages("info") if COPIED in message]
    assert "permission to mount overlays" in said
    assert result.status == 0, result.stderr
    expect_equal(left, saver.overlay.restacked(saver.archive))


@pytest.fixture
def strangers(new_overlay: NewOverlay) -> Iterator[overlays.Overlay]:
    """Give an overlay that is mounted, and none of the hook's business."""
    made = new_overlay(overlays.NATIVE)
    made.mount()
    yield made
    made.unmount()


def test_an_overlay_whose_upperdir_is_gone_is_somebody_else_s(
    changed: Saver, strangers: overlays.Overlay
) -> None:
    shutil.rmtree(strangers.upper)

    result = changed.run()

    assert result.status == 0, result.stderr
    assert COPIED not in result.stderr


def test_an_overlay_whose_upperdir_vanishes_while_it_is_looked_at_is_somebody_else_s(
    changed: Saver, executable: Path, strangers: overlays.Overlay
) -> None:
    subject = hook(changed, executable)
    inject = "inject=stat,newfstatat,statx:signal=STOP:when=1"

    def run() -> tuple[int, str]:
        with subprocess.Popen(
            ["strace", "-P", strangers.upper, "-e", inject, executable],
            stdin=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={},
        ) as tracer:
            assert tracer.stdin
            assert tracer.stderr
            tracer.stdin.write(subject.bundle.state().decode())
            tracer.stdin.close()
            said = []
            for line in tracer.stderr:
                said.append(line)
                if "stopped by SIGSTOP" in line:
                    shutil.rmtree(strangers.upper)
                    children = Path(f"/proc/{tracer.pid}/task/{tracer.pid}/children").read_text()
                    os.kill(int(children), signal.SIGCONT)
        return tracer.returncode, "".join(said)

    status, said = changed.overlay.inside(run)

    assert status == 0, said
    assert COPIED not in said
    assert not strangers.upper.exists(), said
    assert said.count(str(strangers.upper)) == 1, "one look is enough"


def expect_refused(saver: Saver, run: Callable[[], hooks.Result]) -> None:
    """Hold that nothing is touched while the overlay is mounted, and that it is moved after that."""
    saver.overlay.layer(below)
    saver.overlay.mount()
    saver.overlay.inside(lambda: change(saver.overlay.merged))
    before, inode = view_of_upper(saver), saver.overlay.upper.stat().st_ino
    saver.archive.mkdir()
    (saver.archive / "old").touch()
    saver.success.write_text("of an earlier run")
    old = trees.view(saver.archive)

    result = run()

    error = result.only_error()
    assert result.status == 1
    assert "still mounted" in error
    assert "use method copy" in error
    expect_equal(before, view_of_upper(saver))
    expect_equal(old, trees.view(saver.archive))
    assert os.listdir(saver.out) == ["archive"]
    assert saver.success.read_text() == "of an earlier run"

    saver.overlay.unmount()
    result = run()
    assert result.status == 0, result.stderr
    assert saver.archive.stat().st_ino == inode


# If the destination exists


def names(directory: Path) -> list[str]:
    return sorted(os.listdir(directory))


def test_each_stop_is_kept_by_default(any_saver: Saver) -> None:
    for number in range(3):
        any_saver.overlay.change(filler(number + 1))
        result = any_saver.run()
        assert result.status == 0, result.stderr

    assert names(any_saver.out) == ["archive", "archive.~1~", "archive.~2~"]
    assert names(any_saver.out / "archive.~1~") == ["0"]
    assert names(any_saver.out / "archive.~2~") == ["0", "1"]
    assert names(any_saver.archive) == ["0", "1", "2"]


def test_replace_leaves_nothing_of_the_old_archive(small: Saver) -> None:
    small.archive.mkdir()
    (small.archive / "old").touch()

    result = small.run(if_exists="replace")

    assert (result.status, names(small.archive), names(small.out)) == (0, ["made"], ["archive"]), (
        result.stderr
    )


def test_fail_leaves_the_upperdir_where_it_is(small: Saver) -> None:
    small.archive.mkdir()
    (small.archive / "old").touch()

    result = small.run(if_exists="fail")

    assert str(small.archive) in result.only_error()
    assert (names(small.archive), names(small.overlay.upper)) == (["old"], ["made"])


def test_it_cannot_be_merged(small: Saver) -> None:
    result = small.run(if_exists="merge")

    error = result.only_error()
    assert all(word in error for word in ("merge", "move", "backup", "replace", "fail"))
    assert names(small.overlay.upper) == ["made"]


def test_an_empty_directory_counts_as_nothing(small: Saver) -> None:
    small.archive.mkdir()

    result = small.run()

    assert (result.status, names(small.archive), names(small.out)) == (0, ["made"], ["archive"]), (
        result.stderr
    )


@pytest.mark.parametrize("if_exists", ["backup", "replace", "fail"])
def test_a_second_run_of_the_hook_leaves_the_archive_alone(small: Saver, if_exists: str) -> None:
    first = small.run(if_exists=if_exists)
    before = trees.view(small.out)

    second = small.run(if_exists=if_exists)

    assert (first.status, second.status) == (0, 1), first.stderr
    expect_equal(before, trees.view(small.out))
    assert small.success.exists()


@pytest.mark.parametrize("other", ["aaa", "zzz"])
def test_another_archive_of_the_same_overlay_has_the_changes_too(small: Saver, other: str) -> None:
    copy = small.directory / "copy"
    asked = hooks.annotations(other, mount_point="/data", archive_to=copy, method="copy")

    result = small.run(also=asked)

    assert result.status == 0, result.stderr
    assert (names(small.archive), names(copy)) == (["made"], ["made"])


def test_a_change_set_is_moved_once(small: Saver) -> None:
    other, success = small.directory / "other", small.directory / "other success"
    other.mkdir()
    (other / "old").touch()
    success.write_text("of an earlier run")
    also = hooks.annotations(
        "other", mount_point="/data", archive_to=other, success=success, method="move", if_exists="replace"
    )

    result = small.run(also=also)

    assert result.status == 1
    assert "archive other" in result.only_error()
    assert (names(small.archive), names(other)) == (["made"], ["old"])
    assert success.read_text() == "of an earlier run"
