"""Takes every client through every column, restarts the server under all of them, and does it again."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path

import httpx2
import trio

from clients.columns import CHECKS, INSTEAD, Hand, MissingError, Visit
from clients.installing import Installed
from clients.rows import Row
from clients.steering import Driver, RefusedError
from harness.process import ServerProcess

YES = "yes"
CANNOT = "\N{EN DASH}"
AFTER = "after a restart"

AT_ONCE = 3
"""Clients that are taken through the columns at a time: more only wait for the processor."""

WORDS = 100
"""Characters of a reason that are kept."""

_MESSAGE = re.compile(r'"message": ?"([^"]+)"')

LIMIT = 20.0
"""Seconds that one check may take. The longest wait of a client's own is some seconds, for its stream's return."""


@dataclass
class Line:
    """What came of one client."""

    row: Row
    version: str
    speaks: str = ""
    cells: dict[str, str] = field(default_factory=dict)
    """By column."""
    kept: bool | None = None
    """Whether a subscription made before the restart was known after it."""


class Restart:
    """Restarts the server once everybody has come to it, and lets them go on."""

    def __init__(self, server: ServerProcess, parties: int) -> None:
        self._server = server
        self._missing = parties
        self._everybody = trio.Event()
        self._over = trio.Event()

    async def run(self) -> None:
        await self._everybody.wait()
        await trio.to_thread.run_sync(self._server.restart)
        self._over.set()

    def arrive(self) -> None:
        """Be there; or do not be waited for any more."""
        self._missing -= 1
        if self._missing == 0:
            self._everybody.set()

    async def wait(self) -> None:
        await self._over.wait()


async def run(rows: Sequence[Row], installed: Installed, server: ServerProcess, logs: Path) -> list[Line]:
    """Run the clients against one server, which is running and is restarted once."""
    lines = [Line(row, row.version(installed)) for row in rows]
    restart = Restart(server, len(rows))
    slots = trio.CapacityLimiter(AT_ONCE)
    async with httpx2.AsyncClient(timeout=LIMIT) as http, trio.open_nursery() as nursery:
        nursery.start_soon(restart.run)
        for number, line in enumerate(lines):
            command, log = line.row.command(installed), logs / f"{number}.log"
            client = Client(line, f"c{number}", command, log, Hand(http, server.url), slots, restart)
            nursery.start_soon(client.run)
    return lines


@dataclass
class Client:
    """One client's way through the matrix."""

    line: Line
    name: str
    command: Sequence[str]
    log: Path
    hand: Hand
    slots: trio.CapacityLimiter
    restart: Restart

    async def run(self) -> None:
        async with AsyncExitStack() as stack:
            async with self.slots:
                visit = await self._open(stack)
                before = await self._through(visit) if visit is not None else {}
            if visit is None:
                self.restart.arrive()
                return
            before["close"] = await self._close_another()
            visit.since, visit.turn = len(visit.driver.events), 2
            self.restart.arrive()
            await self.restart.wait()
            async with self.slots:
                after = await self._through(visit)
                after["close"] = await self._cell("close", visit)
            self.line.cells = before | {AFTER: compared(before, after)}
            self.line.kept = visit.kept

    async def _close_another(self) -> str:
        """Open the client once more and close it: the first is still needed."""
        async with self.slots, AsyncExitStack() as stack:
            visit = await self._open(stack)
            if visit is None:
                return "no: it does not connect again"
            await self._cell("list", visit)
            return await self._cell("close", visit)

    async def _open(self, stack: AsyncExitStack) -> Visit | None:
        driver = await stack.enter_async_context(Driver.running(self.command, self.log))
        try:
            with trio.fail_after(LIMIT):
                opened = await driver.do("open", url=self.hand.url)
        except (RefusedError, trio.TooSlowError) as error:
            self.line.cells = dict.fromkeys((*CHECKS, AFTER), no(str(error) or "it does not connect"))
            return None
        self.line.speaks = opened["version"]
        return Visit(self.name, driver, self.hand, opened["version"], self.line.row.shows_http)

    async def _through(self, visit: Visit) -> dict[str, str]:
        return {column: await self._cell(column, visit) for column in CHECKS if column != "close"}

    async def _cell(self, column: str, visit: Visit) -> str:
        cannot = column in self.line.row.cannot
        check = INSTEAD[column] if cannot else CHECKS[column]
        with trio.move_on_after(LIMIT):
            try:
                await check(visit)
            except (RefusedError, MissingError) as error:
                return no(str(error))
            except httpx2.HTTPError as error:
                return no(f"the server did not answer us: {error!r}")
            return CANNOT if cannot else YES
        return no(f"{visit.waiting_for} did not come")


def no(reason: str) -> str:
    """Give the cell for something that does not work; of an error that quotes a JSON-RPC error, its message."""
    quoted = _MESSAGE.search(reason)
    reason = quoted[1] if quoted is not None else reason
    return f"no: {reason if len(reason) <= WORDS else reason[:WORDS] + '…'}"


def compared(before: Mapping[str, str], after: Mapping[str, str]) -> str:
    """Say whether everything that was well is well again."""
    if before["list"] != YES:
        return "no: nothing worked before"
    if after["list"] != YES:
        return no(f"nothing works any more ({after['list'].removeprefix('no: ')})")
    lost = [column for column in before if is_worse(after[column], before[column])]
    return "no: " + "; ".join(f"{column} ({after[column].removeprefix('no: ')})" for column in lost) if lost else YES


def is_worse(cell: str, before: str) -> bool:
    """Whether a cell says less than one before it did."""
    return cell != before and (before == YES or cell.startswith("no")) and not before.startswith("no")
