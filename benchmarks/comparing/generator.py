"""The load generator for machines without wrk: one process, which is told what to do on standard input.

It answers with one line, as the script does that wrk is given. Slower than wrk, but on a core of its own that does not
show in what a request costs the server.
"""

from __future__ import annotations

import json
import selectors
import socket
import sys
import time
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import h11

sys.path.insert(0, str(Path(__file__).parent.parent))

from comparing.plans import Plan

CHUNK = 65536
STALLED = 20.0
"""Seconds without any answer after which it is given up."""


@dataclass
class Tally:
    """What came back."""

    took: list[float] = field(default_factory=list)
    """Seconds from each request to the end of its answer."""
    wrong: int = 0
    sample: str = ""

    def complain(self, why: str) -> None:
        """Count something that was not right."""
        self.wrong += 1
        self.sample = why


class Connection:
    """Sends one request after another."""

    def __init__(self, port: int, plan: Plan, numbers: count[int], tally: Tally) -> None:
        self._address = ("127.0.0.1", port)
        self._plan = plan
        self._numbers = numbers
        self._tally = tally
        self._body: list[bytes] = []
        self._status = 0
        self._started = 0.0
        self.open()

    def open(self) -> None:
        """Connect."""
        self.socket = socket.create_connection(self._address)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._http = h11.Connection(h11.CLIENT)

    def send(self) -> None:
        """Send the next request."""
        number = next(self._numbers)
        body = self._plan.body(number).encode()
        headers = {**self._plan.headers[number % len(self._plan.headers)], "content-length": str(len(body))}
        host = ("host", f"{self._address[0]}:{self._address[1]}")
        head = self._http.send(h11.Request(method="POST", target="/mcp", headers=[host, *headers.items()]))
        end = self._http.send(h11.Data(data=body)), self._http.send(h11.EndOfMessage())
        self._body = []
        self._started = time.perf_counter()
        self.socket.sendall(b"".join(filter(None, (head, *end))))

    def receive(self) -> bool:
        """Read what there is; say whether the answer is complete."""
        self._http.receive_data(self.socket.recv(CHUNK))
        while (event := self._http.next_event()) not in (h11.NEED_DATA, h11.PAUSED):
            if isinstance(event, h11.Response):
                self._status = event.status_code
            elif isinstance(event, h11.Data):
                self._body.append(bytes(event.data))
            elif isinstance(event, h11.EndOfMessage):
                self._tally.took.append(time.perf_counter() - self._started)
                why = self._plan.complaint(self._status, b"".join(self._body).decode())
                if why is not None:
                    self._tally.complain(why)
                return True
        return False

    def renew(self) -> bool:
        """Make ready for another request; say whether that took a new connection."""
        if self._http.our_state is h11.DONE and self._http.their_state is h11.DONE:
            self._http.start_next_cycle()
            return False
        self.socket.close()
        self.open()
        return True


def drive(port: int, plan: Plan, connections: int, seconds: float) -> tuple[Tally, float]:
    tally, numbers = Tally(), count(1)
    with selectors.DefaultSelector() as selector:
        started = time.perf_counter()
        for _ in range(connections):
            connection = Connection(port, plan, numbers, tally)
            selector.register(connection.socket, selectors.EVENT_READ, connection)
            connection.send()
        while (now := time.perf_counter()) < started + seconds:
            ready = selector.select(min(STALLED, started + seconds - now))
            if not ready and time.perf_counter() >= now + STALLED:
                tally.complain(f"no answer came for {STALLED:g} s")
                break
            for key, _ in ready:
                _go_on(key.data, selector, tally)
    return tally, time.perf_counter() - started


def _go_on(connection: Connection, selector: selectors.BaseSelector, tally: Tally) -> None:
    before = connection.socket
    try:
        if not connection.receive():
            return
        if connection.renew():
            selector.unregister(before)
            selector.register(connection.socket, selectors.EVENT_READ, connection)
        connection.send()
    except (OSError, h11.ProtocolError) as error:
        tally.complain(f"a connection failed: {error!r}")
        selector.unregister(before)
        before.close()


def percentile(ordered: list[float], share: float) -> float:
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))] if ordered else 0.0


def main() -> None:
    order: dict[str, Any] = json.load(sys.stdin)
    given = order["plan"]
    plan = Plan(
        tuple(given["pieces"]), tuple(given["headers"]), tuple((text, times) for text, times in given["expected"])
    )
    tally, seconds = drive(order["port"], plan, order["connections"], order["seconds"])
    took = sorted(tally.took)
    result = {
        "requests": len(took),
        "seconds": seconds,
        "p50_ms": percentile(took, 0.5) * 1e3,
        "p99_ms": percentile(took, 0.99) * 1e3,
        "wrong": tally.wrong,
        "sample": tally.sample,
    }
    print(f"result {json.dumps(result)}")


if __name__ == "__main__":
    main()
