"""What runs have found, kept: these connections are played first in every run."""

from __future__ import annotations

from typing import Final

from fuzzing.http2 import DATA, END_HEADERS, END_STREAM, HEADERS, PREFACE, PRIORITY, SETTINGS, frame
from fuzzing.script import Item, Script

Fields = list[tuple[bytes, bytes]]

_GET: Final[Fields] = [(b":method", b"GET"), (b":scheme", b"http"), (b":authority", b"127.0.0.1"), (b":path", b"/mcp")]
_TUNNEL: Final[Fields] = [(b":method", b"CONNECT"), (b":authority", b"127.0.0.1")]
_WEBSOCKET: Final[Fields] = [
    *_TUNNEL,
    (b":protocol", b"websocket"),
    (b":scheme", b"http"),
    (b":path", b"/mcp"),
    (b"sec-websocket-version", b"13"),
]
_ONLY: Final = 0x80000000
_NO_WINDOW: Final = frame(SETTINGS, 0, 0, b"\x00\x04" + bytes(4))


def _head(fields: Fields, stream: int, flags: int = 0) -> bytes:
    block = b"".join(b"\x00" + bytes((len(name),)) + name + bytes((len(value),)) + value for name, value in fields)
    return frame(HEADERS, END_HEADERS | flags, stream, block)


def _priority(stream: int, on: int) -> bytes:
    return frame(PRIORITY, 0, stream, on.to_bytes(4, "big") + b"\x0f")


def _http1(*requests: bytes) -> Script:
    return Script(tuple(Item(each, "found", each.partition(b" ")[0].decode(), whole=True) for each in requests))


def _http2(*frames: bytes) -> Script:
    return Script((Item(PREFACE, "preface"), *(Item(each, "found") for each in frames)), http2=True)


_POST: Final = (
    b"POST /mcp HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: %d\r\n%s\r\n%s"
)


def _post(body: bytes, more: bytes = b"") -> bytes:
    return _POST % (len(body), more, body)


FOUND: Final = (
    # was answered 500: a batch of nothing but `initialize`, with a session id that is none
    _http1(
        _post(
            b'[{"jsonrpc":"2.0","id":0,"method":"initialize"}]',
            b"Mcp-Protocol-Version: 2025-03-26\r\nMcp-Session-Id: x\r\n",
        )
    ),
    # ended the connection under the next request: a body where none belongs
    *(
        _http1(
            method + b" /mcp HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 5000\r\n\r\n" + b"x" * 5000,
            _post(b'{"jsonrpc":"2.0","id":1,"method":"ping"}'),
        )
        for method in (b"PUT", b"OPTIONS", b"DELETE")
    ),
    # left tasks and the connection behind: answers that no window lets through
    _http2(_NO_WINDOW, _head(_GET, 1, END_STREAM), _head(_WEBSOCKET, 3)),
    # the same, and nobody reads the connection any more: a body that goes on after its refusal
    _http2(_NO_WINDOW, _head(_GET, 1), *[frame(DATA, 0, 1, b"x")] * 30),
    # made the headers of other streams wrong: a websocket that does not wait
    _http2(
        _head(_WEBSOCKET, 1) + frame(DATA, 0, 1, b"\x81\x85\x00\x00\x00\x00hello"),
        *(_head(_GET, stream, END_STREAM) for stream in (3, 5, 7)),
    ),
    # made the server search for the next stream for ever: streams that depend on one another in a circle
    _http2(
        *(_priority(stream, on) for stream, on in ((3, _ONLY | 5), (1, _ONLY | 3), (5, 3), (1, _ONLY | 3))),
        _head(_GET, 1, END_STREAM),
    ),
    # ended the connection, or other streams' answers were logged as failures: a path that is not ASCII, or none
    _http2(_head(_GET, 1, END_STREAM), _head([*_GET[:3], (b":path", b"/caf\xc3\xa9")], 3, END_STREAM)),
    _http2(_head(_GET, 1, END_STREAM), _head(_TUNNEL, 3), _head(_GET, 5, END_STREAM)),
)  # fmt: skip
"""One script for each thing that was found."""
