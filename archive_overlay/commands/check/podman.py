"""What depends on the release of podman, which is read from its program: which containers.conf files it reads, mostly.

The program is not run: as an ordinary user even `podman --version` makes directories. A package's version would
say nothing of a podman that was built by hand, and nothing of what a distribution took over from a later release.

Source: containers.conf(5), and what podman is built from: pkg/config of containers/common up to 5.8,
storage/pkg/configfile of container-libs for 6.0. Releases 4.3, 5.4 and 5.8 were seen to read these files.
"""

from __future__ import annotations

import mmap
import os
from dataclasses import dataclass

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

PROGRAMS = ("/usr/local/bin/podman", "/usr/bin/podman")
USR = "/usr/share/containers"
ETC = "/etc/containers"
_MAIN = "containers.conf"


@dataclass(frozen=True)
class Release:
    """Releases of podman that read their configuration in the same way.

    Attributes:
        since: the first of them.
        name: which ones, for people.
        mark: part of their programs, and of no earlier release's: the name of a Go function or package, or a path.
    """

    since: tuple[int, int]
    name: str
    mark: bytes


_UNTIL_5 = (
    b"pkg/config.systemConfigs"  # part of all programs that read these files as podman 5 and earlier do
)
_SINCE_4_6 = b".RemoveContainerAndDependencies"
RELEASES = (
    Release((0, 0), "up to 4.7", _UNTIL_5),
    Release((4, 8), "4.8 and 4.9", b"internal/attributedstring."),
    Release((5, 0), "5.0 to 5.6", b"pkg/config.userConfigPath"),
    Release((5, 7), "5.7 and 5.8", b"containers.rootless.conf"),
    Release((6, 0), "6.0 and later", b"storage/pkg/configfile."),
)


@dataclass(frozen=True)
class Installed:
    """Which podman runs here, as far as is known.

    Attributes:
        releases: those that there may be; all of them, if nobody knows.
        why: how that is known, or why it is not, in words.
        path: of the program that says it; None: there is none, or not one alone.
    """

    releases: tuple[Release, ...]
    why: str
    path: str | None = None


NOT_LOOKED_FOR = Installed(RELEASES, "nobody has looked for it")


def installed(programs: Iterable[str] = PROGRAMS) -> Installed:
    """Find out which release of podman is installed.

    Args:
        programs: where podman may be.

    Returns:
        All releases, if there is no podman, or one that shows no release: a script, perhaps.
    """
    found = {path: _release_of(path) for path in programs if os.path.exists(path)}
    unknown = [path for path, release in found.items() if release is None]
    if unknown:
        return Installed(RELEASES, f"{unknown[0]} does not show it", unknown[0])
    if not found:
        return Installed(RELEASES, f"there is neither {' nor '.join(programs)}")
    said = [
        f"{path} is podman {release.name} (by its functions)" for path, release in found.items() if release
    ]
    return Installed(
        releases=tuple(release for release in RELEASES if release in found.values()),
        why=" and ".join(said),
        path=next(iter(found)) if len(found) == 1 else None,
    )


def passes_on_annotations(programs: Iterable[str] = PROGRAMS) -> bool | None:
    """Say whether podman copies annotations of an image's manifest into its containers: up to 4.5.0 it does.

    Args:
        programs: where podman may be.

    Returns:
        None: there is no podman, or one that shows no release. 4.5.1 is taken for 4.5.0.

    Source: podman pull request 18542, in 4.5.1 and 4.6.0.
    """
    found = [_has(path, _SINCE_4_6) for path in programs if _release_of(path)]
    return not all(found) if found else None


def configurations(
    release: Release, *, user: int, home: str | None, usr: str = USR, etc: str = ETC
) -> list[str]:
    """Give the containers.conf files that a release reads, the last one first in rank; they need not exist.

    Args:
        release: the release.
        user: who runs it; 0 is root.
        home: the directory with that user's own containers.conf, if there is one.
        usr: the directory with the distribution's.
        etc: the directory with the administrator's.
    """
    if release.since >= (6, 0):
        return _main_and_drop_ins(user, home, usr, etc)
    paths = [os.path.join(usr, _MAIN), *_with_drop_ins(release, os.path.join(etc, _MAIN))]
    if user != 0 and release.since >= (5, 7):
        rootless = os.path.join(etc, "containers.rootless.conf")
        paths += _with_drop_ins(release, rootless)
        paths += _drop_ins(release, os.path.join(f"{rootless}.d", str(user)))
    if home and (user != 0 or release.since >= (5, 0)):
        paths += _with_drop_ins(release, os.path.join(home, _MAIN))
    return paths


def _release_of(program: str) -> Release | None:
    try:
        with open(program, "rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as content:
            # Debian's 5.8 has the package by which 6.0 reads containers.conf, for other files.
            candidates = RELEASES[-1:] if content.find(_UNTIL_5) == -1 else RELEASES[:-1]
            return next((each for each in reversed(candidates) if content.find(each.mark) != -1), None)
    except (OSError, ValueError):  # ValueError: it is empty
        return None


def _has(program: str, mark: bytes) -> bool:
    with open(program, "rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as content:
        return content.find(mark) != -1


def _main_and_drop_ins(user: int, home: str | None, usr: str, etc: str) -> list[str]:
    """Give what podman 6 reads: one main file, and then of the drop-ins of one name the last one."""
    mains = [os.path.join(directory, _MAIN) for directory in (home, etc, usr) if directory]
    directories = []
    for top in (usr, etc):
        whose = os.path.join(top, f"containers.{'rootless' if user else 'rootful'}.conf.d")
        directories += [os.path.join(top, f"{_MAIN}.d"), whose]
        if user:
            directories.append(os.path.join(whose, str(user)))
    if home:
        directories.append(os.path.join(home, f"{_MAIN}.d"))
    by_name = {
        os.path.basename(path): path
        for directory in directories
        for path in _drop_ins(RELEASES[-1], directory)
    }
    return [
        *[path for path in mains if os.path.exists(path)][:1],
        *(by_name[name] for name in sorted(by_name, key=os.fsencode)),
    ]


def _with_drop_ins(release: Release, path: str) -> list[str]:
    return [path, *_drop_ins(release, f"{path}.d")]


def _drop_ins(release: Release, directory: str) -> list[str]:
    if release.since < (5, 7) and os.path.islink(directory):
        return []  # a symbolic link was not followed
    try:
        with os.scandir(directory) as entries:
            names = [
                entry.name
                for entry in entries
                if entry.name.endswith(".conf") and not entry.is_dir(follow_symlinks=False)
            ]
    except OSError:
        return []
    return [os.path.join(directory, name) for name in sorted(names, key=os.fsencode)]
