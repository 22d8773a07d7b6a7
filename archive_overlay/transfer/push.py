"""Tags of a layout, pushed to a registry: none of them takes the place of revisions that it lacks.

A registry exchanges no tag for another one on the condition that it still is what it was. So what a tag names there is looked
at before it is moved, and once more afterwards. What takes long is sent before the first look, under the digest, which moves
no tag: the time between look and move is that of a few requests (docs/design.md, "Pushing").

Source: OCI distribution specification, "Pushing manifests"; git-push(1), for the words.
"""

from __future__ import annotations

import fcntl
from contextlib import nullcontext

from archive_overlay.errors import ArchiveError
from archive_overlay.history.revisions import opened_layout
from archive_overlay.layout.edit import Edit, until_published
from archive_overlay.layout.images import put_same
from archive_overlay.layout.lineage import BRANCH, branch_tag, find_revision
from archive_overlay.layout.lock import lock
from archive_overlay.layout.provenance import read_provenance
from archive_overlay.layout.pulling import quoted
from archive_overlay.layout.read import read_index, tag_of, tagged
from archive_overlay.layout.remotes import BRANCH_OF, PUSHED, branch_of, noted, pushed_of, remote_of, waits
from archive_overlay.layout.stored import chains_in, open_stored
from archive_overlay.system.record import Record
from archive_overlay.transfer.names import parse_remote
from archive_overlay.transfer.one_image import OneImage
from archive_overlay.transfer.remote_image import by_digest, look_at, read_history
from archive_overlay.transfer.skopeo import TransferError
from archive_overlay.transfer.turns import turn

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping
    from contextlib import AbstractContextManager
    from typing import Any, Callable, TypeVar

    from archive_overlay.destination.paths import Paths
    from archive_overlay.destination.staging import Staging
    from archive_overlay.layout.stored import StoredImage
    from archive_overlay.log import Log
    from archive_overlay.system.patience import Patience
    from archive_overlay.transfer.names import Name
    from archive_overlay.transfer.remote_image import RemoteImage
    from archive_overlay.transfer.skopeo import Skopeo

    Done = TypeVar("Done")

# What is sent at once, without being sent under the digest first: it takes no longer than the requests themselves.
_AT_ONCE = 256 * 1024
_MOST_ATTEMPTS = 3
# Without this, layers would be compressed, and all that is known of them would be lost.
_AS_IT_IS = "--preserve-digests"
# What skopeo says of a layer that it needs all the same.
_NO_FILE = "no such file"


class Source(Record):
    """The layout that is pushed from, and how to get there.

    Attributes:
        path: of the layout, resolved.
        stage: gives a place in it to write in.
        paths: how to get to it.
        patience: how long to wait for its lock.
        turn: for how many seconds to wait for others that push from it.
        log: takes what happens.
        allowed: says whether something may be pushed to a name.
        sending: is entered while something is sent; is called with the directory that it is read from, and how many bytes
            it is at most.
        checking: is entered while as many bytes are read, and compared with their digests.
    """

    path: str
    stage: Callable[[], AbstractContextManager[Staging]]
    paths: Paths
    patience: Patience
    turn: float
    log: Log
    allowed: Callable[[Name], bool] = lambda name: True
    sending: Callable[[str, int], AbstractContextManager[object]] = lambda directory, size: nullcontext()
    checking: Callable[[int], AbstractContextManager[object]] = lambda size: nullcontext()


class Pushed(Record):
    """What has become of a tag.

    Attributes:
        tag: of the layout.
        name: in the registry.
        sent: whether something was sent; else it was there.
        refused: why it is not there, as a sentence without an end; "" if it is.
        branch: the tag by which it is there all the same; "" for none.
        branch_name: of that in the registry.
    """

    tag: str
    name: str
    sent: bool = False
    refused: str = ""
    branch: str = ""
    branch_name: str = ""

    @property
    def done(self) -> str:
        """What was done, for a message."""
        return f"{self.tag} is {'pushed to' if self.sent else 'at'} {self.name}"


def push(source: Source, tag: str, skopeo: Skopeo, *, to: Name | None = None, if_moved: str) -> Pushed:
    """Push a tag.

    Args:
        source: where it is.
        tag: it.
        skopeo: carries it.
        to: where it is to go from now on; None: as the layout says.
        if_moved: `lineage.BRANCH`: if the registry has revisions that the tag lacks, push it by another name.

    Raises:
        ArchiveError: it could not be pushed, or nobody knows whether it was. It waits.
    """
    # Of many tags that wait, not each waits anew for another program.
    seconds = min(source.turn, skopeo.left)
    with opened_layout(source.path, source.paths) as layout, turn(layout, source.path, seconds=seconds):
        return _push_from(layout, source, tag, skopeo, to, branches=if_moved == BRANCH)


def push_waiting(
    source: Source,
    skopeo: Callable[[], Skopeo],
    *,
    but: Collection[str] = (),
    all_tags: bool = False,
    if_moved: str,
) -> Iterator[tuple[str, Pushed | ArchiveError]]:
    """Push all tags that wait, one attempt each. No second tag is tried at a registry that does not answer.

    Args:
        source: the layout.
        skopeo: gives what carries the next one.
        but: tags that are not pushed.
        all_tags: whether those that do not wait are looked at, too.
        if_moved: see `push`.

    Returns:
        What has become of each tag, or why it could not be pushed.

    Raises:
        ArchiveError: the layout cannot be read.
    """
    with opened_layout(source.path, source.paths) as layout:
        listed = read_index(layout)["manifests"]
    silent: dict[str, ArchiveError] = {}
    for descriptor in listed:
        tag, remote = tag_of(descriptor), remote_of(descriptor)
        if not tag or not remote or tag in but or not (all_tags or waits(descriptor)):
            continue
        try:
            name = parse_remote(remote)
            _expect_allowed(source, name)
            if name.host in silent:
                raise silent[name.host]
            yield tag, push(source, tag, skopeo(), if_moved=if_moved)
        except TransferError as error:
            if error.unreachable:
                silent[name.host] = error
            yield tag, error
        except ArchiveError as error:
            yield tag, error


def _push_from(
    layout: int, source: Source, tag: str, skopeo: Skopeo, to: Name | None, *, branches: bool
) -> Pushed:
    with source.stage() as staging:
        return _Pusher(layout, source, staging, skopeo).push(tag, to, branches=branches)


class _RefusedError(Exception):
    """The registry has what the tag lacks."""


class _Pusher:
    """Pushes tags of a layout.

    Args:
        layout: file descriptor of its directory.
        source, staging, skopeo: see `push`.
    """

    def __init__(self, layout: int, source: Source, staging: Staging, skopeo: Skopeo) -> None:
        self._layout = layout
        self._source = source
        self._staging = staging
        self._skopeo = skopeo
        self._there: set[str] = set()  # layers that the registry has, as it says

    def push(self, tag: str, to: Name | None, *, branches: bool) -> Pushed:
        """Push a tag; see `push`."""
        image, known = self._open(tag)
        noted_name = remote_of(image.descriptor)
        if not to and not noted_name:
            raise ArchiveError(
                f"{self._source.path}:{tag} has no place in a registry yet",
                hint=f"name one: archive_overlay push --to docker://HOST/NAME:TAG {quoted(f'{self._source.path}:{tag}')}",
            )
        name = to or parse_remote(noted_name)
        _expect_allowed(self._source, name)
        if name.reference != noted_name:
            # It waits from now on, whatever happens.
            self._annotate(tag, {**noted(name.reference), PUSHED: ""})
        try:
            sent = self._push(image, name, known if name.reference == noted_name else "")
        except _RefusedError as error:
            # A branch gets no branch: a registry that refuses everything would have one more made each time.
            branches = branches and not branch_of(image.descriptor)
            return self._refused(tag, name, str(error), branches=branches)
        self._note(tag, name, image)
        return Pushed(tag=tag, name=name.reference, sent=sent)

    def _open(self, tag: str) -> tuple[StoredImage, str]:
        """Open an image, and give the digest of what was last pushed there."""
        attempt = 0
        while True:
            attempt += 1
            descriptor = tagged(read_index(self._layout), tag)
            if descriptor is None:
                raise ArchiveError(f"the image layout {self._source.path} has no tag {tag}")
            try:
                return open_stored(self._layout, descriptor), pushed_of(descriptor)
            except ArchiveError:
                # Others may have gone on, and deleted what they made superfluous.
                if attempt == _MOST_ATTEMPTS or tagged(read_index(self._layout), tag) == descriptor:
                    raise

    def _push(self, image: StoredImage, name: Name, known: str) -> bool:
        """Let a name in a registry name an image; say whether anything was sent.

        Args:
            image: it.
            name: in the registry.
            known: digest of what this layout has pushed there last; "" for nothing.

        Raises:
            _RefusedError: the name has what the image lacks.
        """
        there = look_at(self._skopeo, name)
        if self._is_there(image, there, known):
            return False
        if there:
            self._there.update(there.layers)
        new = [each for each in image.manifest["layers"] if each["digest"] not in self._there]
        with OneImage(self._layout, image, self._staging) as one:
            size = sum(each["size"] for each in new)
            if size > _AT_ONCE:
                self._copy(one, by_digest(name, image.descriptor["digest"]), size)
                size = 0
                self._there.update(each["digest"] for each in new)
                there = look_at(self._skopeo, name)
                if self._is_there(image, there, known):
                    return False
            self._copy(one, name.reference, size)
        self._there.update(each["digest"] for each in new)
        there = look_at(self._skopeo, name)
        if there is None:
            raise ArchiveError(f"{name.reference} was pushed, but is not there")
        if there.digest != image.descriptor["digest"] and not self._is_part_of(image, there):
            raise _RefusedError(f"another host pushed to {name.reference} at the same moment")
        return True

    def _is_there(self, image: StoredImage, there: RemoteImage | None, known: str) -> bool:
        """Return whether a name needs no push any more.

        Raises:
            _RefusedError: it must not be pushed.
        """
        if there is None:
            return False
        if there.digest == image.descriptor["digest"]:
            return True
        if there.digest == known:
            return False  # nobody but this layout has pushed there since
        history = read_history(self._skopeo, there)
        if find_revision(image, history.top):
            return False
        if history.has(_ids(image)):
            return True  # and more
        raise _RefusedError(f"{there.name.reference} has revisions that {self._source.path} lacks")

    def _is_part_of(self, image: StoredImage, there: RemoteImage) -> bool:
        return read_history(self._skopeo, there).has(_ids(image))

    def _copy(self, one: OneImage, destination: str, size: int) -> None:
        """Send what the registry lacks, which is of a size."""
        with self._source.checking(size):
            whole = one.lend(without=self._there)
        try:
            with self._source.sending(one.path, size):
                self._skopeo.copy(one.reference, destination, _AS_IT_IS)
        except TransferError as error:
            if whole or _NO_FILE not in error.message:
                # Nobody knows the layout in staging.
                message = error.message.replace(one.reference, self._source.path)
                raise TransferError(message, hint=error.hint, unreachable=error.unreachable) from error
            # The registry has lost a layer of what it says that it has.
            one.lend(without=())
            self._skopeo.copy(one.reference, destination, _AS_IT_IS)

    def _refused(self, tag: str, name: Name, why: str, *, branches: bool) -> Pushed:
        """Push by the name of a branch what must not be pushed by its own."""
        refused = Pushed(tag=tag, name=name.reference, refused=why)
        if not branches:
            self._annotate(tag, noted(name.reference))
            return refused
        try:
            branch = self._make_branch(tag, name)
        except ArchiveError as error:
            raise ArchiveError(f"{why}, and there is no branch: {error.message}", hint=error.hint) from error
        image, known = self._open(branch)
        other = parse_remote(remote_of(image.descriptor))
        _expect_allowed(self._source, other)
        try:
            self._push(image, other, known)
        except _RefusedError as error:
            raise ArchiveError(f"{why}, and {error}") from error
        self._note(branch, other, image)
        return refused.replace(branch=branch, branch_name=other.reference)

    def _make_branch(self, tag: str, name: Name) -> str:
        """Let a tag of its own name what a tag names: one that is for this already, or a new one."""

        def make(edit: Edit) -> str:
            descriptor = tagged(edit.index, tag)
            if descriptor is None:
                raise ArchiveError(f"the image layout {self._source.path} has no tag {tag} any more")
            image = open_stored(self._layout, descriptor)
            branch = self._branch_before(edit.index, tag, name, image)
            if not branch:
                branch = branch_tag(
                    edit.index, tag, _container(image) or descriptor["digest"].partition(":")[2]
                )
                other = name.with_suffix(branch[len(tag) :])
                _expect_allowed(self._source, other)
                put_same(edit, branch, image, {**noted(other.reference), BRANCH_OF: tag})
            elif (old := tagged(edit.index, branch)) and old["digest"] != descriptor["digest"]:
                put_same(edit, branch, image)
            else:
                return branch
            edit.annotate_tag(tag, noted(name.reference))
            edit.publish()
            return branch

        return self._write(make)

    def _branch_before(self, index: Mapping[str, Any], tag: str, name: Name, image: StoredImage) -> str:
        """Find the branch that was made of a tag when it was refused before, and that the tag has gone on from."""
        for descriptor in index["manifests"]:
            if branch_of(descriptor) != tag:
                continue
            try:
                other = parse_remote(remote_of(descriptor))
                before = open_stored(self._layout, descriptor, whole=False)
            except (ArchiveError, OSError):
                continue  # damaged
            if (other.host, other.path) == (name.host, name.path) and find_revision(image, _ids(before)):
                return tag_of(descriptor)
        return ""

    def _note(self, tag: str, name: Name, image: StoredImage) -> None:
        """Note that an image is in the registry."""
        self._annotate(tag, noted(name.reference, image.descriptor["digest"]))

    def _annotate(self, tag: str, said: Mapping[str, str]) -> None:
        """Note something of a tag, if it is not noted yet and the tag is still there."""

        def lacks(index: Mapping[str, Any]) -> bool:
            descriptor = tagged(index, tag)
            return descriptor is not None and not said.items() <= descriptor["annotations"].items()

        def note(edit: Edit) -> None:
            if lacks(edit.index):
                edit.annotate_tag(tag, said)
                edit.publish()

        if lacks(read_index(self._layout)):
            self._write(note)

    def _write(self, work: Callable[[Edit], Done]) -> Done:
        source = self._source
        lock(self._layout, source.path, source.patience, source.log)
        try:
            edit = Edit(self._layout, self._staging)
            edit.begin()  # an earlier one may have left something in staging
            return until_published(edit, source.path, lambda: work(edit))
        finally:
            # The network is slow, and others wait.
            fcntl.flock(self._layout, fcntl.LOCK_UN)


def _expect_allowed(source: Source, name: Name) -> None:
    if not source.allowed(name):
        raise ArchiveError(
            f"{name.reference} is not allowed",
            hint="the administrator allows it by --allow-push-to in the hook's configuration",
        )


def _ids(image: StoredImage) -> frozenset[str]:
    """Return the ids that the topmost layer of an image may have in stores."""
    annotations = image.manifest["layers"][-1].get("annotations") if image.layers else None
    noted = chains_in(annotations) if isinstance(annotations, dict) else []
    return frozenset({image.chain(), *noted} - {""})


def _container(image: StoredImage) -> str:
    """Return the id of the container that made the last revision; "" if none did."""
    kept = image.kept()
    said = read_provenance(kept[-1].annotations, {}) if kept else None
    return said.container if said else ""
