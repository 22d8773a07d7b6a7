"""One stop, in this process: what is looked at, closed and remembered at which moment."""

from __future__ import annotations

import json
import os
import stat
from typing import TYPE_CHECKING, Any

import pytest

from archive_overlay.destination.paths import Paths
from archive_overlay.destination.publish import Destination
from archive_overlay.destination.staging import Staging
from archive_overlay.errors import ArchiveError, Interrupted
from archive_overlay.hook import hook, runtime
from archive_overlay.hook.annotations import Context, parse_request
from archive_overlay.hook.ledger import Ledger
from archive_overlay.hook.rescue_dir import RescueDirectory
from archive_overlay.hook.run import Run
from archive_overlay.hook.runtime import read_spec
from archive_overlay.keys import PREFIX
from archive_overlay.log import Log
from archive_overlay.settings import Settings
from archive_overlay.system.flush import Never
from archive_overlay.system.metadata import make_twin
from archive_overlay.system.patience import Patience
from tests.support.flushing import open_files
from tests.support.hooks import split_off_container

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from typing import Callable

    from archive_overlay.overlay.change import Change


class Container:
    """A container that has stopped.

    Attributes:
        upper: what it wrote to its mount at /data.
        said: what the hook said, with the level.
        listen: called with what the hook says, when it says it.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.upper = directory / "upper"
        (self.upper / "deep").mkdir(parents=True)
        (self.upper / "deep" / "made").write_text("by a container")
        self.said: list[str] = []
        self.listen: Callable[[str], None] = lambda message: None
        options = [f"lowerdir={directory}", f"upperdir={self.upper}", f"workdir={directory / 'work'}"]
        self.mounts: list[Any] = [{"destination": "/data", "type": "overlay", "options": options}]

    def write(self, level: str, message: str) -> None:
        message = split_off_container(message)[1]
        self.said.append(f"{level}: {message}")
        self.listen(message)

    def bundle(self, *names: str, **keys: str) -> str:
        """Write a spec that asks for archives, and give its bundle."""
        annotations = {}
        for name in names:
            asked = {"mount-point": "/data", "archive-to": str(self.directory / name), **keys}
            annotations.update({f"{PREFIX}{name}.{key}": value for key, value in asked.items()})
        spec = {"mounts": self.mounts, "annotations": annotations}
        (self.directory / "config.json").write_text(json.dumps(spec))
        return str(self.directory)

    def stop(self, *names: str, level: str = "info", **settings: Any) -> int:
        return self.run(level, bundle=self.bundle(*names), **settings)

    def run(self, level: str = "info", **settings: Any) -> int:
        return hook.run(Settings(**settings), Log(level, [self]))

    def errors(self) -> list[str]:
        return [line for line in self.said if line.startswith("error: ")]


@pytest.fixture
def container(tmp_path: Path) -> Container:
    return Container(tmp_path)


def whiteout(path: Path) -> None:
    os.mknod(path, stat.S_IFCHR, os.makedev(0, 0))


def test_a_summary_says_what_was_saved(container: Container, monkeypatch: pytest.MonkeyPatch) -> None:
    (container.upper / "link").symlink_to("made")
    for name in ("gone", "gone too"):
        whiteout(container.upper / name)
    clock = iter((100.0, 102.5))
    monkeypatch.setattr("time.monotonic", lambda: next(clock))

    assert container.stop("data") == 0

    assert container.said == [
        f"info: archive data: saved 3 entries, 2 deletions and 14 bytes of /data to {container.directory}/data by copy"
        " in 2.50 s"
    ]


def test_one_of_a_kind_is_one(container: Container) -> None:
    (container.upper / "deep" / "made").rename(container.upper / "made")
    (container.upper / "deep").rmdir()
    whiteout(container.upper / "gone")

    container.stop("data")

    assert "saved 1 entry, 1 deletion and 14 bytes" in container.said[0]


def test_what_is_renamed_is_not_counted(container: Container) -> None:
    container.run(bundle=container.bundle("data", method="move"))

    assert "saved the upperdir of /data to" in container.said[0]


def test_a_layer_is_said_to_be_a_revision(container: Container) -> None:
    container.run(bundle=container.bundle("data", method="oci"))

    assert "by oci, as revision 1 of latest in " in container.said[0]


def test_who_wants_to_know_hears_of_each_entry(container: Container) -> None:
    container.stop("data", level="trace")

    assert f"debug: archive data: the upperdir of /data is {container.upper}" in container.said
    assert [line for line in container.said if line.startswith("trace: ")] == [
        "trace: .: directory",
        "trace: deep: directory",
        "trace: deep/made: file",
    ]


def test_a_runtime_says_on_standard_input_which_container_has_stopped(
    container: Container, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = container.bundle("data", **{"archive-to": f"{container.directory}/{{id}}"})
    reader, writer = os.pipe()
    os.write(writer, json.dumps({"id": "c1", "bundle": bundle}).encode())
    os.close(writer)
    read_state = runtime.read_state

    def read_the_pipe(fd: int) -> runtime.State:
        assert fd == 0
        return read_state(reader)

    monkeypatch.setattr(runtime, "read_state", read_the_pipe)

    assert container.run() == 0

    os.close(reader)
    assert (container.directory / "c1" / "deep" / "made").exists()


def test_a_bundle_that_is_none_is_an_error(container: Container) -> None:
    assert container.run(bundle="/nowhere") == 1
    assert container.errors()[0].startswith("error: cannot read the spec /nowhere/config.json: No such file")


def test_a_request_that_is_none_costs_the_others_nothing(container: Container) -> None:
    (container.directory / "second").mkdir()
    (container.directory / "second" / "file").touch()

    assert container.run(bundle=container.bundle("first", "second", **{"if-exists": "fail"})) == 1

    assert (container.directory / "first" / "deep" / "made").exists()
    (error,) = container.errors()
    assert error.startswith(f"error: archive second: archive-to {container.directory}/second exists")


def test_what_renames_the_upperdir_comes_last(container: Container) -> None:
    bundle = container.bundle("first", "second")
    spec = json.loads((container.directory / "config.json").read_text())
    spec["annotations"][f"{PREFIX}first.method"] = "move"
    (container.directory / "config.json").write_text(json.dumps(spec))

    assert container.run(bundle=bundle) == 0

    assert [line.split()[2] for line in container.said] == ["second:", "first:"]
    for name in ("first", "second"):
        assert (container.directory / name / "deep" / "made").exists()


def test_an_upperdir_is_moved_once_and_the_second_says_where_it_is(container: Container) -> None:
    assert container.run(bundle=container.bundle("first", "second", method="move")) == 1

    (error,) = container.errors()
    first = container.directory / "first"
    assert error == (
        f"error: archive second: the upperdir {container.upper} has been moved to {first}; its changes are in {first}"
    )


def test_an_archive_of_this_very_stop_is_not_replaced(container: Container) -> None:
    keys = {"archive-to": str(container.directory / "archive"), "method": "tar"}

    assert container.run(bundle=container.bundle("first", "second", **keys)) == 1

    assert "has archive first of the same stop" in container.errors()[0]


@pytest.mark.parametrize(
    ("settings", "said"),
    [({"max_entries": 1}, "more than 1 entries"), ({"max_bytes": 1}, "more than 1 bytes")],
)
def test_limits_hold(container: Container, settings: dict[str, Any], said: str) -> None:
    assert container.stop("data", **settings) == 1

    assert said in container.errors()[0]
    assert not (container.directory / "data").exists()


@pytest.mark.parametrize(("setid", "mode"), [(True, 0o6755), (False, 0o755)])
def test_set_id_bits_are_archived_if_they_may_be(container: Container, setid: bool, mode: int) -> None:
    (container.upper / "deep" / "made").chmod(0o6755)

    assert container.run(bundle=container.bundle("data", method="move"), setid=setid) == 0

    assert stat.S_IMODE((container.directory / "data" / "deep" / "made").stat().st_mode) == mode


@pytest.mark.parametrize("fsync", [True, False])
def test_all_is_flushed_unless_nobody_wants_that(
    container: Container, monkeypatch: pytest.MonkeyPatch, fsync: bool
) -> None:
    flushed: list[int] = []
    monkeypatch.setattr("archive_overlay.system.kernel.sync_file_system", flushed.append)
    monkeypatch.setattr(os, "fsync", flushed.append)

    container.stop("data", fsync=fsync)

    assert bool(flushed) is fsync


def test_what_a_method_refuses_is_refused_before_anything_is_touched(
    container: Container, monkeypatch: pytest.MonkeyPatch
) -> None:
    success = container.directory / "success"
    success.write_text("of an earlier run")

    def judge(_: object, *, keep_in_place: str) -> None:
        assert not keep_in_place
        raise ArchiveError("not now")

    monkeypatch.setattr("archive_overlay.methods.copy.judge", judge)

    assert container.run(bundle=container.bundle("data", success=str(success))) == 1

    assert container.errors()[0].startswith("error: archive data: not now; its changes are in")
    assert success.read_text() == "of an earlier run"
    assert not (container.directory / "data").exists()


def test_an_old_marker_is_gone_while_the_archive_is_made_and_a_new_one_comes_last(
    container: Container, monkeypatch: pytest.MonkeyPatch
) -> None:
    success = container.directory / "success"
    success.write_text("of an earlier run")
    seen: list[bool] = []
    publish = Destination.publish

    def watch(self: Destination, staging: Staging, result: object) -> str:
        seen.append(success.exists())
        done = publish(self, staging, result)
        seen.append(success.exists())
        return done

    monkeypatch.setattr(Destination, "publish", watch)

    assert container.run(bundle=container.bundle("data", success=str(success))) == 0

    assert seen == [False, False]
    assert success.read_bytes() == b""


def test_an_interruption_after_an_archive_is_safe_is_no_failure_of_it(container: Container) -> None:
    def interrupt(message: str) -> None:
        if "archive second: saved" in message:
            raise Interrupted(15)

    container.listen = interrupt

    with pytest.raises(Interrupted):
        container.stop("first", "second", "third")

    (error,) = container.errors()
    assert error.startswith("error: archive third: interrupted by signal 15; its changes are in")
    for name in ("first", "second"):
        assert (container.directory / name / "deep" / "made").exists()


@pytest.mark.parametrize("interrupted", [False, True])
def test_what_failed_is_kept_with_all_the_time_it_takes_unless_the_hook_has_to_end(
    container: Container, monkeypatch: pytest.MonkeyPatch, interrupted: bool
) -> None:
    hurries: list[bool] = []

    def keep(*_: object, hurry: bool, **__: object) -> str:
        hurries.append(hurry)
        return "/rescue"

    def write(*_: object) -> None:
        if interrupted:
            raise Interrupted(15)
        raise ArchiveError("nothing can be stored")

    monkeypatch.setattr(RescueDirectory, "keep", keep)
    monkeypatch.setattr("archive_overlay.methods.copy.write", write)

    try:
        container.stop("data", rescue_dir="/rescue")
    except Interrupted:
        assert interrupted

    assert hurries == [interrupted]


def test_a_second_run_has_nothing_to_archive_and_nothing_to_rescue(container: Container) -> None:
    top = os.open(container.directory, os.O_RDONLY)
    container.upper.rename(container.directory / "moved")
    make_twin("moved", top, "upper", top)
    os.close(top)

    status = container.stop("data", rescue_dir=str(container.directory / "rescue"))

    assert status == 1
    assert container.errors() == [
        f"error: archive data: the upperdir {container.upper} has been moved by an earlier run of this hook"
    ]
    assert not (container.directory / "rescue").exists()
    assert not (container.directory / "data").exists()


def test_a_malformed_mount_is_complained_of_and_costs_no_archive(container: Container) -> None:
    container.mounts.insert(0, {"destination": 7})

    status = container.stop("data")

    assert status == 1, "not all is as it should be"
    (error,) = container.errors()
    assert error.startswith(f"error: mounts[0] in {container.directory}/config.json is malformed: it must be")
    assert (container.directory / "data" / "deep" / "made").exists()


def test_without_a_request_a_malformed_mount_is_nobody_s_business(container: Container) -> None:
    container.mounts.insert(0, {"destination": 7})

    assert container.stop() == 0
    assert container.said == []


def test_nothing_of_the_upperdir_is_open_any_more_when_a_failure_is_cleaned_up(container: Container) -> None:
    seen: list[list[str]] = []

    class Watched(Staging):
        def __exit__(self, *error: Any) -> None:  # noqa: PYI036
            seen.append(open_files(container.directory))
            super().__exit__(*error)

    class Failing:
        """A method that cannot store a file."""

        path = str(container.directory / "archive")

        def destination(self, request: object, **_: object) -> Any:
            return self

        def stage(self, flush: Never, log: Log, file_mode: int | None) -> Staging:
            return Watched(str(container.directory), "archive", paths=Paths(), flush=flush, log=log)

        def judge(self, overlay: object, *, keep_in_place: str) -> None:
            pass

        def write(self, changes: Iterator[Change], target: object, log: Log) -> None:
            for change in changes:
                if change.fd >= 0:
                    raise ArchiveError(f"{change.path} cannot be stored")

    log = Log("info", [container])
    settings = Settings(bundle=container.bundle("data"))
    spec = read_spec(str(container.directory))
    context = Context(id="c1", timestamp="")
    keys = {"mount-point": "/data", "archive-to": Failing.path, "method": "copy"}
    run = Run(
        settings=settings,
        spec=spec,
        bundle=str(container.directory),
        context=context,
        paths=Paths(),
        policy=None,
        patience=Patience(),
        flush=Never(),
        ledger=Ledger({"data": keys}, log),
        log=log,
    )
    failing: Any = Failing()

    with pytest.raises(ArchiveError, match="deep/made cannot be stored"):
        hook.archive_one(parse_request("data", keys, context, log), failing, run)

    assert [name for name in seen[0] if name.startswith("upper")] == []
