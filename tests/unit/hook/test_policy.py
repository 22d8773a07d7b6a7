"""Limits of what an archive may hold, to the byte, the entry and the bit."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from archive_overlay.errors import ArchiveError
from archive_overlay.hook.policy import Policy
from archive_overlay.overlay.change import DIRECTORY, FILE, TOP, WHITEOUT, Change, TreePath

if TYPE_CHECKING:
    from collections.abc import Iterator


class Opened:
    """Changes of a directory: files in it are open."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._fds: list[int] = []
        directory.chmod(0o6755)

    def top(self) -> Change:
        return Change(DIRECTORY, TOP, "", self._directory.stat(), {})

    def whiteout(self) -> Change:
        return Change(WHITEOUT, TOP, "gone", self._directory.stat(), {})

    def file(self, size: int, *, mode: int = 0o644, **attributes: bytes) -> Change:
        path = self._directory / str(len(self._fds))
        path.write_bytes(b"x" * size)
        path.chmod(mode)
        self._fds.append(os.open(path, os.O_RDONLY))
        named = {name.replace("_", "."): value for name, value in attributes.items()}
        return Change(FILE, TOP, path.name, os.fstat(self._fds[-1]), named, fd=self._fds[-1])

    def link(self, to: Change) -> Change:
        return Change(FILE, TOP, "link", os.fstat(to.fd), {}, link_to=TreePath(TOP, to.name))

    def close(self) -> None:
        for fd in self._fds:
            os.close(fd)


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Opened]:
    made = Opened(tmp_path)
    yield made
    made.close()


def applied(policy: Policy, *changes: Change) -> list[Change]:
    return list(policy.applied(iter(changes)))


def test_without_limits_all_passes_as_it_is(opened: Opened) -> None:
    changes = [opened.top(), opened.file(10, mode=0o6755, security_capability=b"all"), opened.whiteout()]

    assert applied(Policy(), *changes) == changes
    assert [change.mode for change in changes] == [0o6755, 0o6755, 0o6755]
    assert changes[1].attributes == {"security.capability": b"all"}


def test_nothing_that_gives_rights_passes(opened: Opened) -> None:
    changes = [
        opened.top(),
        opened.file(0, mode=0o6755, user_kept=b"yes", security_capability=b"all", user_too=b""),
        opened.file(0, mode=0o4711),
        opened.file(0, mode=0o2711),
        opened.file(0, mode=0o1777, user_kept=b"yes"),
    ]

    assert applied(Policy(setid=False), *changes) == changes
    assert [change.mode for change in changes] == [0o755, 0o755, 0o711, 0o711, 0o1777]
    assert [change.attributes for change in changes] == [
        {},
        {"user.kept": b"yes", "user.too": b""},
        {},
        {},
        {"user.kept": b"yes"},
    ]


def test_a_deletion_has_no_rights_to_give(opened: Opened) -> None:
    (change,) = applied(Policy(setid=False), opened.whiteout())

    assert change.mode == 0o6755


def test_entries_are_counted_with_deletions_but_not_the_top(opened: Opened) -> None:
    file = opened.file(0)
    changes = [opened.top(), file, opened.link(file), opened.whiteout()]

    assert applied(Policy(max_entries=3), *changes) == changes
    with pytest.raises(
        ArchiveError, match="the change set has more than 2 entries, the most that is allowed"
    ):
        applied(Policy(max_entries=2), *changes)


def test_no_entries_may_be_allowed(opened: Opened) -> None:
    assert applied(Policy(max_entries=0), change := opened.top()) == [change]
    with pytest.raises(ArchiveError, match="more than 0 entries"):
        applied(Policy(max_entries=0), opened.top(), opened.whiteout())


def test_a_limit_is_met_before_what_is_beyond_it_is_passed_on(opened: Opened) -> None:
    first, second = opened.file(1), opened.file(1)
    stream = Policy(max_entries=1).applied(iter([first, second]))

    assert next(stream) is first
    with pytest.raises(ArchiveError):
        next(stream)
