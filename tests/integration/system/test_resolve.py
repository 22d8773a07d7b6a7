"""Which links of others are followed, and what is the kernel's: tried with owners, modes and mounts."""

from __future__ import annotations

import fcntl
import os
import signal
import struct
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from archive_overlay.destination.paths import Paths
from archive_overlay.errors import ArchiveError
from archive_overlay.system import mountinfo
from archive_overlay.system.open_flags import READ
from archive_overlay.system.resolve import Resolver, open_log_file, open_resolved
from archive_overlay.system.user_namespace import overflow_owner
from tests.support import overlays, tools

if TYPE_CHECKING:
    from typing import Any, Callable

    Namespace = Callable[[bool], overlays.Namespace]

OTHER = 12345
THIRD = 23456
# They have no ids in the user namespace of a rootless run.
UNMAPPED = 70_000
UNMAPPED_TOO = 80_000
NOBODY = overflow_owner()


@pytest.fixture
def top(scratch: Path) -> Path:
    """Give a directory of root's, with what nobody else may reach in it."""
    tools.need_root()
    (scratch / "victim").mkdir()
    (scratch / "victim" / "file").write_text("precious")
    return scratch


def make(directory: Path, owner: int, mode: int) -> Path:
    directory.mkdir()
    os.chown(directory, owner, owner)
    directory.chmod(mode)
    return directory


def link(path: Path, owner: int, target: Path) -> None:
    path.symlink_to(target)
    os.lchown(path, owner, owner)


def lead(path: Path | str) -> str:
    """Say where a path leads; "" if a link on the way may be somebody else's."""
    try:
        return Resolver().resolve(str(path)).path
    except PermissionError as error:
        return "" if "is a symbolic link that another user may have made" in str(error) else str(error)


@pytest.mark.parametrize(
    ("owner", "mode", "link_owner", "followed"),
    [
        (0, 0o1777, OTHER, False),
        (0, 0o1777, 0, True),
        (0, 0o777, OTHER, False),
        (0, 0o775, OTHER, False),
        (0, 0o2775, 0, True),
        (0, 0o755, OTHER, True),
        (OTHER, 0o1777, OTHER, True),
        (OTHER, 0o775, OTHER, True),
        (OTHER, 0o1777, 0, True),
        (OTHER, 0o1777, THIRD, False),
        (OTHER, 0o755, THIRD, True),
        # Whose id stands for all that have none is nobody's equal.
        (NOBODY, 0o1777, NOBODY, False),
        (0, 0o1777, NOBODY, False),
        (NOBODY, 0o755, NOBODY, True),
    ],
)
def test_a_link_is_followed_if_only_those_can_have_made_it_who_were_given_the_directory(
    top: Path, owner: int, mode: int, link_owner: int, followed: bool
) -> None:
    link(make(top / "shared", owner, mode) / "link", link_owner, top / "victim")

    assert lead(f"{top}/shared/link/file") == (f"{top}/victim/file" if followed else "")
    assert lead(f"{top}/shared/x") == f"{top}/shared/x"


@pytest.mark.parametrize("mode", [0o1777, 0o777, 0o775])
@pytest.mark.parametrize("link_owner", [OTHER, 0])
@pytest.mark.parametrize("below", ["", "deeper/"])
def test_no_link_is_followed_below_a_directory_that_anybody_can_have_made(
    top: Path, mode: int, link_owner: int, below: str
) -> None:
    made = make(make(top / "shared", 0, mode) / "backups", OTHER, 0o755)
    make(made / "deeper", 0, 0o755)
    link(made / below / "data", link_owner, top / "victim")

    assert lead(f"{made}/{below}data") == lead(f"{made}/{below}data/file") == ""
    assert lead(f"{made}/{below}x/y") == f"{made}/{below}x/y", "without a link it leads nowhere else"


def test_a_link_of_root_s_that_another_user_gave_a_name_there_is_not_followed(top: Path) -> None:
    link(top / "roots", 0, top / "victim")
    shared = make(top / "shared", 0, 0o1777)
    os.link(top / "roots", shared / "link", follow_symlinks=False)

    assert lead(shared / "link") == ""
    assert lead(top / "roots") == f"{top}/victim"


def test_who_was_given_a_directory_by_root_is_believed_there_and_nowhere_else(top: Path) -> None:
    home = make(make(make(top / "shared", 0, 0o1777) / "roots", 0, 0o755) / "home", OTHER, 0o755)
    link(home / "link", OTHER, top / "victim")
    link(top / "shared" / "link", OTHER, home)

    assert lead(home / "link") == f"{top}/victim"
    assert lead(top / "shared" / "link") == ""


def test_an_access_control_list_lets_others_make_links(top: Path) -> None:
    tools.need("setfacl")
    directory = make(top / "directory", 0, 0o755)
    link(directory / "link", OTHER, top / "victim")
    assert lead(directory / "link") == f"{top}/victim"

    subprocess.run(["setfacl", "-m", f"u:{OTHER}:rwx", directory], check=True)

    assert lead(directory / "link") == ""


@pytest.mark.parametrize("mode", [0o1777, 0o775])
def test_owners_that_are_not_mapped_are_equal_to_nobody(top: Path, namespace: Namespace, mode: int) -> None:
    shared = make(top / "shared", UNMAPPED, mode)
    link(shared / "others", UNMAPPED_TOO, top / "victim")
    link(shared / "mine", 0, top / "victim")
    make(shared / "backups", UNMAPPED_TOO, 0o755)
    link(shared / "backups" / "data", UNMAPPED_TOO, top / "victim")

    def shown() -> tuple[int, list[str]]:
        names = ("others", "mine", "backups/data")
        return (shared / "others").lstat().st_uid, [lead(shared / name) for name in names]

    assert namespace(True).inside(shown) == (NOBODY, ["", f"{top}/victim", ""])


def test_links_of_the_host_s_root_are_followed_in_a_user_namespace(top: Path, namespace: Namespace) -> None:
    place = make(top / "place", UNMAPPED, 0o755)
    link(place / "link", UNMAPPED, top / "victim")

    assert namespace(True).inside(lambda: lead(place / "link")) == f"{top}/victim"


def test_a_program_of_another_user_does_not_say_whose_a_link_is(top: Path, namespace: Namespace) -> None:
    served = make(make(top / "shared", 0, 0o1777) / "served", OTHER, 0o755)

    def shown() -> tuple[str, str]:
        # As a FUSE mount that says that it belongs to root.
        overlays.mount_tmpfs(served, "mode=755,uid=0")
        link(served / "link", 0, top / "victim")
        before = lead(served / "link")
        others = frozenset([served.stat().st_dev])
        table = mountinfo.Devices(of_the_kernel=frozenset(), of_others=others)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(mountinfo, "read_devices", lambda: table)
            return before, lead(served / "link")

    assert namespace(False).inside(shown) == (f"{top}/victim", "")


def test_a_directory_that_is_moved_while_it_is_left_leads_nowhere(
    top: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(make(top / "shared", 0, 0o777) / "inner", 0, 0o777)
    theirs = make(top / "theirs", OTHER, 0o755)
    link(theirs / "link", OTHER, top / "victim")
    open_ = os.open

    def move_and_open(path: str, *arguments: int, **directory: Any) -> int:
        if path == ".." and (top / "shared" / "inner").exists():
            (top / "shared" / "inner").rename(theirs / "inner")
        return open_(path, *arguments, **directory)

    monkeypatch.setattr(os, "open", move_and_open)

    with pytest.raises(OSError, match="shared/inner has just been moved"):
        Resolver().resolve(f"{top}/shared/inner/../link")


# What is mounted only when somebody enters it

_AUTOFS_IOC_READY = 0x9360


def automount(place: Path, ready: int) -> None:
    """Let a tmpfs be mounted when somebody enters a directory, as an automounter does, and then end."""
    os.setpgid(0, 0)  # only this process sees what is there before
    requests, kernel = os.pipe()
    options = f"fd={kernel},pgrp={os.getpgrp()},minproto=5,maxproto=5,direct"
    subprocess.run(
        ["mount", "-i", "-t", "autofs", "-o", options, "auto", place], check=True, pass_fds=[kernel]
    )
    os.close(kernel)
    control = os.open(place, os.O_RDONLY)
    os.write(ready, b"\n")
    _, _, token = struct.unpack_from("iiI", os.read(requests, 4096))
    overlays.mount_tmpfs(place, "mode=755")
    (place / "link").symlink_to("real")
    fcntl.ioctl(control, _AUTOFS_IOC_READY, token)


def test_a_link_in_what_is_mounted_on_demand_is_followed(top: Path, namespace: Namespace) -> None:
    if "\tautofs\n" not in Path("/proc/filesystems").read_text():
        tools.cannot_run("no autofs in this kernel")
    place = top / "place"
    place.mkdir()

    def shown() -> str:
        waiting, ready = os.pipe()
        pid = os.fork()
        if not pid:
            try:
                automount(place, ready)
            finally:
                os._exit(0)
        os.close(ready)
        assert os.read(waiting, 1)
        try:
            return lead(place / "link" / "x")
        finally:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)

    assert namespace(False).apart(shown) == f"{place}/real/x"


# What is the kernel's


def refusal(path: Path | str) -> str:
    try:
        return Resolver().resolve(str(path)).path
    except PermissionError as error:
        return str(error.strerror)


MOUNTS = {
    "proc": ["-t", "proc", "proc"],
    "sysfs": ["-t", "sysfs", "sysfs"],
    "devpts": ["-t", "devpts", "devpts"],
    "mqueue": ["-t", "mqueue", "mqueue"],
    "a part of proc": ["--bind", "/proc/sys/kernel"],
    "proc's copy of a process": ["--bind", "/proc/self"],
}


@pytest.mark.parametrize("arguments", MOUNTS.values(), ids=MOUNTS)
def test_file_systems_of_the_kernel_are_refused_wherever_they_are(
    top: Path, namespace: Namespace, arguments: list[str]
) -> None:
    place = top / "place"
    place.mkdir()
    (top / "link").symlink_to("place/self")

    def refused() -> set[str]:
        subprocess.run(["mount", *arguments, place], check=True)
        said = {refusal(f"{place}{rest}") for rest in ("", "/self/root/x", "/self/cwd", "/none/x")}
        said.add(refusal(top / "link" / "x"))
        overlays.unmount(place)
        return said

    assert namespace(False).inside(refused) == {f"it leads through {place}, which belongs to the kernel"}


def test_processes_of_another_namespace_are_refused_too(top: Path, namespace: Namespace) -> None:
    place = top / "place"
    place.mkdir()

    def refused() -> str:
        subprocess.run(["unshare", "-p", "-f", "mount", "-t", "proc", "proc", place], check=True)
        said = refusal(place / "1" / "root" / "x")
        overlays.unmount(place)
        return said

    assert namespace(False).inside(refused) == f"it leads through {place}, which belongs to the kernel"


def test_a_single_file_of_the_kernel_is_refused(top: Path, namespace: Namespace) -> None:
    place = top / "file"
    place.touch()

    def refused() -> str:
        overlays.bind(Path("/proc/sys/kernel/core_pattern"), place)
        said = refusal(place)
        overlays.unmount(place)
        return said

    assert namespace(False).inside(refused) == f"it leads through {place}, which belongs to the kernel"


def test_without_a_mount_table_no_file_system_without_room_is_entered(
    top: Path, namespace: Namespace
) -> None:
    place, disk = top / "place", top / "disk"
    place.mkdir()
    disk.mkdir()

    def said() -> list[str]:
        subprocess.run(["mount", "-t", "proc", "proc", place], check=True)
        overlays.mount_tmpfs(disk, "size=1m")
        overlays.detach(Path("/proc"))
        return [refusal(place / "self" / "root" / "x"), refusal(disk / "x")]

    # A namespace of its own: this one has no /proc any more.
    mounts = overlays.Namespace(rootless=False)
    try:
        found = mounts.inside(said)
    finally:
        mounts.close()

    assert found == [f"it leads through {place}, which belongs to the kernel", f"{disk}/x"]


def test_the_mount_table_is_read_once(top: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    devices = mountinfo.read_devices()

    def read_devices() -> mountinfo.Devices:
        read.append(1)
        return devices

    monkeypatch.setattr(mountinfo, "read_devices", read_devices)
    paths = Paths((str(top),))
    for name in ("a", "b"):
        paths.resolve(f"{top}/{name}", "archive-to")
        paths.resolve_parent(f"{top}/{name}.success", "success")
    paths.resolve_parent(f"{top}/x", "success")

    assert len(read) <= 1


def test_no_path_takes_time_that_grows_with_its_square(top: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    joined: list[int] = []
    monkeypatch.setattr("archive_overlay.system.resolve._Way.place", lambda *_: joined.append(1))
    make(top / "d", 0, 0o755)

    Resolver().resolve(f"{top}/" + "d/../" * 500 + "x")

    assert joined == []


# Log files


@pytest.mark.parametrize(
    "kind", ["link", "dangling link", "FIFO", "file", "hard link", "their file in their directory"]
)
def test_a_log_file_that_another_user_put_there_is_not_written_to(top: Path, kind: str) -> None:
    shared = make(top / "shared", 0, 0o1777)
    victim = top / "victim" / "file"
    log = shared / "log"
    if kind == "link":
        link(log, OTHER, victim)
    elif kind == "dangling link":
        link(log, OTHER, top / "victim" / "new")
    elif kind == "hard link":
        os.link(victim, log)
    elif kind == "their file in their directory":
        log = make(shared / "log", OTHER, 0o755) / "log"
        log.touch()
        os.chown(log, OTHER, OTHER)
    else:
        (os.mkfifo if kind == "FIFO" else Path.touch)(log)
        os.chown(log, OTHER, OTHER)
    reader = os.open(log, os.O_RDONLY | os.O_NONBLOCK) if kind == "FIFO" else -1

    with pytest.raises(PermissionError, match="another user may have"):
        os.close(open_log_file(str(log)))

    if reader >= 0:
        os.close(reader)
    assert os.listdir(top / "victim") == ["file"]
    assert victim.read_text() == "precious"
    if "file" in kind:
        assert log.stat().st_size == 0


@pytest.mark.parametrize(
    "kind",
    ["missing", "ours", "link", "FIFO", "device", "others' in a place of root's", "in their directory"],
)
def test_a_log_file_of_ours_is_appended_to(top: Path, kind: str) -> None:
    log = make(top / "shared", 0, 0o1777) / "log"
    reader = -1
    if kind == "ours":
        log.write_text("before\n")
    elif kind == "link":
        link(log, 0, top / "real")
    elif kind == "FIFO":
        os.mkfifo(log)
        reader = os.open(log, os.O_RDONLY | os.O_NONBLOCK)
    elif kind == "device":
        log = Path("/dev/null")
    elif kind == "in their directory":
        log = make(top / "shared" / "theirs", OTHER, 0o755) / "log"
    elif kind == "others' in a place of root's":
        log = top / "log"
        log.touch()
        os.chown(log, OTHER, OTHER)

    for _ in range(2):
        fd = open_log_file(str(log))
        os.write(fd, b"line\n")
        os.close(fd)

    if reader >= 0:
        assert os.read(reader, 100) == b"line\n" * 2
        os.close(reader)
    elif kind != "device":
        assert log.read_text().endswith("line\nline\n")
        assert kind != "ours" or log.read_text().startswith("before\n")


@pytest.mark.parametrize("path", ["/proc/self/fd/3", "/proc/1/fd/1", "/dev/fd/0", "/proc/sys/kernel/x"])
def test_a_log_file_of_the_kernel_is_not_opened(path: str) -> None:
    with pytest.raises(PermissionError, match="it leads through /proc, which belongs to the kernel"):
        open_log_file(path)


@pytest.mark.parametrize(
    ("path", "number"),
    [
        ("/dev/stdout", 1),
        ("/dev/stderr", 2),
        ("/dev/fd/1", 1),
        ("/proc/self/fd/2", 2),
        ("/dev/../dev/fd/2", 2),
    ],
)
def test_what_is_open_already_may_be_the_log_file(path: str, number: int) -> None:
    fd = open_log_file(path)
    try:
        assert os.path.samestat(os.fstat(fd), os.fstat(number))
    finally:
        os.close(fd)


@pytest.mark.parametrize("path", ["/", "victim", "."])
def test_a_directory_is_no_log_file(top: Path, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(top)
    with pytest.raises(IsADirectoryError):
        open_log_file(path)


@pytest.mark.parametrize("how", ["another file", "a link to it", "a link on the way", "nothing"])
def test_what_is_opened_is_what_was_found(top: Path, how: str) -> None:
    found = Resolver().resolve(str(top / "victim/file"))
    with open(open_resolved(found, READ), encoding="ascii") as file:
        assert file.read() == "precious"
    open_files = os.listdir("/proc/self/fd")

    if how == "a link on the way":
        (top / "victim").rename(top / "moved")
        (top / "victim").symlink_to("moved")
    else:
        (top / "victim/file").rename(top / "moved")
        if how == "another file":
            (top / "victim/file").write_text("precious")
        elif how == "a link to it":
            (top / "victim/file").symlink_to(top / "moved")

    with pytest.raises(OSError, match=r"has just been replaced|symbolic links|Not a directory|No such file"):
        open_resolved(found, READ)
    assert os.listdir("/proc/self/fd") == open_files


def test_a_log_file_that_is_replaced_meanwhile_is_looked_at_again(
    top: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = make(top / "shared", 0, 0o777) / "log"
    log.write_text("ours\n")
    open_ = os.open

    def replace_and_open(path: str, flags: int, *arguments: int, **directory: Any) -> int:
        if path == "log" and flags & os.O_APPEND and log.exists():
            log.unlink()
            os.link(top / "victim" / "file", log)
        return open_(path, flags, *arguments, **directory)

    monkeypatch.setattr(os, "open", replace_and_open)

    with pytest.raises(PermissionError, match="another user may have put it there"):
        open_log_file(str(log))
    assert (top / "victim" / "file").read_text() == "precious"


def test_a_refused_path_keeps_no_file_descriptor(top: Path) -> None:
    shared = make(top / "shared", 0, 0o1777)
    link(shared / "link", OTHER, top / "victim")
    (shared / "log").touch()
    os.chown(shared / "log", OTHER, OTHER)
    before = os.listdir("/proc/self/fd")
    for path in (f"{shared}/link", "/proc/x", f"{shared}/log/../x"):
        with pytest.raises(ArchiveError):
            Paths().resolve(path, "archive-to")
    for path in (f"{shared}/link", f"{shared}/log", f"{shared}/none/log"):
        with pytest.raises(OSError, match=r"another user|No such file"):
            open_log_file(path)
    assert os.listdir("/proc/self/fd") == before
