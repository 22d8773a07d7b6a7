"""Real registries on loopback, with and without password and TLS, and a way to them that is slow, silent or broken.

What a registry holds is looked at by HTTP, and not by the project's own code.
"""

from __future__ import annotations

import base64
import json
import os
import re
import select
import shutil
import socket
import ssl
import subprocess
import threading
import time
import urllib.error
import urllib.request
from typing import TYPE_CHECKING, Any

from tests.support import tools

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path
    from typing import Callable

PROGRAM = "docker-registry"
USER, PASSWORD = "somebody", "correct horse"
ACCEPTED = "application/vnd.oci.image.manifest.v1+json"
_LISTENING = re.compile(r"listening on 127\.0\.0\.1:(\d+)")
_REQUEST = re.compile(r'"([A-Z]+ \S+) HTTP/[0-9.]+" (\d+)')


class Registry:
    """A registry that runs, with its storage in a directory.

    Args:
        directory: is made; storage, configuration and log are in it.
        password: whether it wants `USER` and `PASSWORD`.
        tls: whether it is asked by TLS. The certificate is for 127.0.0.1, and nobody but `certificate` vouches for it.
        megabytes: how large its storage may be; 0: as large as the disk. It is then seen by `digest` and no path.

    Attributes:
        host: 127.0.0.1:PORT; the same after it was stopped and started again.
        certificate: file of its certificate.
    """

    def __init__(
        self, directory: Path, *, password: bool = False, tls: bool = False, megabytes: int = 0
    ) -> None:
        tools.need(PROGRAM, "skopeo")
        self._directory = directory
        self._megabytes = megabytes
        self._tls = tls
        self._password = password
        self._process: subprocess.Popen[bytes] | None = None
        self._port = 0
        self.storage = directory / "storage"
        self.certificate = directory / "certificate.pem"
        self._key = directory / "key.pem"
        self.storage.mkdir(parents=True)
        if tls:
            self._make_certificate()
        if password:
            tools.need("htpasswd")
            made = subprocess.run(
                ["htpasswd", "-Bbn", "-C", "4", USER, PASSWORD], check=True, capture_output=True
            )
            (directory / "passwords").write_bytes(made.stdout)
        self.start()

    def __enter__(self) -> Registry:  # noqa: PYI034, Self is not in Python 3.9
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self._port}"

    def reference(self, name: str, tag: str = "main") -> str:
        """Give the name of an image in it as programs take it."""
        return f"docker://{self.host}/{name}:{tag}"

    def start(self) -> None:
        """Start it, at the port that it had before if it had one, and wait until it listens."""
        assert not self._process
        (self._directory / "config.json").write_text(json.dumps(self._configuration()))
        command = [PROGRAM, "serve", str(self._directory / "config.json")]
        if self._megabytes:
            tools.need("unshare")
            own = ["--mount"] if os.geteuid() == 0 else ["--user", "--map-root-user", "--mount"]
            script = 'mount -t tmpfs -o "size=$1m" tmpfs "$2" && shift 2 && exec "$@"'
            # The small file system is in a namespace of the registry's own, and goes with it.
            command = [
                *("unshare", *own, "--propagation", "private"),
                *("sh", "-ec", script, "sh", str(self._megabytes), str(self.storage), *command),
            ]
        before = self._log_size("errors")
        with open(self._directory / "errors", "ab") as errors, open(self._directory / "access", "ab") as log:
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=errors)
        for _ in range(1000):
            said = (self._directory / "errors").read_bytes()[before:].decode()
            if match := _LISTENING.search(said):
                self._port = int(match[1])
                return
            assert self._process.poll() is None, said
            time.sleep(0.01)
        raise AssertionError(f"the registry does not listen: {said}")

    def stop(self, *, kill: bool = False) -> None:
        """End it; what it has stays, unless its storage is small.

        Args:
            kill: whether it has no time to end anything.
        """
        if self._process:
            self._process.kill() if kill else self._process.terminate()
            self._process.wait()
            self._process = None

    def requests(self) -> list[str]:
        """Give all requests that were answered so far, as "HEAD /v2/NAME/blobs/DIGEST 404"."""
        log = (self._directory / "access").read_text()
        return [" ".join(each.groups()) for each in _REQUEST.finditer(log)]

    def authfile(self, path: Path) -> Path:
        """Make a file with the password, as `podman login` leaves it."""
        auth = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
        path.write_text(json.dumps({"auths": {self.host: {"auth": auth}}}))
        path.chmod(0o600)
        return path

    def trust(self, directory: Path) -> Path:
        """Make a directory of certificates (containers-certs.d) in which it is known."""
        (directory / self.host).mkdir(parents=True)
        shutil.copy(self.certificate, directory / self.host / "ca.crt")
        return directory

    def digest(self, name: str, tag: str = "main") -> str:
        """Give the digest of the manifest that a tag names; "" if there is none."""
        for attempt in range(5):
            try:
                found = self.ask("HEAD", f"{name}/manifests/{tag}")
                break
            except urllib.error.HTTPError as error:
                # While it moves the tag, the registry may read the file of it before that is written.
                if error.code != 500 or attempt == 4:
                    raise
                time.sleep(0.1)
        return str(found[1].get("docker-content-digest", "")) if found else ""

    def manifest(self, name: str, tag: str = "main") -> dict[str, Any]:
        """Give the manifest that a tag names."""
        found = self.ask("GET", f"{name}/manifests/{tag}")
        assert found, f"{name}:{tag} is not in the registry"
        manifest: dict[str, Any] = json.loads(found[0])
        return manifest

    def tags(self, name: str) -> list[str]:
        """Give the tags of an image, sorted; none if nothing has the name."""
        found = self.ask("GET", f"{name}/tags/list")
        return sorted(json.loads(found[0])["tags"] or ()) if found else []

    def ask(
        self, method: str, path: str, data: bytes | None = None, **headers: str
    ) -> tuple[bytes, Mapping[str, str]] | None:
        """Ask for something below /v2/; give the answer and its headers, in small letters; None: it is not there."""
        request = urllib.request.Request(
            f"http{'s' if self._tls else ''}://{self.host}/v2/{path}",
            method=method,
            data=data,
            headers={"Accept": ACCEPTED, **{key.replace("_", "-"): value for key, value in headers.items()}},
        )
        if self._password:
            auth = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
            request.add_header("Authorization", f"Basic {auth}")
        handlers: list[Any] = [urllib.request.ProxyHandler({})]
        if self._tls:
            context = ssl.create_default_context(cafile=str(self.certificate))
            handlers.append(urllib.request.HTTPSHandler(context=context))
        try:
            with urllib.request.build_opener(*handlers).open(request, timeout=30) as answer:
                return answer.read(), {key.lower(): value for key, value in answer.headers.items()}
        except urllib.error.HTTPError as error:
            error.close()
            if error.code == 404:
                return None
            raise

    def _configuration(self) -> dict[str, Any]:
        configuration: dict[str, Any] = {
            "version": "0.1",
            "log": {"accesslog": {"disabled": False}, "level": "info"},
            "storage": {
                "filesystem": {"rootdirectory": str(self.storage)},
                "delete": {"enabled": True},
                "maintenance": {"uploadpurging": {"enabled": False}},
            },
            "http": {"addr": f"127.0.0.1:{self._port}", "relativeurls": True, "secret": "the same each time"},
        }
        if self._password:
            passwords = str(self._directory / "passwords")
            configuration["auth"] = {"htpasswd": {"realm": "tests", "path": passwords}}
        if self._tls:
            configuration["http"]["tls"] = {"certificate": str(self.certificate), "key": str(self._key)}
        return configuration

    def _make_certificate(self) -> None:
        tools.need("openssl")
        subprocess.run(
            [
                *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"),
                *("-nodes", "-days", "2", "-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"),
                *("-keyout", self._key, "-out", self.certificate),
            ],
            check=True,
            capture_output=True,
        )

    def _log_size(self, name: str) -> int:
        path = self._directory / name
        return path.stat().st_size if path.exists() else 0


class Way:
    """A way to a registry that may be bad: connections to `host` are passed on.

    Args:
        registry: where it leads.
        silent: whether connections are accepted, and nothing is ever answered.
        bytes_per_second: how many go to the registry; 0: as many as there are.
        breaks_after: each connection ends after so many bytes that go to the registry; 0: none does.
        watch: is called with what goes to the registry, before it goes there: to do something at a certain request.

    Attributes:
        host: 127.0.0.1:PORT.
        connections: how many there were.
        broken: how many of them it has ended.
    """

    def __init__(
        self,
        registry: Registry,
        *,
        silent: bool = False,
        bytes_per_second: int = 0,
        breaks_after: int = 0,
        watch: Callable[[bytes], None] | None = None,
    ) -> None:
        self._registry = registry
        self.silent = silent
        self.bytes_per_second = bytes_per_second
        self.breaks_after = breaks_after
        self._watch = watch
        self.connections = 0
        self.broken = 0
        self._ended = False
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.host = f"127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> Way:  # noqa: PYI034, Self is not in Python 3.9
        return self

    def __exit__(self, *_: object) -> None:
        self._ended = True
        # Wakes up who accepts.
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def reference(self, name: str, tag: str = "main") -> str:
        """Give the name of an image at its other end as programs take it."""
        return f"docker://{self.host}/{name}:{tag}"

    def _accept(self) -> None:
        while not self._ended:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            threading.Thread(target=self._pass_on, args=(connection,), daemon=True).start()

    def _pass_on(self, near: socket.socket) -> None:
        port = int(self._registry.host.rpartition(":")[2])
        sent = 0
        try:
            with near, socket.create_connection(("127.0.0.1", port)) as far:
                while not self._ended:
                    ready, _, _ = select.select([near, far], [], [], 0.2)
                    if self.silent:
                        if near in ready and not near.recv(65536):
                            return
                        continue
                    for each in ready:
                        data = each.recv(4096 if self.bytes_per_second else 65536)
                        if not data:
                            return
                        if each is far:
                            near.sendall(data)
                            continue
                        sent += len(data)
                        if self._watch:
                            self._watch(data)
                        if self.breaks_after and sent > self.breaks_after:
                            self.broken += 1
                            return
                        if self.bytes_per_second:
                            time.sleep(len(data) / self.bytes_per_second)
                        far.sendall(data)
        except OSError:
            pass  # one of the two has gone
