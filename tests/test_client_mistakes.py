"""What a client names wrongly is refused with the reason: no fault of the server's, and no traceback in its log."""

from __future__ import annotations

from typing import Any

import pytest
from fastmcp import FastMCP
from mcp.server import MCPServer
from pydantic import BaseModel
from structlog.testing import capture_logs

from harness import mcp
from harness.hybrid import running
from harness.logged import errors_logged
from harness.mcp import Conversation
from mcp_hybrid.routing.message import LONGEST_METHOD, LONGEST_NAME
from mcp_hybrid.text import short, short_traceback


class Strict(BaseModel):
    number: int


def sdk() -> MCPServer[None]:
    program: MCPServer[None] = MCPServer("sdk")

    @program.prompt()
    def greet(name: str, times: int = 1) -> str:
        return f"hello {name}" * times

    @program.prompt()
    def failing() -> str:
        raise ValueError("Unknown prompt: of the program's own making")

    @program.prompt()
    def invalid() -> str:
        return str(Strict.model_validate({"number": "x"}))

    return program


def fast() -> FastMCP[None]:
    program: FastMCP[None] = FastMCP("fast")

    @program.prompt
    def greet(name: str) -> str:
        return f"hello {name}"

    return program


async def ask(program: Any, method: str, params: Any) -> tuple[Any, list[str]]:
    with errors_logged() as errors:
        async with running(server=program) as setup:
            answer = await (await Conversation.open(setup.client)).post(mcp.request(method, params))
    message = answer.json() if answer.header("content-type") == "application/json" else answer.events()[-1].json()
    return message["error"], errors


@pytest.mark.parametrize(
    ("params", "reason"),
    [
        ({"name": "nope"}, "nope"),
        ({"name": "greet"}, "name"),
        ({"name": "greet", "arguments": {}}, "name"),
        ({"name": "greet", "arguments": {"name": "x", "times": "many"}}, "times"),
    ],
)
async def test_a_prompt_that_is_asked_for_wrongly_is_refused_with_the_reason(params: Any, reason: str) -> None:
    error, errors = await ask(sdk(), "prompts/get", params)
    assert error["code"] == -32602
    assert reason in error["message"]
    assert errors == []


@pytest.mark.parametrize("name", ["failing", "invalid"])
async def test_a_prompt_that_fails_by_itself_is_the_servers_fault(name: str) -> None:
    error, errors = await ask(sdk(), "prompts/get", {"name": name})
    assert error == {"code": -32603, "message": "Internal server error"}
    assert len(errors) == 1


@pytest.mark.parametrize("program", [sdk, fast])
@pytest.mark.parametrize(
    ("method", "params"),
    [("prompts/get", {"name": "nope"}), ("resources/read", {"uri": "nope://it"})],
)
async def test_what_is_unknown_is_no_fault_of_the_server(program: Any, method: str, params: Any) -> None:
    error, errors = await ask(program(), method, params)
    assert error["code"] in (-32602, -32002)
    assert "nope" in error["message"]
    assert errors == []


# Names


@pytest.mark.parametrize(
    ("message", "code"),
    [
        (mcp.request("x" * (LONGEST_METHOD + 1), id=7), -32600),
        (mcp.tool("x" * (LONGEST_NAME + 1), id=7), -32602),
        (mcp.request("prompts/get", {"name": "x" * (LONGEST_NAME + 1)}, 7), -32602),
    ],
)
async def test_a_name_too_long_is_refused_with_the_requests_id(message: Any, code: int) -> None:
    async with running() as setup:
        answer = await setup.client.request("POST", "/mcp", mcp.headers(), mcp.body(message))
    assert answer.status == 400
    assert (answer.json()["id"], answer.json()["error"]["code"]) == (7, code)


@pytest.mark.parametrize("length", [LONGEST_METHOD, 129, 128])
async def test_what_a_client_names_is_cut_in_the_log(length: int) -> None:
    with capture_logs() as lines:
        async with running(users=True) as setup:
            for message in (mcp.request("x" * length), mcp.tool("x" * length)):
                sent = [*mcp.headers(), ("x-user", "u" * length)]
                await setup.client.request("POST", "/mcp", sent, mcp.body(message))
            await setup.client.request("X" * length, "/mcp", [], b"")
    requests = [line for line in lines if line["event"] == "request"]
    assert len(requests) == 3
    assert max(len(value) for line in requests for value in line.values() if isinstance(value, str)) <= 128


def test_a_text_is_cut_only_when_it_is_too_long() -> None:
    assert short("x" * 128) == "x" * 128
    assert short("x" * 129) == "x" * 127 + "…"


def test_a_long_traceback_keeps_its_beginning_and_its_end() -> None:
    text = "Traceback\n" + "line\n" * 10_000 + "ValueError: " + "x" * 1_000_000
    cut = short_traceback(text, 16_000, 1000)
    assert len(cut) < 17_100
    assert cut.startswith("Traceback\nline")
    assert "ValueError: xxx" in cut
