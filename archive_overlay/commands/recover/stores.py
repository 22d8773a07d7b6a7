"""Where the engine of this user keeps its containers, as storage.conf says it, and which containers there are.

No engine is asked: a podman that runs for the first time since the host was started takes note of that, and removes the
containers that were run with --rm.

Source: containers-storage.conf(5); types/options.go of containers/storage; the stores of podman 4.3 and CRI-O.
"""

from __future__ import annotations

import os
import pwd
import re

from archive_overlay.errors import ArchiveError
from archive_overlay.overlay import store
from archive_overlay.system.record import Record
from archive_overlay.system.user_namespace import outside

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

# The last one that is there is the only one that counts.
SYSTEM = ("/usr/share/containers/storage.conf", "/etc/containers/storage.conf")
_ROOTFUL = "/var/lib/containers/storage"
_ROOTFUL_RUN = "/run/containers/storage"
_CONTAINERS = "overlay-containers"

_LONGEST = 1 << 20
_TABLE = re.compile(r"\s*\[([^\[\]]*)\]\s*(?:#.*)?")
_STRING = re.compile(r"""\s*["']?(\w+)["']?\s*=\s*(?:"([^"\\]*)"|'([^']*)')\s*(?:#.*)?""")


class Listed(Record):
    """A container in an engine's list.

    Attributes:
        id: the engine's.
        names: what people call it.
        bundle: the directory that may be its bundle.
    """

    id: str
    names: tuple[str, ...]
    bundle: str


class Store(Record):
    """An engine's store.

    Attributes:
        root: absolute path of what lasts.
        run: absolute path of what a reboot takes away; "" if that is unknown.
    """

    root: str
    run: str = ""

    def make_run(self) -> None:
        """Make the directory that a reboot takes away, as engines do: what is loaded into the store needs it."""
        if not self.run:
            return
        before = os.umask(0o077)
        try:
            os.makedirs(self.run, exist_ok=True)
        except OSError:
            pass  # what needs it says so
        finally:
            os.umask(before)

    def bundles(self) -> Iterator[str]:
        """Give the directory that may be the bundle of each container, one after the other.

        Raises:
            UnknownError: the store does not say which containers there are.
        """
        for container in self.containers():
            yield container.bundle

    def containers(self) -> Iterator[Listed]:
        """Give each container, one after the other.

        Raises:
            UnknownError: the store does not say which containers there are.
        """
        seen = set()
        places = [f"{place}/{_CONTAINERS}" for place in (self.root, self.run) if place]
        for containers in places:
            # The second one has lists only if nothing of the containers is to outlast a reboot.
            if not os.path.isdir(containers):
                continue
            for record in store.records(containers):
                identifier = record.get("id")
                if not isinstance(identifier, str) or identifier in seen:
                    continue
                found = [f"{place}/{identifier}/userdata" for place in places]
                if not store.container_in_store(found[0])[1]:
                    continue
                seen.add(identifier)
                # CRI-O has the bundle in the second, and a copy of its spec in the first.
                names = record.get("names")
                yield Listed(
                    id=identifier,
                    names=tuple(map(str, names)) if isinstance(names, list) else (),
                    bundle=next(
                        (path for path in reversed(found) if os.path.lexists(f"{path}/config.json")), found[0]
                    ),
                )


def find_store(root: str | None, run: str | None = None, *, home: str | None = None) -> Store:
    """Find the store of this user's engine.

    Args:
        root, run: what a person says of its directories; None: nothing. Variables of the environment, by which engines can be told of another store,
            say nothing here.
        home: of the user; None: as the system says.

    Raises:
        ArchiveError: a configuration cannot be read.
    """
    user = outside(os.geteuid())
    home = home or _entry(user, "pw_dir") or "/"
    says = _configured(user, home)
    run = os.path.abspath(run) if run is not None else None
    if root is not None:
        return Store(root=os.path.abspath(root), run=run or (says.get("runroot", "") if not user else ""))
    if not user:
        return Store(root=says.get("graphroot") or _ROOTFUL, run=run or says.get("runroot") or _ROOTFUL_RUN)
    known = {"HOME": home, "USER": _name(user), "UID": str(user), "EUID": str(user)}
    named = re.sub(
        r"\$(\w+)", lambda match: known.get(match[1], match[0]), says.get("rootless_storage_path", "")
    )
    return Store(
        root=named or says.get("own graphroot") or f"{home}/.local/share/containers/storage",
        run=run or (f"/run/user/{user}/containers" if os.path.isdir(f"/run/user/{user}") else ""),
    )


def _configured(user: int, home: str) -> Mapping[str, str]:
    """Give what storage.conf says; a user's own one says `graphroot`, too, by the name `own graphroot`."""
    says: dict[str, str] = {}
    for path in SYSTEM:
        if os.path.exists(path):
            says = _read(path)
    if user:
        own = f"{home}/.config/containers/storage.conf"
        if os.path.exists(own):
            for key, value in _read(own).items():
                says[f"own {key}" if key == "graphroot" else key] = value
    return says


def _read(path: str) -> dict[str, str]:
    """Give the strings in the table `storage` of a file. Pythons before 3.11 cannot read TOML, and no more is needed.

    Raises:
        ArchiveError: it cannot be read.
    """
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            lines = file.read(_LONGEST).splitlines()
    except OSError as error:
        raise ArchiveError(
            f"cannot read {path}: {error.strerror}", hint="name the store with --root"
        ) from error
    table, found = "", {}
    for line in lines:
        if heading := _TABLE.fullmatch(line):
            table = heading[1].strip()
        elif table == "storage" and (pair := _STRING.fullmatch(line)):
            found[pair[1]] = pair[2] if pair[2] is not None else pair[3]
    return found


def _name(user: int) -> str:
    return _entry(user, "pw_name")


def _entry(user: int, field: str) -> str:
    try:
        return str(getattr(pwd.getpwuid(user), field))
    except KeyError:
        return ""
