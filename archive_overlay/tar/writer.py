"""A change set as a tar, in the overlay's native form or in that of OCI image layers.

Source: OCI image specification, layer.md; overlayfs.rst, "whiteouts and opaque directories".
"""

from __future__ import annotations

import os

from archive_overlay.errors import ArchiveError
from archive_overlay.log import Repeated
from archive_overlay.marks import (
    FORM_COMMENT,
    FORMS,
    FUSE_SECURITY,
    FUSE_USER,
    OPAQUE_MARKER,
    TRUSTED,
    USER,
    WHITEOUT_PREFIX,
)
from archive_overlay.overlay.change import (
    BLOCK_DEVICE,
    CHARACTER_DEVICE,
    DIRECTORY,
    FIFO,
    FILE,
    SOCKET,
    SYMLINK,
    WHITEOUT,
    Allowance,
    LargeAttributes,
)
from archive_overlay.system import sparse
from archive_overlay.system.activity import NOW
from archive_overlay.tar import headers

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from archive_overlay.log import Log
    from archive_overlay.overlay.change import Change
    from archive_overlay.tar.compress import Writer

_RECORD = 20 * headers.BLOCK
_ZEROS = bytes(headers.BLOCK)
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
_ATTRIBUTE = b"SCHILY.xattr."
_OWN_RECORDS = 16  # an extended header has fewer besides attributes
# Nothing that reads tars takes such a path. Each entry has its own, so a tree that deep makes a large tar.
_LONGEST_PATH = 1024 * 1024
_DEEP = (
    _LONGEST_PATH // 256
)  # so many directories; above them no path is longer, as a name has 255 bytes at most
_DEEP_IN_LAYER = headers.LONGEST_PATH_OF_LAYER // 256
_MOST_ZEROS = 64 * 1024**3
_WAY_OUT = "method copy can hold it, and so can tar without whiteouts=oci"
_SET_USER_ID = 0o4000
_SET_GROUP_ID = 0o2000

# What a reader of a layer could take for a mark of its own overlay, of whatever kind that is. Those of an
# overlay within the overlay are escaped, and mean nothing to anybody else.
_OVERLAY_ATTRIBUTES = (TRUSTED, USER, FUSE_USER, FUSE_SECURITY)
_ESCAPED_ATTRIBUTES = (f"{TRUSTED}overlay.", f"{USER}overlay.")


class TarWriter:
    """A tar that is being written.

    Args:
        output: where it goes.
        opaque_attribute: the attribute that makes a directory opaque, in the overlay's native form;
            empty for the form of OCI layers.
        owner: user and group id of everything; None for the true owners.
        max_bytes: of the tar; None: any number.
        log: takes warnings of what is left out.
    """

    def __init__(
        self,
        output: Writer,
        *,
        opaque_attribute: str,
        owner: tuple[int, int] | None,
        max_bytes: int | None = None,
        log: Log,
    ) -> None:
        self._output = output
        self._opaque_attribute = opaque_attribute
        self._owner = owner
        self._warnings = Repeated(log)
        # In pieces: a buffer that grows is moved in memory dozens of times before it is full.
        self._gathered: list[bytes] = []
        self._gathered_size = 0
        self._length = 0
        self._allowance = Allowance(max_bytes)
        self._zeros = 0  # that holes have become

    def add(self, change: Change) -> None:
        """Add one change, and of a file its data.

        Raises:
            ArchiveError: the form has no way to say it, or the file changed while it was read.
            OSError: it cannot be read or written.
        """
        kind = change.kind
        if kind is SOCKET:
            self._warnings.warning(
                "sockets left out",
                " is left out: it is a socket, which a tar cannot hold",
                path=lambda: change.shown,
            )
            return
        if not self._opaque_attribute:
            if change.name.startswith(WHITEOUT_PREFIX):
                raise ArchiveError(
                    f"{change.shown} cannot be stored: in an OCI layer its name means that something was deleted"
                )
            if change.directory.depth >= _DEEP_IN_LAYER:
                _judge_length(change)
        if kind is WHITEOUT:
            self._add_whiteout(change)
        elif kind is DIRECTORY:
            self._add_directory(change)
        elif change.link_to is not None:
            link = b"./" + os.fsencode(change.link_to.text)
            self._add_header(change, type_flag=headers.HARD_LINK, link=link)
        elif kind is FILE:
            self._add_file(change)
        else:
            self._add_header(
                change, type_flag=_TYPE_FLAGS[kind], link=os.fsencode(change.target), device=change.rdev
            )
        if self._gathered_size >= _GATHERED:
            self._flush()

    def finish(self) -> None:
        """Add the end, and finish the output.

        Raises:
            OSError: it cannot be written.
        """
        # Two blocks of zeros end a tar; GNU tar expects whole records.
        self._gather(bytes(2 * headers.BLOCK))
        self._gather(bytes(-(self._length + self._gathered_size) % _RECORD))
        self._flush()
        self._output.finish()
        self._warnings.finish()

    def _add_whiteout(self, change: Change) -> None:
        uid, gid = self._owner or (change.uid, change.gid)
        mtime_ns = change.mtime_ns // 10**9 * 10**9  # nobody ever sees it
        name = _path(change)
        type_flag = headers.CHARACTER_DEVICE
        if not self._opaque_attribute:
            directory, _, own_name = name.rpartition(b"/")
            name = b"%b/%b%b" % (directory, WHITEOUT_PREFIX.encode(), own_name)
            type_flag = headers.REGULAR
        self._gather(
            headers.of_entry(
                name=name, type_flag=type_flag, mode=change.mode, uid=uid, gid=gid, mtime_ns=mtime_ns
            )
        )

    def _add_directory(self, change: Change) -> None:
        name = _path(change) + (b"/" if change.name else b"")
        marks = {}
        if not change.name:
            marks[b"comment"] = f"{FORM_COMMENT}{FORMS[self._opaque_attribute]}".encode()
        if change.opaque and self._opaque_attribute:
            marks[_ATTRIBUTE + os.fsencode(self._opaque_attribute)] = b"y"
        if not change.implicit or self._opaque_attribute:
            self._add_header(change, type_flag=headers.DIRECTORY, name=name, records=marks)
        if change.opaque and not self._opaque_attribute:
            uid, gid = self._owner or (change.uid, change.gid)
            self._gather(
                headers.of_entry(
                    name=name + OPAQUE_MARKER.encode(),
                    type_flag=headers.REGULAR,
                    mode=0o600,
                    uid=uid,
                    gid=gid,
                    mtime_ns=change.mtime_ns // 10**9 * 10**9,
                )
            )

    def _add_file(self, change: Change) -> None:
        # In a layer holes are zeros (layer.md, "Sparse files SHOULD NOT be used"): an image with a sparse
        # entry can be pulled by podman, but not pushed or saved again.
        if change.sparse and not self._opaque_attribute:
            self._refuse_endless_zeros(change)
        elif change.sparse:
            holes = SparseMap(change)
            if holes.segments <= headers.MOST_SEGMENTS and holes.stored_size < change.size:
                self._add_sparse(change, holes)
                return
            self._refuse_endless_zeros(change)
            os.lseek(change.fd, 0, os.SEEK_SET)
        size = change.size
        self._allowance.expect(self._gathered_size + size)
        if change.attributes:
            self._add_header(change, type_flag=headers.REGULAR, size=size)
        else:
            uid, gid, mode = self._owner_and_mode(change)
            header = headers.of_file(_path(change), mode, uid, gid, change.mtime_ns, size)
            if size < _GATHERED and change.pieces is None:  # nearly all
                padding = -size % headers.BLOCK
                self._gathered += header, change.contents(), _ZEROS[:padding]
                self._gathered_size += len(header) + size + padding
                return
            self._gather(header)
        if change.pieces is not None:
            self._add_pieces(change, change.pieces)
        elif size < _GATHERED:
            self._gather(change.contents())
        else:
            self._add_data(change, size)
            if os.read(change.fd, 1):
                raise change.changed()
        self._gather(_ZEROS[: -size % headers.BLOCK])

    def _add_sparse(self, change: Change, holes: SparseMap) -> None:
        """Add a sparse file: its map, and what are no holes in it."""
        self._add_header(
            change, type_flag=headers.REGULAR, size=holes.stored_size, records=holes.records(change)
        )
        for line in holes.lines(change):
            self._gather(line)
            if self._gathered_size >= _GATHERED:
                self._flush()
        self._gather(bytes(-holes.map_size % headers.BLOCK))
        stored = 0
        for offset, length in sparse.segments(change.fd, change.size):
            os.lseek(change.fd, offset, os.SEEK_SET)
            self._add_data(change, length)
            stored += length
        if stored != holes.data_size or os.fstat(change.fd).st_size != change.size:
            raise change.changed()
        self._gather(bytes(-stored % headers.BLOCK))

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
            NOW.read += len(data)
            left -= len(data)
            if large:
                self._write(data)
                continue
            self._gather(data)
            if self._gathered_size >= _GATHERED:
                self._flush()

    def _add_pieces(self, change: Change, pieces: Iterator[tuple[int, bytes]]) -> None:
        """Add the data of a file that come in pieces."""
        self._flush()
        end = 0
        for offset, piece in pieces:
            self._add_zeros(change, offset - end)
            self._write(piece)
            end = offset + len(piece)
        self._add_zeros(change, change.size - end)

    def _add_zeros(self, change: Change, count: int) -> None:
        if count < 0:
            raise change.changed()
        self._count_zeros(change, count)
        zeros = bytes(min(count, _GATHERED))
        while count:
            self._write(zeros[:count])
            count -= min(count, _GATHERED)

    def _refuse_endless_zeros(self, change: Change) -> None:
        # A container can make files with 8 EiB of holes in no time; to write so many zeros takes for ever.
        self._count_zeros(change, max(0, change.size - os.fstat(change.fd).st_blocks * 512))

    def _count_zeros(self, change: Change, count: int) -> None:
        self._zeros += count
        if self._zeros > _MOST_ZEROS:
            raise ArchiveError(
                f"{change.shown} cannot be stored: with it the archive has {self._zeros} bytes of holes that are"
                " stored as zeros",
                hint=f"{_MOST_ZEROS} are possible; method copy keeps all holes",
            )

    def _flush(self) -> None:
        self._write(b"".join(self._gathered))
        self._gathered.clear()
        self._gathered_size = 0

    def _gather(self, data: bytes) -> None:
        self._gathered.append(data)
        self._gathered_size += len(data)

    def _write(self, data: bytes | bytearray) -> None:
        self._allowance.take(len(data))
        self._output.write(data)
        self._length += len(data)

    def _add_header(
        self,
        change: Change,
        *,
        type_flag: bytes,
        name: bytes = b"",
        size: int = 0,
        link: bytes = b"",
        device: int = 0,
        records: dict[bytes, bytes] | None = None,
    ) -> None:
        """Add the header of an entry.

        Args:
            change: the entry.
            name: its path in the tar, if that is not the change's.
            records: further records of the extended header.
            type_flag, size, link, device: see `headers.of_entry`.
        """
        uid, gid, mode = self._owner_and_mode(change)
        attributes = change.attributes
        keys = self._attribute_keys(change) if attributes else []
        large = isinstance(attributes, LargeAttributes)
        if keys and not large:
            records = {**{key: attributes[name] for key, name in keys}, **(records or {})}
        header = headers.of_entry(
            name=name or _path(change),
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
        if isinstance(attributes, LargeAttributes):
            self._add_large(change, header, attributes, keys)
        else:
            self._gather(header)

    def _add_large(
        self, change: Change, header: bytes, attributes: LargeAttributes, keys: list[tuple[bytes, str]]
    ) -> None:
        """Add a header with attributes that are too many to be held: they are read and written one by one."""
        size = sum(headers.record_size(key, attributes.sizes[name]) for key, name in keys)
        whole = size + headers.records_size(header)
        if (
            not self._opaque_attribute
            and headers.LARGEST_EXTENDED_OF_LAYER < whole <= headers.LARGEST_EXTENDED
        ):
            raise ArchiveError(
                f"{change.shown} cannot be stored in a layer: its {len(keys)} extended attributes take {size} bytes,"
                f" and podman, umoci and others read no header with more than {headers.LARGEST_EXTENDED_OF_LAYER}",
                hint=_WAY_OUT,
            )
        if whole > headers.LARGEST_EXTENDED or len(keys) + _OWN_RECORDS > headers.MOST_RECORDS:
            raise ArchiveError(
                f"{change.shown} cannot be stored in a tar: its {len(keys)} extended attributes take {size} bytes, and"
                f" no header with more than {headers.LARGEST_EXTENDED} bytes or {headers.MOST_RECORDS} records can"
                " be read again",
                hint="method copy can hold them",
            )
        before, after = headers.with_room(header, size)
        self._gather(before)
        for key, name in keys:
            self._gather(headers.record(key, attributes[name]))
            if self._gathered_size >= _GATHERED:
                self._flush()
        self._gather(after)

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
            self._warnings.warning(
                "set-user-ID and set-group-ID left out",
                ": set-user-ID and set-group-ID are left out, because tar-content-owner replaces its owner",
                path=lambda: change.shown,
            )
        return change.mode & ~lost

    def _attribute_keys(self, change: Change) -> list[tuple[bytes, str]]:
        """Return the keys by which a tar has attributes, and the attributes' names."""
        keys = []
        attributes = change.attributes
        sizes = attributes.sizes if isinstance(attributes, LargeAttributes) else None
        for name in attributes:
            key = os.fsencode(name)
            if not self._opaque_attribute:
                if name.startswith(_OVERLAY_ATTRIBUTES) and not name.startswith(_ESCAPED_ATTRIBUTES):
                    self._warnings.warning(
                        "attributes left out",
                        f": the attribute {name} is left out, because readers of OCI layers act on it",
                        path=lambda: change.shown,
                    )
                    continue
                if not (attributes[name] if sizes is None else sizes[name]):
                    self._warnings.warning(
                        "attributes without a value",
                        f": the attribute {name} has no value, and podman, umoci and others leave such an attribute"
                        " out when they read the layer",
                        path=lambda: change.shown,
                    )
                if b"=" in key:
                    raise ArchiveError(
                        f"the attribute {name} of {change.shown} cannot be stored: in OCI layers, names of attributes cannot contain ="
                    )
            elif b"=" in key:
                self._warnings.warning(
                    "attributes with = in their names",
                    f": the attribute {name} has = in its name, which not every program that reads tars restores; GNU"
                    " tar does",
                    path=lambda: change.shown,
                )
                key = key.replace(b"%", b"%25").replace(b"=", b"%3D")
            keys.append((_ATTRIBUTE + key, name))
        return keys


def _judge_length(change: Change) -> None:
    """Refuse a path that is too long for readers of layers. Its parents' have been judged, so it is not endless."""
    length = len(os.fsencode(change.path))
    if length > headers.LONGEST_PATH_OF_LAYER:
        raise ArchiveError(
            f"{change.shown} cannot be stored in a layer: its path has {length} bytes, and podman, umoci and others"
            f" take {headers.LONGEST_PATH_OF_LAYER} at most",
            hint=_WAY_OUT,
        )


def _path(change: Change) -> bytes:
    """Return the path that an entry has in a tar.

    Raises:
        ArchiveError: it is longer than any.
    """
    directory = change.directory
    if directory.depth < _DEEP:
        return b"./" + os.fsencode(change.path)
    if directory.length + len(change.name) <= _LONGEST_PATH:
        path = b"./" + os.fsencode(change.path)
        if len(path) <= _LONGEST_PATH:
            return path
    raise ArchiveError(
        f"{change.shown} cannot be stored in a tar: its path has more than {_LONGEST_PATH} bytes",
        hint="method copy can hold it",
    )


class SparseMap:
    """How a sparse file is stored: a map of its segments, then the segments, without the holes.

    The map is a list of decimal numbers, a line each: how many segments there are, and the offset and
    the length of each. A hole at the end is shown by a segment of no length. The segments are not kept
    here, for a file may have millions: they are asked for again.

    Args:
        change: the file.

    Attributes:
        segments: how many there are.
        map_size, data_size: in bytes, without padding.

    Source: GNU tar manual, "Storing Sparse Files", PAX format, version 1.0; Python's tarfile and Go's
    archive/tar read it too.
    """

    def __init__(self, change: Change) -> None:
        self.segments = 0
        self.data_size = 0
        self.map_size = 0
        end = 0
        for offset, length in sparse.segments(change.fd, change.size):
            self.segments += 1
            self.data_size += length
            self.map_size += len(_map_line(offset, length))
            end = offset + length
        self._ends_in_a_hole = end < change.size
        if self._ends_in_a_hole:
            self.segments += 1
            self.map_size += len(_map_line(change.size, 0))
        self.map_size += len(b"%d\n" % self.segments)

    @property
    def stored_size(self) -> int:
        """Bytes of the map and the segments together, the map padded to blocks."""
        return self.map_size + -self.map_size % headers.BLOCK + self.data_size

    def records(self, change: Change) -> dict[bytes, bytes]:
        """Return the records of the extended header."""
        name = os.fsencode(change.name)
        return {
            # First, because Python's tarfile believes the last one that names the file.
            b"path": b"./" + os.fsencode(change.directory.prefix) + b"GNUSparseFile.0/" + name,
            b"GNU.sparse.major": b"1",
            b"GNU.sparse.minor": b"0",
            b"GNU.sparse.name": b"./" + os.fsencode(change.path),
            b"GNU.sparse.realsize": b"%d" % change.size,
        }

    def lines(self, change: Change) -> Iterator[bytes]:
        """Yield the map."""
        yield b"%d\n" % self.segments
        for offset, length in sparse.segments(change.fd, change.size):
            yield _map_line(offset, length)
        if self._ends_in_a_hole:
            yield _map_line(change.size, 0)


def _map_line(offset: int, length: int) -> bytes:
    return b"%d\n%d\n" % (offset, length)
