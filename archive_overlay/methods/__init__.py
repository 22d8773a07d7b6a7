"""The methods: each takes a stream of changes and a place to write to.

The documentation, the command line's errors and the hook all read the table below.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Protocol

    from archive_overlay.flush import Flush
    from archive_overlay.log import Log
    from archive_overlay.overlay.changes import Change
    from archive_overlay.overlay.locate import OverlayMount
    from archive_overlay.staging import Staging

    class Writer(Protocol):
        """What each method's room has."""

        def require(self, method: Method) -> None:
            """Make sure that the machine has what the method needs.

            Raises:
                ArchiveError: it has not.
            """

        def write(self, changes: Iterator[Change], target: Target, log: Log) -> None:
            """Write the changes to the target.

            Raises:
                ArchiveError: something cannot be stored, or a system call failed.
            """


WHITEOUTS = ("overlay", "oci")
IF_EXISTS = ("replace", "merge", "backup", "fail")


class Method:
    """A way to store a change set.

    Attributes:
        name: as the annotation `method` has it.
        makes: "directory" or "file": what is then at `archive-to`.
        if_exists: what it can do with what is there already; the default is the first.
        room: the module that does it.
        compression: of a tar: "none", "gzip" or "zstd"; "" for anything but a tar.
        levels: the levels that `compression-level` may ask for; the default is apart from them.
        default_level: see there.
    """

    __slots__ = ("compression", "default_level", "if_exists", "levels", "makes", "name", "room")

    def __init__(
        self,
        name: str,
        *,
        makes: str,
        if_exists: tuple[str, ...],
        room: str,
        compression: str = "",
        levels: range = range(0),
        default_level: int = 0,
    ) -> None:
        self.name = name
        self.makes = makes
        self.if_exists = if_exists
        self.room = room
        self.compression = compression
        self.levels = levels
        self.default_level = default_level


_FILE_IF_EXISTS = ("replace", "backup", "fail")

METHODS = {
    method.name: method
    for method in (
        Method("copy", makes="directory", if_exists=("merge", "replace", "backup", "fail"), room="copy"),
        Method("move", makes="directory", if_exists=("backup", "replace", "fail"), room="move"),
        Method("tar", makes="file", if_exists=_FILE_IF_EXISTS, room="tar", compression="none"),
        Method(
            "tar.gz",
            makes="file",
            if_exists=_FILE_IF_EXISTS,
            room="tar",
            compression="gzip",
            levels=range(1, 10),
            default_level=6,
        ),
        Method(
            "tar.zst",
            makes="file",
            if_exists=_FILE_IF_EXISTS,
            room="tar",
            compression="zstd",
            levels=range(1, 20),
            default_level=3,
        ),
    )
}


class Target:
    """Where a method writes to, and what it must know about the form of the archive.

    Attributes:
        staging: where the archive is made; it is called `staging.ARCHIVE` in there.
        overlay: what is archived.
        owner: user and group id of everything in a tar; None for the true owners.
        compression: of a tar: "none", "gzip" or "zstd".
        level: of the compression.
        whiteouts: how a tar says that something was deleted: "overlay" or "oci".
        jobs: how many threads may work; 0: as many as there are processors for this process.
        flush: when something counts as written.
    """

    __slots__ = ("compression", "flush", "jobs", "level", "overlay", "owner", "staging", "whiteouts")

    def __init__(
        self,
        *,
        staging: Staging,
        overlay: OverlayMount,
        owner: tuple[int, int] | None = None,
        compression: str = "",
        level: int = 0,
        whiteouts: str = "overlay",
        jobs: int = 1,
        flush: Flush,
    ) -> None:
        self.staging = staging
        self.overlay = overlay
        self.owner = owner
        self.compression = compression
        self.level = level
        self.whiteouts = whiteouts
        self.jobs = jobs
        self.flush = flush


def load(method: Method) -> Writer:
    """Import a method's room, and with it all that the method needs.

    Raises:
        ArchiveError: something that the method needs is not on this machine.
    """
    module: Writer = __import__(f"{__name__}.{method.room}", fromlist=["write"])
    module.require(method)
    return module
