"""What the administrator asks for, on the command line of the hook: no annotation changes it."""

from __future__ import annotations

from archive_overlay.system.record import Record

DEFAULT_MOUNT_PROGRAM = "/usr/bin/fuse-overlayfs"
DEFAULT_LOG_LEVEL = "info"
DEFAULT_SKOPEO = "/usr/bin/skopeo"
DEFAULT_PODMAN = "/usr/bin/podman"
DEFAULT_PUSH_TIMEOUT = 60


class TransferSettings(Record):
    """How images are carried to other places.

    Attributes:
        skopeo, podman: absolute paths of the programs that do it.
        load_prefixes: what the names that images are loaded by must begin with; None: anything.
        push_prefixes: what the names that images are pushed by must begin with; none: nothing is pushed.
        authfile: absolute path of the file with the passwords of registries; None: the user's own.
        push_timeout: in seconds, of all that one archive has to do with registries.
        tls_verify: whether registries have to prove who they are.
    """

    skopeo: str = DEFAULT_SKOPEO
    podman: str = DEFAULT_PODMAN
    load_prefixes: tuple[str, ...] | None = None
    push_prefixes: tuple[str, ...] = ()
    authfile: str | None = None
    push_timeout: int = DEFAULT_PUSH_TIMEOUT
    tls_verify: bool = True


class Settings(Record):
    """How the hook works.

    Attributes:
        bundle: the bundle to read instead of a container state on stdin; None: read the state.
        mount_program: path of the executable that serves overlays in user space.
        rescue_dir: absolute path of the directory that keeps upperdirs whose archive failed, or None.
        allowed: directories in which archives may be; none: anywhere.
        trust_image_annotations: whether a container's image may ask for archives.
        setid: whether set-user-ID and set-group-ID bits and file capabilities may be in archives.
        max_bytes: of an archive, before compression; None: any number.
        max_entries: of an archive, deletions and directories counted; None: any number.
        file_mode: permission bits of tars and of the files of image layouts; None: 0600, or what the default ACL of
            the directory says.
        jobs: how many threads may work; 0: as many as there are processors for this process.
        fsync: whether archives are flushed to disk before they are published.
        transfer: how images get to other places than their layouts.
        on_success, on_failure: absolute path of the program that is told of each archive with which all went well, or
            something did not; None: there is none.
        log_level, log_file, syslog: see `log`.
    """

    bundle: str | None = None
    mount_program: str = DEFAULT_MOUNT_PROGRAM
    rescue_dir: str | None = None
    allowed: tuple[str, ...] = ()
    trust_image_annotations: bool = False
    setid: bool = True
    max_bytes: int | None = None
    max_entries: int | None = None
    file_mode: int | None = None
    jobs: int = 0
    fsync: bool = True
    transfer: TransferSettings = TransferSettings()
    on_success: str | None = None
    on_failure: str | None = None
    log_level: str = DEFAULT_LOG_LEVEL
    log_file: str | None = None
    syslog: bool = False

    @property
    def limits_contents(self) -> bool:
        """Whether what an archive holds has to be looked at."""
        return not self.setid or self.max_bytes is not None or self.max_entries is not None


def swallowed_options(name: str) -> list[str]:
    """Give the options that a hook's configuration has where the program's name belongs, in the first of `args`.

    The program never sees them, for the kernel puts the script's path there: execve(2), "Interpreter scripts".
    """
    return [word for word in name.split() if word.startswith("-")]
