"""HTTP/2 frames: requests as they should be, and everything that RFC 9113 forbids or only just allows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from random import Random
from typing import Final

from hpack import Encoder
from hyperframe.frame import SettingsFrame

from fuzzing import messages
from fuzzing.script import Known
from harness import mcp

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + SettingsFrame(0).serialize()

DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)
END_STREAM, ACK, END_HEADERS, PADDED, WITH_PRIORITY = 0x1, 0x1, 0x4, 0x8, 0x20

Fields = list[tuple[bytes, bytes]]


def frame(kind: int, flags: int, stream: int, payload: bytes, length: int | None = None) -> bytes:
    """Write a frame (RFC 9113, section 4.1), whose length may be a lie."""
    size = len(payload) if length is None else length
    return size.to_bytes(3, "big") + bytes((kind, flags)) + (stream & 0xFFFFFFFF).to_bytes(4, "big") + payload


def frames(rng: Random, known: Known, count: int) -> Iterator[bytes]:
    """Make one connection's frames, after the preface: about so many, then some after which it is hardly open."""
    talk = _Talk(rng, known)
    made = 0
    while made < count:
        for each in talk.request() if rng.random() < 0.5 else rng.choice(_SPOILING)(talk):
            made += 1
            yield each
    if rng.random() < 0.8:
        yield from rng.choice(_FATAL)(talk)
        yield from talk.request()


class _Talk:
    """The client's side of a connection: which streams it has opened, and what its encoder remembers."""

    def __init__(self, rng: Random, known: Known) -> None:
        self.rng = rng
        self.known = known
        self.encoder = Encoder()
        self.next = 1

    def opened(self) -> int:
        """Take the number of a new stream."""
        self.next += 2
        return self.next - 2

    def some(self) -> int:
        """Choose the number of some stream: open, closed, idle or not a client's."""
        return self.rng.choice((0, 1, max(1, self.next - 2), self.next, self.next + 2, self.next + 1, 2, 2**31 - 1))

    def fields(self, body: bytes) -> Fields:
        rng = self.rng
        method = rng.choice((b"POST",) * 8 + (b"GET", b"DELETE", b"OPTIONS"))
        fields: Fields = [
            (b":method", method), (b":scheme", b"http"), (b":authority", b"127.0.0.1"), (b":path", b"/mcp"),
            (b"content-type", b"application/json"), (b"accept", mcp.BOTH.encode()),
        ]  # fmt: skip
        if rng.random() < 0.5:
            session = rng.choice((*self.known.sessions, "no-such-session")).encode()
            fields.append((b"mcp-session-id", session))
            fields.append((b"mcp-protocol-version", b"2025-11-25"))
        if rng.random() < 0.3:
            fields.append((b"content-length", b"%d" % len(body)))
        return fields

    def block(self, fields: Fields) -> bytes:
        return self.encoder.encode(fields, huffman=self.rng.random() < 0.5)

    def request(self) -> Iterator[bytes]:
        """Make a request as it should be, in one piece or several."""
        rng, stream = self.rng, self.opened()
        body = messages.encoded(rng)
        block = self.block(self.fields(body))
        if rng.random() < 0.2:
            at = rng.randrange(len(block))
            yield frame(HEADERS, 0, stream, block[:at])
            yield frame(CONTINUATION, END_HEADERS, stream, block[at:])
        else:
            yield frame(HEADERS, END_HEADERS, stream, block)
        size = rng.choice((5, 100)) if len(body) < 500 else 16_000
        pieces = [body[at : at + size] for at in range(0, len(body), size)] if rng.random() < 0.2 else _fitting(body)
        for piece in pieces:
            yield frame(DATA, 0, stream, piece)
        yield frame(DATA, END_STREAM, stream, b"")

    # What a server has to live with

    def odd_fields(self) -> Iterator[bytes]:
        """Send a request whose headers are HTTP, but not what the application wants."""
        rng, body = self.rng, messages.encoded(self.rng)
        fields = self.fields(body)
        for _ in range(rng.choice((1, 2, 3))):
            name = rng.choice(
                (b"accept", b"content-type", b"mcp-session-id", b"mcp-method", b"origin", b"last-event-id", b"x")
            )
            fields.append(
                (name, rng.choice((b"", b"0", b"*/*", b"text/event-stream", b"x" * 3000, b"http://evil.example")))
            )
        fields[3] = (
            b":path",
            rng.choice((b"/mcp", b"/mcp", b"/mcp?x", b"/elsewhere", b"/%ff", b"/%", b"//", b"/" * 900)),
        )
        yield from self._headers(fields, 0)
        yield frame(DATA, END_STREAM, self.next - 2, body[:16_384])

    # What no server lives with

    def spoil_fields(self) -> Iterator[bytes]:
        """Send headers that HTTP/2, HTTP or the application forbid."""
        rng = self.rng
        fields = self.fields(b"")
        at = rng.randrange(len(fields))
        name, _ = fields[at]
        action = rng.randrange(6)
        if action == 0:
            del fields[at]
        elif action == 1:
            fields.insert(rng.randrange(len(fields)), rng.choice(fields))
        elif action == 2:
            fields[at] = name, rng.choice(_VALUES)
        elif action == 3:
            fields.append((rng.choice(_NAMES), rng.choice(_VALUES)))
        elif action == 4:
            fields[3] = b":path", rng.choice(_PATHS)
        else:
            fields.append((b"x-" + b"n" * rng.choice((10, 9000)), b"v" * rng.choice((10, 16_000, 70_000))))
        yield from self._headers(fields, rng.choice((END_STREAM, 0)))

    def connect(self) -> Iterator[bytes]:
        """Ask for a tunnel, or for a websocket over HTTP/2 (RFC 8441)."""
        fields: Fields = [(b":method", b"CONNECT"), (b":authority", b"127.0.0.1")]
        if self.rng.random() < 0.7:
            fields += [(b":protocol", b"websocket"), (b":scheme", b"http"), (b":path", b"/mcp")]
        if self.rng.random() < 0.5:
            fields.append((b"sec-websocket-version", b"13"))
        stream = self.next
        yield from self._headers(fields, 0)
        if self.rng.random() < 0.7:
            yield frame(DATA, 0, stream, b"\x81\x85\x00\x00\x00\x00hello")

    def _headers(self, fields: Fields, flags: int) -> Iterator[bytes]:
        stream = self.opened()
        first, *rest = _fitting(self.block(fields))
        yield frame(HEADERS, flags | (0 if rest else END_HEADERS), stream, first)
        for number, piece in enumerate(rest, 1):
            yield frame(CONTINUATION, END_HEADERS if number == len(rest) else 0, stream, piece)

    def data_after_the_answer(self) -> Iterator[bytes]:
        """Go on with the body of a request that is refused by its head."""
        stream = self.opened()
        fields = self.fields(b"")
        fields[3] = (b":path", b"/elsewhere")
        yield frame(HEADERS, END_HEADERS, stream, self.block(fields))
        for _ in range(self.rng.choice((2, 15))):
            yield frame(DATA, 0, stream, b"x" * self.rng.choice((0, 1, 1000)))

    def reset_rapidly(self) -> Iterator[bytes]:
        """Open streams and give them up at once (CVE-2023-44487)."""
        for _ in range(self.rng.choice((2, 30))):
            stream = self.opened()
            flags = END_HEADERS | self.rng.choice((0, END_STREAM))
            yield frame(HEADERS, flags, stream, self.block(self.fields(b"")))
            yield frame(RST_STREAM, 0, stream, self.rng.choice((0, 8, 2**32 - 1)).to_bytes(4, "big"))
            if self.rng.random() < 0.3:
                yield frame(DATA, END_STREAM, stream, b"late")

    def flood_continuations(self) -> Iterator[bytes]:
        """Send a header block that does not end (CVE-2024-27316)."""
        stream = self.opened()
        yield frame(HEADERS, 0, stream, self.block(self.fields(b"")))
        for _ in range(self.rng.choice((3, 100))):
            yield frame(
                CONTINUATION, 0, stream, self.rng.choice((b"", b"\x00\x01x\x01y", b"\x00\x01x\x7f" + b"y" * 300))
            )

    def play_with_windows(self) -> Iterator[bytes]:
        """Let nothing through, then a little, then everything."""
        rng = self.rng
        yield frame(SETTINGS, 0, 0, b"\x00\x04" + rng.choice((0, 1, 100)).to_bytes(4, "big"))
        yield from self.request()
        for _ in range(rng.choice((1, 5, 50))):
            yield frame(WINDOW_UPDATE, 0, max(1, self.next - 2), rng.choice((1, 1, 1000)).to_bytes(4, "big"))
        if rng.random() < 0.7:
            yield frame(SETTINGS, 0, 0, b"\x00\x04" + (65_535).to_bytes(4, "big"))

    def overflow(self) -> Iterator[bytes]:
        """Open windows wider than they can be, or by nothing."""
        yield from self.request()
        for _ in range(2):
            more = self.rng.choice((0, 2**31 - 1))
            yield frame(
                WINDOW_UPDATE, 0, self.rng.choice((0, max(1, self.next - 2), self.some())), more.to_bytes(4, "big")
            )

    def prioritise(self) -> Iterator[bytes]:
        """Depend on others that are closed, idle or not there, and have them depend on one another in a circle."""
        ids = [0, *range(1, self.next + 20, 2)]
        for _ in range(self.rng.choice((1, 5, 40))):
            stream, on = self.rng.choice(ids[1:]), self.rng.choice(ids)
            if stream != on:
                exclusive = self.rng.choice((0, 0x80000000))
                yield frame(
                    PRIORITY, 0, stream, (exclusive | on).to_bytes(4, "big") + bytes((self.rng.randrange(256),))
                )
        stream = self.opened()
        prefix = self.rng.choice((0, 1, stream + 2, 0x80000000)).to_bytes(4, "big") + b"\x10"
        if not stream == 1 == prefix[3]:
            block = self.block(self.fields(b""))
            yield frame(HEADERS, END_HEADERS | END_STREAM | WITH_PRIORITY, stream, prefix + block)

    def depend_on_oneself(self) -> Iterator[bytes]:
        stream = self.opened()
        prefix = stream.to_bytes(4, "big") + b"\x10"
        if self.rng.random() < 0.5:
            yield frame(PRIORITY, 0, stream, prefix)
        yield frame(HEADERS, END_HEADERS | END_STREAM | WITH_PRIORITY, stream, prefix + self.block(self.fields(b"")))

    def play_with_settings(self) -> Iterator[bytes]:
        rng = self.rng
        for _ in range(rng.choice((1, 2, 30))):
            pairs = b"".join(
                rng.choice((0, 1, 2, 3, 4, 5, 6, 8, 9, 0xFFFF)).to_bytes(2, "big")
                + rng.choice((0, 1, 2, 100, 16_383, 16_384, 2**24, 2**31, 2**32 - 1)).to_bytes(4, "big")
                for _ in range(rng.choice((0, 1, 3, 100)))
            )
            yield frame(
                SETTINGS, rng.choice((0, 0, 0, ACK)), rng.choice((0, 0, 0, 1)), pairs + rng.choice((b"", b"", b"x"))
            )

    def one_of_any_kind(self) -> Iterator[bytes]:
        """Send a frame of any kind with any flags on any stream, whose payload may fit."""
        rng = self.rng
        payload = rng.choice(
            (
                b"",
                b"\x00" * 4,
                b"\x00" * 5,
                b"\x00" * 8,
                rng.randbytes(rng.randrange(30)),
                b"\xff" * 8,
                b"x" * 16_385,
                b"x" * 9,
            )
        )
        length = rng.choice((None, None, None, None, 0, 2**24 - 1, len(payload) + 1))
        yield frame(rng.randrange(13), rng.choice((0, 1, 4, 5, 8, 13, 0x20, 0xFF)), self.some(), payload, length)

    def pings(self) -> Iterator[bytes]:
        for _ in range(self.rng.choice((1, 40))):
            yield frame(PING, self.rng.choice((0, 0, ACK)), 0, self.rng.randbytes(8))

    def pads(self) -> Iterator[bytes]:
        """Pad headers and data."""
        stream = self.opened()
        block = self.block(self.fields(b""))
        yield frame(HEADERS, END_HEADERS | PADDED, stream, b"\x05" + block + b"\x00" * 5)
        size = self.rng.choice((0, 5, 255))
        yield frame(DATA, END_STREAM | PADDED, stream, bytes((size,)) + b"{}" + b"\x00" * size)

    def spoil_block(self) -> Iterator[bytes]:
        """Send what no header decoder takes, or what makes it a bomb."""
        rng, stream = self.rng, self.opened()
        block = rng.choice(
            (
                rng.randbytes(30), b"\xff\xff\xff\xff\xff\x0f", b"\x80", b"\x3f\xe1\xff\x03", b"\xbe" * 1000, b"",
                b"\x00\x85\xff",
                self.block([(b"x", b"y" * 4000)]) + b"\xbe" * 12_000, b"\x20" * 100, b"\x00\x01:\x01:", b"\x00\x00\x00",
            )
        )  # fmt: skip
        yield frame(HEADERS, END_HEADERS | rng.choice((0, END_STREAM)), stream, block)

    def trailers(self) -> Iterator[bytes]:
        """End a request with trailers."""
        stream = self.opened()
        yield frame(HEADERS, END_HEADERS, stream, self.block(self.fields(b"{}")))
        yield frame(DATA, 0, stream, b"{}")
        yield frame(HEADERS, END_HEADERS | END_STREAM, stream, self.block([(b"x", self.rng.choice((b"", b"y")))]))

    def wrong_trailers(self) -> Iterator[bytes]:
        """End a request with what is no trailer, or with one that does not end it."""
        stream = self.opened()
        yield frame(HEADERS, END_HEADERS, stream, self.block(self.fields(b"{}")))
        trailer = self.rng.choice(((b":path", b"/"), (b"te", b"trailers"), (b"connection", b"close"), (b"x", b"y")))
        yield frame(HEADERS, END_HEADERS | self.rng.choice((END_STREAM, 0)), stream, self.block([trailer]))

    def go_away(self) -> Iterator[bytes]:
        yield frame(GOAWAY, 0, 0, self.some().to_bytes(4, "big") + b"\x00\x00\x00\x00" + b"bye" * self.rng.randrange(3))
        yield from self.request()

    def promise(self) -> Iterator[bytes]:
        """Push to the server, which no client may."""
        yield frame(PUSH_PROMISE, END_HEADERS, self.some(), b"\x00\x00\x00\x02" + self.block(self.fields(b"")))


_SPOILING: Final[tuple[Callable[[_Talk], Iterator[bytes]], ...]] = (
    _Talk.connect, _Talk.data_after_the_answer, _Talk.reset_rapidly, _Talk.play_with_windows, _Talk.prioritise,
    _Talk.pings,
    _Talk.pads, _Talk.trailers, _Talk.odd_fields,
)  # fmt: skip
"""What a server has to live with."""
_FATAL: Final[tuple[Callable[[_Talk], Iterator[bytes]], ...]] = (
    _Talk.spoil_fields, _Talk.spoil_fields, _Talk.spoil_fields, _Talk.flood_continuations, _Talk.play_with_settings,
    _Talk.one_of_any_kind, _Talk.one_of_any_kind, _Talk.spoil_block, _Talk.go_away, _Talk.promise, _Talk.overflow,
    _Talk.depend_on_oneself, _Talk.wrong_trailers,
)  # fmt: skip
"""What mostly makes a connection error."""

_VALUES: Final = (
    b"", b"\xff", "é".encode(), b"a\x00b", b"a\r\nb: c", b" a", b"0", b"-1", b"chunked", b"close", b"x" * 5000, b"*",
    b"PRI",
)  # fmt: skip
_NAMES: Final = (
    b"", b":", b":x", b"Upper-Case", b"te", b"connection", b"transfer-encoding", b"content-length", b"host", b"upgrade",
    b"a b", b"\xff", b":status", b":protocol", b"cookie", b"expect", b"mcp-session-id", b"origin", b"x\x00",
)  # fmt: skip
_PATHS: Final = (
    b"", b"*", b"mcp", b"/caf\xc3\xa9", b"/\xff", b"/mcp?\xff", b"/%ff", b"/ ", b"/mcp\x00", b"http://x/mcp", b"//",
    b"/" * 9000,
)  # fmt: skip


def _fitting(data: bytes) -> list[bytes]:
    """Cut data into pieces that fit into frames."""
    return [data[at : at + 16_384] for at in range(0, len(data), 16_384)] or [b""]
