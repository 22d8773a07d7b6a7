"""Hosts as far as pushing is concerned: each has a layout."""

from __future__ import annotations

import json
import os
import shutil
from typing import TYPE_CHECKING

from tests.support import histories, history, hooks, image_layouts

if TYPE_CHECKING:
    from pathlib import Path
    from typing import Any, Callable

PUSHED = f"{hooks.PREFIX}.pushed"
PUSH_TO = f"{hooks.PREFIX}.push-to"


class Host:
    """A host with a layout, of which the tag main goes to a registry.

    Args:
        layout: where it is.
        remote: where main goes.
        container: id of its containers.
    """

    def __init__(self, layout: Path, remote: str, container: str = "c" * 64) -> None:
        self.layout = layout
        self.container = container
        self.remote = remote

    def stop(self, text: str, tag: str = "main") -> None:
        """Add a revision, as a container does that stops."""
        append(self.layout, text, tag, container=self.container)

    def first(self, text: str) -> Host:
        """Begin, and push that."""
        self.stop(text)
        assert self.push(f"--to={self.remote}", f"{self.layout}:main").status == 0
        return self

    def push(self, *arguments: str | Path) -> hooks.Result:
        """Push what waits, or what is named."""
        named = (
            arguments
            if any(not str(each).startswith("-") for each in arguments)
            else (*arguments, self.layout)
        )
        return history.run("push", "--no-fsync", "--tls-verify=false", "--timeout=20", *named)

    def push_to(self) -> None:
        """Push main to where it goes from now on."""
        assert self.push(f"--to={self.remote}", f"{self.layout}:main").status == 0

    def note(self, tag: str, remote: str) -> None:
        """Have a tag wait for somewhere, as the hook does."""
        index = image_layouts.read_index(self.layout)
        for each in index["manifests"]:
            if image_layouts.tag_of(each) == tag:
                each["annotations"][PUSH_TO] = remote
        (self.layout / "index.json").write_text(json.dumps(index))

    def twin(self, layout: Path) -> Host:
        """Give a second host that has all that this one has."""
        shutil.copytree(self.layout, layout)
        return Host(layout, self.remote)

    def digest(self, tag: str = "main") -> str:
        """Give the digest of what a tag names."""
        digest: str = self.entry(tag)["digest"]
        return digest

    def entry(self, tag: str = "main") -> dict[str, Any]:
        """Give a tag's entry in the index."""
        (found,) = (
            each
            for each in image_layouts.read_index(self.layout)["manifests"]
            if image_layouts.tag_of(each) == tag
        )
        entry: dict[str, Any] = found
        return entry

    @property
    def waits(self) -> bool:
        """Whether main waits."""
        return bool(self.entry()["annotations"].get(PUSHED) != self.digest())

    @property
    def tags(self) -> list[str]:
        return sorted(image_layouts.tags(self.layout))


def append(
    layout: Path, text: str, tag: str = "main", *, size: int = 0, most: int = 0, container: str = "c" * 64
) -> None:
    """Add a revision with a file.

    Args:
        layout, tag: where.
        text: of the file.
        size: of it, if it has so many random bytes.
        most, container: see `histories.append`.
    """
    data = os.urandom(size) if size else text.encode()
    tar = history.layer(history.directory("./"), history.file("./x", data))
    histories.append(layout, tag, tar, most=most, container=container)


def expect_tidy(layout: Path) -> None:
    """Fail the test unless all is whole, and nothing else is there but what the next stop deletes."""
    assert len(image_layouts.expect_whole(layout)) <= 2
    assert sorted(os.listdir(layout)) == ["blobs", "index.json", "oci-layout"]


def once(at: bytes, then: Callable[[], object]) -> Callable[[bytes], None]:
    """Do something at the first request that begins so."""
    done: list[bytes] = []

    def watch(data: bytes) -> None:
        if data.startswith(at) and not done:
            done.append(data)
            then()

    return watch
