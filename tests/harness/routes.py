"""One message on each of the three routes, for tests that hold on all of them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from harness import mcp
from harness.hybrid import Setup
from harness.mcp import Conversation

Ask = Callable[[Setup, Any], Awaitable[Any]]


async def ask_alone(setup: Setup, message: Any) -> Any:
    return await setup.client.request("POST", "/mcp", mcp.headers(), mcp.body(message))


async def ask_in_session(setup: Setup, message: Any) -> Any:
    return await (await Conversation.open(setup.client)).post(message)


async def ask_modern(setup: Setup, message: Any) -> Any:
    return await setup.client.request("POST", "/mcp", mcp.modern_headers(message), mcp.body(mcp.modern(message)))
