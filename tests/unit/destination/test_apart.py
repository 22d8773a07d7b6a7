"""What is written is not in what is read, nor the other way round, by whatever path it is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from archive_overlay.destination.apart import keep_apart
from archive_overlay.errors import ArchiveError


@pytest.fixture
def upper(tmp_path: Path) -> Path:
    made = tmp_path / "store" / "layer" / "upper"
    (made / "directory").mkdir(parents=True)
    return made


@pytest.mark.parametrize("inside", [".", "directory", "directory/not/there/yet", "not there"])
def test_what_is_in_the_upperdir_is_refused(upper: Path, inside: str) -> None:
    with pytest.raises(
        ArchiveError, match=rf"success .* is the upperdir {upper} or in it; name a path outside"
    ):
        keep_apart("success", str(upper / inside), str(upper))


@pytest.mark.parametrize("above", ["store/layer", "store"])
def test_what_contains_the_upperdir_is_refused(upper: Path, tmp_path: Path, above: str) -> None:
    with pytest.raises(
        ArchiveError, match=rf"archive-to .* contains the upperdir {upper}; name another path"
    ):
        keep_apart("archive-to", str(tmp_path / above), str(upper))


def test_what_contains_an_upperdir_behind_a_symbolic_link_is_refused(upper: Path, tmp_path: Path) -> None:
    # An engine may name the upperdir by way of a link: what is above the link is not above the upperdir.
    (tmp_path / "link").symlink_to(upper.parent)
    with pytest.raises(ArchiveError, match="contains the upperdir"):
        keep_apart("archive-to", str(tmp_path / "store"), str(tmp_path / "link" / "upper"))


def test_what_is_in_an_upperdir_behind_a_symbolic_link_is_refused(upper: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(upper)
    with pytest.raises(ArchiveError, match="or in it"):
        keep_apart("archive-to", str(upper / "x"), str(tmp_path / "link"))


@pytest.mark.parametrize("path", ["store/layer/beside", "store/layer/upper2", "not/there", "file", "file/x"])
def test_what_is_apart_is_taken(upper: Path, tmp_path: Path, path: str) -> None:
    (tmp_path / "file").touch()
    keep_apart("archive-to", str(tmp_path / path), str(upper))


def test_an_upperdir_that_is_gone_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ArchiveError, match=f"cannot read the upperdir {tmp_path}/gone: No such file"):
        keep_apart("archive-to", str(tmp_path / "x"), str(tmp_path / "gone"))


def test_a_path_that_cannot_be_looked_at_is_an_error(upper: Path) -> None:
    path = upper.parent / ("n" * 256)
    with pytest.raises(ArchiveError, match=f"cannot look at success {path}: File name too long"):
        keep_apart("success", str(path), str(upper))
