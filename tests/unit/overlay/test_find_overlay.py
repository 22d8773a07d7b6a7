"""From a container's mounts to its upperdir: by the spec, by the mount table, by processes, by what an engine left."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from archive_overlay.errors import ArchiveError
from archive_overlay.overlay import mount_programs
from archive_overlay.overlay.dialect import FUSE_OVERLAYFS, NATIVE, NATIVE_USERXATTR
from archive_overlay.overlay.locate import find_overlay
from archive_overlay.overlay.mount import Mount
from archive_overlay.overlay.options import from_command_line, from_spec
from archive_overlay.system import mountinfo
from archive_overlay.system.mountinfo import MountTable
from tests.support import tools

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import Callable

    from archive_overlay.overlay.mount import OverlayMount

    Mounted = Callable[..., None]

PROGRAM = "/nowhere/fuse-overlayfs"


def find(*mounts: Mount, root: Path | str = "", at: str = "/data", program: str = PROGRAM) -> OverlayMount:
    return find_overlay(mounts, str(root), at, mount_program=program)


def overlay_mount(upper: Path | str, *options: str, at: str = "/data", source: str = "overlay") -> Mount:
    all_options = ("lowerdir=/l1:/l2", f"upperdir={upper}", "workdir=/w", *options)
    return Mount(destination=at, type="overlay", source=source, options=all_options)


def bind_mount(source: Path | str) -> Mount:
    return Mount(destination="/data", type="bind", source=str(source), options=("rbind",))


@pytest.fixture
def upper(tmp_path: Path) -> Path:
    made = tmp_path / "upper"
    made.mkdir()
    return made


@pytest.fixture
def mounted(monkeypatch: pytest.MonkeyPatch) -> Mounted:
    """Have something mounted: as the kernel's list says it."""
    lines: list[bytes] = []

    def mounted(at: Path | str, *options: str, kind: str = "overlay", root: str = "/") -> None:
        lines.append(f"1 0 0:1 {root} {at} rw - {kind} source rw,{','.join(options)}\n".encode())

    monkeypatch.setattr(mountinfo, "read", lambda: MountTable(lines))
    return mounted


# The spec's mounts


def test_a_mount_of_type_overlay_says_it_all(upper: Path) -> None:
    found = find(overlay_mount("/other", at="/other"), overlay_mount(upper))

    assert (found.upper, found.lowers, found.dialect) == (str(upper), ("/l1", "/l2"), NATIVE)


def test_of_several_mounts_at_one_place_the_last_is_seen(upper: Path) -> None:
    assert find(overlay_mount("/covered"), overlay_mount(upper)).upper == str(upper)


def test_a_mount_that_is_not_there_is_said_with_those_that_are(upper: Path) -> None:
    mounts = [overlay_mount(upper, at=at) for at in ("/b", "/a", "/b")]
    with pytest.raises(
        ArchiveError,
        match=r"the container has no mount at /data; mount-point must be the destination of a mount; there are: /a, /b$",
    ):
        find(*mounts)
    with pytest.raises(ArchiveError, match=r"there are: none$"):
        find(at="/")


def test_the_root_directory_may_be_a_mount_like_others(upper: Path, tmp_path: Path) -> None:
    assert find(overlay_mount(upper, at="/"), root=tmp_path, at="/").upper == str(upper)


@pytest.mark.parametrize(
    ("there", "error"),
    [
        ("relative", "the upperdir relative of /data is a relative path, and its start is unknown"),
        ("/nowhere/upper", "the upperdir /nowhere/upper of /data does not exist"),
        ("/dev/null", "the upperdir /dev/null of /data is not a directory"),
        ("/dev/null/x", "cannot read the upperdir /dev/null/x of /data: Not a directory"),
    ],
)
def test_an_upperdir_has_to_be_a_directory(there: str, error: str) -> None:
    with pytest.raises(ArchiveError, match=error):
        find(overlay_mount(there, source=""))


@pytest.mark.parametrize("path", ["/proc/self/fd/{fd}", "/dev/fd/{fd}", "//proc/thread-self/fd/{fd}"])
def test_a_path_to_what_a_process_has_open_is_not_that_of_this_process(
    upper: Path, mounted: Mounted, path: str
) -> None:
    fd = os.open(upper, os.O_RDONLY)
    try:
        place = path.format(fd=fd)
        mounted("/m", f"lowerdir=/l:{place}", f"upperdir={upper}")
        mounted("/n", "lowerdir=/l", f"upperdir={place}")

        found = find(bind_mount("/m"))
        assert (found.lowers, found.lowers_unknown) == (
            (),
            f"{place} is a different directory in each process",
        )
        with pytest.raises(ArchiveError, match=f"is {place}, which is a different directory in each process"):
            find(bind_mount("/n"))
    finally:
        os.close(fd)


def test_relative_layers_are_of_the_store_that_the_mount_point_is_in(store: Store) -> None:
    options = ("lowerdir=l/A:/B::l/D", "upperdir=own/diff")

    found = find(
        Mount(destination="/data", type="overlay", source=str(store.root), options=options), root=store.root
    )

    assert found.upper == str(store.top / "own/diff")
    assert found.lowers == (str(store.top / "l/A"), "/B")
    assert found.data_lowers == (str(store.top / "l/D"),)


@pytest.mark.parametrize(
    ("upperdir", "at"), [("diff", "own"), ("top/diff", "own"), ("own/diff", "own/diff/own"), ("own/diff", "")]
)
def test_relative_layers_are_looked_for_nowhere_else(store: Store, upperdir: str, at: str) -> None:
    for made in (store.top / at / "merged", store.top / at / "diff", store.top / "own/own/diff"):
        made.mkdir(parents=True, exist_ok=True)
    options = ("lowerdir=l/A", f"upperdir={upperdir}")
    mount = Mount(destination="/data", type="overlay", source=str(store.top / at / "merged"), options=options)

    with pytest.raises(ArchiveError, match=f"the upperdir {upperdir} of /data is a relative path"):
        find(mount, root=store.root)


def test_relative_layers_in_a_directory_that_only_looks_like_a_store_are_not_read(store: Store) -> None:
    options = ("lowerdir=l/A", "upperdir=own/diff")
    mount = Mount(destination="/data", type="overlay", source=str(store.root), options=options)

    with pytest.raises(ArchiveError, match="the upperdir own/diff of /data is a relative path"):
        find(mount)


@pytest.mark.parametrize(
    ("mount", "said"),
    [
        (bind_mount("/srv/volume"), "a bind mount of /srv/volume"),
        (Mount(destination="/data", type="", source="", options=()), "a bind mount of nothing"),
        (Mount(destination="/data", type="tmpfs", source="tmpfs", options=()), "a tmpfs mount of tmpfs"),
        (bind_mount("relative"), "a bind mount of relative"),
        (bind_mount("/with\0"), "a bind mount of /with\0"),
    ],
)
def test_what_is_no_overlay_is_said_to_be_none(mounted: Mounted, mount: Mount, said: str) -> None:
    mounted("/elsewhere", "upperdir=/u")
    with pytest.raises(ArchiveError, match=f"/data is {said}, not an overlay; mount it with rw=true"):
        find(mount)


@pytest.mark.parametrize("mount_point", ["/data/file", "/data"])
def test_nobody_is_told_to_mount_an_artifact_for_writing(mounted: Mounted, mount_point: str) -> None:
    # As podman 5.4 and later write it for --mount type=artifact,destination=/data.
    blob = "/var/lib/containers/storage/artifacts/blobs/sha256/" + "5" * 64
    mount = Mount(destination="/data/file", type="bind", source=blob, options=("bind", "ro"))
    mounted("/elsewhere", "upperdir=/u")

    with pytest.raises(ArchiveError) as failure:
        find(mount, at=mount_point)

    assert "an artifact is always read-only; for an archive, mount an image" in str(failure.value)


# Mount options


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (("metacopy=off", "redirect_dir=off", "index=off"), False),
        (("metacopy=on", "redirect_dir=off", "index=off"), True),
        (("metacopy=off", "redirect_dir=on", "index=off"), True),
        (("metacopy=off", "redirect_dir=nofollow", "index=on"), True),
        (("metacopy=on", "redirect_dir=on", "index=on", "userxattr"), False),
    ],
)
def test_options_say_whether_an_upperdir_stands_on_its_own(options: tuple[str, ...], expected: bool) -> None:
    assert from_spec(["upperdir=/u", *options], "x").may_refer_to_lowers is expected


@pytest.mark.parametrize("parameter", ["metacopy", "redirect_dir", "index"])
def test_what_no_option_says_is_the_module_s_default(parameter: str) -> None:
    others = [f"{key}=off" for key in ("metacopy", "redirect_dir", "index") if key != parameter]
    try:
        default = Path(f"/sys/module/overlay/parameters/{parameter}").read_text().strip() != "N"
    except OSError:
        default = True  # nobody knows

    assert from_spec(["upperdir=/u", *others], "x").may_refer_to_lowers is default


def test_where_the_module_says_nothing_the_worst_is_assumed(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_file(*_: object, **__: object) -> None:
        raise FileNotFoundError

    monkeypatch.setattr("builtins.open", no_file)

    assert from_spec(["upperdir=/u"], "x").may_refer_to_lowers is True


def test_fuse_overlayfs_may_keep_owners_in_attributes() -> None:
    kinds = [
        from_command_line([f"upperdir=/u,xattr_permissions={value}"], "x").dialect
        for value in ("0", "1", "2")
    ]
    assert kinds[0] is FUSE_OVERLAYFS
    assert len({id(kind) for kind in kinds}) == 3


@pytest.fixture
def neighbours(upper: Path) -> tuple[Path, Path]:
    """Make the two directories that the mount table may mean by one text."""
    made = upper / "a,b", upper / "a\\,b"
    for each in made:
        each.mkdir()
    return made


def test_of_two_readings_the_one_that_is_there_is_meant(
    mounted: Mounted, neighbours: tuple[Path, Path]
) -> None:
    mounted("/m", f"upperdir={neighbours[0].parent}/a\\134\\054b")
    for missing, there in (neighbours, neighbours[::-1]):
        missing.rmdir()
        assert find(bind_mount("/m")).upper == str(there)
        missing.mkdir()


@pytest.mark.parametrize("in_use", [[], ["a,b", "a\\,b"], None], ids=["neither", "both", "unknown"])
def test_of_two_directories_neither_is_guessed(
    mounted: Mounted,
    neighbours: tuple[Path, Path],
    monkeypatch: pytest.MonkeyPatch,
    in_use: list[str] | None,
) -> None:
    monkeypatch.setattr("archive_overlay.overlay.in_use.can_ask", lambda: in_use is not None)
    monkeypatch.setattr(
        "archive_overlay.overlay.in_use.has_overlay", lambda upper: os.path.basename(upper) in (in_use or [])
    )
    mounted("/m", f"upperdir={neighbours[0].parent}/a\\134\\054b")

    with pytest.raises(ArchiveError) as raised:
        find(bind_mount("/m"))

    one, other = neighbours
    assert f"the upperdir of the mount at /m is {one} or {other}: the mount table does not say which" in str(
        raised.value
    )


@pytest.mark.parametrize("text", ["a\\", "\\a\\"])
def test_a_backslash_at_the_end_stands_for_nothing(text: str) -> None:
    assert from_spec([f"upperdir=/{text}"], "x").upper == "/a"


# The mount table


def test_a_bind_mount_of_an_overlay_is_that_overlay(upper: Path, tmp_path: Path, mounted: Mounted) -> None:
    mounted(tmp_path / "merged", "lowerdir=/l", f"upperdir={upper}", "userxattr")

    found = find(bind_mount(f"{tmp_path}/other/../merged/"))

    assert (found.upper, found.dialect) == (str(upper), NATIVE_USERXATTR)


@pytest.mark.parametrize("what", [{"kind": "ext4"}, {"root": "/part"}], ids=["another type", "a part"])
def test_a_part_of_an_overlay_is_none(
    upper: Path, tmp_path: Path, mounted: Mounted, what: dict[str, str]
) -> None:
    mounted(tmp_path / "merged", f"upperdir={upper}", **what)
    with pytest.raises(ArchiveError, match="not an overlay"):
        find(bind_mount(tmp_path / "merged"))


def test_the_root_file_system_is_an_overlay_that_is_mounted(
    upper: Path, tmp_path: Path, mounted: Mounted
) -> None:
    mounted(tmp_path / "merged", "lowerdir=/l", f"upperdir={upper}")

    assert find(root=tmp_path / "merged", at="/").upper == str(upper)


def test_a_root_file_system_that_is_no_overlay_is_said_to_be_none(tmp_path: Path, mounted: Mounted) -> None:
    mounted("/elsewhere", "upperdir=/u")
    with pytest.raises(
        ArchiveError, match=f"root file system {tmp_path}/rootfs is not an overlay; only what is mounted"
    ):
        find(root=tmp_path / "rootfs", at="/")


def test_lower_layers_of_the_engine_s_store_are_those_that_it_lists(store: Store, mounted: Mounted) -> None:
    mounted(store.top / "volume", "lowerdir=/proc/self/fd/7", f"upperdir={store.top}/own/diff")

    found = find(bind_mount(store.top / "volume"), root=store.root)

    assert found.lowers == (str(store.top / "top/diff"), str(store.top / "base/diff"))


def test_lower_layers_of_what_only_looks_like_a_store_are_those_of_the_mount(
    store: Store, mounted: Mounted, tmp_path_factory: pytest.TempPathFactory
) -> None:
    # A container made it in its volume, and its root user is the host's.
    mounted(store.top / "volume", "lowerdir=/l", f"upperdir={store.top}/own/diff")
    engine = Store(tmp_path_factory.mktemp("engine"))

    for root in ("", engine.root):
        assert find(bind_mount(store.top / "volume"), root=root).lowers == ("/l",)


# Links


@pytest.fixture
def volume(tmp_path: Path, upper: Path, mounted: Mounted) -> Path:
    """Give a directory from which a link leads to one with an overlay."""
    (tmp_path / "other/merge").mkdir(parents=True)
    mounted(tmp_path / "other/merge", "lowerdir=/l", f"upperdir={upper}")
    made = tmp_path / "volume"
    made.mkdir()
    (made / "sub").symlink_to("../other/./merge")
    return made


def of_source(volume: Path) -> Mount:
    return bind_mount(volume / "sub")


def of_upperdir(volume: Path) -> Mount:
    return overlay_mount(volume / "sub")


def of_options(volume: Path) -> Mount:
    options = (f"lowerdir={volume}/sub", f"upperdir={volume}", "workdir=/w")
    return Mount(destination="/data", type="overlay", source="overlay", options=options)


BOTH = pytest.mark.parametrize("mount_of", [of_source, of_upperdir])


def test_links_of_the_administrator_s_are_followed(volume: Path, upper: Path, tmp_path: Path) -> None:
    for source, options in ((tmp_path / "vol", ()), ("/", ()), (tmp_path, ("rbind", "ro"))):
        other = Mount(destination="/other", type="bind", source=str(source), options=options)
        assert find(of_source(volume), other).upper == str(upper)
        assert find(of_upperdir(volume), other).upper == str(tmp_path / "other/merge")
        assert find(of_options(volume), other).lowers == (str(tmp_path / "other/merge"),)


@BOTH
def test_links_that_the_container_may_have_made_are_not(
    volume: Path, mount_of: Callable[[Path], Mount]
) -> None:
    for source in (volume, volume.parent, volume / "../volume"):
        parent = Mount(destination="/parent", type="bind", source=str(source), options=())
        with pytest.raises(ArchiveError, match="sub is a symbolic link that the container may have made"):
            find(mount_of(volume), parent, at="/data")


@BOTH
@pytest.mark.parametrize("mode", [0o775, 0o757, 0o1777])
def test_links_that_another_user_may_have_made_are_not(
    volume: Path, mount_of: Callable[[Path], Mount], mode: int
) -> None:
    tools.need_root()
    volume.chmod(mode)
    os.lchown(volume / "sub", 1, 1)
    with pytest.raises(
        ArchiveError, match="sub is a symbolic link that another user may have made; name it by"
    ):
        find(mount_of(volume))


@BOTH
def test_one_s_own_links_to_which_another_user_may_have_given_a_name_are_not(
    volume: Path, mount_of: Callable[[Path], Mount]
) -> None:
    volume.chmod(0o775)
    os.link(volume / "sub", volume / "another name", follow_symlinks=False)
    with pytest.raises(ArchiveError, match="sub is a symbolic link that another user may have made"):
        find(mount_of(volume))


@BOTH
@pytest.mark.parametrize("mode", [0o775, 0o1777])
def test_one_s_own_links_are_followed_where_others_may_write(
    volume: Path, mount_of: Callable[[Path], Mount], mode: int
) -> None:
    # As a user does with the umask 002, who has his containers on another disk.
    volume.chmod(mode)
    assert find(mount_of(volume))


@BOTH
def test_links_of_another_user_are_not(volume: Path, mount_of: Callable[[Path], Mount]) -> None:
    tools.need_root()
    os.chown(volume, 1, 1)
    with pytest.raises(ArchiveError, match="sub is a symbolic link that another user may have made"):
        find(mount_of(volume))


def test_below_such_a_link_there_are_no_lower_layers(volume: Path) -> None:
    volume.chmod(0o777)
    os.link(volume / "sub", volume / "another name", follow_symlinks=False)

    found = find(of_options(volume))

    assert (found.lowers, "another user may have made" in found.lowers_unknown) == ((), True)


def test_links_that_lead_to_themselves_lead_nowhere(volume: Path) -> None:
    (volume / "round").symlink_to("round")
    with pytest.raises(ArchiveError, match="too many symbolic links"):
        find(overlay_mount(volume / "round"))


def test_where_mounts_cannot_be_read_that_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def read() -> None:
        raise FileNotFoundError(2, "No such file or directory", "/proc/self/mountinfo")

    monkeypatch.setattr(mountinfo, "read", read)
    with pytest.raises(
        ArchiveError, match=r"cannot read the mounts of this namespace: .*/proc/self/mountinfo"
    ):
        find(bind_mount(tmp_path))


# Processes that serve a mount. These hold a FUSE device that is no mount's, of which the kernel says nothing, as kernels
# before 6.18 do of all.

USER_ID = f"user_id={os.geteuid()}"
FUSE = {"kind": "fuse.fuse-overlayfs"}


@pytest.fixture
def serve() -> Iterator[Callable[..., str]]:
    """Start a process that looks as if it served a mount, and give the path of its program."""
    running: list[subprocess.Popen[bytes]] = []
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        tools.cannot_run("/dev/fuse is not open to this user")

    def serve(
        *arguments: str | Path,
        device: str = "/dev/fuse",
        by: Sequence[str] = (),
        become: tuple[int, int, int] = (-1, -1, -1),
    ) -> str:
        script = (
            f"import os, sys; os.open({device!r}, os.O_RDWR); os.setresuid(*{become});"
            "sys.stdout.write('x'); sys.stdout.flush(); sys.stdin.read()"
        )
        process = subprocess.Popen(
            [*by, sys.executable, "-ISc", script, *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        running.append(process)
        assert process.stdout
        assert process.stdout.read(1) == b"x"
        return os.path.realpath(sys.executable)

    yield serve
    for process in running:
        process.communicate()


@pytest.mark.parametrize("form", [["-o"], ["-f", "-o"], ["-olowerdir=/l", "-o"]])
def test_the_command_line_of_who_serves_a_mount_says_it_all(
    upper: Path, tmp_path: Path, mounted: Mounted, serve: Callable[..., str], form: list[str]
) -> None:
    mounted(tmp_path / "merged", USER_ID, **FUSE)
    program = serve(*form, f"lowerdir=/l,upperdir={upper}", tmp_path / "merged")

    found = find(bind_mount(tmp_path / "merged"), program=program)

    assert (found.upper, found.lowers, found.dialect) == (str(upper), ("/l",), FUSE_OVERLAYFS)


def test_two_that_claim_to_serve_a_mount_have_to_agree(
    upper: Path, tmp_path: Path, mounted: Mounted, serve: Callable[..., str]
) -> None:
    mounted(tmp_path / "merged", USER_ID, **FUSE)
    for _ in range(2):
        program = serve("-o", f"upperdir={upper}", tmp_path / "merged")
    assert find(bind_mount(tmp_path / "merged"), program=program).upper == str(upper)

    serve("-o", f"upperdir={tmp_path}", tmp_path / "merged")
    with pytest.raises(
        ArchiveError, match=r"both claim to serve .*/merged, with different options; end the one"
    ):
        find(bind_mount(tmp_path / "merged"), program=program)


def test_the_mount_program_may_be_a_symbolic_link_and_its_mount_point_oddly_spelled(
    upper: Path, tmp_path: Path, mounted: Mounted, serve: Callable[..., str]
) -> None:
    (tmp_path / "merged").mkdir()
    (tmp_path / "link").symlink_to("merged")
    mounted(tmp_path / "merged", USER_ID, **FUSE)
    (tmp_path / "program").symlink_to(serve("-o", f"upperdir={upper}", f"{tmp_path}/link/."))

    found = find(bind_mount(f"{tmp_path}/merged/"), program=str(tmp_path / "program"))

    assert found.upper == str(upper)


@pytest.mark.parametrize("kind", ["--mount", "--pid", "--user"])
def test_nobody_in_another_namespace_serves_a_mount(
    upper: Path, tmp_path: Path, mounted: Mounted, serve: Callable[..., str], kind: str
) -> None:
    tools.need("unshare")
    tools.need_root()
    mounted(tmp_path / "merged", USER_ID, **FUSE)
    by = ["unshare", kind, "--map-root-user" if kind == "--user" else "--fork"]
    program = serve("-o", f"upperdir={upper}", tmp_path / "merged", by=by)
    with pytest.raises(ArchiveError, match="not an overlay"):
        find(bind_mount(tmp_path / "merged"), program=program)


def test_another_mount_namespace_counts_if_it_has_the_very_mount() -> None:
    table = mountinfo.read()
    proc = table.at("/proc")
    assert proc
    here = os.open("/proc/self", os.O_RDONLY)
    try:
        assert mount_programs._has_mount(here, proc)
        assert not mount_programs._has_mount(here, proc.replace(device=proc.device + 1))
        assert not mount_programs._has_mount(here, proc.replace(mount_point="/proc/self"))
        assert not mount_programs._has_mount(here, proc.replace(root="/part"))
    finally:
        os.close(here)


@pytest.mark.parametrize("only_real", [False, True], ids=["", "by a set-user-ID program"])
def test_nobody_of_another_user_serves_a_mount(
    upper: Path, tmp_path: Path, mounted: Mounted, serve: Callable[..., str], only_real: bool
) -> None:
    tools.need_root()
    mounted(tmp_path / "merged", USER_ID, **FUSE)
    program = serve("-o", f"upperdir={upper}", tmp_path / "merged", become=(1, 0 if only_real else 1, 1))
    with pytest.raises(ArchiveError, match="not an overlay"):
        find(bind_mount(tmp_path / "merged"), program=program)


def test_without_a_fuse_device_nobody_serves_a_mount(
    upper: Path, tmp_path: Path, mounted: Mounted, serve: Callable[..., str]
) -> None:
    mounted(tmp_path / "merged", USER_ID, **FUSE)
    program = serve("-o", f"upperdir={upper}", tmp_path / "merged", device="/dev/null")
    with pytest.raises(ArchiveError, match="not an overlay"):
        find(bind_mount(tmp_path / "merged"), program=program)


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ((USER_ID,), {"kind": "ext4"}),
        ((USER_ID,), {"kind": "fuseblk"}),
        ((USER_ID,), {**FUSE, "root": "/part"}),
        (("user_id=4321",), FUSE),
        ((), FUSE),
    ],
    ids=["no FUSE", "a disk", "a part", "another user's", "nobody's"],
)
def test_no_process_serves_a_mount_that_is_not_fuse_s(
    upper: Path,
    tmp_path: Path,
    mounted: Mounted,
    serve: Callable[..., str],
    options: tuple[str, ...],
    what: dict[str, str],
) -> None:
    mounted(tmp_path / "merged", *options, **what)
    program = serve("-o", f"upperdir={upper}", tmp_path / "merged")
    with pytest.raises(ArchiveError, match="not an overlay"):
        find(bind_mount(tmp_path / "merged"), program=program)


@pytest.mark.parametrize("where", ["elsewhere", ""])
def test_who_serves_another_mount_is_not_asked(
    upper: Path, tmp_path: Path, mounted: Mounted, serve: Callable[..., str], where: str
) -> None:
    mounted(tmp_path / "merged", USER_ID, **FUSE)
    program = serve("-o", f"upperdir={upper}", *([tmp_path / where] if where else []))
    with pytest.raises(ArchiveError, match="not an overlay"):
        find(bind_mount(tmp_path / "merged"), program=program)


def test_another_program_is_not_believed(
    upper: Path, tmp_path: Path, mounted: Mounted, serve: Callable[..., str]
) -> None:
    mounted(tmp_path / "merged", USER_ID, **FUSE)
    serve("-o", f"upperdir={upper}", tmp_path / "merged")
    with pytest.raises(ArchiveError, match="not an overlay"):
        find(bind_mount(tmp_path / "merged"))


# What an engine leaves when it has unmounted


class Store:
    """An engine's directory of layers, one of which was a container's root file system."""

    def __init__(self, top: Path) -> None:
        self.top = top
        for layer in ("own", "base", "top"):
            (top / layer / "diff").mkdir(parents=True)
        (top / "own" / "merged").mkdir()
        (top / "own" / "lower").write_text("l/TOP:l/BASE")
        (top / "l").mkdir()
        for layer in ("base", "top"):
            (top / "l" / layer.upper()).symlink_to(f"../{layer}/diff")
        self.root = top / "own" / "merged"

    def find(self) -> OverlayMount:
        return find(root=self.root, at="/")


@pytest.fixture
def store(tmp_path: Path, mounted: Mounted) -> Store:
    mounted("/elsewhere", "upperdir=/u")
    return Store(tmp_path)


def whole_namespace() -> bool:
    return Path("/proc/self/uid_map").read_text().split() == ["0", "0", "4294967295"]


def test_a_root_file_system_that_was_unmounted_is_found(store: Store) -> None:
    found = store.find()

    assert found.upper == str(store.top / "own/diff")
    assert found.lowers == (str(store.top / "top/diff"), str(store.top / "base/diff"))
    assert found.dialect is (NATIVE if whole_namespace() else NATIVE_USERXATTR)
    assert found.may_refer_to_lowers is True


def test_a_mount_point_that_the_engine_removed_is_not_missed(store: Store) -> None:
    store.root.rmdir()

    assert store.find().upper == str(store.top / "own/diff")


def test_layers_whose_owners_were_mapped_have_older_ones_below(store: Store) -> None:
    for name in ("own/diff1", "own/diff2", "base/diff1"):
        (store.top / name).mkdir()

    names = ("own/diff1", "own/diff2", "top/diff", "base/diff", "base/diff1")
    assert store.find().lowers == tuple(str(store.top / name) for name in names)


@pytest.mark.parametrize(
    "used", ["merged has something in it", "merged is a link", "no diff", "another name"]
)
def test_what_no_engine_left_is_no_overlay(store: Store, used: str) -> None:
    if used == "merged has something in it":
        (store.root / "file").touch()
    elif used == "merged is a link":
        store.root.rmdir()
        store.root.symlink_to("diff")
    elif used == "no diff":
        (store.top / "own/diff").rmdir()
    else:
        store.root = store.root.rename(store.top / "own" / "rootfs")
    with pytest.raises(ArchiveError, match="is not an overlay"):
        store.find()


def test_where_something_else_is_mounted_that_is_what_counts(store: Store, mounted: Mounted) -> None:
    mounted(store.root, kind="tmpfs")
    with pytest.raises(ArchiveError, match="is not an overlay"):
        store.find()


def test_what_a_mount_program_served_is_not_known_any_more(store: Store) -> None:
    (store.top / ".has-mount-program").write_text("false\n")
    store.find()
    (store.top / ".has-mount-program").write_text("true\n")
    with pytest.raises(
        ArchiveError, match=f"{store.root} is not mounted any more, and .* by a mount program"
    ):
        store.find()


def instead(name: str, make: Callable[[Path], object]) -> Callable[[Path], object]:
    """Give what puts something else in the place of an entry of the store."""

    def replace(top: Path) -> None:
        path = top / name
        path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()
        make(path)

    return replace


def listing(text: str) -> Callable[[Path], object]:
    """Give what writes another list of lower layers."""
    return lambda top: (top / "own/lower").write_text(text)


def linked_to(target: str) -> Callable[[Path], object]:
    """Give what lets the name of a layer lead elsewhere."""
    return instead("l/BASE", lambda path: path.symlink_to(target))


def linked_away(name: str) -> Callable[[Path], object]:
    """Give what moves a directory away and leaves a link to it."""

    def replace(top: Path) -> None:
        (top / name).rename(top / "moved")
        (top / name).symlink_to("moved")

    return replace


DAMAGES: dict[str, tuple[str, Callable[[Path], object]]] = {
    "no list": ("own/lower: No such file or directory", lambda top: (top / "own/lower").unlink()),
    "a list that is none": ("own/lower is not a regular file", instead("own/lower", os.mkfifo)),
    "too long a list": (
        "own/lower is longer than any list that an engine writes",
        listing("l/BASE:" * 10_000),
    ),
    "a path": ("'../top/diff' does not name a lower layer", listing("../top/diff")),
    "an odd name": ("'l/A-B' does not name a lower layer", listing("l/A-B")),
    "no name": ("'l/' does not name a lower layer", listing("l/")),
    "a name that is cut": (f"'l/{'-' * 78}' does not name a lower layer", listing("l/" + "-" * 100)),
    "a layer that is gone": ("l/GONE: No such file or directory", listing("l/TOP:l/GONE")),
    "a layer elsewhere": ("l/BASE leads to /etc, which is not a layer", linked_to("/etc")),
    "a layer further up": ("leads to ../../diff, which is not a layer", linked_to("../../diff")),
    "a list that others may write": (
        "others can write to {}/own/lower, so it is not an engine's store",
        lambda top: (top / "own/lower").chmod(0o664),
    ),
    "links that others may write": (
        "others can write to {}/l, so it is not an engine's store",
        lambda top: (top / "l").chmod(0o777),
    ),
    "a layer that is a link": ("base is not a directory", linked_away("base")),
    "a layer beside": ("leads to ./base/diff, which is not a layer", linked_to("./base/diff")),
    "another directory": ("leads to ../base/work, which is not a layer", linked_to("../base/work")),
    "an image": (
        "base is an image of composefs, which is not mounted any more",
        lambda top: (top / "base/composefs-data").mkdir(),
    ),
    "a file for a layer": ("base/diff is not a directory", instead("base/diff", Path.touch)),
    "a link for an upperdir": (
        "own/diff is not a directory",
        instead("own/diff", lambda path: path.symlink_to("../top/diff")),
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_an_engine_left_has_to_be_whole(store: Store, damage: str) -> None:
    said, do = DAMAGES[damage]
    do(store.top)
    with pytest.raises(ArchiveError) as raised:
        store.find()
    assert f"the container's root file system {store.root} is not mounted any more" in str(raised.value)
    assert "what it was made of cannot be found: " in str(raised.value)
    assert str(raised.value).endswith(said.format(store.top))
