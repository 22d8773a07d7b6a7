"""What the spec, the mount and its program say of owners, and what that makes of a number on disk."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from archive_overlay.errors import ArchiveError
from archive_overlay.overlay import mappings
from archive_overlay.overlay.dialect import NATIVE
from archive_overlay.overlay.mount import Mount, OverlayMount
from archive_overlay.overlay.options import from_command_line, from_spec
from archive_overlay.overlay.owners import OwnerMap

if TYPE_CHECKING:
    from collections.abc import Sequence

    from archive_overlay.overlay.container_owners import ContainerOwners

OVERLAY = OverlayMount(upper="/u", lowers=("/l",), dialect=NATIVE)
LARGEST = 2**32 - 1

# As podman has it in the spec of a rootless container with --userns=keep-id, of user 1000.
KEEP_ID = [(0, 1, 1000), (1000, 0, 1), (1001, 1001, 64536)]


def said(*ranges: tuple[object, object, object], kind: str = "") -> dict[str, object]:
    """Give mappings as a spec has them: of users and groups, or of one of them."""
    entries = [{"containerID": inside, "hostID": outside, "size": size} for inside, outside, size in ranges]
    return dict.fromkeys([kind] if kind else ["uidMappings", "gidMappings"], entries)


def mount(*options: str, **mapped: object) -> Mount:
    return Mount(destination="/data", type="overlay", source="/m", options=options, mappings=mapped)


def find(
    user_namespace: dict[str, object], mount: Mount | None = None, options: Sequence[str] = ()
) -> ContainerOwners | None:
    overlay = from_command_line([",".join(["upperdir=/u", *options])], "x") if options else OVERLAY
    return mappings.find(user_namespace, mount, overlay)


def users(owners: ContainerOwners | None, *numbers: int) -> list[int | None]:
    assert owners
    return [owners.files.user(number) for number in numbers]


def test_the_numbers_outside_become_those_inside() -> None:
    owners = find(said((0, 100_000, 65536)))

    assert users(owners, 100_000, 100_007, 165_535) == [0, 7, 65535]
    assert users(owners, 0, 99_999, 165_536, 65534) == [None] * 4
    assert owners
    assert owners.files.group(100_007) == 7
    assert owners.attributes.user(100_007) == 7


def test_those_of_keep_id_go_around() -> None:
    assert users(find(said(*KEEP_ID)), 0, 1, 1000, 1001, 65536) == [1000, 0, 999, 1001, 65536]


def test_groups_may_have_others_than_users() -> None:
    owners = find({**said((0, 5, 10), kind="uidMappings"), **said((0, 7, 10), kind="gidMappings")})

    assert owners
    assert (owners.files.user(6), owners.files.group(8)) == (1, 1)


def test_of_users_alone_groups_stay_what_they_are() -> None:
    owners = find(said((0, 5, 10), kind="uidMappings"))

    assert owners
    assert (owners.files.user(6), owners.files.group(8)) == (1, 8)


@pytest.mark.parametrize(
    "user_namespace",
    [{}, said((0, 0, LARGEST)), said((0, 0, 1000)), {"path": "/proc/self/ns/user"}],
    ids=["none", "all", "some", "own"],
)
def test_where_the_container_counts_as_the_hook_there_is_nothing_to_do(
    user_namespace: dict[str, object],
) -> None:
    assert find(user_namespace) is None


@pytest.mark.parametrize("path", [None, "", "/proc/self/ns/mnt", "/nowhere", 7, "\0"])
def test_a_namespace_without_mappings_fails_the_request(path: object) -> None:
    with pytest.raises(ArchiveError, match="the spec has no uidMappings for the container's user namespace"):
        find({"path": path})


@pytest.mark.parametrize(
    "entry",
    [
        None,
        7,
        {},
        {"containerID": 0, "hostID": 0},
        {"containerID": 0, "hostID": "1", "size": 1},
        {"containerID": True, "hostID": 1, "size": 1},
        {"containerID": 0, "hostID": -1, "size": 1},
        {"containerID": 0, "hostID": 1.5, "size": 1},
        {"containerID": 0, "hostID": 1, "size": LARGEST + 1},
    ],
)
def test_malformed_mappings_are_an_error(entry: object) -> None:
    with pytest.raises(ArchiveError, match="uidMappings of linux in the spec are malformed"):
        find({"uidMappings": [entry]})


@pytest.mark.parametrize("listed", ["text", {"containerID": 0}, 7])
def test_mappings_are_a_list(listed: object) -> None:
    with pytest.raises(ArchiveError, match="malformed"):
        find({"gidMappings": listed})


# What the mount maps


@pytest.mark.parametrize("option", ["idmap", "ridmap"])
def test_a_mount_with_the_container_s_own_map_has_its_numbers_on_disk(option: str) -> None:
    assert find(said((0, 100_000, 65536)), mount("rw", option)) is None


def test_a_mount_without_one_does_not() -> None:
    assert users(find(said((0, 100_000, 65536)), mount("rw")), 100_000) == [0]


def test_a_mount_may_have_a_map_of_its_own() -> None:
    owners = find(said((0, 100_000, 65536)), mount("idmap", **said((50, 100_000, 10))))

    assert users(owners, 49, 50, 59, 60, 100_000) == [None, 0, 9, None, None]


@pytest.mark.parametrize(
    ("option", "expected"),
    [
        ("idmap=uids=50-100000-10;gids=50-100000-10", [0, 9]),
        ("ridmap=uids=50-100000-5#55-100005-5;gids=0-0-1", [0, 9]),
        ("idmap=uids=@50-3-10;gids=@50-3-10", [3, 12]),
    ],
)
def test_crun_is_told_so_by_an_option(option: str, expected: list[int]) -> None:
    assert users(find(said((0, 100_000, 65536)), mount(option)), 50, 59) == expected


@pytest.mark.parametrize(
    "value", ["uids=1-2", "uids=1-2-x", "what=0-0-1", "x", "uids=1-2-99999999999", "uids=@0-0-1;gids=0-0-1"]
)
def test_what_is_not_understood_is_an_error(value: str) -> None:
    with pytest.raises(ArchiveError, match=r"idmap=|malformed"):
        find({}, mount(f"idmap={value}"))


# What fuse-overlayfs maps


def test_what_the_program_maps_is_taken_back_by_the_container() -> None:
    mapping = ["uidmapping=:0:1000:2000", "gidmapping=0:1000:2000"]

    owners = find(said((0, 1000, 2000)), None, mapping)

    # Files have the container's numbers on disk. ACLs have those of the host, for the program does not look at them.
    assert users(owners, 0, 7) == [0, 7]
    assert owners
    assert owners.attributes.user(1007) == 7


def test_the_program_may_map_something_else() -> None:
    owners = find(said((0, 1000, 2000)), None, ["uidmapping=0:1500:10:100:1700:10"])

    assert users(owners, 3, 105, 50) == [503, 705, None]


def test_the_program_may_map_for_a_container_that_does_not() -> None:
    owners = find({}, None, ["uidmapping=0:1000:10"])

    assert users(owners, 3) == [1003]
    assert owners
    assert owners.attributes.changes_nothing


@pytest.mark.parametrize("value", ["", "1:2", "0:1:x", "0:-1:5", "0:1:99999999999", "::0:1:2"])
def test_a_mapping_that_is_none_is_an_error(value: str) -> None:
    with pytest.raises(ArchiveError, match="uidmapping="):
        from_command_line([f"upperdir=/u,uidmapping={value}"], "x")


def test_the_kernel_s_overlays_have_no_such_option() -> None:
    assert from_spec(["upperdir=/u", "uidmapping=0:1:2"], "x").program_owners is None


# Maps


def owner_map(*ranges: tuple[int, int, int]) -> OwnerMap:
    return OwnerMap(users=ranges, groups=())


@pytest.mark.parametrize("number", range(60))
def test_two_maps_are_one(number: int) -> None:
    first = owner_map((0, 20, 10), (10, 5, 10), (25, 40, 20))
    second = owner_map((5, 100, 12), (22, 0, 3), (24, 200, 40))

    between: Any = first.user(number)

    expected = None if between is None else second.user(between)
    assert first.then(second).user(number) == expected


@pytest.mark.parametrize("number", range(60))
def test_the_inverse_leads_back(number: int) -> None:
    there = owner_map((0, 20, 10), (10, 5, 10), (25, 40, 20))

    after = there.user(number)

    assert after is None or there.inverse.user(after) == number
