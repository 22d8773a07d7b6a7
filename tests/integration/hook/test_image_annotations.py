"""What becomes of archives that an image asks for, and of those beside them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from archive_overlay.errors import Interrupted
from archive_overlay.hook import hook, image_annotations
from archive_overlay.log import Log
from archive_overlay.settings import Settings
from tests.support import hooks
from tests.support.image_stores import ImageStore, manifest

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

OPTION = "--trust-image-annotations"


class Container:
    """A container with an overlay at /data, in a store.

    Attributes:
        store: where it and its image are.
        out: where archives go.
        rescue: the directory of rescued upperdirs.
        upper: the upperdir.
    """

    def __init__(self, directory: Path) -> None:
        self.store = ImageStore(directory / "storage")
        self.out = directory / "out"
        self.rescue = directory / "rescue"
        self.upper, self._lower = self.store.bundle / "overlay" / "1" / "upper", directory / "lower"
        for made in (self.upper, self._lower):
            made.mkdir(parents=True)
        (self.upper / "made").write_text("by the container")

    def asks(self, name: str, **more: object) -> dict[str, str]:
        return hooks.annotations(name, **{"mount_point": "/data", "archive_to": self.out / name, **more})

    def run(
        self, *arguments: str, image: Mapping[str, str], user: Mapping[str, str] = {}, store: bool = True
    ) -> hooks.Result:
        """Run the hook with the annotations of both, as podman puts them together."""
        self.store.add_manifest(manifest(image))
        self.store.write()
        bundle = hooks.Bundle(
            self.store.bundle if store else self.out.parent / "bundle",
            mounts=[hooks.overlay_mount("/data", upper=self.upper, lowers=[self._lower])],
            annotations={**image, **user},
        )
        return hooks.run_hook(bundle, *arguments)


@pytest.fixture
def container(tmp_path: Path) -> Container:
    return Container(tmp_path)


def test_an_archive_that_the_image_asks_for_is_not_made(container: Container) -> None:
    result = container.run("--rescue-dir", str(container.rescue), image=container.asks("evil"))

    assert result.status == 1
    assert result.only_error() == (
        f"archive evil: annotation {hooks.PREFIX}.evil.mount-point comes from the image localhost/evil:1, whose"
        " manifest has it with the same value; set it yourself to another value, or to an empty one to leave it"
        f" out; if images may ask for archives, add {OPTION} to the hook's arguments"
    )
    assert not container.out.exists()
    assert not container.rescue.exists()
    assert (container.upper / "made").exists()


def test_an_archive_of_the_user_is_made_beside_it(container: Container) -> None:
    result = container.run(image=container.asks("evil"), user=container.asks("own"))

    assert result.status == 1
    assert [path.name for path in container.out.iterdir()] == ["own"]


def test_the_user_can_do_without_it(container: Container) -> None:
    nothing = {f"{hooks.PREFIX}.evil.mount-point": ""}

    result = container.run(image=container.asks("evil"), user={**container.asks("own"), **nothing})

    assert result.status == 0
    assert [path.name for path in container.out.iterdir()] == ["own"]


def test_what_the_image_adds_to_an_archive_of_the_user_stops_it(container: Container) -> None:
    marker = container.out.parent / "marker"
    marker.touch()
    container.out.mkdir()
    image = hooks.annotations("own", success=marker)

    result = container.run("--rescue-dir", str(container.rescue), image=image, user=container.asks("own"))

    assert result.status == 1
    assert "comes from the image" in result.only_error()
    assert list(container.out.iterdir()) == []
    assert marker.exists()
    # The user wants these changes, so they are kept.
    (kept,) = container.rescue.glob("*/own")
    assert (kept / "made").read_text() == "by the container"


def test_what_cannot_be_told_is_not_done_and_not_kept(container: Container) -> None:
    container.store.add_manifest(b"\xff", last=False)

    result = container.run("--rescue-dir", str(container.rescue), image=container.asks("evil"))

    assert result.status == 1
    assert "it is not known whether the user or the image asks for it" in result.only_error()
    assert OPTION in result.only_error()
    assert not container.out.exists()
    assert not container.rescue.exists()


def test_a_store_that_is_damaged_costs_an_archive_but_not_what_it_was_about(container: Container) -> None:
    (container.store.path("images")).chmod(0o777)

    result = container.run("--rescue-dir", str(container.rescue), image={}, user=container.asks("own"))

    assert result.status == 1
    assert "others can write to" in result.only_error()
    assert len([*container.rescue.glob("*/own/made")]) == 1


def test_an_administrator_may_trust_images(container: Container) -> None:
    container.store.add_manifest(b"\xff", last=False)

    assert container.run(OPTION, image=container.asks("evil")).status == 0
    assert (container.out / "evil/made").exists()


def test_without_a_store_nobody_knows_and_it_is_as_ever(container: Container) -> None:
    assert container.run(image=container.asks("evil"), store=False).status == 0
    assert (container.out / "evil/made").exists()


@pytest.mark.parametrize("known", [False, True])
def test_a_signal_has_nothing_kept_that_the_image_asks_for(
    container: Container, monkeypatch: pytest.MonkeyPatch, known: bool
) -> None:
    container.run(image=container.asks("evil"), user=container.asks("own") if known else {})

    def end(*_: Any, **__: Any) -> None:
        raise Interrupted(15)

    monkeypatch.setattr(*((hook, "parse_request") if known else (image_annotations, "refusals")), end)
    settings = Settings(bundle=str(container.store.bundle), rescue_dir=str(container.rescue))

    with pytest.raises(Interrupted):
        hook.run(settings, Log("error", []))

    kept = sorted(path.name for path in container.rescue.glob("*/*"))
    assert kept == (["own", "own.json"] if known else [])


def test_a_fault_of_the_program_opens_no_door(container: Container, monkeypatch: pytest.MonkeyPatch) -> None:
    container.run(image=container.asks("evil"))
    errors = []

    class Kept:
        def write(self, level: str, message: str) -> None:
            if level == "error":
                errors.append(message)

    def fail(*_: Any) -> None:
        raise ZeroDivisionError("nobody knows")

    monkeypatch.setattr(image_annotations, "refusals", fail)
    settings = Settings(bundle=str(container.store.bundle), rescue_dir=str(container.rescue))

    assert hook.run(settings, Log("info", [Kept()])) == 1
    (error,) = errors
    assert "internal error: ZeroDivisionError" in error
    assert not container.out.exists()
    assert not container.rescue.exists()
