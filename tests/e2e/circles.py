"""Containers one after the other, each on the data that the one before left: from an image to a layer to an image."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tests.support import hooks, image_layouts, trees

if TYPE_CHECKING:
    from typing import Callable

    from tests.support.engines import Engine


@dataclass(frozen=True)
class Turn:
    """One container's work.

    Attributes:
        found: what it saw first.
        left: what it saw last.
        changed: the names of its layer.
    """

    found: trees.View
    left: trees.View
    changed: set[bytes]

    def expect_that_the_next_sees(self, found: trees.View) -> None:
        """Compare what it left with what another container found."""
        # Hard links count between names that were changed. To others they break, sooner or later.
        left, found = (seen.linked_among(self.changed) for seen in (self.left, found))
        differences = trees.differences(left, found)
        assert not differences, "\n".join(differences)


@dataclass(frozen=True)
class Circle:
    """An image layout with the data of one container after another.

    Attributes:
        engine: what runs them.
        name: the beginning of the names of all that belongs to it.
    """

    engine: Engine
    name: str

    @property
    def layout(self) -> str:
        """The layout, a path on the machine."""
        return f"{self.engine.home}/{self.name}/layout"

    @property
    def outside(self) -> Path:
        """The layout, a path for this process."""
        return self.engine.machine.outside(self.layout)

    def pull(self, tag: str) -> str:
        """Let podman have a revision; give the image's id."""
        return self.engine.podman("pull", "--quiet", f"oci:{self.layout}:{tag}").stdout.strip()

    def run(
        self, container: str, image: str, command: str, *, to: str = "", detach: bool = False, **keys: str
    ) -> None:
        """Run a container on the data of an image.

        Args:
            container: its name.
            image: what it finds at /data.
            command: a shell script.
            to: the tag that gets what it changes; "": none.
            detach: whether to leave it running.
            keys: more annotations, with underscores for dashes.
        """
        asked = {"mount_point": "/data", "method": "oci", "archive_to": f"{self.layout}:{to}", **keys}
        self.engine.run(
            f"{self.name}-{container}",
            *("--mount", f"type=image,source={image},destination=/data,rw=true"),
            command=command,
            annotations=hooks.annotations("data", **asked) if to else {},
            detach=detach,
        )

    def as_container_root(self, *command: str) -> str:
        """See `Engine.as_container_root`."""
        return self.engine.as_container_root(*command)

    def start(self, container: str, tag: str, *, to: str, **keys: str) -> None:
        """Start a container on what a tag has; see `run`."""
        self.run(container, self.pull(tag), "exec sleep infinity", detach=True, to=to, **keys)

    def change(self, container: str, change: Callable[[Path], object]) -> tuple[trees.View, trees.View]:
        """Let a container that runs change its data; give what it saw before and after."""

        def work(root: Path) -> tuple[trees.View, trees.View]:
            found = view(root)
            change(root / "data")
            return found, view(root)

        return self.engine.inside(f"{self.name}-{container}", work)

    def stop(self, container: str) -> None:
        """Stop a container; its hook has run then."""
        self.engine.podman("stop", "--time=0", f"{self.name}-{container}")

    def turn(self, container: str, tag: str, change: Callable[[Path], object], **keys: str) -> Turn:
        """Let a container change what a tag has; what it leaves goes to the same tag."""
        self.start(container, tag, to=tag, **keys)
        found, left = self.change(container, change)
        self.stop(container)
        names = image_layouts.read(self.outside, tag).layers[-1].names
        return Turn(found, left, {os.fsencode(name) for name in names})

    def seen_by_the_next(self, container: str, tag: str) -> trees.View:
        """Give what the next container sees that mounts what a tag has."""
        self.run(container, self.pull(tag), "exec sleep infinity", detach=True)
        seen = self.engine.inside(f"{self.name}-{container}", view)
        self.engine.podman("rm", "--force", "--time=0", f"{self.name}-{container}")
        return seen


def view(root: Path) -> trees.View:
    """Give what a container with this root sees of its data, less their own root directory's metadata."""
    seen = trees.view(root / "data")
    return trees.View({path: seen.entries[path] for path in seen.entries if path != trees.TOP}, seen.links)


def write(path: Path, data: str | bytes = b"") -> None:
    """Write a file, and set its time: that of the write itself fuse-overlayfs has in no directory for a while."""
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    os.utime(path, ns=(0, 10**18 + len(path.name) * 1_000_000_007))
