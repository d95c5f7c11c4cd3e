"""Plain requests are read by llhttp, all others by h11, and nobody outside can tell which.

Connections are played twice, to the protocol that is served and to Hypercorn's with h11 alone, and must be answered
alike. What a head says is compared with what h11 reads in it, for heads that are made up.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any

import h11
import hypercorn.protocol
import hypercorn.protocol.h11
import pytest
import trio
from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.config import Config
from hypercorn.events import RawData
from hypercorn.protocol.h11 import H11Protocol
from hypercorn.trio import tcp_server
from hypercorn.typing import ConnectionState
from hypothesis import example, given
from hypothesis import strategies as st

from mcp_hybrid.server.draining import DrainingContext
from mcp_hybrid.server.http1 import PlainHTTP1Protocol
from mcp_hybrid.server.plain_answer import PlainAnswer
from mcp_hybrid.server.plain_head import read_plain_head
from mcp_hybrid.server.protocols import HardenedH11Protocol, HardenedHTTPStream
from mcp_hybrid.server.tasks import HardenedTaskGroup
from mcp_hybrid.server.worker import HardenedTCPServer

LIMIT = 4096
"""Bytes that a head may have here."""

Headers = list[tuple[bytes, bytes]]


async def app(scope: Any, receive: Any, send: Any) -> None:
    """Answer with what was understood, in the way that the path names."""
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.close", "code": 1000})
        return
    how = scope["path"].strip("/")
    if how == "early":
        body = b"not read"
    else:
        body = b""
        while (event := await receive())["type"] == "http.request":
            body += event["body"]
            if not event["more_body"]:
                break
        else:
            return
    said = {key: scope[key] for key in ("method", "path", "http_version", "scheme", "root_path")}
    said |= {"query": scope["query_string"].decode(), "raw": scope["raw_path"].decode("latin-1")}
    said |= {"headers": [(k.decode("latin-1"), v.decode("latin-1")) for k, v in scope["headers"]], "body": str(body)}
    text = json.dumps(said).encode()
    await ANSWERS.get(how, _counted)(send, text)


async def _counted(send: Any, text: bytes) -> None:
    await _head(send, (b"Content-Length", b"%d" % len(text)), (b"x", b" y "))
    await _body(send, text)


async def _streamed(send: Any, text: bytes) -> None:
    await _head(send)
    await _body(send, text[:10], more=True)
    await _body(send, b"", more=True)
    await _body(send, text[10:], more=True)
    await _body(send, b"")


async def _streamed_to_the_last(send: Any, text: bytes) -> None:
    await _head(send, (b"transfer-encoding", b"chunked"))
    await _body(send, text[:10], more=True)
    await _body(send, text[10:])


async def _closing(send: Any, text: bytes) -> None:
    await _head(send, (b"content-length", b"%d" % len(text)), (b"connection", b"close"))
    await _body(send, text)


async def _empty(send: Any, _: bytes) -> None:
    await _head(send, status=204)
    await _body(send, b"")


async def _empty_that_says_something(send: Any, _: bytes) -> None:
    await _head(send, status=204)
    await _body(send, b"never to be seen")


async def _too_long(send: Any, _: bytes) -> None:
    await _head(send, (b"content-length", b"3"))
    await _body(send, b"four", more=True)


async def _too_short(send: Any, _: bytes) -> None:
    await _head(send, (b"content-length", b"5"))
    await _body(send, b"four")


async def _split(send: Any, _: bytes) -> None:
    await _head(send, (b"x", b"a\r\nset-cookie: b"))


async def _no_name(send: Any, _: bytes) -> None:
    await _head(send, (b"a b", b"c"))


async def _pseudo(send: Any, _: bytes) -> None:
    await _head(send, (b":status", b"200"))


async def _no_length(send: Any, _: bytes) -> None:
    await _head(send, (b"content-length", b"many"))


async def _failing(_send: Any, _: bytes) -> None:
    raise ValueError("on purpose")


async def _failing_midway(send: Any, _: bytes) -> None:
    await _head(send)
    await _body(send, b"so far", more=True)
    raise ValueError("on purpose")


async def _silent(_send: Any, _: bytes) -> None:
    pass


async def _unfinished(send: Any, _: bytes) -> None:
    await _head(send, (b"content-length", b"10"))
    await _body(send, b"four", more=True)


async def _head(send: Any, *headers: tuple[bytes, bytes], status: int = 200) -> None:
    await send({"type": "http.response.start", "status": status, "headers": list(headers)})


async def _body(send: Any, body: bytes, *, more: bool = False) -> None:
    await send({"type": "http.response.body", "body": body, "more_body": more})


ANSWERS = {
    "streamed": _streamed,
    "streamed-to-the-last": _streamed_to_the_last,
    "closing": _closing,
    "empty": _empty,
    "empty-that-says-something": _empty_that_says_something,
    "too-long": _too_long,
    "too-short": _too_short,
    "split": _split,
    "no-name": _no_name,
    "pseudo": _pseudo,
    "no-length": _no_length,
    "failing": _failing,
    "failing-midway": _failing_midway,
    "silent": _silent,
    "unfinished": _unfinished,
}


# Connections that are played to both


def get(
    path: str = "/a", *lines: str, method: str = "GET", version: str = "1.1", host: str | None = "Host: h"
) -> bytes:
    """Return a request without a body."""
    fields = [*([host] if host is not None else []), *lines]
    return "\r\n".join([f"{method} {path} HTTP/{version}", *fields, "", ""]).encode("latin-1")


def post(body: bytes = b"hello", path: str = "/a", *lines: str) -> bytes:
    """Return a request with a body."""
    return get(path, f"Content-Length: {len(body)}", *lines, method="POST") + body


CHUNKED = get("/a", "Transfer-Encoding: chunked", method="POST") + b"3;x=y\r\nabc\r\n2\r\nde\r\n0\r\nt: u\r\n\r\n"
TRICKLED = [bytes([byte]) for byte in post()]

PLAIN: dict[str, Sequence[bytes]] = {
    "a GET": [get()],
    "several one after another": [get(), post(), get("/b?c=d%20e"), post(b"")],
    "a path that is quoted": [get("/%C3%A9%2F?x=%20#f")],
    "a whole URL": [get("http://h/a?b")],
    "headers of all kinds": [get("/a", "X-One: a", "x-one: b", "Accept:\t */* \t", "Empty:", "Latin: \xe9")],
    "a body in two parts": [post()[:-2], post()[-2:]],
    "a body after its head": [post()[:-5], b"hello"],
    "a body that is large": [post(b"x" * 300_000)],
    "byte by byte": TRICKLED,
    "a head in parts": [post()[:7], post()[7:30], post()[30:], get()[:-1], get()[-1:]],
    "the next one before the answer": [get() + post() + get("/streamed") + get("/b")],
    "the next one in part": [post() + get()[:9], get()[9:]],
    "asked to close": [get("/a", "Connection: close")],
    "asked to stay": [get("/a", "Connection: Keep-Alive"), get()],
    "DELETE and OPTIONS": [get(method="DELETE"), get(method="OPTIONS")],
    **{how: [post(b"hello", f"/{how}"), get()] for how in ANSWERS},
    "answered before the body is there": [get("/early", "Content-Length: 9", method="POST")],
    "answered before the body was read": [post(b"x" * 200_000, "/early")],
    "gone in the middle of a body": [post()[:-2]],
    "gone in the middle of a head": [post()[:20]],
    "gone in the middle of the second head": [get(), post()[:20]],
    "gone at once": [],
}

NOT_PLAIN: dict[str, Sequence[bytes]] = {
    "chunks": [CHUNKED, get()],
    "chunks after a plain one": [get(), CHUNKED],
    "a plain one and chunks at once": [post() + CHUNKED + get()],
    "told to expect": [post(b"hello", "/a", "Expect: 100-continue")[:-5], b"hello", get()],
    "HTTP/1.0": [get(version="1.0", host=None)],
    "HTTP/1.0, streamed": [get("/streamed", version="1.0")],
    "HTTP/0.9": [b"GET /a\r\n\r\n"],
    "HTTP/1.2": [get(version="1.2")],
    "HEAD": [get(method="HEAD"), get()],
    "HEAD, streamed": [get("/streamed", method="HEAD"), get()],
    "a method of its own": [get(method="FOO"), get(method="get")],
    "a method that is none": [get(method="F@O")],
    "CONNECT": [get("h:1", method="CONNECT")],
    "a websocket": [get("/a", "Connection: Upgrade", "Upgrade: websocket")],
    "an upgrade to something else": [get("/a", "Connection: Upgrade", "Upgrade: foo")],
    "no host": [get(host=None)],
    "two hosts": [get("/a", "Host: i")],
    "two lengths": [get("/a", "Content-Length: 2", "Content-Length: 3", method="POST") + b"ab"],
    "the same length twice": [get("/a", "Content-Length: 2", "Content-Length: 2", method="POST") + b"ab"],
    "a length that is none": [get("/a", "Content-Length: x", method="POST") + b"ab"],
    "a negative length": [get("/a", "Content-Length: -1", method="POST") + b"ab"],
    "length and chunks": [get("/a", "Content-Length: 2", "Transfer-Encoding: chunked", method="POST") + b"0\r\n\r\n"],
    "another coding": [get("/a", "Transfer-Encoding: gzip, chunked", method="POST") + b"0\r\n\r\n"],
    "no carriage returns": [b"GET /a HTTP/1.1\nHost: h\n\n"],
    "no carriage return at the end": [b"GET /a HTTP/1.1\r\nHost: h\r\n\n"],
    "a header that is folded": [get("/a", "X: a", " b")],
    "a space before the colon": [get("/a", "X : a")],
    "no header": [get("/a", "X")],
    "a NUL": [get("/a", "X: a\0b")],
    "a path that is not ASCII": [get("/caf\xe9")],
    "two spaces": [b"GET  /a HTTP/1.1\r\nHost: h\r\n\r\n"],
    "an empty line first": [b"\r\n" + get()],
    "an empty line between": [get(), b"\r\n" + get()],
    "garbage": [b"\x16\x03\x01\x02\x00\x01"],
    "garbage after a plain one": [get(), b"\x16\x03\x01\x02\x00\x01"],
    "a head that is too large": [get("/a", f"X: {'x' * 5000}")],
    "a head that is too large, in parts": [get("/a", f"X: {'x' * 5000}")[:4500], b"xxxx"],
    "asked to do two things": [get("/a", "Connection: keep-alive, close")],
}


def played(protocol: type[H11Protocol], pieces: Sequence[bytes], *, quietly: bool = False) -> list[Any]:
    """Return what is said on a connection to `protocol`, on which the pieces are sent one by one."""
    said: list[Any] = []

    async def play() -> None:
        async with served(protocol) as client:
            with suppress(trio.BrokenResourceError):  # the server has closed it
                for piece in pieces:
                    await client.send_all(piece)
                    await trio.testing.wait_all_tasks_blocked(0.005)  # each is read by itself
                if not quietly:
                    await client.send_eof()
            raw = b""
            with trio.move_on_after(0.5 if quietly else 5) as waiting, suppress(trio.BrokenResourceError):
                while data := await client.receive_some(65536):
                    raw += data
            said.extend(read_answers(raw, pieces))
            said.append("open" if waiting.cancelled_caught else "closed")

    trio.run(play)
    return said


@asynccontextmanager
async def served(protocol: type[H11Protocol], config: Config | None = None) -> AsyncIterator[trio.SocketStream]:
    """Open a connection to a worker that has this protocol."""
    config = config or Config()
    config.h11_max_incomplete_size = LIMIT
    config.keep_alive_timeout = 60
    context = DrainingContext(None, drain=None, linger=None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hypercorn.protocol, "H11Protocol", protocol)
        patch.setattr(hypercorn.protocol.h11, "HTTPStream", HardenedHTTPStream)
        patch.setattr(tcp_server, "TaskGroup", HardenedTaskGroup)

        async def serve(stream: trio.SocketStream) -> None:
            await HardenedTCPServer(ASGIWrapper(app), config, context, ConnectionState({}), stream).run()

        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.serve_listeners, serve, [listener])
            stream = await trio.open_tcp_stream(*listener.socket.getsockname())
            async with stream:
                yield stream
            nursery.cancel_scope.cancel()


def read_answers(raw: bytes, pieces: Sequence[bytes]) -> list[Any]:
    """Return the answers in `raw`, as a client reads them. How they are cut into chunks is nobody's business."""
    said: list[Any] = []
    method = b"HEAD" if any(piece.startswith(b"HEAD") for piece in pieces) else b"GET"
    while raw:
        reader = h11.Connection(h11.CLIENT)
        reader.send(h11.Request(method=method, target="/", headers=[("host", "h")]))
        reader.send(h11.EndOfMessage())
        method = b"GET"
        reader.receive_data(raw)
        reader.receive_data(b"")
        body = b""
        try:
            while not isinstance(event := reader.next_event(), h11.EndOfMessage | h11.ConnectionClosed):
                if isinstance(event, h11.Data):
                    body += event.data
                elif isinstance(event, h11.Response | h11.InformationalResponse):
                    headers = sorted((name, value) for name, value in event.headers if name != b"date")
                    said.append((event.status_code, headers))
        except h11.RemoteProtocolError as error:
            return [*said, body, "cut" if "peer closed" in str(error) else str(error)]
        said.append(body)
        raw = reader.trailing_data[0]
    return said


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("pieces", [*PLAIN.values(), *NOT_PLAIN.values()], ids=[*PLAIN, *NOT_PLAIN])
def test_nobody_can_tell_who_has_read_a_request(pieces: Sequence[bytes], caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("CRITICAL")
    assert played(PlainHTTP1Protocol, pieces) == played(HardenedH11Protocol, pieces)


@pytest.mark.parametrize("name", ["a GET", "asked to stay", "the next one in part", "HTTP/1.0", "closing", "no host"])
def test_a_client_that_stays_finds_its_connection_as_it_would_have_been(name: str) -> None:
    pieces = (PLAIN | NOT_PLAIN)[name]
    patient = played(PlainHTTP1Protocol, pieces, quietly=True)
    assert patient == played(HardenedH11Protocol, pieces, quietly=True)
    assert patient[-1] == ("closed" if name in {"HTTP/1.0", "closing", "no host"} else "open")


@pytest.fixture
def by_h11(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """What h11 was given to read."""
    given: list[bytes] = []
    handle = HardenedH11Protocol.handle

    async def noting(self: HardenedH11Protocol, event: Any) -> None:
        if isinstance(event, RawData):
            given.append(event.data)
        await handle(self, event)

    monkeypatch.setattr(HardenedH11Protocol, "handle", noting, raising=True)
    return given


@pytest.mark.parametrize("name", [name for name in PLAIN if not name.startswith("gone in")])
def test_h11_has_nothing_to_do_with_plain_requests(name: str, by_h11: list[bytes]) -> None:
    played(PlainHTTP1Protocol, PLAIN[name])
    assert by_h11 == []


@pytest.mark.parametrize("name", NOT_PLAIN)
def test_h11_is_given_every_byte_of_what_is_not_plain(name: str, by_h11: list[bytes]) -> None:
    pieces = NOT_PLAIN[name]
    played(PlainHTTP1Protocol, pieces)
    sent, read = b"".join(pieces), b"".join(by_h11)
    assert read
    assert any(sent.startswith(before + read) for before in (b"", get(), post()))  # it may have hung up, too


def test_what_comes_after_asking_for_the_end_is_not_read() -> None:
    # h11 would refuse the first for the sake of the second (RFC 9112, section 9.6: it is to be ignored).
    (status, headers), _, end = played(PlainHTTP1Protocol, [get("/a", "Connection: close") + get()])
    assert (status, end) == (200, "closed")
    assert (b"connection", b"close") in headers


def test_a_name_of_the_server_that_is_none_is_refused_and_the_connection_ends() -> None:
    async def play() -> None:
        config = Config()
        config.server_names = ["known"]
        async with served(PlainHTTP1Protocol, config) as client:
            await client.send_all(get(host="Host: known"))
            assert (await client.receive_some(4096)).startswith(b"HTTP/1.1 200 ")
            await client.send_all(get(host="Host: unknown"))
            with trio.fail_after(5):
                raw = b""
                while data := await client.receive_some(4096):
                    raw += data
            assert raw.startswith(b"HTTP/1.1 404 ")

    trio.run(play)


def test_the_last_request_of_a_connection_is_told_so() -> None:
    async def play() -> None:
        config = Config()
        config.keep_alive_max_requests = 2
        async with served(PlainHTTP1Protocol, config) as client:
            for closing in (False, True):
                await client.send_all(get())
                assert (b"connection: close\r\n" in await client.receive_some(4096)) is closing
            assert await client.receive_some(1) == b""

    trio.run(play)


# What a head says

names = st.sampled_from(["Host", "host", "Content-Length", "Connection", "Transfer-Encoding", "Upgrade", "X", "Accept"])
values = st.sampled_from(
    ["h", "3", "0", "03", "close", "keep-alive", "chunked", "", " a b ", "a,b", "\t", "\xe9", "\x7f"]
)
separators = st.sampled_from([": ", ":", ":\t", " : ", ":  "])
ends = st.sampled_from(["\r\n", "\r\n", "\r\n", "\r\n", "\n", "\r", "\r\n "])
lines = st.tuples(names, separators, values, ends).map("".join)
methods = st.sampled_from(["GET", "POST", "DELETE", "OPTIONS", "PUT", "get", "PRI", "G@T"])
targets = st.sampled_from(["/", "/mcp?x=1", "*", "http://h/a", "/%zz", "/a b", "/\xe9", "", "a", '/"<>\\^`{|}', "/a#b"])
versions = st.sampled_from(["HTTP/1.1", "HTTP/1.1", "HTTP/1.1", "HTTP/1.0", "HTTP/2.0", "http/1.1", ""])
spaces = st.sampled_from([" ", " ", " ", "  ", "\t"])
starts = st.tuples(methods, spaces, targets, spaces, versions, ends).map("".join)
heads = st.tuples(starts, st.lists(lines, max_size=6)).map(lambda parts: parts[0] + "Host: h\r\n" + "".join(parts[1]))


@st.composite
def spoiled(draw: st.DrawFn) -> bytes:
    """Draw a head of which a byte or two are something else."""
    head = bytearray((draw(heads) + "\r\n").encode("latin-1"))
    for _ in range(draw(st.integers(0, 2))):
        head[draw(st.integers(0, len(head) - 1))] = draw(st.integers(0, 255))
    return bytes(head)


@given(spoiled())
@example(get())
@example(post(b""))
@example(b"GET / HTTP/1.1\r\nHost: h\r\nX: a\tb \t\r\n\r\n")
def test_what_is_taken_for_plain_says_to_h11_the_same(head: bytes) -> None:
    read = read_plain_head(head)
    if read is None:
        return
    plain, length, ends = read
    reader = h11.Connection(h11.SERVER)
    reader.receive_data(head)
    request = reader.next_event()
    assert isinstance(request, h11.Request)
    assert (plain.method, plain.target) == (request.method, request.target)
    assert plain.headers == list(request.headers)
    assert request.http_version == b"1.1"
    assert reader.trailing_data == (b"", False)
    reader.receive_data(b"x" * length)
    received = 0
    while isinstance(event := reader.next_event(), h11.Data):
        received += len(event.data)
    assert (received, type(event)) == (length, h11.EndOfMessage)
    reader.send(h11.Response(status_code=200, headers=[("content-length", "0")]))
    reader.send(h11.EndOfMessage())
    assert (reader.our_state is h11.MUST_CLOSE) is ends


@pytest.mark.parametrize("head", [get(), post(b""), get("/a", "Connection: close"), get("/a", "X: a", "X: b")])
def test_what_nearly_all_clients_send_is_plain(head: bytes) -> None:
    assert read_plain_head(head) is not None


# An answer


@given(
    st.sampled_from([200, 202, 204, 304, 404, 503]),
    st.lists(st.tuples(st.sampled_from([b"x", b"content-type", b"Link"]), st.binary(max_size=5)), max_size=3),
    st.lists(st.binary(max_size=9), max_size=3),
    st.booleans(),
    st.booleans(),
)
@example(200, [(b"x", b"\v")], [], False, False)
@example(200, [(b"x", b"a\fb")], [], False, False)
def test_an_answer_is_what_h11_reads_in_it(
    status: int, headers: Headers, parts: list[bytes], counted: bool, ends: bool
) -> None:
    answer, body = PlainAnswer(ends=ends), b"".join(parts)
    if status in {204, 304}:
        parts, body, counted = [], b"", False
    length = [(b"Content-Length", b"%d" % len(body))] if counted else []
    try:
        raw = answer.head(status, [*headers, *length])
    except h11.LocalProtocolError:
        assert any(byte in value for _, value in headers for byte in b"\r\n\0\v\f")
        return
    raw += b"".join(map(answer.body, parts)) + answer.end()
    reader = h11.Connection(h11.CLIENT)
    reader.send(h11.Request(method="GET", target="/", headers=[("host", "h")]))
    reader.send(h11.EndOfMessage())
    reader.receive_data(raw)
    response = reader.next_event()
    assert isinstance(response, h11.Response)
    assert response.status_code == status
    assert [value for name, value in response.headers if name in {b"x", b"content-type", b"link"}] == [
        value.strip(b" \t") for _, value in headers
    ]
    received = b""
    while isinstance(event := reader.next_event(), h11.Data):
        received += event.data
    assert (received, type(event)) == (body, h11.EndOfMessage)
    assert reader.trailing_data[0] == b""
    assert ((b"connection", b"close") in response.headers) is ends
