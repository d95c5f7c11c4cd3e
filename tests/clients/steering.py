"""A driver and its client, as the script that steers them sees it."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Self

import trio

TESTS = Path(__file__).resolve().parent.parent

Json = dict[str, Any]

GRACE = 5.0
"""Seconds that a driver has to end after its input did."""


class RefusedError(Exception):
    """The client answered a command with an error."""


class Driver:
    """One driver process. Commands may run at the same time; what happens meanwhile is kept in order."""

    def __init__(self, process: trio.Process) -> None:
        self.events: list[Json] = []
        """What the driver has told so far."""
        self.ended = False
        self._process = process
        self._answers: dict[int, Json] = {}
        self._last = 0
        self._changed = trio.Event()

    @classmethod
    @asynccontextmanager
    async def running(cls, command: Sequence[str], log: Path) -> AsyncIterator[Self]:
        """Start a driver; what it and its client write to standard error goes to `log`."""
        environment = {**os.environ, "PYTHONPATH": str(TESTS), "PYTHONWARNINGS": "ignore"}
        with log.open("ab") as errors:
            process = await trio.lowlevel.open_process(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, env=environment
            )
        driver = cls(process)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(driver._read)
            try:
                yield driver
            finally:
                with trio.CancelScope(shield=True):
                    await driver._end()
                nursery.cancel_scope.cancel()

    async def do(self, what: str, **arguments: object) -> Any:
        """Have a command done and give its result.

        Raises:
            RefusedError: It was answered with an error, or the driver ended.
        """
        return await self.wait(await self.begin(what, **arguments))

    async def begin(self, what: str, **arguments: object) -> int:
        """Have a command begun and give its id, for `wait`."""
        self._last += 1
        command = {"id": self._last, "do": what, **arguments}
        assert self._process.stdin is not None
        try:
            await self._process.stdin.send_all(json.dumps(command).encode() + b"\n")
        except trio.BrokenResourceError:
            raise RefusedError("the driver has ended") from None
        return self._last

    async def wait(self, command: int) -> Any:
        """Wait for the answer to a command."""
        while command not in self._answers:
            if self.ended:
                raise RefusedError("the driver has ended")
            await self._changed.wait()
        answer = self._answers[command]
        if "error" in answer:
            raise RefusedError(" ".join(answer["error"].split()))
        return answer["result"]

    def answered(self, command: int) -> bool:
        """Whether a command has been answered."""
        return command in self._answers

    def told(self, event: str, since: int = 0, **facts: object) -> list[Json]:
        """Give the events of a kind, from the one numbered `since` on, that agree with the facts."""
        wanted: Mapping[str, object] = {"event": event, **facts}
        return [one for one in self.events[since:] if wanted.items() <= one.items()]

    async def until(self, happened: Callable[[], object]) -> None:
        """Wait until what was told makes it true."""
        while not happened():
            if self.ended:
                raise RefusedError("the driver has ended")
            await self._changed.wait()

    async def _read(self) -> None:
        assert self._process.stdout is not None
        rest = b""
        async for data in self._process.stdout:
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                self._take(line)
        self.ended = True
        self._wake()

    def _take(self, line: bytes) -> None:
        try:
            message = json.loads(line)
        except ValueError:
            return  # what a library prints
        if "event" in message:
            self.events.append(message)
        else:
            self._answers[message["id"]] = message
        self._wake()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    async def _end(self) -> None:
        assert self._process.stdin is not None
        await self._process.stdin.aclose()
        with trio.move_on_after(GRACE):
            await self._process.wait()
        if self._process.returncode is None:
            self._process.kill()
        await self._process.wait()
