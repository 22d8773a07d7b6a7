"""This host, as far as archives depend on it: the program's file, Python, kernel and tools."""

from __future__ import annotations

import errno
import importlib.util
import os
import pwd
import re
import socket
import stat
import sys
import zipfile
from dataclasses import dataclass

from archive_overlay import __version__
from archive_overlay.commands.check.access import judge_writers, may, why_not_run
from archive_overlay.commands.check.findings import NOTE, OK, PROBLEM, WARNING, Finding
from archive_overlay.commands.check.podman import NOT_LOOKED_FOR, Installed, installed, passes_on_annotations
from archive_overlay.errors import ArchiveError
from archive_overlay.system import user_namespace
from archive_overlay.tar import compress

_ON_PARAMETERS = {
    "metacopy": (
        NOTE,
        "after a change of owner or mode alone a file's data stay in the lower layers: archives have them all the"
        " same, and move does the work of copy",
    ),
    "redirect_dir": (
        NOTE,
        "of a renamed directory the contents stay in the lower layers: archives have them all the same, and move"
        " does the work of copy",
    ),
    "index": (
        WARNING,
        "an archive fails if a container wrote to a file of a lower layer that has several names there, and move"
        " does the work of copy",
    ),
}
_FIRST_FOR_USERS = (5, 11)  # the first kernel on which ordinary users mount overlays


@dataclass(frozen=True)
class Host:
    """Where the facts about a host are.

    Attributes:
        program: the file that this program runs from; None: it was not installed.
        interpreter: the Python that runs it.
        user: the one outside all user namespaces whose containers it is about.
        podman: which podman may run here.
        passes_on: whether podman copies annotations of images into containers; None: nobody knows.
        home: the directory with the user's own containers.conf; None: nobody knows.
        release: the kernel's.
        filesystems, modules, parameters, syslog: the kernel's and the C library's files.
    """

    program: str | None
    interpreter: str
    user: int
    podman: Installed = NOT_LOOKED_FOR
    passes_on: bool | None = None
    home: str | None = None
    release: str = ""
    filesystems: str = "/proc/filesystems"
    modules: str = "/lib/modules"
    parameters: str = "/sys/module/overlay/parameters"
    syslog: str = "/dev/log"

    @property
    def rootless(self) -> bool:
        """Whether it is about containers of an ordinary user."""
        return self.user != 0


def this_host() -> Host:
    """Give what is true for this process."""
    user = user_namespace.outside(os.geteuid())  # `podman unshare` makes him root inside
    return Host(
        program=_own_file(),
        interpreter=sys.executable,
        user=user,
        podman=installed(),
        passes_on=passes_on_annotations(),
        home=_configuration_directory(user),
        release=os.uname().release,
    )


def judge_program(host: Host) -> list[Finding]:
    """Judge the file that hooks run."""
    path = host.program
    if path is None:
        return [
            Finding(
                NOTE,
                "program",
                f"version {__version__}, not run from an installed file: nobody can say whether hooks run the same",
                "run the installed one: /usr/bin/archive_overlay check",
            )
        ]
    try:
        mode = stat.S_IMODE(os.stat(path).st_mode)
    except OSError as error:
        reason = f"cannot look at {path}: {error.strerror}"
        return [Finding(PROBLEM, "program", reason, "install it anew", path)]
    findings = [found] if (found := judge_writers("program", path, user=host.user)) else []
    if fault := why_not_run(path):
        findings.append(Finding(PROBLEM, "program", f"{path} {fault[0]}", fault[1], path))
    return findings or [
        Finding(OK, "program", f"{path} is version {__version__}, mode {mode:04o}", "", path),
    ]


def judge_python(host: Host) -> list[Finding]:
    """Judge the Python that runs hooks, which is the one in the program's first line."""
    version = ".".join(map(str, sys.version_info[:3]))
    named = _first_line_interpreter(host.program) if host.program else ""
    if not named:
        return [
            Finding(OK, "python", f"{host.interpreter} is version {version}", "", host.interpreter or None)
        ]
    if fault := why_not_run(named):
        # A person has run it as an argument of another Python.
        advice = f"install Python there, or build the program for the one that is here: make install PYTHON={host.interpreter}"
        found = f"the first line of {host.program} names {named}, which {fault[0]}: no engine can run it"
        return [Finding(PROBLEM, "python", found, advice, named)]
    if writers := judge_writers("python", named, user=host.user):
        return [writers]
    if os.path.realpath(named) != os.path.realpath(host.interpreter):
        return [
            Finding(
                NOTE,
                "python",
                f"hooks are run by {named}, but this check by {host.interpreter}, version {version}",
                f"run it as {host.program} check",
                named,
            )
        ]
    if _compiled_for_this_python(host.program or ""):
        return [
            Finding(OK, "python", f"{named} is version {version}, for which the program is built", "", named)
        ]
    return [
        Finding(
            NOTE,
            "python",
            f"{named} is version {version}; the program is built for another one, and starts more slowly",
            f"to make it start faster, build it with this one: make PYTHON={named}",
            named,
        )
    ]


def judge_kernel(host: Host, *, fuse: bool) -> list[Finding]:
    """Judge whether the kernel mounts overlays.

    Args:
        host: whose kernel.
        fuse: whether fuse-overlayfs can do so instead.
    """
    instead = WARNING if fuse else PROBLEM
    if _lists_overlay(host.filesystems):
        found = Finding(OK, "kernel", f"Linux {host.release} has overlayfs")
    elif _has_module(host):
        found = Finding(OK, "kernel", f"Linux {host.release} has overlayfs as a module, not loaded yet")
    else:
        return [
            Finding(
                instead,
                "kernel",
                f"Linux {host.release} does not know overlayfs, and has no module of it in {host.modules}",
                "load or install the module overlay"
                + (", unless all stores are fuse-overlayfs'" if fuse else ""),
            )
        ]
    if host.rootless and _version(host.release) < _FIRST_FOR_USERS:
        return [
            Finding(
                instead,
                "kernel",
                f"on Linux {host.release} ordinary users mount no overlays of the kernel, only by fuse-overlayfs",
                "" if fuse else "install fuse-overlayfs",
            )
        ]
    return [found]


def judge_overlay_defaults(host: Host) -> list[Finding]:
    """Say what the kernel's defaults for overlays mean for archives; mount options go before them."""
    values: dict[str, str] = {}
    for name in (*_ON_PARAMETERS, "nfs_export", "xino_auto"):
        try:
            with open(os.path.join(host.parameters, name), encoding="ascii", errors="replace") as file:
                values[name] = "off" if file.read().strip() == "N" else "on"
        except OSError:
            continue
    if not values:
        return [Finding(NOTE, "overlay", f"defaults are not known: there is no {host.parameters} yet")]
    found = ", ".join(f"{name}={value}" for name, value in values.items())
    findings = []
    for name, (status, meaning) in _ON_PARAMETERS.items():
        # Neither exists in an ordinary user's overlays.
        if values.get(name) == "on" and not host.rootless:
            advice = f"echo N >{host.parameters}/{name}" if status == WARNING else ""
            findings.append(Finding(status, "overlay", f"{name} is on by default: {meaning}", advice))
    meaning = "" if findings else ": upperdirs hold all that was changed"
    return [Finding(OK, "overlay", f"by default {found}{meaning}", "", host.parameters), *findings]


def judge_mount_program(path: str, *, asked: bool) -> Finding:
    """Judge the program that serves overlays in user space.

    Args:
        path: of it.
        asked: whether the hook's configuration names it.
    """
    if not (fault := why_not_run(path)):
        return Finding(
            OK, "fuse-overlayfs", f"{path} is there, for stores that have it as mount_program", "", path
        )
    return Finding(
        WARNING if asked else NOTE,
        "fuse-overlayfs",
        f"{path}{', which --mount-program names,' if asked else ''} {fault[0]}; only stores with a mount_program need it",
        "",
        path,
    )


def judge_zstd() -> Finding:
    """Say whether archives can be compressed with zstd."""
    try:
        compress.require("zstd")
    except ArchiveError as error:
        return Finding(NOTE, "zstd", error.message, "install zstd if tar.zst is wanted")
    by = "this Python" if compress.standard_library_zstd() else compress.ZSTD_PROGRAM
    return Finding(OK, "zstd", f"tar.zst is compressed by {by}")


def judge_syslog(host: Host, *, wanted: bool) -> Finding:
    """Say whether somebody takes what is sent to the system log."""
    path = host.syslog
    reason = ""
    try:
        if not stat.S_ISSOCK(os.stat(path).st_mode):
            reason = f"{path} is not a socket"
        else:
            # Connecting a datagram socket sends nothing, and fails if nobody has the other end.
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as probe:
                probe.connect(path)
    except OSError as error:
        if error.errno == errno.ECONNREFUSED:
            reason = f"nobody listens on {path}"
        elif error.errno != errno.EPROTOTYPE:  # somebody listens for connections
            reason = f"{path}: {error.strerror}"
    if not reason:
        advice = "read it with journalctl -t archive_overlay, or in the log's file" if wanted else ""
        return Finding(OK, "log", f"the system log takes messages on {path}", advice, path)
    if wanted:
        found = f"--syslog says nothing to anybody: {reason}"
        return Finding(WARNING, "log", found, "start a system log, or use --log-file", path)
    return Finding(NOTE, "log", f"--syslog would say nothing to anybody: {reason}", "", path)


def _lists_overlay(path: str) -> bool:
    try:
        with open(path, encoding="ascii", errors="replace") as file:
            return any(line.split()[-1:] == ["overlay"] for line in file)
    except OSError:
        return False


def _has_module(host: Host) -> bool:
    for name in ("modules.dep", "modules.builtin"):
        try:
            with open(
                os.path.join(host.modules, host.release, name), encoding="utf-8", errors="replace"
            ) as file:
                if re.search(r"(?m)^\S*/overlay\.ko", file.read()):
                    return True
        except OSError:
            continue
    return False


def _version(release: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", release)[:2]))


def _first_line_interpreter(program: str) -> str:
    try:
        with open(program, "rb") as file:
            words = os.fsdecode(file.readline(4096)).split()
    except OSError:
        return ""
    return words[0][2:] if words and words[0].startswith("#!") else ""


def _compiled_for_this_python(program: str) -> bool:
    try:
        with zipfile.ZipFile(program) as file, file.open("site-packages/archive_overlay/cli.pyc") as module:
            return module.read(4) == importlib.util.MAGIC_NUMBER
    except (OSError, KeyError, zipfile.BadZipFile):
        return False


def _own_file() -> str | None:
    spec = sys.modules["archive_overlay"].__spec__  # from Python 3.16 on, modules have no __loader__
    archive = getattr(spec.loader, "archive", None) if spec else None
    if isinstance(archive, str):
        return os.path.abspath(archive)
    script = os.path.abspath(sys.argv[0])
    return script if os.path.isfile(script) and may(script, os.X_OK) else None


def _configuration_directory(user: int) -> str | None:
    try:
        return os.path.join(pwd.getpwuid(user).pw_dir, ".config/containers")
    except KeyError:
        return None
