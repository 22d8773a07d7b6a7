"""`tag`, `untag`, `revert`, `squash` and `prune`: revisions come and go, and those that stay are what they were."""

from __future__ import annotations

import fcntl
import json
import os
import random
import shutil
import subprocess
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from archive_overlay.destination.paths import Paths
from archive_overlay.destination.staging import Staging
from archive_overlay.history.compaction import Composer, Form, compose_runs, put_compacted
from archive_overlay.history.pruning import prune
from archive_overlay.history.revisions import open_image
from archive_overlay.layout.edit import Edit
from archive_overlay.layout.keep import Keep
from archive_overlay.system.flush import Never
from archive_overlay.system.patience import Patience
from tests.integration.conftest import Saver
from tests.support import histories, history, image_layouts, tools, trees
from tests.support.history import complaint_of, output_of

if TYPE_CHECKING:
    import tarfile

    from tests.support import overlays

COUNT = 9


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[int, trees.View]]:
    """Give a layout with some revisions, of which the image has some composed, and what they are."""
    directory = tmp_path_factory.mktemp("built")
    image_layouts.put(directory / "layout", "main", layers=[change(history.file("./base", b"base"))])
    histories.build(directory / "layout", COUNT, most=6)
    return directory / "layout", histories.states(directory / "layout", directory)


@pytest.fixture
def layout(built: tuple[Path, dict[int, trees.View]], tmp_path: Path) -> Path:
    """Give a layout of one's own, with an image main of ten revisions, of which the first is a base."""
    shutil.copytree(built[0], tmp_path / "layout")
    return tmp_path / "layout"


@pytest.fixture
def states(built: tuple[Path, dict[int, trees.View]]) -> dict[int, trees.View]:
    """Give what each revision is."""
    return built[1]


def expect_states(
    layout: Path, expected: dict[int, trees.View], numbers: list[int], tag: str = "main"
) -> None:
    """Fail the test unless an image has just these revisions, and each is what it was."""
    assert histories.numbers(layout, tag) == numbers
    for number, view in histories.states(layout, layout.parent, tag).items():
        differences = trees.differences(expected[number], view)
        assert not differences, "\n".join([f"{tag}@{number}:", *differences])


def change(*entries: tuple[tarfile.TarInfo, bytes]) -> bytes:
    """Give a change set, with an entry for its root."""
    return history.layer(history.directory("./"), *entries)


def layers_of(layout: Path, tag: str = "main") -> int:
    """Give the number of layers of an image."""
    with open_image(f"{layout}:{tag}") as image:
        return len(image.stored.layers)


# tag and untag


@pytest.mark.parametrize("most", [100, 2])
def test_a_revision_gets_a_tag_of_its_own(layout: Path, states: dict[int, trees.View], most: int) -> None:
    said = output_of("tag", "--max-layers", str(most), f"{layout}:main@7", "seven")

    assert said == "the tag seven is revision 7 of main\n"
    assert layers_of(layout, "seven") <= most
    expect_states(layout, states, list(range(1, 8)), "seven")
    expect_states(layout, states, list(range(1, 11)))


def test_the_last_revision_gets_another_tag_and_no_blob_is_written(layout: Path) -> None:
    before = set(os.listdir(layout / "blobs/sha256"))

    output_of("tag", f"{layout}:main", "again")

    assert set(os.listdir(layout / "blobs/sha256")) == before
    assert image_layouts.tags(layout) == ["main", "again"]


def test_a_container_with_the_tagged_image_goes_on_from_it(layout: Path) -> None:
    output_of("tag", f"{layout}:main@5", "five")
    with open_image(f"{layout}:five") as image:
        chain = image.stored.chain()
        assert chain in image.revisions[-1].chains

    histories.append(layout, "five", change(history.file("./more", b"more")), had=[chain])

    assert histories.numbers(layout, "five") == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("new", ["main", "x@3", "no tag", "a/b"])
def test_a_tag_that_is_none_or_is_there_is_refused(layout: Path, new: str) -> None:
    before = (layout / "index.json").read_bytes()

    complaint_of("tag", f"{layout}:main@3", new)

    assert (layout / "index.json").read_bytes() == before


def test_an_image_without_a_tag_gets_one(tmp_path: Path) -> None:
    image_layouts.put(tmp_path / "layout", "", layers=[b""])

    output_of("tag", tmp_path / "layout", "main")

    assert image_layouts.tags(tmp_path / "layout") == ["main"]


def test_other_programs_read_tagged_and_squashed_images(layout: Path, tmp_path: Path) -> None:
    tools.need("skopeo", "umoci")
    output_of("tag", "--max-layers", "3", f"{layout}:main@8", "eight")
    output_of("squash", f"{layout}:main@3..6")
    output_of("revert", f"{layout}:main@2")

    for tag, number in (("eight", 8), ("main", 11)):
        subprocess.run(
            ["skopeo", "copy", "-q", f"oci:{layout}:{tag}", f"oci:{tmp_path}/{tag}:{tag}"], check=True
        )
        bundle = tmp_path / f"bundle-{tag}"
        subprocess.run(
            ["umoci", "--log=error", "unpack", "--image", f"{tmp_path}/{tag}:{tag}", bundle], check=True
        )
        extracted = histories.states(layout, tmp_path, tag, [number])[number]
        unpacked = trees.view(bundle / "rootfs")
        assert {path: (entry.kind, entry.content) for path, entry in unpacked.entries.items()} == {
            path: (entry.kind, entry.content) for path, entry in extracted.entries.items()
        }
    subprocess.run(["umoci", "gc", "--layout", layout], check=True)
    histories.states(layout, tmp_path)


def test_a_removed_tag_takes_what_only_it_had(layout: Path, states: dict[int, trees.View]) -> None:
    before = set(os.listdir(layout / "blobs/sha256"))
    output_of("tag", "--max-layers", "3", f"{layout}:main@8", "eight")

    output_of("untag", f"{layout}:eight")

    assert set(os.listdir(layout / "blobs/sha256")) <= before
    expect_states(layout, states, list(range(1, 11)))


def test_the_last_tag_can_be_removed(layout: Path) -> None:
    said = output_of("untag", f"{layout}:main")

    assert "no image is left" in said
    assert image_layouts.read_index(layout)["manifests"] == []
    complaint_of("untag", f"{layout}:main")


# revert


@pytest.mark.parametrize("number", [1, 4, 9])
def test_a_reverted_image_is_what_the_revision_was(
    layout: Path, states: dict[int, trees.View], number: int
) -> None:
    said = output_of("revert", f"{layout}:main@{number}")

    assert said == f"main: revision 11 restores revision {number}\n"
    expect_states(layout, {**states, 11: states[number]}, list(range(1, 12)))
    with open_image(f"{layout}:main") as image:
        provenance = image.revisions[-1].provenance
        assert provenance is not None
        assert (provenance.container, provenance.message) == ("", f"revert to {number}")


def test_there_is_nothing_to_revert_to_the_last_revision(layout: Path) -> None:
    assert "nothing to revert" in output_of("revert", f"{layout}:main@10")
    assert "@N" in complaint_of("revert", f"{layout}:main")
    assert histories.numbers(layout) == list(range(1, 11))


def test_what_may_be_of_a_base_that_is_not_there_is_not_reverted(tmp_path: Path) -> None:
    layout = tmp_path / "layout"
    histories.append(layout, "main", change(history.file("./own", b"1")), had=[f"{0:064}"])
    histories.append(layout, "main", change(history.file("./own", b"2")))
    histories.append(layout, "main", change(history.file("./of the base")))

    assert "of the base has changed since" in complaint_of("revert", f"{layout}:main@2")
    assert histories.numbers(layout) == [1, 2, 3]


def test_own_files_are_reverted_though_the_base_is_not_there(tmp_path: Path) -> None:
    layout = tmp_path / "layout"
    first = [history.directory("./dir"), history.file("./dir/own", b"1")]
    histories.append(layout, "main", change(*first), had=[f"{0:064}"])
    histories.append(
        layout,
        "main",
        change(history.directory("./dir", mode=0o700), history.file("./dir/own", b"22")),
    )

    output_of("revert", "--message", "as it was", f"{layout}:main@1")

    was = histories.states(layout, tmp_path)
    assert not trees.differences(was[1], was[3])


def test_it_is_said_when_nobody_knows_what_lies_below(tmp_path: Path) -> None:
    layout = tmp_path / "layout"
    histories.build(layout, 3)

    result = history.run("revert", f"{layout}:main@1")

    assert result.status == 0
    assert "the base of main is unknown" in result.stderr


# squash


def test_squashed_revisions_are_one(layout: Path, states: dict[int, trees.View]) -> None:
    said = output_of("squash", "--message", "all of it", f"{layout}:main@4..7")

    assert said == "main: 4 revisions, 4 to 7, have become revision 7\n"
    expect_states(layout, states, [1, 2, 3, 7, 8, 9, 10])
    with open_image(f"{layout}:main") as image:
        provenance = image.numbered(7).provenance
        assert provenance is not None
        assert (provenance.container, provenance.message) == ("c" * 64, "all of it")
        assert len(image.change_set(image.numbered(7))) <= 2


def test_without_a_range_all_but_the_base_is_squashed(layout: Path, states: dict[int, trees.View]) -> None:
    with open_image(f"{layout}:main") as image:
        base = image.stored.layers[0].digest

    output_of("squash", f"{layout}:main")

    expect_states(layout, states, [1, 10])
    with open_image(f"{layout}:main") as image:
        assert [piece.digest for piece in image.stored.layers][:1] == [base]
        assert len(image.stored.layers) == 2
        assert not image.stored.packs
        assert image.stored.chain() in image.revisions[-1].chains
    assert "nothing to squash" in output_of("squash", f"{layout}:main")


def test_a_container_that_had_the_squashed_revision_goes_on_from_it(layout: Path) -> None:
    with open_image(f"{layout}:main") as image:
        chain = image.stored.chain()
    output_of("squash", f"{layout}:main")

    histories.append(layout, "main", change(history.file("./more", b"more")), had=[chain])

    assert histories.numbers(layout) == [1, 10, 11]


@pytest.mark.parametrize("asked", ["main@7..4", "main@4..4", "main@4..20", "other@4..5"])
def test_a_range_that_is_none_is_refused(layout: Path, asked: str) -> None:
    complaint_of("squash", f"{layout}:{asked}")

    assert histories.numbers(layout) == list(range(1, 11))


# prune


def test_pruned_revisions_are_gone_and_the_others_are_what_they_were(
    layout: Path, states: dict[int, trees.View]
) -> None:
    before = size(layout)
    planned = output_of("prune", "--keep-last", "3", "--dry-run", f"{layout}:main")
    assert histories.numbers(layout) == list(range(1, 11))

    said = output_of("prune", "--keep-last", "3", f"{layout}:main")

    assert "drop  main@7\n" in planned
    assert "keep  main@1  another program's" in planned
    # Nobody knows what the first container had mounted.
    assert said == "main: 5 revisions are gone (3-7), 5 revisions stay\n"
    expect_states(layout, states, [1, 2, 8, 9, 10])
    assert "nothing to drop" in output_of("prune", "--keep-last", "3", f"{layout}:main")
    histories.append(layout, "main", change(history.file("./more", b"more")))
    assert size(layout) < before


def test_what_tags_and_branches_name_is_not_pruned(layout: Path, states: dict[int, trees.View]) -> None:
    output_of("tag", f"{layout}:main@5", "five")
    output_of("tag", f"{layout}:main@7", "branch")
    histories.append(layout, "branch", change(history.file("./more", b"more")))

    done = json.loads(output_of("prune", "--keep-last", "1", "--json", f"{layout}:main"))

    assert done[0]["dropped"] == [9, 8, 6, 4, 3]
    reasons = {each["revision"]: each["reasons"] for each in done[0]["kept"]}
    assert (reasons[5], reasons[7]) == (["tag five"], ["branch branch"])
    expect_states(layout, states, [1, 2, 5, 7, 10])
    expect_states(layout, states, [1, 2, 3, 4, 5], "five")


def test_without_a_rule_nothing_is_pruned(layout: Path) -> None:
    assert "--keep-last" in complaint_of("prune", layout)


def test_a_stop_prunes_facts_only_and_the_command_gives_the_rest_back(
    layout: Path, states: dict[int, trees.View]
) -> None:
    with open_image(f"{layout}:main") as image:
        layers = [piece.digest for piece in image.stored.layers]

    prune_at_stop(layout, Keep(last=2))

    expect_states(layout, states, [1, 2, 9, 10])
    with open_image(f"{layout}:main") as image:
        assert [piece.digest for piece in image.stored.layers] == layers
    histories.append(layout, "main", change(history.file("./more", b"more")), most=3)
    prune_at_stop(layout, Keep(last=2))
    expect_states(layout, {**states, **histories.states(layout, layout.parent, only=[11])}, [1, 2, 10, 11])
    before = size(layout)
    known = {**states, **histories.states(layout, layout.parent, only=[11])}
    output_of("prune", "--keep-last", "2", f"{layout}:main")
    expect_states(layout, known, [1, 2, 10, 11])
    with open_image(f"{layout}:main") as image:
        inside = [piece for entry in image.stored.packs for piece in image.stored.content(entry)[1]]
        assert {(piece.first, piece.last) for piece in inside} <= {(2, 2), (3, 10), (11, 11)}
    histories.append(layout, "main", change(history.file("./more", b"even more")))
    assert size(layout) < before


# All of them


def test_a_command_waits_for_the_lock_and_says_so(layout: Path) -> None:
    fd = os.open(layout, os.O_RDONLY)
    fcntl.flock(fd, fcntl.LOCK_EX)
    child = os.fork()
    if not child:
        import time

        time.sleep(0.3)
        os._exit(0)  # it has the lock, too, as long as it lives
    os.close(fd)

    result = history.run("tag", f"{layout}:main", "new")

    os.waitpid(child, 0)
    assert result.status == 0
    assert "waiting for" in result.stderr


def test_what_root_writes_into_a_users_layout_is_the_users(layout: Path) -> None:
    tools.need_root()
    for path in layout.rglob("*"):
        os.chown(path, 1000, 1000)

    output_of("squash", f"{layout}:main")

    assert {(path.stat().st_uid, path.stat().st_gid) for path in layout.rglob("*")} == {(1000, 1000)}


def test_new_files_have_the_mode_of_the_others(layout: Path) -> None:
    for path in (layout / "blobs/sha256").iterdir():
        path.chmod(0o640)
    (layout / "index.json").chmod(0o640)

    output_of("squash", f"{layout}:main")
    output_of("revert", f"{layout}:main@1")

    modes = {path.stat().st_mode & 0o777 for path in layout.rglob("*") if path.is_file()}
    assert modes - {(layout / "oci-layout").stat().st_mode & 0o777} == {0o640}


@pytest.mark.parametrize("seed", range(3))
def test_whatever_is_done_revisions_that_stay_are_what_they_were(tmp_path: Path, seed: int) -> None:
    chance = random.Random(f"tidying {seed}")
    layout = tmp_path / "layout"
    if chance.random() < 0.5:
        image_layouts.put(layout, "main", layers=[change(history.file("./base", b"base"))])
    known: dict[int, trees.View] = {}
    for step in range(9):
        before = histories.numbers(layout) if known else []
        what = chance.choice(["stop", "stop", "stop", "squash", "prune", "stop prunes", "revert"])
        if what == "stop" or len(before) < 3:
            for _ in range(chance.choice((1, 3))):
                histories.append(layout, "main", some_layer(chance), most=chance.choice((3, 6)))
        elif what == "squash":
            first, last = sorted(chance.sample(before, 2))
            output_of("squash", f"{layout}:main@{first}..{last}")
        elif what == "prune":
            output_of("prune", "--keep-last", str(chance.choice((2, 4))), layout)
        elif what == "stop prunes":
            prune_at_stop(layout, Keep(last=chance.choice((2, 4))))
        else:
            number = chance.choice(before)
            assert history.run("revert", f"{layout}:main@{number}").status == 0
            now = histories.numbers(layout)[-1]
            if now not in before:
                known[now] = known[number]
        after = histories.states(layout, tmp_path)
        for number, view in after.items():
            differences = trees.differences(known.setdefault(number, view), view)
            assert not differences, f"seed {seed}, step {step}, {what}, @{number}: {differences}"
    output_of("verify", "--read-data", layout)


def some_layer(chance: random.Random) -> bytes:
    """Give a change set of one or two files in one or two directories, deletions among them."""
    entries = [history.directory("./", mtime=chance.randrange(10**9))]
    for directory in sorted(chance.sample("ab", chance.choice((1, 2)))):
        kind = chance.random()
        if kind < 0.1:
            entries.append(history.file(f"./.wh.{directory}"))
        elif kind < 0.2:
            entries.append(history.file(f"./{directory}", b"a file"))
        else:
            entries.append(history.directory(f"./{directory}", mode=chance.choice((0o755, 0o700))))
            if kind < 0.3:
                entries.append(history.file(f"./{directory}/.wh..wh..opq"))
            for name in sorted(chance.sample("xyz", chance.choice((1, 2)))):
                gone = kind > 0.3 and chance.random() < 0.3
                entries.append(
                    history.file(
                        f"./{directory}/{'.wh.' if gone else ''}{name}",
                        os.urandom(0) if gone else b"%d" % chance.randrange(9),
                    )
                )
    return history.layer(*entries)


def write(root: Path, text: str) -> None:
    (root / "file").write_text(text)


def prune_at_stop(layout: Path, keep: Keep) -> None:
    """Prune as the hook does."""
    paths = Paths()
    with Staging(str(layout), "", paths=paths, flush=Never(), log=histories.LOG) as staging:
        prune(str(layout), "main", staging, keep=keep, paths=paths, patience=Patience(), log=histories.LOG)


def size(layout: Path) -> int:
    """Give what the blobs of a layout take on disk."""
    return sum(-(-path.stat().st_size // 4096) * 4096 for path in (layout / "blobs/sha256").iterdir())


def test_changes_that_are_made_again_are_composed_where_they_belong(tmp_path: Path) -> None:
    layout = tmp_path / "layout"
    changes = [change(history.file("./all", b"%d" % number)) for number in range(2)]
    for tar in [*changes, *changes]:
        histories.append(layout, "main", tar)
    paths = Paths()
    with (
        Staging(str(layout), "", paths=paths, flush=Never(), log=histories.LOG) as staging,
        open_image(f"{layout}:main") as image,
    ):
        plan = compose_runs(image, Composer(image, staging, Form(), histories.LOG), [(2, 4)])
        edit = Edit(staging.parent, staging)
        assert put_compacted(plan, "main", staging.parent, image.stored, edit)
        edit.publish()

    with open_image(f"{layout}:main") as image:
        assert [(piece.first, piece.last) for piece in image.stored.layers] == [(1, 1), (2, 2), (3, 4)]
    assert [output_of("cat", f"{layout}:main@{number}:all") for number in range(1, 5)] == ["0", "1", "0", "1"]


def test_the_annotation_keep_prunes_at_a_stop(any_overlay: overlays.Overlay, scratch: Path) -> None:
    saver = Saver(any_overlay, "oci", scratch)
    for number in range(4):
        saver.overlay.change(partial(write, text=str(number)))
        result = saver.run(keep="last=2")
        assert result.status == 0, result.stderr

    # The first one says that nobody knows what the container had mounted.
    assert histories.numbers(saver.archive, "latest") == [1, 3, 4]
    assert output_of("cat", f"{saver.archive}:latest@3:file") == "2"
    assert "pruned: 2" in result.stderr


def test_what_pruning_at_a_stop_left_in_parts_is_applied_as_one(
    layout: Path, states: dict[int, trees.View], tmp_path: Path
) -> None:
    paths, patience = Paths(), Patience()
    with Staging(str(layout), "", paths=paths, flush=Never(), log=histories.LOG) as staging:
        prune(
            str(layout), "main", staging, keep=Keep(last=1), paths=paths, patience=patience, log=histories.LOG
        )
    assert histories.numbers(layout) == [1, 2, COUNT + 1]
    output_of("extract", "--no-fsync", f"{layout}:main@2", tmp_path / "now")

    output_of("apply", "--no-fsync", f"{layout}:main@{COUNT + 1}", tmp_path / "now")

    assert not trees.differences(states[COUNT + 1], trees.view(tmp_path / "now"))
