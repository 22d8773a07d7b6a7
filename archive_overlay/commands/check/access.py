"""What this process, and others, may do with files and directories. Nothing is written, not even for a try."""

from __future__ import annotations

import os
import pwd
import stat

from archive_overlay.commands import human_size
from archive_overlay.commands.check.findings import OK, PROBLEM, WARNING, Finding
from archive_overlay.system.resolve import Resolver


def judge_writers(topic: str, path: str, *, user: int) -> Finding | None:
    """Say who else may change a file that decides what the engine runs; None: nobody.

    Args:
        topic: of the finding.
        path: of the file.
        user: who may, besides root.
    """
    for each in (path, os.path.dirname(os.path.realpath(path))):
        try:
            status = os.stat(each)
        except OSError:
            continue  # said elsewhere
        who = advice = ""
        if status.st_uid not in (0, user, os.geteuid()):
            who, advice = f"user {_user_name(status.st_uid)}", f"chown root {each}"
        elif status.st_mode & stat.S_IWOTH and not (
            stat.S_ISDIR(status.st_mode) and status.st_mode & stat.S_ISVTX
        ):
            who, advice = "everybody", f"chmod o-w {each}"
        if who:
            found = f"{who} may write to {each}, and so choose what runs with the rights of the engine"
            return Finding(WARNING, topic, found, advice, each)
    return None


def why_not_run(path: str) -> tuple[str, str] | None:
    """Say why a program cannot be run, and what to do; None: it can.

    Args:
        path: absolute.
    """
    if not os.path.isfile(path):
        return (
            "is not a file" if os.path.lexists(path) else "is not there"
        ), "install it, or correct the path"
    if os.statvfs(path).f_flag & os.ST_NOEXEC:
        return (
            "is on a file system that is mounted noexec",
            "put it on another file system, or mount this one without noexec",
        )
    if not may(path, os.X_OK):
        return "is not executable", f"chmod 0755 {path}"
    return None


def judge_log_file(path: str) -> Finding:
    """Say whether the hook can write its log; if it cannot, it goes on without."""
    advice = "the hook goes on without it; name a file that can be written"
    if not os.path.isabs(path):
        found = f"--log-file {path} is relative, but a hook runs in any directory"
        return Finding(WARNING, "log", found, "name it by an absolute path", path)
    directory = os.path.dirname(path)
    if reason := _why_not_followed(path, appended=True):
        return Finding(WARNING, "log", f"--log-file {path}: {reason}", advice, path)
    if os.path.isdir(path):
        return Finding(WARNING, "log", f"--log-file {path} is a directory", advice, path)
    if os.path.exists(path):
        reason = "" if may(path, os.W_OK) else _why_not_written(path)
    else:
        reason = _why_not_in(directory)
    if reason:
        return Finding(WARNING, "log", f"--log-file: {reason}", advice, path)
    return Finding(OK, "log", f"messages are appended to {path}", "", path)


def judge_directory(path: str, option: str, *, made: bool) -> Finding:
    """Say whether the hook can write into a directory.

    Args:
        path: of the directory.
        option: that names it.
        made: whether the hook makes it if it is not there.
    """
    if reason := _why_not_followed(path, appended=False):
        found = f"{option} {path} is not used: {reason}"
        return Finding(PROBLEM, "destination", found, "name the place itself, by a path of root's", path)
    if made and not os.path.lexists(path):
        above = os.path.dirname(path)
        while not os.path.lexists(above):
            above = os.path.dirname(above)
        if reason := _why_not_in(above):
            found = f"{option} {path} does not exist, and cannot be made: {reason}"
            return Finding(PROBLEM, "destination", found, f"mkdir -p {path}", path)
        return Finding(OK, "destination", f"{option} {path} is made when it is needed", "", path)
    if reason := _why_not_in(path):
        advice = f"mkdir -p {path}" if not os.path.lexists(path) else "name a directory that can be written"
        return Finding(PROBLEM, "destination", f"{option}: {reason}", advice, path)
    status, room = os.stat(path), os.statvfs(path)
    free = f"{human_size(room.f_bavail * room.f_frsize)} free"
    if status.st_mode & stat.S_IWOTH:
        mode = stat.S_IMODE(status.st_mode)
        return Finding(
            WARNING,
            "destination",
            f"{option} {path} can be written by everybody (mode {mode:04o}), {free}",
            f"chmod o-w {path}",
            path,
        )
    return Finding(OK, "destination", f"{option} {path} can be written, {free}", "", path)


def may(path: str, access: int) -> bool:
    """Say whether this process may do something with a file, by its effective user."""
    return os.access(path, access, effective_ids=os.access in os.supports_effective_ids)


def is_same_file(path: str, other: str) -> bool:
    """Say whether two files are one, or have the same content."""
    try:
        one, two = os.stat(path), os.stat(other)
        if (one.st_dev, one.st_ino) == (two.st_dev, two.st_ino):
            return True
        if one.st_size != two.st_size or not stat.S_ISREG(one.st_mode) or not stat.S_ISREG(two.st_mode):
            return False
        with open(path, "rb") as first, open(other, "rb") as second:
            return first.read() == second.read()
    except OSError:
        return False


def _why_not_followed(path: str, *, appended: bool) -> str:
    """Say why the hook does not go where a path leads; "" if it does.

    Args:
        path: absolute.
        appended: whether something is appended to what it leads to: then nobody else may have put that there.
    """
    resolver = Resolver()
    try:
        found = resolver.resolve(path)
    except PermissionError as error:
        return str(error.strerror)
    except OSError:
        return ""  # said elsewhere
    if appended and found.strange and found.status and not resolver.is_ours(found.status):
        return "another user may have put it there"
    return ""


def _why_not_in(directory: str) -> str:
    """Say why nothing can be made in a directory; "" if it can."""
    try:
        status = os.stat(directory)
    except OSError as error:
        return f"{directory}: {error.strerror}"
    if not stat.S_ISDIR(status.st_mode):
        return f"{directory} is not a directory"
    return "" if may(directory, os.W_OK | os.X_OK) else _why_not_written(directory)


def _why_not_written(path: str) -> str:
    if os.statvfs(path).f_flag & os.ST_RDONLY:
        return f"{path} is on a file system that is mounted read-only"
    return f"{path} cannot be written by {_user_name(os.geteuid())}"


def _user_name(user: int) -> str:
    try:
        return pwd.getpwuid(user).pw_name
    except KeyError:
        return str(user)
