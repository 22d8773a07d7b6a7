"""What the mount table says of file systems."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from archive_overlay.system.mountinfo import device_below, devices_of

TABLE = b"""\
22 27 0:21 / /proc rw,relatime - proc proc rw
23 27 0:22 / /sys rw,relatime shared:7 master:1 - sysfs sysfs rw
24 27 0:6 / /dev rw,relatime - devtmpfs devtmpfs rw,size=12334432k,mode=755
25 24 0:23 / /dev/shm rw - tmpfs tmpfs rw
27 1 254:300 / / rw,relatime - ext4 /dev/vda rw
31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw
32 31 0:29 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw
33 27 0:31 / /net rw - autofs auto rw
34 27 0:21 /sys /srv/some\\040place rw - proc proc rw
40 27 0:40 / /home/a/m rw - fuse.sshfs a@b: rw,user_id=1000,group_id=1000
41 27 0:41 / /home/a/n rw - fuse.sshfs a@b: rw,user_id=1000,group_id=1000,allow_other
42 27 0:42 / /mnt rw - fuseblk /dev/sda1 rw,user_id=0,group_id=0,default_permissions,allow_other
43 27 0:43 / /o rw - fuse fuse rw,user_id=1000,allow_other
44 23 0:44 / /sys/fs/fuse/connections rw - fusectl fusectl rw
"""


def test_what_is_the_kernel_s_is_told_from_what_holds_data() -> None:
    kernel = devices_of(TABLE.splitlines(keepends=True)).of_the_kernel
    assert kernel == {os.makedev(0, minor) for minor in (21, 22, 29, 44)}


@pytest.mark.parametrize(("user", "minors"), [(0, (41, 43)), (1000, ()), (7, (41, 43))])
def test_what_others_serve_for_all(
    user: int, minors: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: user)
    assert devices_of(TABLE.splitlines()).of_others == {os.makedev(0, minor) for minor in minors}


def test_a_file_is_in_the_mount_that_the_kernel_names() -> None:
    with Path("/proc/self/mountinfo").open("rb") as file:
        assert device_below(file.fileno()) == os.fstat(file.fileno()).st_dev
