"""A tar with any marks as one that has those of layers.

Source: OCI image specification, layer.md, "Whiteouts"; the kernel's Documentation/filesystems/overlayfs.rst.
"""

from __future__ import annotations

from archive_overlay.marks import OPAQUE_MARKER, WHITEOUT_PREFIX
from archive_overlay.tar import headers
from archive_overlay.tar.changes import Marks, split_link, split_path
from archive_overlay.tar.reader import Entry

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from archive_overlay.tar.changes import Form
    from archive_overlay.tar.reader import TarReader

_DELETED = 1
_NO_DATA: tuple[tuple[int, bytes], ...] = ()
# What names that begin as whiteouts of layers do begin with here, where they are ordinary names. The order of names is the
# same: the last character is the greatest that there is, so this comes after all names with a smaller one, and before all
# names that come after ".wh.".
_ORDINARY = ".wh-\U0010ffff\udc7f"


class LayerForm:
    """A tar that is read once, as a layer. See `TarReader` for its methods.

    Args:
        tar: at its start.
        form: the marks that count in it.
    """

    def __init__(self, tar: TarReader, form: Form) -> None:
        self._tar = tar
        self._form = form
        self._made = False  # the present entry is not the tar's

    def entries(self) -> Iterator[Entry]:
        form = self._form
        deleted = Marks()
        for entry in self._tar.entries():
            self._made = False
            parts = split_path(entry.name)
            if not form.whiteout_files and any(part.startswith(WHITEOUT_PREFIX) for part in parts):
                parts = [_ordinary(part) for part in parts]
                entry.name = "/".join(parts)
            if not form.whiteout_files and entry.type == headers.HARD_LINK:
                entry.link = "/".join([_ordinary(part) for part in split_link(entry.link)])
            if form.whiteout_devices and parts:
                path = "/".join(parts)
                if (entry.type == headers.CHARACTER_DEVICE and not entry.device) or (
                    # Deletions of an upperdir are one file, and most programs that make tars have links for that.
                    entry.type == headers.HARD_LINK
                    and deleted.has("/".join(split_link(entry.link)), _DELETED)
                ):
                    deleted.add(path, _DELETED)
                    *above, name = parts
                    self._made = True
                    yield Entry(headers.REGULAR, "/".join([*above, WHITEOUT_PREFIX + name]))
                    continue
            yield entry
            opaque = form.opaque_attributes
            if entry.type == headers.DIRECTORY and any(entry.attributes.get(each) == b"y" for each in opaque):
                for attribute in opaque:
                    entry.attributes.pop(attribute, None)
                self._made = True
                yield Entry(headers.REGULAR, "/".join([*parts, OPAQUE_MARKER]))

    def data(self) -> Iterator[tuple[int, bytes]]:
        return iter(_NO_DATA) if self._made else self._tar.data()

    def whole_data(self) -> bytes | None:
        return b"" if self._made else self._tar.whole_data()


def _ordinary(name: str) -> str:
    return _ORDINARY + name[len(WHITEOUT_PREFIX) :] if name.startswith(WHITEOUT_PREFIX) else name


def true_name(name: str) -> str:
    """Give a name as the tar that `LayerForm` reads has it."""
    return WHITEOUT_PREFIX + name[len(_ORDINARY) :] if name.startswith(_ORDINARY) else name
