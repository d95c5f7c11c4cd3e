"""Real clients against a real server process, step by step, as docs/compatibility.md says they fare."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from pydantic_core import from_json

from clients import page
from clients.matrix import CANNOT, Line, compared, is_worse
from clients.rows import INSPECTOR, ROWS, TYPESCRIPT_1, TYPESCRIPT_2, Row, Why
from harness.tools import need

pytestmark = pytest.mark.once

ROOT = Path(__file__).parent.parent
TOOL = ROOT / "tools" / "compatibility.py"
CLIENTS = ROOT / "tests" / "clients"
PAGE = (ROOT / "docs" / "compatibility.md").read_text()

PATIENCE = 600
"""Seconds for the whole table, the first installation of the clients among them. It takes about forty without."""


@pytest.fixture
def programs() -> None:
    """Have what the clients come by."""
    for program in ("npm", "curl"):
        need(program)


CHANGES = ("TypeScript sdk 1", "Python mcp 2 on Trio", "FastMCP 4, legacy", "curl")
"""Parts of the names of the clients that are tried for every change: each language and each way of coming in."""


@pytest.mark.outside
@pytest.mark.long
@pytest.mark.usefixtures("programs")
@pytest.mark.parametrize("names", [CHANGES, pytest.param((), marks=pytest.mark.release)], ids=["some", "all"])
def test_no_client_fares_worse_than_the_page_says(names: tuple[str, ...]) -> None:
    done = subprocess.run(
        [sys.executable, TOOL, *names],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=PATIENCE,
    )
    assert done.returncode == 0, done.stdout


# The page


def test_the_page_has_every_client() -> None:
    for title in (page.OURS, page.THEIRS):
        assert list(page.read(PAGE, title)) == [row.name for row in ROWS]


def pinned() -> dict[str, str]:
    """Give the versions of the clients that are pinned, by the beginning of their names in the table."""
    npm = from_json((CLIENTS / "package.json").read_text(encoding="utf-8"))["dependencies"]
    (sdk1,) = re.findall(r"^mcp==(\S+)$", (CLIENTS / "sdk1.txt").read_text(encoding="utf-8"), re.MULTILINE)
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    (fastmcp,) = [one.removeprefix("fastmcp==") for one in extras["dev"] if one.startswith("fastmcp==")]
    return {
        "TypeScript sdk 1": npm[TYPESCRIPT_1],
        "TypeScript client 2": npm[TYPESCRIPT_2],
        "MCP Inspector": npm[INSPECTOR],
        "Python mcp 1": sdk1,
        "FastMCP 4": fastmcp,
    }


@pytest.mark.parametrize("title", [page.OURS, page.THEIRS])
def test_the_page_names_the_versions_that_are_tried(title: str) -> None:
    table = PAGE.partition(f"## {title}\n")[2].partition("\n## ")[0]
    versions = dict(re.findall(r"^\| ([^|]+) \| ([\d.]+) \|", table, re.MULTILINE))
    for client, version in pinned().items():
        named = {found for row, found in versions.items() if row.startswith(client)}
        assert named == {version}, client


def test_every_client_goes_on_after_a_restart() -> None:
    assert {cells["after a restart"] for cells in page.read(PAGE, page.OURS).values()} == {"yes"}


def test_no_cell_is_worse_than_with_the_sdks_own_server() -> None:
    assert page.worse(page.read(PAGE, page.OURS), page.read(PAGE, page.THEIRS)) == []


def line(**cells: str) -> Line:
    row = Row("someone, somehow", lambda _: "1.2", lambda _: [], {"SSE polling": Why.MODERN})
    return Line(row, "1.2", "2026-07-28", dict.fromkeys(page.COLUMNS, "yes") | cells)


def test_a_table_is_read_back_as_it_was_measured() -> None:
    lines = [line(**{"SSE polling": CANNOT, "progress": "no: 3 | 4 did not come"})]
    written = page.write(lines, lines, "2.3")
    for title in (page.OURS, page.THEIRS):
        found = page.read(written, title)
        assert found["someone, somehow"]["SSE polling"] == CANNOT
        assert page.worse(found, page.as_table(lines)) == page.worse(page.as_table(lines), found) == []


# What is worse


@pytest.mark.parametrize(
    ("cell", "before", "worse"),
    [
        ("yes", "yes", False),
        ("yes", "no: why", False),
        ("yes", CANNOT, False),
        (CANNOT, CANNOT, False),
        (CANNOT, "no: why", False),
        (CANNOT, "yes", True),
        ("no: why", "yes", True),
        ("no: why", CANNOT, True),
        ("no: why", "no: another reason", False),
    ],
)
def test_a_cell_is_worse_when_something_was_lost(cell: str, before: str, worse: bool) -> None:
    assert is_worse(cell, before) is worse


def test_what_a_restart_took_is_named() -> None:
    before = {"list": "yes", "progress": "yes", "logging": CANNOT, "close": "no: why"}
    assert compared(before, before) == "yes"
    assert compared(before, before | {"progress": "no: 2 did not come"}) == "no: progress (2 did not come)"
    assert compared(before, dict.fromkeys(before, "no: gone")) == "no: nothing works any more (gone)"
    assert compared(before | {"list": "no: gone"}, before) == "no: nothing worked before"
