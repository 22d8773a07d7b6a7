"""Registries that fail, refuse, are not there, or mean harm: what could not be pushed waits, and nothing else happens."""

from __future__ import annotations

import fcntl
import http.server
import os
import signal
import subprocess
import threading
from typing import TYPE_CHECKING

import pytest

from tests.support import history, hooks, image_layouts
from tests.support.hosts import Host, append, expect_tidy, once
from tests.support.registry import PASSWORD, Registry, Way

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

NAME = "team/data"


@pytest.fixture
def host(scratch: Path) -> Host:
    """Give a host with one revision."""
    host = Host(scratch / "one", "")
    host.stop("1")
    return host


def expect_waiting(host: Host, result: hooks.Result, *words: str) -> None:
    """Fail the test unless a push failed, said why, and left the layout as it should be."""
    assert (result.status, result.stdout) == (1, "")
    assert all(word in result.stderr for word in words), result.stderr
    assert host.waits
    expect_tidy(host.layout)


@pytest.fixture
def small(scratch: Path) -> Iterator[Registry]:
    """Give a registry with little room."""
    with Registry(scratch / "registry", megabytes=2) as registry:
        yield registry


def test_a_registry_that_was_stopped_gets_it_later(host: Host, scratch: Path) -> None:
    with Registry(scratch / "registry") as registry:
        registry.stop()
        host.remote = registry.reference(NAME)
        assert host.push(f"--to={host.remote}", f"{host.layout}:main").status == 1
        expect_waiting(host, host.push(), f"{host.layout}:main still waits", "connection refused")

        registry.start()

        assert host.push().stdout == f"main is pushed to {host.remote}\n"
        assert registry.digest(NAME) == host.digest()


def test_no_second_tag_is_tried_at_a_registry_that_is_silent(host: Host, shared: Registry) -> None:
    with Way(shared, silent=True) as way:
        for tag in ("main", "b", "c"):
            host.stop("1", tag)
            host.note(tag, way.reference(NAME, tag))

        result = host.push("--timeout=1")

        assert way.connections == 1
    assert result.status == 1
    assert [line.count("still waits") for line in result.stderr.splitlines()] == [1, 1, 1]


def test_a_registry_without_room_has_nothing_of_it(host: Host, small: Registry) -> None:
    host.remote = small.reference(NAME)
    host.push_to()
    before = small.digest(NAME)
    append(host.layout, "", size=3 << 20)

    # Which of its errors skopeo shows differs from time to time.
    expect_waiting(host, host.push(), f"cannot copy {host.layout} to")

    assert small.digest(NAME) == before


def test_a_registry_that_is_killed_in_the_middle(host: Host, scratch: Path) -> None:
    with Registry(scratch / "registry") as registry:
        append(host.layout, "", size=1 << 20)
        killed = once(b"PATCH ", lambda: registry.stop(kill=True))
        with Way(registry, watch=killed) as way:
            host.remote = way.reference(NAME)
            host.note("main", host.remote)
            expect_waiting(host, host.push(), "still waits")

            registry.start()

            assert host.push().status == 0
        assert registry.digest(NAME) == host.digest()


def test_a_connection_that_breaks(host: Host, shared: Registry, name: str) -> None:
    append(host.layout, "", size=1 << 20)
    with Way(shared, breaks_after=300_000) as way:
        host.note("main", way.reference(name))
        expect_waiting(host, host.push(), "still waits")
        assert way.broken
        assert shared.digest(name) == ""

        way.breaks_after = 0

        assert host.push().status == 0
    assert shared.digest(name) == host.digest()


@pytest.mark.parametrize(
    ("request_line", "number"),
    [
        ("GET /v2/{}/manifests/main", 1),
        ("PATCH ", 1),
        ("PUT /v2/{}/manifests/main", 1),
        ("GET /v2/{}/manifests/main", 2),
    ],
    ids=["looking", "sending", "moving", "looking again"],
)
def test_a_program_that_is_killed(
    host: Host, shared: Registry, name: str, request_line: str, number: int
) -> None:
    processes: list[subprocess.Popen[bytes]] = []
    seen: list[bytes] = []

    def watch(data: bytes) -> None:
        if data.startswith(request_line.format(name).encode()):
            seen.append(data)
            if len(seen) == number:
                processes[0].kill()
                processes[0].wait()

    with Way(shared, watch=watch) as way:
        host.note("main", way.reference(name))
        arguments = ["push", "--tls-verify=false", str(host.layout)]
        processes.append(subprocess.Popen([*hooks.command(), *arguments], stdin=subprocess.DEVNULL))
        assert processes[0].wait() == -signal.SIGKILL
        assert host.waits
        image_layouts.expect_whole(host.layout)

        assert host.push().status == 0
    assert shared.digest(name) == host.digest()
    assert not host.waits
    expect_tidy(host.layout)


def test_two_pushes_of_a_layout_take_turns(host: Host, shared: Registry, name: str) -> None:
    results: list[hooks.Result] = []
    second = threading.Thread(target=lambda: results.append(host.push()))
    with Way(shared, watch=once(b"HEAD ", second.start)) as way:
        host.note("main", way.reference(name))
        results.append(host.push())
        second.join()

    remote = way.reference(name)
    assert sorted(result.stdout for result in results) == [
        f"main is at {remote}\n",
        f"main is pushed to {remote}\n",
    ]


def test_a_push_waits_for_another_one_no_longer_than_it_may(host: Host, shared: Registry, name: str) -> None:
    host.note("main", shared.reference(name))
    blobs = os.open(host.layout / "blobs", os.O_RDONLY)
    try:
        fcntl.flock(blobs, fcntl.LOCK_EX)
        expect_waiting(host, host.push("--timeout=1"), "another program has loaded or pushed images of")
    finally:
        os.close(blobs)
    assert host.push().status == 0


def test_passwords(host: Host, scratch: Path) -> None:
    with Registry(scratch / "registry", password=True) as registry:
        host.note("main", registry.reference(NAME))
        authfile = registry.authfile(scratch / "auth.json")
        without = host.push(f"--authfile={scratch}/nothing")
        expect_waiting(
            host,
            without,
            "unauthorized: authentication required; log in with skopeo login HOST, or give --authfile",
        )
        assert "level=" not in without.stderr

        result = host.push(f"--authfile={authfile}")

        assert result.status == 0
        assert PASSWORD not in result.stdout + result.stderr
        assert registry.digest(NAME) == host.digest()


def test_certificates(host: Host, scratch: Path) -> None:
    with Registry(scratch / "registry", tls=True) as registry:
        host.note("main", registry.reference(NAME))
        arguments = ("push", str(host.layout))
        unknown = "x509: certificate signed by unknown authority; its certificate belongs in"
        expect_waiting(host, history.run(*arguments), unknown)

        trusting = {"SSL_CERT_FILE": str(registry.certificate), "PATH": os.environ["PATH"]}
        assert hooks.run_hook(b"", *arguments, env=trusting).status == 0

        assert registry.digest(NAME) == host.digest()


# Registries that mean harm


class Liar(http.server.ThreadingHTTPServer):
    """A registry that answers what a test says.

    Attributes:
        manifest, config: what it has under any name.
        received: what was sent to it.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Answer)
        self.manifest = b""
        self.config = b""
        self.received: list[bytes] = []
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def reference(self, name: str) -> str:
        return f"docker://127.0.0.1:{self.server_address[1]}/{name}:main"


class _Answer(http.server.BaseHTTPRequestHandler):
    server: Liar

    def do_GET(self) -> None:
        body = b"{}"
        if "/manifests/" in self.path:
            body = self.server.manifest
        elif "/blobs/" in self.path:
            body = self.server.config
        self.answer(200, body)

    def do_HEAD(self) -> None:
        self.answer(404, b"")

    def do_POST(self) -> None:
        self.answer(202, b"", Location="/v2/upload/1")

    def do_PATCH(self) -> None:
        self.take()
        self.answer(202, b"", Location="/v2/upload/1", Range="0-1")

    def do_PUT(self) -> None:
        self.take()
        self.answer(201, b"")

    def take(self) -> None:
        received = b""
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            while size := int(self.rfile.readline(), 16):
                received += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        else:
            received = self.rfile.read(int(self.headers.get("Content-Length", "0")))
        self.server.received.append(received)

    def answer(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for key, value in {
            "Content-Length": str(len(body)),
            "Content-Type": image_layouts.MANIFEST_TYPE,
            **headers,
        }.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@pytest.fixture
def liar() -> Iterator[Liar]:
    """Give such a registry."""
    with Liar() as made:
        yield made
        made.shutdown()


def test_a_config_that_is_not_what_its_digest_says_is_not_believed(host: Host, liar: Liar) -> None:
    image = image_layouts.read(host.layout, "main")
    # By what it says it is what this host has: then it could be replaced.
    liar.config = image_layouts.as_json(image.config)
    liar.manifest = image_layouts.as_json(
        {**image.manifest, "config": {**image.manifest["config"], "digest": f"sha256:{'0' * 64}"}}
    )
    host.note("main", liar.reference(NAME))

    expect_waiting(host, host.push())

    assert liar.received == []


@pytest.mark.parametrize(
    "manifest",
    [
        b"",
        b"[]",
        b"{" * 100_000,
        b'{"layers": [' + b"1," * 200_000 + b"1]}",
        b'{"a": ' + b"1" * 100_000 + b"}",
        b'{"a": "' + b"x" * (5 << 20) + b'"}',
    ],
    ids=["empty", "list", "deep", "many", "number", "large"],
)
def test_no_manifest_is_too_much(host: Host, liar: Liar, manifest: bytes) -> None:
    liar.manifest = manifest
    host.note("main", liar.reference(NAME))

    expect_waiting(host, host.push("--if-moved=fail"))

    assert liar.received == []


def test_a_registry_that_refuses_all_is_left_with_one_branch(host: Host, liar: Liar) -> None:
    other = {"schemaVersion": 2, "mediaType": image_layouts.INDEX_TYPE, "manifests": []}
    liar.manifest = image_layouts.as_json(other)
    host.note("main", liar.reference(NAME))

    for _ in range(3):
        result = host.push()

        assert result.status == 1
        assert "has revisions that" in result.stderr
        assert host.tags == ["main", f"main-{'c' * 12}"]
    assert liar.received == []


# Layouts that mean harm


def test_no_file_of_the_host_is_sent_for_a_blob(
    host: Host, liar: Liar, scratch: Path, shared: Registry
) -> None:
    secret = scratch / "secret"
    secret.write_bytes(b"a secret of somebody else's" * 100)
    # As large as the layer that it stands for.
    append(host.layout, "", size=1000)
    layer = image_layouts.blob(host.layout, image_layouts.read(host.layout, "main").layers[-1].descriptor)
    secret.write_bytes(secret.read_bytes().ljust(layer.stat().st_size, b"."))
    layer.unlink()
    layer.symlink_to(secret)
    host.note("main", liar.reference(NAME))
    liar.manifest = image_layouts.as_json(
        {"layers": [], "config": {}, "mediaType": image_layouts.MANIFEST_TYPE, "schemaVersion": 2}
    )
    sent: list[bytes] = []
    with Way(shared, watch=sent.append) as way:
        host.note("main", way.reference(f"{NAME}/secret"))
        result = host.push()

    assert result.status == 1
    assert "does not match its digest" in result.stderr
    assert b"secret of somebody" not in b"".join(sent)
