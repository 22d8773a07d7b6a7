"""How many processors the compression uses, for each limit that a process may have.

Control groups are files here: in a mount namespace of their own, where the kernel's would be.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from archive_overlay.system.processors import processors
from tests.support import overlays, tools

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

GROUPS = Path("/sys/fs/cgroup")
# What there is without a quota. A limit that is higher shows nothing, so where there is one processor
# these tests see no more than that there is never less.
ALL = len(os.sched_getaffinity(0))

V2 = "0::/user.slice/hook\n"
V1 = "12:memory:/hook\n5:cpu,cpuacct:/user.slice/hook\n1:name=systemd:/\n0::/\n"
V1_ALONE = "5:cpu:/user.slice/hook\n"


def test_where_nobody_says_on_which_it_may_run_all_count(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(_: int) -> set[int]:
        raise PermissionError

    monkeypatch.setattr(os, "sched_getaffinity", refused)
    monkeypatch.setattr("archive_overlay.system.processors._groups", list)

    assert processors() == os.cpu_count()


@pytest.fixture
def namespace() -> Iterator[overlays.Namespace]:
    """Give a mount namespace for one test."""
    tools.need("unshare")
    made = overlays.Namespace(rootless=os.geteuid() != 0)
    yield made
    made.close()


def seen(
    namespace: overlays.Namespace, groups: str, files: Mapping[str, str], affinity: set[int] | None = None
) -> int:
    """Count processors.

    Args:
        namespace: nothing else is in it.
        groups: the contents of /proc/self/cgroup.
        files: contents of the control groups' files, by their path.
        affinity: the processors that the process may run on.
    """

    def count() -> int:
        overlays.mount_tmpfs(GROUPS, "mode=755")
        for name, contents in files.items():
            (GROUPS / name).parent.mkdir(parents=True, exist_ok=True)
            (GROUPS / name).write_text(contents)
        (GROUPS / "own").write_text(groups)
        overlays.bind(GROUPS / "own", Path("/proc/self/cgroup").resolve())
        if affinity:
            os.sched_setaffinity(0, affinity)
        return processors()

    return namespace.apart(count)


def v1(quota: str, period: str = "100000", path: str = "user.slice/hook") -> dict[str, str]:
    return {f"cpu/{path}/cpu.cfs_quota_us": f"{quota}\n", f"cpu/{path}/cpu.cfs_period_us": f"{period}\n"}


def v2(contents: str, path: str = "user.slice/hook") -> dict[str, str]:
    return {f"{path}/cpu.max": f"{contents}\n"}


def test_without_a_limit_it_is_all_that_the_process_may_run_on(namespace: overlays.Namespace) -> None:
    assert seen(namespace, V2, {}) == ALL


def test_the_affinity_of_the_process_counts(namespace: overlays.Namespace) -> None:
    assert seen(namespace, V2, {}, affinity={min(os.sched_getaffinity(0))}) == 1


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (v2("100000 100000"), 1),
        (v2("50000 50000"), 1),
        (v2("10000 100000"), 1),  # never less than one
        (v2("1000 1000000"), 1),
        (v2("200000 100000"), 2),
        (v2("175000 100000"), 2),  # what is nearer
        (v2("125000 100000"), 1),
        (v2("6400000 100000"), ALL),
        (v2("max 100000"), ALL),
        (v2("100000 100000", path="user.slice"), 1),
        ({**v2("max 100000"), **v2("100000 100000", path="user.slice")}, 1),
        ({**v2("100000 100000"), **v2("200000 100000", path="user.slice")}, 1),
    ],
)
def test_the_quota_of_a_control_group_and_of_those_above_it_counts(
    namespace: overlays.Namespace, files: Mapping[str, str], expected: int
) -> None:
    assert seen(namespace, V2, files) == min(expected, ALL)


@pytest.mark.parametrize("groups", [V1, V1_ALONE])
@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (v1("100000"), 1),
        (v1("200000"), 2),
        (v1("20000"), 1),
        (v1("50000", period="50000"), 1),
        (v1("-1"), ALL),
        (v1("100000", path="user.slice"), 1),
        ({**v1("-1"), **v1("100000", path="user.slice")}, 1),
        ({**v1("-1"), **v1("-1", path="user.slice"), **v1("100000", path=".")}, 1),
    ],
)
def test_the_same_in_version_1(
    namespace: overlays.Namespace, groups: str, files: Mapping[str, str], expected: int
) -> None:
    assert seen(namespace, groups, files) == min(expected, ALL)


@pytest.mark.parametrize(
    ("groups", "files"),
    [
        ("", {}),
        ("nonsense\n::\n\n", {}),
        ("0::\n", {}),
        ("0::/../../elsewhere\n", {}),
        (V2, v2("")),
        (V2, v2("nonsense")),
        (V2, v2("100000 0")),
        (V2, v2("0 100000")),
        (V2, v2("100000 -100000")),
        (V1, v1("100000", period="0")),
        (V1, v1("")),
        (V1, v1("nonsense")),
    ],
)
def test_what_makes_no_sense_is_no_limit(
    namespace: overlays.Namespace, groups: str, files: Mapping[str, str]
) -> None:
    assert seen(namespace, groups, files) == ALL


def test_control_groups_of_other_controllers_say_nothing(namespace: overlays.Namespace) -> None:
    groups = "12:memory:/user.slice/hook\n3:cpuset:/user.slice/hook\n2:cpuacct:/user.slice/hook\n"

    assert seen(namespace, groups, v1("100000")) == ALL
