"""Judges what a server says: every byte of it must be well-formed HTTP, and no status one that it does not mean."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Generator, Iterator
from typing import Any, Final

from hpack import Decoder, HPACKError
from hyperframe.exceptions import HyperframeError
from hyperframe.frame import ContinuationFrame, DataFrame, Frame, HeadersFrame

from harness.sse import EventReader

STATUS_LINE: Final = re.compile(rb"HTTP/1\.1 ([1-5]\d\d) [\x20-\x7e]*")
FIELD: Final = re.compile(rb"([!#$%&'*+.^_`|~0-9a-zA-Z-]+): ?([\x21-\x7e](?:[\x20-\x7e]*[\x21-\x7e])?)?")
CHUNK_SIZE: Final = re.compile(rb"([0-9a-f]+)", re.IGNORECASE)
BODILESS: Final = frozenset({204, 304})
ONCE: Final = frozenset({b"content-length", b"transfer-encoding", b"content-type", b"mcp-session-id"})
"""Headers that mean nothing certain when they come twice."""

MEANT: Final = {503: "busy, or not there for the moment", 501: "a transfer coding that nobody knows"}
"""The 5xx that a client may be answered, and why. A 500 is never meant."""


class WrongAnswerError(Exception):
    """The server said what it should not have."""


PROBED: Final = {"status", "reason"}
"""What the answer to a health probe has, which is no JSON-RPC message."""
METRICS: Final = b"text/plain; version="

Headers = dict[bytes, bytes]


class Http1Answers:
    """Reads the answers on one HTTP/1 connection, whose requests had these methods, as far as they are known."""

    def __init__(self, methods: list[str], counts: Counter[str]) -> None:
        self.complete = 0
        """Answers that have come whole."""
        self.switched = b""
        """What came after a 101, which is another protocol."""
        self.streaming = False
        """Whether an event stream is under way."""
        self._methods = methods
        self._counts = counts
        self._buffer = b""
        self._at_start = True
        self._is_switched = False
        self._reading = self._read()
        next(self._reading)

    def feed(self, data: bytes) -> None:
        """Take what came.

        Raises:
            WrongAnswerError: It is not what this server should say.
        """
        self._buffer += data
        if self._is_switched or (self._at_start and self._buffer.startswith(b"\x00")):  # no status line: a frame
            self._is_switched, self.switched, self._buffer = True, self.switched + self._buffer, b""
        else:
            next(self._reading)

    def _read(self) -> Generator[None, None, None]:
        """Read one answer after the other. Whoever drives this does so whenever there is more in the buffer."""
        while True:
            self._at_start = True
            head = yield from self._until(b"\r\n\r\n")
            self._at_start = False
            status, headers = _head(head)
            self._counts[str(status)] += 1
            _judge_status(status, headers)
            if status == 101:
                self._is_switched, self.switched, self._buffer = True, self._buffer, b""
                yield
            if status >= 200:
                method = self._methods[self.complete] if self.complete < len(self._methods) else ""
                yield from self._body(method, status, headers)
                self.complete += 1

    def _body(self, method: str, status: int, headers: Headers) -> Generator[None, None, None]:
        if b"content-length" in headers and b"transfer-encoding" in headers:
            raise WrongAnswerError("an answer has both a length and a transfer coding")
        if method == "HEAD" or status in BODILESS:
            return
        if b"content-length" in headers:
            body = yield from self._take(int(headers[b"content-length"]))
            if not method and body.startswith(b"HTTP/1.1 "):
                # Garbage may have cut a HEAD out of what was sent: what follows is the next answer already.
                self._buffer = body + self._buffer
                return
            _judge_body(status, headers, body)
        elif headers.get(b"transfer-encoding") == b"chunked":
            yield from self._stream(headers, self._chunks())
        elif headers.get(b"connection", b"").lower() == b"close":
            yield from self._stream(headers, self._rest())
        else:
            raise WrongAnswerError(f"nobody can tell where the body of this answer ends: {headers}")

    def _stream(self, headers: Headers, pieces: Iterator[bytes | None]) -> Generator[None, None, None]:
        """Judge an event stream; nothing else is sent without a length."""
        if not headers[b"content-type"].startswith(b"text/event-stream"):
            raise WrongAnswerError(f"a body of no length that is no event stream: {headers}")
        reader = EventReader()
        self.streaming = True
        for piece in pieces:
            if piece is None:
                yield
                continue
            for event in reader.feed(piece):
                if event.data:
                    _judge_message(event.json())
        if reader.rest:
            raise WrongAnswerError(f"an event stream ended within an event: {reader.rest!r}")
        self.streaming = False

    def _chunks(self) -> Iterator[bytes | None]:
        while True:
            line = yield from self._until(b"\r\n")
            found = CHUNK_SIZE.fullmatch(line)
            if found is None:
                raise WrongAnswerError(f"no chunk size: {line[:80]!r}")
            size = int(found[1], 16)
            while len(self._buffer) < size + 2:
                yield None
            piece, end, self._buffer = self._buffer[:size], self._buffer[size : size + 2], self._buffer[size + 2 :]
            if end != b"\r\n":
                raise WrongAnswerError(f"a chunk does not end where it said: {end!r}")
            if not size:
                return
            yield piece

    def _rest(self) -> Iterator[bytes | None]:
        while True:
            piece, self._buffer = self._buffer, b""
            yield piece
            yield None

    def _until(self, end: bytes) -> Generator[None, None, bytes]:
        while (at := self._buffer.find(end)) < 0:
            yield
        found, self._buffer = self._buffer[:at], self._buffer[at + len(end) :]
        return found

    def _take(self, size: int) -> Generator[None, None, bytes]:
        while len(self._buffer) < size:
            yield
        found, self._buffer = self._buffer[:size], self._buffer[size:]
        return found


def _head(head: bytes) -> tuple[int, Headers]:
    first, *lines = head.split(b"\r\n")
    status_line = STATUS_LINE.fullmatch(first)
    if status_line is None:
        raise WrongAnswerError(f"no status line: {first[:200]!r}")
    headers: Headers = {}
    for line in lines:
        field = FIELD.fullmatch(line)
        if field is None:
            raise WrongAnswerError(f"no header: {line[:200]!r}")
        name = field[1].lower()
        if name in headers and name in ONCE:
            raise WrongAnswerError(f"a header came twice: {line!r}")
        headers[name] = field[2] or b""
    return int(status_line[1]), headers


def _judge_status(status: int, headers: Headers) -> None:
    if status >= 500 and status not in MEANT:
        raise WrongAnswerError(f"{status}: {headers}")
    if status == 503 and b"retry-after" not in headers:
        raise WrongAnswerError("a 503 does not say when to come back")


def _judge_body(status: int, headers: Headers, body: bytes) -> None:
    kind = headers.get(b"content-type", b"")
    if kind == b"application/json":
        try:
            message = json.loads(body)
        except ValueError:
            raise WrongAnswerError(f"{status} with no JSON: {body[:200]!r}, {headers}") from None
        if isinstance(message, dict) and message.keys() <= PROBED:
            return
        for each in message if isinstance(message, list) else [message]:
            _judge_message(each)
            if status >= 400 and "error" not in each:
                raise WrongAnswerError(f"{status} without an error: {body[:200]!r}")
    elif body and not kind.startswith((b"text/event-stream", METRICS)):  # HTTP/2's by its frames alone
        raise WrongAnswerError(f"{status} with a body that is {kind!r}: {body[:200]!r}")
    elif not body and status >= 400 and headers.get(b"connection") != b"close":
        raise WrongAnswerError(f"{status} without a word: {headers}")


def _judge_message(message: Any) -> None:
    """Judge one JSON-RPC message: a response that is one thing, or something the server asks or tells."""
    if not isinstance(message, dict) or message.get("jsonrpc") != "2.0":
        raise WrongAnswerError(f"no JSON-RPC message: {str(message)[:200]}")
    if "method" in message:
        return
    if ("result" in message) == ("error" in message) or "id" not in message:
        raise WrongAnswerError(f"no JSON-RPC response: {str(message)[:200]}")
    if "error" in message and not isinstance(message["error"].get("code"), int):
        raise WrongAnswerError(f"an error without a code: {str(message)[:200]}")


class Http2Answers:
    """Reads the frames of one HTTP/2 connection."""

    def __init__(self, counts: Counter[str]) -> None:
        self._counts = counts
        self._buffer = b""
        self._decoder = Decoder()
        self._decoder.max_allowed_table_size = 2**32  # the server may go by any SETTINGS that it was sent
        self._block = b""
        self._kinds: dict[int, tuple[int, Headers]] = {}
        self._bodies: dict[int, bytes] = {}

    def feed(self, data: bytes) -> None:
        """Take what came.

        Raises:
            WrongAnswerError: It is not what this server should say.
        """
        self._buffer += data
        while len(self._buffer) >= 9:
            try:
                frame, length = Frame.parse_frame_header(memoryview(self._buffer[:9]), strict=True)
                if length > 2**14:
                    raise WrongAnswerError(f"a frame of {length} bytes")
                if len(self._buffer) < 9 + length:
                    return
                frame.parse_body(memoryview(self._buffer[9 : 9 + length]))
            except HyperframeError as exc:
                raise WrongAnswerError(f"no HTTP/2 frame: {exc!r}: {self._buffer[:40]!r}") from None
            self._buffer = self._buffer[9 + length :]
            self._counts[type(frame).__name__] += 1
            self._take(frame)

    def _take(self, frame: Frame) -> None:
        if isinstance(frame, HeadersFrame | ContinuationFrame):
            self._block += frame.data
            if "END_HEADERS" in frame.flags:
                self._answer(frame.stream_id)
        elif isinstance(frame, DataFrame):
            if frame.stream_id not in self._kinds:
                raise WrongAnswerError("data without headers")
            self._bodies[frame.stream_id] = self._bodies.get(frame.stream_id, b"") + frame.data
        if isinstance(frame, HeadersFrame | DataFrame) and "END_STREAM" in frame.flags:
            status, headers = self._kinds.pop(frame.stream_id)
            _judge_body(status, {**headers, b"connection": b"close"}, self._bodies.pop(frame.stream_id, b""))

    def _answer(self, stream: int) -> None:
        try:
            fields = [(bytes(name), bytes(value)) for name, value in self._decoder.decode(self._block, raw=True)]
        except HPACKError as exc:
            raise WrongAnswerError(f"no header block: {exc!r}") from None
        self._block = b""
        headers = dict(fields)
        status = int(headers[b":status"])
        self._counts[str(status)] += 1
        _judge_status(status, headers)
        self._kinds[stream] = status, headers
