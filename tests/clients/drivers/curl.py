"""Drives curl, as a person with a shell would: `python -m clients.drivers.curl [session]`.

Without `session` it just calls. With it, it keeps the id it was given, holds a GET open, answers what it is asked, and
comes back with the last event id for a stream that was closed before the answer.
"""

from __future__ import annotations

import json
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import dataclass, field
from itertools import count
from subprocess import DEVNULL, PIPE

import anyio
from anyio.abc import TaskGroup
from anyio.streams.text import TextReceiveStream

from clients.drivers.protocol import Json, filled, run, tell, tell_http

VERSION = "2025-11-25"
RETRY = 1.0
"""Seconds until a stream that was cut is asked for again; this client does not read `retry`."""


@dataclass
class Answer:
    """What one curl got: the head, then the messages as they come."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    last_event: str | None = None
    """The newest event id; what a stream is resumed by."""


class Curl:
    """Somebody with curl."""

    version = VERSION

    def __init__(self, url: str, tasks: TaskGroup) -> None:
        self._url = url
        self._tasks = tasks
        self._session: str | None = None
        self._ids = count(1)

    async def initialize(self) -> None:
        params = {
            "protocolVersion": VERSION,
            "capabilities": {"elicitation": {}, "sampling": {}},
            "clientInfo": {"name": "curl", "version": "1"},
        }
        answer = await self._send({"id": 0, "method": "initialize", "params": params})
        self._session = answer.headers["mcp-session-id"]
        await self._send({"method": "notifications/initialized"})
        self._tasks.start_soon(self._listen)

    async def end(self) -> None:
        await exhaust(self._curl("DELETE", [], Answer()))

    async def list_tools(self) -> list[str]:
        return [tool["name"] for tool in (await self._ask("tools/list", {}))["tools"]]

    async def call(self, tool: str, arguments: Json, report: Callable[[float], None] | None) -> Json:
        meta = {"_meta": {"progressToken": 1}} if report is not None else {}
        result = await self._ask("tools/call", {"name": tool, "arguments": arguments, **meta}, report)
        text = "".join(block["text"] for block in result["content"])
        return {"text": text, "is_error": result.get("isError", False)}

    async def log_level(self, level: str) -> None:
        await self._ask("logging/setLevel", {"level": level})

    async def subscribe(self, uri: str) -> None:
        await self._ask("resources/subscribe", {"uri": uri})

    async def _ask(self, method: str, params: Json, report: Callable[[float], None] | None = None) -> Json:
        request = {"id": next(self._ids), "method": method, "params": params}
        answer = Answer()
        messages = self._post(request, answer)
        while (found := await self._find(request["id"], messages, report)) is None:
            if answer.last_event is None:
                raise RuntimeError(f"no answer came; the status was {answer.status}")
            await anyio.sleep(RETRY)
            messages = self._get(answer)
        if "error" in found:
            raise RuntimeError(found["error"]["message"])
        result: Json = found["result"]
        return result

    async def _find(
        self, request_id: object, messages: AsyncGenerator[Json, None], report: Callable[[float], None] | None
    ) -> Json | None:
        """Take messages until the answer is among them; None where they end before."""
        async with aclosing(messages):
            async for message in messages:
                if message.get("id") == request_id and "method" not in message:
                    return message
                await self._take(message, report)
        return None

    async def _take(self, message: Json, report: Callable[[float], None] | None = None) -> None:
        """Look at a message that is not the answer; answer it where it is a question."""
        params = message.get("params", {})
        match message.get("method"):
            case "notifications/progress" if report is not None:
                report(params["progress"])
            case "notifications/message":
                tell("log", data=params["data"])
            case "notifications/resources/updated":
                tell("updated", uri=params["uri"])
            case "elicitation/create" as method:
                tell("asked", method=method)
                result: Json = {"action": "accept", "content": filled(params["requestedSchema"])}
                await self._send({"id": message["id"], "result": result})
            case "sampling/createMessage" as method:
                tell("asked", method=method)
                result = {"role": "assistant", "content": {"type": "text", "text": "Ada"}, "model": "parrot"}
                await self._send({"id": message["id"], "result": result})

    async def _send(self, message: Json) -> Answer:
        answer = Answer()
        await exhaust(self._post(message, answer))
        return answer

    async def _listen(self) -> None:
        """Hold a GET open, for ever."""
        answer = Answer()
        while True:
            async with aclosing(self._get(answer)) as messages:
                async for message in messages:
                    await self._take(message)
            await anyio.sleep(RETRY)

    def _post(self, message: Json, answer: Answer) -> AsyncGenerator[Json, None]:
        body = json.dumps({"jsonrpc": "2.0", **message})
        return self._curl("POST", ["-H", "Content-Type: application/json", "-d", body], answer)

    def _get(self, answer: Answer) -> AsyncGenerator[Json, None]:
        last = ["-H", f"Last-Event-ID: {answer.last_event}"] if answer.last_event is not None else []
        return self._curl("GET", last, answer)

    async def _curl(self, method: str, options: list[str], answer: Answer) -> AsyncGenerator[Json, None]:
        """Run curl and give each message that comes, when it comes."""
        headers = {"Accept": "application/json, text/event-stream"}
        if self._session is not None:
            headers |= {"Mcp-Session-Id": self._session, "Mcp-Protocol-Version": VERSION}
        named = [word for name, value in headers.items() for word in ("-H", f"{name}: {value}")]
        command = ["curl", "-sS", "--no-buffer", "--include", "-X", method, *named, *options, self._url]
        answer.status = 0
        async with await anyio.open_process(command, stdin=DEVNULL, stdout=PIPE, stderr=None) as process:
            assert process.stdout is not None
            try:
                lines = lines_of(TextReceiveStream(process.stdout))
                async for line in lines:
                    if not line:
                        break
                    read_head(line, answer)
                if answer.status:
                    resumes = answer.last_event if method == "GET" else None
                    asked = {"last-event-id": resumes, "mcp-session-id": self._session}
                    tell_http(method, answer.status, asked, answer.headers)
                async for line in lines:
                    if line.startswith("id: "):
                        answer.last_event = line.removeprefix("id: ")
                    elif line.removeprefix("data: ").startswith("{"):
                        yield json.loads(line.removeprefix("data: "))
            finally:
                with suppress(ProcessLookupError):
                    process.kill()


async def exhaust(messages: AsyncGenerator[Json, None]) -> None:
    async with aclosing(messages):
        async for _ in messages:
            pass


async def lines_of(texts: TextReceiveStream) -> AsyncIterator[str]:
    rest = ""
    async for text in texts:
        *lines, rest = (rest + text).split("\n")
        for line in lines:
            yield line.removesuffix("\r")
    if rest:
        yield rest


def read_head(line: str, answer: Answer) -> None:
    if line.startswith("HTTP/"):
        answer.status = int(line.split()[1])
    else:
        name, _, value = line.partition(": ")
        answer.headers[name.lower()] = value


@asynccontextmanager
async def connect(url: str) -> AsyncIterator[Curl]:
    in_session = "session" in sys.argv
    async with anyio.create_task_group() as tasks:
        curl = Curl(url, tasks)
        if in_session:
            await curl.initialize()
        yield curl
        if in_session:
            await curl.end()
        tasks.cancel_scope.cancel()


if __name__ == "__main__":
    run(connect)
