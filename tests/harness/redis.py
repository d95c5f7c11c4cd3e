"""A real `redis-server` of the test's own, on a free loopback port."""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from harness.process import POLL, free_port, listens
from harness.tools import need


class RedisServer:
    """A Redis that can be stopped, started again with or without its data, and stalled."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None
        self._has_run = False

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start it; the first time on another port where somebody has taken the one that was free."""
        while not self._started():
            assert not self._has_run, f"port {self.port} is taken"
            self.port = free_port()
        self._has_run = True

    def _started(self) -> bool:
        """Start it and wait until it answers; false if it ends before."""
        command = ["redis-server", "--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self._folder)]
        # What is written outlives the process without being forced to the disk, which others keep busy.
        self._process = subprocess.Popen(
            [*command, "--appendonly", "yes", "--appendfsync", "no", "--save", ""],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        until = time.monotonic() + 30
        while not listens(self._process.pid, self.port) or not self._answers():
            if self._process.poll() is not None:
                self._process = None
                return False
            assert time.monotonic() < until, "redis-server did not start"
            time.sleep(POLL)
        return True

    def kill(self) -> None:
        """End it as a crash would."""
        if self._process is not None:
            self._process.send_signal(signal.SIGCONT)
            self._process.kill()
            self._process.wait()
            self._process = None

    def forget(self) -> None:
        """Throw its data away; it must not be running."""
        shutil.rmtree(self._folder / "appendonlydir", ignore_errors=True)

    def stall(self) -> None:
        """Make it neither answer nor hang up, as a network does that is cut."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def _answers(self) -> bool:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", self.port)) != 0:
                return False
            probe.settimeout(10)
            probe.sendall(b"PING\r\n")
            return probe.recv(16).startswith(b"+PONG")


@contextmanager
def redis_server() -> Iterator[RedisServer]:
    """Run a Redis; where the machine has none the test is skipped, but not in CI, which installs one."""
    need("redis-server")
    with tempfile.TemporaryDirectory(prefix="redis-") as folder:
        server = RedisServer(Path(folder))
        server.start()
        try:
            yield server
        finally:
            server.kill()
