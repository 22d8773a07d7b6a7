"""What the administrator allows, on the command line of the hook: no annotation changes it."""

from __future__ import annotations

from archive_overlay.errors import ArchiveError
from archive_overlay.overlay.change import WHITEOUT

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from archive_overlay.overlay.change import Change

_SET_ID_BITS = 0o6000
_CAPABILITY = "security.capability"


class Policy:
    """Limits of what an archive may hold. Its bytes are counted where they are written (`change.Allowance`).

    Args:
        setid: whether set-user-ID and set-group-ID bits and file capabilities may be in it.
        max_entries: deletions and directories counted; None: any number.
    """

    __slots__ = ("_max_entries", "_setid")

    def __init__(self, *, setid: bool = True, max_entries: int | None = None) -> None:
        self._setid = setid
        self._max_entries = max_entries

    def applied(self, stream: Iterator[Change]) -> Iterator[Change]:
        """Give the changes as they may be archived.

        Raises:
            ArchiveError: there are more than allowed.
        """
        entries = 0
        for change in stream:
            entries += 1 if change.name else 0
            if self._max_entries is not None and entries > self._max_entries:
                raise ArchiveError(
                    f"the change set has more than {self._max_entries} entries, the most that is allowed"
                )
            if not self._setid and change.kind is not WHITEOUT:
                change.mode &= ~_SET_ID_BITS
                if _CAPABILITY in change.attributes:
                    del change.attributes[_CAPABILITY]
            yield change
