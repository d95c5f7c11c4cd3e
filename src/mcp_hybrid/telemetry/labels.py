"""What stands for a request's method in a metric. The number of values is the server's doing, never a stranger's."""

from __future__ import annotations

from typing import Any, Final

from mcp.server.lowlevel.server import Server

from mcp_hybrid.routing.gates import METHODS
from mcp_hybrid.routing.message import Batch, Message, Notification, Request
from mcp_hybrid.telemetry.metrics import OTHER

_OF_THE_KERNEL: Final = frozenset(
    {"initialize", "notifications/initialized", "notifications/cancelled", "notifications/progress"}
)
"""Methods that are served whether or not the server has a handler for them."""

LISTEN: Final = "subscriptions/listen"


class Labels:
    """Names methods, as one server knows them."""

    def __init__(self, server: Server[Any]) -> None:
        self._server = server

    def method(self, http: str, message: Message | Batch | None) -> str:
        """Return the MCP method, "response" or "batch"; without a message, the HTTP method."""
        if isinstance(message, Request):
            known = self._server.get_request_handler(message.method) is not None
            return message.method if known or message.method in _OF_THE_KERNEL else OTHER
        if isinstance(message, Notification):
            known = self._server.get_notification_handler(message.method) is not None
            return message.method if known or message.method in _OF_THE_KERNEL else OTHER
        if message is not None:
            return type(message).__name__.lower()
        return http if http in METHODS else OTHER


def calls_in(message: Message | Batch | None) -> int:
    """Return how many requests a message is that somebody waits for; listening is no call, as it has no end."""
    if isinstance(message, Request):
        return int(message.method != LISTEN)
    if isinstance(message, Batch):
        return sum(isinstance(each, Request) for each in message.messages)
    return 0


def is_timed(http: str, message: Message | Batch | None) -> bool:
    """Whether a request's duration says something of this server, and not of how long a client listens."""
    return http != "GET" and not (isinstance(message, Request) and message.method == LISTEN)
