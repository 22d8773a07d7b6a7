"""Tags of layouts in registries: pushed as they are, forward only, and not lost whatever fails on the way."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import signal
import subprocess
import threading
import time
from typing import TYPE_CHECKING

import pytest

from tests.support import history, hooks, image_layouts
from tests.support.hosts import PUSHED, Host, append, expect_tidy, once
from tests.support.registry import Registry, Way
from tests.support.screens import run_at_once, screen

if TYPE_CHECKING:
    from pathlib import Path
    from typing import Callable


@pytest.fixture
def host(shared: Registry, name: str, scratch: Path) -> Host:
    """Give a host."""
    return Host(scratch / "one", shared.reference(name))


@pytest.fixture
def two(host: Host, scratch: Path) -> tuple[Host, Host]:
    """Give two hosts that go on from one revision."""
    host.first("first")
    return host, host.twin(scratch / "two")


# What is there


def test_an_image_arrives_as_it_is(host: Host, shared: Registry, name: str) -> None:
    host.stop("1")
    host.stop("2")

    result = host.push(f"--to={host.remote}", f"{host.layout}:main")

    assert (result.status, result.stderr) == (0, "")
    assert result.stdout == f"main is pushed to {host.remote}\n"
    assert shared.digest(name) == host.digest()
    assert shared.manifest(name) == image_layouts.read(host.layout, "main").manifest
    assert not host.waits
    expect_tidy(host.layout)


def test_a_tag_is_remembered_until_it_is_there(host: Host, shared: Registry, name: str) -> None:
    host.first("1")
    host.stop("2")
    assert host.waits

    assert host.push().stdout == f"main is pushed to {host.remote}\n"
    assert not host.waits
    assert host.push().stdout == f"{host.layout}: no image waits to be pushed\n"
    assert shared.digest(name) == host.digest()


def test_what_was_pushed_and_not_noted_is_not_sent_again(host: Host, shared: Registry) -> None:
    host.first("1")
    index = (host.layout / "index.json").read_text()
    (host.layout / "index.json").write_text(index.replace(PUSHED, f"{PUSHED}-not"))
    before = len(shared.requests())

    assert host.push().stdout == f"main is at {host.remote}\n"

    assert not [each for each in shared.requests()[before:] if each.startswith(("PUT", "POST"))]
    assert not host.waits


def test_a_layer_that_the_registry_has_lost_is_sent_again(host: Host, shared: Registry, name: str) -> None:
    # No other name in the registry has it, from which it could be taken.
    host.first(name)
    lost = shared.manifest(name)["layers"][0]["digest"]
    shutil.rmtree(shared.storage / f"docker/registry/v2/repositories/{name}/_layers/sha256" / lost[7:])
    # The registry remembers in memory what it had.
    shared.stop()
    shared.start()
    host.stop("2")

    assert host.push().status == 0

    assert shared.ask("GET", f"{name}/blobs/{lost}")
    assert not host.waits


def test_requests_do_not_grow_with_the_history(host: Host, shared: Registry) -> None:
    counts = []
    for number in range(1, 61):
        append(host.layout, f"{number}", most=12)
        if number in (20, 60):
            assert host.push(f"--to={host.remote}", f"{host.layout}:main").status == 0
            append(host.layout, "one more", most=12)
            before = len(shared.requests())
            assert host.push().status == 0
            counts.append(len(shared.requests()) - before)

    # One for each layer, of which there are at most so many.
    assert max(counts) <= 12 + 12, counts
    assert counts[-1] <= counts[0] + 5, counts


# Forward only


def test_no_revision_of_another_host_is_replaced(two: tuple[Host, Host], shared: Registry, name: str) -> None:
    one, other = two
    one.stop("of one")
    other.stop("of the other")
    assert one.push().status == 0

    result = other.push()

    branch = f"main-{'c' * 12}"
    assert result.status == 1
    assert f"{one.remote} has revisions that {other.layout} lacks" in result.stderr
    assert f"pushed as {shared.reference(name, branch)}" in result.stderr
    assert f"archive_overlay fetch {other.layout}:main {one.remote}" in result.stderr
    assert shared.digest(name) == one.digest()
    assert shared.digest(name, branch) == other.digest() == other.digest(branch)
    assert other.waits
    expect_tidy(other.layout)


def test_a_branch_goes_on(two: tuple[Host, Host], shared: Registry, name: str) -> None:
    one, other = two
    one.stop("of one")
    one.push()
    branch = f"main-{'c' * 12}"
    for number in range(3):
        other.stop(f"{number}")
        assert other.push().status == 1
        assert shared.digest(name, branch) == other.digest()
        assert other.tags == ["main", branch] == shared.tags(name)
        # What the tags of the branch named before is gone with the next revisions.
        assert len(image_layouts.expect_whole(other.layout)) <= 2


def test_no_tag_of_a_person_is_taken_for_the_branch(
    two: tuple[Host, Host], shared: Registry, name: str
) -> None:
    one, other = two
    branch = f"main-{'c' * 12}"
    history.output_of("tag", f"{other.layout}:main", branch)
    kept = other.digest(branch)
    other.note(branch, shared.reference(name, "kept"))
    one.stop("of one")
    one.push()
    other.stop("of the other")

    assert other.push().status == 1

    assert other.digest(branch) == kept
    assert other.tags == ["main", branch, f"{branch}.2"]
    assert shared.digest(name, f"{branch}.2") == other.digest()


def test_without_branches_nothing_is_pushed(two: tuple[Host, Host], shared: Registry, name: str) -> None:
    one, other = two
    one.stop("of one")
    other.stop("of the other")
    one.push()

    assert other.push("--if-moved=fail").status == 1

    assert shared.tags(name) == ["main"] == other.tags
    assert other.waits


def test_a_host_that_is_behind_leaves_the_tag_alone(
    two: tuple[Host, Host], shared: Registry, name: str
) -> None:
    one, behind = two
    one.stop("2")
    one.push()

    assert behind.push(f"{behind.layout}:main").stdout == f"main is at {one.remote}\n"

    assert shared.digest(name) == one.digest()


def test_what_was_composed_meanwhile_is_the_same_history(
    host: Host, scratch: Path, shared: Registry, name: str
) -> None:
    for number in range(5):
        host.stop(f"{number}")
    host.first("5")
    other = host.twin(scratch / "two")
    # One host makes other layers of the same revisions, the other one goes on with those that it had.
    assert history.run("squash", f"{host.layout}:main@2..4").status == 0
    host.push()
    other.stop("6")

    assert other.push().status == 0

    assert shared.digest(name) == other.digest()


def test_something_else_under_the_name_is_not_replaced(host: Host, shared: Registry, name: str) -> None:
    index = {"mediaType": image_layouts.INDEX_TYPE, "schemaVersion": 2, "manifests": []}
    kind = image_layouts.INDEX_TYPE
    shared.ask("PUT", f"{name}/manifests/main", image_layouts.as_json(index), Content_Type=kind)
    host.stop("1")

    assert host.push(f"--to={host.remote}", f"{host.layout}:main").status == 1
    assert shared.tags(name) == ["main", f"main-{'c' * 12}"]


def test_no_stop_waits_for_the_network(two: tuple[Host, Host], shared: Registry, name: str) -> None:
    one, other = two
    one.stop("of one")
    other.stop("of the other")
    one.push()

    def take_lock() -> None:
        layout = os.open(other.layout, os.O_RDONLY)
        try:
            fcntl.flock(layout, fcntl.LOCK_EX | fcntl.LOCK_NB)
            taken.append(True)
        finally:
            os.close(layout)

    taken: list[bool] = []
    # The branch has been made in the layout by then.
    with Way(shared, watch=once(f"PUT /v2/{name}/manifests/main-".encode(), take_lock)) as way:
        through(other, way, name)
        assert other.push().status == 1

    assert taken == [True]


# Both at once


def test_who_is_overwritten_in_the_middle_hears_of_it(
    two: tuple[Host, Host], shared: Registry, name: str
) -> None:
    one, other = two
    one.stop("of one")
    other.stop("of the other")
    put = f"PUT /v2/{name}/manifests/main".encode()
    # Both have looked before one of them pushes; then the other pushes, before the first one looks again.
    looked, pushed_first, pushed_second = threading.Event(), threading.Event(), threading.Event()
    looks: list[bytes] = []

    def watch_first(data: bytes) -> None:
        if data.startswith(put):
            looked.wait(20)
        if data.startswith(f"GET /v2/{name}/manifests/main".encode()):
            looks.append(data)
            if len(looks) == 2:
                pushed_first.set()
                pushed_second.wait(20)

    def watch_other(data: bytes) -> None:
        if data.startswith(put):
            looked.set()
            pushed_first.wait(20)

    def push_other() -> None:
        other.push()
        pushed_second.set()

    with Way(shared, watch=watch_first) as way_of_one, Way(shared, watch=watch_other) as way_of_other:
        for host, way in ((one, way_of_one), (other, way_of_other)):
            through(host, way, name)
        pushing = threading.Thread(target=push_other)
        pushing.start()
        result = one.push()
        pushing.join()

    assert result.status == 1
    assert "another host pushed" in result.stderr
    assert shared.digest(name) == other.digest()
    assert shared.digest(name, f"main-{'c' * 12}") == one.digest()


def test_who_is_overwritten_in_the_window_hears_of_it_at_the_next_look(
    two: tuple[Host, Host], shared: Registry, name: str
) -> None:
    one, other = two
    one.stop("of one")
    other.stop("of the other")
    # All of the other's push comes between the look and the push of this one: nobody can see that.
    put = f"PUT /v2/{name}/manifests/main".encode()
    pushed: list[int] = []
    with Way(shared, watch=once(put, lambda: pushed.append(other.push().status))) as way:
        through(one, way, name)
        assert one.push().status == 0
    assert pushed == [0]
    assert shared.digest(name) == one.digest()
    assert not other.waits
    assert other.push().stdout == f"{other.layout}: no image waits to be pushed\n"

    result = other.push("--all")

    assert result.status == 1
    assert shared.digest(name) == one.digest()
    assert shared.digest(name, f"main-{'c' * 12}") == other.digest()


def test_a_large_revision_is_sent_before_the_look_that_counts(
    two: tuple[Host, Host], shared: Registry, name: str
) -> None:
    one, other = two
    append(one.layout, "", size=1 << 20)
    other.stop("of the other")
    # While one sends, the other pushes.
    pushed: list[int] = []
    with Way(shared, watch=once(b"PATCH ", lambda: pushed.append(other.push().status))) as way:
        through(one, way, name)
        result = one.push()

    assert pushed == [0]
    assert result.status == 1
    assert shared.digest(name) == other.digest()
    assert shared.digest(name, f"main-{'c' * 12}") == one.digest()


def test_what_is_pushed_is_what_was_judged(host: Host, shared: Registry, name: str) -> None:
    host.first("1")
    host.stop("2")
    judged = host.digest()

    def go_on() -> None:
        for text in "345":
            host.stop(text)

    with Way(shared, watch=once(b"HEAD ", go_on)) as way:
        through(host, way, name)
        result = host.push()

    assert result.status == 0, result.stderr
    assert shared.digest(name) == judged
    assert host.waits
    assert host.entry()["annotations"][PUSHED] == judged


def through(host: Host, way: Way, name: str) -> None:
    """Let a host's tag go to the same place another way."""
    index = host.layout / "index.json"
    index.write_text(index.read_text().replace(host.remote, way.reference(name)))
    host.remote = way.reference(name)


# At a shell


def test_a_terminal_shows_how_far_it_is(host: Host, shared: Registry, name: str) -> None:
    append(host.layout, "", size=2 << 20)
    with Way(shared, bytes_per_second=8 << 20) as way:
        host.note("main", way.reference(name))

        shown, _ = run_at_once("push", "--tls-verify=false", host.layout)

        sizes = {each[2] for each in re.finditer(r" (\d+)% of (\S+)", shown) if 0 < int(each[1]) < 100}
        assert sizes == {"2.0M"}
        assert screen(shown) == [f"main is pushed to {way.reference(name)}", ""]


def test_watching_goes_on_until_it_is_stopped(host: Host, shared: Registry, name: str) -> None:
    host.stop("1")
    host.note("main", host.remote)
    command = [*hooks.command(), "push", "--watch", "--no-fsync", "--tls-verify=false", str(host.layout)]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as process:
        try:
            for text in ("2", "3"):
                assert until(lambda: shared.digest(name) == host.digest())
                host.stop(text)
            assert until(lambda: not host.waits)
            assert process.stdout
            # It says so after it has noted it.
            said = [process.stdout.readline().decode() for _ in range(3)]
        finally:
            process.terminate()
        assert said == [f"main is pushed to {host.remote}\n"] * 3
    assert process.returncode == 128 + signal.SIGTERM
    expect_tidy(host.layout)


def until(come: Callable[[], bool]) -> bool:
    """Wait until something has come; False: it takes far too long."""
    for _ in range(2000):
        if come():
            return True
        time.sleep(0.02)
    return False


def test_a_command_line_that_means_nothing_is_refused(host: Host) -> None:
    host.stop("1")
    layout = f"{host.layout}:main"
    for arguments, complaint in (
        ((layout,), f"{layout} has no place in a registry yet"),
        (("--to=docker://a.example/b", host.layout), "no image is named"),
        (("--watch", layout), "for all images of the layout"),
        (("--to=oci:/etc:main", layout), "is not an image in a registry"),
    ):
        assert complaint in history.complaint_of("push", *arguments)
