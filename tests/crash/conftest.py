"""Places in which the hook can be killed again and again."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING

import pytest

from archive_overlay.methods import METHODS
from tests.support import faults, hooks, overlays, stacking, tools, trees

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import Any, Callable, TypeVar, Union

    from archive_overlay.methods import Method

    T = TypeVar("T")
    Print = Union[trees.View, tuple[list[int], bytes], None]

# What `move` keeps, and loses where it has to copy.
_BOOKKEEPING = ("trusted.overlay.impure", "trusted.overlay.origin", "trusted.overlay.uuid")
# Not all that a process does is its own doing (the C library's, with threads), so a run may go another way
# than the one that was recorded; the next one does not.
ATTEMPTS = 4
OLD_MARKER = b"of an earlier run"


@dataclass(frozen=True)
class Case:
    """A method, and what it does with an older archive."""

    method: Method
    if_exists: str

    def __str__(self) -> str:
        return f"{self.method.name}-{self.if_exists}"


CASES = tuple(
    Case(method, if_exists)
    for method in METHODS.values()
    for if_exists in method.if_exists
    if if_exists != "fail"
)
# These have no if-exists, so there is no case for them.
HAVE_TESTS_OF_THEIR_OWN = {"oci": "test_image_layout.py"}


def pytest_make_parametrize_id(val: object) -> str | None:
    """Name tests after cases."""
    return str(val) if isinstance(val, Case) else None


def below(root: Path) -> None:
    """Make what the container is going to delete."""
    (root / "gone").touch()
    (root / "gone too").touch()
    (root / "opaque").mkdir()
    (root / "opaque" / "below").touch()


def change(root: Path) -> None:
    """Make an entry of each kind."""
    (root / "gone").unlink()
    (root / "gone too").unlink()
    shutil.rmtree(root / "opaque")
    (root / "opaque").mkdir()
    (root / "opaque" / "new").write_text("new")
    (root / "file").write_text("new")
    os.setxattr(root / "file", "user.colour", b"red")
    subprocess.run(["setfacl", "-m", "u:7:rw", root / "file"], check=True)
    os.link(root / "file", root / "link")
    (root / "big").write_bytes(bytes(range(256)) * 800)
    (root / "empty").mkdir()
    os.mkfifo(root / "fifo")
    os.mknod(root / "device", stat.S_IFBLK | 0o600, os.makedev(7, 300))
    os.symlink("file", root / "symlink")
    for name in ("file", "fifo", "symlink", "opaque"):
        os.chown(root / name, 1000, 1000, follow_symlinks=False)
    (root / "file").chmod(0o4775)
    with open(root / "sparse", "wb") as sparse:
        sparse.write(b"data")
        sparse.truncate(1 << 20)


def put_old_archive(archive: Path, method: Method) -> None:
    """Put an archive of an earlier run at a destination; a tree has an obstacle of each kind to a merge."""
    if method.makes == "file":
        archive.write_bytes(b"an old archive")
        return
    archive.mkdir()
    for name in ("file", "link", "stays", "empty", "gone"):
        (archive / name).write_text("old")
    for name in ("opaque", "symlink"):
        (archive / name).mkdir()
        (archive / name / "stays").write_text("old")
    os.setxattr(archive / "opaque", "user.colour", b"grey")
    for path in (*archive.rglob("*"), archive):
        os.utime(path, ns=(0, 0))


class Place:
    """A change set, and a destination to which it is saved again and again.

    Attributes:
        out: the directory of the archive; it has nothing else in it.
        archive: where the archive is asked for.
        success: where its success marker is.
        scratch: for what is needed on the way.
        spare_upper: a copy of the upperdir.
    """

    def __init__(
        self,
        executable: Path,
        directory: Path,
        namespace: overlays.Namespace,
        change: Callable[[Path], object] = change,
        jobs: int = 1,
        below: Callable[[Path], object] = below,
        put_old: Callable[[Path, Method], object] = put_old_archive,
        refused: str = "",
    ) -> None:
        # Runs of two processes do not go the same way each time; test_two_processes.py is about them.
        self._jobs = ("--jobs", str(jobs))
        self.overlay = overlays.Overlay(overlays.NATIVE, directory, namespace)
        self.overlay.layer(below)
        self.overlay.change(change)
        self._put_old = put_old
        self._refused = refused
        self.out = directory / "out"
        self.archive = self.out / "archive"
        self.success = directory / "success"
        self._executable = executable
        self._upper = changed(self.overlay.upper)
        self._change_set = fingerprint(self.overlay.upper)
        self._prints: dict[tuple[Case, str], Print] = {}
        self.scratch = directory / "scratch"
        self.scratch.mkdir()
        self.spare_upper = directory / "spare"
        copy(self.overlay.upper, self.spare_upper)

    def hook(self, case: Case, *arguments: str, **keys: object) -> faults.Hook:
        """Give the hook that does a case.

        Args:
            case: what is asked for.
            arguments: the command line.
            keys: more annotations, or others, with underscores for dashes.
        """
        asked = hooks.annotations(
            "data",
            **{
                "mount_point": "/data",
                "archive_to": self.archive,
                "success": self.success,
                "method": case.method.name,
                "if_exists": case.if_exists,
                **keys,
            },
        )
        bundle = hooks.Bundle(self.overlay.directory, mounts=[self.overlay.spec_mount()], annotations=asked)
        arguments = (*self._jobs, *arguments)
        return faults.Hook(
            self._executable, bundle, self.overlay.directory, self.scratch, arguments, self._refused
        )

    def run(self, hook: faults.Hook, *arguments: str) -> hooks.Result:
        """Run the hook with nothing in its way."""
        return faults.run(hook, *arguments)

    def lay_out(self, case: Case) -> None:
        """Put an old archive at the destination, with its marker and nothing else."""
        self.restart_container()
        shutil.rmtree(self.out, ignore_errors=True)
        self.out.mkdir()
        self._put_old(self.archive, case.method)
        self.success.write_bytes(OLD_MARKER)

    def restart_container(self) -> None:
        """Let an upperdir that was moved away be there again, as a container would that did the same."""
        if not self.overlay.upper.exists() or changed(self.overlay.upper) != self._upper:
            overlays.remove(self.overlay.upper)
            copy(self.spare_upper, self.overlay.upper)
            self._upper = changed(self.overlay.upper)

    def learn(self, case: Case) -> None:
        """Find out what the old and the new archive of a case look like, by runs with nothing in their way."""
        hook = self.hook(case)
        self.lay_out(case)
        self._prints[case, "old"] = fingerprint(self.archive)
        result = self.run(hook)
        assert result.status == 0, result.stderr
        self._prints[case, "new"] = fingerprint(self.archive)

    def knows(self, case: Case) -> bool:
        """Say whether that is known."""
        return (case, "new") in self._prints

    def judge(self, case: Case) -> list[str]:
        """Say what is wrong after a run that came to no good end: nothing, or a sentence for each lie."""
        archive = self.identify(case, self.archive)
        marker = self.marker()
        backups = self.backups(case)
        wrong = self._common(case)
        if case.method.name == "move":
            places = self.places_of_change_set()
            if len(places) != 1:
                wrong.append(f"the change set is not in one place, but in {places}")
        if case.if_exists == "merge":
            if archive == "neither":
                wrong += self._half_merged(case)
            wrong += [f"{path!r} was deleted, and shows" for path in sorted(self.resurrected(case))]
        elif archive not in ("old", "new"):
            wrong.append(f"what is at the destination is {archive}")
        if marker == "new" and archive != "new":
            wrong.append(f"the marker is there, but the archive is {archive}")
        if marker == "old" and archive != "old":
            wrong.append(f"the old marker is still there, but the archive is {archive}")
        if case.if_exists == "backup" and archive == "new" and "old" not in backups:
            wrong.append(f"the old archive is not to be found: {os.listdir(self.out)}")
        return wrong

    def judge_complete(
        self, case: Case, log: str, *, before: str = "old", backups: Iterable[str] = ()
    ) -> list[str]:
        """Say what is wrong after a run that says that all is well.

        Args:
            case: what was run.
            log: what the run said: debris is allowed if it says so.
            before: what was at the destination before the run.
            backups: what was under backup names before the run, or was to get one.
        """
        wrong = self._common(case)
        wrong += [f"debris: {name}" for name in self.staging() if name not in log]
        if self.identify(case, self.archive) != "new":
            wrong.append(f"the archive is not whole and new: {self._difference(case)}")
        if self.marker() != "new":
            wrong.append("there is no marker")
        # An archive has one backup, though the run that made it may not have come to its end.
        kept = sorted({*backups, *([before] if case.if_exists == "backup" else [])})
        if self.backups(case) != kept:
            wrong.append(f"backups are {self.backups(case)} and should be {kept}")
        return wrong

    def identify(self, case: Case, path: Path) -> str:
        """Say which archive is at a path: "old", "new", "neither" or "nothing"."""
        found = fingerprint(path)
        if found is None:
            return "nothing"
        return next((which for which in ("old", "new") if self._prints[case, which] == found), "neither")

    def marker(self) -> str:
        """Say whose success marker is there: "old", "new" or "nobody's"."""
        try:
            return {OLD_MARKER: "old", b"": "new"}[self.success.read_bytes()]
        except FileNotFoundError:
            return "nobody's"

    def state(self, case: Case) -> tuple[str, str, tuple[str, ...]] | None:
        """Give all that there is, as a value; None: there is something half done or left behind."""
        archive = self.identify(case, self.archive)
        if self.staging() or archive not in ("old", "new"):
            return None
        return archive, self.marker(), tuple(self.backups(case))

    def names(self, case: Case, which: str) -> set[bytes]:
        """Give the paths in the "old" or the "new" archive of a case."""
        view = self._prints[case, which]
        assert isinstance(view, trees.View)
        return {*view.entries}

    def resurrected(self, case: Case) -> set[bytes]:
        """Give the paths that show over what lay below the container, and neither with the old archive nor the new one."""
        lower = trees.view(self.overlay.lowers[0])
        old, new = (self._prints[case, which] for which in ("old", "new"))
        views = [old, new, fingerprint(self.archive)]
        before, after, now = (
            stacking.shown([view, lower]) if isinstance(view, trees.View) else set() for view in views
        )
        return now - before - after

    def staging(self) -> list[str]:
        """Give the names of staging directories."""
        return [name for name in os.listdir(self.out) if ".archive_overlay-" in name]

    def places_of_change_set(self) -> list[Path]:
        """Give the places where the change set is, whole."""
        places = [self.overlay.upper, *self.out.iterdir(), *(path / "archive" for path in self.out.iterdir())]
        return [path for path in places if path.is_dir() and fingerprint(path) == self._change_set]

    def to_be_kept(self, case: Case) -> list[str]:
        """Say what another run has to leave under backup names, besides what it replaces itself."""
        noted: dict[str, list[int]] = {"keep": [], "passing": []}
        candidates = list(self.out.glob("archive.~*"))
        for staging in self.staging():
            for path in (self.out / staging).iterdir():
                kind, _, identity = path.name.partition("-")
                if identity:  # of an archive that passes, after the number of its backup name
                    noted[kind].append(int(identity.rpartition("-")[2].partition(".")[0]))
                elif (path.parent / f"keep-{path.stat().st_ino}").exists():
                    candidates.append(path)
        lost = set(noted["passing"]) - set(noted["keep"])
        return [self.identify(case, path) for path in candidates if path.stat().st_ino not in lost]

    def backups(self, case: Case) -> list[str]:
        """Say what is kept under backup names."""
        names = [name for name in os.listdir(self.out) if name.startswith("archive.~")]
        return sorted(self.identify(case, self.out / name) for name in names)

    def _common(self, case: Case) -> list[str]:
        wrong = []
        if case.method.name != "move" and changed(self.overlay.upper) != self._upper:
            wrong.append("the upperdir was touched")
        strangers = {
            name
            for name in os.listdir(self.out)
            if name != "archive" and not name.startswith(("archive.~", ".archive.archive_overlay-"))
        }
        if strangers:
            wrong.append(f"nobody knows {strangers}")
        return wrong

    def _half_merged(self, case: Case) -> list[str]:
        """Each entry is the old one or the new one, whole; only directories may be between the two."""
        old, new = (self._prints[case, which] for which in ("old", "new"))
        now = fingerprint(self.archive)
        assert isinstance(old, trees.View)
        assert isinstance(new, trees.View)
        if not isinstance(now, trees.View):
            return ["the destination is no directory any more"]
        wrong = []
        for path in sorted(old.entries.keys() | new.entries.keys() | now.entries.keys()):
            found = now.entries.get(path)
            if found in (old.entries.get(path), new.entries.get(path)):
                continue
            kinds = {tree.entries[path].kind for tree in (old, new) if path in tree.entries}
            if found and found.kind == "directory" and "directory" in kinds:
                continue
            wrong.append(f"{path!r} is neither old nor whole: {found}")
        return wrong

    def _difference(self, case: Case) -> object:
        new, now = self._prints[case, "new"], fingerprint(self.archive)
        if isinstance(new, trees.View) and isinstance(now, trees.View):
            return trees.differences(new, now)
        return now


def copy(tree: Path, to: Path) -> None:
    """Copy a tree with all that is in an upperdir."""
    subprocess.run(["cp", "--archive", tree, to], check=True)


def changed(tree: Path) -> dict[bytes, int]:
    """Give the time at which each entry was last changed: by whatever call, it shows there."""
    return {path: ctime for path, (_, ctime) in trees.traces(tree).items()}


def fingerprint(path: Path) -> Print:
    """Give what two archives are compared by; None: there is nothing."""
    try:
        status = path.lstat()
    except FileNotFoundError:
        return None
    if stat.S_ISDIR(status.st_mode):
        return trees.view(path, bookkeeping=_BOOKKEEPING)
    same = ("st_mode", "st_uid", "st_gid", "st_size")
    return [getattr(status, name) for name in same], path.read_bytes()


class Places:
    """As many places as there are processors for this worker, for as many runs at once."""

    def __init__(self, places: list[Place]) -> None:
        self.all = places
        self._free: SimpleQueue[Place] = SimpleQueue()
        for place in places:
            self._free.put(place)
        self._pool = ThreadPoolExecutor(len(places))

    def each(self, function: Callable[[Place, T], list[str]], points: Iterable[T]) -> list[str]:
        """Call a function for each point, in any place, and gather what it complains about."""

        def at(point: T) -> list[str]:
            place = self._free.get()
            try:
                for _ in range(ATTEMPTS - 1):
                    try:
                        return function(place, point)
                    except faults.DidNotStrikeError:
                        continue
                return function(place, point)
            except faults.DidNotStrikeError as error:
                return [str(error)]
            finally:
                self._free.put(place)

        # All of them end before anybody uses a place for something else, whatever one of them raises.
        runs = [self._pool.submit(at, point) for point in points]
        wait(runs)
        return [complaint for run in runs for complaint in run.result()]

    def close(self) -> None:
        """End the threads, and delete everything."""
        self._pool.shutdown()
        for place in self.all:
            place.overlay.close()


@pytest.fixture(scope="session")
def places(executable: Path) -> Iterator[Places]:
    """Give places on a file system in memory, where there is one that can hold upperdirs."""
    yield from make_places(executable)


def make_places(executable: Path, **what: Any) -> Iterator[Places]:
    """Make places, and remove them afterwards. See `Place`."""
    tools.need_root()
    tools.need("setfacl", "unshare")
    candidates = [Path("/dev/shm"), Path(tempfile.gettempdir()), Path("/var/tmp")]
    usable = [path for path in candidates if path.is_dir() and overlays.holds_upperdirs(path)]
    if not usable:
        tools.cannot_run("no file system here takes whiteouts and extended attributes")
    namespace = overlays.Namespace(rootless=False)
    made = []
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    for _ in range(max(1, (os.cpu_count() or 1) // workers)):
        directory = overlays.new_directory("archive_overlay-crash-", usable[0])
        made.append(Place(executable, directory, namespace, **what))
    places = Places(made)
    yield places
    places.close()
    namespace.close()


@pytest.fixture
def place(places: Places) -> Place:
    """Give one place."""
    return places.all[0]
