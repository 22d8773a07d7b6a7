"""docs/kubernetes.md: its manifests are manifests, its annotations are possible, its script does what it says."""

from __future__ import annotations

import json
import os
import re
import subprocess
import textwrap
import time
from typing import TYPE_CHECKING, Any

import pytest

from archive_overlay import methods
from archive_overlay.cli import build_parser
from archive_overlay.keys import KEYS, PREFIX
from tests.integration.conftest import Saver
from tests.support.hooks import TOP

if TYPE_CHECKING:
    from pathlib import Path

TEXT = (TOP / "docs/kubernetes.md").read_text()

# Kubernetes, "Annotations", "Syntax and character set": a domain name, a slash, and a name.
LONGEST_DOMAIN, LONGEST_NAME = 253, 63
LABEL = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")
NAME = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?")


def blocks() -> list[str]:
    """Give the indented blocks of the page."""
    found = re.findall(r"(?:^(?: {4}.*)?\n)+", TEXT, re.MULTILINE)
    return [block for text in found if (block := textwrap.dedent(text).strip("\n"))]


def block(beginning: str) -> str:
    """Give the first block that begins so."""
    return blocks_with(beginning)[0]


def blocks_with(beginning: str) -> list[str]:
    """Give all blocks that begin so."""
    found = [text for text in blocks() if text.startswith(beginning)]
    assert found, beginning
    return found


def parse(text: str) -> Any:
    """Read the part of YAML that the page uses: block mappings and lists, and scalars that JSON has or plain words."""
    lines = [(len(line) - len(line.lstrip()), line.strip()) for line in text.splitlines() if line.strip()]
    value, rest = _node(lines)
    assert not rest, f"wrong indentation at {rest[0]}"
    return value


def _node(lines: list[tuple[int, str]]) -> tuple[Any, list[tuple[int, str]]]:
    indent = lines[0][0]
    if lines[0][1].startswith("- "):
        items = []
        while lines and lines[0][0] == indent and lines[0][1].startswith("- "):
            item, lines = _node([(indent + 2, lines[0][1][2:]), *lines[1:]])
            items.append(item)
        return items, lines
    mapping: dict[str, Any] = {}
    while lines and lines[0][0] == indent and not lines[0][1].startswith("- "):
        key, colon, scalar = re.fullmatch(r"([\w./-]+)(:)(?: (.+))?", lines[0][1]).groups()  # type: ignore[union-attr]
        assert colon
        assert key not in mapping
        lines = lines[1:]
        if scalar:
            mapping[key] = json.loads(scalar) if scalar[0] in '"[{' else scalar
        else:
            assert lines[0][0] > indent, f"{key} has nothing below it"
            mapping[key], lines = _node(lines)
    return mapping, lines


def is_accepted(annotation: str) -> bool:
    """Say whether Kubernetes takes it for the key of an annotation."""
    domain, _, name = annotation.rpartition("/")
    labels = domain.split(".") if domain else []
    return (
        len(domain) <= LONGEST_DOMAIN
        and all(LABEL.fullmatch(label) for label in labels)
        and NAME.fullmatch(name) is not None
        and len(name) <= LONGEST_NAME
    )


def test_the_pod_asks_for_archives_by_keys_that_kubernetes_accepts() -> None:
    pod = parse(block("apiVersion: v1\nkind: Pod"))

    annotations = pod["metadata"]["annotations"]
    assert all(isinstance(value, str) for value in annotations.values())
    assert [container["name"] for container in pod["spec"]["containers"]] == ["main"]
    for text in blocks_with("apiVersion: v1\nkind: Pod"):
        asked = re.findall(rf"^ +({re.escape(PREFIX)}\S+): ", text, re.MULTILINE)
        assert len(asked) >= 2
        assert all(is_accepted(annotation) for annotation in asked)


def test_the_pod_s_annotations_save_a_root_file_system(any_saver: Saver) -> None:
    asked = parse(block("apiVersion: v1\nkind: Pod"))["metadata"]["annotations"]
    here = {key: value.replace("/srv/archives", str(any_saver.out)) for key, value in asked.items()}
    any_saver.overlay.mount()
    any_saver.overlay.inside(lambda: (any_saver.overlay.merged / "made").write_text("by a container"))

    result = any_saver.run(mounts=[], root=any_saver.overlay.merged, also=here, mount_point=None)

    any_saver.overlay.unmount()
    assert result.status == 0, result.stderr
    assert sorted(os.listdir(any_saver.out)) == ["c1.tar.gz", "c1.tar.gz.success"]


def test_names_can_be_as_long_as_the_page_says_and_no_longer() -> None:
    (documented,) = re.findall(r"\*\*(\d+) characters\*\*", TEXT)
    longest = "n" * int(documented)

    assert all(is_accepted(f"{PREFIX}{longest}/{key}") for key in KEYS)
    assert not any(is_accepted(f"{PREFIX}{longest}n/{key}") for key in KEYS)
    # What the page says of keys without a slash.
    assert len(PREFIX) == 45
    assert not is_accepted(f"{PREFIX}n.tar-content-owner")


def test_the_collecting_pods_mount_a_volume_that_there_is() -> None:
    collecting = parse(block("apiVersion: apps/v1\nkind: DaemonSet"))

    spec = collecting["spec"]["template"]["spec"]
    (volume,) = spec["volumes"]
    (mount,) = spec["containers"][0]["volumeMounts"]
    assert mount["name"] == volume["name"]
    assert volume["hostPath"]["path"] == "/srv/archives"
    labels = collecting["spec"]["template"]["metadata"]["labels"]
    assert collecting["spec"]["selector"]["matchLabels"] == labels


@pytest.mark.parametrize("beginning", ['"args": ', '"hooks": '])
def test_what_goes_into_a_hook_s_configuration_is_json_and_has_options_that_there_are(beginning: str) -> None:
    for text in blocks_with(beginning):
        found = json.loads("{" + text.rstrip(",") + "}")

        args = found["args"] if "args" in found else found["hooks"]["poststop"][0]["args"]
        assert args[0] == "archive_overlay"
        build_parser().parse_args(args[1:])


def test_the_cleaning_script_deletes_old_archives_with_their_markers_and_nothing_else(tmp_path: Path) -> None:
    script = block("#!/bin/sh").replace("/srv/archives", str(tmp_path))
    old = time.time() - 9 * 24 * 3600
    for name in ("old", "new", "old and $(odd)\nname"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").touch()
        (tmp_path / f"{name}.success").touch()
    (tmp_path / "failed").touch()
    for path in tmp_path.iterdir():
        if not path.name.startswith("new"):
            os.utime(path, (old, old))

    subprocess.run(["sh", "-c", script], check=True)

    assert sorted(os.listdir(tmp_path)) == ["failed", "new", "new.success"]


def test_the_methods_that_the_page_names_exist() -> None:
    named = re.search(r"So use\s+((?:`[\w.]+`[,\sor]*)+)", TEXT)
    assert named
    assert set(re.findall(r"`([\w.]+)`", named[1])) == methods.METHODS.keys() - {"copy", "move"}
