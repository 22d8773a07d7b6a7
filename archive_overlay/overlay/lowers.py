"""What lies below an upperdir: look-up through the lower layers, as the kernel does it.

A directory of an overlay has a stack of its own: the places in the lower layers that are merged into
it. What is in the directory is looked up in that stack, and a redirect sends the search elsewhere.
Nothing here follows a symbolic link, except that a lowerdir itself may be one.

Source: the kernel's Documentation/filesystems/overlayfs.rst, "redirect_dir", "Metadata only copy up"
and "Data-only lower layers"; its look-up (fs/overlayfs/namei.c) as observed in experiments.
"""

from __future__ import annotations

import errno
import os
import stat

from archive_overlay.errors import ArchiveError, fail
from archive_overlay.overlay.change import TOP, TreePath
from archive_overlay.system.open_flags import LOOK, READ, READ_DIRECTORY, READ_TOP_DIRECTORY, STEP
from archive_overlay.system.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from archive_overlay.overlay.mount import OverlayMount

_MOST_OPEN = 8  # directories
_NO_ATTRIBUTE = (errno.ENODATA, errno.ENOTSUP, errno.EOPNOTSUPP)


class Place:
    """Something in a lower layer.

    Each directory on the way of the walk may have a place in each of hundreds of layers, so this must stay small.

    Args:
        layer: see below.
        path: see below.
        status: as lstat(2) gives it.

    Attributes:
        layer: which one, 0 for the topmost.
        path: relative to the layer's root.
        type: of its mode (inode(7)).
        is_whiteout: whether it is a 0:0 device.
        is_empty: whether its size is 0.
    """

    __slots__ = ("_device", "_inode", "is_empty", "is_whiteout", "layer", "path", "type")

    def __init__(self, layer: int, path: TreePath, status: os.stat_result) -> None:
        self.layer = layer
        self.path = path
        self.type = stat.S_IFMT(status.st_mode)
        self.is_whiteout = self.type == stat.S_IFCHR and status.st_rdev == 0
        self.is_empty = status.st_size == 0
        self._device = status.st_dev
        self._inode = status.st_ino

    @property
    def is_directory(self) -> bool:
        """Whether it is a directory."""
        return self.type == stat.S_IFDIR

    @property
    def is_file(self) -> bool:
        """Whether it is a regular file."""
        return self.type == stat.S_IFREG

    def is_still(self, status: os.stat_result) -> bool:
        """Return whether a status is that of the same file."""
        return (self._device, self._inode) == (status.st_dev, status.st_ino)


class Found(Record):
    """What a name in an overlay's directory is, as far as the lower layers say.

    Attributes:
        places: of a directory, what is merged into it; of anything else, the one place where it is;
            topmost first. Empty: there is nothing below.
        data: where a file's data are; None for anything but a file.
    """

    places: list[Place]
    data: Place | None


class Directory:
    """A directory of the overlay. What lies below is looked up only when it is asked for.

    Args:
        parent: the directory that it is in; None for the root.
        name: its name there.
        redirect: what the upper directory's redirect says; "" without one.
        opaque: whether the upper directory hides what lies below.
        places: what is below, if that is known already.
    """

    __slots__ = ("name", "opaque", "parent", "places", "redirect")

    def __init__(
        self,
        parent: Directory | None,
        name: str,
        *,
        redirect: str = "",
        opaque: bool = False,
        places: list[Place] | None = None,
    ) -> None:
        self.parent = parent
        self.name = name
        self.redirect = redirect
        self.opaque = opaque
        self.places = [] if opaque else places


class Lowers:
    """The lower layers of an overlay.

    Args:
        overlay: whose they are.
    """

    def __init__(self, overlay: OverlayMount) -> None:
        self._layers = (*overlay.lowers, *overlay.data_lowers)
        self._merged = len(overlay.lowers)
        self._namespace = overlay.dialect.opaque_attribute[: -len("opaque")]
        self._unknown = overlay.lowers_unknown
        self._roots: list[Place] | None = None
        self._path = TOP  # that was made last: most layers have a name at the same path
        # For some layers, the directory that was used last, open: its contents are usually asked for next.
        self._open_directories: dict[int, tuple[TreePath, int]] = {}

    def close(self) -> None:
        """Close what is kept open."""
        while self._open_directories:
            os.close(self._open_directories.popitem()[1][1])

    @property
    def are_several(self) -> bool:
        """Whether more than one is merged."""
        return self._merged > 1

    def below(self, directory: Directory) -> list[Place]:
        """Return the places that are merged into a directory, topmost first.

        Raises:
            ArchiveError: a lower layer cannot be read, or a redirect is not one that the kernel follows.
        """
        # Not by recursion: a container can make directories deeper than Python's stack.
        unknown = []
        step: Directory | None = directory
        while step is not None and step.places is None:
            unknown.append(step)
            step = step.parent
        for step in reversed(unknown):
            if step.parent is None:
                step.places = self.roots()
            else:
                step.places = self._find(
                    step.parent, step.name, redirect=step.redirect, is_directory=True, metacopy=False
                ).places
        assert directory.places is not None
        return directory.places

    def find(self, directory: Directory, name: str) -> Found:
        """Look up a name that the upperdir does not have.

        Raises:
            ArchiveError: see `below`; or a file's data are in no layer.
        """
        return self._find(directory, name, redirect="", is_directory=False, metacopy=False)

    def find_metacopy(self, directory: Directory, name: str, redirect: str) -> tuple[list[Place], Place]:
        """Find what lies below a file if the upperdir has only its metadata.

        Args:
            directory: that it is in.
            name: its name there.
            redirect: what its redirect says; "" without one.

        Returns:
            The place where it is, in a list, which is empty if only a layer of data has it; and where its data are.

        Raises:
            ArchiveError: see `below`; or its data are in no layer.
        """
        found = self._find(directory, name, redirect=redirect, is_directory=False, metacopy=True)
        assert found.data is not None
        return found.places, found.data

    def roots(self) -> list[Place]:
        """Return the tops of the layers that are merged, topmost first.

        Raises:
            ArchiveError: see `below`.
        """
        if self._unknown:
            raise ArchiveError(
                f"the upperdir refers to what is in the lower layers, which cannot be found: {self._unknown}"
            )
        if self._roots is None:
            self._roots = []
            for layer in range(self._merged):
                root = self._look(layer, TOP)
                assert root is not None  # or it would have failed
                self._roots.append(root)
        return self._roots

    def names(self, places: list[Place]) -> set[str]:
        """List the names in the lower layers of a directory, including deleted ones.

        Raises:
            ArchiveError: a lower layer cannot be read.
        """
        names: set[str] = set()
        for place in places:
            try:
                fd = self.open(place, READ_DIRECTORY)
                try:
                    with os.scandir(fd) as entries:
                        names.update(entry.name for entry in entries)
                finally:
                    os.close(fd)
            except OSError as error:
                fail(f"cannot read {self.shown(place.layer, place.path)}", error)
        return names

    def has_other_names(self, path: TreePath) -> bool:
        """Say whether the topmost file at a path of the lower layers has other names; if that is unknown, it has not.

        Args:
            path: from the root of the layers; nothing on its way is a redirect.
        """
        for layer in range(0 if self._unknown else self._merged):
            try:
                fd = self._open(layer, path, LOOK)
            except OSError:
                continue
            try:
                status = os.fstat(fd)
            finally:
                os.close(fd)
            return stat.S_ISREG(status.st_mode) and status.st_nlink > 1
        return False

    def open(self, place: Place, flags: int) -> int:
        """Open something in a lower layer, component by component, and check that it is still the same.

        Args:
            place: what to open.
            flags: as for open(2).

        Raises:
            OSError: it cannot be opened.
        """
        fd = self._open(place.layer, place.path, flags)
        if not place.is_still(os.fstat(fd)):
            os.close(fd)
            raise OSError(None, "it was replaced while it was read")
        return fd

    def open_to_read(self, place: Place) -> int:
        """Open a file in a lower layer for reading.

        Raises:
            ArchiveError: it cannot be opened.
        """
        try:
            return self.open(place, READ)
        except OSError as error:
            fail(f"cannot read {self.shown(place.layer, place.path)}", error)

    def shown(self, layer: int, path: TreePath) -> str:
        """Return the path of something in a lower layer, for messages."""
        return os.path.join(self._layers[layer], path.shown) if path.parent else self._layers[layer]

    def _find(
        self, directory: Directory, name: str, *, redirect: str, is_directory: bool, metacopy: bool
    ) -> Found:
        roots = self.roots()
        search = _Search(redirect or name, is_directory=is_directory, metacopy=metacopy)
        if redirect:
            self._check_redirect(redirect, name)
        stack = roots if redirect.startswith("/") else self.below(directory)
        places: list[Place] = []
        data = None
        position = 0
        while not search.stop and position < len(stack):
            layer = stack[position].layer
            position += 1
            # Data-only layers may follow the last merged one, so a file's search may go on there.
            search.last = layer == self._merged - 1 and (
                search.is_directory or self._merged == len(self._layers)
            )
            found = self._in_layer(layer, stack[position - 1].path, search)
            if found is None:
                continue
            if not found.is_directory and not search.metacopy:
                data = found
            if found.is_directory or not places:
                places.append(found)
            if search.redirect.startswith("/") and stack is not roots:
                stack = roots
                position = layer + 1
        if search.metacopy and data is None:
            data = self._in_data_layers(search.redirect or redirect)
            if data is None:
                where = os.path.join(directory.name, name)
                raise ArchiveError(
                    f"the data of {where}, of which only the metadata were copied up, are in no layer"
                )
        return Found(places=places, data=data)

    def _in_layer(self, layer: int, base: TreePath, search: _Search) -> Place | None:
        if not search.name.startswith("/"):
            return self._component(layer, base, search, search.name, 0, "")
        # An absolute redirect. A redirect of one of its components rewrites the part before what is
        # still to come, so what is to come is counted from the end.
        base = TOP
        rest = len(search.name) - 1
        while True:
            start = len(search.name) - rest
            end = search.name.find("/", start)
            end = len(search.name) if end < 0 else end
            component, after = search.name[start:end], search.name[end:]
            found = self._component(layer, base, search, component, start, after)
            if found is None or not after:
                return found
            base = found.path
            rest = len(after) - 1

    def _component(
        self, layer: int, base: TreePath, search: _Search, name: str, start: int, after: str
    ) -> Place | None:
        """Look up one component in one layer, and note in the search what follows from it.

        Args:
            layer, base: the directory that it is in.
            search: what is looked for; changed.
            name: the component.
            start: where it begins in the searched name.
            after: what comes after it; "" for the last one.
        """
        path = self._path
        if path.parent is not base or path.name != name:
            path = self._path = TreePath(base, name)
        place = self._look(layer, path)
        if place is None:
            return None
        if place.is_whiteout or self._is_whiteout_file(place, base):
            search.stop = True
            return None
        if not after and search.metacopy and not place.is_file:
            search.stop = True
            return None
        if not place.is_directory:
            if search.is_directory or after:
                search.stop = True
                return None
            search.metacopy = place.is_file and self._attribute(place, "metacopy") is not None
            search.stop = not search.metacopy
            if not search.metacopy or search.last:
                return place
        else:
            if not after:
                search.is_directory = True
            if search.last:
                return place
            if self._attribute(place, "opaque") == b"y":
                search.stop = True
                return place
        redirect = self._attribute(place, "redirect")
        if redirect is not None:
            target = os.fsdecode(redirect)
            self._check_redirect(target, self.shown(layer, path))
            if target.startswith("/"):
                search.stop = False  # goes on even below an opaque directory
                search.redirect = target + after
            else:
                search.redirect = search.name[:start] + target + after
            search.name = search.redirect
        return place

    def _in_data_layers(self, redirect: str) -> Place | None:
        if redirect.startswith("/"):
            for layer in range(self._merged, len(self._layers)):
                path = TOP
                for name in redirect[1:].split("/"):
                    path = TreePath(path, name)
                place = self._look(layer, path)
                if place and place.is_file:
                    return place
        return None

    def _is_whiteout_file(self, place: Place, base: TreePath) -> bool:
        # A lower made for nested overlays marks deletions by attributes: overlayfs.rst, "Nesting
        # overlayfs mounts".
        if not (place.is_file and place.is_empty):
            return False
        if self._attribute(place, "whiteout") is None:
            return False
        directory = self._look(place.layer, base)
        return directory is not None and self._attribute(directory, "opaque") == b"x"

    def _check_redirect(self, redirect: str, of: str) -> None:
        components = redirect[1:].split("/") if redirect.startswith("/") else [redirect]
        for component in components:
            if component in ("", ".", "..") or "/" in component:
                raise ArchiveError(f"the redirect {redirect!r} of {of} is not one that the kernel follows")

    def _attribute(self, place: Place, key: str) -> bytes | None:
        name = self._namespace + key
        try:
            fd = self.open(place, LOOK)
            try:
                return os.getxattr(f"/proc/self/fd/{fd}", name)
            finally:
                os.close(fd)
        except OSError as error:
            if error.errno in _NO_ATTRIBUTE:
                return None
            fail(f"cannot read the attribute {name} of {self.shown(place.layer, place.path)}", error)

    def _look(self, layer: int, path: TreePath) -> Place | None:
        try:
            fd = self._open(layer, path, LOOK)
        except OSError as error:
            if path.parent and error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG):
                return None
            fail(f"cannot read {self.shown(layer, path)}", error)
        try:
            return Place(layer, path, os.fstat(fd))
        finally:
            os.close(fd)

    def _open(self, layer: int, path: TreePath, flags: int) -> int:
        if path.parent is None:
            return os.open(self._layers[layer], READ_TOP_DIRECTORY)
        return os.open(path.name, flags, dir_fd=self._directory(layer, path.parent))

    def _directory(self, layer: int, path: TreePath) -> int:
        """Return an open directory of a layer, which stays open until another one is asked for."""
        known, fd = self._open_directories.pop(layer, (None, -1))
        if known is not path:
            way = []
            step = path
            while step is not known and step.parent is not None:
                way.append(step.name)
                step = step.parent
            if step is not known:
                if fd >= 0:
                    os.close(fd)
                fd = os.open(self._layers[layer], READ_TOP_DIRECTORY)
            try:
                while way:
                    inner = os.open(way.pop(), STEP, dir_fd=fd)
                    fd, outer = inner, fd
                    os.close(outer)
            except OSError:
                os.close(fd)
                raise
        if len(self._open_directories) >= _MOST_OPEN:
            oldest = next(iter(self._open_directories))
            os.close(self._open_directories.pop(oldest)[1])
        self._open_directories[layer] = path, fd
        return fd


class _Search:
    """What is looked for, and how the search goes: the kernel's struct ovl_lookup_data."""

    __slots__ = ("is_directory", "last", "metacopy", "name", "redirect", "stop")

    def __init__(self, name: str, *, is_directory: bool, metacopy: bool) -> None:
        self.name = name
        self.is_directory = is_directory  # a directory was found, so only directories are merged
        self.metacopy = metacopy  # a file without data was found, so its data are looked for
        self.redirect = ""
        self.stop = False
        self.last = False
