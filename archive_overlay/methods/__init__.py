"""The methods: each takes a stream of changes and a place to write to.

The documentation, the command line's errors and the hook all read the table below.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Protocol

    from archive_overlay.destination.staging import Staging
    from archive_overlay.layout.add_layer import Layer
    from archive_overlay.log import Log
    from archive_overlay.overlay.change import Change
    from archive_overlay.overlay.locate import OverlayMount
    from archive_overlay.system.flush import Flush

    class Writer(Protocol):
        """What each method's room has."""

        def require(self, compression: str) -> None:
            """Make sure that the machine has what the method needs with this compression.

            Raises:
                ArchiveError: it has not.
            """

        def judge(self, overlay: OverlayMount, *, may_rename: bool) -> None:
            """Refuse what can be refused before anything is written.

            Raises:
                ArchiveError: the method cannot archive this overlay now.
            """

        def write(self, changes: Iterator[Change], target: Target, log: Log) -> Layer | None:
            """Write the changes to the target.

            Returns:
                What an image layout must know of a layer; None for all other methods.

            Raises:
                ArchiveError: something cannot be stored, or a system call failed.
            """


WHITEOUTS = ("overlay", "oci")
IF_EXISTS = ("replace", "merge", "backup", "fail")


class Compression:
    """A way to compress a tar.

    Attributes:
        name: as the annotation `compression` has it.
        levels: what `compression-level` may ask for; empty where there are no levels.
        default_level: what it is otherwise.
    """

    __slots__ = ("default_level", "levels", "name")

    def __init__(self, name: str, levels: range, default_level: int) -> None:
        self.name = name
        self.levels = levels
        self.default_level = default_level


COMPRESSIONS = {
    compression.name: compression
    for compression in (
        Compression("gzip", range(1, 10), 6),
        Compression("zstd", range(1, 20), 3),
        Compression("none", range(0), 0),
    )
}


class Method:
    """A way to store a change set.

    Attributes:
        name: as the annotation `method` has it.
        makes: "directory", "file" or "layout" (an OCI image layout): what is then at `archive-to`.
        if_exists: what it can do with what is there already; the default is the first.
        room: the module that does it.
        compression: of the tar that it makes, or the default of it; "" if it makes none.
        keys: the annotations that mean something to it, besides those of all methods.
    """

    __slots__ = ("compression", "if_exists", "keys", "makes", "name", "room")

    def __init__(
        self,
        name: str,
        *,
        makes: str,
        if_exists: tuple[str, ...],
        room: str,
        compression: str = "",
        keys: tuple[str, ...] = (),
    ) -> None:
        self.name = name
        self.makes = makes
        self.if_exists = if_exists
        self.room = room
        self.compression = compression
        self.keys = keys


def _tar(name: str, compression: str) -> Method:
    return Method(
        name,
        makes="file",
        if_exists=("replace", "backup", "fail"),
        room="tar",
        compression=compression,
        keys=("tar-content-owner", "compression-level", "whiteouts"),
    )


METHODS = {
    method.name: method
    for method in (
        Method("copy", makes="directory", if_exists=("merge", "replace", "backup", "fail"), room="copy"),
        Method("move", makes="directory", if_exists=("backup", "replace", "fail"), room="move"),
        _tar("tar", "none"),
        _tar("tar.gz", "gzip"),
        _tar("tar.zst", "zstd"),
        Method(
            "oci",
            makes="layout",
            if_exists=(),
            room="oci",
            compression="gzip",
            keys=("tar-content-owner", "compression", "compression-level", "parent"),
        ),
    )
}


class Target:
    """Where a method writes to, and what it must know about the form of the archive.

    Attributes:
        staging: where the archive is made; it is called `staging.ARCHIVE` in there.
        overlay: what is archived.
        owner: user and group id of everything in a tar; None for the true owners.
        compression: of a tar: a name in `COMPRESSIONS`.
        level: of the compression.
        whiteouts: how a tar says that something was deleted: "overlay" or "oci".
        jobs: how many threads may work; 0: as many as there are processors for this process.
        flush: when something counts as written.
        may_rename: whether the upperdir may become the archive as it is, nobody having looked at it.
    """

    __slots__ = (
        "compression",
        "flush",
        "jobs",
        "level",
        "may_rename",
        "overlay",
        "owner",
        "staging",
        "whiteouts",
    )

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
        may_rename: bool = True,
    ) -> None:
        self.staging = staging
        self.overlay = overlay
        self.owner = owner
        self.compression = compression
        self.level = level
        self.whiteouts = whiteouts
        self.jobs = jobs
        self.flush = flush
        self.may_rename = may_rename


def load(method: Method, compression: str) -> Writer:
    """Import a method's room, and with it all that the method needs.

    Args:
        method: which one.
        compression: the one that is asked for, a name in `COMPRESSIONS`; "" for none.

    Raises:
        ArchiveError: something that the method needs is not on this machine.
    """
    module: Writer = __import__(f"{__name__}.{method.room}", fromlist=["write"])
    module.require(compression)
    return module
