"""Several runs to one destination at once, runs after the upperdir is gone, and staging of runs that live."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.crash.conftest import CASES, Case, Place, changed, copy, fingerprint
from tests.support import faults, hooks, trees

if TYPE_CHECKING:
    from tests.crash.conftest import Print

each_case = pytest.mark.parametrize("case", CASES)

RUNS = 8
ROUNDS = 3


class Crowd:
    """Change sets of several containers that are all saved to one destination."""

    def __init__(self, place: Place, case: Case) -> None:
        self.place = place
        self.case = case
        self.directory = place.scratch / "crowd"
        shutil.rmtree(self.directory, ignore_errors=True)
        self.directory.mkdir()
        self._hooks = [self._hook(number, f"scratch{number}") for number in range(RUNS)]
        self.archives = [self._print(number) for number in range(RUNS)]

    def lay_out(self) -> None:
        """Put an old archive at the destination, and each change set at its place."""
        for number in range(RUNS):
            self._make_upper(number)
        self.place.lay_out(self.case)

    def run(self) -> list[tuple[int, str]]:
        """Run the hooks of all at once, and give their exit statuses and logs."""
        running = [faults.begin(hook) for hook in self._hooks]
        # All have started, and wait for the state.
        for run, hook in zip(running, self._hooks):
            run.send(hook.bundle.state())
        done = []
        for run in running:
            status = run.wait()
            assert status is not None
            done.append((status, run.stderr.decode()))
            run.close()
        return done

    def whose(self, path: Path) -> str:
        """Say whose archive is at a path."""
        found = fingerprint(path)
        names = [f"of run {number}" for number, archive in enumerate(self.archives) if archive == found]
        return names[0] if names else self.place.identify(self.case, path)

    def _upper(self, number: int) -> Path:
        return self.directory / f"upper{number}"

    def _make_upper(self, number: int) -> None:
        upper = self._upper(number)
        if upper.exists():
            shutil.rmtree(upper)
        copy(self.place.spare_upper, upper)
        for name in ("file", "big", "opaque/new"):
            # As long as before, but each character says whose it is.
            length = (upper / name).stat().st_size
            (upper / name).write_bytes(b"%d" % number * length)
            os.utime(upper / name, ns=(0, number))
        for name in (".", "opaque"):
            os.utime(upper / name, ns=(0, 0))

    def _hook(self, number: int, scratch: str, **keys: object) -> faults.Hook:
        hook = self.place.hook(self.case, **keys)
        upper = self._upper(number)
        directory = self.directory / scratch
        directory.mkdir()
        mount = hooks.overlay_mount("/data", upper=upper, lowers=self.place.overlay.lowers)
        bundle = hooks.Bundle(
            directory / "bundle", mounts=[mount], annotations=hook.bundle.spec["annotations"]
        )
        return faults.Hook(hook.executable, bundle, hook.home, directory, hook.arguments)

    def _print(self, number: int) -> Print:
        self._make_upper(number)
        alone = self.directory / f"alone{number}"
        result = self.place.run(
            self._hook(number, f"scratch-alone{number}", archive_to=alone, success=f"{alone}.success")
        )
        assert result.status == 0, result.stderr
        return fingerprint(alone)


@each_case
def test_of_runs_at_once_each_archive_is_whole(place: Place, case: Case) -> None:
    place.learn(case)
    crowd = Crowd(place, case)
    everybody = {f"of run {number}" for number in range(RUNS)}

    for _ in range(ROUNDS):
        crowd.lay_out()
        outcomes = crowd.run()

        assert not [log for status, log in outcomes if status != 0]
        assert place.marker() == "new"
        names = os.listdir(place.out)
        found = {crowd.whose(place.out / name) for name in names}
        if case.if_exists == "backup":
            assert found == {*everybody, "old"}, names
            assert len(names) == RUNS + 1
        elif case.if_exists == "replace":
            assert found <= everybody
            assert names == ["archive"]
        else:
            assert names == ["archive"]
            expect_each_entry_of_one_run(crowd)


def expect_each_entry_of_one_run(crowd: Crowd) -> None:
    merged = trees.view(crowd.place.archive)
    all_of_them = [archive for archive in crowd.archives if isinstance(archive, trees.View)]
    assert len(all_of_them) == RUNS
    for path in all_of_them[0].entries:
        found = merged.entries[path]
        if found.kind == "directory":
            continue
        assert found in [archive.entries[path] for archive in all_of_them], path


@pytest.fixture(params=[case for case in CASES if case.method.name != "move"], ids=str)
def case(request: pytest.FixtureRequest) -> Case:
    """Give each case in which the upperdir is there for a second run."""
    found: Case = request.param
    return found


def test_staging_of_a_run_that_lives_is_left_alone(place: Place, case: Case) -> None:
    place.learn(case)
    place.lay_out(case)
    stopped = faults.Stopped(place.hook(case), "fsync")
    staging = place.staging()

    result = place.run(place.hook(case))
    left = place.staging()
    status = stopped.go_on()

    assert result.status == 0, result.stderr
    assert (len(staging), left) == (1, staging)
    assert status == 0
    backups = ["new", "old"] if case.if_exists == "backup" else []
    assert (place.staging(), place.state(case)) == ([], ("new", "new", tuple(backups)))


def test_staging_of_a_run_that_was_killed_is_removed(place: Place, case: Case) -> None:
    place.learn(case)
    place.lay_out(case)
    stopped = faults.Stopped(place.hook(case), "fsync")
    staging = place.staging()
    stopped.kill()

    result = place.run(place.hook(case), "--log-level", "debug")

    assert len(staging) == 1
    assert staging[0] in result.stderr, "it is told"
    assert not place.judge_complete(case, "")


def test_staging_for_another_destination_is_left_alone(place: Place, case: Case) -> None:
    place.learn(case)
    place.lay_out(case)
    stopped = faults.Stopped(place.hook(case), "fsync")
    stopped.kill()
    staging = place.staging()

    result = place.run(place.hook(case, archive_to=place.out / "archive2", success=place.out / "success2"))

    assert result.status == 0, result.stderr
    assert (len(staging), place.staging()) == (1, staging)


@each_case
def test_a_run_after_the_upperdir_is_gone_touches_nothing(place: Place, case: Case) -> None:
    place.lay_out(case)
    shutil.rmtree(place.overlay.upper)
    before = changed(place.out), place.success.stat()

    result = place.run(place.hook(case))

    assert result.status == 1
    assert str(place.overlay.upper) in result.only_error()
    assert (changed(place.out), place.success.stat()) == before
    assert place.marker() == "old"


@each_case
def test_names_need_not_be_exchangeable(place: Place, case: Case) -> None:
    place.learn(case)
    place.lay_out(case)

    outcome, made = faults.refuse(place.hook(case), {"renameat2": "EINVAL"})

    assert outcome.status == 0, outcome.stderr
    assert made or case.if_exists != "backup"
    assert not place.judge_complete(case, "")
