"""What counts as written where the kernel refuses to say so."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

import pytest

from archive_overlay.system import kernel
from archive_overlay.system.flush import ToDisk

if TYPE_CHECKING:
    from typing import Callable

NO_SUCH_CALL = [errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.EPERM]
each_refusal = pytest.mark.parametrize("refusal", NO_SUCH_CALL, ids=errno.errorcode.get)
each_failure = pytest.mark.parametrize("failure", [errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.EROFS])


class Calls:
    """What is called in turn, and what fails with which error."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.made: list[str] = []
        self.failing: dict[str, int] = {}
        self.said: list[str] = []
        monkeypatch.setattr(os, "fsync", self._call("fsync"))
        monkeypatch.setattr(os, "sync", self._call("sync"))
        monkeypatch.setattr(kernel, "sync_file_system", self._call("syncfs"))
        self.flush = ToDisk(self.said.append)

    def _call(self, name: str) -> Callable[..., None]:
        def call(*_: int) -> None:
            self.made.append(name)
            if name in self.failing:
                number = self.failing[name]
                raise OSError(number, os.strerror(number))

        return call


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    return Calls(monkeypatch)


def test_a_file_and_a_file_system_are_flushed_by_one_call_each(calls: Calls) -> None:
    calls.flush.file(7)
    calls.flush.file_system(7)

    assert (calls.made, calls.said) == (["fsync", "syncfs"], [])


@each_refusal
def test_what_cannot_be_flushed_alone_is_flushed_with_its_file_system(calls: Calls, refusal: int) -> None:
    calls.failing = {"fsync": refusal}

    calls.flush.file(7)

    assert (calls.made, calls.said) == (["fsync", "syncfs"], [])


@each_refusal
def test_where_nothing_says_so_everything_is_flushed_and_that_is_said_once(
    calls: Calls, refusal: int
) -> None:
    calls.failing = {"fsync": refusal, "syncfs": refusal}

    calls.flush.file(7)
    calls.flush.file_system(7)

    assert calls.made == ["fsync", "syncfs", "sync", "syncfs", "sync"]
    (warning,) = calls.said
    assert f"syncfs failed ({os.strerror(refusal)})" in warning


@each_failure
@pytest.mark.parametrize("call", ["fsync", "syncfs"])
def test_what_could_not_be_written_is_an_error(calls: Calls, call: str, failure: int) -> None:
    calls.failing = {"fsync": failure if call == "fsync" else errno.EINVAL, "syncfs": failure}

    with pytest.raises(OSError, match=os.strerror(failure)):
        calls.flush.file(7)

    assert "sync" not in calls.made
    assert calls.said == []
