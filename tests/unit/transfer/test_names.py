"""Names of images: what is taken, and what an administrator's prefix lets through."""

from __future__ import annotations

import pytest

from archive_overlay.errors import ArchiveError
from archive_overlay.transfer.names import is_allowed, parse_prefix, parse_remote, parse_store_name


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("localhost/data:main", "localhost/data:main"),
        ("data:main", "localhost/data:main"),
        ("team/data", "localhost/team/data:latest"),
        ("registry.example:5000/team/data:a.b_C", "registry.example:5000/team/data:a.b_C"),
        ("Registry.Example/data", "registry.example/data:latest"),
    ],
)
def test_a_name_in_a_store_has_a_host(text: str, name: str) -> None:
    assert str(parse_store_name(text)) == name


@pytest.mark.parametrize(
    "text",
    [
        "",
        "localhost/Data",
        "localhost/data@sha256:" + "0" * 64,
        "localhost/../data",
        "localhost//data",
        "a b",
        "x:y:z",
        "localhost/data:main\n",
        "localhost/data:" + "x" * 129,
        "[overlay@/x]localhost/data",
    ],
)
def test_no_name_is_taken_for_one(text: str) -> None:
    with pytest.raises(ArchiveError, match="not the name of an image"):
        parse_store_name(text)


@pytest.mark.parametrize(
    "text",
    [
        "registry.example/data:main",
        "docker://data:main",
        "docker://team/data:main",
        "docker://user:secret@registry.example/data",
        "docker://registry.example/data@sha256:" + "0" * 64,
        "docker://registry.example/a/../b",
        "oci:/srv/data:main",
        "docker://-registry.example/data",
    ],
)
def test_a_remote_says_where_it_is(text: str) -> None:
    with pytest.raises(ArchiveError, match="not an image in a registry"):
        parse_remote(text)


@pytest.mark.parametrize(
    ("prefix", "allowed", "refused"),
    [
        ("docker://registry.example/team", "team/data:main", "team2/data:main"),
        ("registry.example/team/", "team:main", "tea/m:main"),
        ("registry.example", "anything/at/all:x", ""),
        ("registry.example/team/data:main", "team/data:main", "team/data:other"),
        ("registry.example/team/data:main", "team/data:main", "team/data/more:main"),
    ],
)
def test_a_prefix_ends_where_a_word_ends(prefix: str, allowed: str, refused: str) -> None:
    assert is_allowed(parse_remote(f"docker://registry.example/{allowed}"), [prefix])
    if refused:
        assert not is_allowed(parse_remote(f"docker://registry.example/{refused}"), [prefix])


def test_another_port_is_another_registry() -> None:
    assert not is_allowed(parse_remote("docker://registry.example:5000/data"), ["registry.example"])
    assert not is_allowed(parse_remote("docker://registry.example/data"), ["registry.example:5000"])
    assert not is_allowed(parse_remote("docker://registry.example.evil.example/data"), ["registry.example"])


@pytest.mark.parametrize("text", ["", "team", "docker://", "registry.example/Team", "registry.example:port"])
def test_no_prefix_is_guessed(text: str) -> None:
    with pytest.raises(ArchiveError, match="not the beginning"):
        parse_prefix(text)
