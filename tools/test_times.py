"""Runs `make test` and writes into docs/testing.md where its time goes.

    python tools/test_times.py                   run the tier, and write
    python tools/test_times.py --report FILE     write from a JUnit report of pytest's that is there already

The figures are the seconds of each test's set-up, call and clean-up on the clock, added up. Several processes share the
tests, so the sum is larger than the time of the run, and most of it is waiting.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from xml.etree import ElementTree as ET

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "testing.md"
BEGIN, END = "<!-- times: begin -->", "<!-- times: end -->"

KINDS = {"in process": "in process", "process": "real processes", "redis": "Redis", "outside": "other programs"}
"""What the report of a test calls its kind (tests/harness/kinds.py), and what the page does."""
SHOWN = 20
"""Files, and tests, that the page has."""


@dataclass(frozen=True)
class Test:
    """One test, and how long it took."""

    file: str
    name: str
    kind: str
    seconds: float


def main() -> int:
    """Run and write; the exit code is that of the tests."""
    parser = argparse.ArgumentParser(description="Write where the time of `make test` goes into docs/testing.md.")
    parser.add_argument("--report", type=Path, help="a JUnit report to read instead of running the tests")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        report = options.report or Path(folder) / "report.xml"
        code = 0 if options.report else run(report)
        if code == 0:
            write(list(read(report)), wall_clock(report))
    return code


def run(report: Path) -> int:
    """Run the tier, with its report."""
    command = [sys.executable, str(ROOT / "tools" / "run_tests.py"), "test", f"--junitxml={report}"]
    return subprocess.run(command, cwd=ROOT, check=False).returncode


def read(report: Path) -> Iterator[Test]:
    """Read the tests of a report."""
    for case in ET.parse(report).iter("testcase"):  # noqa: S314 - pytest has written it
        properties = {each.get("name"): each.get("value") for each in case.iter("property")}
        module = str(case.get("classname")).partition("tests.")[2].split(".")[0]
        yield Test(f"{module}.py", str(case.get("name")), KINDS[properties["kind"] or ""], float(case.get("time") or 0))


def wall_clock(report: Path) -> float:
    """Read how long the tests took in all."""
    suite = ET.parse(report).find(".//testsuite")  # noqa: S314 - as above
    return 0.0 if suite is None else float(suite.get("time") or 0)


def write(tests: list[Test], seconds: float) -> None:
    """Put the tables between their marks."""
    page = PAGE.read_text(encoding="utf-8")
    text = "\n".join([BEGIN, *tables(tests, seconds), END])
    PAGE.write_text(re.sub(f"{BEGIN}.*{END}", lambda _: text, page, flags=re.DOTALL), encoding="utf-8")


def tables(tests: list[Test], seconds: float) -> Iterator[str]:
    """Write the tables."""
    date = datetime.now(UTC).date()
    yield f"{len(tests)} tests in {seconds:.0f} s, on {date}. The seconds below are added up over all processes."
    yield from table(["kind", "tests", "seconds"], grouped(tests, lambda test: test.kind))
    yield from table(["file", "tests", "seconds"], grouped(tests, lambda test: f"`{test.file}`")[:SHOWN])
    slowest = sorted(tests, key=lambda test: -test.seconds)[:SHOWN]
    yield from table(["test", "file", "seconds"], [[test.name, f"`{test.file}`", test.seconds] for test in slowest])


def grouped(tests: Iterable[Test], name: Callable[[Test], str]) -> list[list[object]]:
    """Add up the tests that have the same name, the most expensive ones first."""
    found: defaultdict[str, list[float]] = defaultdict(list)
    for test in tests:
        found[name(test)].append(test.seconds)
    rows: list[list[object]] = [[each, len(times), sum(times)] for each, times in found.items()]
    return sorted(rows, key=lambda row: -float(str(row[2])))


def table(head: list[str], rows: Iterable[list[object]]) -> Iterator[str]:
    """Write a table, with an empty line before it."""
    yield from ("", f"| {' | '.join(head)} |", "|---" * len(head) + "|")
    for row in rows:
        cells = [f"{cell:.1f}" if isinstance(cell, float) else str(cell).replace("|", "\\|") for cell in row]
        yield f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    sys.exit(main())
