"""What an archive holds, counted on the way: for the summary, for reports, and for whoever asks how far it is."""

from __future__ import annotations

import os

from archive_overlay.overlay.change import DIRECTORY, WHITEOUT
from archive_overlay.system import activity

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from archive_overlay.hook.annotations import ArchiveRequest
    from archive_overlay.log import Log
    from archive_overlay.overlay.change import Change
    from archive_overlay.overlay.selection import LeftOut


class Tally:
    """Counts what goes by, for the summary."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self.entries = self.deletions = self.bytes = 0
        self._counted = False
        self._current: Change | None = None
        self._left_out: LeftOut | None = None

    def left_out(self, request: ArchiveRequest, log: Log) -> LeftOut | None:
        """Give what counts entries that are not selected; None: all are. The upperdir may be read twice; the first time counts."""
        if request.selection is None:
            return None
        from archive_overlay.overlay.selection import LeftOut

        made = LeftOut(log)
        self._left_out = self._left_out or made
        return made

    @property
    def excluded(self) -> int | None:
        """How many entries are not selected; None: no selection is asked for."""
        return self._left_out.count if self._left_out else None

    @property
    def exclusion(self) -> str:
        """The same, for the summary."""
        if self.excluded is None:
            return ""
        return f" ({'1 entry' if self.excluded == 1 else f'{self.excluded} entries'} excluded)"

    def counted(self, stream: Iterator[Change]) -> Iterator[Change]:
        """Count changes as they go by."""
        self._counted = True
        trace = self._log.wants("trace")
        for change in stream:
            if trace:
                self._log.trace(f"{change.shown}: {change.kind}")
            if change.fd >= 0:  # nearly all
                self._current = change
                self.entries += 1
                self.bytes += change.size
            elif change.kind is WHITEOUT:
                self.deletions += 1
            elif change.name or change.kind is not DIRECTORY:
                self.entries += 1
            yield change

    @property
    def facts(self) -> dict[str, object]:
        """The numbers, as reports have them; without a count there are none."""
        if not self._counted:
            return {}
        facts: dict[str, object] = {
            "entries": self.entries,
            "deletions": self.deletions,
            "bytes": self.bytes,
        }
        return facts if self.excluded is None else {**facts, "excluded": self.excluded}

    def so_far(self) -> activity.SoFar:
        """Say how much has been written, as far as that is known."""
        current, behind = self._current, activity.NOW.behind
        if behind:
            left = behind()
        elif current and current.fd >= 0 and current.data is None:
            left = max(current.size - _position(current.fd), 0)
        else:
            left = 0
        return activity.SoFar(max(self.bytes - left, 0), entries=self.entries + self.deletions)

    def __str__(self) -> str:
        """The same in words."""
        if not self._counted:
            return "the upperdir"
        entries = "1 entry" if self.entries == 1 else f"{self.entries} entries"
        deletions = "1 deletion" if self.deletions == 1 else f"{self.deletions} deletions"
        return f"{entries}, {deletions} and {self.bytes} bytes"


def _position(fd: int) -> int:
    """Give how far a file has been read."""
    try:
        return os.lseek(fd, 0, os.SEEK_CUR)
    except OSError:
        return 0  # it has been closed meanwhile
