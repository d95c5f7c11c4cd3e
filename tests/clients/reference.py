"""The same program behind the SDK's own stateful server, to compare with.

hypercorn -k trio clients.reference:app
"""

from __future__ import annotations

from mcp.server.streamable_http import EventCallback, EventId, EventMessage, EventStore, StreamId
from mcp_types import JSONRPCMessage

from clients.program import server


class InMemoryEvents(EventStore):
    """Keeps every event for ever. An id counts all of them, and the stream it belongs to is kept beside it."""

    def __init__(self) -> None:
        self._events: list[tuple[StreamId, JSONRPCMessage | None]] = []

    async def store_event(self, stream_id: StreamId, message: JSONRPCMessage | None) -> EventId:
        self._events.append((stream_id, message))
        return str(len(self._events))

    async def replay_events_after(self, last_event_id: EventId, send_callback: EventCallback) -> StreamId | None:
        if not last_event_id.isdecimal() or not 0 < int(last_event_id) <= len(self._events):
            return None
        stream = self._events[int(last_event_id) - 1][0]
        for number, (one, message) in enumerate(self._events[int(last_event_id) :], start=int(last_event_id) + 1):
            if one == stream and message is not None:
                await send_callback(EventMessage(message, str(number)))
        return stream


app = server.streamable_http_app(event_store=InMemoryEvents(), retry_interval=1000)
