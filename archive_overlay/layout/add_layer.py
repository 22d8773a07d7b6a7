"""One more revision of a history in an OCI image layout: where it goes is judged, locked, and written to.

A run that is killed leaves at most blobs that nothing refers to (see `edit`).

Source: OCI image specification, image-layout.md, image-index.md, manifest.md, config.md, descriptor.md.
"""

from __future__ import annotations

import os
import stat
import time

from archive_overlay.destination.apart import keep_apart
from archive_overlay.destination.staging import ARCHIVE, Staging
from archive_overlay.errors import ArchiveError, fail
from archive_overlay.layout.blobs import BLOBS
from archive_overlay.layout.edit import Edit, is_new, until_published
from archive_overlay.layout.images import empty_image, image_at, put_image, put_same, with_layer
from archive_overlay.layout.layer import Layer
from archive_overlay.layout.lineage import BRANCH, Wish, find_place
from archive_overlay.layout.lock import lock
from archive_overlay.layout.provenance import Provenance
from archive_overlay.layout.pulling import advice_on_pulling, quoted
from archive_overlay.layout.read import (
    check_name,
    images,
    read_index,
    split_reference,
    tag_of,
    tagged,
)
from archive_overlay.system.activity import doing
from archive_overlay.system.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping
    from contextlib import AbstractContextManager
    from typing import Any, Callable

    from archive_overlay.destination.paths import Paths
    from archive_overlay.layout.lineage import Earlier, Place
    from archive_overlay.layout.stored import StoredImage
    from archive_overlay.log import Log
    from archive_overlay.overlay.change import Change
    from archive_overlay.system.flush import Flush
    from archive_overlay.system.patience import Patience

    Read = Callable[[Log], AbstractContextManager[Iterator[Change]]]
    Compare = Callable[[Read, Staging, Log], AbstractContextManager[Iterator[Change]]]

_EMPTY_INDEX: dict[str, Any] = {"manifests": []}
# Without the lock, an index is read anew at most so often.
_MOST_ATTEMPTS = 20


class Step(Record):
    """Something to be done once a revision is safe.

    Attributes:
        what: it is, for a message: "pushing".
        work: does it.
        asked: whether the user asks for it, so that it is an error if it fails; else a later stop does it as well.
    """

    what: str
    work: Callable[[LayoutDestination], object]
    asked: bool = False


class LayoutDestination:
    """A tag of an image layout, which is to get one more revision.

    Args:
        wish: which tag, and what is known of the container's image.
        provenance: where the layer comes from, without the numbers that are known when it is written.
        annotate: gives what the tag that gets the revision is annotated with in the index; is told whether that is a new one.
        paths: how to get there.
        patience: how long publishing may wait for another program.
        log: is told if it does.

    Attributes:
        path: of the layout: absolute, symbolic links are resolved.
        published: the tag that got the revision; "" if none did.
        added: whether that was a new one.
        number: of the revision that the tag names then; 0 if there is none.
        layers: how many the image has then, and how many of them are its base.
        loaded: by which name the engine's store has it, loaded or there already; "" if a step did not see to that.
        pushed: where in a registry it is; "" if a step did not push it.
        steps: what is still to be done once the revision is safe.
        complaints: what cannot be done of what is asked for, as is known before the revision is made.
        compare: see `methods.Compared`.
    """

    def __init__(
        self,
        wish: Wish,
        *,
        provenance: Provenance,
        annotate: Callable[[str, bool], Mapping[str, str]],
        paths: Paths,
        patience: Patience,
        log: Log,
    ) -> None:
        self.layers = 0, 0
        self.number = 0
        self.added = False
        self.loaded = self.pushed = ""
        self.steps: list[Step] = []
        self.complaints: list[str] = []
        self.compare: Compare | None = None
        self._annotate = annotate
        self._stage: Callable[[], Staging] | None = None
        self.path = wish.path
        self.published = ""
        self.wish = wish
        self.paths = paths
        self.patience = patience
        self.log = log
        self._provenance = provenance

    @property
    def earlier(self) -> Earlier | None:
        """The revision of the same upperdir that the new one is to lie on, and to differ from; None: there is none."""
        return self.wish.earlier

    def forget_earlier(self) -> None:
        """Write all that the upperdir holds, because nobody knows what an earlier revision has of it."""
        self.wish = self.wish.replace(earlier=None)
        self.compare = None

    def stage(self, flush: Flush, log: Log, file_mode: int | None = None) -> Staging:
        """Give the place in the layout to write the layer in."""
        self._stage = lambda: Staging(
            self.path, "", paths=self.paths, flush=flush, log=log, file_mode=file_mode
        )
        return self._stage()

    def stage_again(self) -> Staging:
        """Give such a place once more."""
        assert self._stage
        return self._stage()

    @property
    def facts(self) -> dict[str, object]:
        """What is known of the revision; see `methods.Tended`."""
        return {
            "tag": self.published or None,
            "revision": self.number or None,
            "loaded": self.loaded or None,
            "pushed": self.pushed or None,
        }

    @property
    def outstanding(self) -> list[str]:
        """What is asked for and not done; see `methods.Tended`."""
        return [step.what for step in self.steps if step.asked] if self.published else []

    def tend(self) -> list[str]:
        """Do what is to be done once the revision is safe. What fails stops nothing else. See `methods.Tended`."""
        failures: list[str] = []
        while self.steps and self.published:
            step = self.steps[0]
            try:
                with doing(step.what, slow=step.asked):
                    step.work(self)
            except (ArchiveError, OSError, ImportError) as error:
                failed = (
                    f"its revision is safe in {self.path}:{self.published}, but {step.what} failed: {error}"
                )
                if step.asked:
                    failures.append(failed)
                else:
                    self.log.warning(
                        f"archive {self._provenance.archive}: {failed}; the next stop tries again"
                    )
            del self.steps[0]
        return failures

    def publish(self, staging: Staging, result: object) -> str:
        """Add the revision to the history.

        Args:
            staging: has the layer.
            result: the `Layer`.

        Returns:
            What was done, for the summary.

        Raises:
            ArchiveError: the layout is damaged, or cannot be written. It is as it was.
        """
        assert isinstance(result, Layer)
        try:
            layout = self.paths.open(self.path)
            try:
                lock(layout, self.path, self.patience, self.log)
                return self._add(layout, staging, result)
            finally:
                os.close(layout)
        except OSError as error:
            fail(f"cannot write to the image layout {self.path}", error)

    def _add(self, layout: int, staging: Staging, layer: Layer) -> str:
        edit = Edit(layout, staging)

        def add() -> str:
            place = find_place(layout, edit.index, self.wish)
            done = self._add_at(place, layout, edit, layer)
            if place.warning and not (layer.empty and place.earlier):
                self.log.warning(f"archive {self._provenance.archive}: {place.warning}")
            return done

        return until_published(edit, self.path, add)

    def _add_at(self, place: Place, layout: int, edit: Edit, layer: Layer) -> str:
        """Add the revision at its place, and say what was done."""
        old = tagged(edit.index, place.tag)
        image = place.image
        said = self._annotate(place.tag, not layer.empty)
        if layer.empty and place.earlier and place.tag != self.wish.tag and not old:
            return f"no layer, because nothing was changed since {place.earlier.name},"
        if layer.empty and (old or image is None):
            if old:
                assert image
                self._published(place, image, len(image.layers))
            return "no layer, because nothing was changed,"
        whole = image is not None and place.number == image.last
        if layer.empty and whole:
            assert image
            put_same(edit, place.tag, image, said)
            edit.publish()
            self._published(place, image, len(image.layers))
            return f"no layer, because nothing was changed, but the tag {place.tag},"
        if image is None:
            manifest, config = empty_image()
        elif whole:
            manifest, config = dict(image.manifest), dict(image.config)
        else:
            manifest, config = image_at(layout, image, place.number, edit)
        done = f"no layer, because nothing was changed, but the tag {place.tag},"
        number = place.number
        if not layer.empty:
            number += 1
            edit.add_file(ARCHIVE, layer.digest)
            provenance = self._provenance.replace(
                entries=layer.entries,
                deletions=layer.deletions,
                bytes=layer.bytes,
                parent=place.parent,
                base=place.base,
                upper=f"{self._provenance.upper} {place.earlier.first if place.earlier else number}"
                if self._provenance.upper
                else "",
            )
            now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
            manifest, config = with_layer(manifest, config, layer, provenance, number, now)
            done = f"revision {number} of {place.tag}"
        put_image(
            edit,
            place.tag,
            manifest,
            config,
            instead_of=image if old else None,
            platform=image.descriptor.get("platform") if image else None,
            annotations=said,
        )
        edit.publish()
        self._published(place, image, len(manifest["layers"]), number=number)
        self.added = not layer.empty
        if old is None and (advice := advice_on_pulling(self.path, place.tag)):
            self.log.warning(f"archive {self._provenance.archive}: {advice}")
        return done

    def _published(
        self, place: Place, image: StoredImage | None, layers: int, *, number: int | None = None
    ) -> None:
        self.published = place.tag
        self.number = place.number if number is None else number
        self.layers = layers, sum(piece.last <= image.base for piece in image.layers) if image else 0


def judge_destination(
    archive_to: str,
    *,
    parent: str,
    if_moved: str = BRANCH,
    had: Collection[str] | None = None,
    all_had: Callable[[], Collection[str]] = tuple,
    count_base: Callable[[], int | None] | None = None,
    provenance: Provenance,
    annotate: Callable[[str, bool], Mapping[str, str]] = lambda tag, added: {},
    upper: str,
    paths: Paths,
    patience: Patience,
    log: Log,
) -> LayoutDestination:
    """Refuse all that can be refused before anything is written.

    Args:
        archive_to: absolute path of the layout, with `:TAG` or without.
        parent: TAG or TAG@N to begin a new tag with; "" for none.
        if_moved, had, all_had, count_base: see `lineage.Wish`.
        provenance: where the layer comes from.
        annotate: see `LayoutDestination`.
        upper: the upperdir that is archived.
        paths: where it may be.
        patience: how long publishing may wait for another program.
        log: is told if it does.

    Raises:
        ArchiveError: there is something else, the layout is damaged, other programs do not take its path or tag, or the
            revision has no place there (see `lineage.find_place`).
    """
    path, tag = split_reference(archive_to)
    if ":" in path:
        raise ArchiveError(
            f"archive-to {archive_to} has a colon before its last slash",
            hint="in a tag no slash is possible, and in the path of a layout no program takes a colon",
        )
    if parent:
        check_name(parent)
    expect_no_revision(tag)
    path = paths.resolve(path, "archive-to")
    keep_apart("archive-to", path, upper)
    wish = Wish(
        path=path,
        tag=tag,
        parent=parent,
        if_moved=if_moved,
        container=provenance.container,
        had=had,
        all_had=all_had,
        count_base=count_base,
        upper=provenance.upper,
    )
    try:
        layout = paths.open(path)
    except FileNotFoundError:
        layout = -1
    except OSError as error:
        fail(f"cannot read the image layout {path}", error)
    try:
        if layout >= 0:
            expect_own_blobs(layout, path)
        place, index = _find_place(layout, wish)
        if place.image is None and not all(map(tag_of, images(index))):
            log.warning(
                f"archive {provenance.archive}: the image layout {path} has an image without a tag, which is ignored:"
                f" {tag} begins without it. To begin with it, copy it there once more, as skopeo copy IMAGE"
                f" {quoted(f'oci:{path}:base')}, and ask for parent=base"
            )
    except OSError as error:
        fail(f"cannot read the image layout {path}", error)
    finally:
        if layout >= 0:
            os.close(layout)
    # The layer that is written now is right on that revision only.
    wish = wish.replace(upper="", earlier=place.earlier)
    return LayoutDestination(
        wish, provenance=provenance, annotate=annotate, paths=paths, patience=patience, log=log
    )


def _find_place(layout: int, wish: Wish) -> tuple[Place, Mapping[str, Any]]:
    """Find the place of a revision without the lock, and give the index as well.

    Meanwhile others may add revisions, and delete what those made superfluous: then it is looked at again.
    """
    attempt = 0
    while True:
        attempt += 1
        there = layout >= 0 and not is_new(layout)
        index = read_index(layout) if there else _EMPTY_INDEX
        try:
            return find_place(layout, index, wish), index
        except ArchiveError:
            if not there or attempt == _MOST_ATTEMPTS or read_index(layout) == index:
                raise


def expect_no_revision(tag: str) -> None:
    """Refuse a tag that is called as the commands call a revision of another one."""
    other, at, number = tag.rpartition("@")
    if at and number.isdigit():
        raise ArchiveError(
            f"the tag {tag} would hide revision {number} of {other}, which has the same name",
            hint="a tag must not end in @ and digits",
        )


def expect_own_blobs(layout: int, path: str) -> None:
    """Refuse a layout whose blobs are to be written elsewhere: whoever made it would choose where.

    Raises:
        ArchiveError: a symbolic link is in the place of the directory of its blobs.
        OSError: it cannot be looked at.
    """
    for name in ("blobs", BLOBS):
        try:
            status = os.stat(name, dir_fd=layout, follow_symlinks=False)
        except FileNotFoundError:
            return
        if stat.S_ISLNK(status.st_mode):
            raise ArchiveError(
                f"the image layout {path} has its blobs elsewhere: {name} is a symbolic link, and nothing is written"
                " through it",
                hint="name another layout; skopeo copy oci:LAYOUT:TAG oci:OTHER:TAG takes an image there",
            )
