"""Starts `mcp-hybrid` by forking a process that has imported it already: a start costs a tenth of what it does by exec.

Each process of the tests has one such parent, made at the first start. A forked server is a session of its own, with
the arguments, environment, descriptors and signal handlers that exec would give it. A master that was forked forks its
workers in turn. When the tests' process ends, however it does, the parent sees the end of its socket, kills what it has
forked, and ends.

Only what reads nothing at import that differs between servers may be forked. `can_fork` says what that is; tests of how
the command starts use exec.
"""

from __future__ import annotations

import atexit
import gc
import json
import os
import random
import select
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from contextvars import Context
from pathlib import Path
from typing import IO, Final, NoReturn, Protocol

import prometheus_client
import trio

_REQUEST: Final = 1 << 20
"""Bytes of the longest request: a command line and an environment."""


class Process(Protocol):
    """What `subprocess.Popen` and `Forked` have in common."""

    pid: int

    def poll(self) -> int | None:
        """Return the exit code if the process has ended."""
        ...

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the exit code.

        Raises:
            subprocess.TimeoutExpired: It did not end in time.
        """
        ...

    def send_signal(self, sig: int) -> None:
        """Send a signal, unless the process has ended."""
        ...


class Forked:
    """A process that was forked for us, with the methods of `subprocess.Popen`."""

    def __init__(self, pid: int, status: int) -> None:
        """Know a process by its id and the descriptor of the pipe that its exit code comes by."""
        self.pid = pid
        self._status = status
        self._code: int | None = None

    def poll(self) -> int | None:
        """Return the exit code if the process has ended."""
        if self._code is None and select.select([self._status], [], [], 0)[0]:
            told = os.read(self._status, 16)
            os.close(self._status)
            self._code = int(told) if told else -signal.SIGKILL  # no word: its parent was killed, and it with it
        return self._code

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the exit code."""
        until = None if timeout is None else time.monotonic() + timeout
        while (code := self.poll()) is None:
            left = None if until is None else until - time.monotonic()
            if left is not None and left <= 0:
                raise subprocess.TimeoutExpired("mcp-hybrid", timeout or 0)
            select.select([self._status], [], [], left)
        return code

    def send_signal(self, sig: int) -> None:
        """Send a signal, unless the process has ended."""
        if self.poll() is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, sig)


_READ_AT_IMPORT: Final = ("PYTHON", "PROMETHEUS_", "OTEL_", "LD_", "LC_", "TZ")


def _read_at_import(env: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in env.items() if name.startswith(_READ_AT_IMPORT)}


_AT_START: Final = _read_at_import({**os.environ, "PYTHONUNBUFFERED": "1"})


def can_fork(env: Mapping[str, str]) -> bool:
    """Whether such a start may be a fork: nothing differs that Python or a library reads at its import.

    `env` is the whole environment of the process that would be started.
    """
    return sys.platform == "linux" and _read_at_import(env) == _AT_START


class ForkServer:
    """The process that forks, as the one that asks it sees it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None

    def start(
        self,
        arguments: Sequence[str],
        env: Mapping[str, str],
        output: IO[bytes],
        errors: IO[bytes] | None = None,
        *,
        cwd: Path | None = None,
    ) -> Forked:
        """Start `mcp-hybrid` with these arguments, and no input; `errors` is `output` if not given."""
        request = json.dumps({"arguments": list(arguments), "env": dict(env), "cwd": str(cwd or Path.cwd())}).encode()
        status, told = os.pipe()
        try:
            with self._lock, open(os.devnull, "rb") as nothing:  # noqa: PTH123 - a device
                if self._socket is None:
                    self._socket = self._launch()
                files = [nothing.fileno(), output.fileno(), (errors or output).fileno(), told]
                socket.send_fds(self._socket, [request], files)
                pid = int(self._socket.recv(32))
        finally:
            os.close(told)
        return Forked(pid, status)

    def _launch(self) -> socket.socket:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("MCP_HYBRID_")}
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-c", f"from harness.forking import main; main({theirs.fileno()})"],
                cwd=Path(__file__).parent.parent,
                env=inherited | {"PYTHONUNBUFFERED": "1"},
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                start_new_session=True,
            )
        atexit.register(self._close)
        return ours

    def _close(self) -> None:
        if self._socket is not None and self._process is not None:
            self._socket.close()
            self._process.wait(10)


SERVER: Final = ForkServer()


# ---- in the process that forks


def main(descriptor: int) -> None:
    """Fork on request, until the socket ends. In a forked process, run the command."""
    from mcp_hybrid import app, cli  # noqa: F401, PLC0415 - all that a server imports, once
    from mcp_hybrid.server import child, launch, master, running, worker_process  # noqa: F401, PLC0415 - as above

    worker_process.open_process = _fork_worker
    gc.collect()
    gc.freeze()  # so that forked processes go on sharing the memory of what was imported
    with socket.socket(fileno=descriptor) as requests:
        run = _fork_on_request(requests, cli.main)
    run()


def _fork_on_request(requests: socket.socket, command: Callable[[], None]) -> Callable[[], None]:
    children: dict[int, int] = {}
    wake, woken = os.pipe2(os.O_NONBLOCK)
    signal.set_wakeup_fd(woken)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    while True:
        ready, _, _ = select.select([requests.fileno(), wake], [], [])
        if wake in ready:
            os.read(wake, 1024)
            _reap(children)
        if requests.fileno() in ready:
            data, descriptors, _, _ = socket.recv_fds(requests, _REQUEST, 4)
            if not data:
                _kill(children)
                return lambda: None
            if (pid := os.fork()) == 0:
                for inherited in (wake, woken, *children.values()):
                    os.close(inherited)
                _become(json.loads(data), descriptors)
                return command
            *used, children[pid] = descriptors
            for each in used:
                os.close(each)
            requests.send(str(pid).encode())


def _become(request: Mapping[str, object], descriptors: Sequence[int]) -> None:
    """Make this process what exec would have made it."""
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.setsid()
    *standard, told = descriptors
    for number, descriptor in enumerate(standard):
        os.dup2(descriptor, number)
    for each in (*standard, told):
        os.close(each)
    os.environ.clear()
    os.environ.update(request["env"])  # type: ignore[call-overload]  # it was sent as a dictionary of text
    os.chdir(str(request["cwd"]))
    sys.argv = ["mcp-hybrid", *request["arguments"]]  # type: ignore[misc]  # a list of text
    random.seed()


def _reap(children: dict[int, int]) -> None:
    with suppress(ChildProcessError):
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return
            told = children.pop(pid, None)
            if told is not None:
                with suppress(BrokenPipeError):
                    os.write(told, str(os.waitstatus_to_exitcode(status)).encode())
                os.close(told)


def _kill(children: Mapping[int, int]) -> None:
    for pid in children:
        with suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)


# ---- in a master that was forked


async def _fork_worker(fds: Sequence[int]) -> trio.Process:
    """Fork a worker, in place of `worker_process.open_process`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of threads, which are the log's and of no concern here
        pid = os.fork()
    if pid == 0:
        _run_worker(fds)
    return trio.Process._create(_ForkedWorker(pid), None, None, None)


class _ForkedWorker(subprocess.Popen[bytes]):
    """Waits for a process that was forked already, and signals it."""

    def __init__(self, pid: int) -> None:
        self._forked = pid
        super().__init__("a worker")

    def _execute_child(self, *_: object) -> None:
        self.pid = self._forked
        self._child_created = True


def _run_worker(fds: Sequence[int]) -> NoReturn:
    """Run a worker in this forked process, on the stack of the master's event loop, which does not go on in here."""
    from mcp_hybrid.server import child  # noqa: PLC0415 - only processes that were forked need it
    from mcp_hybrid.telemetry import metrics  # noqa: PLC0415 - as above
    from mcp_hybrid.telemetry.directory import VARIABLE  # noqa: PLC0415 - as above

    code = 1
    try:
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGCHLD, signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        sys.set_asyncgen_hooks(None, None)
        trio._core._run.GLOBAL_RUN_CONTEXT.__dict__.clear()
        keep = {0, 1, 2, *fds}
        for each in [int(file.name) for file in Path("/proc/self/fd").iterdir()]:
            if each not in keep:
                with suppress(OSError):
                    os.close(each)
        if os.environ.get(VARIABLE):  # prometheus-client and `metrics` looked at it when they were imported
            prometheus_client.values.ValueClass = prometheus_client.values.get_value_class()  # type: ignore[no-untyped-call]
            metrics._SHARED = True  # type: ignore[misc]  # Final, but for this
        random.seed()
        code = Context().run(child.main, *map(str, fds))
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:  # noqa: BLE001 - as at the end of any process
        traceback.print_exc()
    finally:
        atexit._run_exitfuncs()
        for stream in (sys.stdout, sys.stderr):
            with suppress(Exception):
                stream.flush()
        os._exit(code)
