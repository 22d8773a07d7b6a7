"""skopeo, which carries images: its command lines, and what its failures mean.

Source: skopeo(1), skopeo-copy(1), skopeo-inspect(1), skopeo-delete(1), containers-transports(5); its messages as seen with
1.9 and 1.18.
"""

from __future__ import annotations

import re
import time

from archive_overlay.errors import ArchiveError
from archive_overlay.system.programs import ProgramError, require_program, run_program

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Callable

# What registries say of a tag or a name that is not there, in skopeo's words. Docker Hub and others say "denied" for a name
# that is not there, so that nobody learns what is: that is no answer to rely on.
_NOT_THERE = ("manifest unknown", "name unknown", "repository name not known")
# What mirrors said comes first. Whether an image is there, only its own registry knows.
_MIRRORS = re.compile(r"\(mirrors also failed: \[.*\]\): ", re.DOTALL)
_UNREACHABLE = (
    "connection refused",
    "no such host",
    "no route to host",
    "network is unreachable",
    "i/o timeout",
    "deadline exceeded",
    "connection reset by peer",
    "server misbehaving",
    "tls handshake timeout",
)
# How skopeo ends: what it says last, and the name of the image, which is said already.
_FATAL = re.compile(r'level=fatal msg="((?:[^"\\\n]|\\.)*)"')
_NAMED = re.compile(r'^Error parsing image name "[^"]*": ')
_HINTS = (
    ("authentication required", "log in with skopeo login HOST, or give --authfile"),
    ("unauthorized", "log in with skopeo login HOST, or give --authfile"),
    ("denied", "the registry may want another password: log in with skopeo login HOST, or give --authfile"),
    ("x509:", "its certificate belongs in /etc/containers/certs.d/HOST/ca.crt"),
    (
        "http response to https client",
        "--tls-verify=false is for registries without TLS, on loopback and in tests",
    ),
)
# The longest manifest that registries take, and the longest config that this program reads.
_MOST_MANIFEST = 4 * 1024 * 1024
_MOST_CONFIG = 32 * 1024 * 1024
# What skopeo itself is given less than is left, so that it ends by itself and says why.
_MARGIN = 1.0


class TransferError(ArchiveError):
    """Something could not be carried.

    Args:
        message: what is wrong.
        hint: what the user can do about it.
        unreachable: whether the other side did not answer, so that another attempt at once is in vain.
    """

    def __init__(self, message: str, *, hint: str = "", unreachable: bool = False) -> None:
        super().__init__(message, hint=hint)
        self.unreachable = unreachable


class Skopeo:
    """The program, with all that its calls have in common.

    Args:
        program: its absolute path.
        environment: its variables; None: those of this process, for what a person runs.
        timeout: in seconds, of all calls together.
        say: takes what it says on standard error.
        authfile: has the passwords of registries; None: those that it finds itself.
        tls_verify: whether registries have to prove who they are.
    """

    def __init__(
        self,
        program: str,
        *,
        environment: Mapping[str, str] | None,
        timeout: float,
        say: Callable[[str], object],
        authfile: str | None = None,
        tls_verify: bool = True,
    ) -> None:
        self._program = program
        self._environment = environment
        self._timeout = timeout
        self._deadline = time.monotonic() + timeout
        self._say = say
        self._authfile = [f"--authfile={authfile}"] if authfile else []
        self._tls_verify = tls_verify

    @property
    def left(self) -> float:
        """How many seconds are left for all calls together."""
        return max(self._deadline - time.monotonic(), 0.0)

    def require(self) -> None:
        """Make sure that it is there.

        Raises:
            ArchiveError: it is not.
        """
        require_program(
            self._program, purpose="run skopeo", hint="install skopeo, or give its absolute path by --skopeo"
        )

    def copy(self, source: str, destination: str, *options: str, largest_file: int | None = None) -> None:
        """Copy an image.

        Args:
            source, destination: with their transports, as oci:/srv/data:main.
            options: of the command, besides.
            largest_file: how many bytes a file may have that is written for it; None: any number.

        Raises:
            TransferError: it could not be copied.
        """
        tls = [
            f"--{side}-tls-verify=false"
            for side, name in (("src", source), ("dest", destination))
            if name.startswith("docker:") and not self._tls_verify
        ]
        arguments = [*self._authfile, *tls, *options, source, destination]
        what = f"copy {source} to {destination}"
        self._run(what, "copy", "--quiet", *arguments, largest_file=largest_file)

    def manifest(self, reference: str) -> bytes | None:
        """Return an image's manifest; None: there is no such image.

        Raises:
            TransferError: that cannot be said.
        """
        try:
            return self._inspect(reference, "--raw", most=_MOST_MANIFEST)
        except TransferError as error:
            cause = error.__cause__
            said = _MIRRORS.sub("", cause.said.lower()) if isinstance(cause, ProgramError) else ""
            if any(words in said for words in _NOT_THERE):
                return None
            raise

    def config(self, reference: str) -> bytes:
        """Return an image's config.

        Raises:
            TransferError: it cannot be read.
        """
        return self._inspect(reference, "--config", "--raw", most=_MOST_CONFIG)

    def delete(self, reference: str) -> None:
        """Delete an image.

        Raises:
            TransferError: it could not be deleted.
        """
        self._run(f"delete {reference}", "delete", *self._authfile, *self._tls(reference), reference)

    def _inspect(self, reference: str, *options: str, most: int) -> bytes:
        arguments = [*self._authfile, *self._tls(reference), *options, reference]
        return self._run(f"look at {reference}", "inspect", *arguments, most=most)

    def _tls(self, reference: str) -> list[str]:
        return ["--tls-verify=false"] if reference.startswith("docker:") and not self._tls_verify else []

    def _run(
        self,
        what: str,
        command: str,
        *arguments: str,
        most: int = 1 << 20,
        largest_file: int | None = None,
    ) -> bytes:
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise TransferError(f"cannot {what}: {self._timeout:.0f} s have passed already", unreachable=True)
        own = max(left - _MARGIN, left / 2)
        try:
            return run_program(
                [self._program, f"--command-timeout={own:.3f}s", command, *arguments],
                environment=self._environment,
                timeout=left,
                say=self._say,
                most_output=most,
                largest_file=largest_file,
            )
        except ProgramError as error:
            said = error.said.lower()
            silent = error.timed_out or any(words in said for words in _UNREACHABLE)
            hint = next((each for words, each in _HINTS if words in said), "")
            raise TransferError(f"cannot {what}: {_reason(error)}", hint=hint, unreachable=silent) from error


def _reason(error: ProgramError) -> str:
    """Return what skopeo said in the end, without the form of its log."""
    lines = [] if error.timed_out else _FATAL.findall(error.said)
    if not lines:
        return str(error)
    text = re.sub(r"\\(.)", r"\1", lines[-1])
    return _NAMED.sub("", text)
