"""Where a stop's revision goes, by the tag that it got."""

from __future__ import annotations

import pytest

from archive_overlay.layout.remotes import PUSH_TO
from archive_overlay.log import Log
from archive_overlay.settings import TransferSettings
from archive_overlay.transfer.push_at_stop import PushAtStop

SETTINGS = TransferSettings(skopeo="/bin/true", push_prefixes=("registry.example",))


@pytest.mark.parametrize(
    ("tag", "remote"),
    [
        ("main", "release"),
        ("main-0123456789ab", "release-0123456789ab"),
        ("main-0123456789ab.2", "release-0123456789ab.2"),
        ("main@x+y", "release-x-y"),
    ],
)
def test_a_branch_goes_beside_what_was_asked_for(tag: str, remote: str) -> None:
    pushing = PushAtStop(
        "data",
        "docker://registry.example/team/data:release",
        "main",
        if_moved="branch",
        settings=SETTINGS,
        log=Log("panic", []),
    )

    assert pushing.complaint == ""
    assert pushing.annotations(tag, added=True) == {PUSH_TO: f"docker://registry.example/team/data:{remote}"}


def test_a_tag_that_registries_do_not_take_stops_no_archive() -> None:
    pushing = PushAtStop(
        "data",
        f"docker://registry.example/team/data:{'x' * 120}",
        "main",
        if_moved="branch",
        settings=SETTINGS,
        log=Log("panic", []),
    )

    assert pushing.annotations("main-0123456789ab", added=True) == {}
