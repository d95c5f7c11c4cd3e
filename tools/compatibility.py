"""Runs real clients against `mcp-hybrid serve`, prints what worked, and compares it with docs/compatibility.md.

    python tools/compatibility.py                  every client; fails if a cell is worse than the page says
    python tools/compatibility.py Trio --logs DIR  those with "Trio" in their name; keeps what was written to the logs
    python tools/compatibility.py --write          writes the page, with the SDK's own server measured beside ours

The clients that are not in the environment of this script are installed, pinned, into .cache/clients (or `clients`
under the folder that TESTS_CACHE names): npm packages, and another Python SDK. That needs npm and curl.
"""

# ruff: noqa: E402 - the harness of the tests is found only once the path is set

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path

import trio

ROOT = Path(__file__).resolve().parent.parent
TESTS = ROOT / "tests"
PAGE = ROOT / "docs" / "compatibility.md"

sys.path.insert(0, str(TESTS))  # the harness of the tests is what starts servers and steers clients

from clients import page
from clients.installing import Installed, NotInstalledError, install
from clients.matrix import Line, run
from clients.rows import ROWS, Row
from harness.process import ServerProcess, hypercorn, serve
from mcp_hybrid.sessions.seal import fresh_key

PROGRAM = TESTS / "clients" / "program.py"
SERVERS = 2
"""Servers of the comparison that run at a time."""


def main() -> int:
    """Run, print, compare or write; the exit code says whether nothing got worse."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clients", nargs="*", metavar="NAME", help="a part of the names of the clients; none: all")
    parser.add_argument("--write", action="store_true", help="write docs/compatibility.md instead of comparing with it")
    parser.add_argument("--logs", type=Path, help="a folder to keep what the drivers and the server wrote")
    options = parser.parse_args()
    chosen = [row for row in ROWS if not options.clients or any(part in row.name for part in options.clients)]
    if not chosen or (options.write and options.clients):
        parser.error("no such client" if not chosen else "the page is written for all clients")
    try:
        installed = install()
    except NotInstalledError as error:
        print(error, file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory(prefix="clients-") as temporary:
        logs = options.logs or Path(temporary)
        ours = measure(chosen, installed, logs)
        print(page.table(ours), flush=True)
        if options.write:
            theirs = trio.run(measure_theirs, chosen, installed, logs / "sdk")
            print(page.table(theirs))
            PAGE.write_text(page.write(ours, theirs, version("mcp")))
            return tell(page.worse(page.as_table(ours), page.as_table(theirs)), "worse than the SDK's server")
    return tell(page.worse(page.as_table(ours), page.read(PAGE.read_text(), page.OURS)), "worse than the page says")


def tell(cells: Sequence[str], what: str) -> int:
    """Print what is worse; the exit code is 1 if anything is."""
    for cell in cells:
        print(f"{what}: {cell}")
    return 1 if cells else 0


def measure(rows: Sequence[Row], installed: Installed, logs: Path) -> list[Line]:
    """Run clients against our server."""
    with serve(str(PROGRAM), env={"MCP_HYBRID_SESSIONS__KEYS": fresh_key()}) as server:
        return against(server, rows, installed, logs)


def against(server: ServerProcess, rows: Sequence[Row], installed: Installed, logs: Path) -> list[Line]:
    """Run clients against a server, and keep its log beside theirs."""
    logs.mkdir(parents=True, exist_ok=True)
    try:
        return trio.run(run, rows, installed, server, logs)
    finally:
        (logs / "server.log").write_text(server.log)


async def measure_theirs(rows: Sequence[Row], installed: Installed, logs: Path) -> list[Line]:
    """Run each client against a server of the SDK's that it has for itself.

    Several clients of one such server would be sent each other's events: it names a stream by the request's id alone.
    """
    lines: dict[str, Line] = {}
    slots = trio.CapacityLimiter(SERVERS)

    async def one(row: Row) -> None:
        (lines[row.name],) = await trio.to_thread.run_sync(
            partial(measure_one_of_theirs, row, installed, logs / str(ROWS.index(row))), limiter=slots
        )

    async with trio.open_nursery() as nursery:
        for row in rows:
            nursery.start_soon(one, row)
    return [lines[row.name] for row in rows]


def measure_one_of_theirs(row: Row, installed: Installed, logs: Path) -> list[Line]:
    """Run one client against a server of the SDK's."""
    with hypercorn(env={"PYTHONPATH": str(TESTS)}, app="clients.reference:app") as server:
        return against(server, [row], installed, logs)


if __name__ == "__main__":
    sys.exit(main())
