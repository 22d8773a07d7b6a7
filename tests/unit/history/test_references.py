"""Which image a text names: what exists decides."""

from __future__ import annotations

from pathlib import Path

import pytest

from archive_overlay.errors import ArchiveError
from archive_overlay.history.references import Found, expect_layout, find_image, layout_within
from tests.support import image_layouts


def put(layout: Path, *tags: str) -> None:
    """Make a layout of images that differ."""
    for tag in tags:
        image_layouts.put(layout, tag, config={"author": f"{layout.name} {tag}"})


def find(text: Path | str) -> Found:
    return find_image(str(text), numbered=True)


@pytest.mark.parametrize(
    ("text", "name", "number"),
    [
        (":main", "main", 0),
        (":main@3", "main", 3),
        (":docker.io/library/x:v1", "docker.io/library/x:v1", 0),
        (":docker.io/library/x:v1@12", "docker.io/library/x:v1", 12),
        (":docker.io/library/x", "docker.io/library/x", 0),
        (":docker.io/library/x@2", "docker.io/library/x", 2),
        (":localhost:5000/x", "localhost:5000/x", 0),
        (":x@sha256:00", "x@sha256:00", 0),
        (":x@7", "x@7", 0),
        (":x@7@1", "x@7", 1),
        ("/:main", "main", 0),
        ("", "latest", 0),
        ("@2", "latest", 2),
        ("/", "latest", 0),
    ],
)
def test_names_of_images_have_whatever_they_have(tmp_path: Path, text: str, name: str, number: int) -> None:
    names = [
        "main",
        "docker.io/library/x:v1",
        "docker.io/library/x",
        "localhost:5000/x",
        "x@sha256:00",
        "x@7",
        "x",
        "latest",
    ]
    put(tmp_path / "layout", *names)

    found = find(f"{tmp_path}/layout{text}")

    assert (Path(found.path), found.name, found.number) == (tmp_path / "layout", name, number)
    assert find(found.unmistakable).descriptor == found.descriptor


@pytest.mark.parametrize("path", ["a:b", "a:b/c", "a@2", "a:1/b:2", "a:b@3"])
def test_paths_of_layouts_have_whatever_they_have(tmp_path: Path, path: str) -> None:
    put(tmp_path / path, "main", "x:y", "latest")

    for text, name, number in (
        (":main", "main", 0),
        (":x:y@4", "x:y", 4),
        ("", "latest", 0),
        ("@5", "latest", 5),
    ):
        found = find(f"{tmp_path}/{path}{text}")
        assert (Path(found.path), found.name, found.number) == (tmp_path / path, name, number)


def test_of_two_layouts_it_is_the_one_that_has_such_an_image(tmp_path: Path) -> None:
    put(tmp_path / "a", "b:main", "x")
    put(tmp_path / "a:b", "other", "x:y")

    assert Path(find(tmp_path / "a:b:main").path) == tmp_path / "a"
    assert Path(find(tmp_path / "a:b:other").path) == tmp_path / "a:b"


def test_if_both_have_it_neither_is_meant(tmp_path: Path) -> None:
    put(tmp_path / "a", "b:main", "b")
    put(tmp_path / "a:b", "main", "latest")
    a, b = tmp_path / "a", tmp_path / "a:b"

    for text, one, other in (
        (":main", f"{a}/:b:main", f"{b}/:main"),
        (":main@2", f"{a}/:b:main@2", f"{b}/:main@2"),
        ("", f"{a}/:b", f"{b}/:latest"),
    ):
        with pytest.raises(ArchiveError) as caught:
            find(f"{b}{text}")
        assert str(caught.value) == f"{b}{text} may be an image of {a} or of {b}; write {one} or {other}"
        assert Path(find(one).path) == a
        assert Path(find(other).path) == b


def test_a_revision_of_a_layout_is_not_the_layout_that_is_called_so(tmp_path: Path) -> None:
    put(tmp_path / "a", "latest")
    put(tmp_path / "a@2", "latest")

    with pytest.raises(ArchiveError, match="may be an image of "):
        find(tmp_path / "a@2")
    assert find(tmp_path / "a@3").number == 3


def test_the_only_image_is_meant_if_it_has_no_tag(tmp_path: Path) -> None:
    put(tmp_path / "layout", "")

    for text, number in (("", 0), ("@1", 1)):
        found = find(f"{tmp_path}/layout{text}")
        assert (found.name, found.number) == ("", number)
        assert found.descriptor == image_layouts.read_index(tmp_path / "layout")["manifests"][0]


@pytest.mark.parametrize(
    ("tags", "hint"),
    [
        (("", ""), "its tags are: none, and 2 images have no tag"),
        (("", "main"), "its tags are: main, and one image has no tag"),
        (("main",), "its tags are: main"),
        ((), "its tags are: none"),
    ],
)
def test_no_other_image_is_guessed_to_be_meant(tmp_path: Path, tags: tuple[str, ...], hint: str) -> None:
    put(tmp_path / "layout", "x")
    (tmp_path / "layout/index.json").write_text('{"schemaVersion": 2, "manifests": []}')
    for number, tag in enumerate(tags):
        image_layouts.put(tmp_path / "layout", tag, config={"author": str(number)})

    with pytest.raises(ArchiveError) as caught:
        find(tmp_path / "layout")

    assert str(caught.value) == f"cannot read {tmp_path}/layout: the image layout has no tag latest; {hint}"


def test_latest_is_meant_beside_images_without_a_tag(tmp_path: Path) -> None:
    put(tmp_path / "layout", "", "latest")

    assert find(tmp_path / "layout").name == "latest"


def test_what_other_programs_write_before_a_layout_is_not_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tmp_path / "layout", "main")
    monkeypatch.chdir(tmp_path)

    for text in (f"oci:{tmp_path}/layout:main", "oci:layout:main", f"oci:{tmp_path}/layout:main@1"):
        assert find(text).descriptor == find("layout:main").descriptor
    put(tmp_path / "oci", "layout:main")
    assert find("oci:layout:main").path == "oci"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "docker://registry.example/data:main",
            "in a registry, not in an image layout; .* archive_overlay fetch LAYOUT:TAG",
        ),
        (
            "containers-storage:localhost/data",
            "in an engine's store, not in an image layout; .* skopeo copy containers-",
        ),
        ("oci-archive:x.tar", "of another kind .*; .* skopeo copy oci-archive:x.tar oci:LAYOUT:TAG"),
    ],
)
def test_an_image_that_is_in_no_layout_has_to_be_copied(text: str, said: str) -> None:
    with pytest.raises(ArchiveError, match=said):
        find(text)


def test_what_is_named_in_place_of_a_layout_is_named_with_what_to_do(tmp_path: Path) -> None:
    put(tmp_path / "many" / "one", "main")
    put(tmp_path / "lost", "main")
    (tmp_path / "lost" / "index.json").unlink()
    (tmp_path / "empty").mkdir()
    (tmp_path / "archive" / "made").mkdir(parents=True)
    (tmp_path / "a.tar").write_text("x")
    for name, said in {
        "many": "not an image layout; there are layouts in it: .*/many/one$",
        "lost": "lost is gone, and its blobs are still there; restore index.json",
        "empty": "is an empty directory, not an image layout",
        "archive": "not an image layout: .* method copy or move, use archive_overlay diff ",
        "a.tar": "is a file, not an image layout; .* method tar, use archive_overlay diff ",
    }.items():
        for tag in ("", ":main"):
            with pytest.raises(ArchiveError, match=said):
                find(f"{tmp_path}/{name}{tag}")


@pytest.mark.parametrize("text", ["nothing", "nothing:main", "nothing:", "layout:", "nothing:a/b:c"])
def test_what_is_not_there_is_named(tmp_path: Path, text: str) -> None:
    put(tmp_path / "layout", "latest")

    with pytest.raises(
        ArchiveError, match=f"cannot read the image layout {tmp_path}/.*: No such file or directory"
    ):
        find(f"{tmp_path}/{text}")


def test_a_directory_that_is_no_layout_is_named(tmp_path: Path) -> None:
    (tmp_path / "a:b").mkdir()

    for text in ("a:b", "a:b:main", "a:b:x/y:z"):
        with pytest.raises(ArchiveError, match=f"{tmp_path}/a:b is an empty directory"):
            find(tmp_path / text)


def test_two_images_with_one_tag_are_two(tmp_path: Path) -> None:
    put(tmp_path / "layout", "main")
    image_layouts.put(tmp_path / "layout", "main", config={"author": "another"})

    with pytest.raises(ArchiveError, match=f"cannot read {tmp_path}/layout: .* 2 images with the tag main"):
        find(f"{tmp_path}/layout:main@1")


def test_a_whole_layout_is_named_without_an_image(tmp_path: Path) -> None:
    put(tmp_path / "layout", "main")
    (tmp_path / "empty").mkdir()

    assert expect_layout(f"oci:{tmp_path}/layout") == f"{tmp_path}/layout"
    with pytest.raises(ArchiveError, match=f"names an image, .*; write {tmp_path}/layout$"):
        expect_layout(f"{tmp_path}/layout:main")
    with pytest.raises(ArchiveError, match="is an empty directory"):
        expect_layout(f"{tmp_path}/empty")


def test_another_layout_within_a_text(tmp_path: Path) -> None:
    put(tmp_path / "layout", "main")

    for text in (":main", ":a/b:c", "@2"):
        assert layout_within(f"{tmp_path}/layout{text}") == f"{tmp_path}/layout"
    for text in ("", "/", "/index.json", "2:main"):
        assert layout_within(f"{tmp_path}/layout{text}") == ""
