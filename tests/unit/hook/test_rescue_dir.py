"""An upperdir is kept as it was, under a name of its own, with a note that says why; nothing foreign is touched."""

from __future__ import annotations

import errno
import json
import os
import re
import stat
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from archive_overlay.destination.staging import Staging
from archive_overlay.errors import ArchiveError
from archive_overlay.hook.policy import Policy
from archive_overlay.hook.rescue_dir import RescueDirectory
from archive_overlay.log import Log
from archive_overlay.overlay.dialect import FUSE_OVERLAYFS, NATIVE
from archive_overlay.overlay.mount import OverlayMount
from archive_overlay.system import kernel
from archive_overlay.system.metadata import is_twin
from tests.support import overlays, tools
from tests.support.flushing import open_files

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Callable

    from archive_overlay.overlay.change import Change

TIME = 1_234_567_890 * 10**9


class Rescued:
    """An upperdir that is to be kept.

    Attributes:
        rescue: the rescue directory, which is not there yet.
        said: what was logged.
        max_bytes, max_entries: of what may be copied.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.rescue = directory / "rescue"
        self.upper = directory / "store" / "upper"
        self.said: list[str] = []
        self.max_bytes: int | None = None
        self.max_entries: int | None = None
        self.make_upper()

    def make_upper(self) -> None:
        (self.upper / "deep").mkdir(parents=True, exist_ok=True)
        (self.upper / "deep" / "made").write_text("by a container")
        self.upper.chmod(0o2751)
        os.utime(self.upper, ns=(TIME, TIME))

    def write(self, level: str, message: str) -> None:
        self.said.append(f"{level}: {message}")

    def keep(
        self,
        archive: str = "data",
        *,
        container: str = "c1",
        hurry: bool = False,
        copy: bool = False,
        upper: str = "",
        **asked: Any,
    ) -> str:
        """Keep the upperdir; it is copied if it is fuse-overlayfs's, which has whiteouts of another form."""
        keeper = RescueDirectory(
            str(self.rescue),
            container,
            Log("info", [self]),
            limits=Policy(max_entries=self.max_entries),
            max_bytes=self.max_bytes,
        )
        overlay = OverlayMount(
            upper=upper or str(self.upper),
            lowers=("/lower", "/lowest"),
            data_lowers=("/data",),
            dialect=FUSE_OVERLAYFS if copy else NATIVE,
        )
        return keeper.keep(
            overlay, archive, asked=asked, reason="no space\nleft", may_rename=True, hurry=hurry
        )

    def expect_kept(self, at: Path | str) -> None:
        kept = Path(at)
        status = kept.stat()
        assert (kept / "deep" / "made").read_text() == "by a container"
        assert (stat.S_IMODE(status.st_mode), status.st_mtime_ns) == (0o2751, TIME)

    def note(self, name: str = "data") -> Any:
        return json.loads((self.rescue / "c1" / f"{name}.json").read_text())


@pytest.fixture
def rescued(tmp_path: Path) -> Rescued:
    return Rescued(tmp_path)


def test_an_upperdir_is_renamed_and_an_empty_twin_takes_its_place(rescued: Rescued) -> None:
    inode = rescued.upper.stat().st_ino

    kept = rescued.keep(hurry=True)

    assert kept == str(rescued.rescue / "c1" / "data")
    assert Path(kept).stat().st_ino == inode
    rescued.expect_kept(kept)
    assert is_twin(str(rescued.upper))
    assert stat.S_IMODE(rescued.upper.stat().st_mode) == 0o2751
    assert sorted(os.listdir(rescued.rescue / "c1")) == ["data", "data.json"]
    assert rescued.said == []
    assert open_files(rescued.directory) == []


def test_an_upperdir_that_cannot_be_renamed_is_copied_and_stays(rescued: Rescued) -> None:
    kept = rescued.keep(copy=True)

    assert kept == str(rescued.rescue / "c1" / "data")
    for place in (kept, rescued.upper):
        rescued.expect_kept(place)
    assert sorted(os.listdir(rescued.rescue / "c1")) == ["data", "data.json"]
    assert open_files(rescued.directory) == []


def test_nothing_is_copied_in_a_hurry(rescued: Rescued) -> None:
    with pytest.raises(
        ArchiveError, match=f"{rescued.upper} cannot be renamed into {rescued.rescue / 'c1'}$"
    ):
        rescued.keep(copy=True, hurry=True)

    rescued.expect_kept(rescued.upper)
    assert os.listdir(rescued.rescue / "c1") == []
    assert open_files(rescued.directory) == []


@pytest.mark.parametrize("copy", [False, True], ids=["renamed", "copied"])
def test_only_the_owner_sees_what_is_kept(rescued: Rescued, copy: bool) -> None:
    rescued.keep(copy=copy)

    assert stat.S_IMODE((rescued.rescue / "c1").stat().st_mode) == 0o700
    assert stat.S_IMODE((rescued.rescue / "c1" / "data.json").stat().st_mode) == 0o600


@pytest.mark.parametrize("copy", [False, True], ids=["renamed", "copied"])
@pytest.mark.parametrize("taken", ["data", "data.json"])
def test_what_is_kept_already_stays(rescued: Rescued, copy: bool, taken: str) -> None:
    (rescued.rescue / "c1").mkdir(parents=True)
    (rescued.rescue / "c1" / taken).write_text("of an earlier stop")

    first = rescued.keep(copy=copy)
    rescued.make_upper()
    second = rescued.keep(copy=copy)

    assert [Path(first).name, Path(second).name] == ["data.~1~", "data.~2~"]
    for kept in (first, second):
        rescued.expect_kept(kept)
        assert os.path.exists(f"{kept}.json")
    assert (rescued.rescue / "c1" / taken).read_text() == "of an earlier stop"


def test_the_note_says_what_was_asked_for_and_what_went_wrong(rescued: Rescued) -> None:
    rescued.keep(method="copy", success={"two": "values"})

    note = rescued.note()
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", note.pop("time"))
    assert note == {
        "archive": "data",
        "annotations": {"method": "copy", "success": {"two": "values"}},
        "reason": r"no space\nleft",
        "upperdir": str(rescued.upper),
        "lowerdirs": ["/lower", "/lowest", "/data"],
        "overlay": NATIVE.name,
    }
    text = (rescued.rescue / "c1" / "data.json").read_text()
    assert text.endswith("\n}\n")
    assert '\n  "archive": "data",\n' in text, "a person can read it"


@pytest.mark.parametrize(
    ("name", "file"),
    [
        (".", "%2E"),
        ("..", "%2E%2E"),
        ("...", "..."),
        ("a/b", "a%2Fb"),
        ("100%", "100%25"),
        ("nul\0", "nul%00"),
        ("half \ud800", "half %D800"),
        ("byte \udcff", "byte \udcff"),
        ("n" * 300, "n" * 200),
        ("é" * 150, "é" * 100),
    ],
)
def test_archives_and_containers_have_names_that_lead_nowhere(rescued: Rescued, name: str, file: str) -> None:
    kept = rescued.keep(name, container=name)

    assert kept == os.path.join(rescued.rescue, file, file)
    rescued.expect_kept(kept)


def test_a_container_without_an_id_is_unknown(rescued: Rescued) -> None:
    assert rescued.keep(container="") == str(rescued.rescue / "unknown" / "data")


@pytest.mark.parametrize("slash", ["", "/"])
def test_the_upperdir_itself_is_renamed_and_not_a_link_to_it(rescued: Rescued, slash: str) -> None:
    link = rescued.directory / "link"
    link.symlink_to(rescued.upper)

    rescued.expect_kept(rescued.keep(upper=f"{link}{slash}"))

    assert link.is_symlink()
    assert is_twin(str(rescued.upper))


def test_a_rescue_directory_behind_a_symbolic_link_is_found(rescued: Rescued) -> None:
    (rescued.directory / "real").mkdir()
    rescued.rescue.symlink_to("real")

    rescued.expect_kept(rescued.keep())

    assert sorted(os.listdir(rescued.directory / "real" / "c1")) == ["data", "data.json"]


@pytest.mark.parametrize("copy", [False, True], ids=["renamed", "copied"])
@pytest.mark.parametrize("taken", ["link", "dangling link", "file"])
def test_what_is_no_directory_in_the_place_of_the_container_s_is_left_alone(
    rescued: Rescued, taken: str, copy: bool
) -> None:
    rescued.rescue.mkdir()
    (rescued.directory / "elsewhere").mkdir()
    place = rescued.rescue / "c1"
    if taken == "file":
        place.touch()
    else:
        place.symlink_to(rescued.directory / "elsewhere" / ("" if taken == "link" else "new"))

    kept = rescued.keep(copy=copy)

    assert kept == str(rescued.rescue / "c1.~1~" / "data")
    rescued.expect_kept(kept)
    assert os.listdir(rescued.directory / "elsewhere") == []
    assert place.is_symlink() == (taken != "file")
    assert open_files(rescued.directory) == []


def test_names_that_others_can_guess_can_all_be_taken(rescued: Rescued) -> None:
    rescued.rescue.mkdir()
    for name in ("c1", *(f"c1.~{number}~" for number in range(1, 100))):
        (rescued.rescue / name).touch()

    kept = rescued.keep()

    assert re.fullmatch(r"c1\.~[0-9a-f]{16}~", Path(kept).parent.name)
    rescued.expect_kept(kept)


def test_a_directory_of_ours_that_others_may_enter_is_closed(rescued: Rescued) -> None:
    (rescued.rescue / "c1").mkdir(parents=True)
    (rescued.rescue / "c1").chmod(0o2777)

    assert rescued.keep() == str(rescued.rescue / "c1" / "data")

    assert stat.S_IMODE((rescued.rescue / "c1").stat().st_mode) == 0o700


@pytest.mark.parametrize(("max_bytes", "max_entries"), [(21, None), (None, 1)], ids=["bytes", "entries"])
def test_what_is_beyond_the_limits_is_renamed_and_never_copied(
    rescued: Rescued, max_bytes: int | None, max_entries: int | None
) -> None:
    rescued.max_bytes, rescued.max_entries = max_bytes, max_entries

    with pytest.raises(
        ArchiveError, match=rf"{rescued.upper} cannot be renamed into .*/c1, nor copied: .* more than"
    ):
        rescued.keep(copy=True)

    assert os.listdir(rescued.rescue / "c1") == [], "nothing is left of what was copied"
    rescued.expect_kept(rescued.upper)
    rescued.expect_kept(rescued.keep())
    assert open_files(rescued.directory) == []


def test_a_copy_within_the_limits_is_made(rescued: Rescued) -> None:
    rescued.max_bytes, rescued.max_entries = len("deep" + "made" + "by a container"), 2
    rescued.expect_kept(rescued.keep(copy=True))


def test_a_copy_goes_nowhere_else_when_the_directory_is_replaced(
    rescued: Rescued, monkeypatch: pytest.MonkeyPatch
) -> None:
    def exchange(overlay: OverlayMount) -> bool:
        (rescued.rescue / "c1").rename(rescued.directory / "moved")
        (rescued.rescue / "c1").mkdir()
        return True

    monkeypatch.setattr("archive_overlay.hook.rescue_dir.is_mounted", exchange)

    with pytest.raises(ArchiveError, match="the directory has just been replaced"):
        rescued.keep()

    assert os.listdir(rescued.rescue / "c1") == os.listdir(rescued.directory / "moved") == []
    rescued.expect_kept(rescued.upper)
    assert open_files(rescued.directory) == []


def failing(number: int) -> Callable[..., None]:
    """Give a call that fails."""

    def call(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    return call


def test_another_file_system_takes_a_copy(rescued: Rescued, monkeypatch: pytest.MonkeyPatch) -> None:
    rename_new = kernel.rename_new

    def rename_within(name: str, *more: Any) -> None:
        if name == "upper":
            failing(errno.EXDEV)()
        rename_new(name, *more)

    monkeypatch.setattr(kernel, "rename_new", rename_within)

    rescued.expect_kept(rescued.keep())

    rescued.expect_kept(rescued.upper)
    assert sorted(os.listdir(rescued.rescue / "c1")) == ["data", "data.json"]


def test_what_cannot_be_renamed_for_another_reason_is_not_kept(
    rescued: Rescued, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernel, "rename_new", failing(errno.EROFS))

    with pytest.raises(ArchiveError, match=f"cannot keep {rescued.upper} in {rescued.rescue}/c1: Read-only"):
        rescued.keep()

    rescued.expect_kept(rescued.upper)
    assert open_files(rescued.directory) == []


def test_an_upperdir_is_kept_though_it_has_no_twin(rescued: Rescued, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("archive_overlay.system.metadata.make_twin", failing(errno.ENOSPC))

    rescued.expect_kept(rescued.keep())

    assert rescued.said == [
        f"warning: cannot make an empty directory in place of {rescued.upper}: No space left on device"
    ]


def test_an_upperdir_is_kept_though_its_note_cannot_be_written(
    rescued: Rescued, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail_for_files(fd: int) -> None:
        if stat.S_ISREG(os.fstat(fd).st_mode):
            failing(errno.ENOSPC)()

    monkeypatch.setattr(os, "fsync", fail_for_files)
    kept = rescued.keep()

    rescued.expect_kept(kept)
    assert rescued.said == [
        f"warning: cannot write {kept}.json, the notes on {kept}: No space left on device"
    ]
    assert open_files(rescued.directory) == []


def test_an_upperdir_is_kept_though_an_annotation_is_nested_too_deeply(rescued: Rescued) -> None:
    nested: Any = []
    for _ in range(100_000):
        nested = [nested]

    kept = rescued.keep(method=nested)

    rescued.expect_kept(kept)
    assert rescued.said[0].endswith(f"the notes on {kept}: an annotation is nested too deeply")


@pytest.mark.parametrize("copy", [False, True], ids=["renamed", "copied"])
def test_all_is_on_disk_in_the_end(rescued: Rescued, monkeypatch: pytest.MonkeyPatch, copy: bool) -> None:
    flushed: list[str] = []

    def note(fd: int) -> None:
        if os.readlink(f"/proc/self/fd/{fd}").endswith(".json"):
            assert Path(f"/proc/self/fd/{fd}").read_text().endswith("}\n"), "all of it is there"
        path = os.path.relpath(os.readlink(f"/proc/self/fd/{fd}"), rescued.directory)
        flushed.append(re.sub("[0-9a-f]{12}$", "", path))

    monkeypatch.setattr(os, "fsync", note)
    monkeypatch.setattr("archive_overlay.system.kernel.sync_file_system", note)

    rescued.keep(copy=copy)

    assert flushed == [
        ".",  # the rescue directory was missing
        *(["rescue/c1/.data.archive_overlay-"] if copy else []),
        "rescue/c1/data.json",
        "rescue/c1",
    ]


def test_nothing_of_the_upperdir_is_open_any_more_when_a_failed_copy_is_removed(
    rescued: Rescued, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[str]] = []

    class Watched(Staging):
        def __exit__(self, *error: Any) -> None:  # noqa: PYI036
            seen.append(open_files(rescued.directory / "store"))
            super().__exit__(*error)

    def write(changes: Iterator[Change], *_: object) -> None:
        next(change for change in changes if change.fd >= 0)
        failing(errno.ENOSPC)()

    monkeypatch.setattr("archive_overlay.hook.rescue_dir.Staging", Watched)
    monkeypatch.setattr("archive_overlay.methods.copy.write", write)

    with pytest.raises(ArchiveError, match="No space left on device"):
        rescued.keep(copy=True)

    assert seen == [[]]


def test_the_directory_is_named_as_it_was_given() -> None:
    assert RescueDirectory("/srv/../rescue", "c1", Log("info", [])).path == "/srv/../rescue"


def test_a_copy_that_fails_leaves_nothing_open_and_no_debris(
    rescued: Rescued, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("archive_overlay.system.kernel.sync_file_system", failing(errno.EIO))

    with pytest.raises(ArchiveError, match=f"cannot keep {rescued.upper} in .*: Input/output error"):
        rescued.keep(copy=True)

    assert os.listdir(rescued.rescue / "c1") == []
    assert open_files(rescued.directory) == []


def test_a_file_system_on_which_all_has_one_owner_is_good_enough(rescued: Rescued) -> None:
    tools.need_root()
    tools.need(overlays.FUSE_OVERLAYFS)
    namespace = overlays.Namespace(rootless=False)
    below, above, work = (rescued.directory / name for name in ("below", "above", "work"))
    for path in (below, above, work, rescued.rescue):
        path.mkdir()
    layers = f"lowerdir={below},upperdir={above},workdir={work}"
    squashed = f"{layers},squash_to_uid=12345,squash_to_gid=12345"

    def keep() -> tuple[str, int]:
        subprocess.run([overlays.FUSE_OVERLAYFS, "-o", squashed, rescued.rescue], check=True)
        try:
            return rescued.keep(copy=True), Path(rescued.rescue, "c1").stat().st_uid
        finally:
            overlays.unmount(rescued.rescue)

    try:
        assert namespace.inside(keep) == (f"{rescued.rescue}/c1/data", 12345)
    finally:
        namespace.close()
    assert os.listdir(above) == ["c1"]
    assert (above / "c1/data/deep/made").read_text() == "by a container"


def test_what_is_mounted_under_the_container_s_name_is_nobody_s(rescued: Rescued) -> None:
    tools.need_root()
    namespace = overlays.Namespace(rootless=False)
    (rescued.rescue / "c1").mkdir(parents=True)

    def keep() -> tuple[str, list[str]]:
        # As another user's FUSE program, that says that it is root's.
        overlays.mount_tmpfs(rescued.rescue / "c1", "mode=700")
        return rescued.keep(), os.listdir(rescued.rescue / "c1")

    try:
        assert namespace.inside(keep) == (f"{rescued.rescue}/c1.~1~/data", [])
    finally:
        namespace.close()
