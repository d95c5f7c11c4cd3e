"""HTTP/2 frames: what is wrong with one stream ends that stream, and what one connection may cost has a bound.

h2 ends the whole connection, and with it every good stream, for a request that is malformed, for a body that is not as
long as it was declared, and for one stream more than is allowed. RFC 9113 wants that stream reset alone (sections
5.1.2, 8.1.1). h2 also lets a client do two things for ever:

- **Resets.** A request that is reset costs the server a request and the client a few bytes, and makes room for the next
  at once (CVE-2023-44487). What makes the server reset streams costs the same. Each connection has a budget of both.
- **The header table.** A client may let the server keep as many headers as it likes for compression; looking them up
  costs time for each header that is sent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

from h2.config import H2Configuration
from h2.connection import AllowedStreamIDs, ConnectionInputs, H2Connection, _decode_headers
from h2.errors import ErrorCodes
from h2.events import Event, RequestReceived, StreamReset
from h2.exceptions import InvalidBodyLengthError, ProtocolError, StreamClosedError, StreamIDTooLowError
from h2.stream import H2Stream, StreamClosedBy, StreamState
from hpack import Encoder
from hyperframe.frame import DataFrame, Frame, HeadersFrame, RstStreamFrame, WindowUpdateFrame

from mcp_hybrid.clock import now

RESETS: Final = 200
"""Streams of one connection that may end unanswered in one go: twice as many as it may have at a time."""
RESETS_PER_SECOND: Final = 20.0
"""How fast that budget fills up again. A gateway that passes its clients' cancellations on stays far below it."""
HEADER_TABLE: Final = 4096
"""Bytes of the header table for answers, at most: what HTTP/2 has by default."""

Taken = tuple[list[Frame], list[Event]]
"""What a frame that came leads to: frames to send, and events."""


class TooManyResetsError(ProtocolError):
    """The client has reset more streams than a client has reason to, or made us reset them."""

    error_code = ErrorCodes.ENHANCE_YOUR_CALM


class BoundedEncoder(Encoder):
    """Compresses headers with a table that has a bound, however large a table the client allows."""

    @property
    def header_table_size(self) -> int:
        """Bytes of the table, at most."""
        return self.header_table.maxsize

    @header_table_size.setter
    def header_table_size(self, value: int) -> None:
        self.header_table.maxsize = size = min(value, HEADER_TABLE)
        if self.header_table.resized:
            self.table_size_changes.append(size)  # which the client is told


class ServerConnection(H2Connection):
    """The frames of one connection.

    `is_full` says that a new stream is refused although there are not too many: what serves streams that were reset
    still runs.
    """

    def __init__(self, config: H2Configuration, is_full: Callable[[], bool]) -> None:
        super().__init__(config)
        self.encoder = BoundedEncoder()
        self._is_full = is_full
        self._budget = float(RESETS)
        self._counted = now()

    def release(self) -> None:
        """Be of no more use. h2 keeps methods of the connection in it."""
        self._frame_dispatch_table.clear()
        self._is_full = _never

    def _receive_headers_frame(self, frame: HeadersFrame) -> Taken:
        is_new = frame.stream_id not in self.streams
        is_refused = is_new and (self.open_inbound_streams >= self.local_settings.max_concurrent_streams)
        is_refused = is_refused or (is_new and self._is_full())
        # Decoded in any case: the table of the connection's headers goes on with it.
        headers = list(_decode_headers(self.decoder, frame.data))
        events = self.state_machine.process_input(ConnectionInputs.RECV_HEADERS)
        if is_refused or (is_new and any(name == b":status" for name, _ in headers)):
            error = ErrorCodes.REFUSED_STREAM if is_refused else ErrorCodes.PROTOCOL_ERROR
            return self._refuse(frame.stream_id, error), events
        stream = self._get_or_create_stream(frame.stream_id, AllowedStreamIDs.ODD)
        try:
            frames, more = stream.receive_headers(headers, "END_STREAM" in frame.flags, self.config.header_encoding)
        except StreamClosedError:
            raise
        except ProtocolError:
            if stream.closed:  # no message is expected here: a connection error
                raise
            return self._reset(stream, events)
        if isinstance(more[0], RequestReceived) and not _is_served(headers):
            return self._reset(stream, events)
        return frames, events + more  # its priority, if it has one, is ignored as all are

    def _receive_data_frame(self, frame: DataFrame) -> Taken:
        try:
            return super()._receive_data_frame(frame)
        except InvalidBodyLengthError:
            frames, events = self._reset(self.streams[frame.stream_id], [])
            room = self._inbound_flow_control_window_manager.process_bytes(frame.flow_controlled_length)
            if room:
                update = WindowUpdateFrame(0)
                update.window_increment = room
                frames.append(update)
            return frames, events

    def _receive_rst_stream_frame(self, frame: RstStreamFrame) -> Taken:
        stream = self.streams.get(frame.stream_id)
        if stream is not None and stream.state_machine.state not in _ANSWERED:
            self._spend()
        return super()._receive_rst_stream_frame(frame)

    def _receive_window_update_frame(self, frame: WindowUpdateFrame) -> Taken:
        frames, events = super()._receive_window_update_frame(frame)
        if any(isinstance(event, StreamReset) for event in events):
            self._spend()
        return frames, events

    def _refuse(self, stream_id: int, error: ErrorCodes) -> list[Frame]:
        """Refuse a new stream before it is opened."""
        if stream_id <= self.highest_inbound_stream_id:
            raise StreamIDTooLowError(stream_id, self.highest_inbound_stream_id)
        if stream_id % 2 == 0:
            raise ProtocolError("Invalid stream ID for peer.")
        self.highest_inbound_stream_id = stream_id
        self._closed_streams[stream_id] = StreamClosedBy.SEND_RST_STREAM
        self._spend()
        refusal = RstStreamFrame(stream_id)
        refusal.error_code = error
        return [refusal]

    def _reset(self, stream: H2Stream, events: list[Event]) -> Taken:
        """Reset a stream whose request is malformed."""
        self._spend()
        told = StreamReset(stream_id=stream.stream_id, error_code=ErrorCodes.PROTOCOL_ERROR, remote_reset=False)
        return stream.reset_stream(ErrorCodes.PROTOCOL_ERROR), [*events, told]

    def _spend(self) -> None:
        time = now()
        self._budget = min(RESETS, self._budget + (time - self._counted) * RESETS_PER_SECOND)
        self._counted = time
        if self._budget < 1:
            raise TooManyResetsError(f"more than {RESETS} streams were reset")
        self._budget -= 1


def _never() -> bool:
    return False


_ANSWERED: Final = frozenset({StreamState.HALF_CLOSED_LOCAL, StreamState.CLOSED})
"""A client that resets a stream of which it has the whole answer only stops sending its body."""

_ASCII_ONLY: Final = frozenset(
    {b":method", b":path", b"connection", b"sec-websocket-extensions", b"sec-websocket-protocol"}
)
"""What Hypercorn reads as ASCII, and ends the connection if it is not."""


def _is_served(headers: Iterable[tuple[bytes, bytes]]) -> bool:
    """Whether Hypercorn can read a request: its path, which only a tunnel's may lack, and what it takes for ASCII."""
    values = dict(headers)
    return b":path" in values and all(value.isascii() for name, value in headers if name in _ASCII_ONLY)
