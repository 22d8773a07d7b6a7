"""What is in an archive, read by GNU tar or Python's tarfile rather than by the project's own code."""

from __future__ import annotations

import tarfile
from dataclasses import dataclass, field
from decimal import Decimal
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.engines import Engine

_KINDS = {
    tarfile.REGTYPE: "file",
    tarfile.DIRTYPE: "directory",
    tarfile.SYMTYPE: "symlink",
    tarfile.LNKTYPE: "hard link",
    tarfile.FIFOTYPE: "FIFO",
    tarfile.CHRTYPE: "character device",
    tarfile.BLKTYPE: "block device",
}
_ATTRIBUTE = "SCHILY.xattr."


@dataclass(frozen=True)
class Entry:
    """One name of an archive.

    Attributes:
        kind: "file", "directory" and so on; of several names of one file, all but one are hard links.
        mode: permissions with the set-user-ID, set-group-ID and sticky bits.
        owner: user and group, as the container counts them.
        mtime_ns: nanoseconds since 1970.
        content: a file's data.
        target: of a symlink, or the other name of a hard link.
        device: major and minor number of a device node.
        attributes: extended attributes.
    """

    kind: str
    mode: int
    owner: tuple[int, int]
    mtime_ns: int
    content: bytes = b""
    target: str = ""
    device: tuple[int, int] = (0, 0)
    attributes: dict[str, str] = field(default_factory=dict)

    @property
    def is_whiteout(self) -> bool:
        """Whether an overlay takes it for a deleted name."""
        return self.kind == "character device" and self.device == (0, 0)


def read_directory(engine: Engine, directory: str) -> dict[str, Entry]:
    """Read the archive that is a directory, in the user namespace of the engine's containers.

    Args:
        engine: whose hook wrote it.
        directory: a path on the machine.
    """
    packed = f"{directory}.as-seen-by-root.tar"
    engine.as_container_root(
        *("tar", "--format=pax", "--xattrs", "--xattrs-include=*", "--numeric-owner"),
        *("-C", directory, "-cf", packed, "."),
    )
    outside = engine.machine.outside(packed)
    entries = read_tar(outside)
    outside.unlink()
    return entries


def read_tar(archive: Path) -> dict[str, Entry]:
    """Read the archive that is a tar file, compressed or not; "." is the top."""
    entries = {}
    with tarfile.open(archive) as tar:
        for member in tar:
            name = member.name[2:] if member.name.startswith("./") else member.name
            assert name not in entries, f"{name} is twice in {archive}"
            data = tar.extractfile(member) if member.isreg() else None
            entries[name] = Entry(
                kind=_KINDS[member.type],
                mode=member.mode,
                owner=(member.uid, member.gid),
                mtime_ns=int(Decimal(member.pax_headers.get("mtime", int(member.mtime))) * 10**9),
                content=data.read() if data else b"",
                target=member.linkname,
                device=(member.devmajor, member.devminor) if member.isdev() else (0, 0),
                attributes={
                    key[len(_ATTRIBUTE) :]: value
                    for key, value in member.pax_headers.items()
                    if key.startswith(_ATTRIBUTE)
                },
            )
    return entries
