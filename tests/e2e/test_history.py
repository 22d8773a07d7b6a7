"""Histories of many revisions: what podman mounts, what `extract` makes, and what the containers left are the same."""

from __future__ import annotations

import json
import os
import shutil
import stat
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.e2e.circles import Circle, write
from tests.support import history, hooks, image_layouts, overlays, tools, trees
from tests.support.engines import IMAGE, Engine

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.engines import Machine

NOTHING_LINKED: frozenset[frozenset[bytes]] = frozenset()


def seen_in(directory: Path) -> trees.View:
    """Give what is in a directory, but not the metadata of the directory itself, which podman does not keep."""
    seen = trees.view(directory)
    return trees.View(
        {path: entry for path, entry in seen.entries.items() if path != trees.TOP}, NOTHING_LINKED
    )


def extracted(image: str | Path, directory: Path) -> trees.View:
    """Give what a revision is as a plain directory."""
    history.output_of("extract", "--no-fsync", image, directory)
    seen = seen_in(directory)
    shutil.rmtree(directory)
    return seen


def expect_same(what: str, expected: trees.View, found: trees.View) -> None:
    faults = trees.differences(trees.View(expected.entries, NOTHING_LINKED), found)
    assert not faults, "\n".join([what, *faults])


@pytest.fixture(
    params=[
        pytest.param((False, "native", "crun"), id="rootful-native"),
        pytest.param((True, "fuse", "runc"), id="rootless-fuse"),
    ]
)
def circle(request: pytest.FixtureRequest, machine: Machine) -> Circle:
    """Give a layout that has the test image with the tag main."""
    tools.need("skopeo", "umoci")
    name = f"history-{request.node.name.partition('[')[0][len('test_') :].replace('_', '-')[:30].rstrip('-')}"
    made = Circle(Engine(machine, *request.param), name)
    made.engine.new_directory(name)
    made.engine.podman("push", "--quiet", IMAGE, f"oci:{made.layout}:main")
    return made


rootful = pytest.mark.parametrize(
    "circle", [pytest.param((False, "native", "crun"), id="rootful-native")], indirect=True
)


def count(number: int, root: Path) -> None:
    """Change something in /data of the test image, each time something else, and each time something again."""
    tree = root / "tree"
    write(tree / "counter", str(number))
    if number % 3 == 0:
        shutil.rmtree(tree / "replaced")
        (tree / "replaced").mkdir(0o750)
    write(tree / "replaced" / str(number), b"x" * number)
    if number % 4 == 1:
        write(tree / "kept", f"not kept by {number}")
    if number % 4 == 3:
        (tree / "kept").unlink()
    (tree / f"directory{number}").mkdir()
    shutil.rmtree(tree / f"directory{number - 2}", ignore_errors=True)
    for path in (tree / "replaced", tree):
        os.utime(path, ns=(0, 10**18 + number))


@rootful
def test_ten_revisions_and_two_branches_are_what_the_containers_left(circle: Circle, tmp_path: Path) -> None:
    left: dict[str, trees.View] = {}

    def turn(number: int, tag: str, to: str) -> None:
        container = f"{to}{number}"
        circle.start(container, tag, to=to, parent=tag, max_layers="4")
        found, left[f"{to}@{number + 1}"] = circle.change(container, partial(count, number))
        circle.stop(container)
        if before := left.get(f"{tag}@{number}"):
            expect_same(f"what the next of {tag}@{number} sees", before, seen(found))

    for number in range(1, 11):
        turn(number, "main", "main")
    for branch in ("left", "right"):
        turn(11, "main", branch)
        turn(12, branch, branch)
    turn(11, "main", "main")

    for tag in ("main", "left", "right"):
        assert len(image_layouts.read(circle.outside, tag).layers) <= 4
    image_layouts.expect_whole(circle.outside)
    names = {f"{tag}@{number}": f"main@{number}" for tag in ("left", "right") for number in (2, 7, 11)}
    for name in [*left, *names]:
        expected = left[name] if name in left else left[names[name]]
        expect_same(name, expected, extracted(f"{circle.outside}:{name}", tmp_path / "extracted"))


def seen(view: trees.View) -> trees.View:
    return trees.View(view.entries, NOTHING_LINKED)


@dataclass
class Stops:
    """A directory that is changed, and an upperdir for each change: what the kernel would make of it.

    Attributes:
        directory: of all of it.
        number: of the last change.
    """

    directory: Path
    number: int = 0

    def __post_init__(self) -> None:
        for made in ("state", "upper", "lower"):
            (self.directory / made).mkdir()

    @property
    def state(self) -> Path:
        """What all changes made together: the directory as it would be without any overlay."""
        return self.directory / "state"

    def change(self) -> None:
        """Make one more change, and its upperdir."""
        self.number += 1
        number, upper = self.number, self.directory / "upper"
        shutil.rmtree(upper)
        upper.mkdir()
        for top in (upper, self.state):
            put(top / "number", b"%d" % number, number)
            place = top / f"d{number % 7}"
            if number % 10 == 0:
                shutil.rmtree(place, ignore_errors=True)
            place.mkdir(exist_ok=True)
            put(place / f"f{number % 5}", b"%02d" % (number % 100) * (number % 50), number)
        place = Path(f"d{number % 7}")
        if number % 10 == 0:
            os.setxattr(upper / place, "trusted.overlay.opaque", b"y")
        elif number % 3 == 0:
            self._delete(place / f"f{(number + 1) % 5}")
        if number % 11 == 0:
            self._delete(Path(f"d{(number + 3) % 7}"))
        if number % 4 == 0:
            for top in (upper, self.state):
                (top / f"link{number % 3}").unlink(missing_ok=True)
                (top / f"link{number % 3}").symlink_to(str(number))
                os.utime(top / f"link{number % 3}", ns=(0, number), follow_symlinks=False)
        for top in (upper, self.state):
            os.utime(top / place, ns=(0, 10**18 + number))

    def _delete(self, path: Path) -> None:
        there = self.state / path
        if there.is_dir():
            shutil.rmtree(there)
        elif there.exists():
            there.unlink()
        else:
            return
        os.mknod(self.directory / "upper" / path, stat.S_IFCHR, 0)


def put(path: Path, data: bytes, number: int) -> None:
    path.write_bytes(data)
    os.utime(path, ns=(0, 10**18 + number))


@pytest.fixture
def stops() -> Iterator[Stops]:
    """Give a place for changes, on a file system that holds upperdirs."""
    if not overlays.holds_upperdirs(Path("/dev/shm")):
        tools.cannot_run("/dev/shm takes no whiteouts and extended attributes")
    directory = overlays.new_directory("archive_overlay-stops-", Path("/dev/shm"))
    yield Stops(directory)
    overlays.remove(directory)


def test_three_hundred_stops_are_pulled_mounted_and_extracted(
    machine: Machine, stops: Stops, tmp_path: Path
) -> None:
    tools.need("skopeo", "umoci")
    engine = Engine(machine, False, "native", "crun")
    home = engine.new_directory("three-hundred")
    layout = stops.directory / "layout"
    asked = hooks.annotations("data", mount_point="/data", archive_to=f"{layout}:main", method="oci")
    mount = hooks.overlay_mount("/data", upper=stops.directory / "upper", lowers=[stops.directory / "lower"])
    bundle = hooks.Bundle(stops.directory / "bundle", mounts=[mount], annotations=asked)
    left = {}
    for _ in range(300):
        stops.change()
        result = hooks.run_hook(bundle, "--no-fsync")
        assert (result.status, result.messages("warning")) == (0, []), result.stderr
        left[stops.number] = seen_in(stops.state)
        if stops.number in (50, 129, 130, 299):
            there = f"{home}/{stops.number}"
            shutil.copytree(layout, machine.outside(there))
            image = engine.podman("pull", "--quiet", f"oci:{there}:main").stdout.strip()
            expect_same(f"mounted after {stops.number} stops", left[stops.number], mounted(engine, image))

    image_layouts.expect_whole(layout)
    some = (1, 2, 49, 50, 128, 129, 130, 131, 217, 298, 299, 300)
    for number in some:
        expect_same(f"@{number}", left[number], extracted(f"{layout}:main@{number}", tmp_path / "x"))

    there = f"{home}/layout"
    outside = machine.outside(there)
    shutil.copytree(layout, outside)
    layers = image_layouts.read(layout, "main").digests
    inspected = json.loads(engine.as_container_root("skopeo", "inspect", f"oci:{there}:main"))
    assert inspected["Layers"] == layers
    said = json.loads(engine.as_container_root("umoci", "stat", "--image", f"{there}:main", "--json"))
    assert [each["layer"]["digest"] for each in said["history"]] == layers
    machine.run("umoci", "gc", "--layout", there)
    image_layouts.expect_sound(outside)
    for number in some[::4]:
        found = extracted(f"{outside}:main@{number}", tmp_path / "x")
        expect_same(f"@{number} after umoci gc", left[number], found)
    machine.outside(f"{home}/Containerfile").write_text(f"FROM oci:{there}:main\nADD Containerfile /added\n")
    built = engine.podman("build", "--quiet", home).stdout.strip().splitlines()[-1]
    expect_same("built on it", left[300], without(mounted(engine, built), {b"added"}))


def mounted(engine: Engine, image: str) -> trees.View:
    """Give what an image shows where podman has mounted it."""
    seen = seen_in(engine.machine.outside(engine.podman("image", "mount", image).stdout.strip()))
    engine.podman("image", "unmount", image)
    return seen


def begun_on(circle: Circle, tag: str) -> list[str]:
    """Give what the last revisions of a tag say of it: which ones have a parent that is not the one before."""
    found = [
        layer.descriptor.get("annotations") or {} for layer in image_layouts.read(circle.outside, tag).layers
    ]
    parent, number = f"{hooks.PREFIX}.parent", f"{hooks.PREFIX}.revision"
    return [f"{each[number]} on {each[parent]}" for each in found if parent in each]


def test_a_container_that_began_with_an_older_revision_gets_a_branch_on_that(
    circle: Circle, tmp_path: Path
) -> None:
    circle.turn("first", "main", partial(count, 1))
    circle.start("slow", "main", to="main")
    _, left = circle.change("slow", partial(count, 2))
    for number in (3, 4):
        quick = circle.turn(f"quick{number}", "main", partial(count, number), max_layers="2")
    identifier = circle.engine.inspect(f"{circle.name}-slow", "Id")[:12]

    circle.stop("slow")

    branch = f"main-{identifier}"
    assert begun_on(circle, branch) == ["3 on main@2"]
    for name, expected in (("main", quick.left), ("main@4", quick.left), (branch, left)):
        expect_same(name, expected, extracted(f"{circle.outside}:{name}", tmp_path / "extracted"))
    onward = circle.turn("onward", branch, partial(count, 5))
    onward.expect_that_the_next_sees(circle.seen_by_the_next("next", branch))
    image_layouts.expect_whole(circle.outside)


@rootful
def test_a_branch_begins_where_its_parent_says_or_where_its_container_began(
    circle: Circle, tmp_path: Path
) -> None:
    images, left = {}, {}
    for number in range(2, 5):
        left[number] = circle.turn(f"turn{number}", "main", partial(count, number), max_layers="2").left
        images[number] = circle.pull("main")

    circle.run("third", images[3], "echo third > /data/third", to="third", parent="main@3")
    circle.run("base", IMAGE, "echo base > /data/based", to="based", parent="main")
    for number in range(3):
        tag = "work" if number else "main"
        circle.run(f"work{number}", circle.pull(tag), f"echo > /data/work{number}", to="work", parent="main")

    assert begun_on(circle, "third") == ["4 on main@3"]
    assert begun_on(circle, "based") == ["2 on main@1"]
    for tag, last, since, names in (
        ("third", 4, left[3], {b"third"}),
        ("work", 7, left[4], {b"work0", b"work1", b"work2"}),
    ):
        found = extracted(f"{circle.outside}:{tag}@{last}", tmp_path / "extracted")
        expect_same(tag, since, without(found, names))
    with pytest.raises(AssertionError):
        history.output_of("extract", f"{circle.outside}:work@8", tmp_path / "extracted")


def without(seen: trees.View, names: set[bytes]) -> trees.View:
    """Give the view without names that have to be there."""
    assert names <= seen.entries.keys()
    return trees.View(
        {path: entry for path, entry in seen.entries.items() if path not in names}, NOTHING_LINKED
    )


@rootful
def test_what_a_container_with_another_image_changed_goes_on_top_of_nothing_else(circle: Circle) -> None:
    circle.turn("first", "main", partial(count, 2))
    home = circle.outside.parent
    (home / "Containerfile").write_text("FROM scratch\nADD Containerfile /another\n")
    circle.engine.podman("build", "--quiet", "--tag", "localhost/another:1", str(Path(circle.layout).parent))
    before = image_layouts.read(circle.outside, "main").digests

    circle.run("another", "localhost/another:1", "rm /data/another; echo > /data/made", to="main")

    identifier = circle.engine.inspect(f"{circle.name}-another", "Id")[:12]
    assert image_layouts.read(circle.outside, "main").digests == before
    (layer,) = image_layouts.read(circle.outside, f"main-{identifier}").layers
    assert {".wh.another", "made"} <= set(layer.names)
    assert layer.descriptor["annotations"][f"{hooks.PREFIX}.base"].startswith("absent ")
