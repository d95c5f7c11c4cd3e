"""Drives the MCP Inspector's command line: `python -m clients.drivers.inspector legacy|auto NODE INSPECTOR`.

Each command is a run of its own, which connects anew and prints the result and nothing else.
"""

from __future__ import annotations

import json
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from subprocess import DEVNULL, PIPE

import anyio

from clients.drivers.protocol import Json, run


class Inspector:
    """The command line; it has no connection of its own."""

    def __init__(self, url: str, era: str, command: list[str]) -> None:
        self.version = {"legacy": "2025-11-25", "auto": "2026-07-28"}[era]
        self._command = [*command, "--cli", url, "--transport", "http", "--protocol-era", era, "--format", "json"]

    async def list_tools(self) -> list[str]:
        return [tool["name"] for tool in (await self._run("tools/list"))["tools"]]

    async def call(self, tool: str, arguments: Json, _report: Callable[[float], None] | None) -> Json:
        options = ["--tool-name", tool, "--tool-args-json", json.dumps(arguments)]
        result = await self._run("tools/call", *options)
        text = "".join(block["text"] for block in result["content"])
        return {"text": text, "is_error": result.get("isError", False)}

    async def log_level(self, level: str) -> None:
        await self._run("logging/setLevel", "--log-level", level)

    async def subscribe(self, uri: str) -> None:
        await self._run("resources/subscribe", "--uri", uri)

    async def _run(self, method: str, *options: str) -> Json:
        command = [*self._command, "--method", method, *options]
        done = await anyio.run_process(command, stdin=DEVNULL, stdout=PIPE, stderr=PIPE, check=False)
        if done.returncode:
            raise RuntimeError(done.stderr.decode().strip())
        answer: Json = json.loads(done.stdout)
        result: Json = answer.get("result", answer)
        return result


@asynccontextmanager
async def connect(url: str) -> AsyncIterator[Inspector]:
    era, *command = sys.argv[1:]
    yield Inspector(url, era, command)


if __name__ == "__main__":
    run(connect)
