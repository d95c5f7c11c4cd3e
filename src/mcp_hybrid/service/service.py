"""What is done for each action of the decision table."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Final

from mcp_types import RequestId

from mcp_hybrid.backplane import BackplaneUnavailableError
from mcp_hybrid.errors import Cause, Fault, only_exception
from mcp_hybrid.routing.message import Batch, Message, Request
from mcp_hybrid.routing.table import Action, gone
from mcp_hybrid.service.background import BackgroundTasks
from mcp_hybrid.service.calls import Calls
from mcp_hybrid.service.drain import drain
from mcp_hybrid.service.incoming import Exchange
from mcp_hybrid.service.kernel import Kernel
from mcp_hybrid.service.roll import RollCall
from mcp_hybrid.service.streams import Streams
from mcp_hybrid.service.words import Words
from mcp_hybrid.sessions.live import DuplicateRequestError
from mcp_hybrid.sessions.registry import SessionOverError, TooManySessionsError


class Service:
    """Serves decided requests. Lives as long as the server's lifespan."""

    def __init__(self, kernel: Kernel) -> None:
        self.registry = kernel.registry
        self.drain = partial(drain, kernel)
        self.shared = kernel.backplane.shared
        """Whether other workers may be there that this one can reach."""
        self.roll = RollCall(kernel.registry, kernel.backplane, BackgroundTasks(kernel.spawn))
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
        """Do what was decided. Returns a refusal that only doing it could find; then nothing has been sent.

        Actions run tasks, so what they raise may come in groups. Here, and nowhere else, they are taken apart.
        """
        try:
            return await self._actions[exchange.route.action](exchange)
        except Exception as exc:
            cause = only_exception(exc)
            refusal = _REFUSALS.get(type(cause))
            if refusal is not None:
                return refusal(exchange.message)
            if cause is exc:
                raise
            raise cause from None


def _duplicate(message: Message | Batch | None) -> Fault:
    if isinstance(message, Batch):
        return Fault(Cause.DUPLICATE_REQUEST_ID, "A request with an id of this batch is still running.")
    why = "A request with this id is still running in this session."
    return Fault(Cause.DUPLICATE_REQUEST_ID, why, _id_of(message))


def _later(cause: Cause, why: str, message: Message | Batch | None) -> Fault:
    return Fault(cause, f"{why} Try again in a moment.", _id_of(message), headers=((b"retry-after", b"1"),))


def _id_of(message: Message | Batch | None) -> RequestId | None:
    return message.id if isinstance(message, Request) else None


_REFUSALS: Final[Mapping[type[Exception], Callable[[Message | Batch | None], Fault]]] = {
    SessionOverError: gone,
    DuplicateRequestError: _duplicate,
    TooManySessionsError: partial(_later, Cause.SERVER_BUSY, "Too many sessions are in use."),
    BackplaneUnavailableError: partial(
        _later, Cause.BACKPLANE_UNAVAILABLE, "What the servers share cannot be reached, and this needs it."
    ),
}
"""What actions raise before anything was sent, and the refusal that it is."""
