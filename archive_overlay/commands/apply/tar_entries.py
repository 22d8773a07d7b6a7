"""A tar, or a layer, as entries to unpack, in which private marks stand for deletions and opaque directories.

A directory that the tar does not list, but has something in, stays as it is: it has an entry here that says so. A tar of
few megabytes can have directories ten thousands deep. So nothing here grows with the square of the depth, and what is
remembered of a path is a number.
"""

from __future__ import annotations

import os
import stat

from archive_overlay.commands.apply.entries import refuse_true_owner
from archive_overlay.errors import ArchiveError, brief
from archive_overlay.history.unpack import OVERLAY_ATTRIBUTES
from archive_overlay.marks import OPAQUE_MARKER, WHITEOUT_PREFIX
from archive_overlay.overlay.dialect import BOOKKEEPING
from archive_overlay.system.metadata import SELINUX_LABEL
from archive_overlay.tar import headers
from archive_overlay.tar.changes import Marks, split_link, split_path, whiteout_of
from archive_overlay.tar.reader import Entry

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from archive_overlay.commands.apply.entries import Making
    from archive_overlay.tar.changes import Form
    from archive_overlay.tar.reader import TarReader

# What a tar has at a path.
_DELETED = 1
_OPAQUE = 2
_DIRECTORY = 4  # an entry of its own
_OTHER = 8  # anything else that is an entry of its own
_IMPLIED = 16  # something is in it
_LINK = 32  # a symbolic link
_MADE = 64  # its entry, or one instead of it, has been given, or who unpacks will make it
_NEW = 128  # a directory that the target does not have, or that is not to be seen there

# Each has an entry of its own here, with its whole path. This program's tars list all directories.
_DEEPEST_UNLISTED = 1000
# Of an overlay's own attributes, those without which an entry is not what it was: by what comes after the prefix.
_REFERRING = frozenset(("metacopy", "redirect"))


class TarEntries:
    """A tar, or a layer, as entries: for `history.unpack.Unpacker`, once.

    Args:
        tar: at its start.
        form: the marks that count in it.
        known: what `look_through` found in it.
        making: see there.
    """

    def __init__(self, tar: TarReader, form: Form, known: Marks, making: Making) -> None:
        self._tar = tar
        self._form = form
        self._known = known
        self._making = making

    def entries(self) -> Iterator[Entry]:
        """Give them. See `TarReader.entries`."""
        yield from self._above([], [""])
        for entry in self._tar.entries():
            parts = split_path(entry.name)
            keys = _keys(parts)
            deleted = _deleted(entry, parts, self._form, self._known)
            if deleted is not None:
                yield from self._deletion(deleted, entry)
                continue
            if not _is_opaque_marker(parts, self._form):
                self._making.counts.entries += bool(parts)
                if parts:
                    yield from self._above(parts[:-1], keys[:-1])
                yield from self._own(entry, parts, keys)
            else:
                yield from self._above(parts[:-1], keys[:-1])

    def _own(self, entry: Entry, parts: list[str], keys: list[str]) -> Iterator[Entry]:
        entry.attributes = self._attributes(entry)
        if entry.type != headers.DIRECTORY:
            yield entry if self._making.can_be_made(entry) else self._making.deletion("/".join(parts))
            return
        new = self._hides(keys[-1]) or (bool(parts) and self._known.has(keys[-2], _NEW))
        self._known.add(keys[-1], _MADE | (_NEW if new else 0))
        yield entry
        if self._hides(keys[-1]):
            yield self._making.opaque("/".join(parts))

    def data(self) -> Iterator[tuple[int, bytes]]:
        """See `TarReader.data`."""
        return self._tar.data()

    def whole_data(self) -> bytes | None:
        """See `TarReader.whole_data`."""
        return self._tar.whole_data()

    def _deletion(self, parts: list[str], entry: Entry) -> Iterator[Entry]:
        keys = _keys(parts)
        self._making.counts.deletions += 1
        for key in keys[:-1]:
            if self._known.has(key, _LINK):
                raise ArchiveError(
                    f"{brief(entry.name)} deletes something through a symbolic link of its own change set"
                )
            if self._known.has(key, _OTHER):
                return  # there is nothing below what is not a directory
        yield from self._above(parts[:-1], keys[:-1])
        # What is there instead replaces it.
        if not self._known.has(keys[-1], _DIRECTORY | _OTHER | _IMPLIED):
            yield self._making.deletion("/".join(parts))

    def _above(self, parts: list[str], keys: list[str]) -> Iterator[Entry]:
        """Give those directories down to one that have not been given yet, as far as there is something to say of them.

        Who unpacks makes the others, as new ones.
        """
        given = len(keys)
        while given and not self._known.has(keys[given - 1], _MADE):
            given -= 1
        fd = -1
        try:
            for length in range(given, len(keys)):
                # A link that is a directory's name leads elsewhere: who unpacks knows that.
                if self._known.has(keys[length], _OTHER):
                    return
                hides = self._hides(keys[length])
                new = hides or (length > 0 and self._known.has(keys[length - 1], _NEW))
                if not new:
                    above, fd = fd, self._making.open_in_target(parts[:length], fd)
                    if above >= 0:
                        os.close(above)
                    new = fd < 0
                self._known.add(keys[length], _MADE | (_NEW if new else 0))
                if not new and length > _DEEPEST_UNLISTED:
                    raise ArchiveError(
                        f"{brief('/'.join(parts))} is more than {_DEEPEST_UNLISTED} directories deep, which the archive does"
                        " not list"
                    )
                if not new:
                    yield _unchanged("/".join(parts[:length]), fd)
                if hides:
                    yield self._making.opaque("/".join(parts[:length]))
        finally:
            if fd >= 0:
                os.close(fd)

    def _hides(self, key: str) -> bool:
        """Say whether a directory hides what was there: it is opaque, or takes the place of something else."""
        return self._known.has(key, _OPAQUE | _DELETED | _OTHER)

    def _attributes(self, entry: Entry) -> dict[str, bytes]:
        """Give the attributes that are no marks.

        In tars that are not layers, names of attributes are written as GNU tar does: a key of a record ends at the first =.
        """
        if not entry.attributes or not self._form.whiteout_devices:
            return entry.attributes
        spaces = [name[: -len("opaque")] for name in self._form.opaque_attributes]
        kept = {}
        for key, value in entry.attributes.items():
            name = key.replace("%3D", "=").replace("%25", "%")
            space = next((space for space in spaces if name.startswith(space)), "")
            own = name[len(space) :] if space else ""
            if own in _REFERRING:
                raise ArchiveError(
                    f"{brief(entry.name)} has {name}, so what it holds is in a lower layer, and not in the archive",
                    hint="if a container set that attribute, use --marks to say which marks count",
                )
            refuse_true_owner(name, brief(entry.name))
            if name not in self._form.opaque_attributes and own not in BOOKKEEPING:
                kept[name] = value
        return kept


def look_through(tar: TarReader, form: Form) -> Marks:
    """Read a tar to its end, and remember what is where: a mark may come after what it is about.

    Raises:
        ArchiveError: it is damaged, or an entry leads out of the top.
        OSError: it cannot be read.
    """
    known = Marks()
    for entry in tar.entries():
        parts = split_path(entry.name)
        keys = _keys(parts)
        deleted = _deleted(entry, parts, form, known)
        if deleted is not None:
            known.add(_keys(deleted)[-1], _DELETED)
        elif _is_opaque_marker(parts, form):
            known.add(keys[-2], _OPAQUE)
        elif entry.type == headers.DIRECTORY:
            opaque = any(entry.attributes.get(attribute) == b"y" for attribute in form.opaque_attributes)
            known.add(keys[-1], _DIRECTORY | (_OPAQUE if opaque else 0))
        else:
            known.add(keys[-1], _OTHER | (_LINK if entry.type == headers.SYMLINK else 0))
        for key in keys[-2::-1]:
            if known.has(key, _IMPLIED):
                break
            known.add(key, _IMPLIED)
    return known


def _keys(parts: list[str]) -> list[str]:
    """Give a short text for each path from the top down to one: to make all paths would take the square of the depth."""
    keys = [""]
    for part in parts:
        keys.append(f"{hash(keys[-1]):x}/{part}")
    return keys


def _is_opaque_marker(parts: list[str], form: Form) -> bool:
    return form.whiteout_files and bool(parts) and parts[-1] == OPAQUE_MARKER


def _deleted(entry: Entry, parts: list[str], form: Form, known: Marks) -> list[str] | None:
    """Give the path that an entry deletes; None: it deletes none.

    Raises:
        ArchiveError: it deletes what cannot be a name.
    """
    if not parts:
        return None
    name = parts[-1]
    if form.whiteout_files and name.startswith(WHITEOUT_PREFIX):
        if name == OPAQUE_MARKER:
            return None
        return [*parts[:-1], whiteout_of(name, entry.name)]
    if not form.whiteout_devices:
        return None
    if entry.type == headers.CHARACTER_DEVICE:
        return None if entry.device else parts
    if entry.type != headers.HARD_LINK:
        return None
    # An overlay's whiteouts are hard links of one another.
    target = _keys(split_link(entry.link))[-1]
    return parts if known.has(target, _DELETED) and not known.has(target, _OTHER) else None


def _unchanged(path: str, fd: int) -> Entry:
    """Give an entry of an open directory as it is."""
    status = os.fstat(fd)
    return Entry(
        headers.DIRECTORY,
        path,
        mode=stat.S_IMODE(status.st_mode),
        uid=status.st_uid,
        gid=status.st_gid,
        mtime_ns=status.st_mtime_ns,
        attributes={
            name: os.getxattr(fd, name)
            for name in os.listxattr(fd)
            if name != SELINUX_LABEL and not name.startswith(OVERLAY_ATTRIBUTES)
        },
    )
