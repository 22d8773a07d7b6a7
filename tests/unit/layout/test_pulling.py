"""What podman pulls from a layout, and how skopeo is told to do it. tests/e2e/test_circle.py asks podman itself."""

from __future__ import annotations

import subprocess

import pytest

from archive_overlay.layout.pulling import advice_on_pulling, quoted, takes_path, takes_tag

GOOD = ["a", "1", "a_b", "a__b", "a.b", "a-b", "a---b", "20261121t205533.123456z"]
BAD = [
    "A",
    "a+b",
    "a~b",
    "a@b",
    "é",
    "a b",
    "a___b",
    "a..b",
    "a-",
    "-a",
    ".a",
    "a.",
    "_a",
    "a_",
    "a.-b",
    "a-_b",
    "a\n",
]


@pytest.mark.parametrize("name", GOOD)
def test_names_that_podman_takes(name: str) -> None:
    assert takes_path(f"/srv/{name}/{name}")
    assert takes_tag(name)


@pytest.mark.parametrize("name", BAD)
def test_names_that_podman_refuses(name: str) -> None:
    assert not takes_path(f"/srv/{name}")
    assert not takes_path(f"/{name}/srv")
    assert not takes_tag(name)


def test_names_of_podman_have_an_end() -> None:
    assert takes_path(f"/{'x' * (255 - len('localhost/'))}")
    assert not takes_path(f"/{'x' * (256 - len('localhost/'))}")
    assert takes_tag("x" * (255 - len("docker.io/library/")))
    assert not takes_tag("x" * (256 - len("docker.io/library/")))


def test_a_container_s_id_is_no_name() -> None:
    assert not takes_tag("0123456789abcdef" * 4)
    assert takes_path(f"/{'0123456789abcdef' * 4}")


@pytest.mark.parametrize(
    ("path", "tag", "refusals", "line"),
    [
        (
            "/srv/T",
            "main",
            "podman up to 4.6 does not accept this path",
            "oci:/srv/T:main containers-storage:localhost/t:main",
        ),
        (
            "/srv/+~é",
            "main",
            "podman up to 4.6 does not accept this path",
            "'oci:/srv/+~é:main' containers-storage:localhost/data:main",
        ),
        (
            "/srv/20261121T205533.123456Z",
            "main",
            "podman up to 4.6 does not accept this path",
            "oci:/srv/20261121T205533.123456Z:main containers-storage:localhost/20261121t205533-123456z:main",
        ),
        (
            "/srv/data",
            "20261121T205533.123456Z",
            "podman from 4.7 on does not accept this tag",
            "oci:/srv/data:20261121T205533.123456Z containers-storage:localhost/data:20261121T205533.123456Z",
        ),
        (
            "/srv/My Data",
            "a@b+c",
            "podman up to 4.6 does not accept this path, and podman from 4.7 on does not accept this tag",
            "'oci:/srv/My Data:a@b+c' containers-storage:localhost/my-data:a-b-c",
        ),
    ],
)
def test_what_works_instead(path: str, tag: str, refusals: str, line: str) -> None:
    assert advice_on_pulling(path, tag) == (
        f"podman pull may refuse oci:{path}:{tag}: {refusals}. This always works: skopeo copy {line}"
    )


def test_what_podman_takes_needs_no_advice() -> None:
    assert advice_on_pulling("/srv/a-b_c.d/layout", "main") == ""


@pytest.mark.parametrize("text", ["oci:/srv/a:b", "it's", "a b", "$x `y` \\", "é", "a\nb", "''", "*"])
def test_a_shell_reads_what_was_quoted(text: str) -> None:
    done = subprocess.run(["sh", "-c", f"printf %s {quoted(text)}"], check=True, capture_output=True)

    assert done.stdout.decode() == text
