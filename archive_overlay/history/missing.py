"""Collect what could not be set on unpacked entries, for one warning."""

from __future__ import annotations

from archive_overlay.errors import brief

# Kinds that are told apart: a layer may have any number of attributes.
_MOST_KINDS = 16


class Missing:
    """What was not given to entries: how often, and to which first.

    Attributes:
        marks: whether some of it is what overlays act on.
    """

    def __init__(self) -> None:
        self.marks = False
        self._found: dict[str, tuple[int, str]] = {}

    def __contains__(self, what: str) -> bool:
        return what in self._found

    def note(self, what: str, path: str) -> None:
        """Note one entry."""
        if what not in self._found and len(self._found) >= _MOST_KINDS:
            what = "other attributes"
        count, first = self._found.get(what) or (0, brief(path))
        self._found[what] = count + 1, first

    def note_mark(self, what: str, path: str) -> None:
        """Note one entry with something that an overlay would act on."""
        self.marks = True
        self.note(what, path)

    def __bool__(self) -> bool:
        return bool(self._found)

    def __str__(self) -> str:
        """Say what is missing, for a warning; "" if nothing is."""
        return ", ".join(
            f"{what} of {first}" + (f" and {count - 1} more" if count > 1 else "")
            for what, (count, first) in self._found.items()
        )
