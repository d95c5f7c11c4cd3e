"""HTTP/1.1 requests, whole ones that are strange and ones that break the framing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Final

from fuzzing import http2, messages
from fuzzing.script import Item, Known
from harness import mcp

Header = tuple[bytes, bytes]
TLS_HELLO: Final = bytes.fromhex("1603010200010001fc0303") + bytes(range(64)) + bytes.fromhex("0020130113021303")
UPGRADE: Final[list[Header]] = [
    (b"Upgrade", b"websocket"),
    (b"Connection", b"Upgrade"),
    (b"Sec-WebSocket-Key", b"dGhlIHNhbXBsZSBub25jZQ=="),
    (b"Sec-WebSocket-Version", b"13"),
]


@dataclass
class Request:
    """A request in parts, each of which can be spoilt."""

    method: bytes
    target: bytes
    headers: list[Header]
    body: bytes

    def encoded(self) -> bytes:
        """Write it down as it is."""
        lines = [b"%s %s HTTP/1.1" % (self.method, self.target), *(b"%s: %s" % header for header in self.headers)]
        return b"\r\n".join([*lines, b"", b""]) + self.body

    def with_length(self) -> Request:
        """Announce the length of the body, as a client does that means well."""
        if self.body or self.method == b"POST":
            self.headers.append((b"Content-Length", b"%d" % len(self.body)))
        return self

    def replace(self, name: bytes, value: bytes) -> None:
        """Give a header another value; it comes last then."""
        self.headers = [header for header in self.headers if header[0].lower() != name.lower()]
        self.headers.append((name, value))


def whole_item(rng: Random, known: Known) -> Item:
    """Make a request that is HTTP whatever else it is: it must be answered, once."""
    request = _request(rng, known)
    for _ in range(rng.choice((0, 0, 1, 1, 2, 3))):
        rng.choice(_HARMLESS)(rng, request)
    if request.method == b"GET" and request.target.startswith(b"/mcp"):
        request.replace(b"Accept", b"application/json")  # an open stream would keep the others waiting
    if rng.random() < 0.1:
        data = request.encoded().removesuffix(request.body) if request.body else b""
        if data:
            chunked = Request(request.method, request.target, request.headers, _chunked(rng, request.body))
            chunked.headers.append((b"Transfer-Encoding", b"chunked"))
            return Item(chunked.encoded(), "chunked request", request.method.decode(), whole=True)
    return Item(request.with_length().encoded(), "request", request.method.decode(), whole=True)


def last_item(rng: Random, known: Known) -> Item:
    """Make what comes last on a connection, as nobody can say what is left of it afterwards."""
    make = rng.choice(_LAST)
    return Item(make(rng, known), make.__name__.strip("_"))


# Requests that are right


def _request(rng: Random, known: Known) -> Request:
    method = rng.choice((b"POST",) * 16 + (b"GET", b"DELETE", b"OPTIONS", b"HEAD"))
    headers: list[Header] = [(b"Host", b"127.0.0.1")]
    if method in (b"POST", b"OPTIONS", b"HEAD"):
        headers += [(b"Content-Type", b"application/json"), (b"Accept", rng.choice(_ACCEPTS))]
    if rng.random() < 0.6:
        headers.append((b"Mcp-Protocol-Version", _text(rng.choice(messages.VERSIONS))))
    if rng.random() < (0.5 if method == b"POST" else 0.9):
        headers.append((b"Mcp-Session-Id", session_id(rng, known)))
    if rng.random() < 0.15:
        headers.append((b"Mcp-Method", _text(rng.choice(messages.METHODS))))
        headers.append((b"Mcp-Name", _text(rng.choice(messages.TOOLS))))
    if rng.random() < (0.5 if method == b"GET" else 0.02):
        headers.append((b"Last-Event-Id", event_id(rng, known)))
    return Request(method, b"/mcp", headers, messages.encoded(rng) if method == b"POST" else b"")


_ACCEPTS: Final = (mcp.BOTH.encode(),) * 6 + (
    b"application/json", b"text/event-stream", b"*/*", b"application/*;q=0.1, text/event-stream;q=0", b"", b"text/html",
)  # fmt: skip


def session_id(rng: Random, known: Known) -> bytes:
    """Choose a session id: a valid one, one that was, or one that somebody made up."""
    real = rng.choice(known.sessions).encode()
    chance = rng.random()
    if chance < 0.6:
        return real
    if chance < 0.7:
        return real[: rng.randrange(1, len(real))]
    if chance < 0.85:
        at = rng.randrange(len(real))
        return real[:at] + rng.choice((b"A", b"-", b"=", b"~", b"")) + real[at + 1 :]
    return rng.choice(
        (b"x", b"x" * 4096, b"x" * 4097, b"a b", b"\xff\xfe", real + real, b"null", b"../..", b"%00", b"")
    )


def event_id(rng: Random, known: Known) -> bytes:
    """Choose an event id: one that there was, or one that somebody made up."""
    if known.events and rng.random() < 0.5:
        return rng.choice(known.events).encode()
    return rng.choice((b"", b"0", b"-1", b"1", b"x/1", b"/", b"a" * 2000, b"1" * 500, b"\xff", b"*", b"_/0", b"a/b/c"))


# Spoiling that leaves it HTTP


def _spoil_method(rng: Random, request: Request) -> None:
    request.method = rng.choice(
        (b"PUT", b"PATCH", b"TRACE", b"get", b"Post", b"M-SEARCH", b"!#$%&'*+-.^_`|~", b"X" * 300)
    )


def _spoil_target(rng: Random, request: Request) -> None:
    request.target = rng.choice(
        (
            b"/", b"*", b"/mcp/", b"/mcp?", b"/mcp?a=%ff&b=%00", b"//mcp", b"/mcp/../mcp", b"/mcp%2f", b"/%6dcp",
            b"/mcp%00",
            b"/%ff%fe", b"/%", b"/%zz", b"http://127.0.0.1/mcp", b"http://[::1", b"mcp", b"?", b"#", b"/mcp#x",
            b"/" * 2000,
            b"/%c0%ae", b"/\\mcp", b"127.0.0.1:80", b"/healthz", b"/metrics", b"/.well-known/oauth-protected-resource",
        )
    )  # fmt: skip


def _spoil_header(rng: Random, request: Request) -> None:
    request.replace(rng.choice(_NAMES), _value(rng))


def _add_header(rng: Random, request: Request) -> None:
    request.headers.insert(rng.randrange(1, len(request.headers) + 1), (rng.choice(_NAMES), _value(rng)))


def _double_header(rng: Random, request: Request) -> None:
    name, value = rng.choice(request.headers)
    if name != b"Host":
        request.headers.append((name.upper(), rng.choice((value, _value(rng)))))


def _drop_header(rng: Random, request: Request) -> None:
    name, _ = rng.choice(request.headers)
    if name != b"Host":
        request.headers = [header for header in request.headers if header[0] != name]


def _many_headers(rng: Random, request: Request) -> None:
    request.headers += [(b"X-%d" % number, b"y") for number in range(rng.choice((50, 400)))]


def _spoil_host(rng: Random, request: Request) -> None:
    request.replace(
        b"Host",
        rng.choice((b"evil.example", b"127.0.0.1:99999", b"", b"[::1]:1", b"[", b"localhost:", b"a" * 500, b"\xff")),
    )


def _expect(rng: Random, request: Request) -> None:
    request.headers.append((b"Expect", rng.choice((b"100-continue", b"100-CONTINUE", b"200-ok", b""))))


_HARMLESS: Final[tuple[Callable[[Random, Request], None], ...]] = (
    _spoil_method, _spoil_target, _spoil_header, _spoil_header, _add_header, _add_header, _double_header, _drop_header,
    _many_headers, _spoil_host, _expect,
)  # fmt: skip

_NAMES: Final = (
    b"Accept", b"Content-Type", b"Origin", b"Mcp-Session-Id", b"Mcp-Protocol-Version", b"Mcp-Method", b"Mcp-Name",
    b"Last-Event-Id", b"Authorization", b"Cookie", b"Forwarded", b"X-Forwarded-For", b"Content-Encoding", b"Range",
    b"Access-Control-Request-Headers", b"Access-Control-Request-Method", b"Te", b"Trailer", b"X-" + b"n" * 1000,
    b"Mcp-Param-Name", b"Traceparent", b"If-Match", b"Http2-Settings", b"Keep-Alive", b"Proxy-Connection", b"_", b"!",
)  # fmt: skip


def _value(rng: Random) -> bytes:
    return rng.choice(
        (
            b"", b"0", b"-1", b",", b";", b";;=", b"q=", b"*", b"*/*;q=nan", b"application/json; charset=utf-16",
            b"\xff\xfe",
            b"application/json;charset=\"x", b"text/event-stream", b"http://localhost:1", b"http://evil.example",
            b"null",
            b"2025-11-25", b"2026-07-28", b"=?utf-8?B?w6k=?=", b"=?utf-8?B?!?=", b"a\tb", b"Bearer x", b"Basic OjA=",
            "é".encode(), "é".encode("latin-1"), b"x" * 3000, b"application/json, " * 100 + b"x", b"tools/call",
            b"add", b"\x80",
        )
    )  # fmt: skip


def _chunked(rng: Random, body: bytes) -> bytes:
    pieces = b""
    while body:
        size = min(len(body), rng.choice((1, 7, 100, 5000)) if len(body) < 2000 else 5000)
        extension = rng.choice((b"", b"", b"", b";a=b", b';a="b"', b";"))
        pieces += b"%x%s\r\n%s\r\n" % (size, extension, body[:size])
        body = body[size:]
    return pieces + b"0\r\n" + rng.choice((b"", b"", b"X-Trailer: 1\r\n")) + b"\r\n"


def _text(text: str) -> bytes:
    """Encode a header's value; what HTTP forbids there is left to others."""
    return text.encode().replace(b"\x00", b"?")


# Spoiling that does not


def _post(rng: Random, known: Known) -> Request:
    request = _request(rng, known)
    request.method = b"POST"
    request.body = request.body or b'{"jsonrpc":"2.0","id":1,"method":"ping"}'
    return request


def _lie_about_length(rng: Random, known: Known) -> bytes:
    request = _post(rng, known)
    size = len(request.body)
    lies = (
        b"%d" % (size + 1), b"%d" % (size + 5000), b"%d" % max(size - 1, 0), b"0", b"-1", b"+%d" % size, b"0x10",
        b"1e3", b"",
        b"%d, %d" % (size, size), b"%d, %d" % (size, size + 1), b"9" * 30, b"9" * 5000, b" ", b"%d.0" % size, b"\xb2",
    )  # fmt: skip
    for _ in range(rng.choice((1, 1, 2))):
        request.headers.append((b"Content-Length", rng.choice(lies)))
    if rng.random() < 0.2:
        request.headers.append(
            (b"Transfer-Encoding", rng.choice((b"chunked", b"identity", b"gzip", b"chunked, chunked")))
        )
    return request.encoded()


def _spoil_chunks(rng: Random, known: Known) -> bytes:
    request = _post(rng, known)
    request.headers.append(
        (b"Transfer-Encoding", rng.choice((b"chunked",) * 8 + (b"Chunked", b"xchunked", b"chunked;x")))
    )
    good = _chunked(rng, request.body)
    at = rng.randrange(len(good))
    request.body = rng.choice(
        (
            good[:at], good[:at] + b"\x00" + good[at + 1 :], good[:at] + good[at + 1 :], b"zz\r\n" + good,
            b"-1\r\n" + good,
            b"ffffffffffffffffffff\r\n" + good, b"f" * 100 + b"\r\n", b"5\r\nab",
            b"5" + b";x" * 20_000 + b"\r\nabcde\r\n0\r\n\r\n",
            b"\r\n" + good, good[:-2] + b"X: " + b"y" * 30_000 + b"\r\n\r\n", b"1\nx\n0\n\n", b"0\r\n\r\n" + good,
            b" 1\r\nx\r\n",
        )
    )  # fmt: skip
    return request.encoded()


def _spoil_head(rng: Random, known: Known) -> bytes:
    data = _post(rng, known).with_length().encoded()
    first, _, rest = data.partition(b"\r\n")
    return rng.choice(
        (
            b"POST /mcp HTTP/1.0\r\n" + rest,
            b"POST /mcp HTTP/1.0\r\nConnection: keep-alive\r\n" + rest,
            b"POST /mcp HTTP/"
            + rng.choice((b"0.9", b"1.2", b"2.0", b"3", b"9.9", b"x", b"", b"1.1 "))
            + b"\r\n"
            + rest,
            b"POST  /mcp HTTP/1.1\r\n" + rest,
            b"POST /m cp HTTP/1.1\r\n" + rest,
            b"POST /caf\xc3\xa9 HTTP/1.1\r\n" + rest,
            b"POST /" + b"x" * 20_000 + b" HTTP/1.1\r\n" + rest,
            b"POST\r\n" + rest,
            b"\r\n\r\n" + data,
            b"\x00" + data,
            b" " + data,
            first + b"\r\n folded: yes\r\n" + rest,
            first + b"\r\nX: a\r\n\tfolded\r\n \r\n  twice\r\n" + rest,
            first + b"\r\nBad Name: x\r\n" + rest,
            first + b"\r\nBad\xffName: x\r\n" + rest,
            first + b"\r\n: x\r\n" + rest,
            first + b"\r\nNo-Colon\r\n" + rest,
            first + b"\r\nSpace : x\r\n" + rest,
            first + b"\r\nX: a\x00b\r\n" + rest,
            first + b"\r\nX: a\rb\r\n" + rest,
            first + b"\r\nX: \x01\x7f\r\n" + rest,
            first + b"\r\nX: " + b"y" * rng.choice((16_000, 17_000, 70_000)) + b"\r\n" + rest,
            first + b"\r\n" + b"X: y\r\n" * 5000 + rest,
            first + b"\r\nHost: second\r\n" + rest,
            first
            + b"\r\nConnection: "
            + rng.choice((b"close", b"Upgrade", b"x, close", b"mcp-session-id"))
            + b"\r\n"
            + rest,
            data.replace(b"Host:", b"Hots:", 1),
            data.replace(b"\r\n", b"\n"),
            data.replace(b"\r\n", b"\r"),
            b"CONNECT 127.0.0.1:80 HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
            b"GET /mcp HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n\r\n" + _chunked(rng, b"xyz" * 50),
        )
    )


def _bytes(rng: Random, known: Known) -> bytes:
    """Cut a request off, or change, drop and add bytes of it anywhere."""
    data = bytearray(_request(rng, known).with_length().encoded())
    if rng.random() < 0.3:
        return bytes(data[: rng.randrange(len(data))])
    for _ in range(rng.choice((1, 1, 2, 5))):
        at = rng.randrange(len(data))
        data[at : at + rng.choice((0, 1, 1, 3))] = rng.choice((b"", b"\x00", b"\r", b"\n", b"\xff", rng.randbytes(2)))
    return bytes(data)


def _stream(rng: Random, known: Known) -> bytes:
    """Open a stream that does not end by itself, or come back for one."""
    request = Request(b"GET", b"/mcp", [(b"Host", b"127.0.0.1"), (b"Accept", b"text/event-stream")], b"")
    request.headers.append((b"Mcp-Session-Id", session_id(rng, known)))
    if rng.random() < 0.4:
        request.headers.append((b"Last-Event-Id", event_id(rng, known)))
    if rng.random() < 0.3:
        rng.choice(_HARMLESS)(rng, request)
    more = whole_item(rng, known).data if rng.random() < 0.3 else b""
    return request.encoded() + more


def _websocket(rng: Random, _known: Known) -> bytes:
    """Ask for a websocket, and do not wait for the refusal."""
    request = Request(rng.choice((b"GET", b"GET", b"GET", b"POST")), b"/mcp", [(b"Host", b"127.0.0.1"), *UPGRADE], b"")
    if rng.random() < 0.4:
        rng.choice((_drop_header, _double_header, _spoil_header, _spoil_target, _spoil_host))(rng, request)
    stray = rng.choice(
        (b"", b"X", b"\x81\x85\x00\x00\x00\x00hello", b"\x88\x80\x00\x00\x00\x00", rng.randbytes(40), b"GET ")
    )
    return request.encoded() + stray


def _upgrade_to_http2(rng: Random, known: Known) -> bytes:
    """Ask for HTTP/2 in clear text, and go on as if it had been granted, or as nobody does."""
    upgrade = [(b"Upgrade", b"h2c"), (b"Connection", b"Upgrade, HTTP2-Settings")]
    request = Request(
        rng.choice((b"GET", b"DELETE", b"OPTIONS", b"POST")), b"/mcp", [(b"Host", b"127.0.0.1"), *upgrade], b""
    )
    settings = rng.choice(
        (b"AAMAAABkAAQAAP__", b"", b"!", b"AAMAAABkAAQAAP__" * 50, b"AA", b"\xff", b"AAUAAAAA", b"AAT_____")
    )
    if rng.random() < 0.9:
        request.headers.append((b"HTTP2-Settings", settings))
    if rng.random() < 0.5:
        request.headers.append((b"Mcp-Session-Id", session_id(rng, known)))
    if rng.random() < 0.3:
        rng.choice((_drop_header, _double_header, _spoil_header, _spoil_target, _spoil_host))(rng, request)
    then = rng.choice((b"", b"X" * 30, http2.PREFACE, b"".join(http2.frames(rng, known, 5))))
    return request.encoded() + then


def _garbage(rng: Random, _known: Known) -> bytes:
    return rng.choice(
            (
                rng.randbytes(rng.choice((1, 30, 3000, 70_000))), TLS_HELLO, b"\r\n" * 3000, b"\x00" * 3000, b"GET",
                b"\x80\x2e",
                b"SSH-2.0-x\r\n", b"*1\r\n$4\r\nPING\r\n", b"PRI * HTTP/2.0\r\n", b"PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n",
                http2.PREFACE + rng.randbytes(50), http2.PREFACE + b"GET / HTTP/1.1\r\n\r\n",
                b"PROXY TCP4 1.1.1.1 1.1.1.1 1 2\r\n",
            )
    )  # fmt: skip


_LAST: Final[tuple[Callable[[Random, Known], bytes], ...]] = (
    _lie_about_length, _lie_about_length, _spoil_chunks, _spoil_chunks, _spoil_head, _spoil_head, _bytes, _bytes,
    _bytes,
    _stream, _websocket, _upgrade_to_http2, _garbage,
)  # fmt: skip
