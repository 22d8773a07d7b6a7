"""A containerd of the test's own, on the machine of tests/support/engines.py."""

from __future__ import annotations

import contextlib
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tests.support.engines import IMAGE, IMAGE_ROOT, Engine, wait_until

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterator

    from tests.support.engines import Machine

PROGRAMS = ("containerd", "ctr", "containerd-shim-runc-v2", "pgrep")

# The image of the container that keeps a pod's namespaces.
PAUSE = "localhost/pause:1"

# The machine's control groups cannot do what containerd asks for by default.
_RUNC_WITHOUT_LIMITS = """\
#!/bin/sh
for argument; do
    [ "$previous" != --bundle ] ||
        sed -i 's/"cpu": *{"shares": *[0-9]*}/"cpu": {}/; s/"resources":{.*},"cgroupsPath"/"cgroupsPath"/' "$argument/config.json"
    previous=$argument
done
exec runc "$@"
"""


@dataclass(frozen=True)
class Containerd:
    """The daemon.

    Attributes:
        machine: where it runs.
        home: a directory with all that belongs to it.
    """

    machine: Machine
    home: str

    @property
    def socket(self) -> str:
        return f"{self.home}/socket"

    @property
    def runc(self) -> str:
        """A runc that sets no limits."""
        return f"{self.home}/runc"

    def ctr(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run its client; see `Machine.run`."""
        return self.machine.run("ctr", "--address", self.socket, *arguments, check=check)

    def log(self) -> str:
        """Give what the daemon has said."""
        return self.machine.outside(f"{self.home}/log").read_text()

    def write_program(self, path: str, text: str) -> None:
        """Write a script that can be executed."""
        self.machine.outside(path).write_text(text)
        self.machine.outside(path).chmod(0o755)

    def snapshot(self, name: str) -> str:
        """Mount a writable snapshot of the image.

        Returns:
            Where it is mounted.
        """
        mount_point = f"{self.home}/mounted-{name}"
        self.machine.run("mkdir", mount_point)
        parent = re.findall(r"^(sha256:\S+)", self.ctr("snapshots", "list").stdout, re.MULTILINE)
        self.ctr("snapshots", "prepare", name, *parent)
        self.machine.run("sh", "-ec", self.ctr("snapshots", "mounts", mount_point, name).stdout)
        return mount_point


@contextlib.contextmanager
def running(machine: Machine, home: str, *, namespace: str, configuration: str) -> Iterator[Containerd]:
    """Start the daemon, and stop it.

    Args:
        machine: where.
        home: a directory, which is made, for all that belongs to it.
        namespace: containerd's name for what belongs together; the image is imported into this one.
        configuration: its configuration, besides that of its directories.
    """
    made = Containerd(machine, home)
    machine.run("mkdir", home)
    made.write_program(made.runc, _RUNC_WITHOUT_LIMITS)
    machine.outside(f"{home}/config.toml").write_text(f"""\
version = 2
root = "{home}/root"
state = "{home}/state"
{configuration}
[grpc]
address = "{made.socket}"
[ttrpc]
address = "{made.socket}.ttrpc"
[plugins."io.containerd.internal.v1.opt"]
path = "{home}/opt"
""")
    started = machine.run("sh", "-ec", 'containerd --config "$0/config.toml" >"$0/log" 2>&1 & echo $!', home)
    wait_until(lambda: made.ctr("version", check=False).returncode == 0, "containerd does not come up")
    podman = Engine(machine, rootless=False, store="native", runtime="runc")
    podman.podman("import", "--change", 'CMD ["/bin/sleep", "infinity"]', f"{IMAGE_ROOT}.tar", PAUSE)
    for image in (IMAGE, PAUSE):
        podman.podman("save", "--quiet", "--format=oci-archive", f"--output={home}/image.tar", image)
        made.ctr("--namespace", namespace, "images", "import", f"{home}/image.tar")
    yield made
    machine.run("kill", started.stdout.strip())
