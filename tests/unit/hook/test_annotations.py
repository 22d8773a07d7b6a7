"""What the user asks for, and what becomes of what cannot be asked for."""

from __future__ import annotations

import pytest

from archive_overlay.errors import ArchiveError
from archive_overlay.hook.annotations import ArchiveRequest, Context, group_by_name, parse_request, timestamp
from archive_overlay.keys import KEYS, PREFIX
from archive_overlay.log import Log
from archive_overlay.methods import METHODS

CONTEXT = Context(id="c0ffee", timestamp="20261121T205533.123456Z")


class Kept:
    """A log sink that keeps what it is given."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, str]] = []

    def write(self, level: str, message: str) -> None:
        self.lines.append((level, message))


@pytest.fixture
def kept() -> Kept:
    return Kept()


@pytest.fixture
def log(kept: Kept) -> Log:
    return Log("trace", [kept])


def keys(**values: object) -> dict[str, object]:
    return {"mount-point": "/data", "archive-to": "/srv/data"} | {
        key.replace("_", "-"): value for key, value in values.items()
    }


def request(log: Log, **values: object) -> ArchiveRequest:
    return parse_request("data", keys(**values), CONTEXT, log)


def test_a_pair_is_a_request_with_the_defaults_of_2_0_4(log: Log, kept: Kept) -> None:
    annotations = {
        PREFIX + "data.mount-point": "/data",
        PREFIX + "data.archive-to": "/srv/data",
        "other": "x",
    }
    ((name, values),) = group_by_name(annotations, log)
    made = parse_request(name, values, CONTEXT, log)
    assert (made.name, made.mount_point, made.archive_to) == ("data", "/data", "/srv/data")
    assert (made.method.name, made.if_exists, made.success, made.owner) == ("copy", "merge", None, None)
    assert kept.lines == []


@pytest.mark.parametrize(
    ("annotation", "said"),
    [
        ("data", "must be"),
        ("data.more.mount-point", "no dot in NAME"),
        (".mount-point", "must be"),
        ("/mount-point", "must be"),
        ("data.", "must be"),
        ("data/", "must be"),
        ("data/colour", "no key colour"),
        ("data.more/mount-point", "no key more/mount-point"),
        ("data.colour", "no key colour"),
    ],
)
def test_what_is_no_key_is_ignored_with_a_warning(log: Log, kept: Kept, annotation: str, said: str) -> None:
    annotations = {PREFIX + annotation: "x", PREFIX + "ok.mount-point": "/a", PREFIX + "ok.archive-to": "/b"}
    assert [name for name, _ in group_by_name(annotations, log)] == ["ok"]
    ((level, message),) = kept.lines
    assert level == "warning"
    assert annotation in message
    assert said in message


@pytest.mark.parametrize("separator", [".", "/"])
@pytest.mark.parametrize("other", [".", "/"])
def test_a_slash_in_place_of_the_dot_before_the_key_means_the_same(
    log: Log, kept: Kept, separator: str, other: str
) -> None:
    annotations = {
        f"{PREFIX}data{separator}mount-point": "/data",
        f"{PREFIX}data{other}archive-to": "/srv/data",
        f"{PREFIX}da/ta{separator}mount-point": "/other",
        f"{PREFIX}da/ta{other}archive-to": "/srv/other",
    }

    assert list(group_by_name(annotations, log)) == [
        ("data", {"mount-point": "/data", "archive-to": "/srv/data"}),
        ("da/ta", {"mount-point": "/other", "archive-to": "/srv/other"}),
    ]
    assert kept.lines == []


@pytest.mark.parametrize(("one", "other"), [("/a", "/a"), ("", "/a"), ("/a", "")])
@pytest.mark.parametrize("separators", ["./", "/."])
def test_both_forms_of_a_key_may_say_the_same(
    log: Log, kept: Kept, separators: str, one: str, other: str
) -> None:
    annotations = {f"{PREFIX}data.{key}": value for key, value in keys().items()} | {
        f"{PREFIX}data{separator}success": value for separator, value in zip(separators, (one, other))
    }

    ((name, values),) = group_by_name(annotations, log)

    assert parse_request(name, values, CONTEXT, log).success == "/a"
    assert kept.lines == []


@pytest.mark.parametrize("key", ["mount-point", "archive-to", "method"])
@pytest.mark.parametrize("separators", ["./", "/."])
def test_both_forms_of_a_key_may_not_say_different_things(log: Log, separators: str, key: str) -> None:
    annotations = {f"{PREFIX}data.{other}": value for other, value in keys().items() if other != key} | {
        f"{PREFIX}data{separator}{key}": value for separator, value in zip(separators, ("/a", "/b"))
    }

    ((name, values),) = group_by_name(annotations, log)

    with pytest.raises(ArchiveError) as caught:
        parse_request(name, values, CONTEXT, log)
    first, second = (f"{PREFIX}data{separator}{key}" for separator in separators)
    assert str(caught.value) == (
        f"{key} is not clear: {first} says '/a' and {second} says '/b'; leave one of them out"
    )


@pytest.mark.parametrize("present", ["mount-point", "archive-to"])
def test_half_a_pair_is_ignored_with_a_warning(log: Log, kept: Kept, present: str) -> None:
    missing = {"mount-point": "archive-to", "archive-to": "mount-point"}[present]
    for pair in ({f"d.{present}": "/x"}, {f"d.{present}": "/x", f"d.{missing}": ""}):
        prefixed = {PREFIX + key: value for key, value in pair.items()}
        assert list(group_by_name(prefixed, log)) == []
        assert kept.lines.pop() == ("warning", f"archive d is ignored: it has no {missing} annotation")


@pytest.mark.parametrize(
    ("value", "owner"),
    [("2000", (2000, 0)), ("2000:3000", (2000, 3000)), ("0:0", (0, 0)), ("4294967294", (4294967294, 0))],
)
def test_an_owner_is_a_uid_or_a_uid_and_a_gid(log: Log, value: str, owner: tuple[int, int]) -> None:
    assert request(log, method="tar.gz", tar_content_owner=value).owner == owner


@pytest.mark.parametrize(
    "value",
    ["root", "-1", "1:-1", "1:2:3", "1:", ":1", "0x10", "1.5", " 1", "²", "٣", "4294967295", "9" * 5000],
)
def test_an_invalid_owner_is_ignored_with_a_warning(log: Log, kept: Kept, value: str) -> None:
    assert request(log, method="tar.gz", tar_content_owner=value).owner is None
    ((level, message),) = kept.lines
    assert level == "warning"
    assert "tar-content-owner" in message


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("key", [key for key in KEYS if key not in ("mount-point", "archive-to")])
def test_an_empty_value_is_none(log: Log, kept: Kept, key: str, method: str) -> None:
    values = {"method": method} if key != "method" else {}
    without = request(log, **values)
    made = request(log, **values, **{key.replace("-", "_"): ""})
    assert made == without
    assert kept.lines == []


@pytest.mark.parametrize(
    "key",
    [
        key
        for key in KEYS
        if key not in ("tar-content-owner", "parent", "keep", "message", "load-as", "push-to")
    ],
)
def test_a_space_is_a_value(log: Log, key: str) -> None:
    method = "oci" if key in METHODS["oci"].keys else "tar.gz"
    values: dict[str, object] = {"method": method, key.replace("-", "_"): " "}
    if key == "mount-point":
        assert request(log, **values).mount_point == "/ "
        return
    with pytest.raises(ArchiveError, match="' '"):
        request(log, **values)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"method": "zip"}, "known are copy, move, tar, tar.gz, tar.zst, oci"),
        ({"if_exists": "overwrite"}, "known are replace, merge, backup, fail"),
        ({"if_exists": "merge", "method": "tar.gz"}, "not possible with method tar.gz"),
        ({"archive_to": "srv/data"}, "relative path"),
        ({"success": "done"}, "relative path"),
        ({"archive_to": "oci:/srv/data:main"}, "write '/srv/data:main', and method=oci"),
        ({"archive_to": "docker://a.b/c:d"}, "in the annotation push-to"),
        ({"archive_to": "containers-storage:data"}, "in the annotation load-as"),
        ({"archive_to": "/srv/\0"}, "cannot be a path"),
        ({"archive_to": "/srv/\ud800"}, "cannot be a path"),
        ({"archive_to": 7}, "archive-to must be a string"),
        ({"method": None}, "method must be a string"),
        ({"method": "tar.gz", "compression_level": "10"}, "possible are 1 to 9"),
        ({"method": "tar.zst", "compression_level": "0"}, "possible are 1 to 19"),
        ({"method": "tar.gz", "compression_level": "²"}, "possible are 1 to 9"),
        ({"method": "tar", "compression_level": "6"}, "not possible without compression"),
        ({"method": "tar", "whiteouts": "docker"}, "known are overlay, oci"),
        ({"owners": "root"}, "known are container, host"),
        ({"method": "move", "if_exists": "merge"}, "possible are backup, replace, fail"),
        ({"method": "oci", "max_layers": "1"}, "possible are 2 to 500"),
        ({"method": "oci", "max_layers": "501"}, "possible are 2 to 500"),
        ({"method": "oci", "max_layers": "²"}, "possible are 2 to 500"),
        ({"method": "oci", "if_moved": "rebase"}, "known are branch, fail, append"),
        ({"method": "oci", "base": "exclude"}, "known are include"),
        ({"method": "oci", "message": "x" * 1001}, "at most 1000"),
        ({"method": "oci", "message": "one\ntwo"}, "one line"),
        ({"method": "oci", "message": "\033[2J"}, "one line"),
        ({"method": "oci", "message": "one\u2028two"}, "one line"),
        ({"method": "oci", "message": "\ud800"}, "one line"),
    ],
)
def test_a_value_that_cannot_be_used_fails_the_request(
    log: Log, values: dict[str, object], said: str
) -> None:
    with pytest.raises(ArchiveError, match=said.replace(".", r"\.")):
        request(log, **values)


def test_what_is_of_a_history_is_read_for_method_oci(log: Log, kept: Kept) -> None:
    made = request(log, method="oci")
    assert (made.max_layers, made.if_moved, made.base, made.keep, made.message) == (100, "branch", "", "", "")

    made = request(
        log,
        method="oci",
        max_layers="500",
        if_moved="fail",
        base="include",
        keep="last=3",
        message="before the 2.0 upgrade: schönes Wetter",
        parent="main@3",
    )

    assert (made.max_layers, made.if_moved, made.base) == (500, "fail", "include")
    assert (made.keep, made.message) == ("last=3", "before the 2.0 upgrade: schönes Wetter")
    assert made.parent == "main@3"
    assert kept.lines == []


@pytest.mark.parametrize("key", ["parent", "max-layers", "if-moved", "base", "keep", "message"])
def test_what_is_of_histories_is_ignored_with_a_warning_by_the_others(log: Log, kept: Kept, key: str) -> None:
    assert request(log, method="tar", **{key.replace("-", "_"): "1"}) == request(log, method="tar")
    assert kept.lines == [
        ("warning", f"archive data: {key} is ignored, because it means nothing to method tar")
    ]


@pytest.mark.parametrize("key", ["tar-content-owner", "compression-level", "whiteouts"])
def test_what_is_of_tars_is_ignored_with_a_warning_by_the_others(log: Log, kept: Kept, key: str) -> None:
    made = request(log, method="move", **{key.replace("-", "_"): "1"})
    assert (made.owner, made.level, made.whiteouts) == (None, 0, "overlay")
    assert kept.lines == [
        ("warning", f"archive data: {key} is ignored, because it means nothing to method move")
    ]


@pytest.mark.parametrize(("method", "level"), [("tar.gz", 6), ("tar.zst", 3), ("tar", 0)])
def test_each_compression_has_its_usual_level(log: Log, method: str, level: int) -> None:
    assert request(log, method=method).level == level


def test_placeholders_stand_for_the_stop_and_other_braces_for_themselves(log: Log) -> None:
    made = request(log, archive_to="/srv/{id}/{name}-{timestamp}/{x}{}{{id}}", success="/run/{timestamp}")
    assert made.archive_to == "/srv/c0ffee/data-20261121T205533.123456Z/{x}{}{c0ffee}"
    assert made.success == "/run/20261121T205533.123456Z"


def test_what_looks_like_a_placeholder_and_is_none_stays_with_a_warning(log: Log, kept: Kept) -> None:
    made = request(log, archive_to="/srv/{date}/{id}/{}{a b}", success="/srv/{date")

    assert (made.archive_to, made.success) == ("/srv/{date}/c0ffee/{}{a b}", "/srv/{date")
    assert kept.lines == [
        (
            "warning",
            "archive data: archive-to has {date}, which stands for nothing and stays as it is; the placeholders are {id},"
            " {name}, {timestamp}",
        )
    ]


def test_the_time_has_microseconds_and_sorts_as_a_text() -> None:
    times = [
        (1_795_294_533_123_456_789, "20261121T205533.123456Z"),
        (1_795_294_533_123_457_000, "20261121T205533.123457Z"),
        (1_795_294_534_000_000_999, "20261121T205534.000000Z"),
        (1_795_294_534_000_070_000, "20261121T205534.000070Z"),
    ]
    stamps = [timestamp(nanoseconds) for nanoseconds, _ in times]
    assert stamps == [stamp for _, stamp in times]
    assert sorted(stamps) == stamps


@pytest.mark.parametrize("name", ["a/b", "", ".."])
def test_a_placeholder_is_one_file_name(log: Log, name: str) -> None:
    with pytest.raises(ArchiveError, match="placeholder"):
        parse_request("data", keys(archive_to="/srv/{id}"), Context(id=name, timestamp="now"), log)


def test_paths_get_their_simplest_form(log: Log) -> None:
    made = request(log, mount_point="//data/./x/", archive_to="//srv//a/", success="/srv/x/../done")
    assert (made.mount_point, made.archive_to, made.success) == ("/data/x", "/srv/a", "/srv/done")
