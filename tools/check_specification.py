"""Checks docs/specification.md: that no requirement is missing, and that what it names exists.

A row is met by a test or it is not met: a row that says it is names the tests that show it. So does one that the SDK
meets, if it is a MUST: what the SDK does today is shown, not believed.
"""

# a script, not a package

from __future__ import annotations

import ast
import re
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DOCUMENT = ROOT / "docs" / "specification.md"
PACKAGE = ROOT / "src" / "mcp_hybrid"

REQUIREMENTS = """
T1 T2 T3 S1 S2 S3 S4 S5 S6 S7 S8 S9
P1 P2 P3 P4 P5 P6 P7 P8 P9
E1 E2 E3 E4 E5 E6 E7 E8 E9 E10 E11 E12 E13 E14 E15
G1 G2 G3 G4 G5 G6 R1 R2 R3 R4 R5 R6
N1 N2 N3 N4 N5 N6 N7 N8 N9 N10 N11 N12 N13 N14
V1 V2 V3 V4 V5 V6 V7 V8 V9
J1 J2 J3 J4 J5 J6 J7 J8 J9
C1 C2 C3 C4 C5 C6 C7 G-P1 G-P2 G-P3 G-P4 G-P5 G-P6 G-P7 G-P8 L1 L2 L3 L4 L5 I1 I2 I3 O1
U1 U2 U3 U4 U5 U6 U7 U8 U9 U10
B1 B2 B3 B4 B5
K1 K2 K3 K4
A1 A2 A3 A4 A5 A6 A7 A8 A9 A10 A11 A12
D1 D2 D3 D4 D5 D6 D7 D8 D9 D10 D11 D12 D13 D14 D15 D16 D17 D18 D19 D20 D21 D22 D23 D24 D25 D26 D27 D28
"""
"""Every row there must be, section by section."""

STATES = ("met", "partly", "no", "SDK", "application", "n/a")
SHOWN = ("met", "partly")
"""States that only a test can show."""

COLUMNS = 7
ROW = re.compile(r"\| *([A-Z](?:-[A-Z])?\d+) *\|")
TEST = re.compile(r"`([\w./-]+\.py)::(\w+)`")
MODULE = re.compile(r"`([\w/]+\.py)`")


@dataclass(frozen=True)
class Row:
    """One line of the tables."""

    id: str
    level: str
    state: str
    how: str
    tests: tuple[tuple[str, str], ...]
    """File and function."""


def main() -> int:
    """Check the document, or the one that is named; write what is wrong with it."""
    document = Path(sys.argv[1]) if len(sys.argv) > 1 else DOCUMENT
    try:
        rows = list(read(document.read_text(encoding="utf-8")))
    except ValueError as error:
        print(error)
        return 1
    wrong = list(check(rows))
    print(*wrong, sep="\n", end="\n" if wrong else "")
    if not wrong:
        counts = Counter(row.state for row in rows)
        print(f"{len(rows)} requirements:", ", ".join(f"{counts[state]} {state}" for state in STATES))
    return 1 if wrong else 0


def read(text: str) -> Iterator[Row]:
    """Give the rows of the tables.

    Raises:
        ValueError: A row has not the columns it should have.
    """
    for line in text.splitlines():
        if not (found := ROW.match(line)):
            continue
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if len(cells) != COLUMNS:
            raise ValueError(f"{found[1]}: {len(cells)} columns, not {COLUMNS}: a row must not hold a | of its own")
        yield Row(cells[0], cells[2], cells[4], cells[5], tuple(TEST.findall(cells[6])))


def check(rows: list[Row]) -> Iterator[str]:
    """Give a line for everything that is wrong."""
    times = Counter(row.id for row in rows)
    required = REQUIREMENTS.split()
    yield from (f"{id_}: there is no row for it" for id_ in required if id_ not in times)
    yield from (f"{id_}: {count} rows" for id_, count in times.items() if count > 1)
    yield from (f"{id_}: not a known requirement" for id_ in times if id_ not in required)
    for row in rows:
        yield from check_row(row)


def check_row(row: Row) -> Iterator[str]:
    """Give what is wrong with a row by itself."""
    if row.state not in STATES:
        yield f"{row.id}: the state is {row.state!r}, not one of {', '.join(STATES)}"
    if row.state in SHOWN and not row.tests:
        yield f"{row.id}: {row.state}, but no test shows it"
    if row.state == "SDK" and row.level.startswith("MUST") and not row.tests:
        yield f"{row.id}: the SDK must do it, but no test shows that it does"
    for file, name in row.tests:
        if name not in tests_of(ROOT / file):
            yield f"{row.id}: there is no test {file}::{name}"
    for module in MODULE.findall(row.how):
        if not (PACKAGE / module).exists():
            yield f"{row.id}: there is no module {module}"


@cache  # most files are named by many rows
def tests_of(path: Path) -> set[str]:
    """Give the names of a file's tests; of a file that does not exist, none."""
    if not path.exists():
        return set()
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    body = ast.parse(path.read_text(encoding="utf-8")).body
    return {node.name for node in body if isinstance(node, functions) and node.name.startswith("test_")}


if __name__ == "__main__":
    sys.exit(main())
