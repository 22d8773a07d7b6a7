"""The methods: each takes a stream of changes and a place to write to.

The documentation, the command line's errors and the hook all read the table below.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Protocol

    from archive_overlay.log import Log
    from archive_overlay.overlay.changes import Change

    class Writer(Protocol):
        """What each method's room has."""

        def write(self, changes: Iterator[Change], target: Target, log: Log) -> None:
            """Write the changes to the target.

            Raises:
                ArchiveError: something cannot be stored, or a system call failed.
            """


IF_EXISTS = ("replace", "merge", "backup", "fail")


class Method:
    """A way to store a change set.

    Attributes:
        name: as the annotation `method` has it.
        makes: "directory" or "file": what is then at `archive-to`.
        if_exists: what it can do with what is there already; the default is the first.
        room: the module that does it.
    """

    __slots__ = ("if_exists", "makes", "name", "room")

    def __init__(self, name: str, *, makes: str, if_exists: tuple[str, ...], room: str) -> None:
        self.name = name
        self.makes = makes
        self.if_exists = if_exists
        self.room = room


METHODS = {
    method.name: method
    for method in (
        Method("copy", makes="directory", if_exists=("merge", "replace", "backup", "fail"), room="copy"),
        Method("tar.gz", makes="file", if_exists=("replace", "backup", "fail"), room="tar"),
    )
}


class Target:
    """Where a method writes to, and what it must know about the form of the archive.

    Attributes:
        directory: file descriptor of the directory in which the archive is made.
        name: the archive's name there; nothing has that name yet.
        opaque_attribute: the extended attribute that makes a directory opaque when it is "y".
        owner: user and group id of everything in a tar; None for the true owners.
    """

    __slots__ = ("directory", "name", "opaque_attribute", "owner")

    def __init__(
        self, *, directory: int, name: str, opaque_attribute: str, owner: tuple[int, int] | None
    ) -> None:
        self.directory = directory
        self.name = name
        self.opaque_attribute = opaque_attribute
        self.owner = owner


def load(method: Method) -> Writer:
    """Import a method's room, and with it all that the method needs."""
    module: Writer = __import__(f"{__name__}.{method.room}", fromlist=["write"])
    return module
