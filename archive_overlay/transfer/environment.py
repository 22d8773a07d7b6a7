"""The environment of programs that carry images: that of the engine's user, found without one of our own.

Source: containers/storage, pkg/unshare (what says that a process is in its user namespace already) and types/utils.go;
containers-auth.json(5); seen with skopeo 1.9 and podman 4.3.
"""

from __future__ import annotations

import os

from archive_overlay.system.user_namespace import has_all_users, outside

_PATH = "/usr/sbin:/usr/bin:/sbin:/bin"
_NO_HOME = "/"


def engine_environment(spare_home: str = _NO_HOME) -> dict[str, str]:
    """Return the variables for a program that deals with the engine's store, or with its user's passwords.

    In a rootless engine's user namespace, they name the user outside of it, and say that it has been entered.

    Args:
        spare_home: directory for a user who has no home, or one that is not his own: podman 5 makes `.config` there.
    """
    user = outside(os.geteuid())
    variables = {"PATH": _PATH, "HOME": _home(user) or spare_home}
    runtime = f"/run/user/{user}"
    try:
        rootless = not has_all_users()
    except OSError:
        rootless = False
    if rootless:
        variables["_CONTAINERS_USERNS_CONFIGURED"] = "done"
        variables["_CONTAINERS_ROOTLESS_UID"] = str(user)
    if (rootless or user) and os.path.isdir(runtime):
        variables["XDG_RUNTIME_DIR"] = runtime
    return variables


def _home(user: int) -> str:
    """Return the home of a user; "" if there is none that can be written to."""
    from pwd import getpwuid

    try:
        home = getpwuid(user).pw_dir
    except (KeyError, OSError):
        return ""
    return home if home.startswith("/") and os.path.isdir(home) and os.access(home, os.W_OK) else ""
