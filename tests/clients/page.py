"""The page that holds the tables: written from what was measured, and read back to compare with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from clients.columns import CHECKS
from clients.matrix import AFTER, CANNOT, Line, is_worse
from clients.rows import Why

COLUMNS: Final = (*CHECKS, AFTER)

OURS: Final = "mcp-hybrid"
THEIRS: Final = "The SDK's own stateful server"

NUMBERS: Final = dict(zip(Why, "¹²³⁴", strict=True))

Table = Mapping[str, Mapping[str, str]]
"""By client and column."""

_HEAD: Final = f"""\
# Compatibility

Real clients, each steered through the same steps against one running server. `python tools/compatibility.py --write`
writes this page, and `tests/test_compatibility.py` fails when a cell gets worse than it is here.

| column | means |
|---|---|
| list, call | the tools are listed; a tool is called and its result is right |
| progress | every value, in order, while the tool runs: it goes on only once the value before has been seen |
| logging | a level is set, and a tool's log messages come, in order |
| subscribe | a subscription is accepted, and an update that somebody else causes is delivered |
| elicitation, sampling | a tool asks the person, or the model, at the client, and gets the answer |
| SSE polling | a tool closes its call's stream, and its result comes on the one that the client resumes |
| close | the client leaves without an error; its session, where it has one, is 404 from then on |
| after a restart | the server was stopped and started again under the open client, and every cell is what it was |

`yes`; `no` with what was missing; or `{CANNOT}` where the client or the route cannot have it by protocol. That it then
fails at once, or does without, is checked too. At 2026-07-28 a tool asks by answering its call with a question, which
these clients answer by themselves, and a subscription is a stream of its own.
"""

_OURS_ARE: Final = """\
`mcp-hybrid serve` with a session key, one process for all clients at the same time, restarted once under all of them.
"""

_THEIRS_ARE: Final = """\
For comparison: the same program, `streamable_http_app()` of the Python SDK {sdk} with an event store in memory, on
Hypercorn's Trio worker; a process for each client. Its SSE polling works on uvicorn: on Trio the tool closes the stream
before the event has been sent that a client needs to resume it.
"""


def write(ours: Sequence[Line], theirs: Sequence[Line], sdk: str) -> str:
    """Write the page."""
    parts = [_HEAD, f"## {OURS}\n", _OURS_ARE, table(ours), footnotes(ours), subscriptions(ours)]
    parts += [f"## {THEIRS}\n", _THEIRS_ARE.format(sdk=sdk), table(theirs)]
    return "\n".join(parts)


def table(lines: Sequence[Line]) -> str:
    """Write a table."""
    rows = [["client", "version", "speaks", *COLUMNS], ["---"] * (3 + len(COLUMNS))]
    for line in lines:
        cells = [marked(line, column) for column in COLUMNS]
        rows.append([line.row.name, line.version or CANNOT, line.speaks or CANNOT, *cells])
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def marked(line: Line, column: str) -> str:
    """Give a cell with the number of its footnote."""
    cell = line.cells[column].replace("|", "\\|")
    return f"{cell}{NUMBERS[line.row.cannot[column]]}" if cell == CANNOT else cell


def footnotes(lines: Sequence[Line]) -> str:
    """Write why a client cannot have something."""
    used = {why for line in lines for column, why in line.row.cannot.items() if line.cells[column] == CANNOT}
    return "".join(f"{NUMBERS[why]} {why.value}\n\n" for why in Why if why in used).removesuffix("\n")


def subscriptions(lines: Sequence[Line]) -> str:
    """Say what became of subscriptions that were made before the restart."""
    asked = [line for line in lines if line.kept is not None]
    if any(line.kept for line in asked):
        return "Subscriptions made before the restart were known after it.\n"
    return (
        "After the restart each client was made to subscribe again. The program keeps subscriptions in its memory, as\n"
        "most do: those made before are lost with the process, and no client subscribes again by itself.\n"
    )


def read(page: str, title: str) -> Table:
    """Read the table under a title back, without the footnotes' numbers."""
    _, _, rest = page.partition(f"## {title}\n")
    section = rest.partition("\n## ")[0]
    rows = [
        [cell.strip() for cell in row.strip("|").split(" | ")] for row in section.splitlines() if row.startswith("|")
    ]
    found: dict[str, dict[str, str]] = {}
    if rows:
        head, _, *body = rows
        for row in body:
            cells = dict(zip(head, row, strict=True))
            found[cells["client"]] = {column: cells[column].rstrip("".join(NUMBERS.values())) for column in COLUMNS}
    return found


def as_table(lines: Sequence[Line]) -> Table:
    """Give what was measured, as it would be read back."""
    return {line.row.name: {column: line.cells[column] for column in COLUMNS} for line in lines}


def worse(found: Table, before: Table) -> list[str]:
    """Say which cells say less than they did, each in a line."""
    return [
        f"{client}: {column}: {cells[column]!r}, where it was {before[client][column]!r}"
        for client, cells in found.items()
        if client in before
        for column in COLUMNS
        if is_worse(cells[column], before[client][column])
    ]
