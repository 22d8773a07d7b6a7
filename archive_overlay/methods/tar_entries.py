"""A change set as a tar, in the overlay's native form or in that of OCI image layers.

Source: OCI image specification, layer.md; overlayfs.rst, "whiteouts and opaque directories".
"""

from __future__ import annotations

import os

from archive_overlay.destination.staging import ARCHIVE
from archive_overlay.errors import ArchiveError, fail
from archive_overlay.marks import FUSE_SECURITY, FUSE_USER, OPAQUE_MARKER, TRUSTED, USER, WHITEOUT_PREFIX
from archive_overlay.overlay.change import (
    BLOCK_DEVICE,
    CHARACTER_DEVICE,
    DIRECTORY,
    FIFO,
    FILE,
    SOCKET,
    SYMLINK,
    WHITEOUT,
)
from archive_overlay.system import sparse
from archive_overlay.system.open_flags import CREATE
from archive_overlay.tar import compress, headers

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Callable

    from archive_overlay.log import Log
    from archive_overlay.methods import Target
    from archive_overlay.overlay.change import Change
    from archive_overlay.tar.compress import Sink, Writer

_RECORD = 20 * headers.BLOCK
# Headers and small files are gathered up to this size before they go on.
_GATHERED = 128 * 1024

_TYPE_FLAGS = {
    FILE: headers.REGULAR,
    SYMLINK: headers.SYMLINK,
    CHARACTER_DEVICE: headers.CHARACTER_DEVICE,
    BLOCK_DEVICE: headers.BLOCK_DEVICE,
    DIRECTORY: headers.DIRECTORY,
    FIFO: headers.FIFO,
}
_MOST_ZEROS = 64 * 1024**3
_SET_USER_ID = 0o4000
_SET_GROUP_ID = 0o2000

# What a reader of a layer could take for a mark of its own overlay, of whatever kind that is. Those of an
# overlay within the overlay are escaped, and mean nothing to anybody else.
_OVERLAY_ATTRIBUTES = (TRUSTED, USER, FUSE_USER, FUSE_SECURITY)
_ESCAPED_ATTRIBUTES = (f"{TRUSTED}overlay.", f"{USER}overlay.")


def write_tar(
    changes: Iterator[Change],
    target: Target,
    log: Log,
    *,
    opaque_attribute: str,
    mode: int,
    around_file: Callable[[Sink], Sink] = lambda file: file,
    around_tar: Callable[[Writer], Writer] = lambda tar: tar,
) -> None:
    """Write changes as a tar into a staging directory.

    Args:
        changes: from `overlay.upper`.
        target: where to, and in which form.
        log: takes warnings of what is left out.
        opaque_attribute: see `TarWriter`.
        mode: permission bits of the file, less the umask's.
        around_file: watches what is written to the file.
        around_tar: watches what is compressed.

    Raises:
        ArchiveError: something cannot be stored, or a system call failed.
    """
    change = None
    try:
        fd = os.open(ARCHIVE, CREATE, mode, dir_fd=target.staging.directory)
        try:
            output = compress.open_writer(
                around_file(compress.FileSink(fd)),
                compression=target.compression,
                level=target.level,
                jobs=target.jobs,
            )
            try:
                writer = TarWriter(
                    around_tar(output), opaque_attribute=opaque_attribute, owner=target.owner, log=log
                )
                for change in changes:
                    writer.add(change)
                writer.finish()
            finally:
                output.close()
        finally:
            os.close(fd)
    except OSError as error:
        path = change.path if change else ""
        fail(f"cannot write {path or '.'} into {target.staging.path}", error)


class TarWriter:
    """A tar that is being written.

    Args:
        output: where it goes.
        opaque_attribute: the attribute that makes a directory opaque, in the overlay's native form;
            empty for the form of OCI layers.
        owner: user and group id of everything; None for the true owners.
        log: takes warnings of what is left out.
    """

    def __init__(
        self, output: Writer, *, opaque_attribute: str, owner: tuple[int, int] | None, log: Log
    ) -> None:
        self._output = output
        self._opaque_attribute = opaque_attribute
        self._owner = owner
        self._log = log
        self._gathered = bytearray()
        self._length = 0

    def add(self, change: Change) -> None:
        """Add one change, and of a file its data.

        Raises:
            ArchiveError: the form has no way to say it, or the file changed while it was read.
            OSError: it cannot be read or written.
        """
        kind = change.kind
        if kind is SOCKET:
            self._log.warning(f"{change.path} is left out: it is a socket, which a tar cannot hold")
            return
        if not self._opaque_attribute and change.name.startswith(WHITEOUT_PREFIX):
            raise ArchiveError(
                f"{change.path} cannot be stored: in an OCI layer its name means that something was deleted"
            )
        if kind is WHITEOUT:
            self._add_whiteout(change)
        elif kind is DIRECTORY:
            self._add_directory(change)
        elif change.link_to is not None:
            link = b"./" + os.fsencode(change.link_to)
            self._gathered += self._headers(change, type_flag=headers.HARD_LINK, link=link)
        elif kind is FILE:
            self._add_file(change)
        else:
            self._gathered += self._headers(
                change, type_flag=_TYPE_FLAGS[kind], link=os.fsencode(change.target), device=change.rdev
            )
        if len(self._gathered) >= _GATHERED:
            self._flush()

    def finish(self) -> None:
        """Add the end, and finish the output.

        Raises:
            OSError: it cannot be written.
        """
        # Two blocks of zeros end a tar; GNU tar expects whole records.
        self._gathered += bytes(2 * headers.BLOCK)
        self._gathered += bytes(-(self._length + len(self._gathered)) % _RECORD)
        self._flush()
        self._output.finish()

    def _add_whiteout(self, change: Change) -> None:
        uid, gid = self._owner or (change.uid, change.gid)
        mtime_ns = change.mtime_ns // 10**9 * 10**9  # nobody ever sees it
        if self._opaque_attribute:
            name = b"./" + os.fsencode(change.path)
            type_flag = headers.CHARACTER_DEVICE
        else:
            name = b"./" + os.fsencode(f"{change.directory}{WHITEOUT_PREFIX}{change.name}")
            type_flag = headers.REGULAR
        self._gathered += headers.of_entry(
            name=name, type_flag=type_flag, mode=change.mode, uid=uid, gid=gid, mtime_ns=mtime_ns
        )

    def _add_directory(self, change: Change) -> None:
        name = b"./" + os.fsencode(change.path) + (b"/" if change.name else b"")
        attributes = change.attributes
        if change.opaque and self._opaque_attribute:
            attributes = {**attributes, self._opaque_attribute: b"y"}
        uid, gid = self._owner or (change.uid, change.gid)
        self._gathered += headers.of_entry(
            name=name,
            type_flag=headers.DIRECTORY,
            mode=change.mode,
            uid=uid,
            gid=gid,
            mtime_ns=change.mtime_ns,
            records=self._attribute_records(change, attributes) if attributes else None,
        )
        if change.opaque and not self._opaque_attribute:
            self._gathered += headers.of_entry(
                name=name + OPAQUE_MARKER.encode(),
                type_flag=headers.REGULAR,
                mode=0o600,
                uid=uid,
                gid=gid,
                mtime_ns=change.mtime_ns // 10**9 * 10**9,
            )

    def _add_file(self, change: Change) -> None:
        # In a layer holes are zeros (layer.md, "Sparse files SHOULD NOT be used"): an image with a sparse
        # entry can be pulled by podman, but not pushed or saved again.
        if change.sparse and not self._opaque_attribute:
            _refuse_endless_zeros(change)
        elif change.sparse:
            holes = SparseMap(change)
            if holes.stored_size < change.size:
                self._add_sparse(change, holes)
                return
            os.lseek(change.fd, 0, os.SEEK_SET)
        size = change.size
        if change.attributes:
            self._gathered += self._headers(change, type_flag=headers.REGULAR, size=size)
        else:
            name = b"./" + os.fsencode(change.path)
            uid, gid, mode = self._owner_and_mode(change)
            self._gathered += headers.of_file(name, mode, uid, gid, change.mtime_ns, size)
        if size < _GATHERED:
            self._gathered += change.contents()
        else:
            self._add_data(change, size)
            if os.read(change.fd, 1):
                raise change.changed()
        self._gathered += bytes(-size % headers.BLOCK)

    def _add_sparse(self, change: Change, holes: SparseMap) -> None:
        """Add a sparse file: its map, and what are no holes in it."""
        self._gathered += self._headers(
            change, type_flag=headers.REGULAR, size=holes.stored_size, records=holes.records(change)
        )
        for line in holes.lines(change):
            self._gathered += line
            if len(self._gathered) >= _GATHERED:
                self._flush()
        self._gathered += bytes(-holes.map_size % headers.BLOCK)
        stored = 0
        for offset, length in sparse.segments(change.fd, change.size):
            os.lseek(change.fd, offset, os.SEEK_SET)
            self._add_data(change, length)
            stored += length
        if stored != holes.data_size or os.fstat(change.fd).st_size != change.size:
            raise change.changed()
        self._gathered += bytes(-stored % headers.BLOCK)

    def _add_data(self, change: Change, size: int) -> None:
        """Add the next bytes of a file."""
        large = size >= _GATHERED
        if large:
            self._flush()
        left = size
        while left:
            data = os.read(change.fd, min(left, _GATHERED))
            if not data:
                raise change.changed()
            left -= len(data)
            if large:
                self._write(data)
                continue
            self._gathered += data
            if len(self._gathered) >= _GATHERED:
                self._flush()

    def _flush(self) -> None:
        self._write(self._gathered)
        self._gathered.clear()

    def _write(self, data: bytes | bytearray) -> None:
        self._output.write(data)
        self._length += len(data)

    def _headers(
        self,
        change: Change,
        *,
        type_flag: bytes,
        size: int = 0,
        link: bytes = b"",
        device: int = 0,
        records: dict[bytes, bytes] | None = None,
    ) -> bytes:
        uid, gid, mode = self._owner_and_mode(change)
        if change.attributes:
            records = {**(records or {}), **self._attribute_records(change, change.attributes)}
        return headers.of_entry(
            name=b"./" + os.fsencode(change.path),
            type_flag=type_flag,
            mode=mode,
            uid=uid,
            gid=gid,
            mtime_ns=change.mtime_ns,
            size=size,
            link=link,
            device=device,
            records=records,
        )

    def _owner_and_mode(self, change: Change) -> tuple[int, int, int]:
        if self._owner is None:
            return change.uid, change.gid, change.mode
        uid, gid = self._owner
        return uid, gid, self._mode_for_another_owner(change, uid, gid)

    def _mode_for_another_owner(self, change: Change, uid: int, gid: int) -> int:
        # A set-user-ID bit says "run as the owner": without the owner it would say something that
        # nobody in the container said.
        lost = 0
        if change.kind is FILE:
            lost |= _SET_USER_ID if uid != change.uid else 0
            lost |= _SET_GROUP_ID if gid != change.gid else 0
        if change.mode & lost:
            self._log.warning(
                f"{change.path}: set-user-ID and set-group-ID are left out, because tar-content-owner replaces"
                " its owner"
            )
        return change.mode & ~lost

    def _attribute_records(self, change: Change, attributes: dict[str, bytes]) -> dict[bytes, bytes]:
        records = {}
        shown = change.path or "."
        for name, value in attributes.items():
            key = os.fsencode(name)
            if not self._opaque_attribute:
                if name.startswith(_OVERLAY_ATTRIBUTES) and not name.startswith(_ESCAPED_ATTRIBUTES):
                    self._log.warning(
                        f"{shown}: the attribute {name} is left out, because readers of OCI layers act on it"
                    )
                    continue
                if b"=" in key:
                    raise ArchiveError(
                        f"the attribute {name} of {shown} cannot be stored: OCI layers have no form for ="
                    )
            elif b"=" in key:
                self._log.warning(
                    f"{shown}: the attribute {name} has = in its name, which not every program that reads"
                    " tars restores; GNU tar does"
                )
                key = key.replace(b"%", b"%25").replace(b"=", b"%3D")
            records[b"SCHILY.xattr." + key] = value
        return records


def _refuse_endless_zeros(change: Change) -> None:
    # A container can make a file with 8 EiB of holes in no time; to write so many zeros takes for ever.
    holes = change.size - os.fstat(change.fd).st_blocks * 512
    if holes > _MOST_ZEROS:
        raise ArchiveError(
            f"{change.path} cannot be stored: it has {holes} bytes of holes, which OCI layers hold as zeros",
            hint=f"{_MOST_ZEROS} are possible; the other methods keep holes",
        )


class SparseMap:
    """How a sparse file is stored: a map of its segments, then the segments, without the holes.

    The map is a list of decimal numbers, a line each: how many segments there are, and the offset and
    the length of each. A hole at the end is shown by a segment of no length. The segments are not kept
    here, for a file may have millions: they are asked for again.

    Args:
        change: the file.

    Attributes:
        map_size, data_size: in bytes, without padding.

    Source: GNU tar manual, "Storing Sparse Files", PAX format, version 1.0; Python's tarfile and Go's
    archive/tar read it too.
    """

    def __init__(self, change: Change) -> None:
        self._count = 0
        self.data_size = 0
        self.map_size = 0
        end = 0
        for offset, length in sparse.segments(change.fd, change.size):
            self._count += 1
            self.data_size += length
            self.map_size += len(_map_line(offset, length))
            end = offset + length
        self._ends_in_a_hole = end < change.size
        if self._ends_in_a_hole:
            self._count += 1
            self.map_size += len(_map_line(change.size, 0))
        self.map_size += len(b"%d\n" % self._count)

    @property
    def stored_size(self) -> int:
        """Bytes of the map and the segments together, the map padded to blocks."""
        return self.map_size + -self.map_size % headers.BLOCK + self.data_size

    def records(self, change: Change) -> dict[bytes, bytes]:
        """Give the records of the extended header."""
        name = os.fsencode(change.name)
        return {
            # First, because Python's tarfile believes the last one that names the file.
            b"path": b"./" + os.fsencode(change.directory) + b"GNUSparseFile.0/" + name,
            b"GNU.sparse.major": b"1",
            b"GNU.sparse.minor": b"0",
            b"GNU.sparse.name": b"./" + os.fsencode(change.path),
            b"GNU.sparse.realsize": b"%d" % change.size,
        }

    def lines(self, change: Change) -> Iterator[bytes]:
        """Give the map."""
        yield b"%d\n" % self._count
        for offset, length in sparse.segments(change.fd, change.size):
            yield _map_line(offset, length)
        if self._ends_in_a_hole:
            yield _map_line(change.size, 0)


def _map_line(offset: int, length: int) -> bytes:
    return b"%d\n%d\n" % (offset, length)
