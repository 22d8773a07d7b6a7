"""The container runtime interface, by which a kubelet has a runtime make pods.

A request is one POST of gRPC over HTTP/2, which curl can do. Messages are written field by field, by the numbers of
kubernetes/cri-api, pkg/apis/runtime/v1/api.proto.

Source: gRPC over HTTP2, "Length-Prefixed-Message"; Protocol Buffers, "Encoding".
"""

from __future__ import annotations

import re
import struct
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path
    from typing import Union

    from tests.support.engines import Machine

    Value = Union[int, str, bytes, Mapping[str, str]]

PROGRAMS = ("curl",)

_ATTEMPTS = 20
_PAUSE = 0.1  # seconds


@dataclass(frozen=True)
class Pod:
    """A pod that runs.

    Attributes:
        id: the runtime's name for it.
        configuration: what it was made of, which is said again for each of its containers.
    """

    id: str
    configuration: bytes


@dataclass(frozen=True)
class Runtime:
    """A container runtime that serves the interface.

    Attributes:
        machine: where it runs.
        socket: where it listens.
        scratch: a directory for requests, answers and logs.
    """

    machine: Machine
    socket: str
    scratch: str

    def run_pod(self, name: str, *, annotations: Mapping[str, str], cgroup: str) -> Pod:
        """Start a pod on the node's network, for which no plugin is needed.

        Args:
            name: the pod's.
            annotations: the pod's, as its author writes them.
            cgroup: the parent of all control groups of the pod.
        """
        metadata = _field(1, name) + _field(2, f"uid-of-{name}") + _field(3, "default")
        linux = _field(1, cgroup) + _field(2, _field(1, _NAMESPACES))
        configuration = (
            _field(1, metadata)
            + _field(3, f"{self.scratch}/logs")
            + _field(7, annotations)
            + _field(8, linux)
        )
        return Pod(_first_string(self._call("RunPodSandbox", _field(1, configuration))), configuration)

    def run_container(self, pod: Pod, name: str, image: str, *command: str) -> str:
        """Start a container in a pod.

        Args:
            pod: the pod.
            name: the container's in the pod.
            image: what its root file system is made from.
            command: its program, as an absolute path, and the arguments.

        Returns:
            The runtime's name for it.
        """
        container = (
            _field(1, _field(1, name))
            + _field(2, _field(1, image))
            + b"".join(_field(3, word) for word in command)
            + _field(11, f"{name}.log")
            + _field(15, _field(2, _field(3, _NAMESPACES)))
        )
        asked = _field(1, pod.id) + _field(2, container) + _field(3, pod.configuration)
        identifier = _first_string(self._call("CreateContainer", asked))
        self._call("StartContainer", _field(1, identifier))
        return identifier

    def remove_pod(self, pod: Pod) -> None:
        """Stop a pod with its containers, and remove all that there is of it."""
        # containerd 1.6 fails to stop a container whose shim is just ending. A kubelet asks again, too.
        self._call("StopPodSandbox", _field(1, pod.id), again_after="ttrpc: closed")
        self._call("RemovePodSandbox", _field(1, pod.id))

    def _call(self, method: str, message: bytes, *, again_after: str = "") -> bytes:
        """Call a method, and give its answer.

        Args:
            method: its name.
            message: what it is given.
            again_after: what the runtime says of a failure that passes; "": none does.
        """
        for _ in range(_ATTEMPTS):
            headers, answer = self._ask(method, message)
            if re.search(r"^grpc-status: 0\s*$", headers, re.MULTILINE):
                return answer.read_bytes()[5:]
            if not again_after or again_after not in headers:
                break
            time.sleep(_PAUSE)
        raise AssertionError(f"{method}: {headers}")

    def _ask(self, method: str, message: bytes) -> tuple[str, Path]:
        files = {name: f"{self.scratch}/{name}" for name in ("request", "answer", "headers")}
        self.machine.outside(files["request"]).write_bytes(b"\0" + struct.pack(">I", len(message)) + message)
        self.machine.run(
            *("curl", "--silent", "--show-error", "--http2-prior-knowledge", "--unix-socket", self.socket),
            *("--header", "content-type: application/grpc", "--header", "te: trailers"),
            *("--data-binary", f"@{files['request']}"),
            *("--dump-header", files["headers"], "--output", files["answer"]),
            f"http://localhost/runtime.v1.RuntimeService/{method}",
        )
        headers = self.machine.outside(files["headers"]).read_text()
        return headers, self.machine.outside(files["answer"])


def _field(number: int, value: Value) -> bytes:
    if isinstance(value, int):
        return _varint(number << 3) + _varint(value)
    if isinstance(value, Mapping):
        return b"".join(_field(number, _field(1, key) + _field(2, text)) for key, text in value.items())
    data = value.encode() if isinstance(value, str) else value
    return _varint(number << 3 | 2) + _varint(len(data)) + data


def _varint(value: int) -> bytes:
    head = b""
    while value > 127:
        head += bytes([value & 127 | 128])
        value >>= 7
    return head + bytes([value])


# NamespaceOption: the node's network, and process ids of each container's own.
_NAMESPACES = _field(1, 2) + _field(2, 1)


def _first_string(message: bytes) -> str:
    """Give the string in field 1, which is shorter than 128 bytes and comes first."""
    assert message[0] == 1 << 3 | 2
    return message[2 : 2 + message[1]].decode()
