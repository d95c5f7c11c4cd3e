"""Pages that a program brings along (`custom_route`): served beside the endpoint, and where the program runs."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from fastmcp import FastMCP
from mcp.server import MCPServer
from mcp.server.auth.middleware.auth_context import get_access_token
from mcp.server.auth.provider import AccessToken
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from structlog.testing import capture_logs
from typer.testing import CliRunner

from harness.hybrid import Setup, running
from mcp_hybrid import ConfigurationError, HybridApp
from mcp_hybrid.cli import app as command
from mcp_hybrid.program_pages import custom_routes

threads: list[int] = []


async def hello(request: Request) -> Response:
    threads.append(threading.get_ident())
    return JSONResponse({"app": type(request.app).__name__, "here": request.url_for("hello").path})


async def echo(request: Request) -> Response:
    return JSONResponse({"number": request.path_params["number"], "body": (await request.body()).decode()})


async def tea(_: Request) -> Response:
    raise HTTPException(418, "tea")


async def boom(_: Request) -> Response:
    raise ZeroDivisionError


async def who(request: Request) -> Response:
    token = get_access_token()
    return JSONResponse([request.user.is_authenticated, token.client_id if token is not None else None])


async def nap(_: Request) -> Response:
    await asyncio.sleep(0)
    return Response("slept")


def with_pages(program: Any) -> Any:
    threads.clear()
    for path, page in (("/hello", hello), ("/echo/{number:int}", echo), ("/tea", tea), ("/boom", boom), ("/who", who)):
        program.custom_route(path, methods=["POST" if page is echo else "GET"])(page)
    return program


KINDS: dict[str, Any] = {"MCPServer": MCPServer, "FastMCP": FastMCP}
every_kind = pytest.mark.parametrize("kind", KINDS)
both = pytest.mark.parametrize("runtime", ["trio", "asyncio"])


async def get(setup: Setup, path: str, *headers: tuple[str, str], method: str = "GET", body: bytes = b"") -> Any:
    return await setup.client.request(method, path, headers, body)


@every_kind
@both
async def test_pages_are_served_as_by_the_programs_own_application(kind: str, runtime: str) -> None:
    with capture_logs() as lines:
        async with running(server=with_pages(KINDS[kind]("x")), runtime=runtime) as setup:
            answer = await get(setup, "/hello")
            assert answer.json() == {"app": "Starlette", "here": "/hello"}
            answer = await get(setup, "/echo/7", method="POST", body=b"said")
            assert answer.json() == {"number": 7, "body": "said"}
            assert (await get(setup, "/tea")).status == 418
            assert (await get(setup, "/boom")).status == 500
            assert (await get(setup, "/hello", method="POST")).status == 405
            redirect = await get(setup, "/hello/")
            assert (redirect.status, redirect.header("location")) == (307, "http://127.0.0.1:8000/hello")
            assert (await get(setup, "/hallo")).status == 404
            assert (await get(setup, "/echo/" + "7" * 5000)).status == 404
            assert (await get(setup, "/hello", ("host", "elsewhere.example"))).status == 421
    assert (threads == [threading.get_ident()]) is (runtime == "trio")
    assert [line["event"] for line in lines if line["log_level"] == "error"] == ["request failed"]


class Verifier:
    async def verify_token(self, token: str) -> AccessToken | None:
        await anyio.lowlevel.checkpoint()
        return AccessToken(token=token, client_id="ada", scopes=[]) if token == "good" else None


@both
async def test_a_page_sees_who_asks_and_refuses_nobody_for_it(runtime: str) -> None:
    program = with_pages(MCPServer("x"))
    async with running(server=program, token_verifier=Verifier(), runtime=runtime) as setup:
        for headers, seen in (([], [False, None]), ([("authorization", "Bearer bad")], [False, None]),
                              ([("authorization", "Bearer good")], [True, "ada"])):  # fmt: skip
            assert (await get(setup, "/who", *headers)).json() == seen


async def test_a_page_may_need_asyncio() -> None:
    program: FastMCP[None] = FastMCP("x")
    program.custom_route("/nap", methods=["GET"])(nap)
    async with running(server=program, runtime="asyncio") as setup:
        assert (await get(setup, "/nap")).body == b"slept"


def test_a_mounted_servers_pages_are_there() -> None:
    outer: FastMCP[None] = FastMCP("outer")
    outer.mount(with_pages(FastMCP("inner")))
    assert "/hello" in {getattr(route, "path", "") for route in custom_routes(outer)}


@every_kind
@pytest.mark.parametrize("path", ["/mcp", "/mcp/", "/healthz", "/readyz", "/metrics", "/admin/sessions"])
def test_a_page_in_the_place_of_ours_is_refused(kind: str, path: str) -> None:
    program: Any = KINDS[kind]("x")
    program.custom_route(path, methods=["GET"])(hello)
    with pytest.raises(ConfigurationError, match=f"the server's route {path} is where a page of ours is"):
        HybridApp(program)


def test_check_lists_them(tmp_path: Path) -> None:
    (tmp_path / "paged.py").write_text(
        "from mcp.server import MCPServer\nserver = MCPServer('x')\n"
        "@server.custom_route('/hello', methods=['GET'])\nasync def hello(request): ...\n"
    )
    shown = CliRunner().invoke(command, ["check", str(tmp_path / "paged.py")])
    assert shown.exit_code == 0, shown.output
    assert "pages of its own: /hello" in shown.stdout.splitlines()
