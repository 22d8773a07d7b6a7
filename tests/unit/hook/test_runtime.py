"""What the hook reads of a spec."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from archive_overlay.hook import runtime

if TYPE_CHECKING:
    from pathlib import Path

RANGES = [{"containerID": 0, "hostID": 1000, "size": 5}]


@pytest.mark.parametrize(
    ("linux", "expected"),
    [
        (None, {}),
        ({}, {}),
        ("text", {}),
        ({"uidMappings": None, "gidMappings": [], "namespaces": [{"type": "mount"}]}, {}),
        ({"uidMappings": RANGES, "namespaces": None}, {"uidMappings": RANGES}),
        ({"gidMappings": RANGES, "namespaces": "text"}, {"gidMappings": RANGES}),
        (
            {"uidMappings": RANGES, "gidMappings": RANGES, "namespaces": [{"type": "user"}]},
            {"uidMappings": RANGES, "gidMappings": RANGES, "path": None},
        ),
        ({"namespaces": [3, {"type": "user", "path": "/ns"}]}, {"path": "/ns"}),
    ],
)
def test_what_the_spec_says_of_a_user_namespace(tmp_path: Path, linux: object, expected: object) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"linux": linux}))

    assert runtime.read_spec(str(tmp_path)).user_namespace == expected


@pytest.mark.parametrize(
    ("more", "mappings", "is_id_mapped"),
    [
        ({}, {}, False),
        ({"uidMappings": None}, {}, False),
        ({"uidMappings": RANGES}, {"uidMappings": RANGES}, True),
        ({"options": ["rw", "idmap"]}, {}, True),
        ({"options": ["ridmap=uids=0-1-2"]}, {}, True),
        ({"options": ["idmapped", "x=idmap"]}, {}, False),
    ],
)
def test_what_the_spec_says_of_the_owners_of_a_mount(
    tmp_path: Path, more: dict[str, object], mappings: object, is_id_mapped: bool
) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"mounts": [{"destination": "/data", **more}]}))

    (mount,) = runtime.read_spec(str(tmp_path)).mounts

    assert (mount.mappings, mount.is_id_mapped) == (mappings, is_id_mapped)
