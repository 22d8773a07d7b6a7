"""Overlays whose process was killed: what the container changed is in the engine's directories, and nobody serves it."""

from __future__ import annotations

import os
import select
import shutil
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from archive_overlay.errors import ArchiveError
from archive_overlay.log import Log
from archive_overlay.overlay.locate import find_overlay
from archive_overlay.overlay.mount import Mount
from archive_overlay.overlay.upper import read_changes
from tests.support import hooks, overlays

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Callable

    from archive_overlay.overlay.mount import OverlayMount

CONTAINER = "0123456789abcdef" * 4


class Killed:
    """An overlay of fuse-overlayfs in a bundle of podman's, and a container that changed it before the process was killed.

    Args:
        directory: an empty one.
        flavour: of fuse-overlayfs.
        namespace: where it is mounted.
        program: a copy of fuse-overlayfs; "" for the installed one.
    """

    def __init__(
        self, directory: Path, flavour: overlays.Flavour, namespace: overlays.Namespace, program: str = ""
    ) -> None:
        self.directory = directory
        self.bundle = directory / "overlay-containers" / CONTAINER / "userdata"
        home = self.bundle / "overlay" / "123"
        home.mkdir(parents=True)
        self.bundle.parent.parent.chmod(0o700)
        self.overlay = overlays.Overlay(flavour, home, namespace)
        self.overlay.program = program or flavour.program
        self.inside = namespace.inside

    def change(self, function: Callable[[Path], object]) -> None:
        """Change the overlay as a container does, and kill what serves it."""

        def below(root: Path) -> None:
            (root / "replaced").mkdir()
            (root / "deleted").touch()

        self.overlay.layer(below)
        self.overlay.change(function)
        self.kill()

    def kill(self) -> None:
        """Kill the process that serves the overlay."""
        process = self.overlay._served_by
        assert process
        watch = os.pidfd_open(process)
        signal.pidfd_send_signal(watch, signal.SIGKILL)
        assert select.select([watch], [], [], 30)[0]
        os.close(watch)
        self.overlay._served_by = None

    def find(self, source: Path | None = None, program: str = overlays.FUSE_OVERLAYFS) -> OverlayMount:
        """Find it as the hook does."""
        source = source or self.overlay.merged
        mount = Mount(destination="/data", type="bind", source=str(source), options=("bind",))
        return self.inside(
            lambda: find_overlay([mount], "", "/data", mount_program=program, bundle=str(self.bundle))
        )

    def run(self, *arguments: str, archive_to: Path | str) -> hooks.Result:
        """Run the hook for it."""
        mount = {
            "destination": "/data",
            "type": "bind",
            "source": str(self.overlay.merged),
            "options": ["bind"],
        }
        asked = hooks.annotations("data", mount_point="/data", archive_to=archive_to, method="copy")
        bundle = hooks.Bundle(self.bundle, mounts=[mount], annotations=asked)
        return self.inside(lambda: hooks.run_hook(bundle, *arguments))

    def find_root(self, layer: Path) -> OverlayMount:
        """Find it as the root file system of a container."""
        return self.inside(
            lambda: find_overlay(
                [], str(layer / "merged"), "/", mount_program=overlays.FUSE_OVERLAYFS, bundle=str(self.bundle)
            )
        )

    def refusal(self, source: Path | None = None) -> str:
        """Give the reason why it is not found."""

        mount = Mount(destination="/data", type="bind", source=str(source or self.overlay.merged), options=())
        program, bundle = overlays.FUSE_OVERLAYFS, str(self.bundle)

        def find() -> str:
            with pytest.raises(ArchiveError) as raised:
                find_overlay([mount], "", "/data", mount_program=program, bundle=bundle)
            return str(raised.value)

        return self.inside(find)


@pytest.fixture
def kill(scratch: Path, namespace: Callable[[bool], overlays.Namespace]) -> Iterator[Callable[..., Killed]]:
    """Make an overlay that is served by a process, to be killed."""
    made: list[Killed] = []

    def kill(flavour: overlays.Flavour = overlays.FUSE, **options: str) -> Killed:
        overlays.need(flavour)
        made.append(Killed(scratch, flavour, namespace(flavour.rootless), **options))
        return made[-1]

    yield kill
    for each in made:
        each.overlay.close()


def change(root: Path) -> None:
    (root / "made").write_text("by a container")
    os.chown(root / "made", 5, 6)
    (root / "deleted").unlink()
    (root / "replaced").rmdir()
    (root / "replaced").mkdir()


def owners(overlay: OverlayMount) -> dict[str, tuple[int, int]]:
    return {change.path: (change.uid, change.gid) for change in read_changes(overlay, Log("panic", []))}


@pytest.mark.parametrize("flavour", [overlays.FUSE, overlays.FUSE_ROOTLESS])
def test_what_was_changed_is_saved_with_a_warning(
    kill: Callable[..., Killed], flavour: overlays.Flavour
) -> None:
    killed = kill(flavour)
    killed.change(change)
    archive = killed.directory / "archive"

    result = killed.run("--log-level=info", archive_to=archive)

    assert result.status == 0, result.stderr
    (warning,) = result.messages("warning")
    assert "something may be missing: the process that served the overlay at" in warning
    assert sorted(os.listdir(archive)) == ["deleted", "made", "replaced"]
    assert os.getxattr(archive / "replaced", "user.overlay.opaque") == b"y"


def test_what_cannot_be_saved_is_rescued(kill: Callable[..., Killed]) -> None:
    killed = kill()
    killed.change(change)

    result = killed.run(f"--rescue-dir={killed.directory}/rescue", archive_to="relative")

    assert result.status == 1
    assert (killed.directory / "rescue/c1/data/made").read_text() == "by a container"


@pytest.mark.parametrize("value", ["1", "2"])
def test_owners_in_attributes_are_seen_from_the_upperdir(kill: Callable[..., Killed], value: str) -> None:
    killed = kill(overlays.Flavour("fuse", overlays.FUSE_OVERLAYFS, options=(f"xattr_permissions={value}",)))
    killed.change(change)

    assert owners(killed.find())["made"] == (5, 6)


def test_a_container_that_hides_where_owners_are_has_nothing_archived(kill: Callable[..., Killed]) -> None:
    killed = kill(overlays.Flavour("fuse", overlays.FUSE_OVERLAYFS, options=("xattr_permissions=2",)))

    def hide(root: Path) -> None:
        change(root)
        os.removexattr(root, "user.fuseoverlayfs.override_stat")

    killed.change(hide)

    with pytest.raises(ArchiveError, match=r"made has the attribute user\.fuseoverlayfs\.override_stat"):
        owners(killed.find())


def test_the_root_file_system_is_in_its_layer(kill: Callable[..., Killed]) -> None:
    killed = kill()
    layer = killed.directory / "overlay" / "LAYER"
    (layer / "merged").mkdir(parents=True)
    killed.overlay.upper.rmdir()
    killed.overlay.upper = layer / "diff"
    killed.overlay.merged = layer / "merged"
    killed.overlay.upper.mkdir()
    killed.change(change)

    found = killed.find_root(layer)

    assert (found.upper, found.lowers) == (str(layer / "diff"), ())
    assert owners(found)["made"] == (5, 6)


# Who wants something else archived


def test_a_mount_point_outside_of_the_bundle_is_not_believed(kill: Callable[..., Killed]) -> None:
    killed = kill()
    killed.change(change)
    elsewhere = killed.directory / "volume/overlay/123/merge"
    elsewhere.mkdir(parents=True)
    (elsewhere.parent / "upper").mkdir()
    (elsewhere.parent / "work").mkdir()
    killed.inside(lambda: overlays.bind(killed.overlay.merged, elsewhere))

    refusal = killed.refusal(elsewhere)
    killed.inside(lambda: overlays.detach(elsewhere))

    assert "has ended, and its upperdir is not in the container's bundle" in refusal


@pytest.mark.parametrize("name", ["upper", "work"])
def test_a_link_in_the_place_of_an_upperdir_is_not_followed(kill: Callable[..., Killed], name: str) -> None:
    killed = kill()
    killed.change(change)
    shutil.rmtree(killed.overlay.directory / name)
    (killed.overlay.directory / name).symlink_to("/etc")

    assert "its upperdir is not in the container's bundle" in killed.refusal()


def test_a_store_to_which_others_may_write_is_not_believed(kill: Callable[..., Killed]) -> None:
    killed = kill()
    killed.change(change)
    (killed.directory / "overlay-containers").chmod(0o777)

    assert "its upperdir is not in the container's bundle" in killed.refusal()


def test_a_process_that_lives_is_not_passed_over(kill: Callable[..., Killed], scratch: Path) -> None:
    (scratch / "bin").mkdir()
    program = overlays.copy_of_program(overlays.FUSE, scratch / "bin")
    killed = kill(program=str(program))
    killed.overlay.change(lambda root: (root / "made").touch())

    refusal = killed.refusal()

    assert f"not an overlay that {overlays.FUSE_OVERLAYFS} serves: " in refusal
    assert "; if that serves overlays, name it by --mount-program" in refusal
    if killed.overlay.kernel_names_the_server:
        assert f"{program} (process {killed.overlay._served_by}) serves it" in refusal
    else:
        assert "something that calls itself fuse-overlayfs serves it" in refusal
