"""At 2026-07-28 a tool asks by its result. What the client never said it could answer is an error, not a question."""

from __future__ import annotations

from typing import Any

import pytest
from mcp.server import MCPServer
from mcp.server.mcpserver import Context
from mcp_types import (
    CreateMessageRequest,
    CreateMessageRequestParams,
    ElicitRequest,
    ElicitRequestFormParams,
    InputRequest,
    InputRequiredResult,
    ListRootsRequest,
    SamplingMessage,
    TextContent,
)

from harness.hybrid import running
from harness.mcp import body, modern, modern_headers, tool

QUESTIONS: dict[str, InputRequest] = {
    "elicitation": ElicitRequest(
        params=ElicitRequestFormParams(message="Who?", requested_schema={"type": "object", "properties": {}})
    ),
    "sampling": CreateMessageRequest(
        params=CreateMessageRequestParams(
            messages=[SamplingMessage(role="user", content=TextContent(text="Hello"))], max_tokens=10
        )
    ),
    "roots": ListRootsRequest(),
}


def asking() -> MCPServer:
    server = MCPServer("asking")

    @server.tool()
    async def ask(kind: str, ctx: Context) -> str | InputRequiredResult:
        if ctx.input_responses:
            return "answered"
        return InputRequiredResult(input_requests={"q": QUESTIONS[kind]})

    return server


async def ask(kind: str, capabilities: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    async with running(server=asking()) as setup:
        message = modern(tool("ask", {"kind": kind}), capabilities)
        answer = await setup.client.request("POST", "/mcp", modern_headers(message), body(message))
        return answer.status, answer.json()


@pytest.mark.parametrize("kind", QUESTIONS)
async def test_a_question_that_the_client_can_answer_is_asked(kind: str) -> None:
    status, answer = await ask(kind, {kind: {}})
    assert (status, answer["result"]["resultType"]) == (200, "input_required")


@pytest.mark.parametrize("kind", QUESTIONS)
async def test_a_question_that_it_cannot_answer_is_an_error_that_names_the_capability(kind: str) -> None:
    status, answer = await ask(kind, {name: {} for name in QUESTIONS if name != kind})
    assert (status, answer["error"]["code"]) == (400, -32021)
    assert answer["error"]["data"] == {"requiredCapabilities": {kind: {}}}
    assert f"capability '{kind}'" in answer["error"]["message"]


async def test_a_form_is_not_for_a_client_that_only_opens_addresses() -> None:
    status, answer = await ask("elicitation", {"elicitation": {"url": {}}})
    assert (status, answer["error"]["code"]) == (400, -32021)
    assert answer["error"]["data"] == {"requiredCapabilities": {"elicitation": {"form": {}}}}
