"""HTTP/2 frames written out, for what no client library sends."""

from __future__ import annotations

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\x00\x00\x00\x04\x00\x00\x00\x00\x00"
"""The connection preface and empty settings (RFC 9113, section 3.4)."""

DATA, HEADERS, PRIORITY, RST_STREAM, PING, GOAWAY, WINDOW_UPDATE = 0, 1, 2, 3, 6, 7, 8
END_STREAM, END_HEADERS = 0x1, 0x4


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    """Write one frame (RFC 9113, section 4.1)."""
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload


def request(path: bytes, *, stream: int = 1, method: bytes = b"GET", body_follows: bool = False) -> bytes:
    """Write the head of a request, without compression (RFC 7541, section 6.2.2)."""
    fields = [(b":method", method), (b":scheme", b"http"), (b":authority", b"localhost"), (b":path", path)]
    block = b"".join(b"\x00" + bytes([len(name)]) + name + bytes([len(value)]) + value for name, value in fields)
    return frame(HEADERS, END_HEADERS if body_follows else END_HEADERS | END_STREAM, stream, block)
