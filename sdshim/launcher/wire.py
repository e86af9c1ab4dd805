"""As much of protocol buffers as the launcher's five small messages need."""

from __future__ import annotations

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
Value = int | bytes | str


def varint(number: int) -> bytes:
    """`number` as a varint; negative ones as 64-bit two's complement."""
    number &= (1 << 64) - 1
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def encode(*fields: tuple[int, Value]) -> bytes:
    """A message of (number, value) pairs; zero and empty values are left out, as proto3 does."""
    out = b""
    for number, value in fields:
        if isinstance(value, int):
            out += varint(number << 3 | VARINT) + varint(value) if value else b""
        elif value:
            data = value.encode() if isinstance(value, str) else value
            out += varint(number << 3 | BYTES) + varint(len(data)) + data
    return out


class Message:
    """A decoded message; of a field given twice the last one counts."""

    def __init__(self, data: bytes, *, before: int = 0) -> None:
        """Decode `data` or raise ValueError; with `before`, only up to that field or a fault."""
        self.fields: dict[int, int | bytes] = {}
        at = 0
        try:
            while at < len(data) and not (before and data[at] >> 3 >= before):
                at = self._field(data, at)
        except (IndexError, ValueError):
            if not before:
                raise ValueError("not a protocol buffer") from None

    def _field(self, data: bytes, at: int) -> int:
        key, at = _varint(data, at)
        number, kind = key >> 3, key & 7
        value: int | bytes
        if kind == VARINT:
            value, at = _varint(data, at)
        else:
            size = 8 if kind == FIXED64 else 4
            if kind == BYTES:
                size, at = _varint(data, at)
            elif kind not in (FIXED64, FIXED32):
                raise ValueError("unknown wire type")
            value = data[at : at + size]
            at += size
        if number == 0 or at > len(data):
            raise ValueError("field 0, or a field beyond the end")
        self.fields[number] = value
        return at

    def number(self, field: int) -> int:
        """A varint field as a signed 64-bit number; 0 when absent."""
        value = self.fields.get(field, 0)
        if not isinstance(value, int):
            return 0
        return value - (1 << 64) if value >> 63 else value

    def data(self, field: int) -> bytes:
        """A length-delimited field; empty when absent."""
        value = self.fields.get(field, b"")
        return value if isinstance(value, bytes) else b""

    def text(self, field: int) -> str:
        """A string field; empty when absent."""
        return self.data(field).decode(errors="replace")


def _varint(data: bytes, at: int) -> tuple[int, int]:
    number = shift = 0
    while True:
        byte = data[at]
        at += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number & (1 << 64) - 1, at
        shift += 7
        if shift > 63:
            raise ValueError("varint too long")


def delete_response(pid: int, status: int, time_ns: int) -> bytes:
    """containerd's DeleteResponse {1 pid, 2 exit_status, 3 exited_at {1 seconds, 2 nanos}}."""
    seconds, nanos = divmod(time_ns, 1_000_000_000)
    return encode((1, pid), (2, status), (3, encode((1, seconds), (2, nanos))))
