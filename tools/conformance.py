"""Runs the official conformance suite against `mcp-hybrid serve tests/conformance/everything.py`, leg by leg.

    python tools/conformance.py                       every leg
    python tools/conformance.py 2025-11-25 --runs 10  one leg, ten times in a row

Both published versions of the suite come from npm, and so does Node 22 where the machine's is older. They are kept in
.cache/conformance, or in `conformance` under the folder that TESTS_CACHE names.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))  # the harness of the tests installs what is installed once

from harness.installing import filled  # noqa: E402 - as above

PROGRAMS = ROOT / "tests" / "conformance"
EVERYTHING = PROGRAMS / "everything.py"

STABLE = "0.1.16"
ALPHA = "0.2.0-alpha.12"
PACKAGE = "@modelcontextprotocol/conformance"
NODE = 22
"""The oldest Node that the suite runs on."""

START = 30.0
"""Seconds the server may take until it says where it listens, and to stop."""
PATIENCE = 600.0
"""Seconds a leg may take; one takes about five."""


@dataclass(frozen=True)
class Leg:
    """One run of the suite, and what comes of it as long as nothing is broken."""

    name: str
    suite: str
    options: tuple[str, ...]
    scenarios: int
    short: frozenset[str] = frozenset()
    """The scenarios that do not pass; docs/conformance.md says why for each."""
    stripped: bool = False
    """Whether session ids are taken out of the answers, so that every request goes without a session."""
    progress: str = "session"
    """The server's progress policy; this is its default."""


TASKS = frozenset(
    f"tasks-{name}"
    for name in (
        "capability-negotiation",
        "dispatch-and-envelope",
        "lifecycle",
        "mrtr-composition",
        "mrtr-input",
        "request-headers",
        "request-state-removal",
        "required-task-error",
        "status-notifications",
        "wire-fields",
    )
)
"""An extension that the SDK does not have."""

SESSION = frozenset(
    {
        "elicitation-sep1034-defaults",
        "elicitation-sep1330-enums",
        "server-session-lifecycle",
        "server-sse-multiple-streams",
        "server-sse-polling",
        "tools-call-elicitation",
        "tools-call-sampling",
    }
)
"""What needs a back-channel: a way for the client to answer, or to come back. Without a session there is none."""

WITHHELD = frozenset({"tools-call-with-logging", "tools-call-with-progress"})
"""What a request without a session is not sent by default: whatever would precede the result."""

LEGACY = ("--spec-version", "2025-11-25")

LEGS = (
    Leg(STABLE, STABLE, (), 32),
    Leg("2025-06-18", ALPHA, ("--spec-version", "2025-06-18"), 27),
    Leg("2025-11-25", ALPHA, LEGACY, 33),
    Leg("2026-07-28", ALPHA, ("--spec-version", "2026-07-28"), 40),
    Leg("bare", ALPHA, (), 65, TASKS),
    Leg("session-less", ALPHA, LEGACY, 33, SESSION, stripped=True, progress="always"),
    Leg("session-less, progress=session", ALPHA, LEGACY, 33, SESSION | WITHHELD, stripped=True),
)


@dataclass(frozen=True)
class Verdict:
    """What a leg came to: for each scenario that was run, the worst that its checks say."""

    leg: Leg
    worst: dict[str, str]
    """By scenario: pass, WARNING, FAILURE, "nothing checked" or "no verdict"."""

    @property
    def short(self) -> dict[str, str]:
        """The scenarios that do not pass."""
        return {name: worst for name, worst in sorted(self.worst.items()) if worst != "pass"}

    @property
    def as_expected(self) -> bool:
        """Whether it is exactly what it should be: a scenario that begins to pass is told, too."""
        return len(self.worst) == self.leg.scenarios and frozenset(self.short) == self.leg.short


def main() -> int:
    """Run the legs; the exit code says whether all came out as expected."""
    parser = argparse.ArgumentParser(description="Run the conformance suite against the everything server.")
    parser.add_argument("legs", nargs="*", metavar="LEG", help=f"of {', '.join(leg.name for leg in LEGS)}; none: all")
    parser.add_argument("--runs", type=int, default=1, help="how many times in a row each leg is run")
    options = parser.parse_args()
    chosen = [leg for leg in LEGS if leg.name in options.legs or not options.legs]
    if unknown := set(options.legs) - {leg.name for leg in LEGS}:
        parser.error(f"no such leg: {', '.join(sorted(unknown))}")
    if options.runs < 1:
        parser.error("--runs takes a number from 1 on")
    node = find_node()
    verdicts = [run(leg, node) for leg in chosen for _ in range(options.runs)]
    say(f"\n{'leg':<30} {'passed':>7}  fell short")
    for verdict in verdicts:
        say(row(verdict))
    return 0 if all(verdict.as_expected for verdict in verdicts) else 1


def row(verdict: Verdict) -> str:
    """Write a verdict as a line of the table, with what is not as expected below it."""
    leg, short = verdict.leg, verdict.short
    names = ", ".join(f"{name} ({worst})" for name, worst in short.items()) or "-"
    line = f"{leg.name:<30} {len(verdict.worst) - len(short):>3}/{len(verdict.worst):<3}  {names}"
    if len(verdict.worst) != leg.scenarios:
        line += f"\n{'':30} UNEXPECTED: {len(verdict.worst)} scenarios instead of {leg.scenarios}"
    if news := sorted(set(short) - leg.short):
        line += f"\n{'':30} UNEXPECTED: does not pass: {', '.join(news)}"
    if gone := sorted(leg.short - set(short)):
        line += f"\n{'':30} UNEXPECTED: passes: {', '.join(gone)}"
    return line


# A leg


def run(leg: Leg, node: str) -> Verdict:
    """Run a leg against a server of its own. What was not as expected is kept to be looked at."""
    suite = installed(f"suite-{leg.suite}", f"{PACKAGE}@{leg.suite}") / "node_modules" / PACKAGE / "dist" / "index.js"
    results = Path(tempfile.mkdtemp(prefix=f"{leg.name.partition(',')[0]}-", dir=folder("results")))
    with serving(leg, results / "server.log") as url:
        command = [node, str(suite), "server", "--url", url, "--suite", "all", "-o", str(results), *leg.options]
        done = subprocess.run(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False, timeout=PATIENCE
        )
    (results / "suite.log").write_text(done.stdout)
    verdict = Verdict(leg, read_verdicts(done.stdout, results))
    if verdict.as_expected:
        shutil.rmtree(results)
    else:
        say(f"{leg.name}: not as expected; what the suite and the server wrote is in {results}")
    return verdict


def read_verdicts(output: str, results: Path) -> dict[str, str]:
    """Read what the checks of each scenario came to. The suite says itself which ones it ran."""
    scenarios = re.findall(r"^=== Running scenario: (\S+) ===$", output, re.MULTILINE)
    return {name: worst_of(name, results) for name in scenarios}


def worst_of(scenario: str, results: Path) -> str:
    """Read what a scenario's checks came to. A scenario that skipped all of them has not passed."""
    found = list(results.glob(f"server-{scenario}-20[0-9][0-9]-*/checks.json"))
    if len(found) != 1:
        return "no verdict"
    statuses = Counter(check["status"] for check in json.loads(found[0].read_text()))
    for status in ("FAILURE", "WARNING"):
        if statuses[status]:
            return status
    return "pass" if statuses["SUCCESS"] else "nothing checked"


# The server


@contextmanager
def serving(leg: Leg, log: Path) -> Iterator[str]:
    """Serve the everything server on a free port, give its address, and stop it in order."""
    binaries = Path(sys.executable).parent
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MCP_HYBRID_")}
    environment["MCP_HYBRID_PROGRESS"] = leg.progress
    if leg.stripped:
        command = [str(binaries / "hypercorn"), "-k", "trio", "-b", "127.0.0.1:0", "strip_ids:app"]
        environment |= {"MCP_HYBRID_TARGET": str(EVERYTHING), "PYTHONPATH": str(PROGRAMS)}
    else:
        command = [str(binaries / "mcp-hybrid"), "serve", str(EVERYTHING), "--port", "0"]
    with log.open("wb") as file:
        server = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=file, stderr=file)
    try:
        yield f"{address(log, server)}/mcp"
    finally:
        server.terminate()
        code = server.wait(START)
    if code != 0:
        sys.exit(f"the server ended with {code}:\n{log.read_text(errors='replace')}")


def address(log: Path, server: subprocess.Popen[bytes]) -> str:
    """Wait until the server has written where it listens."""
    until = time.monotonic() + START
    while time.monotonic() < until and server.poll() is None:
        if found := re.search(r"http://127\.0\.0\.1:\d+", log.read_text(errors="replace")):
            return found[0]
        time.sleep(0.05)
    sys.exit(f"the server did not start:\n{log.read_text(errors='replace')}")


# What comes from npm


def find_node() -> str:
    """Give a Node that is new enough: the machine's, else one from npm."""
    here = shutil.which("node")
    if here is not None and version_of(here) >= NODE:
        return here
    node = installed(f"node-{NODE}", f"node@{NODE}") / "node_modules" / "node" / "bin" / "node"
    if not node.exists():
        sys.exit(f"npm installed node@{NODE} without the program itself: are install scripts switched off?")
    return str(node)


def version_of(node: str) -> int:
    """Ask a Node for its major version."""
    answer = subprocess.run([node, "--version"], capture_output=True, text=True, check=True).stdout
    return int(answer.removeprefix("v").partition(".")[0])


def installed(name: str, package: str) -> Path:
    """Install an npm package into a folder of its own, once, and give the folder."""
    npm = shutil.which("npm")
    if npm is None:
        sys.exit("npm was not found: the conformance suite is an npm package (install Node.js)")
    command = [npm, "install", "--no-audit", "--no-fund", "--loglevel=error", package, "--prefix"]

    def fill(place: Path) -> None:
        done = subprocess.run(
            [*command, place], cwd=place, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
        )
        if done.returncode:
            sys.exit(f"npm could not install {package}:\n{done.stdout}")

    return filled(folder() / name, fill)


def folder(*names: str) -> Path:
    """Give a folder of the cache, made where it is missing."""
    cache = Path(os.environ.get("TESTS_CACHE") or ROOT / ".cache")
    place = cache.absolute().joinpath("conformance", *names)
    place.mkdir(parents=True, exist_ok=True)
    return place


def say(line: str) -> None:
    """Tell the person."""
    print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main())
