"""What is done for each action of the decision table."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from functools import partial

from mcp_hybrid.backplane import BackplaneUnavailableError
from mcp_hybrid.errors import Cause, Fault
from mcp_hybrid.routing.message import Request
from mcp_hybrid.routing.table import Action, gone
from mcp_hybrid.service.calls import Calls
from mcp_hybrid.service.drain import drain
from mcp_hybrid.service.incoming import Exchange
from mcp_hybrid.service.kernel import Kernel
from mcp_hybrid.service.roll import RollCall
from mcp_hybrid.service.streams import Streams
from mcp_hybrid.service.words import Words
from mcp_hybrid.sessions.registry import SessionOverError, TooManySessionsError


class Service:
    """Serves decided requests. Lives as long as the server's lifespan."""

    def __init__(self, kernel: Kernel) -> None:
        self.registry = kernel.registry
        self.drain = partial(drain, kernel)
        self.shared = kernel.backplane.shared
        """Whether other workers may be there that this one can reach."""
        self.roll = RollCall(kernel.registry, kernel.backplane)
        self.words = Words(kernel, self.roll)
        calls, streams = Calls(kernel, self.words), Streams(kernel)
        self._actions: Mapping[Action, Callable[[Exchange], Awaitable[Fault | None]]] = {
            Action.OFFER_SESSION: calls.initialize,
            Action.INITIALIZE: calls.initialize,
            Action.CALL: calls.call,
            Action.ACCEPT: self.words.accept,
            Action.NOTIFY: self.words.notify,
            Action.ANSWER: self.words.answer,
            Action.OPEN_STREAM: streams.open,
            Action.RESUME_STREAM: streams.resume,
            Action.END_SESSION: streams.end_session,
            Action.BATCH: calls.batch,
        }

    async def serve(self, exchange: Exchange) -> Fault | None:
        """Do what was decided. Returns a refusal that only doing it could find; then nothing has been sent."""
        try:
            return await self._actions[exchange.route.action](exchange)
        except SessionOverError:
            return gone(exchange.message)
        except TooManySessionsError:
            return _later(exchange, Cause.SERVER_BUSY, "Too many sessions are in use.")
        except BackplaneUnavailableError:
            return _later(
                exchange, Cause.BACKPLANE_UNAVAILABLE, "What the servers share cannot be reached, and this needs it."
            )


def _later(exchange: Exchange, cause: Cause, why: str) -> Fault:
    request_id = exchange.message.id if isinstance(exchange.message, Request) else None
    return Fault(cause, f"{why} Try again in a moment.", request_id, headers=((b"retry-after", b"1"),))
