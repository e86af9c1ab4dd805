"""What `kubectl exec` and `attach` speak with a node: channels of one WebSocket (RFC 6455).

The subprotocol is Kubernetes' v4.channel.k8s.io: the first byte of each message is its channel. The
way to the server is a program's stdin and stdout (`nc` in the host's network namespace).
"""

from __future__ import annotations

import json
import os
import selectors
import struct
import time
from typing import IO, TYPE_CHECKING
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from collections.abc import Callable

STDIN, STDOUT, STDERR, ERROR, RESIZE = range(5)
_BINARY, _CLOSE = 2, 8
_UPGRADE = """\
GET {path} HTTP/1.1\r
Host: {host}\r
Connection: Upgrade\r
Upgrade: websocket\r
Sec-WebSocket-Version: 13\r
Sec-WebSocket-Key: c2RzaGltLXRlc3RzLXNkcw==\r
Sec-WebSocket-Protocol: v4.channel.k8s.io\r
\r
"""


class RemoteCommand:
    """A command's streams at the other end of a WebSocket."""

    def __init__(self, url: str, reads: IO[bytes], writes: IO[bytes], timeout: float = 15) -> None:
        self._reads, self._writes = reads, writes
        self._deadline = time.monotonic() + timeout
        self._rest = b""
        self._ended = False
        self.output = {STDOUT: b"", STDERR: b"", ERROR: b""}
        parts = urlsplit(url)
        self._write(_UPGRADE.format(path=parts.path, host=parts.netloc).encode())
        while b"\r\n\r\n" not in self._rest:
            self._more()
        head, _, self._rest = self._rest.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 101 "), head

    def send(self, channel: int, data: bytes) -> None:
        """A message. Clients mask theirs; a mask of zeros changes nothing."""
        payload = bytes([channel]) + data
        length = len(payload)
        size = bytes([0x80 | length]) if length < 126 else b"\xfe" + struct.pack(">H", length)
        self._write(bytes([0x80 | _BINARY]) + size + bytes(4) + payload)

    def resize(self, width: int, height: int) -> None:
        """Tell the terminal's size."""
        self.send(RESIZE, json.dumps({"Width": width, "Height": height}).encode())

    def until(self, text: bytes, channel: int = STDOUT) -> bytes:
        """What the channel has said, once `text` is in it."""
        self._read(lambda: text in self.output[channel])
        assert text in self.output[channel], self.output
        return self.output[channel]

    def exit_code(self) -> int:
        """Of the command, once it has ended and the server has said so."""
        self._read(lambda: self._ended)
        said = json.loads(self.output[ERROR] or "{}")
        if said.get("status") == "Success":
            return 0
        causes = said.get("details", {}).get("causes", [])
        codes = [int(c["message"]) for c in causes if c["reason"] == "ExitCode"]
        assert codes, said
        return codes[0]

    def _read(self, enough: Callable[[], bool]) -> None:
        while not enough() and not self._ended:
            frame = self._frame()
            if frame is None:
                self._more()
            elif frame[0] == _CLOSE:
                self._ended = True
            elif frame[1]:
                self.output[frame[1][0]] += frame[1][1:]

    def _frame(self) -> tuple[int, bytes] | None:
        """The next frame, if all of it is here: servers do not mask, messages are not split."""
        data = self._rest
        if len(data) < 2:
            return None
        length, at = data[1], 2
        for mark, form in ((126, ">H"), (127, ">Q")):
            if data[1] == mark:
                at = 2 + struct.calcsize(form)
                if len(data) < at:
                    return None
                length = struct.unpack(form, data[2:at])[0]
        if len(data) < at + length:
            return None
        self._rest = data[at + length :]
        return data[0] & 15, data[at : at + length]

    def _more(self) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(self._reads, selectors.EVENT_READ)
            if not selector.select(self._deadline - time.monotonic()):
                raise AssertionError(f"nothing more came; so far: {self.output}")
        data = os.read(self._reads.fileno(), 1 << 16)
        self._rest += data
        if not data:
            self._ended = True
            if b"\r\n\r\n" in self._rest or not self._rest:
                return
            raise AssertionError(f"the connection ended: {self._rest!r}")

    def _write(self, data: bytes) -> None:
        self._writes.write(data)
        self._writes.flush()
