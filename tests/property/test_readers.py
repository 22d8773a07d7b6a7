"""Whatever others wrote is read, or refused by one line: never anything else, and never work without an end.

Files of tests/data/readers, and JSON as engines write it, are damaged at random. `make soak` goes on with other damage
each time; a failure names the seed for --hypothesis-seed.
"""

from __future__ import annotations

import copy
import itertools
import json
import os
import random
import stat
import struct
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, core, given, seed, settings, strategies

from archive_overlay.commands import revision_log, revision_table, terminal
from archive_overlay.commands.check import hook_files
from archive_overlay.errors import ArchiveError, HookError
from archive_overlay.history.revisions import open_image, open_revision
from archive_overlay.history.unpack import Unpacker
from archive_overlay.hook import runtime
from archive_overlay.hook.annotations import Context, group_by_name, parse_request
from archive_overlay.keys import KEYS
from archive_overlay.layout.provenance import Provenance
from archive_overlay.log import Log, escape
from archive_overlay.overlay import store
from archive_overlay.system.mountinfo import MountTable
from archive_overlay.system.open_flags import READ_DIRECTORY
from archive_overlay.system.tree import remove
from archive_overlay.tar import changes
from archive_overlay.tar.decompress import Reader
from archive_overlay.tar.reader import TarReader
from tests.property.conftest import EXAMPLES, SOAKING
from tests.support import image_layouts, tools
from tests.support.history import file, layer

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType
    from typing import Callable

    Operation = tuple[int, int, int, bytes]
    Replacement = tuple[int, int, Any]

DATA = Path(__file__).resolve().parents[1] / "data"
SPECS = [json.loads(path.read_text()) for path in sorted((DATA / "specs").glob("*.json"))]

_seed = core.global_force_seed
if _seed is None:
    _seed = random.randrange(2**32) if SOAKING else 3100
# An example takes milliseconds here, and seconds where a container is run.
_fuzzed = settings(
    max_examples=10 * EXAMPLES if SOAKING else 60,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

# Damage to bytes, at a place, as far as another place, with other bytes.
_places = strategies.integers(0, 2**16)
_damage = strategies.lists(
    strategies.tuples(strategies.integers(0, 6), _places, _places, strategies.binary(max_size=12)), max_size=5
)
_texts = strategies.one_of(
    strategies.text(max_size=8),
    strategies.sampled_from(
        ["..", "/", "a/../b", "\0", "\ud800", "sha256:", "latest", "{id}", "y", "\x1b[2J\n", "a" * 300]
    ),
)
_values = strategies.recursive(
    strategies.one_of(
        strategies.none(),
        strategies.booleans(),
        strategies.integers(-(2**70), 2**70),
        strategies.floats(),
        _texts,
    ),
    lambda inner: strategies.one_of(
        strategies.lists(inner, max_size=3), strategies.dictionaries(_texts, inner, max_size=3)
    ),
    max_leaves=6,
)
_replacements = strategies.lists(strategies.tuples(strategies.integers(0, 2), _places, _values), max_size=4)


def files_of(kind: str) -> list[bytes]:
    return [path.read_bytes() for path in sorted((DATA / "readers").glob(f"{kind}-*"))]


def damaged(data: bytes, operations: list[Operation], *, unit: int = 1) -> bytes:
    """Damage some bytes, or blocks of them."""
    whole = bytearray(data)
    for what, start, length, new in operations:
        at = start * unit % (len(whole) + 1) // unit * unit
        end = at + unit * (1 + length % 8)
        if what == 0:
            whole[at : at + len(new)] = new
        elif what == 1:
            whole[at:at] = new * unit
        elif what == 2:
            del whole[at:end]
        elif what == 3:
            whole[at:at] = whole[at:end]
        elif what == 4 and length % 8 == 0:
            del whole[at:]
        elif what == 5 and at < len(whole):
            # In a tar, most of what means something are the first bytes of a field.
            at += (
                (0, 100, 108, 116, 124, 136, 156, 157, 257, 329, 337, 345, 386, 482, 483)[length % 15]
                if unit > 1
                else 0
            )
            whole[at : at + max(len(new), 1)] = new or b"\xff"
        elif what == 6:
            digits = [
                place for place in range(at, min(at + 512, len(whole))) if whole[place] in b"0123456789"
            ]
            if digits:
                whole[digits[length % len(digits)]] = 0x30 + length % 10
    return bytes(whole)


def with_sums(tar: bytes) -> bytes:
    """Let the sums of headers be right, so that more than the sum is looked at."""
    blocks = [bytearray(tar[start : start + 512]) for start in range(0, len(tar), 512)]
    for block in blocks:
        if block[257:262] == b"ustar" and len(block) == 512:
            block[148:156] = b"%06o\0 " % (sum(block[:148]) + sum(block[156:]) + 8 * 0x20)
    return b"".join(blocks)


def replaced(value: Any, replacements: list[Replacement]) -> Any:
    """Put other values in the places of some, leave some out, and put in others."""
    top = [copy.deepcopy(value)]
    for what, place, new in replacements:
        places = list(_places_in(top))
        within, key = places[place % len(places)]
        if what == 0 or within is top:
            within[key] = new
        elif what == 1:
            del within[key]
        elif isinstance(within, list):
            within.append(new)
        else:
            within[f"{key}+"] = new
    return top[0]


def _places_in(value: Any) -> Iterator[tuple[Any, Any]]:
    for key in value if isinstance(value, dict) else range(len(value)):
        yield value, key
        if isinstance(value[key], (dict, list)):
            yield from _places_in(value[key])


@contextmanager
def expecting(most: int) -> Iterator[None]:
    """Let something be done in so many calls at most, or fail as the program fails: by one line."""
    left = most

    def see(frame: FrameType, event: str, argument: object) -> None:
        nonlocal left
        left -= event in ("call", "c_call")
        if left < 0:
            raise AssertionError(f"more than {most} calls")

    sys.setprofile(see)
    try:
        yield
    except HookError as error:
        sys.setprofile(None)
        line = escape(str(error))
        assert line.isprintable()
        assert len(line) < 20_000
        line.encode()
    finally:
        sys.setprofile(None)


@contextmanager
def opened(data: bytes) -> Iterator[Reader]:
    fd = os.memfd_create("data")
    os.write(fd, data)
    os.lseek(fd, 0, os.SEEK_SET)
    reader = Reader(fd, digests=True)
    try:
        yield reader
    finally:
        reader.close()


def judged(function: Callable[..., None]) -> Callable[..., None]:
    """Let a test be tried with examples of this run's seed."""
    tried: Callable[..., None] = seed(_seed)(_fuzzed(function))
    return tried


# Tars


@judged
@given(
    tar=strategies.sampled_from(files_of("tar")),
    damage=_damage,
    bytewise=_damage,
    whole=strategies.booleans(),
)
def test_a_tar(
    scratch: Path, tar: bytes, damage: list[Operation], bytewise: list[Operation], whole: bool
) -> None:
    data = damaged(damaged(tar, damage, unit=512), bytewise[:2])
    data = with_sums(data) if whole else data
    most = 5000 + 50 * len(data)
    forms = [
        changes.LAYER,
        changes.Form(
            whiteout_files=True,
            whiteout_devices=True,
            opaque_attributes=("trusted.overlay.opaque", "user.overlay.opaque"),
        ),
    ]
    for form in forms:
        with expecting(most):
            with opened(data) as reader:
                marks = changes.read_marks(TarReader(reader), form)
                reader.finish()
            with opened(data) as reader:
                for change in changes.read_changes(TarReader(reader), form, marks):
                    escape(change.path)

    (scratch / "out").mkdir()
    top = os.open(scratch / "out", READ_DIRECTORY)
    unpacker = Unpacker(top)
    try:
        with opened(_BELOW) as reader:
            unpacker.apply(TarReader(reader))
        with expecting(4 * most):
            with opened(data) as reader:
                unpacker.hide(TarReader(reader))
            with opened(data) as reader:
                unpacker.apply(TarReader(reader))
            unpacker.finish()
            assert escape(str(unpacker.missing)).isprintable()
        assert os.listdir(scratch) == ["out"]
        for path, directories, names in os.walk(scratch / "out"):
            for name in (*directories, *names):
                made = Path(path, name)
                status = made.lstat()
                assert not name.startswith(".wh.")
                assert not (stat.S_ISCHR(status.st_mode) and status.st_rdev == 0)
                if stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode):
                    assert not any(
                        ".overlay." in each or ".fuseoverlayfs." in each for each in os.listxattr(made)
                    )
    finally:
        unpacker.close()
        os.close(top)
        above = os.open(scratch, READ_DIRECTORY)
        remove("out", above)
        os.close(above)


_BELOW = files_of("tar")[-1]


@judged
@given(data=strategies.sampled_from(files_of("compressed")), damage=_damage)
def test_what_is_compressed(data: bytes, damage: list[Operation]) -> None:
    tools.need("/usr/bin/zstd")
    data = damaged(data, damage)
    # Few calls are seen: another process and thread may have a part in it.
    with expecting(50_000), opened(data) as reader:
        size = 0
        while size < 1 << 24 and (piece := reader.read_some(1 << 20)):
            assert len(piece) <= 1 << 20
            size += len(piece)


def test_any_first_bytes_are_some_form() -> None:
    for first in (b"\x1f\x8b", b"\x28\xb5\x2f\xfd", struct.pack("<II", 0x184D2A50, 2**32 - 1), b"", b"\0"):
        with expecting(10_000), opened(first) as reader:
            reader.finish()


# Layouts


@judged
@given(
    index=_replacements,
    manifest=_replacements,
    config=_replacements,
    damage=_damage,
    which=strategies.sampled_from(["index.json", "oci-layout", ""]),
)
def test_a_layout(
    scratch: Path,
    index: list[Replacement],
    manifest: list[Replacement],
    config: list[Replacement],
    damage: list[Operation],
    which: str,
) -> None:
    top = scratch / "layout"
    (top / "blobs/sha256").mkdir(parents=True, exist_ok=True)
    stored = {**image_layouts.put_blob(top, layer(file("a"))), "annotations": _FACTS.annotations()}
    history = [
        {"created": "2024-01-02T03:04:05.6Z", "created_by": "archive_overlay", "comment": _FACTS.comment(1)}
    ]
    described: dict[str, Any] = {
        "rootfs": {"type": "layers", "diff_ids": [stored["digest"]]},
        "history": history,
    }
    described = image_layouts.put_blob(top, as_json(replaced(described, config)))
    described = {"mediaType": image_layouts.MANIFEST_TYPE, "config": described, "layers": [stored]}
    described = image_layouts.put_blob(top, as_json(replaced(described, manifest)))
    tagged = {**described, "annotations": {image_layouts.REF_NAME: "latest"}}
    (top / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    (top / "index.json").write_bytes(as_json(replaced({"schemaVersion": 2, "manifests": [tagged]}, index)))
    if which:
        (top / which).write_bytes(damaged((top / which).read_bytes(), damage))

    size = sum(path.stat().st_size for path in top.rglob("*"))
    with expecting(10_000 + 50 * size), open_image(str(top)) as image:
        rows = revision_log.listed(image)
        _, lines = revision_table.format_table(rows, terminal.Screen(human=True))
        for text in itertools.chain.from_iterable(lines):
            text.encode()
        for row in rows:
            json.dumps(revision_log._object(row)).encode()
    with expecting(10_000 + 50 * size):
        image, revision = open_revision(f"{top}:latest@1")
        with image:
            for piece in image.change_set(revision):
                with image.read(piece) as tar:
                    list(tar.entries())


_FACTS = Provenance(container="c1", archive="data", mount_point="/data", entries=1, deletions=2)


def as_json(value: Any) -> bytes:
    return json.dumps(value).encode()


# What engines write


@judged
@given(
    spec=strategies.sampled_from(SPECS),
    replacements=_replacements,
    state=_replacements,
    damage=_damage,
    bundle=_texts,
)
def test_what_a_hook_is_given(
    scratch: Path,
    spec: dict[str, Any],
    replacements: list[Replacement],
    state: list[Replacement],
    damage: list[Operation],
    bundle: str,
) -> None:
    text = damaged(as_json(replaced(spec["state"], state)), damage)
    with expecting(10_000 + 50 * len(text)):
        fd = os.memfd_create("state")
        os.write(fd, text)
        os.lseek(fd, 0, os.SEEK_SET)
        try:
            runtime.read_state(fd)
        finally:
            os.close(fd)
    text = damaged(as_json(replaced(spec["config"], replacements)), damage)
    (scratch / "config.json").write_bytes(text)
    log = Log("trace", [])
    context = Context(id=bundle, timestamp="20240102T030405.000006Z")
    with expecting(20_000 + 50 * len(text)):
        read = runtime.read_spec(str(scratch))
        for name, keys in group_by_name(read.annotations, log):
            try:
                parse_request(name, keys, context, log)
            except ArchiveError as error:
                escape(str(error)).encode()


_PREFIX = "com.launchplatform.oci-hooks.archive-overlay."
_keys = strategies.tuples(
    strategies.sampled_from(["", "data", "..", "a/b", "\ud800"]),
    strategies.sampled_from([".", "/", "..", ""]),
    strategies.sampled_from([*KEYS, "other", ""]),
)


@judged
@given(asked=strategies.dictionaries(_keys, strategies.one_of(_texts, _values), max_size=8))
def test_what_annotations_ask_for(asked: dict[tuple[str, str, str], object]) -> None:
    log = Log("trace", [])
    needed = {f"{_PREFIX}data.mount-point": "/data", f"{_PREFIX}data.archive-to": "/srv/{id}"}
    given_ = {**needed, **{f"{_PREFIX}{''.join(key)}": value for key, value in asked.items()}}
    context = Context(id="c1", timestamp="20240102T030405.000006Z")
    with expecting(20_000):
        for name, keys in group_by_name(given_, log):
            try:
                parse_request(name, keys, context, log)
            except ArchiveError as error:
                escape(str(error)).encode()


@judged
@given(name=strategies.binary(min_size=1, max_size=20), options=strategies.binary(max_size=40))
def test_a_line_of_the_mount_table(name: bytes, options: bytes) -> None:
    escaped = b"".join(b"\\%03o" % each if each in b" \t\n\\#" else bytes([each]) for each in name)
    raw = options.translate(None, b" \n") or b"rw"
    line = b"36 35 0:98 /%b /%b rw,noatime master:1 - ext4 %b %b\n" % (escaped, escaped, escaped, raw)

    with expecting(2000):
        table = MountTable([line])
        mounted = table.at("/" + os.fsdecode(name))
        assert mounted
        assert os.fsencode(mounted.root) == b"/" + name


@judged
@given(replacements=_replacements, damage=_damage, pattern=_texts)
def test_a_hook_configuration(
    scratch: Path, replacements: list[Replacement], damage: list[Operation], pattern: str
) -> None:
    (path,) = (DATA / "readers/hooks.d").iterdir()
    usual = json.loads(path.read_text())
    usual["hook"]["path"] = sys.executable
    usual["when"] = {**usual["when"], "commands": [pattern]}
    text = damaged(as_json(replaced(usual, replacements)), damage)
    (scratch / "archive_overlay.json").write_bytes(text)

    found = hook_files.read_hook_files([str(scratch)])
    for hook in found.in_force:
        hook_files.judge_stages(hook)
        hook_files.judge_when(hook)
    for finding in found.findings:
        escape(f"{finding.found} {finding.advice}").encode()
    hook_files.of_ours_in(str(scratch))


@judged
@given(replacements=_replacements, damage=_damage)
def test_what_a_store_has_on_its_containers(
    scratch: Path, replacements: list[Replacement], damage: list[Operation]
) -> None:
    containers = scratch / "overlay-containers"
    (containers / "c1/userdata").mkdir(parents=True, exist_ok=True)
    (scratch / "overlay/0a1b2c/mapped").mkdir(parents=True, exist_ok=True)
    usual = json.loads((DATA / "readers/containers.json").read_text())
    text = damaged(as_json(replaced(usual, replacements)), damage)
    (containers / "containers.json").write_bytes(text)

    with expecting(10_000 + 50 * len(text)):
        for ask in (
            lambda: store.layer_of_container(str(containers / "c1/userdata"), ""),
            lambda: store.lower_owners(str(scratch / "overlay/0a1b2c")),
        ):
            try:
                ask()
            except store.UnknownError as error:
                escape(str(error)).encode()


@pytest.mark.parametrize("value", [[1], {"a": [2, {"b": 3}]}, 5])
def test_each_place_in_a_value_is_reached(value: Any) -> None:
    assert replaced(value, [(0, 0, "new")]) == "new"
