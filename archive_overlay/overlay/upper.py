"""What an upperdir holds, as a stream of changes in which nothing of overlayfs is left.

Where an upperdir only refers to a lower layer (a file of which the metadata alone were copied up, a
directory that was renamed), the stream has what is there: the change set stands on its own. The upperdir
was written by a container: every name in it, every link and every attribute may have been made to do harm.
It is walked by directory file descriptors, and nothing in it is written.
"""

from __future__ import annotations

import os
import stat
from itertools import islice

from archive_overlay.errors import ArchiveError, fail
from archive_overlay.log import Repeated
from archive_overlay.marks import OPAQUE_MARKER, TRUSTED, TRUSTED_OPAQUE, WHITEOUT_PREFIX
from archive_overlay.overlay import parts
from archive_overlay.overlay.attributes import (
    NO_ATTRIBUTES,
    NO_MARKS,
    Marks,
    read_attributes,
)
from archive_overlay.overlay.change import (
    BLOCK_DEVICE,
    CHARACTER_DEVICE,
    DIRECTORY,
    FIFO,
    FILE,
    SOCKET,
    SYMLINK,
    TOP,
    WHITEOUT,
    Change,
    LargeAttributes,
    TreePath,
    file_change,
)
from archive_overlay.overlay.lowers import Directory, Lowers
from archive_overlay.system import tree
from archive_overlay.system.open_flags import LOOK, READ, READ_TOP_DIRECTORY
from archive_overlay.system.user_namespace import sees_trusted_attributes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

    from archive_overlay.log import Log
    from archive_overlay.overlay.caches import Caches
    from archive_overlay.overlay.change import Attributes
    from archive_overlay.overlay.dialect import Dialect
    from archive_overlay.overlay.lowers import Place
    from archive_overlay.overlay.mount import OverlayMount
    from archive_overlay.overlay.references import References
    from archive_overlay.overlay.selection import LeftOut, Selected, Selection

_KINDS = {
    stat.S_IFDIR: DIRECTORY,
    stat.S_IFREG: FILE,
    stat.S_IFLNK: SYMLINK,
    stat.S_IFIFO: FIFO,
    stat.S_IFSOCK: SOCKET,
    stat.S_IFCHR: CHARACTER_DEVICE,
    stat.S_IFBLK: BLOCK_DEVICE,
}
_READ_UNSEEN = READ | os.O_NOATIME  # see `tree.open_unseen`
# A directory of fuse-overlayfs may have two marks in it besides its own name and a mark that deletes what was there.
_NAMES_PER_ENTRY = 4
# Of what is left out in a directory, so many names are listed.
_FEW_NAMES = 10


def read_changes(
    overlay: OverlayMount,
    log: Log,
    *,
    deletions_first: bool = False,
    max_entries: int | None = None,
    selection: Selection | None = None,
    left_out: LeftOut | None = None,
) -> Generator[Change, None, None]:
    """Read what the container changed, depth first.

    The root directory comes first, a directory before what is in it, names in the order of their code
    points, and of several names of one file the first carries it. Close the iterator if it is not read
    to its end.

    Args:
        overlay: what to read.
        log: takes warnings of what is left out.
        deletions_first: in each directory, give what was deleted before everything else.
        max_entries: the caller takes no more changes than this, so listings that are much longer are not read to their
            end. None: any number.
        selection: what of it is read; None: everything. The root directory always is, and so are directories that what is
            selected is in.
        left_out: is told of what is not.

    Raises:
        ArchiveError: something cannot be read, vanished, or does not stand on its own, or there is too much.
    """
    reader = UpperReader(
        overlay,
        log,
        deletions_first=deletions_first,
        max_entries=max_entries,
        selection=selection,
        left_out=left_out,
    )
    try:
        if selection is not None:
            yield from _without_empty_ways(reader)
            return
        yield from reader.rest()
    finally:
        reader.close()


def _without_empty_ways(reader: UpperReader) -> Iterator[Change]:
    """Give what a reader gives, without directories that lead to what may be selected if nothing there is."""
    held: list[Change] = []  # from the outside in
    while reader.ahead() is not None:
        change = reader.take()
        if change is None:
            continue
        while held and held[-1].directory.depth >= change.directory.depth:
            held.pop()
        if reader.leads and change.name and not isinstance(change.attributes, LargeAttributes):
            held.append(change)
            continue
        yield from held
        held.clear()
        yield change


# What an overlay makes directories opaque by if all of its marks are hidden from an unprivileged process.
_TRUSTED_MARKS = (TRUSTED_OPAQUE,)

# What an entry of a listing is, besides what `parts` tells apart.
_DIRECTORY = parts.IS_DIRECTORY
_OTHER = parts.IS_OTHER
_BELOW = 3  # not in the upperdir
_MARKED = 4  # deleted, by a whiteout file
# Not in the upperdir, or not selected, in a directory that is not selected itself:
_GONE = 5  # selected, so that it is to be deleted if it is there in the lower layers
_INSIDE_GONE = 6  # so is what is selected in it


class _Level:
    """A directory that is being read: what is still to come in it, and what is known of it.

    There may be hundreds of thousands of names, so each is held once, and in most directories not all at a time.
    """

    __slots__ = (
        "after",
        "complete",
        "covered",
        "exposed",
        "held",
        "in_parts",
        "kinds",
        "names",
        "node",
        "opaque",
        "path",
        "plain",
        "sealed",
        "selected",
    )

    def __init__(self, path: TreePath, node: Directory) -> None:
        self.path = path
        self.node = node
        self.opaque = False
        self.covered = False  # a directory further up is opaque; fuse-overlayfs leaves whiteouts in such ones
        self.complete = False  # what lies below comes too, because in the archive it will not be below
        self.names: list[str] = []  # what is to come, last first
        self.kinds: dict[str, int] = {}  # of what is no regular file
        self.in_parts = False  # names may be forgotten, as listing it again gives them
        self.after: parts.Key | None = (
            None  # where listing goes on when no name is left; None: all were listed
        )
        self.held = 0  # how many names it had when it was listed last
        self.selected: Selected | None = None  # what of it is; None: everything
        self.exposed = False  # what it hides shows all the same, because it is not selected itself
        self.sealed = False  # what lies below is hidden: it is opaque in the archive, or in such a directory
        self.plain: Directory | None = None  # its path in the lower layers, as if there were no upperdir


class UpperReader:
    """An upperdir that is being read, as a `compose.Source`: one position, and what must be remembered on the way.

    Args:
        overlay, log, deletions_first, max_entries, selection, left_out: see `read_changes`.

    Raises:
        ArchiveError: by `ahead`, `take` and `skip` too: see `read_changes`.
    """

    def __init__(
        self,
        overlay: OverlayMount,
        log: Log,
        *,
        deletions_first: bool = False,
        max_entries: int | None = None,
        selection: Selection | None = None,
        left_out: LeftOut | None = None,
    ) -> None:
        self.leads = False  # the directory that was taken last is not selected: something in it may be
        self._selection = selection
        self._left_out = left_out
        self._upper = overlay.upper
        self._dialect: Dialect = overlay.dialect
        self._warnings = Repeated(log)
        self._deletions_first = deletions_first
        self._max_entries = max_entries
        self._listed = 0
        self._lowers = Lowers(overlay)
        self._caches: Caches | None = None
        if selection is not None and not selection.caches:
            from archive_overlay.overlay.caches import Caches

            self._caches = Caches(overlay, self._lowers)
        self._overlay = overlay
        self._referring: References | None = None
        if overlay.may_refer_to_lowers or self._dialect.origin_attribute:
            self._references()  # imported before anything is written
        self._lower_owners = overlay.lower_owners
        # Of files with several names: a number, and the first one.
        self._first_names: dict[tuple[int, int], tuple[int, TreePath]] = {}
        self._file = -1
        self._attributes_of = -1
        try:
            if self._dialect.opaque_attributes == _TRUSTED_MARKS and not sees_trusted_attributes():
                raise ArchiveError(
                    f"the attributes trusted.overlay.* in {overlay.upper} cannot be seen without CAP_SYS_ADMIN on the host"
                    " (outside of user namespaces), so it is not known what its directories hide",
                    hint="run this with CAP_SYS_ADMIN",
                )
            top = tree.open_unseen(overlay.upper, READ_TOP_DIRECTORY)
        except OSError as error:
            fail(f"cannot read the upperdir {overlay.upper}", error)
        self._descent = tree.Descent(top)
        self._begun = False
        self._levels: list[_Level] = []
        self._held = 0  # by all of them
        self._forgotten = 0  # how many of the levels, the first ones, hold no names that could be forgotten
        self._only_below = 0  # how many of the levels, the last ones, have no directory in the upperdir

    def close(self) -> None:
        """Close all that is open, and say how many warnings were not written."""
        self._let_go()
        self._descent.close()
        self._lowers.close()
        self._warnings.finish()
        if self._left_out:
            self._left_out.finish()

    def ahead(self) -> tuple[int, str] | None:
        """See `compose.Source`."""
        if not self._begun:
            return -1, ""
        levels = self._levels
        while levels:
            names = levels[-1].names
            if names:
                return len(levels) - 1, names[-1]
            try:
                if levels[-1].after is not None:
                    self._list_on(levels[-1])
                else:
                    self._leave()
            except OSError as error:
                fail(f"cannot read {self._shown(levels[-1] if levels else None, '')}", error)
        return None

    def is_directory(self) -> bool:
        """See `compose.Source`."""
        if not self._begun:
            return True
        level = self._levels[-1]
        kind = level.kinds.get(level.names[-1])
        if kind != _BELOW:
            return kind == _DIRECTORY
        places = self._lowers.find(level.node, level.names[-1]).places
        return bool(places) and places[0].is_directory

    def skip(self) -> None:
        """See `compose.Source`."""
        if self._begun:
            self._levels[-1].names.pop()
        self._begun = True

    def take(self) -> Change | None:
        """See `compose.Source`."""
        self._let_go()
        self.leads = False
        if not self._begun:
            self._begun = True
            try:
                return self._upper_directory("", None)
            except OSError as error:
                fail(f"cannot read {self._upper}", error)
        level = self._levels[-1]
        name = level.names.pop()
        try:
            return self._entry(level, name)
        except OSError as error:
            fail(f"cannot read {self._shown(level, name)}", error)

    def rest(self) -> Iterator[Change]:
        """Take all that is left."""
        levels = self._levels
        while self.ahead() is not None:
            change = self.take()
            if change is not None:
                yield change
            if not levels:
                continue
            # Nearly all entries are regular files, and each call costs them time.
            level = levels[-1]
            names, kinds = level.names, level.kinds
            while names and names[-1] not in kinds:
                self._let_go()
                name = names.pop()
                try:
                    change = self._upper_file(level, name)
                except OSError as error:
                    fail(f"cannot read {self._shown(level, name)}", error)
                yield change

    def renamed_from(self) -> str:
        """Say where the directory that was taken last was before it was renamed, as its overlay notes it; "" if nowhere.

        It is for people: nothing is looked up there.
        """
        if not sees_trusted_attributes():
            return ""
        try:
            redirect = os.fsdecode(os.getxattr(self._descent.fd, f"{TRUSTED}redirect"))
        except OSError:
            return ""
        above = self._levels[-2].path.prefix if len(self._levels) > 1 else ""
        return redirect.strip("/") if redirect.startswith("/") else above + redirect

    def _entry(self, level: _Level, name: str) -> Change | None:
        kind = level.kinds.get(name)
        if kind is None:
            return self._upper_file(level, name)
        if kind == _DIRECTORY:
            self._descent.enter(name)
            return self._upper_directory(name, level)
        if kind in (_GONE, _INSIDE_GONE):
            return self._gone(level, name)
        hides = level.opaque or level.complete or level.covered
        if kind == _MARKED:
            return self._whiteout(level, name) if not hides else self._gone_if_exposed(level, name)
        if kind == _OTHER:
            change = self._other(level, name)
            # An opaque directory needs no whiteouts, and those in it would show up in listings.
            return change if change.kind is not WHITEOUT or not hides else self._gone_if_exposed(level, name)
        below = self._from_below(level, name)
        if below is None:
            return self._gone_if_exposed(level, name)
        if self._lower_owners:
            self._lower_owners.apply(below)
        return below

    def _leave(self) -> None:
        level = self._levels.pop()
        level.path.forget()
        self._held -= level.held
        self._forgotten = min(self._forgotten, len(self._levels))
        if self._only_below:
            self._only_below -= 1
        elif self._levels:
            os.close(self._descent.leave())

    def _upper_directory(self, name: str, parent: _Level | None) -> Change:
        """Give the directory at the walk's position, and list it."""
        fd = self._descent.fd
        status = os.fstat(fd)
        attributes, marks = self._attributes(fd, fd, parent, name)
        node = Directory(parent.node if parent else None, name, redirect=marks.redirect, opaque=marks.opaque)
        level = _Level(TreePath(parent.path, name) if parent else TOP, node)
        level.opaque = marks.opaque
        level.covered = parent is not None and (parent.opaque or parent.covered)
        kinds = level.kinds
        if self._selection is not None:
            self._select(level, name, parent)
            if self._caches and self._caches.is_one(fd, node, hides=level.opaque or level.covered):
                level.selected = self._selection.tag_alone(level.selected)
        leads = self.leads
        moved = bool(marks.redirect) and not marks.opaque
        if level.selected is not None:
            self._list_selected(level, level.selected, fd)
        else:
            # Otherwise other names, in the upperdir or in lower layers, say what becomes of one.
            level.in_parts = not (
                self._selection or moved or (parent and parent.complete) or self._dialect.whiteout_files
            )
            self._list(level, fd)
        if moved or (parent is not None and parent.complete):
            level.complete = True
            below = self._lowers.below(node)
            if not marks.opaque:
                self._references().check_directory(below, marks, lambda: self._shown(parent, name))
            lower = self._lowers.names(below)
            lower.difference_update(level.names)
            self._count(len(lower))
            if level.selected is not None:
                lower = {each for each in lower if level.selected.has(each) or level.selected.leads(each)}
            kinds.update(dict.fromkeys(lower, _BELOW))
            level.names.extend(lower)
        opaque = level.opaque or moved
        if self._selection is not None:
            opaque = self._expose(level, leads, parent, opaque=opaque)
        level.names.sort(reverse=True)
        if self._deletions_first and level.kinds:
            level.names.sort(key=lambda name: self._is_deletion(level, name))
        self._levels.append(level)
        self._hold(level)
        change = Change(DIRECTORY, parent.path if parent else TOP, name, status, attributes, opaque=opaque)
        change.selected = level.selected
        return self._with_true_owner(change, marks)

    def _list(self, level: _Level, fd: int) -> None:
        """List a directory of the upperdir."""
        names, kinds = level.names, level.kinds
        bounded = self._max_entries is not None
        with os.scandir(fd) as entries:
            for entry in islice(entries, parts.MOST_LISTED if level.in_parts else None):
                names.append(entry.name)
                if bounded:
                    self._count(1)
                if entry.is_dir(follow_symlinks=False):
                    kinds[entry.name] = _DIRECTORY
                elif not entry.is_file(follow_symlinks=False):
                    kinds[entry.name] = _OTHER
            more = next(entries, None)
            if more and bounded:
                self._count(1)
                for _ in entries:
                    self._count(1)
        if more:
            names.clear()
            self._list_part(level)
        if self._dialect.whiteout_files:
            self._translate_whiteout_files(level)

    def _list_part(self, level: _Level) -> None:
        """List the next names of the directory at the walk's position."""
        level.names, level.kinds, level.after = parts.read_part(
            self._descent.fd, level.after, deletions_first=self._deletions_first
        )

    def _list_on(self, level: _Level) -> None:
        """List what comes next in a directory of which no name is left, or whose names were forgotten."""
        self._list_part(level)
        self._forgotten = min(self._forgotten, len(self._levels) - 1)
        self._hold(level)

    def _hold(self, level: _Level) -> None:
        """Count the names of the innermost directory, and forget those of the outermost ones if there are too many.

        They are listed once more on the way back. It takes as many names in other directories to have them forgotten again.
        """
        self._held += len(level.names) - level.held
        level.held = len(level.names)
        levels = self._levels
        while self._held > parts.MOST_HELD and self._forgotten < len(levels) - 1:
            outer, inner = levels[self._forgotten : self._forgotten + 2]
            self._forgotten += 1
            if outer.in_parts and outer.names:
                outer.after = True, inner.path.name
                outer.names, outer.kinds = [], {}
                self._held -= outer.held
                outer.held = 0

    def _select(self, level: _Level, name: str, parent: _Level | None) -> None:
        """Find out what is selected in a directory that is about to be listed."""
        assert self._selection
        if parent is None:
            level.selected = self._selection.top
            self.leads = not self._selection.has_top
            level.plain = Directory(None, "")
        else:
            level.selected = parent.selected.inside(name) if parent.selected is not None else None
            self.leads = parent.selected is not None and not parent.selected.has(name)
            level.plain = Directory(parent.plain, name)
            level.sealed = parent.sealed

    def _list_selected(self, level: _Level, selected: Selected, fd: int) -> None:
        """List what is selected in a directory of the upperdir, and directories that lead to what is."""
        names, kinds = level.names, level.kinds
        bounded = self._max_entries is not None
        whiteout_files = self._dialect.whiteout_files
        few: list[str] = []
        count = 0
        with os.scandir(fd) as entries:
            for entry in entries:
                name = entry.name
                kind = _DIRECTORY if entry.is_dir(follow_symlinks=False) else 0
                if not selected.has(name) and not (whiteout_files and name.startswith(WHITEOUT_PREFIX)):
                    leads = selected.may_lead and not selected.inside(name).nothing
                    if kind != _DIRECTORY or not leads:
                        count += 1
                        if len(few) < _FEW_NAMES:
                            few.append(name)
                        if not leads:
                            continue
                        kind = _INSIDE_GONE  # perhaps it was a directory
                names.append(name)
                if bounded:
                    self._count(1)
                if kind:
                    kinds[name] = kind
                elif not entry.is_file(follow_symlinks=False):
                    kinds[name] = _OTHER
        if whiteout_files:
            self._translate_whiteout_files(level)
            deleted = [name for name in names if kinds.get(name) == _MARKED and not selected.has(name)]
            for name in deleted:
                kinds[name] = _INSIDE_GONE
            count += len(deleted)
            few += deleted[: _FEW_NAMES - len(few)]
        if count and self._left_out:
            self._left_out.add(few, count, lambda: level.path.shown)

    def _expose(self, level: _Level, leads: bool, parent: _Level | None, *, opaque: bool) -> bool:
        """Find out what else is to be said of a directory that hides what lies below, or has gone, but is not selected.

        What lies below is to show then, but for what is selected: that is deleted, name by name.

        Args:
            level: the directory, which has been listed.
            leads: it is not selected itself.
            parent: that it is in.
            opaque: the upperdir says that it is.

        Returns:
            Whether it is opaque in the archive.
        """
        opaque = opaque or (parent is not None and parent.exposed)
        unknown = self._overlay.lowers_unknown
        level.exposed = opaque and leads and not level.sealed and not unknown
        if opaque and leads and not level.sealed and unknown:
            self._warnings.warning(
                "directories saved with all that they hide",
                f" hides all that lay below, selected or not, as it was replaced or renamed: {unknown}",
                path=lambda: self._shown(level, ""),
            )
        level.sealed = level.sealed or (opaque and not level.exposed)
        selected, kinds = level.selected, level.kinds
        if selected is None:
            return opaque
        gone = [name for name, kind in kinds.items() if kind == _INSIDE_GONE]
        lower: set[str] = set()
        if not level.sealed and not unknown and (gone or level.exposed):
            assert level.plain
            lower = self._lowers.names(self._lowers.below(level.plain))
        vain = {name for name in gone if name not in lower}
        if vain:
            for name in vain:
                del kinds[name]
            level.names = [name for name in level.names if name not in vain]
        if level.exposed:
            self._list_gone(level, selected, lower.difference(level.names))
        return opaque and not level.exposed

    def _list_gone(self, level: _Level, selected: Selected, lower: set[str]) -> None:
        """List names of the lower layers that the upperdir does not have, if they are selected, or something in them may be."""
        for name in lower:
            if selected.has(name):
                level.kinds[name] = _GONE
            elif selected.may_lead and not selected.inside(name).nothing:
                level.kinds[name] = _INSIDE_GONE
            else:
                continue
            level.names.append(name)
            self._count(1)

    def _gone_if_exposed(self, level: _Level, name: str) -> Change | None:
        """Give the deletion of a name in a directory that does not hide it any more."""
        return self._gone(level, name) if level.exposed else None

    def _gone(self, level: _Level, name: str) -> Change | None:
        """Give what has to be said of a name that the lower layers have and the container has not; None: nothing."""
        assert level.plain
        assert level.selected is not None
        places = self._lowers.find(level.plain, name).places
        if not places:
            return None
        if level.selected.has(name):
            change = Change(WHITEOUT, level.path, name, os.fstat(self._descent.fd), NO_ATTRIBUTES)
            change.mode = change.uid = change.gid = change.size = change.rdev = 0
            change.sparse = False
            return change
        if not places[0].is_directory:
            return None
        fd = self._lowers.open(places[0], LOOK)
        try:
            attributes, _ = self._attributes(f"/proc/self/fd/{fd}", fd, level, name)
            change = Change(DIRECTORY, level.path, name, os.fstat(fd), attributes)
        finally:
            os.close(fd)
        inner = _Level(TreePath(level.path, name), Directory(level.node, name, places=[]))
        inner.plain = Directory(level.plain, name, places=places)
        inner.exposed = inner.opaque = True
        inner.selected = change.selected = level.selected.inside(name)
        self._list_gone(inner, inner.selected, self._lowers.names(places))
        inner.names.sort(reverse=True)
        self._levels.append(inner)
        self._only_below += 1
        self.leads = True
        if self._lower_owners:
            self._lower_owners.apply(change)
        return change

    def _references(self) -> References:
        if self._referring is None:
            from archive_overlay.overlay.references import References

            self._referring = References(self._overlay, self._lowers, self._warnings)
        return self._referring

    def _count(self, names: int) -> None:
        """Count names that are held. Some of them come to nothing in the archive: an overlay's own marks."""
        self._listed += names
        if self._max_entries is not None and self._listed > _NAMES_PER_ENTRY * (self._max_entries + 1):
            raise ArchiveError(
                f"the upperdir has more than {self._listed - names} names, for the {self._max_entries} entries that are"
                " the most that is allowed"
            )

    def _translate_whiteout_files(self, level: _Level) -> None:
        """Take the entries out of a listing that only say something of others."""
        marks = [name for name in level.names if name.startswith(WHITEOUT_PREFIX)]
        if not marks:
            return
        level.opaque = level.opaque or OPAQUE_MARKER in marks
        for mark in marks:
            level.kinds.pop(mark, None)
        deleted = {
            mark[len(WHITEOUT_PREFIX) :]
            for mark in marks
            if mark not in (OPAQUE_MARKER, WHITEOUT_PREFIX)  # the latter deletes no name
        }
        level.names = [
            name for name in level.names if not name.startswith(WHITEOUT_PREFIX) and name not in deleted
        ]
        level.names.extend(deleted)
        level.kinds.update(dict.fromkeys(deleted, _MARKED))

    def _is_deletion(self, level: _Level, name: str) -> bool:
        kind = level.kinds.get(name)
        if kind != _OTHER:
            return kind in (_MARKED, _GONE)
        status = os.lstat(name, dir_fd=self._descent.fd)
        return stat.S_ISCHR(status.st_mode) and status.st_rdev == 0

    def _upper_file(self, level: _Level, name: str) -> Change:
        here = self._descent.fd
        try:
            fd = self._file = os.open(name, _READ_UNSEEN, dir_fd=here)
        except PermissionError:
            fd = self._file = tree.open_unseen(name, READ, here)
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise ArchiveError(f"{self._shown(level, name)} was replaced while it was read")
        shared = 0
        if status.st_nlink > 1:
            shared, link_to = self._first_name(level, name, status)
            if link_to:
                return Change(FILE, level.path, name, status, NO_ATTRIBUTES, shared=shared, link_to=link_to)
        attributes, marks = self._attributes(fd, fd, level, name)
        if marks is NO_MARKS and not self._dialect.owner_attribute:
            return file_change(level.path, name, status, attributes, shared, fd)
        if marks.metacopy:
            places, data = self._lowers.find_metacopy(level.node, name, marks.redirect)
            references = self._references()
            references.check_origin(places, marks, lambda: self._shown(level, name))
            self._close_file()
            fd = self._file = references.open_data(data, status, lambda: self._shown(level, name))
        if marks.lower_path:
            path = TreePath(level.path, name)
            self._references().warn_of_other_names(path, marks.lower_path, lambda: self._shown(level, name))
        change = Change(FILE, level.path, name, status, attributes, shared=shared, fd=fd)
        return self._with_true_owner(change, marks)

    def _with_true_owner(self, change: Change, marks: Marks) -> Change:
        if self._dialect.owner_attribute:
            if marks.owner is None:
                shown = os.path.join(self._upper, change.shown) if change.name else self._upper
                raise ArchiveError(f"{shown} has no {self._dialect.owner_attribute} that names its owner")
            change.uid, change.gid, change.mode = marks.owner
        return change

    def _other(self, level: _Level, name: str) -> Change:
        """Give an entry that must not be opened: it is looked at through an O_PATH descriptor."""
        fd = os.open(name, LOOK, dir_fd=self._descent.fd)
        try:
            return self._special(fd, level, name)
        finally:
            os.close(fd)

    def _special(self, fd: int, level: _Level, name: str) -> Change:
        status = os.fstat(fd)
        kind = _KINDS[stat.S_IFMT(status.st_mode)]
        if kind is CHARACTER_DEVICE and status.st_rdev == 0:
            return Change(WHITEOUT, level.path, name, status, NO_ATTRIBUTES)
        if kind is DIRECTORY or kind is FILE:
            raise ArchiveError(f"{self._shown(level, name)} was replaced while it was read")
        target = os.readlink("", dir_fd=fd) if kind is SYMLINK else ""
        shared = 0
        if status.st_nlink > 1:
            shared, link_to = self._first_name(level, name, status)
            if link_to:
                return Change(
                    kind,
                    level.path,
                    name,
                    status,
                    NO_ATTRIBUTES,
                    target=target,
                    shared=shared,
                    link_to=link_to,
                )
        attributes, _ = self._attributes(f"/proc/self/fd/{fd}", fd, level, name)
        return Change(kind, level.path, name, status, attributes, target=target, shared=shared)

    def _whiteout(self, level: _Level, name: str) -> Change:
        status = os.lstat(f"{WHITEOUT_PREFIX}{name}", dir_fd=self._descent.fd)
        return Change(WHITEOUT, level.path, name, status, NO_ATTRIBUTES)

    def _from_below(self, level: _Level, name: str) -> Change | None:
        """Give an entry that the upperdir does not have; None if a lower layer deleted it, or it is not selected."""
        found = self._lowers.find(level.node, name)
        if not found.places:
            return None
        place = found.places[0]
        if not place.is_directory and level.selected is not None and not level.selected.has(name):
            return None  # only a directory can lead to what is selected
        fd = self._lowers.open(place, LOOK)
        try:
            if place.is_directory:
                return self._lower_directory(level, name, found.places, fd)
            if found.data is None or not place.is_file:
                return self._special(fd, level, name)
            status = os.fstat(fd)
            shared = 0
            if status.st_nlink > 1:
                shared, link_to = self._first_name(level, name, status)
                if link_to:
                    return Change(
                        FILE, level.path, name, status, NO_ATTRIBUTES, shared=shared, link_to=link_to
                    )
            attributes, _ = self._attributes(f"/proc/self/fd/{fd}", fd, level, name)
            self._file = self._references().open_data(
                found.data, status, lambda: self._lowers.shown(place.layer, place.path)
            )
            return Change(FILE, level.path, name, status, attributes, shared=shared, fd=self._file)
        finally:
            os.close(fd)

    def _lower_directory(self, parent: _Level, name: str, places: list[Place], fd: int) -> Change:
        attributes, _ = self._attributes(f"/proc/self/fd/{fd}", fd, parent, name)
        level = _Level(TreePath(parent.path, name), Directory(parent.node, name, places=places))
        level.complete = True
        lower = self._lowers.names(places)
        if self._selection is not None:
            self._select(level, name, parent)
            if self._caches and self._caches.is_lower(level.node):
                level.selected = self._selection.tag_alone(level.selected)
            if level.selected is not None:
                lower = {each for each in lower if level.selected.has(each) or level.selected.leads(each)}
        self._count(len(lower))
        level.kinds = dict.fromkeys(lower, _BELOW)
        level.names = list(lower)
        opaque = self._selection is not None and self._expose(level, self.leads, parent, opaque=False)
        level.names.sort(reverse=True)
        self._levels.append(level)
        self._only_below += 1
        change = Change(DIRECTORY, parent.path, name, os.fstat(fd), attributes, opaque=opaque)
        change.selected = level.selected
        return change

    def _let_go(self) -> None:
        """Close what the last change needed."""
        file = self._file
        if file >= 0:
            self._file = -1  # as in _close_file
            os.close(file)
        if self._attributes_of >= 0:
            fd, self._attributes_of = self._attributes_of, -1
            os.close(fd)

    def _close_file(self) -> None:
        # Not there any more before it is closed: a signal in between must not have it closed twice.
        file, self._file = self._file, -1
        os.close(file)

    def _first_name(self, level: _Level, name: str, status: os.stat_result) -> tuple[int, TreePath | None]:
        """Give a number to a file with several names, and the path under which it came before, if it did."""
        key = (status.st_dev, status.st_ino)
        found = self._first_names.get(key)
        if found:
            return found
        number = len(self._first_names) + 1
        self._first_names[key] = number, TreePath(level.path, name)
        return number, None

    def _attributes(
        self, file: int | str, fd: int, level: _Level | None, name: str
    ) -> tuple[Attributes, Marks]:
        """Read the attributes of an entry.

        Args:
            file: what they are read from, a file descriptor or the name of one in /proc/self/fd.
            fd: the file descriptor.
            level, name: where it is.
        """
        try:
            names = os.listxattr(file)
        except OSError as error:
            fail(f"cannot list the extended attributes of {self._shown(level, name)}", error)
        if not names:
            return NO_ATTRIBUTES, NO_MARKS

        def on_demand(sizes: dict[str, int]) -> LargeAttributes:
            self._attributes_of = os.dup(fd)
            return LargeAttributes(
                self._attributes_of, sizes, {}, TreePath(level.path, name) if level else TOP
            )

        attributes, marks = read_attributes(
            file,
            names,
            self._dialect,
            self._warnings,
            shown=lambda: self._shown(level, name),
            on_demand=on_demand,
        )
        if marks.other_names:
            raise ArchiveError(
                f"{self._shown(level, name)} has other names in a lower layer, which show what was written to it but"
                " are not in the upperdir",
                hint="mount without index=on",
            )
        return attributes, marks

    def _shown(self, level: _Level | None, name: str) -> str:
        """Give a path for messages: of an entry of a level, or of the level itself."""
        if level is None or not (name or level.path.parent):
            return self._upper
        return os.path.join(self._upper, (TreePath(level.path, name) if name else level.path).shown)
