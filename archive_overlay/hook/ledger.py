"""What became of the requests of one run, so far."""

from __future__ import annotations

from archive_overlay.errors import ArchiveError, brief, internal_error, interruption
from archive_overlay.system.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Mapping
    from types import TracebackType

    from archive_overlay.hook.annotations import ArchiveRequest
    from archive_overlay.log import Log


class Failure(Record):
    """A request that could not be done.

    Attributes:
        name: of the archive.
        keys: its annotations, by key.
        reason: what went wrong.
        keep: whether its changes matter to the user: to be told where they are, and to have them kept.
    """

    name: str
    keys: Mapping[str, object]
    reason: str
    keep: bool = True


class Ledger:
    """What became of the requests.

    Args:
        asked: the annotations of each archive by key, by the archive's name.
        log: takes what went wrong.

    Attributes:
        saved_all: whether nothing has gone wrong.
        failures: what is still to be settled.
        moved: where an upperdir is that was renamed, by its path.
        asked: the annotations, as above.
        facts: what is known of each archive that has come to an end, by its name; see `reports`.
        kept: names of the archives that failed, and whose upperdir is kept.
        unchanged: names of the archives that have nothing new, because nothing was changed.
    """

    def __init__(self, asked: Mapping[str, Mapping[str, object]], log: Log) -> None:
        self.saved_all = True
        self.asked = asked
        self.facts: dict[str, dict[str, object]] = {}
        self.failures: list[Failure] = []
        self.moved: dict[str, str] = {}
        self.kept: list[str] = []
        self.unchanged: list[str] = []
        self._log = log
        self._pending = dict(asked)
        self._safe = ""  # name of the last archive that is all that it should be
        self._published: dict[str, str] = {}  # destination: name of the archive

    def complain(self, message: str) -> None:
        """Log what is wrong, and remember that something is."""
        self._log.error(message)
        self.saved_all = False

    def complain_of(self, name: str, message: str) -> None:
        """Log what is wrong with an archive that is made all the same, and remember it."""
        self.complain(f"archive {name}: {message}")
        before = self.facts.get(name, {}).get("error")
        self.note(name, {"error": brief(f"{before}; {message}" if before else message)})

    def failing_alone(self, name: str) -> FailingAlone:
        """Give a context in which what fails costs the other archives nothing.

        Args:
            name: of the archive that fails then.
        """
        return FailingAlone(self, name)

    def expect_free(self, request: ArchiveRequest, path: str) -> None:
        """Refuse to replace an archive of this very run.

        Args:
            request: what is asked for.
            path: where it would be.

        Raises:
            ArchiveError: that is one.
        """
        if path in self._published and request.if_exists == "replace":
            raise ArchiveError(
                f"archive-to {path} has archive {self._published[path]} of the same stop, which would be replaced",
                hint="give each archive a path of its own",
            )

    def publish(self, name: str, path: str) -> None:
        """Note that an archive is at its place."""
        self._published[path] = name

    def is_safe(self, name: str) -> None:
        """Note that an archive is all that it should be: at its place, on disk, with its marker."""
        self._safe = name

    def note(self, name: str, facts: Mapping[str, object]) -> None:
        """Note what is known of an archive, for those who want to be told."""
        self.facts.setdefault(name, {}).update(facts)

    def done(self, name: str) -> None:
        """Note that nothing is left to do for an archive."""
        self._pending.pop(name, None)

    def give_up(self, reason: str, *, unkept: Collection[str] = ()) -> None:
        """Count all that is pending as failed.

        Args:
            reason: what went wrong.
            unkept: the archives whose changes are not to be kept; see `Failure`.
        """
        for name in list(self._pending):
            if name != self._safe:  # of which only cleaning up was left
                self.fail(name, reason, keep=name not in unkept)

    def fail(self, name: str, reason: str, *, keep: bool = True) -> None:
        """Note that an archive cannot be made.

        Args:
            name: of the archive.
            reason: what went wrong.
            keep: see `Failure`.
        """
        # A signal may come at any point: what has failed is pending until it is noted.
        self.failures.append(Failure(name=name, keys=self._pending[name], reason=reason, keep=keep))
        self.done(name)


class FailingAlone:
    """The context of one archive: what is raised in it becomes a failure, unless a signal came meanwhile.

    Args:
        ledger: takes the failure.
        name: of the archive.
    """

    def __init__(self, ledger: Ledger, name: str) -> None:
        self._ledger = ledger
        self._name = name

    def __enter__(self) -> None:
        pass

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        if not isinstance(error, Exception):  # there is none, or it is a signal's
            return False
        if end := interruption(error):
            raise end from error
        # A fault of this program must not cost the other archives either.
        reason = str(error) if isinstance(error, ArchiveError) else internal_error(error)
        self._ledger.fail(self._name, reason)
        return True
