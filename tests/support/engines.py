"""Real container engines on a machine of their own: podman, runc and crun.

The machine is a mount and a PID namespace. In it /dev, /run and the cgroups are private, changes to /etc
and /var/lib stay in an overlay, a user for rootless engines exists, and a syslog daemon listens. When its
first process ends, the kernel ends all others and takes every mount away, whatever a test or an engine
left behind.
"""

from __future__ import annotations

import contextlib
import json
import os
import stat
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.support import overlays, tools

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from typing import Callable, TypeVar

    T = TypeVar("T")

TOP = Path(__file__).resolve().parents[2]

# Everything below that begins with a slash is a path on the machine. Stores lie there too, so it is
# short: podman refuses a runroot of more than 50 characters.
HERE = "/run/e2e"
IMAGE_ROOT = f"{HERE}/image"
INSTALLED = f"{HERE}/usr"
HOOK = f"{INSTALLED}/bin/archive_overlay"
HOOKS_DIR = f"{INSTALLED}/share/containers/oci/hooks.d"
SYSLOG = f"{HERE}/syslog"

IMAGE = "localhost/test:1"
FUSE_OVERLAYFS = "/usr/bin/fuse-overlayfs"

# The user of rootless engines. In its containers, root is the user itself, and n is the n-th of its
# subordinate ids.
USER = 61_234
FIRST_SUBORDINATE = 1_000_000
SUBORDINATES = 65_536
FIRST_AUTOMATIC = 2_000_000

PROGRAMS = (
    *("podman", "runc", "crun", "fuse-overlayfs", "newuidmap", "newgidmap"),
    *("busybox", "chroot", "make", "mount", "nsenter", "tar", "umount", "unshare"),
)

# What a machine's first process does in its namespaces: stay in this machine's root, or, in a directory $0,
# make another one of a copy of the directory $1.
_STAY = "mount -t proc proc /proc"
_CHANGE_ROOT = """
    mount -t tmpfs -o mode=755 tmpfs "$0"
    cd "$0"
    cp -a "$1/." .
    mount -t proc proc proc
    mount --rbind /sys sys
    pivot_root . mnt
    umount -l /mnt
"""

# A net for what hangs, in seconds: no command takes more than a small part of it.
_TIMEOUT = 60


@dataclass(frozen=True)
class Machine:
    """The namespaces in which engines run.

    Attributes:
        keeper: id of a process in the machine's mount namespace, and with its PID namespace for children.
    """

    keeper: int

    def outside(self, path: str) -> Path:
        """Give the path by which this process reaches a file of the machine."""
        return Path(f"/proc/{self.keeper}/root{path}")

    @property
    def cgroup(self) -> str:
        """The parent of all control groups that containers get, unlike any that this system has."""
        # Ids of processes repeat in other namespaces, where tools/matrix.sh may run at the same time.
        namespace = os.stat("/proc/self/ns/pid").st_ino
        return f"/archive_overlay-e2e-{namespace}-{self.keeper}"

    def run(
        self,
        *command: str,
        user: int = 0,
        environment: Mapping[str, str] = {},
        check: bool = True,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command on the machine to its end.

        Args:
            command: the program and its arguments.
            user: the user and the group that it runs as.
            environment: its variables besides PATH.
            check: whether an exit status other than 0 fails the test, with all that was said.
        """
        variables = {"PATH": "/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", **environment}
        done = subprocess.run(
            [
                *("nsenter", f"--mount=/proc/{self.keeper}/ns/mnt"),
                *(f"--pid=/proc/{self.keeper}/ns/pid_for_children", f"--setuid={user}", f"--setgid={user}"),
                *("--", *command),
            ],
            # With the mount namespace the working directory becomes its root.
            env=variables,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="surrogateescape",
            timeout=_TIMEOUT,
            check=False,
        )
        if check and done.returncode != 0:
            said = f"{done.stdout}\n{done.stderr}"
            pytest.fail(f"exit status {done.returncode} of {' '.join(command)}\n{said}")
        return done

    def command_lines(self) -> Iterator[bytes]:
        """Give the command lines of all processes, a NUL after each word."""
        for process in self.outside("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):  # it has ended
                yield (process / "cmdline").read_bytes()

    def syslog(self) -> list[str]:
        """Give the lines that the syslog daemon has received up to now."""
        # The daemon reads its socket in order: when it has written this, it has written all before it.
        mark = f"mark {time.monotonic_ns()}"
        self.run("busybox", "logger", mark)
        deadline = time.monotonic() + _TIMEOUT
        while time.monotonic() < deadline:
            lines = self.outside(SYSLOG).read_text(errors="surrogateescape").splitlines()
            if lines and lines[-1].endswith(mark):
                return lines[:-1]
            time.sleep(0.01)
        raise AssertionError("the syslog daemon has not written a message that was sent to it")


@dataclass(frozen=True)
class Engine:
    """podman with one runtime, on one store, as one user.

    Attributes:
        machine: where it runs.
        rootless: whether it runs as an ordinary user.
        store: "native" (overlays are the kernel's) or "fuse" (they are served by fuse-overlayfs).
        runtime: "runc" or "crun".
    """

    machine: Machine
    rootless: bool
    store: str
    runtime: str

    @property
    def home(self) -> str:
        """A directory that belongs to its user, with its configuration and its store."""
        return f"{HERE}/{'rootless' if self.rootless else 'rootful'}-{self.store}"

    @property
    def places(self) -> tuple[str, str]:
        """Options of our commands that name its store."""
        run = "containers" if self.rootless else "storage"
        return f"--root={self.home}/storage", f"--runroot={self.home}/run/{run}"

    @property
    def opaque_attribute(self) -> str:
        """The attribute by which an archive of this engine's overlays marks opaque directories."""
        return f"{'trusted' if (self.rootless, self.store) == (False, 'native') else 'user'}.overlay.opaque"

    def podman(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run podman; see `Machine.run`."""
        return self.machine.run(
            *("podman", "--runtime", self.runtime, *arguments),
            user=USER if self.rootless else 0,
            environment=self.environment,
            check=check,
        )

    @property
    def environment(self) -> dict[str, str]:
        return {
            "HOME": self.home,
            "XDG_RUNTIME_DIR": f"{self.home}/run",
            "CONTAINERS_CONF": f"{self.home}/containers.conf",
            "CONTAINERS_STORAGE_CONF": f"{self.home}/storage.conf",
        }

    def run(
        self,
        name: str,
        *options: str,
        command: str,
        annotations: Mapping[str, str],
        image: str = IMAGE,
        podman_options: tuple[str, ...] = (),
        detach: bool = False,
        check: bool = True,
    ) -> subprocess.CompletedProcess[str]:
        """Run a container, and wait until its hooks have run.

        Args:
            name: the container's.
            options: podman's options after the verb.
            command: a shell script for the container; the first command that fails ends it.
            annotations: the container's.
            image: what its root file system is made from; the test image by default.
            podman_options: podman's options before the verb.
            detach: whether to leave it running instead.
            check: whether an exit status other than 0 fails the test.
        """
        if self.runtime == "crun":
            # With control groups, crun raises a limit for which a machine's root may lack the privilege.
            groups = ["--cgroups=disabled"]
        else:
            # runc cannot do without. As an ordinary user it cannot make any, and does not insist.
            groups = [] if self.rootless else [f"--cgroup-parent={self.machine.cgroup}"]
        done = self.podman(
            *(*podman_options, "run", f"--name={name}", f"--detach={str(detach).lower()}", *groups),
            *(f"--annotation={key}={value}" for key, value in annotations.items()),
            *(*options, image, "sh", "-ec", command),
            check=check,
        )
        if not detach:
            self._wait_for_hooks(name)
        return done

    def inspect(self, container: str, field: str) -> str:
        """Read one field of what podman knows about a container."""
        return self.podman("inspect", "--format", f"{{{{.{field}}}}}", container).stdout.strip()

    def spec(self, container: str) -> dict[str, Any]:
        """Read the spec that podman wrote for a container's last start."""
        path = self.inspect(container, "OCIConfigPath")
        spec: dict[str, Any] = json.loads(self.machine.outside(path).read_bytes())
        return spec

    def as_container_root(self, *command: str) -> str:
        """Run a command as the user that containers take for root, on this engine's store.

        Returns:
            What it wrote to stdout.
        """
        if self.rootless:
            return self.podman("unshare", *command).stdout
        return self.machine.run(*command, environment=self.environment).stdout

    def inside(self, container: str, function: Callable[[Path], T]) -> T:
        """Run a function in a process that sees what a running container sees, with all privileges there.

        Args:
            container: its name.
            function: called with the container's root directory; see `overlays.Namespace.inside`.
        """
        process = self.machine.outside(f"/proc/{self.inspect(container, 'State.Pid')}")
        root = os.open(process / "root", os.O_PATH)
        try:
            return _OfContainer(process).inside(lambda: function(Path(f"/proc/self/fd/{root}")))
        finally:
            os.close(root)

    def new_directory(self, name: str) -> str:
        """Make an empty directory that belongs to the engine's user."""
        path = f"{self.home}/{name}"
        _make_directory(self, path)
        return path

    def _wait_for_hooks(self, container: str) -> None:
        # `podman run` may end with the container's process. What remains to be done, the poststop hooks
        # and the removal among it, is done by conmon's process, which becomes a `podman container cleanup`.
        conmon, cleanup = f"\0-n\0{container}\0".encode(), b"\0container\0cleanup\0"
        wait_until(
            lambda: not any(conmon in line or cleanup in line for line in self.machine.command_lines()),
            f"the hooks of {container} do not end",
        )


class _OfContainer(overlays.Namespace):
    """The user namespace of a container's process: without it, nobody reads what rootless FUSE serves.

    Args:
        process: its directory in a /proc.
    """

    def __init__(self, process: Path) -> None:
        self.rootless = True
        self._process = process

    def close(self) -> None:
        """Leave the namespace to the container."""

    def _enter(self) -> None:
        namespace = os.open(self._process / "ns/user", os.O_RDONLY)
        # The one that this process is in already cannot be entered again.
        if not os.path.samestat(os.fstat(namespace), os.stat("/proc/self/ns/user")):
            overlays.enter(namespace)
            os.setgid(0)
            os.setuid(0)
        os.umask(0o022)


def wait_until(condition: Callable[[], bool], complaint: str) -> None:
    """Wait for what another process does.

    Args:
        condition: what has to come true.
        complaint: what fails the test if it does not.
    """
    deadline = time.monotonic() + _TIMEOUT
    while not condition():
        if time.monotonic() > deadline:
            pytest.fail(complaint)
        time.sleep(0.01)


@contextlib.contextmanager
def machine(executable: Path) -> Iterator[Machine]:
    """Set a machine up, with the hook installed, and take it away again with all that happened on it.

    Args:
        executable: the built program.
    """
    with bare_machine() as made:
        _install(made, executable)
        for rootless in (False, True):
            for store in ("native", "fuse"):
                prepare_store(Engine(made, rootless, store, "crun"), hooks_dir=HOOKS_DIR)
        yield made


@contextlib.contextmanager
def bare_machine(root: Path | None = None) -> Iterator[Machine]:
    """Set a machine up on which nothing is installed, and take it away again.

    Args:
        root: what its root file system is a copy of; None: it has this machine's.
    """
    with tempfile.TemporaryDirectory(prefix="archive_overlay-e2e-", dir="/var/tmp") as disk:
        # `cat` is the machine's first process: it lives until this process closes its stdin or dies.
        # It inherits all orphans; as it ignores SIGCHLD, the kernel buries them.
        with subprocess.Popen(
            [
                *("unshare", "--mount", "--pid", "--fork", "--propagation=private", "--"),
                *("sh", "-ec", f"{_CHANGE_ROOT if root else _STAY}\nexec env --ignore-signal=CHLD cat"),
                *(disk, str(root)),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
        ) as keeper:
            assert keeper.stdin
            assert keeper.stdout
            keeper.stdin.write(b"\n")
            assert keeper.stdout.read(1) == b"\n", "namespaces cannot be made"
            made = Machine(keeper.pid)
            # Rootless engines read files that are written here.
            umask = os.umask(0o022)
            try:
                _furnish(made, disk)
                yield made
            finally:
                os.umask(umask)
        _remove_cgroups(made)


def _furnish(machine: Machine, disk: str) -> None:
    machine.run("mount", "--make-rshared", "/")
    _mount_tmpfs(machine, "/run", "mode=755")
    machine.outside(HERE).mkdir()
    _choose_file_system(machine, disk)
    for directory in ("/etc", "/var/lib"):
        _mount_private_copy(machine, directory)
    _mount_dev(machine)
    # One hierarchy of control groups whatever there was: crun refuses a mixture of versions 1 and 2.
    machine.run("mount", "-t", "cgroup2", "cgroup2", "/sys/fs/cgroup")
    _add_user(machine)
    _make_image(machine)
    machine.run("busybox", "syslogd", "-O", SYSLOG)
    deadline = time.monotonic() + _TIMEOUT
    while not machine.outside("/dev/log").is_socket():
        assert time.monotonic() < deadline, "the syslog daemon does not come up"
        time.sleep(0.01)


def _choose_file_system(machine: Machine, disk: str) -> None:
    # Rootless overlays need attributes in the user namespace, which tmpfs has since Linux 6.6 only.
    try:
        os.setxattr(machine.outside(HERE), "user.test", b"")
    except OSError:
        os.chmod(disk, 0o755)
        machine.run("mount", "--bind", disk, HERE)


def _mount_tmpfs(machine: Machine, where: str, options: str) -> None:
    machine.run("mount", "-t", "tmpfs", "-o", options, "tmpfs", where)


def _mount_private_copy(machine: Machine, directory: str) -> None:
    layers = f"{HERE}/private{directory}"
    machine.run("mkdir", "-p", f"{layers}/upper", f"{layers}/work")
    options = f"lowerdir={directory},upperdir={layers}/upper,workdir={layers}/work"
    machine.run("mount", "-t", "overlay", "-o", options, "overlay", directory)


def _mount_dev(machine: Machine) -> None:
    """Mount a /dev with a FUSE device for everyone and no syslog socket as yet."""
    _mount_tmpfs(machine, "/dev", "mode=755")
    dev = machine.outside("/dev")
    for name, major, minor in (
        *(("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9)),
        *(("tty", 5, 0), ("fuse", 10, 229)),
    ):
        os.mknod(dev / name, stat.S_IFCHR, os.makedev(major, minor))
        os.chmod(dev / name, 0o666)
    for name, target in (
        *(("fd", "/proc/self/fd"), ("stdin", "fd/0"), ("stdout", "fd/1"), ("stderr", "fd/2")),
        ("ptmx", "pts/ptmx"),
    ):
        (dev / name).symlink_to(target)
    (dev / "pts").mkdir()
    (dev / "shm").mkdir()
    machine.run("mount", "-t", "devpts", "-o", "newinstance,ptmxmode=666", "devpts", "/dev/pts")
    _mount_tmpfs(machine, "/dev/shm", "mode=1777")


def _add_user(machine: Machine) -> None:
    etc = machine.outside("/etc")
    for name, line in (
        ("passwd", f"e2e:x:{USER}:{USER}::/:/bin/sh"),
        ("group", f"e2e:x:{USER}:"),
        ("passwd", f"containers:x:{USER + 1}:{USER + 1}::/:/bin/sh"),
        ("subuid", f"{USER}:{FIRST_SUBORDINATE}:{SUBORDINATES}"),
        ("subgid", f"{USER}:{FIRST_SUBORDINATE}:{SUBORDINATES}"),
        # Whose ids rootful podman takes for --userns=auto; podman 5.8 wants a user of that name.
        ("subuid", f"containers:{FIRST_AUTOMATIC}:{10 * SUBORDINATES}"),
        ("subgid", f"containers:{FIRST_AUTOMATIC}:{10 * SUBORDINATES}"),
    ):
        with open(etc / name, "a", encoding="ascii") as file:
            file.write(f"{line}\n")
    policy = etc / "containers/policy.json"
    policy.parent.mkdir(exist_ok=True)
    policy.write_text('{"default": [{"type": "insecureAcceptAnything"}]}')


def _make_image(machine: Machine) -> None:
    """Make a root file system of busybox, and of a directory `tree` for containers to change."""
    root = machine.outside(IMAGE_ROOT)
    for directory in ("bin", "etc", "proc", "sys", "dev", "tree/replaced/old"):
        (root / directory).mkdir(parents=True)
    for name in ("kept", "changed", "deleted", "owned", "program", "dated", "replaced/old/file"):
        (root / "tree" / name).write_text(f"{name} of the image\n")
    (root / "etc/passwd").write_text("root:x:0:0::/:/bin/sh\n")
    machine.run("sh", "-c", f'cp "$(command -v busybox)" {IMAGE_ROOT}/bin/')
    # Nothing else is in there: this fails where busybox is linked dynamically (install busybox-static).
    machine.run("chroot", IMAGE_ROOT, "/bin/busybox", "--install", "-s", "/bin")
    machine.run("tar", "-C", IMAGE_ROOT, "--numeric-owner", "-cf", f"{IMAGE_ROOT}.tar", ".")


def _install(machine: Machine, executable: Path) -> None:
    destination = (f"PROGRAM={executable}", f"DESTDIR={machine.outside('/')}", f"PREFIX={INSTALLED}")
    # On its way it writes files in .cache, whose names are always the same.
    (TOP / ".cache").mkdir(exist_ok=True)
    with tools.alone(TOP / ".cache/install.lock"):
        subprocess.run(
            ["make", "--silent", "install", *destination],
            cwd=TOP,
            stdin=subprocess.DEVNULL,
            # The tests may themselves be run by a make, with variables of its own.
            env={key: value for key, value in os.environ.items() if not key.startswith(("MAKE", "MFLAGS"))},
            check=True,
        )


def prepare_store(engine: Engine, *, hooks_dir: str | None) -> None:
    """Configure podman for a store, which engines with different runtimes share, and import the image.

    Args:
        engine: any of the engines that share it.
        hooks_dir: the directory of hooks that podman is told of; None: it is told of none.
    """
    home = engine.home
    for path in (home, f"{home}/run"):
        _make_directory(engine, path)
    containers_conf = f"""\
[containers]
# Raises nothing: the machine's root may lack the privilege.
default_ulimits = ["nofile=1024:1024", "nproc=1024:1024"]
pids_limit = 0
netns = "none"
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
tmp_dir = "{home}/run/libpod"
"""
    if hooks_dir:
        containers_conf += f'hooks_dir = ["{hooks_dir}"]\n'
    # Rootless podman 4.3 reads only the one name, and podman 5.8 complains of two.
    storage_conf = f"""\
[storage]
driver = "overlay"
runroot = "{home}/run/storage"
{"rootless_storage_path" if engine.rootless else "graphroot"} = "{home}/storage"
"""
    if engine.store == "fuse":
        storage_conf += f'[storage.options.overlay]\nmount_program = "{FUSE_OVERLAYFS}"\n'
    outside = engine.machine.outside(home)
    (outside / "containers.conf").write_text(containers_conf)
    (outside / "storage.conf").write_text(storage_conf)
    engine.podman("import", f"{IMAGE_ROOT}.tar", IMAGE)


@contextlib.contextmanager
def pods(engine: Engine) -> Iterator[None]:
    """Let an engine make pods, whose own containers need no program of the host."""
    # No first process dies of SIGTERM by itself.
    sleep = '["sh", "-c", "trap exit TERM; sleep infinity & wait"]'
    engine.podman("import", f"--change=CMD {sleep}", f"{IMAGE_ROOT}.tar", "localhost/infra:1")
    conf = engine.machine.outside(f"{engine.home}/containers.conf")
    before = conf.read_text()
    conf.write_text(f'{before}infra_image = "localhost/infra:1"\n')
    try:
        yield
    finally:
        engine.podman("pod", "rm", "--all", "--force", check=False)
        conf.write_text(before)


def _make_directory(engine: Engine, path: str) -> None:
    outside = engine.machine.outside(path)
    outside.mkdir(mode=0o700)
    owner = USER if engine.rootless else 0
    os.chown(outside, owner, owner)


def _remove_cgroups(machine: Machine) -> None:
    # Control groups belong to the whole system. They cannot be removed before their processes are gone.
    with tempfile.TemporaryDirectory(prefix="archive_overlay-cgroup-") as directory:
        script = f"""
            mount -t cgroup2 cgroup2 {directory}
            [ ! -d {directory}{machine.cgroup} ] || find {directory}{machine.cgroup} -depth -type d -exec rmdir {{}} +
        """
        subprocess.run(["unshare", "--mount", "--", "sh", "-ec", script], check=True)
