"""docs/specification.md says of every requirement what becomes of it, and names only what exists."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
DOCUMENT = ROOT / "docs" / "specification.md"


def check(document: Path) -> subprocess.CompletedProcess[str]:
    command: list[str | Path] = [sys.executable, ROOT / "tools" / "check_specification.py", document]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.process
def test_every_requirement_has_its_row_and_every_test_it_names_exists() -> None:
    done = check(DOCUMENT)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    assert done.stdout.startswith("163 requirements: ")


@pytest.mark.process
@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("::test_initialize_agrees_to", "::test_made_up", "V1: there is no test tests/test_specification_rows.py::"),
        ("`tests/test_demo.py::", "`tests/test_made_up.py::", "U2: there is no test tests/test_made_up.py::"),
        ("`sessions/seal.py`", "`sessions/made_up.py`", "N2: there is no module sessions/made_up.py"),
        ("| J8 |", "| J88 |", "J8: there is no row for it"),
        ("| J8 |", "| J88 |", "J88: not a known requirement"),
        ("| J8 |", "| J7 |", "J7: 2 rows"),
        ("| met |", "| sort of met |", "T1: the state is 'sort of met', not one of met, partly"),
        ("| n/a | a client's duty", "| a client's duty", "N4: 6 columns, not 7"),
        ("| n/a | there are no tasks", "| met | there are no tasks", "C4: met, but no test shows it"),
        ("| n/a | it is not declared", "| SDK | it is not declared", "K2: the SDK must do it, but no test shows that"),
    ],
)
def test_what_is_wrong_is_told_by_its_row(tmp_path: Path, old: str, new: str, words: str) -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    assert old in text
    changed = tmp_path / "specification.md"
    changed.write_text(text.replace(old, new), encoding="utf-8")
    done = check(changed)
    assert done.returncode == 1
    assert words in done.stdout
