"""Ten clients that behave, by the SDK's own client: what they are answered, and how long it takes.

They call tools that behave (`tests/programs/hostile_tools.py`), in sessions with a GET stream, at 2026-07-28 and
without a session, and check each answer. They run in a process of their own, so that no other client's work is in their
figures.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import count, cycle
from typing import Any, Final

import anyio
import trio
from mcp import Client
from mcp_types import ElicitResult, ResourceUpdatedNotification

from harness.clients import Progress, Wire, connected, text_of

CLIENTS: Final = 10
PAUSE: Final = 0.05
"""Seconds a client thinks between two calls."""
PATIENCE: Final = 30.0
"""Seconds within which everything is answered."""
ADDRESS: Final = "127.0.0.2"
"""Where they come from, so that they are another owner than those of hostile calls."""
STEPS: Final = 3
STEP: Final = 0.01
"""Seconds that `count` takes for each of its steps."""


@dataclass(frozen=True)
class Sample:
    """One call that was answered right."""

    kind: str
    began: float
    """Seconds of the system's monotonic clock, which all processes share."""
    seconds: float
    """How long it took, without the time that the tool itself waits."""


@dataclass
class Seen:
    """What all of them saw."""

    samples: list[Sample] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)


Call = Callable[[int], Awaitable[float]]
"""Makes a call and checks the answer; returns the seconds that its tool waits."""


class Behaving:
    """One client, on one of three routes."""

    def __init__(self, url: str, number: int, seen: Seen) -> None:
        self._url = url
        self.route = ("session", "modern", "stateless")[number % 3]
        self._number = number
        self._seen = seen
        self._told: dict[str, anyio.Event] = {}
        self._client: Client
        self.warm = anyio.Event()
        """Set when it has made each kind of call once."""
        self.over = False

    async def run(self) -> None:
        """Talk until it is over. A connection that fails is reported, and made anew."""
        while not self.over:
            try:
                wire = Wire(forgetful=self.route == "stateless", local_address=ADDRESS)
                mode = "2026-07-28" if self.route == "modern" else "legacy"
                options: dict[str, Any] = {} if self.route == "modern" else {"message_handler": self._hear}
                if self.route == "session":
                    options["elicitation_callback"] = self._answer
                async with connected(self._url, mode, wire, **options) as self._client:
                    if self.route == "session":
                        await wire.until("GET")
                    await self._talk()
            except Exception as error:  # noqa: BLE001 - whatever it is, it is what is looked for
                self._seen.wrong.append(f"{self.route}: {error!r}"[:1000])
                await anyio.sleep(PAUSE)

    async def _talk(self) -> None:
        kinds: dict[str, Call] = {"add": self._add, "in a thread": self._add_in_thread, "progress": self._count}
        if self.route == "session":
            kinds |= {"told on GET": self._tell, "asked": self._ask}
        numbers = count(self._number * 1_000_000)
        for turn, kind in enumerate(cycle(kinds)):
            began = time.monotonic()
            try:
                with anyio.fail_after(PATIENCE):
                    waited = await kinds[kind](next(numbers))
            except (AssertionError, TimeoutError) as error:
                self._seen.wrong.append(f"{self.route}, {kind}: {error!r}"[:1000])
            else:
                self._seen.samples.append(Sample(kind, began, time.monotonic() - began - waited))
            if turn + 1 >= len(kinds):
                self.warm.set()
            if self.over:
                return
            await anyio.sleep(PAUSE)

    async def _add(self, number: int, tool: str = "add") -> float:
        result = await self._client.call_tool(tool, {"a": number, "b": 1})
        assert result.structured_content == {"result": number + 1}, result
        return 0

    async def _add_in_thread(self, number: int) -> float:
        return await self._add(number, "add_in_thread")

    async def _count(self, _number: int) -> float:
        progress = Progress()
        callback = progress if self.route != "stateless" else None
        result = await self._client.call_tool("count", {"steps": STEPS}, progress_callback=callback)
        assert text_of(result) == f"counted to {STEPS}", result
        if callback is not None:
            assert progress.values == sorted(set(progress.values)), progress.values
            assert progress.values[-1:] == [STEPS], progress.values
        return STEPS * STEP

    async def _tell(self, number: int) -> float:
        heard = self._told[f"told://{number}"] = anyio.Event()
        await self._client.call_tool("tell", {"text": str(number)})
        await heard.wait()
        return 0

    async def _ask(self, _number: int) -> float:
        assert text_of(await self._client.call_tool("ask", {})) == f"client {self._number}"
        return 0

    async def _hear(self, message: object) -> None:
        if isinstance(message, ResourceUpdatedNotification):
            event = self._told.pop(str(message.params.uri), None)
            if event is None:
                self._seen.wrong.append(f"{self.route}: {message.params.uri} was heard twice, or by another client")
            else:
                event.set()

    async def _answer(self, _context: object, _params: object) -> ElicitResult:
        return ElicitResult(action="accept", content={"name": f"client {self._number}"})


async def behave(url: str) -> None:
    """Be all of the clients, in this process, until standard input ends; then print what they saw, as JSON."""
    seen = Seen()
    clients = [Behaving(url, number, seen) for number in range(CLIENTS)]
    async with anyio.create_task_group() as tasks:
        for client in clients:
            tasks.start_soon(client.run)
        with anyio.fail_after(2 * PATIENCE):
            for client in clients:
                await client.warm.wait()
        print("{", end="", flush=True)
        await anyio.to_thread.run_sync(sys.stdin.read)
        for client in clients:
            client.over = True
    samples = [[each.kind, each.began, each.seconds] for each in seen.samples]
    print(json.dumps({"samples": samples, "wrong": seen.wrong})[1:])


@asynccontextmanager
async def behaving(script: str, url: str) -> AsyncIterator[Seen]:
    """Run them in another process, `script --behave url`; what they saw is there at the end."""
    seen = Seen()
    command = [sys.executable, script, "--behave", url]
    process = await trio.lowlevel.open_process(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        assert (await process.stdout.receive_some(1)) == b"{", "the clients that behave did not get going"
        yield seen
        await process.stdin.aclose()
        found: dict[str, Any] = json.loads(b"{" + b"".join([piece async for piece in process.stdout]))
        seen.samples += [Sample(*each) for each in found["samples"]]
        seen.wrong += found["wrong"]
    finally:
        process.kill()
        await process.wait()
