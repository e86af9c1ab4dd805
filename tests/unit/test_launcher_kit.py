"""What the launcher's tests share: a node in a directory, a fake daemon, containerd's algorithms.

`parse_start` answers are written from the protocol reference 1.4, independently of the launcher,
with the generated messages as the decoder.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import struct
import subprocess
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from google.protobuf.message import DecodeError

from sdshim.pb import bootstrap_pb2

if TYPE_CHECKING:
    from collections.abc import Iterator

LAUNCHER = Path(__file__).parents[2] / "sdshim" / "launcher"
SCRIPT = LAUNCHER / "containerd-shim-systemd-v1"
TTRPC = "/run/containerd/containerd.sock.ttrpc"
GRPC = "/run/containerd/containerd.sock"
BINARY = "/usr/bin/containerd"
TOKEN = "0123456789abcdef0123456789abcdef"


@dataclass(frozen=True)
class Result:
    """How one launcher call went."""

    code: int
    out: bytes
    err: str
    seconds: float


@dataclass
class Node:
    """Run directory, bundle and PATH of one pretended host."""

    root: Path
    shell: list[str] = field(default_factory=list)
    env: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.run = self.root / "run"
        self.bundle = self.root / "bundle"
        self.bin = self.root / "bin"
        for directory in (self.run / "s", self.bundle / "rootfs", self.bin):
            directory.mkdir(parents=True)
        self.env = {
            "PATH": f"{self.bin}:/usr/sbin:/usr/bin:/sbin:/bin",
            "SDSHIM_RUN_DIR": str(self.run),
            "SDSHIM_LAUNCHER_DIR": str(LAUNCHER),
            "TTRPC_ADDRESS": TTRPC,
            "GRPC_ADDRESS": GRPC,
            "MAX_SHIM_VERSION": "2",
        }
        if "SDSHIM_PYTHON" in os.environ:  # the interpreter to test with
            self.env["SDSHIM_PYTHON"] = os.environ["SDSHIM_PYTHON"]

    def serve(self, namespace: str = "default") -> None:
        """Look like a daemon that serves this namespace already."""
        (self.run / "ready").touch()
        with socket.socket(socket.AF_UNIX) as listener, short(self.run / "s") as directory:
            listener.bind(f"{directory}/{namespace}")

    def launch(self, *arguments: str, stdin: bytes | None = b"", timeout: float = 15) -> Result:
        """Run the launcher in the bundle; with stdin None from /dev/null, like containerd."""
        begin = time.monotonic()
        done = subprocess.run(
            [*self.shell, str(SCRIPT), *arguments],
            input=stdin,
            stdin=subprocess.DEVNULL if stdin is None else None,
            capture_output=True,
            cwd=self.bundle,
            env=self.env,
            timeout=timeout,
            check=False,
        )
        seconds = time.monotonic() - begin
        return Result(done.returncode, done.stdout, done.stderr.decode(), seconds)

    def start(
        self, task_id: str = "c1", *more: str, namespace: str = "default", stdin: bytes | None = b""
    ) -> Result:
        """`start` as containerd runs it."""
        flags = _flags(namespace, task_id)
        return self.launch(*flags, *more, "start", stdin=stdin)

    def delete(self, task_id: str = "c1", *more: str, namespace: str = "default") -> Result:
        """`delete` as containerd runs it."""
        flags = [*_flags(namespace, task_id), "-bundle", str(self.bundle), *more]
        return self.launch(*flags, "delete", stdin=None)

    def facts(self) -> dict[str, str]:
        """The lines of `sdshim.start`."""
        lines = (self.bundle / "sdshim.start").read_text().splitlines()
        return dict(line.split("=", 1) for line in lines)

    def program(self, name: str, text: str) -> None:
        """Put a sh script first in PATH."""
        path = self.bin / name
        path.write_text(f"#!/bin/sh\n{text}")
        path.chmod(0o755)

    def calls(self, name: str) -> list[str]:
        """Argument lists the fake program `name` was called with."""
        path = self.root / f"{name}.calls"
        return path.read_text().splitlines() if path.exists() else []

    def recorder(self, name: str, text: str = "") -> None:
        """A fake program that notes its arguments, then runs `text`."""
        self.program(name, f'echo "$*" >>{self.root}/{name}.calls\n{text}\n')

    def state(self, task_id: str = "c1", token: str = TOKEN) -> Path:
        """State directory of one incarnation."""
        return self.run / "t" / "default" / task_id / token


def _flags(namespace: str, task_id: str) -> list[str]:
    addresses = ["-address", GRPC, "-publish-binary", BINARY]
    return ["-namespace", namespace, *addresses, "-id", task_id]


@contextlib.contextmanager
def short(directory: Path) -> Iterator[str]:
    """A path to `directory` that is short enough for a socket's address."""
    fd = os.open(directory, os.O_PATH | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{fd}"
    finally:
        os.close(fd)


def tracer(output: Path) -> list[str]:
    """Words before a command that note each process it makes in `output`; skips if none can."""
    words = ["strace", "-f", "-o", str(output), "-e", "trace=process"]
    try:
        subprocess.run([*words, "true"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("strace is missing or not permitted here")
    return words


def forks(output: Path) -> list[str]:
    """Lines of a trace that made a process."""
    made = ("clone(", "clone3(", "fork(")
    return [line for line in output.read_text().splitlines() if any(call in line for call in made)]


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


class Daemon:
    """A fake control server: one blocking thread, one answer per method.

    An answer is the response's payload, a (code, message) status, or "hang" / "close".
    """

    def __init__(self, run: Path, answers: dict[str, bytes | tuple[int, str] | str]) -> None:
        self.answers = answers
        self.calls: list[tuple[str, str, bytes]] = []
        self.closing: list[socket.socket] = []
        self.listener = socket.socket(socket.AF_UNIX)
        with short(run) as directory:
            self.listener.bind(f"{directory}/sdshim.sock")
        self.listener.listen()
        self.thread = threading.Thread(target=self._serve, daemon=True)
        self.thread.start()

    def __enter__(self) -> Daemon:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self.listener.shutdown(socket.SHUT_RDWR)
        self.thread.join(5)
        for sock in (self.listener, *self.closing):
            sock.close()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                sock, _ = self.listener.accept()
                self.closing.append(sock)
                self._answer(sock)

    def _answer(self, sock: socket.socket) -> None:
        header = sock.recv(10, socket.MSG_WAITALL)
        size, stream, kind, flags = struct.unpack(">IIBB", header)
        assert (stream % 2, kind, flags) == (1, 1, 0)
        fields = _fields(sock.recv(size, socket.MSG_WAITALL))
        service, method, payload = fields[1].decode(), fields[2].decode(), fields.get(3, b"")
        self.calls.append((service, method, payload))
        answer = self.answers.get(method, (12, "unimplemented"))
        if answer == "close":
            self.answers[method] = self.answers.get(f"{method} again", "close")
            sock.shutdown(socket.SHUT_RDWR)
        elif answer != "hang":
            body = _response(answer)
            data = struct.pack(">IIBB", len(body), stream, 2, 0) + body
            for at in range(0, len(data), 7):  # in pieces, as a stream may arrive
                sock.sendall(data[at : at + 7])


def _response(answer: bytes | tuple[int, str] | str) -> bytes:
    if isinstance(answer, bytes):
        return b"\x12" + _sized(answer)
    assert isinstance(answer, tuple)
    return b"\x0a" + _sized(bytes([8, answer[0]]) + b"\x12" + _sized(answer[1].encode()))


def _sized(data: bytes) -> bytes:
    assert len(data) < 128
    return bytes([len(data)]) + data


def _fields(data: bytes) -> dict[int, bytes]:
    """Length-delimited fields of a ttrpc Request (the one varint, the timeout, is skipped)."""
    found, at = {}, 0

    def number() -> int:
        nonlocal at
        value = shift = 0
        while True:
            at += 1
            value |= (data[at - 1] & 0x7F) << shift
            shift += 7
            if data[at - 1] < 0x80:
                return value

    while at < len(data):
        key = number()
        size = number()
        if key & 7 == 2:
            found[key >> 3] = data[at : at + size]
            at += size
    return found


# What each containerd makes of the answer: (version, address, protocol).


def parse_1_6(out: bytes) -> tuple[int, str, str]:
    return 2, out.decode().strip(), "ttrpc"


def parse_json_or_plain(out: bytes, newest: int) -> tuple[int, str, str]:
    try:
        params = json.loads(out.decode().strip())
    except ValueError:
        return parse_1_6(out)
    assert 2 <= params["version"] <= newest
    return params["version"], params["address"], params["protocol"]


def parse_2_3(out: bytes, *, trim: bool) -> tuple[int, str, str]:
    """2.3.0 to 2.3.3 trim before the protobuf attempt, 2.3.4 does not."""
    result = bootstrap_pb2.BootstrapResult()
    try:
        result.ParseFromString(out.strip() if trim else out)
    except DecodeError:
        return parse_json_or_plain(out, 3)
    return result.version, result.address, result.protocol


def test_the_fake_daemon_and_parsers_are_not_too_kind() -> None:
    assert parse_2_3(b"", trim=True) == (0, "", ""), "2.3 refuses an empty answer"
    assert parse_2_3(b"unix:///x", trim=False) == (2, "unix:///x", "ttrpc")
    assert _fields(b"\x0a\x01a\x20\x05\x12\x01b") == {1: b"a", 2: b"b"}
