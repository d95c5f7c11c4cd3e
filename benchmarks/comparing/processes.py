"""Server processes, each on a core that nothing else of the benchmark runs on, and what they have used.

Linux only: CPU time and memory are read from /proc.
"""

from __future__ import annotations

import os
import resource
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import IO

from initialize_flood import memory
from one_owner import ENVIRON
from sessions import cpu

START = 60.0
"""Seconds a server has until it answers."""
TRIES = 3
"""A free port may be taken by another program before the server binds it; then another one is tried."""
POLL = 0.05
FILES = 8192
"""Descriptors that a process may have open; the usual 1024 are fewer than the connections that are measured."""
SETTINGS = ("MCP_HYBRID_", "FASTMCP_", "UVICORN_")
"""Variables that would change a server's defaults."""

Cores = frozenset[int]


class ServerError(Exception):
    """A server did not start, or ended by itself."""


@dataclass(frozen=True)
class Program:
    """How a server is started."""

    argv: Callable[[int], Sequence[str]]
    """Makes the command line for a port."""
    env: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Server:
    """A server that runs."""

    port: int
    process: subprocess.Popen[bytes]
    log: IO[bytes]

    @property
    def family(self) -> list[int]:
        """The process and all below it."""
        return family(self.process.pid)

    def cpu(self) -> float:
        """Return the CPU seconds that all its processes have used, user and system."""
        self.check()
        return sum(cpu(pid) for pid in self.family)

    def rss(self) -> int:
        """Return the resident memory of all its processes, in KiB."""
        self.check()
        return sum(memory(pid)[0] for pid in self.family)

    def check(self) -> None:
        """Raise ServerError if it has ended."""
        if (code := self.process.poll()) is not None:
            raise ServerError(f"the server ended with {code}:\n{self.last_words()}")

    def last_words(self) -> str:
        """Give the end of what it has written."""
        size = os.fstat(self.log.fileno()).st_size
        return os.pread(self.log.fileno(), 3000, max(0, size - 3000)).decode(errors="replace")


@contextmanager
def running(program: Program, cores: Cores) -> Iterator[Server]:
    """Run a server until it is no longer needed, pinned to `cores`."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(SETTINGS)}
    with tempfile.TemporaryFile() as log:
        server = _started(program, {**inherited, **ENVIRON, **program.env}, cores, log)
        try:
            yield server
        finally:
            _stop(server.process)


def allow_many_files() -> None:
    """Let this process, and all that it starts, hold a descriptor for each of many connections."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = FILES if hard == resource.RLIM_INFINITY else min(FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


@contextmanager
def on(cores: Cores) -> Iterator[None]:
    """Have what is started meanwhile run on these cores, from its first thread on."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def split_cores() -> tuple[Cores, Cores, Cores]:
    """Give a core for the server and one for what drives it: the same one where there is no other; and all of them."""
    available = sorted(os.sched_getaffinity(0))
    return frozenset(available[:1]), frozenset(available[-1:]), frozenset(available)


def family(leader: int) -> list[int]:
    """List a process and all below it."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(stat.parent.name))
    found = [leader]
    for pid in found:  # which grows
        found += children.get(pid, [])
    return found


def _started(program: Program, env: Mapping[str, str], cores: Cores, log: IO[bytes]) -> Server:
    last_words = ""
    for _ in range(TRIES):
        port = _free_port()
        with on(cores):
            process = subprocess.Popen(
                program.argv(port),
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # so that what it starts can be ended with it
            )
        server = Server(port, process, log)
        try:
            if _answers(server):
                return server
        except BaseException:
            _stop(process)
            raise
        _stop(process)
        last_words = server.last_words()
    raise ServerError(f"the server did not start:\n{last_words}")


def _answers(server: Server) -> bool:
    until = time.monotonic() + START
    while time.monotonic() < until and server.process.poll() is None:
        probe = HTTPConnection("127.0.0.1", server.port, timeout=START)
        try:
            probe.request("POST", "/nowhere", b"{}", {"content-type": "application/json"})
            probe.getresponse().read()
        except (OSError, HTTPException):
            time.sleep(POLL)
        else:
            return True
        finally:
            probe.close()
    return False


def _stop(process: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)  # there is nothing that it would have to bring to an end
    process.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
