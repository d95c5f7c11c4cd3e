"""A call that asks back (2026-07-28) may be repeated on any worker, and after a restart."""

from __future__ import annotations

from contextlib import AsyncExitStack
from typing import Any

import pytest
from mcp.server import MCPServer
from mcp.server.mcpserver import Context, RequestStateSecurity
from mcp_types import ElicitRequest, ElicitRequestFormParams, ElicitResult, InputRequiredResult

from harness import mcp
from harness.asgi import AsgiClient
from mcp_hybrid import HybridApp, Settings
from mcp_hybrid.sessions.seal import fresh_key

Json = dict[str, Any]

OLD, NEW, OTHER = fresh_key(), fresh_key(), fresh_key()
OWN = b"k" * 32


def asker(name: str = "asker", security: RequestStateSecurity | None = None) -> MCPServer:
    """Make a server with one tool that asks once, and keeps meanwhile what it was called with."""
    server = MCPServer(name, request_state_security=security)

    @server.tool()
    async def ask(ctx: Context, city: str) -> str | InputRequiredResult:
        answer = (ctx.input_responses or {}).get("when")
        if not isinstance(answer, ElicitResult):
            form = ElicitRequest(
                params=ElicitRequestFormParams(message="when?", requested_schema={"type": "object", "properties": {}})
            )
            return InputRequiredResult(input_requests={"when": form}, request_state=f"for {city}")
        return f"{ctx.request_state}: {(answer.content or {})['day']}"

    return server


def worker(keys: list[str], server: MCPServer | None = None) -> HybridApp:
    """Make one of several workers, each with a server object of its own."""
    return HybridApp(server or asker(), Settings.model_validate({"sessions": {"keys": keys}}))


async def call(client: AsgiClient, more: Json | None = None) -> Json:
    message = mcp.modern(mcp.tool("ask", {"city": "Bern"}), capabilities={"elicitation": {}})
    message["params"] |= more or {}
    answer = await client.request("POST", "/mcp", mcp.modern_headers(message), mcp.body(message))
    body: Json = answer.json()
    return body


async def asked_and_repeated(first: HybridApp, second: HybridApp, change: str = "") -> Json:
    """Call on one worker, and repeat the call with the answer on another."""
    async with AsyncExitStack() as stack:
        one, other = [await stack.enter_async_context(AsgiClient(app)) for app in (first, second)]
        asked = (await call(one))["result"]
        assert asked["resultType"] == "input_required"
        assert "Bern" not in asked["requestState"]
        answer = {"when": {"action": "accept", "content": {"day": "Monday"}}}
        return await call(other, {"inputResponses": answer, "requestState": asked["requestState"] + change})


@pytest.mark.parametrize(
    ("first", "second"),
    [
        pytest.param([OLD], [OLD], id="the same key"),
        pytest.param([OLD], [NEW, OLD], id="a key rotated in meanwhile"),
        pytest.param([OLD, NEW], [NEW, OLD], id="a rotation half way through"),
        pytest.param([OLD, OLD], [OLD], id="a key that is there twice"),
    ],
)
async def test_a_call_that_asked_on_one_worker_is_repeated_on_another(first: list[str], second: list[str]) -> None:
    repeated = await asked_and_repeated(worker(first), worker(second))
    assert repeated["result"]["content"][0]["text"] == "for Bern: Monday"


@pytest.mark.parametrize(
    ("second", "change"),
    [
        pytest.param(worker([OTHER]), "", id="another deployment"),
        pytest.param(worker([OLD], asker("another")), "", id="another service of the same deployment"),
        pytest.param(worker([OLD]), "x", id="changed"),
    ],
)
async def test_what_was_not_sealed_for_this_server_is_refused(second: HybridApp, change: str) -> None:
    repeated = await asked_and_repeated(worker([OLD]), second, change)
    assert repeated["error"]["data"] == {"reason": "invalid_request_state"}


async def test_without_a_key_a_call_is_repeated_where_it_asked() -> None:
    async with AsgiClient(worker([])) as client:
        asked = (await call(client))["result"]
        answer = {"when": {"action": "accept", "content": {"day": "Monday"}}}
        repeated = await call(client, {"inputResponses": answer, "requestState": asked["requestState"]})
        assert repeated["result"]["content"][0]["text"] == "for Bern: Monday"


async def test_a_server_that_has_keys_of_its_own_keeps_to_them() -> None:
    def own() -> MCPServer:
        return asker(security=RequestStateSecurity(keys=[OWN], audience="shared"))

    repeated = await asked_and_repeated(worker([OLD], own()), worker([OTHER], own()))
    assert repeated["result"]["content"][0]["text"] == "for Bern: Monday"


async def test_the_server_object_is_left_as_it_was() -> None:
    server = asker()
    middleware = list(server._lowlevel_server.middleware)
    before = [dict(vars(one)) for one in middleware if hasattr(one, "__dict__")]
    async with AsgiClient(worker([OLD], server)) as client:
        assert (await call(client))["result"]["resultType"] == "input_required"
        assert server._lowlevel_server.middleware == middleware
        assert [dict(vars(one)) for one in middleware if hasattr(one, "__dict__")] == before
