"""Pushing what a stop has archived: what the annotation asks for, as far as the administrator allows it."""

from __future__ import annotations

from archive_overlay.errors import ArchiveError
from archive_overlay.layout.lineage import FAIL
from archive_overlay.layout.pulling import quoted
from archive_overlay.layout.remotes import noted
from archive_overlay.log import Repeated
from archive_overlay.system.activity import SoFar, doing
from archive_overlay.transfer.environment import engine_environment
from archive_overlay.transfer.names import is_allowed, parse_remote
from archive_overlay.transfer.push import Source, push, push_waiting
from archive_overlay.transfer.sending import sent_from
from archive_overlay.transfer.skopeo import Skopeo, TransferError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from archive_overlay.layout.add_layer import LayoutDestination
    from archive_overlay.log import Log
    from archive_overlay.settings import TransferSettings
    from archive_overlay.transfer.names import Name


class PushAtStop:
    """A revision that is to be pushed.

    Args:
        archive: what the user calls it.
        push_to: as the annotation says it.
        tag: that is asked for.
        if_moved: what to do if the registry has what the revision lacks; see `lineage`.
        settings: what the administrator allows.
        log: takes what happens.

    Attributes:
        complaint: why it will not be pushed; "" if nothing is in the way.
    """

    def __init__(
        self, archive: str, push_to: str, tag: str, *, if_moved: str, settings: TransferSettings, log: Log
    ) -> None:
        self._archive = archive
        self._tag = tag
        self._if_moved = if_moved
        self._settings = settings
        self._log = log
        self._remote: Name | None = None
        self.complaint = ""
        try:
            remote = parse_remote(push_to)
            if not self._is_allowed(remote):
                raise ArchiveError(
                    f"push-to {remote.reference} is not allowed",
                    hint="the administrator allows it by --allow-push-to in the hook's configuration",
                )
            self._remote = remote
            self._skopeo().require()
        except ArchiveError as error:
            self.complaint = f"it is not pushed: {error}"

    def annotations(self, tag: str, *, added: bool) -> dict[str, str]:
        """Give what a tag is annotated with that gets the revision: so it waits from then on, whatever happens."""
        try:
            return noted(self._name(tag).reference) if self._remote else {}
        except ArchiveError:
            return {}  # the archive is more important; `push` says it

    def push(self, layout: LayoutDestination) -> None:
        """Push it, and what else waits in its layout.

        Raises:
            ArchiveError: it could not be pushed.
        """
        tag = layout.published
        skopeo = self._skopeo()
        source = Source(
            path=layout.path,
            stage=layout.stage_again,
            paths=layout.paths,
            patience=layout.patience,
            turn=self._settings.push_timeout,
            log=self._log,
            allowed=self._is_allowed,
            sending=_said_of_sending,
            checking=lambda size: doing("checking what is to be pushed"),
        )
        what = f"archive {self._archive}: {layout.path}"
        later = f"archive_overlay push {quoted(f'{layout.path}:{tag}')} sends it, and so does the next stop"
        fetch = f"archive_overlay fetch {quoted(f'{layout.path}:{tag}')} {self._name(tag).reference}"
        try:
            pushed = push(source, tag, skopeo, to=self._name(tag), if_moved=self._if_moved)
        except TransferError as error:
            raise TransferError(str(error), hint=later, unreachable=error.unreachable) from error
        except ArchiveError as error:
            raise ArchiveError(str(error), hint=later) from error
        if pushed.refused and not pushed.branch:
            raise ArchiveError(pushed.refused, hint=f"{fetch} gets them")
        layout.pushed = pushed.branch_name or pushed.name
        if pushed.branch:
            self._log.warning(
                f"{what}:{tag} stays as it is: {pushed.refused}. So it is pushed as {pushed.branch_name};"
                f" {fetch} gets what is at {pushed.name}"
            )
        else:
            self._log.info(f"{what}:{pushed.done}")
        self._push_others(source, skopeo, {tag, pushed.branch})

    def _push_others(self, source: Source, skopeo: Skopeo, but: set[str]) -> None:
        """Push what earlier stops could not push. What fails goes on waiting."""
        repeated = Repeated(self._log)
        for tag, pushed in push_waiting(source, lambda: skopeo, but=but, if_moved=FAIL):
            refused = str(pushed) if isinstance(pushed, ArchiveError) else pushed.refused
            if refused:
                repeated.warning("tags that still wait", f"{source.path}:{tag} still waits: {refused}")
            elif not isinstance(pushed, ArchiveError):
                self._log.info(f"archive {self._archive}: {source.path}:{pushed.done}")
        repeated.finish()

    def _is_allowed(self, name: Name) -> bool:
        return is_allowed(name, self._settings.push_prefixes)

    def _name(self, tag: str) -> Name:
        """Give where a tag goes: a branch of what was asked for goes beside that."""
        assert self._remote
        suffix = tag[len(self._tag) :] if tag.startswith(self._tag) else f"-{tag}"
        return self._remote.with_suffix(suffix)

    def _skopeo(self) -> Skopeo:
        settings = self._settings
        return Skopeo(
            settings.skopeo,
            environment=engine_environment(),
            timeout=settings.push_timeout,
            say=self._log.debug,
            authfile=settings.authfile,
            tls_verify=settings.tls_verify,
        )


def _said_of_sending(directory: str, size: int) -> AbstractContextManager[None]:
    sent = sent_from(directory)
    return doing("pushing it", so_far=lambda: SoFar(min(sent(), size), total=size))
