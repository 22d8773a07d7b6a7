"""The methods: each takes a stream of changes and a place to write to.

The documentation, the command line's errors and the hook all read the table below.
"""

from __future__ import annotations

from archive_overlay.system.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from contextlib import AbstractContextManager
    from typing import Callable, Protocol

    from archive_overlay.destination.paths import Paths
    from archive_overlay.destination.staging import Staging
    from archive_overlay.log import Log
    from archive_overlay.overlay.change import Change
    from archive_overlay.overlay.mount import OverlayMount
    from archive_overlay.overlay.store import Place
    from archive_overlay.settings import Settings
    from archive_overlay.system.flush import Flush
    from archive_overlay.system.patience import Patience

    class Request(Protocol):
        """What a method has to know of a request to find the archive's place.

        Attributes:
            container: id of the container that asks.
            name: of the archive.
            mount_point: the mount's destination in the container.
            archive_to: absolute path of the archive.
            if_exists: one of `IF_EXISTS`; "" where that is no question.
            parent: TAG or TAG@N: what a new tag begins with; "" for nothing.
            compression, level: of its tar; see `Target`.
            max_layers: how many layers the image may have: one of `LAYERS`.
            if_moved: what to do if the container started from something else than the tag's newest revision: one of
                `IF_MOVED`.
            base: whether a history begins with the container's image: one of `BASE`.
            keep: which revisions to keep, as the user says it; "" for all.
            message: what the user says of the revision; "" for nothing.
            load_as: by which name the engine is to have the revision; "" for none.
            push_to: where in a registry it is to be; "" for nowhere.
            owner: user and group id of everything in a tar; None for the true owners.
        """

        @property
        def container(self) -> str: ...
        @property
        def name(self) -> str: ...
        @property
        def mount_point(self) -> str: ...
        @property
        def archive_to(self) -> str: ...
        @property
        def if_exists(self) -> str: ...
        @property
        def parent(self) -> str: ...
        @property
        def compression(self) -> str: ...
        @property
        def level(self) -> int: ...
        @property
        def max_layers(self) -> int: ...
        @property
        def if_moved(self) -> str: ...
        @property
        def base(self) -> str: ...
        @property
        def keep(self) -> str: ...
        @property
        def message(self) -> str: ...
        @property
        def load_as(self) -> str: ...
        @property
        def push_to(self) -> str: ...
        @property
        def owner(self) -> tuple[int, int] | None: ...

    class Destination(Protocol):
        """Where an archive is to be visible.

        Attributes:
            path: absolute; symbolic links are resolved.
        """

        @property
        def path(self) -> str: ...

        def stage(self, flush: Flush, log: Log, file_mode: int | None = None) -> Staging:
            """Return the private place to make the archive in. See `Staging`."""

        def publish(self, staging: Staging, result: object) -> str:
            """Make the archive durable, and then visible.

            Args:
                staging: has the archive.
                result: what the method's `write` returned.

            Returns:
                What was done, for the summary; "" if there is nothing to add.

            Raises:
                ArchiveError: that was not possible.
            """

    class Tended(Destination, Protocol):
        """A destination with something to do after its archive is safe. Most have nothing, and are no more than above.

        Attributes:
            facts: what is known of the archive besides its path, for the administrator's programs.
            complaints: what is asked for besides the archive and cannot be done, as is known beforehand.
            outstanding: what is asked for and not done yet, a word or two each: "pushing it".
        """

        @property
        def facts(self) -> Mapping[str, object]: ...
        @property
        def complaints(self) -> Sequence[str]: ...
        @property
        def outstanding(self) -> Sequence[str]: ...

        def tend(self) -> list[str]:
            """Do what makes later archives cheaper, or is asked for besides the archive.

            All archives of the container have been made then, and what failed is rescued. Nothing that it does, or fails
            to do, takes the archive back.

            Returns:
                What was asked for and could not be done, one sentence each.

            Raises:
                ArchiveError: something of it cannot be done; the hook warns.
                OSError: the same.
            """

    class Compared(Destination, Protocol):
        """A destination that may have what the upperdir held at an earlier time, and wants only what has changed since.

        Attributes:
            compare: takes what gives all changes from the start, in the order of names, and may be called twice; the
                staging; and what takes warnings. It gives the changes that are to be written. None: all are to be.
        """

        @property
        def compare(
            self,
        ) -> (
            Callable[
                [Callable[[Log], AbstractContextManager[Iterator[Change]]], Staging, Log],
                AbstractContextManager[Iterator[Change]],
            ]
            | None
        ): ...

    class Noting(Destination, Protocol):
        """A destination that keeps what is known of the archive with it.

        Attributes:
            excluded: is set before publishing: how many entries were left out; None: none.
        """

        excluded: int | None

    class Writer(Protocol):
        """What each method's module has."""

        def require(self, compression: str) -> None:
            """Make sure that the machine has what the method needs with this compression.

            Raises:
                ArchiveError: it has not.
            """

        def judge(self, overlay: OverlayMount, *, keep_in_place: str) -> None:
            """Refuse what can be refused before anything is written.

            Raises:
                ArchiveError: the method cannot archive this overlay now.
            """

        def destination(
            self,
            request: Request,
            *,
            overlay: OverlayMount,
            container: Place,
            settings: Settings,
            paths: Paths,
            patience: Patience,
            log: Log,
        ) -> Destination:
            """Judge where the archive is to be visible.

            Args:
                request: says where.
                overlay: what is archived.
                container: what the runtime says of the container's place in an engine's store.
                settings: what the administrator allows.
                paths: where archives may be.
                patience: how long publishing may wait for other programs.
                log: is told if it does.

            Raises:
                ArchiveError: the archive cannot be there.
            """

        def write(self, changes: Iterator[Change], target: Target, log: Log) -> object:
            """Write the changes to the target.

            Returns:
                What `Destination.publish` has to know of the archive.

            Raises:
                ArchiveError: something cannot be stored, or a system call failed.
            """


WHITEOUTS = ("overlay", "oci")
OWNERS = ("container", "host")
IF_EXISTS = ("replace", "merge", "backup", "fail")
IF_MOVED = ("branch", "fail", "append")
BASE = ("", "include")
# podman before 4.4 mounts at most 128 layers, later releases and the kernel 500.
LAYERS = range(2, 501)
DEFAULT_LAYERS = 100


class Compression(Record):
    """A way to compress a tar.

    Attributes:
        name: as the annotation `compression` has it.
        levels: what `compression-level` may ask for; empty where there are no levels.
        default_level: what it is otherwise.
    """

    name: str
    levels: range
    default_level: int


COMPRESSIONS = {
    compression.name: compression
    for compression in (
        Compression(name="gzip", levels=range(1, 10), default_level=6),
        Compression(name="zstd", levels=range(1, 20), default_level=3),
        Compression(name="none", levels=range(0), default_level=0),
    )
}


class Method(Record):
    """A way to store a change set.

    Attributes:
        name: as the annotation `method` has it.
        makes: "directory", "file" or "layout" (an OCI image layout): what is then at `archive-to`.
        if_exists: what it can do with what is there already; the default is the first.
        room: the module that does it.
        compression: of the tar that it makes, or the default of it; "" if it makes none.
        keys: the annotations that mean something to it, besides those of all methods.
        renames: it takes the upperdir away, so it comes after all others.
        deletions_first: it wants what was deleted in a directory before what else is in it.
    """

    name: str
    makes: str
    if_exists: tuple[str, ...]
    room: str
    compression: str = ""
    keys: tuple[str, ...] = ()
    renames: bool = False
    deletions_first: bool = False


def _tar(name: str, compression: str) -> Method:
    return Method(
        name=name,
        makes="file",
        if_exists=("replace", "backup", "fail"),
        room="tar",
        compression=compression,
        keys=("tar-content-owner", "compression-level", "whiteouts"),
    )


METHODS = {
    method.name: method
    for method in (
        Method(name="copy", makes="directory", if_exists=("merge", "replace", "backup", "fail"), room="copy"),
        Method(
            name="move", makes="directory", if_exists=("backup", "replace", "fail"), room="move", renames=True
        ),
        _tar("tar", "none"),
        _tar("tar.gz", "gzip"),
        _tar("tar.zst", "zstd"),
        Method(
            name="oci",
            makes="layout",
            if_exists=(),
            room="oci",
            compression="gzip",
            keys=(
                "tar-content-owner",
                "compression",
                "compression-level",
                "parent",
                "max-layers",
                "if-moved",
                "base",
                "keep",
                "message",
                "load-as",
                "push-to",
            ),
            # Nothing can then be taken for deleted by what is beside it.
            deletions_first=True,
        ),
    )
}


class Target(Record):
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
        keep_in_place: why the upperdir itself is not to become the archive; "" if it may.
        max_bytes: that are written before compression; None: any number.
    """

    staging: Staging
    overlay: OverlayMount
    flush: Flush
    owner: tuple[int, int] | None = None
    compression: str = ""
    level: int = 0
    whiteouts: str = "overlay"
    jobs: int = 1
    keep_in_place: str = ""
    max_bytes: int | None = None


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
