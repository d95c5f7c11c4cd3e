"""docs/security.md names for every threat what stops it, and a test that shows it and exists."""

from __future__ import annotations

import re
from pathlib import Path
from runpy import run_path

from mcp_hybrid.settings import FIELDS

ROOT = Path(__file__).parent.parent
DOCUMENT = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")
HEAD = "| who | could | what stops them | shown by |"


def rows() -> list[list[str]]:
    """Give the cells of the threat tables."""
    lines = DOCUMENT.splitlines()
    starts = [number + 2 for number, line in enumerate(lines) if line == HEAD]
    found = []
    for start in starts:
        for line in lines[start:]:
            if not line.startswith("|"):
                break
            found.append([cell.strip() for cell in line.strip("|").split("|")])
    return found


def test_every_threat_has_its_four_cells_and_a_test() -> None:
    assert len(rows()) >= 40
    for row in rows():
        assert len(row) == 4, row
        assert all(row), row
        assert "::" in row[3], row


def test_every_test_that_is_named_exists() -> None:
    check = run_path(str(ROOT / "tools" / "check_specification.py"))
    named = check["TEST"].findall(DOCUMENT)
    assert len(named) == DOCUMENT.count("::")
    missing = [f"{file}::{name}" for file, name in named if name not in check["tests_of"](ROOT / file)]
    assert missing == []


def test_every_setting_that_is_named_exists() -> None:
    sections = {key.partition(".")[0] for key in FIELDS if "." in key}
    named = {word for word in re.findall(r"`(\w+\.[\w*]+)`", DOCUMENT) if word.partition(".")[0] in sections}
    assert {word for word in named if "*" not in word} <= set(FIELDS)
