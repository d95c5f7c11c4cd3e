"""Real server processes on free loopback ports, for tests that must see a whole process live and end.

Everything here is synchronous, so that it serves tests on Trio and on asyncio alike.
"""

from __future__ import annotations

import fcntl
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from random import sample
from types import TracebackType
from typing import IO, ClassVar, Self

import pytest

from harness import forking

POLL = 0.02
"""Seconds between two looks at a process."""

PROGRAMS = Path(__file__).parent.parent / "programs"

_PORT_TAKEN = re.compile(r"address already in use|Errno 98|Errno 48", re.IGNORECASE)
_TRIES = 5
_LONGEST_RUN = 300
"""Seconds for a command that ends by itself."""

Argv = Callable[[int], Sequence[str]]
"""Makes a command line for a port."""


class ServerProcess:
    """One server process, as a context manager; leaving it stops the process in order and checks its exit code."""

    known: ClassVar[list[ServerProcess]] = []
    """Those that are up or have been, for `harness.logs`."""

    def __init__(
        self,
        argv: Argv,
        env: Mapping[str, str] | None = None,
        *,
        path: str = "/mcp",
        deadline: float = 120,
        cwd: Path | None = None,
        forked: bool = False,
    ) -> None:
        """Run a command. `forked`: it is `mcp-hybrid`, and may be forked where that makes no difference."""
        self._cwd = cwd or Path.cwd()
        self.port = 0
        self._forked = forked
        self._argv = argv
        self._program = "nothing"
        self._env = dict(env or {})
        self._path = path
        self._deadline = deadline
        self._process: forking.Process | None = None
        self._stack = ExitStack()
        self._log: IO[bytes] | None = None
        self._last_log = ""

    @property
    def name(self) -> str:
        return f"{self._program} on {self.port}"

    @property
    def is_over(self) -> bool:
        """Whether it was left: the log will not grow any more."""
        return self._log is None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}{self._path}"

    @property
    def pid(self) -> int:
        assert self._process is not None, "the process was not started"
        return self._process.pid

    @property
    def log(self) -> str:
        """What the process has written so far, standard output and error together."""
        return self._last_log if self._log is None else Path(self._log.name).read_text(errors="replace")

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self._log = stack.enter_context(tempfile.NamedTemporaryFile(prefix="server-", suffix=".log"))
            stack.callback(self._keep_log)
            self.known.append(self)
            stack.callback(self.kill)
            self.start()
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._stack:
            if error is None and self._process is not None:
                self.stop()

    def start(self, port: int | None = None) -> Self:
        """Start the process and wait until its port answers; with `port` on that one, as after a restart.

        A free port may be taken by another program before the server binds it; then another one is tried.
        """
        for _ in range(_TRIES):
            self.port = port or free_port()
            self._launch()
            if self._answers():
                return self
            if port is not None or not _PORT_TAKEN.search(self.log):
                break
        raise AssertionError(f"the server did not start:\n{self.log}")

    def stop(self, exit_code: int = 0, within: float = 60) -> None:
        """Send SIGTERM, and check that the process ends in time with that exit code."""
        self._running().send_signal(signal.SIGTERM)
        self.wait(exit_code, within)

    def wait(self, exit_code: int = 0, within: float = 60) -> None:
        """Check that the process, which was told to end, does so in time with that exit code."""
        process = self._running()
        try:
            code = process.wait(within)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"the server did not end within {within} s of SIGTERM:\n{self.log}") from None
        self._process = None
        self._kill_group(process.pid)  # workers that outlived their master
        assert code == exit_code, f"the server ended with {code}, not {exit_code}:\n{self.log}"

    def kill(self) -> None:
        """End the process, and its workers, as a crash would; nothing is checked."""
        if self._process is not None:
            self._kill_group(self._process.pid)
            self._process.wait()
            self._process = None

    def restart(self, env: Mapping[str, str] | None = None, *, crash: bool = False) -> None:
        """Stop in order, or as in a crash, and start again on the same port; `env` changes variables."""
        port = self.port
        if crash:
            self.kill()
        else:
            self.stop()
        self._env.update(env or {})
        self.start(port)

    def wait_for_log(self, text: str, within: float = 60, *, since: int = 0) -> None:
        """Wait until the log holds a text, below what was there at a length of it."""
        until = time.monotonic() + within
        while text not in self.log[since:]:
            assert time.monotonic() < until, f"{text!r} did not come up in the log:\n{self.log}"
            time.sleep(POLL)

    def _keep_log(self) -> None:
        self._last_log, self._log = self.log, None

    @staticmethod
    def _kill_group(pid: int) -> None:
        with suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)

    def _running(self) -> forking.Process:
        assert self._process is not None, "the process was not started"
        return self._process

    def _launch(self) -> None:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("MCP_HYBRID_")}
        assert self._log is not None
        environ = {**inherited, "PYTHONUNBUFFERED": "1", **self._env}
        program, *arguments = self._argv(self.port)
        self._program = Path(program).name  # kept, as making a command line may write files
        if self._forked and forking.can_fork(environ):
            self._process = forking.SERVER.start(arguments, environ, self._log, cwd=self._cwd)
            return
        self._process = subprocess.Popen(
            [program, *arguments],
            env=environ,
            cwd=self._cwd,
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # so that its workers can be killed with it
        )

    def _answers(self) -> bool:
        """Wait until this process, and no other, answers at the port; false if it ends before.

        It listens before it serves, and until it does a SIGTERM ends it with no more ado.
        """
        until = time.monotonic() + self._deadline
        while (left := until - time.monotonic()) > 0:
            if self._running().poll() is not None:
                self._process = None
                return False
            if listens(self.pid, self.port) and answers_http(self.port, left):
                return True
            time.sleep(POLL)
        self.kill()
        return False


def serve(
    target: str | None = None, *options: str, env: Mapping[str, str] | None = None, path: str = "/mcp"
) -> ServerProcess:
    """`mcp-hybrid serve [TARGET] [options]`."""
    named = [] if target is None else [target]
    return ServerProcess(
        lambda port: [*command("mcp-hybrid"), "serve", *named, "--port", str(port), *options],
        env,
        path=path,
        forked=True,
    )


def hypercorn(*options: str, env: Mapping[str, str] | None = None, app: str = "mcp_hybrid.asgi:app") -> ServerProcess:
    """`hypercorn -k trio mcp_hybrid.asgi:app [options]`."""
    return ServerProcess(
        lambda port: [*command("hypercorn"), "-k", "trio", "-b", f"127.0.0.1:{port}", *options, app], env
    )


def program(name: str) -> str:
    """Give the target that names one of the test programs, like `with_fastmcp`."""
    return f"{PROGRAMS / name}.py:server"


def command(name: str) -> list[str]:
    """Find a command beside the running Python, as it may not be on the search path."""
    beside = Path(sys.executable).with_name(name)
    if not beside.exists():
        pytest.fail(f"{name} is not installed beside {sys.executable}")
    return [str(beside)]


def listens(leader: int, port: int) -> bool:
    """Whether a process of the group of `leader` (the process itself, or a worker of its) listens on a loopback port.

    Whoever asks the port itself may be answered by another program, which has taken it meanwhile.
    """
    # Who listens on both families at once, as Go's programs do, is in the second list.
    sockets = [each for each in (Path("/proc/net/tcp"), Path("/proc/net/tcp6")) if each.exists()]
    if not sockets:  # not Linux: no more can be said than that somebody listens
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0
    rows = [line.split() for each in sockets for line in each.read_text().splitlines()[1:]]
    listening = {f"socket:[{row[9]}]" for row in rows if row[3] == "0A" and int(row[1].rpartition(":")[2], 16) == port}
    # Most looks are too early: that nothing listens yet is seen without looking at any process.
    return bool(listening) and bool(listening & _open_files(leader))


def _open_files(leader: int) -> set[str]:
    found = set()
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if int(folder.name) == leader or os.getpgid(int(folder.name)) == leader:
                found |= {str(file.readlink()) for file in (folder / "fd").iterdir()}
    return found


def answers_http(port: int, within: float) -> bool:
    """Whether a connection is served: what is no HTTP is refused, before an application sees or logs it."""
    with socket.socket() as probe, suppress(OSError):
        probe.settimeout(within)
        probe.connect(("127.0.0.1", port))
        probe.sendall(b"?\r\n\r\n")
        probe.recv(1)
        return True
    return False


class _Ports:
    """The ports that this process has been given, and that other runs of the tests keep off until it ends.

    They are none of those that the system takes for outgoing connections: while a server is down, as it is restarted,
    nobody takes its port. That is the one thing that another attempt could not mend.
    """

    def __init__(self) -> None:
        self._left = sample(range(20_000, 32_000), 12_000)
        self._locks: IO[bytes] | None = None

    def take(self) -> int:
        while True:
            port = self._left.pop()
            if self._lock(port) and self._is_free(port):
                return port

    def _lock(self, port: int) -> bool:
        """Lock one byte of a file that all runs share; it is let go when the process ends, however it ends."""
        if self._locks is None:
            self._locks = (Path(tempfile.gettempdir()) / f"mcp-hybrid-ports-{os.getuid()}").open("ab")
        try:
            fcntl.lockf(self._locks, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, port)
        except OSError:
            return False
        return True

    @staticmethod
    def _is_free(port: int) -> bool:
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                return False
            return True


_PORTS = _Ports()


def free_port() -> int:
    """Find a loopback port that is free, and stays so for whoever asked."""
    return _PORTS.take()


def run_to_its_end(*arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Run a command that is expected to end by itself."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("MCP_HYBRID_")}
    name, *rest = arguments
    argv, environ = [*command(name), *rest], inherited | env
    if name != "mcp-hybrid" or not forking.can_fork({"PYTHONUNBUFFERED": "1", **environ}):
        return subprocess.run(argv, env=environ, capture_output=True, text=True, timeout=_LONGEST_RUN, check=False)
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
        code = forking.SERVER.start(rest, environ, output, errors).wait(_LONGEST_RUN)
        texts = []
        for file in (output, errors):
            file.seek(0)
            texts.append(file.read().decode())
    return subprocess.CompletedProcess(argv, code, *texts)
