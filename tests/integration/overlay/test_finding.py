"""Which upperdir is behind a mount of the container, however the engine mounted it."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.integration.conftest import Saver
from tests.support import hooks, overlays

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Callable

native = pytest.mark.parametrize("overlay", [overlays.NATIVE, overlays.NATIVE_ROOTLESS], indirect=True)
fuse = pytest.mark.parametrize("overlay", [overlays.FUSE, overlays.FUSE_ROOTLESS], indirect=True)


@pytest.fixture
def method() -> str:
    """Save by one method only: finding is the same for all."""
    return "copy"


def make(root: Path) -> None:
    (root / "made").write_text("by a container")


def bind_of(source: Path, destination: str = "/data") -> dict[str, Any]:
    """Give a bind mount as podman and buildah write it into the spec."""
    options = ["bind", "slave"]
    return {"destination": destination, "type": "bind", "source": str(source), "options": options}


def test_a_mount_of_each_flavour(saver: Saver) -> None:
    saver.overlay.change(make)

    result = saver.run()

    assert result.status == 0, result.stderr
    assert os.listdir(saver.archive) == ["made"]


@native
def test_a_bind_of_an_overlay_that_the_kernel_serves(saver: Saver) -> None:
    saver.overlay.change(make)
    saver.overlay.mount()

    result = saver.run(mounts=[bind_of(saver.overlay.merged)])

    saver.overlay.unmount()
    assert result.status == 0, result.stderr
    assert os.listdir(saver.archive) == ["made"]


@native
def test_an_opaque_directory_behind_a_bind_mount(saver: Saver) -> None:
    def change(root: Path) -> None:
        (root / "directory" / "old").unlink()
        (root / "directory").rmdir()
        (root / "directory").mkdir()

    def below(root: Path) -> None:
        (root / "directory").mkdir()
        (root / "directory" / "old").touch()

    saver.overlay.layer(below)
    saver.overlay.change(change)
    saver.overlay.mount()

    result = saver.run(mounts=[bind_of(saver.overlay.merged)])

    saver.overlay.unmount()
    assert result.status == 0, result.stderr
    namespace = "user" if saver.overlay.flavour.rootless else "trusted"
    attribute = f"{namespace}.overlay.opaque"
    assert os.getxattr(saver.archive / "directory", attribute) == b"y"


def test_the_root_file_system(saver: Saver) -> None:
    saver.overlay.mount()
    saver.overlay.inside(lambda: make(saver.overlay.merged))

    result = saver.run(mounts=[], root=saver.overlay.merged, mount_point="/")

    saver.overlay.unmount()
    assert result.status == 0, result.stderr
    assert os.listdir(saver.archive) == ["made"]


@native
def test_a_root_file_system_relative_to_the_bundle(saver: Saver) -> None:
    saver.overlay.mount()
    rootfs = saver.directory / "bundle" / "rootfs"
    rootfs.mkdir(parents=True)

    def run() -> hooks.Result:
        make(saver.overlay.merged)
        overlays.bind(saver.overlay.merged, rootfs)
        try:
            return saver.run_here(mounts=[], root=Path("rootfs"), mount_point="/")
        finally:
            overlays.unmount(rootfs)

    result = saver.overlay.inside(run)

    saver.overlay.unmount()
    assert result.status == 0, result.stderr
    assert os.listdir(saver.archive) == ["made"]


@native
def test_a_root_file_system_that_is_no_overlay(saver: Saver) -> None:
    result = saver.run(mounts=[], root=saver.directory, mount_point="/")

    assert result.status == 1
    assert str(saver.directory) in result.only_error()
    assert "overlay" in result.only_error()


@pytest.mark.parametrize("asked", ["/data", "/data/", "//data", "/data//", "///data/."])
@pytest.mark.parametrize("destination", ["/data", "/data/", "//data"])
def test_one_mount_point_has_many_spellings(any_saver: Saver, asked: str, destination: str) -> None:
    any_saver.overlay.change(make)
    mount = any_saver.overlay.spec_mount(destination)

    result = any_saver.run(mounts=[mount], mount_point=asked)

    assert result.status == 0, result.stderr
    assert os.listdir(any_saver.archive) == ["made"]


def test_of_two_mounts_at_one_destination_the_last_counts(
    any_saver: Saver, new_overlay: Callable[[overlays.Flavour], overlays.Overlay]
) -> None:
    hidden = new_overlay(any_saver.overlay.flavour)
    hidden.change(lambda root: (root / "hidden").touch())
    any_saver.overlay.change(make)

    result = any_saver.run(mounts=[hidden.spec_mount("/data"), any_saver.overlay.spec_mount("/data/")])

    assert result.status == 0, result.stderr
    assert os.listdir(any_saver.archive) == ["made"]


def test_an_overlay_under_something_else_is_not_what_the_container_saw(any_saver: Saver) -> None:
    any_saver.overlay.change(make)
    tmpfs = {"destination": "/data", "type": "tmpfs", "source": "tmpfs", "options": ["rw"]}

    result = any_saver.run(mounts=[any_saver.overlay.spec_mount(), tmpfs])

    assert result.status == 1
    assert "tmpfs" in result.only_error()
    assert not any_saver.archive.exists()


HOSTILE_NAMES = ("a space", "a,comma", "a:colon", "a\\backslash", "new\nline", "tab\tand\\,both:")


@pytest.fixture
def oddly_placed(
    request: pytest.FixtureRequest,
    scratch: Path,
    namespace: Callable[[bool], overlays.Namespace],
) -> Iterator[Saver]:
    """Give an overlay in a directory whose name has something to escape."""
    name, flavour = request.param
    overlays.need(flavour)
    directory = scratch / name
    directory.mkdir()
    overlay = overlays.Overlay(flavour, directory, namespace(flavour.rootless))
    yield Saver(overlay, "copy", scratch)
    overlay.close()


@pytest.mark.parametrize(
    "oddly_placed",
    [
        (name, flavour)
        for name in HOSTILE_NAMES
        for flavour in overlays.FLAVOURS
        # fuse-overlayfs 1.10 has no way to write a colon.
        if not (flavour.program and ":" in name)
    ],
    indirect=True,
    ids=lambda parameter: f"{parameter[0]!r}-{parameter[1]}",
)
def test_paths_that_mount_options_escape(oddly_placed: Saver) -> None:
    saver = oddly_placed
    saver.overlay.mount()
    saver.overlay.inside(lambda: make(saver.overlay.merged))

    result = saver.run(mounts=[bind_of(saver.overlay.merged)])

    saver.overlay.unmount()
    assert result.status == 0, result.stderr
    assert os.listdir(saver.archive) == ["made"]


@pytest.mark.parametrize("split", [False, True], ids=["whole", "split as podman does"])
@pytest.mark.parametrize("name", [name for name in HOSTILE_NAMES if "\n" not in name])
def test_options_of_the_spec_that_are_escaped(any_saver: Saver, name: str, split: bool) -> None:
    upper = any_saver.directory / name
    upper.mkdir()
    make(upper)
    mount = any_saver.overlay.spec_mount()
    options = [
        f"lowerdir={overlays.escape_lower(upper)}:/",
        f"upperdir={overlays.escape(upper)}",
        "workdir=/work",
    ]
    # podman splits at commas whatever stands before them.
    mount["options"] = [part for option in options for part in (option.split(",") if split else [option])]

    result = any_saver.run(mounts=[mount])

    assert result.status == 0, result.stderr
    assert os.listdir(any_saver.archive) == ["made"]


@pytest.fixture
def moved_program(saver: Saver) -> Path:
    """Serve the overlay by a copy of its program, which tests may delete."""
    program = overlays.copy_of_program(saver.overlay.flavour, saver.directory)
    saver.overlay.program = str(program)
    saver.overlay.change(make)
    return program


@fuse
def test_the_mount_program_of_another_path(saver: Saver, moved_program: Path) -> None:
    result = saver.run("--mount-program", moved_program)

    assert result.status == 0, result.stderr
    assert os.listdir(saver.archive) == ["made"]


@fuse
def test_a_process_of_another_program_is_not_believed(saver: Saver, moved_program: Path) -> None:
    result = saver.run()

    assert result.status == 1
    assert str(saver.overlay.merged) in result.only_error()
    assert moved_program.exists()
    assert not saver.archive.exists()


@fuse
def test_a_mount_program_that_was_deleted_since(saver: Saver, moved_program: Path) -> None:
    moved_program.unlink()

    result = saver.run("--mount-program", moved_program)

    assert result.status == 0, result.stderr
    assert os.listdir(saver.archive) == ["made"]


@fuse
def test_a_mount_program_that_was_replaced_since(saver: Saver, moved_program: Path) -> None:
    newer = saver.directory / "newer"
    newer.write_bytes(moved_program.read_bytes())
    newer.chmod(0o755)
    newer.rename(moved_program)

    result = saver.run("--mount-program", moved_program)

    assert result.status == 0, result.stderr
    assert os.listdir(saver.archive) == ["made"]


@fuse
def test_a_mount_program_named_by_a_symlink(saver: Saver, moved_program: Path) -> None:
    alias = saver.directory / "alias"
    alias.symlink_to(moved_program)

    result = saver.run("--mount-program", alias)

    assert result.status == 0, result.stderr
    assert os.listdir(saver.archive) == ["made"]


@fuse
def test_a_process_that_only_looks_like_the_mount_program_is_not_believed(saver: Saver) -> None:
    saver.overlay.change(make)
    secret = saver.directory / "secret"
    secret.mkdir()
    (secret / "secret").touch()
    options = f"lowerdir=/,upperdir={secret},workdir=/work"

    def disguise_and_run() -> hooks.Result:
        # A shell that waits, under the name and with the arguments of the program.
        with subprocess.Popen(
            [overlays.FUSE_OVERLAYFS, "-c", "read _", "-o", options, str(saver.overlay.merged)],
            executable="/bin/sh",
            stdin=subprocess.PIPE,
        ) as disguised:
            try:
                return saver.run_here()
            finally:
                disguised.send_signal(signal.SIGKILL)

    result = saver.overlay.inside(disguise_and_run)

    assert result.status == 0, result.stderr
    assert os.listdir(saver.archive) == ["made"]


# Who claims to serve a mount


class Forger:
    """A process in a mount namespace of its own, as a container's, which claims to serve a mount of another one.

    Args:
        kind: what it runs under the path of the mount program; "the very program" serves an overlay, too.
        claims: the mount point.
        upper: the directory that it wants to be archived.
        program: path of the mount program.
    """

    def __init__(self, kind: str, claims: Path, upper: Path, program: Path) -> None:
        work = upper.parent / "forged-work"
        work.mkdir()
        options = f"lowerdir=/usr,upperdir={upper},workdir={work}"
        self._namespace = overlays.Namespace(rootless=False)
        self._stdin = os.pipe()

        def start() -> int:
            arguments: list[str | Path] = ["-f", "-o", options, claims]
            if kind != "the very program":
                overlays.mount_tmpfs(program.parent, "mode=755")
                shutil.copy("/bin/sh", program)
                arguments = ["-c", "echo; read _", *arguments]
            process = subprocess.Popen(
                [program, *arguments],
                stdin=self._stdin[0],
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
            )
            if kind == "the very program":
                wait_until_mounted(claims)
            else:
                assert process.stdout
                assert process.stdout.read(1)
            if kind == "a deleted program":
                program.unlink()
            return process.pid

        self._process = os.pidfd_open(self._namespace.apart(start))

    def close(self) -> None:
        """End it."""
        signal.pidfd_send_signal(self._process, signal.SIGKILL)
        for fd in (self._process, *self._stdin):
            os.close(fd)
        self._namespace.close()


def wait_until_mounted(place: Path) -> None:
    """Wait until something is mounted at a place."""
    deadline = time.monotonic() + 20
    while f" {place} rw,".encode() not in Path("/proc/self/mountinfo").read_bytes():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.fixture
def secret(scratch: Path) -> Path:
    """Give a directory of the host's that is no container's business."""
    made = scratch / "secret"
    made.mkdir()
    (made / "shadow").touch()
    return made


@pytest.fixture
def program(scratch: Path) -> Path:
    """Give a mount program of this test's own."""
    overlays.need(overlays.FUSE)
    (scratch / "bin").mkdir()
    return overlays.copy_of_program(overlays.FUSE, scratch / "bin")


@pytest.fixture(params=["another program", "the very program", "a deleted program"])
def forge(request: pytest.FixtureRequest, secret: Path, program: Path) -> Iterator[Callable[[Path], object]]:
    """Start a process that claims a mount point, and wants `secret` to be archived."""
    made: list[Forger] = []
    yield lambda claims: made.append(Forger(request.param, claims, secret, program))
    for each in made:
        each.close()


@pytest.mark.parametrize("overlay", [overlays.NATIVE], indirect=True)
def test_a_program_in_a_container_serves_no_ordinary_directory(
    saver: Saver, program: Path, forge: Callable[[Path], object]
) -> None:
    volume = saver.directory / "volume"
    volume.mkdir()
    forge(volume)

    result = saver.run("--mount-program", program, mounts=[bind_of(volume)])

    assert result.status == 1
    assert f"/data is a bind mount of {volume}, not an overlay" in result.only_error()
    assert os.listdir(saver.out) == []


@pytest.mark.parametrize("overlay", [overlays.FUSE], indirect=True)
def test_a_program_in_a_container_does_not_serve_what_another_one_serves(
    saver: Saver, program: Path, forge: Callable[[Path], object]
) -> None:
    saver.overlay.program = str(program)
    saver.overlay.change(make)
    forge(saver.overlay.merged)

    result = saver.run("--mount-program", program)

    assert result.status == 0, result.stderr
    assert os.listdir(saver.archive) == ["made"]


@pytest.mark.parametrize("overlay", [overlays.FUSE], indirect=True)
def test_a_program_in_a_container_does_not_serve_a_root_file_system(
    saver: Saver, program: Path, forge: Callable[[Path], object]
) -> None:
    saver.overlay.mount()
    forge(saver.overlay.merged)

    result = saver.run("--mount-program", program, mounts=[], root=saver.overlay.merged, mount_point="/")

    assert f"root file system {saver.overlay.merged} is not an overlay" in result.only_error()
    assert os.listdir(saver.out) == []


@pytest.mark.parametrize("overlay", [overlays.FUSE], indirect=True)
def test_what_is_left_of_an_earlier_mount_serves_nothing(saver: Saver) -> None:
    saver.overlay.change(lambda root: (root / "earlier").touch())
    # Somebody still uses the mount, so its server lives on after it is unmounted here.
    in_use = os.open(f"{saver.overlay.namespace.root}{saver.overlay.merged}", os.O_RDONLY)
    try:
        saver.overlay.inside(lambda: overlays.detach(saver.overlay.merged))
        saver.overlay.upper = saver.directory / "later"
        saver.overlay.upper.mkdir()
        saver.overlay.change(make, again=True)
        certain = saver.overlay.kernel_names_the_server

        result = saver.run()
    finally:
        os.close(in_use)

    if certain:
        assert result.status == 0, result.stderr
        assert os.listdir(saver.archive) == ["made"]
    else:
        assert "both claim to serve" in result.only_error()
        assert os.listdir(saver.out) == []


@fuse
def test_a_hook_in_a_copy_of_its_caller_s_namespace_finds_the_program(saver: Saver) -> None:
    # As podman does it for containers that have a user namespace.
    saver.overlay.change(make)

    result = saver.run(before=overlays.leave_mounts)

    assert result.status == 0, result.stderr
    assert os.listdir(saver.archive) == ["made"]


@fuse
def test_in_such_a_copy_no_path_leads_elsewhere(saver: Saver, secret: Path) -> None:
    saver.overlay.change(make)

    def leave_and_cover() -> None:
        overlays.leave_mounts()
        overlays.bind(secret, saver.overlay.upper)

    result = saver.run(before=leave_and_cover)

    assert result.status == 1
    assert "not an overlay" in result.only_error()
    assert os.listdir(saver.out) == []


@fuse
def test_in_such_a_copy_lower_layers_that_are_others_are_unknown(saver: Saver, secret: Path) -> None:
    saver.overlay.change(make)

    def leave_and_cover() -> None:
        overlays.leave_mounts()
        overlays.bind(secret, saver.overlay.lowers[0])

    result = saver.run(before=leave_and_cover)

    # Nothing in the upperdir refers to them.
    assert result.status == 0, result.stderr
    assert os.listdir(saver.archive) == ["made"]


@fuse
def test_a_mount_served_by_another_process_is_not_taken(
    saver: Saver, new_overlay: Callable[[overlays.Flavour], overlays.Overlay]
) -> None:
    saver.overlay.change(make)
    other = new_overlay(saver.overlay.flavour)
    other.change(lambda root: (root / "other").touch())

    result = saver.run(
        mounts=[saver.overlay.spec_mount("/data"), other.spec_mount("/other")], mount_point="/other"
    )

    assert result.status == 0, result.stderr
    assert os.listdir(saver.archive) == ["other"]


def test_a_bind_mount_of_an_ordinary_directory_is_refused(any_saver: Saver) -> None:
    result = any_saver.run(mounts=[bind_of(any_saver.directory)])

    assert result.status == 1
    assert str(any_saver.directory) in result.only_error()
    assert "overlay" in result.only_error()


def test_an_overlay_without_an_upperdir_is_refused(any_saver: Saver) -> None:
    any_saver.overlay.change(make)
    mount = any_saver.overlay.spec_mount()
    mount["options"] = [option for option in mount["options"] if option.startswith("lowerdir")]

    result = any_saver.run(mounts=[mount])

    assert result.status == 1
    assert "upperdir" in result.only_error()
    assert not any_saver.archive.exists()
