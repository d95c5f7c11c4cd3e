"""Sends a running server what no client should, a million times over, and judges everything it says and holds.

    python benchmarks/fuzz.py [--requests 1000000] [--seed 1] [--connections 24] [--only CONNECTION]

Requests and frames are made from ones that are right: HTTP/1.1 requests that are odd or break the framing, JSON-RPC
messages with anything in any place, HTTP/2 frames, websocket upgrades, garbage. Each connection's are made from the
seed and the connection's number, so that what was found is sent again by `--seed S --only N`; only the session ids in
them are the server's own. Meanwhile a client that behaves asks for answers that it knows.

The server must not end, must answer every whole request once and in well-formed HTTP, must never answer 500, must not
log what nobody expects, and must hold in the end what it held at the start. The exit code is 1 if it does not.
Linux only: descriptors and memory are read from /proc.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import sys
import time
from collections import Counter, deque
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from random import Random

import one_owner
import trio
import watching  # first: it knows where the harness is
from fuzzing.answers import WrongAnswerError
from fuzzing.found import FOUND
from fuzzing.make import make
from fuzzing.play import Playing
from fuzzing.probe import Probe
from fuzzing.script import Known

from harness.process import ServerProcess, serve

ENVIRON = {
    **one_owner.ENVIRON,
    "MCP_HYBRID_LOG__LEVEL": "warning",
    "MCP_HYBRID_REQUEST_TIMEOUT": "3",  # calls that wait for an answer nobody gives must not last
    "MCP_HYBRID_STREAM_AFTER": "0.2",
    "MCP_HYBRID_LIMITS__BODY": "65536",
    "MCP_HYBRID_SESSIONS__IDLE_TIMEOUT": "2",
    "MCP_HYBRID_SESSIONS__MAX_AGE": "120",
    "MCP_HYBRID_SESSIONS__MAX_LIVE": "1000",
}
EXPECTED_LINES = (
    "no sessions.keys configured: sessions end with this process",
    "a connection was dropped: what came on it could not be handled",
    "dropped 'notifications/",  # the SDK, of notifications whose parameters it does not take
)
"""Warnings that are meant. Everything else that is logged is a finding."""
EXPECTED_ERRORS = re.compile(
    r"ValueError: (Unknown prompt|Missing required arguments|Error rendering prompt)(?!(?s:.*)\nTraceback)"
)
"""Exceptions of handlers that are meant: the SDK has them for what a client did wrong."""

SESSIONS = 12
"""Sessions that fuzzed requests know of. One is replaced by each probe, as the requests end them, too."""
PROBE_EVERY = 0.5
"""Seconds from one probe to the next."""
SETTLING = 60.0
"""Seconds the server has to let go of what the last connections left behind."""
WARM = 0.1
"""The part of the run after which the server is warm."""
GROWTH = 32 * 1024
"""KiB by which resident memory may grow from then on."""
FINDINGS = 20
"""Findings after which a run ends early."""


@dataclass(frozen=True)
class Finding:
    """Something the server should not have done."""

    what: str
    number: int | None = None
    """The connection's, if it was on one."""
    sent: bytes = b""


@dataclass
class Run:
    """One run: what is left to send, what was counted, what was found."""

    port: int
    seed: int
    requests: int
    probe: Probe
    known: Known = field(default_factory=Known)
    next: int = 0
    played: deque[tuple[float, int]] = field(default_factory=lambda: deque(maxlen=500))
    """The last connections, and when they were made."""
    stuck: bool = False
    """Whether the server has stopped answering."""
    sent: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    answers: Counter[str] = field(default_factory=Counter)
    findings: list[Finding] = field(default_factory=list)
    ports: dict[int, int] = field(default_factory=dict)
    """The number of the last connection from each port: what is left open in the end can be told by it."""
    marks: list[tuple[int, float, watching.Held]] = field(default_factory=list)
    """Ten times in a run: items sent, seconds, what the server held."""

    @property
    def over(self) -> bool:
        """Whether enough was sent, or found."""
        return self.stuck or self.sent >= self.requests or len(self.findings) >= FINDINGS

    async def fuzz(self, connections: int) -> None:
        """Send everything, on so many connections at once."""
        self.known.sessions = [(await self.probe.ask())[0] for _ in range(SESSIONS)]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._keep_probing)
            nursery.start_soon(self._keep_marks)
            async with trio.open_nursery() as workers:
                for _ in range(connections):
                    workers.start_soon(self._work)
            nursery.cancel_scope.cancel()

    async def _work(self) -> None:
        while not self.over:
            number, self.next = self.next, self.next + 1
            await self.play(number)

    async def play(self, number: int) -> None:
        """Play the connection of that number."""
        rng = Random(f"{self.seed}/{number}")
        script = FOUND[number] if number < len(FOUND) else make(rng, self.known)
        self.played.append((trio.current_time(), number))
        try:
            async with await trio.open_tcp_stream("127.0.0.1", self.port) as stream:
                self.ports[stream.socket.getsockname()[1]] = number
                playing = Playing(stream, script, rng, self.answers)
                await playing.run()
            sent = script.items[: playing.sent]
            self.sent += len(sent)
            self.kinds.update(item.kind for item in sent)
        except WrongAnswerError as exc:
            self.findings.append(Finding(str(exc), number, b"".join(item.data for item in script.items)))
        except OSError as exc:
            self.findings.append(Finding(f"cannot connect: {exc}", number))

    async def _keep_probing(self) -> None:
        """Be a client that behaves, again and again; its session is handed to the others."""
        while True:
            started = trio.current_time()
            try:
                session, self.known.events = await self.probe.ask()
            except WrongAnswerError as exc:
                meanwhile = [number for at, number in self.played if started - 2 < at < started + 2]
                self.findings.append(Finding(f"{exc}; connections {meanwhile} were made then"))
                self.stuck = isinstance(exc.__cause__, trio.TooSlowError)
            else:
                self.known.sessions = [*self.known.sessions[1:], session]
            await trio.sleep(PROBE_EVERY)

    async def _keep_marks(self) -> None:
        started = trio.current_time()
        while True:
            await trio.sleep(0.2)
            if self.sent < self.requests * (len(self.marks) + 1) / 10:
                continue
            with suppress(trio.TooSlowError, OSError, trio.BrokenResourceError):  # which the probe will find, too
                _, held = await watching.look(self.port)
                self.mark(trio.current_time() - started, held)

    def mark(self, seconds: float, held: watching.Held) -> None:
        """Note what the server holds now."""
        self.marks.append((self.sent, seconds, held))
        print(f"{self.sent:>9} {self.sent / seconds:6.0f}/s  {held}", flush=True)


async def run_whole(server: ServerProcess, run: Run, connections: int) -> None:
    """Fuzz, and compare what the server holds before and after."""
    before = await watching.look_at_all(run.port)
    print(f"before:           {before[server.pid]}", flush=True)
    await run.fuzz(connections)
    try:
        after = await watching.settled(run.port, before, SETTLING)
    except (trio.TooSlowError, OSError) as exc:
        os.kill(server.pid, signal.SIGUSR1)
        await trio.sleep(1)  # until it has written where it is
        run.findings.append(Finding(f"the server does not answer in the end: {exc!r}\n{server.log[-3000:]}"))
        server.kill()
        return
    if after.keys() != {server.pid}:
        run.findings.append(Finding("the process that answers is another one"))
        return
    held = after[server.pid]
    print(f"after:            {held}")
    run.findings += [Finding(what) for what in grown(before[server.pid], held, run)]
    for port, waits in (await watching.connections(run.port)).items():
        what = "the server keeps a connection that its client has closed; its tasks:"
        run.findings.append(Finding("\n  ".join([what, *waits]), run.ports.get(port)))


def grown(before: watching.Held, after: watching.Held, run: Run) -> list[str]:
    """Say what the server holds in the end that it did not hold at first."""
    found = []
    for what in ("descriptors", "tasks", "sessions"):
        left = getattr(after, what) - getattr(before, what)
        if left > 0:
            found.append(f"{left} {what} are left over")
    warm = next((held for sent, _, held in run.marks if sent >= run.requests * WARM), after)
    if after.rss > warm.rss + GROWTH:
        found.append(f"resident memory grew by {(after.rss - warm.rss) / 1024:.1f} MiB once the server was warm")
    return found


def unexpected(log: str) -> tuple[Counter[str], list[str]]:
    """Sort the log's lines: how often each expected one came, and those that nobody expects."""
    expected: Counter[str] = Counter()
    others = []
    for line in log.splitlines():
        try:
            found = json.loads(line)
            event, why, exception = found["event"], found.get("why"), found.get("exception", "")
        except (ValueError, LookupError, TypeError):
            others.append(line)
            continue
        handler = EXPECTED_ERRORS.search(exception) if event == "handler raised" else None
        if handler is not None:
            expected[f"{event}: {handler[1]}"] += 1
        elif event.startswith(EXPECTED_LINES):
            expected[f"{event} ({why})" if why else event] += 1
        else:
            others.append(line)
    return expected, others


def table(title: str, counts: Mapping[str, int]) -> None:
    print(title)
    for name, count in sorted(counts.items(), key=lambda each: -each[1]):
        print(f"  {count:>9}  {name}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--requests", type=int, default=1_000_000, help="requests and frames (default 1000000)")
    parser.add_argument("--seed", type=int, default=1, help="what the requests are made from (default 1)")
    parser.add_argument("--connections", type=int, default=24, help="connections at once (default 24)")
    parser.add_argument("--only", type=int, metavar="N", help="play the connection of this number, and no other")
    options = parser.parse_args()

    started = time.monotonic()
    with serve(watching.TARGET, env=ENVIRON) as server:
        run = Run(server.port, options.seed, options.requests, Probe(server.port))
        if options.only is None:
            trio.run(run_whole, server, run, options.connections)
        else:
            run.known.sessions = [trio.run(run.probe.ask)[0]]
            trio.run(run.play, options.only)
    seconds = time.monotonic() - started
    expected, others = unexpected(server.log)
    run.findings += [Finding(f"the server logged: {line[:400]} ... {line[-1500:]}") for line in others[:FINDINGS]]

    table("sent", run.kinds)
    table("answers and frames that came back", run.answers)
    table("logged as expected", expected)
    print(f"{run.probe.asked} probes answered right, the slowest after {run.probe.slowest:.2f} s")
    print(f"{run.sent} items on {run.next} connections in {seconds:.0f} s, {run.sent / seconds:.0f} a second")
    print(f"{len(run.findings)} findings")
    for finding in run.findings:
        print(f"\n{finding.what}")
        if finding.number is not None:
            print(f"  python benchmarks/fuzz.py --seed {options.seed} --only {finding.number}")
            print(f"  {finding.sent[-2000:]!r}")
    return 1 if run.findings else 0


if __name__ == "__main__":
    sys.exit(main())
