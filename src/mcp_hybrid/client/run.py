"""Makes one call with the SDK's client, and turns every way it can end into output and an exit code."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import anyio
import httpx2
from mcp import Client
from mcp.client.streamable_http import streamable_http_client
from mcp.shared.exceptions import MCPError
from mcp_types import PARSE_ERROR, CallToolResult, EmbeddedResource, TextContent, TextResourceContents, Tool

from mcp_hybrid.client.arguments import UsageError, nearest, split, typed
from mcp_hybrid.client.form import answering
from mcp_hybrid.client.route import Answers, progress_note
from mcp_hybrid.client.screen import Screen, printable, say

TIMEOUT = httpx2.Timeout(30, read=None)
"""Seconds to connect and to send; reading has no limit, as the server bounds how long a call may take."""


def run(url: str, tool: str, arguments: list[str], *, session: bool, mode: str, token: str | None = None) -> int:
    """Call the tool and print what came; see `mcp_hybrid.client.call`."""
    answers = Answers(hide_session=not session)
    try:
        _check(url)
        texts = split(arguments)
        with _quiet_sdk(), Screen(tool) as screen:
            result = anyio.run(_call, url, tool, texts, mode, answers, screen, token, backend="trio")
        if note := progress_note(answers.route, seen=screen.seen):
            say(note)
        return _show(result)
    except (KeyboardInterrupt, Exception, BaseExceptionGroup) as error:  # noqa: BLE001  # whatever it is gets one line
        code, line = _explain(error, url, answers.status)
        say(printable(line))
        return code


async def _call(
    url: str, tool: str, texts: dict[str, str], mode: str, answers: Answers, screen: Screen, token: str | None
) -> CallToolResult:
    headers = {"authorization": f"Bearer {token}"} if token is not None else {}
    hooks: dict[str, list[Callable[..., Any]]] = {"response": [answers]}
    async with (
        httpx2.AsyncClient(timeout=TIMEOUT, event_hooks=hooks, headers=headers) as http,
        Client(
            streamable_http_client(url, http_client=http), mode=mode, elicitation_callback=answering(screen)
        ) as client,
    ):
        known = {one.name: one for one in await _tools(client)}
        if tool not in known:
            raise UsageError(f"the server has no tool {tool!r}: {nearest(tool, list(known))}")
        arguments = typed(texts, known[tool].input_schema)
        return await client.call_tool(tool, arguments, progress_callback=screen.progress)


async def _tools(client: Client) -> list[Tool]:
    """List all the server's tools, page by page."""
    tools: list[Tool] = []
    cursor: str | None = None
    while True:
        page = await client.list_tools(cursor=cursor)
        tools += page.tools
        if not (cursor := page.next_cursor):
            return tools


@contextmanager
def _quiet_sdk() -> Iterator[None]:
    """Keep the SDK from logging, with tracebacks, what is told in one line here."""
    logger = logging.getLogger("mcp")
    before = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        logger.setLevel(before)


def _check(url: str) -> None:
    """Refuse what cannot be an endpoint, before anything is sent."""
    try:
        parsed = httpx2.URL(url)
    except httpx2.InvalidURL as error:
        raise UsageError(f"{url!r} is not a URL: {error}") from None
    if parsed.scheme not in {"http", "https"} or not parsed.host:
        raise UsageError(f"{url!r} is not the URL of an MCP server: write it like http://127.0.0.1:8000/mcp")


def _show(result: CallToolResult) -> int:
    """Print the result's text, or its structured content if it has no text; a tool's error goes to standard error."""
    parts = [_text(block) for block in result.content]
    if not parts and result.structured_content is not None:
        parts = [json.dumps(result.structured_content, ensure_ascii=False, indent=2)]
    text = "\n".join(parts)
    if result.is_error:
        say(printable(text) or "the tool failed and did not say why")
        return 1
    print(printable(text) if sys.stdout.isatty() else text, flush=True)  # noqa: T201  # this is the command's output
    return 0


def _text(block: object) -> str:
    if isinstance(block, TextContent):
        return block.text
    if isinstance(block, EmbeddedResource) and isinstance(block.resource, TextResourceContents):
        return block.resource.text
    name = getattr(block, "uri", None) or getattr(block, "mime_type", None) or ""
    return f"[{getattr(block, 'type', 'content')} {name}]"


def _explain(error: BaseException, url: str, status: int) -> tuple[int, str]:
    """Find the one cause worth telling in what the SDK raised, which may be a group; give the exit code and a line."""
    causes = list(_leaves(error))
    if any(isinstance(cause, KeyboardInterrupt) for cause in causes):
        return 130, "stopped"
    for cause in causes:
        if isinstance(cause, UsageError):
            return 2, f"error: {cause}"
    for cause in causes:
        if isinstance(cause, httpx2.HTTPError):
            return 1, _explain_http(cause, url)
    for cause in causes:
        if isinstance(cause, MCPError) and cause.code == PARSE_ERROR and status < 400:
            # The SDK's client says so, in a dozen lines: a server that cannot parse a message answers it 400.
            return 1, f"error: {url} did not answer as an MCP server does (no JSON-RPC message)"
        if isinstance(cause, MCPError):
            refused = f" (HTTP {status} from {url})" if status >= 400 else ""
            return 1, f"error: {cause.message}{refused}"
    return 1, f"error: {url} did not answer as an MCP server does ({type(causes[0]).__name__})"


def _explain_http(error: httpx2.HTTPError, url: str) -> str:
    if isinstance(error, httpx2.ConnectError | httpx2.ConnectTimeout):
        return f"error: cannot connect to {url}: is a server running there?"
    return f"error: the connection to {url} broke ({type(error).__name__})"


def _leaves(error: BaseException) -> Iterator[BaseException]:
    """Walk an exception, or the exceptions of a group however deep."""
    if isinstance(error, BaseExceptionGroup):
        for one in error.exceptions:
            yield from _leaves(one)
    else:
        yield error
